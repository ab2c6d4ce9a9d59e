//! An in-memory sprite host for the simulation: virtual time, seeded faults, and lies.
//!
//! [`MemorySprites`] keeps the promises of [`Sprites`] as far as its [`FaultPlan`] lets it. It runs on tokio's paused
//! clock in a single-threaded runtime and takes all chance from the [`World`], so one seed gives one log. Time passes
//! in whole milliseconds.
//!
//! Clones share one cloud. [`MemorySprites::client`] gives a handle for each simulated process; `crash` cuts one off
//! as SIGKILL would: none of its calls returns any more, its streams fall silent, and the machines live on. A request
//! that was sent is acted upon even if its caller crashed or dropped the future, as on a real server.
//!
//! The model knows the truth, whatever it says to its callers: [`MemorySprites::runs`] are the jobs that began,
//! [`MemorySprites::violations`] what the callers should never have done, [`MemorySprites::truth`] how the sprites are.

#![allow(dead_code, reason = "every test program uses a part of this")]

pub mod cloud;
pub mod faults;
pub mod machine;
pub mod script;
pub mod session;

use std::fmt;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use janebot::sprites::{
    Checkpoint, CheckpointId, Exec, ExecRequest, FileInfo, NetworkPolicy, Result, SessionInfo, Signal, SpriteInfo,
    Sprites, SpritesError,
};
use janebot::world::World;

use cloud::{Cloud, Run, SpriteTruth, Trouble};
use faults::{FaultPlan, Faults};
use machine::{End, Machine};
use script::Program;

type SharedCloud = Arc<Mutex<Cloud>>;

fn lock(cloud: &SharedCloud) -> MutexGuard<'_, Cloud> {
    cloud.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One process's way to the in-memory cloud. Clones belong to the same process.
#[derive(Clone)]
pub struct MemorySprites {
    cloud: SharedCloud,
    client: Client,
}

/// Who makes a call.
#[derive(Clone, Debug)]
pub struct Client {
    pub name: String,
    /// Tells two processes of one name apart.
    id: u64,
    crashed: CancellationToken,
}

/// A call of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Create,
    Get,
    List,
    SetLabels,
    Delete,
    Exec,
    Sessions,
    Kill,
    CreateCheckpoint,
    Checkpoints,
    Restore,
    SetPolicy,
    Policy,
    WriteFile,
    ReadFile,
    ListFiles,
}

impl Op {
    /// When the caller gives up.
    fn deadline(self) -> Duration {
        match self {
            Self::Restore | Self::CreateCheckpoint => Duration::from_secs(300),
            _ => Duration::from_secs(30),
        }
    }

    fn latency_ms(self) -> (u64, u64) {
        match self {
            Self::Create => (100, 1_000),
            Self::CreateCheckpoint => (50, 300),
            Self::Restore => (50, 500),
            _ => (1, 50),
        }
    }

    /// Whether the sprite handles it one at a time, in the order of arrival. Reading and killing go at once.
    fn takes_turn(self) -> bool {
        match self {
            Self::Create | Self::SetLabels | Self::Delete | Self::Exec => true,
            Self::CreateCheckpoint | Self::Restore | Self::SetPolicy | Self::WriteFile => true,
            Self::Get | Self::List | Self::Sessions | Self::Kill => false,
            Self::Checkpoints | Self::Policy | Self::ReadFile | Self::ListFiles => false,
        }
    }
}

impl fmt::Debug for MemorySprites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySprites").field("client", &self.client.name).finish_non_exhaustive()
    }
}

impl MemorySprites {
    /// An empty cloud; must be called inside a tokio runtime.
    pub fn new(world: World, faults: FaultPlan) -> Self {
        let cloud = Arc::new(Mutex::new(Cloud::new(world, Faults::new(faults))));
        Self::connect(cloud, "first")
    }

    fn connect(cloud: SharedCloud, name: &str) -> Self {
        let id = {
            let mut cloud = lock(&cloud);
            cloud.clients_made += 1;
            cloud.clients_made
        };
        Self { cloud, client: Client { name: name.to_owned(), id, crashed: CancellationToken::new() } }
    }

    /// The same cloud, as another process sees it.
    pub fn client(&self, name: &str) -> Self {
        Self::connect(Arc::clone(&self.cloud), name)
    }

    /// Kills this process: none of its calls returns from now on. Other clients are not touched.
    pub fn crash(&self) {
        lock(&self.cloud).note(&format!("{} crashes", self.client.name));
        self.client.crashed.cancel();
    }

    pub fn faults(&self) -> Faults {
        lock(&self.cloud).faults.clone()
    }

    /// Every job that began to run, in order.
    pub fn runs(&self) -> Vec<Run> {
        lock(&self.cloud).runs.clone()
    }

    /// What a caller of the API should never have done, in order.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.cloud).violations.clone()
    }

    /// How each sprite really is.
    pub fn truth(&self) -> Vec<SpriteTruth> {
        lock(&self.cloud).truth()
    }

    /// What happened, a line each with its virtual time in seconds; the newest part when there was much.
    pub fn log(&self) -> String {
        lock(&self.cloud).log()
    }

    /// Lets a test put its own steps into the log.
    pub fn note(&self, text: &str) {
        lock(&self.cloud).note(text);
    }

    /// Takes a call to the server and its answer back. The server's part is a task of its own.
    async fn call<T, F>(&self, op: Op, sprite: &str, detail: &str, effect: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Cloud, &Client, &str) -> Result<T> + Send + 'static,
    {
        if self.client.crashed.is_cancelled() {
            pending::<()>().await;
        }
        let arrival = lock(&self.cloud).receive(op, sprite);
        let (answer, answered) = oneshot::channel();
        let (cloud, client) = (Arc::clone(&self.cloud), self.client.clone());
        let (name, what) = (sprite.to_owned(), format!("{op:?} {sprite}"));
        let line = format!("{} {what}{}{detail}", client.name, if detail.is_empty() { "" } else { " " });
        let lost = move |message: &str| SpritesError::OutcomeUnknown { what: what.clone(), message: message.into() };
        let given_up = lost("no answer came in time");

        tokio::spawn(async move {
            let _turn = match arrival.turn {
                Some(turn) => Some(turn.lock_owned().await),
                None => None,
            };
            sleep(arrival.latency).await;
            let mut cloud = lock(&cloud);
            let act = |note: &str| {
                let result = effect(&mut cloud, &client, &name);
                let word = result.as_ref().map_or_else(ToString::to_string, |_| "ok".to_owned());
                cloud.note(&format!("{line}: {word}{note}"));
                result
            };
            let result = match arrival.trouble {
                Trouble::None => Some(act("")),
                Trouble::Before(error) => {
                    cloud.note(&format!("{line}: not done: {error}"));
                    Some(Err(error))
                }
                Trouble::LostRequest => {
                    cloud.note(&format!("{line}: not done, and the caller can't know"));
                    Some(Err(lost("the connection broke")))
                }
                Trouble::LostAnswer => {
                    drop(act(", and the answer is lost"));
                    Some(Err(lost("the connection broke")))
                }
                Trouble::Hang { acted: true } => {
                    drop(act(", and no answer comes"));
                    None
                }
                Trouble::Hang { acted: false } => {
                    cloud.note(&format!("{line}: not done, and no answer comes"));
                    None
                }
            };
            if let Some(result) = result {
                // The caller may be gone.
                let _ = answer.send(result);
            }
        });

        let outcome = async {
            match answered.await {
                Ok(result) => result,
                Err(_) => pending().await,
            }
        };
        self.unless_crashed(async { timeout(op.deadline(), outcome).await.unwrap_or(Err(given_up)) }).await
    }

    async fn unless_crashed<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = self.client.crashed.cancelled() => pending().await,
            done = work => done,
        }
    }
}

impl Sprites for MemorySprites {
    async fn create(&self, name: &str, labels: &[String]) -> Result<SpriteInfo> {
        let labels = labels.to_vec();
        self.call(Op::Create, name, "", move |cloud, _, name| cloud.create(name, &labels)).await
    }

    async fn get(&self, name: &str) -> Result<SpriteInfo> {
        self.call(Op::Get, name, "", |cloud, _, name| Ok(cloud.machine(name)?.info())).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<SpriteInfo>> {
        let wanted = prefix.to_owned();
        self.call(Op::List, "", prefix, move |cloud, _, _| Ok(cloud.list(&wanted))).await
    }

    async fn set_labels(&self, name: &str, labels: &[String]) -> Result<()> {
        let labels = labels.to_vec();
        self.call(Op::SetLabels, name, &labels.join(","), move |cloud, _, name| cloud.set_labels(name, labels)).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.call(Op::Delete, name, "", |cloud, client, name| cloud.delete(client, name)).await
    }

    async fn exec(&self, name: &str, request: ExecRequest) -> Result<Exec> {
        if request.argv.is_empty() {
            return Err(SpritesError::Refused { status: 400, message: "No command specified".into() });
        }
        let until = Instant::now() + request.timeout;
        let (shared, program) = (Arc::clone(&self.cloud), Program::of(&request).name);
        let start = move |cloud: &mut Cloud, client: &Client, name: &str| cloud.start(&shared, client, name, &request);
        let started = self.call(Op::Exec, name, &program, start).await?;
        Ok(started.connect(self.client.clone(), until))
    }

    async fn sessions(&self, name: &str) -> Result<Vec<SessionInfo>> {
        self.call(Op::Sessions, name, "", |cloud, _, name| cloud.sessions(name)).await
    }

    async fn kill(&self, name: &str, session: &str, signal: Signal, grace: Duration) -> Result<()> {
        let (shared, id) = (Arc::clone(&self.cloud), session.to_owned());
        let effect = move |cloud: &mut Cloud, _: &Client, name: &str| {
            let stubborn = cloud.signal(name, &id, signal)?;
            if stubborn {
                let sprite = name.to_owned();
                tokio::spawn(async move {
                    sleep(grace).await;
                    lock(&shared).end_session(&sprite, &id, End::Signal(9));
                });
            }
            Ok(stubborn)
        };
        let detail = format!("{session} {}", signal.name());
        let stubborn = self.call(Op::Kill, name, &detail, effect).await?;
        if stubborn {
            // The server answers when the program is gone, which is one tick after its grace.
            self.unless_crashed(sleep(grace + Duration::from_millis(1))).await;
        }
        Ok(())
    }

    async fn create_checkpoint(&self, name: &str, comment: &str) -> Result<CheckpointId> {
        let text = comment.to_owned();
        let effect = move |cloud: &mut Cloud, _: &Client, name: &str| cloud.create_checkpoint(name, &text);
        self.call(Op::CreateCheckpoint, name, comment, effect).await
    }

    async fn checkpoints(&self, name: &str) -> Result<Vec<Checkpoint>> {
        self.call(Op::Checkpoints, name, "", |cloud, _, name| cloud.checkpoints(name)).await
    }

    async fn restore(&self, name: &str, checkpoint: &CheckpointId) -> Result<()> {
        let (shared, id) = (Arc::clone(&self.cloud), checkpoint.clone());
        let effect = move |cloud: &mut Cloud, client: &Client, name: &str| {
            cloud.machine(name)?.restores += 1;
            let Some(delay) = cloud.restore_is_late(name)? else { return cloud.restore(client, name, &id) };
            let present = cloud.machine(name)?;
            let (client, name, machine, asked) =
                (client.clone(), name.to_owned(), present.id.clone(), present.restores);
            tokio::spawn(async move {
                sleep(delay).await;
                let mut cloud = lock(&shared);
                // Another machine may have the name by now, and a restore takes the place of one that goes on.
                let is_wanted = |present: &Machine| present.id == machine && present.restores == asked;
                if !cloud.machines.get(&name).is_some_and(is_wanted) {
                    return;
                }
                let done = cloud.restore(&client, &name, &id);
                cloud.note(&format!("the late restore of {name} is done: {done:?}"));
            });
            Ok(())
        };
        self.call(Op::Restore, name, checkpoint.as_str(), effect).await
    }

    async fn set_policy(&self, name: &str, policy: &NetworkPolicy) -> Result<()> {
        let policy = policy.clone();
        let detail = format!("{} rules", policy.rules.len());
        let effect = move |cloud: &mut Cloud, client: &Client, name: &str| cloud.set_policy(client, name, policy);
        self.call(Op::SetPolicy, name, &detail, effect).await
    }

    async fn policy(&self, name: &str) -> Result<NetworkPolicy> {
        self.call(Op::Policy, name, "", |cloud, _, name| Ok(cloud.machine(name)?.policy.clone())).await
    }

    async fn write_file(&self, name: &str, path: &str, mode: u32, content: Bytes) -> Result<()> {
        let to = path.to_owned();
        let effect = move |cloud: &mut Cloud, _: &Client, name: &str| cloud.write_file(name, &to, mode, content);
        self.call(Op::WriteFile, name, path, effect).await
    }

    async fn read_file(&self, name: &str, path: &str, limit: u64) -> Result<Bytes> {
        let from = path.to_owned();
        self.call(Op::ReadFile, name, path, move |cloud, _, name| cloud.read_file(name, &from, limit)).await
    }

    async fn list_files(&self, name: &str, path: &str, recursive: bool) -> Result<Vec<FileInfo>> {
        let dir = path.to_owned();
        self.call(Op::ListFiles, name, path, move |cloud, _, name| cloud.list_files(name, &dir, recursive)).await
    }
}
