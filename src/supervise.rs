//! Supervision: children that end are started again, later and later, and when that does not help somebody is told.
//!
//! The decision ([`Track::on_exit`]) is pure; the [`Supervisor`] actor carries it out. One supervisor restarts its
//! children one for one, in the order of their specs; it stops them in reverse order. It is the root of the tree and
//! the pool's own supervisor alike. What a child must keep over its death is in the journal, not here.

pub mod current;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::world::World;

/// How long and how often a child is started again.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Delay before the first restart; doubled with each further one.
    pub first_delay: Duration,
    pub max_delay: Duration,
    /// A child that was up for so long starts from `first_delay` again.
    pub stable_after: Duration,
    /// More exits than this within `window` are too many.
    pub max_exits: usize,
    pub window: Duration,
    /// What to do about too many.
    pub exhausted: Exhausted,
}

/// What happens to a child that keeps ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// Leave it down for this long, then start over. For children of which there are others.
    Rest(Duration),
    /// Fail as a whole, so that the supervisor above decides. For children that nothing works without.
    Escalate,
}

impl RestartPolicy {
    /// For parts that the service can do without for a while.
    pub const SPARE: Self = Self { exhausted: Exhausted::Rest(Duration::from_secs(300)), ..Self::ESSENTIAL };
    /// For parts that the service can't do without.
    pub const ESSENTIAL: Self = Self {
        first_delay: Duration::from_millis(100),
        max_delay: Duration::from_secs(30),
        stable_after: Duration::from_secs(60),
        max_exits: 8,
        window: Duration::from_secs(60),
        exhausted: Exhausted::Escalate,
    };
}

/// What to do about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    RestartIn(Duration),
    /// Too many exits; rest, with an alert, and start over.
    RestFor(Duration),
    /// Too many exits; give up and let the supervisor above decide.
    Escalate,
}

/// The exits of one child. Pure.
#[derive(Debug, Default)]
pub struct Track {
    attempt: u32,
    exits: Vec<Instant>,
}

impl Track {
    /// Decides about an exit at `now` of a child that was started at `started`.
    pub fn on_exit(&mut self, policy: &RestartPolicy, started: Instant, now: Instant) -> Verdict {
        if now.duration_since(started) >= policy.stable_after {
            self.attempt = 0;
        }
        self.exits.retain(|at| now.duration_since(*at) < policy.window);
        self.exits.push(now);
        if self.exits.len() > policy.max_exits {
            self.exits.clear();
            self.attempt = 0;
            return match policy.exhausted {
                Exhausted::Rest(time) => Verdict::RestFor(time),
                Exhausted::Escalate => Verdict::Escalate,
            };
        }
        let delay = backoff(policy.first_delay, policy.max_delay, self.attempt);
        self.attempt += 1;
        Verdict::RestartIn(delay)
    }
}

/// `first · 2^attempt`, at most `max`. Without jitter, which the caller adds.
pub fn backoff(first: Duration, max: Duration, attempt: u32) -> Duration {
    first.saturating_mul(1 << attempt.min(20)).min(max)
}

type Started = Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send>>;

/// How to start one child, any number of times.
pub struct ChildSpec {
    /// For logs; no actor is found by it.
    pub name: String,
    pub policy: RestartPolicy,
    /// How long a stop may take before the child is killed.
    pub stop_within: Duration,
    start: Box<dyn Fn(ActorCell) -> Started + Send + Sync>,
}

impl ChildSpec {
    /// `start` spawns the child linked to the supervisor that it is given.
    pub fn new<F, Fut>(name: impl Into<String>, policy: RestartPolicy, start: F) -> Self
    where
        F: Fn(ActorCell) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<ActorCell, SpawnErr>> + Send + 'static,
    {
        Self {
            name: name.into(),
            policy,
            stop_within: Duration::from_secs(5),
            start: Box::new(move |supervisor| Box::pin(start(supervisor))),
        }
    }
}

/// Starts its children in order and keeps them up.
pub struct Supervisor {
    /// For logs.
    pub name: &'static str,
    pub world: World,
}

#[derive(Debug)]
pub enum Msg {
    /// From its own timers: start the child of this slot, unless it is up.
    Start(usize),
    /// From the service at its end: stop all children in reverse order, each within its time, and answer.
    StopChildren(RpcReplyPort<()>),
    /// From tests and the operator: the children that are up, by name.
    Children(RpcReplyPort<Vec<(String, ActorCell)>>),
}

pub struct State {
    slots: Vec<Slot>,
    by_id: BTreeMap<ActorId, usize>,
    stopping: bool,
}

struct Slot {
    spec: ChildSpec,
    track: Track,
    up: Option<(ActorCell, Instant)>,
}

impl Actor for Supervisor {
    type Msg = Msg;
    type State = State;
    type Arguments = Vec<ChildSpec>;

    async fn pre_start(&self, myself: ActorRef<Msg>, specs: Vec<ChildSpec>) -> Result<State, ActorProcessingErr> {
        let slots: Vec<Slot> = specs.into_iter().map(|spec| Slot { spec, track: Track::default(), up: None }).collect();
        // Children are started from the mailbox, so that a broken one can't fail its supervisor's own start.
        for slot in 0..slots.len() {
            myself.cast(Msg::Start(slot))?;
        }
        Ok(State { slots, by_id: BTreeMap::new(), stopping: false })
    }

    async fn handle(&self, myself: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Start(slot) => self.start(&myself, slot, state).await,
            Msg::StopChildren(reply) => {
                self.stop_children(state).await;
                // The asker may have given up waiting.
                let _ = reply.send(());
                Ok(())
            }
            Msg::Children(reply) => {
                let up =
                    state.slots.iter().filter_map(|slot| Some((slot.spec.name.clone(), slot.up.as_ref()?.0.clone())));
                let _ = reply.send(up.collect());
                Ok(())
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (id, reason) = match event {
            SupervisionEvent::ActorTerminated(who, _last_state, reason) => {
                (who.get_id(), reason.unwrap_or_else(|| "it stopped".into()))
            }
            SupervisionEvent::ActorFailed(who, error) => (who.get_id(), error.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        // An unknown id is an earlier incarnation's.
        let Some(slot) = state.by_id.remove(&id) else { return Ok(()) };
        let started = state.slots[slot].up.take().map_or_else(Instant::now, |(_, started)| started);
        if state.stopping {
            return Ok(());
        }
        self.down(&myself, slot, started, &reason, state)
    }
}

impl Supervisor {
    async fn start(&self, myself: &ActorRef<Msg>, slot: usize, state: &mut State) -> Result<(), ActorProcessingErr> {
        if state.stopping || state.slots[slot].up.is_some() {
            return Ok(());
        }
        let started = Instant::now();
        match (state.slots[slot].spec.start)(myself.get_cell()).await {
            Ok(child) => {
                state.by_id.insert(child.get_id(), slot);
                state.slots[slot].up = Some((child, started));
                Ok(())
            }
            Err(error) => self.down(myself, slot, started, &error.to_string(), state),
        }
    }

    fn down(
        &self,
        myself: &ActorRef<Msg>,
        slot: usize,
        started: Instant,
        reason: &str,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Slot { spec, track, .. } = &mut state.slots[slot];
        let child = &spec.name;
        let delay = match track.on_exit(&spec.policy, started, Instant::now()) {
            Verdict::RestartIn(delay) => {
                let delay = self.world.jitter(delay);
                warn!(
                    supervisor = self.name,
                    child,
                    reason,
                    delay_ms = delay.as_millis(),
                    "an actor ended and will be restarted"
                );
                delay
            }
            Verdict::RestFor(time) => {
                error!(
                    supervisor = self.name,
                    child,
                    reason,
                    rest_s = time.as_secs(),
                    "an actor keeps failing; it rests"
                );
                self.world.jitter(time)
            }
            Verdict::Escalate => {
                error!(supervisor = self.name, child, reason, "an actor keeps failing; its supervisor gives up");
                return Err(format!("{child} keeps failing: {reason}").into());
            }
        };
        myself.send_after(delay, move || Msg::Start(slot));
        Ok(())
    }

    async fn stop_children(&self, state: &mut State) {
        state.stopping = true;
        for slot in state.slots.iter_mut().rev() {
            let Some((child, _)) = slot.up.take() else { continue };
            state.by_id.remove(&child.get_id());
            child.stop(Some("the service stops".into()));
            if child.wait(Some(slot.spec.stop_within)).await.is_err() {
                warn!(supervisor = self.name, child = slot.spec.name, "an actor did not stop in time and is killed");
                child.kill();
            } else {
                info!(supervisor = self.name, child = slot.spec.name, "stopped");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn restarts_come_later_and_later_until_they_are_too_many() {
        let policy = RestartPolicy { max_exits: 3, ..RestartPolicy::SPARE };
        let mut track = Track::default();
        let start = Instant::now();
        let verdicts: Vec<_> = (0..4).map(|_| track.on_exit(&policy, start, start)).collect();
        let ms = Duration::from_millis;
        assert_eq!(
            verdicts,
            [
                Verdict::RestartIn(ms(100)),
                Verdict::RestartIn(ms(200)),
                Verdict::RestartIn(ms(400)),
                Verdict::RestFor(ms(300_000))
            ]
        );
        assert_eq!(track.on_exit(&policy, start, start), Verdict::RestartIn(ms(100)), "after the rest it starts over");
    }

    #[test]
    fn a_child_that_was_up_for_long_starts_from_the_first_delay() {
        let policy = RestartPolicy::ESSENTIAL;
        let mut track = Track::default();
        let start = Instant::now();
        track.on_exit(&policy, start, start);
        track.on_exit(&policy, start, start);
        let later = start + policy.stable_after;
        assert_eq!(track.on_exit(&policy, start, later), Verdict::RestartIn(policy.first_delay));
    }

    #[test]
    fn the_delay_is_capped_for_any_attempt() {
        for attempt in [0, 1, 19, 20, 21, u32::MAX] {
            assert!(backoff(Duration::from_millis(100), Duration::from_secs(30), attempt) <= Duration::from_secs(30));
        }
    }

    struct Child;

    impl Actor for Child {
        type Msg = ();
        type State = ();
        type Arguments = bool;
        async fn pre_start(&self, _: ActorRef<()>, fails: bool) -> Result<(), ActorProcessingErr> {
            if fails { Err("it can't start".into()) } else { Ok(()) }
        }
    }

    fn child(name: &str, policy: RestartPolicy, starts: Arc<AtomicUsize>, fails: bool) -> ChildSpec {
        ChildSpec::new(name, policy, move |supervisor| {
            starts.fetch_add(1, Ordering::Relaxed);
            async move { Ok(Actor::spawn_linked(None, Child, fails, supervisor).await?.0.get_cell()) }
        })
    }

    async fn children(supervisor: &ActorRef<Msg>) -> Vec<(String, ActorCell)> {
        ractor::call!(supervisor, Msg::Children).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_child_is_restarted_and_its_sibling_left_alone() {
        let (a, b) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let specs = vec![
            child("a", RestartPolicy::SPARE, a.clone(), false),
            child("b", RestartPolicy::SPARE, b.clone(), false),
        ];
        let supervisor = Supervisor { name: "test", world: World::seeded(1) };
        let (supervisor, _join) = Actor::spawn(None, supervisor, specs).await.unwrap();
        for round in 1..=3 {
            children(&supervisor).await[0].1.kill();
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(a.load(Ordering::Relaxed), 1 + round);
        }
        assert_eq!(b.load(Ordering::Relaxed), 1);
        let names: Vec<_> = children(&supervisor).await.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b"]);
        ractor::call!(supervisor, Msg::StopChildren).unwrap();
        assert!(children(&supervisor).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_spare_child_that_cannot_start_rests_and_is_tried_again_for_ever() {
        let starts = Arc::new(AtomicUsize::new(0));
        let specs = vec![child("broken", RestartPolicy::SPARE, starts.clone(), true)];
        let (supervisor, _join) =
            Actor::spawn(None, Supervisor { name: "test", world: World::seeded(2) }, specs).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let tried = starts.load(Ordering::Relaxed);
        assert!((50..150).contains(&tried), "tried {tried} times in an hour");
        supervisor.stop(None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_essential_child_that_keeps_failing_ends_its_supervisor() {
        let starts = Arc::new(AtomicUsize::new(0));
        let specs = vec![child("broken", RestartPolicy::ESSENTIAL, starts, true)];
        let (supervisor, join) =
            Actor::spawn(None, Supervisor { name: "test", world: World::seeded(3) }, specs).await.unwrap();
        tokio::time::timeout(Duration::from_secs(600), join).await.unwrap().unwrap();
        assert_eq!(supervisor.get_status(), ractor::ActorStatus::Stopped);
    }
}
