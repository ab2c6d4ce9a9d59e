//! The job that a conversation has a ticket for: how far it came, and by when the next news must come.

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorRef, MessagingErr};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::ConversationMsg;
use crate::chat::Said;
use crate::desk::Hearing;
use crate::desk::admission::Settings;
use crate::desk::ending::{self, Cause, Ended, millis};
use crate::job::{JobSpec, Outcome, Timings};
use crate::pool::receipt::Receipt;

/// Pool and runner have deadlines of their own for each phase; this much later they are taken to be stuck.
pub(super) const GRACE: Duration = Duration::from_secs(5 * 60);

/// A timer that ends with what it watches.
pub(super) type Timer = AbortOnDropHandle<Result<(), MessagingErr<ConversationMsg>>>;

/// The job that has a ticket.
pub(super) struct Run {
    pub(super) hearing: Box<Hearing>,
    pub(super) spec: Arc<JobSpec>,
    pub(super) run: u64,
    pub(super) phase: Phase,
    /// Counts changes of phase; timers of an older one are stale.
    pub(super) phases: u64,
    pub(super) asked_at: Instant,
    pub(super) granted_at: Option<Instant>,
    pub(super) reasks: u32,
    pub(super) cancel: CancellationToken,
    /// Why it is being stopped, when it is. The first reason counts.
    pub(super) cause: Option<Cause>,
    /// A new text that came before the agent started: the ticket is taken back, and handed in again with it.
    pub(super) new_text: Option<String>,
    /// The ticket is taken back, to leave the job to the next process.
    pub(super) handing_over: bool,
    /// The timer of [`ConversationMsg::Overdue`].
    pub(super) watchdog: Option<Timer>,
    /// What the chat says was said before.
    pub(super) said: Option<Vec<Said>>,
    /// Shows in the chat that Jane is at work.
    pub(super) _typing: Option<AbortOnDropHandle<()>>,
    /// Turns the ticket's events into messages; dropped, it tells the ticket's holder that nobody waits.
    pub(super) pump: AbortOnDropHandle<()>,
}

pub(super) enum Phase {
    Waiting,
    Checking,
    Running { since: Instant, receipt: Box<Receipt> },
}

impl Run {
    /// What is known of the job by the clock of this actor, for ends of which no runner reports.
    pub(super) fn ended(&self) -> Ended {
        let ticket = self.granted_at.unwrap_or_else(Instant::now) - self.asked_at;
        let mut timings = Timings { queue_ms: Some(millis(ticket)), ..Timings::default() };
        let mut known = None;
        if let Phase::Running { since, receipt } = &self.phase {
            timings.check_ms = self.granted_at.map(|granted| millis(*since - granted));
            timings.run_ms = Some(millis(since.elapsed()));
            known = Some((**receipt).clone());
        }
        let Hearing { job, agent, heard_at, .. } = &*self.hearing;
        Ended { timings, receipt: known, ..Ended::unrun(job.clone(), agent.name().to_owned(), *heard_at) }
    }

    pub(super) fn cancelled_before_start(&self) -> Outcome {
        ending::cancelled_before_start(self.cause.as_ref(), &self.hearing.inbound.requester)
    }

    /// Whether the agent can't have started yet.
    pub(super) fn is_before_start(&self) -> bool {
        match self.phase {
            Phase::Waiting | Phase::Checking => true,
            Phase::Running { .. } => false,
        }
    }

    /// Time until the pool must have answered.
    pub(super) fn queue_patience(&self, settings: &Settings) -> Duration {
        (self.asked_at + settings.queue_timeout + GRACE).saturating_duration_since(Instant::now())
    }

    /// Starts the phase's clock anew.
    pub(super) fn watch(&mut self, me: &ActorRef<ConversationMsg>, patience: Duration) {
        self.phases += 1;
        let (run, phase) = (self.run, self.phases);
        let timer = me.send_after(patience, move || ConversationMsg::Overdue { run, phase });
        self.watchdog = Some(AbortOnDropHandle::new(timer));
    }

    /// A run that is being stopped is watched for that, whatever phase it still reaches.
    pub(super) fn watch_unless_cancelled(&mut self, me: &ActorRef<ConversationMsg>, patience: Duration) {
        if !self.cancel.is_cancelled() {
            self.watch(me, patience);
        }
    }
}
