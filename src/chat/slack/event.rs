//! What Slack tells, as what it means for Jane. Pure: no clock, no request, no state.
//!
//! Payloads are read by pointer, not into structs: Slack adds fields and leaves others out as it likes, and a field that
//! has another type than it used to must cost no more than itself. What is not understood is [`News::Nothing`] with the
//! reason, never an error.

use serde_json::Value;

use super::words;
use crate::chat::{Attachment, Button};

/// Who Jane is here, as `auth.test` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    pub team: String,
    pub user: String,
    pub bot: String,
}

/// What one delivery means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody wrote where Jane listens.
    Said(Box<Said>),
    /// A message was edited (`text`) or deleted.
    Changed { channel: String, ts: String, thread: Option<String>, user: String, text: Option<String> },
    /// A button of ours was pressed.
    Pressed { button: Button, user: String, channel: String, thread: Option<String> },
    /// The shortcut "Ask Jane about this", on a message.
    Asked { said: Box<Said>, trigger: String },
    /// The slash command.
    Command { user: String, team: String, channel: String, text: String },
    /// Slack's own Stop button, or a ❌ on the message that began a conversation.
    Stopped { user: String, channel: String, thread: String },
    /// Somebody opened the conversation with Jane; legacy assistants have a thread.
    Opened { channel: String, thread: Option<String> },
    /// A message of our own has come back to us.
    Own { channel: String, ts: String },
    /// The app was taken out of the workspace, or its token was.
    Removed(&'static str),
    /// Slack holds events back, because there are too many.
    HeldBack,
    /// Not for Jane.
    Nothing(&'static str),
}

/// A message by a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub user: String,
    /// The workspace that its author belongs to, if it is told.
    pub team: Option<String>,
    pub channel: String,
    pub ts: String,
    /// The message that the thread hangs on, when this is not that one.
    pub thread: Option<String>,
    /// Who wrote the message that the thread hangs on, if it is told.
    pub thread_by: Option<String>,
    /// As typed, without Slack's marks and without Jane's own name.
    pub text: String,
    pub files: Vec<Attachment>,
    pub is_direct: bool,
    /// Jane's name is in it.
    pub is_mention: bool,
    /// It begins with somebody else's name.
    pub is_for_other: bool,
    /// The channel is shared with another organisation.
    pub is_shared: bool,
    /// It came as `app_mention`, which is also sent where Jane gets no other messages, and lacks files.
    pub is_bare: bool,
}

impl Said {
    /// The message that the conversation hangs on.
    pub fn root(&self) -> &str {
        self.thread.as_deref().unwrap_or(&self.ts)
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// An id of Slack's: letters and digits. Anything else would not do as part of a key.
fn id(value: &Value, pointer: &str) -> Option<String> {
    let id = text(value, pointer)?;
    (id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())).then(|| id.to_owned())
}

/// A message's timestamp, which is its name.
fn ts(value: &Value, pointer: &str) -> Option<String> {
    let ts = text(value, pointer)?;
    (ts.len() <= 32 && ts.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')).then(|| ts.to_owned())
}

/// The meaning of an `events_api` payload, which is the body of a request over HTTP.
pub fn of_event(payload: &Value, me: &Me) -> News {
    if text(payload, "/type") == Some("app_rate_limited") {
        return News::HeldBack;
    }
    let Some(event) = payload.get("event") else { return News::Nothing("it has no event") };
    let is_shared = payload.get("is_ext_shared_channel").and_then(Value::as_bool).unwrap_or(false);
    match text(event, "/type").unwrap_or_default() {
        "app_mention" => of_message(event, me, is_shared, true),
        "message" => match text(event, "/subtype") {
            None | Some("file_share" | "thread_broadcast" | "me_message") => of_message(event, me, is_shared, false),
            Some("bot_message") if is_own(event, me) => own(event),
            Some("message_changed") => of_change(event, me),
            Some("message_deleted") => of_deletion(event, me),
            Some(_) => News::Nothing("a message of a kind that nobody typed"),
        },
        "agent_session_stopped" => match (id(event, "/user"), id(event, "/channel"), ts(event, "/thread_ts")) {
            (Some(user), Some(channel), Some(thread)) => News::Stopped { user, channel, thread },
            _ => News::Nothing("a stop that does not say whose or where"),
        },
        "reaction_added" => of_reaction(event, me),
        "app_home_opened" if text(event, "/tab") == Some("messages") => match id(event, "/channel") {
            Some(channel) => News::Opened { channel, thread: None },
            None => News::Nothing("a conversation that does not say where"),
        },
        "assistant_thread_started" => {
            let at = "/assistant_thread";
            match (id(event, &format!("{at}/channel_id")), ts(event, &format!("{at}/thread_ts"))) {
                (Some(channel), thread @ Some(_)) => News::Opened { channel, thread },
                _ => News::Nothing("a conversation that does not say where"),
            }
        }
        "tokens_revoked" => News::Removed("its token was revoked"),
        "app_uninstalled" => News::Removed("it was uninstalled"),
        _ => News::Nothing("an event that Jane has no use for"),
    }
}

fn is_own(message: &Value, me: &Me) -> bool {
    text(message, "/user") == Some(&me.user) || text(message, "/bot_id") == Some(&me.bot)
}

fn own(event: &Value) -> News {
    match (id(event, "/channel"), ts(event, "/ts")) {
        (Some(channel), Some(ts)) => News::Own { channel, ts },
        _ => News::Nothing("a message of our own without a place"),
    }
}

fn of_message(event: &Value, me: &Me, is_shared: bool, is_bare: bool) -> News {
    // Before all else: two programs that answer each other never end.
    if is_own(event, me) {
        return own(event);
    }
    if event.get("bot_id").is_some_and(|bot| !bot.is_null()) {
        return News::Nothing("another program wrote it");
    }
    match said(event, &id(event, "/channel"), me, is_shared, is_bare) {
        Some(said) => News::Said(Box::new(said)),
        None => News::Nothing("a message without author or place"),
    }
}

fn said(message: &Value, channel: &Option<String>, me: &Me, is_shared: bool, is_bare: bool) -> Option<Said> {
    let (user, channel, ts) = (id(message, "/user")?, channel.clone()?, self::ts(message, "/ts")?);
    let raw = text(message, "/text").unwrap_or_default();
    let typed = words::of_person(raw, &me.user);
    // A root in the agent's container says that it is its own thread.
    let thread = self::ts(message, "/thread_ts").filter(|thread| *thread != ts);
    let files = message.get("files").and_then(Value::as_array);
    Some(Said {
        team: ["/user_team", "/source_team", "/team"].iter().find_map(|at| id(message, at)),
        thread_by: id(message, "/parent_user_id"),
        is_direct: text(message, "/channel_type") == Some("im"),
        is_mention: is_bare || typed.names_me,
        is_for_other: typed.begins_with_other,
        is_bare: is_bare && files.is_none(),
        files: files.into_iter().flatten().filter_map(attachment).collect(),
        text: typed.text,
        user,
        channel,
        ts,
        thread,
        is_shared,
    })
}

/// A file, as far as it is in the message. One that is held back (Slack Connect) has no address.
fn attachment(file: &Value) -> Option<Attachment> {
    if text(file, "/mode") == Some("tombstone") {
        return None;
    }
    let name = text(file, "/name").or_else(|| text(file, "/title")).unwrap_or("file").to_owned();
    let size = file.get("size").and_then(Value::as_u64).unwrap_or(0);
    let url = text(file, "/url_private_download").or_else(|| text(file, "/url_private"));
    let held_back = || id(file, "/id").map(|id| format!("slack-file:{id}"));
    Some(Attachment { name, size, url: url.map(str::to_owned).or_else(held_back)? })
}

fn of_change(event: &Value, me: &Me) -> News {
    let Some(message) = event.get("message") else { return News::Nothing("an edit without its message") };
    if is_own(message, me) {
        return News::Nothing("our own edit");
    }
    let (Some(channel), Some(ts)) = (id(event, "/channel"), ts(message, "/ts")) else {
        return News::Nothing("an edit without a place");
    };
    let before = event.get("previous_message");
    let thread = self::ts(message, "/thread_ts").filter(|thread| *thread != ts);
    if text(message, "/subtype") == Some("tombstone") {
        // A deleted message that has replies.
        let Some(user) = before.and_then(|before| id(before, "/user")) else {
            return News::Nothing("a deletion without an author");
        };
        return News::Changed { channel, ts, thread, user, text: None };
    }
    let raw = |message: &Value| text(message, "/text").unwrap_or_default().to_owned();
    if before.is_some_and(|before| raw(before) == raw(message)) {
        return News::Nothing("an edit that changed no word");
    }
    match id(message, "/user") {
        Some(user) => {
            let text = Some(words::of_person(&raw(message), &me.user).text);
            News::Changed { channel, ts, thread, user, text }
        }
        None => News::Nothing("an edit without an author"),
    }
}

fn of_deletion(event: &Value, me: &Me) -> News {
    let before = event.get("previous_message").unwrap_or(&Value::Null);
    if is_own(before, me) {
        return News::Nothing("a message of our own was deleted");
    }
    match (id(event, "/channel"), ts(event, "/deleted_ts"), id(before, "/user")) {
        (Some(channel), Some(ts), Some(user)) => {
            let thread = self::ts(before, "/thread_ts").filter(|thread| *thread != ts);
            News::Changed { channel, ts, thread, user, text: None }
        }
        _ => News::Nothing("a deletion that does not say of what"),
    }
}

fn of_reaction(event: &Value, me: &Me) -> News {
    if text(event, "/reaction") != Some("x") || text(event, "/user") == Some(&me.user) {
        return News::Nothing("a reaction that says nothing to Jane");
    }
    match (id(event, "/user"), id(event, "/item/channel"), ts(event, "/item/ts")) {
        (Some(user), Some(channel), Some(thread)) => News::Stopped { user, channel, thread },
        _ => News::Nothing("a reaction that does not say to what"),
    }
}

/// The meaning of an `interactive` payload.
pub fn of_interaction(payload: &Value, me: &Me) -> News {
    match text(payload, "/type").unwrap_or_default() {
        "block_actions" => {
            let action = payload.pointer("/actions/0").unwrap_or(&Value::Null);
            let Some(button) = text(action, "/value").and_then(Button::parse) else {
                return News::Nothing("a button that is not ours");
            };
            let at = |pointer, other| id(payload, pointer).or_else(|| id(payload, other));
            match (id(payload, "/user/id"), at("/container/channel_id", "/channel/id")) {
                (Some(user), Some(channel)) => {
                    let thread = ["/message/thread_ts", "/container/thread_ts"].iter().find_map(|at| ts(payload, at));
                    News::Pressed { button, user, channel, thread }
                }
                _ => News::Nothing("a button that does not say by whom or where"),
            }
        }
        "message_action" => {
            let message = payload.get("message").unwrap_or(&Value::Null);
            let channel = id(payload, "/channel/id");
            let (Some(user), Some(trigger)) = (id(payload, "/user/id"), text(payload, "/trigger_id")) else {
                return News::Nothing("a shortcut that does not say by whom");
            };
            // The message may be anybody's, also a program's; who asks is who used the shortcut.
            let mut asked = message.clone();
            if let Some(fields) = asked.as_object_mut() {
                fields.insert("user".into(), user.into());
                for field in ["user_team", "source_team"] {
                    fields.remove(field);
                }
                fields.insert("team".into(), payload.pointer("/user/team_id").cloned().unwrap_or(Value::Null));
            }
            match said(&asked, &channel, me, false, false) {
                Some(said) => News::Asked { said: Box::new(said), trigger: trigger.to_owned() },
                None => News::Nothing("a shortcut on no message"),
            }
        }
        _ => News::Nothing("an interaction that Jane has no use for"),
    }
}

/// The meaning of a `slash_commands` payload. Its text is escaped like a message's.
pub fn of_command(payload: &Value, me: &Me) -> News {
    match (id(payload, "/user_id"), id(payload, "/channel_id"), id(payload, "/team_id")) {
        (Some(user), Some(channel), Some(team)) => {
            let text = words::of_person(text(payload, "/text").unwrap_or_default(), &me.user).text;
            News::Command { user, team, channel, text }
        }
        _ => News::Nothing("a command that does not say by whom or where"),
    }
}

#[cfg(test)]
mod tests;
