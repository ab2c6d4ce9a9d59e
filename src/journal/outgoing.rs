//! Rows of the outbox: what is to be seen in a chat, and how far each came. Plain data.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::chat::Action;
use crate::job::{ConversationId, JobId};

/// One thing that is to be seen in a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// Names this effect for ever, as in `01job/answer/0`: however often it is sent, it is seen once.
    pub key: String,
    pub job: JobId,
    pub conversation: ConversationId,
    pub effect: Effect,
}

/// What is to be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Effect {
    /// A new message, with buttons about the job.
    Post {
        text: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        buttons: Vec<Action>,
    },
    /// The one message that tells how the job goes, made or edited so that it says this. After one that is `closing`
    /// the journal takes no other text for it, so an old text can't come back.
    Progress { text: String, closing: bool },
    /// A mark on the user's own message, put there or taken away.
    React { message: String, mark: Mark, shown: bool },
    /// A file; its content is in [`Journal::file`](super::Journal::file) under the row's key, until it is sent.
    Upload { name: String },
}

impl Effect {
    /// Whether a row with this effect may still be replaced by a newer one of the same key.
    pub fn is_replaceable(&self) -> bool {
        matches!(self, Self::Progress { closing: false, .. })
    }

    /// The word for logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Post { .. } => "post",
            Self::Progress { .. } => "progress",
            Self::React { .. } => "reaction",
            Self::Upload { .. } => "upload",
        }
    }
}

/// The marks that janebot puts on messages; an adapter knows its platform's sign for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// Heard, and recorded.
    Heard,
    Answered,
    /// Failed or refused.
    Failed,
    Cancelled,
    /// Answered together with the message before it.
    Merged,
}

/// An effect as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutgoingRow {
    /// Order of recording; the order of sending within a conversation.
    pub seq: u64,
    #[serde(flatten)]
    pub outgoing: Outgoing,
    pub state: OutgoingState,
    /// How often a request was about to be made. Zero: nothing of it can be in the chat.
    pub tried: u32,
    /// The platform's name of the message, once it is known.
    pub message: Option<String>,
    /// Why it was given up.
    pub why: Option<String>,
    pub put_at: Timestamp,
    pub done_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutgoingState {
    Open,
    Sent,
    GivenUp,
}

impl OutgoingState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Sent => "sent",
            Self::GivenUp => "given_up",
        }
    }
}

/// How sending ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the chat, as this message if it is one.
    Sent {
        message: Option<String>,
    },
    GivenUp {
        why: String,
    },
}
