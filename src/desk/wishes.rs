//! What people wish of jobs that are there: that they stop, and that their messages count as edited or deleted.

use std::collections::BTreeSet;

use ractor::{ActorRef, RpcReplyPort};

use super::conversation::ConversationMsg;
use super::stop::{Stopping, may_stop};
use super::{Desk, DeskMsg, Hearing, State, Target};
use crate::chat::Change;
use crate::job::{ConversationId, JobId, Outcome, RefuseReason, RequesterId};
use crate::journal::Journal;

impl<J: Journal> Desk<J> {
    pub(super) fn on_cancel(&self, st: &mut State, target: Target, by: &RequesterId, reply: RpcReplyPort<Stopping>) {
        let (conversation, job) = match target {
            Target::Conversation(id) => (Some(id), None),
            Target::Job(job) => (self.debts.get(&job).map(|debt| debt.conversation), Some(job)),
        };
        let room = conversation.as_ref().and_then(|id| st.rooms.get(id));
        let open = room.map(|room| room.open.clone()).unwrap_or_default();
        let meant = open.into_iter().filter(|open| job.as_ref().is_none_or(|job| job == open)).collect();
        let stopping = conversation.map(|id| self.stop_jobs(st, &id, &meant, by)).unwrap_or_default();
        // Whoever asked may have left.
        let _ = reply.send(stopping);
    }

    /// Stops those of these jobs that `by` may stop.
    pub(super) fn stop_jobs(
        &self,
        st: &mut State,
        conversation: &ConversationId,
        jobs: &BTreeSet<JobId>,
        by: &RequesterId,
    ) -> Stopping {
        let mut stopping = Stopping::default();
        let Some(room) = st.rooms.get_mut(conversation) else { return stopping };
        for job in jobs.iter().filter(|job| room.open.contains(job)) {
            // Ended, and only not cleared away yet.
            let Some(debt) = self.debts.get(job) else { continue };
            if !may_stop(by, &debt.requester, &self.settings.access) {
                stopping.of_others += 1;
                continue;
            }
            stopping.jobs += 1;
            if let Some(recording) = room.recording.iter_mut().find(|recording| recording.hearing.job == *job) {
                recording.cancelled_by.get_or_insert_with(|| by.clone());
            } else if let Some(actor) = &room.actor {
                // When it has just died, its jobs end anyway.
                let _ = actor.cast(ConversationMsg::Cancel { job: job.clone(), by: by.clone() });
            }
        }
        stopping
    }

    /// A message was the wish to stop these jobs; what came of it is its outcome.
    pub(super) fn obey_stop(&self, me: &ActorRef<DeskMsg>, st: &mut State, hearing: &Hearing, jobs: BTreeSet<JobId>) {
        let stopping = self.stop_jobs(st, &hearing.inbound.conversation, &jobs, &hearing.inbound.requester);
        let outcome = match stopping {
            Stopping { jobs: 0, of_others: 1.. } => {
                Outcome::Refused { reason: RefuseReason::NotAllowed, message: stopping.sentence() }
            }
            Stopping { .. } => Outcome::Answered { answer: stopping.sentence() },
        };
        self.end_here(me, st, &hearing.job, outcome);
    }

    pub(super) fn on_changed(&self, st: &mut State, change: Change) {
        let Change { key, text, .. } = change;
        let Some((job, debt)) = self.debts.of_message(&key) else {
            tracing::debug!(key, "a message was changed that has no open job");
            return;
        };
        let Some(room) = st.rooms.get_mut(&debt.conversation) else { return };
        if let Some(recording) = room.recording.iter_mut().find(|recording| recording.hearing.job == job) {
            recording.change = Some(text);
        } else if let Some(actor) = &room.actor {
            // When it has just died, its jobs end anyway.
            let _ = actor.cast(ConversationMsg::Changed { job, text });
        }
    }
}
