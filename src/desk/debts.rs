//! Who is owed an outcome. Outlives the desk and its conversations, so that no message is forgotten with an actor.
//!
//! A message becomes a debt when it is handed in, and the debt is paid once: whoever pays takes it out of the book
//! first, so that of two who hold an outcome for one job only one tells it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::chat::{Inbound, Replies, Reply};
use crate::job::{ConversationId, JobId, JobReport};

/// Told outcomes that wait for the journal. More come together only when it is gone for good, and then a restart
/// calls these jobs interrupted.
const MAX_UNRECORDED: usize = 10_000;

/// The book of debts. Clones are the same book.
#[derive(Clone, Default)]
pub struct Debts(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    owed: BTreeMap<JobId, Debt>,
    /// Owed to the journal: outcomes that their users know and it does not. Without files.
    unrecorded: BTreeMap<JobId, JobReport>,
}

/// One message that has no outcome yet.
#[derive(Clone)]
pub struct Debt {
    pub conversation: ConversationId,
    /// The profile that was asked for or, once admitted, is used.
    pub agent: String,
    pub heard_at: Instant,
    replies: Arc<dyn Replies>,
}

impl Debts {
    /// Notes that `inbound` is owed an outcome as `job`.
    pub fn owe(&self, job: &JobId, inbound: &Inbound, heard_at: Instant) {
        let debt = Debt {
            conversation: inbound.conversation.clone(),
            agent: inbound.agent.clone().unwrap_or_default(),
            heard_at,
            replies: inbound.replies.clone(),
        };
        self.book().owed.insert(job.clone(), debt);
    }

    /// Notes the profile that the job was admitted with.
    pub fn admitted(&self, job: &JobId, agent: &str) {
        if let Some(debt) = self.book().owed.get_mut(job) {
            agent.clone_into(&mut debt.agent);
        }
    }

    /// Tells something on the way; nothing when the debt is paid, since nothing follows an outcome.
    pub fn tell(&self, job: &JobId, reply: Reply) {
        // The lock is not held while the adapter runs.
        if let Some(debt) = self.get(job) {
            debt.replies.reply(reply);
        }
    }

    /// Tells the outcome, unless somebody did before.
    pub fn pay(&self, report: JobReport) {
        let debt = self.book().owed.remove(&report.job);
        if let Some(debt) = debt {
            debt.replies.reply(Reply::Ended(Box::new(report)));
        }
    }

    /// Strikes out a debt that another job pays: the message had been heard before.
    pub fn strike_out(&self, job: &JobId, instead: Reply) {
        let debt = self.book().owed.remove(job);
        if let Some(debt) = debt {
            debt.replies.reply(instead);
        }
    }

    /// Strikes out a debt whose message came back to its sender.
    pub fn withdraw(&self, job: &JobId) {
        self.book().owed.remove(job);
    }

    pub fn get(&self, job: &JobId) -> Option<Debt> {
        self.book().owed.get(job).cloned()
    }

    /// All debts, oldest first.
    pub fn all(&self) -> Vec<(JobId, Debt)> {
        self.book().owed.iter().map(|(job, debt)| (job.clone(), debt.clone())).collect()
    }

    pub fn len(&self) -> usize {
        self.book().owed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.book().owed.is_empty()
    }

    /// Keeps an outcome for when the journal works again.
    pub fn keep_unrecorded(&self, report: &JobReport) {
        let mut book = self.book();
        if book.unrecorded.len() < MAX_UNRECORDED {
            let report = JobReport { files: Vec::new(), ..report.clone() };
            book.unrecorded.insert(report.job.clone(), report);
        }
    }

    /// The outcomes that the journal does not have, oldest first.
    pub fn unrecorded(&self) -> Vec<JobReport> {
        self.book().unrecorded.values().cloned().collect()
    }

    pub fn forget_unrecorded(&self, job: &JobId) {
        self.book().unrecorded.remove(job);
    }

    pub fn all_recorded(&self) -> bool {
        self.book().unrecorded.is_empty()
    }

    /// Nothing that runs under the lock can leave the book half-written, so a poisoned lock is as good as any.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
