//! What is read of Discord's objects, and no more: a field that is missing or new loses no event. Plain data.
//!
//! The same types read the gateway's events and the answers to requests. Fields that Discord leaves out in some
//! contexts (guild and member of a fetched message, for example) are optional here.

use serde::Deserialize;
use twilight_model::id::Id;
use twilight_model::id::marker::{
    ApplicationMarker, ChannelMarker, GuildMarker, InteractionMarker, MessageMarker, RoleMarker, UserMarker,
};

pub type ApplicationNo = Id<ApplicationMarker>;
pub type ChannelNo = Id<ChannelMarker>;
pub type GuildNo = Id<GuildMarker>;
pub type InteractionNo = Id<InteractionMarker>;
pub type MessageNo = Id<MessageMarker>;
pub type RoleNo = Id<RoleMarker>;
pub type UserNo = Id<UserMarker>;

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct User {
    pub id: UserNo,
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub bot: bool,
    #[serde(default)]
    pub system: bool,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Member {
    #[serde(default)]
    pub roles: Vec<RoleNo>,
    /// Only in interactions.
    #[serde(default)]
    pub user: Option<User>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct File {
    #[serde(default)]
    pub filename: String,
    #[serde(default)]
    pub size: u64,
    pub url: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Message {
    pub id: MessageNo,
    pub channel_id: ChannelNo,
    pub author: User,
    #[serde(default)]
    pub guild_id: Option<GuildNo>,
    #[serde(default)]
    pub member: Option<Member>,
    #[serde(default)]
    pub webhook_id: Option<serde::de::IgnoredAny>,
    #[serde(default, rename = "type")]
    pub kind: u64,
    #[serde(default)]
    pub content: String,
    #[serde(default)]
    pub mentions: Vec<Mention>,
    #[serde(default)]
    pub mention_roles: Vec<RoleNo>,
    #[serde(default)]
    pub attachments: Vec<File>,
    #[serde(default)]
    pub referenced_message: Option<Box<Referenced>>,
    #[serde(default)]
    pub edited_timestamp: Option<String>,
    #[serde(default)]
    pub flags: Option<u64>,
    #[serde(default)]
    pub nonce: Option<serde_json::Value>,
    #[serde(default)]
    pub components: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Mention {
    pub id: UserNo,
}

/// The message that another one replies to.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Referenced {
    pub author: User,
    #[serde(default)]
    pub content: String,
}

/// A channel or a thread.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Channel {
    pub id: ChannelNo,
    #[serde(default, rename = "type")]
    pub kind: u64,
    #[serde(default)]
    pub guild_id: Option<GuildNo>,
    #[serde(default)]
    pub parent_id: Option<ChannelNo>,
    /// Who opened the thread.
    #[serde(default)]
    pub owner_id: Option<UserNo>,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub permission_overwrites: Vec<Overwrite>,
}

/// What a channel grants to or takes from a role (`kind` 0) or a member (1).
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Overwrite {
    pub id: String,
    #[serde(default, rename = "type")]
    pub kind: u64,
    #[serde(default)]
    pub allow: String,
    #[serde(default)]
    pub deny: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Role {
    pub id: RoleNo,
    /// Permission bits, as a number in a text.
    #[serde(default)]
    pub permissions: String,
    #[serde(default)]
    pub tags: Option<RoleTags>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct RoleTags {
    /// The bot that the role was made for.
    #[serde(default)]
    pub bot_id: Option<UserNo>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct GuildCreate {
    pub id: GuildNo,
    #[serde(default)]
    pub roles: Vec<Role>,
    #[serde(default)]
    pub channels: Vec<Channel>,
    #[serde(default)]
    pub threads: Vec<Channel>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Ready {
    pub user: User,
    pub application: Named<ApplicationNo>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Named<I> {
    pub id: I,
}

/// A message that was deleted.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Deleted {
    pub id: MessageNo,
    pub channel_id: ChannelNo,
    #[serde(default)]
    pub guild_id: Option<GuildNo>,
}

/// Many messages that were deleted at once.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct DeletedBulk {
    pub ids: Vec<MessageNo>,
    pub channel_id: ChannelNo,
    #[serde(default)]
    pub guild_id: Option<GuildNo>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct ThreadListSync {
    pub guild_id: GuildNo,
    #[serde(default)]
    pub threads: Vec<Channel>,
}

/// A slash command or a click.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Interaction {
    pub id: InteractionNo,
    pub application_id: ApplicationNo,
    pub token: String,
    #[serde(rename = "type")]
    pub kind: u64,
    #[serde(default)]
    pub guild_id: Option<GuildNo>,
    #[serde(default)]
    pub channel_id: Option<ChannelNo>,
    #[serde(default)]
    pub channel: Option<Channel>,
    #[serde(default)]
    pub member: Option<Member>,
    #[serde(default)]
    pub user: Option<User>,
    #[serde(default)]
    pub data: Option<InteractionData>,
}

impl Interaction {
    pub fn author(&self) -> Option<&User> {
        self.member.as_ref().and_then(|member| member.user.as_ref()).or(self.user.as_ref())
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct InteractionData {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub custom_id: String,
    #[serde(default)]
    pub options: Vec<CommandOption>,
    #[serde(default)]
    pub resolved: Option<Resolved>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Resolved {
    #[serde(default)]
    pub attachments: std::collections::BTreeMap<String, File>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct CommandOption {
    pub name: String,
    #[serde(default)]
    pub value: Option<serde_json::Value>,
    #[serde(default)]
    pub options: Vec<CommandOption>,
}

/// The answer to `GET /gateway/bot`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct GatewayBot {
    pub shards: u32,
    pub session_start_limit: StartLimit,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct StartLimit {
    pub total: u32,
    pub remaining: u32,
    /// Milliseconds.
    pub reset_after: u64,
    pub max_concurrency: u16,
}

/// The answer to `GET /applications/@me`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Application {
    pub id: ApplicationNo,
    #[serde(default)]
    pub flags: u64,
}
