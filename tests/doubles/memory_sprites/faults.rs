//! What can go wrong in the in-memory cloud, how likely it is, and the switch that ends it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use janebot::world::World;

/// One way in which the cloud fails or lies. Each is drawn where it can happen, from the world's chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    // Any call, before it has an effect.
    /// Nobody answers.
    Unreachable,
    /// 502 for a sprite that is well.
    GatewayError,
    RateLimited,
    /// A 401 that passes.
    TokenRejected,
    /// The request is lost, and the caller can't know it.
    LostRequest,

    // Any call, with an effect or maybe with one.
    /// The request is acted upon and the answer is lost.
    LostAnswer,
    /// No answer until the call's deadline. Half of these were acted upon.
    Hang,
    /// The call takes seconds.
    Slow,

    // Programs.
    /// The stream breaks while the program runs.
    CutBeforeExit,
    /// The program ends, and its exit status is lost.
    CutAfterExit,
    /// The program is done and does not end.
    NeverExits,
    /// Says that it was done; the program lives on.
    KillIgnored,

    // Restores. The first three are lies: the answer says `complete`.
    RestoreKeepsFiles,
    /// Background processes survive, and so does the boot identity.
    RestoreKeepsProcesses,
    RestoreForgetsPolicy,
    /// Says `complete` at once and restores some seconds later; until then the old machine answers.
    RestoreLate,
    /// `checkpoint not found`, this once.
    RestoreFails,
    /// `checkpoint not found`, and it is gone for good.
    CheckpointGone,
    /// After the restore an agent's program is missing.
    AgentMissing,
    /// After the restore an agent's program is another version.
    AgentOtherVersion,
    /// After the restore the disk is full, until the next restore.
    DiskFull,

    // A sprite's life.
    /// It starts anew by itself: its programs are gone, its files stay.
    SpriteRestarts,
    /// It vanishes.
    SpriteGone,
    /// It never answers again; all that works is to delete it.
    SpriteBreaks,
    /// No creates for a while, whoever asks.
    CreateLimited,

    // The rest.
    /// What is kept differs from what was set.
    PolicyDiffers,
    /// The checkpoint stream says `complete`, and no checkpoint is listed.
    CheckpointUnlisted,
    /// Reading or listing files fails.
    ReadFails,
    /// Says that the labels were set; they were not.
    LabelsLost,
}

impl Fault {
    pub const ALL: [Self; 29] = [
        Self::Unreachable,
        Self::GatewayError,
        Self::RateLimited,
        Self::TokenRejected,
        Self::LostRequest,
        Self::LostAnswer,
        Self::Hang,
        Self::Slow,
        Self::CutBeforeExit,
        Self::CutAfterExit,
        Self::NeverExits,
        Self::KillIgnored,
        Self::RestoreKeepsFiles,
        Self::RestoreKeepsProcesses,
        Self::RestoreForgetsPolicy,
        Self::RestoreLate,
        Self::RestoreFails,
        Self::CheckpointGone,
        Self::AgentMissing,
        Self::AgentOtherVersion,
        Self::DiskFull,
        Self::SpriteRestarts,
        Self::SpriteGone,
        Self::SpriteBreaks,
        Self::CreateLimited,
        Self::PolicyDiffers,
        Self::CheckpointUnlisted,
        Self::ReadFails,
        Self::LabelsLost,
    ];
}

/// How likely each fault is, from 0 to 1, each time it could happen. A fault that is not named never happens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultPlan(BTreeMap<Fault, f64>);

impl FaultPlan {
    /// An honest cloud.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every fault, each with this probability.
    pub fn all(probability: f64) -> Self {
        Self(Fault::ALL.into_iter().map(|fault| (fault, probability)).collect())
    }

    /// A plan of its own for each seed: most faults off, the others from rare to frequent. A fault that is always on
    /// hides what only shows in its absence, so this finds more than [`Self::all`] does.
    pub fn swarm(world: &World) -> Self {
        const RATES: [f64; 6] = [0.0, 0.0, 0.0, 0.005, 0.02, 0.1];
        Self(Fault::ALL.into_iter().map(|fault| (fault, RATES[(world.random() % 6) as usize])).collect())
    }

    #[must_use]
    pub fn with(mut self, fault: Fault, probability: f64) -> Self {
        assert!((0.0..=1.0).contains(&probability), "a probability, not {probability}");
        self.0.insert(fault, probability);
        self
    }
}

/// The faults of one cloud, shared by all who use it.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    plan: FaultPlan,
    /// Faults that happen for sure, the next so many times that they can.
    due: BTreeMap<Fault, u32>,
    stopped: bool,
}

impl Faults {
    pub fn new(plan: FaultPlan) -> Self {
        Self(Arc::new(Mutex::new(State { plan, due: BTreeMap::new(), stopped: false })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on everything is honest and prompt. Damage that was done stays: a broken sprite is still broken.
    pub fn stop(&self) {
        self.lock().stopped = true;
    }

    pub fn stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Makes `fault` happen the next time it can.
    pub fn once(&self, fault: Fault) {
        *self.lock().due.entry(fault).or_default() += 1;
    }

    /// Draws whether `fault` happens now.
    pub fn hit(&self, fault: Fault, world: &World) -> bool {
        let mut state = self.lock();
        if state.stopped {
            return false;
        }
        if let Some(times) = state.due.get_mut(&fault).filter(|times| **times > 0) {
            *times -= 1;
            return true;
        }
        match state.plan.0.get(&fault) {
            Some(&probability) if probability > 0.0 => unit(world) < probability,
            _ => false,
        }
    }
}

/// A number from 0 up to, not including, 1.
fn unit(world: &World) -> f64 {
    (world.random() >> 11) as f64 / (1u64 << 53) as f64
}
