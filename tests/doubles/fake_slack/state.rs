//! The workspace: people, channels, messages, files, and what was noted about the client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::delivery::{Ack, Frame};
use super::{ANN, BOB, BOT, DIRECT, GENERAL, GUEST, JANE, TEAM};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Event,
    Interaction,
    Command,
}

/// What goes wrong with a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// 429, with so many seconds to wait; nothing is done.
    RateLimited(u64),
    /// It is done, and the answer is lost.
    LostAfter,
    /// It is lost before anything is done.
    LostBefore,
    /// It is done, and there is no answer for so long.
    SlowAfter(Duration),
    /// An HTTP error without a verdict; nothing is done.
    Status(u16),
    /// `ok: false` with this word.
    Error(&'static str),
}

#[derive(Clone, Debug, Default)]
pub struct Message {
    pub ts: String,
    pub thread: Option<String>,
    pub user: String,
    pub text: String,
    pub blocks: Vec<Value>,
    pub metadata: Option<Value>,
    pub reactions: BTreeSet<String>,
    pub files: Vec<Value>,
    /// Other fields, as `bot_id` of other programs.
    pub more: Value,
    pub edits: usize,
    pub written_at: Option<Instant>,
    /// When it got its first reaction of ours.
    pub marked_at: Option<Instant>,
}

impl Message {
    /// What people see: the blocks if there are any, else the text; entities as what they stand for.
    pub fn shown(&self) -> String {
        let parts: Vec<_> =
            self.blocks.iter().filter_map(|block| block.pointer("/text/text").and_then(Value::as_str)).collect();
        let text = if self.blocks.is_empty() { self.text.clone() } else { parts.join("\n") };
        text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    }

    pub fn buttons(&self) -> Vec<(String, Value)> {
        let elements = self.blocks.iter().filter_map(|block| block.get("elements").and_then(Value::as_array)).flatten();
        elements
            .filter_map(|button| Some((button.pointer("/text/text")?.as_str()?.to_owned(), button.clone())))
            .collect()
    }

    pub fn json(&self, with_metadata: bool) -> Value {
        let mut fields =
            json!({ "type": "message", "ts": self.ts, "user": self.user, "text": self.text, "team": TEAM });
        let map = fields.as_object_mut().unwrap();
        if let Some(thread) = &self.thread {
            map.insert("thread_ts".into(), thread.clone().into());
        }
        if self.user == JANE {
            map.insert("bot_id".into(), BOT.into());
            map.insert("app_id".into(), "A1".into());
        }
        if !self.blocks.is_empty() {
            map.insert("blocks".into(), self.blocks.clone().into());
        }
        if !self.files.is_empty() {
            map.insert("files".into(), self.files.clone().into());
        }
        if let Some(metadata) = self.metadata.as_ref().filter(|_| with_metadata) {
            map.insert("metadata".into(), metadata.clone());
        }
        if let Some(more) = self.more.as_object() {
            map.extend(more.clone());
        }
        fields
    }
}

#[derive(Clone, Debug, Default)]
pub struct Channel {
    pub channel_type: &'static str,
    pub has_bot: bool,
    pub archived: bool,
    pub shared: bool,
    pub messages: Vec<Message>,
}

#[derive(Clone, Debug, Default)]
pub struct File {
    pub name: String,
    pub length: usize,
    pub bytes: Option<Vec<u8>>,
    pub shared_in: Option<String>,
    /// Answers with a page to log in at.
    pub is_page: bool,
}

pub struct Socket {
    pub frames: mpsc::UnboundedSender<Frame>,
    /// Announced to end; gets no more new events.
    pub leaving: bool,
}

pub struct State {
    pub channels: BTreeMap<String, Channel>,
    pub users: BTreeMap<String, Value>,
    pub files: BTreeMap<String, File>,
    pub scopes: BTreeSet<String>,
    pub bot_token: Option<String>,
    pub complaints: Vec<String>,
    pub calls: VecDeque<(String, Value)>,
    /// Method, words that the call must hold, and what goes wrong.
    pub faults: Vec<(String, String, Fault)>,
    pub ephemerals: Vec<Value>,
    pub statuses: Vec<(String, Value)>,
    pub sockets: BTreeMap<u64, Socket>,
    pub tickets: BTreeSet<String>,
    /// Connections that were ever made.
    pub made: u64,
    pub deliveries: BTreeMap<String, super::delivery::Delivery>,
    pub acks: Vec<Ack>,
    pub http: Option<String>,
    /// Slack counts so many connections more than there are.
    pub other_connections: u64,
    /// No more connections than this.
    pub max_connections: usize,
    pub hello_delay: Duration,
    /// Largest page of a thread.
    pub page_max: usize,
    /// Which of the two events of a mention are sent.
    pub send_mentions: bool,
    pub send_messages: bool,
    /// After this time a delivery that was not acknowledged is made again.
    pub redeliver_after: Duration,
    /// Sends no event of what Jane writes herself.
    pub swallow_own: bool,
    counter: u64,
    second: u64,
}

impl State {
    pub fn new() -> Self {
        let people = [
            (ANN, json!({ "id": ANN, "team_id": TEAM, "name": "ann" })),
            (BOB, json!({ "id": BOB, "team_id": TEAM, "name": "bob" })),
            (GUEST, json!({ "id": GUEST, "team_id": TEAM, "name": "guest", "is_restricted": true })),
            (JANE, json!({ "id": JANE, "team_id": TEAM, "name": "jane", "is_bot": true })),
        ];
        let channel = |channel_type| Channel { channel_type, has_bot: true, ..Channel::default() };
        Self {
            channels: [
                (GENERAL.to_owned(), channel("channel")),
                ("CCANARY".to_owned(), channel("channel")),
                (DIRECT.to_owned(), channel("im")),
            ]
            .into(),
            users: people.into_iter().map(|(id, person)| (id.to_owned(), person)).collect(),
            files: BTreeMap::new(),
            scopes: janebot::chat::slack::api::Method::all_scopes().into_iter().map(str::to_owned).collect(),
            bot_token: Some(super::BOT_TOKEN.into()),
            complaints: Vec::new(),
            calls: VecDeque::new(),
            faults: Vec::new(),
            ephemerals: Vec::new(),
            statuses: Vec::new(),
            sockets: BTreeMap::new(),
            tickets: BTreeSet::new(),
            made: 0,
            deliveries: BTreeMap::new(),
            acks: Vec::new(),
            http: None,
            other_connections: 0,
            max_connections: 10,
            hello_delay: Duration::ZERO,
            page_max: 1000,
            send_mentions: true,
            send_messages: true,
            redeliver_after: Duration::from_secs(3),
            swallow_own: false,
            counter: 0,
            second: 1_790_000_000,
        }
    }

    pub fn next_id(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub fn next_ts(&mut self) -> String {
        self.second += 1;
        let count = self.next_id();
        format!("{}.{count:06}", self.second)
    }

    pub fn message(&self, channel: &str, ts: &str) -> Option<&Message> {
        self.channels.get(channel)?.messages.iter().find(|message| message.ts == ts)
    }

    pub fn message_mut(&mut self, channel: &str, ts: &str) -> Option<&mut Message> {
        self.channels.get_mut(channel)?.messages.iter_mut().find(|message| message.ts == ts)
    }

    /// Notes a message and gives its events.
    pub fn say(
        &mut self,
        channel: &str,
        user: &str,
        text: &str,
        thread: Option<&str>,
        more: Value,
    ) -> (String, Vec<Value>) {
        let ts = self.next_ts();
        let message = Message {
            ts: ts.clone(),
            thread: thread.map(str::to_owned),
            user: user.to_owned(),
            text: text.to_owned(),
            files: more.get("files").and_then(Value::as_array).cloned().unwrap_or_default(),
            more: more.clone(),
            written_at: Some(Instant::now()),
            ..Message::default()
        };
        let parent = thread.and_then(|thread| self.message(channel, thread)).map(|parent| parent.user.clone());
        let room = self.channels.get_mut(channel).expect("the channel is there");
        room.messages.push(message.clone());
        let mut event = message.json(false);
        let map = event.as_object_mut().unwrap();
        map.insert("channel".into(), channel.into());
        map.insert("event_ts".into(), ts.clone().into());
        if let Some(parent) = parent {
            map.insert("parent_user_id".into(), parent.into());
        }
        let mut mention = event.clone();
        event["channel_type"] = room.channel_type.into();
        mention["type"] = "app_mention".into();
        // Field reports say that it lacks them.
        mention.as_object_mut().unwrap().remove("files");
        mention.as_object_mut().unwrap().remove("subtype");
        let mut events = Vec::new();
        let is_mention = text.contains(&format!("<@{JANE}>")) && room.channel_type != "im";
        if is_mention && room.has_bot && self.send_mentions {
            events.push(mention);
        }
        if room.has_bot && self.send_messages {
            events.push(event);
        }
        (ts, events)
    }

    pub fn event_payload(&mut self, event: Value) -> Value {
        let channel = event.get("channel").and_then(Value::as_str).unwrap_or_default();
        let shared = self.channels.get(channel).is_some_and(|channel| channel.shared);
        json!({
            "token": "deprecated", "team_id": TEAM, "api_app_id": "A1", "event": event, "type": "event_callback",
            "event_id": format!("Ev{:08}", self.next_id()), "event_time": self.second,
            "authorizations": [{ "team_id": TEAM, "user_id": JANE, "is_bot": true }],
            "is_ext_shared_channel": shared, "event_context": "4-x",
        })
    }

    pub fn press(&mut self, channel: &str, ts: &str, user: &str, label: &str) -> Value {
        let message = self.message(channel, ts).expect("the message is there").clone();
        let (_, button) = message.buttons().into_iter().find(|(text, _)| text == label).expect("the button is there");
        let mut action = button.clone();
        action["block_id"] = "b1".into();
        action["action_ts"] = "1.1".into();
        json!({
            "type": "block_actions", "user": { "id": user, "team_id": TEAM }, "api_app_id": "A1",
            "container": { "type": "message", "message_ts": ts, "channel_id": channel, "thread_ts": message.thread },
            "trigger_id": format!("{}.2", self.next_id()), "team": { "id": TEAM }, "channel": { "id": channel },
            "message": message.json(false), "actions": [action], "response_url": "http://127.0.0.1:9/unused",
        })
    }

    /// What goes wrong with this call, once.
    pub fn take_fault(&mut self, method: &str, args: &str) -> Option<Fault> {
        let is_meant = |(name, words, _): &(String, String, Fault)| name == method && args.contains(words);
        let at = self.faults.iter().position(is_meant)?;
        Some(self.faults.remove(at).2)
    }

    pub fn complain(&mut self, what: impl Into<String>) {
        self.complaints.push(what.into());
    }
}
