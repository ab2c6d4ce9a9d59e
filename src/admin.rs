//! The admin listener: whether the service lives and is ready, and what adapters want served beside that.
//!
//! Started by the app after the adapters, restarted by its supervisor; while it is down nobody can look, and nothing
//! else is lost. The socket is bound once, before anything else starts, so that an address in use is an error at the
//! start, and a restarted actor has it again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::observe::health::{Board, Condition};
use crate::pool::{PoolHandle, PoolStatus};
use crate::supervise::{ChildSpec, RestartPolicy};

/// The socket of the listener.
pub struct Socket(Arc<std::net::TcpListener>);

impl Socket {
    /// Binds the address.
    ///
    /// # Errors
    /// A sentence with what to do.
    pub fn bind(address: SocketAddr) -> Result<Self, String> {
        let bound = std::net::TcpListener::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        bound.map(|socket| Self(Arc::new(socket))).map_err(|error| {
            format!("the admin listener can't have {address} ({error}): stop what uses it, or set ADMIN_LISTEN")
        })
    }

    /// Where it listens, which differs from what was asked when that was port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }
}

pub struct Admin;

/// What it shows.
#[derive(Clone)]
struct Views {
    board: Board,
    pool: PoolHandle,
}

/// The listener as a child for the root supervisor. `routes` are served beside its own.
pub fn child(socket: Socket, board: Board, pool: PoolHandle, routes: Router) -> ChildSpec {
    let views = Views { board, pool };
    let own = Router::new().route("/healthz", get(|| async { "alive\n" })).route("/readyz", get(readyz));
    let router = own.with_state(views).merge(routes);
    ChildSpec::new("admin", RestartPolicy::SPARE, move |root| {
        let (socket, router) = (socket.0.clone(), router.clone());
        async move {
            let (actor, _join) = Actor::spawn_linked(None, Admin, (socket, router), root).await?;
            Ok(actor.get_cell())
        }
    })
}

/// Messages of the listener.
pub enum AdminMsg {
    /// Own task: it can't serve any more.
    Broken(std::io::Error),
}

impl Actor for Admin {
    type Msg = AdminMsg;
    /// The server, which ends with the actor.
    type State = AbortOnDropHandle<()>;
    type Arguments = (Arc<std::net::TcpListener>, Router);

    async fn pre_start(
        &self,
        me: ActorRef<Self::Msg>,
        (socket, router): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let listener = TcpListener::from_std(socket.try_clone()?)?;
        Ok(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                let _ = me.cast(AdminMsg::Broken(error));
            }
        })))
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        AdminMsg::Broken(error): Self::Msg,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Err(error.into())
    }

    /// It has no children and monitors nobody.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        _: SupervisionEvent,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    parts: BTreeMap<&'static str, Condition>,
}

async fn readyz(Shared(views): Shared<Views>) -> Response {
    let mut parts = views.board.all();
    parts.insert("pool", pool_condition(views.pool.status().await));
    let ready = parts.values().all(|condition| *condition == Condition::Ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, parts })).into_response()
}

/// The pool is ready when it has a runner that works or is being made: then a job waits, and is not lost.
fn pool_condition(status: Option<PoolStatus>) -> Condition {
    let Some(status) = status else {
        return Condition::NotReady("the runner pool does not answer: it is being restarted".into());
    };
    if status.runners.is_empty() {
        return Condition::Starting;
    }
    if status.runners.iter().any(|runner| runner.state != "quarantined") {
        return Condition::Ready;
    }
    let why = status.runners.iter().find_map(|runner| runner.note.clone()).unwrap_or_default();
    Condition::NotReady(format!("every runner is quarantined, and rebuilding is tried again by itself: {why}"))
}
