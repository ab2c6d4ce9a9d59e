//! What a new process does about the jobs that an earlier one left open.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::ending;
use crate::chat::text::one_line;
use crate::job::{ChannelId, ConversationId, JobId, Outcome, RequesterId, Timings};
use crate::journal::{self, JobRow, JobState, Journal};
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

/// Ends all open jobs of the journal as interrupted, oldest first. To be called before anything new is accepted.
///
/// # Errors
/// When the journal can't be read or written. What was ended until then stays ended.
pub async fn recover<J: Journal>(journal: &J, world: &World) -> journal::Result<Vec<Interrupted>> {
    let mut ended = Vec::new();
    for row in journal.open_jobs().await? {
        let now = world.now();
        let started = match row.state {
            JobState::Accepted => false,
            JobState::Running | JobState::Ended => true,
        };
        let outcome: Outcome = ending::interrupted(&row.job, started);
        let total_ms = ending::millis(age(row.accepted_at, now));
        let timings = Timings { total_ms, ..Timings::default() };
        if journal.end(&row.job, &outcome, &timings, row.receipt.as_ref(), now).await? {
            tracing::info!(job = %row.job, started, "a job was interrupted when janebot stopped");
            ended.push(interrupted(row, started, now));
        }
    }
    Ok(ended)
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
