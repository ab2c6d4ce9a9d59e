//! Real sandboxes: what works in them, what a restore leaves, and what can't be reached from inside.
//!
//! Everything runs twice where it can: as the user that runs the tests and, when that is root, as an ordinary user in a
//! process of its own ([`again_as_an_ordinary_user`]).

mod files;
mod limits;
mod programs;
mod walls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use janebot::config::{Isolation, Limits};
use janebot::host::layers;
use janebot::host::sandbox::{Command, FsOp, Process, Sandbox, SandboxError, SandboxSpec, Stdio, probe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HELPER: &str = env!("CARGO_BIN_EXE_janebot");
/// Nothing here takes a second; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Sprite {
    dir: tempfile::TempDir,
    isolation: Isolation,
    limits: Limits,
    rootfs: Option<PathBuf>,
}

struct Output {
    status: u8,
    stdout: Vec<u8>,
    stderr: String,
}

impl Output {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim_end()
    }
}

impl Sprite {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), isolation: Isolation::Full, limits: Limits::default(), rootfs: None }
    }

    fn open() -> Self {
        let mut sprite = Self::new();
        sprite.isolation = Isolation::Off;
        sprite
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("sprite")
    }

    async fn start(&self, lower: &[&str]) -> Sandbox {
        self.start_run(lower).await.0
    }

    async fn start_run(&self, lower: &[&str]) -> (Sandbox, String) {
        let (sandbox, run) = self.try_start(lower).await;
        (sandbox.unwrap(), run)
    }

    async fn try_start(&self, lower: &[&str]) -> (Result<Sandbox, SandboxError>, String) {
        let run = layers::new_run(&self.path()).unwrap();
        let spec = SandboxSpec {
            name: "sprite-under-test".into(),
            dir: self.path(),
            lower: lower.iter().map(|&l| l.into()).collect(),
            run: run.clone(),
            rootfs: self.rootfs.clone(),
            limits: self.limits.clone(),
            ports: vec![443],
            isolation: self.isolation,
        };
        (Sandbox::start_with(Path::new(HELPER), spec).await, run)
    }
}

impl Drop for Sprite {
    fn drop(&mut self) {
        // The temporary folder can't delete what overlayfs has closed.
        let _ = layers::recover(&self.path(), &[]).and_then(|()| layers::empty_trash(&self.path()));
    }
}

fn argv(words: &[&str]) -> Command {
    Command::Exec { argv: words.iter().map(|&w| w.into()).collect(), env: Vec::new(), dir: None, tty: None }
}

fn sh(script: &str) -> Command {
    argv(&["sh", "-c", script])
}

async fn finish(process: Process, input: &[u8]) -> Output {
    let Stdio::Pipes { mut stdin, mut stdout, mut stderr } = process.stdio else { panic!("no pipes") };
    let (mut out, mut err) = (Vec::new(), String::new());
    let write = async {
        // A program that does not read its input closes the pipe.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let everything = async {
        let (_, o, e) = tokio::join!(write, stdout.read_to_end(&mut out), stderr.read_to_string(&mut err));
        o.unwrap();
        e.unwrap();
        process.exit.await.unwrap()
    };
    let status = tokio::time::timeout(PATIENCE, everything).await.unwrap();
    Output { status, stdout: out, stderr: err }
}

async fn run(sandbox: &Sandbox, command: Command) -> Output {
    finish(sandbox.spawn(command).await.unwrap(), b"").await
}

/// The text that a script prints; it must succeed.
async fn says(sandbox: &Sandbox, script: &str) -> String {
    let output = run(sandbox, sh(script)).await;
    assert_eq!(output.status, 0, "{script}: {}", output.stderr);
    output.text().to_owned()
}

fn refusal(result: Result<Process, SandboxError>) -> SandboxError {
    result.map(|process| process.pid).unwrap_err()
}

/// Runs a Python program inside, which prints what it found. `None`, with a word why, where there is no Python.
async fn python(sandbox: &Sandbox, program: &str) -> Option<String> {
    let output = match sandbox.spawn(argv(&["python3", "-c", program])).await {
        Err(e) if e.exit_status() == Some(127) => {
            println!("skipped: there is no python3 in the sandbox");
            return None;
        }
        process => finish(process.unwrap(), b"").await,
    };
    assert_eq!(output.status, 0, "{}", output.stderr);
    Some(output.text().to_owned())
}

/// Host processes whose command line holds `mark`, zombies not counted.
fn alive(mark: &str) -> usize {
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let command = std::fs::read(path.join("cmdline")).ok()?;
        (!command.is_empty() && String::from_utf8_lossy(&command).contains(mark)).then_some(())
    };
    std::fs::read_dir("/proc").unwrap().filter_map(count).count()
}

/// A number that marks this test's processes, as an argument of sleep.
fn mark(name: &str) -> String {
    let seed = name.bytes().fold(u64::from(std::process::id()), |a, b| a.wrapping_mul(31).wrapping_add(b.into()));
    format!("{}", 100_000_000 + seed % 800_000_000)
}

#[tokio::test]
async fn the_self_test_passes_here_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let lines = probe(Some(Path::new(HELPER)), dir.path(), None).await.unwrap();
    assert!(lines[0].starts_with("sandboxes work: ready in "), "{lines:?}");
    // Its folder goes in the background.
    while std::fs::read_dir(dir.path()).unwrap().count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_self_test_names_the_step_that_fails_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = probe(Some(Path::new(HELPER)), dir.path(), Some(Path::new("/no/such/root"))).await.unwrap_err();
    assert!(error.to_string().contains("HOST_ROOTFS must be a directory"), "{error}");
    // An image without a single program.
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let error = probe(Some(Path::new(HELPER)), dir.path(), Some(&empty)).await.unwrap_err();
    assert!(error.to_string().contains("empty has no shell"), "{error}");
}

/// All of the above once more as an ordinary user: what is promised then is the same, how it is built is not.
#[test]
fn again_as_an_ordinary_user() {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;
    const ORDINARY: u32 = 12_345;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the tests run as an ordinary user already");
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let closed = |path: &Path| path.ancestors().any(|p| p.metadata().is_ok_and(|m| m.mode() & 0o001 == 0));
    if closed(&exe) || closed(Path::new(HELPER)) {
        println!("skipped: an ordinary user can't execute {}", exe.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(ORDINARY), Some(ORDINARY)).unwrap();
    let output = std::process::Command::new(exe)
        .args(["--test-threads=2", "--skip", "again_as"])
        .env("TMPDIR", dir.path())
        .current_dir(dir.path())
        .gid(ORDINARY)
        .uid(ORDINARY)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Names the process that plays the service in [`a_service_that_is_killed_takes_its_sandboxes_with_it`].
const DOOMED: &str = "JANEBOT_TEST_DOOMED";

#[tokio::test]
async fn a_service_that_is_killed_takes_its_sandboxes_with_it() {
    if let Ok(mark) = std::env::var(DOOMED) {
        let sprite = Sprite::new();
        let sandbox = sprite.start(&[]).await;
        let script = format!("(setsid sh -c 'trap \"\" TERM HUP; sleep {mark} & sleep {mark}' &); sleep {mark}");
        let _process = sandbox.spawn(sh(&script)).await.unwrap();
        std::future::pending::<()>().await;
    }
    let mark = mark("service");
    let dir = tempfile::tempdir().unwrap();
    let mut service = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_service_that_is_killed_takes_its_sandboxes_with_it"])
        .env(DOOMED, &mark)
        .env("TMPDIR", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until(|| alive(&mark) >= 3).await;
    service.kill().unwrap();
    service.wait().unwrap();
    until(|| alive(&mark) == 0).await;
}

#[tokio::test]
async fn a_start_that_fails_half_way_leaves_no_process_and_no_zombie() {
    let sprite = Sprite::new();
    // Noticed by init, when the helper has gone already.
    let error = sprite.try_start(&["layers/none"]).await.0.unwrap_err();
    assert_eq!(error.to_string(), "the sandbox did not start: could not mount the overlay: no such file or directory");
    let dead_children = || {
        let zombie = format!(") Z {} ", std::process::id());
        let stat =
            |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok();
        std::fs::read_dir("/proc").unwrap().filter_map(stat).filter(|stat| stat.contains(&zombie)).count()
    };
    // Other tests' children die at the same time; none stays.
    until(|| dead_children() == 0).await;
}

/// Looks again and again: what is waited for happens in processes that tell nobody.
async fn until(mut happened: impl FnMut() -> bool) {
    let happened = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, happened).await.unwrap();
}
