//! A desk with a journal in memory and a pool that the test itself plays.

use std::sync::Arc;
use std::time::Duration;

use janebot::agent::{AgentResult, Details};
use janebot::chat::{Inbound, Progress, Replies, Reply};
use janebot::config::{AccessConfig, AgentKind};
use janebot::desk::admission::Settings;
use janebot::desk::debts::Debts;
use janebot::desk::front::DeskHandle;
use janebot::desk::{Desk, DeskMsg, Target};
use janebot::job::{ChannelId, ConversationId, JobId, JobReport, RequesterId};
use janebot::journal::memory::MemoryJournal;
use janebot::pool::receipt::Receipt;
use janebot::pool::{JobEvent, PoolHandle, PoolMsg, RunEnd, RunReport, Ticket};
use janebot::sprites::CheckpointId;
use janebot::supervise::current::{self, Publisher};
use janebot::world::World;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(900);
pub const RUN_TIMEOUT: Duration = Duration::from_secs(600);

/// Hands every message of the pool to the test.
pub struct PlayedPool(pub mpsc::UnboundedSender<PoolMsg>);

impl Actor for PlayedPool {
    type Msg = PoolMsg;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<PoolMsg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<PoolMsg>, msg: PoolMsg, (): &mut ()) -> Result<(), ActorProcessingErr> {
        let _ = self.0.send(msg);
        Ok(())
    }
}

pub struct Rig {
    pub desk: DeskHandle,
    pub journal: MemoryJournal,
    pub world: World,
    pub debts: Debts,
    pub pool: mpsc::UnboundedReceiver<PoolMsg>,
    pub pool_actor: Publisher<Option<ActorRef<PoolMsg>>>,
    pub desk_actor: Publisher<Option<ActorRef<DeskMsg>>>,
    settings: Arc<Settings>,
    messages: u32,
}

struct ToTest(mpsc::UnboundedSender<Reply>);

impl Replies for ToTest {
    fn reply(&self, reply: Reply) {
        let _ = self.0.send(reply);
    }
}

/// What was told about one message.
pub struct Told(pub mpsc::UnboundedReceiver<Reply>);

impl Told {
    pub async fn next(&mut self) -> Reply {
        self.0.recv().await.expect("a reply comes")
    }

    pub async fn accepted(&mut self) -> JobId {
        match self.next().await {
            Reply::Accepted { job } => job,
            other => panic!("expected Accepted, got {other:?}"),
        }
    }

    pub async fn progress(&mut self) -> Progress {
        match self.next().await {
            Reply::Progress { progress, .. } => progress,
            other => panic!("expected Progress, got {other:?}"),
        }
    }

    /// Skips to the outcome, after which nothing may follow.
    pub async fn ended(&mut self) -> JobReport {
        loop {
            if let Reply::Ended(report) = self.next().await {
                assert!(self.0.recv().await.is_none(), "nothing follows an outcome");
                return *report;
            }
        }
    }
}

impl Rig {
    pub async fn new() -> Self {
        Self::with_journal(MemoryJournal::new()).await
    }

    pub async fn with_journal(journal: MemoryJournal) -> Self {
        let world = World::seeded(7);
        let settings = Arc::new(Settings {
            agents: vec![AgentKind::Shell, AgentKind::Amp],
            default_agent: AgentKind::Amp,
            run_timeout: RUN_TIMEOUT,
            queue_timeout: QUEUE_TIMEOUT,
            debounce: Duration::ZERO,
            access: AccessConfig::default(),
        });
        let (to_test, pool) = mpsc::unbounded_channel();
        let (played, _) = Actor::spawn(None, PlayedPool(to_test), ()).await.unwrap();
        let (pool_actor, _) = current::channel(Some(played));
        let (desk_actor, current) = current::channel(None);
        let debts = Debts::default();
        let desk = DeskHandle::new(current, debts.clone(), world.clone(), settings.clone());
        let rig = Self { desk, journal, world, debts, pool, pool_actor, desk_actor, settings, messages: 0 };
        rig.start_desk().await;
        rig
    }

    pub async fn start_desk(&self) {
        let desk = Desk {
            journal: self.journal.clone(),
            pool: PoolHandle::new(self.pool_actor.follow()),
            world: self.world.clone(),
            settings: self.settings.clone(),
            debts: self.debts.clone(),
        };
        let (actor, _) = Actor::spawn(None, desk, ()).await.unwrap();
        self.desk_actor.set(Some(actor));
    }

    pub fn desk_ref(&self) -> ActorRef<DeskMsg> {
        self.desk_actor.follow().get().unwrap()
    }

    pub fn message(&mut self, conversation: &str, text: &str) -> (Inbound, Told) {
        self.messages += 1;
        let (to_test, told) = mpsc::unbounded_channel();
        let inbound = Inbound {
            key: format!("terminal:{}", self.messages),
            requester: RequesterId::new("terminal:alice"),
            channel: ChannelId::new("terminal:here"),
            conversation: ConversationId::new(conversation),
            text: text.into(),
            files: Vec::new(),
            agent: None,
            timeout: None,
            replies: Some(Arc::new(ToTest(to_test))),
        };
        (inbound, Told(told))
    }

    pub async fn send(&mut self, conversation: &str, text: &str) -> Told {
        let (inbound, told) = self.message(conversation, text);
        self.desk.send(inbound).await;
        told
    }

    /// The next ticket, past withdrawals.
    pub async fn ticket(&mut self) -> Ticket {
        loop {
            if let PoolMsg::Acquire(ticket) = self.pool.recv().await.expect("the pool lives") {
                return ticket;
            }
        }
    }

    pub async fn withdrawn(&mut self) -> JobId {
        loop {
            if let PoolMsg::Withdraw(job) = self.pool.recv().await.expect("the pool lives") {
                return job;
            }
        }
    }

    pub async fn cancel(&self, target: Target) -> usize {
        self.desk.cancel(target, RequesterId::new("terminal:alice")).await.expect("the desk answers").jobs
    }
}

pub fn receipt() -> Receipt {
    Receipt {
        runner: "jane-runner-0".into(),
        sprite_id: "sprite-1".into(),
        checkpoint: CheckpointId::new("v1").unwrap(),
        fingerprint: "f".into(),
        previous_job: None,
        restore_completed: true,
        canary_gone: None,
        boot: "b1".into(),
        allowed_hosts: Vec::new(),
        verified_at: "2026-09-21T14:13:20Z".parse().unwrap(),
        fence: 1,
        isolation: "namespaces+seccomp".into(),
        warnings: Vec::new(),
    }
}

pub fn grant(ticket: &Ticket) {
    ticket.events.send(JobEvent::Granted { runner: "jane-runner-0".into() }).unwrap();
}

pub fn start(ticket: &Ticket) {
    grant(ticket);
    ticket.events.send(JobEvent::Started { receipt: Box::new(receipt()) }).unwrap();
}

pub fn finish(ticket: &Ticket, ended: RunEnd) {
    let report = RunReport {
        ended,
        receipt: receipt(),
        queue_wait: Duration::from_millis(5),
        check: Duration::from_millis(10),
        run: Duration::from_millis(1500),
        collect: Duration::from_millis(3),
        files: Vec::new(),
        notes: vec!["a note".into()],
        usage: None,
    };
    ticket.events.send(JobEvent::Finished(Box::new(report))).unwrap();
}

pub fn answer(ticket: &Ticket, text: &str) {
    start(ticket);
    finish(ticket, RunEnd::Agent(AgentResult::Answered { answer: text.into(), details: Details::default() }));
}
