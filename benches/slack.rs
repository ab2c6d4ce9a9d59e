//! How quickly Slack's events are acknowledged and marked, and what 100,000 of them leave behind: the built binary over
//! loopback, against the fake workspace. Prints a table.

#[path = "../tests/doubles/fake_slack.rs"]
mod fake_slack;
#[path = "../tests/slack/service.rs"]
mod service;

use std::time::Duration;

use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use fake_slack::{ANN, BOB, DIRECT, FakeSlack, GENERAL};
use service::Service;

const PER_SECOND: usize = 500;
const SECONDS: usize = 10;
const EVENTS: usize = 100_000;

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    format!("p50 {:8.1} ms   p99 {:8.1} ms   max {:8.1} ms", at(0.5), at(0.99), at(1.0))
}

/// Resident memory of the service.
fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) / 1024.0
}

#[tokio::main]
async fn main() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake)
        .with("MAX_QUEUE", "100000")
        .with("MAX_QUEUED_PER_USER", "100000")
        .with("MAX_QUEUED_PER_CHANNEL", "100000")
        .with("DEBOUNCE", "0s");
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    let pid = service.pid();
    println!("idle: {:.1} MiB", resident_mib(pid));

    // Messages that are for nobody: all that a busy channel costs.
    let quiet = |n: usize| {
        json!({
            "type": "message", "user": BOB, "text": format!("message {n} of a busy channel"), "ts": format!("100.{n:06}"),
            "channel": GENERAL, "channel_type": "channel",
        })
    };
    for n in 0..EVENTS {
        fake.deliver_event(quiet(n));
        if n % 1000 == 999 {
            fake.until("they are acknowledged", |state| (state.acks.len() > n).then_some(())).await;
        }
        if n == EVENTS / 10 {
            println!("after {n} events for others: {:.1} MiB", resident_mib(pid));
        }
    }
    println!("after {EVENTS} events for others: {:.1} MiB", resident_mib(pid));
    println!("acknowledged: {}", percentiles(fake.acks().iter().map(|ack| ack.took).collect()));

    let before = fake.acks().len();
    let mut tick = interval(Duration::from_secs(1) / PER_SECOND as u32);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asked = Vec::new();
    for _ in 0..PER_SECOND * SECONDS {
        tick.tick().await;
        asked.push(fake.say(DIRECT, ANN, "true", None));
    }
    let all = asked.len();
    fake.until_within("all are marked", Duration::from_secs(300), |state| {
        let marked = state.channels[DIRECT].messages.iter().filter(|message| message.marked_at.is_some()).count();
        (marked >= all && state.acks.len() >= before + all).then_some(())
    })
    .await;
    println!("{PER_SECOND} prompts a second for {SECONDS} s, each journaled:");
    println!("  event to ack: {}", percentiles(fake.acks()[before..].iter().map(|ack| ack.took).collect()));
    let marks = |state: &fake_slack::State| {
        let messages = state.channels[DIRECT].messages.iter();
        messages.filter_map(|message| Some(message.marked_at? - message.written_at?)).collect::<Vec<_>>()
    };
    let times = marks(&fake.state());
    println!("  event to 👀:  {}", percentiles(times));
    println!("  {:.1} MiB; complaints: {}", resident_mib(pid), fake.complaints().len());
}
