//! Who is owed an outcome. Outlives the desk and its conversations, so that no message is forgotten with an actor.
//!
//! A message becomes a debt when it is handed in, and the debt is paid once: whoever pays takes it out of the book
//! first, so that of two who hold an outcome for one job only one tells it. Where the outbox writes to the chat, the
//! telling is in the journal with the outcome, and paying means to say so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::admission::is_terminal;
use super::visible::Place;
use crate::chat::outbox::OutboxHandle;
use crate::chat::{Inbound, Replies, Reply, words};
use crate::job::{ConversationId, JobId, JobReport, RequesterId};
use crate::journal::JobRow;

/// Told outcomes that wait for the journal. More come together only when it is gone for good, and then a restart
/// calls these jobs interrupted.
const MAX_UNRECORDED: usize = 10_000;

/// The book of debts. Clones are the same book.
#[derive(Clone, Default)]
pub struct Debts {
    book: Arc<Mutex<Book>>,
    outbox: Option<OutboxHandle>,
}

#[derive(Default)]
struct Book {
    owed: BTreeMap<JobId, Debt>,
    /// Owed to the journal: outcomes that their users know and it does not. Without files.
    unrecorded: BTreeMap<JobId, Unrecorded>,
}

/// An outcome that the journal did not take yet.
#[derive(Clone)]
pub struct Unrecorded {
    pub report: JobReport,
    /// Where it is to be seen once it is recorded.
    pub place: Option<Place>,
}

/// Who brings a job's outcome to whoever asked.
#[derive(Clone, Debug)]
pub enum Teller {
    /// The process that heard the message, as long as it lives.
    Direct,
    /// The outbox of this process.
    Outbox(Place),
    /// A process that serves another chat with this journal.
    Elsewhere,
}

/// One message that has no outcome yet.
#[derive(Clone)]
pub struct Debt {
    /// The message's identity.
    pub key: String,
    pub requester: RequesterId,
    pub conversation: ConversationId,
    /// The profile that was asked for or, once admitted, is used.
    pub agent: String,
    pub heard_at: Instant,
    replies: Option<Arc<dyn Replies>>,
}

impl Debts {
    /// An empty book; what has no direct way back is told by this outbox.
    pub fn with_outbox(outbox: OutboxHandle) -> Self {
        Self { outbox: Some(outbox), ..Self::default() }
    }

    /// The outbox that tells what has no direct way back, if there is one.
    pub fn outbox(&self) -> Option<&OutboxHandle> {
        self.outbox.as_ref()
    }

    /// Where the outcome of a message is to be seen, if the outbox writes there.
    pub fn place_of(&self, conversation: &ConversationId, message_key: &str) -> Option<Place> {
        let can = self.outbox.as_ref()?.capabilities(conversation)?;
        Some(Place { conversation: conversation.clone(), message_key: message_key.to_owned(), can })
    }

    /// Where the outcome of an owed job is to be seen, if it has no direct way back.
    pub fn place(&self, job: &JobId) -> Option<Place> {
        let debt = self.get(job).filter(Debt::is_for_outbox)?;
        self.place_of(&debt.conversation, &debt.key)
    }

    /// Who tells the outcome of a job that an earlier process left.
    pub fn teller(&self, row: &JobRow) -> Teller {
        match self.place_of(&row.conversation, &row.message_key) {
            Some(place) => Teller::Outbox(place),
            None if is_terminal(&row.requester) => Teller::Direct,
            None => Teller::Elsewhere,
        }
    }

    /// Tells the outbox that there is something new to send.
    pub fn kick(&self, conversation: &ConversationId) {
        if let Some(outbox) = &self.outbox {
            outbox.kick(conversation);
        }
    }

    /// Notes that `inbound` is owed an outcome as `job`.
    pub fn owe(&self, job: &JobId, inbound: &Inbound, heard_at: Instant) {
        let debt = Debt {
            key: inbound.key.clone(),
            requester: inbound.requester.clone(),
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
        let Some(debt) = self.get(job) else { return };
        match (&debt.replies, &self.outbox, reply) {
            (Some(replies), _, reply) => replies.reply(reply),
            (None, Some(outbox), Reply::Progress { job, progress }) => {
                outbox.progress(&debt.conversation, &job, words::progress(&progress));
            }
            // What is to be seen of it is in the journal.
            (None, Some(outbox), Reply::Accepted { .. } | Reply::Ended(_)) => outbox.kick(&debt.conversation),
            (None, None, _) => {}
        }
    }

    /// Tells the outcome, unless somebody did before.
    pub fn pay(&self, report: JobReport) {
        let debt = self.book().owed.remove(&report.job);
        if let Some(debt) = debt {
            match &debt.replies {
                Some(replies) => replies.reply(Reply::Ended(Box::new(report))),
                None => self.kick(&debt.conversation),
            }
        }
    }

    /// Strikes out a debt that another job pays: the message had been heard before.
    pub fn strike_out(&self, job: &JobId, instead: Reply) {
        let debt = self.book().owed.remove(job);
        if let Some(replies) = debt.and_then(|debt| debt.replies) {
            replies.reply(instead);
        }
    }

    /// Strikes out a debt that is not for this process to pay: the message came back to its sender, or is left to the
    /// next process.
    pub fn withdraw(&self, job: &JobId) {
        self.book().owed.remove(job);
    }

    pub fn get(&self, job: &JobId) -> Option<Debt> {
        self.book().owed.get(job).cloned()
    }

    /// The owed job of the message with this identity.
    pub fn of_message(&self, key: &str) -> Option<(JobId, Debt)> {
        let book = self.book();
        let (job, debt) = book.owed.iter().find(|(_, debt)| debt.key == key)?;
        Some((job.clone(), debt.clone()))
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
    pub fn keep_unrecorded(&self, report: &JobReport, place: Option<Place>) {
        let mut book = self.book();
        if book.unrecorded.len() < MAX_UNRECORDED {
            let report = JobReport { files: Vec::new(), ..report.clone() };
            book.unrecorded.insert(report.job.clone(), Unrecorded { report, place });
        }
    }

    /// The outcomes that the journal does not have, oldest first.
    pub fn unrecorded(&self) -> Vec<Unrecorded> {
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
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debt {
    /// Whether the outbox tells its outcome, from the journal.
    pub fn is_for_outbox(&self) -> bool {
        self.replies.is_none()
    }
}
