//! What janebot itself adds to a job: from the message handed in to the agent's process started, and to the outcome
//! told. The sprite host answers at once and from memory, so all that is measured is ours: desk, journal on disk, pool,
//! runner, and the scripts' parsing.
//!
//! Prints a table. `cargo bench --bench overhead`

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use janebot::app::{App, Parts};
use janebot::chat::{Chats, Inbound, Replies, Reply};
use janebot::config::{AccessConfig, AgentKind, AgentsConfig, PoolConfig, SharingConfig};
use janebot::desk::admission::Settings;
use janebot::job::{ChannelId, ConversationId, RequesterId};
use janebot::journal::Journal as _;
use janebot::journal::sqlite::SqliteJournal;
use janebot::pool::supervisor::{self, PoolParts};
use janebot::runner::build::{Access, BuildPlan};
use janebot::sprites::{
    Checkpoint, CheckpointId, Exec, ExecEvent, ExecRequest, FileInfo, NetworkPolicy, Result, SessionInfo, Signal,
    SpriteInfo, Sprites, SpritesError,
};
use janebot::supervise::current;
use janebot::world::World;
use tokio::sync::mpsc;
use tokio::time::Instant;

const WARM_UP: usize = 200;
const JOBS: usize = 3_000;

/// A sprite host without any latency. Every sprite is clean after every restore.
#[derive(Clone, Default)]
struct Instantly(Arc<Mutex<Host>>);

#[derive(Default)]
struct Host {
    sprites: BTreeMap<String, (SpriteInfo, NetworkPolicy)>,
    restores: u64,
    /// When the last agent was started.
    started: Option<Instant>,
}

impl Instantly {
    fn host(&self) -> std::sync::MutexGuard<'_, Host> {
        self.0.lock().expect("nobody panics under the lock")
    }
}

fn unknown(name: &str) -> SpritesError {
    SpritesError::NotFound { what: format!("the sprite {name}") }
}

impl Sprites for Instantly {
    async fn create(&self, name: &str, labels: &[String]) -> Result<SpriteInfo> {
        let info = SpriteInfo {
            id: format!("id-{name}"),
            name: name.into(),
            status: "running".into(),
            labels: labels.to_vec(),
        };
        self.host().sprites.insert(name.into(), (info.clone(), NetworkPolicy::default()));
        Ok(info)
    }
    async fn get(&self, name: &str) -> Result<SpriteInfo> {
        self.host().sprites.get(name).map(|(info, _)| info.clone()).ok_or_else(|| unknown(name))
    }
    async fn list(&self, _prefix: &str) -> Result<Vec<SpriteInfo>> {
        Ok(self.host().sprites.values().map(|(info, _)| info.clone()).collect())
    }
    async fn set_labels(&self, name: &str, labels: &[String]) -> Result<()> {
        self.host().sprites.get_mut(name).ok_or_else(|| unknown(name))?.0.labels = labels.to_vec();
        Ok(())
    }
    async fn delete(&self, name: &str) -> Result<()> {
        self.host().sprites.remove(name).map(|_| ()).ok_or_else(|| unknown(name))
    }
    async fn exec(&self, _name: &str, request: ExecRequest) -> Result<Exec> {
        let mut host = self.host();
        let boot = host.restores;
        let said = match request.argv[3].as_str() {
            "janebot-check" => format!("boot={boot}\nready\n"),
            "janebot-verify" => format!("boot={boot}\ncanary=absent\ndisk=ok\n"),
            "janebot-run" => {
                host.started = Some(Instant::now());
                "hello\n".to_owned()
            }
            _ => String::new(),
        };
        let (to, events) = mpsc::channel(4);
        let pump = tokio::spawn(async move {
            // A caller that is gone needs nothing.
            let _ = to.send(Ok(ExecEvent::Stdout(said.into()))).await;
            let _ = to.send(Ok(ExecEvent::Exit(0))).await;
        });
        Ok(Exec::new("1".into(), events, pump))
    }
    async fn sessions(&self, _name: &str) -> Result<Vec<SessionInfo>> {
        Ok(Vec::new())
    }
    async fn kill(&self, _name: &str, _session: &str, _signal: Signal, _grace: Duration) -> Result<()> {
        Ok(())
    }
    async fn create_checkpoint(&self, _name: &str, _comment: &str) -> Result<CheckpointId> {
        Ok(CheckpointId::new("v1").expect("v1 is an id"))
    }
    async fn checkpoints(&self, _name: &str) -> Result<Vec<Checkpoint>> {
        Ok(Vec::new())
    }
    async fn restore(&self, _name: &str, _checkpoint: &CheckpointId) -> Result<()> {
        self.host().restores += 1;
        Ok(())
    }
    async fn set_policy(&self, name: &str, policy: &NetworkPolicy) -> Result<()> {
        self.host().sprites.get_mut(name).ok_or_else(|| unknown(name))?.1 = policy.clone();
        Ok(())
    }
    async fn policy(&self, name: &str) -> Result<NetworkPolicy> {
        self.host().sprites.get(name).map(|(_, policy)| policy.clone()).ok_or_else(|| unknown(name))
    }
    async fn write_file(&self, _name: &str, _path: &str, _mode: u32, _content: Bytes) -> Result<()> {
        Ok(())
    }
    async fn read_file(&self, _name: &str, _path: &str, _limit: u64) -> Result<Bytes> {
        Ok(Bytes::new())
    }
    async fn list_files(&self, _name: &str, _path: &str, _recursive: bool) -> Result<Vec<FileInfo>> {
        Ok(Vec::new())
    }
}

struct Told(mpsc::UnboundedSender<()>);

impl Replies for Told {
    fn reply(&self, reply: Reply) {
        if let Reply::Ended(report) = reply {
            assert_eq!(report.outcome.word(), "answered", "{report:?}");
            self.0.send(()).expect("the bench waits");
        }
    }
}

async fn start(sprites: Instantly, folder: &std::path::Path) -> App {
    let world = World::real();
    let journal = SqliteJournal::open(&folder.join("journal.sqlite")).await.expect("a new journal opens");
    let agents =
        AgentsConfig { default: AgentKind::Shell, amp: None, claude: None, disabled_tools: Default::default() };
    let fetch = Arc::new(|_| async { Err("no agent has a program here".to_owned()) }.boxed());
    let plan = BuildPlan::new(
        agents,
        NetworkPolicy::deny_all(),
        BTreeMap::new(),
        Access::Direct(BTreeMap::new()),
        "none".into(),
        Vec::new(),
        fetch,
    );
    let (_plans, plan) = current::channel(Arc::new(plan));
    let deployment = journal.deployment_id().await.expect("the journal works");
    let parts = PoolParts { sprites, journal: journal.clone(), world: world.clone(), deployment, plan };
    let minute = Duration::from_secs(60);
    let config = PoolConfig {
        runners: 2,
        prefix: "jane-runner".into(),
        run_timeout: minute,
        queue_timeout: minute,
        max_queue: 100,
        extra_hosts: Default::default(),
        sharing: SharingConfig::unlimited(),
    };
    let (pool_child, pool) = supervisor::child(config, parts);
    let settings = Settings {
        agents: vec![AgentKind::Shell],
        default_agent: AgentKind::Shell,
        run_timeout: minute,
        queue_timeout: minute,
        debounce: Duration::ZERO,
        access: AccessConfig::default(),
    };
    App::assemble(Parts {
        journal,
        world,
        settings,
        children: vec![pool_child],
        pool,
        chats: Chats::default(),
        serving: None,
        drain_timeout: minute,
    })
    .await
    .expect("the service starts")
}

fn figures(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{name:<44} {:>8.2} {:>8.2} {:>8.2}", at(0.5), at(0.99), at(1.0));
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sprites = Instantly::default();
    let app = start(sprites.clone(), folder.path()).await;
    let (to, mut told) = mpsc::unbounded_channel();
    let replies: Arc<dyn Replies> = Arc::new(Told(to));
    let (mut to_start, mut to_outcome) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for n in 0..WARM_UP + JOBS {
        let inbound = Inbound {
            key: format!("bench/{n}"),
            requester: RequesterId::new("terminal:bench"),
            channel: ChannelId::new("terminal:bench"),
            conversation: ConversationId::new(format!("terminal:bench/{}", n % 50)),
            text: "echo hello".into(),
            files: Vec::new(),
            agent: None,
            timeout: None,
            replies: Some(replies.clone()),
        };
        let asked = Instant::now();
        app.send(inbound).await;
        told.recv().await.expect("every message is answered");
        if n >= WARM_UP {
            let started = sprites.host().started.expect("the agent was started");
            to_start.push(started.duration_since(asked));
            to_outcome.push(asked.elapsed());
        }
    }
    let rate = (WARM_UP + JOBS) as f64 / began.elapsed().as_secs_f64();
    println!("{:<44} {:>8} {:>8} {:>8}", format!("ms, {JOBS} jobs one after another"), "p50", "p99", "max");
    figures("message handed in -> agent started", to_start);
    figures("message handed in -> outcome told", to_outcome);
    println!("{:<44} {rate:>8.0} /s", "whole jobs, restores included");
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().trim().to_owned();
        println!("{:<44} {rss:>12}", "memory afterwards");
    }
    app.shutdown(Instant::now() + Duration::from_secs(5)).await;
}
