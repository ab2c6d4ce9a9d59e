//! Good and bad settings, by table, through [`Config::load`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::keys::{self, Unset};
use super::{
    AgentKind, Config, ConfigErrors, Grant, HostConfig, Isolation, KeysAt, Limits, Origin, Preset, SpritesConfig,
    UsageLimits, VaultConfig, reference,
};
use crate::job::{ChannelId, RequesterId};

fn env(settings: &[(&str, &str)]) -> BTreeMap<String, String> {
    let home = ("HOME".to_owned(), "/home/jane".to_owned());
    [home].into_iter().chain(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))).collect()
}

fn load(settings: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::load(&env(settings), None)
}

fn load_file(content: &str, settings: &[(&str, &str)]) -> (PathBuf, Result<Config, ConfigErrors>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("janebot.toml");
    std::fs::write(&path, content).unwrap();
    let loaded = Config::load(&env(settings), Some(&path));
    (path, loaded)
}

fn host(config: &Config) -> &HostConfig {
    match &config.sprites {
        SpritesConfig::Embedded(host) => host,
        SpritesConfig::Remote { .. } => panic!("expected the embedded host"),
    }
}

#[test]
fn without_settings_everything_has_its_default() {
    let config = load(&[]).unwrap();
    assert_eq!(config.data_dir, Path::new("/home/jane/.local/state/janebot"));
    assert_eq!(config.journal_path, Path::new("/home/jane/.local/state/janebot/journal.sqlite"));
    assert_eq!(host(&config).state_dir, Path::new("/home/jane/.local/state/janebot/host"));
    assert_eq!(host(&config).limits, Limits::default());
    assert_eq!(host(&config).isolation, Isolation::Full);
    assert!(host(&config).rootfs.is_none() && config.limits == UsageLimits::default());
    assert!(host(&config).listen.ip().is_loopback());
    assert_eq!((config.pool.runners, config.pool.max_queue), (2, 1000));
    assert_eq!(config.pool.prefix, "jane-runner");
    assert_eq!(config.pool.run_timeout, Duration::from_secs(600));
    assert_eq!(config.pool.queue_timeout, Duration::from_secs(900));
    assert_eq!(config.agents.default, AgentKind::Shell);
    assert!(config.agents.amp.is_none() && config.agents.claude.is_none());
    assert!(config.access.users.is_empty() && config.access.channels.is_empty() && config.pool.extra_hosts.is_empty());
}

#[test]
fn every_default_can_be_set_in_words() {
    let defaults: Vec<_> = keys::ALL
        .iter()
        .filter(|about| about.name != "SPRITES_API_URL")
        .filter_map(|about| match about.default {
            Unset::Value(text) => Some((about.name, text)),
            Unset::Derived(_) | Unset::Nothing => None,
        })
        .collect();
    assert_eq!(load(&defaults).unwrap().to_string(), load(&[]).unwrap().to_string());
}

#[test]
fn every_example_is_a_right_value() {
    let this_file = std::env::current_exe().unwrap().display().to_string();
    for about in keys::ALL {
        let value = match about.name {
            "JANEBOT_CONFIG" => continue,
            "AMP_PATH" | "CLAUDE_PATH" => this_file.as_str(),
            "HOST_ROOTFS" => "/",
            // The examples of secrets show a form and are refused as placeholders.
            _ if about.secret => "k3y",
            _ => about.example,
        };
        let mut settings =
            vec![("SPRITES_TOKEN", "t0ken"), ("ANTHROPIC_API_KEY", "k3y"), ("ALLOW_KEY_IN_SPRITE", "true")];
        if about.name.starts_with("SLACK_") {
            settings.extend([("SLACK_BOT_TOKEN", "k3y"), ("SLACK_APP_TOKEN", "k3y"), ("ALLOW_EVERYONE", "true")]);
        }
        settings.push((about.name, value));
        load(&settings).unwrap_or_else(|errors| panic!("{}: {errors}", about.name));
    }
}

#[test]
fn good_values_are_read() {
    let config = load(&[
        ("SPRITES_TOKEN", " t0ken\n"),
        ("SPRITES_API_URL", "https://sprites.example.com/"),
        ("RUNNERS", "64"),
        ("RUNNER_PREFIX", "jane-2"),
        ("AGENT", "Claude"),
        ("AMP_API_KEY", "amp-k3y"),
        ("ANTHROPIC_API_KEY", "ant-k3y"),
        ("ANTHROPIC_BASE_URL", "https://gateway.example.com/anthropic/"),
        ("EXEC_TIMEOUT", "1h 30m"),
        ("QUEUE_TIMEOUT", "1s"),
        ("ALLOWED_USER_IDS", " U1, U2 ,,U1 "),
        ("EXTRA_ALLOWED_HOSTS", "GitHub.com,*.crates.io"),
        ("DATABASE_URL", "sqlite:///srv/j.sqlite"),
        ("DATA_DIR", "/srv/jane"),
        ("MAX_QUEUE", ""),
        ("CHANNEL_WEIGHTS", "C1=3, C2=1"),
        ("URGENT_USER_IDS", "U9"),
        ("CLAUDE_MODEL", "claude-opus-4-8[1m]"),
        ("PUBLIC_URL", "https://jane.example.com/"),
        ("NETWORK_PRESETS", "packages, amp-direct"),
        ("MAX_TOKENS_PER_JOB", "2000000"),
        ("AGENT_DISABLED_TOOLS", "WebFetch,mcp__*"),
    ])
    .unwrap();
    let SpritesConfig::Remote { url, token } = &config.sprites else { panic!("expected the cloud") };
    assert_eq!((url.as_str(), token.expose_secret()), ("https://sprites.example.com", "t0ken"));
    assert_eq!((config.pool.runners, config.pool.prefix.as_str()), (64, "jane-2"));
    assert_eq!((config.pool.run_timeout.as_secs(), config.pool.queue_timeout.as_secs()), (5400, 1));
    assert_eq!(config.pool.max_queue, 1000, "empty counts as unset");
    let sharing = &config.pool.sharing;
    assert_eq!((sharing.max_running_per_user, sharing.max_running_per_channel), (63, 64), "derived from RUNNERS");
    assert_eq!((sharing.weight(&ChannelId::new("slack:C1")), sharing.weight(&ChannelId::new("slack:C9"))), (3, 1));
    assert!(sharing.is_urgent(&RequesterId::new("slack:U9")) && !sharing.is_urgent(&RequesterId::new("slack:U1")));
    assert_eq!(config.agents.default, AgentKind::Claude);
    assert_eq!(config.access.users, BTreeSet::from(["U1".to_owned(), "U2".to_owned()]));
    assert_eq!(config.pool.extra_hosts, BTreeSet::from(["github.com".to_owned(), "*.crates.io".to_owned()]));
    assert_eq!(config.journal_path, Path::new("/srv/j.sqlite"));
    let claude = config.agents.claude.unwrap();
    assert_eq!(claude.url, "https://gateway.example.com/anthropic");
    assert_eq!(config.vault.keys, KeysAt::Public("https://jane.example.com".into()));
    assert_eq!(config.network.presets, BTreeSet::from(Preset::ALL));
    let limits = UsageLimits { tokens_per_job: Some(2_000_000), ..UsageLimits::default() };
    assert_eq!((config.limits, config.agents.disabled_tools.len()), (limits, 2));
}

#[test]
fn yes_and_no_have_three_spellings() {
    for (text, expected) in [("true", Isolation::Off), ("1", Isolation::Off), ("YES", Isolation::Off)] {
        assert_eq!(host(&load(&[("ALLOW_LOCAL_EXECUTION", text)]).unwrap()).isolation, expected);
    }
    for text in ["false", "0", "No", " "] {
        assert_eq!(host(&load(&[("ALLOW_LOCAL_EXECUTION", text)]).unwrap()).isolation, Isolation::Full);
    }
}

#[test]
fn bad_values_are_named_with_what_is_wrong() {
    let table = [
        ("EXEC_TIMEOUT", "1500", "`1500` has no unit"),
        ("EXEC_TIMEOUT", "0", "no unit"),
        ("EXEC_TIMEOUT", "NaN", "not a time"),
        ("EXEC_TIMEOUT", "inf", "not a time"),
        ("EXEC_TIMEOUT", "-5m", "not a time"),
        ("EXEC_TIMEOUT", "10 parsecs", "not a time"),
        ("EXEC_TIMEOUT", "999ms", "not between 1s and 1day"),
        ("QUEUE_TIMEOUT", "25h", "not between 1s and 1day"),
        ("QUEUE_TIMEOUT", "99999999999999999999h", "not a time"),
        ("RUNNERS", "0", "not between 1 and 64"),
        ("RUNNERS", "65", "not between"),
        ("RUNNERS", "NaN", "not a whole number"),
        ("RUNNERS", "1e3", "not a whole number"),
        ("RUNNERS", "-1", "not a whole number"),
        ("RUNNERS", "2.0", "not a whole number"),
        ("RUNNERS", "99999999999999999999999", "not between"),
        ("RUNNER_PREFIX", "Jane", "lower-case"),
        ("RUNNER_PREFIX", "jane-", "hyphen"),
        ("RUNNER_PREFIX", "jane_runner", "hyphens"),
        ("RUNNER_PREFIX", "a/../b", "hyphens"),
        ("ALLOW_LOCAL_EXECUTION", "maybe", "neither true nor false"),
        ("AGENT", "gpt", "there are amp, claude and shell"),
        ("AGENT", "amp", "set AMP_API_KEY"),
        ("AGENT", "claude", "set ANTHROPIC_API_KEY"),
        ("AGENT_MODE", "--help", "one plain word"),
        ("CLAUDE_MODEL", "a b", "one plain word"),
        ("AMP_VERSION", "latest", "exact version"),
        ("CLAUDE_VERSION", "^2.1.0", "exact version"),
        ("CLAUDE_VERSION", "2", "exact version"),
        ("AMP_PATH", "bin/amp", "absolute path"),
        ("AMP_PATH", "~/amp", "absolute path"),
        ("AMP_PATH", "/nowhere/amp", "not a file"),
        ("HOST_ROOTFS", "/etc/passwd", "not a folder"),
        ("DATA_DIR", "data", "absolute path"),
        ("DATABASE_URL", "postgres://u:pw@db/jane", "PostgreSQL comes later"),
        ("DATABASE_URL", "mysql://db/jane", "sqlite://"),
        ("DATABASE_URL", "sqlite::memory:", "forget every job"),
        ("DATABASE_URL", "sqlite://journal.sqlite", "absolute"),
        ("DATABASE_URL", "sqlite:///j?mode=ro", "options"),
        ("SPRITES_API_URL", "http://sprites.example.com", "plain http"),
        ("SPRITES_API_URL", "sprites.example.com", "not a URL"),
        ("SPRITES_API_URL", "ftp://sprites.example.com", "https://"),
        ("AMP_URL", "https://ampcode.com/api", "path"),
        ("AMP_URL", "https://jane:pw@ampcode.com", "user name or password"),
        ("AMP_URL", "https://ampcode.com?a=b", "`?`"),
        ("PUBLIC_URL", "http://jane.example.com", "plain http"),
        ("PUBLIC_URL", "https://jane.example.com/vault", "path"),
        ("VAULT_LISTEN", "8320", "with a port"),
        ("NETWORK_PRESETS", "defaults", "amp-direct, packages"),
        ("CHANNEL_ALLOWED_HOSTS", "C1", "id=host"),
        ("CHANNEL_ALLOWED_HOSTS", "C1=a.com,C2=*", "item 2"),
        ("AGENT_DISABLED_TOOLS", "a b", "not a tool"),
        ("MAX_TOKENS_PER_JOB", "0", "not between"),
        ("HOST_LISTEN", "0.0.0.0:80", "not a loopback"),
        ("HOST_LISTEN", "127.0.0.1", "with a port"),
        ("HOST_MEMORY", "2", "no unit"),
        ("HOST_MEMORY", "2GiBs", "not a size"),
        ("HOST_MEMORY", "NaN", "not a size"),
        ("HOST_MEMORY", "1KiB", "too small"),
        ("HOST_DISK", "99999999999TiB", "too large"),
        ("HOST_PROCESSES", "1", "not between"),
        ("MAX_QUEUE", "0", "not between"),
        ("MAX_RUNNING_PER_USER", "0", "not between"),
        ("CHANNEL_WEIGHTS", "C1", "id=number"),
        ("CHANNEL_WEIGHTS", "C1=2,C2=0", "item 2"),
        ("CHANNEL_WEIGHTS", "=2", "no id"),
        ("ALLOWED_USER_IDS", "U1,@jane", "item 2"),
        ("ALLOWED_CHANNEL_IDS", "#general", "item 1"),
        ("EXTRA_ALLOWED_HOSTS", "*", "allows too much"),
        ("EXTRA_ALLOWED_HOSTS", "a.com,*.*.b.com", "item 2"),
        ("EXTRA_ALLOWED_HOSTS", "https://github.com", "leave out scheme"),
        ("EXTRA_ALLOWED_HOSTS", "10.0.0.1", "address"),
        ("EXTRA_ALLOWED_HOSTS", "git_hub.com", "not a host name"),
        ("AMP_API_KEY", "two words", "white space"),
        ("AMP_API_KEY", "\"quoted\"", "quote marks"),
        ("AMP_API_KEY", "<your key>", "white space"),
        ("AMP_API_KEY", "<your-key>", "placeholder"),
        ("ANTHROPIC_API_KEY", "changeme", "placeholder"),
        ("ANTHROPIC_API_KEY", "sk-ant-...", "placeholder"),
        ("ANTHROPIC_API_KEY", "xxxxxxxx", "placeholder"),
        ("SPRITES_TOKEN", "${SPRITES_TOKEN}", "placeholder"),
        ("SPRITES_TOKEN", "schlüssel", "header"),
    ];
    for (key, value, words) in table {
        // With the token that this one asks for.
        let mut settings = vec![(key, value)];
        if key == "SPRITES_API_URL" {
            settings.push(("SPRITES_TOKEN", "t0ken"));
        }
        let errors = load(&settings).expect_err(&format!("{key}={value}"));
        assert_eq!(errors.0.len(), 1, "{key}={value}: {errors}");
        let text = errors.to_string();
        assert!(text.contains(words), "{key}={value}: {text}");
        assert!(text.contains(&format!("- {key} (environment): ")), "{text}");
        let remedy = match (key, value) {
            ("AGENT", "amp") => "AMP_API_KEY",
            ("AGENT", "claude") => "ANTHROPIC_API_KEY",
            _ => key,
        };
        assert!(text.contains(&format!("; for example {remedy}=")), "{text}");
        assert!(!text.contains("pw@") && !text.contains("schlüssel") && !text.contains("two words"), "{text}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let (path, loaded) = load_file(
        "exec_timeout = 1500\nrunner = 3\nrunners = 9\n[agents]\nkey = 1\n",
        &[("AGENT", "amp"), ("RUNNERS", "many"), ("SPRITES_API_URL", "https://api.example.com")],
    );
    let errors = loaded.unwrap_err();
    let path = path.display();
    let expected = format!(
        "6 settings are wrong:
- agents ({path}): there is no such setting: is `agent` meant?
- runner ({path}): there is no such setting: is `runners` meant?
- RUNNERS (environment): `many` is not a whole number; for example RUNNERS=4
- exec_timeout ({path}): `1500` has no unit: write s, m or h behind it; for example exec_timeout = \"30m\"
- SPRITES_API_URL (environment): the API needs a token: set SPRITES_TOKEN, or leave this out to run sprites on this machine; for example SPRITES_TOKEN=your-sprites-token
- AGENT (environment): amp needs a key: set AMP_API_KEY, or choose another agent; for example AMP_API_KEY=sgamp_..."
    );
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&errors.to_string()), sorted(&expected), "{errors}");
    assert!(errors.0.iter().any(|error| error.key == "runner" && matches!(error.origin, Origin::File(_))));
}

#[test]
fn the_environment_wins_over_the_file() {
    let content = "runners = 3\nexec_timeout = \"20m\"\nallowed_user_ids = [\"U1\", 42]\n\
                   extra_allowed_hosts = \"a.com, b.com\"\nallow_local_execution = true\n";
    let config = load_file(content, &[("RUNNERS", "5")]).1.unwrap();
    assert_eq!((config.pool.runners, config.pool.run_timeout.as_secs()), (5, 1200));
    assert_eq!(config.access.users, BTreeSet::from(["42".to_owned(), "U1".to_owned()]));
    assert_eq!(config.pool.extra_hosts.len(), 2);
    assert_eq!(host(&config).isolation, Isolation::Off);
}

#[test]
fn the_command_lines_file_wins_over_the_environments() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one.toml"), folder.path().join("two.toml"));
    std::fs::write(&one, "runners = 3").unwrap();
    std::fs::write(&two, "max_queue = 7").unwrap();
    let env = env(&[("JANEBOT_CONFIG", one.to_str().unwrap())]);
    assert_eq!(Config::load(&env, None).unwrap().pool.runners, 3);
    let config = Config::load(&env, Some(&two)).unwrap();
    assert_eq!((config.pool.runners, config.pool.max_queue), (2, 7), "one file, not both");
}

#[test]
fn a_bad_file_is_explained() {
    let table = [
        ("runners = [1]", "a list is too much"),
        ("runners = nan", "`NaN` is not a whole number"),
        ("runners = 2.5", "not a whole number"),
        ("runners = 2026-01-01", "a date"),
        ("allowed_user_ids = [\"a,b\"]", "item 1 has a comma"),
        ("allowed_user_ids = [[\"a\"]]", "a list is too much"),
        ("RUNNERS = 3", "is `runners` meant?"),
        ("exec-timeout = \"3m\"", "is `exec_timeout` meant?"),
        ("janebot_config = \"/x\"", "no such setting"),
        ("zzz = 1", "there is no such setting"),
        ("runners = 1\nrunners = 2", "line 2"),
        ("\n\namp_api_key = k3y-k3y", "line 3"),
    ];
    for (content, words) in table {
        let (_, loaded) = load_file(content, &[]);
        let text = loaded.expect_err(content).to_string();
        assert!(text.contains(words) && text.contains("janebot.toml"), "{content}: {text}");
        assert!(!text.contains("k3y-k3y"), "{text}");
    }
    let missing = Config::load(&env(&[]), Some(Path::new("/nowhere/janebot.toml"))).unwrap_err().to_string();
    assert!(missing.contains("--config (command line): the file /nowhere/janebot.toml can't be read"), "{missing}");
    let missing = load(&[("JANEBOT_CONFIG", "/nowhere/janebot.toml")]).unwrap_err().to_string();
    assert!(missing.contains("JANEBOT_CONFIG (environment): the file"), "{missing}");
    let endless = Config::load(&env(&[]), Some(Path::new("/dev/zero"))).unwrap_err().to_string();
    assert!(endless.contains("larger than"), "{endless}");
}

#[test]
fn without_a_home_the_place_for_data_is_asked_for() {
    let none = BTreeMap::new();
    let text = Config::load(&none, None).unwrap_err().to_string();
    assert!(
        text.contains("DATA_DIR (not set)") && text.contains("HOME") && text.contains("DATA_DIR=/var/lib"),
        "{text}"
    );
    let state = BTreeMap::from([("XDG_STATE_HOME".to_owned(), "/var/state".to_owned())]);
    assert_eq!(Config::load(&state, None).unwrap().data_dir, Path::new("/var/state/janebot"));
    let relative = env(&[("XDG_STATE_HOME", "state")]);
    assert_eq!(Config::load(&relative, None).unwrap().data_dir, Path::new("/home/jane/.local/state/janebot"));
    let set = BTreeMap::from([("DATA_DIR".to_owned(), "/srv/jane".to_owned())]);
    assert_eq!(Config::load(&set, None).unwrap().journal_path, Path::new("/srv/jane/journal.sqlite"));
}

#[test]
fn the_first_agent_with_a_key_is_the_default() {
    let default = |settings: &[(&str, &str)]| load(settings).unwrap().agents.default;
    assert_eq!(default(&[("ANTHROPIC_API_KEY", "ant-k3y")]), AgentKind::Claude);
    assert_eq!(default(&[("ANTHROPIC_API_KEY", "ant-k3y"), ("AMP_API_KEY", "amp-k3y")]), AgentKind::Amp);
    assert_eq!(default(&[("AMP_API_KEY", "amp-k3y"), ("AGENT", "shell")]), AgentKind::Shell);
}

#[test]
fn sprites_of_this_machine_reach_the_vault_by_a_name_and_never_the_agents_servers() {
    let config = load(&[
        ("AMP_API_KEY", "amp-k3y"),
        ("AMP_URL", "http://127.0.0.1:8317/"),
        ("ANTHROPIC_API_KEY", "ant-k3y"),
        ("ANTHROPIC_BASE_URL", "http://gateway.corp/anthropic"),
    ])
    .unwrap();
    let (amp, claude) = (config.agents.amp.as_ref().unwrap(), config.agents.claude.as_ref().unwrap());
    assert_eq!((amp.url.as_str(), claude.url.as_str()), ("http://127.0.0.1:8317", "http://gateway.corp/anthropic"));
    assert_eq!(config.vault, VaultConfig { listen: "127.0.0.1:0".parse().unwrap(), keys: KeysAt::Vault });
    assert_eq!(config.vault.host().as_deref(), Some("vault.janebot.internal"));
    let bound = "127.0.0.1:4711".parse().unwrap();
    assert_eq!(config.vault.url(bound).as_deref(), Some("http://vault.janebot.internal"));
    let grants = |settings: &[(&str, &str)]| host(&load(settings).unwrap()).grants.clone();
    let grant = |target: &str| [Grant { name: "vault.janebot.internal".into(), target: target.into() }];
    // For a `janebot host`; a service puts its vault's own address there.
    assert_eq!(grants(&[]), grant("127.0.0.1:8320"));
    assert_eq!(grants(&[("VAULT_LISTEN", "127.0.0.1:9001")]), grant("127.0.0.1:9001"));
}

#[test]
fn without_isolation_programs_reach_the_vault_as_it_is() {
    let config = load(&[("AMP_API_KEY", "amp-k3y"), ("ALLOW_LOCAL_EXECUTION", "true")]).unwrap();
    let bound = "127.0.0.1:4711".parse().unwrap();
    assert_eq!(config.vault.url(bound).as_deref(), Some("http://127.0.0.1:4711"));
    assert_eq!(config.vault.host(), None);
}

#[test]
fn in_the_cloud_the_vault_is_public_or_the_keys_are_in_the_sprites_by_choice() {
    let key = ("AMP_API_KEY", "amp-k3y");
    let cloud = |more: &[(&str, &str)]| load(&[&[("SPRITES_TOKEN", "t0ken")], more].concat());
    let refused = cloud(&[key]).expect_err("keys have no place").to_string();
    assert!(refused.contains("PUBLIC_URL (not set)") && refused.contains("ALLOW_KEY_IN_SPRITE=true"), "{refused}");
    assert_eq!(cloud(&[]).unwrap().vault.keys, KeysAt::Sprite, "without a key there is nothing to decide");
    let public = cloud(&[key, ("PUBLIC_URL", "https://jane.example.com")]).unwrap().vault;
    let risky = load(&[("NETWORK_PRESETS", "amp-direct"), ("CHANNEL_ALLOWED_HOSTS", "C1=github.com")]).unwrap();
    assert_eq!(risky.warnings().len(), Preset::AmpDirect.hosts().len() + 1);
    assert!(load(&[("NETWORK_PRESETS", "packages"), key]).unwrap().warnings().is_empty());
    assert_eq!(public.listen, "127.0.0.1:8320".parse().unwrap());
    assert_eq!(public.host().as_deref(), Some("jane.example.com"));
    assert_eq!(public.url(public.listen).as_deref(), Some("https://jane.example.com"));
    let open = cloud(&[key, ("ALLOW_KEY_IN_SPRITE", "true")]).unwrap();
    assert!(open.warnings().iter().any(|warning| warning.contains("key is in the sprite")), "{:?}", open.warnings());
    assert_eq!((open.vault.keys, open.agents.hosts_needed()), (KeysAt::Sprite, vec!["ampcode.com".to_owned()]));
    let both = cloud(&[key, ("ALLOW_KEY_IN_SPRITE", "true"), ("PUBLIC_URL", "https://jane.example.com")]).unwrap();
    assert_eq!(both.vault.keys, KeysAt::Public("https://jane.example.com".into()), "the safer one");
}

#[test]
fn what_a_sprite_can_t_reach_is_refused() {
    let cloud = ("SPRITES_TOKEN", "t0ken");
    let open = ("ALLOW_KEY_IN_SPRITE", "true");
    type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let table: [Row; 6] = [
        (&[("AMP_URL", "http://192.168.1.2:80"), cloud, open], "AMP_URL", "cloud can't reach"),
        (&[("AMP_URL", "https://127.0.0.1"), cloud, open], "AMP_URL", "cloud can't reach"),
        (&[("AMP_URL", "http://amp.example.com"), cloud, open], "AMP_URL", "plain http"),
        (&[("VAULT_LISTEN", "0.0.0.0:8320")], "VAULT_LISTEN", "not a loopback address"),
        (
            &[("VAULT_LISTEN", "127.0.0.1:0"), ("PUBLIC_URL", "https://jane.example.com"), cloud],
            "VAULT_LISTEN",
            "any free one",
        ),
        (&[("VAULT_LISTEN", "0.0.0.0:0"), cloud, open], "VAULT_LISTEN", "not a loopback address"),
    ];
    for (settings, key, words) in table {
        let settings: Vec<_> = settings.iter().copied().chain([("AMP_API_KEY", "amp-k3y")]).collect();
        let text = load(&settings).expect_err(words).to_string();
        assert!(text.contains(words) && text.contains(&format!("{key} (environment)")), "{text}");
    }
    let own_host = [
        cloud,
        ("SPRITES_API_URL", "http://127.0.0.1:9000"),
        ("AMP_API_KEY", "amp-k3y"),
        ("AMP_URL", "http://127.0.0.1:8317"),
    ];
    let own_host = load(&own_host).unwrap().vault;
    assert_eq!((own_host.keys, own_host.listen.port()), (KeysAt::Vault, 8320));
}

#[test]
fn every_secret_that_is_set_is_looked_for_in_answers() {
    let config = load(&[("AMP_API_KEY", "amp-k3y"), ("SPRITES_TOKEN", "t0ken"), ("PUBLIC_URL", "https://j.example")]);
    let secrets = config.unwrap().secrets;
    let shown: Vec<_> = secrets.iter().map(|(name, secret)| (*name, secret.expose_secret())).collect();
    assert_eq!(shown, [("SPRITES_TOKEN", "t0ken"), ("AMP_API_KEY", "amp-k3y")]);
}

#[test]
fn a_channel_may_have_hosts_of_its_own() {
    let network = load(&[("CHANNEL_ALLOWED_HOSTS", "C1=git.example.com,C1=*.crates.io,C2=pypi.org")]).unwrap().network;
    let of = |channel: &str| {
        network.of_channel(&ChannelId::new(channel)).map(|hosts| hosts.iter().cloned().collect::<Vec<_>>())
    };
    assert_eq!(of("slack:C1"), Some(vec!["*.crates.io".to_owned(), "git.example.com".to_owned()]));
    assert_eq!((of("slack:C2"), of("slack:C3")), (Some(vec!["pypi.org".to_owned()]), None));
}

#[test]
fn slack_wants_its_tokens_a_way_in_and_somebody_who_may_ask() {
    let bot = ("SLACK_BOT_TOKEN", "xoxb-1-k3y");
    let app = ("SLACK_APP_TOKEN", "xapp-1-k3y");
    let someone = ("ALLOWED_USER_IDS", "U1");
    for (settings, words) in [
        (vec![app, someone], "Slack needs the bot token as well"),
        (vec![bot, someone], "nothing says how events come"),
        (vec![bot, app], "nobody in Slack may ask"),
        (vec![("SLACK_BOT_TOKEN", "xapp-1-k3y"), app, someone], "it is the app-level token"),
        (vec![bot, ("SLACK_APP_TOKEN", "xoxb-1-k3y"), someone], "it is the bot token"),
        (vec![bot, ("SLACK_SIGNING_SECRET", " "), someone], "nothing says how events come"),
    ] {
        let text = load(&settings).expect_err(words).to_string();
        assert!(text.contains(words) && !text.contains("k3y"), "{text}");
    }
    assert!(load(&[]).unwrap().slack.is_none());
    let slack = load(&[bot, ("SLACK_SIGNING_SECRET", "s1gned"), ("ALLOW_EVERYONE", "true")]).unwrap().slack.unwrap();
    assert!(slack.app_token.is_none() && slack.signing_secret.is_some() && slack.connections == 2);
}

#[test]
fn the_reference_names_every_setting() {
    let table = reference();
    assert_eq!(table.lines().count(), keys::ALL.len() + 2);
    for about in keys::ALL {
        assert!(table.contains(&format!("| `{}` | {}", about.name, about.form)));
    }
    assert!(table.lines().all(|line| line.matches(" | ").count() == 3 && line.starts_with("| ")), "{table}");
}

#[test]
fn discords_token_leads_only_to_discord_or_to_this_machine() {
    let token = ("DISCORD_TOKEN", "t0ken");
    for (name, right, wrong) in [
        ("DISCORD_GATEWAY_URL", "ws://127.0.0.1:9", "ws://gateway.example:9"),
        ("DISCORD_GATEWAY_URL", "wss://gateway.example", "https://gateway.example"),
        ("DISCORD_API_PROXY", "[::1]:9", "proxy.example:9"),
        ("DISCORD_API_PROXY", "localhost:9", "localhost:9/path"),
        ("DISCORD_CANARY_CHANNEL", "123", "123,456"),
    ] {
        assert!(load(&[token, (name, right)]).is_ok(), "{name}={right}");
        let errors = load(&[token, (name, wrong)]).unwrap_err();
        assert!(errors.to_string().contains(name), "{errors}");
    }
    assert!(load(&[]).unwrap().discord.is_none());
}

#[test]
fn the_effective_settings_name_every_setting_in_use() {
    let file = std::env::current_exe().unwrap().display().to_string();
    let all = [
        load(&[("AMP_API_KEY", "amp-k3y"), ("ANTHROPIC_API_KEY", "ant-k3y")]).unwrap().to_string(),
        load(&[("AMP_API_KEY", "a-k3y"), ("ANTHROPIC_API_KEY", "b-k3y"), ("AMP_PATH", &file), ("CLAUDE_PATH", &file)])
            .unwrap()
            .to_string(),
        load(&[("SPRITES_TOKEN", "t0ken")]).unwrap().to_string(),
        load(&[
            ("DISCORD_TOKEN", "t0ken"),
            ("DISCORD_CANARY_CHANNEL", "4"),
            ("DISCORD_GATEWAY_URL", "ws://localhost:1"),
            ("DISCORD_API_PROXY", "localhost:2"),
        ])
        .unwrap()
        .to_string(),
        load(&[("SLACK_BOT_TOKEN", "b-k3y"), ("SLACK_APP_TOKEN", "a-k3y"), ("ALLOW_EVERYONE", "true")])
            .unwrap()
            .to_string(),
    ]
    .concat();
    for about in keys::ALL.iter().filter(|about| about.name != "JANEBOT_CONFIG") {
        assert!(all.lines().any(|line| line.starts_with(&format!("{}=", about.name))), "{}", about.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a secret looks like and wherever it was put by mistake, no text shows it.
    #[test]
    fn no_text_ever_shows_a_secret(
        secret in r#"[A-Za-z0-9_./+=~ "'$<{@:,\\é-]{9,80}"#,
        secret_key in 0..3usize,
        other_key in 0..64usize,
        in_file in any::<bool>(),
        quoted in any::<bool>(),
    ) {
        let secret = secret.trim();
        prop_assume!(secret.len() >= 8 && !"your-sprites-token".contains(secret));
        let name = ["SPRITES_TOKEN", "AMP_API_KEY", "ANTHROPIC_API_KEY"][secret_key];
        let mut settings = vec![(name, secret)];
        // The same text under a second name: most of them refuse it and say why. In a file that can't be parsed nobody
        // sees that it is a secret.
        let known = !in_file || quoted;
        if let Some(other) = keys::ALL.get(other_key).filter(|about| !about.list && known) {
            settings.push((other.name, secret));
        }
        let loaded = if in_file {
            let value = if quoted { toml::Value::from(secret).to_string() } else { secret.to_owned() };
            load_file(&format!("{} = {value}\n", name.to_lowercase()), &settings[1..]).1
        } else {
            load(&settings)
        };
        let texts = match &loaded {
            // A right value of another setting is that setting's to show.
            Ok(config) if settings.len() == 1 => vec![format!("{config:?}"), config.to_string()],
            Ok(_) => vec![],
            Err(errors) => vec![format!("{errors:?}"), errors.to_string()],
        };
        for text in texts {
            prop_assert!(!text.contains(secret), "{text}");
        }
    }

    /// No text makes loading panic.
    #[test]
    fn any_text_is_read_or_refused(key in 0..64usize, value in any::<String>(), file in any::<String>()) {
        if let Some(about) = keys::ALL.get(key) {
            let _ = load(&[(about.name, &value)]);
            let _ = load_file(&format!("{} = {file}", about.name.to_lowercase()), &[]);
        }
    }
}
