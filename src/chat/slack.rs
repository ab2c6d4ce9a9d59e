//! Slack: events in over Socket Mode or HTTP, answers out over the Web API.
//!
//! Of this room, `adapter` is the actor that owns it and `socket` the actor of one connection; `fleet` decides about the
//! connections; `routes` is the way in over HTTP, checked by `signature`. Both ways end in `ear`, which reads a delivery
//! (`event`, `words`), sees whose it is (`people`) and hands it to the desk. `speech` is what the outbox writes with, in
//! the form that `render` gives it, over the `api`. `doctor` says what is missing.
//!
//! A thin client of our own, since three things must be exact: a delivery is acknowledged after it is recorded and not
//! before, a connection is replaced before it goes, and a request whose answer was lost is not blindly repeated.

mod adapter;
pub mod api;
mod canary;
pub mod doctor;
mod ear;
pub mod event;
mod fleet;
mod people;
mod recent;
pub mod render;
mod routes;
mod signature;
mod socket;
mod speech;
mod thread;
mod words;

use std::sync::Arc;

use super::Chats;
use super::adapter::{Adapter, Front, Started};
use crate::config::SlackConfig;
use api::Api;
use routes::Gate;
use speech::Speech;

/// Slack, as configured.
pub struct Slack {
    config: SlackConfig,
    ways: Ways,
}

/// The two tokens at work.
#[derive(Clone)]
struct Ways {
    bot: Arc<Api>,
    /// Opens connections; `None` without Socket Mode.
    app: Option<Arc<Api>>,
    speech: Speech,
}

impl Slack {
    /// # Errors
    /// When there is no way to Slack from this machine; a sentence.
    pub fn new(config: &SlackConfig) -> Result<Self, String> {
        Ok(Self { config: config.clone(), ways: Ways::of(config)? })
    }
}

impl Ways {
    fn of(config: &SlackConfig) -> Result<Self, String> {
        let bot = Arc::new(Api::new(&config.api_url, &config.bot_token)?);
        let app = config.app_token.as_ref().map(|token| Api::new(&config.api_url, token).map(Arc::new)).transpose()?;
        let speech = Speech::new(bot.clone());
        Ok(Self { bot, app, speech })
    }
}

impl Adapter for Slack {
    fn platform(&self) -> &'static str {
        "slack"
    }

    fn join(&self, chats: Chats) -> Chats {
        chats.with("slack", self.ways.speech.clone())
    }

    fn start(self: Box<Self>, front: Front) -> Started {
        self.ways.speech.keep_in(front.keep.clone());
        let gate = Gate::new(front.world.clone());
        let routes = match &self.config.signing_secret {
            Some(secret) => routes::router(gate.clone(), secret.clone()),
            None => axum::Router::new(),
        };
        Started { child: adapter::child(self.config, self.ways, front, gate), routes }
    }
}
