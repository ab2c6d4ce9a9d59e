//! The effective settings, one a line, for start-up logs and `doctor`. Of secrets it says only whether they are set.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::{Config, Grant, Isolation, SpritesConfig};

impl Config {
    /// Name and value of each setting in use.
    pub fn effective(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        let mut line = |name, value: String| lines.push((name, value));
        let grants: &[Grant] = match &self.sprites {
            SpritesConfig::Remote { url, .. } => {
                line("SPRITES_TOKEN", set());
                line("SPRITES_API_URL", url.clone());
                &[]
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
                &host.grants
            }
        };
        line("RUNNERS", self.pool.runners.to_string());
        line("RUNNER_PREFIX", self.pool.prefix.clone());
        line("AGENT", self.agents.default.name().into());
        match &self.agents.amp {
            None => line("AMP_API_KEY", "not set: amp is off".into()),
            Some(amp) => {
                line("AMP_API_KEY", set());
                line("AMP_URL", server(amp.url_in_sprite(), grants));
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
                line("ANTHROPIC_BASE_URL", server(claude.url_in_sprite(), grants));
                line("CLAUDE_MODEL", claude.model.clone().unwrap_or_else(|| "claude's own choice".into()));
                match &claude.path {
                    Some(program) => line("CLAUDE_PATH", path(program)),
                    None => line("CLAUDE_VERSION", claude.version.clone()),
                }
            }
        }
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

/// The URL, and where it leads when its name exists in sprites only.
fn server(url: &str, grants: &[Grant]) -> String {
    let grant =
        grants.iter().find(|grant| url.strip_prefix("http://").is_some_and(|rest| rest.starts_with(&grant.name)));
    grant.map_or_else(|| url.to_owned(), |grant| format!("{url} (in sprites only; leads to {})", grant.target))
}

/// In the largest unit that leaves no remainder.
fn bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fits = units.into_iter().find(|(_, shift)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    fits.map_or_else(|| format!("{bytes} bytes"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}
