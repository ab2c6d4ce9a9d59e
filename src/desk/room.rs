//! What the desk keeps of each conversation: its actor, the messages on their way into the journal, the open jobs.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use ractor::ActorRef;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Hearing;
use super::admission::{MAX_RUN_TIMEOUT, Refusal, Settings};
use super::conversation::ConversationMsg;
use super::ending::Ended;
use super::recovery::Left;
use crate::chat::Inbound;
use crate::chat::text::one_line;
use crate::config::AgentKind;
use crate::job::{ConversationId, JobId, JobReport, Outcome, RequesterId};
use crate::journal::{JobRow, JobState};

/// Characters kept of a message that was refused.
const MAX_REFUSED_TEXT: usize = 200;

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
    /// By when the jobs so far must have ended, one after the other.
    pub(super) busy_until: Option<Timestamp>,
}

pub(super) struct Recording {
    pub(super) hearing: Box<Hearing>,
    /// Cancelled before it was recorded: the conversation is told right after the job.
    pub(super) cancelled_by: Option<RequesterId>,
    /// Changed before it was recorded: the conversation is told that, too.
    pub(super) change: Option<Option<String>>,
    /// It is a wish to stop, of the jobs that were open when it came.
    pub(super) stop: Option<BTreeSet<JobId>>,
}

/// Time beside waiting for a runner and running, in which a job must have ended: each phase's grace, and some more.
const DEADLINE_MARGIN: Duration = Duration::from_secs(30 * 60);

impl Room {
    /// The deadline of one more job: jobs of a conversation run one after the other.
    pub(super) fn deadline(&mut self, now: Timestamp, timeout: Option<Duration>, settings: &Settings) -> Timestamp {
        let run = timeout.unwrap_or(settings.run_timeout).min(MAX_RUN_TIMEOUT);
        let allowed = SignedDuration::try_from(settings.queue_timeout + run + DEADLINE_MARGIN).unwrap_or_default();
        let begin = self.busy_until.map_or(now, |until| until.max(now));
        // Only at the end of the calendar is there no such time.
        let deadline = begin.checked_add(allowed).unwrap_or(Timestamp::MAX);
        self.busy_until = Some(deadline);
        deadline
    }
}

pub(super) struct Incarnation {
    pub(super) conversation: ConversationId,
    pub(super) jobs: BTreeSet<JobId>,
}

impl Hearing {
    /// The job as the journal records it first.
    pub(super) fn row(&self, accepted_at: Timestamp, deadline: Timestamp) -> JobRow {
        JobRow {
            job: self.job.clone(),
            message_key: self.inbound.key.clone(),
            requester: self.inbound.requester.clone(),
            channel: self.inbound.channel.clone(),
            conversation: self.inbound.conversation.clone(),
            agent: self.agent.name().to_owned(),
            prompt: self.inbound.text.clone(),
            files: self.inbound.files.clone(),
            state: JobState::Accepted,
            runner: None,
            accepted_at,
            deadline: Some(deadline),
            started_at: None,
            ended_at: None,
            outcome: None,
            timings: None,
            receipt: None,
        }
    }

    /// The row of a message that becomes no job. Of its text only as much is kept as people need to know it again, or all
    /// of it where they may ask once more with a button.
    pub(super) fn refused_row(&self, report: &JobReport) -> JobRow {
        let prompt = match report.outcome.is_retryable() {
            true => self.inbound.text.clone(),
            false => one_line(&self.inbound.text, MAX_REFUSED_TEXT),
        };
        JobRow {
            agent: one_line(&report.agent, 40),
            prompt,
            state: JobState::Ended,
            ended_at: Some(report.ended_at),
            outcome: Some(report.outcome.clone()),
            timings: Some(report.timings),
            ..self.row(report.ended_at, report.ended_at)
        }
    }

    /// A job that an earlier process recorded, to be run by this one.
    pub(super) fn left(left: Left, agent: AgentKind) -> Self {
        let Left { row, parts } = left;
        Self {
            job: row.job,
            inbound: Inbound {
                key: row.message_key,
                requester: row.requester,
                channel: row.channel,
                conversation: row.conversation,
                text: row.prompt,
                files: row.files,
                agent: Some(row.agent),
                timeout: None,
                replies: None,
            },
            heard_at: Instant::now(),
            agent,
            heard: None,
            is_recorded: true,
            parts,
        }
    }

    /// Says that the message is recorded, so that it need not be delivered again.
    pub(super) fn acknowledge(&mut self) {
        if let Some(heard) = self.heard.take() {
            // Whoever delivered it may have gone.
            let _ = heard.send(());
        }
    }

    /// Whether the outbox tells what becomes of it.
    pub(super) fn is_for_outbox(&self) -> bool {
        self.inbound.replies.is_none()
    }

    /// The report of a message that becomes no job.
    pub(super) fn refused(&self, refusal: Refusal, at: Timestamp) -> JobReport {
        let agent = self.inbound.agent.clone().unwrap_or_else(|| self.agent.name().to_owned());
        let outcome = Outcome::Refused { reason: refusal.reason, message: refusal.message };
        Ended::unrun(self.job.clone(), agent, self.heard_at).with(outcome, at)
    }
}
