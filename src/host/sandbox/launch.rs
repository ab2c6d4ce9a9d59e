//! Starts a sandbox and ends it: the service's side of the helper and of init.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio as Redirect;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use super::cgroup::Group;
use super::exec::Running;
use super::helper::ARG0;
use super::sys::Fault;
use super::wire::{self, Caps, Report, Setup};
use super::{NetworkFds, SandboxError, SandboxSpec, remedy, watch as watcher};
use crate::config::Isolation;
use crate::host::layers::{self, MAX_CHAIN};
use crate::host::walls::{Wall, Walls};

/// From start to ready takes milliseconds; a machine that needs longer than this is not going to get there.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Ending takes milliseconds; only a process that the kernel itself holds takes longer.
const END_TIMEOUT: Duration = Duration::from_secs(20);

static HELPER: OnceLock<PathBuf> = OnceLock::new();

/// Names the executable whose `main` calls [`super::maybe_run_init`], for programs that are not it (tests). Only the
/// first call counts. Default: this program itself.
pub fn use_helper(path: impl Into<PathBuf>) {
    let _ = HELPER.set(path.into());
}

/// The executable that becomes the helper.
pub(super) fn helper() -> PathBuf {
    HELPER.get().map_or("/proc/self/exe".into(), PathBuf::clone)
}

/// A running sandbox. All methods but [`Sandbox::take_network`] work from several tasks at once. Dropping it kills it.
#[derive(Debug)]
pub struct Sandbox {
    pub(super) inner: Arc<Inner>,
    network: Option<NetworkFds>,
    /// Ends with the sandbox.
    _watcher: tokio_util::task::AbortOnDropHandle<()>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub spec: SandboxSpec,
    pub standing: Walls,
    pub control: AsyncFd<OwnedFd>,
    pidfd: OwnedFd,
    /// Init's process id on this machine.
    pub init: u32,
    /// The kernel holds its memory limit.
    pub grouped: bool,
    /// Who owns what programs get from the service.
    pub owner: (u32, u32),
    /// Programs whose tree is not empty, by the pid that the caller knows.
    pub programs: Mutex<HashMap<u32, Running>>,
    pub gone: watch::Receiver<bool>,
    /// Its file systems are unmounted too.
    released: watch::Receiver<bool>,
    death: Mutex<Option<String>>,
}

impl Sandbox {
    /// Builds the sandbox and waits until programs can be started in it.
    ///
    /// # Errors
    /// [`SandboxError::Unsupported`] when this machine can't build what was promised, with the remedy;
    /// [`SandboxError::Start`] for everything else.
    pub async fn start(spec: SandboxSpec) -> Result<Self, SandboxError> {
        Self::start_with(&helper(), spec).await
    }

    /// As [`Sandbox::start`], with a helper of the caller's choice.
    ///
    /// # Errors
    /// As [`Sandbox::start`].
    pub async fn start_with(helper: &Path, spec: SandboxSpec) -> Result<Self, SandboxError> {
        Self::start_trial(helper, spec, &Walls::default()).await
    }

    /// As [`Sandbox::start_with`], with walls taken away.
    pub(in crate::host) async fn start_trial(
        helper: &Path,
        spec: SandboxSpec,
        standing: &Walls,
    ) -> Result<Self, SandboxError> {
        if spec.lower.len() > MAX_CHAIN {
            let (found, name) = (spec.lower.len(), &spec.name);
            return Err(SandboxError::Start(format!(
                "{name} has {found} layers, more than {MAX_CHAIN}: create it anew"
            )));
        }
        let walls = spec.isolation == Isolation::Full;
        if !walls {
            let (dir, lower, run) = (spec.dir.clone(), spec.lower.clone(), spec.run.clone());
            tokio::task::spawn_blocking(move || layers::unfold(&dir, &lower, &run))
                .await
                .map_err(io::Error::other)??;
        }
        let (control, theirs) = wire::pair()?;
        let mut child = tokio::process::Command::new(helper)
            .arg0(ARG0)
            .env_clear()
            .stdin(Redirect::from(theirs))
            .stdout(Redirect::null())
            .stderr(Redirect::null())
            // Without walls a killed helper could not end its descendants, as it does when the service hangs up.
            .kill_on_drop(walls)
            .spawn()
            .map_err(|e| SandboxError::Start(format!("the helper {} can't be executed: {e}", helper.display())))?;
        let control = channel(control)?;
        // Before it does anything; all that comes from it stays in the group.
        let group = child
            .id()
            .filter(|_| walls && standing.has(Wall::MemoryLimit))
            .and_then(|pid| Group::enclose(pid, spec.limits.memory))
            .map(Arc::new);
        let setup = Setup {
            name: spec.name.clone(),
            dir: spec.dir.clone(),
            lower: spec.lower.clone(),
            run: spec.run.clone(),
            rootfs: spec.rootfs.clone(),
            ports: spec.ports.clone(),
            caps: Caps {
                memory: spec.limits.memory,
                processes: spec.limits.processes,
                disk: spec.limits.disk,
                inodes: spec.limits.inodes,
                open_files: spec.limits.open_files,
            },
            walls,
            standing: standing.clone(),
        };
        send(&control, &setup, &[]).await?;
        let born = timeout(START_TIMEOUT, Birth::attend(&control, &spec.ports, walls, standing))
            .await
            .map_err(|_| SandboxError::Start(format!("it was not ready within {} s", START_TIMEOUT.as_secs())))??;
        // Without walls the helper stays, as init; it is a child of this process like any init.
        let pidfd = match born.pidfd {
            Some(guard) => {
                child.wait().await?;
                guard.release().ok_or_else(bad_report)?
            }
            None => {
                let pid = rustix::process::Pid::from_raw(born.pid as i32).ok_or_else(bad_report)?;
                rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(io::Error::from)?
            }
        };
        let (gone_tx, gone) = watch::channel(false);
        let (released_tx, released) = watch::channel(false);
        let inner = Arc::new(Inner {
            spec,
            standing: standing.clone(),
            control,
            pidfd: pidfd.try_clone()?,
            init: born.pid,
            grouped: group.is_some(),
            owner: born.owner,
            programs: Mutex::default(),
            gone,
            released,
            death: Mutex::default(),
        });
        let file_systems = Arc::new(born.file_systems);
        let watcher = tokio::spawn(watcher::run(Arc::clone(&inner), Arc::downgrade(&file_systems), group.clone()));
        let ended = Arc::clone(&inner);
        tokio::spawn(async move {
            if walls {
                bury(pidfd).await;
            } else {
                // Fails only when somebody else took its status: then it has ended.
                let _ = child.wait().await;
            }
            if group.is_some_and(|group| group.ran_out()) {
                ended.blame(watcher::out_of_memory(&ended.spec.limits));
            }
            let _ = gone_tx.send(true);
            // The last hold on the overlay. Letting go of one with 20,000 changed files takes 100 ms and more, which no
            // restore has to wait for.
            let _ = tokio::task::spawn_blocking(move || drop(file_systems)).await;
            let _ = released_tx.send(true);
        });
        Ok(Self { inner, network: born.network, _watcher: tokio_util::task::AbortOnDropHandle::new(watcher) })
    }

    /// The sockets of its network, once. `None` with isolation off.
    pub fn take_network(&mut self) -> Option<NetworkFds> {
        self.network.take()
    }

    /// Ends everything inside, and waits until no process is left. A sandbox that is gone already is fine. Its file
    /// systems may still be on their way out, which is of no matter to a new run beside it.
    ///
    /// # Errors
    /// [`SandboxError::TimedOut`] when processes are left, which only the kernel can cause.
    pub async fn kill(&self) -> Result<(), SandboxError> {
        self.inner.end();
        let (what, after) = ("ending the sandbox".into(), END_TIMEOUT);
        timeout(after, self.exited()).await.map_err(|_| SandboxError::TimedOut { what, after })
    }

    /// As [`Sandbox::kill`], and waits until its overlay is unmounted, as a checkpoint must.
    ///
    /// # Errors
    /// As [`Sandbox::kill`].
    pub async fn stop(self) -> Result<(), SandboxError> {
        self.kill().await?;
        self.released().await
    }

    /// Waits until a sandbox that is gone has its overlay unmounted, so that its run may be frozen or go on.
    ///
    /// # Errors
    /// [`SandboxError::TimedOut`].
    pub async fn released(&self) -> Result<(), SandboxError> {
        let (what, after) = ("unmounting the sandbox".into(), END_TIMEOUT);
        let mut released = self.inner.released.clone();
        let released = timeout(after, released.wait_for(|released| *released)).await;
        released.map(drop).map_err(|_| SandboxError::TimedOut { what, after })
    }

    /// Waits until it is gone, for whatever reason: none of its processes is left.
    pub async fn exited(&self) {
        // The sender only goes away with the runtime.
        let _ = self.inner.gone.clone().wait_for(|gone| *gone).await;
    }

    /// Why the service ended it, in words for the user. `None` while it runs, and when nobody meant it.
    pub fn death(&self) -> Option<String> {
        self.inner.death.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.inner.end();
    }
}

impl Inner {
    /// Starts the end; [`bury`] sees it through.
    pub fn end(&self) {
        match self.spec.isolation {
            // Init can't refuse, and the kernel ends with it whatever lives in its namespace. It may be dead already.
            Isolation::Full => drop(rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL)),
            // The helper ends its descendants when the service hangs up; killed, it could not.
            Isolation::Off => drop(rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both)),
        }
    }

    /// Ends it because of a limit, and keeps the reason.
    pub fn condemn(&self, reason: String) {
        tracing::warn!(sprite = %self.spec.name, reason, "ending the sandbox");
        self.blame(reason);
        self.end();
    }

    fn blame(&self, reason: String) {
        self.death.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }
}

/// Waits for the end of init, and takes its exit status so that no zombie stays.
async fn bury(pidfd: OwnedFd) {
    // SAFETY: an `OwnedFd` always gives the same descriptor and keeps it open.
    match unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) } {
        Ok(pidfd) => {
            // Readable exactly when the process has ended.
            let _ = pidfd.readable().await;
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
        Err(error) => tracing::error!(%error, "the end of a sandbox can't be observed"),
    }
}

/// An init that nobody owns yet: when the start fails or is given up half-way, it is ended, and leaves no zombie.
struct Foundling(Option<OwnedFd>);

impl Foundling {
    fn release(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

impl Drop for Foundling {
    fn drop(&mut self) {
        let Some(pidfd) = self.0.take() else { return };
        // It may have ended by itself.
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(bury(pidfd));
        }
    }
}

/// What the helper and init said of themselves.
struct Birth {
    pid: u32,
    owner: (u32, u32),
    /// `None` without walls.
    pidfd: Option<Foundling>,
    network: Option<NetworkFds>,
    /// Roots of its file systems, the overlay's first; none without walls.
    file_systems: Vec<OwnedFd>,
}

impl Birth {
    async fn attend(
        control: &AsyncFd<OwnedFd>,
        ports: &[u16],
        walls: bool,
        standing: &Walls,
    ) -> Result<Self, SandboxError> {
        let (mut born, mut ready) = (None, None);
        // The helper's word and init's may come in either order.
        while born.is_none() || ready.is_none() {
            match receive::<Report>(control).await? {
                Some((Report::Born { pid, uid, gid }, fds)) => {
                    let mut fds = fds.into_iter();
                    let init = fds.next().map(|pidfd| Foundling(Some(pidfd)));
                    born = Some((pid, (uid, gid), init, fds));
                }
                Some((Report::Ready, fds)) => ready = Some(fds),
                Some((Report::Failed { step, errno }, _)) => return Err(remedy::explain(&Fault { step, errno })),
                None => return Err(SandboxError::Start("its helper ended without a word".into())),
            }
        }
        let (Some((pid, owner, init, mut fds)), Some(file_systems)) = (born, ready) else { return Err(bad_report()) };
        if !walls {
            return Ok(Self { pid, owner, pidfd: None, network: None, file_systems });
        }
        if init.is_none() || file_systems.is_empty() {
            return Err(bad_report());
        }
        if !standing.has(Wall::NetworkNamespace) {
            return Ok(Self { pid, owner, pidfd: init, network: None, file_systems });
        }
        let mut next = || fds.next().ok_or_else(bad_report);
        let (dns_udp, dns_tcp) = (next()?, next()?);
        let listeners = ports.iter().map(|&port| Ok((port, next()?))).collect::<Result<_, SandboxError>>()?;
        let network = Some(NetworkFds { dns_udp, dns_tcp, listeners });
        Ok(Self { pid, owner, pidfd: init, network, file_systems })
    }
}

fn bad_report() -> SandboxError {
    SandboxError::Start("its helper said something that can't be understood".into())
}

/// A message socket, ready for [`send`] and [`receive`].
pub(super) fn channel(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    // SAFETY: an `OwnedFd` always gives the same descriptor and keeps it open.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Sends a message without blocking the runtime.
pub(super) async fn send(
    socket: &AsyncFd<OwnedFd>,
    message: &impl serde::Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    socket.async_io(Interest::WRITABLE, |fd| wire::send(fd, message, fds)).await
}

/// Receives a message from inside; `None` when the other side has hung up.
pub(super) async fn receive<T: DeserializeOwned>(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    socket.async_io(Interest::READABLE, |fd| wire::receive(fd, wire::FROM_INSIDE_MAX)).await
}
