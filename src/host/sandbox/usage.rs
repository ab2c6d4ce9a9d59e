//! How much memory and disk a sandbox uses, measured from outside where no control group or quota does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::tree;

/// What a folder holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub bytes: u64,
    pub inodes: u64,
    /// Directories that the service may not look into: what is in them is not counted.
    pub closed: u64,
    /// It goes deeper than a path can say, so that not all of it was counted.
    pub too_deep: bool,
}

/// Walks what a run has written. Stops counting once it is over the limits: how far over does not matter.
pub(super) fn disk(root: &Path, max_bytes: u64, max_inodes: u64) -> Disk {
    let mut found = Disk::default();
    let mut opened = Opened::new(root);
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) => {
                found.closed += u64::from(e.kind() == io::ErrorKind::PermissionDenied);
                found.too_deep |= e.raw_os_error() == Some(libc::ENAMETOOLONG);
                continue;
            }
        };
        // What is removed while it is being counted does not count.
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            found.inodes += 1;
            found.bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                if metadata.mode() & OPEN != OPEN {
                    opened.open(&entry.path());
                }
                stack.push(entry.path());
            }
        }
        if found.bytes > max_bytes || found.inodes > max_inodes {
            return found;
        }
    }
    found
}

/// What a directory's owner needs to look into it.
const OPEN: u32 = 0o500;

/// Directories that a sprite closed to its owner, who is an ordinary user's service too, and that were opened for
/// counting: else they would be a place to hide any number of files. They are closed again when this is dropped. Inside,
/// where overlayfs has its own idea of them, none of it shows.
struct Opened<'a> {
    root: &'a Path,
    closed: Vec<(PathBuf, u32)>,
}

impl<'a> Opened<'a> {
    fn new(root: &'a Path) -> Self {
        Self { root, closed: Vec::new() }
    }

    fn open(&mut self, dir: &Path) {
        // Root looks into everything.
        let Ok(below) = dir.strip_prefix(self.root) else { return };
        if rustix::process::geteuid().is_root() {
            return;
        }
        if let Ok(mode) = self.change(below, |mode| mode | OPEN) {
            self.closed.push((below.to_owned(), mode));
        }
    }

    /// Changes the mode of a directory, and gives the one it had. A sprite may put a link in its way at any moment, so
    /// none is followed.
    fn change(&self, below: &Path, change: impl FnOnce(u32) -> u32) -> io::Result<u32> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.root, flags, Mode::empty())?;
        let dir = openat2(&root, below, flags, Mode::empty(), resolve)?;
        let mode = rustix::fs::fstat(&dir)?.st_mode & 0o7777;
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        fs::set_permissions(path, fs::Permissions::from_mode(change(mode)))?;
        Ok(mode)
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        // The inner ones first, while the outer ones are open.
        for (below, mode) in self.closed.iter().rev() {
            // One that was moved or removed meanwhile stays as it is.
            let _ = self.change(below, |_| *mode);
        }
    }
}

/// Bytes of files that were deleted while a process of the sandbox has them open.
pub(super) fn deleted(init: u32) -> u64 {
    let memory = shared_memory_device();
    let kept = |m: &fs::Metadata| m.is_file() && m.nlink() == 0 && Some(m.dev()) != memory;
    held_by_descriptors(&members(init)).iter().filter(|m| kept(m)).map(|m| m.blocks() * 512).sum()
}

/// Bytes free for an ordinary user on the file system of `path`.
pub(super) fn disk_free(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Bytes of memory that the machine can still give out.
pub(super) fn memory_available() -> u64 {
    fs::read_to_string("/proc/meminfo").map_or(u64::MAX, |text| kib_field(&text, "MemAvailable:") * 1024)
}

/// Where the kernel keeps memory that is held by a descriptor only: memfds and shared anonymous mappings.
fn shared_memory_device() -> Option<u64> {
    let fd = rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    Some(rustix::fs::fstat(fd).ok()?.st_dev)
}

/// Bytes of memory that the sandbox's processes and its memory-backed file systems use, if they may be more than
/// `limit`; a smaller number is an upper bound, quickly got.
pub(super) fn memory(init: u32, file_systems: &[OwnedFd], limit: u64) -> u64 {
    let pids = members(init);
    let files: u64 = file_systems
        .iter()
        .filter_map(|fd| rustix::fs::fstatvfs(fd).ok())
        .map(|stat| (stat.f_blocks - stat.f_bfree) * stat.f_frsize)
        .sum();
    let device = shared_memory_device();
    let open = held_by_descriptors(&pids);
    let memory_files: u64 = open.iter().filter(|m| Some(m.dev()) == device).map(|m| m.blocks() * 512).sum();
    let held = files + memory_files + buffers(&open) + tcp_queues(init);
    let sum = |file: &str, keys: [&str; 2]| -> [u64; 2] {
        pids.iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/{file}")).ok())
            .map(|text| keys.map(|key| kib_field(&text, key) * 1024))
            .fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]])
    };
    // Pages that a fork shares count once for each process here.
    let [private, shared] = sum("status", ["RssAnon:", "RssShmem:"]);
    let bound = private + shared + held;
    if bound <= limit {
        return bound;
    }
    // Slower: the kernel walks page tables. Proportional shares count each page once.
    let [private, shared] = sum("smaps_rollup", ["Pss_Anon:", "Pss_Shmem:"]);
    private + shared.max(held)
}

fn kib_field(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

/// Init and all its descendants.
fn members(init: u32) -> Vec<u32> {
    let mut members = vec![init];
    let mut next = 0;
    while let Some(&pid) = members.get(next) {
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            match fs::read_to_string(task.path().join("children")) {
                Ok(children) => members.extend(children.split_whitespace().filter_map(|c| c.parse::<u32>().ok())),
                // A kernel without that file: look at every process of the machine.
                Err(_) if pid == init => return members_by_scan(init),
                Err(_) => {}
            }
        }
    }
    members
}

fn members_by_scan(init: u32) -> Vec<u32> {
    let all = tree::processes();
    let below = tree::descendants(&all, init as i32, &BTreeSet::new());
    std::iter::once(init).chain(below.iter().map(|e| e.pid as u32)).collect()
}

/// What is open somewhere in the sandbox, each file, pipe and socket once.
fn held_by_descriptors(pids: &[u32]) -> Vec<fs::Metadata> {
    let mut found = BTreeMap::new();
    for pid in pids {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for fd in fds.flatten() {
            if let Ok(metadata) = fs::metadata(fd.path()) {
                found.insert((metadata.dev(), metadata.ino()), metadata);
            }
        }
    }
    found.into_values().collect()
}

/// What a pipe holds at least, in an unprivileged user's hands: beyond 64 MiB in all the kernel gives two pages each.
const PIPE: u64 = 8 << 10;
/// What a socket's peers may have sent to it that was not read, since buffers can't be made larger than by default
/// (208 KiB, and one message on top).
const SOCKET: u64 = 288 << 10;
/// Sockets that an honest sprite has; their buffers are mostly empty and not counted.
const SOCKETS: u64 = 128;

/// Bytes that the kernel may hold in pipes and sockets, at worst: what they really hold is not told. Without a control
/// group this is all that keeps a sprite from hiding memory there.
fn buffers(open: &[fs::Metadata]) -> u64 {
    let count = |kind: fn(&fs::FileType) -> bool| open.iter().filter(|m| kind(&m.file_type())).count() as u64;
    let (pipes, sockets) = (count(FileTypeExt::is_fifo), count(FileTypeExt::is_socket));
    pipes * PIPE + sockets.saturating_sub(SOCKETS) * SOCKET
}

/// Bytes in the queues of TCP sockets, whose buffers grow by themselves.
pub(super) fn tcp_queues(init: u32) -> u64 {
    let table = |name| fs::read_to_string(format!("/proc/{init}/net/{name}")).unwrap_or_default();
    let queues = |line: &str| {
        let (sent, received) = line.split_ascii_whitespace().nth(4)?.split_once(':')?;
        Some(u64::from_str_radix(sent, 16).ok()? + u64::from_str_radix(received, 16).ok()?)
    };
    ["tcp", "tcp6"].map(table).iter().flat_map(|text| text.lines().skip(1)).filter_map(queues).sum()
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn a_folder_is_counted_in_blocks_and_entries() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), vec![1; 1 << 20]).unwrap();
        let found = disk(dir.path(), u64::MAX, u64::MAX);
        assert_eq!(found.inodes, 2);
        assert!(found.bytes >= 1 << 20, "{found:?}");
    }

    #[test]
    fn what_a_closed_directory_hides_is_counted_and_it_stays_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner) = (dir.path().join("outer"), dir.path().join("outer/inner"));
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("file"), vec![1; 1 << 20]).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&inner, 0o200);
        set(&outer, 0o000);
        let found = disk(dir.path(), u64::MAX, u64::MAX);
        assert!(found.inodes == 3 && found.bytes >= 1 << 20, "{found:?}");
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(&outer), 0o000);
        set(&outer, 0o700);
        assert_eq!(mode(&inner), 0o200);
        set(&inner, 0o700);
    }

    #[test]
    fn counting_stops_beyond_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..20 {
            fs::create_dir(dir.path().join(n.to_string())).unwrap();
        }
        assert!(disk(dir.path(), u64::MAX, 5).inodes > 5);
    }

    #[test]
    fn what_is_nested_too_deeply_to_be_counted_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let step = "d".repeat(200);
        let mut at = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..30 {
            rustix::fs::mkdirat(&at, &step, Mode::from_raw_mode(0o700)).unwrap();
            at = rustix::fs::openat(&at, &step, OFlags::PATH, Mode::empty()).unwrap();
        }
        assert!(disk(dir.path(), u64::MAX, u64::MAX).too_deep);
    }

    #[test]
    fn memory_of_a_process_includes_a_memfd_that_is_not_mapped() {
        let me = std::process::id();
        let before = memory(me, &[], 0);
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        std::io::Write::write_all(&mut fs::File::from(fd.try_clone().unwrap()), &vec![1; 32 << 20]).unwrap();
        let after = memory(me, &[], 0);
        assert!(after >= before.saturating_sub(8 << 20) + (32 << 20), "{before} {after}");
    }

    #[test]
    fn a_field_of_proc_is_read_in_kib() {
        assert_eq!(kib_field("RssAnon:\t    1234 kB\n", "RssAnon:"), 1234);
        assert_eq!(kib_field("", "RssAnon:"), 0);
    }
}
