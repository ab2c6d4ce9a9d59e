//! A provider that behaves as it is told to, byte by byte, and remembers what it was asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What it answers with.
#[derive(Clone)]
pub enum Play {
    /// These bytes, then the end of the connection.
    Bytes(String),
    /// The first bytes at once, the others when [`FakeProvider::go_on`] is called.
    InTwo(String, String),
    /// The first bytes, then the last ones again and again for ever.
    Endless(String, String),
    /// Nothing, for ever.
    Silence,
    /// A WebSocket that sends back what it gets.
    Echo,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub head: String,
    pub body: String,
}

impl Asked {
    /// The value of a header, which must be there once at the most.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().filter_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then_some(value.trim())
        });
        let first = values.next();
        assert!(values.next().is_none(), "{name} is there twice: {}", self.head);
        first
    }
}

pub struct FakeProvider {
    pub url: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    play: Mutex<Play>,
    asked: Mutex<Vec<Asked>>,
    go_on: Notify,
    /// Connections that the other side has left.
    left: Notify,
}

impl FakeProvider {
    pub async fn start(play: Play) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            play: Mutex::new(play),
            asked: Mutex::default(),
            go_on: Notify::new(),
            left: Notify::new(),
        });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let state = shared.clone();
                tokio::spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    serve(stream, &state).await;
                    state.left.notify_one();
                });
            }
        });
        Self { url, state, task }
    }

    pub fn play(&self, play: Play) {
        *self.state.play.lock().unwrap() = play;
    }

    pub fn go_on(&self) {
        self.state.go_on.notify_one();
    }

    /// Waits until a connection to it has ended.
    pub async fn was_left(&self) {
        tokio::time::timeout(Duration::from_secs(10), self.state.left.notified()).await.expect("somebody leaves");
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer with this content type whose end is the connection's.
pub fn ok(content_type: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\nconnection: close\r\n\r\n{body}")
}

/// As [`ok`], of known length.
pub fn json(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

async fn serve(mut stream: TcpStream, state: &State) {
    let Some(asked) = read(&mut stream).await else { return };
    let key = asked.header("sec-websocket-key").map(str::to_owned);
    state.asked.lock().unwrap().push(asked);
    let play = state.play.lock().unwrap().clone();
    // Whoever hangs up has seen enough.
    let _ = match play {
        Play::Bytes(bytes) => stream.write_all(bytes.as_bytes()).await,
        Play::InTwo(first, second) => {
            let _ = stream.write_all(first.as_bytes()).await;
            tokio::select! {
                () = state.go_on.notified() => stream.write_all(second.as_bytes()).await,
                _ = stream.read_u8() => return,
            }
        }
        Play::Endless(first, again) => {
            let mut done = stream.write_all(first.as_bytes()).await;
            while done.is_ok() {
                done = stream.write_all(again.as_bytes()).await;
            }
            return;
        }
        Play::Silence => {
            let _ = stream.read_u8().await;
            return;
        }
        Play::Echo => {
            let accept = accept(&key.unwrap_or_default());
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: rivet\r\n\r\n"
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            return;
        }
    };
    let _ = stream.shutdown().await;
}

fn accept(key: &str) -> String {
    use base64::Engine as _;
    use sha1::Digest as _;
    let hash = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    base64::engine::general_purpose::STANDARD.encode(hash)
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut body = bytes.split_off(end);
    let asked = Asked { head, body: String::new() };
    assert!(asked.header("transfer-encoding").is_none() || asked.header("content-length").is_none());
    if asked.header("transfer-encoding").is_some() {
        while !body.ends_with(b"0\r\n\r\n") {
            if stream.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
    } else {
        let length: usize = asked.header("content-length").map_or(0, |text| text.parse().unwrap());
        while body.len() < length {
            if stream.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
    }
    Some(Asked { body: String::from_utf8_lossy(&body).into_owned(), ..asked })
}
