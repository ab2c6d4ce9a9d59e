//! A conversation: runs its messages as jobs, one at a time and in order, and tells each one's outcome.
//!
//! ```text
//!        Job                 Granted            Started            last event          Settled
//! Idle ───────▶ Waiting ─────────────▶ Checking ───────▶ Running ─────────────▶ Ending ────────▶ Idle, or the next
//!                  ▲                      │  channel closed without a last event:
//!                  └──────────────────────┘  ask again, a few times; after Started never
//! ```
//!
//! In a chat that the outbox writes to, messages of one person that follow each other quickly become one prompt
//! (`merge`). Stopping, edited messages and the end of the process are in `changes`.
//!
//! Started by the desk with a conversation's first message, stopped by it when idle or at shutdown. When it dies, the
//! desk ends its open jobs as interrupted and gives the next message to a fresh one; what is lost is the order among
//! the jobs that were waiting here, and the events of the run, which the runner takes for a cancellation.

mod changes;
mod files;
pub(super) mod merge;
mod run;

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::admission::{MAX_RUN_TIMEOUT, Settings};
use super::debts::Debts;
use super::ending::{self, Cause, Ended, JOURNAL_PATIENCE};
use super::history::{self, Exchange, History};
use super::{DeskMsg, Hearing};
use crate::agent::AgentEvent;
use crate::chat::outbox::OutboxHandle;
use crate::chat::text::one_line;
use crate::chat::{Inbound, Progress, Reply, Said, SendError, message_of};
use crate::config::AgentKind;
use crate::job::{ConversationId, JobId, JobReport, JobSpec, Outcome, RequesterId};
use crate::journal::Journal;
use crate::pool::{JobEvent, NotStarted, PoolHandle, Ticket};
use crate::world::World;
use run::{GRACE, Phase, Run, Timer};

/// Without a message for this long, the actor goes. Its history is read from the journal when it is needed again.
pub const IDLE_AFTER: Duration = Duration::from_secs(10 * 60);

/// How often a ticket that was lost before the agent started is handed in again.
const MAX_REASKS: u32 = 3;

/// How long a runner may take to confirm a cancellation: the agent's own grace, the kill, and one slow API call.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);

/// Characters of a progress line.
const MAX_PROGRESS: usize = 160;

/// Messages of a conversation.
pub enum ConversationMsg {
    /// The desk recorded a message as a job.
    Job(Box<Hearing>),
    /// Somebody who may wants this job to stop.
    Cancel { job: JobId, by: RequesterId },
    /// The job's message has this text now, or none when it was deleted.
    Changed { job: JobId, text: Option<String> },
    /// The process is stopping: what waits in a chat is left to the next one.
    HandOver,
    /// The journal has let go of a job that is left to the next process.
    HandedOver { job: JobId },
    /// Own timer: the message that waited for more of its kind has waited long enough.
    Ready,
    /// The journal told what was said before this actor was started.
    Remembered(Vec<Exchange>),
    /// The chat told what was said before the message of run `run`; `None` when it is not the one to tell.
    Told { run: u64, said: Option<Vec<Said>> },
    /// The ticket's holder has news of run `run`.
    Event { run: u64, event: JobEvent },
    /// The ticket's holder is gone; no event of run `run` follows.
    Closed { run: u64 },
    /// Own timer: a phase of run `run` lasts longer than it can.
    Overdue { run: u64, phase: u64 },
    /// An outcome is in the journal.
    Settled(Box<JobReport>),
    /// Own timer: nothing was said since the `seen`th message.
    Quiet { seen: u64 },
}

pub struct Conversation<J> {
    pub id: ConversationId,
    pub journal: J,
    pub pool: PoolHandle,
    pub world: World,
    pub settings: Arc<Settings>,
    pub debts: Debts,
    pub desk: ActorRef<DeskMsg>,
}

pub struct State {
    /// `None` until the journal told.
    history: Option<History>,
    waiting: VecDeque<Box<Hearing>>,
    doing: Doing,
    /// Counts tickets; late news of an older one is dropped.
    runs: u64,
    /// Counts messages from the desk.
    seen: u64,
    /// Outcomes on their way into the journal. Dropped, and so aborted, with the actor.
    settling: BTreeMap<JobId, AbortOnDropHandle<()>>,
    /// The timer of [`ConversationMsg::Quiet`].
    quiet: Option<Timer>,
    /// The timer of [`ConversationMsg::Ready`].
    gathering: Option<Timer>,
    /// Nothing of a chat is started any more.
    handing_over: bool,
    _remembering: AbortOnDropHandle<()>,
}

/// What the journal has of a job that asks for a runner.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lease {
    None,
    /// The runner that was lost may have recorded one. Its agent had not started, so the lease is taken back; otherwise
    /// no other runner could get the job.
    MayBeLeft,
}

enum Doing {
    Idle,
    Run(Box<Run>),
    /// The outcome is being recorded; the exchange joins the history with it.
    Ending {
        job: JobId,
        requester: RequesterId,
        message: String,
    },
}

impl<J: Journal> Actor for Conversation<J> {
    type Msg = ConversationMsg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, me: ActorRef<Self::Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State {
            history: None,
            waiting: VecDeque::new(),
            doing: Doing::Idle,
            runs: 0,
            seen: 0,
            settling: BTreeMap::new(),
            quiet: None,
            gathering: None,
            handing_over: false,
            _remembering: self.remember(&me),
        })
    }

    async fn handle(&self, me: ActorRef<Self::Msg>, msg: Self::Msg, st: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            ConversationMsg::Job(hearing) => self.on_job(&me, st, hearing),
            ConversationMsg::Cancel { job, by } => self.on_cancel(&me, st, &job, by),
            ConversationMsg::Changed { job, text } => self.on_changed(&me, st, &job, text),
            ConversationMsg::HandOver => self.on_hand_over(&me, st),
            ConversationMsg::HandedOver { job } => self.on_handed_over(&me, st, &job),
            ConversationMsg::Ready => self.begin_next(&me, st),
            ConversationMsg::Remembered(exchanges) => self.on_remembered(&me, st, exchanges),
            ConversationMsg::Told { run, said } => self.on_told(&me, st, run, said),
            ConversationMsg::Event { run, event } => self.on_event(&me, st, run, event),
            ConversationMsg::Closed { run } => self.on_closed(&me, st, run),
            ConversationMsg::Overdue { run, phase } => self.on_overdue(&me, st, run, phase),
            ConversationMsg::Settled(report) => self.on_settled(&me, st, *report),
            ConversationMsg::Quiet { seen } => self.on_quiet(&me, st, seen),
        }
        Ok(())
    }

    /// It has no children and monitors nobody.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        _: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

impl<J: Journal> Conversation<J> {
    fn on_job(&self, me: &ActorRef<ConversationMsg>, st: &mut State, hearing: Box<Hearing>) {
        st.seen += 1;
        st.quiet = None;
        if !matches!(st.doing, Doing::Idle) || !st.waiting.is_empty() {
            self.progress(&hearing.job, Progress::Behind);
        }
        st.waiting.push_back(hearing);
        self.begin_next(me, st);
    }

    fn on_remembered(&self, me: &ActorRef<ConversationMsg>, st: &mut State, exchanges: Vec<Exchange>) {
        if st.history.is_none() {
            let mut history = History::default();
            exchanges.into_iter().for_each(|exchange| history.push(exchange));
            st.history = Some(history);
            self.begin_next(me, st);
        }
    }

    fn on_event(&self, me: &ActorRef<ConversationMsg>, st: &mut State, number: u64, event: JobEvent) {
        let Doing::Run(run) = &mut st.doing else { return };
        if run.run != number {
            return;
        }
        match event {
            JobEvent::Queued { ahead, reason, wait } => {
                run.phase = Phase::Waiting;
                run.watch_unless_cancelled(me, run.queue_patience(&self.settings));
                self.progress(&run.hearing.job, Progress::Queued { ahead, reason, wait });
            }
            JobEvent::Granted { runner } => {
                run.phase = Phase::Checking;
                run.granted_at = Some(Instant::now());
                run.watch_unless_cancelled(me, GRACE);
                self.progress(&run.hearing.job, Progress::Checking { runner });
            }
            JobEvent::Started { receipt } => {
                run.phase = Phase::Running { since: Instant::now(), receipt };
                if run.cause.is_none() && run.cancel.is_cancelled() {
                    // The ticket was to be taken back, and the agent was faster.
                    run.cause = Some(if run.handing_over { Cause::Stopping } else { Cause::Edited });
                }
                run.watch_unless_cancelled(me, run.spec.run_timeout + GRACE);
                let text = format!("{} is starting", run.hearing.agent.name());
                self.progress(&run.hearing.job, Progress::Working { text });
            }
            JobEvent::Agent(event) => {
                if let Some(text) = what_it_does(event) {
                    self.progress(&run.hearing.job, Progress::Working { text });
                }
            }
            JobEvent::Finished(report) => {
                let mut report = ending::ran(run.ended(), *report, run.spec.run_timeout, self.world.now());
                let requester = &run.hearing.inbound.requester;
                ending::explain_cancelled(&mut report.outcome, run.cause.as_ref(), requester);
                self.end_run(me, st, report);
            }
            // Against the contract; what the agent did is then not known.
            JobEvent::NotStarted(_) if !run.is_before_start() => {
                let outcome = ending::interrupted(&run.hearing.job, true);
                self.end_run_with(me, st, outcome);
            }
            JobEvent::NotStarted(why) => {
                if self.took_back(me, st) {
                    return;
                }
                let Doing::Run(run) = &st.doing else { return };
                let outcome = match (why, &run.cause) {
                    (NotStarted::Cancelled, Some(_)) => run.cancelled_before_start(),
                    (why, _) => ending::not_started(&run.hearing.job, why, self.settings.queue_timeout),
                };
                self.end_run_with(me, st, outcome);
            }
        }
    }

    fn on_closed(&self, me: &ActorRef<ConversationMsg>, st: &mut State, number: u64) {
        let Doing::Run(run) = &mut st.doing else { return };
        if run.run != number {
            return;
        }
        if run.is_before_start() && self.took_back(me, st) {
            return;
        }
        let Doing::Run(run) = &mut st.doing else { return };
        let outcome = match (&run.phase, &run.cause) {
            (Phase::Running { .. }, _) => ending::interrupted(&run.hearing.job, true),
            (Phase::Waiting | Phase::Checking, Some(_)) => run.cancelled_before_start(),
            (Phase::Waiting | Phase::Checking, None) if run.reasks < MAX_REASKS => {
                tracing::warn!(job = %run.hearing.job, "the ticket was lost before the agent started: asking again");
                st.runs += 1;
                self.ask_again(me, run, st.runs);
                return;
            }
            (Phase::Waiting | Phase::Checking, None) => {
                ending::no_runner(&run.hearing.job, &format!("the runner was lost {} times", MAX_REASKS + 1))
            }
        };
        self.end_run_with(me, st, outcome);
    }

    fn on_overdue(&self, me: &ActorRef<ConversationMsg>, st: &mut State, number: u64, phase: u64) {
        let Doing::Run(run) = &mut st.doing else { return };
        if run.run != number || run.phases != phase {
            return;
        }
        let cancelled = run.cause.is_some();
        tracing::error!(job = %run.hearing.job, cancelled, "nobody reported on the job in time: giving it up");
        run.cancel.cancel();
        self.pool.withdraw(&run.hearing.job);
        let outcome = match &run.phase {
            Phase::Running { .. } => {
                ending::unconfirmed(&run.hearing.job, cancelled, if cancelled { CANCEL_PATIENCE } else { GRACE })
            }
            Phase::Waiting | Phase::Checking if cancelled => run.cancelled_before_start(),
            Phase::Waiting => {
                let why = NotStarted::QueueTimeout { reason: "the runner pool does not answer".into() };
                ending::not_started(&run.hearing.job, why, self.settings.queue_timeout)
            }
            Phase::Checking => ending::no_runner(&run.hearing.job, "the check of the machine did not end"),
        };
        self.end_run_with(me, st, outcome);
    }

    fn on_settled(&self, me: &ActorRef<ConversationMsg>, st: &mut State, report: JobReport) {
        st.settling.remove(&report.job);
        if let Doing::Ending { job, .. } = &st.doing
            && *job == report.job
            && let Doing::Ending { requester, message, .. } = std::mem::replace(&mut st.doing, Doing::Idle)
            && let Some(history) = &mut st.history
        {
            history.push(Exchange::new(requester, &message, &report.outcome));
        }
        let job = report.job.clone();
        self.debts.pay(report);
        // A desk that is gone has lost this actor as well.
        let _ = self.desk.cast(DeskMsg::Ended { conversation: self.id.clone(), job });
        self.begin_next(me, st);
    }

    fn on_quiet(&self, me: &ActorRef<ConversationMsg>, st: &mut State, seen: u64) {
        if st.seen == seen && matches!(st.doing, Doing::Idle) && st.waiting.is_empty() && st.settling.is_empty() {
            let quiet = DeskMsg::Quiet { conversation: self.id.clone(), who: me.get_id(), seen };
            let _ = self.desk.cast(quiet);
        }
    }

    /// Starts on the next message, if nothing is being done and the history is there.
    fn begin_next(&self, me: &ActorRef<ConversationMsg>, st: &mut State) {
        let (Doing::Idle, Some(history)) = (&st.doing, &st.history) else { return };
        let hearing = match merge::next(&mut st.waiting, self.settings.debounce, Instant::now()) {
            merge::Next::Nothing => {
                let seen = st.seen;
                let timer = me.send_after(IDLE_AFTER, move || ConversationMsg::Quiet { seen });
                st.quiet = Some(AbortOnDropHandle::new(timer));
                return;
            }
            merge::Next::Wait(time) => {
                st.gathering = Some(AbortOnDropHandle::new(me.send_after(time, || ConversationMsg::Ready)));
                return;
            }
            merge::Next::Begin { hearing, merged } => {
                for other in merged {
                    let ended = Ended::unrun(other.job, other.agent.name().to_owned(), other.heard_at);
                    let report = ended.with(ending::merged(&hearing.job), self.world.now());
                    Self::settle_beside(&self.journal, &self.debts, me, &mut st.settling, report);
                }
                hearing
            }
        };
        let spec = Arc::new(self.spec(&hearing, history, None));
        st.runs += 1;
        let asked_at = Instant::now();
        let cancel = CancellationToken::new();
        let pump = match self.debts.outbox().filter(|_| needs_history(&hearing)) {
            Some(outbox) => self.look_back(me, st.runs, &hearing, outbox, &cancel),
            None => self.ask(me, st.runs, self.ticket(&spec, asked_at, &cancel), Lease::None),
        };
        let mut run = Box::new(Run {
            pump,
            _typing: self.type_on(&hearing),
            hearing,
            spec,
            said: None,
            run: st.runs,
            phase: Phase::Waiting,
            phases: 0,
            asked_at,
            granted_at: None,
            reasks: 0,
            cancel,
            cause: None,
            new_text: None,
            handing_over: false,
            watchdog: None,
        });
        run.watch(me, run.queue_patience(&self.settings));
        st.doing = Doing::Run(run);
    }

    /// Asks the chat what was said before the message.
    fn look_back(
        &self,
        me: &ActorRef<ConversationMsg>,
        run: u64,
        hearing: &Hearing,
        outbox: &OutboxHandle,
        cancel: &CancellationToken,
    ) -> AbortOnDropHandle<()> {
        let (outbox, me, id, cancel) = (outbox.clone(), me.clone(), self.id.clone(), cancel.clone());
        let key = hearing.inbound.key.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let told = AssertUnwindSafe(outbox.history(&id, message_of(&key), history::BUDGET)).catch_unwind();
            let told = tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    let event = JobEvent::NotStarted(NotStarted::Cancelled);
                    let _ = me.cast(ConversationMsg::Event { run, event });
                    return;
                }
                told = told => told.unwrap_or_else(|_| Err(SendError::Refused("the adapter panicked".into()))),
            };
            let said = told.unwrap_or_else(|error| {
                tracing::warn!(conversation = %id, %error, "the chat did not tell its history: the journal's has to do");
                None
            });
            let _ = me.cast(ConversationMsg::Told { run, said });
        }))
    }

    fn on_told(&self, me: &ActorRef<ConversationMsg>, st: &mut State, number: u64, said: Option<Vec<Said>>) {
        let (Doing::Run(run), Some(history)) = (&mut st.doing, &st.history) else { return };
        if run.run != number {
            return;
        }
        run.said = said;
        run.spec = Arc::new(self.spec(&run.hearing, history, run.said.as_deref()));
        // One that is to stop is answered by whoever would have run it.
        run.pump = self.ask(me, number, self.ticket(&run.spec, run.asked_at, &run.cancel), Lease::None);
    }

    /// Shows in the chat that Jane is at work, until the handle is dropped.
    fn type_on(&self, hearing: &Hearing) -> Option<AbortOnDropHandle<()>> {
        let outbox = self.debts.outbox().filter(|_| hearing.is_for_outbox())?.clone();
        let id = self.id.clone();
        Some(AbortOnDropHandle::new(tokio::spawn(async move { outbox.type_on(&id).await })))
    }

    fn spec(&self, hearing: &Hearing, history: &History, said: Option<&[Said]>) -> JobSpec {
        let Inbound { requester, channel, conversation, timeout, .. } = &hearing.inbound;
        let files = self.debts.outbox().map(|outbox| files::of(&hearing.inbound, outbox)).unwrap_or_default();
        let text = merge::whole_text(&hearing.inbound.text, &hearing.parts);
        let prompt = match (hearing.agent, said) {
            // Its prompt is a script, in which talk has no place.
            (AgentKind::Shell, _) => text,
            (AgentKind::Amp | AgentKind::Claude, said) => {
                let text = text + &files::mention(&files);
                match said {
                    Some(said) => history::prompt_after(said, &hearing.job, requester, &text),
                    None => history.prompt(&hearing.job, requester, &text),
                }
            }
        };
        JobSpec {
            job: hearing.job.clone(),
            requester: requester.clone(),
            channel: channel.clone(),
            conversation: conversation.clone(),
            agent: hearing.agent.name().to_owned(),
            prompt,
            run_timeout: timeout.unwrap_or(self.settings.run_timeout).min(MAX_RUN_TIMEOUT),
            files,
        }
    }

    fn ask_again(&self, me: &ActorRef<ConversationMsg>, run: &mut Run, number: u64) {
        run.run = number;
        run.reasks += 1;
        run.phase = Phase::Waiting;
        run.granted_at = None;
        run.pump = self.ask(me, number, self.ticket(&run.spec, run.asked_at, &run.cancel), Lease::MayBeLeft);
        run.watch(me, run.queue_patience(&self.settings));
    }

    fn ticket(
        &self,
        spec: &Arc<JobSpec>,
        asked_at: Instant,
        cancel: &CancellationToken,
    ) -> (Ticket, mpsc::UnboundedReceiver<JobEvent>) {
        let (events, news) = mpsc::unbounded_channel();
        let wait_until = asked_at + self.settings.queue_timeout;
        (Ticket { spec: spec.clone(), asked_at, wait_until, events, cancel: cancel.clone() }, news)
    }

    /// Hands the ticket in and turns its events into messages. Dropping the handle tells the ticket's holder that
    /// nobody waits for the job any more.
    fn ask(
        &self,
        me: &ActorRef<ConversationMsg>,
        run: u64,
        (ticket, mut news): (Ticket, mpsc::UnboundedReceiver<JobEvent>),
        lease: Lease,
    ) -> AbortOnDropHandle<()> {
        let (pool, journal, me) = (self.pool.clone(), self.journal.clone(), me.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            if lease == Lease::MayBeLeft
                && !matches!(timeout(JOURNAL_PATIENCE, journal.unlease(&ticket.spec.job)).await, Ok(Ok(())))
            {
                tracing::warn!(job = %ticket.spec.job, "a lost runner's lease could not be taken back");
            }
            let (cancel, wait_until) = (ticket.cancel.clone(), ticket.wait_until);
            let acquired = tokio::select! {
                biased;
                acquired = timeout_at(wait_until, pool.acquire(ticket)) => acquired.unwrap_or_else(|_| {
                    Err(NotStarted::QueueTimeout { reason: "the runner pool is being restarted".into() })
                }),
                () = cancel.cancelled() => Err(NotStarted::Cancelled),
            };
            // Sends fail only when the actor is gone, and this task with it.
            if let Err(why) = acquired {
                let _ = me.cast(ConversationMsg::Event { run, event: JobEvent::NotStarted(why) });
                return;
            }
            while let Some(event) = news.recv().await {
                let last = matches!(event, JobEvent::Finished(_) | JobEvent::NotStarted(_));
                let _ = me.cast(ConversationMsg::Event { run, event });
                if last {
                    return;
                }
            }
            let _ = me.cast(ConversationMsg::Closed { run });
        }))
    }

    fn end_run_with(&self, me: &ActorRef<ConversationMsg>, st: &mut State, outcome: Outcome) {
        if let Doing::Run(run) = &st.doing {
            let report = run.ended().with(outcome, self.world.now());
            self.end_run(me, st, report);
        }
    }

    fn end_run(&self, me: &ActorRef<ConversationMsg>, st: &mut State, report: JobReport) {
        if let Doing::Run(run) = std::mem::replace(&mut st.doing, Doing::Idle) {
            let message = merge::whole_text(&run.hearing.inbound.text, &run.hearing.parts);
            let Hearing { job, inbound, .. } = *run.hearing;
            st.doing = Doing::Ending { job, requester: inbound.requester, message };
        }
        self.settle(me, st, report);
    }

    /// Records the outcome; it is told when the journal has it.
    fn settle(&self, me: &ActorRef<ConversationMsg>, st: &mut State, report: JobReport) {
        Self::settle_beside(&self.journal, &self.debts, me, &mut st.settling, report);
    }

    fn settle_beside(
        journal: &J,
        debts: &Debts,
        me: &ActorRef<ConversationMsg>,
        settling: &mut BTreeMap<JobId, AbortOnDropHandle<()>>,
        report: JobReport,
    ) {
        let (journal, debts, me, job) = (journal.clone(), debts.clone(), me.clone(), report.job.clone());
        let spare = JobReport { files: Vec::new(), ..report.clone() };
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let settled = AssertUnwindSafe(ending::settle(&journal, &debts, report)).catch_unwind().await;
            let _ = me.cast(ConversationMsg::Settled(Box::new(settled.unwrap_or(spare))));
        }));
        settling.insert(job, task);
    }

    fn remember(&self, me: &ActorRef<ConversationMsg>) -> AbortOnDropHandle<()> {
        let (journal, id, me) = (self.journal.clone(), self.id.clone(), me.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let rows = AssertUnwindSafe(journal.conversation_jobs(&id, history::MAX_EXCHANGES as u32)).catch_unwind();
            let exchanges = match timeout(JOURNAL_PATIENCE, rows).await {
                // Newest first in the journal.
                Ok(Ok(Ok(rows))) => rows.iter().rev().filter_map(Exchange::of_row).collect(),
                Ok(Ok(Err(error))) => {
                    tracing::warn!(conversation = %id, %error, "the history could not be read: going on without");
                    Vec::new()
                }
                Ok(Err(_)) | Err(_) => {
                    tracing::warn!(conversation = %id, "the journal did not tell the history: going on without");
                    Vec::new()
                }
            };
            let _ = me.cast(ConversationMsg::Remembered(exchanges));
        }))
    }

    fn progress(&self, job: &JobId, progress: Progress) {
        self.debts.tell(job, Reply::Progress { job: job.clone(), progress });
    }
}

/// Whether the agent is told what was said before, and by a chat.
fn needs_history(hearing: &Hearing) -> bool {
    match hearing.agent {
        AgentKind::Shell => false,
        AgentKind::Amp | AgentKind::Claude => hearing.is_for_outbox(),
    }
}

/// One harmless line for the progress message, if the event is worth one.
fn what_it_does(event: AgentEvent) -> Option<String> {
    let text = match event {
        AgentEvent::Says(text) => text,
        AgentEvent::ToolStarted { name, summary, .. } if summary.is_empty() => name,
        AgentEvent::ToolStarted { name, summary, .. } => format!("{name}: {summary}"),
        AgentEvent::Thread(_) | AgentEvent::ToolEnded { .. } => return None,
    };
    Some(one_line(&text, MAX_PROGRESS)).filter(|line| !line.is_empty())
}
