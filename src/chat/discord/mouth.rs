//! Writing to Discord: the outbox's requests as Discord's.
//!
//! A conversation's thread is opened when the first message is to be written in it. Where that can't be, or a thread
//! can't be written in any more, answers are replies in the channel: a person who asked gets to know what came of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use twilight_http::request::channel::reaction::RequestReactionType;
use twilight_http::routing::Route;

use super::place::{Place, Spot, requester};
use super::rest::{Body, Rest, RestError, no_pings};
use super::sign::{self, MAX_TEXT, is_signed, nonce, plain, signed, title, unsigned};
use super::threads::{Thread, Threads};
use super::wire::{ChannelNo, Message, MessageNo, UserNo};
use super::{Shared, names};
use crate::chat::outbox;
use crate::chat::{Action, Attachment, Button, Capabilities, Chat, Said, SendError, Sent};
use crate::job::ConversationId;
use crate::journal::outgoing::Mark;

/// Discord shows that somebody types for ten seconds.
const TYPING_EVERY: Duration = Duration::from_secs(8);

/// Minutes without a message after which Discord puts a thread away: a day, its own default.
const ARCHIVE_AFTER: u64 = 1440;

/// Flags of messages: no previews of links, which tell the linked server that somebody reads.
pub(super) const SUPPRESS_EMBEDS: u64 = 1 << 2;
/// No notification: for progress, of which nobody wants to be told.
pub(super) const SUPPRESS_NOTIFICATIONS: u64 = 1 << 12;

/// Most messages that Discord gives at once, and how many times it is asked for the history of a conversation.
const PAGE: u16 = 100;
const MAX_PAGES: usize = 5;

/// Discord's number of the message that stands for the one that a thread was opened from.
const THREAD_STARTER: u64 = 21;

/// Longest file that is offered to Discord: ten MiB where a server has no boosts. More is worth a try up to this.
const MAX_FILE: usize = 24 * 1024 * 1024;

/// The way out. Clones are the same one.
#[derive(Clone)]
pub struct Mouth {
    pub(super) shared: Arc<Shared>,
}

/// Where a message goes.
#[derive(Clone, Copy)]
struct Way {
    channel: ChannelNo,
    /// The message that it replies to.
    reply_to: Option<MessageNo>,
}

impl Mouth {
    fn rest(&self) -> &Rest {
        &self.shared.rest
    }

    fn threads(&self) -> &Threads {
        &self.shared.threads
    }

    /// Writes a message where the conversation is.
    async fn write(&self, place: Place, message: &Value, file: Option<(&str, &Bytes)>) -> Result<Made, RestError> {
        let known = self.threads().get(place.thread);
        let way = match &known {
            Some(Thread::Gone) => return Err(refused("the thread was deleted")),
            Some(Thread::InChannel) => in_channel(place),
            Some(Thread::ToOpen { title }) => self.open(place, title).await?,
            Some(Thread::Open) | None => in_thread(place),
        };
        match self.create(way, message, file).await {
            // After a restart it is not known whether the thread was opened.
            Err(error) if error.code() == 10003 && known.is_none() && !place.is_direct() => {
                let Some(opener) = self.opener(place).await? else { return Err(error) };
                let way = self.open(place, &title(&names::strip(&opener.content))).await?;
                self.create(way, message, file).await
            }
            Err(error) if is_shut(&error) && way.reply_to.is_none() && !place.is_direct() => {
                // Of a thread that began without a message nothing is told outside of it.
                if self.opener(place).await?.is_none() {
                    return Err(error);
                }
                tracing::warn!(%place, %error, "the thread can't be written in: answering in its channel");
                self.threads().set(place.thread, Thread::InChannel);
                self.create(in_channel(place), message, file).await
            }
            result => result,
        }
    }

    /// Opens the conversation's thread, and says where to write.
    async fn open(&self, place: Place, title: &str) -> Result<Way, RestError> {
        let route = Route::CreateThreadFromMessage { channel_id: place.parent.get(), message_id: place.opener().get() };
        let wish = json!({"name": title, "auto_archive_duration": ARCHIVE_AFTER});
        match self.rest().send(&route, Body::Json(wish)).await {
            Ok(_) => {}
            Err(error) if error.code() == 160_004 => {}
            Err(error @ RestError::Refused { .. }) if !error.is_token_rejected() && !is_missing(&error) => {
                tracing::warn!(%place, %error, "no thread can be opened: answering in the channel");
                self.threads().set(place.thread, Thread::InChannel);
                return Ok(in_channel(place));
            }
            Err(error) => return Err(error),
        }
        self.threads().set(place.thread, Thread::Open);
        Ok(in_thread(place))
    }

    /// The message that began the conversation, if one did.
    async fn opener(&self, place: Place) -> Result<Option<Message>, RestError> {
        let route = Route::GetMessage { channel_id: place.parent.get(), message_id: place.opener().get() };
        match self.rest().get(&route).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, way: Way, message: &Value, file: Option<(&str, &Bytes)>) -> Result<Made, RestError> {
        let mut json = message.clone();
        if let Some(reply_to) = way.reply_to {
            json["message_reference"] = json!({"message_id": reply_to, "fail_if_not_exists": false});
        }
        let body = match file {
            None => Body::Json(json),
            Some((name, bytes)) => Body::File { json, name: name.to_owned(), bytes: bytes.clone() },
        };
        let made: Message = self.rest().call(&Route::CreateMessage { channel_id: way.channel.get() }, body).await?;
        Ok(Made { channel: way.channel, message: made.id })
    }

    /// Where the conversation's messages are, without opening anything.
    fn present(&self, place: Place) -> ChannelNo {
        match self.threads().get(place.thread) {
            Some(Thread::InChannel) => place.parent,
            Some(Thread::ToOpen { .. } | Thread::Open | Thread::Gone) | None => place.thread,
        }
    }

    async fn messages(&self, channel: ChannelNo, before: Option<MessageNo>) -> Result<Vec<Message>, RestError> {
        let route = Route::GetMessages {
            channel_id: channel.get(),
            after: None,
            around: None,
            before: before.map(MessageNo::get),
            limit: Some(PAGE),
        };
        self.rest().get(&route).await
    }
}

/// A message of ours: its name is `<channel>/<message>`, since it need not be where the conversation is by now.
#[derive(Clone, Copy)]
struct Made {
    channel: ChannelNo,
    message: MessageNo,
}

impl Chat for Mouth {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            edit: true,
            react: true,
            upload: true,
            max_message_chars: MAX_TEXT,
            typing_every: Some(TYPING_EVERY),
        }
    }

    async fn post(&self, to: &ConversationId, key: &str, text: &str, buttons: &[Button]) -> Sent<String> {
        let place = place(to)?;
        let is_progress = outbox::is_progress(key);
        let flags = SUPPRESS_EMBEDS | if is_progress { SUPPRESS_NOTIFICATIONS } else { 0 };
        let message = json!({
            "content": signed(text, key),
            "nonce": nonce(key),
            "enforce_nonce": true,
            "allowed_mentions": no_pings(),
            "flags": flags,
            "components": components(buttons),
        });
        Ok(self.write(place, &message, None).await?.name())
    }

    async fn edit(&self, to: &ConversationId, message: &str, text: &str, buttons: &[Button]) -> Sent<()> {
        let (channel, message) = named(message, to)?;
        let route = Route::UpdateMessage { channel_id: channel.get(), message_id: message.get() };
        let json = json!({
            "content": plain(text, MAX_TEXT),
            "allowed_mentions": no_pings(),
            "flags": SUPPRESS_EMBEDS,
            "components": components(buttons),
        });
        self.rest().send(&route, Body::Json(json)).await?;
        Ok(())
    }

    async fn react(&self, _to: &ConversationId, message_key: &str, mark: Mark, shown: bool) -> Sent<()> {
        let Some(spot) = Spot::parse(message_key) else {
            return Err(SendError::Refused(format!("{message_key} is no message of Discord")));
        };
        let emoji = RequestReactionType::Unicode { name: emoji(mark) };
        let (channel_id, message_id) = (spot.channel.get(), spot.message.get());
        let route = if shown {
            Route::CreateReaction { channel_id, emoji: &emoji, message_id }
        } else {
            Route::DeleteReactionCurrentUser { channel_id, emoji: &emoji, message_id }
        };
        match self.rest().send(&route, Body::Nothing).await {
            Ok(_) => Ok(()),
            Err(error) if !shown && is_missing(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn upload(&self, to: &ConversationId, key: &str, name: &str, bytes: Bytes) -> Sent<String> {
        let place = place(to)?;
        let json = |text: &str| {
            json!({
                "content": signed(text, key),
                "nonce": nonce(key),
                "enforce_nonce": true,
                "allowed_mentions": no_pings(),
                "flags": SUPPRESS_EMBEDS,
            })
        };
        let name = names::file(name);
        let mib = bytes.len() as f64 / (1024.0 * 1024.0);
        let instead = json(&format!("`{name}` ({mib:.1} MiB) is too large for Discord, so it is not here."));
        if bytes.len() > MAX_FILE {
            return Ok(self.write(place, &instead, None).await?.name());
        }
        let mut message = json(&format!("`{name}`"));
        message["attachments"] = json!([{"id": 0, "filename": name}]);
        match self.write(place, &message, Some((&name, &bytes))).await {
            Ok(made) => Ok(made.name()),
            Err(RestError::Refused { status: 413, .. } | RestError::Refused { code: 40005, .. }) => {
                Ok(self.write(place, &instead, None).await?.name())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn find(&self, to: &ConversationId, key: &str) -> Sent<Option<String>> {
        let place = place(to)?;
        let mut channels = vec![self.present(place)];
        // Whether a message went to the channel instead is not known after a restart.
        if !place.is_direct() && channels[0] != place.parent {
            channels.push(place.parent);
        }
        let me = self.shared.me();
        for channel in channels {
            let messages = match self.messages(channel, None).await {
                Ok(messages) => messages,
                Err(error) if is_missing(&error) || error.code() == 50001 => continue,
                Err(error) => return Err(error.into()),
            };
            let ours = |message: &&Message| me.is_none_or(|me| message.author.id == me) && message.author.bot;
            let is_it = |message: &&Message| {
                is_signed(&message.content, key) || message.nonce.as_ref().is_some_and(|n| n == &json!(nonce(key)))
            };
            if let Some(found) = messages.iter().filter(ours).find(is_it) {
                return Ok(Some(Made { channel, message: found.id }.name()));
            }
        }
        Ok(None)
    }

    async fn typing(&self, to: &ConversationId) -> Sent<()> {
        let place = place(to)?;
        let channel = match self.threads().get(place.thread) {
            Some(Thread::Gone) => return Ok(()),
            // Where whoever asked still looks.
            Some(Thread::ToOpen { .. }) => place.parent,
            Some(Thread::Open | Thread::InChannel) | None => self.present(place),
        };
        self.rest().send(&Route::CreateTypingTrigger { channel_id: channel.get() }, Body::Nothing).await?;
        Ok(())
    }

    async fn fetch(&self, file: &Attachment, limit: u64) -> Sent<Bytes> {
        self.rest().file(&file.url, limit).await
    }

    async fn history(&self, to: &ConversationId, before: &str, budget: usize) -> Sent<Option<Vec<Said>>> {
        let (place, spot) = (place(to)?, Spot::parse(before));
        let Some(spot) = spot.filter(|spot| spot.channel == place.thread && !place.is_direct()) else {
            // It begins the conversation, or all of it is with Jane.
            return Ok(None);
        };
        let me = self.shared.me();
        let (mut said, mut bytes, mut from) = (Vec::new(), 0, spot.message);
        for _ in 0..MAX_PAGES {
            let page = self.messages(place.thread, Some(from)).await?;
            let is_last = page.len() < usize::from(PAGE);
            for message in page {
                from = message.id;
                let Some(words) = words(&message, me) else { continue };
                bytes += words.text.len();
                if bytes > budget {
                    said.reverse();
                    return Ok(Some(said));
                }
                said.push(words);
            }
            if is_last {
                break;
            }
        }
        said.reverse();
        Ok(Some(said))
    }
}

impl Made {
    fn name(self) -> String {
        format!("{}/{}", self.channel, self.message)
    }
}

/// What a message says in the history; `None` for one that is no part of the talk.
fn words(message: &Message, me: Option<UserNo>) -> Option<Said> {
    let (author, text) = match (message.kind, &message.referenced_message) {
        (0 | 19, _) => (message.author.id, &message.content),
        (THREAD_STARTER, Some(starter)) => (starter.author.id, &starter.content),
        (_, _) => return None,
    };
    // Progress is no part of it.
    if message.flags.unwrap_or(0) & SUPPRESS_NOTIFICATIONS != 0 && Some(message.author.id) == me {
        return None;
    }
    let text = unsigned(&names::strip(text)).trim().to_owned();
    let from = (Some(author) != me).then(|| requester(author));
    (!text.is_empty()).then_some(Said { from, text })
}

fn place(to: &ConversationId) -> Sent<Place> {
    Place::parse(to).ok_or_else(|| SendError::Refused(format!("{to} is no conversation of Discord")))
}

/// A message of ours by its name.
fn named(name: &str, to: &ConversationId) -> Sent<(ChannelNo, MessageNo)> {
    let parsed =
        name.split_once('/').and_then(|(channel, message)| Some((channel.parse().ok()?, message.parse().ok()?)));
    parsed.ok_or_else(|| SendError::Refused(format!("{name} is no message in {to}")))
}

fn in_thread(place: Place) -> Way {
    Way { channel: place.thread, reply_to: None }
}

fn in_channel(place: Place) -> Way {
    Way { channel: place.parent, reply_to: Some(place.opener()) }
}

/// Whether a thread can't be written in though it is there.
fn is_shut(error: &RestError) -> bool {
    matches!(error.code(), 50001 | 50013 | 50083 | 160_005)
}

/// Whether what was asked about is not there (any more).
fn is_missing(error: &RestError) -> bool {
    matches!(error, RestError::Refused { status: 404, .. })
}

fn refused(why: &str) -> RestError {
    RestError::Refused { status: 404, code: 10003, message: why.to_owned() }
}

fn emoji(mark: Mark) -> &'static str {
    match mark {
        Mark::Heard => "👀",
        Mark::Answered => "✅",
        Mark::Failed => "❌",
        Mark::Cancelled => "🛑",
        Mark::Merged => "🔗",
    }
}

/// One row of buttons; none takes away those that are there.
pub(super) fn components(buttons: &[Button]) -> Value {
    /// Discord's numbers: a row, a button, and how a button looks.
    const ROW: u64 = 1;
    const BUTTON: u64 = 2;
    let style = |action| match action {
        Action::Retry => 1,
        Action::Why => 2,
        Action::Cancel => 4,
    };
    let button = |button: &Button| {
        json!({
            "type": BUTTON, "style": style(button.action), "label": button.action.label(), "custom_id": button.id(),
        })
    };
    match buttons {
        [] => json!([]),
        buttons => json!([{"type": ROW, "components": buttons.iter().map(button).collect::<Vec<_>>()}]),
    }
}

const _: () = assert!(sign::MAX_TEXT < sign::MAX_CONTENT);
