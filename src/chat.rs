//! The adapter contract: what a chat front end sends in, and how it is told what comes of it.
//!
//! There are two ways back. A chat whose messages outlive this process (Discord, Slack) implements [`Chat`] and is
//! written to by the [`outbox`], from rows in the journal: what is to be seen there survives a crash and is seen once.
//! The terminal's session ends with its process, so that nobody would read what a later process delivers, and a row and
//! its flush for each line would only make it slower: its messages bring [`Replies`], which are told directly, and the
//! next command says which jobs were interrupted. An adapter knows neither pool nor sprites.

pub mod outbox;
pub mod split;
pub mod terminal;
pub mod text;
pub mod words;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::job::{ChannelId, ConversationId, JobId, JobReport, RequesterId};
use crate::journal::outgoing::Mark;
use crate::pool::estimate::Wait;

/// After this time, a request whose answer did not come has taken effect or never will.
pub const LATE_EFFECT: Duration = Duration::from_secs(30);

/// A chat that can be written to. Each call is one request, which an adapter does not repeat by itself. The caller
/// makes one request at a time in a conversation, and may drop a call at any time, which leaves it ambiguous.
pub trait Chat: Send + Sync + 'static {
    fn capabilities(&self) -> Capabilities;
    /// Writes a new message. `key` goes with it in a way that [`Chat::find`] sees and people do not; where the platform
    /// refuses a second message with the same key, so much the better. Gives the platform's name of the message.
    fn post(&self, to: &ConversationId, key: &str, text: &str) -> impl Future<Output = Sent<String>> + Send;
    /// Replaces the text of a message of ours.
    fn edit(&self, to: &ConversationId, message: &str, text: &str) -> impl Future<Output = Sent<()>> + Send;
    /// Puts our mark on the message with this [`Inbound::key`], or takes it away. That it is so already is no error.
    fn react(
        &self,
        to: &ConversationId,
        message_key: &str,
        mark: Mark,
        shown: bool,
    ) -> impl Future<Output = Sent<()>> + Send;
    /// Writes a new message that is a file; otherwise like [`Chat::post`].
    fn upload(
        &self,
        to: &ConversationId,
        key: &str,
        name: &str,
        bytes: Bytes,
    ) -> impl Future<Output = Sent<String>> + Send;
    /// Looks in the conversation, as it is now, for the message of ours that was written with `key`.
    fn find(&self, to: &ConversationId, key: &str) -> impl Future<Output = Sent<Option<String>>> + Send;
}

pub type Sent<T> = Result<T, SendError>;

/// What a chat can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Without it there is no progress message, only the outcome.
    pub edit: bool,
    pub react: bool,
    pub upload: bool,
    /// Longest message, in characters; at least [`MIN_MESSAGE_CHARS`].
    pub max_message_chars: usize,
}

/// A chat with shorter messages than this is none.
pub const MIN_MESSAGE_CHARS: usize = 140;

/// Why a request did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Nothing was done; it may be tried again after this time.
    #[error("the chat wants {} s of quiet", retry_after.as_secs_f32())]
    RateLimited { retry_after: Duration },
    /// Nothing was done, because the request did not get there.
    #[error("the chat can't be reached ({0})")]
    Unreachable(String),
    /// It may have been done, or may yet be until [`LATE_EFFECT`] has passed.
    #[error("the chat did not confirm it ({0})")]
    Ambiguous(String),
    /// Nothing was done and never will be, however often it is asked.
    #[error("the chat refused it ({0})")]
    Refused(String),
}

/// One request to any chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Post { key: String, text: String },
    Edit { message: String, text: String },
    React { message_key: String, mark: Mark, shown: bool },
    Upload { key: String, name: String, bytes: Bytes },
    Find { key: String },
}

/// A [`Chat`] behind one pointer. The answer is the message's name, where there is one.
trait AnyChat: Send + Sync {
    fn capabilities(&self) -> Capabilities;
    fn request<'a>(&'a self, to: &'a ConversationId, request: &'a Request) -> BoxFuture<'a, Sent<Option<String>>>;
}

impl<C: Chat> AnyChat for C {
    fn capabilities(&self) -> Capabilities {
        Chat::capabilities(self)
    }

    fn request<'a>(&'a self, to: &'a ConversationId, request: &'a Request) -> BoxFuture<'a, Sent<Option<String>>> {
        async move {
            match request {
                Request::Post { key, text } => self.post(to, key, text).await.map(Some),
                Request::Edit { message, text } => self.edit(to, message, text).await.map(|()| None),
                Request::React { message_key, mark, shown } => {
                    self.react(to, message_key, *mark, *shown).await.map(|()| None)
                }
                Request::Upload { key, name, bytes } => self.upload(to, key, name, bytes.clone()).await.map(Some),
                Request::Find { key } => self.find(to, key).await,
            }
        }
        .boxed()
    }
}

/// The chats that this process writes to, by platform.
#[derive(Clone, Default)]
pub struct Chats(Arc<BTreeMap<String, Arc<dyn AnyChat>>>);

impl Chats {
    /// These, and the chat of one more platform, as in `slack`.
    pub fn with(mut self, platform: &str, chat: impl Chat) -> Self {
        Arc::make_mut(&mut self.0).insert(platform.to_owned(), Arc::new(chat));
        self
    }

    /// What the chat of this conversation can do; `None` when this process does not write there.
    pub fn capabilities(&self, conversation: &ConversationId) -> Option<Capabilities> {
        self.of(conversation).map(|chat| chat.capabilities())
    }

    /// Makes one request.
    ///
    /// # Errors
    /// As [`Chat`]; unreachable, too, when the conversation's platform is not there any more.
    async fn request(&self, to: &ConversationId, request: &Request) -> Sent<Option<String>> {
        match self.of(to) {
            Some(chat) => chat.request(to, request).await,
            None => Err(SendError::Unreachable("it is not configured".into())),
        }
    }

    fn of(&self, conversation: &ConversationId) -> Option<&Arc<dyn AnyChat>> {
        self.0.get(conversation.platform())
    }
}

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
    /// Where replies go; `None` for a chat that the outbox writes to.
    pub replies: Option<Arc<dyn Replies>>,
}

/// Somebody changed a message after it was sent in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The message's [`Inbound::key`].
    pub key: String,
    pub conversation: ConversationId,
    pub by: RequesterId,
    /// The new text; `None` when the message was deleted.
    pub text: Option<String>,
}

/// The direct way back. Calls return at once: an adapter queues and sends by itself.
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
