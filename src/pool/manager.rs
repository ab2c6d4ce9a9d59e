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

use super::queue::FairQueue;
use super::{Granted, JobEvent, NotStarted, PoolMsg, PoolStatus, RunnerStatus, Ticket};
use crate::runner::RunnerMsg;

/// How often those who wait are told how things stand.
const NEWS_EVERY: Duration = Duration::from_secs(2);
/// How many of the next in line are told; the others have a while to wait.
const NEWS_FOR: usize = 200;
/// A job that so many runners failed to start has something to do with it itself.
const MAX_HAND_BACKS: u32 = 5;

/// Lends each idle runner to the job whose turn it is.
pub struct PoolManager {
    /// Jobs waiting at a time; one more is refused.
    pub max_queue: usize,
    /// Runners that the configuration asks for, to explain a wait.
    pub runners: usize,
}

#[derive(Default)]
pub struct State {
    queue: FairQueue<Granted>,
    idle: VecDeque<(String, ActorRef<RunnerMsg>)>,
    runners: BTreeMap<String, (RunnerStatus, Option<Instant>)>,
    /// When the next `Tick` comes, if one is on its way.
    tick_at: Option<Instant>,
    draining: bool,
}

impl Actor for PoolManager {
    type Msg = PoolMsg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _myself: ActorRef<PoolMsg>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<PoolMsg>,
        msg: PoolMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
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
                state.idle.retain(|(name, _)| *name != runner);
                state.idle.push_back((runner, actor));
                state.grant();
            }
            PoolMsg::Retract { runner } => state.idle.retain(|(name, _)| *name != runner),
            PoolMsg::HandBack { granted, failure } => self.hand_back(granted, failure, state),
            PoolMsg::RunnerIs(status) => {
                let since = Instant::now().checked_sub(Duration::from_millis(status.since_ms));
                state.runners.insert(status.runner.clone(), (status, since));
            }
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
        if state.queue.len() >= self.max_queue && state.idle.is_empty() {
            return answer(ticket, NotStarted::QueueFull { limit: self.max_queue });
        }
        let spec = ticket.spec.clone();
        let deadline = ticket.wait_until;
        let granted = Granted { ticket, handed_back: 0 };
        if let Err(twice) = state.queue.push(spec.job.clone(), spec.requester.clone(), deadline, granted) {
            // The first ticket keeps its place; one job must not run twice.
            return answer(twice.ticket, NotStarted::Cancelled);
        }
        state.grant();
        if let Some(ahead) = state.queue.ahead(&spec.job) {
            let reason = self.why_waiting(state);
            if let Some(granted) = state.queue.get(&spec.job) {
                granted.ticket.tell(JobEvent::Queued { ahead, reason });
            }
        }
    }

    fn hand_back(&self, granted: Granted, failure: String, state: &mut State) {
        let Granted { ticket, handed_back } = granted;
        let handed_back = handed_back + 1;
        if state.draining {
            return answer(ticket, NotStarted::Draining);
        }
        if handed_back >= MAX_HAND_BACKS {
            return answer(ticket, NotStarted::NoRunner { message: failure });
        }
        ticket.tell(JobEvent::Queued { ahead: 0, reason: format!("a runner was found unfit ({failure})") });
        let (job, requester, deadline) = (ticket.spec.job.clone(), ticket.spec.requester.clone(), ticket.wait_until);
        if let Err(twice) = state.queue.push_front(job, requester, deadline, Granted { ticket, handed_back }) {
            return answer(twice.ticket, NotStarted::Cancelled);
        }
        state.grant();
    }

    fn tick(&self, state: &mut State) {
        let expired = state.queue.expire(Instant::now());
        if !expired.is_empty() {
            let reason = self.why_waiting(state);
            for granted in expired {
                answer(granted.ticket, NotStarted::QueueTimeout { reason: reason.clone() });
            }
        }
        let reason = self.why_waiting(state);
        for (ahead, granted) in state.queue.upcoming(NEWS_FOR).into_iter().enumerate() {
            granted.ticket.tell(JobEvent::Queued { ahead, reason: reason.clone() });
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
    /// Pairs idle runners with waiting jobs until either is used up.
    fn grant(&mut self) {
        while !self.idle.is_empty() {
            let Some(granted) = self.queue.pop() else { return };
            if let Some(granted) = still_wanted(granted) {
                self.lend(granted);
            }
        }
    }

    /// Gives the ticket to the first idle runner that is alive, or back to the front of the queue.
    fn lend(&mut self, granted: Granted) {
        let mut granted = granted;
        while let Some((_, runner)) = self.idle.pop_front() {
            match runner.cast(RunnerMsg::Run(granted)) {
                Ok(()) => return,
                Err(MessagingErr::SendErr(RunnerMsg::Run(back))) => granted = back,
                // The message is gone with the error, and with it the ticket: its owner sees the channel close and
                // asks again.
                Err(error) => return warn!(%error, "a ticket was lost on the way to a runner"),
            }
        }
        let (job, requester, deadline) =
            (granted.ticket.spec.job.clone(), granted.ticket.spec.requester.clone(), granted.ticket.wait_until);
        if let Err(twice) = self.queue.push_front(job, requester, deadline, granted) {
            answer(twice.ticket, NotStarted::Cancelled);
        }
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
        PoolStatus { runners: runners.collect(), queued: self.queue.len() }
    }
}

/// Answers tickets that nobody waits for any more, and hands on the others.
fn still_wanted(granted: Granted) -> Option<Granted> {
    if granted.ticket.is_cancelled() {
        answer(granted.ticket, NotStarted::Cancelled);
        return None;
    }
    Some(granted)
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
            let (pool, _) = Actor::spawn(None, PoolManager { max_queue, runners: 1 }, ()).await.unwrap();
            let (to, lent) = mpsc::unbounded_channel();
            let (runner, _) = Actor::spawn(None, Lender, to).await.unwrap();
            Self { pool, runner, lent }
        }

        fn offer(&self) {
            self.pool.cast(PoolMsg::Offer { runner: "r0".into(), actor: self.runner.clone() }).unwrap();
        }

        fn acquire(&self, job: &str, requester: &str) -> (mpsc::UnboundedReceiver<JobEvent>, CancellationToken) {
            let (events, rx) = mpsc::unbounded_channel();
            let cancel = CancellationToken::new();
            let spec = JobSpec {
                job: JobId::new(job),
                requester: RequesterId::new(requester),
                channel: ChannelId::new("c"),
                conversation: ConversationId::new("c/t"),
                agent: "shell".into(),
                prompt: String::new(),
                run_timeout: Duration::from_secs(1),
            };
            let now = Instant::now();
            let wait_until = now + Duration::from_secs(60);
            let ticket = Ticket { spec: Arc::new(spec), asked_at: now, wait_until, events, cancel: cancel.clone() };
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
        for _ in 0..MAX_HAND_BACKS {
            bench.offer();
            let granted = bench.lent.recv().await.unwrap();
            bench.pool.cast(PoolMsg::HandBack { granted, failure: "disk full".into() }).unwrap();
        }
        assert_eq!(last(rx).await, Some(NotStarted::NoRunner { message: "disk full".into() }));
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
}
