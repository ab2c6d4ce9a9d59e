//! The pool: lends each runner to at most one job at a time, fairly, and never a runner that is not proven clean.

pub mod estimate;
pub mod manager;
pub mod queue;
pub mod receipt;
pub mod supervisor;

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::{AgentEvent, AgentResult, Usage};
use crate::job::{JobId, JobSpec, OutputFile};
use crate::runner::RunnerMsg;
use crate::supervise::current::Follower;
use estimate::Wait;
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

impl Ticket {
    /// Tells the owner. One that is gone needs no news: its channel's end is what its cancellation looks like.
    pub fn tell(&self, event: JobEvent) {
        let _ = self.events.send(event);
    }

    /// Whether nobody wants the result any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.events.is_closed()
    }

    /// Resolves when nobody wants the result any more.
    pub async fn cancelled(&self) {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {}
            () = self.events.closed() => {}
        }
    }
}

/// What becomes of a ticket, in this order; `Queued` may repeat.
#[derive(Debug)]
pub enum JobEvent {
    /// Waits; `reason` says why no runner is free, as in `all runners are busy`, and `wait` for how long from now on,
    /// if that can be told.
    Queued {
        ahead: usize,
        reason: String,
        wait: Option<Wait>,
    },
    /// Got a runner, which is being checked. A runner that fails before the agent's process exists gives the ticket
    /// back to the front of the queue, so `Queued` and another `Granted` may follow, even after `Started`.
    Granted {
        runner: String,
    },
    /// The agent is about to start. From here on the job is never run again by itself, unless the holder of the
    /// ticket says by another `Queued` that nothing had started after all.
    Started {
        receipt: Box<Receipt>,
    },
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
    /// What it used, where somebody else than the agent counted.
    pub usage: Option<Usage>,
}

impl RunReport {
    /// A report with no files yet.
    pub fn without_output(
        ended: RunEnd,
        receipt: Receipt,
        queue_wait: Duration,
        check: Duration,
        run: Duration,
    ) -> Self {
        Self {
            ended,
            receipt,
            queue_wait,
            check,
            run,
            collect: Duration::ZERO,
            files: Vec::new(),
            notes: Vec::new(),
            usage: None,
        }
    }
}

/// In which way a run ended.
#[derive(Debug)]
pub enum RunEnd {
    /// The agent ended by itself.
    Agent(AgentResult),
    /// Its time was up; `so_far` is what the agent had said.
    Timeout { so_far: AgentResult },
    /// The owner cancelled it.
    Cancelled { stopped: Stopped },
    /// It came to a limit of what a job may use, `reached`; `so_far` is what the agent had said.
    Limit { reached: String, so_far: AgentResult },
    /// What it would have sent out held a secret of the service; `leak` says which, in what form and where.
    Held { leak: String },
    /// The connection to the sprite was lost; whether the agent finished is not known.
    OutcomeUnknown { message: String },
}

/// What was seen of a program's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    pub proof: StopProof,
    /// The exit status, when it was seen.
    pub status: Option<u8>,
    /// From the first signal to the proof.
    pub took: Duration,
}

/// By what it was seen that nothing of a job runs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopProof {
    /// The machine's process table held no process but the host's own.
    ProcessTable,
    /// The host listed the agent's session no more. What the agent left in the background is ended by the restore.
    SessionList,
    /// Nothing was seen: the restore, which follows every job, ends whatever is left.
    Restore,
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let took = humantime::format_duration(Duration::from_millis(self.took.as_millis() as u64));
        let status = self.status.map(|status| format!(" with status {status}")).unwrap_or_default();
        match self.proof {
            StopProof::ProcessTable => {
                write!(f, "the agent ended{status}, and no process of it is left on its machine (seen after {took})")
            }
            StopProof::SessionList => write!(
                f,
                "the agent ended{status}, and its session is gone (seen after {took}); its machine is wiped, which ends what it may have left in the background"
            ),
            StopProof::Restore => write!(
                f,
                "the agent was told to stop, but its end was not seen within {took}; its machine is wiped, which ends everything on it"
            ),
        }
    }
}

impl RunEnd {
    /// Whether the agent may have left files that the user should get.
    pub fn may_have_files(&self) -> bool {
        match self {
            Self::Agent(_) | Self::Timeout { .. } | Self::Limit { .. } => true,
            Self::Cancelled { .. } | Self::Held { .. } | Self::OutcomeUnknown { .. } => false,
        }
    }
}

/// Why a ticket came back without a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// `MAX_QUEUE` jobs wait already.
    QueueFull {
        limit: usize,
    },
    /// So many jobs of the requester's own wait already.
    TooManyOfRequester {
        limit: usize,
    },
    /// So many jobs of the channel wait already.
    TooManyOfChannel {
        limit: usize,
    },
    /// No runner came free in time; `reason` says what the runners were doing.
    QueueTimeout {
        reason: String,
    },
    Cancelled,
    /// The service is stopping.
    Draining,
    /// Runner after runner failed before the agent could start; `message` is the last failure.
    NoRunner {
        message: String,
    },
    /// The agent would not take this prompt, or is not set up; `message` says which.
    Unsuitable {
        message: String,
    },
    /// Its requester's limit for a day is reached; `message` says which.
    OverLimit {
        message: String,
    },
    /// The lease could not be written to the journal.
    Journal {
        message: String,
    },
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
    /// A runner is clean and idle: from its restore, and again whenever a new pool manager appears.
    Offer { runner: String, actor: ActorRef<RunnerMsg> },
    /// A runner is no longer to be lent (found bad while idle). A grant that crosses this comes back by `HandBack`.
    Retract { runner: String },
    /// A runner failed before the agent's process existed; the job goes to the front of the queue.
    HandBack { granted: Granted, failure: String },
    /// A runner tells its state, for people, and the job that it has.
    RunnerIs { status: RunnerStatus, holds: Option<Holding> },
    /// From its own timer: expire, and tell those who wait how things stand.
    Tick,
    /// The service stops: all who wait are answered `NotStarted::Draining`, and so is everyone who comes later.
    Drain,
}

/// A ticket on its way to a runner or back.
#[derive(Debug)]
pub struct Granted {
    pub ticket: Ticket,
    /// Why each runner that had it before gave it back.
    pub failures: Vec<String>,
}

/// What the pool manager knows of a job that a runner has.
#[derive(Clone, Debug)]
pub struct Holding {
    pub spec: Arc<JobSpec>,
    /// The ticket's own way to its owner: gone when the ticket is gone, by which it shows that the job is over.
    events: mpsc::WeakUnboundedSender<JobEvent>,
}

impl Holding {
    pub fn of(ticket: &Ticket) -> Self {
        Self { spec: ticket.spec.clone(), events: ticket.events.downgrade() }
    }

    /// Whether it is this ticket's job.
    pub fn is_of(&self, ticket: &Ticket) -> bool {
        self.spec.job == ticket.spec.job
    }

    /// Whether nobody has the ticket any more.
    pub fn is_over(&self) -> bool {
        self.events.strong_count() == 0
    }
}

/// A picture of the pool for people.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct PoolStatus {
    pub runners: Vec<RunnerStatus>,
    pub queued: usize,
    /// How long a job that comes now would wait, if that can be told; nothing when a runner is idle.
    pub wait: Option<Wait>,
}

/// One runner, for people.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunnerStatus {
    pub runner: String,
    /// `starting`, `building`, `waiting`, `restoring`, `idle`, `checking`, `executing` or `quarantined`.
    pub state: &'static str,
    /// How long it has been in this state, in milliseconds.
    pub since_ms: u64,
    pub job: Option<JobId>,
    /// Why it is not offered, for people; the last failure when it is being rebuilt.
    pub note: Option<String>,
}

/// The way to the pool manager, over restarts of it.
#[derive(Clone, Debug)]
pub struct PoolHandle(Follower<Option<ActorRef<PoolMsg>>>);

impl PoolHandle {
    /// Follows the pool manager that `current` names.
    pub fn new(current: Follower<Option<ActorRef<PoolMsg>>>) -> Self {
        Self(current)
    }

    /// Hands the ticket in, waiting while the pool manager is being restarted.
    ///
    /// # Errors
    /// `NotStarted::Draining` when the service is stopping for good.
    pub async fn acquire(&self, mut ticket: Ticket) -> Result<(), NotStarted> {
        let mut current = self.0.clone();
        loop {
            let pool = current.see();
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
        if let Some(pool) = self.0.get() {
            // A pool that has just died holds no ticket any more.
            let _ = pool.cast(PoolMsg::Withdraw(job.clone()));
        }
    }

    /// How things stand, or `None` when the pool manager does not answer within a second.
    pub async fn status(&self) -> Option<PoolStatus> {
        let pool = self.0.get()?;
        match pool.call(PoolMsg::Status, Some(Duration::from_secs(1))).await {
            Ok(ractor::rpc::CallResult::Success(status)) => Some(status),
            _ => None,
        }
    }
}
