//! The service under test, as a process.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::fake_discord::{CHANNEL, FakeDiscord, TOKEN};

/// As the board shows it.
pub const READY: &str = r#""state":"ready""#;

/// One deployment, in a folder of its own, that may run several times.
pub struct Jane {
    data: Arc<tempfile::TempDir>,
    env: BTreeMap<String, String>,
}

pub struct Running {
    /// Kept as long as the process.
    _data: Arc<tempfile::TempDir>,
    child: Child,
    log: mpsc::Receiver<String>,
    seen: Vec<String>,
    pub admin: String,
}

impl Jane {
    /// Everybody may ask in the channel.
    pub fn new(discord: &FakeDiscord) -> Self {
        let env = [
            ("DISCORD_TOKEN", TOKEN.to_owned()),
            ("DISCORD_API_PROXY", discord.api.clone()),
            ("DISCORD_GATEWAY_URL", discord.gateway.clone()),
            ("DISCORD_MESSAGE_CONTENT", "true".into()),
            ("ALLOWED_CHANNEL_IDS", CHANNEL.to_string()),
            ("ADMIN_LISTEN", "127.0.0.1:0".into()),
            ("RUNNERS", "1".into()),
            ("DEBOUNCE", "0s".into()),
            ("DRAIN_TIMEOUT", "2s".into()),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { data: Arc::new(tempfile::tempdir().unwrap()), env }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_janebot"));
        command.args(args).env_clear().env("DATA_DIR", self.data.path()).env("HOME", self.data.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(&self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the service. `None`, with the reason printed, where sandboxes can't be built.
    pub fn start(&self) -> Option<Running> {
        let mut child = self.command(&["--log", "info,janebot=debug"]).spawn().unwrap();
        let (told, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // The test may have heard enough.
                let _ = told.send(line);
            }
        });
        let mut running = Running { _data: self.data.clone(), child, log, seen: Vec::new(), admin: String::new() };
        let line = running.log_line(&["serving chats", "can't be isolated here"]);
        if line.contains("can't be isolated here") {
            println!("skipped: {line}");
            return None;
        }
        let line: Value = serde_json::from_str(&line).unwrap();
        running.admin = line["fields"]["admin"].as_str().unwrap().to_owned();
        Some(running)
    }
}

impl Running {
    /// Waits for a line of the log with one of these texts.
    pub fn log_line(&mut self, texts: &[&str]) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self
                .log
                .recv_timeout(left)
                .unwrap_or_else(|error| panic!("{texts:?} never came ({error}): {}", self.seen.join("\n")));
            self.seen.push(line.clone());
            if texts.iter().any(|text| line.contains(text)) {
                return line;
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Dies as in a power cut.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops as a service does.
    pub fn stop(mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log.try_iter().collect::<Vec<_>>().join("\n"));
    }

    /// What it says about Discord, and whether it is ready.
    pub async fn health(&self) -> (u16, Value) {
        let answer = reqwest::get(format!("http://{}/readyz", self.admin)).await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap())
    }

    /// Waits until Discord's part of the health has this text.
    pub async fn is(&self, text: &str) -> Value {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let (_, health) = self.health().await;
            let discord = &health["parts"]["discord"];
            if discord.to_string().contains(text) {
                return health;
            }
            assert!(Instant::now() < until, "`{text}` never became true: {health}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let lines: Vec<_> = self.seen.drain(..).chain(self.log.try_iter()).collect();
            println!("{}", lines.join("\n"));
        }
    }
}

/// Waits for the answer in a thread, and for the mark on the message that it answers.
pub async fn answered(discord: &FakeDiscord, asked: u64, thread: u64, answer: &str) {
    discord
        .wait(&format!("the answer `{answer}`"), |state| {
            let is_marked = state.messages.get(&asked)?.reactions == ["✅"];
            (is_marked && state.said(thread, answer)).then_some(())
        })
        .await;
}

/// The button of this kind below one of our messages in a channel.
pub async fn button(discord: &FakeDiscord, channel: u64, word: &str) -> String {
    discord
        .wait(&format!("a button `{word}`"), |state| {
            let ids = state.ours(channel).into_iter().flat_map(|message| &message.components);
            let ids = ids.flat_map(|row| row["components"].as_array().cloned().unwrap_or_default());
            let mut ids = ids.filter_map(|button| button["custom_id"].as_str().map(str::to_owned));
            ids.find(|id| id.starts_with(&format!("janebot:{word}:")))
        })
        .await
}
