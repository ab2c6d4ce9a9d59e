//! A WebSocket between an agent and its provider: bytes both ways, untouched, until one side or the job ends.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::pass::Open;

/// Joins the two sides; returns when it is over.
pub(super) async fn join(
    agent: OnUpgrade,
    provider: reqwest::Response,
    open: Arc<Open>,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    let relay = async {
        let (agent, mut provider) = match tokio::join!(agent, provider.upgrade()) {
            (Ok(agent), Ok(provider)) => (agent, provider),
            (agent, provider) => {
                let (agent, provider) = (agent.err(), provider.err());
                debug!(?agent, ?provider, "a WebSocket did not come about");
                return;
            }
        };
        // An end that is not orderly is seen by both sides as what it is; there is nothing more to tell.
        if let Err(error) = copy_bidirectional(&mut TokioIo::new(agent), &mut provider).await {
            debug!(%error, "a WebSocket ended badly");
        }
    };
    tokio::select! {
        biased;
        () = open.ended.cancelled() => {}
        () = stop.cancelled() => {}
        () = relay => {}
    }
}
