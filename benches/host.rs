//! The embedded sprite host, measured through its API with the wire client, and its peers on the same work.
//!
//! Prints a table with the figure that each row should have. Needs a machine on which sandboxes can be built; the peers
//! are measured when they are installed and this is root. `cargo bench --bench host -- NAME` runs the parts whose name
//! contains NAME.

#[path = "host/figures.rs"]
mod figures;
#[path = "host/inside.rs"]
mod inside;
#[path = "host/peers.rs"]
mod peers;
#[path = "host/processes.rs"]
mod processes;
#[path = "host/rig.rs"]
mod rig;

use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use janebot::config::{Grant, Limits};
use janebot::sprites::{ExecEvent, NetworkPolicy, Sprites};
use tokio::time::Instant;

use figures::Target::{AtLeast, Below};
use figures::{Samples, figure};
use rig::{Outcome, Rig, config, request};

const DIRTY_FILES: usize = 20_000;
const DIRTY_BYTES: usize = 500 << 20;
const IDLE_SPRITES: usize = 20;
const KEPT_SPRITES: usize = 100;
const DOWNLOAD: u64 = 2 << 30;
/// The name under which sprites reach the bench's own server.
const SERVER: &str = "server.bench.internal";
/// This program inside a sprite.
const PROGRAM: &str = "/home/sprite/bench";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let outcome = match (&args[..], inside::main(&args)) {
        (_, Some(outcome)) => outcome,
        ([word, files], _) if word == peers::WORD => peers::main(files),
        (words, _) => measure(words.first().map_or("", String::as_str)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn measure(wanted: &str) -> Outcome {
    println!("{:<58}{:>10} {:<6}target", "embedded sprite host", "figure", "");
    let is_wanted = |part: &str| part.contains(wanted);
    let dir = tempfile::tempdir()?;
    if is_wanted("start") {
        host_start(dir.path()).await?;
    }
    let port = inside::serve()?;
    let grant = Grant { name: SERVER.into(), target: format!("127.0.0.1:{port}") };
    let rig = Rig::start(config(&dir.path().join("host"), vec![grant], Limits::default())?).await?;
    if is_wanted("create") {
        create(&rig).await?;
    }
    if is_wanted("exec") {
        exec(&rig).await?;
    }
    if is_wanted("memory") {
        memory(&rig).await?;
    }
    if is_wanted("checkpoint") {
        checkpoint(&rig, dir.path()).await?;
    }
    if is_wanted("restore") {
        restore(&rig, "20,000 files", DIRTY_FILES, 100).await?;
        restore(&rig, "500 MB", 500, DIRTY_BYTES / 500).await?;
    }
    if is_wanted("egress") {
        egress(&rig, port).await?;
    }
    rig.stop().await;
    if is_wanted("peers") {
        peers::measure(DIRTY_FILES)?;
    }
    Ok(())
}

/// From nothing to the first output of a program in a new sprite.
async fn create(rig: &Rig) -> Outcome {
    let (mut samples, mut created) = (Samples::default(), Samples::default());
    for round in 0..30 {
        let name = format!("new-{round}");
        let begun = Instant::now();
        rig.sprites.create(&name, &[]).await?;
        created.add(begun.elapsed());
        let mut exec = rig.sprites.exec(&name, request(&["echo", "here"])).await?;
        match exec.next().await {
            Some(Ok(ExecEvent::Stdout(bytes))) if bytes == "here\n" => samples.add(begun.elapsed()),
            other => return Err(format!("the first program of a new sprite said {other:?}").into()),
        }
        drop(exec);
        rig.sprites.delete(&name).await?;
    }
    figure("create until first output of a program, median of 30", samples.median(), "ms", Some(Below(25.0)));
    figure("  at the 90th percentile", samples.at(0.9), "ms", None);
    figure("  of it until the sprite is on disk for good, median", created.median(), "ms", None);
    Ok(())
}

async fn exec(rig: &Rig) -> Outcome {
    rig.sprites.create("exec", &[]).await?;
    let mut samples = Samples::default();
    for _ in 0..50 {
        rig.ok("exec", &["true"]).await?;
    }
    for _ in 0..1000 {
        let begun = Instant::now();
        rig.ok("exec", &["true"]).await?;
        samples.add(begun.elapsed());
    }
    figure("exec of `true` until its exit status, median of 1,000", samples.median(), "ms", Some(Below(3.0)));
    figure("  at the 99th percentile", samples.at(0.99), "ms", None);
    rig.sprites.delete("exec").await?;
    Ok(())
}

async fn memory(rig: &Rig) -> Outcome {
    let this = std::process::id();
    let own = || pss(this).ok_or("this process's memory can't be read");
    let before = own()?;
    for n in 0..IDLE_SPRITES {
        let name = format!("idle-{n}");
        rig.sprites.create(&name, &[]).await?;
        rig.ok(&name, &["true"]).await?;
    }
    let after = own()?;
    let sandboxes = processes::below(this);
    let all: Option<u64> = sandboxes.iter().map(|&pid| pss(pid)).sum();
    let kib = |bytes: u64| bytes as f64 / IDLE_SPRITES as f64 / 1024.0;
    match all {
        Some(all) => figure("idle sprite, its processes, of 20", kib(all), "KiB", Some(Below(2048.0))),
        None => println!("idle sprite: its memory can be read by root only"),
    }
    figure("idle sprite, processes of it", sandboxes.len() as f64 / IDLE_SPRITES as f64, "", None);
    figure("host, for each sprite that runs", kib(after.saturating_sub(before)), "KiB", None);
    for n in 0..IDLE_SPRITES {
        rig.sprites.delete(&format!("idle-{n}")).await?;
    }
    Ok(())
}

/// Bytes of memory of a process, shared pages counted in part. `None` where it can't be read.
fn pss(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Puts this program into a sprite.
async fn bring_program(rig: &Rig, sprite: &str) -> Outcome {
    let program = Bytes::from(std::fs::read(std::env::current_exe()?)?);
    rig.sprites.write_file(sprite, PROGRAM, 0o755, program).await?;
    Ok(())
}

/// With the data on disk already: what a checkpoint takes beyond the sync, which is the disk's business.
async fn checkpoint(rig: &Rig, dir: &Path) -> Outcome {
    let mut samples = Samples::default();
    rig.sprites.create("check", &[]).await?;
    bring_program(rig, "check").await?;
    for round in 0..7 {
        let (files, folder) = (DIRTY_FILES.to_string(), format!("dirty-{round}"));
        rig.ok("check", &[PROGRAM, "fill", &folder, &files, "100"]).await?;
        rustix::fs::syncfs(std::fs::File::open(dir)?)?;
        let begun = Instant::now();
        rig.sprites.create_checkpoint("check", "").await?;
        samples.add(begun.elapsed());
        rig.ok("check", &["rm", "-r", &folder]).await?;
    }
    figure("checkpoint of 20,000 files, synced before, median of 7", samples.median(), "ms", Some(Below(60.0)));
    rig.sprites.delete("check").await?;
    Ok(())
}

async fn restore(rig: &Rig, what: &str, files: usize, bytes: usize) -> Outcome {
    let (mut samples, mut streams, mut after) = (Samples::default(), Samples::default(), Samples::default());
    rig.sprites.create("restore", &[]).await?;
    bring_program(rig, "restore").await?;
    let id = rig.sprites.create_checkpoint("restore", "").await?;
    for _ in 0..7 {
        rig.ok("restore", &[PROGRAM, "fill", "dirty", &files.to_string(), &bytes.to_string()]).await?;
        let begun = Instant::now();
        rig.sprites.restore("restore", &id).await?;
        streams.add(begun.elapsed());
        let left = rig.ok("restore", &["ls"]).await?;
        samples.add(begun.elapsed());
        if left != "bench\n" {
            return Err(format!("after the restore there is {left}").into());
        }
        for _ in 0..20 {
            let begun = Instant::now();
            rig.ok("restore", &["true"]).await?;
            after.add(begun.elapsed());
        }
    }
    let name = format!("restore, {what} dirty, until it answers, median of 7");
    figure(&name, samples.median(), "ms", Some(Below(50.0)));
    figure("  until the restore is told to be done", streams.median(), "ms", None);
    figure("  exec of `true` while the old files are deleted, median", after.median(), "ms", None);
    rig.sprites.delete("restore").await?;
    Ok(())
}

async fn egress(rig: &Rig, port: u16) -> Outcome {
    rig.sprites.create("egress", &[]).await?;
    rig.sprites.set_policy("egress", &NetworkPolicy::allow([SERVER])).await?;
    bring_program(rig, "egress").await?;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    let (mut direct_opening, mut opening) = (Vec::new(), Vec::new());
    let (bytes, port) = (DOWNLOAD.to_string(), port.to_string());
    // In turns, since the machine may be busy with something else for a while.
    for _ in 0..7 {
        direct.push(here(&["pull", "127.0.0.1", &port, &bytes])?);
        through.push(rig.ok("egress", &[PROGRAM, "pull", SERVER, "80", &bytes]).await?.trim().parse()?);
        direct_opening.push(here(&["connect", "127.0.0.1", &port, "300"])?);
        opening.push(rig.ok("egress", &[PROGRAM, "connect", SERVER, "80", "300"]).await?.trim().parse()?);
    }
    let [direct, through, direct_opening, opening] = [direct, through, direct_opening, opening].map(median);
    let gbit = |bytes: f64| bytes * 8.0 / 1e9;
    figure("download on loopback, direct", gbit(direct), "Gbit/s", None);
    figure("download through the gateway", gbit(through), "Gbit/s", None);
    figure("  as share of direct", through / direct * 100.0, "%", Some(AtLeast(45.0)));
    figure("connection and a byte there and back, direct", direct_opening, "ms", None);
    figure("  added by the gateway", opening - direct_opening, "ms", Some(Below(0.3)));
    rig.sprites.delete("egress").await?;
    Ok(())
}

/// Runs this program on this machine itself; the number that it prints.
fn here(args: &[&str]) -> Outcome<f64> {
    let output = std::process::Command::new(std::env::current_exe()?).args(args).output()?;
    if !output.status.success() {
        return Err(format!("{args:?} ended with {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Starting the host with many sprites on disk, until it answers.
async fn host_start(dir: &Path) -> Outcome {
    let settings = || config(&dir.join("kept"), Vec::new(), Limits::default());
    let rig = Rig::start(settings()?).await?;
    for n in 0..KEPT_SPRITES {
        let name = format!("kept-{n}");
        rig.sprites.create(&name, &[]).await?;
        // As they are in use: each has run.
        rig.ok(&name, &["sh", "-c", "echo > file"]).await?;
    }
    rig.stop().await;
    let mut samples = Samples::default();
    for _ in 0..10 {
        let begun = Instant::now();
        let rig = Rig::start(settings()?).await?;
        let found = rig.sprites.list("kept-").await?.len();
        samples.add(begun.elapsed());
        if found != KEPT_SPRITES {
            return Err(format!("{found} sprites are left of {KEPT_SPRITES}").into());
        }
        rig.stop().await;
    }
    figure("host start with 100 sprites on disk, median of 10", samples.median(), "ms", Some(Below(100.0)));
    Ok(())
}
