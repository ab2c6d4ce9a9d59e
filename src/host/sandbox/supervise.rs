//! The supervisor of one program: forked from init, the reaper of all that comes from the program.
//!
//! A process that daemonises leaves its parent and its session, but it can't leave the nearest reaper above it. So the
//! supervisor always knows what belongs to its program, and can end it all. It stays until nothing is left.
//!
//! A program could kill its supervisor, which has the same user id. Then init ends everything the supervisor held.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::sys::{self, Reaped};
use super::wire::{self, Ask, Event, Program, Start};
use super::{files, tree};

/// Why a program could not be started.
struct Refusal {
    /// The working directory was at fault, not the program.
    dir: bool,
    errno: i32,
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self { dir: false, errno: e.raw_os_error().unwrap_or(libc::EIO) }
    }
}

/// Starts the program and serves its exec socket until nothing of it is left.
pub(super) fn run(control: &OwnedFd, exec: &OwnedFd, start: &Start, stdio: Vec<OwnedFd>) -> ! {
    // SAFETY: init's `OwnedFd` is never dropped in this process, which ends by `_exit`.
    unsafe { libc::close(control.as_raw_fd()) };
    match begin(exec, start, stdio) {
        Ok(supervisor) => supervisor.serve(exec),
        Err(Refusal { dir, errno }) => {
            let _ = wire::send(exec, &Event::Refused { dir, errno }, &[]);
            sys::exit(0)
        }
    }
}

struct Supervisor {
    program: i32,
    exited: bool,
    signals: OwnedFd,
    /// The program's terminal, held for resizing until the program exits; longer, and its reader would never see the end.
    terminal: Option<OwnedFd>,
}

fn begin(exec: &OwnedFd, start: &Start, stdio: Vec<OwnedFd>) -> Result<Supervisor, Refusal> {
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
    let signals = sys::child_signals()?;
    let terminal = start.tty.map(|(rows, cols)| open_terminal(rows, cols)).transpose()?;
    let (master, slave) = terminal.unzip();
    // Closed by a successful exec; otherwise it carries the reason.
    let (mut outcome, report) = io::pipe()?;
    let Some(program) = sys::fork()? else {
        let refusal = become_program(start, stdio, slave, report.into());
        sys::exit(refusal)
    };
    drop((report, stdio));
    let mut word = [0; 5];
    let refused = match outcome.read(&mut word) {
        Ok(5) => true,
        Ok(_) => false,
        Err(e) => return Err(e.into()),
    };
    if refused {
        let [dir, errno @ ..] = word;
        return Err(Refusal { dir: dir != 0, errno: i32::from_ne_bytes(errno) });
    }
    let master = master.as_ref().map(AsFd::as_fd);
    // When the service has hung up already the program runs on, as after a lost connection.
    let _ = wire::send(exec, &Event::Started { pid: program as u32 }, master.as_slice());
    Ok(Supervisor { program, exited: false, signals, terminal: slave })
}

impl Supervisor {
    fn serve(mut self, exec: &OwnedFd) -> ! {
        let mut hung_up = false;
        loop {
            // A socket that has ended stays readable; then only the processes matter.
            let listen = if hung_up { self.signals.as_fd() } else { exec.as_fd() };
            let [asked, ended] = sys::wait_readable(listen, self.signals.as_fd(), -1);
            if ended {
                sys::drain(&self.signals);
                if self.reap(exec) {
                    break;
                }
            }
            if asked && !hung_up {
                match wire::receive::<Ask>(exec, wire::FROM_INSIDE_MAX) {
                    Ok(Some((Ask::KillTree, _))) => {
                        let (program, exited) = (self.program, &mut self.exited);
                        let empty = tree::end_descendants(&mut BTreeSet::new(), |pid, status| {
                            report_exit(exec, program, exited, pid, status);
                        });
                        if empty {
                            break;
                        }
                    }
                    Ok(Some((ask, _))) => self.answer(&ask),
                    Ok(None) | Err(_) => hung_up = true,
                }
            }
        }
        let _ = wire::send(exec, &Event::Empty, &[]);
        sys::exit(0)
    }

    /// Takes ended descendants. True when none is left.
    fn reap(&mut self, exec: &OwnedFd) -> bool {
        loop {
            match sys::reap() {
                Reaped::Child(pid, status) => {
                    report_exit(exec, self.program, &mut self.exited, pid, status);
                    if self.exited {
                        self.terminal = None;
                    }
                }
                Reaped::Waiting => return false,
                Reaped::NoChildren => return true,
            }
        }
    }

    fn answer(&self, ask: &Ask) {
        match ask {
            // The group may outlive the program; its number is not given away before it is empty.
            Ask::Signal(signal) => {
                let all = tree::processes();
                let me = std::process::id() as i32;
                let left = tree::descendants(&all, me, &BTreeSet::new());
                if !self.exited || left.iter().any(|e| e.group == self.program) {
                    let _ = sys::kill(-self.program, *signal);
                }
            }
            Ask::Resize { rows, cols } => {
                if let Some(terminal) = &self.terminal {
                    let _ = set_size(terminal, *rows, *cols);
                }
            }
            Ask::KillTree => {}
        }
    }
}

fn report_exit(exec: &OwnedFd, program: i32, exited: &mut bool, pid: i32, status: i32) {
    if pid == program && !*exited {
        *exited = true;
        let _ = wire::send(exec, &Event::Exited { status: sys::exit_status(status) }, &[]);
    }
}

/// A pseudo-terminal of the sandbox's own: master and slave.
fn open_terminal(rows: u16, cols: u16) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    set_size(&slave, rows, cols)?;
    Ok((master, slave))
}

fn set_size(terminal: &OwnedFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// In the program's process: becomes the program. Returns an exit status when there is no program to become.
fn become_program(start: &Start, stdio: Vec<OwnedFd>, slave: Option<OwnedFd>, report: OwnedFd) -> i32 {
    match enter(start, stdio, slave, report) {
        Ok(report) => match &start.program {
            Program::Fs(operation) => {
                drop(report);
                files::run(operation)
            }
            Program::Exec(argv) => {
                let refusal = Refusal { dir: false, errno: execute(argv, &start.env) };
                refuse(report, &refusal)
            }
        },
        Err((report, refusal)) => refuse(report, &refusal),
    }
}

fn refuse(report: OwnedFd, refusal: &Refusal) -> i32 {
    let mut word = [0; 5];
    word[0] = refusal.dir.into();
    word[1..].copy_from_slice(&refusal.errno.to_ne_bytes());
    // Less than a pipe's atomic size; should the supervisor be gone, so is who asked.
    let _ = std::fs::File::from(report).write_all(&word);
    127
}

/// Session, descriptors, signals, directory. Gives the report pipe back, at its new number.
fn enter(
    start: &Start,
    stdio: Vec<OwnedFd>,
    slave: Option<OwnedFd>,
    report: OwnedFd,
) -> Result<OwnedFd, (OwnedFd, Refusal)> {
    let descriptors = || -> io::Result<OwnedFd> {
        rustix::process::setsid()?;
        // Above all that will be overwritten, first.
        let high = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 16);
        let report = high(&report)?;
        let [stdin, stdout, stderr] = match &slave {
            Some(slave) => {
                rustix::process::ioctl_tiocsctty(slave)?;
                [high(slave)?, high(slave)?, high(slave)?]
            }
            None => match &stdio[..] {
                [stdin, stdout, stderr] => [high(stdin)?, high(stdout)?, high(stderr)?],
                _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
            },
        };
        // SAFETY: 0 to 3 belong to nobody here who uses them again: this process ends by exec or `_exit`.
        unsafe {
            for (from, to) in [(&stdin, 0), (&stdout, 1), (&stderr, 2)] {
                sys::check(libc::dup2(from.as_raw_fd(), to).into())?;
            }
            sys::check(libc::dup3(report.as_raw_fd(), 3, libc::O_CLOEXEC).into())?;
        }
        // Nothing but these four: a leaked control socket would let a program give orders.
        sys::close_from(4)?;
        std::mem::forget((stdin, stdout, stderr, report));
        // SAFETY: just made.
        Ok(unsafe { OwnedFd::from_raw_fd(3) })
    };
    let kept = match descriptors() {
        Ok(kept) => kept,
        Err(e) => return Err((report, e.into())),
    };
    // Closed above by number.
    std::mem::forget((stdio, slave, report));
    sys::reset_signals();
    match std::env::set_current_dir(&start.dir) {
        Ok(()) => Ok(kept),
        Err(e) => Err((kept, Refusal { dir: true, ..e.into() })),
    }
}

/// Searches the program on its own PATH and executes it. Only returns when that failed, with the reason.
fn execute(argv: &[String], env: &[(String, String)]) -> i32 {
    let c_strings =
        |strings: &mut dyn Iterator<Item = Vec<u8>>| strings.map(CString::new).collect::<Result<Vec<_>, _>>();
    let (Ok(args), Ok(env_strings)) = (
        c_strings(&mut argv.iter().map(|a| a.clone().into_bytes())),
        c_strings(&mut env.iter().map(|(key, value)| format!("{key}={value}").into_bytes())),
    ) else {
        return libc::EINVAL;
    };
    let Some(name) = argv.first().filter(|name| !name.is_empty()) else { return libc::ENOENT };
    if name.contains('/') {
        return exec_file(name, &args, &env_strings);
    }
    let path = env.iter().rev().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value);
    // As a shell does it: a file that is there but can't be executed is the answer only when no other is found.
    let mut answer = libc::ENOENT;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        match exec_file(&format!("{dir}/{name}"), &args, &env_strings) {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => answer = libc::EACCES,
            errno => return errno,
        }
    }
    answer
}

fn exec_file(file: &str, args: &[CString], env: &[CString]) -> i32 {
    let errno = exec(file, args, env);
    if errno == libc::ENOEXEC {
        // A script without a `#!` line runs in the shell, as execvp and shells do it.
        let Ok(path) = CString::new(file) else { return libc::EINVAL };
        let mut shell = vec![c"sh".to_owned(), path];
        shell.extend(args.iter().skip(1).cloned());
        return exec("/bin/sh", &shell, env);
    }
    errno
}

fn exec(file: &str, args: &[CString], env: &[CString]) -> i32 {
    let Ok(path) = CString::new(file) else { return libc::EINVAL };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays are terminated and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
