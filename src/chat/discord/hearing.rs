//! From events to the desk: looks up what has to be known about them, and hands them in, in their order.
//!
//! A message counts as heard when the desk has recorded it; until then its event is not done, and comes again with the
//! session. Messages wait for the journal beside each other, so that many can be recorded at once. What did not fit into
//! the queue, and what was written while there was no session, is fetched.
//!
//! A task of its shard, which starts and ends it.

mod catch_up;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use twilight_http::routing::Route;

use super::ears::{Ask, Heard, LoopGuard, Why};
use super::place::{Place, Spot, requester};
use super::rest::Body;
use super::shard::session::Course;
use super::sign::title;
use super::threads::Thread;
use super::wire::{Channel, ChannelNo, GuildNo, Interaction, Member, Message, MessageNo, UserNo};
use super::{Shared, clicks};
use crate::chat::adapter::Front;
use crate::chat::{Attachment, Change, Inbound};
use crate::desk::Target;
use crate::job::RequesterId;
use crate::supervise::backoff;

/// Events that wait. A burst of more is fetched when the queue is empty again.
const MAX_WAITING: usize = 2000;

/// Messages that wait for the journal beside each other.
const MAX_HANDING_IN: usize = 256;

/// Clicks and commands that are answered beside each other.
const MAX_CLICKS: usize = 64;

/// Pauses between attempts to hand a message in that the desk could not record.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How long a channel that could not be looked up is left alone: not each message in it costs a request.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);

/// Who cancels what somebody deleted: Discord does not tell.
const DELETED_BY: &str = "discord:deleted";

/// Who stops what runs for a thread that was deleted, whosever it was: as the operator could.
const OPERATOR: &str = "terminal:discord";

/// What is for us.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message that is for us, or may be when its channel is known.
    Written(Box<Message>),
    Changed(Box<Message>),
    Deleted {
        messages: Vec<MessageNo>,
        channel: ChannelNo,
        guild: Option<GuildNo>,
    },
    ChannelGone(Channel),
    Interaction(Box<Interaction>),
    /// A new session began: what was written before it has to be fetched.
    CatchUp,
}

/// What did not fit in.
#[derive(Debug, Default)]
struct Missed {
    /// Where messages are to be fetched, and from which on.
    channels: BTreeMap<ChannelNo, (Option<GuildNo>, MessageNo)>,
    /// The first of them, which stays open until they are fetched.
    first: Option<u64>,
}

/// The way in. Never waits.
pub struct Inlet {
    queue: mpsc::Sender<(u64, Event)>,
    missed: Arc<Mutex<Missed>>,
}

pub struct Outlet {
    queue: mpsc::Receiver<(u64, Event)>,
    missed: Arc<Mutex<Missed>>,
}

/// A bounded queue of events.
pub fn queue() -> (Inlet, Outlet) {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    let missed = Arc::new(Mutex::new(Missed::default()));
    (Inlet { queue: sender, missed: missed.clone() }, Outlet { queue: receiver, missed })
}

impl Inlet {
    /// One that leads nowhere.
    pub fn closed() -> Self {
        queue().0
    }

    /// Puts an event in, which is open until it is handed in.
    pub fn push(&self, sequence: u64, event: Event, course: &Course) {
        course.begin(sequence);
        let (Err(mpsc::error::TrySendError::Full(back)) | Err(mpsc::error::TrySendError::Closed(back))) =
            self.queue.try_send((sequence, event))
        else {
            return;
        };
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let Missed { channels, first } = &mut *missed;
        if *first.get_or_insert(sequence) != sequence {
            course.done(sequence);
        }
        let mut miss = |channel: ChannelNo, guild: Option<GuildNo>, before: MessageNo| {
            let entry = channels.entry(channel).or_insert((guild, before));
            entry.1 = entry.1.min(before);
        };
        match back.1 {
            Event::Written(message) => {
                let before = MessageNo::new_checked(message.id.get() - 1).unwrap_or(message.id);
                miss(message.channel_id, message.guild_id, before);
            }
            Event::CatchUp => {
                course.seen().into_iter().for_each(|(channel, seen)| miss(channel, seen.guild, seen.last))
            }
            Event::Changed(_) | Event::Deleted { .. } | Event::ChannelGone(_) | Event::Interaction(_) => {
                tracing::warn!("more events than can be taken: one that can't be fetched later was left out");
            }
        }
    }
}

/// Hands in what comes out of the queue until it is closed, or until told to stop.
pub async fn hear(shared: Arc<Shared>, front: Front, course: Arc<Course>, mut outlet: Outlet, stop: CancellationToken) {
    let mut hearing = Hearing {
        inquiry: Inquiry { shared, front, course, unknown: Mutex::default() },
        stop,
        guard: LoopGuard::default(),
        open: FuturesUnordered::new(),
        clicks: JoinSet::new(),
    };
    loop {
        let is_full = hearing.open.len() >= MAX_HANDING_IN;
        tokio::select! {
            biased;
            Some(()) = hearing.open.next() => {}
            Some(_) = hearing.clicks.join_next() => {}
            event = outlet.queue.recv(), if !is_full && hearing.clicks.len() < MAX_CLICKS => match event {
                Some((sequence, event)) => hearing.event(Some(sequence), event).await,
                None => break,
            },
        }
        if outlet.queue.is_empty() {
            let missed = std::mem::take(&mut *outlet.missed.lock().unwrap_or_else(PoisonError::into_inner));
            if !missed.channels.is_empty() {
                let channels = missed.channels.len();
                tracing::warn!(channels, "more messages than can be taken: fetching what was left out");
            }
            for (channel, (guild, after)) in missed.channels {
                hearing.fetch(channel, guild, after).await;
            }
            hearing.done(missed.first);
        }
    }
    while hearing.open.next().await.is_some() {}
    while hearing.clicks.join_next().await.is_some() {}
}

struct Hearing {
    inquiry: Inquiry,
    stop: CancellationToken,
    guard: LoopGuard,
    /// Messages that wait for the journal.
    open: FuturesUnordered<BoxFuture<'static, ()>>,
    clicks: JoinSet<()>,
}

/// What has to be known about events, and what they change of jobs that are there.
struct Inquiry {
    shared: Arc<Shared>,
    front: Front,
    course: Arc<Course>,
    /// Channels that are not looked up again before this time.
    unknown: Mutex<BTreeMap<ChannelNo, Instant>>,
}

impl Hearing {
    async fn event(&mut self, sequence: Option<u64>, event: Event) {
        match event {
            Event::Written(message) => {
                self.written(sequence, *message).await;
                return;
            }
            Event::Changed(message) => self.inquiry.changed(&message).await,
            Event::Deleted { messages, channel, guild } => self.inquiry.deleted(&messages, channel, guild).await,
            Event::ChannelGone(channel) => self.inquiry.gone(&channel).await,
            Event::Interaction(interaction) => {
                let (shared, front) = (self.inquiry.shared.clone(), self.inquiry.front.clone());
                self.clicks.spawn(async move { clicks::answer(&shared, &front, *interaction).await });
            }
            Event::CatchUp => self.catch_up().await,
        }
        self.done(sequence);
    }

    fn done(&self, sequence: Option<u64>) {
        if let Some(sequence) = sequence {
            self.inquiry.course.done(sequence);
        }
    }

    /// A message that may be for us.
    async fn written(&mut self, sequence: Option<u64>, message: Message) {
        let ask = match self.inquiry.decide(&message).await {
            Ok(ask) => ask,
            Err(why) => {
                tracing::debug!(why = why.word(), "a message is not for us");
                self.done(sequence);
                return;
            }
        };
        if ask.of_bot && !self.guard.allows(message.channel_id, Instant::now()) {
            tracing::warn!(channel = %message.channel_id, "a bot talks too much here: it is not heard for a while");
            self.done(sequence);
            return;
        }
        self.inquiry.course.see(ask.place.thread, ask.place.guild, message.id, true);
        self.inquiry.course.see(message.channel_id, message.guild_id, message.id, true);
        if ask.opens {
            self.inquiry.shared.threads.begin(ask.place.thread, title(&ask.text));
        } else {
            self.inquiry.join(ask.place);
        }
        self.inquiry.vouch(&ask, message.member.is_some()).await;
        self.hand_in(sequence, inbound(ask));
    }

    /// Hands a message in, in its order, and lets it wait for the journal beside others.
    fn hand_in(&mut self, sequence: Option<u64>, inbound: Inbound) {
        let (desk, course, stop) = (self.inquiry.front.desk.clone(), self.inquiry.course.clone(), self.stop.clone());
        let mut handing_in = async move {
            let mut attempt = 0;
            while !desk.hear(inbound.clone()).await {
                let pause = backoff(FIRST_PAUSE, MAX_PAUSE, attempt);
                attempt += 1;
                tokio::select! {
                    biased;
                    // Not done: it comes again with the session.
                    () = stop.cancelled() => return,
                    () = sleep(pause) => {}
                }
            }
            if let Some(sequence) = sequence {
                course.done(sequence);
            }
        }
        .boxed();
        // Once at once, which hands it to the desk before the next one.
        if (&mut handing_in).now_or_never().is_none() {
            self.open.push(handing_in);
        }
    }
}

impl Inquiry {
    /// Whether the message is for us, having looked up what has to be known for that.
    async fn decide(&self, message: &Message) -> Result<Ask, Why> {
        let Some(rules) = self.shared.rules() else { return Err(Why::NotAddressed) };
        for _ in 0..2 {
            // Bound, so that the lock is free while we wait.
            let heard = rules.hear(message, &self.shared.atlas());
            match heard {
                Heard::Ask(ask) => return Ok(*ask),
                Heard::Ignored(why) => return Err(why),
                Heard::Unknown => self.look_up(message.channel_id, message.guild_id).await,
            }
        }
        Err(Why::NotAddressed)
    }

    /// Looks a channel up that is not known.
    async fn know(&self, channel: ChannelNo, guild: Option<GuildNo>) {
        if guild.is_some() && self.shared.atlas().get(channel).is_none() {
            self.look_up(channel, guild).await;
        }
    }

    async fn look_up(&self, channel: ChannelNo, guild: Option<GuildNo>) {
        let now = Instant::now();
        {
            let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
            unknown.retain(|_, until| now < *until);
            if unknown.contains_key(&channel) {
                return;
            }
            unknown.insert(channel, now + UNKNOWN_FOR);
        }
        let route = Route::GetChannel { channel_id: channel.get() };
        match self.shared.rest.get::<Channel>(&route).await {
            Ok(found) => self.shared.atlas().channel(&found, guild),
            Err(error) => tracing::warn!(%channel, %error, "a channel can't be looked up: its message is left alone"),
        }
    }

    /// Becomes a member of a thread in which somebody asks. Discord's documents do not ask for that, and bots that did not
    /// do it have been deaf in threads.
    fn join(&self, place: Place) {
        if place.is_direct() || self.shared.threads.get(place.thread).is_some() {
            return;
        }
        self.shared.threads.set(place.thread, Thread::Open);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let route = Route::JoinThread { channel_id: place.thread.get() };
            if let Err(error) = shared.rest.send(&route, Body::Nothing).await {
                tracing::debug!(%place, %error, "a thread can't be joined");
            }
        });
    }

    /// Tells the desk whether a role allows to ask. A message that was fetched does not tell its author's roles.
    async fn vouch(&self, ask: &Ask, is_known: bool) {
        let (Some(rules), Some(guild)) = (self.shared.rules(), ask.place.guild) else { return };
        if rules.roles.is_empty() {
            return;
        }
        let vouched = if is_known { ask.vouched } else { self.roles_vouch(guild, ask.user).await };
        self.front.access.vouched.set(&requester(ask.user), &ask.place.channel(), vouched);
    }

    async fn roles_vouch(&self, guild: GuildNo, user: UserNo) -> bool {
        let route = Route::GetMember { guild_id: guild.get(), user_id: user.get() };
        match (self.shared.rest.get::<Member>(&route).await, self.shared.rules()) {
            (Ok(member), Some(rules)) => rules.vouches(&member.roles),
            (_, _) => false,
        }
    }

    async fn changed(&self, message: &Message) {
        let Some(rules) = self.shared.rules() else { return };
        self.know(message.channel_id, message.guild_id).await;
        let change = rules.changed(message, &self.shared.atlas());
        if let Some(change) = change {
            self.front.desk.change(change).await;
        }
    }

    async fn deleted(&self, messages: &[MessageNo], channel: ChannelNo, guild: Option<GuildNo>) {
        let Some(rules) = self.shared.rules() else { return };
        self.know(channel, guild).await;
        for message in messages {
            let place = rules.place_of(guild, channel, *message, &self.shared.atlas());
            let Some(place) = place else { continue };
            let change = Change {
                key: Spot { guild, channel, message: *message }.to_string(),
                conversation: place.conversation(),
                by: RequesterId::new(DELETED_BY),
                text: None,
            };
            self.front.desk.change(change).await;
        }
    }

    /// A thread or channel was deleted: nobody waits there any more.
    async fn gone(&self, channel: &Channel) {
        self.course.forget(channel.id);
        self.shared.atlas().forget(channel.id);
        let (Some(guild), Some(parent)) = (channel.guild_id, channel.parent_id) else { return };
        self.shared.threads.set(channel.id, Thread::Gone);
        let place = Place { guild: Some(guild), parent, thread: channel.id };
        self.front.desk.cancel(Target::Conversation(place.conversation()), RequesterId::new(OPERATOR)).await;
    }
}

/// The message as the desk takes it.
fn inbound(ask: Ask) -> Inbound {
    Inbound {
        key: ask.spot.to_string(),
        requester: requester(ask.user),
        channel: ask.place.channel(),
        conversation: ask.place.conversation(),
        text: ask.text,
        files: ask.files.into_iter().map(attachment).collect(),
        agent: None,
        timeout: None,
        replies: None,
    }
}

pub(super) fn attachment(file: super::wire::File) -> Attachment {
    Attachment { name: file.filename, size: file.size, url: file.url }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use twilight_model::id::Id;

    use super::*;

    fn written(channel: u64, id: u64) -> Event {
        let message = json!({"id": id.to_string(), "channel_id": channel.to_string(), "author": {"id": "8"}});
        Event::Written(Box::new(serde_json::from_value(message).unwrap()))
    }

    #[test]
    fn what_finds_the_queue_full_is_fetched_from_the_last_message_before_it() {
        let course = Course::default();
        let (inlet, outlet) = queue();
        for number in 0..MAX_WAITING as u64 {
            inlet.push(number, written(1, 100 + number), &course);
        }
        assert!(outlet.missed.lock().unwrap().channels.is_empty());
        for (number, channel, id) in [(9001, 1, 9500), (9002, 1, 9501), (9003, 2, 9502)] {
            inlet.push(number, written(channel, id), &course);
        }
        course.see(Id::new(3), None, Id::new(77), true);
        inlet.push(9004, Event::CatchUp, &course);
        let missed = outlet.missed.lock().unwrap();
        let from: Vec<_> = missed.channels.iter().map(|(channel, (_, after))| (channel.get(), after.get())).collect();
        assert_eq!(from, [(1, 9499), (2, 9501), (3, 77)]);
        (0..MAX_WAITING as u64).for_each(|number| course.done(number));
        assert_eq!(course.safe(9004), 9000, "the first that is to be fetched stays open");
    }
}
