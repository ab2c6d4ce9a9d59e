//! The terminal as a chat: `janebot ask` for one prompt, `janebot chat` for a conversation.
//!
//! Both hand their messages to the desk like any other adapter. Standard output is for answers; all else goes to
//! standard error, except in `chat`, which is a talk on one screen. Parts: `job` (one message until its outcome),
//! `view` (progress), `paint` (colours and the summary line), `files` (what the agent left), `json` (`ask --json`),
//! `ask` and `repl` (the two commands), `line` (reading a line with editing).

pub mod ask;
mod files;
mod job;
mod json;
mod line;
mod paint;
pub mod repl;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

pub use files::prepare as prepare_folder;

use super::{Inbound, Replies, Reply};
use crate::app::App;
use crate::job::{ChannelId, ConversationId, Outcome, RequesterId};
use crate::world::World;

/// The exit statuses, which scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Answered,
    Failed,
    /// Bad usage or configuration; nothing was tried.
    Usage,
    Refused,
    /// Cancelled by Ctrl-C, as shells report it.
    Interrupted,
}

impl Exit {
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            // Merged never happens at a terminal, whose messages do not wait for each other.
            Outcome::Answered { .. } | Outcome::Merged { .. } => Self::Answered,
            Outcome::Failed { .. } => Self::Failed,
            Outcome::Refused { .. } => Self::Refused,
            Outcome::Cancelled { .. } => Self::Interrupted,
        }
    }

    pub fn status(self) -> u8 {
        match self {
            Self::Answered => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Interrupted => 130,
        }
    }
}

/// The person at the terminal and their conversation, which lasts as long as the command.
pub struct Session {
    requester: RequesterId,
    conversation: ConversationId,
    messages: AtomicU64,
}

impl Session {
    /// `user` is the login name, of which only harmless characters are kept.
    pub fn new(user: &str, world: &World) -> Self {
        let name: String = user.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(32).collect();
        let name = if name.is_empty() { "somebody" } else { &name };
        Self {
            requester: RequesterId::new(format!("terminal:{name}")),
            conversation: ConversationId::new(format!("terminal:{name}/{}", world.token(6))),
            messages: AtomicU64::new(0),
        }
    }

    /// Hands in a message. What comes of it is told through the channel.
    async fn send(&self, app: &App, message: Message) -> mpsc::UnboundedReceiver<Reply> {
        let (replies, told) = mpsc::unbounded_channel();
        let number = self.messages.fetch_add(1, Ordering::Relaxed);
        app.send(Inbound {
            key: format!("{}/{number}", self.conversation),
            requester: self.requester.clone(),
            channel: ChannelId::new("terminal:local"),
            conversation: self.conversation.clone(),
            text: message.text,
            files: Vec::new(),
            agent: message.agent,
            timeout: message.timeout,
            replies: Some(Arc::new(ToChannel(replies))),
        })
        .await;
        told
    }
}

/// What the person wants done.
pub struct Message {
    pub text: String,
    pub agent: Option<String>,
    pub timeout: Option<Duration>,
}

struct ToChannel(mpsc::UnboundedSender<Reply>);

impl Replies for ToChannel {
    fn reply(&self, reply: Reply) {
        // The command may have given up waiting.
        let _ = self.0.send(reply);
    }
}

/// The ways in which people ask a program to stop: Ctrl-C, and SIGTERM from other programs.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// From now on these signals do not end the process.
    ///
    /// # Errors
    /// When the handlers can't be installed.
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
