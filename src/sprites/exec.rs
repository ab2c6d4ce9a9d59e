//! Running a program over a WebSocket: the upgrade, and the pump that carries its streams.
//!
//! `open` is called by [`super::http::HttpSprites`] alone. The upgrade is an ordinary HTTP request, so that a refused
//! one is judged by its status and body like every other call, and may be repeated; after a 101 nothing is ever sent
//! again. From then on one task per program, the pump, owns the connection. It ends when an exit status came, when the
//! connection is of no more use, or when the [`Exec`] is dropped. What the frames mean is in `exec/frame.rs`.

mod frame;

use std::fmt::Display;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use reqwest::header::{HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS};
use reqwest::{Method, Upgraded};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at};
use tokio_websockets::{ClientBuilder, CloseCode, Limits, Message, WebSocketStream};
use tracing::Instrument;

pub(super) use self::frame::text_or_number;
use self::frame::{EOF, Frame, STDIN};
use super::http::answer::{Nature, causes, quote};
use super::http::call::{Api, Call, from_now};
use super::http::{Deadlines, absolute};
use super::{Exec, ExecEvent, ExecRequest, Result, SpritesError};

/// Standard input travels in frames of this size, like in the official clients.
const STDIN_CHUNK: usize = 32 * 1024;

/// The largest message that is accepted; the official Python client has the same limit.
const MESSAGE_MAX: usize = 10 * 1024 * 1024;

/// Events that wait for a slow reader. When all places are taken the socket is not read, and the program waits.
const EVENTS: usize = 16;

/// Output that may come before the session is announced.
const EARLY_BYTES: usize = MESSAGE_MAX;

/// Time to say goodbye after an exit.
const GOODBYE: Duration = Duration::from_secs(1);

type Socket = WebSocketStream<Outlasting<Upgraded>>;

/// Starts the program and returns once its session is known.
pub(super) async fn open(api: &Api, name: &str, request: ExecRequest) -> Result<Exec> {
    let (call, accept) = upgrade_call(api, name, &request)?;
    let response = api.send(&call).await?;
    check_upgrade(response.headers(), &accept)?;
    // From here on the program may run.
    let end = from_now(request.timeout);
    let upgraded = match timeout_at(call.deadline, response.upgrade()).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return Err(call.lost(causes(&error))),
        Err(_) => return Err(call.lost("the connection was not handed over within the deadline")),
    };
    let socket = ClientBuilder::new()
        .limits(Limits::default().max_payload_len(Some(MESSAGE_MAX)))
        .take_over(Outlasting { inner: upgraded, write_failed: false });

    let (announce, announced) = oneshot::channel();
    let (events, received) = mpsc::channel(EVENTS);
    let what = format!("program in sprite {name}");
    let dead_after = api.deadlines.dead_after;
    let reader = Reader { what, dead_after, events, announce: Some(announce), early: vec![], early_bytes: 0 };
    let pump = tokio::spawn(pump(socket, request.stdin, reader, end, api.deadlines).in_current_span());
    // The guard stops the pump on every way out of here.
    let exec = Exec::new(String::new(), received, pump);
    match timeout_at(call.deadline, announced).await {
        Ok(Ok(session)) => Ok(Exec { session: session?, ..exec }),
        Ok(Err(_)) => Err(call.lost("the connection ended before the session was announced")),
        Err(_) => Err(call.lost("the session was not announced within the deadline")),
    }
}

/// The request for the upgrade, and the proof to expect of the server.
fn upgrade_call(api: &Api, name: &str, request: &ExecRequest) -> Result<(Call, String)> {
    let Some(program) = request.argv.first() else {
        return Err(SpritesError::Refused { status: 400, message: "no program was named".into() });
    };
    let mut url = api.url(&[name, "exec"])?;
    {
        let mut query = url.query_pairs_mut();
        for arg in &request.argv {
            query.append_pair("cmd", arg);
        }
        query.append_pair("path", program);
        query.append_pair("stdin", if request.stdin.is_empty() { "false" } else { "true" });
        for (key, value) in &request.env {
            query.append_pair("env", &format!("{key}={value}"));
        }
        if let Some(dir) = &request.dir {
            query.append_pair("dir", &absolute(dir));
        }
        if let Some(time) = request.max_run_after_disconnect {
            query.append_pair("max_run_after_disconnect", &go_duration(time));
        }
    }
    let (headers, accept) = api.upgrade_headers();
    let mut call = Call::new(format!("sprite {name}"), Nature::Upgrade, Method::GET, url, api.deadlines.exec_open);
    call.headers = headers;
    Ok((call, accept))
}

/// Checks that the other side speaks WebSocket with us and not with somebody else, and agreed to no extension: an
/// official server compresses for whoever asks, and that has lost frames before.
fn check_upgrade(headers: &HeaderMap, accept: &str) -> Result<()> {
    let protocol = |message: &str| Err(SpritesError::Protocol { message: message.into() });
    if headers.get(SEC_WEBSOCKET_ACCEPT).is_none_or(|value| value.as_bytes() != accept.as_bytes()) {
        return protocol("the WebSocket upgrade was answered without a valid Sec-WebSocket-Accept");
    }
    if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return protocol("the server wants a WebSocket extension that was not offered");
    }
    Ok(())
}

/// A duration in Go's notation, to the millisecond.
pub(super) fn go_duration(time: Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{}s", time.as_secs()),
        millis => format!("{}.{millis:03}s", time.as_secs()),
    }
}

/// Carries both directions at once, so that neither can block the other, until the program's end is known.
async fn pump(socket: Socket, stdin: Bytes, mut reader: Reader, end: Instant, deadlines: Deadlines) {
    let (mut sink, mut stream) = socket.split();
    let last = {
        let mut writing = pin!(write(&mut sink, stdin, deadlines.ping_every));
        let mut reading = pin!(timeout_at(end, reader.read(&mut stream)));
        let read = tokio::select! {
            biased;
            read = &mut reading => read,
            // A connection that takes nothing any more may still bring the exit.
            () = &mut writing => reading.await,
        };
        read.unwrap_or_else(|_| Last::Unknown("no exit status within the time that was allowed".into()))
    };
    let polite = matches!(last, Last::Exit(_));
    reader.finish(last).await;
    if polite {
        _ = timeout(GOODBYE, sink.send(Message::close(Some(CloseCode::NORMAL_CLOSURE), ""))).await;
    }
}

/// Sends all input and its end, then pings for ever. Returns when the connection takes no more.
async fn write(sink: &mut SplitSink<Socket, Message>, mut stdin: Bytes, ping_every: Duration) {
    while !stdin.is_empty() {
        let chunk = stdin.split_to(stdin.len().min(STDIN_CHUNK));
        let mut message = BytesMut::with_capacity(1 + chunk.len());
        message.put_u8(STDIN);
        message.put(chunk);
        if sink.feed(Message::binary(message)).await.is_err() {
            return;
        }
    }
    if sink.send(Message::binary(&[EOF][..])).await.is_err() {
        return;
    }
    let mut tick = interval_at(Instant::now() + ping_every, ping_every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if sink.send(Message::ping("")).await.is_err() {
            return;
        }
    }
}

/// How a program's stream ended.
enum Last {
    Exit(u8),
    /// The reason, as the end of a sentence.
    Unknown(String),
    Protocol(String),
    /// Nobody listens any more.
    Unheard,
}

/// The receiving side of the pump.
struct Reader {
    /// For errors.
    what: String,
    dead_after: Duration,
    events: mpsc::Sender<Result<ExecEvent>>,
    /// Taken when the session is announced.
    announce: Option<oneshot::Sender<Result<String>>>,
    /// Output from before that.
    early: Vec<ExecEvent>,
    early_bytes: usize,
}

impl Reader {
    async fn read(&mut self, stream: &mut SplitStream<Socket>) -> Last {
        loop {
            // The clock runs only while the socket is read: a slow consumer is no sign of a dead connection.
            let message = match timeout(self.dead_after, stream.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Last::Unknown(cut(&error)),
                Ok(None) => return Last::Unknown("the connection ended without an exit status".into()),
                Err(_) => return Last::Unknown(format!("the connection was silent for {:?}", self.dead_after)),
            };
            if let Some((code, reason)) = message.as_close() {
                let code = u16::from(code);
                return Last::Unknown(format!("closed without an exit status, code {code} {}", quote(reason)));
            }
            let binary = message.is_binary();
            let taken = match binary || message.is_text() {
                true => frame::parse(binary, message.into_payload().into()),
                false => Frame::Other,
            };
            let heard = match taken {
                Frame::Stdout(bytes) => self.emit(ExecEvent::Stdout(bytes)).await,
                Frame::Stderr(bytes) => self.emit(ExecEvent::Stderr(bytes)).await,
                Frame::Session(id) => self.announce(Ok(id)).await,
                // The first of the two exit messages counts.
                Frame::Exit(status) => return Last::Exit(status),
                Frame::Invalid(message) => return Last::Protocol(message),
                Frame::Other => Ok(()),
            };
            if let Err(last) = heard {
                return last;
            }
        }
    }

    async fn emit(&mut self, event: ExecEvent) -> Result<(), Last> {
        if self.announce.is_none() {
            return self.events.send(Ok(event)).await.map_err(|_| Last::Unheard);
        }
        self.early_bytes += match &event {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => bytes.len(),
            ExecEvent::Exit(_) => 0,
        };
        self.early.push(event);
        if self.early_bytes > EARLY_BYTES {
            return Err(Last::Protocol("much output came, but no session was announced".into()));
        }
        Ok(())
    }

    /// Lets [`open`] return, then hands over what came early. A second announcement is ignored.
    async fn announce(&mut self, session: Result<String>) -> Result<(), Last> {
        if let Some(announce) = self.announce.take() {
            announce.send(session).map_err(|_| Last::Unheard)?;
            for event in std::mem::take(&mut self.early) {
                self.events.send(Ok(event)).await.map_err(|_| Last::Unheard)?;
            }
        }
        Ok(())
    }

    /// Delivers the end: to the listener, or to [`open`] if that still waits.
    async fn finish(&mut self, last: Last) {
        let what = self.what.clone();
        let event = match last {
            Last::Exit(status) => Ok(ExecEvent::Exit(status)),
            Last::Unknown(message) => Err(SpritesError::OutcomeUnknown { what, message }),
            Last::Protocol(message) => Err(SpritesError::Protocol { message: format!("from the {what}: {message}") }),
            Last::Unheard => return,
        };
        // A program that ended before it had a session has nothing that could be killed: an empty id is right.
        let session = event.clone().map(|_| String::new());
        let failed = session.is_err();
        let waited = self.announce.is_some();
        if self.announce(session).await.is_ok() && !(waited && failed) {
            // Fails only when the listener is gone.
            _ = self.events.send(event).await;
        }
    }
}

fn cut(error: &dyn Display) -> String {
    format!("the connection broke before an exit status came: {}", quote(&error.to_string()))
}

/// A connection whose reading side outlasts its writing side. When a program ends and the server closes while input is
/// still on its way, writing fails, but output and exit status wait to be read; the WebSocket would throw them away at
/// the first failed write. So a failed write is kept from it: the rest of the input goes nowhere.
#[derive(Debug)]
struct Outlasting<S> {
    inner: S,
    write_failed: bool,
}

impl<S: AsyncRead + Unpin> AsyncRead for Outlasting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outlasting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.write_failed {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, buf)) {
                Ok(written) if written > 0 || buf.is_empty() => return Poll::Ready(Ok(written)),
                Ok(_) | Err(_) => self.write_failed = true,
            }
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_failed && ready!(Pin::new(&mut self.inner).poll_flush(cx)).is_err() {
            self.write_failed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_reads_them() {
        let cases = [(0, "0s"), (1, "0.001s"), (1500, "1.500s"), (10_000, "10s"), (300_000, "300s")];
        for (millis, text) in cases {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }

    #[tokio::test]
    async fn a_failed_write_does_not_end_reading() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (ours, theirs) = tokio::io::duplex(1024);
        let (mut their_read, mut their_write) = tokio::io::split(theirs);
        their_write.write_all(b"exit").await.unwrap();
        their_write.shutdown().await.unwrap();
        let mut connection = Outlasting { inner: ours, write_failed: false };
        connection.write_all(b"x").await.unwrap();
        their_read.read_exact(&mut [0]).await.unwrap();
        drop((their_read, their_write));
        connection.write_all(&[0; 4096]).await.unwrap();
        connection.flush().await.unwrap();
        assert!(connection.write_failed);
        let mut rest = Vec::new();
        connection.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"exit");
    }
}
