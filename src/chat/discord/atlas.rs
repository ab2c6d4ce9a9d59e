//! What is known of servers, channels and threads: enough to tell whom a message is for. Pure.
//!
//! Filled from the gateway's events. What is not here (after a restart that resumed the session, say) is looked up once.

use std::collections::BTreeMap;

use super::wire::{Channel, ChannelNo, GuildCreate, GuildNo, RoleNo, UserNo};

/// Channels that are remembered; of more, the oldest are forgotten and looked up again when they are heard of.
const MAX_CHANNELS: usize = 50_000;

/// Discord's numbers for kinds of channel.
pub mod kind {
    pub const TEXT: u64 = 0;
    pub const DIRECT: u64 = 1;
    pub const ANNOUNCEMENT: u64 = 5;
    pub const THREADS: [u64; 3] = [10, 11, 12];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub guild: Option<GuildNo>,
    pub ground: Ground,
}

/// What kind of channel it is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Threads can be opened from its messages.
    Channel,
    /// No threads, as in the text of a voice channel.
    Threadless,
    Thread {
        parent: ChannelNo,
        owner: Option<UserNo>,
    },
}

#[derive(Debug, Default)]
pub struct Atlas {
    channels: BTreeMap<ChannelNo, Known>,
    /// The role that Discord made for us in each server: mentioning it is mentioning us.
    roles: BTreeMap<GuildNo, RoleNo>,
}

impl Atlas {
    pub fn guild(&mut self, guild: &GuildCreate, me: Option<UserNo>) {
        for channel in guild.channels.iter().chain(&guild.threads) {
            self.channel(channel, Some(guild.id));
        }
        let ours = |tags: &super::wire::RoleTags| tags.bot_id.is_some() && tags.bot_id == me;
        if let Some(role) = guild.roles.iter().find(|role| role.tags.as_ref().is_some_and(ours)) {
            self.roles.insert(guild.id, role.id);
        }
    }

    /// A channel or thread, as it is now. The server is in the event that brought it, where it is not in itself.
    pub fn channel(&mut self, channel: &Channel, guild: Option<GuildNo>) {
        let ground = match (channel.kind, channel.parent_id) {
            (number, Some(parent)) if kind::THREADS.contains(&number) => {
                Ground::Thread { parent, owner: channel.owner_id }
            }
            (kind::TEXT | kind::ANNOUNCEMENT, _) => Ground::Channel,
            (_, _) => Ground::Threadless,
        };
        let guild = if channel.kind == kind::DIRECT { None } else { channel.guild_id.or(guild) };
        self.channels.insert(channel.id, Known { guild, ground });
        while self.channels.len() > MAX_CHANNELS {
            self.channels.pop_first();
        }
    }

    pub fn forget(&mut self, channel: ChannelNo) {
        self.channels.remove(&channel);
    }

    pub fn get(&self, channel: ChannelNo) -> Option<Known> {
        self.channels.get(&channel).copied()
    }

    pub fn role(&self, guild: GuildNo) -> Option<RoleNo> {
        self.roles.get(&guild).copied()
    }
}
