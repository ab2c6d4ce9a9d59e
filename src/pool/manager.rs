//! The pool manager: the idle set and the wait queue. No I/O, and no await on anything.
//!
//! Started, restarted and stopped by the pool's supervisor. What it knows is rebuilt after its death: the runners offer
//! themselves to each new pool manager, and a job whose ticket died with the old one asks again, since its channel
//! closed before `Started`.

#[cfg(test)]
mod tests;

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
            self.times.record(&lent.holding.spec.agent, since.elapsed());
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
            let slot = Some(self.queue.occupy(&holding.spec.requester, &holding.spec.channel));
            self.put_lent(status.runner.clone(), Lent { holding, since, slot, counts: false });
        }
        self.runners.insert(status.runner.clone(), (status, since));
    }

    /// When the runners that are taken come free, as far as is known.
    fn outlook(&self) -> Outlook {
        let counted = self.lent.values().filter(|lent| lent.counts);
        self.times.outlook(counted.filter_map(|lent| Some((lent.holding.spec.agent.as_str(), lent.since?.elapsed()))))
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
