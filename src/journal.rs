//! The journal: the durable record of jobs, leases, runners and outbox. What must survive an actor or the process lives here.
//!
//! A handle, not an actor: the store serialises writes itself, and an actor in front of it would add a hop and one more
//! thing to fail. Two stores keep one contract: [`sqlite::SqliteJournal`] for the service and
//! [`memory::MemoryJournal`] for the simulation, where a thread of SQLite's would break the paused clock.

pub mod memory;
pub mod outgoing;
mod refusal;
pub mod search;
pub mod sqlite;
pub mod story;
pub mod usage;

use std::future::Future;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::chat::Attachment;
use crate::job::{ChannelId, ConversationId, JobId, Outcome, RequesterId, Timings};
use crate::pool::receipt::Receipt;
use crate::sprites::CheckpointId;
use outgoing::{Delivery, Effect, Outgoing, OutgoingRow};
use search::{LeaseRow, Wanted};
use usage::{Together, Used};

pub type Result<T, E = JournalError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process holds the journal; `holder` names it, as in `process 4711`.
    #[error(
        "another janebot ({holder}) is running with the journal {path}: stop it, or give this one its own DATA_DIR"
    )]
    InUse { path: String, holder: String },
    /// Made by a newer version; opening it could damage it.
    #[error(
        "the journal {path} was written by a newer janebot (schema {found}, this one knows {known}): run that version, or give this one another DATABASE_URL"
    )]
    Newer { path: String, found: i64, known: i64 },
    #[error(
        "the journal {path} is damaged ({message}): restore it from a backup, or move it away to start with an empty one"
    )]
    Corrupt { path: String, message: String },
    #[error("the journal {path} can't be opened ({message}): check that the folder exists, is writable and has room")]
    Open { path: String, message: String },
    /// A write or read failed; nothing was half-written.
    #[error("the journal can't be used ({message})")]
    Failed { message: String },
}

/// A job as recorded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobRow {
    pub job: JobId,
    /// The platform's message identity; unique.
    pub message_key: String,
    pub requester: RequesterId,
    pub channel: ChannelId,
    pub conversation: ConversationId,
    pub agent: String,
    /// Not serialised, not logged.
    #[serde(skip)]
    pub prompt: String,
    /// Files that came with the message.
    pub files: Vec<Attachment>,
    pub state: JobState,
    pub runner: Option<String>,
    pub accepted_at: Timestamp,
    /// By when it must have ended, whatever happens; later it is ended for it.
    pub deadline: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub outcome: Option<Outcome>,
    pub timings: Option<Timings>,
    pub receipt: Option<Receipt>,
}

impl JobRow {
    /// Whether it can be recorded as new: waiting, or refused right away.
    fn is_new(&self) -> bool {
        match self.state {
            JobState::Accepted => self.outcome.is_none() && self.ended_at.is_none(),
            JobState::Running => false,
            JobState::Ended => self.outcome.is_some() && self.ended_at.is_some(),
        }
    }
}

/// How far a job came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Recorded and waiting.
    Accepted,
    /// On a runner; the agent may have started, so it is never run again by itself.
    Running,
    Ended,
}

impl JobState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Ended => "ended",
        }
    }
}

/// What is known about a runner's sprite.
#[derive(Clone, Debug, PartialEq)]
pub struct RunnerRow {
    pub runner: String,
    pub sprite_id: String,
    pub checkpoint: CheckpointId,
    pub fingerprint: String,
    /// Set before a job may touch the sprite, cleared only with the receipt of a verified restore.
    pub dirty: bool,
    /// The last job that had it.
    pub last_job: Option<JobId>,
    /// Name of the canary file that the last job's run left, to be looked for after the restore.
    pub canary: Option<String>,
    /// Boot identity before the last restore.
    pub boot: String,
    /// Highest fencing number given out for this runner.
    pub fence: u64,
}

/// Whether a message was new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    New,
    /// The message had been heard before, as this job.
    Known(JobId),
}

/// Jobs that [`Journal::conversation_jobs`] looks through when a store has no better way.
const RECENT_SCAN: u32 = 200;

/// The store. Calls are durable when they return `Ok`; an `Err` left nothing behind.
pub trait Journal: Clone + Send + Sync + 'static {
    /// The identity of this deployment, made once and kept, so that a restarted process knows its own sprites.
    fn deployment_id(&self) -> impl Future<Output = Result<String>> + Send;

    /// Records a prompt before it is acknowledged; the state of `row` is `Accepted`.
    fn accept(&self, row: &JobRow) -> impl Future<Output = Result<Accepted>> + Send {
        self.accept_with(row, &[])
    }
    /// Records a message together with what is to be seen of that; `row` is `Accepted`, or `Ended` when it was refused.
    /// For a known message nothing is recorded.
    fn accept_with(&self, row: &JobRow, effects: &[Outgoing]) -> impl Future<Output = Result<Accepted>> + Send;
    /// Replaces the prompt of a job that has not started. `false` when it has.
    fn revise(&self, job: &JobId, prompt: &str) -> impl Future<Output = Result<bool>> + Send;
    /// Gives a job that has not ended another deadline.
    fn extend(&self, job: &JobId, deadline: Timestamp) -> impl Future<Output = Result<()>> + Send;
    /// Records that `job` has the lease `fence` of `runner`, and marks the runner dirty, in one transaction.
    fn lease(
        &self,
        job: &JobId,
        runner: &str,
        fence: u64,
        canary: &str,
        at: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Returns a job that never started to `Accepted` (the runner stays dirty).
    fn unlease(&self, job: &JobId) -> impl Future<Output = Result<()>> + Send;
    /// Records the outcome. The first one wins: `false` when the job had ended before.
    fn end(
        &self,
        job: &JobId,
        outcome: &Outcome,
        timings: &Timings,
        receipt: Option<&Receipt>,
        at: Timestamp,
    ) -> impl Future<Output = Result<bool>> + Send {
        self.end_with(job, outcome, timings, receipt, at, &[])
    }
    /// Records the outcome together with what is to be seen of it: both or, when it is not the first, neither.
    fn end_with(
        &self,
        job: &JobId,
        outcome: &Outcome,
        timings: &Timings,
        receipt: Option<&Receipt>,
        at: Timestamp,
        effects: &[Outgoing],
    ) -> impl Future<Output = Result<bool>> + Send;
    fn job(&self, job: &JobId) -> impl Future<Output = Result<Option<JobRow>>> + Send;
    /// Jobs that have not ended, oldest first.
    fn open_jobs(&self) -> impl Future<Output = Result<Vec<JobRow>>> + Send;
    /// Jobs that have not ended although their deadline was before `now`, oldest first.
    fn overdue_jobs(&self, now: Timestamp) -> impl Future<Output = Result<Vec<JobRow>>> + Send;
    /// The newest `limit` jobs, newest first.
    fn recent_jobs(&self, limit: u32) -> impl Future<Output = Result<Vec<JobRow>>> + Send;
    /// The newest `limit` jobs of one conversation, newest first; it may leave out old ones. A store that has an index
    /// for it does better than this.
    fn conversation_jobs(
        &self,
        conversation: &ConversationId,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<JobRow>>> + Send {
        async move {
            let mut rows = self.recent_jobs(RECENT_SCAN).await?;
            rows.retain(|row| row.conversation == *conversation);
            rows.truncate(limit as usize);
            Ok(rows)
        }
    }
    /// The newest jobs that are wanted, newest first.
    fn find_jobs(&self, wanted: &Wanted) -> impl Future<Output = Result<Vec<JobRow>>> + Send;
    /// Every lease that the job had, oldest first.
    fn leases(&self, job: &JobId) -> impl Future<Output = Result<Vec<LeaseRow>>> + Send;

    /// Records effects that belong to no other record, all or none. A known key is left alone, except that progress
    /// which is not closed gets the new text; for that, recording is also the note that a request is about to be made.
    fn put(&self, effects: &[Outgoing], at: Timestamp) -> impl Future<Output = Result<()>> + Send;
    /// Notes that a request for this effect is about to be made.
    fn trying(&self, key: &str) -> impl Future<Output = Result<()>> + Send;
    /// Records how sending `effect` ended. When that was progress and the row was closed meanwhile, only the message's
    /// name is kept, and the row stays open.
    fn delivered(
        &self,
        key: &str,
        effect: &Effect,
        delivery: &Delivery,
        at: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Effects that are still to be sent, oldest first, of one conversation or of all. Progress that is not closed is
    /// not among them: its sender knows newer texts than the journal.
    fn open_effects(
        &self,
        conversation: Option<&ConversationId>,
    ) -> impl Future<Output = Result<Vec<OutgoingRow>>> + Send;
    fn effect(&self, key: &str) -> impl Future<Output = Result<Option<OutgoingRow>>> + Send;
    /// All effects of one job, oldest first.
    fn job_effects(&self, job: &JobId) -> impl Future<Output = Result<Vec<OutgoingRow>>> + Send;
    /// Keeps a file's content before the effect that names it is recorded.
    fn keep_file(&self, key: &str, bytes: &Bytes) -> impl Future<Output = Result<()>> + Send;
    fn file(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>>> + Send;
    /// Drops contents that no effect names, as a process leaves them that dies before it records an outcome.
    fn drop_stray_files(&self) -> impl Future<Output = Result<()>> + Send;

    /// A small value that was kept under this name.
    fn kept(&self, name: &str) -> impl Future<Output = Result<Option<String>>> + Send;
    /// Keeps a small value under this name in place of the one before; `None` takes it away.
    fn keep(&self, name: &str, value: Option<&str>) -> impl Future<Output = Result<()>> + Send;

    fn runner(&self, runner: &str) -> impl Future<Output = Result<Option<RunnerRow>>> + Send;
    /// Records a freshly built runner: new sprite, checkpoint and fingerprint, dirty until verified. Keeps the highest
    /// fence given out under this name.
    fn built(&self, row: &RunnerRow) -> impl Future<Output = Result<()>> + Send;
    /// Records that a restore was verified: clears the dirty mark and keeps the boot identity.
    fn clean(&self, runner: &str, receipt: &Receipt) -> impl Future<Output = Result<()>> + Send;
    /// Forgets a runner whose sprite was deleted, keeping its highest fence.
    fn forget_runner(&self, runner: &str) -> impl Future<Output = Result<()>> + Send;
    /// Keeps what was seen when a runner was quarantined, for people to read.
    fn quarantine(&self, runner: &str, evidence: &str, at: Timestamp) -> impl Future<Output = Result<()>> + Send;
    /// Quarantine records, newest first: runner, evidence, time.
    fn quarantines(&self, limit: u32) -> impl Future<Output = Result<Vec<(String, String, Timestamp)>>> + Send;

    /// Records what a job's run used; a later record replaces an earlier one.
    fn record_usage(&self, job: &JobId, used: &Used) -> impl Future<Output = Result<()>> + Send;
    /// What a job's run used, if that is recorded.
    fn usage(&self, job: &JobId) -> impl Future<Output = Result<Option<Used>>> + Send;
    /// What the requester's jobs come to that started since then.
    fn used_since(&self, requester: &RequesterId, since: Timestamp) -> impl Future<Output = Result<Together>> + Send;
}
