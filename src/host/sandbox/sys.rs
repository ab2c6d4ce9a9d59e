//! System calls that neither std nor rustix offers, as safe functions, and the error that names its step.
//!
//! Everything here is for the helper, init and the supervisors: processes with one thread, which is what makes `fork`
//! without `exec` sound.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Which step of building a sandbox failed, and how.
#[derive(Debug)]
pub struct Fault {
    pub step: String,
    pub errno: i32,
}

/// Names the step in which an error happened.
pub trait Step<T> {
    fn step(self, step: &str) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Fault> {
        self.map_err(|error| Fault { step: step.into(), errno: error.into().raw_os_error().unwrap_or(libc::EIO) })
    }
}

/// Turns the result of a raw call into a `Result`.
pub fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks: `None` in the child.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: only called in processes with a single thread, so no lock can be held by a thread that the child lacks.
    let pid = unsafe { libc::fork() };
    check(pid.into())?;
    Ok((pid != 0).then_some(pid))
}

/// Forks a sibling: its parent is this process's parent, which thus can wait for it after this process has gone.
/// Gives its pid and pidfd, and `None` in the child.
pub fn fork_sibling() -> io::Result<Option<(u32, OwnedFd)>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: an all-zero `clone_args` is valid: no stack, no thread-local storage, no pid array.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // SAFETY: without CLONE_VM this is a fork; the process has a single thread. `args` outlives the call.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has stored a new descriptor there, which nobody else owns.
    Ok(Some((pid as u32, unsafe { OwnedFd::from_raw_fd(pidfd) })))
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller keeps no owner of such a descriptor that it still uses.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// Ends this process at once, without destructors or exit handlers: those belong to the process that it was forked from.
pub fn exit(status: i32) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(status) }
}

/// `prctl` with one number.
pub fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used take plain numbers; the rest must be zero.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }.into())?;
    Ok(())
}

/// Lets programs inherit a capability, as tests do that keep them.
pub fn ambient(capability: libc::c_ulong) -> io::Result<()> {
    // SAFETY: plain numbers; the rest must be zero.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) }.into())?;
    Ok(())
}

pub fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of the same string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// A descriptor that becomes readable when a child has ended. Blocks SIGCHLD, so that none is missed.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(fd.into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes what has gathered in a descriptor of [`child_signals`].
pub fn drain(signals: &OwnedFd) {
    let mut info = [0_u8; 8 * size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(signals, &mut info).is_ok_and(|n| n > 0) {}
}

/// Puts signals back to what a program expects: none blocked, none ignored.
pub fn reset_signals() {
    // SAFETY: plain calls; the set is initialised before use. Rust's start-up code ignores SIGPIPE, and a shell ignores
    // SIGINT and SIGQUIT for what it starts in the background; a program that inherited that could not be stopped by its
    // protocol. Numbers that can't be set are left alone by the kernel.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Sends a signal; to the group of `-pid` when negative. A target that is gone is fine.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    match check(unsafe { libc::kill(pid, signal) }.into()) {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(e),
        _ => Ok(()),
    }
}

/// A child that has ended: its pid and wait status.
pub enum Reaped {
    Child(i32, i32),
    /// There are children, none has ended.
    Waiting,
    NoChildren,
}

/// Takes the exit status of one ended child, without waiting.
pub fn reap() -> Reaped {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Reaped::Waiting,
        pid if pid > 0 => Reaped::Child(pid, status),
        _ => Reaped::NoChildren,
    }
}

/// The exit status as a shell would say it: 128 + n for signal n.
pub fn exit_status(wait_status: i32) -> u8 {
    if libc::WIFSIGNALED(wait_status) {
        // The signal is below 128.
        128 + libc::WTERMSIG(wait_status) as u8
    } else {
        libc::WEXITSTATUS(wait_status) as u8
    }
}

/// Waits until one of two descriptors is readable or closed, or `timeout_ms` is over (-1: never).
pub fn wait_readable(a: BorrowedFd<'_>, b: BorrowedFd<'_>, timeout_ms: i32) -> [bool; 2] {
    let mut fds = [a, b].map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // SAFETY: the array outlives the call and its length is given.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    fds.map(|fd| fd.revents != 0)
}

/// A path for the kernel. A NUL can't be in it: such paths are refused where they come in.
pub fn c_path(path: impl AsRef<Path>) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_ref().as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
