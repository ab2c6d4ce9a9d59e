//! How a job's end is put into an outcome, for its user and for the journal.
//!
//! Pure but for [`settle`], which writes an outcome to the journal. Messages are for whoever asked: what happened, what
//! is known of it, what to do next. They name the job and no causes beneath what the user can act on.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::debts::{Debts, Unrecorded};
use super::visible::Place;
use crate::agent::{AgentResult, Details, Usage};
use crate::job::{FailReason, JobId, JobReport, Outcome, RefuseReason, RequesterId, Timings};
use crate::journal::{Journal, JournalError};
use crate::pool::receipt::Receipt;
use crate::pool::{NotStarted, RunEnd, RunReport};

/// How long an answer waits for a journal that does not reply. A write takes about a millisecond.
pub const JOURNAL_PATIENCE: Duration = Duration::from_secs(10);

/// Starts of an agent's last words that are shown beside a failure.
const MAX_SO_FAR: usize = 8 * 1024;

/// What everybody who ends a job knows of it.
#[derive(Clone, Debug)]
pub struct Ended {
    pub job: JobId,
    pub agent: String,
    pub heard_at: Instant,
    pub timings: Timings,
    pub receipt: Option<Receipt>,
}

impl Ended {
    /// A job of which no run is known.
    pub fn unrun(job: JobId, agent: String, heard_at: Instant) -> Self {
        Self { job, agent, heard_at, timings: Timings::default(), receipt: None }
    }

    /// The report with this outcome, at this time.
    pub fn with(self, outcome: Outcome, ended_at: Timestamp) -> JobReport {
        let timings = Timings { total_ms: millis(self.heard_at.elapsed()), ..self.timings };
        JobReport {
            job: self.job,
            outcome,
            agent: self.agent,
            timings,
            receipt: self.receipt,
            usage: None,
            files: Vec::new(),
            notes: Vec::new(),
            ended_at,
        }
    }
}

pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn failed(reason: FailReason, message: String) -> Outcome {
    Outcome::Failed { reason, message }
}

/// The report of a job that ran. `run_timeout` is the time that it was allowed.
pub fn ran(ended: Ended, run: RunReport, run_timeout: Duration, ended_at: Timestamp) -> JobReport {
    let (outcome, details) = outcome_of(&ended.job, run.ended, run_timeout);
    let mut report = ended.with(outcome, ended_at);
    report.timings.queue_ms = Some(millis(run.queue_wait));
    report.timings.check_ms = Some(millis(run.check));
    report.timings.run_ms = Some(millis(run.run));
    report.timings.collect_ms = Some(millis(run.collect));
    report.receipt = Some(run.receipt);
    report.usage = match (details.usage, run.usage) {
        // The agent knows the price, and whoever counted the rest.
        (Some(said), Some(counted)) => Some(Usage { cost_usd: said.cost_usd, ..counted }),
        (said, counted) => counted.or(said),
    };
    report.files = run.files;
    report.notes = details.notes;
    report.notes.extend(run.notes);
    report
}

fn outcome_of(job: &JobId, ended: RunEnd, run_timeout: Duration) -> (Outcome, Details) {
    match ended {
        RunEnd::Agent(AgentResult::Answered { answer, details }) => (Outcome::Answered { answer }, details),
        RunEnd::Agent(AgentResult::Failed { message, answer_so_far, retryable: true, details }) => {
            let message = format!(
                "The model's server could not serve the agent just now: {message}\nWhat the agent had done before that was not undone, and nothing is repeated by itself: send the message again to try once more (job {job})."
            );
            (failed(FailReason::ModelBusy, with_so_far(message, answer_so_far.as_deref())), details)
        }
        RunEnd::Agent(AgentResult::Failed { message, answer_so_far, retryable: false, details }) => {
            let message = with_so_far(format!("The agent failed: {message}"), answer_so_far.as_deref());
            (failed(FailReason::AgentFailed, message), details)
        }
        RunEnd::Agent(AgentResult::NoResult { message, details }) => {
            let message = format!(
                "The agent ended without an answer: {message}\nSend the message again to try once more; job {job} is not repeated by itself."
            );
            (failed(FailReason::NoResult, message), details)
        }
        RunEnd::Timeout { so_far } => {
            let (said, details) = said(so_far);
            let allowed = humantime::format_duration(run_timeout);
            let message = format!(
                "The agent was stopped because its time of {allowed} was up. Ask for less at a time, or allow more time for it (job {job})."
            );
            (failed(FailReason::Timeout, with_so_far(message, said.as_deref())), details)
        }
        RunEnd::Limit { reached, so_far } => {
            let (said, details) = said(so_far);
            let message = format!("The agent was stopped at a limit: {reached}. Ask for less at a time (job {job}).");
            (failed(FailReason::Limit, with_so_far(message, said.as_deref())), details)
        }
        RunEnd::Held { leak } => {
            let message = format!(
                "The answer is held back, with its files, because a secret of this service was in it: {leak}. Its machine is set aside, and janebot's operator is told (job {job})."
            );
            (failed(FailReason::Held, message), Details::default())
        }
        RunEnd::Cancelled { stopped } => {
            (Outcome::Cancelled { message: format!("Cancelled: {stopped}.") }, Details::default())
        }
        RunEnd::OutcomeUnknown { message } => {
            let message = format!(
                "The connection to the agent's machine was lost while it ran ({message}). What it did until then outside the machine is not known: look before you send this again (job {job})."
            );
            (failed(FailReason::OutcomeUnknown, message), Details::default())
        }
    }
}

/// What the agent had said when it was stopped.
fn said(so_far: AgentResult) -> (Option<String>, Details) {
    match so_far {
        AgentResult::Answered { answer, details } => (Some(answer), details),
        AgentResult::Failed { answer_so_far, details, .. } => (answer_so_far, details),
        AgentResult::NoResult { details, .. } => (None, details),
    }
}

fn with_so_far(mut message: String, said: Option<&str>) -> String {
    if let Some(said) = said.map(str::trim).filter(|said| !said.is_empty()) {
        let end = said.floor_char_boundary(MAX_SO_FAR);
        message.push_str("\n\nWhat it had said:\n");
        message.push_str(&said[..end]);
        if end < said.len() {
            message.push_str(" […]");
        }
    }
    message
}

/// The outcome of a job whose ticket came back without a run. `waited` is how long it was allowed to wait.
pub fn not_started(job: &JobId, why: NotStarted, waited: Duration) -> Outcome {
    match why {
        NotStarted::QueueFull { limit } => Outcome::Refused {
            reason: RefuseReason::QueueFull,
            message: format!("{limit} jobs are waiting already, which is the limit: send this again in a few minutes."),
        },
        NotStarted::TooManyOfRequester { limit } => Outcome::Refused {
            reason: RefuseReason::TooManyWaiting,
            message: format!(
                "{limit} of your messages are waiting already, which is the limit for one person: wait for an answer, or cancel one of them, and send this again."
            ),
        },
        NotStarted::TooManyOfChannel { limit } => Outcome::Refused {
            reason: RefuseReason::TooManyWaiting,
            message: format!(
                "{limit} messages of this channel are waiting already, which is the limit for one channel: send this again in a few minutes, or ask in a direct message."
            ),
        },
        NotStarted::QueueTimeout { reason } => failed(
            FailReason::QueueTimeout,
            format!(
                "No runner came free within {} ({reason}). The agent never started: send this again later (job {job}).",
                humantime::format_duration(waited)
            ),
        ),
        NotStarted::Cancelled => {
            Outcome::Cancelled { message: "Cancelled before the agent started; nothing was run.".into() }
        }
        NotStarted::Draining => Outcome::Refused {
            reason: RefuseReason::Draining,
            message: "janebot is stopping and the agent was not started: send this again in a minute.".into(),
        },
        NotStarted::NoRunner { message } => no_runner(job, &message),
        NotStarted::Unsuitable { message } => Outcome::Refused {
            reason: RefuseReason::Unsuitable,
            message: format!("Job {job} can't be run: {message}."),
        },
        NotStarted::OverLimit { message } => Outcome::Refused {
            reason: RefuseReason::OverLimit,
            message: format!("Job {job} was not started: {message}. Send this again later."),
        },
        NotStarted::Journal { message } => failed(
            FailReason::Journal,
            format!(
                "janebot could not write its journal, so the agent was not started: {message}. Send this again once that is repaired (job {job})."
            ),
        ),
    }
}

pub fn no_runner(job: &JobId, message: &str) -> Outcome {
    failed(
        FailReason::NoRunner,
        format!(
            "No machine could be made ready for the agent, which never started: {message}. Send this again in a few minutes; if it stays so, tell the operator (job {job})."
        ),
    )
}

/// Why a job is being stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Wish(RequesterId),
    /// Its message was deleted.
    Deleted,
    /// Its message got another text when the agent had started.
    Edited,
    /// The process ends, and the agent started in the moment in which its job was to be left to the next one.
    Stopping,
}

impl Cause {
    /// Why, for whoever asked; nothing when that was the requester's own wish.
    fn words(&self, requester: &RequesterId) -> String {
        match self {
            Self::Wish(by) if by == requester => String::new(),
            Self::Wish(by) => format!(" by {by}"),
            Self::Deleted => " because the message was deleted".into(),
            Self::Edited => " because the message was edited".into(),
            Self::Stopping => " because janebot is stopping".into(),
        }
    }
}

/// Stopped before anything was done.
pub fn cancelled_before_start(cause: Option<&Cause>, requester: &RequesterId) -> Outcome {
    let why = cause.map(|cause| cause.words(requester)).unwrap_or_default();
    Outcome::Cancelled { message: format!("Cancelled{why} before the agent started; nothing was run.") }
}

/// Says in a cancelled run's outcome what it was stopped for, where that was not the requester's own wish.
pub fn explain_cancelled(outcome: &mut Outcome, cause: Option<&Cause>, requester: &RequesterId) {
    let (Outcome::Cancelled { message }, Some(cause)) = (outcome, cause) else { return };
    if let Some(verified) = message.strip_prefix("Cancelled:") {
        *message = format!("Cancelled{}:{verified}", cause.words(requester));
    }
    match cause {
        Cause::Wish(_) | Cause::Deleted => {}
        Cause::Edited => message.push_str(" The new text was not run: send it as a message if you still want it."),
        Cause::Stopping => message.push_str(" Look at what it did outside its machine before you send this again."),
    }
}

/// Its text is part of another job's prompt.
pub fn merged(into: &JobId) -> Outcome {
    Outcome::Merged {
        into: into.clone(),
        message: format!("Answered together with the message before it (job {into})."),
    }
}

/// Nobody ended it in time, which nobody should see.
pub fn overdue(job: &JobId, started: bool) -> Outcome {
    let what = if started {
        "What the agent did is not known: look before you send this again"
    } else {
        "The agent never started: send this again"
    };
    failed(
        FailReason::Overdue,
        format!("janebot lost track of this job and gave it up at its deadline. {what} (job {job})."),
    )
}

/// It had waited for a day or more when a process came that could run it.
pub fn stale(job: &JobId) -> Outcome {
    failed(
        FailReason::Overdue,
        format!(
            "janebot was stopped for so long that this was not run: send it again if you still want it (job {job})."
        ),
    )
}

/// The service lost the job's actor or was stopped.
pub fn interrupted(job: &JobId, started: bool) -> Outcome {
    let message = if started {
        format!(
            "The job was interrupted while the agent ran. Its machine is wiped, but what it did outside of it, such as a pushed branch, stays: look before you send this again (job {job})."
        )
    } else {
        format!("The job was interrupted before the agent started: send this again (job {job}).")
    };
    failed(FailReason::Interrupted, message)
}

/// Interrupted, and the one who says it can't know how far the job had come.
pub fn interrupted_somewhere(job: &JobId) -> Outcome {
    failed(
        FailReason::Interrupted,
        format!(
            "The job was interrupted. If the agent had started, its machine is wiped, but what it did outside of it stays: look before you send this again (job {job})."
        ),
    )
}

/// A started run that nobody reported on in time.
pub fn unconfirmed(job: &JobId, cancelled: bool, waited: Duration) -> Outcome {
    let waited = humantime::format_duration(waited);
    let what = if cancelled {
        format!("The agent was told to stop, but that was not confirmed within {waited}")
    } else {
        format!("The agent's machine did not report for {waited} after the agent's time was up")
    };
    failed(
        FailReason::OutcomeUnknown,
        format!(
            "{what}. The machine is wiped before anybody gets it, but what the agent did outside of it is not known: look before you send this again (job {job})."
        ),
    )
}

/// The message was not recorded, so nothing was run.
pub fn not_recorded(job: &JobId, error: &JournalError) -> Outcome {
    failed(
        FailReason::Journal,
        format!(
            "Your message could not be recorded, so nothing was run: {error}. Send it again once that is repaired (job {job})."
        ),
    )
}

/// Writes the outcome to the journal. An outcome that was recorded before wins over this one. When the journal fails,
/// the report says so, and the outcome is kept in `debts` to be recorded later: the user is answered all the same.
pub async fn settle<J: Journal>(journal: &J, debts: &Debts, mut report: JobReport) -> JobReport {
    let place = debts.place(&report.job);
    let problem = match record(journal, &report, place.as_ref()).await {
        Ok(true) => return report,
        Ok(false) => {
            adopt_recorded(journal, &mut report).await;
            return report;
        }
        Err(problem) => problem,
    };
    tracing::error!(job = %report.job, problem, "an outcome could not be recorded: trying again later");
    debts.keep_unrecorded(&report, place);
    report.notes.push(format!(
        "This outcome could not be recorded yet ({problem}). Should janebot stop before it is, it will call the job interrupted."
    ));
    report
}

/// Writes the outcome to the journal, with what is to be seen of it, if nobody did before.
pub async fn record<J: Journal>(journal: &J, report: &JobReport, place: Option<&Place>) -> Result<bool, String> {
    let effects = place.map(|place| place.ended(report)).unwrap_or_default();
    let write = async {
        // A file's content comes before the row that names it; without that row it is dropped at the next start.
        for (effect, content) in &effects {
            if let Some(content) = content {
                journal.keep_file(&effect.key, content).await?;
            }
        }
        let effects: Vec<_> = effects.iter().map(|(effect, _)| effect.clone()).collect();
        let (receipt, at) = (report.receipt.as_ref(), report.ended_at);
        journal.end_with(&report.job, &report.outcome, &report.timings, receipt, at, &effects).await
    };
    match timeout(JOURNAL_PATIENCE, write).await {
        Ok(Ok(first)) => Ok(first),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the journal does not answer".into()),
    }
}

/// Tries once more to record what could not be recorded. Stops at the first that the journal still does not take.
pub async fn record_late<J: Journal>(journal: &J, debts: &Debts) {
    for Unrecorded { report, place } in debts.unrecorded() {
        match record(journal, &report, place.as_ref()).await {
            Ok(_) => {
                debts.forget_unrecorded(&report.job);
                if let Some(place) = place {
                    debts.kick(&place.conversation);
                }
            }
            // A job that the journal never took has no row that could stay open.
            Err(_) if matches!(timeout(JOURNAL_PATIENCE, journal.job(&report.job)).await, Ok(Ok(None))) => {
                debts.forget_unrecorded(&report.job);
            }
            Err(_) => return,
        }
    }
}

async fn adopt_recorded<J: Journal>(journal: &J, report: &mut JobReport) {
    let Ok(Ok(Some(row))) = timeout(JOURNAL_PATIENCE, journal.job(&report.job)).await else { return };
    let Some(outcome) = row.outcome else { return };
    if outcome != report.outcome {
        report.outcome = outcome;
        report.timings = row.timings.unwrap_or(report.timings);
        report.receipt = row.receipt;
        report.files.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{StopProof, Stopped};

    fn job() -> JobId {
        JobId::new("01job")
    }

    fn details() -> Details {
        Details { notes: vec!["cut".into()], ..Details::default() }
    }

    #[test]
    fn each_end_of_a_run_has_its_outcome_and_says_what_to_do() {
        let answered = AgentResult::Answered { answer: "42".into(), details: details() };
        let failed = AgentResult::Failed {
            message: "no credit".into(),
            answer_so_far: Some("I tried".into()),
            retryable: false,
            details: details(),
        };
        let busy = AgentResult::Failed {
            message: "API Error: 529".into(),
            answer_so_far: None,
            retryable: true,
            details: details(),
        };
        let stopped =
            Stopped { proof: StopProof::ProcessTable, status: Some(143), took: Duration::from_micros(1_040_999) };
        let nothing = AgentResult::NoResult { message: "exit status 137".into(), details: details() };
        for (ended, word, reason, parts) in [
            (RunEnd::Agent(answered.clone()), "answered", None, &[][..]),
            (
                RunEnd::Agent(failed.clone()),
                "failed",
                Some("agent_failed"),
                &["no credit", "What it had said:\nI tried"],
            ),
            (RunEnd::Agent(busy), "failed", Some("model_busy"), &["529", "again", "01job"]),
            (RunEnd::Agent(nothing.clone()), "failed", Some("no_result"), &["exit status 137", "again", "01job"]),
            (RunEnd::Timeout { so_far: answered }, "failed", Some("timeout"), &["10m", "42", "01job"]),
            (RunEnd::Timeout { so_far: failed.clone() }, "failed", Some("timeout"), &["I tried"]),
            (
                RunEnd::Limit { reached: "50 calls".into(), so_far: failed.clone() },
                "failed",
                Some("limit"),
                &["50 calls", "I tried"],
            ),
            (
                RunEnd::Held { leak: "A_KEY (in hex) in the answer".into() },
                "failed",
                Some("held"),
                &["held back", "A_KEY"],
            ),
            (RunEnd::Timeout { so_far: nothing }, "failed", Some("timeout"), &["allow more time"]),
            (
                RunEnd::Cancelled { stopped },
                "cancelled",
                None,
                &["Cancelled: the agent ended with", "no process", "1s 40ms"],
            ),
            (
                RunEnd::OutcomeUnknown { message: "reset".into() },
                "failed",
                Some("outcome_unknown"),
                &["look before", "01job"],
            ),
        ] {
            let (outcome, _) = outcome_of(&job(), ended, Duration::from_secs(600));
            assert_eq!((outcome.word(), outcome.reason()), (word, reason));
            let text = format!("{outcome:?}").replace("\\n", "\n");
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn each_reason_not_to_start_has_its_outcome() {
        for (why, word, reason) in [
            (NotStarted::QueueFull { limit: 5 }, "refused", Some("queue_full")),
            (NotStarted::TooManyOfRequester { limit: 5 }, "refused", Some("too_many_waiting")),
            (NotStarted::TooManyOfChannel { limit: 5 }, "refused", Some("too_many_waiting")),
            (NotStarted::QueueTimeout { reason: "all runners are busy".into() }, "failed", Some("queue_timeout")),
            (NotStarted::Cancelled, "cancelled", None),
            (NotStarted::Draining, "refused", Some("draining")),
            (NotStarted::NoRunner { message: "disk full".into() }, "failed", Some("no_runner")),
            (NotStarted::OverLimit { message: "too much".into() }, "refused", Some("over_limit")),
            (NotStarted::Journal { message: "disk full".into() }, "failed", Some("journal")),
        ] {
            let outcome = not_started(&job(), why, Duration::from_secs(900));
            assert_eq!((outcome.word(), outcome.reason()), (word, reason));
        }
    }

    #[test]
    fn last_words_are_cut_at_a_character() {
        let message = with_so_far("Time was up.".into(), Some(&"ä".repeat(MAX_SO_FAR)));
        assert!(message.ends_with(" […]") && message.len() < MAX_SO_FAR + 100);
        assert_eq!(with_so_far("Time was up.".into(), Some("  \n")), "Time was up.");
    }
}
