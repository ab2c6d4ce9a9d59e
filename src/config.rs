//! Every setting, typed and documented, read from the environment and an optional TOML file and validated together.
//!
//! Parts: `keys` (the list of all settings, from which README's table is printed), `source` (where texts come from,
//! and errors), `value` (how one text is read), `load` (the whole, and the rules between settings), `vault` (where keys
//! are kept, and what may be used), `reach` (what a sprite reaches), [`network`] (lists of hosts, and what is risky in
//! them), `show` (the effective settings, without secrets).

mod keys;
mod load;
mod network;
mod reach;
mod show;
mod source;
#[cfg(test)]
mod tests;
mod value;
mod vault;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;

use crate::job::{ChannelId, RequesterId};

pub use keys::reference;
pub use network::{Preset, risks};
pub use source::{ConfigError, ConfigErrors, Origin};

/// The service's settings. Secrets are [`SecretString`]s, which print as `[REDACTED]`.
#[derive(Clone, Debug)]
pub struct Config {
    pub sprites: SpritesConfig,
    pub pool: PoolConfig,
    pub agents: AgentsConfig,
    pub access: AccessConfig,
    pub vault: VaultConfig,
    pub network: NetworkConfig,
    pub limits: UsageLimits,
    /// Every secret that is set, with its setting's name: what no answer may hold.
    pub secrets: Vec<(&'static str, SecretString)>,
    /// `DISCORD_TOKEN` set: the Discord adapter.
    pub discord: Option<DiscordConfig>,
    /// `SLACK_BOT_TOKEN` set: the Slack front end.
    pub slack: Option<SlackConfig>,
    /// `DEBOUNCE`: messages of one person in a chat that follow each other faster become one prompt. Default 1.5 s.
    pub debounce: Duration,
    /// `DRAIN_TIMEOUT`: how long running jobs may take once the service is told to stop. Default 1 minute.
    pub drain_timeout: Duration,
    /// `ADMIN_LISTEN`: where a service that serves chats shows how it is. Default `127.0.0.1:8470`.
    pub admin_listen: SocketAddr,
    /// `DATA_DIR`: journal, embedded host's sprites, installed agents. Default `$XDG_STATE_HOME/janebot`.
    pub data_dir: PathBuf,
    /// `DATABASE_URL`: only `sqlite://PATH`. Default `DATA_DIR/journal.sqlite`.
    pub journal_path: PathBuf,
}

impl Config {
    /// The hosts that sprites may reach by these settings, beside what their agents need. Channels' own are not among
    /// them.
    pub fn extra_hosts(&self) -> BTreeSet<String> {
        let presets = self.network.presets.iter().flat_map(|preset| preset.hosts());
        self.pool.extra_hosts.iter().cloned().chain(presets.map(|host| (*host).to_owned())).collect()
    }

    /// What is risky in these settings, in sentences for the operator.
    pub fn warnings(&self) -> Vec<String> {
        let hosts = self.extra_hosts();
        let mut found = risks(hosts.iter().chain(self.network.channels.values().flatten()).map(String::as_str));
        if self.vault.keys == KeysAt::Sprite && (self.agents.amp.is_some() || self.agents.claude.is_some()) {
            found.push(KEY_IN_SPRITE.into());
        }
        found
    }
}

/// What is said at start and in each receipt where a sprite has the key.
pub const KEY_IN_SPRITE: &str =
    "the agent's API key is in the sprite while it runs, where the agent's programs can read it";

/// Which machines to use.
#[derive(Clone, Debug)]
pub enum SpritesConfig {
    /// `SPRITES_TOKEN` is set: the Sprites cloud, or what `SPRITES_API_URL` names.
    Remote { url: String, token: SecretString },
    /// No token: the embedded host on this machine.
    Embedded(HostConfig),
}

/// The embedded host's settings.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Where the sprites live; mode 0700.
    pub state_dir: PathBuf,
    /// `HOST_LISTEN`: loopback only. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// `HOST_ROOTFS`: a root directory to use instead of this machine's own system directories.
    pub rootfs: Option<PathBuf>,
    /// `ALLOW_LOCAL_EXECUTION=true` turns isolation off.
    pub isolation: Isolation,
    /// Names that only sandboxes resolve, each leading to one address of the operator's choice.
    pub grants: Vec<Grant>,
    pub limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Kernel namespaces, seccomp, own root: or refuse to start.
    Full,
    /// None at all, by explicit opt-in: programs run as this user on this machine.
    Off,
}

/// A synthetic name in the sandbox that leads to an address which the operator named. Needs a policy rule as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// As in `model.janebot.internal`; reached on port 80 inside.
    pub name: String,
    /// Host and port to dial, as the operator wrote it; resolved at each connection.
    pub target: String,
}

/// What one sprite may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory of all its processes together.
    pub memory: u64,
    pub processes: u64,
    /// Bytes of disk above the base.
    pub disk: u64,
    pub inodes: u64,
    pub open_files: u64,
    /// Bytes of each output stream of one exec that are passed on; the rest is dropped.
    pub output: u64,
    /// Execs at a time.
    pub execs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            memory: 2048 * MIB,
            processes: 512,
            disk: 4096 * MIB,
            inodes: 400_000,
            open_files: 4096,
            output: 64 * MIB,
            execs: 64,
        }
    }
}

#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// `RUNNERS`, 1 to 64. Default 2.
    pub runners: usize,
    /// `RUNNER_PREFIX`: lower-case letters, digits, hyphens. Default `jane-runner`.
    pub prefix: String,
    /// `EXEC_TIMEOUT`: wall time of one agent run. Default 10 minutes.
    pub run_timeout: Duration,
    /// `QUEUE_TIMEOUT`: how long a job waits for a runner. Default 15 minutes.
    pub queue_timeout: Duration,
    /// `MAX_QUEUE`: jobs waiting at a time. Default 1,000.
    pub max_queue: usize,
    pub sharing: SharingConfig,
    /// `EXTRA_ALLOWED_HOSTS`: names that sandboxes may reach beside the agents' own.
    pub extra_hosts: BTreeSet<String>,
}

/// How the runners are shared between requesters and channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharingConfig {
    /// `MAX_QUEUED_PER_USER`: jobs of one requester that wait at a time. Default 20.
    pub max_queued_per_user: usize,
    /// `MAX_RUNNING_PER_USER`: jobs of one requester that run at a time. Default one less than `RUNNERS`, at least 1.
    pub max_running_per_user: usize,
    /// `MAX_QUEUED_PER_CHANNEL`: jobs of one channel that wait at a time. Default 200.
    pub max_queued_per_channel: usize,
    /// `MAX_RUNNING_PER_CHANNEL`: jobs of one channel that run at a time. Default `RUNNERS`.
    pub max_running_per_channel: usize,
    /// `URGENT_USER_IDS`, comma-separated platform ids.
    pub urgent_users: BTreeSet<String>,
    /// `CHANNEL_WEIGHTS`: jobs that a channel is given in one turn; 1 for a channel that is not named.
    pub channel_weights: BTreeMap<String, usize>,
}

impl SharingConfig {
    /// No limits, nobody preferred.
    pub fn unlimited() -> Self {
        Self {
            max_queued_per_user: usize::MAX,
            max_running_per_user: usize::MAX,
            max_queued_per_channel: usize::MAX,
            max_running_per_channel: usize::MAX,
            urgent_users: BTreeSet::new(),
            channel_weights: BTreeMap::new(),
        }
    }

    pub fn is_urgent(&self, requester: &RequesterId) -> bool {
        let id = requester.as_str();
        self.urgent_users.contains(id) || self.urgent_users.contains(platform_id(id))
    }

    pub fn weight(&self, channel: &ChannelId) -> usize {
        let id = channel.as_str();
        let weight = self.channel_weights.get(id).or_else(|| self.channel_weights.get(platform_id(id)));
        weight.copied().unwrap_or(1).max(1)
    }
}

/// The id as its platform writes it: `123` of `discord:123`.
pub fn platform_id(id: &str) -> &str {
    id.split_once(':').map_or(id, |(_, id)| id)
}

#[derive(Clone, Debug)]
pub struct AgentsConfig {
    /// `AGENT`: the profile used unless a prompt names another. Default: the first with a key, else `shell`.
    pub default: AgentKind,
    /// `AMP_API_KEY` set: the amp profile.
    pub amp: Option<AmpConfig>,
    /// `ANTHROPIC_API_KEY` set: the claude profile.
    pub claude: Option<ClaudeConfig>,
    /// `AGENT_DISABLED_TOOLS`: tools that no agent may use, by the agent's own names for them.
    pub disabled_tools: BTreeSet<String>,
}

impl AgentsConfig {
    /// The agents that runners have, in a fixed order: those with a key, and `shell` always.
    pub fn installed(&self) -> Vec<AgentKind> {
        let has = |kind: &AgentKind| match kind {
            AgentKind::Shell => true,
            AgentKind::Amp => self.amp.is_some(),
            AgentKind::Claude => self.claude.is_some(),
        };
        AgentKind::ALL.into_iter().filter(has).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AgentKind {
    Shell,
    Amp,
    Claude,
}

impl AgentKind {
    pub const ALL: [Self; 3] = [Self::Shell, Self::Amp, Self::Claude];

    /// The agent with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Amp => "amp",
            Self::Claude => "claude",
        }
    }
}

#[derive(Clone, Debug)]
pub struct AmpConfig {
    pub key: SecretString,
    /// `AMP_URL`: origin of the Amp server, as whoever holds the key reaches it. Default `https://ampcode.com`.
    pub url: String,
    /// `AGENT_MODE`: low, medium, high, ultra; the server decides what a word means. Default medium.
    pub mode: String,
    /// `AMP_VERSION`: the npm package's version.
    pub version: String,
    /// `AMP_PATH`: use this binary instead of the npm package.
    pub path: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct ClaudeConfig {
    pub key: SecretString,
    /// `ANTHROPIC_BASE_URL`, like [`AmpConfig::url`]. Default `https://api.anthropic.com`.
    pub url: String,
    /// `CLAUDE_MODEL`: passed on when set.
    pub model: Option<String>,
    /// `CLAUDE_VERSION`: the npm package's version.
    pub version: String,
    /// `CLAUDE_PATH`: use this binary instead of the npm package.
    pub path: Option<PathBuf>,
}

/// Where the agents' keys are while a job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultConfig {
    /// `VAULT_LISTEN`. Default 127.0.0.1 with a free port, or 8320 where somebody else must know it.
    pub listen: SocketAddr,
    pub keys: KeysAt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysAt {
    /// In the vault, which sprites of this machine reach by a name that only they resolve.
    Vault,
    /// In the vault, which programs without walls reach as it is.
    Loopback,
    /// In the vault, which sprites elsewhere reach at `PUBLIC_URL`.
    Public(String),
    /// In the sprite, by explicit opt-in: `ALLOW_KEY_IN_SPRITE=true`.
    Sprite,
}

impl VaultConfig {
    /// Where sprites reach the vault, when it listens at `bound`; nowhere, when the keys are with them.
    pub fn url(&self, bound: SocketAddr) -> Option<String> {
        match &self.keys {
            KeysAt::Vault => Some(format!("http://{}", reach::VAULT_NAME)),
            KeysAt::Loopback => Some(format!("http://{bound}")),
            KeysAt::Public(url) => Some(url.clone()),
            KeysAt::Sprite => None,
        }
    }

    /// The name that the network policy must allow for it. An address is reached only where nothing enforces a policy.
    pub fn host(&self) -> Option<String> {
        match &self.keys {
            KeysAt::Vault => Some(reach::VAULT_NAME.to_owned()),
            KeysAt::Public(url) => reach::host_name(url),
            KeysAt::Loopback | KeysAt::Sprite => None,
        }
    }
}

/// What sprites may reach beside what their agents need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `NETWORK_PRESETS`: lists of hosts by name.
    pub presets: BTreeSet<Preset>,
    /// `CHANNEL_ALLOWED_HOSTS`: names that jobs of one channel may reach.
    pub channels: BTreeMap<String, BTreeSet<String>>,
}

impl NetworkConfig {
    /// What the jobs of a channel may reach beside all others'.
    pub fn of_channel(&self, channel: &ChannelId) -> Option<&BTreeSet<String>> {
        self.channels.get(channel.as_str()).or_else(|| self.channels.get(platform_id(channel.as_str())))
    }
}

/// What jobs may use. `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageLimits {
    /// `MAX_TURNS_PER_JOB`: calls of the model.
    pub turns_per_job: Option<u64>,
    /// `MAX_TOKENS_PER_JOB`: input and output together.
    pub tokens_per_job: Option<u64>,
    /// `MAX_JOBS_PER_USER_DAY`: jobs that one person may start in 24 hours.
    pub jobs_per_day: Option<u64>,
    /// `MAX_TOKENS_PER_USER_DAY`
    pub tokens_per_day: Option<u64>,
}

/// The Discord bot.
#[derive(Clone, Debug)]
pub struct DiscordConfig {
    pub token: SecretString,
    /// `DISCORD_GUILD_IDS`: servers in which Jane listens; empty means all.
    pub guilds: BTreeSet<String>,
    /// `DISCORD_ROLE_IDS`: roles whose members may ask.
    pub roles: BTreeSet<String>,
    /// `DISCORD_BOT_IDS`: other bots that may ask, by mention.
    pub bots: BTreeSet<String>,
    /// `DISCORD_MESSAGE_CONTENT`: whether the privileged intent is asked for. Default no.
    pub message_content: bool,
    /// `DISCORD_FOLLOW_UPS`: whether messages in threads that Jane opened need no mention. Default yes.
    pub follow_ups: bool,
    pub canary: Option<CanaryConfig>,
    /// `DISCORD_GATEWAY_URL`: in place of Discord's own.
    pub gateway_url: Option<String>,
    /// `DISCORD_API_PROXY`: host and port of a plain HTTP server on this machine, in place of Discord's API.
    pub api_proxy: Option<String>,
}

/// The self-test of hearing: a marked message must come back through the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanaryConfig {
    /// `DISCORD_CANARY_CHANNEL`.
    pub channel: String,
    /// `DISCORD_CANARY_EVERY`. Default 5 minutes.
    pub every: Duration,
}

/// The Slack front end. At least one of the two ways in is set.
#[derive(Clone, Debug)]
pub struct SlackConfig {
    /// `SLACK_BOT_TOKEN`.
    pub bot_token: SecretString,
    /// `SLACK_APP_TOKEN`: events come over Socket Mode.
    pub app_token: Option<SecretString>,
    /// `SLACK_SIGNING_SECRET`: events come over HTTP.
    pub signing_secret: Option<SecretString>,
    /// `SLACK_API_URL`. Default `https://slack.com/api`.
    pub api_url: String,
    /// `SLACK_CONNECTIONS`, 1 to 10: Socket Mode connections held open. Default 2.
    pub connections: usize,
    /// `SLACK_SILENCE`: a connection from which nothing came for so long is dead. Default 30 s.
    pub silence: Duration,
    /// `SLACK_TEAM_IDS`: workspaces, beside the one that the bot belongs to, whose people count as its own.
    pub teams: BTreeSet<String>,
    /// `SLACK_CANARY_CHANNEL`: where the way of events is tried out.
    pub canary: Option<String>,
}

/// Who may ask. Chat platforms only; the terminal belongs to whoever runs the process.
#[derive(Clone, Debug, Default)]
pub struct AccessConfig {
    /// `ALLOWED_USER_IDS`, comma-separated platform ids.
    pub users: BTreeSet<String>,
    /// `ALLOWED_CHANNEL_IDS`, comma-separated platform ids.
    pub channels: BTreeSet<String>,
    /// `ADMIN_USER_IDS`: may stop anybody's job.
    pub admins: BTreeSet<String>,
    /// `ALLOW_EVERYONE=true`: the two lists are not asked.
    pub everyone: bool,
    /// Whom adapters vouch for, as for the members of a role. Not a setting.
    pub vouched: Vouched,
}

/// Requesters whom an adapter vouches for in a channel at present: what allows them is known to their platform only.
/// Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Vouched(Arc<Mutex<BTreeSet<(RequesterId, ChannelId)>>>);

impl Vouched {
    /// People in channels that are remembered. Of more, some are forgotten until they write again.
    const MAX: usize = 50_000;

    /// To be told anew with each message: what allowed somebody may be gone.
    pub fn set(&self, requester: &RequesterId, channel: &ChannelId, vouched: bool) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = (requester.clone(), channel.clone());
        if !vouched {
            list.remove(&entry);
            return;
        }
        list.insert(entry);
        if list.len() > Self::MAX {
            list.pop_first();
        }
    }

    pub fn has(&self, requester: &RequesterId, channel: &ChannelId) -> bool {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !list.is_empty() && list.contains(&(requester.clone(), channel.clone()))
    }
}
