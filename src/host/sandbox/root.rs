//! The sandbox's root: one overlay, the machine's directories read-only, own /proc, /dev, /tmp, /run, and no way back.
//!
//! Everything is mounted onto a descriptor of its target, found below the new root without following a link: the
//! upper layers were written by hostile programs, and a link of theirs must not choose what gets mounted where.
//! Layers are named relative to the sprite's folder, so the mount table inside shows no path of this machine.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};

use super::base;
use super::sys::{self, Fault, Step};
use super::wire::Setup;
use crate::host::walls::{Wall, Walls};

/// Bytes of /run: sockets, pid files and locks.
const RUN_BYTES: u64 = 16 << 20;
/// Bytes of /dev, which holds links and empty files.
const DEV_BYTES: u64 = 64 << 10;
/// Files on one memory-backed file system; their bookkeeping is memory too.
const MEMORY_INODES: u64 = 100_000;

/// Files of /proc that tell about the machine or act on it: read as /dev/null.
const PROC_MASKED: [&str; 7] = ["kcore", "keys", "kmsg", "kallsyms", "timer_list", "sysrq-trigger", "cmdline"];
const PROC_READ_ONLY: [&str; 5] = ["sys", "irq", "bus", "fs", "driver"];
const PROC_EMPTY: [&str; 3] = ["acpi", "scsi", "asound"];
/// Parts of /usr that hold settings of this machine, npm's tokens for instance.
const USR_EMPTY: [&str; 2] = ["usr/etc", "usr/local/etc"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEV_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

const SAFE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);
const SAFE_DATA: MountAttrFlags = SAFE.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
const SAFE_READ_ONLY: MountAttrFlags = SAFE.union(MountAttrFlags::MOUNT_ATTR_RDONLY);

/// Builds the root and moves into it. Gives the root, and those of the memory-backed file systems, whose use counts as
/// memory.
pub(super) fn build(setup: &Setup, skeleton: &str, rootfs: Option<OwnedFd>) -> Result<Vec<OwnedFd>, Fault> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).step("make mounts private")?;
    let root = overlay(setup, skeleton, rootfs.as_ref()).step("mount the overlay")?;
    let standing = &setup.standing;
    if rootfs.is_none() {
        machine(&root, skeleton, standing).step("mount this machine's system directories")?;
    }
    proc(&root, standing)?;
    let shm = dev(&root, setup.caps.memory / 4, standing).step("build /dev")?;
    let tmp = tmpfs(setup.caps.memory / 2, "1777").step("mount /tmp")?;
    attach_at(&tmp, &root, "tmp").step("mount /tmp")?;
    let run = tmpfs(RUN_BYTES, "1777").step("mount /run")?;
    attach_at(&run, &root, "run").step("mount /run")?;
    enter(&root).step("move into the new root")?;
    Ok(vec![root, shm, tmp, run])
}

fn overlay(setup: &Setup, skeleton: &str, rootfs: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let run = &setup.run;
    let mut lower = setup.lower.clone();
    lower.push(skeleton.into());
    // Through the descriptor: its path may lead through directories that the sandbox's ids can't pass, and is
    // nobody's business inside.
    lower.extend(rootfs.map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())));
    // userxattr: the only way to keep overlay's marks without privilege. volatile: the upper layer of a run is thrown
    // away, or synced before it is kept, so nothing may wait for the disk when the sandbox ends.
    let options = format!("lowerdir={},upperdir={run}/up,workdir={run}/work,userxattr,volatile", lower.join(":"));
    let at = format!("{run}/root");
    let (at_c, options) = (sys::c_path(&at)?, sys::c_path(&options)?);
    let no_suid = if setup.standing.has(Wall::NoSuid) { libc::MS_NOSUID } else { 0 };
    let flags = no_suid | libc::MS_NODEV;
    // SAFETY: all strings are terminated and outlive the call.
    let mounted =
        unsafe { libc::mount(c"overlay".as_ptr(), at_c.as_ptr(), c"overlay".as_ptr(), flags, options.as_ptr().cast()) };
    sys::check(mounted.into())?;
    Ok(openat(CWD, at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// This machine's own programs and what they need. Directories are seen through a read-only overlay, because of its own
/// inodes: on those of the machine a sprite could hear of each use by inotify, signal to other sprites by locks, and
/// reach sockets that listen there. Single files were copied into the skeleton.
fn machine(root: &OwnedFd, skeleton: &str, standing: &Walls) -> io::Result<()> {
    let attributes = if standing.has(Wall::MachineReadOnly) { SAFE_READ_ONLY } else { SAFE };
    for name in base::MACHINE_DIRS.iter().chain(&base::MACHINE_FILES) {
        let here = Path::new("/").join(name);
        // Links were copied into the skeleton as links.
        let Ok(metadata) = std::fs::symlink_metadata(&here) else { continue };
        let own = standing.has(Wall::OwnInodes);
        if metadata.is_symlink() || (own && metadata.is_file()) {
            continue;
        }
        // A sprite may have removed or replaced it; then that is how it wants it.
        let Some(target) = target(root, name)? else { continue };
        let tree = if own { view_of(&here, skeleton, attributes)? } else { copy_of(CWD, &here, attributes)? };
        match attach(&tree, &target) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTDIR) => {}
            done => done?,
        }
    }
    for name in USR_EMPTY {
        if let Some(target) = target(root, name)? {
            attach(&empty()?, &target)?;
        }
    }
    Ok(())
}

fn proc(root: &OwnedFd, standing: &Walls) -> Result<(), Fault> {
    let proc = if standing.has(Wall::PidNamespace) {
        filesystem("proc", &[], SAFE_DATA)
    } else {
        copy_of(CWD, Path::new("/proc"), SAFE_DATA)
    };
    let proc = proc.step("mount /proc")?;
    let if_standing = |wall, names: &'static [&'static str]| if standing.has(wall) { names } else { &[] };
    attach_at(&proc, root, "proc").step("mount /proc")?;
    let masks = || -> io::Result<()> {
        // No user namespaces below this one, even if the filter should fail. Before /proc/sys becomes read-only.
        if standing.has(Wall::NestedNamespaces) {
            let limit = openat(&proc, "sys/user/max_user_namespaces", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(limit, b"0")?;
        }
        for name in if_standing(Wall::ProcMasks, &PROC_MASKED) {
            if let Some(target) = target(&proc, name)? {
                attach(&copy_of(CWD, Path::new("/dev/null"), MountAttrFlags::MOUNT_ATTR_NOSUID)?, &target)?;
            }
        }
        for name in if_standing(Wall::ProcReadOnly, &PROC_READ_ONLY) {
            if let Some(target) = target(&proc, name)? {
                attach(
                    &copy_of(proc.as_fd(), Path::new(name), SAFE_DATA | MountAttrFlags::MOUNT_ATTR_RDONLY)?,
                    &target,
                )?;
            }
        }
        for name in if_standing(Wall::ProcMasks, &PROC_EMPTY) {
            if let Some(target) = target(&proc, name)? {
                attach(&empty()?, &target)?;
            }
        }
        Ok(())
    };
    masks().step("close the parts of /proc that belong to the machine")
}

/// Gives the root of /dev/shm.
fn dev(root: &OwnedFd, shm_bytes: u64, standing: &Walls) -> io::Result<OwnedFd> {
    if !standing.has(Wall::OwnDevices) {
        attach_at(&copy_of(CWD, Path::new("/dev"), MountAttrFlags::MOUNT_ATTR_NOSUID)?, root, "dev")?;
        return tmpfs(shm_bytes, "1777");
    }
    let dev = tmpfs(DEV_BYTES, "755")?;
    attach_at(&dev, root, "dev")?;
    for name in DEVICES {
        let target = openat(&dev, name, OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o666))?;
        // Not "nodev", which would close the device.
        attach(&copy_of(CWD, &Path::new("/dev").join(name), MountAttrFlags::MOUNT_ATTR_NOSUID)?, &target)?;
    }
    for (to, name) in DEV_LINKS {
        symlinkat(to, &dev, name)?;
    }
    for name in ["pts", "shm"] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
    }
    let pts_options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "620")];
    let no_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach_at(&filesystem("devpts", &pts_options, no_exec)?, &dev, "pts")?;
    let shm = tmpfs(shm_bytes, "1777")?;
    attach_at(&shm, &dev, "shm")?;
    Ok(shm)
}

/// Makes `root` the root of this mount namespace and lets go of the old one.
fn enter(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // The old root is now mounted on top of the new one, where "." still finds it.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn tmpfs(bytes: u64, mode: &str) -> io::Result<OwnedFd> {
    let (size, inodes) = (bytes.to_string(), MEMORY_INODES.to_string());
    filesystem("tmpfs", &[("size", size.as_str()), ("nr_inodes", inodes.as_str()), ("mode", mode)], SAFE)
}

fn empty() -> io::Result<OwnedFd> {
    filesystem("tmpfs", &[("size", "4096"), ("mode", "555")], SAFE_DATA | MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// A new file system, mounted nowhere yet.
fn filesystem(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(&context, *key)?;
        } else {
            fsconfig_set_string(&context, *key, *value)?;
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The directory `path` of this machine through inodes of its own, mounted nowhere yet. Where other file systems are
/// mounted below it the kernel allows no such view; then it is as it is.
fn view_of(path: &Path, skeleton: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    // An overlay without an upper layer wants two; /mnt of the skeleton is empty.
    let lower = format!("{}:{skeleton}/mnt", path.display());
    match filesystem("overlay", &[("lowerdir", &lower), ("userxattr", "")], attributes) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => copy_of(CWD, path, attributes),
        view => view,
    }
}

/// What is visible at `path`, with all that is mounted below it, mounted nowhere yet and with `attributes` throughout.
fn copy_of(dir: BorrowedFd<'_>, path: &Path, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    /// As the kernel has it.
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(dir, path, flags)?;
    let attr = MountAttr { set: attributes.bits().into(), clear: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is terminated, the struct has the size given and outlives the call.
    sys::check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(tree)
}

/// Finds `path` below `root` without following any link. `None` when it is not there or a link is in the way.
fn target(root: &OwnedFd, path: &str) -> io::Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    // No NO_XDEV: /usr/etc lies on a mount made before.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        found => Ok(Some(found?)),
    }
}

fn attach_at(mount: &OwnedFd, root: &OwnedFd, path: &str) -> io::Result<()> {
    let target = target(root, path)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    attach(mount, &target)
}

fn attach(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}
