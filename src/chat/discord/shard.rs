//! One shard: a connection to Discord's gateway, over all closes and sessions.
//!
//! twilight keeps the protocol (heartbeats, identify, resume); what happens when the gateway closes is decided in
//! `policy`. The task that polls twilight does nothing else, since a heartbeat that comes late ends the connection: what
//! is for us goes to the [`hearing`](super::hearing) through a bounded queue, and what finds that full is fetched later.
//!
//! Started, stopped and restarted by [`Discord`](super::adapter::Discord). When it dies, the session it kept is resumed,
//! and the gateway brings again what was not recorded.

pub mod policy;
mod polled;
pub mod session;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use twilight_gateway::{
    CloseFrame, ConfigBuilder, Intents, Message as Frame, Session as GatewaySession, ShardId, ShardState,
};
use twilight_gateway_queue::InMemoryQueue;

use super::Shared;
use super::hearing::{self, Event, Inlet};
use super::wire;
use crate::chat::adapter::Front;
use policy::{Next, Policy};
use polled::{Item, Polled};
use session::{Course, Saved, Session};

type Gateway = twilight_gateway::Shard<InMemoryQueue>;

/// How long a connection may be without a session. Waiting for the turn to identify is part of it.
const STALLED_AFTER: Duration = Duration::from_secs(120);

/// Attempts to connect after which twilight would wait for more than half a minute: a new shard begins with short waits
/// again, since nobody knows when the network is back.
const MAX_ATTEMPTS: u8 = 6;

/// How often the session is kept. What arrived since is brought again after a crash, and recognised.
const KEEP_EVERY: Duration = Duration::from_secs(2);

/// How long the good-bye may take; Discord then goes on with the session all the same.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How long handing in what has arrived may take when the service stops. What is left comes again with the session.
const HAND_IN_PATIENCE: Duration = Duration::from_secs(2);

/// What a shard is given.
#[derive(Clone)]
pub struct Arguments {
    pub id: ShardId,
    pub queue: InMemoryQueue,
    pub shared: Arc<Shared>,
    pub front: Front,
    pub tell: Arc<dyn Fn(News) + Send + Sync>,
}

/// What a shard tells its adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// READY or RESUMED arrived.
    Listening,
    /// There is no session; why, and what is done about it.
    Deaf(String),
    /// There never will be, before somebody does something.
    Failed(String),
    /// A message of our own in the canary's channel.
    Canary(String),
}

pub enum ShardMsg {
    /// The adapter has reason to think that this shard is deaf: begin anew.
    Rebuild,
    /// Own task: it has ended, which it does only when nothing can be done.
    Over,
}

pub struct Shard;

pub struct State {
    stop: CancellationToken,
    rebuild: Arc<Notify>,
    task: Option<AbortOnDropHandle<()>>,
}

impl Actor for Shard {
    type Msg = ShardMsg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, me: ActorRef<ShardMsg>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        let (stop, rebuild) = (CancellationToken::new(), Arc::new(Notify::new()));
        let listening = listen(arguments, stop.clone(), rebuild.clone());
        let task = tokio::spawn(async move {
            listening.await;
            // The actor may have gone.
            let _ = me.cast(ShardMsg::Over);
        });
        Ok(State { stop, rebuild, task: Some(AbortOnDropHandle::new(task)) })
    }

    async fn handle(&self, _: ActorRef<ShardMsg>, msg: ShardMsg, st: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            ShardMsg::Rebuild => st.rebuild.notify_one(),
            ShardMsg::Over => st.task = None,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<ShardMsg>,
        _: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children.
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<ShardMsg>, st: &mut State) -> Result<(), ActorProcessingErr> {
        st.stop.cancel();
        if let Some(task) = st.task.take() {
            // Aborted when it takes longer.
            let _ = timeout(CLOSE_PATIENCE + HAND_IN_PATIENCE + Duration::from_secs(1), task).await;
        }
        Ok(())
    }
}

/// Listens until told to stop, or until nothing can be done. Keeps the session at the end.
async fn listen(arguments: Arguments, stop: CancellationToken, rebuild: Arc<Notify>) {
    let saved = load(&arguments).await;
    let course = Arc::new(Course::of(saved.seen.clone()));
    let (inlet, outlet) = hearing::queue();
    let hearing = tokio::spawn(hearing::hear(
        arguments.shared.clone(),
        arguments.front.clone(),
        course.clone(),
        outlet,
        stop.clone(),
    ));
    let mut hearing = AbortOnDropHandle::new(hearing);
    let mut listener = Listener {
        kept: saved.clone(),
        keep_at: Instant::now() + KEEP_EVERY,
        arguments,
        course,
        inlet,
        policy: Policy::default(),
        waiting_since: Instant::now(),
        url: saved.session.as_ref().map(|session| session.url.clone()),
        closing: false,
    };
    let mut session = saved.session;
    loop {
        let mut gateway = listener.connect(session.take());
        match listener.run(&mut gateway, &stop, &rebuild).await {
            End::Afresh(last) => session = last,
            End::Renew(delay) => {
                let stopped = tokio::select! {
                    biased;
                    () = stop.cancelled() => true,
                    () = sleep(delay) => false,
                };
                if stopped {
                    listener.keep(None, true).await;
                    break;
                }
            }
            End::Stop(last) => {
                drop(std::mem::replace(&mut listener.inlet, Inlet::closed()));
                // What is not handed in by then is not done, and comes again.
                let _ = timeout(HAND_IN_PATIENCE, &mut hearing).await;
                listener.keep(last.as_ref(), true).await;
                break;
            }
            End::Failed => {
                listener.keep(None, true).await;
                break;
            }
        }
    }
}

async fn load(arguments: &Arguments) -> Saved {
    let of = session::name_of(arguments.shared.config.token.expose_secret());
    match arguments.front.keep.get(&place_of(arguments.id)).await {
        Ok(kept) => kept
            .and_then(|text| serde_json::from_str::<Saved>(&text).ok())
            .filter(|saved| saved.of == of)
            .unwrap_or_else(|| Saved { of, ..Saved::default() }),
        Err(error) => {
            tracing::warn!(%error, "the last session is not known: beginning a new one");
            Saved { of, ..Saved::default() }
        }
    }
}

/// The name under which the session is kept.
fn place_of(id: ShardId) -> String {
    format!("session/{}/{}", id.number(), id.total())
}

/// Why a shard of twilight's ended.
enum End {
    /// Another one goes on with the session at once.
    Afresh(Option<Session>),
    Renew(Duration),
    Stop(Option<Session>),
    Failed,
}

struct Listener {
    arguments: Arguments,
    course: Arc<Course>,
    inlet: Inlet,
    policy: Policy,
    waiting_since: Instant,
    /// Where the session is open.
    url: Option<String>,
    /// Discord told us to leave this connection.
    closing: bool,
    kept: Saved,
    keep_at: Instant,
}

/// As much of an event as is read of every one.
#[derive(Deserialize)]
struct Envelope<'a> {
    op: u8,
    #[serde(default)]
    s: Option<u64>,
    #[serde(default, borrow)]
    t: Option<std::borrow::Cow<'a, str>>,
}

/// Opcodes by which Discord ends a connection.
const RECONNECT: u8 = 7;
const INVALID_SESSION: u8 = 9;
/// And begins one.
const HELLO: u8 = 10;

impl Listener {
    fn connect(&mut self, session: Option<Session>) -> Gateway {
        let Arguments { id, queue, shared, .. } = &self.arguments;
        let mut intents = Intents::GUILDS | Intents::GUILD_MESSAGES | Intents::DIRECT_MESSAGES;
        if shared.config.message_content {
            intents |= Intents::MESSAGE_CONTENT;
        }
        let token = shared.config.token.expose_secret().to_owned();
        let mut config = ConfigBuilder::new(token, intents).queue(queue.clone());
        if let Some(url) = &shared.config.gateway_url {
            config = config.proxy_url(url.clone());
        }
        if let Some(session) = session {
            config = config.session(GatewaySession::new(session.sequence, session.id)).resume_url(session.url);
        }
        self.waiting_since = Instant::now();
        Gateway::with_config(*id, config.build())
    }

    async fn run(&mut self, gateway: &mut Gateway, stop: &CancellationToken, rebuild: &Notify) -> End {
        let mut polled = Polled::default();
        loop {
            let stalled = self.waiting_since + STALLED_AFTER;
            let frame = tokio::select! {
                biased;
                () = stop.cancelled() => return End::Stop(self.say_good_bye(gateway, &mut polled).await),
                () = rebuild.notified() => {
                    self.tell(News::Deaf("the gateway brings nothing any more: beginning a new session".into()));
                    return End::Renew(Duration::ZERO);
                }
                () = sleep_until(stalled), if !self.policy.is_up() => {
                    self.tell(News::Deaf("Discord does not answer: connecting anew".into()));
                    return match self.policy.closed(None, false, Instant::now()) {
                        Next::Again(delay) | Next::Renew(delay) => End::Renew(delay),
                        Next::Fatal(why) => self.fail(why),
                    };
                }
                () = sleep_until(self.keep_at) => {
                    let session = self.session_of(gateway);
                    self.keep(session.as_ref(), false).await;
                    continue;
                }
                frame = polled.next(gateway) => frame,
            };
            let next = match frame {
                Item::Lost => {
                    self.tell(News::Deaf("the connection to Discord was lost: connecting again".into()));
                    self.policy.closed(None, gateway.session().is_some(), Instant::now())
                }
                Item::Frame(Some(Ok(Frame::Text(text)))) => match self.event(&text, gateway) {
                    Some(next) => next,
                    None => continue,
                },
                // The end of a connection that we are leaving already.
                Item::Frame(Some(Ok(Frame::Close(_)))) if self.closing => continue,
                Item::Frame(Some(Ok(Frame::Close(frame)))) => {
                    let code = frame.as_ref().map(|frame| frame.code);
                    let next = self.policy.closed(code, gateway.session().is_some(), Instant::now());
                    self.tell(News::Deaf(format!(
                        "the connection to Discord was closed ({}): connecting again",
                        code.map_or_else(|| "without a code".into(), |code| format!("code {code}")),
                    )));
                    next
                }
                // twilight waits by itself, longer each time, when it can't connect.
                Item::Frame(Some(Err(error))) => {
                    if !self.policy.is_up() {
                        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                        self.tell(News::Deaf(format!(
                            "Discord's gateway can't be reached ({error} {cause}): trying on"
                        )));
                    } else {
                        tracing::warn!(%error, "an event of Discord's can't be read, and is left out");
                    }
                    // There is no connection that could stall.
                    self.waiting_since = Instant::now();
                    if matches!(gateway.state(), ShardState::Disconnected { reconnect_attempts: MAX_ATTEMPTS.. }) {
                        return End::Afresh(self.session_of(gateway));
                    }
                    continue;
                }
                Item::Frame(None) => Next::Renew(Duration::from_secs(60)),
            };
            match next {
                Next::Again(delay) => {
                    let delay = self.arguments.front.world.jitter(delay);
                    let stopped = tokio::select! {
                        biased;
                        () = stop.cancelled() => true,
                        () = sleep(delay) => false,
                    };
                    if stopped {
                        let session = self.session_of(gateway);
                        return End::Stop(self.safe(session));
                    }
                    self.waiting_since = Instant::now();
                }
                Next::Renew(delay) => return End::Renew(self.arguments.front.world.jitter(delay)),
                Next::Fatal(why) => return self.fail(why),
            }
        }
    }

    /// Takes an event. Something when it ends the connection.
    fn event(&mut self, text: &str, gateway: &Gateway) -> Option<Next> {
        let envelope: Envelope = serde_json::from_str(text).ok()?;
        match envelope.op {
            HELLO => self.closing = false,
            RECONNECT => {
                self.closing = true;
                return Some(self.policy.closed(None, gateway.session().is_some(), Instant::now()));
            }
            INVALID_SESSION => {
                self.tell(News::Deaf("Discord ended the session: beginning a new one".into()));
                self.closing = true;
                return Some(self.policy.closed(None, false, Instant::now()));
            }
            _ => {}
        }
        let (sequence, kind) = (envelope.s?, envelope.t?);
        match kind.as_ref() {
            "READY" => {
                self.policy.began(Instant::now());
                // From now on a crash loses nothing, once it is kept.
                self.keep_at = Instant::now();
                if let Some(ready) = data::<wire::Ready>(text) {
                    self.arguments.shared.is(ready.user.id, ready.application.id);
                }
                self.tell(News::Listening);
                // A new session brings nothing of what was before it.
                self.inlet.push(sequence, Event::CatchUp, &self.course);
            }
            "RESUMED" => {
                self.policy.began(Instant::now());
                self.tell(News::Listening);
            }
            kind => self.dispatch(kind, sequence, text),
        }
        None
    }

    fn dispatch(&mut self, kind: &str, sequence: u64, text: &str) {
        let shared = &self.arguments.shared;
        let event = match kind {
            "MESSAGE_CREATE" => match data::<wire::Message>(text) {
                Some(message) if shared.is_canary(&message) => {
                    self.tell(News::Canary(message.content));
                    return;
                }
                Some(message) => shared.for_us(message, &self.course),
                None => None,
            },
            "MESSAGE_UPDATE" => {
                data(text).filter(|message| shared.is_edit(message)).map(|message| Event::Changed(Box::new(message)))
            }
            "MESSAGE_DELETE" => data(text).map(|deleted: wire::Deleted| Event::Deleted {
                messages: vec![deleted.id],
                channel: deleted.channel_id,
                guild: deleted.guild_id,
            }),
            "MESSAGE_DELETE_BULK" => data(text).map(|deleted: wire::DeletedBulk| Event::Deleted {
                messages: deleted.ids,
                channel: deleted.channel_id,
                guild: deleted.guild_id,
            }),
            "THREAD_DELETE" | "CHANNEL_DELETE" => data(text).map(Event::ChannelGone),
            "INTERACTION_CREATE" => data(text).map(|interaction| Event::Interaction(Box::new(interaction))),
            "GUILD_CREATE" => {
                if let Some(guild) = data::<wire::GuildCreate>(text) {
                    let me = shared.me();
                    shared.atlas().guild(&guild, me);
                }
                None
            }
            "CHANNEL_CREATE" | "CHANNEL_UPDATE" | "THREAD_CREATE" | "THREAD_UPDATE" => {
                if let Some(channel) = data::<wire::Channel>(text) {
                    shared.atlas().channel(&channel, None);
                }
                None
            }
            "THREAD_LIST_SYNC" => {
                if let Some(sync) = data::<wire::ThreadListSync>(text) {
                    let mut atlas = shared.atlas();
                    sync.threads.iter().for_each(|thread| atlas.channel(thread, Some(sync.guild_id)));
                }
                None
            }
            _ => None,
        };
        if let Some(event) = event {
            self.inlet.push(sequence, event, &self.course);
        }
    }

    async fn say_good_bye(&mut self, gateway: &mut Gateway, polled: &mut Polled) -> Option<Session> {
        let session = self.session_of(gateway);
        let session = self.safe(session);
        // A plain close would end the session, and everything that arrives until the next start would be lost.
        gateway.close(CloseFrame::RESUME);
        let closed = async {
            // Polled on after that, twilight would connect again.
            while !matches!(polled.next(gateway).await, Item::Lost | Item::Frame(Some(Ok(Frame::Close(_))) | None)) {}
        };
        let _ = timeout(CLOSE_PATIENCE, closed).await;
        session
    }

    /// The session, as far as everything of it is done.
    fn safe(&self, session: Option<Session>) -> Option<Session> {
        session.map(|session| Session { sequence: self.course.safe(session.sequence), ..session })
    }

    /// Keeps the session, unless it is kept as it is.
    async fn keep(&mut self, session: Option<&Session>, is_last: bool) {
        self.keep_at = Instant::now() + KEEP_EVERY;
        let of = session::name_of(self.arguments.shared.config.token.expose_secret());
        // While something is open, what was seen after it proves nothing.
        let seen = if self.course.is_done() { self.course.seen() } else { self.kept.seen.clone() };
        let saved = Saved { of, session: self.safe(session.cloned()), seen };
        // Between two sessions the last one is still the best there is.
        if saved == self.kept || (saved.session.is_none() && !is_last) {
            return;
        }
        let Ok(text) = serde_json::to_string(&saved) else { return };
        match timeout(KEEP_EVERY, self.arguments.front.keep.put(&place_of(self.arguments.id), &text)).await {
            Ok(Ok(())) => self.kept = saved,
            Ok(Err(error)) => tracing::warn!(%error, "the session with Discord can't be kept"),
            Err(_) => tracing::warn!("the session with Discord can't be kept: the journal does not answer"),
        }
    }

    /// The session that is open. twilight forgets where it is after it could not connect there.
    fn session_of(&mut self, gateway: &Gateway) -> Option<Session> {
        if let Some(url) = gateway.resume_url() {
            self.url = Some(url.to_owned());
        }
        let (session, url) = (gateway.session()?, self.url.clone()?);
        Some(Session { id: session.id().to_owned(), sequence: session.sequence(), url })
    }

    fn fail(&self, why: String) -> End {
        self.tell(News::Failed(why));
        End::Failed
    }

    fn tell(&self, news: News) {
        (self.arguments.tell)(news);
    }
}

/// The event's own part. One that can't be read is left out, and told to whoever looks for it.
fn data<T: for<'a> Deserialize<'a>>(text: &str) -> Option<T> {
    #[derive(Deserialize)]
    struct Data<T> {
        d: T,
    }
    match serde_json::from_str::<Data<T>>(text) {
        Ok(data) => Some(data.d),
        Err(error) => {
            tracing::warn!(%error, "an event of Discord's can't be read, and is left out");
            None
        }
    }
}
