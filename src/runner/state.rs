//! What a runner does next: its states and transitions, pure. The actor in [`crate::runner`] carries them out.
//!
//! ```text
//!   Starting ──known──► Restoring ──verified──► Idle ──granted──► Checking ──► Executing
//!      │                 ▲  │ ▲                  │                  │  │          │
//!      └─unknown─► Building─┘ └──────────────────┴──────────────────┘  └──────────┤ always, however it ended
//!                    ▲  │fails                                                    │
//!                    │  ▼                                                 Restoring ◄┘
//!                  Waiting ──too often──► Quarantined ──later──► Building
//! ```

use std::time::Duration;

use crate::supervise::backoff;

/// So many failures in a row and a runner is set aside with its evidence.
const MAX_FAILURES: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Cap of the delay between tries, so that a pool comes back soon after an outage ends.
const MAX_DELAY: Duration = Duration::from_secs(120);
/// First rest in quarantine; doubled each time it leads nowhere, up to [`MAX_REST`].
const FIRST_REST: Duration = Duration::from_secs(30);
const MAX_REST: Duration = Duration::from_secs(900);
/// How soon to look again whether another deployment has let go of the sprite.
const FOREIGN_REST: Duration = Duration::from_secs(60);

/// What a runner is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looks at journal and sprite, to learn what it is starting from.
    Starting,
    Building,
    /// Between tries.
    Waiting,
    /// Restores, or only verifies, and proves the sprite clean.
    Restoring,
    Idle,
    Checking,
    Executing,
    Quarantined,
}

impl Phase {
    /// The word for status, spans and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Building => "building",
            Self::Waiting => "waiting",
            Self::Restoring => "restoring",
            Self::Idle => "idle",
            Self::Checking => "checking",
            Self::Executing => "executing",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Whose fault a failure is; the remedies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// This sprite: rebuild it.
    Sprite,
    /// The API, the network, the journal: wait, and try the same again.
    Outside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Journal and API agree on a sprite of ours with a checkpoint; `clean` when nothing ran on it since it was verified.
    Known {
        clean: bool,
    },
    /// There is none, or it is not what the journal says.
    Unknown,
    Built,
    /// The restore was verified.
    Verified,
    /// The work of the present phase failed.
    Failed(Blame),
    /// The restore claims success and the machine shows otherwise.
    Lied,
    /// The sprite is held by another deployment.
    Foreign,
    /// A job got this runner.
    Granted,
    /// The agent is about to start.
    JobStarted,
    JobOver(JobEnd),
    /// Another build generation is wanted and it is this runner's turn.
    RefreshTurn,
    /// The time of `Waiting` or `Quarantined` is over.
    Timer,
    /// An operator wants it built anew.
    Rebuild,
}

/// What a job did to the runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// It may have touched the sprite.
    Ran,
    /// It never reached the sprite.
    Untouched,
    /// It held a secret of the service, which no job should get.
    Leaked,
    /// The sprite or the way to it failed before the agent's process existed.
    Unfit(Blame),
}

/// What to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The event changes nothing here.
    Stay,
    Look,
    Build,
    /// Put the checkpoint back, then verify.
    Restore,
    /// Nothing ran since the last verification: verify only.
    Verify,
    /// Offer it to the pool.
    Offer,
    Check,
    Execute,
    /// Do nothing for so long; then `Timer`.
    Wait(Duration),
    /// Keep what was seen, tell people, and do nothing for so long; then `Timer`.
    Quarantine(Duration),
}

/// The state of one runner.
#[derive(Clone, Debug)]
pub struct Machine {
    phase: Phase,
    /// What `Timer` resumes.
    resume: Next,
    /// Failures blamed on the sprite since it last was verified.
    failures: u32,
    /// Failures blamed on the outside since anything last worked.
    outages: u32,
    /// Times in quarantine since a job last ran.
    rests: u32,
    /// It is this runner's turn to be built anew, once it is free.
    turn: bool,
}

impl Machine {
    /// A runner that has to look first. The caller begins with [`Next::Look`].
    pub fn new() -> Self {
        Self { phase: Phase::Starting, resume: Next::Look, failures: 0, outages: 0, rests: 0, turn: false }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the runner may be lent. The one place that says so.
    pub fn is_lendable(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Takes an event and says what to begin. `Stay` for events that mean nothing in this phase.
    pub fn on(&mut self, event: Event) -> Next {
        use Phase::{Building, Checking, Executing, Idle, Quarantined, Restoring, Starting, Waiting};
        match (self.phase, event) {
            (_, Event::Foreign) if !matches!(self.phase, Checking | Executing) => self.rest(FOREIGN_REST, Next::Look),
            (_, Event::Rebuild) if !matches!(self.phase, Checking | Executing | Building) => self.begin(Next::Build),

            (Starting, Event::Known { clean: true }) => self.begin(Next::Verify),
            (Starting, Event::Known { clean: false }) => self.begin(Next::Restore),
            (Starting, Event::Unknown) => self.begin(Next::Build),
            (Starting, Event::Failed(_)) => self.outage(Next::Look),

            (Building, Event::Built) => self.begin(Next::Restore),
            (Building, Event::Failed(Blame::Outside)) => self.outage(Next::Build),
            (Building, Event::Failed(Blame::Sprite)) => self.failed(),

            (Restoring, Event::Verified) => {
                self.outages = 0;
                self.failures = 0;
                if self.turn { self.begin(Next::Build) } else { self.begin(Next::Offer) }
            }
            (Restoring, Event::Failed(Blame::Outside)) => self.outage(Next::Restore),
            (Restoring, Event::Failed(Blame::Sprite)) => self.failed(),
            (Restoring, Event::Lied) => self.quarantine(),

            (Idle, Event::Granted) => self.begin(Next::Check),
            (Idle, Event::Failed(Blame::Sprite)) => self.begin(Next::Restore),
            (Idle, Event::Failed(Blame::Outside)) => self.outage(Next::Restore),
            (Idle, Event::RefreshTurn) => self.begin(Next::Build),

            (Checking, Event::JobStarted) => self.begin(Next::Execute),
            (Checking | Executing, Event::JobOver(end)) => match end {
                JobEnd::Ran => {
                    self.rests = 0;
                    if self.turn { self.begin(Next::Build) } else { self.begin(Next::Restore) }
                }
                JobEnd::Untouched => self.begin(Next::Offer),
                JobEnd::Leaked => self.quarantine(),
                JobEnd::Unfit(Blame::Sprite) => self.failed(),
                JobEnd::Unfit(Blame::Outside) => self.outage(Next::Restore),
            },

            (Waiting | Quarantined, Event::Timer) => self.begin(self.resume),

            (_, Event::RefreshTurn) => {
                self.turn = true;
                Next::Stay
            }
            _ => Next::Stay,
        }
    }

    fn begin(&mut self, next: Next) -> Next {
        self.phase = match next {
            Next::Look => Phase::Starting,
            Next::Build => {
                self.turn = false;
                Phase::Building
            }
            Next::Restore | Next::Verify => Phase::Restoring,
            Next::Offer => Phase::Idle,
            Next::Check => Phase::Checking,
            Next::Execute => Phase::Executing,
            Next::Wait(_) => Phase::Waiting,
            Next::Quarantine(_) => Phase::Quarantined,
            Next::Stay => self.phase,
        };
        next
    }

    /// Something outside failed: try `again`, later and later.
    fn outage(&mut self, again: Next) -> Next {
        let delay = backoff(FIRST_DELAY, MAX_DELAY, self.outages);
        self.outages = self.outages.saturating_add(1);
        self.resume = again;
        self.begin(Next::Wait(delay))
    }

    /// The sprite failed: build it anew, at first at once, then later and later, then set it aside.
    fn failed(&mut self) -> Next {
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            return self.quarantine();
        }
        if self.failures == 1 && self.phase != Phase::Building {
            return self.begin(Next::Build);
        }
        self.resume = Next::Build;
        self.begin(Next::Wait(backoff(FIRST_DELAY, MAX_DELAY, self.failures)))
    }

    fn quarantine(&mut self) -> Next {
        let time = backoff(FIRST_REST, MAX_REST, self.rests);
        self.rests = self.rests.saturating_add(1);
        self.failures = 0;
        self.rest(time, Next::Build)
    }

    fn rest(&mut self, time: Duration, then: Next) -> Next {
        self.resume = then;
        self.begin(Next::Quarantine(time))
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(events: &[Event]) -> (Machine, Vec<Next>) {
        let mut machine = Machine::new();
        let steps = events.iter().map(|event| machine.on(*event)).collect();
        (machine, steps)
    }

    #[test]
    fn the_main_line_goes_from_idle_through_a_job_and_back() {
        use Event::*;
        let (machine, steps) = run(&[Unknown, Built, Verified, Granted, JobStarted, JobOver(JobEnd::Ran), Verified]);
        assert_eq!(
            steps,
            [Next::Build, Next::Restore, Next::Offer, Next::Check, Next::Execute, Next::Restore, Next::Offer]
        );
        assert!(machine.is_lendable());
    }

    #[test]
    fn a_sprite_that_is_known_clean_is_verified_and_any_other_is_restored() {
        assert_eq!(run(&[Event::Known { clean: true }]).1, [Next::Verify]);
        assert_eq!(run(&[Event::Known { clean: false }]).1, [Next::Restore]);
    }

    #[test]
    fn a_failed_restore_leads_to_a_rebuild_and_an_outage_to_another_try() {
        use Event::*;
        assert_eq!(run(&[Known { clean: false }, Failed(Blame::Sprite)]).1[1], Next::Build);
        let (_, steps) = run(&[Known { clean: false }, Failed(Blame::Outside), Timer]);
        assert_eq!(steps[1..], [Next::Wait(FIRST_DELAY), Next::Restore]);
    }

    #[test]
    fn a_runner_that_gave_away_a_secret_is_quarantined_and_then_built_anew() {
        use Event::*;
        let (mut machine, steps) = run(&[Unknown, Built, Verified, Granted, JobStarted, JobOver(JobEnd::Leaked)]);
        assert_eq!(steps[5], Next::Quarantine(FIRST_REST));
        assert!(!machine.is_lendable());
        assert_eq!(machine.on(Timer), Next::Build);
    }

    #[test]
    fn a_sprite_that_keeps_failing_is_quarantined_and_tried_again_later() {
        let mut machine = Machine::new();
        machine.on(Event::Unknown);
        let mut quarantined = false;
        for _ in 0..2 * MAX_FAILURES {
            match machine.on(Event::Failed(Blame::Sprite)) {
                Next::Build => {}
                Next::Wait(_) => assert_eq!(machine.on(Event::Timer), Next::Build),
                Next::Quarantine(time) => {
                    assert_eq!(time, FIRST_REST);
                    quarantined = true;
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(quarantined);
        assert!(!machine.is_lendable());
        assert_eq!(machine.on(Event::Timer), Next::Build);
    }

    #[test]
    fn a_restore_that_lies_is_quarantined_at_once() {
        let (machine, steps) = run(&[Event::Known { clean: false }, Event::Lied]);
        assert_eq!(steps[1], Next::Quarantine(FIRST_REST));
        assert_eq!(machine.phase(), Phase::Quarantined);
    }

    #[test]
    fn a_runner_due_for_refresh_finishes_its_job_first() {
        use Event::*;
        let (_, steps) =
            run(&[Known { clean: true }, Verified, Granted, JobStarted, RefreshTurn, JobOver(JobEnd::Ran)]);
        assert_eq!(steps[4..], [Next::Stay, Next::Build]);
    }

    #[test]
    fn a_foreign_sprite_is_left_alone_and_looked_at_again() {
        let (_, steps) = run(&[Event::Foreign, Event::Timer]);
        assert_eq!(steps, [Next::Quarantine(FOREIGN_REST), Next::Look]);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let blame = prop_oneof![Just(Blame::Sprite), Just(Blame::Outside)];
        let end = prop_oneof![Just(JobEnd::Ran), Just(JobEnd::Untouched), blame.clone().prop_map(JobEnd::Unfit)];
        prop_oneof![
            any::<bool>().prop_map(|clean| Event::Known { clean }),
            Just(Event::Unknown),
            Just(Event::Built),
            Just(Event::Verified),
            blame.prop_map(Event::Failed),
            Just(Event::Lied),
            Just(Event::Foreign),
            Just(Event::Granted),
            Just(Event::JobStarted),
            end.prop_map(Event::JobOver),
            Just(Event::RefreshTurn),
            Just(Event::Timer),
            Just(Event::Rebuild),
        ]
    }

    proptest! {
        /// However it got there: after a job ran, nothing but a verification makes a runner lendable again.
        #[test]
        fn a_runner_that_ran_a_job_is_verified_before_it_is_lent_again(events in proptest::collection::vec(any_event(), 1..200)) {
            let mut machine = Machine::new();
            let mut dirty = true;
            for event in events {
                let before = machine.phase();
                let next = machine.on(event);
                match event {
                    Event::Verified if before == Phase::Restoring => dirty = false,
                    Event::JobOver(JobEnd::Untouched) => {}
                    Event::JobOver(_) if matches!(before, Phase::Checking | Phase::Executing) => dirty = true,
                    _ => {}
                }
                if next == Next::Check { prop_assert_eq!(before, Phase::Idle) }
                if matches!(next, Next::Build | Next::Restore) { dirty = true }
                prop_assert!(!(machine.is_lendable() && dirty), "{:?} after {:?} in {:?}", next, event, before);
            }
        }

        /// When everything works from now on, a runner is idle after a bounded number of steps, wherever it was.
        #[test]
        fn a_runner_always_comes_back_when_the_faults_stop(events in proptest::collection::vec(any_event(), 0..200)) {
            let mut machine = Machine::new();
            for event in events {
                machine.on(event);
            }
            for _ in 0..8 {
                let good = match machine.phase() {
                    Phase::Starting => Event::Known { clean: false },
                    Phase::Building => Event::Built,
                    Phase::Restoring => Event::Verified,
                    Phase::Checking => Event::JobStarted,
                    Phase::Executing => Event::JobOver(JobEnd::Ran),
                    Phase::Waiting | Phase::Quarantined => Event::Timer,
                    Phase::Idle => return Ok(()),
                };
                machine.on(good);
            }
            prop_assert_eq!(machine.phase(), Phase::Idle);
        }
    }
}
