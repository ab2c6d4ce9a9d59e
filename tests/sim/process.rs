//! One simulated process of janebot: the tree of actors, without a network and a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use ractor::{Actor, ActorCell, ActorRef};
use tokio::time::Instant;

use janebot::agent::Way;
use janebot::chat::Chats;
use janebot::chat::outbox::{self, Outbox, OutboxHandle};
use janebot::config::{AccessConfig, AgentKind, AgentsConfig, ClaudeConfig, PoolConfig, SharingConfig};
use janebot::desk::admission::Settings;
use janebot::desk::debts::Debts;
use janebot::desk::front::DeskHandle;
use janebot::desk::{self, Desk, recovery};
use janebot::journal::Journal as _;
use janebot::journal::memory::MemoryJournal;
use janebot::pool::PoolHandle;
use janebot::pool::supervisor::{self, PoolParts};
use janebot::runner::build::{Access, BuildPlan, Program};
use janebot::sprites::NetworkPolicy;
use janebot::supervise::current::{self, Publisher};
use janebot::supervise::{self, Supervisor};
use janebot::world::World;

use crate::doubles::memory_sprites::MemorySprites;

pub const RUN_TIMEOUT: Duration = Duration::from_secs(120);
/// Short beside the scenario, so that most messages are prompts of their own.
pub const DEBOUNCE: Duration = Duration::from_millis(1500);
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(1800);

/// A running process.
pub struct Process {
    pub desk: DeskHandle,
    pub pool: PoolHandle,
    pub outbox: OutboxHandle,
    pub sprites: MemorySprites,
    root: ActorRef<supervise::Msg>,
    plan: Publisher<Arc<BuildPlan>>,
}

/// A build plan of the given generation.
pub fn plan(generation: u32) -> Arc<BuildPlan> {
    let version = format!("2.1.{generation}");
    let claude = ClaudeConfig {
        key: "sk-test".into(),
        url: "https://api.anthropic.com".into(),
        model: None,
        version: version.clone(),
        path: None,
    };
    let way = Way { url: claude.url.clone(), key: claude.key.clone() };
    let agents =
        AgentsConfig { default: AgentKind::Shell, amp: None, claude: Some(claude), disabled_tools: BTreeSet::new() };
    let program = Program { content: Bytes::from(format!("#!agent\n{version}\n")), says: String::new() };
    Arc::new(BuildPlan::new(
        agents,
        NetworkPolicy::allow(["api.anthropic.com"]),
        BTreeMap::from([(AgentKind::Claude, version)]),
        Access::Direct(BTreeMap::from([(AgentKind::Claude, way)])),
        "simulated".into(),
        Vec::new(),
        Arc::new(move |_| std::future::ready(Ok(program.clone())).boxed()),
    ))
}

impl Process {
    /// Starts a process as `main` does: what an earlier one left open is ended first.
    pub async fn start(
        deployment: &str,
        runners: usize,
        generation: u32,
        sprites: MemorySprites,
        journal: MemoryJournal,
        chats: Chats,
        world: &World,
    ) -> Self {
        let (outbox_child, outbox) = outbox::child(Outbox { journal: journal.clone(), chats, world: world.clone() });
        let debts = Debts::with_outbox(outbox.clone());
        // A journal that fails at the start is a service that does not start; its manager starts it again.
        let accepted = loop {
            match recovery::recover(&journal, world, &debts).await {
                Ok(found) => break found.accepted,
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        let config = PoolConfig {
            runners,
            prefix: "jane-runner".into(),
            run_timeout: RUN_TIMEOUT,
            queue_timeout: QUEUE_TIMEOUT,
            max_queue: 100,
            sharing: SharingConfig { max_running_per_user: (runners - 1).max(1), ..SharingConfig::unlimited() },
            extra_hosts: BTreeSet::new(),
        };
        let (plan, plans) = current::channel(plan(generation));
        let parts = PoolParts {
            sprites: sprites.clone(),
            journal: journal.clone(),
            world: world.clone(),
            deployment: deployment.into(),
            plan: plans,
        };
        let (pool_child, pool) = supervisor::child(config, parts);
        let settings = Settings {
            agents: vec![AgentKind::Shell],
            default_agent: AgentKind::Shell,
            run_timeout: RUN_TIMEOUT,
            queue_timeout: QUEUE_TIMEOUT,
            debounce: DEBOUNCE,
            access: AccessConfig { channels: ["sim".to_owned()].into(), ..AccessConfig::default() },
        };
        let (desk_child, desk) = desk::child(Desk {
            journal,
            pool: pool.clone(),
            world: world.clone(),
            settings: Arc::new(settings),
            debts,
        });
        let supervisor = Supervisor { name: "root", world: world.clone() };
        let (root, _join) = Actor::spawn(None, supervisor, vec![pool_child, outbox_child, desk_child]).await.unwrap();
        desk.resume(accepted).await;
        Self { desk, pool, outbox, sprites, root, plan }
    }

    /// Dies as by SIGKILL: nothing it awaits ever comes, and no actor of it does anything any more.
    pub fn crash(self) {
        self.sprites.crash();
        for actor in self.actors() {
            actor.kill();
        }
        self.root.kill();
    }

    /// Stops as by SIGTERM, with so much time for what runs.
    pub async fn stop(self, drain: Duration) {
        self.desk.drain(Instant::now() + drain).await;
        self.outbox.flush(Duration::from_secs(5)).await;
        let _ = self.root.call(supervise::Msg::StopChildren, Some(Duration::from_secs(60))).await;
        self.crash();
    }

    /// Kills one actor below the root. Says whether there was one.
    pub fn kill_one(&self, chance: u64) -> bool {
        let actors = self.actors();
        let Some(victim) = actors.get(chance as usize % actors.len().max(1)) else { return false };
        victim.kill();
        true
    }

    /// Wants another build generation.
    pub fn refresh(&self, generation: u32) {
        self.plan.set(plan(generation));
    }

    /// Whether every runner is idle and nothing waits.
    pub async fn is_at_rest(&self, runners: usize) -> bool {
        let Some(status) = self.pool.status().await else { return false };
        let idle = status.runners.iter().filter(|runner| runner.state == "idle").count();
        idle == runners && status.queued == 0
    }

    /// All actors below the root, in the order of their birth.
    fn actors(&self) -> Vec<ActorCell> {
        let mut found = BTreeMap::new();
        let mut above = vec![self.root.get_cell()];
        while let Some(actor) = above.pop() {
            for child in actor.get_children() {
                found.insert(child.get_id(), child.clone());
                above.push(child);
            }
        }
        found.into_values().collect()
    }
}

/// The journal's deployment, as the process would ask for it.
pub async fn deployment(journal: &MemoryJournal) -> String {
    loop {
        if let Ok(id) = journal.deployment_id().await {
            return id;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
