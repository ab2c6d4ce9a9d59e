//! A Sprites API that says what a test tells it to, over real HTTP and WebSocket.
//!
//! It is stricter than the real one: an unknown query parameter, a missing token, a wrong content type or a bad
//! WebSocket handshake is answered 400 with a reason, and so is a request that no test asked for. All requests are kept.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt, stream};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tokio_websockets::{CloseCode, Message, ServerBuilder, WebSocketStream};

pub const TOKEN: &str = "tok-hunter2-secret";

/// Query parameters that a path may have, by its last segment.
const PARAMETERS: [(&str, &[&str]); 6] = [
    ("sprites", &["prefix", "max_results", "continuation_token"]),
    ("exec", &["cmd", "path", "env", "dir", "stdin", "max_run_after_disconnect"]),
    ("kill", &["signal", "timeout"]),
    ("read", &["path", "workingDir"]),
    ("write", &["path", "workingDir", "mode", "mkdirParents"]),
    ("list", &["path", "workingDir", "recursive"]),
];

/// What is said in answer to a request.
#[derive(Clone)]
pub enum Answer {
    /// Status, headers, body.
    Http(u16, Vec<(&'static str, String)>, Vec<Part>),
    /// A 101 with a right handshake, then the steps; at their end the connection is dropped.
    Exec(Vec<Step>),
    /// A 101 and nothing more: with this `Sec-WebSocket-Accept` in place of the right one, and this extension.
    Handshake { accept: Option<&'static str>, extension: Option<&'static str> },
    /// Nothing, for ever.
    Hang,
}

/// A piece of a body.
#[derive(Clone)]
pub enum Part {
    Bytes(Vec<u8>),
    /// Nothing more, and no end.
    Hang,
    /// The connection breaks.
    Cut,
}

#[derive(Clone)]
pub enum Step {
    Text(String),
    Binary(Vec<u8>),
    /// So many bytes of output, in frames of 32 KiB.
    Flood(usize),
    /// Output until the client takes no more.
    FloodUntilBlocked,
    /// Sends input back as output until it ends.
    Echo,
    /// Reads input until it ends and keeps it.
    ReadInput,
    /// Reads, and so answers pings, for this long.
    Read(Duration),
    /// Reads until the client is gone.
    AwaitEnd,
    /// Neither reads nor writes.
    Hang,
    Close(u16, &'static str),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
    /// All values of one query parameter, in order.
    pub fn all(&self, key: &str) -> Vec<&str> {
        self.query.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str()).collect()
    }
}

#[derive(Clone)]
pub struct Wire(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    /// Each is given once, the last of a queue for ever.
    answers: Mutex<HashMap<String, VecDeque<Answer>>>,
    requests: Mutex<Vec<Request>>,
    input: Mutex<Vec<u8>>,
    ended: watch::Sender<bool>,
    blocked: watch::Sender<bool>,
    server: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Wire {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback works");
        let wire = Self(Arc::new(Inner {
            address: listener.local_addr().expect("a bound socket has an address"),
            answers: Mutex::default(),
            requests: Mutex::default(),
            input: Mutex::default(),
            ended: watch::Sender::new(false),
            blocked: watch::Sender::new(false),
            server: Mutex::default(),
        }));
        let router = Router::new().fallback(serve).with_state(wire.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving works") });
        *lock(&wire.0.server) = Some(AbortOnDropHandle::new(server));
        wire
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// Queues answers for `"GET /v1/sprites/a"`.
    pub fn on<const N: usize>(&self, request: &str, answers: [Answer; N]) {
        lock(&self.0.answers).entry(request.to_owned()).or_default().extend(answers);
    }

    pub fn requests(&self) -> Vec<Request> {
        lock(&self.0.requests).clone()
    }

    /// How often `"GET /v1/sprites/a"` came.
    pub fn count(&self, request: &str) -> usize {
        self.requests().iter().filter(|r| format!("{} {}", r.method, r.path) == request).count()
    }

    /// What [`Step::ReadInput`] and [`Step::Echo`] have read, without the stream bytes.
    pub fn input(&self) -> Vec<u8> {
        lock(&self.0.input).clone()
    }

    /// Waits until a [`Step::AwaitEnd`] saw its client go.
    pub async fn client_gone(&self) {
        self.0.ended.subscribe().wait_for(|ended| *ended).await.expect("the sender lives");
    }

    /// Waits until a [`Step::FloodUntilBlocked`] could send no more.
    pub async fn blocked(&self) {
        self.0.blocked.subscribe().wait_for(|blocked| *blocked).await.expect("the sender lives");
    }

    fn next_answer(&self, request: &Request) -> Option<Answer> {
        let mut answers = lock(&self.0.answers);
        let queue = answers.get_mut(&format!("{} {}", request.method, request.path))?;
        if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn text(status: u16, body: &str) -> Answer {
    Answer::Http(status, vec![], vec![Part::Bytes(body.into())])
}

pub fn json(status: u16, body: serde_json::Value) -> Answer {
    let headers = vec![("content-type", "application/json".to_owned())];
    Answer::Http(status, headers, vec![Part::Bytes(body.to_string().into())])
}

/// A 200 whose body is these lines.
pub fn ndjson(lines: &[&str]) -> Answer {
    let parts = lines.iter().map(|line| Part::Bytes(format!("{line}\n").into_bytes())).collect();
    Answer::Http(200, vec![("content-type", "application/x-ndjson".to_owned())], parts)
}

pub fn session(id: &str) -> Step {
    Step::Text(format!(r#"{{"type":"session_info","session_id":"{id}","command":"sh","tty":false}}"#))
}

pub fn exit_text(code: i64) -> Step {
    Step::Text(format!(r#"{{"type":"exit","exit_code":{code}}}"#))
}

pub fn exit_byte(code: u8) -> Step {
    Step::Binary(vec![3, code])
}

pub fn out(bytes: &[u8]) -> Step {
    Step::Binary([&[1], bytes].concat())
}

async fn serve(State(wire): State<Wire>, mut request: axum::extract::Request) -> Response {
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let (parts, body) = request.into_parts();
    let query = reqwest::Url::parse(&format!("http://x{}", parts.uri))
        .expect("a URL came in")
        .query_pairs()
        .into_owned()
        .collect();
    let kept = Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query,
        url: parts.uri.to_string(),
        headers: parts.headers,
        body: to_bytes(body, usize::MAX).await.unwrap_or_default(),
    };
    lock(&wire.0.requests).push(kept.clone());
    if let Err(why) = check(&kept) {
        return plain(400, &why);
    }
    let accept = kept.headers.get("sec-websocket-key").map(|key| {
        STANDARD.encode(Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize())
    });
    match wire.next_answer(&kept) {
        None => plain(400, "no test asked for this request"),
        Some(Answer::Hang) => std::future::pending().await,
        Some(Answer::Http(status, headers, parts)) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(body_of(parts)).expect("a valid answer")
        }
        Some(Answer::Handshake { accept: instead, extension }) => {
            switching(instead.unwrap_or(accept.as_deref().unwrap_or_default()), extension)
        }
        Some(Answer::Exec(steps)) => {
            let (Some(upgrade), Some(accept)) = (upgrade, accept) else { return plain(400, "not an upgrade") };
            tokio::spawn(async move {
                let socket = TokioIo::new(upgrade.await.expect("the upgrade works"));
                play(&wire, ServerBuilder::new().serve(socket), steps).await;
            });
            switching(&accept, None)
        }
    }
}

fn plain(status: u16, body: &str) -> Response {
    Response::builder().status(status).body(Body::from(body.to_owned())).expect("a valid answer")
}

fn switching(accept: &str, extension: Option<&str>) -> Response {
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(extension) = extension {
        response = response.header(header::SEC_WEBSOCKET_EXTENSIONS, extension);
    }
    response.body(Body::empty()).expect("a valid answer")
}

fn body_of(parts: Vec<Part>) -> Body {
    Body::from_stream(stream::iter(parts).then(|part| async {
        match part {
            Part::Bytes(bytes) => Ok(bytes),
            Part::Hang => std::future::pending().await,
            Part::Cut => {
                // Lets what was said before reach the client: an error overtakes it.
                tokio::task::yield_now().await;
                Err(io::Error::other("cut"))
            }
        }
    }))
}

/// What the real API would let pass.
fn check(request: &Request) -> Result<(), String> {
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    if header("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return Err("no token".into());
    }
    let last = request.path.rsplit('/').next().unwrap_or_default();
    let known = PARAMETERS.iter().find(|(segment, _)| *segment == last).map_or(&[][..], |(_, known)| known);
    if let Some((key, _)) = request.query.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        return Err(format!("unknown query parameter {key}"));
    }
    let expected = match (request.method.as_str(), last) {
        ("PUT", "write") => Some("application/octet-stream"),
        ("POST" | "PUT", _) if !request.body.is_empty() => Some("application/json"),
        _ => None,
    };
    if expected.is_some() && header("content-type") != expected {
        return Err(format!("content type {:?}", header("content-type")));
    }
    if !request.query.iter().any(|(key, _)| key == "cmd") {
        return Ok(());
    }
    let key = header("sec-websocket-key").and_then(|key| STANDARD.decode(key).ok()).unwrap_or_default();
    let upgrade = (header("connection"), header("upgrade"), header("sec-websocket-version"), key.len());
    if upgrade != (Some("Upgrade"), Some("websocket"), Some("13"), 16) {
        return Err(format!("bad upgrade {upgrade:?}"));
    }
    match header("sec-websocket-extensions") {
        None => Ok(()),
        Some(extensions) => Err(format!("offers {extensions}")),
    }
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

async fn play(wire: &Wire, mut socket: Socket, steps: Vec<Step>) {
    for step in steps {
        let sent = match step {
            Step::Text(text) => socket.send(Message::text(text)).await,
            Step::Binary(bytes) => socket.send(Message::binary(bytes)).await,
            Step::Flood(mut bytes) => {
                let mut sent = Ok(());
                while bytes > 0 && sent.is_ok() {
                    let size = bytes.min(32 * 1024);
                    bytes -= size;
                    sent = socket.send(Message::binary([vec![1], vec![b'x'; size]].concat())).await;
                }
                sent
            }
            Step::FloodUntilBlocked => flood_until_blocked(wire, &mut socket).await,
            Step::Close(code, reason) => {
                socket.send(Message::close(Some(CloseCode::try_from(code).expect("a valid code")), reason)).await
            }
            Step::Echo => take_input(wire, &mut socket, true).await,
            Step::ReadInput => take_input(wire, &mut socket, false).await,
            Step::Read(time) => {
                _ = tokio::time::timeout(time, async { while let Some(Ok(_)) = socket.next().await {} }).await;
                Ok(())
            }
            Step::AwaitEnd => {
                while let Some(Ok(_)) = socket.next().await {}
                wire.0.ended.send_replace(true);
                Ok(())
            }
            Step::Hang => std::future::pending().await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Gives up after more than any sane client would hold for a reader that does not read.
async fn flood_until_blocked(wire: &Wire, socket: &mut Socket) -> Result<(), tokio_websockets::Error> {
    let frame = [vec![1], vec![b'x'; 32 * 1024]].concat();
    for _ in 0..2048 {
        match tokio::time::timeout(Duration::from_millis(500), socket.send(Message::binary(frame.clone()))).await {
            Ok(sent) => sent?,
            Err(_) => {
                wire.0.blocked.send_replace(true);
                return Ok(());
            }
        }
    }
    panic!("a client that does not read took 64 MiB");
}

async fn take_input(wire: &Wire, socket: &mut Socket, echo: bool) -> Result<(), tokio_websockets::Error> {
    while let Some(message) = socket.next().await {
        let message = message?;
        if !message.is_binary() {
            continue;
        }
        match message.as_payload().split_first() {
            Some((0, input)) => {
                lock(&wire.0.input).extend_from_slice(input);
                if echo {
                    socket.send(Message::binary([&[1], input].concat())).await?;
                }
            }
            Some((4, [])) => return Ok(()),
            other => panic!("not an input frame: {other:?}"),
        }
    }
    Ok(())
}
