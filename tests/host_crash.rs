//! The embedded host is killed, at whatever moment, and started again: nothing half-made is ever seen.
//!
//! A loop of random operations and kills, for `JANEBOT_CRASH_SECONDS` (20), from `JANEBOT_CRASH_SEED`. The machine does
//! not go down, so not only the last checkpoint must be there but the present files too.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use janebot::sprites::http::{Deadlines, HttpSprites};
use janebot::sprites::{CheckpointId, ExecRequest, Output, Sprites};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// Everything here ends within this; a test that hangs fails instead.
const PATIENCE: Duration = Duration::from_secs(30);

/// Files that one change writes, all with the same text.
const FILES: usize = 40;

struct HostProcess {
    child: Child,
    sprites: HttpSprites,
}

impl HostProcess {
    /// `None`, with the reason printed, where sandboxes can't be built.
    fn start(data: &Path) -> Option<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_janebot"))
            .arg("host")
            .env_clear()
            .env("DATA_DIR", data)
            .env("HOME", data)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(data.join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        if lines.read_line(&mut line).unwrap() == 0 {
            assert_eq!(child.wait().unwrap().code(), Some(2));
            println!("skipped: {}", fs::read_to_string(data.join("log")).unwrap());
            return None;
        }
        let url = line.lines().next().unwrap().strip_prefix("SPRITES_API_URL=").unwrap().to_owned();
        for _ in 0..2 {
            lines.read_line(&mut line).unwrap();
        }
        let token = SecretString::from(fs::read_to_string(data.join("host/token")).unwrap());
        let deadlines = Deadlines { retry_pause: Duration::from_millis(5), rest: PATIENCE, ..Deadlines::default() };
        Some(Self { child, sprites: HttpSprites::new(&url, token, deadlines).unwrap() })
    }

    /// Kills it, and waits until all that it started is gone too.
    async fn kill(mut self) {
        let inside = below(self.child.id());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let gone = async {
            while inside.iter().any(|&pid| is_alive(pid)) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.expect("no process of a sandbox outlives its host");
    }
}

fn below(pid: u32) -> Vec<u32> {
    let list = |pid: u32| -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
    };
    let mut found = list(pid);
    let mut next = 0;
    while next < found.len() {
        found.extend(list(found[next]));
        next += 1;
    }
    found
}

/// Zombies don't count: who reaps them is this machine's affair.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn sh(sprites: &HttpSprites, name: &str, script: &str) -> Result<Output, janebot::sprites::SpritesError> {
    let argv = ["sh", "-c", script].map(str::to_owned).into();
    let request = ExecRequest { argv, timeout: PATIENCE, ..ExecRequest::default() };
    sprites.exec(name, request).await?.output(1 << 20).await
}

/// Replaces the text in all files, and notes it first and last.
fn change(text: &str) -> String {
    format!(
        "echo {text} > begun; mkdir -p d; for i in $(seq {FILES}); do rm -f d/$i; echo {text} > d/$i; done; \
         echo {text} > done"
    )
}

/// What one sprite should be like.
#[derive(Clone, Debug, Default)]
struct Model {
    /// The text of the present files.
    live: String,
    checkpoints: BTreeMap<String, String>,
}

/// The text that all of a sprite's files have; the several texts of a change that was cut off.
async fn texts(sprites: &HttpSprites, name: &str) -> Vec<String> {
    let output = sh(sprites, name, "cat begun done d/* 2> /dev/null | sort -u").await.unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[derive(Clone, Debug)]
enum Doing {
    Change(String),
    Checkpoint,
    Restore(String),
    CreateAndDelete,
}

/// Does it until it is done or the host is killed; whether it was done, with a new checkpoint's id.
async fn act(sprites: HttpSprites, name: &'static str, doing: Doing) -> Option<Option<CheckpointId>> {
    match doing {
        Doing::Change(text) => {
            let output = sh(&sprites, name, &change(&text)).await.ok()?;
            (output.status == 0).then_some(None)
        }
        Doing::Checkpoint => Some(Some(sprites.create_checkpoint(name, "").await.ok()?)),
        Doing::Restore(id) => {
            sprites.restore(name, &CheckpointId::new(&id).unwrap()).await.ok()?;
            Some(None)
        }
        Doing::CreateAndDelete => {
            sprites.create("passing", &[]).await.ok()?;
            sh(&sprites, "passing", "echo > file").await.ok()?;
            sprites.delete("passing").await.ok()?;
            Some(None)
        }
    }
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_killed_at_any_moment_comes_back_with_whole_sprites() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let Some(host) = HostProcess::start(&data) else { return };
    let seed = number("JANEBOT_CRASH_SEED", u64::from(std::process::id()));
    println!("JANEBOT_CRASH_SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let names = ["a", "b"];
    let mut models: BTreeMap<&str, Model> = BTreeMap::new();
    for name in names {
        host.sprites.create(name, &[]).await.unwrap();
        assert_eq!(sh(&host.sprites, name, &change("0")).await.unwrap().status, 0);
        models.insert(name, Model { live: "0".into(), checkpoints: BTreeMap::new() });
    }
    // One has a chain that is about to be long, so that kills also meet its flattening.
    for _ in 0..15 {
        let id = host.sprites.create_checkpoint("a", "").await.unwrap();
        models.get_mut("a").unwrap().checkpoints.insert(id.as_str().into(), "0".into());
    }

    let mut host = host;
    let until = Instant::now() + Duration::from_secs(number("JANEBOT_CRASH_SECONDS", 20));
    let (mut kills, mut cut) = (0, 0);
    while Instant::now() < until {
        let name = names[chance.random_range(0..names.len())];
        let model = models.get_mut(name).unwrap();
        // Several in a row, the last of which is cut off.
        let count = chance.random_range(1..4);
        for turn in 0..count {
            let doing = match chance.random_range(0..10) {
                0..3 => Doing::Change(format!("{kills}-{turn}")),
                3..6 => Doing::Checkpoint,
                6 => Doing::CreateAndDelete,
                _ if model.checkpoints.is_empty() => Doing::Checkpoint,
                _ => {
                    let n = chance.random_range(0..model.checkpoints.len());
                    Doing::Restore(model.checkpoints.keys().nth(n).unwrap().clone())
                }
            };
            let acting = tokio::spawn(act(host.sprites.clone(), name, doing.clone()));
            let is_last = turn + 1 == count;
            if is_last {
                // The moment of the kill is what varies.
                sleep(Duration::from_micros(chance.random_range(0..80_000))).await;
                host = break_off(host, acting, name, doing, model, &data, &mut cut).await;
                break;
            }
            let done = timeout(PATIENCE, acting).await.unwrap().unwrap();
            note_done(model, &doing, done.unwrap_or_else(|| panic!("{doing:?} of {name} failed")));
        }
        kills += 1;
    }
    host.kill().await;
    println!("{kills} kills, {cut} of them in the middle of something");
    settle(&data, &models).await;
}

fn note_done(model: &mut Model, doing: &Doing, made: Option<CheckpointId>) {
    match doing {
        Doing::Change(text) => model.live.clone_from(text),
        Doing::Restore(id) => model.live.clone_from(&model.checkpoints[id]),
        Doing::CreateAndDelete | Doing::Checkpoint => {}
    }
    if let Some(id) = made {
        model.checkpoints.insert(id.as_str().into(), model.live.clone());
    }
}

/// Kills the host while `acting` goes on, starts it again, and compares what is there with what may be there.
async fn break_off(
    host: HostProcess,
    acting: tokio::task::JoinHandle<Option<Option<CheckpointId>>>,
    name: &'static str,
    doing: Doing,
    model: &mut Model,
    data: &Path,
    cut: &mut u32,
) -> HostProcess {
    host.kill().await;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(data.to_str().unwrap()), "a mount is left: {mounts}");
    let done = timeout(PATIENCE, acting).await.unwrap().unwrap();
    let was_done = done.is_some();
    *cut += u32::from(!was_done);
    if let Some(made) = done {
        note_done(model, &doing, made);
    }
    for entry in fs::read_dir(data.join("host/sprites")).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_str().unwrap().starts_with(".new-") {
            let meta = fs::read(path.join("meta.json")).unwrap();
            serde_json::from_slice::<Value>(&meta).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }

    let host = HostProcess::start(data).unwrap();
    let found = host.sprites.list("").await.unwrap();
    let known: Vec<&str> = found.iter().map(|s| s.name.as_str()).filter(|n| *n != "passing").collect();
    assert_eq!(known, ["a", "b"]);
    let listed = host.sprites.checkpoints(name).await.unwrap();
    let mut ids: Vec<String> = listed.iter().map(|c| c.id.as_str().to_owned()).collect();
    ids.retain(|id| !model.checkpoints.contains_key(id));
    match (&doing, &ids[..]) {
        (_, []) => {}
        // It was made, and its maker was not told.
        (Doing::Checkpoint, [id]) if !was_done => {
            model.checkpoints.insert(id.clone(), model.live.clone());
        }
        _ => panic!("{doing:?} left the checkpoints {ids:?}"),
    }
    let texts = texts(&host.sprites, name).await;
    let may_be = match &doing {
        Doing::Change(text) if !was_done => {
            // Cut off in the middle, as a program can be: old and new.
            assert!(texts.iter().all(|t| *t == model.live || t == text), "{doing:?}: {texts:?}, was {}", model.live);
            // Whole again, so that the next comparison is a sharp one.
            assert_eq!(sh(&host.sprites, name, &change(text)).await.unwrap().status, 0);
            model.live.clone_from(text);
            return host;
        }
        Doing::Restore(id) if !was_done => vec![model.live.clone(), model.checkpoints[id].clone()],
        _ => vec![model.live.clone()],
    };
    let [text] = &texts[..] else { panic!("{doing:?} left {texts:?}") };
    assert!(may_be.contains(text), "{doing:?} (done: {was_done}) left {text}, not one of {may_be:?}");
    model.live.clone_from(text);
    // A sprite that was being made or deleted is whole or not there.
    if found.iter().any(|s| s.name == "passing") {
        assert_eq!(sh(&host.sprites, "passing", "echo fine").await.unwrap().stdout, b"fine\n");
        host.sprites.delete("passing").await.unwrap();
    }
    host
}

/// All checkpoints show what they should, and what no sprite needs is gone from the disk.
async fn settle(data: &Path, models: &BTreeMap<&str, Model>) {
    let host = HostProcess::start(data).unwrap();
    for (name, model) in models {
        for (id, text) in &model.checkpoints {
            host.sprites.restore(name, &CheckpointId::new(id).unwrap()).await.unwrap();
            assert_eq!(texts(&host.sprites, name).await, std::slice::from_ref(text), "{name} at {id}");
        }
    }
    let names = |path: PathBuf| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let reclaimed = async {
        loop {
            let is_clean = names(data.join("host/trash")).is_empty()
                && names(data.join("host/sprites")).len() == models.len()
                && models.iter().all(|(name, model)| {
                    let sprite = data.join("host/sprites").join(name);
                    let layers = names(sprite.join("layers"));
                    let is_needed = |l: &String| model.checkpoints.contains_key(l.trim_end_matches("-flat"));
                    layers.len() <= model.checkpoints.len() + 1
                        && layers.iter().all(is_needed)
                        && names(sprite.join("runs")).len() <= 1
                });
            if is_clean {
                return;
            }
            // Looks again once the host has answered something.
            host.sprites.list("").await.unwrap();
        }
    };
    if timeout(PATIENCE, reclaimed).await.is_err() {
        let left = Command::new("find").arg(data.join("host")).args(["-maxdepth", "4"]).output().unwrap();
        panic!("not all was reclaimed:\n{}", String::from_utf8_lossy(&left.stdout));
    }
    host.kill().await;
}
