//! Several layers made one: a folder that shows by itself what they show on top of each other.
//!
//! Files are not copied but linked: a frozen layer is never written again, so both may have them. What overlayfs marks
//! in a layer keeps its meaning, since more lies below the merged layers: the skeleton and the base.
//!
//! - A *whiteout* (a character device 0:0) hides the name below. It stays.
//! - An *opaque* directory hides all of the directory below it. So does anything else of that name in between.
//! - A directory that holds whiteouts and lies over nothing would list them, unless it is marked as copied up.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

const OPAQUE: &str = "user.overlay.opaque";
const COPIED_UP: &str = "user.overlay.origin";
/// Marks of overlayfs are made anew; all else that is kept beside a directory goes with it.
const MARKS: &str = "user.overlay.";
/// Bytes of one attribute's value, or of all names: the kernel's own limit.
const ATTRIBUTE_MAX: usize = 64 * 1024;

/// One directory still to be merged.
struct Task {
    /// Newest first; at least one.
    from: Vec<PathBuf>,
    to: PathBuf,
    /// Something that is no directory hides what lies below the last of `from`.
    cut_off: bool,
}

/// Merges `layers`, newest first, into the new folder `to`. Nothing is synced. Ends with [`io::ErrorKind::Interrupted`]
/// once `is_stopped` says so.
///
/// # Errors
/// When the file system refuses, which leaves a half-made folder; also when a layer goes away meanwhile.
pub fn merge(layers: &[PathBuf], to: &Path, is_stopped: impl Fn() -> bool) -> io::Result<()> {
    let mut tasks = vec![Task { from: layers.to_vec(), to: to.to_owned(), cut_off: false }];
    // Last, children before parents: a directory that is written into gets another time, and one that is closed can't
    // be written into.
    let mut finished = Vec::new();
    while let Some(task) = tasks.pop() {
        let newest = task.from.first().cloned().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir(&task.to)?;
        let to = task.to.clone();
        let found = directory(task, &mut tasks, &is_stopped)?;
        finished.push((newest, to, found));
    }
    finished.into_iter().rev().try_for_each(|(like, dir, found)| finish(&like, &dir, found))
}

/// What a merged directory is to be marked with.
#[derive(Clone, Copy, Default)]
struct Found {
    opaque: bool,
    whiteouts: bool,
}

/// Fills one directory; its subdirectories become tasks.
fn directory(task: Task, tasks: &mut Vec<Task>, is_stopped: impl Fn() -> bool) -> io::Result<Found> {
    let mut found = Found { opaque: task.cut_off, ..Found::default() };
    let mut names: BTreeMap<std::ffi::OsString, Vec<(DirEntry, Metadata)>> = BTreeMap::new();
    for dir in &task.from {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            names.entry(entry.file_name()).or_default().push((entry, metadata));
        }
        if is_opaque(dir)? {
            found.opaque = true;
            break;
        }
    }
    for (name, entries) in names {
        if is_stopped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let to = task.to.join(name);
        let count = entries.len();
        let dirs: Vec<PathBuf> =
            entries.iter().take_while(|(_, metadata)| metadata.is_dir()).map(|(entry, _)| entry.path()).collect();
        match entries.first() {
            Some((entry, metadata)) if dirs.is_empty() => {
                found.whiteouts |= is_whiteout(metadata);
                // The link itself, where it is a symbolic one.
                fs::hard_link(entry.path(), &to)?;
            }
            _ => {
                let cut_off = dirs.len() < count;
                tasks.push(Task { from: dirs, to, cut_off });
            }
        }
    }
    Ok(found)
}

/// Gives a filled directory what its newest original has, and overlay's marks.
fn finish(like: &Path, dir: &Path, found: Found) -> io::Result<()> {
    let metadata = fs::symlink_metadata(like)?;
    for name in attributes(like)? {
        if !name.starts_with(MARKS) {
            rustix::fs::lsetxattr(dir, &name, &attribute(like, &name)?, XattrFlags::empty())?;
        }
    }
    if found.opaque {
        rustix::fs::lsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?;
    }
    if found.whiteouts {
        // Without a value: of unknown origin, which is enough to be looked at as one that may hold whiteouts.
        rustix::fs::lsetxattr(dir, COPIED_UP, b"", XattrFlags::empty())?;
    }
    let made = fs::symlink_metadata(dir)?;
    if (made.uid(), made.gid()) != (metadata.uid(), metadata.gid()) {
        chown(dir, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    let opened = File::open(dir)?;
    opened.set_modified(metadata.modified()?)?;
    opened.set_permissions(metadata.permissions())
}

fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn is_opaque(dir: &Path) -> io::Result<bool> {
    let mut value = [0; 2];
    match rustix::fs::lgetxattr(dir, OPAQUE, &mut value) {
        Ok(length) => Ok(value.get(..length) == Some(b"y".as_slice())),
        // Longer than any mark.
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn attributes(path: &Path) -> io::Result<Vec<String>> {
    let mut space = vec![0_u8; ATTRIBUTE_MAX];
    match rustix::fs::llistxattr(path, &mut space) {
        Ok(length) => {
            let names = space[..length].split(|&b| b == 0).filter(|name| !name.is_empty());
            // Only what this user could set itself: the others are the file system's.
            Ok(names
                .filter_map(|n| std::str::from_utf8(n).ok())
                .filter(|n| n.starts_with("user."))
                .map(str::to_owned)
                .collect())
        }
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn attribute(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0; ATTRIBUTE_MAX];
    let length = rustix::fs::lgetxattr(path, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// A folder of layers, newest first: `f` a file, `d` a directory, `o` an opaque one, `w` a whiteout.
    fn layers(contents: &[&[(&str, char)]]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let mut layers = Vec::new();
        for (n, content) in contents.iter().enumerate() {
            let layer = dir.path().join(n.to_string());
            fs::create_dir(&layer).unwrap();
            for (path, kind) in *content {
                let path = layer.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                match kind {
                    'f' => fs::write(&path, n.to_string()).unwrap(),
                    'w' => mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap(),
                    _ => fs::create_dir_all(&path).unwrap(),
                }
                if *kind == 'o' {
                    rustix::fs::lsetxattr(&path, OPAQUE, b"y", XattrFlags::empty()).unwrap();
                }
            }
            layers.push(layer);
        }
        (dir, layers)
    }

    /// What there is below `dir`, in the same letters; files with the number of their layer.
    fn shown(dir: &Path) -> Vec<String> {
        let mut shown = Vec::new();
        let mut stack = vec![dir.to_owned()];
        while let Some(at) = stack.pop() {
            for entry in fs::read_dir(&at).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let kind = match () {
                    () if is_whiteout(&metadata) => "w".to_owned(),
                    () if metadata.is_dir() && is_opaque(&path).unwrap() => "o".to_owned(),
                    () if metadata.is_dir() => "d".to_owned(),
                    () => fs::read_to_string(&path).unwrap(),
                };
                shown.push(format!("{} {kind}", path.strip_prefix(dir).unwrap().display()));
                if metadata.is_dir() {
                    stack.push(path);
                }
            }
        }
        shown.sort();
        shown
    }

    fn merged(contents: &[&[(&str, char)]]) -> Vec<String> {
        let (dir, layers) = layers(contents);
        let to = dir.path().join("merged");
        merge(&layers, &to, || false).unwrap();
        shown(&to)
    }

    #[test]
    fn the_newest_wins_and_directories_are_united() {
        let contents: [&[_]; 3] =
            [&[("a", 'f'), ("d/x", 'f')], &[("a", 'f'), ("b", 'f'), ("d/y", 'f')], &[("d/x", 'f'), ("d/z", 'f')]];
        assert_eq!(merged(&contents), ["a 0", "b 1", "d d", "d/x 0", "d/y 1", "d/z 2"]);
    }

    #[test]
    fn a_whiteout_hides_what_is_older_and_stays_for_what_lies_below() {
        assert_eq!(merged(&[&[("a", 'w')], &[("a", 'f')]]), ["a w"]);
        assert_eq!(merged(&[&[("a", 'f')], &[("a", 'w')], &[("a", 'f')]]), ["a 0"]);
    }

    #[test]
    fn an_opaque_directory_hides_the_older_ones_and_stays_opaque() {
        let contents: [&[_]; 3] = [&[("d/x", 'f')], &[("d", 'o'), ("d/y", 'f')], &[("d/z", 'f')]];
        assert_eq!(merged(&contents), ["d o", "d/x 0", "d/y 1"]);
    }

    #[test]
    fn a_directory_over_something_else_does_not_show_what_is_below_that() {
        for between in ['w', 'f'] {
            let contents: [&[_]; 3] = [&[("d/x", 'f')], &[("d", between)], &[("d/z", 'f')]];
            assert_eq!(merged(&contents), ["d o", "d/x 0"]);
        }
        assert_eq!(merged(&[&[("d", 'f')], &[("d/z", 'f')]]), ["d 0"]);
    }

    #[test]
    fn only_a_directory_with_whiteouts_is_marked_as_copied_up() {
        let (dir, layers) = layers(&[&[("d/x", 'w'), ("e/x", 'f')]]);
        let to = dir.path().join("merged");
        merge(&layers, &to, || false).unwrap();
        assert_eq!(rustix::fs::lgetxattr(to.join("d"), COPIED_UP, &mut [0; 1]), Ok(0));
        assert!(rustix::fs::lgetxattr(to.join("e"), COPIED_UP, &mut [0; 1]).is_err());
    }

    #[test]
    fn a_closed_directory_keeps_its_mode_time_and_attributes() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, layers) = layers(&[&[("d/x", 'f')], &[("d/y", 'f')]]);
        let d = layers[0].join("d");
        rustix::fs::lsetxattr(&d, "user.note", b"kept", XattrFlags::empty()).unwrap();
        File::open(&d).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        fs::set_permissions(&d, fs::Permissions::from_mode(0o500)).unwrap();
        let to = dir.path().join("merged");
        merge(&layers, &to, || false).unwrap();
        let metadata = fs::metadata(to.join("d")).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o500, 0));
        assert_eq!(attribute(&to.join("d"), "user.note").unwrap(), b"kept");
        fs::set_permissions(&d, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(to.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn a_merge_that_is_stopped_says_so() {
        let (dir, layers) = layers(&[&[("a", 'f')]]);
        let stopped = merge(&layers, &dir.path().join("merged"), || true);
        assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
