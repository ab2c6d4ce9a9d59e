//! A busy Discord server: how soon a mention is marked as heard while people talk, and what a hundred thousand messages
//! cost in memory. The built program against the Discord of the tests, on loopback.
//!
//! Prints a table; fails when a mention is not marked. `cargo bench --bench discord`

#[path = "../tests/doubles/fake_discord.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod fake_discord;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fake_discord::{BOB, CHANNEL, FakeDiscord, GUILD, TOKEN};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Messages a second, and how many of them are for Jane: as many as Discord's 50 requests a second leave room for.
const MESSAGES_A_SECOND: u64 = 500;
const MENTIONS_A_SECOND: u64 = 4;
const SECONDS: u64 = 20;

/// Messages that are sent as fast as they are taken.
const FLOOD: u64 = 100_000;

struct Jane(Child);

impl Drop for Jane {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Jane {
    fn start(discord: &FakeDiscord, data: &std::path::Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_janebot"));
        command.args(["--log", "warn"]).env_clear().env("DATA_DIR", data).env("HOME", data);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("DISCORD_TOKEN", TOKEN).env("DISCORD_API_PROXY", &discord.api);
        command.env("DISCORD_GATEWAY_URL", &discord.gateway).env("DISCORD_MESSAGE_CONTENT", "true");
        command.env("ALLOWED_CHANNEL_IDS", CHANNEL.to_string()).env("ADMIN_LISTEN", "127.0.0.1:0");
        command.env("MAX_QUEUED_PER_USER", "1000").env("DEBOUNCE", "0s");
        Self(command.stdin(Stdio::null()).spawn().expect("the program starts"))
    }

    /// Resident memory, in MiB.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
    }
}

/// Something that people say to each other.
fn chatter(discord: &FakeDiscord, number: u64) {
    let event = json!({
        "id": discord.id().to_string(), "channel_id": CHANNEL.to_string(), "guild_id": GUILD.to_string(), "type": 0,
        "author": {"id": BOB.to_string(), "username": "bob", "discriminator": "0"},
        "content": format!("message {number}: {}", "and so on ".repeat(10)), "mentions": [], "attachments": [],
        "member": {"roles": ["70"], "joined_at": "2026-01-01T00:00:00.000000+00:00"}, "embeds": [],
    });
    discord.dispatch("MESSAGE_CREATE", event);
}

#[tokio::main]
async fn main() {
    let discord = FakeDiscord::start().await;
    let data = tempfile::tempdir().expect("a temporary folder");
    let jane = Jane::start(&discord, data.path());
    discord.wait("a session", |state| (state.gateway.log.len() > 1).then_some(())).await;
    let warm = discord.asks("true");
    discord.wait("the first answer", |state| (state.messages[&warm].reactions == ["✅"]).then_some(())).await;
    let before = jane.memory();

    let mut tick = interval(Duration::from_micros(1_000_000 / MESSAGES_A_SECOND));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asked = Vec::new();
    for number in 0..MESSAGES_A_SECOND * SECONDS {
        tick.tick().await;
        if number % (MESSAGES_A_SECOND / MENTIONS_A_SECOND) == 0 {
            asked.push((discord.asks("true"), Instant::now()));
        } else {
            chatter(&discord, number);
        }
    }
    let mut times = Vec::new();
    for (message, at) in &asked {
        let marked = discord.wait("the eyes", |state| state.messages[message].marked_at).await;
        times.push(marked.saturating_duration_since(*at));
    }
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{:<60} {:>8} {:>8} {:>8}", format!("ms, {} mentions", times.len()), "p50", "p99", "max");
    println!(
        "{:<60} {:>8.1} {:>8.1} {:>8.1}",
        format!("mention to mark, {MESSAGES_A_SECOND} messages a second"),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    let last = asked.last().expect("there were some").0;
    discord.wait("the last answer", |state| (state.messages[&last].reactions == ["✅"]).then_some(())).await;
    let between = jane.memory();

    let began = Instant::now();
    for number in 0..FLOOD {
        chatter(&discord, number);
        if number % 1000 == 0 {
            discord.state().gateway.log.clear();
            tokio::task::yield_now().await;
        }
    }
    let end = discord.asks("true");
    discord.wait("the mark behind the flood", |state| state.messages[&end].marked_at).await;
    let took = began.elapsed();
    println!(
        "{:<60} {:>8.1} s",
        format!("{FLOOD} messages, until a mention behind them is marked"),
        took.as_secs_f64()
    );
    println!("{:<60} {before:>8.1} MiB", "memory at the start");
    println!("{:<60} {between:>8.1} MiB", format!("after {} mentions", asked.len()));
    println!("{:<60} {:>8.1} MiB", format!("after {FLOOD} messages more"), jane.memory());
    assert_eq!(discord.violations(), Vec::<String>::new());
}
