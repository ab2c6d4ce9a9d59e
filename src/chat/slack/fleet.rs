//! Which Socket Mode connections there are, and what to do about it. Pure.
//!
//! ```text
//!   Connecting ──hello──► Open ──Slack announces its end──► Leaving ──a replacement is open──► Retired ──► gone
//!       └──────────────────┴────────── the connection ends ─────┴──────────────────────────────────┘
//! ```
//!
//! A connection that is to end is replaced first and closed then, so that events always have a way in. One is opened at a
//! time, later and later after failures. A connection counts until it is known to have ended, so that none is forgotten:
//! Slack gives events to any that is open, and has ten places.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::supervise::backoff;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A connection that ends sooner than this counts as a failure.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// Slack has no place left; places become free as Slack notices that connections are gone.
const NO_PLACE_PAUSE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Connecting,
    Open { since: Instant },
    Leaving,
    Retired,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// We closed it, or Slack after it had announced that.
    Closed,
    /// It broke, or could not be made.
    Broken(String),
    /// Slack wants no request before this time.
    RateLimited(Duration),
    /// All places are taken.
    NoPlace,
    /// Trying again is useless until somebody changes something; the reason is a sentence.
    Fatal(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Open(u64),
    /// Close it; its replacement is there.
    Retire(u64),
}

#[derive(Debug)]
pub struct Fleet {
    wanted: usize,
    sockets: BTreeMap<u64, Stage>,
    next: u64,
    failures: u32,
    not_before: Instant,
    halted: Option<String>,
}

impl Fleet {
    pub fn new(wanted: usize, now: Instant) -> Self {
        Self { wanted, sockets: BTreeMap::new(), next: 0, failures: 0, not_before: now, halted: None }
    }

    /// What to do now, and when to ask again if nothing happens before.
    pub fn due(&mut self, now: Instant) -> (Vec<Effect>, Option<Instant>) {
        if self.halted.is_some() {
            return (Vec::new(), None);
        }
        let mut effects = Vec::new();
        let open = self.open();
        // As many as have been replaced may go.
        let leaving: Vec<_> = self.ids(|stage| matches!(stage, Stage::Leaving)).collect();
        let still_needed = self.wanted.saturating_sub(open);
        for id in leaving.iter().take(leaving.len().saturating_sub(still_needed)) {
            self.sockets.insert(*id, Stage::Retired);
            effects.push(Effect::Retire(*id));
        }
        if open >= self.wanted || self.ids(|stage| matches!(stage, Stage::Connecting)).next().is_some() {
            return (effects, None);
        }
        if now < self.not_before {
            return (effects, Some(self.not_before));
        }
        let id = self.next;
        self.next += 1;
        self.sockets.insert(id, Stage::Connecting);
        effects.push(Effect::Open(id));
        (effects, None)
    }

    fn ids(&self, is: impl Fn(&Stage) -> bool) -> impl Iterator<Item = u64> {
        self.sockets.iter().filter(move |(_, stage)| is(stage)).map(|(id, _)| *id)
    }

    /// Connections that are open and will stay so.
    pub fn open(&self) -> usize {
        self.ids(|stage| matches!(stage, Stage::Open { .. })).count()
    }

    /// Whether events have a way in.
    pub fn hears(&self) -> bool {
        self.ids(|stage| matches!(stage, Stage::Open { .. } | Stage::Leaving)).next().is_some()
    }

    /// All that Slack may count as ours.
    pub fn all(&self) -> usize {
        self.sockets.len()
    }

    /// Why no connection is tried any more.
    pub fn halted(&self) -> Option<&str> {
        self.halted.as_deref()
    }

    pub fn on_hello(&mut self, id: u64, now: Instant) {
        if let Some(stage @ Stage::Connecting) = self.sockets.get_mut(&id) {
            *stage = Stage::Open { since: now };
        }
    }

    /// Slack announces the connection's end. `jitter` spreads a pause.
    pub fn on_leaving(&mut self, id: u64, now: Instant, jitter: impl Fn(Duration) -> Duration) {
        let Some(stage) = self.sockets.get_mut(&id) else { return };
        let was_stable = match stage {
            Stage::Open { since } => now.saturating_duration_since(*since) >= STABLE_AFTER,
            Stage::Connecting => false,
            Stage::Leaving | Stage::Retired => return,
        };
        *stage = Stage::Leaving;
        if was_stable {
            self.failures = 0;
        } else {
            self.fail(now, jitter);
        }
    }

    fn fail(&mut self, now: Instant, jitter: impl Fn(Duration) -> Duration) {
        self.not_before = now + jitter(backoff(FIRST_PAUSE, LONGEST_PAUSE, self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// The connection has ended. `jitter` spreads a pause.
    pub fn on_ended(&mut self, id: u64, end: &End, now: Instant, jitter: impl Fn(Duration) -> Duration) {
        let Some(stage) = self.sockets.remove(&id) else { return };
        let was_stable = match stage {
            Stage::Open { since } => now.saturating_duration_since(since) >= STABLE_AFTER,
            // Its stability was judged when it was announced.
            Stage::Leaving | Stage::Retired => return self.judge(end),
            Stage::Connecting => false,
        };
        match end {
            End::Closed | End::Broken(_) if was_stable => self.failures = 0,
            End::Closed | End::Broken(_) => self.fail(now, jitter),
            End::Fatal(_) => self.judge(end),
            End::RateLimited(pause) => self.not_before = now + *pause,
            End::NoPlace => self.not_before = now + jitter(NO_PLACE_PAUSE),
        }
    }

    fn judge(&mut self, end: &End) {
        if let End::Fatal(why) = end {
            self.halted = Some(why.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn same(pause: Duration) -> Duration {
        pause
    }

    fn broken() -> End {
        End::Broken("reset".into())
    }

    #[test]
    fn connections_are_opened_one_at_a_time() {
        let now = Instant::now();
        let mut fleet = Fleet::new(2, now);
        assert_eq!(fleet.due(now), (vec![Effect::Open(0)], None));
        assert_eq!(fleet.due(now), (vec![], None));
        fleet.on_hello(0, now);
        assert_eq!(fleet.due(now), (vec![Effect::Open(1)], None));
        fleet.on_hello(1, now);
        assert_eq!(fleet.due(now), (vec![], None));
        assert_eq!((fleet.open(), fleet.all()), (2, 2));
    }

    #[test]
    fn a_connection_that_leaves_is_replaced_before_it_is_closed() {
        let now = Instant::now();
        let mut fleet = Fleet::new(1, now);
        fleet.due(now);
        fleet.on_hello(0, now);
        fleet.on_leaving(0, now + STABLE_AFTER, same);
        assert_eq!(fleet.due(now), (vec![Effect::Open(1)], None));
        assert!(fleet.hears() && fleet.open() == 0);
        fleet.on_hello(1, now);
        assert_eq!(fleet.due(now), (vec![Effect::Retire(0)], None));
        fleet.on_ended(0, &End::Closed, now, same);
        assert_eq!((fleet.due(now), fleet.all()), ((vec![], None), 1));
    }

    #[test]
    fn failures_make_it_wait_longer_and_longer() {
        let mut now = Instant::now();
        let mut fleet = Fleet::new(1, now);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            let (effects, _) = fleet.due(now);
            let [Effect::Open(id)] = effects[..] else { panic!("{effects:?}") };
            fleet.on_ended(id, &broken(), now, same);
            let again = now + Duration::from_secs(pause);
            assert_eq!(fleet.due(now), (vec![], Some(again)));
            now = again;
        }
    }

    #[test]
    fn one_that_says_hello_and_ends_at_once_is_a_failure_too() {
        let now = Instant::now();
        let mut fleet = Fleet::new(1, now);
        fleet.due(now);
        fleet.on_hello(0, now);
        fleet.on_ended(0, &broken(), now + Duration::from_secs(1), same);
        assert_eq!(fleet.due(now + Duration::from_secs(1)), (vec![], Some(now + Duration::from_secs(2))));
    }

    #[test]
    fn one_that_is_sent_away_at_once_is_a_failure_too() {
        let now = Instant::now();
        let mut fleet = Fleet::new(1, now);
        fleet.due(now);
        fleet.on_hello(0, now);
        fleet.on_leaving(0, now, same);
        assert_eq!(fleet.due(now), (vec![], Some(now + FIRST_PAUSE)));
    }

    #[test]
    fn slacks_own_word_on_when_and_whether_is_kept() {
        let now = Instant::now();
        let mut fleet = Fleet::new(1, now);
        fleet.due(now);
        fleet.on_ended(0, &End::RateLimited(Duration::from_secs(7)), now, same);
        assert_eq!(fleet.due(now), (vec![], Some(now + Duration::from_secs(7))));
        fleet.due(now + Duration::from_secs(7));
        fleet.on_ended(1, &End::Fatal("Socket Mode is off".into()), now, same);
        assert_eq!(fleet.due(now + Duration::from_secs(999)), (vec![], None));
        assert_eq!(fleet.halted(), Some("Socket Mode is off"));
    }

    proptest! {
        #[test]
        fn there_are_never_too_many_and_always_enough_in_the_end(
            wanted in 1..4usize,
            events in prop::collection::vec((0..5u8, 0..8u64, 0..90u64), 0..80),
        ) {
            let mut now = Instant::now();
            let mut fleet = Fleet::new(wanted, now);
            for (what, id, wait) in events {
                now += Duration::from_secs(wait);
                let hears = fleet.hears();
                let (effects, _) = fleet.due(now);
                // Nothing that we do ourselves makes us deaf.
                prop_assert!(!hears || fleet.hears());
                prop_assert!(fleet.all() <= 2 * wanted + 1 + effects.len() + fleet.next as usize);
                prop_assert!(fleet.open() <= wanted);
                let id = fleet.sockets.keys().copied().nth(id as usize);
                match (id, what) {
                    (Some(id), 0 | 1) => fleet.on_hello(id, now),
                    (Some(id), 2) => fleet.on_leaving(id, now, same),
                    (Some(id), 3) => fleet.on_ended(id, &broken(), now, same),
                    _ => {}
                }
                let connecting = fleet.sockets.values().filter(|stage| matches!(stage, Stage::Connecting)).count();
                prop_assert!(connecting <= 1);
            }
            // When all goes well from now on, all are there.
            for _ in 0..2 * wanted + 2 {
                now += 2 * LONGEST_PAUSE;
                let (effects, _) = fleet.due(now);
                for effect in effects {
                    match effect {
                        Effect::Open(id) => fleet.on_hello(id, now),
                        Effect::Retire(id) => fleet.on_ended(id, &End::Closed, now, same),
                    }
                }
                let stuck: Vec<_> = fleet.ids(|stage| matches!(stage, Stage::Connecting)).collect();
                stuck.into_iter().for_each(|id| fleet.on_hello(id, now));
            }
            fleet.due(now);
            prop_assert_eq!(fleet.open(), wanted);
        }
    }
}
