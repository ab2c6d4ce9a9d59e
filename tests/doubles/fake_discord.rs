//! A Discord that plays what a test tells it to: gateway and REST on loopback, as strict as the real one.
//!
//! Whatever breaks Discord's rules (an unknown field, a message that could ping somebody, a send without an enforced
//! nonce, a wrong intent) is answered with its error and kept in [`FakeDiscord::violations`], which is empty at the end
//! of a good test.

#[path = "fake_discord/gateway.rs"]
mod gateway;
#[path = "fake_discord/rest.rs"]
mod rest;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use janebot::world::World;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;

pub const TOKEN: &str = "MTE4.fake-bot.token";
pub const ME: u64 = 900;
pub const APPLICATION: u64 = 901;
pub const GUILD: u64 = 1;
/// The channel in which tests ask.
pub const CHANNEL: u64 = 2;
pub const BOB: u64 = 8;

/// First moment of Discord's time.
const EPOCH_MS: u64 = 1_420_070_400_000;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct FakeDiscord {
    pub api: String,
    pub gateway: String,
    shared: Arc<Shared>,
    _serving: [AbortOnDropHandle<()>; 2],
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
    gateway: String,
    api: String,
    world: World,
}

#[derive(Default)]
pub struct State {
    pub channels: BTreeMap<u64, Channel>,
    pub messages: BTreeMap<u64, Message>,
    /// Method and path of every REST request, in order.
    pub requests: Vec<(String, String)>,
    pub violations: Vec<String>,
    /// Answers that are given instead of the right ones, to requests whose `METHOD path` begins and ends so.
    faults: VecDeque<Fault>,
    /// Bodies of interaction callbacks and of the texts that followed, by token.
    pub callbacks: Vec<(String, Value)>,
    pub followups: Vec<(String, String)>,
    pub commands: Vec<Value>,
    pub registrations: usize,
    pub typing: usize,
    pub files: BTreeMap<String, Vec<u8>>,
    pub deleted_messages: BTreeSet<u64>,
    pub gateway: Gateway,
    pub limit: Limit,
    /// The roles of members, beside everybody's.
    pub roles: BTreeMap<u64, Vec<u64>>,
    /// Permission bits of everybody.
    pub permissions: u64,
    pub application_flags: u64,
    last_id: u64,
}

#[derive(Clone, Debug)]
pub struct Channel {
    pub kind: u64,
    pub parent: Option<u64>,
    pub owner: Option<u64>,
    pub name: String,
    pub guild: Option<u64>,
    /// Discord's error for whoever writes here.
    pub shut: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct Message {
    pub id: u64,
    pub channel: u64,
    pub author: u64,
    pub bot: bool,
    pub content: String,
    pub mentions: Vec<u64>,
    pub attachments: Vec<Value>,
    pub components: Vec<Value>,
    pub nonce: Option<String>,
    pub flags: u64,
    pub reply_to: Option<u64>,
    pub edited: Option<String>,
    /// Every text it had before.
    pub edits: Vec<String>,
    /// Our marks on it, in the order in which they came; taken away ones are not there any more.
    pub reactions: Vec<String>,
    /// When its first mark came.
    pub marked_at: Option<tokio::time::Instant>,
    /// The content of its file.
    pub file: Option<Vec<u8>>,
}

#[derive(Clone)]
pub enum Answer {
    /// Status, headers, body.
    Http(u16, Vec<(&'static str, String)>, Value),
    /// Does what was asked, and then the connection breaks.
    Lost,
    /// Does what was asked, and answers after this time.
    Slow(Duration),
}

struct Fault {
    start: String,
    end: String,
    times: usize,
    answer: Answer,
}

/// What the gateway saw, and how it behaves.
#[derive(Default)]
pub struct Gateway {
    pub connections: usize,
    pub identifies: usize,
    pub resumes: usize,
    pub intents: u64,
    /// Intents that the bot has not been given.
    pub not_granted: u64,
    /// Closes every connection with this code as soon as it is open, or has identified.
    pub close_on_open: Option<u16>,
    /// Drops every connection without a word as soon as it is open.
    pub drop_on_open: bool,
    pub close_on_identify: Option<u16>,
    pub close_on_resume: Option<u16>,
    pub refuse_resume: bool,
    /// Events of this kind are not sent any more, though the connection lives.
    pub deaf_to: Option<&'static str>,
    session: String,
    sessions: usize,
    sequence: u64,
    /// What a session can bring again.
    pub log: Vec<(u64, Value)>,
    to: Option<mpsc::UnboundedSender<Out>>,
}

enum Out {
    Text(String),
    Close(u16),
    Drop,
}

pub struct Limit {
    pub remaining: u32,
    pub reset_after: u64,
}

impl Default for Limit {
    fn default() -> Self {
        Self { remaining: 1000, reset_after: 86_400_000 }
    }
}

impl FakeDiscord {
    pub async fn start() -> Self {
        let (rest, gateway) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let api = rest.local_addr().unwrap().to_string();
        let gateway_url = format!("ws://{}", gateway.local_addr().unwrap());
        let mut state = State { permissions: 309_237_763_136, application_flags: 1 << 19, ..State::default() };
        let text =
            Channel { kind: 0, parent: None, owner: None, name: "general".into(), guild: Some(GUILD), shut: None };
        state.channels.insert(CHANNEL, text);
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Notify::new(),
            gateway: gateway_url.clone(),
            api: api.clone(),
            world: World::real(),
        });
        let serving = [
            AbortOnDropHandle::new(tokio::spawn(rest::serve(rest, shared.clone()))),
            AbortOnDropHandle::new(tokio::spawn(gateway::serve(gateway, shared.clone()))),
        ];
        Self { api, gateway: gateway_url, shared, _serving: serving }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Waits until there is something to be seen.
    pub async fn wait<T>(&self, what: &str, mut see: impl FnMut(&State) -> Option<T>) -> T {
        self.wait_within(PATIENCE, what, &mut see).await.unwrap_or_else(|| {
            let state = self.state();
            let tail: Vec<_> = state.requests.iter().rev().take(25).rev().collect();
            panic!(
                "{what}: never came. Requests: {tail:#?}\nMessages: {:#?}",
                state.messages.values().collect::<Vec<_>>()
            )
        })
    }

    pub async fn wait_within<T>(
        &self,
        time: Duration,
        _: &str,
        see: &mut impl FnMut(&State) -> Option<T>,
    ) -> Option<T> {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let seen = see(&self.state());
                if let Some(seen) = seen {
                    return seen;
                }
                changed.await;
            }
        };
        tokio::time::timeout(time, waiting).await.ok()
    }

    /// Gives this answer to the next `times` requests whose `METHOD path` begins and ends so.
    pub fn answer(&self, start: &str, end: &str, times: usize, answer: Answer) {
        self.state().faults.push_back(Fault { start: start.into(), end: end.into(), times, answer });
    }

    pub fn id(&self) -> u64 {
        self.shared.id(&mut self.state())
    }

    /// Somebody writes a message; everybody hears of it. Returns its id.
    pub fn says(&self, message: Message) -> u64 {
        let mut state = self.state();
        let id = self.shared.id(&mut state);
        let message = Message { id, ..message };
        let event = self.shared.event_of(&state, &message);
        state.messages.insert(id, message);
        self.shared.dispatch(&mut state, "MESSAGE_CREATE", event);
        id
    }

    /// Bob mentions the bot in the channel.
    pub fn asks(&self, text: &str) -> u64 {
        self.says(Message {
            channel: CHANNEL,
            author: BOB,
            content: format!("<@{ME}> {text}"),
            mentions: vec![ME],
            ..Message::default()
        })
    }

    /// Bob writes in a channel or thread, mentioning nobody.
    pub fn writes(&self, channel: u64, text: &str) -> u64 {
        self.says(Message { channel, author: BOB, content: text.into(), ..Message::default() })
    }

    pub fn edits(&self, id: u64, text: &str, by_person: bool) {
        let mut state = self.state();
        let message = state.messages.get_mut(&id).unwrap();
        message.content = text.into();
        if by_person {
            message.edited = Some("2026-01-01T00:00:00.000000+00:00".into());
        }
        let message = message.clone();
        let event = self.shared.event_of(&state, &message);
        self.shared.dispatch(&mut state, "MESSAGE_UPDATE", event);
    }

    pub fn deletes(&self, id: u64) {
        let mut state = self.state();
        let message = state.messages.remove(&id).unwrap();
        let event =
            json!({"id": id.to_string(), "channel_id": message.channel.to_string(), "guild_id": GUILD.to_string()});
        self.shared.dispatch(&mut state, "MESSAGE_DELETE", event);
    }

    pub fn deletes_channel(&self, id: u64) {
        let mut state = self.state();
        let channel = state.channels.remove(&id).unwrap();
        let kind = if channel.parent.is_some() { "THREAD_DELETE" } else { "CHANNEL_DELETE" };
        let event = json!({
            "id": id.to_string(), "guild_id": GUILD.to_string(), "type": channel.kind,
            "parent_id": channel.parent.map(|id| id.to_string()),
        });
        self.shared.dispatch(&mut state, kind, event);
    }

    pub fn dispatch(&self, kind: &str, event: Value) {
        self.shared.dispatch(&mut self.state(), kind, event);
    }

    /// Somebody clicks or gives a command. Returns the interaction's token.
    pub fn interacts(&self, user: u64, channel: u64, kind: u64, data: Value) -> String {
        let mut state = self.state();
        let id = self.shared.id(&mut state);
        let token = format!("interaction-{id}");
        let there = state.channels[&channel].clone();
        let event = json!({
            "id": id.to_string(), "application_id": APPLICATION.to_string(), "type": kind, "token": token, "version": 1,
            "guild_id": GUILD.to_string(), "channel_id": channel.to_string(),
            "channel": {"id": channel.to_string(), "type": there.kind, "parent_id": there.parent.map(|id| id.to_string())},
            "member": {"roles": [], "user": {"id": user.to_string(), "username": "bob"}},
            "data": data,
        });
        self.shared.dispatch(&mut state, "INTERACTION_CREATE", event);
        token
    }

    pub fn clicks(&self, user: u64, channel: u64, custom_id: &str) -> String {
        self.interacts(user, channel, 3, json!({"custom_id": custom_id, "component_type": 2}))
    }

    /// Ends the present connection.
    pub fn closes(&self, code: u16) {
        self.out(Out::Close(code));
    }

    pub fn loses_the_socket(&self) {
        self.out(Out::Drop);
    }

    /// Sends the opcode, as for `reconnect` (7) or `invalid session` (9).
    pub fn sends(&self, op: u8, data: Value) {
        self.out(Out::Text(json!({"op": op, "d": data}).to_string()));
    }

    fn out(&self, out: Out) {
        if let Some(to) = &self.state().gateway.to {
            // The client may have gone.
            let _ = to.send(out);
        }
    }
}

impl State {
    pub fn of(&self, channel: u64) -> Vec<&Message> {
        self.messages.values().filter(|message| message.channel == channel).collect()
    }

    /// Our messages in a channel, without marks.
    pub fn ours(&self, channel: u64) -> Vec<&Message> {
        self.of(channel).into_iter().filter(|message| message.author == ME).collect()
    }

    /// Whether one of our messages there has this text in it.
    pub fn said(&self, channel: u64, text: &str) -> bool {
        self.ours(channel).iter().any(|message| message.content.contains(text))
    }

    pub fn count(&self, method: &str, end: &str) -> usize {
        self.requests.iter().filter(|(m, path)| m == method && path.ends_with(end)).count()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new id, with the present time in it.
    fn id(&self, state: &mut State) -> u64 {
        let now = u64::try_from(self.world.now().as_millisecond()).unwrap();
        state.last_id = ((now - EPOCH_MS) << 22).max(state.last_id + 1);
        state.last_id
    }

    /// The message as the gateway and REST show it.
    fn show(&self, state: &State, message: &Message) -> Value {
        let mention = |id: &u64| json!({"id": id.to_string(), "username": "somebody", "bot": *id == ME});
        let reference = message.reply_to.and_then(|id| state.messages.get(&id)).map(|to| self.show(state, to));
        json!({
            "id": message.id.to_string(), "channel_id": message.channel.to_string(),
            "type": if message.reply_to.is_some() { 19 } else { 0 },
            "author": {"id": message.author.to_string(), "username": "bob", "discriminator": "0", "bot": message.bot},
            "content": message.content, "timestamp": "2026-01-01T00:00:00.000000+00:00",
            "edited_timestamp": message.edited, "tts": false, "mention_everyone": false, "pinned": false,
            "mentions": message.mentions.iter().map(mention).collect::<Vec<_>>(), "mention_roles": [],
            "attachments": message.attachments, "embeds": [], "components": message.components,
            "flags": message.flags, "referenced_message": reference,
        })
    }

    /// As in an event: with server and member, and without content where the intent is not there.
    fn event_of(&self, state: &State, message: &Message) -> Value {
        let mut event = self.show(state, message);
        let guild = state.channels.get(&message.channel).and_then(|channel| channel.guild);
        if let Some(guild) = guild {
            event["guild_id"] = json!(guild.to_string());
            let roles = state.roles.get(&message.author).cloned().unwrap_or_default();
            event["member"] = json!({"roles": roles.iter().map(ToString::to_string).collect::<Vec<_>>()});
            let may_read = state.gateway.intents & (1 << 15) != 0;
            if !may_read && message.author != ME && !message.mentions.contains(&ME) {
                event["content"] = json!("");
                event["attachments"] = json!([]);
            }
        }
        if let Some(nonce) = &message.nonce {
            event["nonce"] = json!(nonce);
        }
        event
    }

    fn dispatch(&self, state: &mut State, kind: &str, event: Value) {
        let gateway = &mut state.gateway;
        if gateway.deaf_to == Some(kind) {
            self.changed.notify_waiters();
            return;
        }
        gateway.sequence += 1;
        let event = json!({"op": 0, "t": kind, "s": gateway.sequence, "d": event});
        gateway.log.push((gateway.sequence, event.clone()));
        if let Some(to) = &gateway.to {
            // A client that has gone gets it when it resumes.
            let _ = to.send(Out::Text(event.to_string()));
        }
        self.changed.notify_waiters();
    }
}
