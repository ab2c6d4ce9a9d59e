//! The seam to the machines: the Sprites API as a trait, with its types and errors.
//!
//! Two implementations exist: [`http::HttpSprites`] (the wire client, against the Sprites cloud and the embedded host
//! alike) and the simulation's in-memory host. All runner code talks to [`Sprites`] and knows no other.
//!
//! Paths given to the file calls and to `dir` may be relative; they then start at the sprite user's home, `/home/sprite`.

pub mod exec;
pub mod http;
pub mod stream;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

pub type Result<T, E = SpritesError> = std::result::Result<T, E>;

/// The Sprites API, as far as the pool needs it. Every call has a deadline of its own and returns within it.
pub trait Sprites: Clone + Send + Sync + 'static {
    /// Makes a sprite. A name that is taken gives [`SpritesError::Exists`].
    fn create(&self, name: &str, labels: &[String]) -> impl Future<Output = Result<SpriteInfo>> + Send;
    fn get(&self, name: &str) -> impl Future<Output = Result<SpriteInfo>> + Send;
    /// All sprites whose name starts with `prefix`, over all pages.
    fn list(&self, prefix: &str) -> impl Future<Output = Result<Vec<SpriteInfo>>> + Send;
    /// Replaces the sprite's labels.
    fn set_labels(&self, name: &str, labels: &[String]) -> impl Future<Output = Result<()>> + Send;
    /// Deletes the sprite with all it holds; [`SpritesError::NotFound`] when it is gone already.
    fn delete(&self, name: &str) -> impl Future<Output = Result<()>> + Send;

    /// Starts a program. `Ok` means that the upgrade succeeded, so the program may have started; an error for which
    /// [`SpritesError::may_have_had_effect`] is false means that it has not.
    fn exec(&self, name: &str, request: ExecRequest) -> impl Future<Output = Result<Exec>> + Send;
    /// The sessions that still run.
    fn sessions(&self, name: &str) -> impl Future<Output = Result<Vec<SessionInfo>>> + Send;
    /// Signals a session's process group, and kills it when it is still there after `grace`. A session that is gone
    /// already is `Ok`.
    fn kill(&self, name: &str, session: &str, signal: Signal, grace: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Freezes the sprite's files; returns the id only when the stream said `complete` and the list shows it.
    fn create_checkpoint(&self, name: &str, comment: &str) -> impl Future<Output = Result<CheckpointId>> + Send;
    fn checkpoints(&self, name: &str) -> impl Future<Output = Result<Vec<Checkpoint>>> + Send;
    /// Puts the sprite's files back and ends all its processes. `Ok` only when the stream's terminal event was seen;
    /// a stream cut before it is [`SpritesError::OutcomeUnknown`].
    fn restore(&self, name: &str, checkpoint: &CheckpointId) -> impl Future<Output = Result<()>> + Send;

    fn set_policy(&self, name: &str, policy: &NetworkPolicy) -> impl Future<Output = Result<()>> + Send;
    fn policy(&self, name: &str) -> impl Future<Output = Result<NetworkPolicy>> + Send;

    /// Writes a file, making its parent directories. `mode` is the permission bits, as in `0o600`.
    fn write_file(&self, name: &str, path: &str, mode: u32, content: Bytes) -> impl Future<Output = Result<()>> + Send;
    /// Reads a file of at most `limit` bytes; a longer one is [`SpritesError::TooLarge`].
    fn read_file(&self, name: &str, path: &str, limit: u64) -> impl Future<Output = Result<Bytes>> + Send;
    /// Lists a directory, with all below it when `recursive`.
    fn list_files(&self, name: &str, path: &str, recursive: bool) -> impl Future<Output = Result<Vec<FileInfo>>> + Send;
}

/// Why a call failed, in terms of what the caller can do. Text is for operators and never holds a secret.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpritesError {
    #[error("{what} not found")]
    NotFound { what: String },
    #[error("{what} exists already")]
    Exists { what: String },
    /// Still rejected after the bounded retries that a transient 401 gets.
    #[error("the Sprites API rejected the token: check SPRITES_TOKEN")]
    Unauthorized,
    /// Wait at least `retry_after`, then try again. `code` is the API's word, as in `concurrent_sprite_limit_exceeded`.
    #[error("the Sprites API limits requests ({code})")]
    RateLimited { code: String, retry_after: Option<Duration> },
    /// The request is wrong and will stay wrong.
    #[error("the Sprites API refused the request ({status}): {message}")]
    Refused { status: u16, message: String },
    /// The API answers, but this sprite does not (502, `sprite_not_routable`): rebuild it.
    #[error("the sprite does not answer ({status}): {message}")]
    Broken { status: u16, message: String },
    /// Nobody there, or the request was not sent or not acted upon. Safe to try again.
    #[error("the Sprites API at {url} can't be reached: {message}")]
    Unreachable { url: String, message: String },
    /// The request was sent and what came of it is not known: stream cut, no exit frame, deadline passed.
    #[error("{what}: the outcome is unknown ({message})")]
    OutcomeUnknown { what: String, message: String },
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    /// The server said something that the API does not allow.
    #[error("the Sprites API gave an answer that can't be understood: {message}")]
    Protocol { message: String },
}

impl SpritesError {
    /// Whether the request may have been acted upon. If not, repeating it is safe.
    pub fn may_have_had_effect(&self) -> bool {
        match self {
            Self::OutcomeUnknown { .. } | Self::Protocol { .. } | Self::TooLarge { .. } => true,
            Self::NotFound { .. }
            | Self::Exists { .. }
            | Self::Unauthorized
            | Self::RateLimited { .. }
            | Self::Refused { .. }
            | Self::Broken { .. }
            | Self::Unreachable { .. } => false,
        }
    }

    /// Whether the fault lies with this one sprite, so that rebuilding it may help; otherwise the API or the request
    /// is at fault and a rebuild would not.
    pub fn blames_sprite(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::Broken { .. } | Self::OutcomeUnknown { .. } | Self::Protocol { .. } => true,
            Self::Exists { .. }
            | Self::Unauthorized
            | Self::RateLimited { .. }
            | Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::TooLarge { .. } => false,
        }
    }
}

/// A sprite as the API shows it. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpriteInfo {
    pub id: String,
    pub name: String,
    /// `cold`, `warm`, `running` or a word that is newer than this code.
    pub status: String,
    pub labels: Vec<String>,
}

/// A program to run. Nothing here may be secret: all but `stdin` travels in the URL.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// Program and arguments; at least one.
    pub argv: Vec<String>,
    /// Added to the sprite's own environment.
    pub env: Vec<(String, String)>,
    pub dir: Option<String>,
    /// Sent in full, then end of file. May hold secrets.
    pub stdin: Bytes,
    /// How long the program may live when the connection is lost; the server's default when `None`.
    pub max_run_after_disconnect: Option<Duration>,
    /// Time until the exit must have come; afterwards the stream ends with [`SpritesError::OutcomeUnknown`].
    pub timeout: Duration,
}

/// What a running program sends. The last item is `Exit` or an error; nothing follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    Stdout(Bytes),
    Stderr(Bytes),
    /// Exit status, 128 + n for a program killed by signal n. All output came before.
    Exit(u8),
}

/// A running program. Dropping it closes the connection and does not stop the program: use [`Sprites::kill`].
#[derive(Debug)]
pub struct Exec {
    /// The id for [`Sprites::kill`]; known once the server announced the session, before any output.
    pub session: String,
    events: mpsc::Receiver<Result<ExecEvent>>,
    _pump: AbortOnDropHandle<()>,
}

impl Exec {
    /// Joins the parts; `pump` fills `events` and is stopped when the `Exec` is dropped.
    pub fn new(session: String, events: mpsc::Receiver<Result<ExecEvent>>, pump: tokio::task::JoinHandle<()>) -> Self {
        Self { session, events, _pump: AbortOnDropHandle::new(pump) }
    }

    /// The next event. `None` only after `Exit` or an error: a stream that merely ends gives
    /// [`SpritesError::OutcomeUnknown`] first, so no exit is never taken for success.
    pub async fn next(&mut self) -> Option<Result<ExecEvent>> {
        self.events.recv().await
    }

    /// Runs to the end and keeps at most `limit` bytes of each stream (the first ones; the rest is dropped).
    ///
    /// # Errors
    /// Whatever ended the stream before an exit status came.
    pub async fn output(mut self, limit: usize) -> Result<Output> {
        let mut out = Output::default();
        while let Some(event) = self.next().await {
            match event? {
                ExecEvent::Stdout(bytes) => keep(&mut out.stdout, &bytes, limit),
                ExecEvent::Stderr(bytes) => keep(&mut out.stderr, &bytes, limit),
                ExecEvent::Exit(status) => {
                    out.status = status;
                    return Ok(out);
                }
            }
        }
        Err(SpritesError::OutcomeUnknown { what: "exec".into(), message: "no exit status came".into() })
    }
}

fn keep(to: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    let room = limit.saturating_sub(to.len());
    to.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// What a finished program left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub status: u8,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    pub id: String,
    pub command: String,
}

/// The signals that stopping an agent needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    Interrupt,
    Terminate,
    Kill,
}

impl Signal {
    /// The API's name, as in `SIGTERM`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Kill => "SIGKILL",
        }
    }
}

/// The id that creating a checkpoint returned (`v3`), never its comment: comments are not unique, and code inside the
/// sprite can plant one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CheckpointId(String);

impl CheckpointId {
    /// `None` unless the text is a checkpoint id: letters, digits and hyphens.
    pub fn new(text: &str) -> Option<Self> {
        let valid = !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        valid.then(|| Self(text.to_owned()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub id: CheckpointId,
    pub comment: String,
}

/// Which names a sprite may reach. The API takes an empty list for "no limit"; [`NetworkPolicy::deny_all`] is how to
/// say "nothing".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    pub rules: Vec<PolicyRule>,
}

/// One rule of a policy: a domain with an action, or a preset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}

impl NetworkPolicy {
    /// Nothing leaves the sprite.
    pub fn deny_all() -> Self {
        Self { rules: vec![PolicyRule { domain: Some("*".into()), include: None, action: Some("deny".into()) }] }
    }

    /// Only these names, in lower case, sorted, each once; with none, [`Self::deny_all`].
    pub fn allow<I: IntoIterator<Item = S>, S: AsRef<str>>(names: I) -> Self {
        let names: std::collections::BTreeSet<String> = names.into_iter().map(|n| n.as_ref().to_ascii_lowercase()).collect();
        let mut policy = Self::deny_all();
        policy.rules.extend(names.into_iter().map(|domain| PolicyRule { domain: Some(domain), include: None, action: Some("allow".into()) }));
        policy
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Absolute path in the sprite.
    pub path: String,
    pub kind: FileKind,
    pub size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Directory,
    /// A symbolic link or anything else: never followed, never collected.
    Other,
}
