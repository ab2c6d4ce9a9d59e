//! The embedded sprite host: serves the Sprites API on loopback from sandboxes of this machine.
//!
//! Parts, from the wire down: `api` (HTTP and WebSocket), `store` (sprites, checkpoints and policies on disk, and the
//! life of each sprite), `session` (one running program and those who watch it), [`layers`] (the overlay layers that
//! checkpoint and restore are made of), [`sandbox`] (one running sandbox: namespaces, init, exec), [`egress`] (the only
//! way out). [`Host`] is the only part that the rest of the service sees.

mod api;
pub mod egress;
pub mod layers;
mod lock;
pub mod sandbox;
mod session;
mod store;
mod walls;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lock::Lock;
use self::sandbox::SandboxError;
use self::store::Store;
#[doc(hidden)]
pub use self::walls::{Trial, Wall, Walls};
use crate::config::{HostConfig, Isolation};
use crate::world::World;

/// Connections at a time. The service itself keeps a few for each runner.
const MAX_CONNECTIONS: usize = 1024;

/// Time for a request's head, and for a kept connection to be used again: longer than clients keep theirs, so that
/// none is closed under a request.
const HEAD_TIME: Duration = Duration::from_secs(300);

/// Time for requests to end at shutdown, once the sandboxes are stopped.
const GOODBYE: Duration = Duration::from_secs(3);

/// A client that takes or brings nothing for so long in the middle of something is treated as gone: what serves it
/// holds a place that others need.
const STALLED: Duration = Duration::from_secs(120);

/// Pause after `accept` failed, as when no file descriptors are left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// A running sprite host. Stop it with [`Host::shutdown`], which returns when all is over; a dropped one is stopped in
/// the background, and its directory is free for another one only then.
pub struct Host {
    address: SocketAddr,
    isolation: Isolation,
    store: Arc<Store>,
    stop: CancellationToken,
    connections: TaskTracker,
}

/// Why the host did not start, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "the sprite host listens on loopback only, and {0} is not: its token would travel in clear; use 127.0.0.1:PORT"
    )]
    NotLoopback(SocketAddr),
    #[error("{path} is in use by another process{holder}: stop that one, or give this one a data directory of its own")]
    InUse { path: PathBuf, holder: String },
    #[error("the directory {path} can't be used: {source}; make it writable for this user, or choose another one")]
    StateDir { path: PathBuf, source: io::Error },
    #[error("can't listen on {address}: {source}; choose another port, or 0 for a free one")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("sprites can't be isolated here: {0}")]
    Isolation(#[source] SandboxError),
}

impl Host {
    /// Starts serving. `exe` is this program, which becomes the init of each sandbox; `token` is asked of every client.
    /// Proves first that a sandbox can be built, and fails if it can't: there is no weaker one instead.
    pub async fn start(config: HostConfig, exe: PathBuf, token: SecretString, world: World) -> Result<Self, HostError> {
        Self::start_trial(config, exe, token, world, Trial::default()).await
    }

    /// As [`Host::start`], for tests that take walls away or stand in for the world outside.
    #[doc(hidden)]
    pub async fn start_trial(
        config: HostConfig,
        exe: PathBuf,
        token: SecretString,
        world: World,
        trial: Trial,
    ) -> Result<Self, HostError> {
        if !config.listen.ip().is_loopback() {
            return Err(HostError::NotLoopback(config.listen));
        }
        let dir = config.state_dir.clone();
        let unusable = |source| HostError::StateDir { path: dir.clone(), source };
        private_dir(&dir).map_err(unusable)?;
        let lock =
            Lock::take(&dir).map_err(unusable)?.map_err(|holder| HostError::InUse { path: dir.clone(), holder })?;
        let isolation = config.isolation;
        let address = config.listen;
        match isolation {
            Isolation::Full => {
                let found = sandbox::probe(Some(&exe), &dir, config.rootfs.as_deref()).await;
                found.map_err(HostError::Isolation)?.iter().for_each(|line| tracing::info!("{line}"));
            }
            Isolation::Off => tracing::warn!(
                "isolation is OFF: programs in sprites run as this user on this machine, and network policies do not hold"
            ),
        }
        let store = Arc::new(Store::open(config, exe, world, lock, trial).map_err(unusable)?);
        let listener = TcpListener::bind(address).await.map_err(|source| HostError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| HostError::Listen { address, source })?;
        store.sweep();
        let stop = CancellationToken::new();
        let connections = TaskTracker::new();
        let router = api::router(store.clone(), &token, stop.clone());
        connections.spawn(accept(listener, router, stop.clone(), connections.clone()));
        tracing::info!(%address, isolation = word(isolation), sprites = store.all().len(), "the sprite host serves");
        Ok(Self { address, isolation, store, stop, connections })
    }

    /// Where it is reached, as in `http://127.0.0.1:8080`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How it isolates, for receipts: `namespaces+seccomp` or `none`.
    pub fn isolation(&self) -> &'static str {
        word(self.isolation)
    }

    /// Ends all programs, tells their clients, and returns when nothing runs and all files are safe.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.connections.close();
        self.store.shutdown().await;
        if tokio::time::timeout(GOODBYE, self.connections.wait()).await.is_err() {
            tracing::warn!("some clients of the sprite host did not end in time and are cut off");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
        let store = self.store.clone();
        // Does nothing after a shutdown. Without a runtime there are no tasks left, and the sandboxes end with them.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { store.shutdown().await });
        }
    }
}

fn word(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Full => "namespaces+seccomp",
        Isolation::Off => "none",
    }
}

/// Makes the directory, for this user alone.
fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// Serves connections until told to stop.
async fn accept(listener: TcpListener, router: Router, stop: CancellationToken, connections: TaskTracker) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match stream {
            Ok((stream, _)) => {
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    serve(stream, router, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Without it small messages wait for acknowledgements. A stream for which it fails is closing anyway.
    let _ = stream.set_nodelay(true);
    // hyper waits for ever for a client that does not read; the kernel does not. Few would be cut without it.
    if let Err(error) = sockopt::set_tcp_user_timeout(&stream, STALLED.as_millis() as u32) {
        tracing::debug!(%error, "a client that stops reading will not be cut off");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
