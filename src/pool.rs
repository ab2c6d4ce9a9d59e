//! The pool: lends each runner to at most one job at a time, fairly, and never a runner that is not proven clean.

pub mod receipt;

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::{AgentEvent, AgentResult};
use crate::job::{JobId, JobSpec, OutputFile};
use receipt::Receipt;

/// One job's wish for a runner, and the way to tell its owner what becomes of it.
///
/// Whoever holds the ticket (the pool, then a runner) owes the owner exactly one last event: `Finished` or
/// `NotStarted`. When the holder dies, the channel closes without one; when the owner dies, the holder sees the
/// channel closed and treats the job as cancelled.
#[derive(Debug)]
pub struct Ticket {
    pub spec: Arc<JobSpec>,
    pub asked_at: Instant,
    /// Waiting for a runner ends here.
    pub wait_until: Instant,
    pub events: mpsc::UnboundedSender<JobEvent>,
    /// Cancelled by the owner; seen by whoever holds the ticket, at any time.
    pub cancel: CancellationToken,
}

/// What becomes of a ticket, in this order; `Queued` may repeat.
#[derive(Debug)]
pub enum JobEvent {
    /// Waits; `reason` says why no runner is free, as in `all runners are busy`.
    Queued { ahead: usize, reason: &'static str },
    /// Got a runner, which is being checked. A runner that fails the check gives the ticket back to the front of the
    /// queue, so `Queued` and another `Granted` may follow.
    Granted { runner: String },
    /// The agent is about to start. From here on the job is never run again by itself.
    Started { receipt: Box<Receipt> },
    Agent(AgentEvent),
    /// Last: it ran.
    Finished(Box<RunReport>),
    /// Last: it never ran, and nothing of it is left anywhere.
    NotStarted(NotStarted),
}

/// How a started run ended.
#[derive(Debug)]
pub struct RunReport {
    pub ended: RunEnd,
    pub receipt: Receipt,
    pub queue_wait: Duration,
    pub check: Duration,
    pub run: Duration,
    pub collect: Duration,
    pub files: Vec<OutputFile>,
    pub notes: Vec<String>,
}

#[derive(Debug)]
pub enum RunEnd {
    /// The agent ended by itself.
    Agent(AgentResult),
    /// Its time was up; `so_far` is what the agent had said.
    Timeout { so_far: AgentResult },
    /// The owner cancelled it. `verified` says in words what was seen to be gone.
    Cancelled { verified: String },
    /// The connection to the sprite was lost; whether the agent finished is not known.
    OutcomeUnknown { message: String },
}

/// Why a ticket came back without a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// `MAX_QUEUE` jobs wait already.
    QueueFull { limit: usize },
    /// No runner came free in time; `reason` says what the runners were doing.
    QueueTimeout { reason: String },
    Cancelled,
    /// The service is stopping.
    Draining,
    /// Runner after runner failed before the agent could start; `message` is the last failure.
    NoRunner { message: String },
    /// The lease could not be written to the journal.
    Journal { message: String },
}

/// Messages of the pool-manager actor.
#[derive(Debug)]
pub enum PoolMsg {
    /// A conversation asks for a runner.
    Acquire(Ticket),
    /// A conversation's owner gave up: its ticket, if it still waits here, is answered `NotStarted::Cancelled` at once.
    Withdraw(JobId),
    /// Anyone asks how things stand.
    Status(RpcReplyPort<PoolStatus>),
}

/// A picture of the pool for people.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct PoolStatus {
    pub runners: Vec<RunnerStatus>,
    pub queued: usize,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct RunnerStatus {
    pub runner: String,
    /// `building`, `restoring`, `idle`, `checking`, `executing` or `quarantined`.
    pub state: &'static str,
    pub since_ms: u64,
    pub job: Option<JobId>,
    /// Why it is not offered, for people; the last failure when it is being rebuilt.
    pub note: Option<String>,
}

/// The way to the pool manager, over restarts of it.
#[derive(Clone, Debug)]
pub struct PoolHandle(watch::Receiver<Option<ActorRef<PoolMsg>>>);

impl PoolHandle {
    /// Follows the pool manager that `current` names.
    pub fn new(current: watch::Receiver<Option<ActorRef<PoolMsg>>>) -> Self {
        Self(current)
    }

    /// Hands the ticket in, waiting while the pool manager is being restarted.
    ///
    /// # Errors
    /// `NotStarted::Draining` when the service is stopping for good.
    pub async fn acquire(&self, mut ticket: Ticket) -> Result<(), NotStarted> {
        let mut current = self.0.clone();
        loop {
            let pool = current.borrow_and_update().clone();
            if let Some(pool) = pool {
                match pool.cast(PoolMsg::Acquire(ticket)) {
                    Ok(()) => return Ok(()),
                    Err(ractor::MessagingErr::SendErr(PoolMsg::Acquire(back))) => ticket = back,
                    Err(_) => return Err(NotStarted::Draining),
                }
            }
            if current.changed().await.is_err() {
                return Err(NotStarted::Draining);
            }
        }
    }

    /// Takes a waiting ticket out of the queue. The ticket's token must be cancelled first: it is what reaches a runner.
    pub fn withdraw(&self, job: &JobId) {
        if let Some(pool) = &*self.0.borrow() {
            // A pool that has just died holds no ticket any more.
            let _ = pool.cast(PoolMsg::Withdraw(job.clone()));
        }
    }

    /// How things stand, or `None` when the pool manager does not answer within a second.
    pub async fn status(&self) -> Option<PoolStatus> {
        let pool = self.0.borrow().clone()?;
        match pool.call(PoolMsg::Status, Some(Duration::from_secs(1))).await {
            Ok(ractor::rpc::CallResult::Success(status)) => Some(status),
            _ => None,
        }
    }
}
