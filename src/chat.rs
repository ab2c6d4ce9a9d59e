//! The adapter contract: what a chat front end sends in, and what it is told.
//!
//! An adapter turns its platform's events into [`Inbound`] and shows [`Reply`]s. It knows neither pool nor sprites.

pub mod terminal;
pub mod text;

use std::sync::Arc;
use std::time::Duration;

use crate::job::{ChannelId, ConversationId, JobId, JobReport, RequesterId};
use crate::pool::estimate::Wait;

/// A message that somebody wrote to Jane.
#[derive(Clone)]
pub struct Inbound {
    /// The platform's identity of this message, as in `slack:T1/C1/1700000000.000100`. The same message delivered
    /// twice has the same key.
    pub key: String,
    pub requester: RequesterId,
    pub channel: ChannelId,
    pub conversation: ConversationId,
    /// The prompt, as typed.
    pub text: String,
    /// Profile asked for; the configured default when `None`.
    pub agent: Option<String>,
    /// Wall time asked for; the configured default when `None`.
    pub timeout: Option<Duration>,
    /// Where replies go.
    pub replies: Arc<dyn Replies>,
}

/// The way back to a chat. Calls return at once: an adapter queues and sends by itself.
pub trait Replies: Send + Sync {
    fn reply(&self, reply: Reply);
}

/// What a conversation tells its adapter about one message.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The message is in the journal, as this job.
    Accepted {
        job: JobId,
    },
    Progress {
        job: JobId,
        progress: Progress,
    },
    /// The one outcome. Nothing about this job follows. A message that was refused before it became a job has its
    /// report here too, under an id of its own.
    Ended(Box<JobReport>),
}

/// What a job is doing now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Waits for a runner with this many before it; `reason` says why none is free yet, as in `building`.
    Queued {
        ahead: usize,
        reason: String,
        /// How long it will wait from now on, if that can be told.
        wait: Option<Wait>,
    },
    /// Waits for an earlier message of its own conversation.
    Behind,
    /// Got a runner, which is being checked.
    Checking {
        runner: String,
    },
    /// The agent runs; the text is what it does now, on one line, made harmless.
    Working {
        text: String,
    },
    Cancelling,
}
