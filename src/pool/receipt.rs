//! The receipt: what was checked before a runner was offered, and so what proves that a job ran on a clean machine.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::job::JobId;
use crate::sprites::CheckpointId;

/// Proof that a runner was clean when a job got it. Made by the runner when a restore is verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub runner: String,
    /// The sprite's id at its host; another id under the same name is another machine.
    pub sprite_id: String,
    pub checkpoint: CheckpointId,
    /// Hash of the agents' versions, the build script and the network policy that the checkpoint was made with.
    pub fingerprint: String,
    /// The job that was on this runner before, whose traces were looked for.
    pub previous_job: Option<JobId>,
    /// The terminal event of a restore was seen since the previous job.
    pub restore_completed: bool,
    /// The canary that the previous job's run left was looked for and not found; `None` when no job came before.
    pub canary_gone: Option<bool>,
    /// Identity of the machine's present boot or process namespace; differs from the one before the restore.
    pub boot: String,
    /// Names that the network policy, applied after the restore and read back, allows.
    pub allowed_hosts: Vec<String>,
    pub verified_at: Timestamp,
    /// The fencing number of the lease that the job got; grows with every lease of this runner.
    pub fence: u64,
    /// How the host isolates, in its own words, as in `namespaces+seccomp` or `none`.
    pub isolation: String,
    /// What weakens the proof: a key in the sprite, no isolation.
    pub warnings: Vec<String>,
}
