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
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::json;
use sha1::{Digest, Sha1};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_websockets::{CloseCode, Limits, Message, ServerBuilder, WebSocketStream};

use super::error::ApiError;
use super::params;
use crate::host::STALLED;
use crate::host::sandbox::SandboxError;
use crate::host::session::{Input, Reader, Session};

/// Appended to the client's key before hashing (RFC 6455, 1.3).
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Announces that signals may be sent as text messages.
const CAPABILITIES: HeaderName = HeaderName::from_static("x-sprite-capabilities");

/// Time between signs of life. The JS SDK gives up after 45 s without a message; it does not see pings.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// After the close message, the client's own is awaited for so long: closing earlier, with its input unread, would
/// reset the connection and lose output that is still on its way. In this time also a close is sent that answers the
/// client's own, or tells what was wrong with its last message.
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
    tokio::select! {
        _ = sending => {}
        () = receive(&mut from, &session) => {}
    }
    drop(reader);
    linger(&mut from).await;
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

/// What a client says in one message.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Input(Bytes),
    EndOfInput,
    Resize {
        cols: u16,
        rows: u16,
    },
    Signal(Signal),
    /// Nothing that is known. Newer clients may say more, so it is no error.
    Nothing,
}

/// What a client may say in text.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Text {
    Resize { cols: u16, rows: u16 },
    Signal { signal: String },
}

/// Reads a message. Pure.
fn read(is_text: bool, tty: bool, payload: Bytes) -> Said {
    if is_text {
        return match serde_json::from_slice(&payload) {
            Ok(Text::Resize { cols, rows }) => Said::Resize { cols, rows },
            Ok(Text::Signal { signal }) => params::signal(&signal).map_or(Said::Nothing, Said::Signal),
            Err(_) => Said::Nothing,
        };
    }
    match payload.first() {
        Some(_) if tty => Said::Input(payload),
        Some(0) => Said::Input(payload.slice(1..)),
        Some(4) => Said::EndOfInput,
        Some(_) | None => Said::Nothing,
    }
}

/// Hands on what the client sends, until it leaves.
async fn receive(from: &mut SplitStream<Socket>, session: &Session) {
    let tty = session.launch.tty.is_some();
    while let Some(Ok(message)) = from.next().await {
        if !message.is_text() && !message.is_binary() {
            continue;
        }
        let done = match read(message.is_text(), tty, message.into_payload().into()) {
            Said::Input(bytes) => {
                session.input(Input::Data(bytes)).await;
                Ok(())
            }
            Said::EndOfInput => {
                session.input(Input::End).await;
                Ok(())
            }
            Said::Resize { cols, rows } => session.resize(cols, rows).map_err(SandboxError::from),
            Said::Signal(signal) => session.signal(signal).await,
            Said::Nothing => Ok(()),
        };
        if let Err(error) = done {
            tracing::debug!(session = session.launch.id, %error, "a resize or signal came too late");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Said {
        read(true, false, Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn messages_are_told_apart_by_kind_first_byte_and_type() {
        let binary = |tty, bytes: &'static [u8]| read(false, tty, Bytes::from_static(bytes));
        assert_eq!(binary(false, b"\0in"), Said::Input("in".into()));
        assert_eq!(binary(false, b"\x04"), Said::EndOfInput);
        assert_eq!(binary(true, b"\x04"), Said::Input("\x04".into()));
        assert_eq!(text(r#"{"type":"resize","cols":120,"rows":40}"#), Said::Resize { cols: 120, rows: 40 });
        assert_eq!(text(r#"{"type":"signal","signal":"SIGTERM"}"#), Said::Signal(Signal::TERM));
        for nothing in [&b""[..], b"\x01out", b"\x03\0", b"\xff"] {
            assert_eq!(binary(false, nothing), Said::Nothing);
        }
        for nothing in [
            "",
            "resize",
            "{}",
            r#"{"type":"release"}"#,
            r#"{"type":"resize"}"#,
            r#"{"type":"resize","cols":-1,"rows":40}"#,
            r#"{"type":"resize","cols":65536,"rows":40}"#,
            r#"{"type":"signal","signal":"NONSENSE"}"#,
            r#"{"type":"signal","signal":9}"#,
        ] {
            assert_eq!(text(nothing), Said::Nothing, "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_read_and_input_is_kept_as_it_is(is_text: bool, tty: bool, bytes: Vec<u8>) {
            match read(is_text, tty, Bytes::from(bytes.clone())) {
                Said::Input(input) => {
                    prop_assert!(!is_text);
                    prop_assert_eq!(&input[..], if tty { &bytes[..] } else { &bytes[1..] });
                }
                Said::EndOfInput => prop_assert!(!is_text && !tty && bytes[0] == 4),
                Said::Resize { .. } | Said::Signal(_) => prop_assert!(is_text),
                Said::Nothing => {}
            }
        }

        #[test]
        fn no_text_is_taken_for_input(said in r#"\{"type":"(resize|signal)"(,"(cols|rows|signal)":("?[0-9A-Z-]{0,6}"?)){0,3}\}"#) {
            prop_assert!(!matches!(text(&said), Said::Input(_) | Said::EndOfInput));
        }
    }
}
