//! How events reach the client: over one of its connections, or as signed requests; again until they are acknowledged.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use futures_util::{SinkExt as _, StreamExt as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha1::Digest as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep};
use tokio_websockets::{Message, ServerBuilder};

use super::state::{Kind, Socket};
use super::{FakeSlack, SECRET};

/// As soon as Slack would try again.
const ACK_WITHIN: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub struct Ack {
    pub kind: Kind,
    pub took: Duration,
    pub at: Instant,
    /// The connection that brought it.
    pub socket: u64,
    pub attempt: u32,
    pub answer: Value,
}

pub struct Delivery {
    pub kind: Kind,
    pub payload: Value,
    pub sent_at: Instant,
    pub first_sent_at: Instant,
    pub attempt: u32,
}

/// What a connection is told to do.
pub enum Frame {
    Text(String),
    /// Neither read nor write any more.
    Freeze,
    Close,
    /// End without a goodbye.
    Cut,
}

impl FakeSlack {
    pub fn deliver(&self, kind: Kind, payload: Value) {
        if let Some(base) = self.state().http.clone() {
            let fake = self.clone();
            tokio::spawn(async move { fake.post_until_taken(&base, kind, payload).await });
            return;
        }
        let now = Instant::now();
        let envelope = self.change(|state| {
            let envelope = format!("env-{:08}", state.next_id());
            let delivery = Delivery { kind, payload, sent_at: now, first_sent_at: now, attempt: 0 };
            state.deliveries.insert(envelope.clone(), delivery);
            envelope
        });
        self.send(&envelope);
    }

    /// Sends a delivery over one of the connections that are there, and again later if it is not acknowledged.
    fn send(&self, envelope: &str) {
        let after = self.change(|state| {
            let after = state.redeliver_after;
            let delivery = state.deliveries.get_mut(envelope)?;
            delivery.sent_at = Instant::now();
            let kind = match delivery.kind {
                Kind::Event => "events_api",
                Kind::Interaction => "interactive",
                Kind::Command => "slash_commands",
            };
            let mut frame = json!({
                "envelope_id": envelope, "type": kind, "payload": delivery.payload,
                "accepts_response_payload": delivery.kind != Kind::Event,
            });
            if delivery.kind == Kind::Event {
                frame["retry_attempt"] = delivery.attempt.into();
                frame["retry_reason"] = if delivery.attempt == 0 { "" } else { "timeout" }.into();
            }
            delivery.attempt += 1;
            let turn = delivery.attempt as usize + envelope.bytes().map(usize::from).sum::<usize>();
            let staying: Vec<_> = state.sockets.values().filter(|socket| !socket.leaving).collect();
            // One that leaves still gets events while there is no other.
            let sockets = if staying.is_empty() { state.sockets.values().collect() } else { staying };
            if let Some(socket) = sockets.get(turn % sockets.len().max(1)) {
                let _ = socket.frames.send(Frame::Text(frame.to_string()));
            }
            Some(after)
        });
        let Some(after) = after else { return };
        let (fake, envelope) = (self.clone(), envelope.to_owned());
        tokio::spawn(async move {
            sleep(after).await;
            if fake.state().deliveries.contains_key(&envelope) {
                fake.send(&envelope);
            }
        });
    }

    /// Sends a frame to every connection.
    pub fn broadcast(&self, frame: &Value) {
        self.change(|state| {
            for socket in state.sockets.values() {
                let _ = socket.frames.send(Frame::Text(frame.to_string()));
            }
        });
    }

    /// Sends a raw frame over the first connection.
    pub fn send_raw(&self, text: &str) {
        let state = self.state();
        let socket = state.sockets.values().next().expect("a connection is there");
        let _ = socket.frames.send(Frame::Text(text.to_owned()));
    }

    /// Announces the end of all connections, and ends them after this time.
    pub fn recycle(&self, reason: &str, after: Duration) {
        let ids = self.change(|state| {
            let frame = json!({ "type": "disconnect", "reason": reason, "debug_info": { "host": "fake" } }).to_string();
            for socket in state.sockets.values_mut() {
                socket.leaving = true;
                let _ = socket.frames.send(Frame::Text(frame.clone()));
            }
            state.sockets.keys().copied().collect::<Vec<_>>()
        });
        let fake = self.clone();
        tokio::spawn(async move {
            sleep(after).await;
            for id in ids {
                if let Some(socket) = fake.state().sockets.get(&id) {
                    let _ = socket.frames.send(Frame::Close);
                }
            }
        });
    }

    /// Does something to every connection.
    pub fn to_all(&self, frame: impl Fn() -> Frame) {
        for socket in self.state().sockets.values() {
            let _ = socket.frames.send(frame());
        }
    }

    fn acked(&self, envelope: &str, socket: u64, answer: &Value) {
        self.change(|state| {
            let Some(delivery) = state.deliveries.remove(envelope) else {
                // A repeated delivery may be acknowledged twice; one that never was, never.
                if !envelope.starts_with("env-") {
                    state.complain(format!("an acknowledgement of {envelope}, which was not sent"));
                }
                return;
            };
            let took = delivery.sent_at.elapsed();
            if took > ACK_WITHIN {
                state.complain(format!("an acknowledgement after {took:?}"));
            }
            let answer = answer.get("payload").cloned().unwrap_or(Value::Null);
            if delivery.kind == Kind::Event && answer.as_object().is_some_and(|answer| !answer.is_empty()) {
                state.complain("an event was acknowledged with a payload");
            }
            let (kind, attempt) = (delivery.kind, delivery.attempt);
            state.acks.push(Ack { kind, took, at: Instant::now(), socket, attempt, answer });
        });
    }

    async fn post_until_taken(&self, base: &str, kind: Kind, payload: Value) {
        for attempt in 0..4 {
            let (path, content_type, body) = match kind {
                Kind::Event => ("events", "application/json", payload.to_string()),
                Kind::Interaction => (
                    "interactive",
                    "application/x-www-form-urlencoded",
                    form(&json!({ "payload": payload.to_string() })),
                ),
                Kind::Command => ("commands", "application/x-www-form-urlencoded", form(&payload)),
            };
            let sent_at = Instant::now();
            let url = format!("{base}/slack/{path}");
            let request = signed(&url, content_type, &body, SECRET, 0);
            let request = if attempt > 0 { request.header("x-slack-retry-num", attempt) } else { request };
            let answered = request.send().await;
            if let Ok(response) = answered
                && response.status().is_success()
            {
                let took = sent_at.elapsed();
                let answer = response.json().await.unwrap_or(Value::Null);
                self.change(|state| {
                    if took > ACK_WITHIN {
                        state.complain(format!("an answer after {took:?}"));
                    }
                    state.acks.push(Ack { kind, took, at: Instant::now(), socket: 0, attempt: attempt + 1, answer });
                });
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.change(|state| state.complain("a delivery over HTTP was given up"));
    }
}

/// A request as Slack signs it; `age` is how many seconds old it says it is.
pub fn signed(url: &str, content_type: &str, body: &str, secret: &str, age: i64) -> reqwest::RequestBuilder {
    let time = (janebot::world::World::real().now().as_second() - age).to_string();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("v0:{time}:{body}").as_bytes());
    let signature = format!("v0={}", hex::encode(mac.finalize().into_bytes()));
    client()
        .post(url)
        .header(header::CONTENT_TYPE, content_type)
        .header("x-slack-request-timestamp", time)
        .header("x-slack-signature", signature)
        .body(body.to_owned())
}

pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

pub fn form(fields: &Value) -> String {
    let mut url = reqwest::Url::parse("http://form").unwrap();
    for (key, value) in fields.as_object().unwrap() {
        url.query_pairs_mut().append_pair(key, value.as_str().unwrap_or_default());
    }
    url.query().unwrap_or_default().to_owned()
}

/// A WebSocket of Socket Mode, good for one use of its ticket.
pub async fn link(Shared(fake): Shared<FakeSlack>, Path(ticket): Path<String>, mut request: Request) -> Response {
    if !fake.change(|state| state.tickets.remove(&ticket)) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let Some(key) = request.headers().get("sec-websocket-key") else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let digest = sha1::Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            serve(fake, ServerBuilder::new().serve(TokioIo::new(upgraded))).await;
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

async fn serve(fake: FakeSlack, mut stream: tokio_websockets::WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>) {
    let (frames, mut orders) = mpsc::unbounded_channel();
    let delay = fake.state().hello_delay;
    sleep(delay).await;
    let hello = fake.change(|state| {
        if state.sockets.len() >= state.max_connections {
            return None;
        }
        state.made += 1;
        let id = state.made;
        state.sockets.insert(id, Socket { frames, leaving: false });
        let count = state.sockets.len() as u64 + state.other_connections;
        let debug = json!({ "host": "fake", "build_number": 1, "approximate_connection_time": 18060 });
        let info = json!({ "app_id": "A1" });
        Some((id, json!({ "type": "hello", "num_connections": count, "debug_info": debug, "connection_info": info })))
    });
    let Some((id, hello)) = hello else {
        let refusal = json!({ "type": "disconnect", "reason": "too_many_websockets" });
        let _ = stream.send(Message::text(refusal.to_string())).await;
        let _ = stream.send(Message::close(None, "")).await;
        return;
    };
    let _ = stream.send(Message::text(hello.to_string())).await;
    let mut pings = interval(Duration::from_secs(10));
    loop {
        let sent = tokio::select! {
            order = orders.recv() => match order {
                Some(Frame::Text(text)) => stream.send(Message::text(text)).await,
                Some(Frame::Freeze) => {
                    // The other side gives up; meanwhile Slack thinks that the connection is there.
                    sleep(Duration::from_secs(6)).await;
                    break;
                }
                Some(Frame::Close) => {
                    let _ = stream.send(Message::close(None, "")).await;
                    break;
                }
                Some(Frame::Cut) | None => break,
            },
            message = stream.next() => match message {
                Some(Ok(message)) => {
                    if let Some(text) = message.as_text() {
                        read(&fake, id, text);
                    }
                    Ok(())
                }
                Some(Err(_)) | None => break,
            },
            _ = pings.tick() => stream.send(Message::ping("Ping from fake")).await,
        };
        if sent.is_err() {
            break;
        }
    }
    fake.change(|state| state.sockets.remove(&id));
}

fn read(fake: &FakeSlack, socket: u64, text: &str) {
    let Ok(frame) = serde_json::from_str::<Value>(text) else {
        return fake.change(|state| state.complain(format!("a frame that is no JSON: {text}")));
    };
    match frame.get("envelope_id").and_then(Value::as_str) {
        Some(envelope) => fake.acked(envelope, socket, &frame),
        None => fake.change(|state| state.complain(format!("a frame that acknowledges nothing: {text}"))),
    }
}
