//! The run that holds a sprite's present files: which one it is, and when it may go on after a stop.
//!
//! A run's files are written through an overlay mount that never syncs, which is what makes checkpoints and restores
//! quick. So after a crash of the machine they may be torn, and the sprite continues from its last checkpoint. After a
//! crash of this process alone they are whole: the kernel went on. The file `run-state` tells the cases apart. It names
//! the run, the checkpoint that it is built on, and the boot under which it was written, or `synced` once the run was
//! stopped in order. A run that it does not name, or names otherwise than things are, is garbage. So restoring means to
//! remove that file, which need not wait for the disk: after a crash of the machine the run would not be trusted anyway.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::meta;
use super::trash::Trash;
use crate::host::layers;

const STATE: &str = "run-state";
const SYNCED: &str = "synced";

/// What the kernel keeps beside a run's files while they are mounted. Marked as used, so a second mount needs new ones.
const USED_UP: [&str; 2] = ["work", "root"];

/// What `run-state` says.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// The run's folder below the sprite's.
    run: String,
    /// The checkpoint below it; empty for the bare base.
    head: String,
    boot: String,
}

impl State {
    fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(STATE)).ok()?;
        let mut lines = text.lines().map(str::to_owned);
        let state = Self { run: lines.next()?, head: lines.next()?, boot: lines.next()? };
        // A file that was torn has not the end that it was given.
        text.ends_with('\n').then_some(state)
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join(STATE), format!("{}\n{}\n{}\n", self.run, self.head, self.boot))
    }
}

/// Makes a run ready for a sandbox on top of `head`: the present one if it can be trusted, or else a new, empty one.
/// Gives its folder's name below `dir`.
pub fn prepare(dir: &Path, head: Option<&str>, boot: &str, trash: &Trash) -> io::Result<String> {
    let head = head.unwrap_or_default();
    let state = State::read(dir).filter(|state| state.head == head && dir.join(&state.run).exists());
    match state {
        Some(mut state) if state.boot == boot || state.boot == SYNCED => {
            for part in USED_UP {
                trash.take(&dir.join(&state.run).join(part));
            }
            if state.boot == SYNCED {
                // From now on the files are not synced, so the word must not come back after a crash.
                boot.clone_into(&mut state.boot);
                state.write(dir)?;
                File::open(dir.join(STATE))?.sync_all()?;
            }
            Ok(state.run)
        }
        untrusted => {
            if let Some(State { run, .. }) = untrusted {
                tracing::warn!(dir = %dir.display(), "the machine went down while this sprite ran: it continues from its last checkpoint");
                trash.take(&dir.join(run));
            }
            let run = layers::new_run(dir)?;
            State { run: run.clone(), head: head.to_owned(), boot: boot.to_owned() }.write(dir)?;
            Ok(run)
        }
    }
}

/// The run that would be gone on with, if any.
pub fn present(dir: &Path) -> Option<String> {
    State::read(dir).map(|state| state.run)
}

/// Gives the present run up, so that the next one is new and empty. Its folder, which may still be in use, is the
/// caller's to take away.
pub fn give_up(dir: &Path) -> io::Result<Option<String>> {
    let Some(state) = State::read(dir) else { return Ok(None) };
    fs::remove_file(dir.join(STATE))?;
    if state.boot == SYNCED {
        // Else a crash of the machine could bring it back, and it would be trusted.
        File::open(dir)?.sync_all()?;
    }
    Ok(Some(state.run))
}

/// Makes the files of a stopped run the layer of checkpoint `id`, durably.
pub fn freeze(dir: &Path, run: &str, id: &str, trash: &Trash) -> io::Result<()> {
    layers::freeze(dir, run, id)?;
    trash.take(&dir.join("trash"));
    Ok(())
}

/// Takes a freeze back.
pub fn thaw(dir: &Path, run: &str, id: &str) -> io::Result<()> {
    fs::create_dir_all(dir.join(run))?;
    fs::rename(dir.join(meta::layer(id)), files(dir, run))
}

/// Takes back a freeze to checkpoint `id` that this process's predecessor was killed in: the files are moved already,
/// and no file names the checkpoint. Without such a one, does nothing.
pub fn undo_freeze(dir: &Path, head: Option<&str>, boot: &str, id: &str) -> io::Result<()> {
    let half_done = dir.join(meta::layer(id)).exists();
    match State::read(dir) {
        Some(state) if half_done && state.head == head.unwrap_or_default() && state.boot == boot => {
            if files(dir, &state.run).exists() { Ok(()) } else { thaw(dir, &state.run, id) }
        }
        _ => Ok(()),
    }
}

/// Where a run's files are, once a sandbox was started on it.
fn files(dir: &Path, run: &str) -> PathBuf {
    dir.join(run).join("up")
}

/// Makes the files of a stopped run last beyond this boot.
pub fn park(dir: &Path) -> io::Result<()> {
    let Some(state) = State::read(dir) else { return Ok(()) };
    rustix::fs::syncfs(File::open(dir)?)?;
    State { boot: SYNCED.to_owned(), ..state }.write(dir)?;
    File::open(dir.join(STATE))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn place() -> (tempfile::TempDir, Trash) {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path(), World::real(), 0).unwrap();
        (dir, trash)
    }

    /// A run on top of v1, as a sandbox leaves it.
    fn written(dir: &Path, trash: &Trash) -> String {
        let run = prepare(dir, Some("v1"), "boot-1", trash).unwrap();
        for part in ["up", "work", "root"] {
            fs::create_dir(dir.join(&run).join(part)).unwrap();
        }
        fs::write(files(dir, &run).join("file"), "").unwrap();
        run
    }

    #[tokio::test]
    async fn a_run_goes_on_within_a_boot_or_when_synced_on_its_own_checkpoint_and_not_otherwise() {
        for (synced, head, boot, goes_on) in [
            (false, "v1", "boot-1", true),
            (false, "v1", "boot-2", false),
            (false, "v2", "boot-1", false),
            (true, "v1", "boot-2", true),
            (true, "v2", "boot-2", false),
        ] {
            let (dir, trash) = place();
            written(dir.path(), &trash);
            if synced {
                park(dir.path()).unwrap();
            }
            let run = prepare(dir.path(), Some(head), boot, &trash).unwrap();
            assert_eq!(files(dir.path(), &run).join("file").exists(), goes_on, "{synced} {head} {boot}");
            assert!(!dir.path().join(&run).join("work").exists());
        }
    }

    #[tokio::test]
    async fn files_that_were_synced_once_are_not_trusted_for_ever() {
        let (dir, trash) = place();
        written(dir.path(), &trash);
        park(dir.path()).unwrap();
        prepare(dir.path(), Some("v1"), "boot-2", &trash).unwrap();
        let run = prepare(dir.path(), Some("v1"), "boot-3", &trash).unwrap();
        assert!(!files(dir.path(), &run).exists());
    }

    #[tokio::test]
    async fn a_run_that_was_given_up_never_goes_on() {
        let (dir, trash) = place();
        let old = written(dir.path(), &trash);
        assert_eq!(give_up(dir.path()).unwrap().as_ref(), Some(&old));
        assert_eq!(give_up(dir.path()).unwrap(), None);
        assert_ne!(prepare(dir.path(), Some("v1"), "boot-1", &trash).unwrap(), old);
    }

    #[tokio::test]
    async fn a_torn_state_is_no_state() {
        let (dir, trash) = place();
        written(dir.path(), &trash);
        for text in ["", "runs/1", "runs/1\nv1\nboot-1"] {
            fs::write(dir.path().join(STATE), text).unwrap();
            assert_eq!(State::read(dir.path()), None);
        }
    }

    #[tokio::test]
    async fn a_freeze_that_was_cut_off_is_undone_within_its_boot() {
        for (boot, undone) in [("boot-1", true), ("boot-2", false)] {
            let (dir, trash) = place();
            let run = written(dir.path(), &trash);
            freeze(dir.path(), &run, "v2", &trash).unwrap();
            undo_freeze(dir.path(), Some("v1"), boot, "v2").unwrap();
            assert_eq!(files(dir.path(), &run).join("file").exists(), undone);
            assert_eq!(dir.path().join("layers/v2").exists(), !undone);
        }
    }

    #[tokio::test]
    async fn a_freeze_that_is_taken_back_leaves_the_run_as_it_was() {
        let (dir, trash) = place();
        let run = written(dir.path(), &trash);
        freeze(dir.path(), &run, "v2", &trash).unwrap();
        assert!(dir.path().join("layers/v2/file").exists());
        thaw(dir.path(), &run, "v2").unwrap();
        assert!(files(dir.path(), &run).join("file").exists());
        assert!(!dir.path().join("layers/v2").exists());
    }
}
