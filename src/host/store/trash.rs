//! Deleting large folders off everyone's way: a rename now, the removal in the background, also after a crash between.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::host::layers;
use crate::world::World;

/// Takes folders and deletes them one after the other. Everything handed in lies on the file system of its directory.
pub struct Trash {
    dir: PathBuf,
    world: World,
    queue: mpsc::UnboundedSender<PathBuf>,
}

impl Trash {
    /// Opens `state_dir/trash` and goes on with what an earlier process left there. Ends when dropped.
    pub fn open(state_dir: &Path, world: World) -> io::Result<Self> {
        let dir = state_dir.join("trash");
        fs::create_dir_all(&dir)?;
        // Not bounded: each entry is a path, and there are no more of them than folders on disk.
        let (queue, mut taken) = mpsc::unbounded_channel::<PathBuf>();
        for entry in fs::read_dir(&dir)? {
            // The receiver is right here.
            let _ = queue.send(entry?.path());
        }
        tokio::spawn(async move {
            while let Some(path) = taken.recv().await {
                let removed = tokio::task::spawn_blocking({
                    let path = path.clone();
                    move || layers::remove_tree(&path)
                });
                if let Ok(Err(error)) = removed.await {
                    tracing::warn!(path = %path.display(), %error, "could not be deleted; tried again at the next start");
                }
            }
        });
        Ok(Self { dir, world, queue })
    }

    /// Takes the file or folder at `path` away at once; that it is gone is not durable until its folder is synced.
    /// Whether there was one and it went.
    pub fn take(&self, path: &Path) -> bool {
        let to = self.dir.join(self.world.token(16));
        match fs::rename(path, &to) {
            Ok(()) => {
                // When the process is ending nobody listens; the next one finds it.
                let _ = self.queue.send(to);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "could not be moved to the trash");
                false
            }
        }
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
        let trash = Trash::open(dir.path(), World::real()).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(trash.take(&dir.path().join("file")));
        assert!(!trash.take(&dir.path().join("file")));
        while fs::read_dir(dir.path().join("trash")).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    }
}
