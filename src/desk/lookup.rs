//! What is known of one job, for the buttons below its outcome: its story, and whether it may be run again. It reads the
//! journal in a task, since the desk waits for nothing.

use ractor::RpcReplyPort;
use tokio::time::timeout;

use super::Desk;
use super::conversation::merge;
use super::ending::JOURNAL_PATIENCE;
use super::recovery::merged_into;
use super::stop::may_stop;
use crate::chat::{Inbound, message_of};
use crate::config::AccessConfig;
use crate::job::{ChannelId, JobId, Outcome, RequesterId};
use crate::journal::outgoing::OutgoingRow;
use crate::journal::search::{LeaseRow, Wanted, Which};
use crate::journal::story::Story;
use crate::journal::{self, JobRow, Journal};
use crate::world::World;

/// One job as the journal has it.
#[derive(Clone, Debug)]
pub struct Lookup {
    row: JobRow,
    leases: Vec<LeaseRow>,
    effects: Vec<OutgoingRow>,
    /// Texts of later messages that were merged into it.
    parts: Vec<String>,
    /// The job in which it was run again.
    again: Option<JobId>,
}

/// What became of the wish to run a job again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Again {
    /// It is a new message now, in the same conversation.
    Started,
    /// It was run again before, as this job.
    Before(JobId),
    /// It has not ended.
    NotOver,
    /// It was answered, cancelled or became part of another, so there is nothing to run again.
    NotFailed,
    /// Whoever asks is neither its requester nor an admin.
    NotYours,
    Unknown,
    /// The journal did not tell or did not take it.
    Failed,
}

impl Again {
    /// For whoever wished it.
    pub fn sentence(&self) -> String {
        match self {
            Self::Started => "Running it again.".into(),
            Self::Before(job) => format!("It was run again already, as job {job}."),
            Self::NotOver => "It has not ended yet.".into(),
            Self::NotFailed => "It did not fail: write a new message to have more done.".into(),
            Self::NotYours => "Only who asked for it, or an admin, may run it again.".into(),
            Self::Unknown => "There is no such job.".into(),
            Self::Failed => "That could not be recorded: press the button again in a minute.".into(),
        }
    }
}

impl Lookup {
    /// Whether the story may be told to `by`, in `channel`. To others it is as if there were no such job.
    pub fn is_for(&self, by: &RequesterId, channel: &ChannelId, access: &AccessConfig) -> bool {
        self.row.channel == *channel || may_stop(by, &self.row.requester, access)
    }

    /// The story, as far as everybody in the conversation may know it: neither prompt nor answer.
    pub fn story(&self, world: &World) -> String {
        let story = Story::of(&self.row, &self.leases, &self.effects, world.now());
        story.events.iter().map(|event| format!("• {}\n", event.what)).collect()
    }

    /// The message that runs the job again for `by`, or why there is none.
    pub fn again(&self, by: &RequesterId, access: &AccessConfig) -> Result<Inbound, Again> {
        let row = &self.row;
        if !may_stop(by, &row.requester, access) {
            return Err(Again::NotYours);
        }
        if let Some(job) = &self.again {
            return Err(Again::Before(job.clone()));
        }
        match &row.outcome {
            None => return Err(Again::NotOver),
            Some(Outcome::Failed { .. }) => {}
            Some(outcome) if outcome.is_retryable() => {}
            Some(_) => return Err(Again::NotFailed),
        }
        Ok(Inbound {
            key: key_again(row),
            requester: row.requester.clone(),
            channel: row.channel.clone(),
            conversation: row.conversation.clone(),
            text: merge::whole_text(&row.prompt, &self.parts),
            files: row.files.clone(),
            agent: Some(row.agent.clone()),
            timeout: None,
            replies: None,
        })
    }
}

/// The key of the message that runs a job again; there is one for each job, so that it is run again once.
fn key_again(row: &JobRow) -> String {
    format!("{}#again-{}", message_of(&row.message_key), row.job)
}

impl<J: Journal> Desk<J> {
    /// Looks a job up beside everything else.
    pub(super) fn on_look(&self, job: JobId, reply: RpcReplyPort<journal::Result<Option<Lookup>>>) {
        let journal = self.journal.clone();
        tokio::spawn(async move {
            if let Ok(found) = timeout(JOURNAL_PATIENCE, look(&journal, &job)).await {
                // Whoever asked may have gone.
                let _ = reply.send(found);
            }
        });
    }
}

async fn look<J: Journal>(journal: &J, job: &JobId) -> journal::Result<Option<Lookup>> {
    let Some(row) = journal.job(job).await? else { return Ok(None) };
    let (leases, effects) = (journal.leases(job).await?, journal.job_effects(job).await?);
    let wanted = Wanted { which: Which::KeyEnd(key_again(&row)), ..Wanted::any(1) };
    let again = journal.find_jobs(&wanted).await?.pop().map(|row| row.job);
    let parts = merged_into(journal, &row).await?;
    Ok(Some(Lookup { row, leases, effects, parts, again }))
}
