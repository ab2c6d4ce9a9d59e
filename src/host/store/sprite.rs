//! The life of one sprite: which sandbox runs it, what may happen at the same time, and its sessions.
//!
//! Programs and file operations share the sprite; a checkpoint, a restore, a restart and a deletion have it alone:
//!
//! - A program or file operation that comes meanwhile waits for the end, at most [`PATIENCE`], and then runs on the
//!   result.
//! - A second checkpoint, restore or restart that comes meanwhile is refused as busy. A deletion waits.
//! - Programs that run when one of these begins are ended; their sessions say why.
//!
//! What is asked for is done even when the asker leaves: each of these is a task of its own.

mod flatten;
mod sweep;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use self::flatten::Flattening;
use super::meta::{LONG_CHAIN, MAX_CHECKPOINTS, Meta};
use super::sessions::{Lookup, Sessions};
use super::{Machine, Setup, StoreError, blocking, check_policy, runs};
use crate::host::layers::MAX_CHAIN;
use crate::host::sandbox::{Command, Process, SandboxError};
use crate::host::session::{Launch, Reader, Session};
use crate::sprites::NetworkPolicy;

/// How long a program waits for a checkpoint, restore or deletion that is under way.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sandboxes that may die under one request before it is given up.
const TRIES: usize = 3;

/// File operations at a time; more wait.
pub(super) const FILE_OPERATIONS: usize = 16;

pub struct Sprite {
    dir: PathBuf,
    setup: Arc<Setup>,
    meta: RwLock<Meta>,
    /// Held while `meta.json` is written.
    writing: tokio::sync::Mutex<()>,
    /// Held while the sandbox is started, stopped or replaced.
    life: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    policy: watch::Sender<NetworkPolicy>,
    sessions: Mutex<Sessions>,
    slots: Arc<Semaphore>,
    file_slots: Arc<Semaphore>,
    flattening: Flattening,
}

struct State {
    machine: Option<Arc<Machine>>,
    /// What has the sprite alone.
    busy: Option<&'static str>,
    closed: Option<Closed>,
}

/// Why nothing is started any more.
#[derive(Clone, Copy)]
enum Closed {
    Deleted,
    ShuttingDown,
}

/// Marks the sprite as taken by one operation, until dropped.
struct Exclusive(Arc<Sprite>);

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.0.state().busy = None;
    }
}

impl Sprite {
    pub(super) fn new(dir: PathBuf, meta: Meta, setup: Arc<Setup>) -> Arc<Self> {
        Arc::new(Self {
            dir,
            policy: watch::Sender::new(meta.policy.clone()),
            meta: RwLock::new(meta),
            writing: tokio::sync::Mutex::new(()),
            life: tokio::sync::Mutex::new(()),
            state: Mutex::new(State { machine: None, busy: None, closed: None }),
            sessions: Mutex::default(),
            slots: Arc::new(Semaphore::new(setup.config.limits.execs)),
            file_slots: Arc::new(Semaphore::new(FILE_OPERATIONS)),
            flattening: Flattening::default(),
            setup,
        })
    }

    pub fn meta(&self) -> Meta {
        self.meta.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a sandbox runs.
    pub fn is_running(&self) -> bool {
        self.running().is_some()
    }

    /// Changes labels and other facts that concern nobody else; the new facts.
    pub async fn update(self: &Arc<Self>, edit: impl FnOnce(&mut Meta) + Send + 'static) -> Result<Meta, StoreError> {
        self.change(move |meta, now| {
            edit(meta);
            meta.updated_at = super::micros(now);
            Ok(())
        })
        .await?;
        Ok(self.meta())
    }

    /// Puts a network policy in force: for every name looked up and connection made from now on.
    pub async fn set_policy(self: &Arc<Self>, policy: NetworkPolicy) -> Result<(), StoreError> {
        check_policy(&policy)?;
        self.change(move |meta, _| {
            meta.policy = policy;
            Ok(())
        })
        .await
    }

    /// Takes a place among the programs that may run at a time.
    pub fn reserve(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let limit = self.setup.config.limits.execs;
        self.slots.clone().try_acquire_owned().map_err(|_| StoreError::TooManyExecs { name: self.meta().name, limit })
    }

    /// Runs a program in a session of its own.
    pub async fn exec(
        self: &Arc<Self>,
        command: Command,
        launch: Launch,
        slot: OwnedSemaphorePermit,
    ) -> Result<(Arc<Session>, Reader), StoreError> {
        let (process, machine) = self.spawn(command).await?;
        let sprite = Arc::downgrade(self);
        let (session, reader) = Session::start(launch, process, machine, slot, move |session| {
            if let Some(sprite) = sprite.upgrade() {
                sprite.sessions().end(&session.launch.id);
            }
        })
        .map_err(SandboxError::from)?;
        self.sessions().add(&session);
        Ok((session, reader))
    }

    /// Waits for a place among the file operations, at most [`PATIENCE`]: clients that read slowly may hold them all.
    pub async fn file_slot(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        match tokio::time::timeout(PATIENCE, self.file_slots.clone().acquire_owned()).await {
            // The semaphore is never closed.
            Ok(slot) => slot.map_err(|_| StoreError::Internal("a file operation")),
            Err(_) => Err(StoreError::TooManyFiles { name: self.meta().name, limit: FILE_OPERATIONS }),
        }
    }

    /// Starts a program or file operation in the sandbox, starting that first where needed.
    pub async fn spawn(self: &Arc<Self>, command: Command) -> Result<(Process, Arc<Machine>), StoreError> {
        let mut tries = 0;
        loop {
            let machine = self.machine().await?;
            tries += 1;
            match machine.spawn(command.clone()).await {
                Ok(process) => return Ok((process, machine)),
                // Nothing was started, so trying again is safe: a restore came in between, or the sandbox had died.
                Err(SandboxError::Gone) if tries < TRIES => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The running sandbox, started if need be.
    pub async fn machine(self: &Arc<Self>) -> Result<Arc<Machine>, StoreError> {
        {
            let state = self.state();
            if let (None, Some(machine)) = (state.busy, &state.machine)
                && machine.is_alive()
            {
                return Ok(machine.clone());
            }
        }
        let sprite = self.clone();
        task("start", async move {
            let Ok(_life) = tokio::time::timeout(PATIENCE, sprite.life.lock()).await else {
                let doing = sprite.state().busy.unwrap_or("start");
                return Err(StoreError::Busy { name: sprite.meta().name, doing });
            };
            sprite.check_open()?;
            match sprite.running() {
                Some(machine) => Ok(machine),
                None => sprite.start().await,
            }
        })
        .await
    }

    /// Freezes the present files as a checkpoint; its id. Ends what runs.
    pub fn checkpoint(self: &Arc<Self>, comment: String) -> Result<JoinHandle<Result<String, StoreError>>, StoreError> {
        let sprite = self.clone();
        let exclusive = self.begin("checkpoint")?;
        Ok(tokio::spawn(async move {
            let id = sprite.freeze(comment).await?;
            drop(exclusive);
            // Whoever comes next finds it started or waits for it; should it fail, they learn why.
            tokio::spawn(async move { drop(sprite.machine().await) });
            Ok(id)
        }))
    }

    async fn freeze(self: &Arc<Self>, comment: String) -> Result<String, StoreError> {
        let _life = self.life.lock().await;
        self.check_open()?;
        let meta = self.meta();
        if meta.checkpoints.len() >= MAX_CHECKPOINTS {
            return Err(StoreError::TooManyCheckpoints { name: meta.name, limit: MAX_CHECKPOINTS });
        }
        if self.layers_below(&meta).len() >= MAX_CHAIN {
            return Err(StoreError::TooDeep { limit: MAX_CHAIN });
        }
        self.setup.check_room(true).await?;
        let id = meta.next_checkpoint_id();
        // Only a sandbox's start makes the folder of a sprite that never ran, and decides about one that did.
        let machine = match self.running() {
            Some(machine) => machine,
            None => self.start().await?,
        };
        // From here on nothing writes. That its overlay is still being unmounted hinders nobody but the next start, and
        // that waits for it.
        machine.kill("the sprite was stopped for a checkpoint").await?;
        let run = machine.run.clone();
        let (dir, setup, layer) = (self.dir.clone(), self.setup.clone(), id.clone());
        blocking("a checkpoint", move || runs::freeze(&dir, &run, &layer, &setup.trash))
            .await?
            .map_err(StoreError::disk("the files can't be frozen"))?;
        let recorded = self
            .change(move |meta, now| {
                meta.add_checkpoint(comment, now);
                Ok(())
            })
            .await;
        if recorded.is_err() {
            // The files go back to where the unchanged meta.json says they are.
            let (dir, layer, run) = (self.dir.clone(), id.clone(), machine.run.clone());
            let thawed = blocking("a checkpoint", move || runs::thaw(&dir, &run, &layer)).await?;
            thawed.map_err(StoreError::disk("the files of a failed checkpoint can't be put back"))?;
        }
        recorded.map(|()| id)
    }

    /// Puts the files back as they were at checkpoint `id`, and ends all that runs. Done when a new sandbox runs.
    pub fn restore(self: &Arc<Self>, id: &str) -> Result<JoinHandle<Result<(), StoreError>>, StoreError> {
        let id = id.to_owned();
        if self.meta().checkpoint(&id).is_none() {
            return Err(StoreError::NoCheckpoint { id });
        }
        let sprite = self.clone();
        let exclusive = self.begin("restore")?;
        Ok(tokio::spawn(async move {
            let _exclusive = exclusive;
            let _life = sprite.life.lock().await;
            sprite.check_open()?;
            sprite.setup.check_room(false).await?;
            if sprite.meta().head.as_ref() != Some(&id) {
                // The old run is not of this checkpoint, so from here on it is garbage.
                let id = id.clone();
                let edit = move |meta: &mut Meta, _| {
                    if meta.restore(&id) { Ok(()) } else { Err(StoreError::NoCheckpoint { id }) }
                };
                sprite.change(edit).await?;
            }
            sprite.begin_anew(&format!("the sprite was restored to {id}")).await
        }))
    }

    /// Ends what runs and starts a new sandbox on a new, empty run. The one need not wait for the other, since they
    /// share only frozen layers. The caller holds `life`.
    async fn begin_anew(self: &Arc<Self>, reason: &str) -> Result<(), StoreError> {
        let dir = self.dir.clone();
        let given_up = match blocking("a restore", move || runs::give_up(&dir)).await? {
            Ok(run) => run,
            Err(source) => {
                // What runs may be built on another checkpoint than the facts say by now.
                self.stop("the sprite could not be restored").await?;
                return Err(StoreError::Disk { what: "the present files can't be given up", source });
            }
        };
        let old = self.state().machine.take();
        let killing = async {
            match &old {
                Some(old) => old.kill(reason).await,
                None => Ok(()),
            }
        };
        let (killed, started) = tokio::join!(killing, self.start());
        if let Err(error) = killed {
            // Something of the old one may live, so nothing is vouched for.
            self.stop("the sprite could not be restored").await?;
            return Err(error.into());
        }
        let sprite = self.clone();
        tokio::spawn(async move {
            if let Some(old) = old
                && let Err(error) = old.released().await
            {
                tracing::warn!(sprite = sprite.meta().name, %error, "its old files stay until the next start");
            } else if let Some(run) = given_up {
                sprite.setup.trash.take(&sprite.dir.join(run));
                sprite.sweep().await;
            }
        });
        started.map(drop)
    }

    /// Deletes a checkpoint that nothing is built on.
    pub async fn delete_checkpoint(self: &Arc<Self>, id: &str) -> Result<(), StoreError> {
        let exclusive = self.begin("checkpoint's deletion")?;
        let (sprite, id) = (self.clone(), id.to_owned());
        task("a checkpoint's deletion", async move {
            let _exclusive = exclusive;
            let _life = sprite.life.lock().await;
            sprite.check_open()?;
            sprite.change(move |meta, _| Ok(meta.remove_checkpoint(&id)?)).await?;
            sprite.discard_unused();
            Ok(())
        })
        .await
    }

    /// Ends all that runs and starts anew on the same files.
    pub async fn restart(self: &Arc<Self>) -> Result<(), StoreError> {
        let exclusive = self.begin("restart")?;
        let sprite = self.clone();
        task("restart", async move {
            let _exclusive = exclusive;
            let _life = sprite.life.lock().await;
            sprite.check_open()?;
            sprite.stop("the sprite was restarted").await?;
            sprite.start().await.map(drop)
        })
        .await
    }

    pub(super) async fn delete(self: &Arc<Self>) -> Result<(), StoreError> {
        let sprite = self.clone();
        task("deletion", async move {
            let _life = sprite.life.lock().await;
            sprite.check_open()?;
            sprite.stop("the sprite was deleted").await?;
            sprite.flattening.end().await;
            let _writing = sprite.writing.lock().await;
            if !sprite.setup.trash.take(&sprite.dir) {
                return Err(StoreError::Disk {
                    what: "the sprite's folder can't be moved away",
                    source: std::io::Error::other(sprite.dir.display().to_string()),
                });
            }
            sprite.state().closed = Some(Closed::Deleted);
            Ok(())
        })
        .await
    }

    /// Stops the sandbox for good and makes its files last until the next start.
    pub(super) async fn park(self: &Arc<Self>) {
        let _life = self.life.lock().await;
        if self.state().closed.is_some() {
            return;
        }
        self.state().closed = Some(Closed::ShuttingDown);
        self.flattening.end().await;
        let dir = self.dir.clone();
        let parked = match self.stop("the host is shutting down").await {
            Ok(false) => return,
            Ok(true) => blocking("a shutdown", move || runs::park(&dir)).await,
            Err(error) => Err(error),
        };
        let error = match parked {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(sprite = self.meta().name, error, "the files may not survive this machine's next crash");
    }

    pub fn running_sessions(&self) -> Vec<Arc<Session>> {
        self.sessions().running()
    }

    pub fn session(&self, id: &str) -> Lookup {
        self.sessions().find(id)
    }

    /// Starts the sandbox on the present files. The caller holds `life`.
    async fn start(self: &Arc<Self>) -> Result<Arc<Machine>, StoreError> {
        let dead = self.state().machine.take();
        if let Some(dead) = dead {
            // It may be that the run goes on, which no two overlays can share.
            dead.released().await?;
        }
        let meta = self.meta();
        let lower = self.layers_below(&meta);
        let next = meta.next_checkpoint_id();
        let (dir, setup, head) = (self.dir.clone(), self.setup.clone(), meta.head);
        let run = blocking("start", move || {
            runs::undo_freeze(&dir, head.as_deref(), &setup.boot, &next)?;
            runs::prepare(&dir, head.as_deref(), &setup.boot, &setup.trash)
        });
        let run = run.await?.map_err(StoreError::disk("the sprite's folders can't be made"))?;
        let spec = self.setup.spec(meta.name, self.dir.clone(), lower, run);
        let machine = Machine::start(spec, &self.setup, self.policy.subscribe()).await?;
        self.state().machine = Some(machine.clone());
        self.flatten_if_long();
        Ok(machine)
    }

    /// Stops the sandbox; whether there was one. When it can't be stopped it stays the sprite's, so that its files are
    /// not touched under it. The caller holds `life`.
    async fn stop(&self, reason: &str) -> Result<bool, StoreError> {
        let machine = self.state().machine.clone();
        let Some(machine) = machine else { return Ok(false) };
        machine.kill(reason).await?;
        machine.released().await?;
        self.state().machine = None;
        Ok(true)
    }

    fn running(&self) -> Option<Arc<Machine>> {
        self.state().machine.clone().filter(|machine| machine.is_alive())
    }

    fn begin(self: &Arc<Self>, doing: &'static str) -> Result<Exclusive, StoreError> {
        let mut state = self.state();
        if let Some(doing) = state.busy {
            drop(state);
            return Err(StoreError::Busy { name: self.meta().name, doing });
        }
        state.busy = Some(doing);
        Ok(Exclusive(self.clone()))
    }

    fn check_open(&self) -> Result<(), StoreError> {
        let closed = self.state().closed;
        match closed {
            None => Ok(()),
            Some(Closed::Deleted) => Err(StoreError::NoSprite { name: self.meta().name }),
            Some(Closed::ShuttingDown) => Err(StoreError::ShuttingDown),
        }
    }

    /// Changes the facts on disk, then in memory, then the policy in force. An edit that fails changes nothing.
    async fn change(
        self: &Arc<Self>,
        edit: impl FnOnce(&mut Meta, jiff::Timestamp) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let sprite = self.clone();
        task("a change", async move {
            let _writing = sprite.writing.lock().await;
            if let Some(Closed::Deleted) = sprite.state().closed {
                // The folder's name may be another sprite's by now.
                return Err(StoreError::NoSprite { name: sprite.meta().name });
            }
            let mut meta = sprite.meta();
            edit(&mut meta, sprite.setup.world.now())?;
            let (dir, written) = (sprite.dir.clone(), meta.clone());
            blocking("a change", move || written.write(&dir))
                .await?
                .map_err(StoreError::disk("the sprite's facts can't be written"))?;
            sprite.policy.send_if_modified(|policy| {
                let differs = *policy != meta.policy;
                policy.clone_from(&meta.policy);
                differs
            });
            *sprite.meta.write().unwrap_or_else(PoisonError::into_inner) = meta;
            Ok(())
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs to the end even when the caller is dropped.
async fn task<T: Send + 'static>(
    doing: &'static str,
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(work).await.map_err(|_| StoreError::Internal(doing))?
}
