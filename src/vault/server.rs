//! The vault's connections: who may have one, how long it lives, when it is cut.
//!
//! A connection belongs to the first pass that is shown on it, and ends with it. Before that it has a few seconds to send
//! a request's head.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::VaultHandle;
use super::forward::{self, Forward};
use super::pass::Open;

/// Connections at a time, over all jobs.
const MAX_CONNECTIONS: usize = 4096;
/// A request's head must come within this time, and a kept connection be used again.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// A request's head that is longer is no agent's: the CLIs send about 3 KiB.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;
/// Pause after `accept` failed, as when no file descriptors are left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The pass that a connection belongs to, once one was shown.
#[derive(Default)]
pub(super) struct Owner {
    open: OnceLock<Arc<Open>>,
    known: Notify,
}

impl Owner {
    /// Whether the connection is this pass's now; it is when it was nobody's.
    pub fn take(&self, open: &Arc<Open>) -> bool {
        let owner = self.open.get_or_init(|| {
            self.known.notify_one();
            open.clone()
        });
        Arc::ptr_eq(owner, open)
    }

    /// Resolves when the owner's pass has ended.
    async fn ended(&self) {
        self.known.notified().await;
        match self.open.get() {
            Some(open) => open.ended.cancelled().await,
            None => std::future::pending().await,
        }
    }
}

/// Accepts connections until `stop`.
pub(super) async fn serve(listener: Arc<TcpListener>, vault: VaultHandle, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => match places.clone().try_acquire_owned() {
                Ok(place) => drop(tokio::spawn(connection(stream, vault.clone(), stop.clone(), place))),
                Err(_) => warn!(MAX_CONNECTIONS, "the vault has as many connections as it may: one is refused"),
            },
            Err(error) => {
                debug!(%error, "accepting a connection to the vault failed");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, vault: VaultHandle, stop: CancellationToken, place: OwnedSemaphorePermit) {
    // Small events must not wait for one another; failing to say so costs time only.
    let _ = stream.set_nodelay(true);
    let owner = Arc::new(Owner::default());
    let forward = Arc::new(Forward { vault, owner: owner.clone(), stop: stop.clone(), _place: place });
    let service = service_fn(move |request| {
        let forward = forward.clone();
        async move { Ok::<_, Infallible>(forward::answer(&forward, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let serving = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        // Dropping it closes the socket in the middle of whatever it was doing.
        () = owner.ended() => {}
        served = serving => if let Err(error) = served {
            debug!(%error, "a connection to the vault ended badly");
        },
    }
}
