//! Real sandboxes: what works in them, what a restore leaves, and what can't be reached from inside.
//!
//! Everything runs twice where it can: as the user that runs the tests and, when that is root, as an ordinary user in a
//! process of its own ([`again_as_an_ordinary_user`]).

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
        Self { dir: tempfile::tempdir().unwrap(), isolation: Isolation::Full, limits: Limits::default() }
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
        let run = layers::new_run(&self.path()).unwrap();
        let spec = SandboxSpec {
            name: "sprite-under-test".into(),
            dir: self.path(),
            lower: lower.iter().map(|&l| l.into()).collect(),
            run: run.clone(),
            rootfs: None,
            limits: self.limits.clone(),
            ports: vec![443],
            isolation: self.isolation,
        };
        (Sandbox::start_with(Path::new(HELPER), spec).await.unwrap(), run)
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
        (o.unwrap(), e.unwrap());
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

#[tokio::test]
async fn a_program_runs_as_the_sprite_in_its_home() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let text =
        says(&sandbox, "id -u; id -g; id -un; pwd; hostname; echo $HOME $USER $PATH; ls -ld . | cut -c1-10").await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..5], ["1000", "1000", "sprite", "/home/sprite", "sprite-under-test"]);
    assert!(lines[5].starts_with("/home/sprite sprite /home/sprite/.local/bin:"));
    sandbox.stop().await.unwrap();
}
