//! The embedded sprite host under a mixed load for a long time: does anything grow?
//!
//! `cargo bench --bench soak -- SECONDS [CLIENTS]` (or `JANEBOT_SOAK_SECONDS`; 60 and 4). Every ten seconds a line, at
//! the end a verdict: memory, descriptors, mounts, processes and control groups over the second half. `-- execs` runs
//! 10,000 programs in one sprite instead and looks for zombies. Exits with 1 when something grew or an operation failed.

#[path = "soak/gauges.rs"]
mod gauges;
#[path = "soak/load.rs"]
mod load;
#[path = "host/processes.rs"]
mod processes;
#[path = "host/rig.rs"]
mod rig;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use janebot::config::Limits;
use janebot::sprites::Sprites;
use tokio::time::{Instant, MissedTickBehavior, interval};

use gauges::{Gauges, growth};
use load::Client;
use rig::{Outcome, Rig, config};

const USUAL_SECONDS: u64 = 60;
const USUAL_CLIENTS: u64 = 4;
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Programs of the short mode, and how many at a time.
const EXECS: usize = 10_000;
const AT_A_TIME: usize = 4;

/// What a gauge may grow over the second half and still count as flat: what one sprite more or less makes.
const RSS_SLACK: f64 = 8.0 * 1024.0 * 1024.0;
const COUNT_SLACK: f64 = 6.0;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let outcome = match &args[..] {
        [word] if word == "execs" => execs(),
        words => soak(words),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn soak(words: &[String]) -> Outcome<bool> {
    let seconds = match (words.first(), std::env::var("JANEBOT_SOAK_SECONDS")) {
        (Some(text), _) => text.parse()?,
        (None, Ok(text)) => text.parse()?,
        (None, Err(_)) => USUAL_SECONDS,
    };
    let clients = words.get(1).map_or(Ok(USUAL_CLIENTS), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let rig = Rig::start(config(&dir.path().join("host"), Vec::new(), Limits::default())?).await?;
    let begun = Instant::now();
    let stop = AtomicBool::new(false);
    let done: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let failures: Mutex<Vec<String>> = Mutex::default();
    let client = async |number: u64| {
        let mut client = Client::new(&rig, number).await?;
        while !stop.load(Ordering::Relaxed) {
            match client.act().await {
                Ok(what) => *done.lock().expect("no holder panics").entry(what).or_default() += 1,
                Err(error) => {
                    println!("FAILED: {}: {error}", client.name);
                    failures.lock().expect("no holder panics").push(error.to_string());
                }
            }
        }
        rig.sprites.delete(&client.name).await?;
        Ok::<_, rig::Failure>(())
    };
    let watch = async {
        let mut looks = Vec::new();
        let mut ticks = interval(LINE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = 0;
        println!(
            "{:>7}{:>9}{:>6}{:>8}{:>7}{:>11}{:>9}{:>8}{:>9}{:>8}",
            "s", "rss MiB", "fds", "mounts", "procs", "zombies", "groups", "threads", "sprites", "ops/s"
        );
        while begun.elapsed().as_secs() < seconds {
            ticks.tick().await;
            let look = Gauges::look(begun.elapsed().as_secs_f64())?;
            let total: u64 = done.lock().expect("no holder panics").values().sum();
            let sprites = rig.sprites.list("").await?.len();
            println!(
                "{:>7.0}{:>9.1}{:>6}{:>8}{:>7}{:>11}{:>9}{:>8}{sprites:>9}{:>8.1}",
                look.seconds,
                look.rss / 1024.0 / 1024.0,
                look.descriptors,
                look.mounts,
                look.processes,
                look.zombies,
                look.groups,
                look.threads,
                (total - before) as f64 / LINE_EVERY.as_secs_f64(),
            );
            before = total;
            looks.push(look);
        }
        stop.store(true, Ordering::Relaxed);
        Ok::<_, rig::Failure>(looks)
    };
    let (looks, ended) = tokio::join!(watch, futures_util::future::join_all((0..clients).map(client)));
    let looks = looks?;
    ended.into_iter().collect::<Outcome>()?;
    let last = rig.at_rest().await?;
    rig.stop().await;
    println!("done: {:?}", done.into_inner()?);
    let failures = failures.into_inner()?;
    println!("failed: {}", failures.len());
    Ok(verdict(&looks, &last) & failures.is_empty())
}

/// Says of each gauge whether it is flat.
fn verdict(looks: &[Gauges], last: &Gauges) -> bool {
    let rows: [(&str, f64, f64); 6] = [
        ("memory", growth(looks, |g| g.rss), RSS_SLACK),
        ("descriptors", growth(looks, |g| g.descriptors), COUNT_SLACK * 8.0),
        ("mounts", growth(looks, |g| g.mounts), 0.5),
        ("processes", growth(looks, |g| g.processes), COUNT_SLACK * 2.0),
        ("control groups", growth(looks, |g| g.groups), COUNT_SLACK),
        ("threads", growth(looks, |g| g.threads), COUNT_SLACK * 8.0),
    ];
    let words: Vec<String> = rows
        .iter()
        .map(|(name, grew, slack)| {
            let shown =
                if *name == "memory" { format!("{:+.1} MiB", grew / 1024.0 / 1024.0) } else { format!("{grew:+.1}") };
            format!("{name} {shown} {}", if grew > slack { "GREW" } else { "flat" })
        })
        .collect();
    println!("second half: {}", words.join(", "));
    println!(
        "with no sprite left: {} processes, {} zombies, {} control groups, {} descriptors",
        last.processes, last.zombies, last.groups, last.descriptors
    );
    let is_clean = last.processes == 0.0 && last.groups == 0.0;
    let is_flat = rows.iter().all(|(_, grew, slack)| grew <= slack) && is_clean;
    println!("verdict: {}", if is_flat { "FLAT" } else { "GROWS" });
    is_flat
}

impl Rig {
    /// What is left once the last sprites are gone; what is deleted in the background gets a moment.
    async fn at_rest(&self) -> Outcome<Gauges> {
        let mut look = Gauges::look(0.0)?;
        for _ in 0..100 {
            if look.processes == 0.0 && look.groups == 0.0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            look = Gauges::look(0.0)?;
        }
        Ok(look)
    }
}

/// Ten thousand programs, each with a descendant that it leaves behind; no zombie may stay.
#[tokio::main]
async fn execs() -> Outcome<bool> {
    let dir = tempfile::tempdir()?;
    let rig = Rig::start(config(&dir.path().join("host"), Vec::new(), Limits::default())?).await?;
    rig.sprites.create("execs", &[]).await?;
    rig.ok("execs", &["true"]).await?;
    let before = Gauges::look(0.0)?;
    let begun = Instant::now();
    let run = async |_| {
        for _ in 0..EXECS / AT_A_TIME {
            rig.ok("execs", &["sh", "-c", "(setsid true &)"]).await?;
        }
        Ok::<_, rig::Failure>(())
    };
    futures_util::future::join_all((0..AT_A_TIME).map(run)).await.into_iter().collect::<Outcome>()?;
    let rate = EXECS as f64 / begun.elapsed().as_secs_f64();
    // The last descendants may just be ending.
    let mut after = Gauges::look(0.0)?;
    for _ in 0..100 {
        if after.processes <= before.processes {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        after = Gauges::look(0.0)?;
    }
    println!("{EXECS} execs at {rate:.0} /s");
    println!(
        "processes {} before, {} after; zombies {} after; descriptors {} before, {} after; memory {:+.1} MiB",
        before.processes,
        after.processes,
        after.zombies,
        before.descriptors,
        after.descriptors,
        (after.rss - before.rss) / 1024.0 / 1024.0
    );
    let is_clean = after.zombies == 0.0 && after.processes <= before.processes;
    println!("verdict: {}", if is_clean { "NO ZOMBIES" } else { "LEFTOVERS" });
    rig.stop().await;
    Ok(is_clean)
}
