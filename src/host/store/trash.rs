//! Deleting large folders off everyone's way: a rename now, the removal in the background, also after a crash between.
//!
//! One thread of low priority removes one thing after the other, so that programs and checkpoints go first. Disk that
//! waits to be freed is bounded by [`Trash::room`]: when little is free, what would take more waits for the deletions.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::host::layers;
use crate::world::World;

/// When less is free nothing new is begun. The same at which sprites that have written much are ended.
pub const DISK_FLOOR: u64 = 512 << 20;

/// How long something new waits for deletions to make room.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of all that may want the processor, deletions come last.
const NICE: i32 = 19;

/// Takes folders and deletes them one after the other. Everything handed in lies on the file system of its directory.
pub struct Trash {
    dir: PathBuf,
    world: World,
    floor: u64,
    queue: mpsc::Sender<PathBuf>,
    /// How many wait or are being deleted.
    left: Arc<watch::Sender<usize>>,
    stop: Arc<AtomicBool>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

/// Whether there is room for something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// So many bytes are free, and deletions have not made it more in time.
    Deleting(u64),
    /// So many bytes are free, and nothing is being deleted.
    Full(u64),
}

impl Trash {
    /// Opens `state_dir/trash` and goes on with what an earlier process left there. Below `floor` free bytes there is
    /// no room.
    pub fn open(state_dir: &Path, world: World, floor: u64) -> io::Result<Self> {
        let dir = state_dir.join("trash");
        fs::create_dir_all(&dir)?;
        // Not bounded: each entry is a path, and there are no more of them than folders on disk.
        let (queue, taken) = mpsc::channel();
        let (left, stop) = (Arc::new(watch::Sender::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = thread::Builder::new().name("trash".into()).spawn({
            let (left, stop) = (left.clone(), stop.clone());
            move || delete_all(&taken, &left, &stop)
        })?;
        let trash = Self { dir, world, floor, queue, left, stop, thread: Some(thread).into() };
        for entry in fs::read_dir(&trash.dir)? {
            trash.send(entry?.path());
        }
        Ok(trash)
    }

    /// Takes the file or folder at `path` away at once; that it is gone is not durable until its folder is synced.
    /// Whether there was one and it went.
    pub fn take(&self, path: &Path) -> bool {
        let to = self.dir.join(self.world.token(16));
        match fs::rename(path, &to) {
            Ok(()) => {
                self.send(to);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "could not be moved to the trash");
                false
            }
        }
    }

    /// Says whether there is room for something new, after waiting for deletions if there is not.
    pub async fn room(&self) -> io::Result<Room> {
        let until = Instant::now() + PATIENCE;
        let mut left = self.left.subscribe();
        loop {
            let is_idle = *left.borrow_and_update() == 0;
            let stat = rustix::fs::statvfs(&self.dir)?;
            let free = stat.f_bavail * stat.f_frsize;
            match (free >= self.floor, is_idle) {
                (true, _) => return Ok(Room::Enough),
                (false, true) => return Ok(Room::Full(free)),
                // The sender lives in `self`, so only the time can end the wait.
                (false, false) => {
                    if timeout_at(until, left.changed()).await.is_err() {
                        return Ok(Room::Deleting(free));
                    }
                }
            }
        }
    }

    /// Stops deleting; the next process goes on. Blocks until nothing is touched any more.
    pub fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread. Its end is known by the join.
        let _ = self.queue.send(PathBuf::new());
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic was told when it happened.
            let _ = thread.join();
        }
    }

    fn send(&self, path: PathBuf) {
        self.left.send_modify(|left| *left += 1);
        // When the process is ending nobody listens; the next one finds it.
        let _ = self.queue.send(path);
    }
}

/// The thread's work: until the trash is dropped or told to stop.
fn delete_all(taken: &mpsc::Receiver<PathBuf>, left: &watch::Sender<usize>, stop: &AtomicBool) {
    // Linux gives every thread a priority of its own, and this is about the calling one. Where it is refused, all goes
    // on as usual.
    let _ = rustix::process::setpriority_process(None, NICE);
    let is_stopped = || stop.load(Ordering::Relaxed);
    while let Ok(path) = taken.recv() {
        if is_stopped() {
            return;
        }
        match layers::remove_tree(&path, is_stopped) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                tracing::warn!(path = %path.display(), %error, "could not be deleted; tried again at the next start");
            }
            _ => {}
        }
        left.send_modify(|left| *left -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_an_earlier_process_left_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("trash/left");
        fs::create_dir_all(left.join("deep")).unwrap();
        let trash = Trash::open(dir.path(), World::real(), 0).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(trash.take(&dir.path().join("file")));
        assert!(!trash.take(&dir.path().join("file")));
        while fs::read_dir(dir.path().join("trash")).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_said_to_be_full_once_the_deletions_are_done() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("trash/left/deep")).unwrap();
        let trash = Trash::open(dir.path(), World::real(), u64::MAX).unwrap();
        assert!(matches!(trash.room().await.unwrap(), Room::Full(_)));
        assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
        let roomy = Trash::open(dir.path(), World::real(), 0).unwrap();
        assert_eq!(roomy.room().await.unwrap(), Room::Enough);
    }

    #[tokio::test]
    async fn after_the_end_nothing_is_deleted_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path(), World::real(), 0).unwrap();
        trash.end();
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(trash.take(&dir.path().join("folder")));
        assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 1);
    }
}
