//! What is done about a delivery, whichever way it came: the message is handed to the desk, which records it, and only
//! then Slack is told that it need not deliver it again.
//!
//! Called by the sockets and by the HTTP routes, any number at a time. It keeps nothing that a restart may not lose: which
//! threads Jane is part of is kept in the journal, and everything else is only remembered so as not to ask again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::ActorRef;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::adapter::AdapterMsg;
use super::api::{Api, ApiError, Method};
use super::event::{self, Me, News, Said};
use super::people::{People, Standing};
use super::recent::Recent;
use super::render::escaped;
use crate::chat::adapter::Front;
use crate::chat::{Action, Button, Change, Inbound};
use crate::desk::Target;
use crate::job::{ChannelId, ConversationId, RequesterId};

/// A mention without files waits so long for its other half, the message event, which has them. It is there at once where
/// the app gets both; where it does not, nobody notices this.
const OTHER_HALF: Duration = Duration::from_millis(120);

/// Slack delivers again what it was not told of within 3 s, so that nobody waits for longer work.
const PATIENCE: Duration = Duration::from_secs(30);

const MAX_THREADS: usize = 20_000;
const MAX_SEEN: usize = 20_000;

/// What to tell Slack.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It is dealt with.
    Taken,
    /// It is dealt with, and this is shown to whoever did it.
    Say(String),
    /// It is not: deliver it again.
    Again,
}

/// The three ways in which Slack packs what it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Event,
    Interaction,
    Command,
}

pub struct Ear {
    pub api: Arc<Api>,
    pub me: Me,
    pub front: Front,
    pub teams: BTreeSet<String>,
    /// Who decides about the connections, and wants to know of signs of life.
    pub adapter: ActorRef<AdapterMsg>,
    people: People,
    /// Whether Jane is part of a thread.
    threads: Mutex<Recent<String, bool>>,
    /// Messages whose event came, and deliveries that are dealt with and must not be repeated.
    seen: Mutex<Recent<String, ()>>,
}

impl Ear {
    pub fn new(api: Arc<Api>, me: Me, front: Front, teams: BTreeSet<String>, adapter: ActorRef<AdapterMsg>) -> Self {
        Self {
            api,
            me,
            front,
            teams,
            adapter,
            people: People::new(),
            threads: Mutex::new(Recent::new(MAX_THREADS)),
            seen: Mutex::new(Recent::new(MAX_SEEN)),
        }
    }

    /// Deals with one delivery.
    pub async fn take(&self, kind: Kind, payload: &Value) -> Answer {
        let news = match kind {
            Kind::Event => {
                let team = payload.get("team_id").and_then(Value::as_str);
                if team.is_some_and(|team| team != self.me.team && !self.teams.contains(team)) {
                    tracing::debug!(team, "an event of another workspace is ignored");
                    return Answer::Taken;
                }
                event::of_event(payload, &self.me)
            }
            Kind::Interaction => event::of_interaction(payload, &self.me),
            Kind::Command => event::of_command(payload, &self.me),
        };
        let life = match &news {
            News::Own { channel, ts } => AdapterMsg::Own { channel: channel.clone(), ts: ts.clone() },
            News::Removed(why) => AdapterMsg::Removed(why),
            News::HeldBack => AdapterMsg::HeldBack,
            _ => AdapterMsg::Heard,
        };
        // An adapter that has died is followed by one that hears for itself.
        let _ = self.adapter.cast(life);
        let trigger = payload.get("trigger_id").and_then(Value::as_str).map(str::to_owned);
        match timeout(PATIENCE, self.act(news, trigger)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Again,
        }
    }

    async fn act(&self, news: News, trigger: Option<String>) -> Answer {
        match news {
            News::Said(said) => self.said(*said).await,
            News::Changed { channel, ts, thread, user, text } => {
                let key = self.key(&channel, &ts);
                let conversation = self.conversation(&channel, thread.as_deref().unwrap_or(&ts));
                let by = RequesterId::new(format!("slack:{user}"));
                self.front.desk.change(Change { key, conversation, by, text }).await;
                Answer::Taken
            }
            News::Pressed { button, user, channel, thread } => {
                let text = self.press(&button, &user, &channel).await;
                self.whisper(&channel, thread.as_deref(), &user, &text);
                Answer::Taken
            }
            News::Asked { said, trigger } => {
                let mut said = *said;
                said.text = asked_about(&said.text);
                self.hand_in(&said, Some(&trigger)).await
            }
            News::Command { user, team, channel, text } => self.command(user, team, channel, text, trigger).await,
            News::Stopped { user, channel, thread } => {
                let target = Target::Conversation(self.conversation(&channel, &thread));
                let by = RequesterId::new(format!("slack:{user}"));
                let stopping = self.front.desk.cancel(target, by).await;
                tracing::info!(channel, ?stopping, "asked to stop by Slack's own means");
                Answer::Taken
            }
            News::Opened { channel, thread } => {
                self.suggest(channel, thread);
                Answer::Taken
            }
            News::Own { .. } | News::Removed(_) | News::HeldBack => Answer::Taken,
            News::Nothing(why) => {
                tracing::debug!(why, "not for Jane");
                Answer::Taken
            }
        }
    }

    async fn said(&self, said: Said) -> Answer {
        let key = self.key(&said.channel, &said.ts);
        if said.is_bare {
            // Its other half has the files.
            for wait in [Duration::ZERO, OTHER_HALF] {
                sleep(wait).await;
                if self.lock(&self.seen).get(&key).is_some() {
                    return Answer::Taken;
                }
            }
        } else {
            self.lock(&self.seen).put(key, ());
        }
        if self.is_for_me(&said).await { self.hand_in(&said, None).await } else { Answer::Taken }
    }

    /// Whether Jane is meant: always where she is alone with somebody, when her name is there, and in threads that she is
    /// part of, unless somebody else is spoken to.
    async fn is_for_me(&self, said: &Said) -> bool {
        if said.is_direct || said.is_mention {
            return true;
        }
        let Some(thread) = &said.thread else { return false };
        if said.is_for_other {
            return false;
        }
        said.thread_by.as_deref() == Some(&self.me.user) || self.is_in(&said.channel, thread).await
    }

    async fn is_in(&self, channel: &str, thread: &str) -> bool {
        let name = thread_name(channel, thread);
        if let Some(known) = self.lock(&self.threads).get(&name) {
            return *known;
        }
        match self.front.keep.get(&name).await {
            Ok(kept) => {
                self.lock(&self.threads).put(name, kept.is_some());
                kept.is_some()
            }
            Err(error) => {
                tracing::warn!(%error, "it can't be told whether a thread is one of Jane's");
                false
            }
        }
    }

    /// Hands a message to the desk. `trigger` makes a key of its own for what was asked about a message.
    async fn hand_in(&self, said: &Said, trigger: Option<&str>) -> Answer {
        let access = &self.front.access;
        match self.people.standing(&self.api, said, &self.me, access, &self.teams).await {
            Ok(Standing::Stranger(why)) => {
                tracing::info!(user = said.user, channel = said.channel, "refused a stranger");
                self.whisper(&said.channel, Some(said.root()), &said.user, why);
                return Answer::Taken;
            }
            Ok(Standing::Known | Standing::Ask) => {}
            Err(error) => {
                tracing::warn!(%error, "it can't be told who wrote a message: Slack is to deliver it again");
                return Answer::Again;
            }
        }
        let key = self.key(&said.channel, &said.ts);
        let inbound = Inbound {
            key: trigger.map_or_else(|| key.clone(), |trigger| format!("{key}#asked-{trigger}")),
            requester: RequesterId::new(format!("slack:{}", said.user)),
            channel: ChannelId::new(format!("slack:{}", said.channel)),
            conversation: self.conversation(&said.channel, said.root()),
            text: said.text.clone(),
            files: said.files.clone(),
            agent: None,
            timeout: None,
            replies: None,
        };
        let (heard, ()) = tokio::join!(self.front.desk.hear(inbound), self.join_thread(said));
        if heard { Answer::Taken } else { Answer::Again }
    }

    /// Notes that Jane is part of the thread, where that decides whether she is meant.
    async fn join_thread(&self, said: &Said) {
        let name = thread_name(&said.channel, said.root());
        let is_noted = said.is_direct || self.lock(&self.threads).get(&name) == Some(&true);
        if is_noted {
            return;
        }
        match self.front.keep.put(&name, "1").await {
            Ok(()) => self.lock(&self.threads).put(name, true),
            // People will have to write her name again.
            Err(error) => tracing::warn!(%error, "it could not be noted that a thread is one of Jane's"),
        }
    }

    async fn press(&self, button: &Button, user: &str, channel: &str) -> String {
        let by = RequesterId::new(format!("slack:{user}"));
        let desk = &self.front.desk;
        match button.action {
            Action::Cancel => match desk.cancel(Target::Job(button.job.clone()), by).await {
                Some(stopping) => stopping.sentence(),
                None => "I can't be reached at the moment: press it again in a few seconds.".into(),
            },
            Action::Retry => desk.again(&button.job, &by).await.sentence(),
            Action::Why => desk.why(&button.job, &by, &ChannelId::new(format!("slack:{channel}"))).await,
        }
    }

    /// A command has no message to answer to, so one is written in its place. Slack does not let commands be used in
    /// threads.
    async fn command(
        &self,
        user: String,
        team: String,
        channel: String,
        text: String,
        trigger: Option<String>,
    ) -> Answer {
        if text.trim().is_empty() {
            return Answer::Say(
                "Write what I should do behind the command, as in `/jane summarise this channel`.".into(),
            );
        }
        let seen = trigger.map(|trigger| format!("command/{trigger}"));
        if seen.as_ref().is_some_and(|seen| self.lock(&self.seen).get(seen).is_some()) {
            return Answer::Taken;
        }
        let shown: String = text.chars().take(2000).collect();
        let args = json!({
            "channel": channel,
            "text": format!("<@{user}> asks: {}", escaped(&shown)),
            "unfurl_links": false,
            "unfurl_media": false,
        });
        let posted: Result<Value, ApiError> = self.api.call(Method::PostMessage, &args).await;
        let ts = match posted.as_ref().map(|posted| posted.get("ts").and_then(Value::as_str)) {
            Ok(Some(ts)) => ts.to_owned(),
            Ok(None) => return Answer::Say("Slack did not say where my message is. Please try again.".into()),
            Err(error @ ApiError::Refused { .. }) => {
                return Answer::Say(format!("I can't write here: {error}."));
            }
            Err(error) => return Answer::Say(format!("That did not work: {error}. Please try again in a moment.")),
        };
        if let Some(seen) = seen {
            self.lock(&self.seen).put(seen, ());
        }
        let said = Said {
            user,
            team: Some(team),
            channel,
            ts,
            thread: None,
            thread_by: None,
            text,
            files: Vec::new(),
            is_direct: false,
            is_mention: true,
            is_for_other: false,
            is_shared: false,
            is_bare: false,
        };
        self.hand_in(&said, None).await
    }

    /// Tells one person something that nobody else sees. That it does not arrive changes nothing.
    fn whisper(&self, channel: &str, thread: Option<&str>, user: &str, text: &str) {
        let args = json!({ "channel": channel, "thread_ts": thread, "user": user, "text": escaped(text) });
        let api = self.api.clone();
        tokio::spawn(async move {
            let told: Result<Value, ApiError> = api.call(Method::PostEphemeral, &args).await;
            if let Err(error) = told {
                tracing::warn!(%error, "somebody could not be told");
            }
        });
    }

    /// Offers something to begin with.
    fn suggest(&self, channel: String, thread: Option<String>) {
        let prompt = |title: &str, message: &str| json!({ "title": title, "message": message });
        let prompts = [
            prompt("What can you do?", "What can you do, and what can't you?"),
            prompt("Write a program", "Write a small program that "),
            prompt("Look into a file", "I'll attach a file. Tell me what is in it and what stands out."),
        ];
        let args = json!({ "channel_id": channel, "thread_ts": thread, "prompts": prompts });
        let api = self.api.clone();
        tokio::spawn(async move {
            let done: Result<Value, ApiError> = api.call(Method::SuggestedPrompts, &args).await;
            if let Err(error) = done {
                tracing::debug!(%error, "prompts could not be suggested");
            }
        });
    }

    fn key(&self, channel: &str, ts: &str) -> String {
        format!("slack:{}/{channel}/{ts}", self.me.team)
    }

    fn conversation(&self, channel: &str, root: &str) -> ConversationId {
        ConversationId::new(self.key(channel, root))
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        // Nothing under these locks leaves anything half-written.
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn thread_name(channel: &str, thread: &str) -> String {
    format!("thread/{channel}/{thread}")
}

/// The prompt of the shortcut.
fn asked_about(text: &str) -> String {
    match text.trim().is_empty() {
        true => "Have a look at the message that this thread began with, and help with it.".into(),
        false => format!("Have a look at this message, and help with it:\n\n{text}"),
    }
}
