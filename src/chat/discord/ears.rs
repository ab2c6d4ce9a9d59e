//! Whom a message is for, and what it asks: the rules of listening. Pure.
//!
//! Silence is the rule: bots, webhooks, system messages and people who talk to each other are not answered. Whether
//! somebody may ask is the desk's to say, except for what only Discord knows: servers and roles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::atlas::{Atlas, Ground};
use super::place::{Place, Spot, requester};
use super::sign::unsigned;
use super::wire::{ChannelNo, File, Message, UserNo};
use crate::chat::Change;
use crate::config::DiscordConfig;

/// Discord's numbers for what people write: all others are system messages (joins, pins, new threads).
const WRITTEN: u64 = 0;
const REPLY: u64 = 19;

/// Messages of other bots in a channel that are listened to within [`LOOP_WINDOW`]. Two bots that answer each other
/// never stop by themselves.
const MAX_OF_BOTS: usize = 5;
const LOOP_WINDOW: Duration = Duration::from_secs(60);
/// How long other bots are not heard in a channel in which they were too many.
const LOOP_REST: Duration = Duration::from_secs(600);

/// The prompt of a message that is nothing but files, since an empty one is none.
const FILES_ONLY: &str = "See the attached files.";

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub me: UserNo,
    pub guilds: BTreeSet<String>,
    pub roles: BTreeSet<String>,
    pub bots: BTreeSet<String>,
    /// Whether messages in our threads need no mention.
    pub follow_ups: bool,
}

/// What a message is to us.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Ask(Box<Ask>),
    /// It may be for us: that depends on its channel, which is to be looked up.
    Unknown,
    Ignored(Why),
}

/// A message that is for us.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    pub spot: Spot,
    pub place: Place,
    pub user: UserNo,
    /// Whether a role of the user's allows it.
    pub vouched: bool,
    pub of_bot: bool,
    /// Whether the conversation's thread is to be opened from this message.
    pub opens: bool,
    pub text: String,
    pub files: Vec<File>,
}

/// Why a message is not answered, as in the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    Own,
    Bot,
    Webhook,
    System,
    OtherServer,
    NotAddressed,
}

impl Why {
    pub fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Bot => "bot",
            Self::Webhook => "webhook",
            Self::System => "system",
            Self::OtherServer => "other_server",
            Self::NotAddressed => "not_addressed",
        }
    }
}

impl Rules {
    pub fn new(config: &DiscordConfig, me: UserNo) -> Self {
        Self {
            me,
            guilds: config.guilds.clone(),
            roles: config.roles.clone(),
            bots: config.bots.clone(),
            follow_ups: config.follow_ups && config.message_content,
        }
    }

    /// Decides on a message that was written.
    pub fn hear(&self, message: &Message, atlas: &Atlas) -> Heard {
        if let Err(why) = self.is_persons(message) {
            return Heard::Ignored(why);
        }
        let named = message.mentions.iter().any(|mention| mention.id == self.me);
        if message.author.bot && !named {
            return Heard::Ignored(Why::Bot);
        }
        let ask = |place, opens| {
            Heard::Ask(Box::new(Ask {
                spot: Spot { guild: message.guild_id, channel: message.channel_id, message: message.id },
                place,
                user: message.author.id,
                vouched: self.vouches(message.member.as_ref().map_or(&[], |member| &member.roles)),
                of_bot: message.author.bot,
                opens,
                text: self.text(message, atlas),
                files: message.attachments.clone(),
            }))
        };
        let Some(guild) = message.guild_id else {
            return ask(Place::direct(message.channel_id), false);
        };
        let role = atlas.role(guild);
        let replies_to = message.referenced_message.as_ref().map(|to| to.author.id);
        let addressed = named
            || message.mention_roles.iter().any(|mentioned| Some(*mentioned) == role)
            || (message.kind == REPLY && replies_to == Some(self.me));
        // People talk to each other in our threads, too.
        let to_others = !message.mentions.is_empty() || replies_to.is_some_and(|to| to != message.author.id);
        let may_follow_up =
            self.follow_ups && !to_others && !(message.content.trim().is_empty() && message.attachments.is_empty());
        if !addressed && !may_follow_up {
            return Heard::Ignored(Why::NotAddressed);
        }
        let Some(known) = atlas.get(message.channel_id) else { return Heard::Unknown };
        match known.ground {
            Ground::Thread { parent, owner } if addressed || owner == Some(self.me) => {
                ask(Place { guild: Some(guild), parent, thread: message.channel_id }, false)
            }
            Ground::Channel if addressed => ask(Place::begun_by(guild, message.channel_id, message.id), true),
            Ground::Threadless if addressed => {
                ask(Place { guild: Some(guild), parent: message.channel_id, thread: message.channel_id }, false)
            }
            Ground::Thread { .. } | Ground::Channel | Ground::Threadless => Heard::Ignored(Why::NotAddressed),
        }
    }

    /// Decides on a message that was changed. Discord tells of a change, too, when it has added the preview of a link.
    pub fn changed(&self, message: &Message, atlas: &Atlas) -> Option<Change> {
        message.edited_timestamp.as_ref()?;
        self.is_persons(message).ok()?;
        let place = self.place_of(message.guild_id, message.channel_id, message.id, atlas)?;
        let spot = Spot { guild: message.guild_id, channel: message.channel_id, message: message.id };
        Some(Change {
            key: spot.to_string(),
            conversation: place.conversation(),
            by: requester(message.author.id),
            text: Some(self.text(message, atlas)),
        })
    }

    /// The conversation that a message belongs to, if it belongs to any.
    pub fn place_of(
        &self,
        guild: Option<super::wire::GuildNo>,
        channel: ChannelNo,
        message: super::wire::MessageNo,
        atlas: &Atlas,
    ) -> Option<Place> {
        let Some(guild) = guild else { return Some(Place::direct(channel)) };
        Some(match atlas.get(channel)?.ground {
            Ground::Thread { parent, .. } => Place { guild: Some(guild), parent, thread: channel },
            Ground::Channel => Place::begun_by(guild, channel, message),
            Ground::Threadless => Place { guild: Some(guild), parent: channel, thread: channel },
        })
    }

    /// Whether one of these roles allows to ask.
    pub fn vouches(&self, roles: &[super::wire::RoleNo]) -> bool {
        !self.roles.is_empty() && roles.iter().any(|role| self.roles.contains(&role.to_string()))
    }

    /// Whether Jane listens in this server at all.
    pub fn listens_in(&self, guild: Option<super::wire::GuildNo>) -> bool {
        guild.is_none_or(|guild| self.guilds.is_empty() || self.guilds.contains(&guild.to_string()))
    }

    fn is_persons(&self, message: &Message) -> Result<(), Why> {
        if message.author.id == self.me {
            return Err(Why::Own);
        }
        if message.webhook_id.is_some() {
            return Err(Why::Webhook);
        }
        if message.author.system || !matches!(message.kind, WRITTEN | REPLY) {
            return Err(Why::System);
        }
        if message.author.bot && !self.bots.contains(&message.author.id.to_string()) {
            return Err(Why::Bot);
        }
        if !self.listens_in(message.guild_id) {
            return Err(Why::OtherServer);
        }
        Ok(())
    }

    /// The prompt: without our name, and without what can't be in a text.
    fn text(&self, message: &Message, atlas: &Atlas) -> String {
        let mut text = message.content.replace('\0', "");
        for name in [format!("<@{}>", self.me), format!("<@!{}>", self.me)] {
            text = text.replace(&name, "");
        }
        if let Some(role) = message.guild_id.and_then(|guild| atlas.role(guild)) {
            text = text.replace(&format!("<@&{role}>"), "");
        }
        let text = unsigned(text.trim()).trim();
        if text.is_empty() && !message.attachments.is_empty() {
            return FILES_ONLY.into();
        }
        text.to_owned()
    }
}

/// Notices when bots talk each other into a loop.
#[derive(Debug, Default)]
pub struct LoopGuard(BTreeMap<ChannelNo, Talk>);

#[derive(Debug, Default)]
struct Talk {
    heard: VecDeque<Instant>,
    deaf_until: Option<Instant>,
}

impl LoopGuard {
    /// Whether a bot's message in this channel is still to be listened to.
    pub fn allows(&mut self, channel: ChannelNo, now: Instant) -> bool {
        self.0.retain(|_, talk| {
            talk.deaf_until.is_some_and(|until| now < until)
                || talk.heard.back().is_some_and(|last| now.duration_since(*last) < LOOP_WINDOW)
        });
        let talk = self.0.entry(channel).or_default();
        if talk.deaf_until.is_some_and(|until| now < until) {
            return false;
        }
        talk.heard.retain(|at| now.duration_since(*at) < LOOP_WINDOW);
        talk.heard.push_back(now);
        if talk.heard.len() <= MAX_OF_BOTS {
            return true;
        }
        talk.deaf_until = Some(now + LOOP_REST);
        false
    }
}

#[cfg(test)]
mod tests;
