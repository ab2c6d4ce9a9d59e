//! The watchdog: proves that no job stays open past its deadline.
//!
//! Every job has a deadline that is later than all that its conversation, the pool and a runner allow it. One that is
//! open after it is one that somebody lost; it is logged as an error, ended with a reason, and told.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use ractor::ActorRef;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::conversation::ConversationMsg;
use super::debts::{Debts, Teller};
use super::ending::{self, JOURNAL_PATIENCE};
use super::{Desk, DeskMsg, State, recovery};
use crate::job::{ConversationId, JobId, RequesterId};
use crate::journal::{self, JobState, Journal, JournalError};
use crate::world::World;

/// Deadlines are an hour and more away.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// The wall clock may be that much faster between two rounds before it counts as set.
const CLOCK_LEAP: Duration = Duration::from_secs(30);

/// Tells a wall clock that was set, or a machine that slept, from time that passed for the jobs, too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    at: Instant,
    wall: Timestamp,
}

impl Clock {
    pub(super) fn start(world: &World) -> Self {
        Self { at: Instant::now(), wall: world.now() }
    }

    /// Starts anew, and gives the time by which the wall clock leapt ahead since the last start.
    fn leap(&mut self, world: &World) -> Option<SignedDuration> {
        let now = Self::start(world);
        let passed = SignedDuration::try_from(now.at - self.at).unwrap_or(SignedDuration::MAX);
        let leap = now.wall.duration_since(self.wall).saturating_sub(passed);
        *self = now;
        (leap > SignedDuration::try_from(CLOCK_LEAP).unwrap_or(SignedDuration::MAX)).then_some(leap)
    }
}

impl<J: Journal> Desk<J> {
    pub(super) fn on_patrol(&self, me: &ActorRef<DeskMsg>, st: &mut State) {
        let leap = st.clock.leap(&self.world);
        let (journal, debts, world, me) = (self.journal.clone(), self.debts.clone(), self.world.clone(), me.clone());
        st.patrol = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let round = AssertUnwindSafe(patrol(&journal, &debts, &world, leap)).catch_unwind();
            let ended = match timeout(JOURNAL_PATIENCE, round).await {
                Ok(Ok(Ok(ended))) => ended,
                Ok(Ok(Err(error))) => {
                    tracing::warn!(%error, "deadlines could not be looked at: trying again");
                    Vec::new()
                }
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            let _ = me.cast(DeskMsg::Patrolled(ended));
        })));
    }

    pub(super) fn on_patrolled(&self, me: &ActorRef<DeskMsg>, st: &mut State, ended: &[(ConversationId, JobId)]) {
        st.patrol = None;
        me.send_after(EVERY, || DeskMsg::Patrol);
        for (conversation, job) in ended {
            if let Some(actor) = st.rooms.get(conversation).and_then(|room| room.actor.as_ref()) {
                // Should the conversation still have it after all, it is not to run on.
                let by = RequesterId::new("janebot:watchdog");
                let _ = actor.cast(ConversationMsg::Cancel { job: job.clone(), by });
            }
            self.on_ended(me, st, conversation, job);
        }
    }
}

/// One round. What the watchdog ended has been told.
async fn patrol<J: Journal>(
    journal: &J,
    debts: &Debts,
    world: &World,
    leap: Option<SignedDuration>,
) -> journal::Result<Vec<(ConversationId, JobId)>> {
    if let Some(leap) = leap {
        tracing::warn!(%leap, "the clock was set or the machine slept: deadlines move by as much");
        for row in journal.open_jobs().await? {
            if let Some(deadline) = row.deadline.and_then(|deadline| deadline.checked_add(leap).ok()) {
                journal.extend(&row.job, deadline).await?;
            }
        }
        return Ok(Vec::new());
    }
    let mut ended = Vec::new();
    let ended_but_not_recorded: BTreeSet<JobId> = debts.unrecorded().into_iter().map(|kept| kept.report.job).collect();
    for row in journal.overdue_jobs(world.now()).await? {
        if ended_but_not_recorded.contains(&row.job) {
            continue;
        }
        let place = match debts.teller(&row) {
            Teller::Elsewhere => continue,
            Teller::Direct => None,
            Teller::Outbox(place) => Some(place),
        };
        tracing::error!(job = %row.job, state = row.state.word(), "a job is open past its deadline: ending it");
        let started = row.state != JobState::Accepted;
        let report = recovery::report(&row, ending::overdue(&row.job, started), world.now());
        let recorded = ending::record(journal, &report, place.as_ref()).await;
        if !recorded.map_err(|message| JournalError::Failed { message })? {
            // Somebody ended it just now, and tells it.
            continue;
        }
        debts.pay(report);
        debts.kick(&row.conversation);
        ended.push((row.conversation, row.job));
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_that_passes_for_all_clocks_is_no_leap() {
        let world = World::seeded(1);
        let mut clock = Clock::start(&world);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.leap(&world), None);
        clock.wall -= SignedDuration::from_secs(7200);
        assert_eq!(clock.leap(&world), Some(SignedDuration::from_secs(7200)));
        assert_eq!(clock.leap(&world), None, "it leapt once");
    }
}
