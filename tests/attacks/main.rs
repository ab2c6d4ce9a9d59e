//! Hostile programs in real sprites: each row of SECURITY.md's table is tried, and each wall is taken away once to see an
//! attack get through.
//!
//! This binary is the test, and uploaded into a sprite it is the hostile program too, so that there is one language, no
//! compiler and no mistaking one error for another. It prints its table. As root it does everything twice, the second
//! time as an ordinary user.

mod calls;
mod control;
mod inside;
mod liar;
mod machine;
mod rig;
mod stories;
mod table;

use std::process::ExitCode;

use janebot::host::HostError;
use janebot::host::sandbox::SandboxError;

use crate::machine::Machine;
use crate::rig::{Rig, limits};

/// Arguments of this test for itself.
const AS_ORDINARY: &str = "as-an-ordinary-user";
const DOOMED: &str = "doomed-service";
/// `cargo test --test attacks -- only:memory` prints only the attacks whose name holds the word, and takes no wall away.
const ONLY: &str = "only:";
/// An id that nobody has.
const ORDINARY: u32 = 12_345;

fn main() -> ExitCode {
    liar::maybe_run();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [inside::ARGUMENT, rest @ ..] => inside::run(rest),
        [DOOMED, state, mark] => return run(stories::doomed(state, mark)),
        _ => {}
    }
    if words.contains(&"--list") {
        println!("attacks: test");
        return ExitCode::SUCCESS;
    }
    let filter = words.iter().find(|word| !word.starts_with('-') && **word != AS_ORDINARY);
    let only = filter.and_then(|filter| filter.strip_prefix(ONLY));
    if only.is_none() && filter.is_some_and(|filter| !"attacks".contains(filter)) {
        // `cargo test NAME` means some other test.
        return ExitCode::SUCCESS;
    }
    let again = words.contains(&AS_ORDINARY);
    let dir = tempfile::tempdir().unwrap();
    // Before there are threads.
    let machine = if again { Machine::inherited() } else { Machine::disguised(dir.path()) };
    let mine = run(suite(dir.path(), &machine, only));
    let theirs = if rustix::process::geteuid().is_root() { as_ordinary(&words) } else { ExitCode::SUCCESS };
    machine::clean(dir.path());
    if mine == ExitCode::SUCCESS { theirs } else { mine }
}

fn run(work: impl Future<Output = ExitCode>) -> ExitCode {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

async fn suite(dir: &std::path::Path, machine: &Machine, only: Option<&str>) -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    let who = if root { "as root" } else { "as an ordinary user" };
    let outside = stories::outside(machine).await;
    let state = dir.join("host");
    let rig = match Rig::start(&state, &[], limits(), &outside).await {
        Err(HostError::Isolation(error @ SandboxError::Unsupported { .. })) => {
            println!("skipped {who}: {error}");
            return ExitCode::SUCCESS;
        }
        rig => rig.unwrap(),
    };
    let begun = tokio::time::Instant::now();
    let mut lines = stories::all(&rig, machine, only).await;
    rig.host.shutdown().await;
    println!("{}", table::render(&format!("Attacks {who}, in {:.1} s", begun.elapsed().as_secs_f64()), &lines));
    if only.is_none() {
        let begun = tokio::time::Instant::now();
        let controls = control::all(dir, machine, &outside).await;
        let title = format!("Walls taken away {who}, in {:.1} s", begun.elapsed().as_secs_f64());
        println!("{}", table::render(&title, &controls));
        lines.extend(controls);
    }
    if only.is_none() {
        lines.extend(table::undocumented(&lines));
    }
    let failed: Vec<&str> = lines.iter().filter(|line| line.failed()).map(|line| line.number.as_str()).collect();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed {who}: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// Everything once more as an ordinary user: what is promised then is the same, how it is built is not.
fn as_ordinary(words: &[&str]) -> ExitCode {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;
    let exe = std::env::current_exe().unwrap();
    let closed = |path: &std::path::Path| path.ancestors().any(|p| p.metadata().is_ok_and(|m| m.mode() & 0o001 == 0));
    if closed(&exe) || closed(env!("CARGO_BIN_EXE_janebot").as_ref()) {
        println!("skipped as an ordinary user: who can't execute {}", exe.display());
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(ORDINARY), Some(ORDINARY)).unwrap();
    let status = std::process::Command::new(exe)
        .arg(AS_ORDINARY)
        .args(words)
        .env("TMPDIR", dir.path())
        .current_dir(dir.path())
        .gid(ORDINARY)
        .uid(ORDINARY)
        .status()
        .unwrap();
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
