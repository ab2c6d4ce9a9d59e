//! Rows of the tables as the journal's types. A value that can't be read names its column, and the job it belongs to.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::job::{ChannelId, ConversationId, JobId, RequesterId};
use crate::journal::outgoing::{Outgoing, OutgoingRow, OutgoingState};
use crate::journal::search::LeaseRow;
use crate::journal::{JobRow, JobState, JournalError, RunnerRow};
use crate::sprites::CheckpointId;

/// What is wrong with a row, for [`JournalError::Corrupt`].
type Result<T> = std::result::Result<T, String>;

pub(super) fn job(row: &SqliteRow) -> Result<JobRow> {
    let id = text(row, "id")?;
    let read = || -> Result<JobRow> {
        Ok(JobRow {
            job: JobId::new(&id),
            message_key: text(row, "message_key")?,
            requester: RequesterId::new(text(row, "requester")?),
            channel: ChannelId::new(text(row, "channel")?),
            conversation: ConversationId::new(text(row, "conversation")?),
            agent: text(row, "agent")?,
            prompt: text(row, "prompt")?,
            files: from_json(row, "files")?.unwrap_or_default(),
            state: state(&text(row, "state")?)?,
            runner: optional(row, "runner")?,
            accepted_at: time("accepted_at", &text(row, "accepted_at")?)?,
            deadline: optional(row, "deadline")?.map(|at| time("deadline", &at)).transpose()?,
            started_at: optional(row, "started_at")?.map(|at| time("started_at", &at)).transpose()?,
            ended_at: optional(row, "ended_at")?.map(|at| time("ended_at", &at)).transpose()?,
            outcome: from_json(row, "outcome")?,
            timings: from_json(row, "timings")?,
            receipt: from_json(row, "receipt")?,
        })
    };
    read().map_err(|message| format!("job {id}: {message}"))
}

pub(super) fn runner(row: &SqliteRow) -> Result<RunnerRow> {
    let fence: i64 = row.try_get("fence").map_err(|_| unreadable("fence"))?;
    Ok(RunnerRow {
        runner: text(row, "name")?,
        sprite_id: text(row, "sprite_id")?,
        checkpoint: CheckpointId::new(&text(row, "checkpoint")?).ok_or_else(|| unreadable("checkpoint"))?,
        fingerprint: text(row, "fingerprint")?,
        dirty: row.try_get("dirty").map_err(|_| unreadable("dirty"))?,
        last_job: optional(row, "last_job")?.map(JobId::new),
        canary: optional(row, "canary")?,
        boot: text(row, "boot")?,
        fence: u64::try_from(fence).map_err(|_| unreadable("fence"))?,
    })
}

pub(super) fn outgoing(row: &SqliteRow) -> Result<OutgoingRow> {
    let key = text(row, "key")?;
    let number = |column: &str| row.try_get::<i64, _>(column).map_err(|_| unreadable(column));
    let read = || -> Result<OutgoingRow> {
        Ok(OutgoingRow {
            seq: u64::try_from(number("seq")?).map_err(|_| unreadable("seq"))?,
            outgoing: Outgoing {
                key: key.clone(),
                job: JobId::new(text(row, "job")?),
                conversation: ConversationId::new(text(row, "conversation")?),
                effect: from_json(row, "effect")?.ok_or_else(|| unreadable("effect"))?,
            },
            state: outgoing_state(&text(row, "state")?)?,
            tried: u32::try_from(number("tried")?).map_err(|_| unreadable("tried"))?,
            message: optional(row, "message")?,
            why: optional(row, "why")?,
            put_at: time("put_at", &text(row, "put_at")?)?,
            done_at: optional(row, "done_at")?.map(|at| time("done_at", &at)).transpose()?,
        })
    };
    read().map_err(|message| format!("effect {key}: {message}"))
}

fn outgoing_state(word: &str) -> Result<OutgoingState> {
    let all = [OutgoingState::Open, OutgoingState::Sent, OutgoingState::GivenUp];
    all.into_iter().find(|state| state.word() == word).ok_or_else(|| unreadable("state"))
}

pub(super) fn blob(row: &SqliteRow, column: &str) -> Result<Bytes> {
    row.try_get::<Vec<u8>, _>(column).map(Bytes::from).map_err(|_| unreadable(column))
}

pub(super) fn quarantine(row: &SqliteRow) -> Result<(String, String, Timestamp)> {
    Ok((text(row, "runner")?, text(row, "evidence")?, time("at", &text(row, "at")?)?))
}

pub(super) fn lease(row: &SqliteRow) -> Result<LeaseRow> {
    let fence: i64 = row.try_get("fence").map_err(|_| unreadable("fence"))?;
    Ok(LeaseRow {
        runner: text(row, "runner")?,
        fence: u64::try_from(fence).map_err(|_| unreadable("fence"))?,
        leased_at: time("leased_at", &text(row, "leased_at")?)?,
    })
}

pub(super) fn text(row: &SqliteRow, column: &str) -> Result<String> {
    row.try_get(column).map_err(|_| unreadable(column))
}

fn optional(row: &SqliteRow, column: &str) -> Result<Option<String>> {
    row.try_get(column).map_err(|_| unreadable(column))
}

fn time(column: &str, text: &str) -> Result<Timestamp> {
    text.parse().map_err(|_| unreadable(column))
}

fn from_json<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<Option<T>> {
    optional(row, column)?.map(|json| serde_json::from_str(&json).map_err(|_| unreadable(column))).transpose()
}

pub(super) fn json<T: Serialize>(value: &T) -> std::result::Result<String, JournalError> {
    serde_json::to_string(value).map_err(|error| JournalError::Failed { message: error.to_string() })
}

fn state(word: &str) -> Result<JobState> {
    let all = [JobState::Accepted, JobState::Running, JobState::Ended];
    all.into_iter().find(|state| state.word() == word).ok_or_else(|| unreadable("state"))
}

/// The value itself stays out: it may be part of a prompt.
fn unreadable(column: &str) -> String {
    format!("the column `{column}` can't be read")
}
