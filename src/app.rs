//! The service as a whole: builds the tree of actors, is the way in for the command line, and stops it in order.

pub mod keys;
pub mod machines;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use ractor::{Actor, ActorRef};
use tokio::time::{Instant, timeout};

use crate::admin;
use crate::chat::adapter::{Adapter, Front, Keep};
use crate::chat::outbox::{self, Outbox, OutboxHandle};
use crate::chat::{Chats, Inbound};
use crate::config::Config;
use crate::desk::admission::Settings;
use crate::desk::debts::Debts;
use crate::desk::front::DeskHandle;
use crate::desk::recovery::{self, Interrupted, Recovered};
use crate::desk::stop::Stopping;
use crate::desk::{self, Desk, DeskStatus, Target};
use crate::job::RequesterId;
use crate::journal::sqlite::SqliteJournal;
use crate::journal::{Journal, JournalError};
use crate::observe::health::Board;
use crate::pool::supervisor::PoolParts;
use crate::pool::{self, PoolHandle, PoolStatus};
use crate::runner::build::BuildPlan;
use crate::supervise::current::{self, Publisher};
use crate::supervise::{self, ChildSpec, Supervisor};
use crate::vault::{VaultError, actor};
use crate::world::World;
use machines::Machines;

/// How long the tree may take to stop once its jobs have ended. Each child has a shorter time of its own.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// How long the outbox may take to send what is there when the service stops.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// The running service.
pub struct App {
    /// Outlives the actors, whose last calls go there.
    machines: Option<Machines>,
    /// Kept so that the runners go on following it.
    plans: Option<Publisher<Arc<BuildPlan>>>,
    root: ActorRef<supervise::Msg>,
    desk: DeskHandle,
    pool: PoolHandle,
    settings: Arc<Settings>,
    world: World,
    interrupted: Vec<Interrupted>,
    outbox: OutboxHandle,
    drain_timeout: Duration,
}

/// What an [`App`] is put together from.
pub struct Parts<J> {
    pub journal: J,
    pub world: World,
    pub settings: Settings,
    /// Started before the outbox and the desk, in this order, and stopped after them; the pool is among them.
    pub children: Vec<ChildSpec>,
    pub pool: PoolHandle,
    /// Chats that the outbox writes to, beside those of `serving`.
    pub chats: Chats,
    /// What makes it a service, if it is one.
    pub serving: Option<Serving>,
    pub drain_timeout: Duration,
}

/// The chats that are served, and where it is told how they are.
pub struct Serving {
    pub adapters: Vec<Box<dyn Adapter>>,
    pub socket: admin::Socket,
}

/// Why the service did not start. Messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("janebot could not start its parts ({0})")]
    Actors(String),
    #[error("{0}")]
    Machines(String),
    #[error(transparent)]
    Vault(VaultError),
}

impl App {
    /// Starts as configured: for one terminal, or as the service that serves chats.
    ///
    /// # Errors
    /// When it can't do its work so, which leaves nothing running.
    pub async fn start(config: &Config, world: World, serving: Option<Serving>) -> Result<Self, StartError> {
        let journal = SqliteJournal::open(&config.journal_path).await?;
        let deployment = journal.deployment_id().await?;
        let vault = keys::open(config, &world).await?;
        let machines = Machines::connect(config, vault.as_ref().map(|vault| vault.address), &world).await?;
        machines.try_out(&config.pool.prefix, &deployment, &world).await?;
        let plan = machines::plan(config, &machines, vault.as_ref().map(|vault| &vault.handle));
        let settings_warn = config.warnings();
        let receipts_warn = plan.warnings.iter().filter(|warning| !settings_warn.contains(warning));
        for warning in settings_warn.iter().chain(receipts_warn) {
            tracing::warn!("{warning}");
        }
        let (plans, plan) = current::channel(Arc::new(plan));
        let parts = PoolParts {
            sprites: machines.sprites.clone(),
            journal: journal.clone(),
            world: world.clone(),
            deployment,
            plan,
        };
        let (pool_child, pool) = pool::supervisor::child(config.pool.clone(), parts);
        let settings = Settings::of(config);
        let vault_child = vault.map(|vault| actor::child(vault.handle, vault.listener));
        let children = vault_child.into_iter().chain([pool_child]).collect();
        let (chats, drain_timeout) = (Chats::default(), config.drain_timeout);
        let parts = Parts { journal, world, settings, children, pool, chats, serving, drain_timeout };
        let mut app = Self::assemble(parts).await?;
        app.machines = Some(machines);
        app.plans = Some(plans);
        Ok(app)
    }

    /// Puts the service together: ends what an earlier process left open, then starts the tree.
    ///
    /// # Errors
    /// When the journal fails, or the root can't be started.
    pub async fn assemble<J: Journal>(parts: Parts<J>) -> Result<Self, StartError> {
        let Parts { journal, world, settings, mut children, pool, mut chats, serving, drain_timeout } = parts;
        if let Some(serving) = &serving {
            chats = serving.adapters.iter().fold(chats, |chats, adapter| adapter.join(chats));
        }
        let (kept, access) = (journal.clone(), settings.access.clone());
        let outbox = Outbox { journal: journal.clone(), chats, world: world.clone() };
        let (outbox_child, outbox) = outbox::child(outbox);
        children.push(outbox_child);
        let debts = Debts::with_outbox(outbox.clone());
        let Recovered { interrupted, accepted } = recovery::recover(&journal, &world, &debts).await?;
        let settings = Arc::new(settings);
        let (desk_child, desk) =
            desk::child(Desk { journal, pool: pool.clone(), world: world.clone(), settings: settings.clone(), debts });
        children.push(desk_child);
        if let Some(Serving { adapters, socket }) = serving {
            let (board, mut routes) = (Board::default(), Router::new());
            for adapter in adapters {
                let platform = adapter.platform();
                let started = adapter.start(Front {
                    desk: desk.clone(),
                    pool: pool.clone(),
                    world: world.clone(),
                    health: board.part(platform),
                    keep: Keep::new(platform, kept.clone()),
                    access: access.clone(),
                });
                children.push(started.child);
                routes = routes.merge(started.routes);
            }
            children.push(admin::child(socket, board, pool.clone(), routes));
        }
        let supervisor = Supervisor { name: "root", world: world.clone() };
        let (root, _join) =
            Actor::spawn(None, supervisor, children).await.map_err(|error| StartError::Actors(error.to_string()))?;
        desk.resume(accepted).await;
        Ok(Self { machines: None, plans: None, root, desk, pool, outbox, settings, world, interrupted, drain_timeout })
    }

    /// Hands in a message; its replies tell what becomes of it.
    pub async fn send(&self, inbound: Inbound) {
        self.desk.send(inbound).await;
    }

    /// Asks jobs to stop. Returns which are meant, or `None` when the desk does not answer.
    pub async fn cancel(&self, target: Target, by: RequesterId) -> Option<Stopping> {
        self.desk.cancel(target, by).await
    }

    /// How things stand; a part that does not answer is missing.
    pub async fn status(&self) -> (Option<DeskStatus>, Option<PoolStatus>) {
        tokio::join!(self.desk.status(), self.pool.status())
    }

    /// Jobs that the end of an earlier process interrupted, oldest first.
    pub fn interrupted(&self) -> &[Interrupted] {
        &self.interrupted
    }

    /// Waits until the service stops by itself, which it does only when a part fails again and again.
    pub async fn failed(&self) {
        // An error means that it has stopped before.
        let _ = self.root.wait(None).await;
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    /// The way in for adapters of chats.
    pub fn desk(&self) -> &DeskHandle {
        &self.desk
    }

    /// Stops as a service does that is told to: running jobs get [`Config::drain_timeout`].
    pub async fn drain(self) {
        let deadline = Instant::now() + self.drain_timeout;
        self.shutdown(deadline).await;
    }

    /// Starts nothing new, waits for running jobs until `deadline`, ends the rest as interrupted and stops everything.
    /// What waits in a chat is left to the next process, and so is what could not be sent.
    pub async fn shutdown(self, deadline: Instant) {
        let left = self.desk.drain(deadline).await;
        if !self.outbox.flush(FLUSH_PATIENCE).await {
            tracing::warn!("stopping although not everything is sent: the next start sends it");
        }
        if left > 0 {
            tracing::warn!(left, "stopping although jobs have not ended: they are interrupted");
        }
        let stopped = self.root.call(supervise::Msg::StopChildren, Some(STOP_PATIENCE)).await;
        if !matches!(stopped, Ok(ractor::rpc::CallResult::Success(()))) {
            tracing::error!("not everything stopped in time: ending it by force");
        }
        self.root.stop(None);
        // It has nothing left to stop; whatever hangs is killed with it.
        let _ = timeout(Duration::from_secs(1), self.root.wait(None)).await;
        if let Some(machines) = self.machines {
            machines.stop().await;
        }
    }
}
