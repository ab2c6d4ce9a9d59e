//! What a store answers when a call does not fit what is recorded. Both stores say it in the same words; the migrations
//! hold those of a lease a second time, for SQLite's trigger.

use crate::journal::JournalError;

pub(super) const NO_SUCH_JOB: &str = "no such job";
pub(super) const JOB_ENDED: &str = "the job has ended";
pub(super) const JOB_LEASED: &str = "the job has a lease already";
pub(super) const NO_SUCH_RUNNER: &str = "no such runner";
pub(super) const OLD_FENCE: &str = "the fence is not larger than the last one";
pub(super) const FENCE_TOO_LARGE: &str = "the fence is larger than the journal can keep";
pub(super) const OTHER_SPRITE: &str = "the receipt is of another sprite or checkpoint than the runner's";
pub(super) const NOT_NEW: &str = "only a job in the state `accepted`, or one that has ended, can be recorded as new";
pub(super) const JOB_KNOWN: &str = "a job with this id is recorded already, for another message";

pub(super) const NO_SUCH_EFFECT: &str = "no such effect";

/// A refusal about `what`, as in `job 0a1b`.
pub(super) fn refused(why: &str, what: &str) -> JournalError {
    JournalError::Failed { message: format!("{what}: {why}") }
}
