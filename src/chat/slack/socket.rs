//! One Socket Mode connection: reads deliveries, has them dealt with, and acknowledges each when that is done.
//!
//! Started and stopped by the adapter. A task owns the connection, and ends with the actor, so that no connection outlives
//! it. Deliveries are dealt with in tasks of their own; such a task goes on when the connection has ended, and its
//! acknowledgement then goes over another one. When the actor dies, what was not acknowledged is delivered again.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _, poll};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use reqwest::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use reqwest::{Client, Upgraded, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tokio_websockets::{ClientBuilder, CloseCode, Limits, Message, WebSocketStream};

use super::adapter::AdapterMsg;
use super::api::{self, Api, ApiError, Method, causes};
use super::ear::{Answer, Ear, Kind};
use super::fleet::End;
use crate::world::World;

/// From the first request to Slack's hello.
const HELLO_WITHIN: Duration = Duration::from_secs(15);

/// Slack does not always answer a goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// The largest frame taken. Slack's are far below; one that is larger ends the connection, not the service.
const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Acknowledgements that wait for a slow connection.
const ACKS: usize = 1024;

/// Deliveries that are dealt with at a time, over all connections. Beyond, they wait at Slack.
pub const MAX_DELIVERIES: usize = 1024;

/// After this many signs of nothing within the time of silence, the connection is dead.
const PINGS_IN_SILENCE: u32 = 3;

type Stream = WebSocketStream<Upgraded>;

/// What all connections share.
pub struct Line {
    /// With the app-level token.
    pub app: Arc<Api>,
    pub ear: Arc<Ear>,
    pub world: World,
    pub silence: Duration,
    pub adapter: ActorRef<AdapterMsg>,
    pub tasks: TaskTracker,
    places: Arc<Semaphore>,
    writers: Mutex<BTreeMap<u64, mpsc::Sender<String>>>,
}

impl Line {
    pub fn new(app: Arc<Api>, ear: Arc<Ear>, world: World, silence: Duration, adapter: ActorRef<AdapterMsg>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_DELIVERIES));
        Self { app, ear, world, silence, adapter, tasks: TaskTracker::new(), places, writers: Mutex::default() }
    }

    /// Sends an acknowledgement over the connection that brought the delivery, or else over the newest.
    async fn acknowledge(&self, id: u64, text: String) {
        let mut writers: Vec<_> = {
            let writers = self.writers();
            let own = writers.get(&id).cloned();
            own.into_iter()
                .chain(writers.iter().rev().filter(|(other, _)| **other != id).map(|(_, w)| w.clone()))
                .collect()
        };
        writers.dedup_by(|a, b| a.same_channel(b));
        for writer in writers {
            if writer.send(text.clone()).await.is_ok() {
                return;
            }
        }
        tracing::debug!("a delivery can't be acknowledged: Slack will deliver it again");
    }

    fn writers(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, mpsc::Sender<String>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The actor of one connection.
pub struct SlackSocket;

/// Messages of a connection.
pub enum SocketMsg {
    /// The adapter has a replacement: say goodbye and end.
    Retire,
}

pub struct State {
    retire: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Actor for SlackSocket {
    type Msg = SocketMsg;
    type State = State;
    type Arguments = (u64, Arc<Line>);

    async fn pre_start(
        &self,
        _: ActorRef<SocketMsg>,
        (id, line): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let retire = CancellationToken::new();
        let goodbye = retire.clone();
        let task = tokio::spawn(async move {
            let live = AssertUnwindSafe(Connection { id, line: line.clone() }.live(goodbye)).catch_unwind().await;
            let end = live.unwrap_or_else(|_| End::Broken("what read it panicked".into()));
            line.writers().remove(&id);
            // The adapter stops the actor then. One that has died takes its sockets with it.
            let _ = line.adapter.cast(AdapterMsg::SocketEnded { id, end });
        });
        Ok(State { retire, task: AbortOnDropHandle::new(task) })
    }

    async fn handle(
        &self,
        _: ActorRef<SocketMsg>,
        SocketMsg::Retire: SocketMsg,
        st: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        st.retire.cancel();
        Ok(())
    }

    /// It has no children and monitors nobody.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<SocketMsg>,
        _: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<SocketMsg>, st: &mut State) -> Result<(), ActorProcessingErr> {
        st.retire.cancel();
        // Past this time it is aborted with the state.
        let _ = timeout(GOODBYE + Duration::from_millis(500), &mut st.task).await;
        Ok(())
    }
}

struct Connection {
    id: u64,
    line: Arc<Line>,
}

impl Connection {
    async fn live(&self, retire: CancellationToken) -> End {
        let mut stream = match timeout(HELLO_WITHIN, self.open()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(end)) => return end,
            Err(_) => return End::Broken("Slack did not say hello".into()),
        };
        let (writer, mut acks) = mpsc::channel(ACKS);
        self.line.writers().insert(self.id, writer);
        let end = self.serve(&mut stream, &mut acks, &retire).await;
        self.line.writers().remove(&self.id);
        // What was about to be acknowledged here goes first.
        let goodbye = async {
            acks.close();
            while let Ok(text) = acks.try_recv() {
                stream.send(Message::text(text)).await?;
            }
            stream.send(Message::close(Some(CloseCode::NORMAL_CLOSURE), "")).await?;
            while let Some(Ok(_)) = stream.next().await {}
            Ok::<_, tokio_websockets::Error>(())
        };
        let _ = timeout(GOODBYE, goodbye).await;
        end
    }

    /// Asks for an address and connects to it.
    async fn open(&self) -> Result<Stream, End> {
        #[derive(Deserialize)]
        struct Opened {
            url: String,
        }
        let opened: Opened =
            self.line.app.call(Method::ConnectionsOpen, &json!({})).await.map_err(|error| match error {
                ApiError::RateLimited { retry_after, .. } => End::RateLimited(retry_after),
                error if error.is_fatal() => End::Fatal(fatal(&error)),
                error => End::Broken(error.to_string()),
            })?;
        connect(&opened.url, &self.line.world).await.map_err(End::Broken)
    }

    async fn serve(&self, stream: &mut Stream, acks: &mut mpsc::Receiver<String>, retire: &CancellationToken) -> End {
        let silence = self.line.silence;
        let every = silence / PINGS_IN_SILENCE;
        let mut ping = interval_at(Instant::now() + every, every);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let hello_until = Instant::now() + HELLO_WITHIN;
        let (mut is_known, mut is_leaving) = (false, false);
        loop {
            let outgoing = tokio::select! {
                biased;
                () = retire.cancelled() => return End::Closed,
                Some(text) = acks.recv() => Message::text(text),
                incoming = stream.next() => {
                    heard_at = Instant::now();
                    match incoming {
                        Some(Ok(message)) if message.is_close() && is_leaving => return End::Closed,
                        Some(Ok(message)) if message.is_close() => return End::Broken("Slack closed it".into()),
                        Some(Ok(message)) => match self.read(&message, &mut is_known, &mut is_leaving).await {
                            Some(end) => return end,
                            None => continue,
                        },
                        Some(Err(error)) => return End::Broken(causes(&error)),
                        None if is_leaving => return End::Closed,
                        None => return End::Broken("it ended without a goodbye".into()),
                    }
                }
                _ = ping.tick() => {
                    if heard_at.elapsed() >= silence {
                        return End::Broken(format!("nothing came for {} s", silence.as_secs_f32()));
                    }
                    if !is_known && Instant::now() >= hello_until {
                        return End::Broken("Slack did not say hello".into());
                    }
                    Message::ping("")
                }
            };
            match timeout(silence, stream.send(outgoing)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return End::Broken(causes(&error)),
                Err(_) => return End::Broken("it takes nothing any more".into()),
            }
        }
    }

    /// Deals with one frame. The connection's end, if it is that.
    async fn read(&self, message: &Message, is_known: &mut bool, is_leaving: &mut bool) -> Option<End> {
        let text = message.as_text()?;
        let Ok(frame) = serde_json::from_str::<Value>(text) else {
            tracing::warn!(bytes = text.len(), "Slack sent a frame that is no JSON");
            return None;
        };
        let tell = |message| {
            // An adapter that has died takes its sockets with it.
            let _ = self.line.adapter.cast(message);
        };
        match frame.get("type").and_then(Value::as_str).unwrap_or_default() {
            "hello" => {
                *is_known = true;
                let connections = frame.get("num_connections").and_then(Value::as_u64);
                tell(AdapterMsg::Hello { id: self.id, connections });
                None
            }
            "disconnect" => match frame.get("reason").and_then(Value::as_str).unwrap_or_default() {
                "link_disabled" => Some(End::Fatal(
                    "Socket Mode is switched off for the app: switch it on in the app's settings and restart janebot"
                        .into(),
                )),
                "too_many_websockets" => Some(End::NoPlace),
                reason => {
                    tracing::debug!(reason, "Slack announces the end of a connection");
                    *is_leaving = true;
                    tell(AdapterMsg::Leaving { id: self.id });
                    None
                }
            },
            kind => {
                self.deliver(kind, &frame).await;
                None
            }
        }
    }

    async fn deliver(&self, kind: &str, frame: &Value) {
        let Some(envelope) = frame.get("envelope_id").and_then(Value::as_str).map(str::to_owned) else {
            tracing::debug!(kind, "Slack sent a frame of an unknown kind");
            return;
        };
        let kind = match kind {
            "events_api" => Kind::Event,
            "interactive" => Kind::Interaction,
            "slash_commands" => Kind::Command,
            unknown => {
                tracing::info!(kind = unknown, "a delivery of an unknown kind is acknowledged and left alone");
                return self.line.acknowledge(self.id, json!({ "envelope_id": envelope }).to_string()).await;
            }
        };
        let Ok(place) = self.line.places.clone().try_acquire_owned() else {
            tracing::warn!("too many deliveries at a time: Slack will deliver this one again");
            return;
        };
        let can_say = frame.get("accepts_response_payload").and_then(Value::as_bool).unwrap_or(false);
        let payload = frame.get("payload").cloned().unwrap_or(Value::Null);
        let (line, id) = (self.line.clone(), self.id);
        let mut dealing = Box::pin(async move {
            let ack = match line.ear.take(kind, &payload).await {
                Answer::Say(text) if can_say => Some(json!({ "envelope_id": envelope, "payload": { "text": text } })),
                Answer::Taken | Answer::Say(_) => Some(json!({ "envelope_id": envelope })),
                Answer::Again => None,
            };
            if let Some(ack) = ack {
                line.acknowledge(id, ack.to_string()).await;
            }
            drop(place);
        });
        // Its first step is made here, so that messages come to the desk in the order in which they were sent.
        if poll!(&mut dealing).is_pending() {
            self.line.tasks.spawn(dealing);
        }
    }
}

fn fatal(error: &ApiError) -> String {
    format!("Socket Mode can't be used with SLACK_APP_TOKEN ({error}): put this right and restart janebot")
}

/// Connects to the address that Slack gave, which is good for once.
async fn connect(address: &str, world: &World) -> Result<Stream, String> {
    // The same in the scheme that the client knows.
    let address = match address.split_once("://") {
        Some(("wss", rest)) => format!("https://{rest}"),
        Some(("ws", rest)) => format!("http://{rest}"),
        _ => return Err("Slack gave an address that is none of a WebSocket".into()),
    };
    let url = Url::parse(&address).map_err(|error| format!("Slack gave an address that is none ({error})"))?;
    let client: Client = api::client(&url)?;
    let mut nonce = [0; 16];
    world.fill(&mut nonce);
    let key = STANDARD.encode(nonce);
    let accept = STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")));
    let request = client
        .get(url)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, key);
    let response = request.send().await.map_err(|error| causes(&error))?;
    if response.status().as_u16() != 101 {
        return Err(format!("Slack answered HTTP {} to the WebSocket", response.status().as_u16()));
    }
    if response.headers().get(SEC_WEBSOCKET_ACCEPT).is_none_or(|value| value.as_bytes() != accept.as_bytes()) {
        return Err("what answered is no WebSocket".into());
    }
    let upgraded = response.upgrade().await.map_err(|error| causes(&error))?;
    let limits = Limits::default().max_payload_len(Some(MAX_FRAME));
    Ok(ClientBuilder::new().limits(limits).take_over(upgraded))
}
