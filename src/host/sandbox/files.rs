//! File operations, done inside the sandbox with its own rights and view, so that a link made there by a hostile
//! program leads nowhere but inside.
//!
//! The result is JSON on standard output (bytes for a read); a failure is `{"error","code"}` on standard error and
//! exit status 1.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
use serde_json::{Value, json};

use super::FsOp;

/// Entries that one listing, copy, chmod or delete goes through; a tree beyond it is an error instead of an answer that
/// nobody can read.
const MAX_ENTRIES: usize = 100_000;
/// Bytes of one buffer when copying streams.
const CHUNK: usize = 64 * 1024;

/// What went wrong, and with which path.
#[derive(Debug)]
struct Failure {
    path: PathBuf,
    errno: i32,
}

type Result<T> = std::result::Result<T, Failure>;

trait At<T> {
    fn at(self, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|e| {
            let e = e.into();
            // What std itself refuses (a NUL in a path, an empty write) has no number of its own.
            Failure { path: path.into(), errno: e.raw_os_error().unwrap_or(libc::EINVAL) }
        })
    }
}

fn refuse<T>(path: &Path, errno: i32) -> Result<T> {
    Err(Failure { path: path.into(), errno })
}

/// Does the operation on standard input and output. Gives the exit status.
pub(super) fn run(operation: &FsOp) -> i32 {
    // SAFETY: this forked process got its own descriptors 0 to 2, which nothing else in it owns.
    let [mut stdin, mut stdout, mut stderr] = [0, 1, 2].map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    let failure = match perform(operation, &mut stdin, &mut stdout) {
        Ok(Some(result)) => stdout.write_all(result.to_string().as_bytes()).at(Path::new("standard output")).err(),
        Ok(None) => None,
        Err(failure) => Some(failure),
    };
    let Some(Failure { path, errno }) = failure else { return 0 };
    let message = io::Error::from_raw_os_error(errno).to_string();
    let text = message.split(" (os error").next().unwrap_or_default().to_lowercase();
    let report = json!({ "error": format!("{}: {text}", path.display()), "code": code(errno) });
    // Whoever asked may be gone.
    let _ = stderr.write_all(report.to_string().as_bytes());
    1
}

/// The name of an error number, for those that file operations meet.
fn code(errno: i32) -> String {
    let name = match errno {
        libc::ENOENT => "ENOENT",
        libc::EEXIST => "EEXIST",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::EINVAL => "EINVAL",
        libc::EACCES => "EACCES",
        libc::EPERM => "EPERM",
        libc::EROFS => "EROFS",
        libc::EXDEV => "EXDEV",
        libc::ELOOP => "ELOOP",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOSPC => "ENOSPC",
        libc::EFBIG => "EFBIG",
        libc::EBUSY => "EBUSY",
        libc::ETXTBSY => "ETXTBSY",
        libc::EMFILE => "EMFILE",
        libc::EPIPE => "EPIPE",
        libc::E2BIG => "E2BIG",
        libc::ENOMEM => "ENOMEM",
        other => return format!("E{other}"),
    };
    name.into()
}

fn perform(operation: &FsOp, input: &mut File, output: &mut File) -> Result<Option<Value>> {
    Ok(match operation {
        FsOp::Read { path } => {
            read(Path::new(path), output)?;
            None
        }
        FsOp::Write { path, mode, make_parents } => Some(write(Path::new(path), *mode, *make_parents, input)?),
        FsOp::List { path, recursive } => Some(list(Path::new(path), *recursive)?),
        FsOp::Mkdir { path, parents } => {
            let at = Path::new(path);
            fs::DirBuilder::new().recursive(*parents).mode(0o755).create(at).at(at)?;
            Some(json!({ "path": path }))
        }
        FsOp::Rename { source, dest } => {
            fs::rename(source, dest).at(Path::new(source))?;
            Some(json!({ "source": source, "dest": dest }))
        }
        FsOp::Copy { source, dest, recursive } => {
            let mut copied = Vec::new();
            copy(Path::new(source), Path::new(dest), *recursive, &mut copied)?;
            let bytes: u64 = copied.iter().map(|(_, _, bytes)| bytes).sum();
            let copied: Vec<_> =
                copied.iter().map(|(source, dest, _)| json!({ "source": source, "dest": dest })).collect();
            Some(json!({ "count": copied.len(), "copied": copied, "totalBytes": bytes }))
        }
        FsOp::Chmod { path, mode, recursive } => {
            let mut affected = Vec::new();
            chmod(Path::new(path), *mode, *recursive, &mut affected)?;
            Some(json!({ "affected": affected, "count": affected.len() }))
        }
        FsOp::Delete { path, recursive } => {
            let deleted = delete(Path::new(path), *recursive)?;
            Some(json!({ "deleted": deleted, "count": deleted.len() }))
        }
    })
}

fn read(path: &Path, output: &mut File) -> Result<()> {
    // Not blocking: a pipe or device of that name must not hold the request up for ever.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).at(path)?;
    let metadata = file.metadata().at(path)?;
    if metadata.is_dir() {
        return refuse(path, libc::EISDIR);
    }
    if !metadata.is_file() {
        return refuse(path, libc::EINVAL);
    }
    pour(&mut file, output).at(path)?;
    Ok(())
}

fn pour(from: &mut File, to: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                to.write_all(&buffer[..n])?;
                total += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Writes beside the file and renames over it: a reader sees the old content or the new, and a cut write leaves the old.
fn write(path: &Path, mode: u32, make_parents: bool, input: &mut File) -> Result<Value> {
    // Through a link at the end, as every other way of writing does.
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    if place.is_dir() {
        return refuse(path, libc::EISDIR);
    }
    if place.file_name().is_none() {
        return refuse(path, libc::EINVAL);
    }
    let parent = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if make_parents && let Err(error) = fs::create_dir_all(parent) {
        // That something is there already is no news: what matters is that it is no directory.
        let is_other = error.kind() == io::ErrorKind::AlreadyExists;
        return if is_other { refuse(path, libc::ENOTDIR) } else { Err(error).at(path) };
    }
    let mut draft = Draft::new(parent, mode).at(path)?;
    let done = (|| {
        let size = pour(input, &mut draft.file)?;
        // The mode given at creation is cut by the umask.
        draft.file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
        draft.place(parent, &place)?;
        Ok::<_, io::Error>(size)
    })();
    if done.is_err() {
        draft.discard();
    }
    let size = done.at(path)?;
    Ok(json!({ "path": path, "size": size, "mode": mode_text(mode) }))
}

/// A file that is being written, in the folder where it will be, and that no one else writes.
struct Draft {
    file: File,
    /// It has none where the file system can do without: then a writer that is killed leaves nothing.
    name: Option<PathBuf>,
}

impl Draft {
    fn new(parent: &Path, mode: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).mode(mode & 0o7777);
        if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(parent) {
            return Ok(Self { file, name: None });
        }
        // Also where that failed for another reason: it is found again here, and told.
        let (name, file) = first_free(parent, |name| options.clone().create_new(true).open(name))?;
        Ok(Self { file, name: Some(name) })
    }

    /// Puts it where it belongs, in place of what was there.
    fn place(&mut self, parent: &Path, place: &Path) -> io::Result<()> {
        let name = match &self.name {
            Some(name) => name,
            None => {
                // By way of /proc: to link a descriptor itself needs a capability.
                let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let link = |name: &Path| Ok(linkat(CWD, &unnamed, CWD, name, AtFlags::SYMLINK_FOLLOW)?);
                self.name.insert(first_free(parent, link)?.0)
            }
        };
        fs::rename(name, place)
    }

    fn discard(&self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

/// Tries names for a draft until one is free. A name can be taken by a file whose writer was killed, and process ids
/// come again.
fn first_free<T>(parent: &Path, mut make: impl FnMut(&Path) -> io::Result<T>) -> io::Result<(PathBuf, T)> {
    let mut attempt = 0;
    loop {
        let name = parent.join(format!(".{}.{attempt}.draft", std::process::id()));
        match make(&name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < MAX_ENTRIES => attempt += 1,
            made => return Ok((name, made?)),
        }
    }
}

fn mode_text(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

fn entry(path: &Path, metadata: &Metadata) -> Value {
    let kind = match () {
        () if metadata.is_symlink() => "symlink",
        () if metadata.is_dir() => "directory",
        () => "file",
    };
    let name = path.file_name().map_or_else(|| path.to_string_lossy(), |n| n.to_string_lossy());
    // Whole microseconds: Python before 3.11 can't read more digits.
    let nanos = metadata.mtime_nsec() / 1000 * 1000;
    let modified = jiff::Timestamp::new(metadata.mtime(), i32::try_from(nanos).unwrap_or(0));
    json!({
        "name": name,
        "path": path.to_string_lossy(),
        "type": kind,
        "size": metadata.len(),
        "mode": mode_text(metadata.mode()),
        // A time outside of what a calendar can hold, which a program may set.
        "modTime": modified.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string(),
        "isDir": metadata.is_dir(),
    })
}

fn list(path: &Path, recursive: bool) -> Result<Value> {
    let metadata = fs::metadata(path).at(path)?;
    let mut entries = Vec::new();
    if metadata.is_dir() {
        list_into(path, recursive, &mut entries)?;
    } else {
        entries.push(entry(path, &metadata));
    }
    Ok(json!({ "path": path, "count": entries.len(), "entries": entries }))
}

fn list_into(path: &Path, recursive: bool, entries: &mut Vec<Value>) -> Result<()> {
    for child in children(path)? {
        // Removed since it was read: then it is not there.
        let Ok(metadata) = fs::symlink_metadata(&child) else { continue };
        entries.push(entry(&child, &metadata));
        if entries.len() > MAX_ENTRIES {
            return refuse(path, libc::E2BIG);
        }
        // A link to a directory is not followed, so there are no rounds.
        if recursive && metadata.is_dir() {
            list_into(&child, true, entries)?;
        }
    }
    Ok(())
}

/// In the order of names, so that two listings of the same tree are the same.
fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for child in fs::read_dir(path).at(path)? {
        children.push(child.at(path)?.path());
        if children.len() > MAX_ENTRIES {
            return refuse(path, libc::E2BIG);
        }
    }
    children.sort();
    Ok(children)
}

fn copy(source: &Path, dest: &Path, recursive: bool, copied: &mut Vec<(PathBuf, PathBuf, u64)>) -> Result<()> {
    let metadata = fs::symlink_metadata(source).at(source)?;
    if copied.len() >= MAX_ENTRIES {
        return refuse(source, libc::E2BIG);
    }
    let mut bytes = 0;
    if metadata.is_symlink() {
        symlink(fs::read_link(source).at(source)?, dest).at(dest)?;
    } else if metadata.is_dir() {
        if !recursive {
            return refuse(source, libc::EISDIR);
        }
        // A copy into itself would go on for ever.
        let (from, below) = (fs::canonicalize(source).at(source)?, dest.parent().unwrap_or(Path::new(".")));
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        if copied.is_empty() && fs::canonicalize(below).at(dest)?.starts_with(&from) {
            return refuse(dest, libc::EINVAL);
        }
        if !dest.is_dir() {
            fs::create_dir(dest).at(dest)?;
        }
        copied.push((source.into(), dest.into(), 0));
        for child in children(source)? {
            if let Some(name) = child.file_name() {
                copy(&child, &dest.join(name), true, copied)?;
            }
        }
        fs::set_permissions(dest, metadata.permissions()).at(dest)?;
        return Ok(());
    } else if metadata.is_file() {
        bytes = fs::copy(source, dest).at(source)?;
    } else {
        return refuse(source, libc::EINVAL);
    }
    copied.push((source.into(), dest.into(), bytes));
    Ok(())
}

fn chmod(path: &Path, mode: u32, recursive: bool, affected: &mut Vec<String>) -> Result<()> {
    if affected.len() >= MAX_ENTRIES {
        return refuse(path, libc::E2BIG);
    }
    let metadata = fs::symlink_metadata(path).at(path)?;
    // A link named by the caller leads to its target; one met on the way is left alone.
    if metadata.is_symlink() && !affected.is_empty() {
        return Ok(());
    }
    let descend = recursive && metadata.is_dir();
    // Before its own mode changes: afterwards it may be closed.
    let below = if descend { children(path)? } else { Vec::new() };
    affected.push(path.to_string_lossy().into());
    for child in below {
        chmod(&child, mode, true, affected)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)).at(path)
}

/// What it deleted: the path, and what was below it unless that was too much to tell.
fn delete(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    let metadata = fs::symlink_metadata(path).at(path)?;
    let mut deleted = vec![path.to_owned()];
    let done = match (metadata.is_dir(), recursive) {
        (false, _) => fs::remove_file(path),
        (true, false) => fs::remove_dir(path),
        (true, true) => {
            // Deleting needs no list, so what can't be listed is deleted all the same.
            let _ = below(path, &mut deleted).inspect_err(|_| deleted.truncate(1));
            // Goes through descriptors and follows no link.
            fs::remove_dir_all(path)
        }
    };
    done.at(path)?;
    Ok(deleted)
}

/// Adds the paths of all that is in a directory.
fn below(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for child in children(dir)? {
        if paths.len() >= MAX_ENTRIES {
            return refuse(dir, libc::E2BIG);
        }
        let is_dir = fs::symlink_metadata(&child).is_ok_and(|metadata| metadata.is_dir());
        paths.push(child.clone());
        if is_dir {
            below(&child, paths)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let (left, _) = first_free(dir.path(), |name| File::create_new(name)).unwrap();
        fs::write(dir.path().join("input"), "content").unwrap();
        let mut input = File::open(dir.path().join("input")).unwrap();
        write(&dir.path().join("file"), 0o640, false, &mut input).unwrap();
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"content");
        assert!(left.exists());
        assert_eq!(children(dir.path()).unwrap().len(), 3);
    }

    #[test]
    fn a_deletion_tells_what_went() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("sub")).unwrap();
        fs::write(top.join("sub/leaf"), "").unwrap();
        symlink(dir.path(), top.join("link")).unwrap();
        let expected: Vec<PathBuf> = ["", "link", "sub", "sub/leaf"].map(|tail| top.join(tail)).into();
        assert_eq!(delete(&top, true).unwrap(), expected);
        assert!(!top.exists() && dir.path().exists());
    }
}
