//! What the desk keeps of each conversation: its actor, the messages on their way into the journal, the open jobs.

use std::collections::{BTreeSet, VecDeque};

use jiff::Timestamp;
use ractor::ActorRef;
use tokio_util::task::AbortOnDropHandle;

use super::Hearing;
use super::admission::Refusal;
use super::conversation::ConversationMsg;
use super::ending::Ended;
use crate::job::{ConversationId, JobId, JobReport, Outcome, RequesterId};
use crate::journal::{JobRow, JobState};

/// One conversation.
#[derive(Default)]
pub(super) struct Room {
    pub(super) actor: Option<ActorRef<ConversationMsg>>,
    /// Messages given to `actor`.
    pub(super) given: u64,
    /// Admitted messages in order of arrival; the first is being recorded. One at a time, so that the order stays.
    pub(super) recording: VecDeque<Recording>,
    pub(super) writing: Option<AbortOnDropHandle<()>>,
    /// Jobs without an outcome, those in `recording` included.
    pub(super) open: BTreeSet<JobId>,
}

pub(super) struct Recording {
    pub(super) hearing: Box<Hearing>,
    /// Cancelled before it was recorded: the conversation is told right after the job.
    pub(super) cancelled_by: Option<RequesterId>,
}

pub(super) struct Incarnation {
    pub(super) conversation: ConversationId,
    pub(super) jobs: BTreeSet<JobId>,
}

impl Hearing {
    /// The job as the journal records it first.
    pub(super) fn row(&self, accepted_at: Timestamp) -> JobRow {
        JobRow {
            job: self.job.clone(),
            message_key: self.inbound.key.clone(),
            requester: self.inbound.requester.clone(),
            channel: self.inbound.channel.clone(),
            conversation: self.inbound.conversation.clone(),
            agent: self.agent.name().to_owned(),
            prompt: self.inbound.text.clone(),
            state: JobState::Accepted,
            runner: None,
            accepted_at,
            started_at: None,
            ended_at: None,
            outcome: None,
            timings: None,
            receipt: None,
        }
    }

    /// The report of a message that becomes no job.
    pub(super) fn refused(&self, refusal: Refusal, at: Timestamp) -> JobReport {
        let agent = self.inbound.agent.clone().unwrap_or_else(|| self.agent.name().to_owned());
        let outcome = Outcome::Refused { reason: refusal.reason, message: refusal.message };
        Ended::unrun(self.job.clone(), agent, self.heard_at).with(outcome, at)
    }
}
