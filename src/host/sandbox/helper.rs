//! The helper: this program, executed once more to build one sandbox, in a process that has a single thread.
//!
//! A process with threads can't make a user namespace, so the service starts the helper with nothing but a control
//! socket. The helper makes the namespaces and their sockets, forks init as its *sibling* (so that the service is
//! init's parent and the helper need not stay) and ends. Without walls the helper becomes init itself.
//!
//! Every step that can fail has a name; [`super::remedy`] knows what an operator can do about it.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use super::base::{self, Owners};
use super::sys::{self, Fault, Step};
use super::wire::{self, Report, Setup};
use super::{confine, init, network, root};
use crate::host::walls::Wall;

/// How the service calls the helper. Nobody else gives a program this name.
pub(super) const ARG0: &str = "janebot-sandbox-init";

/// Ids inside a sandbox, when the service is root: enough for any image's users.
const ID_RANGE: u32 = 65_536;

/// Becomes the sandbox helper, and does not return, when this process was started as one. The first thing that `main`
/// does, before any thread exists.
pub fn maybe_run_init() {
    let mut args = std::env::args_os();
    if args.next().as_deref() != Some(OsStr::new(ARG0)) || args.next().is_some() {
        return;
    }
    let Ok(control) = take_control() else { std::process::exit(2) };
    let Err(fault) = run(&control);
    // The service may be gone; then nobody is left to be told.
    let _ = wire::send(&control, &Report::Failed { step: fault.step, errno: fault.errno }, &[]);
    sys::exit(1);
}

/// Moves the control socket from standard input to descriptor 3 and closes everything else that was inherited.
fn take_control() -> io::Result<OwnedFd> {
    // SAFETY: plain descriptor numbers; nothing in this process owns any of them yet.
    let control = unsafe {
        sys::check(libc::dup3(0, 3, libc::O_CLOEXEC).into())?;
        sys::close_from(4)?;
        OwnedFd::from_raw_fd(3)
    };
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..3 {
        // SAFETY: std never closes these three, so nobody's descriptor is taken away.
        sys::check(unsafe { libc::dup2(null.as_raw_fd(), standard) }.into())?;
    }
    Ok(control)
}

fn run(control: &OwnedFd) -> Result<std::convert::Infallible, Fault> {
    // Away from the service's terminal: its ^C is for the service alone.
    let _ = rustix::process::setsid();
    let setup = match wire::receive::<Setup>(control, wire::TO_INSIDE_MAX).step("read what to build")? {
        Some((setup, _)) => setup,
        None => sys::exit(1),
    };
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if setup.walls { enclosed(control, &setup) } else { open(control, &setup) }
}

/// Isolation off: holds the processes together and nothing more.
fn open(control: &OwnedFd, setup: &Setup) -> Result<std::convert::Infallible, Fault> {
    std::env::set_current_dir(&setup.dir).step("enter the sprite's folder")?;
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).step("become the reaper of the sandbox")?;
    let report = Report::Born {
        pid: std::process::id(),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    wire::send(control, &report, &[]).step("report to the service")?;
    wire::send(control, &Report::Ready, &[]).step("report to the service")?;
    init::run(control, false)
}

fn enclosed(control: &OwnedFd, setup: &Setup) -> Result<std::convert::Infallible, Fault> {
    // When memory runs out on the machine, the sandbox goes before the service. Only a hint; no harm when refused.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    std::env::set_current_dir(&setup.dir).step("enter the sprite's folder")?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let standing = &setup.standing;
    let base_id = match uid {
        0 if standing.has(Wall::UserIds) => Some(base::assign_ids(ID_RANGE).step("assign user ids to the sprite")?),
        0 => Some(0),
        _ => None,
    };
    let owners = match base_id {
        Some(base) => Owners { root: (base, base), sprite: (base + base::SPRITE_ID, base + base::SPRITE_ID) },
        None => Owners { root: (uid, gid), sprite: (uid, gid) },
    };
    let skeleton = base::prepare(setup, &owners).step("prepare the sprite's folder")?;

    let mapper = base_id.map(Mapper::start).transpose().step("start the id mapper")?;
    let namespaces = [
        (Wall::PidNamespace, UnshareFlags::NEWPID),
        (Wall::NetworkNamespace, UnshareFlags::NEWNET),
        (Wall::IpcNamespace, UnshareFlags::NEWIPC),
        (Wall::UtsNamespace, UnshareFlags::NEWUTS),
        (Wall::CgroupNamespace, UnshareFlags::NEWCGROUP),
    ];
    // Without these two nothing of the rest could be made.
    let always = UnshareFlags::NEWUSER | UnshareFlags::NEWNS;
    let namespaces =
        namespaces.iter().filter(|(wall, _)| standing.has(*wall)).fold(always, |all, (_, flag)| all | *flag);
    // SAFETY: the flag that would be a danger, FILES, is not among them.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.step("make namespaces")?;
    // While this process still has the ids of the service: a base may lie where only the service can go.
    let rootfs = setup
        .rootfs
        .as_ref()
        .map(|path| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()));
    let rootfs = rootfs.transpose().step("open HOST_ROOTFS")?;
    match mapper {
        Some(mapper) => {
            mapper.map().step("map user ids")?;
            become_root_inside().step("take the sandbox's user id")?;
        }
        None => map_self(uid, gid).step("map user ids")?,
    }
    let sockets = if standing.has(Wall::NetworkNamespace) { network::build(&setup.ports)? } else { Vec::new() };

    match sys::fork_sibling().step("start init")? {
        Some((pid, pidfd)) => {
            let report = Report::Born { pid, uid: owners.sprite.0, gid: owners.sprite.1 };
            let fds: Vec<BorrowedFd<'_>> = std::iter::once(&pidfd).chain(&sockets).map(AsFd::as_fd).collect();
            wire::send(control, &report, &fds).step("report to the service")?;
            sys::exit(0);
        }
        None => {
            drop(sockets);
            let file_systems = root::build(setup, &skeleton, rootfs)?;
            if standing.has(Wall::UtsNamespace) {
                sys::set_host_name(&setup.name).step("set the host name")?;
            }
            confine::confine(&setup.caps, base_id.is_some(), standing)?;
            let roots: Vec<BorrowedFd<'_>> = file_systems.iter().map(AsFd::as_fd).collect();
            wire::send(control, &Report::Ready, &roots).step("report to the service")?;
            drop(file_systems);
            init::run(control, true)
        }
    }
}

/// As an ordinary user: one id, its own, and no groups.
fn map_self(uid: u32, gid: u32) -> io::Result<()> {
    let id = base::SPRITE_ID;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{id} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{id} {gid} 1"))
}

/// As root: leaves host root's ids, which are mapped to nothing, for the sandbox's own root.
fn become_root_inside() -> io::Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // A change of ids makes a process non-dumpable, and then its own /proc files belong to somebody else.
    sys::prctl(libc::PR_SET_DUMPABLE, 1)
}

/// A child that stays outside of the namespace: only from there a range of ids can be mapped.
struct Mapper {
    pid: i32,
    go: io::PipeWriter,
}

impl Mapper {
    fn start(base: u32) -> io::Result<Self> {
        let (wait, go) = io::pipe()?;
        let target = std::process::id();
        match sys::fork()? {
            Some(pid) => Ok(Self { pid, go }),
            None => {
                drop(go);
                let mut byte = [0];
                if io::Read::read(&mut &wait, &mut byte).is_ok_and(|n| n == 1) {
                    let map = format!("0 {base} {ID_RANGE}");
                    let done = std::fs::write(format!("/proc/{target}/uid_map"), &map)
                        .and_then(|()| std::fs::write(format!("/proc/{target}/gid_map"), &map));
                    sys::exit(done.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO)));
                }
                sys::exit(libc::EPIPE);
            }
        }
    }

    fn map(mut self) -> io::Result<()> {
        self.go.write_all(b"x")?;
        let mut status = 0;
        // SAFETY: `status` outlives the call. The child ends within a few system calls.
        sys::check(unsafe { libc::waitpid(self.pid, &raw mut status, 0) }.into())?;
        match sys::exit_status(status) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno.into())),
        }
    }
}
