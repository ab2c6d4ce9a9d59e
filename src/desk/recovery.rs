//! What a new process does about the jobs that an earlier one left open.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::admission::MAX_OPEN_IN_CONVERSATION;
use super::debts::{Debts, Teller};
use super::ending;
use crate::chat::text::one_line;
use crate::job::{ChannelId, ConversationId, JobId, JobReport, Outcome, RequesterId, Timings};
use crate::journal::{self, JobRow, JobState, Journal, JournalError};
use crate::world::World;

/// Characters of a message that are quoted so that its writer knows it again.
const MAX_QUOTE: usize = 48;

/// A job that the stop of an earlier process interrupted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Interrupted {
    pub job: JobId,
    pub requester: RequesterId,
    pub channel: ChannelId,
    pub conversation: ConversationId,
    pub agent: String,
    pub accepted_at: Timestamp,
    /// Whether it had a runner, so that the agent may have done something.
    pub started: bool,
    /// For people: which job, and what to do.
    pub message: String,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Ended as interrupted, with nobody left but the next person at the terminal to tell it to. Oldest first.
    pub interrupted: Vec<Interrupted>,
    /// Not started, and to be run by this process. Oldest first.
    pub accepted: Vec<Left>,
}

/// A job that waits to be run.
#[derive(Debug)]
pub struct Left {
    pub row: JobRow,
    /// Texts of later messages that were merged into it.
    pub parts: Vec<String>,
}

/// A job that waited so long for a process is not run any more: whoever asked does not expect it now.
const MAX_STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// Looks through the open jobs of the journal. What ran is interrupted; what waits in a chat is to be run, what waits at
/// a terminal is interrupted, since that has gone with its process. Jobs of chats that this process does not serve are
/// left to one that does. To be called before anything new is accepted.
///
/// # Errors
/// When the journal can't be read or written. What was ended until then stays ended.
pub async fn recover<J: Journal>(journal: &J, world: &World, debts: &Debts) -> journal::Result<Recovered> {
    let mut found = Recovered::default();
    journal.drop_stray_files().await?;
    for row in journal.open_jobs().await? {
        let now = world.now();
        let started = match row.state {
            JobState::Accepted => false,
            JobState::Running | JobState::Ended => true,
        };
        let is_stale = age(row.accepted_at, now) > MAX_STALE;
        match debts.teller(&row) {
            Teller::Elsewhere => {}
            Teller::Outbox(_) if !started && !is_stale => {
                // The time that nobody was there does not count.
                let allowed = row.deadline.map(|deadline| age(row.accepted_at, deadline)).unwrap_or_default();
                let allowed = jiff::SignedDuration::try_from(allowed.max(LEAST_DEADLINE)).unwrap_or_default();
                journal.extend(&row.job, now + allowed).await?;
                let parts = merged_into(journal, &row).await?;
                tracing::info!(job = %row.job, "a job that had not started is queued again");
                found.accepted.push(Left { row, parts });
            }
            Teller::Outbox(place) => {
                let outcome = if started { ending::interrupted(&row.job, true) } else { ending::stale(&row.job) };
                let report = report(&row, outcome, now);
                tracing::info!(job = %row.job, started, "a job was interrupted when janebot stopped");
                ending::record(journal, &report, Some(&place))
                    .await
                    .map_err(|message| JournalError::Failed { message })?;
            }
            Teller::Direct => {
                let outcome = ending::interrupted(&row.job, started);
                let report = report(&row, outcome, now);
                let receipt = report.receipt.as_ref();
                if journal.end(&row.job, &report.outcome, &report.timings, receipt, now).await? {
                    tracing::info!(job = %row.job, started, "a job was interrupted when janebot stopped");
                    found.interrupted.push(interrupted(row, started, now));
                }
            }
        }
    }
    Ok(found)
}

/// What a job gets at least when it is queued again.
const LEAST_DEADLINE: Duration = Duration::from_secs(60 * 60);

/// The report of a job whose process has gone.
pub(super) fn report(row: &JobRow, outcome: Outcome, now: Timestamp) -> JobReport {
    let total_ms = ending::millis(age(row.accepted_at, now));
    JobReport {
        job: row.job.clone(),
        outcome,
        agent: row.agent.clone(),
        timings: Timings { total_ms, ..Timings::default() },
        receipt: row.receipt.clone(),
        usage: None,
        files: Vec::new(),
        notes: Vec::new(),
        ended_at: now,
    }
}

/// Texts of the messages that were merged into this one, in their order.
pub(super) async fn merged_into<J: Journal>(journal: &J, lead: &JobRow) -> journal::Result<Vec<String>> {
    let rows = journal.conversation_jobs(&lead.conversation, 2 * MAX_OPEN_IN_CONVERSATION as u32).await?;
    let is_part = |row: &JobRow| matches!(&row.outcome, Some(Outcome::Merged { into, .. }) if *into == lead.job);
    Ok(rows.into_iter().rev().filter(is_part).map(|row| row.prompt).collect())
}

fn interrupted(row: JobRow, started: bool, now: Timestamp) -> Interrupted {
    let ago = humantime::format_duration(coarse(age(row.accepted_at, now)));
    let what = if started {
        "was interrupted when janebot stopped; what the agent had done outside of its machine stays"
    } else {
        "had not started when janebot stopped, and was dropped"
    };
    let quote = one_line(&row.prompt, MAX_QUOTE);
    let message = format!("Job {} of {ago} ago (“{quote}”) {what}. Send it again if you still want it.", row.job);
    Interrupted {
        job: row.job,
        requester: row.requester,
        channel: row.channel,
        conversation: row.conversation,
        agent: row.agent,
        accepted_at: row.accepted_at,
        started,
        message,
    }
}

/// Zero when the clock was set back.
fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// Seconds for the first minutes, then minutes, then hours, then days: as exact as anybody cares.
fn coarse(age: Duration) -> Duration {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = age.as_secs().max(1);
    let unit = match seconds {
        ..MINUTE => 1,
        MINUTE..HOUR => MINUTE,
        HOUR..DAY => HOUR,
        DAY.. => DAY,
    };
    Duration::from_secs(seconds - seconds % unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_one_unit() {
        for (seconds, told) in [(0, "1s"), (42, "42s"), (125, "2m"), (7300, "2h"), (200_000, "2days")] {
            assert_eq!(humantime::format_duration(coarse(Duration::from_secs(seconds))).to_string(), told);
        }
    }
}
