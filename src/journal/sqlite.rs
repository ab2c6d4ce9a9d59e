//! The journal in one SQLite file: what the service uses.
//!
//! One connection, used by one call at a time, on a thread of sqlx's own. Every write is a single statement that commits
//! by itself, so a caller who is dropped half-way, a full disk or a killed process leaves all of it or nothing. The
//! process that has the journal open holds a lock beside it (`open`); a second one is told who that is.

mod open;
mod outbox;
mod row;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use tokio::sync::{Mutex, MutexGuard};

use super::outgoing::{Delivery, Effect, Outgoing, OutgoingRow};
use super::refusal::{self, refused};
use super::search::{LeaseRow, Progress, Wanted, Which};
use super::usage::{Together, Used};
use super::{Accepted, JobRow, Journal, JournalError, Result, RunnerRow};
use crate::job::{ConversationId, JobId, Outcome, RequesterId, Timings};
use crate::pool::receipt::Receipt;

/// A handle to the journal file; clones share it. The file is free for others when the last clone is gone.
#[derive(Clone)]
pub struct SqliteJournal(Arc<Inner>);

struct Inner {
    path: PathBuf,
    connection: Mutex<SqliteConnection>,
    /// Held as long as the connection; declared after it, so that it is released after it. A reader has none.
    _lock: Option<open::Lock>,
}

impl std::fmt::Debug for SqliteJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteJournal").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl SqliteJournal {
    /// Opens the journal at `path`, or makes an empty one there, with its folder.
    ///
    /// # Errors
    /// [`JournalError::InUse`], [`JournalError::Newer`], [`JournalError::Corrupt`] or [`JournalError::Open`]; what was
    /// at `path` before is then still there, unchanged.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let (path, connection, lock) = open::open(path.as_ref()).await?;
        Ok(Self(Arc::new(Inner { path, connection: Mutex::new(connection), _lock: Some(lock) })))
    }

    /// Opens the journal at `path` for looking only, as it is at each call, while a service may be writing it. Writes
    /// fail.
    ///
    /// # Errors
    /// As [`SqliteJournal::open`], but never [`JournalError::InUse`]; a file that is not there is not made.
    pub async fn open_to_read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let connection = open::open_to_read(&path).await?;
        Ok(Self(Arc::new(Inner { path, connection: Mutex::new(connection), _lock: None })))
    }

    async fn connection(&self) -> MutexGuard<'_, SqliteConnection> {
        self.0.connection.lock().await
    }

    /// Runs one write; gives the number of rows it changed.
    async fn write(&self, query: Query<'_, Sqlite, SqliteArguments>) -> Result<u64> {
        let done = query.execute(&mut *self.connection().await).await;
        Ok(done.map_err(|error| self.failed(error))?.rows_affected())
    }

    async fn row(&self, query: Query<'_, Sqlite, SqliteArguments>) -> Result<Option<SqliteRow>> {
        query.fetch_optional(&mut *self.connection().await).await.map_err(|error| self.failed(error))
    }

    async fn rows(&self, query: Query<'_, Sqlite, SqliteArguments>) -> Result<Vec<SqliteRow>> {
        query.fetch_all(&mut *self.connection().await).await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: sqlx::Error) -> JournalError {
        match open::damage(&error) {
            Some(message) => self.corrupt(message),
            None => JournalError::Failed { message: open::explain(&error) },
        }
    }

    fn corrupt(&self, message: String) -> JournalError {
        JournalError::Corrupt { path: self.0.path.display().to_string(), message }
    }

    fn job_row(&self, row: &SqliteRow) -> Result<JobRow> {
        row::job(row).map_err(|message| self.corrupt(message))
    }

    async fn has_job(&self, job: &JobId) -> Result<bool> {
        Ok(self.row(sqlx::query("SELECT 1 FROM job WHERE id = ?").bind(job.as_str())).await?.is_some())
    }
}

/// A time that sorts as text: always with the same number of digits.
fn sortable(at: &Timestamp) -> String {
    format!("{at:.9}")
}

impl Journal for SqliteJournal {
    async fn deployment_id(&self) -> Result<String> {
        let row = self.row(sqlx::query("SELECT id FROM deployment")).await?;
        let row = row.ok_or_else(|| self.corrupt("the deployment's identity is missing".into()))?;
        row::text(&row, "id").map_err(|message| self.corrupt(message))
    }

    async fn accept_with(&self, row: &JobRow, effects: &[Outgoing]) -> Result<Accepted> {
        let what = format!("job {}", row.job);
        if !row.is_new() {
            return Err(refused(refusal::NOT_NEW, &what));
        }
        let insert = sqlx::query(
            "INSERT INTO job (id, message_key, requester, channel, conversation, agent, prompt, state, accepted_at,
                              deadline, ended_at, outcome, timings, effects, files)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(row.job.as_str())
        .bind(&row.message_key)
        .bind(row.requester.as_str())
        .bind(row.channel.as_str())
        .bind(row.conversation.as_str())
        .bind(&row.agent)
        .bind(&row.prompt)
        .bind(row.state.word())
        .bind(row.accepted_at.to_string())
        .bind(row.deadline.as_ref().map(sortable))
        .bind(row.ended_at.map(|at| at.to_string()))
        .bind(row.outcome.as_ref().map(row::json).transpose()?)
        .bind(row.timings.as_ref().map(row::json).transpose()?)
        .bind(outbox::several(effects)?)
        .bind((!row.files.is_empty()).then(|| row::json(&row.files)).transpose()?);
        if self.write(insert).await? == 1 {
            return Ok(Accepted::New);
        }
        // Jobs are never deleted, so whoever was in the way is still there.
        match self.row(sqlx::query("SELECT id FROM job WHERE message_key = ?").bind(&row.message_key)).await? {
            Some(row) => {
                Ok(Accepted::Known(JobId::new(row::text(&row, "id").map_err(|message| self.corrupt(message))?)))
            }
            None => Err(refused(refusal::JOB_KNOWN, &what)),
        }
    }

    async fn revise(&self, job: &JobId, prompt: &str) -> Result<bool> {
        let update = sqlx::query("UPDATE job SET prompt = ? WHERE id = ? AND state = 'accepted'");
        if self.write(update.bind(prompt).bind(job.as_str())).await? == 1 {
            return Ok(true);
        }
        if self.has_job(job).await? { Ok(false) } else { Err(refused(refusal::NO_SUCH_JOB, &format!("job {job}"))) }
    }

    async fn extend(&self, job: &JobId, deadline: Timestamp) -> Result<()> {
        let update = sqlx::query("UPDATE job SET deadline = ? WHERE id = ? AND state <> 'ended'");
        if self.write(update.bind(sortable(&deadline)).bind(job.as_str())).await? == 1 || self.has_job(job).await? {
            return Ok(());
        }
        Err(refused(refusal::NO_SUCH_JOB, &format!("job {job}")))
    }

    async fn lease(&self, job: &JobId, runner: &str, fence: u64, canary: &str, at: Timestamp) -> Result<()> {
        let what = format!("lease {fence} of {runner} for job {job}");
        let fence = i64::try_from(fence).map_err(|_| refused(refusal::FENCE_TOO_LARGE, &what))?;
        let insert = sqlx::query("INSERT INTO lease (runner, fence, job, canary, leased_at) VALUES (?, ?, ?, ?, ?)")
            .bind(runner)
            .bind(fence)
            .bind(job.as_str())
            .bind(canary)
            .bind(at.to_string());
        let done = insert.execute(&mut *self.connection().await).await;
        done.map(|_| ()).map_err(|error| match open::refusal_of_trigger(&error) {
            Some(why) => refused(&why, &what),
            None => self.failed(error),
        })
    }

    async fn unlease(&self, job: &JobId) -> Result<()> {
        let update = sqlx::query(
            "UPDATE job SET state = 'accepted', runner = NULL, started_at = NULL WHERE id = ? AND state = 'running'",
        );
        if self.write(update.bind(job.as_str())).await? == 1 || self.has_job(job).await? {
            return Ok(());
        }
        Err(refused(refusal::NO_SUCH_JOB, &format!("job {job}")))
    }

    async fn end_with(
        &self,
        job: &JobId,
        outcome: &Outcome,
        timings: &Timings,
        receipt: Option<&Receipt>,
        at: Timestamp,
        effects: &[Outgoing],
    ) -> Result<bool> {
        let update = sqlx::query(
            "UPDATE job SET state = 'ended', outcome = ?, timings = ?, receipt = ?, ended_at = ?, effects = ?
             WHERE id = ? AND state <> 'ended'",
        )
        .bind(row::json(outcome)?)
        .bind(row::json(timings)?)
        .bind(receipt.map(row::json).transpose()?)
        .bind(at.to_string())
        .bind(outbox::several(effects)?)
        .bind(job.as_str());
        if self.write(update).await? == 1 {
            return Ok(true);
        }
        if self.has_job(job).await? { Ok(false) } else { Err(refused(refusal::NO_SUCH_JOB, &format!("job {job}"))) }
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobRow>> {
        let row = self.row(sqlx::query("SELECT * FROM job WHERE id = ?").bind(job.as_str())).await?;
        row.map(|row| self.job_row(&row)).transpose()
    }

    async fn open_jobs(&self) -> Result<Vec<JobRow>> {
        let rows = self.rows(sqlx::query("SELECT * FROM job WHERE state <> 'ended' ORDER BY seq")).await?;
        rows.iter().map(|row| self.job_row(row)).collect()
    }

    async fn overdue_jobs(&self, now: Timestamp) -> Result<Vec<JobRow>> {
        let overdue = sqlx::query("SELECT * FROM job WHERE state <> 'ended' AND deadline < ? ORDER BY seq");
        let rows = self.rows(overdue.bind(sortable(&now))).await?;
        rows.iter().map(|row| self.job_row(row)).collect()
    }

    async fn recent_jobs(&self, limit: u32) -> Result<Vec<JobRow>> {
        let rows = self.rows(sqlx::query("SELECT * FROM job ORDER BY seq DESC LIMIT ?").bind(limit)).await?;
        rows.iter().map(|row| self.job_row(row)).collect()
    }

    async fn conversation_jobs(&self, conversation: &ConversationId, limit: u32) -> Result<Vec<JobRow>> {
        let jobs = sqlx::query("SELECT * FROM job WHERE conversation = ? ORDER BY seq DESC LIMIT ?");
        let rows = self.rows(jobs.bind(conversation.as_str()).bind(limit)).await?;
        rows.iter().map(|row| self.job_row(row)).collect()
    }

    async fn find_jobs(&self, wanted: &Wanted) -> Result<Vec<JobRow>> {
        let (start, end) = match &wanted.which {
            Which::Any => (None, None),
            Which::IdStart(start) => (Some(start), None),
            Which::KeyEnd(end) => (None, Some(end)),
        };
        let (state, outcome) = match wanted.progress {
            None => (None, None),
            Some(Progress::State(state)) => (Some(state.word()), None),
            Some(Progress::Outcome(word)) => (None, Some(word)),
        };
        // Times have fractions or not, so only their common part can be compared as text.
        let since = wanted.since.and_then(|since| Timestamp::from_second(since.as_second()).ok());
        let since = since.map(|since| since.to_string().trim_end_matches('Z').to_owned());
        let jobs = sqlx::query(
            "SELECT * FROM job
             WHERE (?1 IS NULL OR substr(id, 1, length(?1)) = ?1)
               AND (?2 IS NULL OR substr(message_key, -length(?2)) = ?2)
               AND (?3 IS NULL OR state = ?3)
               AND (?4 IS NULL OR outcome ->> '$.outcome' = ?4)
               AND (?5 IS NULL OR requester = ?5 OR substr(requester, instr(requester, ':') + 1) = ?5)
               AND (?6 IS NULL OR accepted_at >= ?6)
             ORDER BY seq DESC LIMIT ?7",
        );
        let jobs = jobs.bind(start).bind(end).bind(state).bind(outcome);
        let rows = self.rows(jobs.bind(wanted.requester.as_deref()).bind(since).bind(wanted.limit)).await?;
        rows.iter().map(|row| self.job_row(row)).collect()
    }

    async fn leases(&self, job: &JobId) -> Result<Vec<LeaseRow>> {
        let leases = sqlx::query("SELECT runner, fence, leased_at FROM lease WHERE job = ? ORDER BY leased_at, fence");
        let rows = self.rows(leases.bind(job.as_str())).await?;
        rows.iter().map(|row| row::lease(row).map_err(|message| self.corrupt(message))).collect()
    }

    async fn put(&self, effects: &[Outgoing], at: Timestamp) -> Result<()> {
        self.put_effects(effects, at).await
    }

    async fn trying(&self, key: &str) -> Result<()> {
        self.note_try(key).await
    }

    async fn delivered(&self, key: &str, effect: &Effect, delivery: &Delivery, at: Timestamp) -> Result<()> {
        self.note_delivery(key, effect, delivery, at).await
    }

    async fn open_effects(&self, conversation: Option<&ConversationId>) -> Result<Vec<OutgoingRow>> {
        self.read_open_effects(conversation).await
    }

    async fn effect(&self, key: &str) -> Result<Option<OutgoingRow>> {
        self.read_effect(key).await
    }

    async fn job_effects(&self, job: &JobId) -> Result<Vec<OutgoingRow>> {
        self.read_job_effects(job).await
    }

    async fn keep_file(&self, key: &str, bytes: &Bytes) -> Result<()> {
        self.write_file(key, bytes).await
    }

    async fn file(&self, key: &str) -> Result<Option<Bytes>> {
        self.read_file(key).await
    }

    async fn drop_stray_files(&self) -> Result<()> {
        self.delete_stray_files().await
    }

    async fn kept(&self, name: &str) -> Result<Option<String>> {
        let row = self.row(sqlx::query("SELECT value FROM kept WHERE name = ?").bind(name)).await?;
        row.map(|row| row::text(&row, "value").map_err(|message| self.corrupt(message))).transpose()
    }

    async fn keep(&self, name: &str, value: Option<&str>) -> Result<()> {
        let change = match value {
            Some(value) => {
                let put =
                    "INSERT INTO kept (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value";
                sqlx::query(put).bind(name).bind(value)
            }
            None => sqlx::query("DELETE FROM kept WHERE name = ?").bind(name),
        };
        self.write(change).await.map(|_| ())
    }

    async fn runner(&self, runner: &str) -> Result<Option<RunnerRow>> {
        let row = self.row(sqlx::query("SELECT * FROM runner WHERE name = ? AND NOT forgotten").bind(runner)).await?;
        row.map(|row| row::runner(&row).map_err(|message| self.corrupt(message))).transpose()
    }

    async fn built(&self, row: &RunnerRow) -> Result<()> {
        let fence = i64::try_from(row.fence)
            .map_err(|_| refused(refusal::FENCE_TOO_LARGE, &format!("runner {}", row.runner)))?;
        let upsert = sqlx::query(
            "INSERT INTO runner (name, sprite_id, checkpoint, fingerprint, dirty, last_job, canary, boot, fence)
             VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?)
             ON CONFLICT (name) DO UPDATE SET forgotten = 0, sprite_id = excluded.sprite_id,
                 checkpoint = excluded.checkpoint, fingerprint = excluded.fingerprint, dirty = 1,
                 last_job = excluded.last_job, canary = excluded.canary, boot = excluded.boot,
                 fence = max(fence, excluded.fence)",
        )
        .bind(&row.runner)
        .bind(&row.sprite_id)
        .bind(row.checkpoint.as_str())
        .bind(&row.fingerprint)
        .bind(row.last_job.as_ref().map(JobId::as_str))
        .bind(row.canary.as_deref())
        .bind(&row.boot)
        .bind(fence);
        self.write(upsert).await.map(|_| ())
    }

    async fn clean(&self, runner: &str, receipt: &Receipt) -> Result<()> {
        let update = sqlx::query(
            "UPDATE runner SET dirty = 0, boot = ?
             WHERE name = ? AND NOT forgotten AND sprite_id = ? AND checkpoint = ?",
        )
        .bind(&receipt.boot)
        .bind(runner)
        .bind(&receipt.sprite_id)
        .bind(receipt.checkpoint.as_str());
        if self.write(update).await? == 1 {
            return Ok(());
        }
        let why = if self.runner(runner).await?.is_some() { refusal::OTHER_SPRITE } else { refusal::NO_SUCH_RUNNER };
        Err(refused(why, &format!("runner {runner}")))
    }

    async fn forget_runner(&self, runner: &str) -> Result<()> {
        self.write(sqlx::query("UPDATE runner SET forgotten = 1 WHERE name = ?").bind(runner)).await.map(|_| ())
    }

    async fn quarantine(&self, runner: &str, evidence: &str, at: Timestamp) -> Result<()> {
        let insert = sqlx::query("INSERT INTO quarantine (runner, evidence, at) VALUES (?, ?, ?)");
        self.write(insert.bind(runner).bind(evidence).bind(at.to_string())).await.map(|_| ())
    }

    async fn quarantines(&self, limit: u32) -> Result<Vec<(String, String, Timestamp)>> {
        let query = sqlx::query("SELECT runner, evidence, at FROM quarantine ORDER BY seq DESC LIMIT ?").bind(limit);
        let rows = self.rows(query).await?;
        rows.iter().map(|row| row::quarantine(row).map_err(|message| self.corrupt(message))).collect()
    }

    async fn record_usage(&self, job: &JobId, used: &Used) -> Result<()> {
        self.write(usage::record(job, used)).await.map(|_| ())
    }

    async fn usage(&self, job: &JobId) -> Result<Option<Used>> {
        let rows = self.rows(usage::of_job(job)).await?;
        rows.first().map(|row| usage::read(row).map_err(|error| self.corrupt(error.to_string()))).transpose()
    }

    async fn used_since(&self, requester: &RequesterId, since: Timestamp) -> Result<Together> {
        let rows = self.rows(usage::since(requester, since)).await?;
        let together =
            rows.first().map(usage::together).transpose().map_err(|error| self.corrupt(error.to_string()))?;
        Ok(together.unwrap_or_default())
    }
}
