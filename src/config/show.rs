//! The effective settings, one a line, for start-up logs and `doctor`. Of secrets it says only whether they are set.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::{Config, DiscordConfig, Isolation, KeysAt, Preset, SpritesConfig};

impl Config {
    /// Name and value of each setting in use.
    pub fn effective(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        let mut line = |name, value: String| lines.push((name, value));
        match &self.sprites {
            SpritesConfig::Remote { url, .. } => {
                line("SPRITES_TOKEN", set());
                line("SPRITES_API_URL", url.clone());
            }
            SpritesConfig::Embedded(host) => {
                line("SPRITES_TOKEN", "not set: sprites run on this machine".into());
                line(
                    "ALLOW_LOCAL_EXECUTION",
                    match host.isolation {
                        Isolation::Full => "false".into(),
                        Isolation::Off => "true: prompts run without isolation, as this user".into(),
                    },
                );
                line("HOST_LISTEN", host.listen.to_string());
                line("HOST_STATE_DIR", path(&host.state_dir));
                line("HOST_ROOTFS", host.rootfs.as_deref().map_or_else(|| "this machine's system".into(), path));
                line("HOST_MEMORY", bytes(host.limits.memory));
                line("HOST_DISK", bytes(host.limits.disk));
                line("HOST_PROCESSES", host.limits.processes.to_string());
            }
        }
        line("RUNNERS", self.pool.runners.to_string());
        line("RUNNER_PREFIX", self.pool.prefix.clone());
        line("AGENT", self.agents.default.name().into());
        match &self.agents.amp {
            None => line("AMP_API_KEY", "not set: amp is off".into()),
            Some(amp) => {
                line("AMP_API_KEY", set());
                line("AMP_URL", amp.url.clone());
                line("AGENT_MODE", amp.mode.clone());
                match &amp.path {
                    Some(program) => line("AMP_PATH", path(program)),
                    None => line("AMP_VERSION", amp.version.clone()),
                }
            }
        }
        match &self.agents.claude {
            None => line("ANTHROPIC_API_KEY", "not set: claude is off".into()),
            Some(claude) => {
                line("ANTHROPIC_API_KEY", set());
                line("ANTHROPIC_BASE_URL", claude.url.clone());
                line("CLAUDE_MODEL", claude.model.clone().unwrap_or_else(|| "claude's own choice".into()));
                match &claude.path {
                    Some(program) => line("CLAUDE_PATH", path(program)),
                    None => line("CLAUDE_VERSION", claude.version.clone()),
                }
            }
        }
        line("AGENT_DISABLED_TOOLS", list(&self.agents.disabled_tools));
        line("VAULT_LISTEN", self.vault.listen.to_string());
        match &self.vault.keys {
            KeysAt::Public(url) => line("PUBLIC_URL", url.clone()),
            KeysAt::Vault | KeysAt::Loopback | KeysAt::Sprite => line("PUBLIC_URL", "not in use".into()),
        }
        line(
            "ALLOW_KEY_IN_SPRITE",
            match &self.vault.keys {
                KeysAt::Sprite => "true: programs in sprites can read the agents' keys".into(),
                KeysAt::Vault | KeysAt::Loopback | KeysAt::Public(_) => "not in use: the vault keeps the keys".into(),
            },
        );
        let limits = &self.limits;
        line("MAX_TURNS_PER_JOB", limit(limits.turns_per_job));
        line("MAX_TOKENS_PER_JOB", limit(limits.tokens_per_job));
        line("MAX_JOBS_PER_USER_DAY", limit(limits.jobs_per_day));
        line("MAX_TOKENS_PER_USER_DAY", limit(limits.tokens_per_day));
        line("EXEC_TIMEOUT", time(self.pool.run_timeout));
        line("QUEUE_TIMEOUT", time(self.pool.queue_timeout));
        line("MAX_QUEUE", self.pool.max_queue.to_string());
        let sharing = &self.pool.sharing;
        line("MAX_QUEUED_PER_USER", sharing.max_queued_per_user.to_string());
        line("MAX_RUNNING_PER_USER", sharing.max_running_per_user.to_string());
        line("MAX_QUEUED_PER_CHANNEL", sharing.max_queued_per_channel.to_string());
        line("MAX_RUNNING_PER_CHANNEL", sharing.max_running_per_channel.to_string());
        line("CHANNEL_WEIGHTS", weights(&sharing.channel_weights));
        line("URGENT_USER_IDS", list(&sharing.urgent_users));
        line("DEBOUNCE", time(self.debounce));
        line("DRAIN_TIMEOUT", time(self.drain_timeout));
        line("ALLOWED_USER_IDS", list(&self.access.users));
        line("ALLOWED_CHANNEL_IDS", list(&self.access.channels));
        line("ADMIN_USER_IDS", list(&self.access.admins));
        match &self.discord {
            None => line("DISCORD_TOKEN", "not set: Discord is off".into()),
            Some(discord) => discord_lines(discord, &mut line),
        }
        line("ALLOW_EVERYONE", self.access.everyone.to_string());
        match &self.slack {
            None => line("SLACK_BOT_TOKEN", "not set: Slack is off".into()),
            Some(slack) => {
                let is_set = |secret: &Option<_>| if secret.is_some() { set() } else { "not set".into() };
                line("SLACK_BOT_TOKEN", set());
                line("SLACK_APP_TOKEN", is_set(&slack.app_token));
                line("SLACK_SIGNING_SECRET", is_set(&slack.signing_secret));
                line("SLACK_API_URL", slack.api_url.clone());
                line("SLACK_CONNECTIONS", slack.connections.to_string());
                line("SLACK_SILENCE", time(slack.silence));
                line("SLACK_TEAM_IDS", list(&slack.teams));
                line("SLACK_CANARY_CHANNEL", slack.canary.clone().unwrap_or_else(|| "not set".into()));
            }
        }
        line("EXTRA_ALLOWED_HOSTS", list(&self.pool.extra_hosts));
        line(
            "NETWORK_PRESETS",
            list(&self.network.presets.iter().map(|preset: &Preset| preset.name().into()).collect()),
        );
        let hosts = |(id, hosts): (&String, &BTreeSet<String>)| {
            hosts.iter().map(|host| format!("{id}={host}")).collect::<Vec<_>>()
        };
        line("CHANNEL_ALLOWED_HOSTS", list(&self.network.channels.iter().flat_map(hosts).collect()));
        line("ADMIN_LISTEN", self.admin_listen.to_string());
        line("DATA_DIR", path(&self.data_dir));
        line("DATABASE_URL", format!("sqlite://{}", self.journal_path.display()));
        lines
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.effective().iter().try_for_each(|(name, value)| writeln!(f, "{name}={value}"))
    }
}

fn limit(limit: Option<u64>) -> String {
    limit.map_or_else(|| "none".into(), |limit| limit.to_string())
}

fn discord_lines(discord: &DiscordConfig, line: &mut impl FnMut(&'static str, String)) {
    line("DISCORD_TOKEN", set());
    line(
        "DISCORD_GUILD_IDS",
        if discord.guilds.is_empty() { "not set: all servers".into() } else { list(&discord.guilds) },
    );
    line("DISCORD_ROLE_IDS", list(&discord.roles));
    line("DISCORD_BOT_IDS", list(&discord.bots));
    line("DISCORD_MESSAGE_CONTENT", discord.message_content.to_string());
    line("DISCORD_FOLLOW_UPS", discord.follow_ups.to_string());
    if let Some(canary) = &discord.canary {
        line("DISCORD_CANARY_CHANNEL", canary.channel.clone());
        line("DISCORD_CANARY_EVERY", time(canary.every));
    }
    if let Some(url) = &discord.gateway_url {
        line("DISCORD_GATEWAY_URL", url.clone());
    }
    if let Some(proxy) = &discord.api_proxy {
        line("DISCORD_API_PROXY", proxy.clone());
    }
}

fn set() -> String {
    "set".into()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn time(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

fn list(items: &BTreeSet<String>) -> String {
    if items.is_empty() { "none".into() } else { items.iter().map(String::as_str).collect::<Vec<_>>().join(",") }
}

fn weights(weights: &BTreeMap<String, usize>) -> String {
    list(&weights.iter().map(|(id, weight)| format!("{id}={weight}")).collect())
}

/// In the largest unit that leaves no remainder.
fn bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fits = units.into_iter().find(|(_, shift)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    fits.map_or_else(|| format!("{bytes} bytes"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}
