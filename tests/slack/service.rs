//! The built binary as a service for the fake workspace.

#![allow(dead_code, reason = "each program uses a part")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use janebot::config::{Config, SlackConfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::fake_slack::{ANN, APP_TOKEN, BOT_TOKEN, FakeSlack, SECRET};

/// One deployment, over several processes.
pub struct Service {
    data: tempfile::TempDir,
    env: BTreeMap<String, String>,
    process: Option<Process>,
}

struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Service {
    /// A deployment that uses Socket Mode. Nothing runs yet.
    pub fn over_sockets(fake: &FakeSlack) -> Self {
        Self::of(fake).with("SLACK_APP_TOKEN", APP_TOKEN)
    }

    /// A deployment that gets its events by HTTP.
    pub fn over_http(fake: &FakeSlack) -> Self {
        Self::of(fake).with("SLACK_SIGNING_SECRET", SECRET)
    }

    fn of(fake: &FakeSlack) -> Self {
        let service = Self { data: tempfile::tempdir().unwrap(), env: BTreeMap::new(), process: None };
        service
            .with("SLACK_BOT_TOKEN", BOT_TOKEN)
            .with("SLACK_API_URL", &fake.api_url())
            .with("ALLOWED_USER_IDS", ANN)
            .with("ADMIN_LISTEN", "127.0.0.1:0")
            .with("DEBOUNCE", "50ms")
            .with("RUNNERS", "2")
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Its settings for Slack.
    pub fn config(&self) -> SlackConfig {
        let mut env = self.env.clone();
        env.insert("DATA_DIR".into(), self.data.path().display().to_string());
        Config::load(&env, None).unwrap().slack.unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_janebot"));
        command.args(args).env_clear().env("DATA_DIR", self.data.path()).env("HOME", self.data.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(&self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a process. Whether it could: sandboxes can't be built everywhere, which is said.
    pub async fn start(&mut self) -> bool {
        let mut child = self.command(&["--log", "info,janebot=debug"]).spawn().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (stderr, lines) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        self.process = Some(Process { child, log });
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if self.log_has("serving chats") {
                return true;
            }
            if self.log_has("can't be isolated here") {
                println!("skipped: {}", self.log());
                return false;
            }
            let ended = self.process.as_mut().unwrap().child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "the service did not start: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn log(&self) -> String {
        self.process.as_ref().map(|process| process.log.lock().unwrap().join("\n")).unwrap_or_default()
    }

    pub fn log_has(&self, words: &str) -> bool {
        self.process.as_ref().is_some_and(|process| process.log.lock().unwrap().iter().any(|line| line.contains(words)))
    }

    pub async fn until_logged(&self, words: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.log_has(words) {
            assert!(Instant::now() < until, "{words:?} was never logged:\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").child.id()
    }

    /// The admin listener's address.
    pub fn admin(&self) -> String {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("serving chats")).expect("it serves");
        let line: Value = serde_json::from_str(line).unwrap();
        format!("http://{}", line["fields"]["admin"].as_str().unwrap())
    }

    /// What the service says of its Slack part.
    pub async fn condition(&self) -> Value {
        let url = format!("{}/readyz", self.admin());
        let answer = crate::fake_slack::client().get(url).send().await.unwrap().json::<Value>().await.unwrap();
        answer["parts"]["slack"].clone()
    }

    /// Waits until the service says this of its Slack part.
    pub async fn until_says(&self, words: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let says = self.condition().await.to_string();
            if says.contains(words) {
                return;
            }
            assert!(Instant::now() < until, "it never said {words:?} but {says}\n{}", self.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.child.kill().unwrap();
        process.child.wait().unwrap();
    }

    /// Has the process end in order.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        kill_process(Pid::from_child(&process.child), Signal::TERM).unwrap();
        let status = process.child.wait().unwrap();
        assert!(status.success(), "it ended with {status}:\n{}", process.log.lock().unwrap().join("\n"));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            if std::thread::panicking() {
                eprintln!("{}", process.log.lock().unwrap().join("\n"));
            }
            // The sandboxes end with their host.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}
