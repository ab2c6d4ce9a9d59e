//! The state of the in-memory cloud, what each call does to it, and its record of what happened.
//!
//! Everything here happens at one instant of virtual time, under the cloud's lock. The way of a call to here and back,
//! with its delay and its faults, is in the parent module.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use janebot::sprites::{
    Checkpoint, CheckpointId, FileInfo, NetworkPolicy, PolicyRule, Result, SessionInfo, SpriteInfo, SpritesError,
};
use janebot::world::World;

use super::faults::{Fault, Faults};
use super::machine::{End, Machine};
use super::{Client, Op};

/// Lines of the log that are kept; the oldest go first.
const LOG_LINES: usize = 20_000;
/// How long a create limit lasts, in seconds.
const LIMIT_SECONDS: (u64, u64) = (5, 60);

/// A job's program that began to run: the effect on the outside world that must not happen twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First line of the program's standard input.
    pub marker: String,
    pub sprite: String,
    pub sprite_id: String,
    pub client: String,
    /// Virtual time since the cloud was made.
    pub at: Duration,
}

/// How a sprite really is, whatever the API says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpriteTruth {
    pub name: String,
    pub id: String,
    pub labels: Vec<String>,
    pub boot: String,
    /// The running programs, by their short names.
    pub sessions: Vec<String>,
    /// Jobs whose program runs.
    pub jobs: Vec<String>,
    /// Jobs that left a process behind.
    pub daemons: Vec<String>,
    /// The job whose traces may be here.
    pub unclean: Option<String>,
    pub broken: bool,
    pub disk_full: bool,
    pub policy: NetworkPolicy,
    pub checkpoints: Vec<CheckpointId>,
}

#[derive(Debug)]
struct Log {
    lines: VecDeque<String>,
    dropped: usize,
}

/// What the server makes of a request when it comes in.
pub struct Arrival {
    pub latency: Duration,
    pub trouble: Trouble,
    /// The sprite's turnstile, for calls that take their turn.
    pub turn: Option<Arc<tokio::sync::Mutex<()>>>,
}

/// What goes wrong on a call's way, whichever call it is.
#[derive(Debug)]
pub enum Trouble {
    None,
    /// Fails before it is acted upon.
    Before(SpritesError),
    LostRequest,
    LostAnswer,
    Hang {
        acted: bool,
    },
}

pub struct Cloud {
    pub world: World,
    pub faults: Faults,
    began: Instant,
    pub machines: BTreeMap<String, Machine>,
    machines_made: u64,
    pub sessions_made: u64,
    pub clients_made: u64,
    create_limited_until: Option<Instant>,
    pub runs: Vec<Run>,
    pub violations: Vec<String>,
    log: Log,
}

impl Cloud {
    pub fn new(world: World, faults: Faults) -> Self {
        Self {
            world,
            faults,
            began: Instant::now(),
            machines: BTreeMap::new(),
            machines_made: 0,
            sessions_made: 0,
            clients_made: 0,
            create_limited_until: None,
            runs: Vec::new(),
            violations: Vec::new(),
            log: Log { lines: VecDeque::new(), dropped: 0 },
        }
    }

    // The record.

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn note(&mut self, text: &str) {
        if self.log.lines.len() == LOG_LINES {
            self.log.lines.pop_front();
            self.log.dropped += 1;
        }
        self.log.lines.push_back(format!("{:>10.3} {text}", self.elapsed().as_secs_f64()));
    }

    pub fn log(&self) -> String {
        let mut text = match self.log.dropped {
            0 => String::new(),
            dropped => format!("({dropped} lines before these)\n"),
        };
        for line in &self.log.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Records a broken promise of the caller's, or of a test's.
    pub fn violation(&mut self, text: &str) {
        self.note(&format!("VIOLATION {text}"));
        self.violations.push(format!("at {:.3}: {text}", self.elapsed().as_secs_f64()));
    }

    pub fn truth(&self) -> Vec<SpriteTruth> {
        let truth = |m: &Machine| SpriteTruth {
            name: m.name.clone(),
            id: m.id.clone(),
            labels: m.labels.clone(),
            boot: m.boot(),
            sessions: m.sessions.values().map(|s| s.program.clone()).collect(),
            jobs: m.sessions.values().filter_map(|s| s.job.clone()).collect(),
            daemons: m.daemons.clone(),
            unclean: m.unclean.clone(),
            broken: m.broken,
            disk_full: m.disk_full,
            policy: m.policy.clone(),
            checkpoints: m.checkpoints.keys().cloned().collect(),
        };
        self.machines.values().map(truth).collect()
    }

    // Chance.

    /// A whole number from `low` to `high`, both included.
    pub fn between(&self, (low, high): (u64, u64)) -> u64 {
        low + self.world.random() % (high - low + 1)
    }

    pub fn hit(&mut self, fault: Fault, sprite: &str) -> bool {
        let hit = self.faults.hit(fault, &self.world);
        if hit {
            self.note(&format!("fault {fault:?} {sprite}"));
        }
        hit
    }

    /// Takes a request in: how long it will take, and what will go wrong on its way.
    pub fn receive(&mut self, op: Op, sprite: &str) -> Arrival {
        let mut latency = Duration::from_millis(self.between(op.latency_ms()));
        if self.hit(Fault::Slow, sprite) {
            latency += Duration::from_millis(self.between((1_000, 15_000)));
        }
        let trouble = self.trouble(sprite);
        let machine = self.machines.get(sprite).filter(|_| op.takes_turn());
        Arrival { latency, trouble, turn: machine.map(|m| Arc::clone(&m.turn)) }
    }

    fn trouble(&mut self, sprite: &str) -> Trouble {
        if self.hit(Fault::Unreachable, sprite) {
            let (url, message) = ("memory://cloud".into(), "connection refused".into());
            return Trouble::Before(SpritesError::Unreachable { url, message });
        }
        if self.machines.contains_key(sprite) && self.hit(Fault::GatewayError, sprite) {
            return Trouble::Before(SpritesError::Broken { status: 502, message: "bad gateway".into() });
        }
        if self.hit(Fault::RateLimited, sprite) {
            let retry_after = Some(Duration::from_secs(self.between((1, 10))));
            return Trouble::Before(SpritesError::RateLimited { code: "rate_limited".into(), retry_after });
        }
        if self.hit(Fault::TokenRejected, sprite) {
            return Trouble::Before(SpritesError::Unauthorized);
        }
        if self.hit(Fault::LostRequest, sprite) {
            return Trouble::LostRequest;
        }
        if self.hit(Fault::LostAnswer, sprite) {
            return Trouble::LostAnswer;
        }
        if self.hit(Fault::Hang, sprite) {
            return Trouble::Hang { acted: self.world.random().is_multiple_of(2) };
        }
        Trouble::None
    }

    /// The sprite, for any call but deleting: it may vanish, break or restart at this very moment.
    pub fn machine(&mut self, name: &str) -> Result<&mut Machine> {
        if self.machines.contains_key(name) {
            if self.hit(Fault::SpriteGone, name) {
                self.remove(name);
            } else if self.hit(Fault::SpriteBreaks, name) {
                let machine = self.machine_mut(name);
                machine.broken = true;
                machine.end_all_sessions(End::Cut);
            } else if self.hit(Fault::SpriteRestarts, name) {
                let machine = self.machine_mut(name);
                machine.end_all_sessions(End::Cut);
                machine.reboot();
            }
        }
        match self.machines.get_mut(name) {
            None => Err(no_sprite(name)),
            Some(m) if m.broken => Err(SpritesError::Broken { status: 502, message: "sprite_not_routable".into() }),
            Some(machine) => Ok(machine),
        }
    }

    fn remove(&mut self, name: &str) -> Option<Machine> {
        let mut machine = self.machines.remove(name)?;
        machine.end_all_sessions(End::Cut);
        Some(machine)
    }

    // What the calls do.

    pub fn create(&mut self, name: &str, labels: &[String]) -> Result<SpriteInfo> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(valid) {
            return Err(SpritesError::Refused { status: 400, message: format!("invalid sprite name {name:?}") });
        }
        if self.machines.contains_key(name) {
            return Err(SpritesError::Exists { what: format!("sprite {name}") });
        }
        if self.hit(Fault::CreateLimited, name) {
            self.create_limited_until = Some(Instant::now() + Duration::from_secs(self.between(LIMIT_SECONDS)));
        }
        let now = Instant::now();
        if let Some(until) = self.create_limited_until.filter(|until| *until > now && !self.faults.stopped()) {
            let code = "concurrent_sprite_limit_exceeded".into();
            return Err(SpritesError::RateLimited { code, retry_after: Some(until - now) });
        }
        self.machines_made += 1;
        let machine = Machine::new(format!("sprite-{}", self.machines_made), name, labels);
        let info = machine.info();
        self.machines.insert(name.to_owned(), machine);
        Ok(info)
    }

    pub fn list(&self, prefix: &str) -> Vec<SpriteInfo> {
        self.machines.values().filter(|m| m.name.starts_with(prefix)).map(Machine::info).collect()
    }

    pub fn set_labels(&mut self, name: &str, labels: Vec<String>) -> Result<()> {
        self.machine(name)?;
        if !self.hit(Fault::LabelsLost, name) {
            self.machine_mut(name).labels = labels;
        }
        Ok(())
    }

    pub fn delete(&mut self, client: &Client, name: &str) -> Result<()> {
        let machine = self.machines.get(name).ok_or_else(|| no_sprite(name))?;
        if let Some(session) = machine.foreign_session(client) {
            let (who, what) = (session.client.name.clone(), session.program.clone());
            self.violation(&format!("{} deletes {name}, where {what} of {who} runs", client.name));
        }
        self.remove(name);
        Ok(())
    }

    pub fn sessions(&mut self, name: &str) -> Result<Vec<SessionInfo>> {
        let sessions = &self.machine(name)?.sessions;
        Ok(sessions.iter().map(|(id, s)| SessionInfo { id: id.clone(), command: s.command.clone() }).collect())
    }

    pub fn create_checkpoint(&mut self, name: &str, comment: &str) -> Result<CheckpointId> {
        self.machine(name)?;
        if self.hit(Fault::CheckpointUnlisted, name) {
            let message = "the new checkpoint is not in the list".into();
            return Err(SpritesError::Protocol { message });
        }
        let id = self.machine_mut(name).freeze(comment);
        self.note(&format!("checkpoint {name} {id}"));
        Ok(id)
    }

    pub fn checkpoints(&mut self, name: &str) -> Result<Vec<Checkpoint>> {
        let frozen = &self.machine(name)?.checkpoints;
        Ok(frozen.iter().map(|(id, f)| Checkpoint { id: id.clone(), comment: f.comment.clone() }).collect())
    }

    /// When the restore of this sprite will really be done, if that is later than it says.
    pub fn restore_is_late(&mut self, name: &str) -> Result<Option<Duration>> {
        self.machine(name)?;
        let late = self.hit(Fault::RestoreLate, name);
        Ok(late.then(|| Duration::from_millis(200 + self.world.random() % 8_000)))
    }

    pub fn restore(&mut self, client: &Client, name: &str, id: &CheckpointId) -> Result<()> {
        let machine = self.machine(name)?;
        if !machine.gave_out(id) {
            self.violation(&format!("{} restores {name} to {id}, which it never had", client.name));
        }
        if self.hit(Fault::CheckpointGone, name) {
            self.machine_mut(name).checkpoints.remove(id);
        }
        let failed = self.hit(Fault::RestoreFails, name);
        let frozen = self.machine_mut(name).checkpoints.get(id).filter(|_| !failed).cloned();
        let Some(frozen) = frozen else {
            return Err(SpritesError::NotFound { what: format!("checkpoint {id} of {name}") });
        };
        if let Some(session) = self.machine_mut(name).foreign_session(client) {
            let (who, what) = (session.client.name.clone(), session.program.clone());
            self.violation(&format!("{} restores {name}, where {what} of {who} runs", client.name));
        }

        let keeps_files = self.hit(Fault::RestoreKeepsFiles, name);
        let keeps_processes = self.hit(Fault::RestoreKeepsProcesses, name);
        let forgets_policy = self.hit(Fault::RestoreForgetsPolicy, name);
        let disk_full = self.hit(Fault::DiskFull, name);
        let agent = match (self.hit(Fault::AgentMissing, name), self.hit(Fault::AgentOtherVersion, name)) {
            (true, _) => Some(None),
            (false, true) => Some(Some("the program of another version")),
            (false, false) => None,
        };

        let machine = self.machine_mut(name);
        machine.end_all_sessions(End::Signal(9));
        machine.agents_expected = frozen.files.agents();
        // What is unclean for its processes shows in `daemons`, which end with any reboot.
        if !keeps_files {
            machine.files = frozen.files;
            machine.unclean = frozen.unclean;
        }
        if !keeps_processes {
            machine.reboot();
        }
        if forgets_policy {
            machine.policy = NetworkPolicy::default();
        }
        machine.disk_full = disk_full;
        if let Some(replacement) = agent {
            machine.damage_agent(replacement);
        }
        Ok(())
    }

    pub fn set_policy(&mut self, client: &Client, name: &str, policy: NetworkPolicy) -> Result<()> {
        self.machine(name)?;
        if policy.rules.is_empty() {
            self.violation(&format!("{} sets an empty policy on {name}, which means no limit", client.name));
        }
        let mut kept = policy.clone();
        if self.hit(Fault::PolicyDiffers, name) {
            let (domain, action) = (Some("*".into()), Some("allow".into()));
            kept.rules.insert(0, PolicyRule { domain, include: None, action });
        }
        let machine = self.machine_mut(name);
        (machine.policy, machine.policy_asked) = (kept, policy);
        Ok(())
    }

    pub fn write_file(&mut self, name: &str, path: &str, mode: u32, content: Bytes) -> Result<()> {
        let machine = self.machine(name)?;
        if machine.disk_full {
            return Err(SpritesError::Refused { status: 507, message: "ENOSPC: no space left on device".into() });
        }
        machine.files.write(path, mode, content)
    }

    pub fn read_file(&mut self, name: &str, path: &str, limit: u64) -> Result<Bytes> {
        self.readable(name)?.files.read(path, limit)
    }

    pub fn list_files(&mut self, name: &str, path: &str, recursive: bool) -> Result<Vec<FileInfo>> {
        self.readable(name)?.files.list(path, recursive)
    }

    fn readable(&mut self, name: &str) -> Result<&Machine> {
        self.machine(name)?;
        if self.hit(Fault::ReadFails, name) {
            return Err(SpritesError::Broken { status: 500, message: "EIO: input/output error".into() });
        }
        Ok(self.machine_mut(name))
    }

    /// A sprite that was just seen to be there.
    fn machine_mut(&mut self, name: &str) -> &mut Machine {
        self.machines.get_mut(name).expect("looked at in the same call")
    }
}

fn no_sprite(name: &str) -> SpritesError {
    SpritesError::NotFound { what: format!("sprite {name}") }
}
