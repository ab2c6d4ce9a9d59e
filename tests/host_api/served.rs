//! A host of the tests' own, and raw HTTP and WebSocket clients for it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use janebot::config::{HostConfig, Isolation, Limits};
use janebot::host::sandbox::SandboxError;
use janebot::host::{Host, HostError};
use janebot::world::World;
use reqwest::{Method, RequestBuilder, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_websockets::{ClientBuilder, MaybeTlsStream, Message, WebSocketStream};

pub const TOKEN: &str = "a-token";

/// Everything here ends within this; a test that hangs fails instead.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Served {
    pub host: Host,
    pub url: String,
    pub http: reqwest::Client,
    pub dir: TempDir,
}

pub fn config(dir: &Path) -> HostConfig {
    HostConfig {
        state_dir: dir.join("host"),
        listen: "127.0.0.1:0".parse().unwrap(),
        rootfs: None,
        isolation: Isolation::Full,
        grants: Vec::new(),
        limits: Limits::default(),
    }
}

pub async fn start(config: HostConfig) -> Result<Host, HostError> {
    Host::start(config, env!("CARGO_BIN_EXE_janebot").into(), SecretString::from(TOKEN), World::real()).await
}

/// A host with `change`d settings; `None`, with the reason printed, where sandboxes can't be built.
pub async fn serve_with(change: impl FnOnce(&mut HostConfig)) -> Option<Served> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    change(&mut config);
    match start(config).await {
        Ok(host) => Some(Served { url: host.url(), host, http: reqwest::Client::new(), dir }),
        Err(HostError::Isolation(error @ SandboxError::Unsupported { .. })) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

pub async fn serve() -> Option<Served> {
    serve_with(|_| {}).await
}

impl Served {
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/v1{path}", self.url)).bearer_auth(TOKEN).timeout(PATIENCE)
    }

    /// Status and body of a request without one.
    pub async fn call(&self, method: Method, path: &str) -> (StatusCode, Value) {
        answer(self.request(method, path)).await
    }

    pub async fn call_with(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(method, path).json(&body)).await
    }

    pub async fn create(&self, name: &str) -> Value {
        let (status, sprite) = self.call_with(Method::POST, "/sprites", json!({"name": name})).await;
        assert_eq!(status, 201, "{sprite}");
        sprite
    }

    /// The events of a stream; its last one.
    pub async fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let reply = self.request(Method::POST, path).json(&body).send().await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        assert_eq!(reply.headers()["content-type"], "application/x-ndjson");
        reply.text().await.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub async fn checkpoint(&self, name: &str, comment: &str) -> String {
        let events = self.stream(&format!("/sprites/{name}/checkpoint"), json!({"comment": comment})).await;
        let last = events.last().unwrap();
        assert_eq!(last["type"], "complete", "{last}");
        let id = last["data"].as_str().unwrap().split(' ').nth(1).unwrap().to_owned();
        assert_eq!(last["data"], format!("Checkpoint {id} created successfully"));
        assert!(events.iter().any(|event| event["data"] == format!("  ID: {id}")));
        id
    }

    pub async fn restore(&self, name: &str, id: &str) {
        let events = self.stream(&format!("/sprites/{name}/checkpoints/{id}/restore"), json!({})).await;
        assert_eq!(events.last().unwrap()["type"], "complete", "{events:?}");
    }

    pub async fn connect(&self, path_and_query: &str) -> Client {
        self.try_connect(path_and_query).await.unwrap()
    }

    pub async fn try_connect(&self, path_and_query: &str) -> Result<Client, tokio_websockets::Error> {
        let uri = format!("{}/v1{path_and_query}", self.url.replace("http", "ws")).parse().unwrap();
        let header = format!("Bearer {TOKEN}").parse().unwrap();
        let builder = ClientBuilder::from_uri(uri).add_header(http::header::AUTHORIZATION, header).unwrap();
        let (socket, reply) = builder.connect().await?;
        assert!(reply.headers().contains_key("sprite-version"));
        assert_eq!(reply.headers()["x-sprite-capabilities"], "signal");
        assert!(!reply.headers().contains_key("sec-websocket-extensions"));
        Ok(Client(socket))
    }

    /// Runs `sh -c script` without input to its end.
    pub async fn sh(&self, name: &str, script: &str) -> Ended {
        let mut client = self.connect(&exec(name, script, "")).await;
        client.end().await
    }
}

/// Path and query that run `sh -c script`, with `more` of the query.
pub fn exec(name: &str, script: &str, more: &str) -> String {
    let script: String = script.bytes().map(|b| format!("%{b:02X}")).collect();
    format!("/sprites/{name}/exec?cmd=sh&cmd=-c&cmd={script}{more}")
}

/// Waits until the sprite has no session.
pub async fn quiet(served: &Served, name: &str) {
    loop {
        let (_, list) = served.call(Method::GET, &format!("/sprites/{name}/exec")).await;
        if list["count"] == 0 {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let reply = request.send().await.unwrap();
    assert_eq!(reply.headers()["sprite-version"], "v0.0.1-rc46");
    let status = reply.status();
    let text = reply.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

pub struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Text(Value),
    Binary(Bytes),
    Close(u16),
}

/// All that a client without terminal was sent.
#[derive(Debug)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub status: u8,
    pub frames: Vec<Frame>,
}

impl Client {
    /// The next frame; pings and signs of life are passed over.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            let message = timeout(PATIENCE, self.0.next()).await.expect("a frame in time")?.ok()?;
            if let Some(text) = message.as_text() {
                let value: Value = serde_json::from_str(text).unwrap();
                if value["type"] != "keepalive" {
                    return Some(Frame::Text(value));
                }
            } else if let Some((code, _)) = message.as_close() {
                return Some(Frame::Close(code.into()));
            } else if message.is_binary() {
                return Some(Frame::Binary(message.into_payload().into()));
            }
        }
    }

    /// Reads until output was seen that holds `text`.
    pub async fn expect(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.frame().await {
                Some(Frame::Binary(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                Some(Frame::Text(info)) if info["type"] == "session_info" => {}
                other => panic!("{other:?} after {seen:?}, looking for {text:?}"),
            }
        }
    }

    /// The session's id, from the first frame.
    pub async fn session(&mut self) -> String {
        match self.frame().await {
            Some(Frame::Text(info)) if info["type"] == "session_info" => {
                info["session_id"].as_str().unwrap().to_owned()
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.send(Message::binary(bytes.to_vec())).await.unwrap();
    }

    pub async fn say(&mut self, text: Value) {
        self.0.send(Message::text(text.to_string())).await.unwrap();
    }

    /// Reads to the close.
    pub async fn frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            frames.push(frame);
        }
        frames
    }

    /// Reads to the close, without terminal, and checks the order of the last frames.
    pub async fn end(&mut self) -> Ended {
        let frames = self.frames().await;
        let mut ended = Ended { stdout: String::new(), stderr: String::new(), status: 0, frames };
        let Some([Frame::Text(text), Frame::Binary(binary), Frame::Close(1000)]) = ended.frames.last_chunk() else {
            panic!("{ended:?}");
        };
        assert_eq!((&text["type"], binary[0]), (&json!("exit"), 3), "{ended:?}");
        assert_eq!((&text["exit_code"], &text["code"]), (&json!(binary[1]), &json!(binary[1])));
        ended.status = binary[1];
        for frame in &ended.frames {
            match frame {
                Frame::Binary(bytes) if bytes[0] == 1 => ended.stdout.push_str(&String::from_utf8_lossy(&bytes[1..])),
                Frame::Binary(bytes) if bytes[0] == 2 => ended.stderr.push_str(&String::from_utf8_lossy(&bytes[1..])),
                Frame::Binary(_) | Frame::Text(_) | Frame::Close(_) => {}
            }
        }
        ended
    }
}
