//! The actor that keeps the vault's server up.
//!
//! ```text
//!   serving ──the server ends──► the actor fails ──► its supervisor starts it again, on the same listener
//! ```
//! Started by the root before the pool, stopped after it. When it dies, all connections are cut; passes live on in the
//! [`VaultHandle`], so that running jobs' agents connect again and go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::{VaultError, VaultHandle, server};
use crate::supervise::{ChildSpec, RestartPolicy};

/// How often passes whose time is up are looked for. They are refused at once; this only forgets them.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Serves what a [`VaultHandle`] has passes for.
pub struct Vault {
    pub handle: VaultHandle,
    pub listener: Arc<TcpListener>,
}

/// Messages of the vault.
#[derive(Debug)]
pub enum Msg {
    /// From its own task: the server ended, which it should not.
    Ended,
    /// From its own timer.
    Sweep,
}

pub struct State {
    _server: AbortOnDropHandle<()>,
    /// Cuts all connections, tunnels included, when the actor ends.
    _cut: DropGuard,
}

impl Actor for Vault {
    type Msg = Msg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        let stop = CancellationToken::new();
        let serving = server::serve(self.listener.clone(), self.handle.clone(), stop.clone());
        let me = myself.clone();
        let server = AbortOnDropHandle::new(tokio::spawn(async move {
            let ended = std::panic::AssertUnwindSafe(serving);
            // Whether it returned or panicked, the actor is told, and fails.
            let _ = futures_util::FutureExt::catch_unwind(ended).await;
            let _ = me.cast(Msg::Ended);
        }));
        myself.send_after(SWEEP_EVERY, || Msg::Sweep);
        info!(url = self.handle.url(), "the vault serves");
        Ok(State { _server: server, _cut: stop.drop_guard() })
    }

    async fn handle(&self, myself: ActorRef<Msg>, msg: Msg, _: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Ended => {
                error!("the vault's server ended: it is started again");
                Err("the vault's server ended".into())
            }
            Msg::Sweep => {
                self.handle.passes().expire(Instant::now());
                myself.send_after(SWEEP_EVERY, || Msg::Sweep);
                Ok(())
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Msg>,
        event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children.
        warn!(?event, "the vault got an event of a child that it does not have");
        Ok(())
    }
}

/// Takes the address before anything needs it: the sprites' network is told where the vault is when it is made.
///
/// # Errors
/// When the address is taken or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<(Arc<TcpListener>, SocketAddr), VaultError> {
    let failed = |error: std::io::Error| VaultError::Listen(address, error.to_string());
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((Arc::new(listener), bound))
}

/// The vault as a child for the root supervisor. The listener stays over restarts, and with it the address.
pub fn child(handle: VaultHandle, listener: Arc<TcpListener>) -> ChildSpec {
    ChildSpec::new("vault", RestartPolicy::ESSENTIAL, move |root| {
        let vault = Vault { handle: handle.clone(), listener: listener.clone() };
        async move { Ok(Actor::spawn_linked(None, vault, (), root).await?.0.get_cell()) }
    })
}
