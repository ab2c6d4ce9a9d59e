//! The simulation: the real pool, runners, supervisors, desk and conversations on a paused clock, with an in-memory
//! sprite cloud that fails and lies, users who write, cancel and repeat themselves, actors that are killed, processes
//! that crash and start again, and a second deployment under the same names. Everything follows from one seed.
//!
//! `JANEBOT_SIM_SEEDS=N` runs N seeds instead of the default; `JANEBOT_SIM_SEED=S` runs one and prints its log. Whether it
//! would notice a broken promise is what `tests/mutations.sh` shows: it puts deliberate bugs into a copy of the source.

#[path = "sim/chat.rs"]
mod chat;
mod doubles;
#[path = "sim/judge.rs"]
mod judge;
#[path = "sim/platform.rs"]
mod platform;
#[path = "sim/process.rs"]
mod process;
#[path = "sim/scenario.rs"]
mod scenario;
#[path = "sim/stop.rs"]
mod stop;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use scenario::{Report, Scenario};

/// Seeds that `cargo test` runs.
const SEEDS: u64 = 2_000;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Runs one seed in a runtime of its own.
fn run(seed: u64) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { Scenario::of(seed).play().await })
}

#[test]
fn every_promise_holds_whatever_fails() {
    if let Some(seed) = setting("JANEBOT_SIM_SEED") {
        let report = run(seed);
        println!("{}", report.log);
        assert!(report.broken.is_empty(), "seed {seed}:\n{}", report.broken.join("\n"));
        return;
    }
    let seeds = setting("JANEBOT_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let totals = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut totals = scenario::Totals::default();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds {
                            return totals;
                        }
                        let report = run(seed);
                        assert!(
                            report.broken.is_empty(),
                            "seed {seed} breaks a promise:\n{}\nto replay it with its log:\n  JANEBOT_SIM_SEED={seed} cargo test --test sim -- --nocapture",
                            report.broken.join("\n")
                        );
                        totals.add(&report.totals);
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>()
    });
    let mut sum = scenario::Totals::default();
    for totals in totals {
        match totals {
            Ok(totals) => sum.add(&totals),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    println!("{seeds} seeds: {sum}");
    // A simulation in which nothing happens proves nothing.
    assert!(sum.answered > seeds && sum.kills > seeds / 2 && sum.crashes > seeds / 8, "{sum}");
}

#[test]
fn one_seed_gives_one_log() {
    for seed in [3, 14, 159] {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.log, second.log, "seed {seed} differs between two runs");
    }
}
