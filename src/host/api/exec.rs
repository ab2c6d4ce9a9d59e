//! `/exec`: running programs, watching and killing them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::error::ApiError;
use super::params::{self, Pairs, Params};
use super::{Shared, ndjson, socket};
use crate::host::sandbox::{Command, SandboxError};
use crate::host::session::{Input, KILLED, Launch, Reader, Session};
use crate::host::store::{Lookup, Sprite, Store, StoreError, micros};

/// A program without terminal may run so long without a client, unless the client asked for another time.
const RUN_AFTER_DISCONNECT: Duration = Duration::from_secs(10);

/// How long a killed program may take to end by itself, unless the client asked for another time.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// Size of a terminal unless asked for otherwise: columns and rows.
const TERMINAL: (u16, u16) = (80, 24);

/// Time between two frames of a reply to a POST. They have no length: the JS SDK takes what it reads at once for one
/// frame, and reads all that has come. Programs with much to say are better run over a WebSocket.
const FRAME_GAP: Duration = Duration::from_millis(5);

/// Where programs start unless asked otherwise.
const HOME: &str = "/home/sprite";

/// Clients of one session at a time.
const MAX_CLIENTS: usize = 16;

/// A request to run a program, read from a query.
struct Exec {
    command: Command,
    launch: Launch,
    takes_stdin: bool,
}

impl Exec {
    fn read(query: Params, store: &Store, sprite: &Sprite) -> Result<Self, ApiError> {
        let mut argv: Vec<String> = query.all("cmd").chain(query.all("cmd[]")).map(str::to_owned).collect();
        match (query.get("path").filter(|path| !path.is_empty()), argv.first_mut()) {
            (Some(path), Some(program)) => *program = path.to_owned(),
            (Some(path), None) => argv.push(path.to_owned()),
            (None, Some(_)) => {}
            (None, None) => return Err(ApiError::bad_request("No command specified")),
        }
        let own = sprite.meta().environment.into_iter();
        let given = query.all("env").map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(ApiError::bad_request("env must be of the form NAME=VALUE")),
        });
        let env: Vec<_> = own.map(Ok).chain(given).collect::<Result<_, _>>()?;
        let has_nul = argv.iter().chain(env.iter().flat_map(|(k, v)| [k, v])).any(|text| text.contains('\0'));
        if has_nul {
            return Err(ApiError::bad_request("a command and its environment can't hold a NUL"));
        }
        let dir = query.get("dir").filter(|dir| !dir.is_empty()).map(str::to_owned);
        let tty = if query.flag("tty")? == Some(true) {
            let size = |given: Option<u16>, usual| given.filter(|n| *n > 0).unwrap_or(usual);
            Some((size(query.number("cols")?, TERMINAL.0), size(query.number("rows")?, TERMINAL.1)))
        } else {
            None
        };
        let stays = tty.is_some() || query.flag("detachable")? == Some(true);
        let max_run_after_disconnect = match query.duration("max_run_after_disconnect")? {
            Some(Duration::ZERO) => None,
            Some(time) => Some(time),
            None => (!stays).then_some(RUN_AFTER_DISCONNECT),
        };
        let setup = store.setup();
        let launch = Launch {
            id: setup.session_id(),
            command: argv.join(" "),
            dir: dir.clone(),
            tty,
            created: setup.world.now(),
            max_run_after_disconnect,
            output_limit: setup.config.limits.output,
        };
        let takes_stdin = query.flag("stdin")?.unwrap_or(tty.is_some()) || tty.is_some();
        // Rows first, as terminals have it.
        let command = Command::Exec { argv, env, dir, tty: tty.map(|(cols, rows)| (rows, cols)) };
        Ok(Self { command, launch, takes_stdin })
    }
}

/// With an upgrade: runs a program, or attaches to the session `id`, as old clients do. Without: the sessions.
pub async fn get(
    State(api): Shared,
    Path(name): Path<String>,
    Query(query): Pairs,
    request: Request,
) -> Result<Response, ApiError> {
    let sprite = api.store.get(&name)?;
    let query = Params(query);
    if !socket::is_upgrade(request.headers()) {
        return Ok(Json(sessions(&sprite)).into_response());
    }
    if let Some(id) = query.get("id").filter(|id| !id.is_empty()) {
        return watch(&sprite, id, request);
    }
    let Exec { command, launch, takes_stdin } = Exec::read(query, &api.store, &sprite)?;
    let slot = sprite.reserve()?;
    // Started before the upgrade, so that a sprite that can't run is told by status. The program is not: a client whose
    // upgrade failed may rely on it that nothing ran.
    sprite.machine().await?;
    socket::accept(request, async move |socket| {
        let (id, command_line, tty) = (launch.id.clone(), launch.command.clone(), launch.tty);
        let created = launch.created.as_second();
        match sprite.exec(command, launch, slot).await {
            Ok((session, reader)) => {
                if !takes_stdin {
                    session.input(Input::End).await;
                }
                // Not held while the client watches: neither must outlive its end for it.
                drop((session, sprite));
                socket::serve(socket, reader, true).await;
            }
            Err(error) => {
                let (text, status) = unstartable(&error);
                let info = socket::info(&id, &command_line, created, tty, true);
                socket::refuse(socket, info, tty.is_some(), &text, status).await;
            }
        }
    })
}

pub async fn attach(
    State(api): Shared,
    Path((name, id)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let sprite = api.store.get(&name)?;
    watch(&sprite, &id, request)
}

fn watch(sprite: &Sprite, id: &str, request: Request) -> Result<Response, ApiError> {
    let session = find(sprite, id)?;
    if session.clients() >= MAX_CLIENTS {
        let message = format!("session {id} has {MAX_CLIENTS} clients, which is the limit");
        return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "concurrent_client_limit_exceeded", message));
    }
    socket::accept(request, async move |socket| socket::serve(socket, session.attach(), false).await)
}

fn find(sprite: &Sprite, id: &str) -> Result<Arc<Session>, ApiError> {
    match sprite.session(id) {
        Lookup::Running(session) => Ok(session),
        Lookup::Ended => Err(ApiError::new(StatusCode::GONE, "session_ended", format!("session {id} has ended"))),
        Lookup::Unknown => {
            Err(ApiError::new(StatusCode::NOT_FOUND, "session not found", format!("session not found: {id}")))
        }
    }
}

/// The exit status that tells why a program did not start, and the words.
fn unstartable(error: &StoreError) -> (String, u8) {
    let status = match error {
        StoreError::Sandbox(error) => error.exit_status().unwrap_or(KILLED),
        _ => KILLED,
    };
    let text = error.to_string();
    // What follows is for programmers: `(os error 2)`.
    (text.split(" (os error").next().unwrap_or_default().to_owned(), status)
}

fn sessions(sprite: &Sprite) -> Value {
    let sessions: Vec<Value> = sprite
        .running_sessions()
        .iter()
        .map(|session| {
            let launch = &session.launch;
            let (cols, rows) = launch.tty.unwrap_or_default();
            let created = micros(launch.created);
            json!({
                "id": launch.id, "command": launch.command, "workdir": launch.dir.as_deref().unwrap_or(HOME),
                "created": created, "bytes_per_second": 0, "is_active": true, "last_activity": created,
                "tty": launch.tty.is_some(), "is_owner": true, "cols": cols, "rows": rows,
            })
        })
        .collect();
    json!({"count": sessions.len(), "sessions": sessions})
}

/// Runs a program with the body as its input. Each frame of the reply is a chunk of its own.
pub async fn post(
    State(api): Shared,
    Path(name): Path<String>,
    Query(query): Pairs,
    body: Body,
) -> Result<Response, ApiError> {
    let sprite = api.store.get(&name)?;
    let query = Params(query);
    if let Some(key) = ["tty", "id", "detachable", "cc"].into_iter().find(|key| query.get(key).is_some()) {
        return Err(ApiError::bad_request(format!("{key} needs a WebSocket")));
    }
    let Exec { command, launch, takes_stdin } = Exec::read(query, &api.store, &sprite)?;
    let slot = sprite.reserve()?;
    let frames = match sprite.exec(command, launch, slot).await {
        Ok((session, reader)) => {
            tokio::spawn(async move {
                let mut body = body.into_data_stream();
                while takes_stdin && let Some(bytes) = body.next().await {
                    // A body that broke off is not the end of input: the program is ended, like any without a client.
                    let Ok(bytes) = bytes else { return };
                    session.input(Input::Data(bytes)).await;
                }
                session.input(Input::End).await;
            });
            frames(reader).left_stream()
        }
        Err(error @ StoreError::Sandbox(SandboxError::Spawn { .. })) => {
            let (text, status) = unstartable(&error);
            let exit = stream::once(async move {
                sleep(FRAME_GAP).await;
                Bytes::from(vec![3, status])
            });
            stream::iter([Bytes::from(format!("\x02{text}\n"))]).chain(exit).right_stream()
        }
        Err(error) => return Err(error.into()),
    };
    let body = Body::from_stream(frames.map(Ok::<_, std::convert::Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// A session's output as frames, with the exit last.
fn frames(reader: Reader) -> impl futures_util::Stream<Item = Bytes> {
    stream::unfold(Some((reader, Instant::now())), async |reading| {
        let (mut reader, not_before) = reading?;
        let next = reader.next().await;
        sleep_until(not_before).await;
        let not_before = Instant::now() + FRAME_GAP;
        Some(match next {
            Ok(piece) => (piece.framed(), Some((reader, not_before))),
            Err(status) => (Bytes::from(vec![3, status]), None),
        })
    })
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Kill {
    signal: Option<String>,
    /// Seconds, or a duration in words.
    timeout: Option<Value>,
}

/// Signals a session's process group, kills what is left of its tree after a grace, and tells what happens meanwhile.
/// Goes on when the client leaves.
pub async fn kill(
    State(api): Shared,
    Path((name, id)): Path<(String, String)>,
    Query(query): Pairs,
    body: Body,
) -> Result<Response, ApiError> {
    let query = Params(query);
    let sprite = api.store.get(&name)?;
    let Kill { signal, timeout } = params::json(body).await?;
    let signal = query.get("signal").map(str::to_owned).or(signal).unwrap_or_else(|| "SIGTERM".into());
    let Some(number) = params::signal(&signal) else {
        return Err(ApiError::bad_request(format!("{signal:?} is not a signal")));
    };
    let asked = query
        .get("timeout")
        .map(str::to_owned)
        .or(timeout.map(|t| t.as_str().map_or_else(|| t.to_string(), str::to_owned)));
    let grace = match asked {
        Some(text) => params::duration(&text).ok_or_else(|| params::bad_duration("timeout"))?,
        None => KILL_GRACE,
    };
    let session = find(&sprite, &id)?;
    let (events, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        // A client that left is not told, and all is done just the same.
        let tell = |event: Value| drop(events.send(event));
        let signalled = session.signal(number).await;
        if let Err(error @ SandboxError::Io(_)) = &signalled {
            tell(json!({"type": "error", "message": error.to_string()}));
            return;
        }
        let pid = session.pid;
        tell(
            json!({"type": "signal", "message": format!("Sent {signal} to process group {pid}"), "signal": signal, "pid": pid}),
        );
        let in_time = tokio::time::timeout(grace, session.exited()).await.is_ok();
        if in_time {
            tell(json!({"type": "exited", "message": "Process exited"}));
        } else {
            tell(json!({"type": "timeout", "message": format!("Process did not exit within {grace:?}")}));
        }
        // Also after an exit in time: what the program started must not outlive it.
        match session.kill_tree().await {
            Ok(()) | Err(SandboxError::Gone) => {}
            Err(error) => {
                tell(json!({"type": "error", "message": error.to_string()}));
                return;
            }
        }
        if !in_time {
            tell(json!({"type": "killed", "message": "Process and its descendants killed"}));
        }
        tell(json!({"type": "complete", "exit_code": session.exited().await}));
    });
    Ok(ndjson(stream::unfold(told, async |mut told| Some((told.recv().await?, told)))))
}
