//! The one list of all settings: name, form, default, example, meaning, and how its text is read.
//!
//! README's table is printed from it ([`reference()`]); loading, errors and the effective settings use the same entries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::value::{self, DatabaseUrl};
use super::{AgentKind, Preset};

/// What people are told about a setting.
pub(super) struct About {
    /// As in the environment; the file has it in lower case.
    pub name: &'static str,
    /// What the value looks like, in words.
    pub form: &'static str,
    pub default: Unset,
    /// A right value.
    pub example: &'static str,
    pub doc: &'static str,
    pub secret: bool,
    /// Comma-separated, or an array in the file.
    pub list: bool,
}

/// What holds when a setting is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unset {
    /// This text, read as if it had been set; a test shows that each can be read.
    Value(&'static str),
    /// Something that depends on other settings or on this machine, in words.
    Derived(&'static str),
    Nothing,
}

/// A setting whose value is a `T`.
pub(super) struct Key<T> {
    pub about: About,
    /// Reads the text, or says what is wrong with it, without its key and never quoting a secret.
    pub parse: fn(&str) -> Result<T, String>,
}

/// Longest runner prefix; with the hyphen and the number behind it, a name stays within a DNS label's 63 characters.
const MAX_PREFIX: usize = 48;
/// More runners than this belong to several deployments; each holds a machine.
const MAX_RUNNERS: u64 = 64;
/// Each waiting job holds its prompt (up to 1 MiB) in memory.
const MAX_QUEUE_LIMIT: u64 = 100_000;
/// A channel with a larger share than this has the runners to itself.
const MAX_WEIGHT: u64 = 100;
/// Slack refuses more connections of one app than this.
const MAX_SLACK_CONNECTIONS: u64 = 10;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// More tokens than any provider sells in a day.
const MAX_TOKENS: u64 = 1_000_000_000_000;
const MIB: u64 = 1024 * 1024;
const TIB: u64 = 1024 * 1024 * MIB;

/// Defines the settings, each as a static of its name, and [`ALL`] in this order.
macro_rules! keys {
    ($($name:ident: $type:ty = $parse:expr, $form:literal, $default:expr, $example:literal, $doc:literal;)*) => {
        $(pub(super) static $name: Key<$type> = Key {
            about: About {
                name: stringify!($name),
                form: $form,
                default: $default,
                example: $example,
                doc: $doc,
                secret: is_prefix($form, "secret"),
                list: is_prefix($form, "list"),
            },
            parse: $parse,
        };)*
        /// All settings, in the order of the reference.
        pub(super) static ALL: [&About; { [$(stringify!($name)),*].len() }] = [$(&$name.about),*];
    };
}

const fn is_prefix(text: &str, prefix: &str) -> bool {
    let (text, prefix) = (text.as_bytes(), prefix.as_bytes());
    let mut at = 0;
    while at < prefix.len() {
        if at >= text.len() || text[at] != prefix[at] {
            return false;
        }
        at += 1;
    }
    true
}

use Unset::{Derived, Nothing, Value};

keys! {
    JANEBOT_CONFIG: PathBuf = value::path, "absolute path", Nothing, "/etc/janebot.toml",
        "A TOML file with these settings, keys in lower case. The environment wins over it, `--config` over this.";

    SPRITES_TOKEN: SecretString = value::secret, "secret", Nothing, "your-sprites-token",
        "Token of the Sprites API. Without it, sprites run on this machine (the embedded host).";
    SPRITES_API_URL: String = value::api_url, "URL, https or on loopback", Value("https://api.sprites.dev"),
        "https://api.sprites.dev", "The Sprites API. Plain http only to this machine.";
    ALLOW_LOCAL_EXECUTION: bool = value::flag, "true or false", Value("false"), "true",
        "Turns the embedded host's isolation off: prompts run as programs of this user on this machine. Without effect \
         when `SPRITES_TOKEN` is set.";

    RUNNERS: usize = |text| value::count(text, 1, MAX_RUNNERS), "number, 1 to 64", Value("2"), "4",
        "How many sprites are kept ready; as many jobs run at a time.";
    RUNNER_PREFIX: String = |text| value::prefix(text, MAX_PREFIX), "lower-case letters, digits, hyphens",
        Value("jane-runner"), "jane-staging",
        "Start of the sprites' names. Each deployment with the same Sprites account needs its own.";

    AGENT: AgentKind = value::agent, "amp, claude or shell", Derived("amp or claude, the first with a key; else shell"),
        "claude", "The agent for prompts that name none. `shell` runs the prompt as a script.";
    AGENT_MODE: String = value::word, "word", Value("medium"), "high",
        "Amp's mode: low, medium, high, ultra; the Amp server decides what a word means.";
    AMP_API_KEY: SecretString = value::secret, "secret", Nothing, "sgamp_...", "Key of the Amp server; turns amp on.";
    AMP_URL: String = value::origin, "URL without a path", Value("https://ampcode.com"), "https://ampcode.com",
        "The Amp server. Plain http is for a server that only this machine reaches; sprites then get a name for it.";
    AMP_VERSION: String = value::version, "exact npm version", Value("0.0.1790142911-g7618fb"),
        "0.0.1790142911-g7618fb", "Version of `@ampcode/cli` to install in sprites.";
    AMP_PATH: PathBuf = value::file, "absolute path", Nothing, "/usr/local/bin/amp",
        "An amp program on this machine, used instead of the npm package.";
    ANTHROPIC_API_KEY: SecretString = value::secret, "secret", Nothing, "sk-ant-...",
        "Key of the Anthropic API; turns claude on.";
    ANTHROPIC_BASE_URL: String = value::url, "URL", Value("https://api.anthropic.com"), "https://api.anthropic.com",
        "The Anthropic API, or a gateway to it. Plain http as for `AMP_URL`.";
    CLAUDE_MODEL: String = value::word, "word", Nothing, "claude-opus-4-8", "Model that claude is told to use.";
    CLAUDE_VERSION: String = value::version, "exact npm version", Value("2.1.197"), "2.1.197",
        "Version of `@anthropic-ai/claude-code` to install in sprites.";
    CLAUDE_PATH: PathBuf = value::file, "absolute path", Nothing, "/usr/local/bin/claude",
        "A claude program on this machine, used instead of the npm package.";

    AGENT_DISABLED_TOOLS: BTreeSet<String> = value::tools, "list of tool names", Nothing, "WebFetch,mcp__*",
        "Tools that agents may not use, by their own names for them.";

    PUBLIC_URL: String = value::public_url, "URL without a path", Nothing, "https://jane.example.com",
        "Where sprites of the Sprites cloud reach the vault, which keeps the agents' keys: TLS ends before \
         `VAULT_LISTEN`.";
    VAULT_LISTEN: SocketAddr = value::address, "address with port",
        Derived("127.0.0.1 with a free port; 127.0.0.1:8320 where another process must know it"), "127.0.0.1:8320",
        "Where the vault listens. Other than loopback only with `PUBLIC_URL`.";
    ALLOW_KEY_IN_SPRITE: bool = value::flag, "true or false", Value("false"), "true",
        "Puts the agents' keys into sprites of the Sprites cloud, where programs can read them, when there is no \
         `PUBLIC_URL`.";
    MAX_TURNS_PER_JOB: u64 = |text| value::count(text, 1, 100_000), "number, 1 to 100000", Nothing, "50",
        "Calls of the model that one job may make.";
    MAX_TOKENS_PER_JOB: u64 = |text| value::count(text, 1, MAX_TOKENS), "number, 1 to 10^12", Nothing, "2000000",
        "Tokens, input and output together, that one job may use.";
    MAX_JOBS_PER_USER_DAY: u64 = |text| value::count(text, 1, 1_000_000), "number, 1 to 1000000", Nothing, "100",
        "Jobs that one person may start within 24 hours.";
    MAX_TOKENS_PER_USER_DAY: u64 = |text| value::count(text, 1, MAX_TOKENS), "number, 1 to 10^12", Nothing, "20000000",
        "Tokens that one person's jobs may use within 24 hours.";

    DATA_DIR: PathBuf = value::path, "absolute path",
        Derived("$XDG_STATE_HOME/janebot, else ~/.local/state/janebot"), "/var/lib/janebot",
        "Journal, embedded host's sprites, installed agents.";
    DATABASE_URL: DatabaseUrl = value::database, "sqlite://PATH", Derived("DATA_DIR/journal.sqlite"),
        "sqlite:///var/lib/janebot/journal.sqlite", "The journal's file.";

    EXEC_TIMEOUT: Duration = |text| value::span(text, SECOND, DAY), "time, 1s to 24h", Value("10m"), "30m",
        "Wall time of one agent run.";
    QUEUE_TIMEOUT: Duration = |text| value::span(text, SECOND, DAY), "time, 1s to 24h", Value("15m"), "1h",
        "How long a job waits for a runner before it is refused.";
    MAX_QUEUE: usize = |text| value::count(text, 1, MAX_QUEUE_LIMIT), "number, 1 to 100000", Value("1000"), "200",
        "Jobs that may wait at a time; further prompts are refused.";
    MAX_QUEUED_PER_USER: usize = |text| value::count(text, 1, MAX_QUEUE_LIMIT), "number, 1 to 100000", Value("20"), "5",
        "Jobs of one person that may wait at a time. Nobody reads more answers at once; more is a script gone wild.";
    MAX_RUNNING_PER_USER: usize = |text| value::count(text, 1, MAX_RUNNERS), "number, 1 to 64",
        Derived("one less than `RUNNERS`, at least 1"), "2",
        "Jobs of one person that may run at a time. The default keeps a runner for somebody else; further jobs wait, and \
         block nobody.";
    MAX_QUEUED_PER_CHANNEL: usize = |text| value::count(text, 1, MAX_QUEUE_LIMIT), "number, 1 to 100000", Value("200"),
        "50", "Jobs of one channel that may wait at a time, so that no channel fills the whole queue.";
    MAX_RUNNING_PER_CHANNEL: usize = |text| value::count(text, 1, MAX_RUNNERS), "number, 1 to 64",
        Derived("`RUNNERS`"), "4", "Jobs of one channel that may run at a time. A team with one channel needs them all.";
    CHANNEL_WEIGHTS: BTreeMap<String, usize> = |text| value::weights(text, MAX_WEIGHT), "list of id=number, 1 to 100",
        Nothing, "C024BE91L=3", "Jobs that a channel is given in one turn, where channels take turns; 1 unless named.";
    URGENT_USER_IDS: BTreeSet<String> = value::ids, "list of ids", Nothing, "U024BE7LH",
        "Chat users whose jobs are served before all others', as far as that starves nobody.";

    DEBOUNCE: Duration = |text| value::span(text, Duration::ZERO, 30 * SECOND), "time, 0s to 30s", Value("1500ms"), "3s",
        "Messages of one person in a chat that follow each other faster become one prompt.";
    DRAIN_TIMEOUT: Duration = |text| value::span(text, Duration::ZERO, DAY), "time, 0s to 24h", Value("1m"), "5m",
        "How long running jobs may take once the service is told to stop. What waits then is left to the next start.";

    ALLOWED_USER_IDS: BTreeSet<String> = value::ids, "list of ids", Nothing, "U024BE7LH,U0G9QF9C6",
        "Chat users who may ask. The terminal belongs to whoever runs the process.";
    ALLOWED_CHANNEL_IDS: BTreeSet<String> = value::ids, "list of ids", Nothing, "C024BE91L",
        "Chat channels in which everybody may ask.";
    ADMIN_USER_IDS: BTreeSet<String> = value::ids, "list of ids", Nothing, "U024BE7LH",
        "Chat users who may stop anybody's job; everybody may stop their own.";
    ALLOW_EVERYONE: bool = value::flag, "true or false", Value("false"), "true",
        "Lets everybody who can write to Jane in a chat use her, listed or not.";
    EXTRA_ALLOWED_HOSTS: BTreeSet<String> = value::hosts, "list of host names", Nothing, "github.com,*.crates.io",
        "Names that sprites may reach beside the agents' own; `*.name` for all names below one.";
    NETWORK_PRESETS: BTreeSet<Preset> = value::presets, "list of amp-direct, packages", Nothing, "packages",
        "Lists of names that sprites may reach: `packages` for the usual registries, `amp-direct` for what the first Jane \
         allowed.";
    CHANNEL_ALLOWED_HOSTS: BTreeMap<String, BTreeSet<String>> = value::channel_hosts, "list of id=host name", Nothing,
        "C024BE91L=git.example.com", "Names that jobs of one channel may reach beside all others'.";

    DISCORD_TOKEN: SecretString = value::secret, "secret", Nothing, "your-discord-bot-token",
        "Token of the Discord bot; turns Discord on. `deploy/discord.md` tells how to get one.";
    DISCORD_GUILD_IDS: BTreeSet<String> = value::ids, "list of ids", Nothing, "1180000000000000000",
        "Discord servers in which Jane listens; all that have invited her when not set. Who may ask is said elsewhere.";
    DISCORD_ROLE_IDS: BTreeSet<String> = value::ids, "list of ids", Nothing, "1180000000000000001",
        "Discord roles whose members may ask, beside `ALLOWED_USER_IDS`. A role has no meaning in a direct message.";
    DISCORD_BOT_IDS: BTreeSet<String> = value::ids, "list of ids", Nothing, "1180000000000000002",
        "Other Discord bots that may ask, and then only by mentioning Jane; all others are ignored.";
    DISCORD_MESSAGE_CONTENT: bool = value::flag, "true or false", Value("false"), "true",
        "Asks Discord for the text of messages that do not mention Jane. To be switched on in the developer portal, too.";
    DISCORD_FOLLOW_UPS: bool = value::flag, "true or false", Value("true"), "false",
        "In a thread that Jane opened, a message needs no mention. Takes effect with `DISCORD_MESSAGE_CONTENT=true`.";
    DISCORD_CANARY_CHANNEL: String = value::id, "channel id", Nothing, "1180000000000000003",
        "A Discord channel in which Jane posts a marked message now and then, to prove that she still hears.";
    DISCORD_CANARY_EVERY: Duration = |text| value::span(text, SECOND, DAY), "time, 1s to 24h", Value("5m"), "15m",
        "How often the marked message is posted.";
    DISCORD_GATEWAY_URL: String = value::gateway_url, "URL, wss or ws", Nothing, "ws://127.0.0.1:9001",
        "A gateway in place of Discord's own, for tests and proxies. Plain ws only to this machine.";
    DISCORD_API_PROXY: String = value::loopback_name, "loopback host:port", Nothing, "127.0.0.1:9002",
        "A server on this machine that takes Discord's REST requests over plain http, for tests and proxies.";

    SLACK_BOT_TOKEN: SecretString = value::secret, "secret", Nothing, "xoxb-...",
        "Bot token of the Slack app; turns Slack on. deploy/slack.md shows how to get it.";
    SLACK_APP_TOKEN: SecretString = value::secret, "secret", Nothing, "xapp-...",
        "App-level token with `connections:write`: Slack's events come over Socket Mode, which needs no public address.";
    SLACK_SIGNING_SECRET: SecretString = value::secret, "secret", Nothing, "8f742231b10e8888abcd99yyyzzz85a5",
        "Signing secret of the app: Slack's events come over HTTP, below `/slack/` of the admin address.";
    SLACK_API_URL: String = value::api_url, "URL, https or on loopback", Value("https://slack.com/api"),
        "https://slack.com/api", "Slack's Web API. Another one is for tests; plain http only to this machine.";
    SLACK_CONNECTIONS: usize = |text| value::count(text, 1, MAX_SLACK_CONNECTIONS), "number, 1 to 10", Value("2"), "3",
        "Socket Mode connections held open, so that losing one delays nothing.";
    SLACK_SILENCE: Duration = |text| value::span(text, SECOND, 300 * SECOND), "time, 1s to 5m", Value("30s"), "45s",
        "A Socket Mode connection from which nothing came for so long, though it was pinged, is taken for dead.";
    SLACK_TEAM_IDS: BTreeSet<String> = value::ids, "list of ids", Nothing, "T024BE7LD",
        "Slack workspaces, beside the bot's own, whose people are no strangers. Guests and other strangers must be in \
         `ALLOWED_USER_IDS`.";
    SLACK_CANARY_CHANNEL: String = value::word, "channel id", Nothing, "C024BE91L",
        "A Slack channel, with the bot in it, where janebot writes and deletes a message now and then to see that \
         events reach it.";

    ADMIN_LISTEN: SocketAddr = value::address, "address with port", Value("127.0.0.1:8470"), "0.0.0.0:8470",
        "Where the service tells whether it is ready (/healthz, /readyz) and takes what chats send by HTTP.";
    HOST_LISTEN: SocketAddr = value::loopback, "loopback address with port", Value("127.0.0.1:0"), "127.0.0.1:8317",
        "Where the embedded host serves the Sprites API; port 0 picks a free one.";
    HOST_ROOTFS: PathBuf = value::folder, "absolute path", Nothing, "/srv/janebot/rootfs",
        "A root directory for the sprites, instead of this machine's own system directories.";
    HOST_STATE_DIR: PathBuf = value::path, "absolute path", Derived("DATA_DIR/host"), "/var/lib/janebot/host",
        "Where the embedded host keeps its sprites.";
    HOST_MEMORY: u64 = |text| value::size(text, 64 * MIB, TIB), "size, 64MiB to 1TiB", Value("2GiB"), "4GiB",
        "Memory of one sprite's programs together.";
    HOST_DISK: u64 = |text| value::size(text, 64 * MIB, 16 * TIB), "size, 64MiB to 16TiB", Value("4GiB"), "10GiB",
        "Disk that one sprite may fill.";
    HOST_PROCESSES: u64 = |text| value::count(text, 16, 32_768), "number, 16 to 32768", Value("512"), "1024",
        "Processes and threads of one sprite.";
}

/// All settings as a Markdown table. Where there is no default to show what a value looks like, an example does.
pub fn reference() -> String {
    let mut table = String::from("| setting | value | default | what it does |\n| --- | --- | --- | --- |\n");
    for about in ALL {
        let (default, example) = match about.default {
            Unset::Value(text) => (format!("`{text}`"), String::new()),
            Unset::Derived(words) => (words.to_owned(), String::new()),
            Unset::Nothing => ("not set".to_owned(), format!(", as in `{}`", about.example)),
        };
        // Writing to a String does not fail.
        let _ = writeln!(table, "| `{}` | {}{example} | {default} | {} |", about.name, about.form, about.doc);
    }
    table
}
