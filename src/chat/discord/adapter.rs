//! The adapter actor: asks Discord who we are, keeps one shard for each that Discord wants, and knows how it all is.
//!
//! It is ready when every shard has a session and, with a canary's channel, our last marked message came back through
//! the gateway. Whatever is wrong stands on the board in a sentence; the rest of the service lives on.
//!
//! Started by the root supervisor, which restarts it; its shards are then resumed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde_json::json;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;
use twilight_gateway::ShardId;
use twilight_gateway_queue::InMemoryQueue;
use twilight_http::routing::Route;

use super::basics::Basics;
use super::rest::{Body, RestError, no_pings};
use super::shard::{Arguments, News, Shard, ShardMsg};
use super::wire::{ChannelNo, Message};
use super::{Shared, commands};
use crate::chat::adapter::Front;
use crate::observe::health::Part;
use crate::supervise::{ChildSpec, RestartPolicy, backoff};

/// New sessions that are left alone: beyond the last one, Discord resets the token.
const RESERVE: u32 = 10;

/// Pauses between attempts to ask Discord who we are.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// After a token was rejected. It may be right again one day; asking more often only counts against us.
const REJECTED_PAUSE: Duration = Duration::from_secs(600);

/// Pause before a shard that ended is started again.
const SHARD_PAUSE: Duration = Duration::from_secs(5);
/// How long a shard may take to stop: it says good-bye and hands in what has arrived.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Longest time in which the canary must come back.
const CANARY_WITHIN: Duration = Duration::from_secs(30);

/// Pauses between new sessions that are begun because the canary did not come back.
const FIRST_REBUILD: Duration = Duration::from_secs(60);
const MAX_REBUILD: Duration = Duration::from_secs(60 * 60);

/// Shards that are started. More are for bots of another size.
const MAX_SHARDS: u32 = 256;

pub enum Msg {
    /// Own timer: ask Discord who we are.
    Ask,
    /// Own task: what it said.
    Asked(Result<Basics, RestError>),
    /// A shard tells how it is.
    News { shard: u32, news: News },
    /// Own timer: start this shard, unless it is up.
    Start(u32),
    /// Own timer: post the canary, the `turn`th.
    Canary { turn: u64 },
    /// Own task: whether it was posted, and as what.
    Posted { turn: u64, result: Result<Box<Message>, RestError> },
    /// Own timer: it must have come back by now.
    CanaryDue { turn: u64 },
}

pub struct Discord {
    shared: Arc<Shared>,
    front: Front,
}

pub struct State {
    asking: Option<AbortOnDropHandle<()>>,
    attempt: u32,
    total: u32,
    queue: Option<InMemoryQueue>,
    shards: BTreeMap<u32, Kept>,
    canary: Canary,
}

#[derive(Default)]
struct Kept {
    up: Option<ActorRef<ShardMsg>>,
    is: Is,
    /// How often it began to listen.
    sessions: u64,
}

/// How a shard is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Is {
    #[default]
    Starting,
    Listening,
    Deaf(String),
    Failed(String),
}

#[derive(Default)]
struct Canary {
    turn: u64,
    /// What the message that is to come back says, and the session that is to bring it.
    awaited: Option<(String, u64)>,
    trouble: Option<String>,
    /// New sessions that were begun for it since it came back last, and when the next one may be.
    rebuilds: u32,
    rebuild_at: Option<Instant>,
}

/// The adapter as a child for the root supervisor.
pub(super) fn child(shared: Arc<Shared>, front: Front) -> ChildSpec {
    let mut spec = ChildSpec::new("discord", RestartPolicy::SPARE, move |root| {
        let discord = Discord { shared: shared.clone(), front: front.clone() };
        async move {
            let (actor, _join) = Actor::spawn_linked(None, discord, (), root).await?;
            Ok(actor.get_cell())
        }
    });
    spec.stop_within = STOP_PATIENCE + Duration::from_secs(1);
    spec
}

impl Actor for Discord {
    type Msg = Msg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, me: ActorRef<Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        me.cast(Msg::Ask)?;
        Ok(State {
            asking: None,
            attempt: 0,
            total: 0,
            queue: None,
            shards: BTreeMap::new(),
            canary: Canary::default(),
        })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, st: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Ask => self.ask(&me, st),
            Msg::Asked(Ok(basics)) => self.asked(&me, st, &basics),
            Msg::Asked(Err(error)) => self.not_asked(&me, st, &error),
            Msg::News { shard, news } => self.news(&me, st, shard, news),
            Msg::Start(shard) => self.start(&me, st, shard).await,
            Msg::Canary { turn } => self.canary(&me, st, turn),
            Msg::Posted { turn, result } => self.posted(st, turn, result),
            Msg::CanaryDue { turn } => self.canary_due(&me, st, turn),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Msg>,
        event: SupervisionEvent,
        st: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (id, why): (ActorId, String) = match event {
            SupervisionEvent::ActorTerminated(who, _, why) => {
                (who.get_id(), why.unwrap_or_else(|| "it stopped".into()))
            }
            SupervisionEvent::ActorFailed(who, error) => (who.get_id(), error.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let ended = st.shards.iter_mut().find(|(_, kept)| kept.up.as_ref().is_some_and(|up| up.get_id() == id));
        if let Some((number, kept)) = ended {
            let shard = *number;
            tracing::warn!(shard, why, "a shard ended: starting it again");
            (kept.up, kept.is) = (None, Is::Deaf("a part ended: it is being started again".into()));
            me.send_after(SHARD_PAUSE, move || Msg::Start(shard));
            self.show(st);
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Msg>, st: &mut State) -> Result<(), ActorProcessingErr> {
        let shards: Vec<_> = st.shards.values_mut().filter_map(|kept| kept.up.take()).collect();
        for shard in &shards {
            shard.stop(None);
        }
        // All at once: each has the same time.
        let gone = futures_util::future::join_all(shards.iter().map(|shard| shard.wait(None)));
        let _ = timeout(STOP_PATIENCE, gone).await;
        Ok(())
    }
}

impl Discord {
    fn ask(&self, me: &ActorRef<Msg>, st: &mut State) {
        let (shared, me) = (self.shared.clone(), me.clone());
        st.asking = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let basics = Basics::ask(&shared.rest).await;
            if let Ok(basics) = &basics {
                match commands::register(&shared.rest, basics.application.id).await {
                    Ok(true) => tracing::info!("the slash commands were registered"),
                    Ok(false) => {}
                    // People can still write messages.
                    Err(error) => tracing::warn!(%error, "the slash commands could not be registered"),
                }
            }
            // The actor may have gone.
            let _ = me.cast(Msg::Asked(basics));
        })));
    }

    fn asked(&self, me: &ActorRef<Msg>, st: &mut State, basics: &Basics) {
        (st.asking, st.attempt) = (None, 0);
        self.shared.is(basics.me.id, basics.application.id);
        let limit = &basics.gateway.session_start_limit;
        tracing::info!(
            bot = basics.me.username,
            shards = basics.gateway.shards,
            sessions_left = limit.remaining,
            invite = basics.invite(),
            "Discord knows the bot"
        );
        if self.shared.config.message_content && !basics.may_read() {
            tracing::warn!("the bot may not read messages that do not mention it: see `janebot doctor`");
        }
        let remaining = limit.remaining.min(limit.total).saturating_sub(RESERVE);
        if remaining == 0 {
            let minutes = limit.reset_after.div_ceil(60_000);
            tracing::warn!(minutes, "no new session is begun before Discord counts anew; one that is known goes on");
        }
        let queue = InMemoryQueue::new(
            limit.max_concurrency.max(1),
            remaining,
            Duration::from_millis(limit.reset_after),
            limit.total.max(remaining),
        );
        st.queue = Some(queue);
        st.total = basics.gateway.shards.clamp(1, MAX_SHARDS);
        for shard in 0..st.total {
            st.shards.entry(shard).or_default();
            // Only fails when this actor is gone.
            let _ = me.cast(Msg::Start(shard));
        }
    }

    fn not_asked(&self, me: &ActorRef<Msg>, st: &mut State, error: &RestError) {
        st.asking = None;
        let pause = if error.is_token_rejected() {
            self.front.health.failed(error.to_string());
            REJECTED_PAUSE
        } else {
            self.front.health.not_ready(error.to_string());
            self.front.world.jitter(backoff(FIRST_PAUSE, MAX_PAUSE, st.attempt))
        };
        st.attempt += 1;
        me.send_after(pause, || Msg::Ask);
    }

    async fn start(&self, me: &ActorRef<Msg>, st: &mut State, shard: u32) {
        let Some(queue) = st.queue.clone() else { return };
        let Some(kept) = st.shards.get_mut(&shard).filter(|kept| kept.up.is_none()) else { return };
        let to = me.clone();
        let arguments = Arguments {
            id: ShardId::new(shard, st.total),
            queue,
            shared: self.shared.clone(),
            front: self.front.clone(),
            // Only fails when this actor is gone.
            tell: Arc::new(move |news| drop(to.cast(Msg::News { shard, news }))),
        };
        match Actor::spawn_linked(None, Shard, arguments, me.get_cell()).await {
            Ok((actor, _join)) => kept.up = Some(actor),
            Err(error) => {
                tracing::error!(shard, %error, "a shard can't be started");
                me.send_after(SHARD_PAUSE, move || Msg::Start(shard));
            }
        }
    }

    fn news(&self, me: &ActorRef<Msg>, st: &mut State, shard: u32, news: News) {
        let Some(kept) = st.shards.get_mut(&shard) else { return };
        match news {
            News::Listening => {
                kept.is = Is::Listening;
                kept.sessions += 1;
                if st.canary.turn == 0 && self.shared.config.canary.is_some() {
                    st.canary.turn = 1;
                    // Only fails when this actor is gone.
                    let _ = me.cast(Msg::Canary { turn: 1 });
                }
            }
            News::Deaf(why) => kept.is = Is::Deaf(why),
            News::Failed(why) => kept.is = Is::Failed(why),
            News::Canary(said) => self.canary_heard(st, &said),
        }
        self.show(st);
    }

    /// Posts the marked message, which must come back through the gateway.
    fn canary(&self, me: &ActorRef<Msg>, st: &mut State, turn: u64) {
        let Some(canary) = self.shared.config.canary.clone() else { return };
        st.canary.turn = turn;
        me.send_after(canary.every.min(CANARY_WITHIN), move || Msg::CanaryDue { turn });
        // Without a session it can't come back, which is told as it is.
        let Some(session) = self.canarys_session(st) else { return };
        let mark = self.front.world.token(8);
        st.canary.awaited = Some((mark.clone(), session));
        let (shared, me) = (self.shared.clone(), me.clone());
        tokio::spawn(async move {
            let result = match canary.channel.parse::<ChannelNo>() {
                Err(_) => Err(RestError::Refused {
                    status: 404,
                    code: 10003,
                    message: "DISCORD_CANARY_CHANNEL is no channel's number".into(),
                }),
                Ok(channel) => {
                    let json = json!({
                        "content": format!("-# Jane listens: {mark}"),
                        "nonce": mark,
                        "enforce_nonce": true,
                        "allowed_mentions": no_pings(),
                        "flags": super::mouth::SUPPRESS_NOTIFICATIONS,
                    });
                    shared.rest.call(&Route::CreateMessage { channel_id: channel.get() }, Body::Json(json)).await
                }
            };
            // The actor may have gone.
            let _ = me.cast(Msg::Posted { turn, result: result.map(Box::new) });
        });
    }

    fn posted(&self, st: &mut State, turn: u64, result: Result<Box<Message>, RestError>) {
        match result {
            Ok(message) => {
                // It has told what it had to tell by the next turn; deleted then, so that the channel does not fill.
                let (shared, wait) = (self.shared.clone(), CANARY_WITHIN);
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let (channel_id, message_id) = (message.channel_id.get(), message.id.get());
                    let route = Route::DeleteMessage { channel_id, message_id };
                    if let Err(error) = shared.rest.send(&route, Body::Nothing).await {
                        tracing::debug!(%error, "a canary stays where it is");
                    }
                });
            }
            Err(error) if st.canary.turn == turn => {
                st.canary.awaited = None;
                st.canary.trouble = Some(format!("the self-test can't be posted: {error}"));
                self.show(st);
            }
            Err(_) => {}
        }
    }

    fn canary_heard(&self, st: &mut State, said: &str) {
        if st.canary.awaited.as_ref().is_some_and(|(mark, _)| said.contains(mark)) {
            st.canary = Canary { turn: st.canary.turn, ..Canary::default() };
        }
    }

    fn canary_due(&self, me: &ActorRef<Msg>, st: &mut State, turn: u64) {
        let Some(canary) = &self.shared.config.canary else { return };
        me.send_after(canary.every.saturating_sub(CANARY_WITHIN), move || Msg::Canary { turn: turn + 1 });
        let Some((_, session)) = st.canary.awaited.take() else { return };
        // One that was posted to another session proves nothing about this one.
        if self.canarys_session(st) != Some(session) {
            return;
        }
        let now = Instant::now();
        let may_rebuild = st.canary.rebuild_at.is_none_or(|at| now >= at);
        let what = if may_rebuild { "beginning a new session" } else { "that did not help, and is tried again later" };
        st.canary.trouble = Some(format!("a marked message did not come back through the gateway: {what}"));
        if may_rebuild {
            // Each costs one of a day's sessions.
            st.canary.rebuild_at = Some(now + backoff(FIRST_REBUILD, MAX_REBUILD, st.canary.rebuilds));
            st.canary.rebuilds += 1;
            let shard = self.canarys_shard(st.total);
            if let Some(up) = st.shards.get(&shard).and_then(|kept| kept.up.as_ref()) {
                // Only fails when it is gone, and then it is started anew as well.
                let _ = up.cast(ShardMsg::Rebuild);
            }
        }
        self.show(st);
    }

    /// The session that should bring the canary, if there is one.
    fn canarys_session(&self, st: &State) -> Option<u64> {
        let kept = st.shards.get(&self.canarys_shard(st.total))?;
        (kept.is == Is::Listening).then_some(kept.sessions)
    }

    /// The shard that should have heard the canary.
    fn canarys_shard(&self, total: u32) -> u32 {
        let channel = self.shared.config.canary.as_ref().and_then(|canary| canary.channel.parse::<ChannelNo>().ok());
        let guild = channel.and_then(|channel| self.shared.atlas().get(channel)).and_then(|known| known.guild);
        guild.map_or(0, |guild| u32::try_from((guild.get() >> 22) % u64::from(total.max(1))).unwrap_or(0))
    }

    fn show(&self, st: &State) {
        show(&self.front.health, st.shards.values().map(|kept| &kept.is), st.canary.trouble.as_deref());
    }
}

/// Says how it all is: the worst that is true of any shard.
fn show<'a>(board: &Part, shards: impl Iterator<Item = &'a Is>, canary: Option<&str>) {
    let (mut deaf, mut starting) = (None, false);
    for shard in shards {
        match shard {
            Is::Failed(why) => return board.failed(why),
            Is::Deaf(why) => deaf = deaf.or(Some(why)),
            Is::Starting => starting = true,
            Is::Listening => {}
        }
    }
    match (deaf, canary) {
        (Some(why), _) => board.not_ready(why),
        (None, _) if starting => board.not_ready("connecting to Discord"),
        (None, Some(why)) => board.not_ready(why),
        (None, None) => board.ready(),
    }
}
