//! The built binary's `janebot host` driven by the official SDKs, unchanged: the drivers in `tests/conformance/` show
//! and check every step.
//!
//! The SDKs are not part of the project: `.ci/run` installs them below the target directory. Where they are absent the
//! test says so and passes.

mod ordinary;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A host in a folder of its own, stopped in the end.
struct HostProcess {
    child: Child,
    url: String,
    token: String,
    _data: tempfile::TempDir,
}

impl HostProcess {
    /// `None`, with the reason printed, where sandboxes can't be built.
    fn start() -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_janebot"))
            .arg("host")
            .env_clear()
            .env("DATA_DIR", data.path())
            .env("HOME", data.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let url = lines.find_map(|line| Some(line.strip_prefix("SPRITES_API_URL=")?.to_owned()));
        let path = lines.find_map(|line| Some(line.split("cat ").nth(1)?.trim_end_matches([')', '"']).to_owned()));
        // Read to its end, so that the host never waits for a reader.
        let stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).collect::<Vec<_>>());
        let (Some(url), Some(path)) = (url, path) else {
            let said = log.join().unwrap().join("\n");
            child.wait().unwrap();
            assert!(said.contains("can't be isolated here"), "the host did not start: {said}");
            println!("skipped: {said}");
            return None;
        };
        let token = std::fs::read_to_string(path).unwrap().trim().to_owned();
        Some(Self { child, url, token, _data: data })
    }

    /// Runs a driver, shows what it says, and wants it to succeed.
    fn drive(&self, mut driver: Command) {
        let output = driver
            .env("SPRITES_API_URL", &self.url)
            .env("SPRITES_TOKEN", &self.token)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(std::thread::panicking() || status.success(), "the host ended with {status}");
    }
}

fn target() -> &'static Path {
    // Of the test's temporary folder, which lies in it.
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

fn driver(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name)
}

/// The virtual environment's Python or, where this user can't reach what that links to, any other with its packages.
fn python() -> Option<Command> {
    let venv = target().join("sdk-venv");
    let packages = std::fs::read_dir(venv.join("lib")).ok()?.flatten().map(|lib| lib.path().join("site-packages"));
    let packages = std::env::join_paths(packages).ok()?;
    [venv.join("bin/python"), "python3".into()].into_iter().find_map(|program| {
        let command = || {
            let mut command = Command::new(&program);
            command.env("PYTHONPATH", &packages).env("PYTHONDONTWRITEBYTECODE", "1");
            command
        };
        let tried = command().args(["-c", "import sprites"]).output();
        tried.is_ok_and(|output| output.status.success()).then(command)
    })
}

#[test]
fn the_python_sdk_can_not_tell_the_difference() {
    let Some(mut python) = python() else {
        println!(
            "skipped: the Python SDK is not below {}, or there is no Python for it; .ci/run brings it",
            target().display()
        );
        return;
    };
    let Some(host) = HostProcess::start() else { return };
    python.arg(driver("python.py"));
    host.drive(python);
}

#[test]
fn the_javascript_sdk_can_not_tell_the_difference() {
    let sdk = target().join("sdk-js/node_modules/@fly/sprites/dist/index.js");
    // Also false where the way to it is closed to this user.
    if sdk.metadata().is_err() {
        println!("skipped: {} is not there; .ci/run brings it", sdk.display());
        return;
    }
    // Node before 22 has WebSockets only when asked to; later ones still take the word.
    let node = || {
        let mut command = Command::new("node");
        command.arg("--experimental-websocket");
        command
    };
    let has_sockets = node().args(["-e", "new WebSocket('ws://127.0.0.1:9').onerror = () => {}"]).output();
    if !has_sockets.is_ok_and(|output| output.status.success()) {
        println!("skipped: node is not there, or is too old for WebSockets");
        return;
    }
    let Some(host) = HostProcess::start() else { return };
    let mut command = node();
    command.arg(driver("javascript.mjs")).env("SPRITES_SDK", sdk);
    host.drive(command);
}

#[test]
fn again_as_an_ordinary_user() {
    ordinary::again();
}
