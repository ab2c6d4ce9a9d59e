//! The story of one message, from what the journal has of it. Pure.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::outgoing::{Effect, Mark, OutgoingRow, OutgoingState};
use super::search::LeaseRow;
use super::{JobRow, JobState};
use crate::job::Outcome;
use crate::pool::receipt::Receipt;

/// What happened to a message, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Story<'a> {
    #[serde(flatten)]
    pub job: &'a JobRow,
    /// Every runner that had it; all but the last gave it back before the agent started.
    pub leases: &'a [LeaseRow],
    /// What was to be seen of it in its chat.
    pub effects: &'a [OutgoingRow],
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// When, if that is recorded.
    pub at: Option<Timestamp>,
    pub what: String,
}

impl<'a> Story<'a> {
    pub fn of(job: &'a JobRow, leases: &'a [LeaseRow], effects: &'a [OutgoingRow], now: Timestamp) -> Self {
        let mut events = Vec::new();
        let mut tell = |at: Option<Timestamp>, what: String| events.push(Event { at, what });
        tell(
            Some(job.accepted_at),
            format!(
                "heard from {} in {}: message {}, {} bytes for {}",
                job.requester,
                job.channel,
                job.message_key,
                job.prompt.len(),
                job.agent
            ),
        );
        let timings = job.timings.unwrap_or_default();
        if let Some(ms) = timings.queue_ms {
            tell(None, format!("waited {} for a runner", time(ms)));
        }
        for (n, lease) in leases.iter().enumerate() {
            let lent = format!("got the runner {} (lease {})", lease.runner, lease.fence);
            let is_last = n + 1 == leases.len();
            let gave_back = !is_last || job.state == JobState::Accepted;
            let end = if gave_back { ", which gave it back before the agent started" } else { "" };
            tell(Some(lease.leased_at), lent + end);
        }
        if let Some(receipt) = &job.receipt {
            tell(Some(receipt.verified_at), proof(receipt));
        }
        if let Some(ms) = timings.check_ms {
            tell(None, format!("the machine was checked in {}", time(ms)));
        }
        if let Some(ms) = timings.run_ms {
            tell(None, format!("the agent ran for {}", time(ms)));
        }
        if let Some(ms) = timings.collect_ms {
            tell(None, format!("its files were collected in {}", time(ms)));
        }
        tell(job.ended_at, end(job, leases, now));
        for effect in effects {
            tell(effect.done_at, sent(effect, now));
        }
        Self { job, leases, effects, events }
    }
}

fn end(job: &JobRow, leases: &[LeaseRow], now: Timestamp) -> String {
    let since = |at: Timestamp| time(u64::try_from(now.duration_since(at).as_millis()).unwrap_or_default());
    match (&job.outcome, job.state, &job.runner) {
        (Some(outcome), ..) => told(outcome),
        (None, JobState::Running, Some(runner)) => {
            format!("is on {runner} since {}", since(job.started_at.unwrap_or(job.accepted_at)))
        }
        (None, ..) if leases.is_empty() => format!("waits since {}", since(job.accepted_at)),
        (None, ..) => format!("waits for another runner; it was heard {} ago", since(job.accepted_at)),
    }
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered { answer } => format!("answered, with {} characters", answer.chars().count()),
        Outcome::Failed { reason, message } => format!("failed ({}): {message}", reason.code()),
        Outcome::Refused { reason, message } => format!("refused ({}): {message}", reason.code()),
        Outcome::Cancelled { message } => format!("cancelled: {message}"),
        Outcome::Merged { into, .. } => format!("became a part of job {into}, which has the answer"),
    }
}

/// How far one effect came.
fn sent(row: &OutgoingRow, now: Timestamp) -> String {
    let what = match &row.outgoing.effect {
        Effect::Post { text, .. } => format!("a message of {} characters", text.chars().count()),
        Effect::Progress { closing: true, .. } => "the last text of its progress".to_owned(),
        Effect::Progress { closing: false, .. } => "its progress".to_owned(),
        Effect::React { mark, shown, .. } => {
            let mark = match mark {
                Mark::Heard => "heard",
                Mark::Answered => "answered",
                Mark::Failed => "failed",
                Mark::Cancelled => "cancelled",
                Mark::Merged => "merged",
            };
            format!("the mark {mark:?} {}", if *shown { "on the message" } else { "taken off the message" })
        }
        Effect::Upload { name } => format!("the file {name}"),
    };
    let tries = match row.tried {
        0 | 1 => String::new(),
        tried => format!(", in {tried} tries"),
    };
    match row.state {
        OutgoingState::Sent => format!("sent: {what}{tries}"),
        OutgoingState::GivenUp => {
            format!("gave up sending {what}{tries}: {}", row.why.as_deref().unwrap_or("no reason was recorded"))
        }
        OutgoingState::Open => {
            let since = u64::try_from(now.duration_since(row.put_at).as_millis()).unwrap_or_default();
            format!("still to be sent since {}: {what}{tries}", time(since))
        }
    }
}

/// What the receipt says.
fn proof(receipt: &Receipt) -> String {
    let how = if receipt.restore_completed {
        format!("restored to checkpoint {}", receipt.checkpoint)
    } else {
        "untouched since it was verified last".to_owned()
    };
    let before = match (&receipt.previous_job, receipt.canary_gone) {
        (Some(job), Some(true)) => format!("; the canary of job {job} was looked for and is gone"),
        (Some(job), _) => format!("; job {job} was there before"),
        (None, Some(true)) => "; the mark left before the restore is gone".to_owned(),
        (None, _) => "; no job was there before".to_owned(),
    };
    let network = match &receipt.allowed_hosts[..] {
        [] => "no network".to_owned(),
        hosts => format!("network to {}", hosts.join(", ")),
    };
    let warnings = match &receipt.warnings[..] {
        [] => String::new(),
        warnings => format!("; but: {}", warnings.join("; ")),
    };
    format!("that machine had been proven clean: {how}{before}; {network}; isolation {}{warnings}", receipt.isolation)
}

fn time(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{ChannelId, ConversationId, FailReason, JobId, RequesterId, Timings};
    use crate::journal::outgoing::Outgoing;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    fn row() -> JobRow {
        JobRow {
            job: JobId::new("01job"),
            message_key: "slack:T1/C1/1.2".into(),
            requester: RequesterId::new("slack:U1"),
            channel: ChannelId::new("slack:C1"),
            conversation: ConversationId::new("slack:C1/1.2"),
            agent: "shell".into(),
            prompt: "echo".into(),
            files: Vec::new(),
            state: JobState::Accepted,
            runner: None,
            accepted_at: at(0),
            started_at: None,
            ended_at: None,
            deadline: None,
            outcome: None,
            timings: None,
            receipt: None,
        }
    }

    fn texts(row: &JobRow, leases: &[LeaseRow]) -> Vec<String> {
        Story::of(row, leases, &[], at(90)).events.into_iter().map(|event| event.what).collect()
    }

    #[test]
    fn a_waiting_message_says_since_when() {
        let heard = "heard from slack:U1 in slack:C1: message slack:T1/C1/1.2, 4 bytes for shell";
        assert_eq!(texts(&row(), &[]), [heard, "waits since 1m 30s"]);
    }

    #[test]
    fn a_message_that_ran_tells_its_way_and_its_end() {
        let outcome = Outcome::Failed { reason: FailReason::Timeout, message: "Too long.".into() };
        let timings = Timings { queue_ms: Some(3000), run_ms: Some(61_000), ..Timings::default() };
        let ended = JobRow {
            state: JobState::Ended,
            runner: Some("r1".into()),
            ended_at: Some(at(70)),
            outcome: Some(outcome),
            timings: Some(timings),
            ..row()
        };
        let lease = |runner: &str, fence| LeaseRow { runner: runner.into(), fence, leased_at: at(3) };
        let told = texts(&ended, &[lease("r0", 7), lease("r1", 2)]);
        assert_eq!(
            told[1..],
            [
                "waited 3s for a runner",
                "got the runner r0 (lease 7), which gave it back before the agent started",
                "got the runner r1 (lease 2)",
                "the agent ran for 1m 1s",
                "failed (timeout): Too long.",
            ]
        );
    }
    #[test]
    fn each_send_is_told_with_its_tries_and_its_end() {
        let row_of = |effect, state, tried, why: Option<&str>| OutgoingRow {
            seq: 1,
            outgoing: Outgoing {
                key: "01job/x".into(),
                job: JobId::new("01job"),
                conversation: ConversationId::new("slack:C1/1.2"),
                effect,
            },
            state,
            tried,
            message: None,
            why: why.map(str::to_owned),
            put_at: at(80),
            done_at: None,
        };
        let effects = [
            row_of(Effect::Post { text: "four".into(), buttons: Vec::new() }, OutgoingState::Sent, 1, None),
            row_of(Effect::Upload { name: "a.txt".into() }, OutgoingState::GivenUp, 3, Some("too large")),
            row_of(
                Effect::React { message: "m".into(), mark: Mark::Answered, shown: true },
                OutgoingState::Open,
                0,
                None,
            ),
        ];
        let (job, now) = (row(), at(90));
        let told = Story::of(&job, &[], &effects, now).events;
        let told: Vec<_> = told.iter().skip(2).map(|event| event.what.as_str()).collect();
        assert_eq!(
            told,
            [
                "sent: a message of 4 characters",
                "gave up sending the file a.txt, in 3 tries: too large",
                "still to be sent since 10s: the mark \"answered\" on the message",
            ]
        );
    }
}
