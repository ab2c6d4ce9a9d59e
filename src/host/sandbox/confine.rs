//! What init gives up before any foreign code runs: limits, capabilities, privileges, system calls.

use std::io;

use super::sys::{self, Fault, Step};
use super::wire::Caps;
use super::{base, seccomp};
use crate::host::walls::{Wall, Walls};

/// Bytes of one file. Also bounds each memfd, which no memory limit but a control group's sees.
const FILE_MAX: u64 = 2 << 30;
/// Bytes that may be locked in memory; what Node and GnuPG ask for is far below.
const LOCKED_MAX: u64 = 8 << 20;
/// Queued signals and timers, of all processes together.
const SIGNALS_MAX: u64 = 4096;

/// Locked in: no user id, not even 0, brings capabilities with it, and none can be made ambient.
const SECURE_BITS: libc::c_ulong = 0b1110_1111;
/// Instead, where a test keeps capabilities: the change to the sprite's user id takes none away.
const KEEP_OVER_IDS: libc::c_ulong = 0b0000_0100;

/// Confines this process and all that come from it, for good.
pub(super) fn confine(caps: &Caps, leave_root: bool, standing: &Walls) -> Result<(), Fault> {
    limits(caps, standing).step("set resource limits")?;
    if standing.has(Wall::NoNewPrivs) {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).step("set no_new_privs")?;
    }
    let secure_bits = if standing.has(Wall::Capabilities) { SECURE_BITS } else { KEEP_OVER_IDS };
    sys::prctl(libc::PR_SET_SECUREBITS, secure_bits).step("lock the secure bits")?;
    if standing.has(Wall::Capabilities) {
        drop_bounding().step("drop capabilities")?;
    }
    if leave_root {
        become_sprite().step("take the sprite's user id")?;
    }
    if standing.has(Wall::Capabilities) {
        set_held(0).step("drop capabilities")?;
    } else {
        keep_held().step("keep capabilities")?;
    }
    // Nothing inside may trace init, read its memory or take its descriptors, though it has the same user id.
    let dumpable = (!standing.has(Wall::ClosedInit)).into();
    sys::prctl(libc::PR_SET_DUMPABLE, dumpable).step("close init to tracing")?;
    if standing.has(Wall::Seccomp) {
        seccomp::install().step("install the system call filters")?;
    }
    Ok(())
}

fn limits(caps: &Caps, standing: &Walls) -> io::Result<()> {
    let set = |wall, resource, value: u64| {
        if !standing.has(wall) {
            return Ok(());
        }
        // SAFETY: the struct outlives the calls.
        unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            sys::check(libc::getrlimit(resource, &raw mut limit).into())?;
            // Above what the service has itself there is no way up.
            limit.rlim_max = value.min(limit.rlim_max);
            limit.rlim_cur = limit.rlim_max;
            sys::check(libc::setrlimit(resource, &raw const limit).into()).map(drop)
        }
    };
    // Counted per user of this user namespace, so the service's other processes and other sprites do not matter.
    set(Wall::ProcessLimit, libc::RLIMIT_NPROC, caps.processes)?;
    // Not 0: with a core handler on the host, only 1 keeps that (a root process) from running on hostile input.
    set(Wall::CoreLimit, libc::RLIMIT_CORE, 1)?;
    set(Wall::OpenFileLimit, libc::RLIMIT_NOFILE, caps.open_files)?;
    set(Wall::LockedMemoryLimit, libc::RLIMIT_MEMLOCK, LOCKED_MAX)?;
    set(Wall::MessageQueueLimit, libc::RLIMIT_MSGQUEUE, 0)?;
    set(Wall::SignalLimit, libc::RLIMIT_SIGPENDING, SIGNALS_MAX)?;
    set(Wall::FileSizeLimit, libc::RLIMIT_FSIZE, caps.disk.min(FILE_MAX))?;
    // No limit on address space or data: JavaScript engines reserve many times what they use, writable. Memory is held
    // by a control group or by the service's watch.
    Ok(())
}

fn drop_bounding() -> io::Result<()> {
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)?;
    for capability in 0..64 {
        match sys::prctl(libc::PR_CAPBSET_DROP, capability) {
            // One past the kernel's last.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            done => done?,
        }
    }
    Ok(())
}

fn become_sprite() -> io::Result<()> {
    let id = base::SPRITE_ID;
    // SAFETY: plain numbers. The raw calls, for this process has one thread.
    unsafe {
        sys::check(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        sys::check(libc::syscall(libc::SYS_setresuid, id, id, id))?;
    }
    Ok(())
}

/// Sets the effective, permitted and inheritable capabilities.
fn set_held(set: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let (low, high) = (set as u32, (set >> 32) as u32);
    let sets = [low, low, low, high, high, high];
    // SAFETY: version 3 reads a header of two words and two sets of three.
    sys::check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    Ok(())
}

/// Where a test keeps capabilities: makes programs inherit them all.
fn keep_held() -> io::Result<()> {
    let known = |capability: &libc::c_ulong| sys::prctl(libc::PR_CAPBSET_READ, *capability).is_ok();
    let all: Vec<libc::c_ulong> = (0..64).take_while(known).collect();
    set_held(all.iter().fold(0, |set, capability| set | 1 << capability))?;
    for capability in all {
        sys::ambient(capability)?;
    }
    Ok(())
}
