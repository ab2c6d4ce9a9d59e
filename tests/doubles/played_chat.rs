//! A chat in which everything works unless a test wants otherwise, with a desk, an outbox and a pool that the test plays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use janebot::chat::outbox::{self, Outbox};
use janebot::chat::{Action, Attachment, Button, Capabilities, Change, Chat, Chats, Inbound, Said, SendError, Sent};
use janebot::config::{AccessConfig, AgentKind};
use janebot::desk::admission::Settings;
use janebot::desk::debts::Debts;
use janebot::desk::front::DeskHandle;
use janebot::desk::{self, Desk, recovery};
use janebot::job::{ChannelId, ConversationId, JobId, RequesterId};
use janebot::journal::memory::MemoryJournal;
use janebot::journal::outgoing::Mark;
use janebot::journal::{JobRow, JobState, Journal as _, RunnerRow};
use janebot::pool::{PoolHandle, PoolMsg, Ticket};
use janebot::sprites::CheckpointId;
use janebot::supervise::current::{self, Publisher};
use janebot::supervise::{self, Supervisor};
use janebot::world::World;
use ractor::{Actor, ActorRef};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::desk_rig::{PlayedPool, QUEUE_TIMEOUT, RUN_TIMEOUT};

/// What people see, in the order of posting.
#[derive(Clone, Default)]
pub struct PlayedChat(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// Key and text.
    messages: Vec<(String, String)>,
    marks: BTreeMap<String, BTreeSet<Mark>>,
    /// Below each message, by its place.
    buttons: BTreeMap<usize, Vec<Button>>,
    /// What was said before, if this chat is asked for that.
    said: Option<Vec<Said>>,
    files: BTreeMap<String, Bytes>,
    typing: u32,
    refuses: Option<String>,
    hangs: bool,
}

impl PlayedChat {
    pub fn texts(&self) -> Vec<String> {
        self.lock().messages.iter().map(|(_, text)| text.clone()).collect()
    }

    pub fn marks(&self, message_key: &str) -> BTreeSet<Mark> {
        self.lock().marks.get(message_key).cloned().unwrap_or_default()
    }

    /// The buttons below the message with this text in it.
    pub fn buttons(&self, text: &str) -> Vec<Action> {
        let seen = self.lock();
        let place = seen.messages.iter().position(|(_, other)| other.contains(text)).expect("the message is there");
        seen.buttons.get(&place).into_iter().flatten().map(|button| button.action).collect()
    }

    /// How often it was shown that Jane is at work.
    pub fn typing(&self) -> u32 {
        self.lock().typing
    }

    /// From now on it tells that this was said before.
    pub fn remember(&self, said: Vec<Said>) {
        self.lock().said = Some(said);
    }

    /// Puts a file there.
    pub fn keep(&self, url: &str, content: &'static str) {
        self.lock().files.insert(url.to_owned(), Bytes::from_static(content.as_bytes()));
    }

    /// Refuses everything from now on.
    pub fn refuse(&self, why: &str) {
        self.lock().refuses = Some(why.to_owned());
    }

    /// Does what it is asked and does not say so, or no longer.
    pub fn hang(&self, hangs: bool) {
        self.lock().hangs = hangs;
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request<T>(&self, effect: impl FnOnce(&mut Seen) -> T) -> Sent<T> {
        let (result, hangs) = {
            let mut seen = self.lock();
            if let Some(why) = &seen.refuses {
                return Err(SendError::Refused(why.clone()));
            }
            (effect(&mut seen), seen.hangs)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(result)
    }

    async fn write(&self, key: &str, text: &str, buttons: &[Button]) -> Sent<String> {
        self.request(|seen| {
            let place = seen.messages.len();
            seen.messages.push((key.to_owned(), text.to_owned()));
            seen.buttons.insert(place, buttons.to_vec());
            place.to_string()
        })
        .await
    }
}

impl Chat for PlayedChat {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            edit: true,
            react: true,
            upload: true,
            max_message_chars: 2000,
            typing_every: Some(Duration::from_secs(8)),
        }
    }

    async fn post(&self, _: &ConversationId, key: &str, text: &str, buttons: &[Button]) -> Sent<String> {
        self.write(key, text, buttons).await
    }

    async fn edit(&self, _: &ConversationId, message: &str, text: &str, buttons: &[Button]) -> Sent<()> {
        let place: usize = message.parse().unwrap();
        self.request(|seen| {
            text.clone_into(&mut seen.messages[place].1);
            seen.buttons.insert(place, buttons.to_vec());
        })
        .await
    }

    async fn react(&self, _: &ConversationId, message_key: &str, mark: Mark, shown: bool) -> Sent<()> {
        self.request(|seen| {
            let marks = seen.marks.entry(message_key.to_owned()).or_default();
            if shown {
                marks.insert(mark)
            } else {
                marks.remove(&mark)
            };
        })
        .await
    }

    async fn upload(&self, _: &ConversationId, key: &str, name: &str, _: Bytes) -> Sent<String> {
        self.write(key, name, &[]).await
    }

    async fn find(&self, _: &ConversationId, key: &str) -> Sent<Option<String>> {
        self.request(|seen| seen.messages.iter().position(|(other, _)| other == key).map(|place| place.to_string()))
            .await
    }

    async fn typing(&self, _: &ConversationId) -> Sent<()> {
        self.request(|seen| seen.typing += 1).await
    }

    async fn fetch(&self, file: &Attachment, _: u64) -> Sent<Bytes> {
        self.request(|seen| seen.files.get(&file.url).cloned())
            .await?
            .ok_or_else(|| SendError::Refused("it was deleted".into()))
    }

    async fn history(&self, _: &ConversationId, _: &str, _: usize) -> Sent<Option<Vec<Said>>> {
        self.request(|seen| seen.said.clone()).await
    }
}

/// One process that serves the chat `test`.
pub struct ChatRig {
    pub desk: DeskHandle,
    pub journal: MemoryJournal,
    pub chat: PlayedChat,
    pub world: World,
    pool: mpsc::UnboundedReceiver<PoolMsg>,
    _pool_actor: Publisher<Option<ActorRef<PoolMsg>>>,
    root: ActorRef<supervise::Msg>,
}

/// Waits until nothing moves any more; edits of progress have a pause between them.
pub async fn settled() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

impl ChatRig {
    pub async fn new() -> Self {
        Self::with_debounce(Duration::ZERO).await
    }

    pub async fn with_debounce(debounce: Duration) -> Self {
        let rig = Self::start(MemoryJournal::new(), PlayedChat::default(), World::seeded(7), debounce).await;
        // What a process of before might have sent can't arrive any more.
        tokio::time::sleep(Duration::from_secs(60)).await;
        rig
    }

    pub async fn start(journal: MemoryJournal, chat: PlayedChat, world: World, debounce: Duration) -> Self {
        let list = |id: &str| [id.to_owned()].into();
        let settings = Settings {
            agents: vec![AgentKind::Shell, AgentKind::Amp],
            default_agent: AgentKind::Amp,
            run_timeout: RUN_TIMEOUT,
            queue_timeout: QUEUE_TIMEOUT,
            debounce,
            access: AccessConfig { channels: list("C"), admins: list("ADMIN"), ..AccessConfig::default() },
        };
        let (to_test, pool) = mpsc::unbounded_channel();
        let (played, _) = Actor::spawn(None, PlayedPool(to_test), ()).await.unwrap();
        let (pool_actor, follow) = current::channel(Some(played));
        let chats = Chats::default().with("test", chat.clone());
        let outbox = Outbox { journal: journal.clone(), chats, world: world.clone() };
        let (outbox_child, outbox) = outbox::child(outbox);
        let debts = Debts::with_outbox(outbox);
        let accepted = recovery::recover(&journal, &world, &debts).await.unwrap().accepted;
        let (desk_child, desk) = desk::child(Desk {
            journal: journal.clone(),
            pool: PoolHandle::new(follow),
            world: world.clone(),
            settings: Arc::new(settings),
            debts,
        });
        let supervisor = Supervisor { name: "root", world: world.clone() };
        let (root, _) = Actor::spawn(None, supervisor, vec![outbox_child, desk_child]).await.unwrap();
        desk.resume(accepted).await;
        Self { desk, journal, chat, world, pool, _pool_actor: pool_actor, root }
    }

    pub fn conversation(&self) -> ConversationId {
        ConversationId::new("test:C/1")
    }

    pub fn inbound(&self, key: &str, user: &str, text: &str) -> Inbound {
        Inbound {
            key: key.into(),
            requester: RequesterId::new(format!("test:{user}")),
            channel: ChannelId::new("test:C"),
            conversation: self.conversation(),
            text: text.into(),
            files: Vec::new(),
            agent: None,
            timeout: None,
            replies: None,
        }
    }

    pub async fn says(&self, key: &str, user: &str, text: &str) {
        assert!(self.desk.hear(self.inbound(key, user, text)).await, "{key} is recorded");
    }

    pub async fn says_in(&self, thread: &str, key: &str, user: &str, text: &str) {
        let conversation = ConversationId::new(format!("test:C/{thread}"));
        assert!(self.desk.hear(Inbound { conversation, ..self.inbound(key, user, text) }).await, "{key} is recorded");
    }

    pub async fn edits(&self, key: &str, text: Option<&str>) {
        let by = RequesterId::new("test:U1");
        let text = text.map(Into::into);
        self.desk.change(Change { key: key.into(), conversation: self.conversation(), by, text }).await;
    }

    /// The next ticket, past withdrawals.
    pub async fn ticket(&mut self) -> Ticket {
        loop {
            if let PoolMsg::Acquire(ticket) = self.pool.recv().await.expect("the pool lives") {
                return ticket;
            }
        }
    }

    /// Begins to drain, which ends with the number of jobs that did not.
    pub fn drain(&self, patience: Duration) -> JoinHandle<usize> {
        let desk = self.desk.clone();
        tokio::spawn(async move { desk.drain(Instant::now() + patience).await })
    }

    /// Notes in the journal that the job has a runner.
    pub async fn lease(&self, job: &JobId) {
        let runner = RunnerRow {
            runner: "r0".into(),
            sprite_id: "s".into(),
            checkpoint: CheckpointId::new("v1").unwrap(),
            fingerprint: "f".into(),
            dirty: true,
            last_job: None,
            canary: None,
            boot: "b".into(),
            fence: 0,
        };
        self.journal.built(&runner).await.unwrap();
        self.journal.lease(job, "r0", 1, "canary", self.world.now()).await.unwrap();
    }

    /// A job as the journal has it that nobody told the desk of.
    pub fn row(&self, key: &str, text: &str) -> JobRow {
        let inbound = self.inbound(key, "U1", text);
        JobRow {
            job: self.world.job_id(),
            message_key: inbound.key,
            requester: inbound.requester,
            channel: inbound.channel,
            conversation: inbound.conversation,
            agent: "amp".into(),
            prompt: inbound.text,
            files: Vec::new(),
            state: JobState::Accepted,
            runner: None,
            accepted_at: self.world.now(),
            deadline: None,
            started_at: None,
            ended_at: None,
            outcome: None,
            timings: None,
            receipt: None,
        }
    }

    pub fn kill_outbox(&self) {
        // Children in the order of their birth: the outbox, then the desk.
        let mut children = self.root.get_cell().get_children();
        children.sort_by_key(ractor::ActorCell::get_id);
        children[0].kill();
    }

    /// Stops in order and starts the next process on the same journal.
    pub async fn next_process(self) -> Self {
        ractor::call!(self.root, supervise::Msg::StopChildren).unwrap();
        let (journal, chat, world) = (self.journal.clone(), self.chat.clone(), self.world.clone());
        self.kill().await;
        Self::start(journal, chat, world, Duration::ZERO).await
    }

    /// Dies and starts again at once.
    pub async fn crash(self) -> Self {
        let (journal, chat, world) = (self.journal.clone(), self.chat.clone(), self.world.clone());
        self.kill().await;
        Self::start(journal, chat, world, Duration::ZERO).await
    }

    /// Dies as by SIGKILL.
    pub async fn kill(self) {
        let mut all = vec![self.root.get_cell()];
        let mut next = 0;
        while next < all.len() {
            all.extend(all[next].get_children());
            next += 1;
        }
        for actor in all {
            actor.kill();
        }
        let _ = self.root.get_cell().wait(None).await;
        tokio::task::yield_now().await;
    }
}
