//! The adapter: learns who Jane is, keeps connections open, and says on the board how it stands.
//!
//! ```text
//!   Unknown ──auth.test──► Hearing (connections by `fleet`, routes open) ──token revoked, Socket Mode off──► Failed
//! ```
//!
//! A child of the root supervisor. When it dies, its sockets die with it, and Slack delivers again what was not
//! acknowledged; the routes answer 503 until the next one has started.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::Ways;
use super::api::{ApiError, Method, who_is};
use super::canary::{Canary, Tried};
use super::ear::Ear;
use super::event::Me;
use super::fleet::{Effect, End, Fleet};
use super::routes::Gate;
use super::socket::{Line, SlackSocket, SocketMsg};
use crate::chat::adapter::Front;
use crate::config::SlackConfig;
use crate::supervise::{ChildSpec, RestartPolicy, backoff};

/// Pause between two tries to learn who Jane is, doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Sockets say goodbye in this time, and what they have in hand is recorded and acknowledged.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// That events have arrived once, kept over restarts.
const EVER_HEARD: &str = "events-arrived";

/// Messages of the adapter.
pub enum AdapterMsg {
    /// Own timer: ask Slack who Jane is.
    Ask,
    /// Own task: what Slack said to that, and whether events ever arrived.
    Asked { answer: Result<Me, ApiError>, ever_heard: bool },
    /// A socket is connected; `connections` is how many Slack counts for this app.
    Hello { id: u64, connections: Option<u64> },
    /// Slack announced the end of a socket.
    Leaving { id: u64 },
    /// A socket's connection has ended.
    SocketEnded { id: u64, end: End },
    /// Own timer: a socket may be opened now.
    Wake,
    /// The ear: something came from Slack.
    Heard,
    /// The ear: a message of our own came back.
    Own { channel: String, ts: String },
    /// The ear: the app was taken out of the workspace.
    Removed(&'static str),
    /// The ear: Slack holds events back.
    HeldBack,
    /// Own timer: time for the canary, or to see whether it came back.
    Beat,
    /// Own task: what became of the canary's message.
    Sent(Tried),
}

pub struct SlackAdapter {
    config: SlackConfig,
    ways: Ways,
    front: Front,
    gate: Gate,
}

/// The adapter as a child for the root supervisor.
pub fn child(config: SlackConfig, ways: Ways, front: Front, gate: Gate) -> ChildSpec {
    let (config, front) = (Arc::new(config), Arc::new(front));
    let mut spec = ChildSpec::new("slack", RestartPolicy::SPARE, move |root| {
        let adapter =
            SlackAdapter { config: (*config).clone(), ways: ways.clone(), front: (*front).clone(), gate: gate.clone() };
        async move {
            let (actor, _join) = Actor::spawn_linked(None, adapter, (), root).await?;
            Ok(actor.get_cell())
        }
    });
    spec.stop_within = STOP_PATIENCE + Duration::from_secs(3);
    spec
}

pub enum State {
    /// Slack has not said who Jane is.
    Unknown {
        failures: u32,
        asking: Option<AbortOnDropHandle<()>>,
    },
    Hearing(Box<Hearing>),
    /// Nothing more is tried; the board says why.
    Failed,
}

pub struct Hearing {
    line: Option<Arc<Line>>,
    fleet: Fleet,
    sockets: BTreeMap<u64, ActorRef<SocketMsg>>,
    by_actor: BTreeMap<ActorId, u64>,
    /// Why the last connection ended.
    last_end: Option<String>,
    /// More connections than ours are open.
    others: Option<u64>,
    heard: bool,
    /// It is kept that events arrive.
    is_kept: bool,
    canary: Option<Canary>,
    sending: Option<AbortOnDropHandle<()>>,
}

impl Actor for SlackAdapter {
    type Msg = AdapterMsg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, me: ActorRef<AdapterMsg>, (): ()) -> Result<State, ActorProcessingErr> {
        me.cast(AdapterMsg::Ask)?;
        Ok(State::Unknown { failures: 0, asking: None })
    }

    async fn handle(
        &self,
        me: ActorRef<AdapterMsg>,
        msg: AdapterMsg,
        st: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match (msg, &mut *st) {
            (AdapterMsg::Ask, State::Unknown { asking, .. }) => *asking = Some(self.ask(&me)),
            (AdapterMsg::Asked { answer, ever_heard }, State::Unknown { failures, .. }) => match answer {
                Ok(jane) => *st = self.begin(&me, jane, ever_heard),
                Err(error) if error.is_fatal() => {
                    self.front.health.failed(format!("{error}; then restart janebot"));
                    *st = State::Failed;
                }
                Err(error) => {
                    self.front.health.not_ready(format!("{error}; trying again"));
                    let pause = match error {
                        ApiError::RateLimited { retry_after, .. } => retry_after,
                        _ => self.front.world.jitter(backoff(FIRST_PAUSE, LONGEST_PAUSE, *failures)),
                    };
                    *failures += 1;
                    me.send_after(pause, || AdapterMsg::Ask);
                }
            },
            (AdapterMsg::Removed(why), State::Hearing(hearing)) => {
                let what = format!("the app can't work in this workspace any more, because {why}: install it again");
                self.front.health.failed(format!("{what}, set SLACK_BOT_TOKEN and restart janebot"));
                hearing.sockets.values().for_each(retire);
                self.gate.set(None);
                *st = State::Failed;
            }
            (msg, State::Hearing(hearing)) => self.on(&me, hearing, msg).await?,
            // Of sockets and tasks that were there before.
            (_, State::Unknown { .. } | State::Failed) => {}
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<AdapterMsg>,
        event: SupervisionEvent,
        st: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (who, why) = match &event {
            SupervisionEvent::ActorTerminated(who, _, reason) => (who.get_id(), reason.clone().unwrap_or_default()),
            SupervisionEvent::ActorFailed(who, error) => (who.get_id(), error.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let State::Hearing(hearing) = st else { return Ok(()) };
        if let Some(id) = hearing.by_actor.remove(&who) {
            // One whose connection ended has said so before it was stopped, and this changes nothing.
            self.ended(hearing, id, End::Broken(why));
            self.go_on(&me, hearing).await?;
        }
        Ok(())
    }

    async fn post_stop(&self, me: ActorRef<AdapterMsg>, st: &mut State) -> Result<(), ActorProcessingErr> {
        self.gate.set(None);
        me.get_cell().stop_children_and_wait(None, Some(STOP_PATIENCE)).await;
        if let State::Hearing(hearing) = st
            && let Some(line) = &hearing.line
        {
            line.tasks.close();
            let _ = timeout(STOP_PATIENCE, line.tasks.wait()).await;
        }
        Ok(())
    }
}

fn retire(socket: &ActorRef<SocketMsg>) {
    // One that has ended needs no telling.
    let _ = socket.cast(SocketMsg::Retire);
}

impl SlackAdapter {
    fn ask(&self, me: &ActorRef<AdapterMsg>) -> AbortOnDropHandle<()> {
        let (api, keep, me) = (self.ways.bot.clone(), self.front.keep.clone(), me.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let answer = api.call_for_scopes(Method::AuthTest, &Value::Null).await;
            let answer = answer.and_then(|(answer, scopes)| {
                super::doctor::warn_of_missing(scopes.as_deref());
                who_is(&answer)
            });
            let ever_heard = keep.get(EVER_HEARD).await.is_ok_and(|kept| kept.is_some());
            let _ = me.cast(AdapterMsg::Asked { answer, ever_heard });
        }))
    }

    fn begin(&self, me: &ActorRef<AdapterMsg>, jane: Me, ever_heard: bool) -> State {
        let ways = &self.ways;
        tracing::info!(team = jane.team, bot = jane.user, "Slack knows us");
        ways.speech.introduce(&jane);
        let ear = Ear::new(ways.bot.clone(), jane, self.front.clone(), self.config.teams.clone(), me.clone());
        let ear = Arc::new(ear);
        self.gate.set(Some(ear.clone()));
        let line = ways.app.as_ref().map(|app| {
            Arc::new(Line::new(app.clone(), ear, self.front.world.clone(), self.config.silence, me.clone()))
        });
        let wanted = if line.is_some() { self.config.connections } else { 0 };
        let canary = self.config.canary.clone().map(Canary::new);
        let hearing = Hearing {
            line,
            fleet: Fleet::new(wanted, Instant::now()),
            sockets: BTreeMap::new(),
            by_actor: BTreeMap::new(),
            last_end: None,
            others: None,
            heard: ever_heard,
            is_kept: ever_heard,
            canary,
            sending: None,
        };
        self.show(&hearing);
        // Both are told in their turn, so that this needs no wait.
        let _ = me.cast(AdapterMsg::Wake);
        let _ = me.cast(AdapterMsg::Beat);
        State::Hearing(Box::new(hearing))
    }

    async fn on(
        &self,
        me: &ActorRef<AdapterMsg>,
        hearing: &mut Hearing,
        msg: AdapterMsg,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            AdapterMsg::Hello { id, connections } => {
                hearing.fleet.on_hello(id, Instant::now());
                let ours = hearing.fleet.all() as u64;
                hearing.others = connections.filter(|count| *count > ours).map(|count| count - ours);
                tracing::info!(id, open = hearing.fleet.open(), counted = connections, "a Slack connection is open");
            }
            AdapterMsg::Leaving { id } => {
                hearing.fleet.on_leaving(id, Instant::now(), |pause| self.front.world.jitter(pause));
            }
            AdapterMsg::SocketEnded { id, end } => self.ended(hearing, id, end),
            AdapterMsg::Heard => self.heard(hearing),
            AdapterMsg::Own { channel, ts } => {
                self.heard(hearing);
                if let Some(canary) = &mut hearing.canary
                    && canary.came_back(&channel, &ts, Instant::now())
                {
                    hearing.sending = Some(self.bury(channel, ts));
                }
            }
            AdapterMsg::HeldBack => {
                tracing::error!(
                    "Slack holds events of this workspace back, because there are more than 30,000 an hour"
                );
            }
            AdapterMsg::Beat => self.beat(me, hearing),
            AdapterMsg::Sent(tried) => {
                if let Some(canary) = &mut hearing.canary
                    && let Some(ts) = canary.sent(tried, Instant::now())
                {
                    let channel = canary.channel().to_owned();
                    hearing.sending = Some(self.bury(channel, ts));
                }
            }
            AdapterMsg::Wake => {}
            AdapterMsg::Ask | AdapterMsg::Asked { .. } | AdapterMsg::Removed(_) => return Ok(()),
        }
        self.go_on(me, hearing).await
    }

    fn heard(&self, hearing: &mut Hearing) {
        hearing.heard = true;
        if !hearing.is_kept {
            hearing.is_kept = true;
            let keep = self.front.keep.clone();
            tokio::spawn(async move {
                if let Err(error) = keep.put(EVER_HEARD, "1").await {
                    tracing::debug!(%error, "it could not be noted that events arrive");
                }
            });
        }
    }

    fn ended(&self, hearing: &mut Hearing, id: u64, end: End) {
        let Some(socket) = hearing.sockets.remove(&id) else { return };
        socket.stop(Some("the connection ended".into()));
        match &end {
            End::Closed => tracing::debug!(id, "a Slack connection was closed"),
            End::Broken(why) => {
                tracing::warn!(id, why, "a Slack connection ended");
                hearing.last_end = Some(why.clone());
            }
            End::RateLimited(pause) => {
                hearing.last_end = Some(format!("Slack wants {} s of quiet", pause.as_secs()));
            }
            End::NoPlace => {
                hearing.last_end = Some("Slack has no place for another connection of this app".into());
                tracing::error!("Slack has no place for another connection: more processes use this app token");
            }
            End::Fatal(why) => tracing::error!(id, why, "Slack will have no connection"),
        }
        hearing.fleet.on_ended(id, &end, Instant::now(), |pause| self.front.world.jitter(pause));
    }

    /// Does what the fleet wants and says how it stands.
    async fn go_on(&self, me: &ActorRef<AdapterMsg>, hearing: &mut Hearing) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        let (effects, wake) = hearing.fleet.due(now);
        for effect in effects {
            match (effect, &hearing.line) {
                (Effect::Open(id), Some(line)) => {
                    // Cheap: its start waits for nothing.
                    let (socket, _) = Actor::spawn_linked(None, SlackSocket, (id, line.clone()), me.get_cell()).await?;
                    hearing.by_actor.insert(socket.get_id(), id);
                    hearing.sockets.insert(id, socket);
                }
                (Effect::Retire(id), _) => {
                    if let Some(socket) = hearing.sockets.get(&id) {
                        retire(socket);
                    }
                }
                (Effect::Open(_), None) => {}
            }
        }
        if let Some(at) = wake {
            me.send_after(at - now, || AdapterMsg::Wake);
        }
        self.show(hearing);
        Ok(())
    }

    /// Says on the board how it stands.
    fn show(&self, hearing: &Hearing) {
        let health = &self.front.health;
        let is_connected = hearing.line.is_none() || hearing.fleet.hears();
        let canary = hearing.canary.as_ref();
        match () {
            () if hearing.fleet.halted().is_some() => health.failed(hearing.fleet.halted().unwrap_or_default()),
            () if !is_connected => {
                let why = hearing.last_end.as_deref().unwrap_or("the first connection is being opened");
                health.not_ready(format!("there is no connection to Slack ({why}): trying again"));
            }
            () if canary.is_some_and(Canary::is_lost) => health.not_ready(format!(
                "a message to the canary channel did not come back as an event: another process may use this app token, \
                 or the app is not subscribed to message events, or not in the channel{}",
                hearing.others.map_or_else(String::new, |others| format!(" ({others} more connections are open)"))
            )),
            () if canary.is_some_and(|canary| canary.problem().is_some()) => {
                health.not_ready(canary.and_then(Canary::problem).unwrap_or_default());
            }
            () if hearing.others.is_some() => health.not_ready(format!(
                "{} more connections use this app token: another process takes part of the events. Stop it, or give it \
                 an app of its own",
                hearing.others.unwrap_or_default()
            )),
            () if !hearing.heard => health.not_ready(
                "connected, but no event has come yet: write to Jane once. If that does not help, the app lacks event \
                 subscriptions (see deploy/slack.md)",
            ),
            () => health.ready(),
        }
    }

    fn beat(&self, me: &ActorRef<AdapterMsg>, hearing: &mut Hearing) {
        let Some(canary) = &mut hearing.canary else { return };
        let now = Instant::now();
        let is_connected = hearing.line.is_none() || hearing.fleet.hears();
        let (send, again) = canary.due(now, is_connected);
        if send {
            let (channel, me) = (canary.channel().to_owned(), me.clone());
            let api = self.ways.bot.clone();
            hearing.sending = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                let tried = super::canary::send(&api, &channel).await;
                let _ = me.cast(AdapterMsg::Sent(tried));
            })));
        }
        me.send_after(again, || AdapterMsg::Beat);
    }

    fn bury(&self, channel: String, ts: String) -> AbortOnDropHandle<()> {
        let api = self.ways.bot.clone();
        AbortOnDropHandle::new(tokio::spawn(async move { super::canary::bury(&api, &channel, &ts).await }))
    }
}
