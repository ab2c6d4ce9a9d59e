//! Where things are, as texts: message keys and conversation ids of Discord. Pure.
//!
//! A thread that is opened from a message has the message's id. So the conversation that a message begins has a name
//! before its thread exists.

use std::fmt;

use twilight_model::id::Id;

use super::wire::{ChannelNo, GuildNo, MessageNo, UserNo};
use crate::chat::message_of;
use crate::job::{ChannelId, ConversationId, RequesterId};

/// A conversation: `discord:<guild or @me>/<parent channel>/<thread>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `None` for a direct message.
    pub guild: Option<GuildNo>,
    /// The channel that permissions are about.
    pub parent: ChannelNo,
    /// The thread; in a direct message the same as `parent`.
    pub thread: ChannelNo,
}

/// One message: `discord:<guild or @me>/<channel>/<message>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    pub guild: Option<GuildNo>,
    pub channel: ChannelNo,
    pub message: MessageNo,
}

impl Place {
    pub fn direct(channel: ChannelNo) -> Self {
        Self { guild: None, parent: channel, thread: channel }
    }

    /// The conversation of a thread that is to be opened from this message.
    pub fn begun_by(guild: GuildNo, channel: ChannelNo, message: MessageNo) -> Self {
        Self { guild: Some(guild), parent: channel, thread: message.cast() }
    }

    pub fn parse(conversation: &ConversationId) -> Option<Self> {
        let (guild, parent, thread) = parts(conversation.as_str())?;
        Some(Self { guild, parent: Id::new_checked(parent)?, thread: Id::new_checked(thread)? })
    }

    pub fn conversation(self) -> ConversationId {
        ConversationId::new(self.to_string())
    }

    pub fn channel(self) -> ChannelId {
        ChannelId::new(format!("discord:{}", self.parent))
    }

    /// The message that the thread was opened from, if it was.
    pub fn opener(self) -> MessageNo {
        self.thread.cast()
    }

    pub fn is_direct(self) -> bool {
        self.parent == self.thread
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.guild, self.parent.get(), self.thread.get())
    }
}

impl Spot {
    /// Of a message key, or of a retry's.
    pub fn parse(key: &str) -> Option<Self> {
        let (guild, channel, message) = parts(message_of(key))?;
        Some(Self { guild, channel: Id::new_checked(channel)?, message: Id::new_checked(message)? })
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.guild, self.channel.get(), self.message.get())
    }
}

pub fn requester(user: UserNo) -> RequesterId {
    RequesterId::new(format!("discord:{user}"))
}

fn parts(text: &str) -> Option<(Option<GuildNo>, u64, u64)> {
    let mut parts = text.strip_prefix("discord:")?.split('/');
    let guild = match parts.next()? {
        "@me" => None,
        guild => Some(guild.parse().ok()?),
    };
    let (first, second) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((guild, first, second))
}

fn write(f: &mut fmt::Formatter<'_>, guild: Option<GuildNo>, first: u64, second: u64) -> fmt::Result {
    match guild {
        Some(guild) => write!(f, "discord:{guild}/{first}/{second}"),
        None => write!(f, "discord:@me/{first}/{second}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let place = Place::begun_by(Id::new(1), Id::new(2), Id::new(3));
        assert_eq!(place.conversation().as_str(), "discord:1/2/3");
        assert_eq!(Place::parse(&place.conversation()), Some(place));
        assert_eq!(place.channel().as_str(), "discord:2");
        let direct = Place::direct(Id::new(7));
        assert_eq!(direct.conversation().as_str(), "discord:@me/7/7");
        assert_eq!(Place::parse(&direct.conversation()), Some(direct));
        assert!(direct.is_direct() && !place.is_direct());
        let spot = Spot { guild: Some(Id::new(1)), channel: Id::new(2), message: Id::new(3) };
        assert_eq!(Spot::parse(&spot.to_string()), Some(spot));
        assert_eq!(Spot::parse("discord:1/2/3#again-01job"), Some(spot));
    }

    #[test]
    fn what_is_no_name_of_discord_is_none() {
        for text in
            ["", "slack:1/2/3", "discord:1/2", "discord:1/2/3/4", "discord:x/2/3", "discord:1/0/3", "discord:1/2/-3"]
        {
            assert_eq!(Place::parse(&ConversationId::new(text)), None, "{text}");
            assert_eq!(Spot::parse(text), None, "{text}");
        }
    }
}
