//! The pool manager: the idle set and the wait queue. No I/O, and no await on anything.
//!
//! Started, restarted and stopped by the pool's supervisor. What it knows is rebuilt after its death: the runners offer
//! themselves to each new pool manager, and a job whose ticket died with the old one asks again, since its channel
//! closed before `Started`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr, SupervisionEvent};
use tokio::time::Instant;
use tracing::warn;

use super::estimate::{Outlook, RunTimes};
use super::queue::{FairQueue, Full, Held, Slot, Whose};
use super::{Granted, Holding, JobEvent, NotStarted, PoolMsg, PoolStatus, RunnerStatus, Ticket};
use crate::config::SharingConfig;
use crate::runner::RunnerMsg;

/// How often those who wait are told how things stand.
const NEWS_EVERY: Duration = Duration::from_secs(2);
/// How many of the next in line are told; the others have a while to wait.
const NEWS_FOR: usize = 200;
/// How often in all a job is given to a runner before its agent has started. A job that so many runners failed to start
/// has something to do with it itself.
pub const MAX_TRIES: u32 = 5;

/// Lends each idle runner to the job whose turn it is.
pub struct PoolManager {
    /// Jobs waiting at a time; one more is refused.
    pub max_queue: usize,
    pub sharing: SharingConfig,
    /// Runners that the configuration asks for, to explain a wait.
    pub runners: usize,
}

pub struct State {
    queue: FairQueue<Granted>,
    idle: VecDeque<(String, ActorRef<RunnerMsg>)>,
    runners: BTreeMap<String, (RunnerStatus, Option<Instant>)>,
    /// By runner, what it was lent for, until it is offered again.
    lent: BTreeMap<String, Lent>,
    times: RunTimes,
    /// When the next `Tick` comes, if one is on its way.
    tick_at: Option<Instant>,
    draining: bool,
}

/// A runner that is not idle because of a job.
struct Lent {
    holding: Holding,
    since: Option<Instant>,
    /// Until the job is over, which is before its runner is clean again.
    slot: Option<Slot>,
    /// Whether the time until the next offer is the job's: not when the runner is built anew meanwhile.
    counts: bool,
}

impl Actor for PoolManager {
    type Msg = PoolMsg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _myself: ActorRef<PoolMsg>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State {
            queue: FairQueue::new(self.max_queue, self.sharing.clone()),
            idle: VecDeque::new(),
            runners: BTreeMap::new(),
            lent: BTreeMap::new(),
            times: RunTimes::default(),
            tick_at: None,
            draining: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<PoolMsg>,
        msg: PoolMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.take_back();
        match msg {
            PoolMsg::Acquire(ticket) => self.acquire(ticket, state),
            PoolMsg::Withdraw(job) => {
                if let Some(granted) = state.queue.remove(&job) {
                    answer(granted.ticket, NotStarted::Cancelled);
                }
            }
            PoolMsg::Status(reply) => {
                if !reply.is_closed() {
                    // The asker may have given up waiting.
                    let _ = reply.send(state.status());
                }
            }
            PoolMsg::Offer { runner, actor } => {
                state.returned(&runner);
                state.idle.retain(|(name, _)| *name != runner);
                state.idle.push_back((runner, actor));
            }
            PoolMsg::Retract { runner } => state.idle.retain(|(name, _)| *name != runner),
            PoolMsg::HandBack { granted, failure } => self.hand_back(granted, failure, state),
            PoolMsg::RunnerIs { status, holds } => state.runner_is(status, holds),
            PoolMsg::Tick => {
                state.tick_at = None;
                self.tick(state);
            }
            PoolMsg::Drain => {
                state.draining = true;
                for granted in state.queue.drain() {
                    answer(granted.ticket, NotStarted::Draining);
                }
            }
        }
        // Whatever came, it may have made a runner free or given back a share.
        state.grant();
        state.arm(&myself);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<PoolMsg>,
        event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children.
        warn!(?event, "the pool manager got an event of a child that it does not have");
        Ok(())
    }
}

impl PoolManager {
    fn acquire(&self, ticket: Ticket, state: &mut State) {
        if state.draining {
            return answer(ticket, NotStarted::Draining);
        }
        let spec = ticket.spec.clone();
        let waits = state.idle.is_empty() || state.queue.held(&spec.requester, &spec.channel).is_some();
        if waits && let Err(full) = state.queue.has_room(&spec.requester, &spec.channel) {
            return answer(
                ticket,
                match full {
                    Full::Queue { limit } => NotStarted::QueueFull { limit },
                    Full::Requester { limit } => NotStarted::TooManyOfRequester { limit },
                    Full::Channel { limit } => NotStarted::TooManyOfChannel { limit },
                },
            );
        }
        let deadline = ticket.wait_until;
        if let Err(twice) = state.queue.push(whose(&ticket), deadline, Granted { ticket, failures: Vec::new() }) {
            // The first ticket keeps its place; one job must not run twice.
            return answer(twice.ticket, NotStarted::Cancelled);
        }
        state.grant();
        if let Some(ahead) = state.queue.ahead(&spec.job)
            && let Some(granted) = state.queue.get(&spec.job)
        {
            self.tell(state, granted, ahead, &state.outlook());
        }
    }

    fn hand_back(&self, granted: Granted, failure: String, state: &mut State) {
        let Granted { ticket, mut failures } = granted;
        let slot = state.slot_of(&ticket);
        failures.push(failure);
        let refused = match failures.last() {
            _ if state.draining => Some(NotStarted::Draining),
            Some(message) if failures.len() >= MAX_TRIES as usize => {
                Some(NotStarted::NoRunner { message: format!("{MAX_TRIES} runners were tried; the last: {message}") })
            }
            Some(_) | None => None,
        };
        if let Some(why) = refused {
            state.queue.release(slot);
            return answer(ticket, why);
        }
        let tried = failures.len();
        let failure = failures.last().map_or("", String::as_str);
        let reason = format!("a runner was found unfit ({failure}); try {} of {MAX_TRIES} is next", tried + 1);
        ticket.tell(JobEvent::Queued { ahead: 0, reason, wait: None });
        let deadline = ticket.wait_until;
        let granted = Granted { ticket, failures };
        if let Err(twice) = state.queue.push_front(whose(&granted.ticket), slot, deadline, granted) {
            answer(twice.ticket, NotStarted::Cancelled);
        }
    }

    fn tick(&self, state: &mut State) {
        let expired = state.queue.expire(Instant::now());
        for granted in expired {
            let reason = self.why_waits(state, &granted);
            answer(granted.ticket, NotStarted::QueueTimeout { reason });
        }
        let outlook = state.outlook();
        for (ahead, granted) in state.queue.upcoming(NEWS_FOR).into_iter().enumerate() {
            self.tell(state, granted, ahead, &outlook);
        }
        for granted in state.queue.held_back(NEWS_FOR) {
            if let Some(ahead) = state.queue.ahead(&granted.ticket.spec.job) {
                self.tell(state, granted, ahead, &outlook);
            }
        }
    }

    /// Tells one that waits how things stand.
    fn tell(&self, state: &State, granted: &Granted, ahead: usize, outlook: &Outlook) {
        let spec = &granted.ticket.spec;
        // When a job that is held is held no more, is not up to the runners.
        let held = state.queue.held(&spec.requester, &spec.channel).is_some();
        let wait = if held { None } else { outlook.wait(ahead) };
        granted.ticket.tell(JobEvent::Queued { ahead, reason: self.why_waits(state, granted), wait });
    }

    /// In words, why this one has no runner.
    fn why_waits(&self, state: &State, granted: &Granted) -> String {
        let spec = &granted.ticket.spec;
        match state.queue.held(&spec.requester, &spec.channel) {
            Some(Held::Requester { limit }) => {
                format!("{limit} of your jobs running is the most at a time: the next one starts when one ends")
            }
            Some(Held::Channel { limit }) => {
                format!("{limit} jobs of this channel running is the most at a time: the next one starts when one ends")
            }
            None => self.why_waiting(state),
        }
    }

    /// In words, why nobody in the queue has a runner.
    fn why_waiting(&self, state: &State) -> String {
        let states: Vec<&RunnerStatus> = state.runners.values().map(|(status, _)| status).collect();
        let busy = states.iter().filter(|s| matches!(s.state, "checking" | "executing")).count();
        let restoring = states.iter().filter(|s| s.state == "restoring").count();
        if busy + restoring >= self.runners {
            return "all runners are busy".into();
        }
        let trouble = states.iter().find_map(|s| Some(format!("{}: {}", s.runner, s.note.as_ref()?)));
        match trouble {
            Some(trouble) if busy == 0 => format!("no runner is ready; {trouble}"),
            Some(trouble) => format!("the other runners are busy; {trouble}"),
            None if busy + restoring > 0 => "the other runners are busy".into(),
            None => "the runners are being built".into(),
        }
    }
}

impl State {
    /// Pairs idle runners with waiting jobs until either is used up, or all jobs left are held.
    fn grant(&mut self) {
        while !self.idle.is_empty() {
            let Some((granted, slot)) = self.queue.pop() else { return };
            if granted.ticket.is_cancelled() {
                self.queue.release(slot);
                answer(granted.ticket, NotStarted::Cancelled);
                continue;
            }
            self.lend(granted, slot);
        }
    }

    /// Gives the ticket to the first idle runner that is alive, or back to the front of the queue.
    fn lend(&mut self, granted: Granted, slot: Slot) {
        let mut granted = granted;
        let holding = Holding::of(&granted.ticket);
        while let Some((name, runner)) = self.idle.pop_front() {
            match runner.cast(RunnerMsg::Run(granted)) {
                Ok(()) => {
                    let since = Some(Instant::now());
                    self.put_lent(name, Lent { holding, since, slot: Some(slot), counts: true });
                    return;
                }
                Err(MessagingErr::SendErr(RunnerMsg::Run(back))) => granted = back,
                // The message is gone with the error, and with it the ticket: its owner sees the channel close and
                // asks again.
                Err(error) => {
                    warn!(%error, "a ticket was lost on the way to a runner");
                    return self.queue.release(slot);
                }
            }
        }
        let deadline = granted.ticket.wait_until;
        if let Err(twice) = self.queue.push_front(whose(&granted.ticket), slot, deadline, granted) {
            answer(twice.ticket, NotStarted::Cancelled);
        }
    }

    fn put_lent(&mut self, runner: String, lent: Lent) {
        if let Some(slot) = self.lent.insert(runner, lent).and_then(|before| before.slot) {
            self.queue.release(slot);
        }
    }

    /// Takes back the share of each job that is over, however it ended: the ticket is gone then, whoever had it.
    fn take_back(&mut self) {
        for lent in self.lent.values_mut() {
            if lent.holding.is_over()
                && let Some(slot) = lent.slot.take()
            {
                self.queue.release(slot);
            }
        }
    }

    /// The slot of a job that comes back without having run.
    fn slot_of(&mut self, ticket: &Ticket) -> Slot {
        let runner = self.lent.iter().find(|(_, lent)| lent.holding.is_of(ticket)).map(|(runner, _)| runner.clone());
        let slot = runner.and_then(|runner| self.lent.remove(&runner)?.slot);
        slot.unwrap_or_else(|| self.queue.occupy(&ticket.spec.requester, &ticket.spec.channel))
    }

    /// A runner is offered again: its last job is over, and its runner clean.
    fn returned(&mut self, runner: &str) {
        let Some(lent) = self.lent.remove(runner) else { return };
        if let Some(slot) = lent.slot {
            self.queue.release(slot);
        }
        if lent.counts
            && let Some(since) = lent.since
        {
            self.times.record(&lent.holding.agent, since.elapsed());
        }
    }

    fn runner_is(&mut self, status: RunnerStatus, holds: Option<Holding>) {
        let since = Instant::now().checked_sub(Duration::from_millis(status.since_ms));
        if !matches!(status.state, "idle" | "checking" | "executing" | "restoring")
            && let Some(lent) = self.lent.get_mut(&status.runner)
        {
            lent.counts = false;
        }
        // A job that was lent by an earlier pool manager; how long ago is not known.
        if let Some(holding) = holds
            && !self.lent.contains_key(&status.runner)
            && !holding.is_over()
        {
            let slot = Some(self.queue.occupy(&holding.requester, &holding.channel));
            self.put_lent(status.runner.clone(), Lent { holding, since, slot, counts: false });
        }
        self.runners.insert(status.runner.clone(), (status, since));
    }

    /// When the runners that are taken come free, as far as is known.
    fn outlook(&self) -> Outlook {
        let counted = self.lent.values().filter(|lent| lent.counts);
        self.times.outlook(counted.filter_map(|lent| Some((lent.holding.agent.as_str(), lent.since?.elapsed()))))
    }

    fn arm(&mut self, myself: &ActorRef<PoolMsg>) {
        let Some(deadline) = self.queue.next_deadline() else { return };
        let now = Instant::now();
        let at = deadline.clamp(now, now + NEWS_EVERY);
        if self.tick_at.is_some_and(|armed| armed <= at) {
            return;
        }
        self.tick_at = Some(at);
        myself.send_after(at - now, || PoolMsg::Tick);
    }

    fn status(&self) -> PoolStatus {
        let now = Instant::now();
        let runners = self.runners.values().map(|(status, since)| RunnerStatus {
            since_ms: since.map_or(status.since_ms, |since| now.duration_since(since).as_millis() as u64),
            ..status.clone()
        });
        let wait = if self.idle.is_empty() { self.outlook().wait(self.queue.len()) } else { None };
        PoolStatus { runners: runners.collect(), queued: self.queue.len(), wait }
    }
}

fn whose(ticket: &Ticket) -> Whose {
    let spec = &ticket.spec;
    Whose { job: spec.job.clone(), requester: spec.requester.clone(), channel: spec.channel.clone() }
}

fn answer(ticket: Ticket, why: NotStarted) {
    ticket.tell(JobEvent::NotStarted(why));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ractor::call;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::job::{ChannelId, ConversationId, JobId, JobSpec, RequesterId};

    /// A runner that passes on what it is lent.
    struct Lender;

    impl Actor for Lender {
        type Msg = RunnerMsg;
        type State = mpsc::UnboundedSender<Granted>;
        type Arguments = mpsc::UnboundedSender<Granted>;
        async fn pre_start(
            &self,
            _: ActorRef<RunnerMsg>,
            to: Self::Arguments,
        ) -> Result<Self::State, ActorProcessingErr> {
            Ok(to)
        }
        async fn handle(
            &self,
            _: ActorRef<RunnerMsg>,
            msg: RunnerMsg,
            to: &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            if let RunnerMsg::Run(granted) = msg {
                to.send(granted)?;
            }
            Ok(())
        }
    }

    struct Bench {
        pool: ActorRef<PoolMsg>,
        runner: ActorRef<RunnerMsg>,
        lent: mpsc::UnboundedReceiver<Granted>,
    }

    impl Bench {
        async fn new(max_queue: usize) -> Self {
            Self::sharing(max_queue, SharingConfig::unlimited()).await
        }

        async fn sharing(max_queue: usize, sharing: SharingConfig) -> Self {
            let (pool, _) = Actor::spawn(None, PoolManager { max_queue, sharing, runners: 1 }, ()).await.unwrap();
            let (to, lent) = mpsc::unbounded_channel();
            let (runner, _) = Actor::spawn(None, Lender, to).await.unwrap();
            Self { pool, runner, lent }
        }

        fn offer(&self) {
            self.offer_as("r0");
        }

        fn offer_as(&self, runner: &str) {
            self.pool.cast(PoolMsg::Offer { runner: runner.into(), actor: self.runner.clone() }).unwrap();
        }

        async fn lent(&mut self) -> Granted {
            self.lent.recv().await.unwrap()
        }

        fn spec(&self, job: &str, requester: &str) -> Arc<JobSpec> {
            Arc::new(JobSpec {
                job: JobId::new(job),
                requester: RequesterId::new(requester),
                channel: ChannelId::new("c"),
                conversation: ConversationId::new("c/t"),
                agent: "shell".into(),
                prompt: String::new(),
                run_timeout: Duration::from_secs(1),
            })
        }

        fn acquire(&self, job: &str, requester: &str) -> (mpsc::UnboundedReceiver<JobEvent>, CancellationToken) {
            let (events, rx) = mpsc::unbounded_channel();
            let cancel = CancellationToken::new();
            let now = Instant::now();
            let (spec, wait_until) = (self.spec(job, requester), now + Duration::from_secs(60));
            let ticket = Ticket { spec, asked_at: now, wait_until, events, cancel: cancel.clone() };
            self.pool.cast(PoolMsg::Acquire(ticket)).unwrap();
            (rx, cancel)
        }
    }

    async fn last(mut events: mpsc::UnboundedReceiver<JobEvent>) -> Option<NotStarted> {
        while let Some(event) = events.recv().await {
            if let JobEvent::NotStarted(why) = event {
                return Some(why);
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_job_hears_its_place_and_gets_the_runner_when_it_comes() {
        let mut bench = Bench::new(10).await;
        let (mut first, _c1) = bench.acquire("j1", "u1");
        let (mut second, _c2) = bench.acquire("j2", "u2");
        assert!(matches!(first.recv().await, Some(JobEvent::Queued { ahead: 0, .. })));
        assert!(matches!(second.recv().await, Some(JobEvent::Queued { ahead: 1, .. })));
        bench.offer();
        assert_eq!(bench.lent.recv().await.unwrap().ticket.spec.job.as_str(), "j1");
        let status = call!(bench.pool, PoolMsg::Status).unwrap();
        assert_eq!(status.queued, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_and_a_wait_ends_at_its_deadline() {
        let bench = Bench::new(1).await;
        let (first, _c1) = bench.acquire("j1", "u1");
        let (second, _c2) = bench.acquire("j2", "u2");
        assert_eq!(last(second).await, Some(NotStarted::QueueFull { limit: 1 }));
        let asked = Instant::now();
        assert!(matches!(last(first).await, Some(NotStarted::QueueTimeout { .. })));
        assert_eq!(asked.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_or_abandoned_job_never_gets_a_runner() {
        let mut bench = Bench::new(10).await;
        let (cancelled, token) = bench.acquire("j1", "u1");
        let (abandoned, _c2) = bench.acquire("j2", "u2");
        let (withdrawn, _c3) = bench.acquire("j3", "u3");
        let (_wanted, _c4) = bench.acquire("j4", "u4");
        token.cancel();
        drop(abandoned);
        bench.pool.cast(PoolMsg::Withdraw(JobId::new("j3"))).unwrap();
        assert_eq!(last(withdrawn).await, Some(NotStarted::Cancelled), "a withdrawal is answered at once");
        bench.offer();
        assert_eq!(last(cancelled).await, Some(NotStarted::Cancelled));
        assert_eq!(bench.lent.recv().await.unwrap().ticket.spec.job.as_str(), "j4");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_runner_is_passed_over_and_its_job_keeps_the_first_place() {
        let mut bench = Bench::new(10).await;
        let (_rx, _c) = bench.acquire("j1", "u1");
        let (to, _lent) = mpsc::unbounded_channel();
        let (dead, join) = Actor::spawn(None, Lender, to).await.unwrap();
        dead.kill();
        join.await.unwrap();
        bench.pool.cast(PoolMsg::Offer { runner: "dead".into(), actor: dead }).unwrap();
        let (_rx2, _c2) = bench.acquire("j2", "u2");
        bench.offer();
        assert_eq!(bench.lent.recv().await.unwrap().ticket.spec.job.as_str(), "j1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_no_runner_can_start_is_given_up_after_a_few() {
        let mut bench = Bench::new(10).await;
        let (rx, _c) = bench.acquire("j1", "u1");
        for _ in 0..MAX_TRIES {
            bench.offer();
            let granted = bench.lent.recv().await.unwrap();
            bench.pool.cast(PoolMsg::HandBack { granted, failure: "disk full".into() }).unwrap();
        }
        assert_eq!(
            last(rx).await,
            Some(NotStarted::NoRunner { message: "5 runners were tried; the last: disk full".into() })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_job_asked_for_twice_waits_once() {
        let mut bench = Bench::new(10).await;
        let (_first, _c1) = bench.acquire("j1", "u1");
        let (second, _c2) = bench.acquire("j1", "u1");
        assert_eq!(last(second).await, Some(NotStarted::Cancelled));
        bench.offer();
        bench.lent.recv().await.unwrap();
        assert_eq!(call!(bench.pool, PoolMsg::Status).unwrap().queued, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_answers_all_who_wait_and_all_who_come() {
        let bench = Bench::new(10).await;
        let (first, _c1) = bench.acquire("j1", "u1");
        bench.pool.cast(PoolMsg::Drain).unwrap();
        let (second, _c2) = bench.acquire("j2", "u2");
        assert_eq!(last(first).await, Some(NotStarted::Draining));
        assert_eq!(last(second).await, Some(NotStarted::Draining));
    }

    fn one_at_a_time() -> SharingConfig {
        SharingConfig { max_running_per_user: 1, ..SharingConfig::unlimited() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_beyond_its_requesters_limit_is_told_why_it_waits_and_blocks_nobody() {
        let mut bench = Bench::sharing(10, one_at_a_time()).await;
        let (_first, _c1) = bench.acquire("j1", "u1");
        bench.offer_as("r0");
        let running = bench.lent().await;
        let (mut second, _c2) = bench.acquire("j2", "u1");
        let Some(JobEvent::Queued { reason, wait, .. }) = second.recv().await else { panic!("it waits") };
        assert!(reason.contains("your jobs") && wait.is_none(), "{reason}");
        bench.offer_as("r1");
        let (_other, _c3) = bench.acquire("j3", "u2");
        assert_eq!(bench.lent().await.ticket.spec.job.as_str(), "j3");
        bench.offer_as("r2");
        // The job is over when its ticket is gone, however it ended, and its runner may take its time.
        drop(running);
        bench.pool.cast(PoolMsg::Tick).unwrap();
        assert_eq!(bench.lent().await.ticket.spec.job.as_str(), "j2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pool_manager_counts_what_runs_already() {
        let mut bench = Bench::sharing(10, one_at_a_time()).await;
        let (events, _rx) = mpsc::unbounded_channel();
        let (_waiting, _c) = bench.acquire("j2", "u1");
        let spec = bench.spec("j1", "u1");
        let now = Instant::now();
        let running = Ticket { spec, asked_at: now, wait_until: now, events, cancel: CancellationToken::new() };
        let status = RunnerStatus { runner: "r0".into(), state: "executing", since_ms: 5, job: None, note: None };
        bench.pool.cast(PoolMsg::RunnerIs { status, holds: Some(Holding::of(&running)) }).unwrap();
        bench.offer_as("r1");
        assert_eq!(call!(bench.pool, PoolMsg::Status).unwrap().queued, 1, "u1 has one running already");
        drop(running);
        bench.pool.cast(PoolMsg::Tick).unwrap();
        assert_eq!(bench.lent().await.ticket.spec.job.as_str(), "j2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_handed_back_keeps_its_share() {
        let mut bench = Bench::sharing(10, one_at_a_time()).await;
        let (_first, _c1) = bench.acquire("j1", "u1");
        let (_second, _c2) = bench.acquire("j2", "u1");
        bench.offer_as("r0");
        let granted = bench.lent().await;
        bench.pool.cast(PoolMsg::HandBack { granted, failure: "disk full".into() }).unwrap();
        bench.offer_as("r1");
        let again = bench.lent().await;
        assert_eq!((again.ticket.spec.job.as_str(), &again.failures[..]), ("j1", &["disk full".to_owned()][..]));
        bench.offer_as("r2");
        assert_eq!(call!(bench.pool, PoolMsg::Status).unwrap().queued, 1, "only one of u1's jobs runs");
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_of_one_requester_are_refused_and_the_queue_is_not_full() {
        let sharing = SharingConfig { max_queued_per_user: 1, max_queued_per_channel: 2, ..SharingConfig::unlimited() };
        let bench = Bench::sharing(10, sharing).await;
        let (_first, _c1) = bench.acquire("j1", "u1");
        let (second, _c2) = bench.acquire("j2", "u1");
        assert_eq!(last(second).await, Some(NotStarted::TooManyOfRequester { limit: 1 }));
        let (_third, _c3) = bench.acquire("j3", "u2");
        let (fourth, _c4) = bench.acquire("j4", "u3");
        assert_eq!(last(fourth).await, Some(NotStarted::TooManyOfChannel { limit: 2 }));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_few_runs_a_wait_is_told_as_a_range() {
        let mut bench = Bench::new(10).await;
        for n in 0..6 {
            let (_rx, _c) = bench.acquire(&format!("j{n}"), "u1");
            bench.offer();
            let granted = bench.lent().await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(granted);
        }
        bench.offer();
        let (_running, _c1) = bench.acquire("j8", "u1");
        let _lent = bench.lent().await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let (mut waiting, _c2) = bench.acquire("j9", "u2");
        let Some(JobEvent::Queued { wait: Some(wait), ahead: 0, .. }) = waiting.recv().await else {
            panic!("it waits, and it is known how long")
        };
        assert_eq!((wait.low.as_secs(), wait.high.as_secs()), (40, 40));
        assert_eq!(call!(bench.pool, PoolMsg::Status).unwrap().wait.unwrap().high.as_secs(), 100);
    }
}
