//! `kill -9` at random moments, in a loop: no message may lose its outcome, and none may get two.
//!
//! Two parts run at the same time. `asks`: the built binary's `janebot ask`, killed and started again with one data
//! folder. `messages`: a service on real sandboxes and a journal on disk, which serves a chat platform that lives in this
//! process; the platform kills it, too, between a request and its answer. This program is also that service, started
//! with [`service::PLATFORM`] set, and the helper of its sandboxes.
//!
//! `JANEBOT_KILL_ASKS` and `JANEBOT_KILL_MESSAGES` say how many; `JANEBOT_KILL_SEED` repeats the dice of an earlier run,
//! though not the machine's own timing.

mod asks;
mod messages;
mod orphans;
mod platform;
mod service;
mod verdict;

use std::process::ExitCode;

use janebot::world::World;

/// How many, unless the environment says otherwise: enough for some of each kind of death.
const ASKS: u64 = 25;
const MESSAGES: u64 = 40;

fn main() -> ExitCode {
    janebot::host::sandbox::maybe_run_init();
    if let Ok(platform) = std::env::var(service::PLATFORM) {
        return service::run(&platform);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        println!("kill: test");
        return ExitCode::SUCCESS;
    }
    if words.iter().find(|word| !word.starts_with('-')).is_some_and(|filter| !"kill".contains(filter.as_str())) {
        // `cargo test NAME` means some other test.
        return ExitCode::SUCCESS;
    }
    // Whatever a killed process leaves behind becomes a child of this one, and can be counted.
    orphans::adopt();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(all())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

async fn all() -> ExitCode {
    let seed = number("JANEBOT_KILL_SEED", World::real().random());
    println!("JANEBOT_KILL_SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    let [asks, messages] = ["asks", "messages"].map(|name| folder.path().join(name));
    if let Some(reason) = asks::sandboxes_are_missing(&asks).await {
        println!("skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    let (asked, served) = tokio::join!(
        asks::run(&asks, number("JANEBOT_KILL_ASKS", ASKS), World::seeded(seed)),
        messages::run(&messages, number("JANEBOT_KILL_MESSAGES", MESSAGES), World::seeded(seed.wrapping_add(1))),
    );
    let mut broken: Vec<String> = [asked.broken, served.broken].concat();
    let orphans = orphans::left().await;
    broken.extend(orphans.iter().map(|orphan| format!("a process is left over: {orphan}")));
    print!("{}{}", asked.table, served.table);
    println!("{:<72} {:>6}", "processes left over", orphans.len());
    if broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    for line in &broken {
        println!("broken: {line}");
    }
    println!("What they left is in {}", folder.keep().display());
    ExitCode::FAILURE
}
