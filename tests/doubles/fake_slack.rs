//! A workspace of Slack for tests: Web API, Socket Mode and Events API, stricter than the real ones.
//!
//! What the real Slack would take without a word and people would regret is noted as a [`FakeSlack::complaints`]: unknown
//! arguments, a ping in an answer, a link preview, a text that is too long, an acknowledgement that comes too late. It
//! delivers like Slack does, each event to one connection, again when it is not acknowledged; and it can lose, delay, limit
//! and recycle whatever it does.

#![allow(dead_code, reason = "each test program uses a part")]

// A file that is brought in by its path looks for its parts beside itself.
#[path = "fake_slack/delivery.rs"]
mod delivery;
#[path = "fake_slack/state.rs"]
mod state;
#[path = "fake_slack/web.rs"]
mod web;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

#[allow(unused_imports, reason = "each test program uses a part")]
pub use delivery::{Ack, Frame, client, form, signed};
#[allow(unused_imports, reason = "not every program that includes this names all of them")]
pub use state::{Fault, File, Kind, Message, State};

pub const TEAM: &str = "T1";
pub const JANE: &str = "UJANE";
pub const BOT: &str = "BJANE";
pub const ANN: &str = "UANN";
pub const BOB: &str = "UBOB";
pub const GUEST: &str = "UGUEST";
pub const GENERAL: &str = "CGENERAL";
pub const DIRECT: &str = "DANN";
pub const BOT_TOKEN: &str = "xoxb-fake-bot";
pub const APP_TOKEN: &str = "xapp-fake-app";
pub const SECRET: &str = "fake-signing-secret";

/// How long a test waits for something that should be there in a moment.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct FakeSlack {
    inner: Arc<Inner>,
}

pub struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    address: SocketAddr,
}

impl FakeSlack {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (changed, _) = watch::channel(0);
        let fake = Self { inner: Arc::new(Inner { state: Mutex::new(State::new()), changed, address }) };
        let router = web::router(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        fake
    }

    pub fn api_url(&self) -> String {
        format!("http://{}/api", self.inner.address)
    }

    pub fn host(&self) -> String {
        self.inner.address.to_string()
    }

    /// The workspace. Whoever waits is told when the guard's change is done by [`FakeSlack::change`].
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap()
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state());
        self.inner.changed.send_modify(|version| *version += 1);
        done
    }

    /// Waits until the workspace is like that, and gives what was looked for.
    pub async fn until<T>(&self, what: &str, look: impl Fn(&State) -> Option<T>) -> T {
        self.until_within(what, PATIENCE, look).await
    }

    pub async fn until_within<T>(&self, what: &str, patience: Duration, look: impl Fn(&State) -> Option<T>) -> T {
        let mut changed = self.inner.changed.subscribe();
        let found = timeout(patience, async {
            loop {
                if let Some(found) = look(&self.state()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("this never came: {what}\n{}", self.story()),
        }
    }

    /// What happened, for whoever reads a failed test.
    pub fn story(&self) -> String {
        let state = self.state();
        let mut lines = vec![format!("complaints: {:?}", state.complaints)];
        for (id, channel) in &state.channels {
            for message in &channel.messages {
                lines.push(format!(
                    "{id} {} in {:?} by {}: {:?} {:?}",
                    message.ts, message.thread, message.user, message.text, message.reactions
                ));
            }
        }
        lines.extend(state.calls.iter().rev().take(30).map(|(method, args)| format!("{method} {args}")));
        lines.join("\n")
    }

    /// Everything that was not as it should be.
    pub fn complaints(&self) -> Vec<String> {
        self.state().complaints.clone()
    }

    /// Somebody writes a message. Gives its timestamp, once events are on their way.
    pub fn say(&self, channel: &str, user: &str, text: &str, thread: Option<&str>) -> String {
        self.say_with(channel, user, text, thread, json!({}))
    }

    /// As [`FakeSlack::say`], with more fields in the message.
    pub fn say_with(&self, channel: &str, user: &str, text: &str, thread: Option<&str>, more: Value) -> String {
        let (ts, events) = self.change(|state| state.say(channel, user, text, thread, more));
        for event in events {
            self.deliver_event(event);
        }
        ts
    }

    /// Somebody mentions Jane in the channel.
    pub fn ask(&self, channel: &str, user: &str, prompt: &str, thread: Option<&str>) -> String {
        self.say(channel, user, &format!("<@{JANE}> {}", escaped(prompt)), thread)
    }

    /// Delivers an event, as a delivery of its own.
    pub fn deliver_event(&self, event: Value) {
        let payload = self.change(|state| state.event_payload(event));
        self.deliver(Kind::Event, payload);
    }

    /// Somebody presses a button of a message.
    pub fn press(&self, channel: &str, ts: &str, user: &str, label: &str) {
        let payload = self.change(|state| state.press(channel, ts, user, label));
        self.deliver(Kind::Interaction, payload);
    }

    pub fn command(&self, channel: &str, user: &str, text: &str) {
        let payload = self.change(|state| {
            let trigger = state.next_id();
            json!({
                "token": "deprecated", "team_id": TEAM, "team_domain": "test", "channel_id": channel,
                "channel_name": "general", "user_id": user, "user_name": "ann", "command": "/jane",
                "text": escaped(text), "api_app_id": "A1", "trigger_id": format!("{trigger}.1"),
                "response_url": "http://127.0.0.1:9/unused",
            })
        });
        self.deliver(Kind::Command, payload);
    }

    /// The message's text in the thread that holds this.
    pub async fn answer_with(&self, channel: &str, thread: &str, words: &str) -> Message {
        self.until(&format!("an answer with {words:?} in {channel}/{thread}"), |state| {
            let messages = state.channels[channel].messages.iter();
            let own = |message: &&Message| message.user == JANE && message.thread.as_deref() == Some(thread);
            messages.filter(own).find(|message| message.shown().contains(words)).cloned()
        })
        .await
    }

    /// Waits until a message has exactly these reactions of ours.
    pub async fn reactions(&self, channel: &str, ts: &str, names: &[&str]) {
        self.until(&format!("reactions {names:?} on {ts}"), |state| {
            let message = state.message(channel, ts)?;
            let mut has: Vec<_> = message.reactions.iter().map(String::as_str).collect();
            has.sort_unstable();
            (has == names).then_some(())
        })
        .await;
    }

    pub async fn connected(&self, count: usize) {
        self.until(&format!("{count} connections"), |state| (state.sockets.len() == count).then_some(())).await;
    }

    /// Messages of ours in the thread that have been written and not deleted.
    pub fn own_in(&self, channel: &str, thread: &str) -> Vec<Message> {
        let state = self.state();
        let messages = state.channels[channel].messages.iter();
        let own = |message: &&Message| message.user == JANE && message.thread.as_deref() == Some(thread);
        messages.filter(own).cloned().collect()
    }

    /// Makes the next call of a method go wrong.
    pub fn fault(&self, method: &str, fault: Fault) {
        self.fault_on(method, "", fault);
    }

    /// Makes the next call go wrong that holds these words.
    pub fn fault_on(&self, method: &str, words: &str, fault: Fault) {
        self.change(|state| state.faults.push((method.to_owned(), words.to_owned(), fault)));
    }

    /// Calls of a method so far.
    pub fn calls(&self, method: &str) -> Vec<Value> {
        self.state().calls.iter().filter(|(name, _)| name == method).map(|(_, args)| args.clone()).collect()
    }

    /// How long acknowledgements took, in order.
    pub fn acks(&self) -> Vec<Ack> {
        self.state().acks.clone()
    }

    /// Where events go when not to sockets.
    pub fn use_http(&self, base: &str) {
        self.change(|state| state.http = Some(base.to_owned()));
    }

    pub fn now(&self) -> Instant {
        Instant::now()
    }
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

pub type Fields = BTreeMap<String, Value>;
