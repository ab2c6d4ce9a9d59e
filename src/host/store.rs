//! The sprites of this host: what is on disk, and the life of each. The API's only way to a sandbox.
//!
//! ```text
//! STATE_DIR/lock                 held while a process uses the directory
//! STATE_DIR/sprites/NAME/        meta.json, run-state, layers/ID/, runs/N/
//! STATE_DIR/trash/               what is being deleted in the background
//! ```
//!
//! A sprite appears by one rename and goes by one rename, so a crash leaves a whole sprite or none. What else a crash
//! leaves (half-made sprites, layers and runs that no file names) is swept away after the next start.

mod machine;
mod meta;
mod runs;
mod sessions;
mod sprite;
mod trash;

use std::collections::{BTreeMap, btree_map};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use self::machine::Machine;
pub use self::meta::{Checkpoint, Meta, Undeletable, UrlSettings, micros};
pub use self::sessions::Lookup;
pub use self::sprite::Sprite;
use self::trash::{Room, Trash};
use super::lock::Lock;
use super::sandbox::{SandboxError, SandboxSpec};
use super::walls::Trial;
use crate::config::HostConfig;
use crate::sprites::NetworkPolicy;
use crate::world::World;

/// Sprites on one host. Each costs a few threads' worth of memory while it runs; the limit is against a client in a loop.
pub const MAX_SPRITES: usize = 1000;

/// What all sprites share.
pub struct Setup {
    pub config: HostConfig,
    /// The program that becomes a sandbox's init.
    pub exe: PathBuf,
    pub world: World,
    pub trial: Trial,
    /// The kernel's id of the present boot.
    boot: String,
    trash: Trash,
    /// Layers are merged one sprite at a time.
    flattening: Semaphore,
    last_session: AtomicU64,
    /// Given back when nothing uses the directory any more.
    lock: Mutex<Option<Lock>>,
}

impl Setup {
    /// A sandbox of this host's kind.
    fn spec(&self, name: String, dir: PathBuf, lower: Vec<String>, run: String) -> SandboxSpec {
        let HostConfig { rootfs, isolation, .. } = &self.config;
        let (rootfs, isolation, mut limits) = (rootfs.clone(), *isolation, self.config.limits.clone());
        // The limit on programs is held by the sprite's slots; file operations and a check come on top.
        limits.execs += sprite::FILE_OPERATIONS + 1;
        SandboxSpec { name, dir, lower, run, rootfs, limits, ports: machine::PORTS.to_vec(), isolation }
    }

    /// Waits for room on the disk, and refuses when there is none for something that `keeps` what it takes; what gives
    /// back more than it takes is refused only while deletions do not keep up.
    async fn check_room(&self, keeps: bool) -> Result<(), StoreError> {
        match self.trash.room().await.map_err(StoreError::disk("the disk's free space can't be read"))? {
            Room::Full(free) if keeps => Err(StoreError::DiskFull { free }),
            Room::Deleting(free) => Err(StoreError::StillDeleting { free }),
            Room::Full(_) | Room::Enough => Ok(()),
        }
    }

    /// A session id, never used before: a decimal number, as the API's clients know them, above all of earlier
    /// processes as long as the clock is.
    pub fn session_id(&self) -> String {
        (self.last_session.fetch_add(1, Ordering::Relaxed) + 1).to_string()
    }
}

/// All sprites by name.
pub struct Store {
    setup: Arc<Setup>,
    root: PathBuf,
    sprites: RwLock<BTreeMap<String, Arc<Sprite>>>,
}

/// What a new sprite is to be.
#[derive(Debug, Default)]
pub struct NewSprite {
    pub name: String,
    pub labels: Vec<String>,
    pub url_settings: UrlSettings,
    pub environment: BTreeMap<String, String>,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("sprite {name} not found")]
    NoSprite { name: String },
    #[error("checkpoint {id} not found")]
    NoCheckpoint { id: String },
    #[error("sprite {name} already exists")]
    Exists { name: String },
    #[error(
        "{name:?} is not a sprite name: use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end"
    )]
    BadName { name: String },
    #[error("sprite {name} is busy with a {doing}; try again when it is done")]
    Busy { name: String, doing: &'static str },
    #[error("this host has {limit} sprites, which is its limit; delete some")]
    TooManySprites { limit: usize },
    #[error("sprite {name} runs {limit} programs, which is its limit; wait for one to end or kill one")]
    TooManyExecs { name: String, limit: usize },
    #[error("sprite {name} is busy with {limit} file operations, which is its limit; wait for one to end")]
    TooManyFiles { name: String, limit: usize },
    #[error("sprite {name} has {limit} checkpoints, which is its limit; delete some")]
    TooManyCheckpoints { name: String, limit: usize },
    #[error("the sprite's files are built on {limit} checkpoints, which is the limit; restore an older one first")]
    TooDeep { limit: usize },
    #[error(transparent)]
    Undeletable(#[from] Undeletable),
    #[error("{0}")]
    BadPolicy(String),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("{what}: {source}")]
    Disk { what: &'static str, source: io::Error },
    #[error("{} MiB of disk are free on this machine, and {} MiB are always kept: make room on it", .free >> 20, trash::DISK_FLOOR >> 20)]
    DiskFull { free: u64 },
    #[error(
        "{} MiB of disk are free on this machine, and what earlier restores left is still being deleted; try again",
        .free >> 20
    )]
    StillDeleting { free: u64 },
    #[error("the host is shutting down")]
    ShuttingDown,
    /// A task of the host ended without its result: a fault of the host's own.
    #[error("the host failed inside while it was busy with {0}")]
    Internal(&'static str),
}

impl StoreError {
    /// For `map_err`: an error of the disk while doing `what`.
    fn disk(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk { what, source }
    }
}

impl Store {
    /// Reads what is there. No sandbox is started, and nothing is deleted before this returns.
    pub fn open(config: HostConfig, exe: PathBuf, world: World, lock: Lock, trial: Trial) -> io::Result<Self> {
        let root = config.state_dir.join("sprites");
        fs::create_dir_all(&root)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let trash = Trash::open(&config.state_dir, world.clone(), trash::DISK_FLOOR)?;
        let last_session = AtomicU64::new(u64::try_from(world.now().as_millisecond()).unwrap_or_default());
        let setup = Arc::new(Setup {
            config,
            exe,
            world,
            trial,
            boot,
            trash,
            flattening: Semaphore::new(1),
            last_session,
            lock: Mutex::new(Some(lock)),
        });
        let own_probe = format!("probe.{}.", std::process::id());
        for entry in fs::read_dir(&setup.config.state_dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Of the self-test of a process that was cut off; this one's own is taken care of.
            if name.starts_with("probe.") && !name.starts_with(&own_probe) {
                setup.trash.take(&entry.path());
            }
        }
        let mut sprites = BTreeMap::new();
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if !meta::is_valid_name(&name) {
                setup.trash.take(&entry.path());
                continue;
            }
            match Meta::read(&entry.path()) {
                Ok(meta) => drop(sprites.insert(name, Sprite::new(entry.path(), meta, setup.clone()))),
                Err(error) => {
                    tracing::error!(sprite = name, %error, "meta.json can't be read: the sprite is not served, and its name stays taken")
                }
            }
        }
        Ok(Self { setup, root, sprites: RwLock::new(sprites) })
    }

    /// Deletes, in the background, what a crash left.
    pub fn sweep(&self) {
        let sprites = self.all();
        tokio::spawn(async move {
            for sprite in sprites {
                sprite.sweep().await;
            }
        });
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn get(&self, name: &str) -> Result<Arc<Sprite>, StoreError> {
        let sprites = self.sprites.read().unwrap_or_else(PoisonError::into_inner);
        sprites.get(name).cloned().ok_or_else(|| StoreError::NoSprite { name: name.to_owned() })
    }

    /// In the order of their names.
    pub fn all(&self) -> Vec<Arc<Sprite>> {
        self.sprites.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes a sprite. Its sandbox starts when something is to run in it.
    pub async fn create(&self, new: NewSprite) -> Result<Arc<Sprite>, StoreError> {
        if !meta::is_valid_name(&new.name) {
            return Err(StoreError::BadName { name: new.name });
        }
        let count = self.sprites.read().unwrap_or_else(PoisonError::into_inner).len();
        if count >= MAX_SPRITES {
            return Err(StoreError::TooManySprites { limit: MAX_SPRITES });
        }
        self.setup.check_room(true).await?;
        let world = &self.setup.world;
        let mut meta = Meta::new(format!("sprite-{}", world.token(16)), new.name.clone(), world.now());
        meta.labels = new.labels;
        meta.url_settings = new.url_settings;
        meta.environment = new.environment;
        let dir = self.root.join(&new.name);
        // Not a sprite name, so a half-made one is known as such.
        let half_made = self.root.join(format!(".new-{}", meta.id));
        let meta = {
            let (dir, root) = (dir.clone(), self.root.clone());
            blocking("create", move || place(&half_made, &dir, &root, &meta).map(|()| meta)).await?
        };
        let meta = meta.map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                StoreError::Exists { name: new.name.clone() }
            }
            _ => StoreError::Disk { what: "the sprite can't be made", source: error },
        })?;
        let sprite = Sprite::new(dir, meta, self.setup.clone());
        self.sprites.write().unwrap_or_else(PoisonError::into_inner).insert(new.name, sprite.clone());
        Ok(sprite)
    }

    /// Ends all that runs in the sprite and deletes it; waits for a checkpoint or restore that is under way.
    pub async fn delete(self: &Arc<Self>, name: &str) -> Result<(), StoreError> {
        let sprite = self.get(name)?;
        sprite.delete().await?;
        let mut sprites = self.sprites.write().unwrap_or_else(PoisonError::into_inner);
        // A new one may have got the name already.
        if let btree_map::Entry::Occupied(entry) = sprites.entry(name.to_owned())
            && Arc::ptr_eq(entry.get(), &sprite)
        {
            entry.remove();
        }
        Ok(())
    }

    /// Stops all sandboxes, keeps their files for the next start, and frees the state directory.
    pub async fn shutdown(&self) {
        let mut stopping: JoinSet<()> =
            self.all().into_iter().map(|sprite| async move { sprite.park().await }).collect();
        while stopping.join_next().await.is_some() {}
        let setup = self.setup.clone();
        // A panic in there leaves nothing to wait for.
        let _ = blocking("a shutdown", move || setup.trash.end()).await;
        drop(self.setup.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Writes a sprite's folder aside and moves it to its place, unless there is one already.
fn place(half_made: &Path, dir: &Path, root: &Path, meta: &Meta) -> io::Result<()> {
    fs::create_dir(half_made)?;
    let placed = meta.write_first(half_made).and_then(|()| fs::rename(half_made, dir));
    if placed.is_err() {
        fs::remove_dir_all(half_made)?;
    }
    placed?;
    fs::File::open(root)?.sync_all()
}

/// Checks a policy before it is kept.
fn check_policy(policy: &NetworkPolicy) -> Result<(), StoreError> {
    super::egress::policy::validate(policy).map_err(StoreError::BadPolicy)
}

/// Runs disk work off the async threads.
async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Internal(doing))
}
