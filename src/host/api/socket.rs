//! The exec protocol over a WebSocket: session to frames, frames to session.
//!
//! Two forms. Without terminal a binary message is one channel byte and a payload; with one it is the terminal's bytes.
//! Text messages are JSON. The end is told twice without terminal (a text and a binary message: SDKs differ in which
//! one they read) and by text alone with one, always after all output; the close code repeats it for the JS SDK.
//! Compression is never accepted, since the JS SDK loses frames by it.

use std::future::Future;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use sha1::{Digest, Sha1};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_websockets::{CloseCode, Limits, Message, ServerBuilder, WebSocketStream};

use super::error::ApiError;
use super::params;
use crate::host::session::{Input, Reader, Session};

/// Appended to the client's key before hashing (RFC 6455, 1.3).
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Announces that signals may be sent as text messages.
const CAPABILITIES: HeaderName = HeaderName::from_static("x-sprite-capabilities");

/// Time between signs of life. The JS SDK gives up after 45 s without a message; it does not see pings.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A client that takes nothing for so long is treated as gone.
const STALLED: Duration = Duration::from_secs(120);

/// After the close message, the client's own is awaited for so long: closing earlier, with its input unread, would
/// reset the connection and lose output that is still on its way.
const LINGER: Duration = Duration::from_secs(5);

/// Bytes of one message of input.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Close code after a failure on a terminal: the JS SDK takes any but 1000 for a failure.
const FAILED: u16 = 4000;

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Outgoing = SplitSink<Socket, Message>;

/// Whether the client asks for a WebSocket.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Accepts the WebSocket, and has `serve` run with it in a task of its own once the client is told.
pub fn accept<F: Future<Output = ()> + Send + 'static>(
    mut request: Request,
    serve: impl FnOnce(Socket) -> F + Send + 'static,
) -> Result<Response, ApiError> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let version = request.headers().get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    let (Some(key), true, Some(b"13")) = (key, is_upgrade(request.headers()), version) else {
        return Err(ApiError::new(
            StatusCode::UPGRADE_REQUIRED,
            "websocket_required",
            "this address takes WebSockets of version 13",
        ));
    };
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(stream) => {
                let limits = Limits::default().max_payload_len(Some(MAX_MESSAGE));
                serve(ServerBuilder::new().limits(limits).serve(TokioIo::new(stream))).await;
            }
            Err(error) => tracing::debug!(%error, "a client left during its upgrade"),
        }
    });
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        // Base 64 is ASCII without control characters.
        (header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).unwrap_or(HeaderValue::from_static(""))),
        (CAPABILITIES, HeaderValue::from_static("signal")),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Serves one client of a session until it leaves or the session ends.
pub async fn serve(socket: Socket, mut reader: Reader, is_owner: bool) {
    let session = reader.session().clone();
    let tty = session.launch.tty.is_some();
    let (mut to, mut from) = socket.split();
    let sending = async {
        send(&mut to, session_info(&session, is_owner)).await?;
        let mut ticks = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                next = reader.next() => match next {
                    Ok(piece) => {
                        let bytes = if tty { piece.output() } else { piece.framed() };
                        send(&mut to, Message::binary(bytes)).await?;
                    }
                    Err(status) => return finish(&mut to, tty, status).await,
                },
                _ = ticks.tick() => {
                    send(&mut to, Message::ping(Bytes::new())).await?;
                    send(&mut to, Message::text(r#"{"type":"keepalive"}"#)).await?;
                }
            }
        }
    };
    let is_finished = tokio::select! {
        sent = sending => sent.is_some(),
        () = receive(&mut from, &session) => false,
    };
    drop(reader);
    if is_finished {
        linger(&mut from).await;
    }
}

/// Tells a client that its program could not be started, in the form of a program that said so and ended.
pub async fn refuse(socket: Socket, info: Message, tty: bool, text: &str, status: u8) {
    let (mut to, mut from) = socket.split();
    let mut output = if tty { Vec::new() } else { vec![2] };
    output.extend_from_slice(text.as_bytes());
    output.push(b'\n');
    let sent = async {
        send(&mut to, info).await?;
        send(&mut to, Message::binary(output)).await?;
        finish(&mut to, tty, status).await
    };
    if sent.await.is_some() {
        linger(&mut from).await;
    }
}

fn session_info(session: &Session, is_owner: bool) -> Message {
    let launch = &session.launch;
    info(&launch.id, &launch.command, launch.created.as_second(), launch.tty, is_owner)
}

/// The first message to every client.
pub fn info(id: &str, command: &str, created: i64, tty: Option<(u16, u16)>, is_owner: bool) -> Message {
    let (cols, rows) = tty.unwrap_or_default();
    let info = json!({
        "type": "session_info", "session_id": id, "command": command, "created": created,
        "cols": cols, "rows": rows, "is_owner": is_owner, "tty": tty.is_some(),
    });
    Message::text(info.to_string())
}

/// The exit and the close, in as few packets as possible.
async fn finish(to: &mut Outgoing, tty: bool, status: u8) -> Option<()> {
    let exit = json!({"type": "exit", "exit_code": status, "code": status});
    feed(to, Message::text(exit.to_string())).await?;
    let code = if tty && status != 0 {
        CloseCode::try_from(FAILED).unwrap_or(CloseCode::INTERNAL_SERVER_ERROR)
    } else {
        CloseCode::NORMAL_CLOSURE
    };
    if !tty {
        feed(to, Message::binary(vec![3, status])).await?;
    }
    send(to, Message::close(Some(code), "")).await
}

/// `None` when the client is gone.
async fn send(to: &mut Outgoing, message: Message) -> Option<()> {
    timeout(STALLED, to.send(message)).await.ok()?.ok()
}

async fn feed(to: &mut Outgoing, message: Message) -> Option<()> {
    timeout(STALLED, to.feed(message)).await.ok()?.ok()
}

async fn linger(from: &mut SplitStream<Socket>) {
    let _ = timeout(LINGER, async { while let Some(Ok(_)) = from.next().await {} }).await;
}

/// What a client may say in text. Anything else is ignored.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Say {
    Resize { cols: u16, rows: u16 },
    Signal { signal: String },
}

/// Hands on what the client sends, until it leaves.
async fn receive(from: &mut SplitStream<Socket>, session: &Session) {
    let tty = session.launch.tty.is_some();
    while let Some(Ok(message)) = from.next().await {
        if let Some(text) = message.as_text() {
            hear(text, session).await;
        } else if message.is_binary() {
            let bytes: Bytes = message.into_payload().into();
            match bytes.first() {
                Some(_) if tty => session.input(Input::Data(bytes)).await,
                Some(0) => session.input(Input::Data(bytes.slice(1..))).await,
                Some(4) => session.input(Input::End).await,
                Some(_) | None => {}
            }
        }
    }
}

async fn hear(text: &str, session: &Session) {
    let done = match serde_json::from_str(text) {
        Ok(Say::Resize { cols, rows }) => session.resize(cols, rows).await,
        Ok(Say::Signal { signal }) => match params::signal(&signal) {
            Some(signal) => session.signal(signal).await,
            None => return,
        },
        Err(_) => return,
    };
    if let Err(error) = done {
        tracing::debug!(session = session.launch.id, %error, "a resize or signal came too late");
    }
}
