//! What is right and wrong with the set-up of the Discord bot, in words, for `janebot doctor`. Only reads.

use twilight_http::routing::Route;
use twilight_model::id::Id;

use super::atlas::kind;
use super::basics::Basics;
use super::permissions::{granted, missing};
use super::rest::{Rest, RestError};
use super::wire::{Channel, ChannelNo, GuildNo, Member, Role, UserNo};
use crate::config::{AccessConfig, DiscordConfig, platform_id};
use crate::world::World;

/// Fewer new sessions than this before the day is over deserve a look: something begins too many.
const FEW_SESSIONS: u32 = 100;

pub use crate::chat::finding::Finding;
use Finding::{Bad, Good, Odd};

/// Everything there is to find out. The last finding is the invite link, where Discord told who the bot is.
pub async fn examine(config: &DiscordConfig, access: &AccessConfig, world: World) -> Vec<Finding> {
    let rest = match Rest::new(config, world) {
        Ok(rest) => rest,
        Err(error) => return vec![Bad(format!("this machine can't make encrypted connections ({error})"))],
    };
    let basics = match Basics::ask(&rest).await {
        Ok(basics) => basics,
        Err(error) => return vec![Bad(error.to_string())],
    };
    let mut findings = vec![Good(format!(
        "the token is {}'s (user {}, application {})",
        basics.me.username, basics.me.id, basics.application.id
    ))];
    findings.push(reading(config, &basics));
    findings.push(sessions(&basics));
    if !access.everyone && access.users.is_empty() && access.channels.is_empty() && config.roles.is_empty() {
        let what = "nobody may ask: set ALLOWED_USER_IDS, ALLOWED_CHANNEL_IDS or DISCORD_ROLE_IDS, or \
                    ALLOW_EVERYONE=true";
        findings.push(Bad(what.into()));
    }
    for channel in channels(config, access) {
        findings.push(channel_finding(&rest, config, basics.me.id, channel).await);
    }
    findings.push(Good(format!("the invite link is {}", basics.invite())));
    findings
}

fn reading(config: &DiscordConfig, basics: &Basics) -> Finding {
    match (config.message_content, basics.may_read()) {
        (true, true) => Good("the bot may read messages that do not mention it".into()),
        (true, false) => Bad(
            "DISCORD_MESSAGE_CONTENT=true needs \"Message Content Intent\", which is off for this bot: switch it on in \
             the developer portal (Bot, Privileged Gateway Intents)"
                .into(),
        ),
        (false, _) => {
            Good("the bot asks only for messages that mention it; with DISCORD_MESSAGE_CONTENT=true its threads need no \
                  mention"
                .into())
        }
    }
}

fn sessions(basics: &Basics) -> Finding {
    let limit = &basics.gateway.session_start_limit;
    let hours = limit.reset_after.div_ceil(60 * 60 * 1000);
    let said = format!("{} of {} new sessions are left for the next {hours} h", limit.remaining, limit.total);
    if limit.remaining < FEW_SESSIONS { Odd(said) } else { Good(said) }
}

/// Channels of Discord that are named in the settings.
fn channels(config: &DiscordConfig, access: &AccessConfig) -> Vec<ChannelNo> {
    let canary = config.canary.iter().map(|canary| canary.channel.as_str());
    // The list holds ids of other platforms, too.
    let named = access.channels.iter().filter(|id| !id.contains(':') || id.starts_with("discord:"));
    let named = named.map(|id| platform_id(id)).chain(canary);
    let mut channels: Vec<_> = named.filter_map(|id| id.parse().ok().and_then(Id::new_checked)).collect();
    channels.sort_unstable();
    channels.dedup();
    channels
}

async fn channel_finding(rest: &Rest, config: &DiscordConfig, me: UserNo, channel: ChannelNo) -> Finding {
    let bits = match permissions(rest, me, channel).await {
        Ok(Some((guild, _))) if !config.guilds.is_empty() && !config.guilds.contains(&guild.to_string()) => {
            return Bad(format!("channel {channel} is in server {guild}, which DISCORD_GUILD_IDS does not name"));
        }
        Ok(Some((_, bits))) => bits,
        Ok(None) => return Odd(format!("channel {channel} is a direct message")),
        Err(error) => return Bad(format!("channel {channel}: {error}")),
    };
    match missing(bits) {
        none if none.is_empty() => Good(format!("channel {channel}: everything that is needed is allowed")),
        names => Bad(format!("channel {channel}: the bot lacks {}", names.join(", "))),
    }
}

/// What the bot may do in a channel; `None` outside of servers.
async fn permissions(rest: &Rest, me: UserNo, channel: ChannelNo) -> Result<Option<(GuildNo, u64)>, RestError> {
    let mut found: Channel = rest.get(&Route::GetChannel { channel_id: channel.get() }).await?;
    if let (true, Some(parent)) = (kind::THREADS.contains(&found.kind), found.parent_id) {
        found = rest.get(&Route::GetChannel { channel_id: parent.get() }).await?;
    }
    let Some(guild) = found.guild_id else { return Ok(None) };
    let roles: Vec<Role> = rest.get(&Route::GetGuildRoles { guild_id: guild.get() }).await?;
    let member: Member = rest.get(&Route::GetMember { guild_id: guild.get(), user_id: me.get() }).await?;
    Ok(Some((guild, granted(guild.get(), me, &member.roles, &roles, &found.permission_overwrites))))
}
