//! The outbox: sends what the journal has for the chats, one lane per conversation.
//!
//! What is to be seen is recorded first, with the outcome that it belongs to; then the outbox is told that there is
//! something new, reads it and sends it. Should it not be told, it looks by itself now and then. So a crash at any
//! moment loses nothing: what was being sent then is looked for in the chat before it is sent again (`lane`).
//!
//! Started by the app before the desk, restarted by its supervisor. When it dies, only progress texts are lost, which
//! newer ones replace.

mod lane;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr, RpcReplyPort, SupervisionEvent};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{Action, Attachment, Button, Capabilities, Chats, LATE_EFFECT, Request, Said, SendError, Sent};
use crate::job::{ConversationId, JobId};
use crate::journal::outgoing::{Delivery, Effect, Outgoing, OutgoingRow};
use crate::journal::{self, Journal};
use crate::supervise::current::{self, Follower};
use crate::supervise::{ChildSpec, RestartPolicy};
use crate::world::World;
use lane::{Answer, Lane, Next, Step};

/// A request that takes longer is taken for lost on the way: its effect is not known.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// How long a file of a message may take to come, when the runner for it is there already.
const FETCH_PATIENCE: Duration = Duration::from_secs(60);

/// How long a prompt waits for what was said before it.
const HISTORY_PATIENCE: Duration = Duration::from_secs(10);

/// How often the outbox looks by itself for what it was not told of.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Messages of the outbox.
pub enum OutboxMsg {
    /// The desk recorded effects for this conversation.
    Kick(ConversationId),
    /// A job's newest progress.
    Progress { conversation: ConversationId, job: JobId, text: String },
    /// Own task: what came of the step that a lane wanted.
    Answered { conversation: ConversationId, answer: Answer },
    /// Own timer: a lane wants to go on.
    Wake(ConversationId),
    /// Own timer: look for what was not told.
    Look,
    /// Own task: conversations that have open effects.
    Looked(Option<Vec<ConversationId>>),
    /// The app is stopping: answers as soon as nothing is left to send.
    Flush(RpcReplyPort<()>),
}

/// The way to the outbox, over restarts of it.
#[derive(Clone)]
pub struct OutboxHandle {
    current: Follower<Option<ActorRef<OutboxMsg>>>,
    chats: Chats,
}

impl OutboxHandle {
    /// What the chat of this conversation can do; `None` when it is not one that the outbox writes to.
    pub fn capabilities(&self, conversation: &ConversationId) -> Option<Capabilities> {
        self.chats.capabilities(conversation)
    }

    /// Shows that Jane is at work in the conversation, as often as its chat wants that, until it is dropped.
    pub async fn type_on(&self, conversation: &ConversationId) {
        let Some(every) = self.capabilities(conversation).and_then(|can| can.typing_every) else { return };
        loop {
            if let Ok(Err(error)) = timeout(every, self.chats.typing(conversation)).await {
                tracing::debug!(%conversation, %error, "it could not be shown that a job runs");
            }
            sleep(every).await;
        }
    }

    /// As [`Chats::fetch`](super::Chats::fetch), within a time.
    pub async fn fetch(&self, conversation: &ConversationId, file: &Attachment, limit: u64) -> Sent<Bytes> {
        let fetched = timeout(FETCH_PATIENCE, self.chats.fetch(conversation, file, limit)).await;
        fetched.unwrap_or_else(|_| {
            Err(SendError::Unreachable(format!("it was not there within {} s", FETCH_PATIENCE.as_secs())))
        })
    }

    /// As [`Chats::history`](super::Chats::history), within a time.
    pub async fn history(&self, to: &ConversationId, before: &str, budget: usize) -> Sent<Option<Vec<Said>>> {
        let told = timeout(HISTORY_PATIENCE, self.chats.history(to, before, budget)).await;
        told.unwrap_or_else(|_| {
            Err(SendError::Unreachable(format!("it was not told within {} s", HISTORY_PATIENCE.as_secs())))
        })
    }

    /// Says that effects were recorded.
    pub fn kick(&self, conversation: &ConversationId) {
        self.tell(OutboxMsg::Kick(conversation.clone()));
    }

    /// Shows progress, unless there is newer before its turn.
    pub fn progress(&self, conversation: &ConversationId, job: &JobId, text: String) {
        self.tell(OutboxMsg::Progress { conversation: conversation.clone(), job: job.clone(), text });
    }

    /// Waits until all that is recorded has been sent, at most so long. Whether it has.
    pub async fn flush(&self, patience: Duration) -> bool {
        let Some(outbox) = self.current.get() else { return false };
        matches!(outbox.call(OutboxMsg::Flush, Some(patience)).await, Ok(CallResult::Success(())))
    }

    fn tell(&self, message: OutboxMsg) {
        if let Some(outbox) = self.current.get() {
            // One that has died is followed by one that looks for itself.
            let _ = outbox.cast(message);
        }
    }
}

#[derive(Clone)]
pub struct Outbox<J> {
    pub journal: J,
    pub chats: Chats,
    pub world: World,
}

/// The outbox as a child for the root supervisor, and the way to it over all restarts.
pub fn child<J: Journal>(outbox: Outbox<J>) -> (ChildSpec, OutboxHandle) {
    let (current, follow) = current::channel(None);
    let handle = OutboxHandle { current: follow, chats: outbox.chats.clone() };
    let current = Arc::new(current);
    let spec = ChildSpec::new("outbox", RestartPolicy::ESSENTIAL, move |root| {
        let (outbox, current) = (outbox.clone(), current.clone());
        async move {
            let (actor, _join) = Actor::spawn_linked(None, outbox, (), root).await?;
            current.set(Some(actor.clone()));
            Ok(actor.get_cell())
        }
    });
    (spec, handle)
}

type Timer = AbortOnDropHandle<Result<(), MessagingErr<OutboxMsg>>>;

pub struct State {
    lanes: BTreeMap<ConversationId, Running>,
    /// Requests of an outbox before this one may arrive until then.
    unsure_until: Instant,
    looking: Option<AbortOnDropHandle<()>>,
    /// Whether the journal has been looked through once.
    looked: bool,
    _next_look: Option<Timer>,
    flushes: Vec<RpcReplyPort<()>>,
}

/// A lane with its task or timer; both end with it.
struct Running {
    lane: Lane,
    step: Option<AbortOnDropHandle<()>>,
    _timer: Option<Timer>,
}

impl<J: Journal> Actor for Outbox<J> {
    type Msg = OutboxMsg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, me: ActorRef<Self::Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        let mut st = State {
            lanes: BTreeMap::new(),
            unsure_until: Instant::now() + LATE_EFFECT,
            looking: None,
            looked: false,
            _next_look: None,
            flushes: Vec::new(),
        };
        self.look(&me, &mut st);
        Ok(st)
    }

    async fn handle(&self, me: ActorRef<Self::Msg>, msg: Self::Msg, st: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            OutboxMsg::Kick(conversation) => {
                self.lane(st, &conversation).lane.reload();
                self.go_on(&me, st, &conversation);
            }
            OutboxMsg::Progress { conversation, job, text } => {
                if self.chats.capabilities(&conversation).is_some_and(|can| can.edit) {
                    self.lane(st, &conversation).lane.progress(job, text);
                    self.go_on(&me, st, &conversation);
                }
            }
            OutboxMsg::Answered { conversation, answer } => {
                if let Some(running) = st.lanes.get_mut(&conversation) {
                    running.step = None;
                    running.lane.answer(answer, Instant::now());
                    self.go_on(&me, st, &conversation);
                }
            }
            OutboxMsg::Wake(conversation) => self.go_on(&me, st, &conversation),
            OutboxMsg::Look => self.look(&me, st),
            OutboxMsg::Looked(found) => self.on_looked(&me, st, found),
            OutboxMsg::Flush(reply) => st.flushes.push(reply),
        }
        self.answer_flushes(st);
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

impl<J: Journal> Outbox<J> {
    fn lane<'a>(&self, st: &'a mut State, conversation: &ConversationId) -> &'a mut Running {
        let unsure_until = st.unsure_until;
        st.lanes.entry(conversation.clone()).or_insert_with(|| Running {
            lane: Lane::new(Instant::now(), unsure_until),
            step: None,
            _timer: None,
        })
    }

    /// Does what a lane wants next.
    fn go_on(&self, me: &ActorRef<OutboxMsg>, st: &mut State, conversation: &ConversationId) {
        let Some(running) = st.lanes.get_mut(conversation) else { return };
        let now = Instant::now();
        match running.lane.next(now) {
            Next::Do(step) => {
                let (outbox, me, conversation) = (self.clone(), me.clone(), conversation.clone());
                running._timer = None;
                running.step = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    let done = AssertUnwindSafe(outbox.take(&conversation, step)).catch_unwind().await;
                    // After a panic in an adapter it is not known what was done.
                    let lost = || Answer::Sent(Err(SendError::Ambiguous("the adapter panicked".into())));
                    let answer = done.unwrap_or_else(|_| lost());
                    let _ = me.cast(OutboxMsg::Answered { conversation, answer });
                })));
            }
            Next::At(at) => {
                let conversation = conversation.clone();
                let timer = me.send_after(at - now, move || OutboxMsg::Wake(conversation));
                running._timer = Some(AbortOnDropHandle::new(timer));
            }
            Next::Nothing => {
                if running.lane.can_go(now) {
                    st.lanes.remove(conversation);
                }
            }
        }
    }

    fn look(&self, me: &ActorRef<OutboxMsg>, st: &mut State) {
        let (journal, me) = (self.journal.clone(), me.clone());
        st.looking = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let read = AssertUnwindSafe(journal.open_effects(None)).catch_unwind().await;
            let found = match read {
                Ok(Ok(rows)) => Some(rows.into_iter().map(|row| row.outgoing.conversation).collect()),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "what is to be sent could not be read: trying again");
                    None
                }
                Err(_) => None,
            };
            let _ = me.cast(OutboxMsg::Looked(found));
        })));
    }

    fn on_looked(&self, me: &ActorRef<OutboxMsg>, st: &mut State, found: Option<Vec<ConversationId>>) {
        st.looking = None;
        st.looked |= found.is_some();
        let pause = if st.looked { LOOK_EVERY } else { Duration::from_secs(1) };
        st._next_look = Some(AbortOnDropHandle::new(me.send_after(pause, || OutboxMsg::Look)));
        for conversation in found.unwrap_or_default() {
            self.lane(st, &conversation).lane.reload();
            self.go_on(me, st, &conversation);
        }
        let now = Instant::now();
        st.lanes.retain(|_, running| !running.lane.can_go(now));
    }

    fn answer_flushes(&self, st: &mut State) {
        if st.looked && st.lanes.values().all(|running| running.lane.is_empty()) {
            for reply in st.flushes.drain(..) {
                // Whoever asked may have given up waiting.
                let _ = reply.send(());
            }
        }
    }

    async fn take(&self, conversation: &ConversationId, step: Step) -> Answer {
        match step {
            Step::Load => match self.journal.open_effects(Some(conversation)).await {
                Ok(rows) => {
                    let now = self.world.now();
                    let age =
                        |row: &OutgoingRow| Duration::try_from(now.duration_since(row.put_at)).unwrap_or_default();
                    Answer::Loaded(
                        rows.into_iter()
                            .map(|row| {
                                let age = age(&row);
                                (row, age)
                            })
                            .collect(),
                    )
                }
                Err(error) => journal_failed(&error),
            },
            Step::Send(row) => self.send(conversation, *row).await,
            Step::Find(row) => {
                let key = row.outgoing.key;
                Answer::Found(self.request(conversation, &Request::Find { key }).await)
            }
            Step::Record(row, delivery) => self.record(&row, &delivery).await,
            Step::Show { job, text, message, late } => self.show(conversation, job, text, message, late).await,
        }
    }

    async fn send(&self, conversation: &ConversationId, row: OutgoingRow) -> Answer {
        let (key, job) = (row.outgoing.key, row.outgoing.job);
        let buttons = |actions: &[Action]| {
            actions.iter().map(|action| Button { action: *action, job: job.clone() }).collect::<Vec<_>>()
        };
        let request = match row.outgoing.effect {
            Effect::Post { text, buttons: actions } => {
                Request::Post { key: key.clone(), text, buttons: buttons(&actions) }
            }
            Effect::Upload { name } => match self.journal.file(&key).await {
                Ok(Some(bytes)) => Request::Upload { key: key.clone(), name, bytes },
                Ok(None) => return Answer::Sent(Err(SendError::Refused("the file's content is not there".into()))),
                Err(error) => return journal_failed(&error),
            },
            Effect::React { message, mark, shown } => Request::React { message_key: message, mark, shown },
            Effect::Progress { text, closing } => match row.message {
                Some(message) => {
                    let buttons = if closing { Vec::new() } else { buttons(&[Action::Cancel]) };
                    Request::Edit { message, text, buttons }
                }
                None => return Answer::Sent(Err(SendError::Refused("its message is not known".into()))),
            },
        };
        // Before what a repetition of would be seen, there is a note; after a crash it says where to look.
        if let Request::Post { .. } | Request::Upload { .. } = request
            && let Err(error) = self.journal.trying(&key).await
        {
            return journal_failed(&error);
        }
        Answer::Sent(self.request(conversation, &request).await)
    }

    async fn record(&self, row: &OutgoingRow, delivery: &Delivery) -> Answer {
        let Outgoing { key, job, effect, .. } = &row.outgoing;
        if let Delivery::GivenUp { why } = delivery {
            tracing::error!(%job, key, why, "a {} could not be sent and was given up", effect.word());
        }
        match self.journal.delivered(key, effect, delivery, self.world.now()).await {
            Ok(()) => Answer::Recorded,
            Err(error) => journal_failed(&error),
        }
    }

    async fn show(
        &self,
        conversation: &ConversationId,
        job: JobId,
        text: String,
        mut message: Option<String>,
        late: bool,
    ) -> Answer {
        let key = progress_key(&job);
        if message.is_none() {
            let known = match self.journal.effect(&key).await {
                Ok(known) => known,
                Err(error) => return journal_failed(&error),
            };
            if let Some(row) = known {
                if !row.outgoing.effect.is_replaceable() {
                    return Answer::Closed;
                }
                message = row.message;
                if message.is_none() {
                    match self.request(conversation, &Request::Find { key: key.clone() }).await {
                        Ok(found) => message = found,
                        Err(error) => return Answer::Shown { message: None, result: Err(error) },
                    }
                    if message.is_none() && !late {
                        return Answer::ShowLater;
                    }
                }
            }
        }
        let effect = Effect::Progress { text: text.clone(), closing: false };
        let buttons = vec![Button { action: Action::Cancel, job: job.clone() }];
        let row = Outgoing { key: key.clone(), job, conversation: conversation.clone(), effect };
        // This is also the note that a request is about to be made.
        if let Err(error) = self.journal.put(std::slice::from_ref(&row), self.world.now()).await {
            return journal_failed(&error);
        }
        let request = match &message {
            Some(message) => Request::Edit { message: message.clone(), text, buttons },
            None => Request::Post { key: key.clone(), text, buttons },
        };
        match self.request(conversation, &request).await {
            Ok(posted) => {
                let message = message.or(posted);
                let delivery = Delivery::Sent { message: message.clone() };
                // Should this fail, the lane knows the name, and whoever follows it finds the message by its key.
                let _ = self.journal.delivered(&key, &row.effect, &delivery, self.world.now()).await;
                Answer::Shown { message, result: Ok(()) }
            }
            Err(SendError::Refused(_)) if message.is_none() => Answer::NeverShown,
            Err(error) => Answer::Shown { message, result: Err(error) },
        }
    }

    async fn request(&self, conversation: &ConversationId, request: &Request) -> Result<Option<String>, SendError> {
        let sent = timeout(REQUEST_PATIENCE, self.chats.request(conversation, request)).await;
        let sent = sent.unwrap_or_else(|_| {
            Err(SendError::Ambiguous(format!("no answer within {} s", REQUEST_PATIENCE.as_secs())))
        });
        if let Err(error) = &sent {
            tracing::debug!(%conversation, %error, "a request to the chat did not do what it should");
        }
        sent
    }
}

/// The key of a job's progress message.
pub fn progress_key(job: &JobId) -> String {
    format!("{job}/progress")
}

/// Whether a message with this key tells how a job goes.
pub fn is_progress(key: &str) -> bool {
    key.ends_with("/progress")
}

fn journal_failed(error: &journal::JournalError) -> Answer {
    tracing::warn!(%error, "the outbox waits for the journal");
    Answer::JournalFailed
}
