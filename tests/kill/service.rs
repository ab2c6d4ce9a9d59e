//! The service that is killed: the app as `janebot serve` starts it, with an adapter for the platform of this test.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use janebot::admin::Socket;
use janebot::app::{App, Serving};
use janebot::chat::adapter::{Adapter, Front, Started};
use janebot::chat::{Button, Capabilities, Chat, Chats, Inbound, SendError, Sent};
use janebot::config::{Config, Grant, SpritesConfig};
use janebot::job::{ChannelId, ConversationId, RequesterId};
use janebot::journal::outgoing::Mark;
use janebot::observe::{self, LogFormat};
use janebot::supervise::{ChildSpec, RestartPolicy};
use janebot::world::World;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

/// The environment variable with the platform's address, which makes this program the service.
pub const PLATFORM: &str = "JANEBOT_KILL_PLATFORM";
/// Where scripts in sprites reach the platform, to say that they run.
pub const COUNTER: &str = "counter.janebot.internal";
/// Short, so that answers come in several pieces.
pub const MAX_CHARS: usize = 200;
/// The platform's name.
const NAME: &str = "puppet";
/// Nobody needs to wait longer to see who is interrupted.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A message as the platform delivers it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delivered {
    pub number: usize,
    pub conversation: u64,
    pub text: String,
}

impl Delivered {
    pub fn key(&self) -> String {
        format!("{NAME}:C{}/{}", self.conversation, self.number)
    }

    fn inbound(&self) -> Inbound {
        let room = format!("{NAME}:C{}", self.conversation);
        Inbound {
            key: self.key(),
            requester: RequesterId::new(format!("{NAME}:U{}", self.conversation)),
            channel: ChannelId::new(&room),
            conversation: ConversationId::new(room),
            text: self.text.clone(),
            files: Vec::new(),
            agent: None,
            timeout: None,
            replies: None,
        }
    }
}

/// One request of the service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Asked {
    Deliver,
    Acknowledge { number: usize },
    Post { conversation: String, key: String, text: String, is_file: bool },
    Edit { message: String, text: String },
    React { message_key: String, mark: Mark, shown: bool },
    Find { conversation: String, key: String },
}

/// Serves until SIGTERM.
pub fn run(platform: &str) -> ExitCode {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(serve(platform))
}

async fn serve(platform: &str) -> ExitCode {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let (world, env) = (World::real(), Config::environment());
    // Its error says why, and standard error is the log.
    let telemetry = observe::start("info", LogFormat::Human, &env, &world).unwrap();
    let mut config = Config::load(&env, None::<&Path>).unwrap();
    config.debounce = Duration::ZERO;
    config.drain_timeout = DRAIN_TIMEOUT;
    config.access.everyone = true;
    config.pool.extra_hosts.insert(COUNTER.into());
    if let SpritesConfig::Embedded(host) = &mut config.sprites {
        let authority = platform.trim_start_matches("http://").split('/').next().unwrap_or_default();
        host.grants.push(Grant { name: COUNTER.into(), target: authority.into() });
    }
    let wire = Wire { url: platform.to_owned(), http: reqwest::Client::builder().no_proxy().build().unwrap() };
    let socket = Socket::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let serving = Serving { adapters: vec![Box::new(Puppet(wire))], socket };
    let app = match App::start(&config, world, Some(serving)).await {
        Ok(app) => app,
        Err(error) => {
            tracing::error!(%error, "the service does not start");
            return ExitCode::FAILURE;
        }
    };
    let exit = tokio::select! {
        biased;
        _ = terminate.recv() => ExitCode::SUCCESS,
        () = app.failed() => ExitCode::FAILURE,
    };
    app.drain().await;
    telemetry.shutdown().await;
    exit
}

/// The way to the platform.
#[derive(Clone)]
struct Wire {
    url: String,
    http: reqwest::Client,
}

impl Wire {
    async fn ask<T: DeserializeOwned>(&self, asked: Asked) -> Sent<T> {
        let answer = self.http.post(&self.url).json(&asked).send().await.map_err(|error| match error.is_connect() {
            true => SendError::Unreachable(error.to_string()),
            false => SendError::Ambiguous(error.to_string()),
        })?;
        match answer.status().as_u16() {
            200 => answer.json().await.map_err(|error| SendError::Ambiguous(error.to_string())),
            429 => Err(SendError::RateLimited { retry_after: Duration::from_millis(200) }),
            503 => Err(SendError::Unreachable("busy".into())),
            status => Err(SendError::Refused(format!("{status}: {}", answer.text().await.unwrap_or_default()))),
        }
    }
}

struct Puppet(Wire);

impl Adapter for Puppet {
    fn platform(&self) -> &'static str {
        NAME
    }

    fn join(&self, chats: Chats) -> Chats {
        chats.with(NAME, self.0.clone())
    }

    fn start(self: Box<Self>, front: Front) -> Started {
        let child = ChildSpec::new(NAME, RestartPolicy::SPARE, move |root| {
            let (front, wire) = (front.clone(), self.0.clone());
            async move {
                let (actor, _join) = Actor::spawn_linked(None, Ear, (front, wire), root).await?;
                Ok(actor.get_cell())
            }
        });
        Started { child, routes: Router::new() }
    }
}

/// Takes in what the platform delivers, and acknowledges what is in the journal.
struct Ear;

impl Actor for Ear {
    type Msg = ();
    type State = AbortOnDropHandle<()>;
    type Arguments = (Front, Wire);

    async fn pre_start(
        &self,
        _: ActorRef<()>,
        (front, wire): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        front.health.ready();
        Ok(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let delivered: Vec<Delivered> = match wire.ask(Asked::Deliver).await {
                    Ok(delivered) => delivered,
                    Err(_) => {
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                for message in delivered {
                    let (desk, wire) = (front.desk.clone(), wire.clone());
                    tokio::spawn(async move {
                        if desk.hear(message.inbound()).await {
                            // When this gets lost the message is delivered again.
                            let _: Sent<Value> = wire.ask(Asked::Acknowledge { number: message.number }).await;
                        }
                    });
                }
            }
        })))
    }

    async fn handle(&self, _: ActorRef<()>, (): (), _: &mut Self::State) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        _: SupervisionEvent,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

impl Chat for Wire {
    fn capabilities(&self) -> Capabilities {
        Capabilities { edit: true, react: true, upload: true, max_message_chars: MAX_CHARS, typing_every: None }
    }

    async fn post(&self, to: &ConversationId, key: &str, text: &str, _: &[Button]) -> Sent<String> {
        let (conversation, key, text) = (to.to_string(), key.to_owned(), text.to_owned());
        self.ask(Asked::Post { conversation, key, text, is_file: false }).await
    }

    async fn edit(&self, _: &ConversationId, message: &str, text: &str, _: &[Button]) -> Sent<()> {
        self.ask(Asked::Edit { message: message.to_owned(), text: text.to_owned() }).await
    }

    async fn react(&self, _: &ConversationId, message_key: &str, mark: Mark, shown: bool) -> Sent<()> {
        self.ask(Asked::React { message_key: message_key.to_owned(), mark, shown }).await
    }

    async fn upload(&self, to: &ConversationId, key: &str, name: &str, _: Bytes) -> Sent<String> {
        let (conversation, key, text) = (to.to_string(), key.to_owned(), name.to_owned());
        self.ask(Asked::Post { conversation, key, text, is_file: true }).await
    }

    async fn find(&self, to: &ConversationId, key: &str) -> Sent<Option<String>> {
        self.ask(Asked::Find { conversation: to.to_string(), key: key.to_owned() }).await
    }
}
