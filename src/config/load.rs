//! From texts to [`Config`]: every setting is read and every rule between settings checked before anything is refused,
//! so that an operator sees all mistakes at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;

use super::keys::{self, Key};
use super::reach::{self, Sprites};
use super::source::{ConfigErrors, Source};
use super::vault;
use super::{
    AccessConfig, AgentKind, AgentsConfig, AmpConfig, CanaryConfig, ClaudeConfig, Config, DiscordConfig, HostConfig,
    Isolation, KeysAt, Limits, PoolConfig, SharingConfig, SlackConfig, SpritesConfig, Vouched,
};

impl Config {
    /// Reads the settings from `env` and from the TOML file, which is `file` or else what `JANEBOT_CONFIG` names.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(env: &BTreeMap<String, String>, file: Option<&Path>) -> Result<Self, ConfigErrors> {
        let mut source = Source::read(env, file);
        let config = build(&mut source, env);
        match (source.into_errors(), config) {
            (None, Some(config)) => Ok(config),
            (Some(errors), _) => Err(errors),
            (None, None) => unreachable!("a setting is only missing after a complaint: every default can be read"),
        }
    }

    /// This process's environment, for [`Config::load`]. What is no UTF-8 can't be a right value of any setting.
    pub fn environment() -> BTreeMap<String, String> {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
    }
}

/// `None` only after a complaint.
fn build(source: &mut Source, env: &BTreeMap<String, String>) -> Option<Config> {
    // All are read before the first `?`, each with its own complaint.
    let data_dir = data_dir(source, env);
    let database = source.get(&keys::DATABASE_URL);
    let pool = pool(source);
    let limits = limits(source);
    let access = AccessConfig {
        users: source.get(&keys::ALLOWED_USER_IDS).unwrap_or_default(),
        channels: source.get(&keys::ALLOWED_CHANNEL_IDS).unwrap_or_default(),
        admins: source.get(&keys::ADMIN_USER_IDS).unwrap_or_default(),
        everyone: source.get(&keys::ALLOW_EVERYONE).unwrap_or_default(),
        vouched: Vouched::default(),
    };
    let discord = discord(source);
    let slack = slack(source);
    if slack.is_some() && access.users.is_empty() && access.channels.is_empty() && !access.everyone {
        let problem = "nobody in Slack may ask: name people here or channels in ALLOWED_CHANNEL_IDS, or set \
                       ALLOW_EVERYONE=true"
            .into();
        source.complain_for(&keys::ALLOWED_USER_IDS.about, problem, &keys::ALLOW_EVERYONE.about);
    }
    let debounce = source.get(&keys::DEBOUNCE);
    let admin_listen = source.get(&keys::ADMIN_LISTEN);
    let drain_timeout = source.get(&keys::DRAIN_TIMEOUT);
    let isolation =
        source.get(&keys::ALLOW_LOCAL_EXECUTION).map(|off| if off { Isolation::Off } else { Isolation::Full });
    let listen = source.get(&keys::HOST_LISTEN);
    let rootfs = source.get(&keys::HOST_ROOTFS);
    let state_dir = source.get(&keys::HOST_STATE_DIR);
    let api_url = source.get(&keys::SPRITES_API_URL);
    let token = source.get(&keys::SPRITES_TOKEN);
    if source.is_set(&keys::SPRITES_API_URL.about) && !source.is_set(&keys::SPRITES_TOKEN.about) {
        let problem =
            "the API needs a token: set SPRITES_TOKEN, or leave this out to run sprites on this machine".into();
        source.complain_for(&keys::SPRITES_API_URL.about, problem, &keys::SPRITES_TOKEN.about);
    }
    let place = match (&token, &api_url, isolation) {
        (Some(_), Some(url), _) => Sprites::at(url),
        (_, _, Some(Isolation::Off)) => Sprites::WithoutWalls,
        _ => Sprites::InThisProcess,
    };
    let has_keys = [&keys::AMP_API_KEY, &keys::ANTHROPIC_API_KEY].iter().any(|key| source.is_set(&key.about));
    let vaults_listen = source.get(&keys::VAULT_LISTEN);
    let vault = vault::vault(source, place, vaults_listen, has_keys);
    let agents = agents(source, vault.as_ref().map_or(&KeysAt::Vault, |vault| &vault.keys));
    let (network, usage) = (vault::network(source), vault::limits(source));
    let vaults_address = vault::known_address(vaults_listen);
    let secrets = source.secrets();

    let data_dir = data_dir?;
    let sprites = match token {
        Some(token) => SpritesConfig::Remote { url: api_url?, token },
        None => SpritesConfig::Embedded(HostConfig {
            state_dir: state_dir.unwrap_or_else(|| data_dir.join("host")),
            listen: listen?,
            rootfs,
            isolation: isolation?,
            grants: vec![reach::grant(vaults_address)],
            limits: limits?,
        }),
    };
    let journal_path = database.map_or_else(|| data_dir.join("journal.sqlite"), |url| url.0);
    Some(Config {
        sprites,
        pool: pool?,
        agents: agents?,
        access,
        vault: vault?,
        network,
        limits: usage,
        secrets,
        discord,
        slack,
        debounce: debounce?,
        drain_timeout: drain_timeout?,
        admin_listen: admin_listen?,
        data_dir,
        journal_path,
    })
}

/// `None` without a token, or after a complaint.
fn discord(source: &mut Source) -> Option<DiscordConfig> {
    let guilds = source.get(&keys::DISCORD_GUILD_IDS).unwrap_or_default();
    let roles = source.get(&keys::DISCORD_ROLE_IDS).unwrap_or_default();
    let bots = source.get(&keys::DISCORD_BOT_IDS).unwrap_or_default();
    let message_content = source.get(&keys::DISCORD_MESSAGE_CONTENT);
    let follow_ups = source.get(&keys::DISCORD_FOLLOW_UPS);
    let channel = source.get(&keys::DISCORD_CANARY_CHANNEL);
    let every = source.get(&keys::DISCORD_CANARY_EVERY);
    let gateway_url = source.get(&keys::DISCORD_GATEWAY_URL);
    let api_proxy = source.get(&keys::DISCORD_API_PROXY);
    let token = source.get(&keys::DISCORD_TOKEN)?;
    Some(DiscordConfig {
        token,
        guilds,
        roles,
        bots,
        message_content: message_content?,
        follow_ups: follow_ups?,
        canary: channel.zip(every).map(|(channel, every)| CanaryConfig { channel, every }),
        gateway_url,
        api_proxy,
    })
}

/// `DATA_DIR`, else the folder for state that the desktop specification names.
fn data_dir(source: &mut Source, env: &BTreeMap<String, String>) -> Option<PathBuf> {
    if source.is_set(&keys::DATA_DIR.about) {
        return source.get(&keys::DATA_DIR);
    }
    let absolute = |name| env.get(name).map(Path::new).filter(|path| path.is_absolute());
    // The specification wants a relative XDG_STATE_HOME to be ignored.
    let state = absolute("XDG_STATE_HOME").map(Path::to_owned);
    let state = state.or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    if state.is_none() {
        let problem = "there is no place for the journal, because HOME and XDG_STATE_HOME are not set either";
        source.complain(&keys::DATA_DIR.about, problem.into());
    }
    state.map(|state| state.join("janebot"))
}

fn pool(source: &mut Source) -> Option<PoolConfig> {
    let runners = source.get(&keys::RUNNERS);
    let prefix = source.get(&keys::RUNNER_PREFIX);
    let run_timeout = source.get(&keys::EXEC_TIMEOUT);
    let queue_timeout = source.get(&keys::QUEUE_TIMEOUT);
    let max_queue = source.get(&keys::MAX_QUEUE);
    let sharing = sharing(source, runners);
    let extra_hosts = source.get(&keys::EXTRA_ALLOWED_HOSTS).unwrap_or_default();
    Some(PoolConfig {
        runners: runners?,
        prefix: prefix?,
        run_timeout: run_timeout?,
        queue_timeout: queue_timeout?,
        max_queue: max_queue?,
        sharing: sharing?,
        extra_hosts,
    })
}

fn sharing(source: &mut Source, runners: Option<usize>) -> Option<SharingConfig> {
    let max_queued_per_user = source.get(&keys::MAX_QUEUED_PER_USER);
    let max_queued_per_channel = source.get(&keys::MAX_QUEUED_PER_CHANNEL);
    let running_per_user = limit(source, &keys::MAX_RUNNING_PER_USER, runners.map(|runners| (runners - 1).max(1)));
    let running_per_channel = limit(source, &keys::MAX_RUNNING_PER_CHANNEL, runners);
    let urgent_users = source.get(&keys::URGENT_USER_IDS).unwrap_or_default();
    let channel_weights = source.get(&keys::CHANNEL_WEIGHTS).unwrap_or_default();
    Some(SharingConfig {
        max_queued_per_user: max_queued_per_user?,
        max_running_per_user: running_per_user?,
        max_queued_per_channel: max_queued_per_channel?,
        max_running_per_channel: running_per_channel?,
        urgent_users,
        channel_weights,
    })
}

/// The setting, else what is derived for it. `None` only after a complaint.
fn limit(source: &mut Source, key: &Key<usize>, derived: Option<usize>) -> Option<usize> {
    if source.is_set(&key.about) { source.get(key) } else { derived }
}

fn limits(source: &mut Source) -> Option<Limits> {
    let memory = source.get(&keys::HOST_MEMORY);
    let disk = source.get(&keys::HOST_DISK);
    let processes = source.get(&keys::HOST_PROCESSES);
    Some(Limits { memory: memory?, disk: disk?, processes: processes?, ..Limits::default() })
}

/// Slack, when its token is set.
fn slack(source: &mut Source) -> Option<SlackConfig> {
    let app_token = source.get(&keys::SLACK_APP_TOKEN);
    let signing_secret = source.get(&keys::SLACK_SIGNING_SECRET);
    let api_url = source.get(&keys::SLACK_API_URL);
    let connections = source.get(&keys::SLACK_CONNECTIONS);
    let silence = source.get(&keys::SLACK_SILENCE);
    let teams = source.get(&keys::SLACK_TEAM_IDS).unwrap_or_default();
    let canary = source.get(&keys::SLACK_CANARY_CHANNEL);
    let ways = [&keys::SLACK_APP_TOKEN.about, &keys::SLACK_SIGNING_SECRET.about];
    if !source.is_set(&keys::SLACK_BOT_TOKEN.about) {
        for way in ways.into_iter().filter(|way| source.is_set(way)).collect::<Vec<_>>() {
            let problem = "Slack needs the bot token as well: set SLACK_BOT_TOKEN, or leave this out".into();
            source.complain_for(way, problem, &keys::SLACK_BOT_TOKEN.about);
        }
        return None;
    }
    if !ways.into_iter().any(|way| source.is_set(way)) {
        let problem = "nothing says how events come: set SLACK_APP_TOKEN (Socket Mode) or SLACK_SIGNING_SECRET (HTTP)";
        source.complain_for(&keys::SLACK_BOT_TOKEN.about, problem.into(), &keys::SLACK_APP_TOKEN.about);
    }
    let bot_token = source.get(&keys::SLACK_BOT_TOKEN)?;
    for (key, token, wrong, kind) in [
        (&keys::SLACK_BOT_TOKEN, Some(&bot_token), "xapp-", "the app-level token: the bot token begins with xoxb-"),
        (&keys::SLACK_APP_TOKEN, app_token.as_ref(), "xoxb-", "the bot token: the app-level one begins with xapp-"),
    ] {
        if token.is_some_and(|token| token.expose_secret().starts_with(wrong)) {
            source.complain(&key.about, format!("it is {kind}"));
        }
    }
    Some(SlackConfig {
        bot_token,
        app_token,
        signing_secret,
        api_url: api_url?,
        connections: connections?,
        silence: silence?,
        teams,
        canary,
    })
}

fn agents(source: &mut Source, keys_at: &KeysAt) -> Option<AgentsConfig> {
    let chosen = source.get(&keys::AGENT);
    let amp = amp(source, keys_at);
    let claude = claude(source, keys_at);
    let disabled_tools = source.get(&keys::AGENT_DISABLED_TOOLS).unwrap_or_default();
    for (agent, key) in [(AgentKind::Amp, &keys::AMP_API_KEY), (AgentKind::Claude, &keys::ANTHROPIC_API_KEY)] {
        if chosen == Some(agent) && !source.is_set(&key.about) {
            let problem = format!("{} needs a key: set {}, or choose another agent", agent.name(), key.about.name);
            source.complain_for(&keys::AGENT.about, problem, &key.about);
        }
    }
    let first = match (&amp, &claude) {
        (Some(_), _) => AgentKind::Amp,
        (None, Some(_)) => AgentKind::Claude,
        (None, None) => AgentKind::Shell,
    };
    Some(AgentsConfig { default: chosen.unwrap_or(first), amp, claude, disabled_tools })
}

fn amp(source: &mut Source, keys_at: &KeysAt) -> Option<AmpConfig> {
    let url = source.get(&keys::AMP_URL);
    let mode = source.get(&keys::AGENT_MODE);
    let version = source.get(&keys::AMP_VERSION);
    let path = source.get(&keys::AMP_PATH);
    let key = source.get(&keys::AMP_API_KEY)?;
    let url = url.filter(|url| vault::check_server(source, &keys::AMP_URL, url, keys_at));
    Some(AmpConfig { key, url: url?, mode: mode?, version: version?, path })
}

fn claude(source: &mut Source, keys_at: &KeysAt) -> Option<ClaudeConfig> {
    let url = source.get(&keys::ANTHROPIC_BASE_URL);
    let model = source.get(&keys::CLAUDE_MODEL);
    let version = source.get(&keys::CLAUDE_VERSION);
    let path = source.get(&keys::CLAUDE_PATH);
    let key = source.get(&keys::ANTHROPIC_API_KEY)?;
    let url = url.filter(|url| vault::check_server(source, &keys::ANTHROPIC_BASE_URL, url, keys_at));
    Some(ClaudeConfig { key, url: url?, model, version: version?, path })
}
