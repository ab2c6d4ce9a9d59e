//! One running sandbox: namespaces, its init, and programs started in it.
//!
//! ```text
//!  service                     helper                    inside
//!  Sandbox::start ── Setup ──▶ namespaces, network ──▶ init (process 1)
//!        │◀────── Born, Ready ───┘ (ends)                 │
//!        │                                                │
//!  spawn ├── Order::Run + 4 descriptors ─────────────────▶├─ supervisor ── program ── its descendants
//!        │◀═════ exec socket: Started, Exited, Empty ═════╡      ▲
//!        ╞══════════════ Signal, Resize, KillTree ════════╧══════┘
//! ```
//!
//! The service owns a [`Sandbox`]; a dropped one is killed, and when the service dies its sandboxes die with it. What
//! is said over those sockets is in [`wire`]; everything below `helper` runs in the process that is built by it and
//! never in the service. A file system change outlives the sandbox only when [`crate::host::layers`] keeps it.

mod base;
mod confine;
mod exec;
mod files;
mod helper;
mod init;
mod launch;
mod network;
mod probe;
mod remedy;
mod root;
mod seccomp;
mod supervise;
mod sys;
mod tree;
mod usage;
mod watch;
mod wire;

pub use base::SPRITE_ID;
pub use helper::maybe_run_init;
pub use launch::{Sandbox, use_helper};
pub use network::GATEWAY;
pub use probe::probe;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::config::{Isolation, Limits};

/// What a sandbox is made of.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// Sprite name; also the host name inside.
    pub name: String,
    /// The sprite's folder: holds `layers/` and `runs/`; see [`crate::host::layers`].
    pub dir: PathBuf,
    /// Frozen layers, newest first, as names below `dir`.
    pub lower: Vec<String>,
    /// This run's own folder below `dir`: new and empty, or of a stopped run with `up` alone left, which then goes on.
    pub run: String,
    /// Root directory to use as base; this machine's own system directories when `None`.
    pub rootfs: Option<PathBuf>,
    pub limits: Limits,
    /// TCP ports on which allowed names are reached inside.
    pub ports: Vec<u16>,
    pub isolation: Isolation,
}

/// Sockets of the sandbox's network namespace, served from outside by [`crate::host::egress`].
#[derive(Debug)]
pub struct NetworkFds {
    /// Bound to 198.18.0.1:53.
    pub dns_udp: OwnedFd,
    /// Bound to 198.18.0.1:53, listening.
    pub dns_tcp: OwnedFd,
    /// Bound to 0.0.0.0:port, listening; the accepted socket's local address is the synthetic one.
    pub listeners: Vec<(u16, OwnedFd)>,
}

/// What to run inside.
#[derive(Clone, Debug)]
pub enum Command {
    Exec {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        dir: Option<String>,
        tty: Option<(u16, u16)>,
    },
    /// A file operation, done by a forked child of init with the sandbox's own rights and view. Its result is JSON on
    /// standard output (raw bytes for `Read`, which `Write` takes on standard input); a failure is exit status 1 and
    /// `{"error","code"}` on standard error, with `code` as in `ENOENT`.
    Fs(FsOp),
}

/// File operations; paths are absolute or relative to `dir`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum FsOp {
    Read {
        path: String,
    },
    Write {
        path: String,
        mode: u32,
        make_parents: bool,
    },
    /// `{"entries":[{"name","path","type":"file"|"directory"|"symlink","size","mode":"0644","modTime","isDir"}]}`
    List {
        path: String,
        recursive: bool,
    },
    Mkdir {
        path: String,
        parents: bool,
    },
    Rename {
        source: String,
        dest: String,
    },
    Copy {
        source: String,
        dest: String,
        recursive: bool,
    },
    Chmod {
        path: String,
        mode: u32,
        recursive: bool,
    },
    Delete {
        path: String,
        recursive: bool,
    },
}

/// A program running inside. Dropping it does not stop the program.
#[derive(Debug)]
pub struct Process {
    /// Process id inside the sandbox.
    pub pid: u32,
    pub stdio: Stdio,
    /// The exit status, 128 + n for signal n. Closed without a value when the sandbox died.
    pub exit: oneshot::Receiver<u8>,
}

#[derive(Debug)]
pub enum Stdio {
    Pipes {
        stdin: pipe::Sender,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    },
    /// The master side of a pseudo-terminal made inside.
    Tty(OwnedFd),
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A wall that was promised can't be built here; `remedy` says what the operator can do.
    #[error("{what}; {remedy}")]
    Unsupported { what: String, remedy: String },
    #[error("the sandbox did not start: {0}")]
    Start(String),
    /// It is gone: killed, out of memory, or its init died.
    #[error("the sandbox is not running")]
    Gone,
    #[error("{program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("too many programs run in this sprite (limit {limit})")]
    TooMany { limit: usize },
    /// It did not happen in the time that the caller gave.
    #[error("{what} took longer than {} ms", .after.as_millis())]
    TimedOut { what: String, after: Duration },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl SandboxError {
    /// The exit status that a shell gives for a program that can't be started: 127 when it is not there, 126 when it
    /// is but can't be executed. `None` when the program is not at fault.
    pub fn exit_status(&self) -> Option<u8> {
        match self {
            Self::Spawn { source, .. } => match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => Some(127),
                // Out of processes, memory or descriptors: the sprite's state, not the program's.
                Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE) => None,
                _ => Some(126),
            },
            _ => None,
        }
    }
}
