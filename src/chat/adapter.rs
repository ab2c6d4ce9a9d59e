//! How the front end of a chat is started: what it is given, and what it is.
//!
//! An adapter is one child of the root supervisor, with what it needs below it. It hands messages in by the desk's
//! handle and is written to by the outbox; it knows neither pool nor sprites. When it can't do its work, it says so on
//! the board and tries again by itself: a chat that is down is no reason for the service to stop.

use std::sync::Arc;

use axum::Router;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Chats;
use crate::config::AccessConfig;
use crate::desk::front::DeskHandle;
use crate::journal::{self, Journal};
use crate::observe::health::Part;
use crate::pool::PoolHandle;
use crate::supervise::ChildSpec;
use crate::world::World;

/// The front end of one chat platform, as configured.
pub trait Adapter: Send {
    /// The platform's name, which its ids begin with, as in `discord`.
    fn platform(&self) -> &'static str;
    /// Adds the platform's [`Chat`](super::Chat), so that the outbox can write to it.
    fn join(&self, chats: Chats) -> Chats;
    /// The adapter as a child for the root supervisor.
    fn start(self: Box<Self>, front: Front) -> Started;
}

/// What an adapter is given.
#[derive(Clone)]
pub struct Front {
    /// The way in.
    pub desk: DeskHandle,
    /// For its status only.
    pub pool: PoolHandle,
    pub world: World,
    /// Its place on the board.
    pub health: Part,
    /// What it needs again after a restart.
    pub keep: Keep,
    /// Who may do what; the desk sees to it for everything that is handed in.
    pub access: AccessConfig,
}

/// What an adapter is when it is started.
pub struct Started {
    /// Its policy should be [`SPARE`](crate::supervise::RestartPolicy::SPARE).
    pub child: ChildSpec,
    /// What it wants served on the admin listener, as for events that come by HTTP.
    pub routes: Router,
}

/// Small values of one adapter that survive a restart, in the journal.
#[derive(Clone)]
pub struct Keep {
    prefix: &'static str,
    store: Arc<dyn Store>,
}

impl Keep {
    /// The values of `platform`.
    pub fn new<J: Journal>(platform: &'static str, journal: J) -> Self {
        Self { prefix: platform, store: Arc::new(journal) }
    }

    /// The value that was put under this name last.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn get(&self, name: &str) -> journal::Result<Option<String>> {
        self.store.get(&self.key(name)).await
    }

    /// Puts a value in the place of the one before. It is durable when this returns.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn put(&self, name: &str, value: &str) -> journal::Result<()> {
        self.store.put(&self.key(name), Some(value)).await
    }

    /// Takes a value away.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn remove(&self, name: &str) -> journal::Result<()> {
        self.store.put(&self.key(name), None).await
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }
}

/// A [`Journal`] behind a pointer, as far as [`Keep`] needs it.
trait Store: Send + Sync {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, journal::Result<Option<String>>>;
    fn put<'a>(&'a self, key: &'a str, value: Option<&'a str>) -> BoxFuture<'a, journal::Result<()>>;
}

impl<J: Journal> Store for J {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, journal::Result<Option<String>>> {
        self.kept(key).boxed()
    }

    fn put<'a>(&'a self, key: &'a str, value: Option<&'a str>) -> BoxFuture<'a, journal::Result<()>> {
        self.keep(key, value).boxed()
    }
}
