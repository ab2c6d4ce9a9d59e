//! The outbox's statements.

use bytes::Bytes;
use jiff::Timestamp;

use super::{SqliteJournal, row};
use crate::job::{ConversationId, JobId};
use crate::journal::outgoing::{Delivery, Effect, Outgoing, OutgoingRow, OutgoingState};
use crate::journal::refusal::{self, refused};
use crate::journal::{JournalError, Result};

/// Effects as the triggers take them; nothing for none, so that a job without a chat costs nothing.
pub(super) fn several(effects: &[Outgoing]) -> std::result::Result<Option<String>, JournalError> {
    if effects.is_empty() { Ok(None) } else { row::json(&effects).map(Some) }
}

impl SqliteJournal {
    pub(super) async fn put_effects(&self, effects: &[Outgoing], at: Timestamp) -> Result<()> {
        let Some(effects) = several(effects)? else { return Ok(()) };
        let insert = sqlx::query("INSERT INTO outgoing_put (effects, at) VALUES (?, ?)");
        self.write(insert.bind(effects).bind(at.to_string())).await.map(|_| ())
    }

    pub(super) async fn note_try(&self, key: &str) -> Result<()> {
        let update = sqlx::query("UPDATE outgoing SET tried = tried + 1 WHERE key = ?");
        known(self.write(update.bind(key)).await?, key)
    }

    pub(super) async fn note_delivery(
        &self,
        key: &str,
        effect: &Effect,
        delivery: &Delivery,
        at: Timestamp,
    ) -> Result<()> {
        let (state, message, why) = match delivery {
            Delivery::Sent { message } => (OutgoingState::Sent, message.as_deref(), None),
            Delivery::GivenUp { why } => (OutgoingState::GivenUp, None, Some(why.as_str())),
        };
        // Only a row that is still open, and is still what was sent, ends with this.
        let update = sqlx::query(
            "UPDATE outgoing SET message = coalesce(?1, message),
                 why = CASE WHEN state = 'open' AND replaceable = ?2 THEN ?3 ELSE why END,
                 done_at = CASE WHEN state = 'open' AND replaceable = ?2 THEN ?4 ELSE done_at END,
                 state = CASE WHEN state = 'open' AND replaceable = ?2 THEN ?5 ELSE state END
             WHERE key = ?6",
        );
        let update = update.bind(message).bind(effect.is_replaceable()).bind(why).bind(at.to_string());
        known(self.write(update.bind(state.word()).bind(key)).await?, key)
    }

    pub(super) async fn read_open_effects(&self, conversation: Option<&ConversationId>) -> Result<Vec<OutgoingRow>> {
        let rows = match conversation {
            Some(id) => {
                let of_one = "SELECT * FROM outgoing
                              WHERE state = 'open' AND NOT replaceable AND conversation = ? ORDER BY seq";
                self.rows(sqlx::query(of_one).bind(id.as_str())).await?
            }
            None => {
                let all = "SELECT * FROM outgoing WHERE state = 'open' AND NOT replaceable ORDER BY seq";
                self.rows(sqlx::query(all)).await?
            }
        };
        rows.iter().map(|row| row::outgoing(row).map_err(|message| self.corrupt(message))).collect()
    }

    pub(super) async fn read_effect(&self, key: &str) -> Result<Option<OutgoingRow>> {
        let row = self.row(sqlx::query("SELECT * FROM outgoing WHERE key = ?").bind(key)).await?;
        row.map(|row| row::outgoing(&row).map_err(|message| self.corrupt(message))).transpose()
    }

    pub(super) async fn read_job_effects(&self, job: &JobId) -> Result<Vec<OutgoingRow>> {
        let of_job = sqlx::query("SELECT * FROM outgoing WHERE job = ? ORDER BY seq");
        let rows = self.rows(of_job.bind(job.as_str())).await?;
        rows.iter().map(|row| row::outgoing(row).map_err(|message| self.corrupt(message))).collect()
    }

    pub(super) async fn write_file(&self, key: &str, bytes: &Bytes) -> Result<()> {
        let insert = sqlx::query("INSERT OR REPLACE INTO outgoing_file (key, bytes) VALUES (?, ?)");
        self.write(insert.bind(key).bind(&bytes[..])).await.map(|_| ())
    }

    pub(super) async fn read_file(&self, key: &str) -> Result<Option<Bytes>> {
        let row = self.row(sqlx::query("SELECT bytes FROM outgoing_file WHERE key = ?").bind(key)).await?;
        row.map(|row| row::blob(&row, "bytes").map_err(|message| self.corrupt(message))).transpose()
    }

    pub(super) async fn delete_stray_files(&self) -> Result<()> {
        let delete = "DELETE FROM outgoing_file
                      WHERE key NOT IN (SELECT key FROM outgoing WHERE state = 'open')";
        self.write(sqlx::query(delete)).await.map(|_| ())
    }
}

fn known(rows: u64, key: &str) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(refused(refusal::NO_SUCH_EFFECT, &format!("effect {key}"))) }
}
