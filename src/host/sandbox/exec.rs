//! Programs in a running sandbox: start, signal, resize, and end with all that came from them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::launch::{Inner, Sandbox, channel, receive, send};
use super::wire::{self, Ask, Event, Order, Program, Start};
use super::{Command, FsOp, Process, SandboxError, Stdio};
use crate::config::Isolation;

/// From the order to the program's first instruction. Long, because a sprite may be busy with all it is allowed.
const SPAWN_TIMEOUT: Duration = Duration::from_secs(15);
/// Where sprites have their home, in every sandbox with walls and in the callers' words in those without.
const HOME: &str = "/home/sprite";
const PATH: &str = "/home/sprite/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program whose tree is not empty.
#[derive(Debug)]
pub(super) struct Running {
    socket: Arc<AsyncFd<OwnedFd>>,
    end: watch::Receiver<Tree>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tree {
    Alive,
    /// The supervisor said that nothing is left.
    Empty,
    /// The supervisor is gone without saying so: somebody inside killed it.
    Orphaned,
}

impl Sandbox {
    /// Starts a program and waits until it runs.
    ///
    /// # Errors
    /// [`SandboxError::Spawn`] when it can't be executed ([`SandboxError::exit_status`] gives the shell's word for it),
    /// [`SandboxError::TooMany`], or [`SandboxError::Gone`].
    pub async fn spawn(&self, command: Command) -> Result<Process, SandboxError> {
        let inner = &self.inner;
        if inner.is_gone() {
            return Err(SandboxError::Gone);
        }
        let limit = inner.spec.limits.execs;
        if inner.programs().len() >= limit {
            return Err(SandboxError::TooMany { limit });
        }
        let start = inner.plan(command);
        let program = match &start.program {
            Program::Exec(argv) => argv.first().cloned().unwrap_or_default(),
            Program::Fs(_) => "file operation".into(),
        };
        let refused = |source| SandboxError::Spawn { program: program.clone(), source };
        if start.has_nul() {
            return Err(refused(io::Error::from_raw_os_error(libc::EINVAL)));
        }

        let (ours, theirs) = wire::pair()?;
        let socket = Arc::new(channel(ours)?);
        let pipes = if start.tty.is_none() { Some(Pipes::new(inner.owner)?) } else { None };
        let mut fds: Vec<BorrowedFd<'_>> = vec![theirs.as_fd()];
        fds.extend(pipes.iter().flat_map(|p| p.theirs.iter().map(AsFd::as_fd)));
        let dir = start.dir.clone();
        match send(&inner.control, &Order::Run(start), &fds).await {
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
                return Err(refused(io::Error::from_raw_os_error(libc::E2BIG)));
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {
                return Err(SandboxError::Gone);
            }
            sent => sent?,
        }
        // The descriptors meant for inside must not be held here: an end of file would never come.
        drop(theirs);
        let ours = pipes.map(|p| p.ours);

        let first = timeout(SPAWN_TIMEOUT, receive::<Event>(&socket))
            .await
            .map_err(|_| SandboxError::TimedOut { what: format!("starting {program}"), after: SPAWN_TIMEOUT })?;
        match first? {
            Some((Event::Started { pid }, mut fds)) => {
                let stdio = match (ours, fds.pop()) {
                    (Some((stdin, stdout, stderr)), _) => Stdio::Pipes { stdin, stdout, stderr },
                    (None, Some(master)) => Stdio::Tty(master),
                    (None, None) => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
                };
                let (exit_tx, exit) = oneshot::channel();
                let (end_tx, end) = watch::channel(Tree::Alive);
                inner.programs().insert(pid, Running { socket: Arc::clone(&socket), end });
                tokio::spawn(follow(Arc::clone(inner), pid, socket, exit_tx, end_tx));
                Ok(Process { pid, stdio, exit })
            }
            Some((Event::Refused { dir: true, errno }, _)) => {
                Err(SandboxError::Spawn { program: dir, source: io::Error::from_raw_os_error(errno) })
            }
            Some((Event::Refused { errno, .. }, _)) => Err(refused(io::Error::from_raw_os_error(errno))),
            Some(_) => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            None => Err(SandboxError::Gone),
        }
    }

    /// Signals the process group of a program. One that is gone already is fine.
    ///
    /// # Errors
    /// [`SandboxError::Gone`] when the sandbox is.
    pub async fn signal(&self, pid: u32, signal: i32) -> Result<(), SandboxError> {
        self.ask(pid, &Ask::Signal(signal))
    }

    /// Gives a program's terminal another size. One that is gone, or has no terminal, is fine.
    ///
    /// # Errors
    /// [`SandboxError::Gone`] when the sandbox is.
    pub async fn resize(&self, pid: u32, rows: u16, cols: u16) -> Result<(), SandboxError> {
        self.ask(pid, &Ask::Resize { rows, cols })
    }

    /// Ends a program and every descendant of it, those included that became daemons. `Ok` when none is left, which was
    /// looked for and not assumed.
    ///
    /// # Errors
    /// [`SandboxError::TimedOut`] at the deadline: then only killing the sandbox is sure to end them.
    pub async fn kill_tree(&self, pid: u32, deadline: Duration) -> Result<(), SandboxError> {
        let Some(mut end) = self.inner.programs().get(&pid).map(|r| r.end.clone()) else { return Ok(()) };
        let ended = async {
            self.ask(pid, &Ask::KillTree)?;
            let end = end.wait_for(|tree| *tree != Tree::Alive).await.map_or(Tree::Orphaned, |tree| *tree);
            if end == Tree::Orphaned && !self.inner.is_gone() {
                self.sweep().await?;
            }
            Ok(())
        };
        timeout(deadline, ended).await.map_err(|_| SandboxError::TimedOut {
            what: "ending the program with its descendants".into(),
            after: deadline,
        })?
    }

    /// Lets init end everything that no supervisor holds.
    async fn sweep(&self) -> Result<(), SandboxError> {
        let (ours, theirs) = wire::pair()?;
        match send(&self.inner.control, &Order::Sweep, &[theirs.as_fd()]).await {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => return Ok(()),
            sent => sent?,
        }
        drop(theirs);
        let ours = channel(ours)?;
        while receive::<Event>(&ours).await?.is_some() {}
        Ok(())
    }

    fn ask(&self, pid: u32, ask: &Ask) -> Result<(), SandboxError> {
        if self.inner.is_gone() {
            return Err(SandboxError::Gone);
        }
        let Some(socket) = self.inner.programs().get(&pid).map(|r| Arc::clone(&r.socket)) else { return Ok(()) };
        match wire::send(socket.get_ref(), ask, &[]) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(()),
            sent => Ok(sent?),
        }
    }
}

impl Inner {
    fn programs(&self) -> MutexGuard<'_, std::collections::HashMap<u32, Running>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The home as seen by programs.
    fn home(&self) -> String {
        match self.spec.isolation {
            Isolation::Full => HOME.into(),
            Isolation::Off => format!("{}/{}/up{HOME}", self.spec.dir.display(), self.spec.run),
        }
    }

    /// What to start, in the sandbox's own paths and with its environment, which has nothing of the service's.
    fn plan(&self, command: Command) -> Start {
        let home = self.home();
        let user = match self.spec.isolation {
            Isolation::Full => "sprite".to_owned(),
            Isolation::Off => std::env::var("USER").unwrap_or_else(|_| "sprite".into()),
        };
        let (program, extra, dir, tty) = match command {
            Command::Exec { argv, env, dir, tty } => (Program::Exec(argv), env, dir, tty),
            Command::Fs(operation) => (Program::Fs(localise(operation, &home)), Vec::new(), None, None),
        };
        let term = if tty.is_some() { "xterm-256color" } else { "dumb" };
        let mut env: Vec<(String, String)> = [
            ("PATH", PATH.replace(HOME, &home).as_str()),
            ("HOME", home.as_str()),
            ("USER", user.as_str()),
            ("LOGNAME", user.as_str()),
            ("LANG", "C.UTF-8"),
            ("TERM", term),
            // A word of the host's that no two runs of a sprite share; see the runner's verification.
            ("SPRITE_BOOT", self.spec.run.as_str()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        if self.spec.isolation == Isolation::Off {
            env.push(("TMPDIR".to_owned(), format!("{}/{}/tmp", self.spec.dir.display(), self.spec.run)));
        }
        for (key, value) in extra {
            env.retain(|(existing, _)| *existing != key);
            env.push((key, value));
        }
        let dir = match dir {
            None => home,
            Some(dir) if dir.starts_with('/') => inside(dir, &home),
            Some(dir) => format!("{home}/{dir}"),
        };
        Start { program, env, dir, tty }
    }
}

/// Without walls the home lies elsewhere; who asks need not know.
fn inside(path: String, home: &str) -> String {
    match path.strip_prefix(HOME) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => path,
    }
}

fn localise(mut operation: FsOp, home: &str) -> FsOp {
    let paths: Vec<&mut String> = match &mut operation {
        FsOp::Read { path }
        | FsOp::Write { path, .. }
        | FsOp::List { path, .. }
        | FsOp::Mkdir { path, .. }
        | FsOp::Chmod { path, .. }
        | FsOp::Delete { path, .. } => vec![path],
        FsOp::Rename { source, dest } | FsOp::Copy { source, dest, .. } => vec![source, dest],
    };
    for path in paths {
        *path = inside(std::mem::take(path), home);
    }
    operation
}

impl Start {
    /// A NUL would end a string early on its way to the kernel.
    fn has_nul(&self) -> bool {
        let nul = |s: &String| s.contains('\0');
        let program = match &self.program {
            Program::Exec(argv) => argv.iter().any(nul),
            Program::Fs(_) => false,
        };
        program || nul(&self.dir) || self.env.iter().any(|(key, value)| nul(key) || nul(value) || key.contains('='))
    }
}

struct Pipes {
    theirs: [OwnedFd; 3],
    ours: (pipe::Sender, pipe::Receiver, pipe::Receiver),
}

impl Pipes {
    /// Pipes and nothing else: no file, terminal or socket of the service's is ever passed in.
    fn new((uid, gid): (u32, u32)) -> io::Result<Self> {
        let new = || io::pipe().map(|(read, write)| (OwnedFd::from(read), OwnedFd::from(write)));
        let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) = (new()?, new()?, new()?);
        for pipe in [&in_read, &out_write, &err_write] {
            // So that programs can open them again by name, as in `echo oops > /dev/stderr`. With one user for both it
            // changes nothing, and it can't fail for a pipe of one's own.
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(pipe, Some(uid), Some(gid))?;
        }
        Ok(Self {
            theirs: [in_read, out_write, err_write],
            ours: (
                pipe::Sender::from_owned_fd(in_write)?,
                pipe::Receiver::from_owned_fd(out_read)?,
                pipe::Receiver::from_owned_fd(err_read)?,
            ),
        })
    }
}

/// Reads what a supervisor says until it has nothing more to say.
async fn follow(
    inner: Arc<Inner>,
    pid: u32,
    socket: Arc<AsyncFd<OwnedFd>>,
    exit: oneshot::Sender<u8>,
    end: watch::Sender<Tree>,
) {
    let mut exit = Some(exit);
    let mut tree = Tree::Orphaned;
    // Anything unexpected is taken for the end: who sends it is not our supervisor any more.
    while let Ok(Some((event, _))) = receive::<Event>(&socket).await {
        match event {
            Event::Exited { status } => {
                if let Some(exit) = exit.take() {
                    // The caller may not care.
                    let _ = exit.send(status);
                }
            }
            Event::Empty => {
                tree = Tree::Empty;
                break;
            }
            Event::Started { .. } | Event::Refused { .. } => break,
        }
    }
    if let Some(exit) = exit.take().filter(|_| !inner.is_gone() && tree == Tree::Orphaned) {
        // Its supervisor was killed from inside. When init is alive it has ended the program too.
        let _ = timeout(Duration::from_millis(200), inner.gone.clone().wait_for(|gone| *gone)).await;
        if !inner.is_gone() {
            let _ = exit.send(128 + 9);
        }
    }
    inner.programs().remove(&pid);
    // Nobody may be waiting.
    let _ = end.send(tree);
}
