//! Discord: Jane where the team talks.
//!
//! One actor per shard listens (`shard`), decides whom a message is for (`ears`) and hands it to the desk (`hearing`);
//! the outbox writes by way of `mouth` and `rest`; `adapter` looks after all of it. What they share is in [`Shared`].
//! What Discord's objects are named and read as is in `wire`, `place` and `atlas`; `clicks` answers buttons and slash
//! commands; `doctor` tells what is wrong with the set-up.

pub mod adapter;
mod atlas;
mod basics;
mod clicks;
mod commands;
pub mod doctor;
mod ears;
mod hearing;
mod mouth;
mod names;
mod permissions;
mod place;
mod rest;
mod shard;
mod sign;
mod threads;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::chat::Chats;
use crate::chat::adapter::{Adapter, Front, Started};
use crate::config::DiscordConfig;
use crate::world::World;
use atlas::Atlas;
use ears::{Heard, Rules};
use hearing::Event;
use mouth::Mouth;
use rest::Rest;
use shard::session::Course;
use threads::Threads;
use wire::{ApplicationNo, Message, UserNo};

/// The Discord adapter, as configured.
pub struct DiscordAdapter(Arc<Shared>);

/// What the parts of the adapter share. No lock of it is held over an await.
struct Shared {
    config: DiscordConfig,
    rest: Rest,
    threads: Threads,
    atlas: Mutex<Atlas>,
    who: Mutex<Who>,
}

/// Who we are, once Discord has said it.
#[derive(Clone, Default)]
struct Who {
    application: Option<ApplicationNo>,
    rules: Option<Arc<Rules>>,
}

impl DiscordAdapter {
    /// # Errors
    /// When this machine can't do TLS.
    pub fn new(config: &DiscordConfig, world: World) -> Result<Self, reqwest::Error> {
        Ok(Self(Arc::new(Shared::new(config, world)?)))
    }
}

impl Adapter for DiscordAdapter {
    fn platform(&self) -> &'static str {
        "discord"
    }

    fn join(&self, chats: Chats) -> Chats {
        chats.with("discord", Mouth { shared: self.0.clone() })
    }

    fn start(self: Box<Self>, front: Front) -> Started {
        Started { child: adapter::child(self.0, front), routes: axum::Router::new() }
    }
}

impl Shared {
    fn new(config: &DiscordConfig, world: World) -> Result<Self, reqwest::Error> {
        Ok(Self {
            config: config.clone(),
            rest: Rest::new(config, world)?,
            threads: Threads::default(),
            atlas: Mutex::default(),
            who: Mutex::default(),
        })
    }

    fn atlas(&self) -> MutexGuard<'_, Atlas> {
        // Nothing that runs under the lock can leave it half-written; so for the other one.
        self.atlas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn who(&self) -> MutexGuard<'_, Who> {
        self.who.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Discord has said who we are.
    fn is(&self, me: UserNo, application: ApplicationNo) {
        let mut who = self.who();
        if who.rules.as_ref().is_none_or(|rules| rules.me != me) {
            who.rules = Some(Arc::new(Rules::new(&self.config, me)));
        }
        who.application = Some(application);
    }

    fn me(&self) -> Option<UserNo> {
        self.who().rules.as_ref().map(|rules| rules.me)
    }

    fn rules(&self) -> Option<Arc<Rules>> {
        self.who().rules.clone()
    }

    /// The message as an event, if it is for us or may be.
    fn for_us(&self, message: Message, course: &Course) -> Option<Event> {
        course.see(message.channel_id, message.guild_id, message.id, false);
        match self.rules()?.hear(&message, &self.atlas()) {
            Heard::Ask(_) | Heard::Unknown => Some(Event::Written(Box::new(message))),
            Heard::Ignored(why) => {
                tracing::trace!(why = why.word(), "a message is not for us");
                None
            }
        }
    }

    /// Whether the text of somebody else's message was changed.
    fn is_edit(&self, message: &Message) -> bool {
        message.edited_timestamp.is_some() && Some(message.author.id) != self.me()
    }

    /// Whether the message is our own self-test.
    fn is_canary(&self, message: &Message) -> bool {
        let is_there = |canary: &crate::config::CanaryConfig| canary.channel == message.channel_id.to_string();
        Some(message.author.id) == self.me() && self.config.canary.as_ref().is_some_and(is_there)
    }
}
