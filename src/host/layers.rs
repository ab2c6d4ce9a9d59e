//! The folder of one sprite on disk: the frozen layers that checkpoints are, and the run that is being written.
//!
//! ```text
//! layers/<id>/     frozen: never written again, named by checkpoints
//! runs/<n>/up      what the running sandbox writes; beside it `work` and `root`, which only the kernel uses
//! base-…/          the skeleton, see `sandbox::base`
//! trash/           what may be deleted at leisure
//! ```
//!
//! An overlay is mounted `volatile`, which the kernel refuses to mount again with the same `work`. So a restore is a new
//! run above the layers of a checkpoint, and a run that goes on after a stop needs a new `work`; whether its files may
//! be trusted then is for the store to know.
//! Every function leaves a state that [`recover`] understands, whenever it is cut off. They block: call them from
//! `spawn_blocking`. [`merge`] makes one layer of a chain that has become long.

pub mod merge;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Layers below a run. The kernel takes their names in one page of 4 KiB; with ids of at most 40 characters 64 fit.
pub const MAX_CHAIN: usize = 64;

const LAYERS: &str = "layers";
const RUNS: &str = "runs";
const TRASH: &str = "trash";
/// Bytes of a path below which a directory is moved up before it is entered: the kernel takes paths of 4 KiB, and hostile
/// programs can nest deeper, since each of their own steps is short.
const DEEP: usize = 3000;
/// What the service's own user needs on a directory to empty it.
const OWNER_ALL: u32 = 0o700;

/// Makes the next run's folder, empty, and gives its name below `dir`.
///
/// # Errors
/// When the file system refuses.
pub fn new_run(dir: &Path) -> io::Result<String> {
    let runs = dir.join(RUNS);
    fs::create_dir_all(&runs)?;
    let mut number = names(&runs)?.iter().filter_map(|name| name.parse::<u64>().ok()).max().map_or(1, |n| n + 1);
    loop {
        match fs::create_dir(runs.join(number.to_string())) {
            Ok(()) => return Ok(format!("{RUNS}/{number}")),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(e),
        }
    }
}

/// Keeps what a *stopped* run has written as the layer `id`, and gives the layer's name below `dir`. When it returns,
/// the layer survives a power cut. The rest of the run goes to the trash.
///
/// # Errors
/// When the file system refuses, or a layer of that name exists; then the run is as it was.
pub fn freeze(dir: &Path, run: &str, id: &str) -> io::Result<String> {
    let layers = dir.join(LAYERS);
    if !layers.exists() {
        fs::create_dir_all(&layers)?;
        File::open(dir)?.sync_all()?;
    }
    let (up, layer) = (dir.join(run).join("up"), layers.join(id));
    if layer.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // A volatile overlay syncs nothing by itself: all of it first, then the name that says it is there.
    rustix::fs::syncfs(File::open(&up)?)?;
    fs::rename(&up, &layer)?;
    File::open(&layers)?.sync_all()?;
    discard(dir, run)?;
    Ok(format!("{LAYERS}/{id}"))
}

/// Puts a run or a layer (a name below `dir`) out of the way. Quick whatever its size; [`empty_trash`] does the rest. One
/// that is not there is fine.
///
/// # Errors
/// When the file system refuses.
pub fn discard(dir: &Path, name: &str) -> io::Result<()> {
    let trash = dir.join(TRASH);
    fs::create_dir_all(&trash)?;
    let flat = name.replace('/', "-");
    for attempt in 0_u64.. {
        // A rename onto a directory that has something in it fails, onto an empty one it does not: look first.
        let place = trash.join(format!("{flat}.{attempt}"));
        if place.exists() {
            continue;
        }
        return match fs::rename(dir.join(name), place) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        };
    }
    Ok(())
}

/// Deletes what lies in the trash. Slow: a background task's work.
///
/// # Errors
/// The first failure; it goes on with the rest all the same.
pub fn empty_trash(dir: &Path) -> io::Result<()> {
    let trash = dir.join(TRASH);
    let mut result = Ok(());
    for name in names(&trash)? {
        result = result.and(remove_tree(&trash.join(name), || false));
    }
    result
}

/// Brings a folder to a known state before its sprite is started, after whatever happened to the service: no runs, only
/// the layers that `known` names (names below `dir`, as [`freeze`] gave them), nothing half-made. What goes, goes to the
/// trash.
///
/// # Errors
/// When the file system refuses.
pub fn recover(dir: &Path, known: &[String]) -> io::Result<()> {
    let mut stray: Vec<String> = names(&dir.join(RUNS))?.iter().map(|n| format!("{RUNS}/{n}")).collect();
    stray.extend(names(&dir.join(LAYERS))?.iter().map(|n| format!("{LAYERS}/{n}")).filter(|n| !known.contains(n)));
    if dir.join("base.new").exists() {
        stray.push("base.new".into());
    }
    stray.iter().try_for_each(|name| discard(dir, name))
}

/// Prepares a run for a sandbox without walls, which has no overlay: a copy of the newest layer, which is a whole tree
/// there, and the home directory. Hard links become separate files; sockets and devices are left out.
///
/// # Errors
/// When the file system refuses.
pub fn unfold(dir: &Path, lower: &[String], run: &str) -> io::Result<()> {
    let run = dir.join(run);
    let (up, draft) = (run.join("up"), run.join("up.new"));
    // Beside the files, so that no layer has it, as in a sandbox.
    fs::create_dir_all(run.join("tmp"))?;
    if up.exists() {
        // It was stopped and goes on with what it has.
        return Ok(());
    }
    remove_tree(&draft, || false)?;
    match lower.first() {
        Some(newest) => copy_tree(&dir.join(newest), &draft)?,
        None => fs::create_dir_all(&draft)?,
    }
    fs::create_dir_all(draft.join("home/sprite"))?;
    fs::rename(draft, up)
}

/// Names in a directory; none when it is not there.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Removes a tree that hostile programs have written, whatever the modes of its directories (overlayfs itself leaves one
/// of mode 000). Nothing runs in it any more, so what was looked at stays what it is. Ends half-way with
/// [`io::ErrorKind::Interrupted`] once `is_stopped` says so.
pub(super) fn remove_tree(top: &Path, is_stopped: impl Fn() -> bool) -> io::Result<()> {
    // A stack of its own instead of recursion: the depth is the choice of whoever wrote the tree.
    let mut stack = vec![(top.to_path_buf(), false)];
    let mut moved = 0;
    while let Some((mut path, emptied)) = stack.pop() {
        if is_stopped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if emptied {
            fs::remove_dir(&path)?;
            continue;
        }
        let metadata = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if !metadata.is_dir() {
            fs::remove_file(&path)?;
            continue;
        }
        if metadata.mode() & OWNER_ALL != OWNER_ALL {
            fs::set_permissions(&path, fs::Permissions::from_mode(OWNER_ALL))?;
        }
        if path.as_os_str().len() > DEEP {
            moved += 1;
            let place = top.with_extension(format!("deep.{moved}"));
            fs::rename(&path, &place)?;
            path = place;
        }
        let children: Vec<PathBuf> = fs::read_dir(&path)?.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>()?;
        stack.push((path, true));
        stack.extend(children.into_iter().map(|child| (child, false)));
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut stack = vec![(from.to_path_buf(), to.to_path_buf())];
    let mut closed = Vec::new();
    while let Some((from, to)) = stack.pop() {
        let metadata = fs::symlink_metadata(&from)?;
        if metadata.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if metadata.is_dir() {
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(&from)? {
                let entry = entry?;
                stack.push((entry.path(), to.join(entry.file_name())));
            }
            closed.push((to, metadata.permissions()));
        } else if metadata.is_file() {
            fs::copy(&from, &to)?;
            File::open(&to)?.set_modified(metadata.modified()?)?;
        }
    }
    // Last: a directory without the right to write could not have been filled.
    closed.into_iter().rev().try_for_each(|(path, permissions)| fs::set_permissions(path, permissions))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn written_run(dir: &Path) -> String {
        let run = new_run(dir).unwrap();
        fs::create_dir_all(dir.join(&run).join("up/home")).unwrap();
        fs::create_dir_all(dir.join(&run).join("work/work")).unwrap();
        fs::write(dir.join(&run).join("up/home/file"), "kept").unwrap();
        fs::set_permissions(dir.join(&run).join("work/work"), fs::Permissions::from_mode(0o000)).unwrap();
        run
    }

    #[test]
    fn runs_are_numbered_and_never_shared() {
        let dir = folder();
        assert_eq!(new_run(dir.path()).unwrap(), "runs/1");
        assert_eq!(new_run(dir.path()).unwrap(), "runs/2");
    }

    #[test]
    fn a_frozen_run_becomes_a_layer_and_leaves_nothing_behind() {
        let dir = folder();
        let run = written_run(dir.path());
        assert_eq!(freeze(dir.path(), &run, "v1").unwrap(), "layers/v1");
        assert_eq!(fs::read_to_string(dir.path().join("layers/v1/home/file")).unwrap(), "kept");
        assert!(!dir.path().join(&run).exists());
        empty_trash(dir.path()).unwrap();
        assert!(names(&dir.path().join(TRASH)).unwrap().is_empty());
    }

    #[test]
    fn a_layer_is_never_overwritten() {
        let dir = folder();
        let run = written_run(dir.path());
        freeze(dir.path(), &run, "v1").unwrap();
        let run = written_run(dir.path());
        assert_eq!(freeze(dir.path(), &run, "v1").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(dir.path().join(run).join("up/home/file").exists());
    }

    #[test]
    fn the_trash_is_emptied_whatever_the_modes_and_links_in_it() {
        let dir = folder();
        let outside = folder();
        fs::write(outside.path().join("precious"), "").unwrap();
        let run = written_run(dir.path());
        symlink(outside.path(), dir.path().join(&run).join("up/link")).unwrap();
        discard(dir.path(), &run).unwrap();
        discard(dir.path(), &run).unwrap();
        empty_trash(dir.path()).unwrap();
        assert!(names(&dir.path().join(TRASH)).unwrap().is_empty());
        assert!(outside.path().join("precious").exists());
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_deleted() {
        let dir = folder();
        let run = written_run(dir.path());
        let step = "d".repeat(200);
        let mut at = rustix::fs::open(dir.path().join(&run).join("up"), OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..60 {
            rustix::fs::mkdirat(&at, &step, Mode::from_raw_mode(0o700)).unwrap();
            at = rustix::fs::openat(&at, &step, OFlags::PATH, Mode::empty()).unwrap();
        }
        discard(dir.path(), &run).unwrap();
        empty_trash(dir.path()).unwrap();
        assert!(names(&dir.path().join(TRASH)).unwrap().is_empty());
    }

    #[test]
    fn recovery_keeps_known_layers_and_nothing_else() {
        let dir = folder();
        let run = written_run(dir.path());
        freeze(dir.path(), &run, "v1").unwrap();
        let run = written_run(dir.path());
        freeze(dir.path(), &run, "unfinished").unwrap();
        let run = written_run(dir.path());
        recover(dir.path(), &["layers/v1".into()]).unwrap();
        assert_eq!(names(&dir.path().join(LAYERS)).unwrap(), ["v1"]);
        assert!(!dir.path().join(run).exists());
    }

    #[test]
    fn unfolding_copies_the_newest_layer_with_its_modes() {
        let dir = folder();
        let run = written_run(dir.path());
        let file = dir.path().join(&run).join("up/home/file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o750)).unwrap();
        freeze(dir.path(), &run, "v1").unwrap();
        unfold(dir.path(), &["layers/v1".into()], "runs/9").unwrap();
        let copy = dir.path().join("runs/9/up/home/file");
        assert_eq!(fs::metadata(copy).unwrap().mode() & 0o777, 0o750);
        assert!(dir.path().join("runs/9/up/home/sprite").is_dir());
    }

    #[test]
    fn a_run_that_goes_on_is_not_unfolded_again() {
        let dir = folder();
        let run = written_run(dir.path());
        freeze(dir.path(), &run, "v1").unwrap();
        unfold(dir.path(), &["layers/v1".into()], "runs/9").unwrap();
        let file = dir.path().join("runs/9/up/home/file");
        fs::write(&file, "changed").unwrap();
        unfold(dir.path(), &["layers/v1".into()], "runs/9").unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "changed");
    }
}
