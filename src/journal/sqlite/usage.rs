//! The statements about usage. Numbers that a column can't hold are recorded as the largest that it can.

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};

use super::super::usage::{CountedBy, Together, Used};
use crate::agent::Usage;
use crate::job::{JobId, RequesterId};

fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn record(job: &JobId, used: &Used) -> Query<'static, Sqlite, SqliteArguments> {
    let Used { usage, counted_by } = used;
    sqlx::query(
        "INSERT OR REPLACE INTO usage
             (job, turns, input_tokens, cached_input_tokens, output_tokens, cost_usd, counted_by)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(job.as_str().to_owned())
    .bind(column(usage.turns))
    .bind(column(usage.input_tokens))
    .bind(column(usage.cached_input_tokens))
    .bind(column(usage.output_tokens))
    .bind(usage.cost_usd)
    .bind(counted_by.word())
}

pub(super) fn of_job(job: &JobId) -> Query<'static, Sqlite, SqliteArguments> {
    sqlx::query("SELECT * FROM usage WHERE job = ?").bind(job.as_str().to_owned())
}

pub(super) fn read(row: &SqliteRow) -> sqlx::Result<Used> {
    let number = |name| row.try_get::<i64, _>(name).map(|number| u64::try_from(number).unwrap_or(0));
    let usage = Usage {
        turns: number("turns")?,
        input_tokens: number("input_tokens")?,
        cached_input_tokens: number("cached_input_tokens")?,
        output_tokens: number("output_tokens")?,
        cost_usd: row.try_get("cost_usd")?,
    };
    let counted_by = match row.try_get::<String, _>("counted_by")?.as_str() {
        "vault" => CountedBy::Vault,
        _ => CountedBy::Agent,
    };
    Ok(Used { usage, counted_by })
}

pub(super) fn since(requester: &RequesterId, since: Timestamp) -> Query<'static, Sqlite, SqliteArguments> {
    // Floats, since a sum of integers that overflows is an error in SQLite.
    sqlx::query(
        "SELECT count(*) AS jobs, total(usage.input_tokens) + total(usage.output_tokens) AS tokens
         FROM job LEFT JOIN usage ON usage.job = job.id
         WHERE job.requester = ? AND job.started_at >= ?",
    )
    .bind(requester.as_str().to_owned())
    .bind(super::sortable(&since))
}

pub(super) fn together(row: &SqliteRow) -> sqlx::Result<Together> {
    let (jobs, tokens) = (row.try_get::<i64, _>("jobs")?, row.try_get::<f64, _>("tokens")?);
    Ok(Together { jobs: u64::try_from(jobs).unwrap_or(0), tokens: tokens.max(0.0) as u64 })
}
