//! The desk: takes messages in, decides whether they become jobs, records them and gives each to its conversation.
//!
//! Its promise: every message that is handed in gets exactly one outcome, whatever dies on the way. What is owed stands
//! in [`debts::Debts`], outside of the actor; what is to be seen in a chat is recorded with the outcome (`visible`).
//! Parts: `admission` and `stop` (who may do what), `wishes` (stopping and changing), `watchdog` (deadlines),
//! `lookup` (what is known of a job), `recovery` (what an earlier process left), `room` (what the desk keeps of a conversation).
//!
//! Started by the app, restarted by its supervisor. When it dies, its conversations die with it, and the next desk ends
//! what was open as interrupted and tells it. When a conversation dies, the desk does the same for that one's jobs.

pub mod admission;
pub mod conversation;
pub mod debts;
pub mod ending;
pub mod front;
pub mod history;
mod intake;
pub mod lookup;
pub mod recovery;
mod room;
pub mod stop;
pub mod visible;
mod watchdog;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::chat::{Change, Inbound};
use crate::config::AgentKind;
use crate::job::{ConversationId, JobId, Outcome, RequesterId};
use crate::journal::{self, Accepted, JobState, Journal, JournalError};
use crate::pool::PoolHandle;
use crate::supervise::current;
use crate::supervise::{ChildSpec, RestartPolicy};
use crate::world::World;
use admission::Settings;
use conversation::{Conversation, ConversationMsg};
use debts::Debts;
use ending::{Ended, JOURNAL_PATIENCE};
use front::DeskHandle;
use lookup::Lookup;
use room::{Incarnation, Room};
use stop::Stopping;

/// How long conversations may take to stop. They only drop what they hold.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two attempts to record what the journal did not take.
const RECORD_LATE_AFTER: Duration = Duration::from_secs(5);

/// A message on its way, under the id that its job or its refusal has.
pub struct Hearing {
    pub job: JobId,
    pub inbound: Inbound,
    pub heard_at: Instant,
    /// The default until the message was admitted.
    pub agent: AgentKind,
    /// Told as soon as the message is recorded; dropped when it is not.
    pub heard: Option<oneshot::Sender<()>>,
    /// An earlier process recorded it.
    pub is_recorded: bool,
    /// Texts of later messages that are part of this prompt.
    pub parts: Vec<String>,
}

/// What to cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Job(JobId),
    /// All jobs of a conversation.
    Conversation(ConversationId),
}

/// Messages of the desk.
pub enum DeskMsg {
    /// The front door hands in a message.
    Heard(Box<Hearing>),
    /// Own task: what the journal said to the message in front of the conversation's queue.
    Recorded { conversation: ConversationId, job: JobId, result: Result<Accepted, JournalError> },
    /// Somebody edited or deleted a message.
    Changed(Change),
    /// A conversation, or an own task, told the outcome of a job, or left it to the next process.
    Ended { conversation: ConversationId, job: JobId },
    /// A conversation has been idle since its `seen`th message and wants to go.
    Quiet { conversation: ConversationId, who: ActorId, seen: u64 },
    /// Somebody wants jobs to stop. Answers how many are meant, ended or not yet.
    Cancel { target: Target, by: RequesterId, reply: RpcReplyPort<Stopping> },
    /// The app is stopping: starts nothing new, leaves to the next process what waits in a chat, and answers when all
    /// other jobs have ended or `deadline` has come, with the number of those that have not.
    Drain { deadline: Instant, reply: RpcReplyPort<usize> },
    /// Own timer: a drain's deadline has come.
    DrainOver,
    /// Own timer: the journal may take now what it did not take before.
    RecordLate,
    /// Own task: it has taken it, or still does not.
    RecordedLate,
    /// Own timer: look for jobs past their deadline.
    Patrol,
    /// Own task: these were past it, and have been ended.
    Patrolled(Vec<(ConversationId, JobId)>),
    /// Somebody pressed a button below a job's outcome, and what is known of the job is needed.
    Look { job: JobId, reply: RpcReplyPort<journal::Result<Option<Lookup>>> },
    /// Anyone asks how things stand.
    Status(RpcReplyPort<DeskStatus>),
}

/// A picture of the desk for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeskStatus {
    pub draining: bool,
    pub conversations: usize,
    /// Messages that have no outcome yet.
    pub open_jobs: usize,
}

#[derive(Clone)]
pub struct Desk<J> {
    pub journal: J,
    pub pool: PoolHandle,
    pub world: World,
    pub settings: Arc<Settings>,
    pub debts: Debts,
}

/// The desk as a child for the root supervisor, and the way to it over all restarts.
pub fn child<J: Journal>(desk: Desk<J>) -> (ChildSpec, DeskHandle) {
    let (current, follow) = current::channel(None);
    let handle = DeskHandle::new(follow, desk.debts.clone(), desk.world.clone(), desk.settings.clone());
    let current = Arc::new(current);
    let mut spec = ChildSpec::new("desk", RestartPolicy::ESSENTIAL, move |root| {
        let (desk, current) = (desk.clone(), current.clone());
        async move {
            let (actor, _join) = Actor::spawn_linked(None, desk, (), root).await?;
            current.set(Some(actor.clone()));
            Ok(actor.get_cell())
        }
    });
    spec.stop_within = STOP_PATIENCE + 2 * JOURNAL_PATIENCE;
    (spec, handle)
}

pub struct State {
    rooms: BTreeMap<ConversationId, Room>,
    /// Conversation actors that have not been seen to end, with the jobs each was given. Looked up, never walked.
    actors: HashMap<ActorId, Incarnation>,
    draining: Option<Vec<(Instant, RpcReplyPort<usize>)>>,
    /// The timer or the task of recording what could not be recorded.
    late: Option<AbortOnDropHandle<()>>,
    /// Outcomes that the desk itself records. Dropped, and so aborted, with the actor; the debts remain.
    settling: BTreeMap<JobId, AbortOnDropHandle<()>>,
    /// The watchdog's task; its clock goes on between two rounds.
    patrol: Option<AbortOnDropHandle<()>>,
    clock: watchdog::Clock,
}

impl<J: Journal> Actor for Desk<J> {
    type Msg = DeskMsg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, me: ActorRef<Self::Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        let mut st = State {
            rooms: BTreeMap::new(),
            actors: HashMap::new(),
            draining: None,
            late: None,
            settling: BTreeMap::new(),
            patrol: None,
            clock: watchdog::Clock::start(&self.world),
        };
        // Owed by a desk that died: nobody else can still pay.
        for (job, _) in self.debts.all() {
            self.end_interrupted(&me, &mut st, &job);
        }
        self.record_later(&me, &mut st);
        me.send_after(watchdog::EVERY, || DeskMsg::Patrol);
        Ok(st)
    }

    async fn handle(&self, me: ActorRef<Self::Msg>, msg: Self::Msg, st: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            DeskMsg::Heard(hearing) => self.on_heard(&me, st, *hearing).await?,
            DeskMsg::Recorded { conversation, job, result } => {
                self.on_recorded(&me, st, conversation, &job, result).await?
            }
            DeskMsg::Changed(change) => self.on_changed(st, change),
            DeskMsg::Ended { conversation, job } => self.on_ended(&me, st, &conversation, &job),
            DeskMsg::Quiet { conversation, who, seen } => Self::on_quiet(st, &conversation, who, seen),
            DeskMsg::Cancel { target, by, reply } => self.on_cancel(st, target, &by, reply),
            DeskMsg::Drain { deadline, reply } => self.on_drain(&me, st, deadline, reply),
            DeskMsg::DrainOver => self.answer_drains(st),
            DeskMsg::RecordLate => self.on_record_late(&me, st),
            DeskMsg::RecordedLate => {
                st.late = None;
                self.record_later(&me, st);
            }
            DeskMsg::Patrol => self.on_patrol(&me, st),
            DeskMsg::Patrolled(ended) => self.on_patrolled(&me, st, &ended),
            DeskMsg::Look { job, reply } => self.on_look(job, reply),
            DeskMsg::Status(reply) => self.on_status(st, reply),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        st: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (who, why) = match &event {
            SupervisionEvent::ActorTerminated(who, _, reason) => (who.get_id(), reason.clone().unwrap_or_default()),
            SupervisionEvent::ActorFailed(who, error) => (who.get_id(), error.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        // The dead actor's state may travel inside, and with it the channels that its runner watches.
        drop(event);
        self.on_conversation_gone(&me, st, who, &why);
        Ok(())
    }

    /// Whatever is still open now is interrupted, and told so before the process goes; but what has not started and waits
    /// in a chat is left to the next process.
    async fn post_stop(&self, me: ActorRef<Self::Msg>, st: &mut State) -> Result<(), ActorProcessingErr> {
        me.get_cell().stop_children_and_wait(None, Some(STOP_PATIENCE)).await;
        st.settling.clear();
        let ended = self.debts.all().into_iter().map(|(job, debt)| async move {
            if debt.is_for_outbox() {
                let row = timeout(JOURNAL_PATIENCE, self.journal.job(&job)).await;
                // Of one that is not recorded, the platform still has the message.
                if let Ok(Ok(row)) = row
                    && row.is_none_or(|row| row.state == JobState::Accepted)
                {
                    self.debts.withdraw(&job);
                    return;
                }
            }
            let outcome = ending::interrupted_somewhere(&job);
            let report = Ended::unrun(job, debt.agent, debt.heard_at).with(outcome, self.world.now());
            self.debts.pay(ending::settle(&self.journal, &self.debts, report).await);
        });
        futures_util::future::join_all(ended).await;
        ending::record_late(&self.journal, &self.debts).await;
        Ok(())
    }
}

impl<J: Journal> Desk<J> {
    /// Gives a recorded job to its conversation, starting it if there is none.
    async fn give(
        &self,
        me: &ActorRef<DeskMsg>,
        st: &mut State,
        id: ConversationId,
        hearing: Box<Hearing>,
        cancelled_by: Option<RequesterId>,
    ) -> Result<(), ActorProcessingErr> {
        let room = st.rooms.entry(id.clone()).or_default();
        let job = hearing.job.clone();
        let mut message = ConversationMsg::Job(hearing);
        if let Some(actor) = &room.actor {
            match actor.cast(message) {
                Ok(()) => {
                    let actor = actor.clone();
                    Self::gave(st, &id, &actor, job, cancelled_by);
                    return Ok(());
                }
                // It has just died; the news of it is on its way here.
                Err(ractor::MessagingErr::SendErr(back)) => message = back,
                Err(error) => return Err(error.to_string().into()),
            }
        }
        let conversation = Conversation {
            id: id.clone(),
            journal: self.journal.clone(),
            pool: self.pool.clone(),
            world: self.world.clone(),
            settings: self.settings.clone(),
            debts: self.debts.clone(),
            desk: me.clone(),
        };
        // Cheap: its start waits for nothing.
        let (actor, _) = Actor::spawn_linked(None, conversation, (), me.get_cell()).await?;
        room.actor = Some(actor.clone());
        room.given = 0;
        st.actors.insert(actor.get_id(), Incarnation { conversation: id.clone(), jobs: BTreeSet::new() });
        // Killed before it got a message: its end will find the job among its own.
        let _ = actor.cast(message);
        Self::gave(st, &id, &actor, job, cancelled_by);
        Ok(())
    }

    fn gave(
        st: &mut State,
        id: &ConversationId,
        actor: &ActorRef<ConversationMsg>,
        job: JobId,
        cancelled_by: Option<RequesterId>,
    ) {
        if let Some(by) = cancelled_by {
            let _ = actor.cast(ConversationMsg::Cancel { job: job.clone(), by });
        }
        if let Some(room) = st.rooms.get_mut(id) {
            room.given += 1;
        }
        if let Some(incarnation) = st.actors.get_mut(&actor.get_id()) {
            incarnation.jobs.insert(job);
        }
    }

    fn on_ended(&self, me: &ActorRef<DeskMsg>, st: &mut State, conversation: &ConversationId, job: &JobId) {
        st.settling.remove(job);
        if let Some(room) = st.rooms.get_mut(conversation) {
            room.open.remove(job);
            if let Some(actor) = &room.actor
                && let Some(incarnation) = st.actors.get_mut(&actor.get_id())
            {
                incarnation.jobs.remove(job);
            }
            Self::forget_if_empty(st, conversation);
        }
        self.record_later(me, st);
        self.answer_drains_if_done(st);
    }

    /// Sees to it that the journal gets what it could not take, as long as there is something.
    fn record_later(&self, me: &ActorRef<DeskMsg>, st: &mut State) {
        if st.late.is_none() && !self.debts.all_recorded() {
            let me = me.clone();
            st.late = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                sleep(RECORD_LATE_AFTER).await;
                let _ = me.cast(DeskMsg::RecordLate);
            })));
        }
    }

    fn on_record_late(&self, me: &ActorRef<DeskMsg>, st: &mut State) {
        let (journal, debts, me) = (self.journal.clone(), self.debts.clone(), me.clone());
        st.late = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            // After a panic it is tried again like after an error.
            let _ = AssertUnwindSafe(ending::record_late(&journal, &debts)).catch_unwind().await;
            let _ = me.cast(DeskMsg::RecordedLate);
        })));
    }

    /// Lets an idle conversation go, unless it was given a message in the meantime.
    fn on_quiet(st: &mut State, conversation: &ConversationId, who: ActorId, seen: u64) {
        let Some(room) = st.rooms.get_mut(conversation) else { return };
        if room.given == seen
            && let Some(actor) = room.actor.take_if(|actor| actor.get_id() == who)
        {
            st.actors.remove(&who);
            actor.stop(Some("idle".into()));
            Self::forget_if_empty(st, conversation);
        }
    }

    fn on_drain(&self, me: &ActorRef<DeskMsg>, st: &mut State, deadline: Instant, reply: RpcReplyPort<usize>) {
        st.draining.get_or_insert_default().push((deadline, reply));
        me.send_after(deadline.saturating_duration_since(Instant::now()), || DeskMsg::DrainOver);
        for room in st.rooms.values() {
            if let Some(actor) = &room.actor {
                // One that has just died leaves its jobs to the desk.
                let _ = actor.cast(ConversationMsg::HandOver);
            }
        }
        self.answer_drains_if_done(st);
    }

    fn on_status(&self, st: &State, reply: RpcReplyPort<DeskStatus>) {
        let status =
            DeskStatus { draining: st.draining.is_some(), conversations: st.rooms.len(), open_jobs: self.debts.len() };
        let _ = reply.send(status);
    }

    /// A conversation ended. By itself it never does, so what it was given and did not end is interrupted.
    fn on_conversation_gone(&self, me: &ActorRef<DeskMsg>, st: &mut State, who: ActorId, why: &str) {
        let Some(Incarnation { conversation, jobs }) = st.actors.remove(&who) else { return };
        tracing::error!(%conversation, why, open = jobs.len(), "a conversation died: ending its jobs");
        if let Some(room) = st.rooms.get_mut(&conversation) {
            room.actor.take_if(|actor| actor.get_id() == who);
        }
        for job in jobs {
            self.end_interrupted(me, st, &job);
        }
        Self::forget_if_empty(st, &conversation);
        self.answer_drains_if_done(st);
    }

    /// Records and tells that a job was interrupted by the loss of its actor.
    fn end_interrupted(&self, me: &ActorRef<DeskMsg>, st: &mut State, job: &JobId) {
        self.end_here(me, st, job, ending::interrupted_somewhere(job));
    }

    /// Records and tells an outcome that no conversation knows of.
    fn end_here(&self, me: &ActorRef<DeskMsg>, st: &mut State, job: &JobId, outcome: Outcome) {
        let Some(debt) = self.debts.get(job) else {
            let _ = st.settling.remove(job);
            return;
        };
        let report = Ended::unrun(job.clone(), debt.agent, debt.heard_at).with(outcome, self.world.now());
        let (journal, debts, me) = (self.journal.clone(), self.debts.clone(), me.clone());
        let task = tokio::spawn(async move {
            let (job, spare) = (report.job.clone(), report.clone());
            let settled = AssertUnwindSafe(ending::settle(&journal, &debts, report)).catch_unwind().await;
            debts.pay(settled.unwrap_or(spare));
            let _ = me.cast(DeskMsg::Ended { conversation: debt.conversation, job });
        });
        st.settling.insert(job.clone(), AbortOnDropHandle::new(task));
    }

    fn forget_if_empty(st: &mut State, conversation: &ConversationId) {
        if let Some(room) = st.rooms.get(conversation)
            && room.actor.is_none()
            && room.open.is_empty()
        {
            st.rooms.remove(conversation);
        }
    }

    fn answer_drains_if_done(&self, st: &mut State) {
        if self.debts.is_empty() {
            self.answer_drains(st);
        }
    }

    /// Answers the drains whose deadline has come, or all when nothing is owed any more.
    fn answer_drains(&self, st: &mut State) {
        let Some(drains) = &mut st.draining else { return };
        let (left, now) = (self.debts.len(), Instant::now());
        for (deadline, reply) in std::mem::take(drains) {
            if left == 0 || deadline <= now {
                let _ = reply.send(left);
            } else {
                drains.push((deadline, reply));
            }
        }
    }
}
