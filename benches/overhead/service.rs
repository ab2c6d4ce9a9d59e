//! The whole service on a sprite host that answers at once and from memory, for benches of what is janebot's own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use janebot::app::{App, Parts};
use janebot::chat::Chats;
use janebot::config::{AccessConfig, AgentKind, AgentsConfig, PoolConfig, SharingConfig};
use janebot::desk::admission::Settings;
use janebot::journal::Journal;
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

/// A sprite host without any latency. Every sprite is clean after every restore.
#[derive(Clone, Default)]
pub struct Instantly(Arc<Mutex<Host>>);

#[derive(Default)]
struct Host {
    sprites: BTreeMap<String, (SpriteInfo, NetworkPolicy)>,
    restores: u64,
    started: Option<Instant>,
}

impl Instantly {
    /// When the last agent was started.
    #[allow(dead_code, reason = "not every bench wants to know")]
    pub fn started(&self) -> Option<Instant> {
        self.host().started
    }

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

/// The service with two runners on this host. The journal's folder, if it has one, is to outlive it.
pub async fn start<J: Journal>(sprites: Instantly, journal: J, chats: Chats, world: World) -> App {
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
        // Every conversation of a bench may wait at once.
        max_queue: 10_000,
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
        access: AccessConfig { everyone: true, ..AccessConfig::default() },
    };
    App::assemble(Parts {
        journal,
        world,
        settings,
        children: vec![pool_child],
        pool,
        chats,
        serving: None,
        drain_timeout: minute,
    })
    .await
    .expect("the service starts")
}
