//! The adapter contract: what a chat front end sends in, and how it is told what comes of it.
//!
//! There are two ways back. A chat whose messages outlive this process (Discord, Slack) implements [`Chat`] and is
//! written to by the [`outbox`], from rows in the journal: what is to be seen there survives a crash and is seen once.
//! The terminal's session ends with its process, so that nobody would read what a later process delivers, and a row and
//! its flush for each line would only make it slower: its messages bring [`Replies`], which are told directly, and the
//! next command says which jobs were interrupted. An adapter knows neither pool nor sprites.

pub mod adapter;
pub mod discord;
pub mod finding;
pub mod outbox;
pub mod slack;
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
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::job::{ChannelId, ConversationId, JobId, JobReport, RequesterId};
use crate::journal::outgoing::Mark;
use crate::pool::estimate::Wait;
use crate::world::World;
use adapter::Adapter;

/// After this time, a request whose answer did not come has taken effect or never will.
pub const LATE_EFFECT: Duration = Duration::from_secs(30);

/// A chat that can be written to. Each call is one request, which an adapter does not repeat by itself. The caller
/// makes one request at a time in a conversation, and may drop a call at any time, which leaves it ambiguous.
pub trait Chat: Send + Sync + 'static {
    fn capabilities(&self) -> Capabilities;
    /// Writes a new message. `key` goes with it in a way that [`Chat::find`] sees and people do not; where the platform
    /// refuses a second message with the same key, so much the better. Gives the platform's name of the message.
    fn post(
        &self,
        to: &ConversationId,
        key: &str,
        text: &str,
        buttons: &[Button],
    ) -> impl Future<Output = Sent<String>> + Send;
    /// Replaces the text of a message of ours, and its buttons.
    fn edit(
        &self,
        to: &ConversationId,
        message: &str,
        text: &str,
        buttons: &[Button],
    ) -> impl Future<Output = Sent<()>> + Send;
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
    /// Shows for some seconds that Jane is at work there; nobody misses one that is lost.
    fn typing(&self, _to: &ConversationId) -> impl Future<Output = Sent<()>> + Send {
        async { Ok(()) }
    }
    /// The content of a file that came with a message; refused when it is longer than `limit` bytes. The adapter makes
    /// sure that the address is one of its platform's own.
    fn fetch(&self, _file: &Attachment, _limit: u64) -> impl Future<Output = Sent<Bytes>> + Send {
        async { Err(SendError::Refused("this chat has no files".into())) }
    }
    /// What was said in the conversation before the message with this [`Inbound::key`], oldest first; of more than
    /// `budget` bytes the newest. `None` where the platform is not asked: then the exchanges with Jane that the journal
    /// has are the history.
    fn history(
        &self,
        _to: &ConversationId,
        _before: &str,
        _budget: usize,
    ) -> impl Future<Output = Sent<Option<Vec<Said>>>> + Send {
        async { Ok(None) }
    }
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
    /// How often [`Chat::typing`] is to be called while a job runs; `None` for never.
    pub typing_every: Option<Duration>,
}

/// What can be done about a job by pressing a button.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Cancel,
    /// Run the same prompt once more.
    Retry,
    /// Tell the job's story.
    Why,
}

impl Action {
    const ALL: [Self; 3] = [Self::Cancel, Self::Retry, Self::Why];

    pub fn label(self) -> &'static str {
        match self {
            Self::Cancel => "Cancel",
            Self::Retry => "Retry",
            Self::Why => "Why",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Why => "why",
        }
    }
}

/// A button below a message of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Button {
    pub action: Action,
    pub job: JobId,
}

/// Begins the ids of our buttons.
const BUTTON_PREFIX: &str = "janebot:";

impl Button {
    /// What names the button on the platform; [`Button::parse`] reads it.
    pub fn id(&self) -> String {
        format!("{BUTTON_PREFIX}{}:{}", self.action.word(), self.job)
    }

    /// The button that was pressed, if it is one of ours. Whoever pressed it may have made the id up.
    pub fn parse(id: &str) -> Option<Self> {
        let (word, job) = id.strip_prefix(BUTTON_PREFIX)?.split_once(':')?;
        let action = Action::ALL.into_iter().find(|action| action.word() == word)?;
        let is_id = (1..=64).contains(&job.len()) && job.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_id.then(|| Self { action, job: JobId::new(job) })
    }
}

/// A file that came with a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// As its sender named it.
    pub name: String,
    /// Bytes, as the platform says.
    pub size: u64,
    /// Where the platform has it.
    pub url: String,
}

/// Something that was said in a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The id of whoever said it, or `None` for Jane.
    pub from: Option<RequesterId>,
    pub text: String,
}

/// The part of an [`Inbound::key`] that names the platform's message: what is run again has the message's key with an
/// addition.
pub fn message_of(key: &str) -> &str {
    key.split('#').next().unwrap_or(key)
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
    Post { key: String, text: String, buttons: Vec<Button> },
    Edit { message: String, text: String, buttons: Vec<Button> },
    React { message_key: String, mark: Mark, shown: bool },
    Upload { key: String, name: String, bytes: Bytes },
    Find { key: String },
}

/// A [`Chat`] behind one pointer. The answer is the message's name, where there is one.
trait AnyChat: Send + Sync {
    fn capabilities(&self) -> Capabilities;
    fn request<'a>(&'a self, to: &'a ConversationId, request: &'a Request) -> BoxFuture<'a, Sent<Option<String>>>;
    fn typing<'a>(&'a self, to: &'a ConversationId) -> BoxFuture<'a, Sent<()>>;
    fn fetch<'a>(&'a self, file: &'a Attachment, limit: u64) -> BoxFuture<'a, Sent<Bytes>>;
    fn history<'a>(
        &'a self,
        to: &'a ConversationId,
        before: &'a str,
        budget: usize,
    ) -> BoxFuture<'a, Sent<Option<Vec<Said>>>>;
}

impl<C: Chat> AnyChat for C {
    fn capabilities(&self) -> Capabilities {
        Chat::capabilities(self)
    }

    fn request<'a>(&'a self, to: &'a ConversationId, request: &'a Request) -> BoxFuture<'a, Sent<Option<String>>> {
        async move {
            match request {
                Request::Post { key, text, buttons } => self.post(to, key, text, buttons).await.map(Some),
                Request::Edit { message, text, buttons } => self.edit(to, message, text, buttons).await.map(|()| None),
                Request::React { message_key, mark, shown } => {
                    self.react(to, message_key, *mark, *shown).await.map(|()| None)
                }
                Request::Upload { key, name, bytes } => self.upload(to, key, name, bytes.clone()).await.map(Some),
                Request::Find { key } => self.find(to, key).await,
            }
        }
        .boxed()
    }

    fn typing<'a>(&'a self, to: &'a ConversationId) -> BoxFuture<'a, Sent<()>> {
        Chat::typing(self, to).boxed()
    }

    fn fetch<'a>(&'a self, file: &'a Attachment, limit: u64) -> BoxFuture<'a, Sent<Bytes>> {
        Chat::fetch(self, file, limit).boxed()
    }

    fn history<'a>(
        &'a self,
        to: &'a ConversationId,
        before: &'a str,
        budget: usize,
    ) -> BoxFuture<'a, Sent<Option<Vec<Said>>>> {
        Chat::history(self, to, before, budget).boxed()
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
            None => Err(unserved()),
        }
    }

    /// As [`Chat::typing`].
    pub async fn typing(&self, to: &ConversationId) -> Sent<()> {
        match self.of(to) {
            Some(chat) => chat.typing(to).await,
            None => Err(unserved()),
        }
    }

    /// As [`Chat::fetch`], of a file that came in this conversation.
    pub async fn fetch(&self, conversation: &ConversationId, file: &Attachment, limit: u64) -> Sent<Bytes> {
        match self.of(conversation) {
            Some(chat) => chat.fetch(file, limit).await,
            None => Err(unserved()),
        }
    }

    /// As [`Chat::history`].
    pub async fn history(&self, to: &ConversationId, before: &str, budget: usize) -> Sent<Option<Vec<Said>>> {
        match self.of(to) {
            Some(chat) => chat.history(to, before, budget).await,
            None => Ok(None),
        }
    }

    fn of(&self, conversation: &ConversationId) -> Option<&Arc<dyn AnyChat>> {
        self.0.get(conversation.platform())
    }
}

/// The front ends of the chats that are configured, in a fixed order.
///
/// # Errors
/// When one can't work on this machine; a sentence.
pub fn configured(config: &Config, world: &World) -> Result<Vec<Box<dyn Adapter>>, String> {
    let mut adapters: Vec<Box<dyn Adapter>> = Vec::new();
    if let Some(discord) = &config.discord {
        let adapter = discord::DiscordAdapter::new(discord, world.clone())
            .map_err(|error| format!("this machine can't make encrypted connections to Discord ({error})"))?;
        adapters.push(Box::new(adapter));
    }
    if let Some(slack) = &config.slack {
        adapters.push(Box::new(slack::Slack::new(slack)?));
    }
    Ok(adapters)
}

fn unserved() -> SendError {
    SendError::Unreachable("it is not configured".into())
}

/// A message that somebody wrote to Jane.
#[derive(Clone)]
pub struct Inbound {
    /// The platform's identity of this message, as in `slack:T1/C1/1700000000.000100`: it ends in the channel and the
    /// message, by which a link to it is known. The same message delivered twice has the same key.
    pub key: String,
    pub requester: RequesterId,
    pub channel: ChannelId,
    pub conversation: ConversationId,
    /// The prompt, as typed.
    pub text: String,
    /// Files that came with it.
    pub files: Vec<Attachment>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buttons_id_is_read_back_and_nothing_else_is_a_button() {
        for action in Action::ALL {
            let button = Button { action, job: JobId::new("01job") };
            assert_eq!(Button::parse(&button.id()), Some(button));
        }
        for id in ["", "janebot:", "janebot:cancel", "janebot:cancel:", "janebot:burn:01job", "janebot:why:../x"] {
            assert_eq!(Button::parse(id), None, "{id}");
        }
    }

    #[test]
    fn what_is_run_again_is_still_about_its_message() {
        assert_eq!(message_of("slack:T1/C1/1.2"), "slack:T1/C1/1.2");
        assert_eq!(message_of("slack:T1/C1/1.2#again-01job"), "slack:T1/C1/1.2");
    }
}
