//! One seed: what happens, when, and what must hold afterwards.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use janebot::chat::{Capabilities, Change};
use janebot::desk::Target;
use janebot::desk::front::DeskHandle;
use janebot::desk::lookup::Again;
use janebot::job::{Outcome, RequesterId};
use janebot::journal::Journal as _;
use janebot::journal::memory::MemoryJournal;
use janebot::supervise::current::{self, Publisher};
use janebot::world::World;

use crate::chat::{Chats, Message};
use crate::doubles::memory_sprites::MemorySprites;
use crate::doubles::memory_sprites::faults::{Fault, FaultPlan};
use crate::platform::Platform;
use crate::process::{self, Process};

/// How long things happen.
const PLAY: Duration = Duration::from_secs(900);
/// By when all must be at rest once the faults have stopped: longer than any rest and back-off.
const SETTLE: Duration = Duration::from_secs(3600);

/// Where the numbers of the messages begin that are written when all is at rest.
const PROBES: usize = 1000;
/// By when those are answered: time for each user's on one runner, and no fault.
const PROBED_WITHIN: Duration = Duration::from_secs(60);

/// What happens at a moment.
#[derive(Clone, Debug)]
enum Act {
    Write(Message),
    /// The same message is delivered once more.
    Redeliver(usize),
    CancelConversation(u64),
    /// The message is edited, or deleted, in its chat.
    Edit(usize),
    Delete(usize),
    /// The button that runs a failed job again is pressed, maybe twice.
    Again(usize),
    KillActor,
    /// The process dies and is started again after so many milliseconds.
    Crash(u64),
    /// The process is told to stop, gives what runs so many milliseconds, and is started again.
    Restart(u64),
    /// Another deployment under the same names comes, and goes after so many seconds.
    Intrude(u64),
    Refresh,
}

/// A scenario, ready to be played.
pub struct Scenario {
    world: World,
    faults: FaultPlan,
    pub journal_faults: u64,
    runners: usize,
    users: u64,
    acts: Vec<(Duration, Act)>,
    pub messages: Vec<Message>,
    pub has_intruder: bool,
    pub platforms: Platforms,
}

/// The two platforms: one that can do everything, one that can only take short messages.
#[derive(Clone)]
pub struct Platforms {
    left: Platform,
    right: Platform,
}

impl Platforms {
    fn chats(&self) -> janebot::chat::Chats {
        janebot::chat::Chats::default().with("left", self.left.clone()).with("right", self.right.clone())
    }

    pub fn of(&self, message: &Message) -> &Platform {
        if message.platform == "left" { &self.left } else { &self.right }
    }
}

/// What came of it.
pub struct Report {
    /// Every promise that was broken, in words.
    pub broken: Vec<String>,
    pub log: String,
    pub totals: Totals,
}

/// Counts over scenarios, to show that enough happened.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub messages: u64,
    pub answered: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub refused: u64,
    pub runs: u64,
    pub kills: u64,
    pub crashes: u64,
    pub quarantines: u64,
    pub restarts: u64,
    pub merged: u64,
    pub stops: u64,
    pub again: u64,
    /// Messages of chats whose outcome was seen there.
    pub seen: u64,
    pub requests: u64,
    pub lost: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.answered += other.answered;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.refused += other.refused;
        self.runs += other.runs;
        self.kills += other.kills;
        self.crashes += other.crashes;
        self.quarantines += other.quarantines;
        self.restarts += other.restarts;
        self.merged += other.merged;
        self.stops += other.stops;
        self.again += other.again;
        self.seen += other.seen;
        self.requests += other.requests;
        self.lost += other.lost;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, answered, failed, cancelled, refused, runs, kills, crashes, quarantines, .. } = self;
        let Self { restarts, merged, stops, again, seen, requests, lost, .. } = self;
        write!(
            f,
            "{messages} messages, {runs} runs; {answered} answered, {failed} failed, {cancelled} cancelled, {refused} refused; \
             {merged} merged, {stops} stops, {again} run again; {seen} outcomes seen in chats, {lost} of {requests} requests to chats lost; \
             {kills} actors killed, {crashes} crashes, {restarts} restarts, {quarantines} quarantines"
        )
    }
}

impl Scenario {
    /// The scenario of a seed. Must be called inside a paused runtime.
    pub fn of(seed: u64) -> Self {
        let world = World::seeded(seed);
        let below = |limit: u64| world.random() % limit;
        let has_intruder = below(8) == 0;
        // With an intruder about, our signs of life must arrive, or it rightly takes over.
        let faults = match has_intruder {
            true => FaultPlan::all(0.002).with(Fault::LabelsLost, 0.0),
            false => FaultPlan::swarm(&world),
        };
        let users = 1 + below(4);
        let conversations = 1 + below(4);
        let places: Vec<_> = (0..conversations).map(|_| ["terminal", "left", "right"][below(3) as usize]).collect();
        let messages: Vec<Message> = (0..1 + below(10) as usize)
            .map(|number| {
                let (user, conversation) = (below(users), below(conversations));
                message(number, user, conversation, places[conversation as usize], below(15))
            })
            .collect();
        let within = |from: u64, to: u64| Duration::from_millis(from * 1000 + below((to - from) * 1000));
        let mut messages = messages;
        let mut acts: Vec<(Duration, Act)> = Vec::new();
        for message in &mut messages {
            let mut at = within(0, 600);
            // Now and then somebody writes a thought in several messages.
            if let (Some((before, Act::Write(other))), 0) = (acts.last(), below(4)) {
                at = *before + Duration::from_millis(below(1200));
                let Message { user, conversation, platform, .. } = *other;
                (message.user, message.conversation, message.platform) = (user, conversation, platform);
            }
            acts.push((at, Act::Write(message.clone())));
        }
        for _ in 0..below(3) {
            let number = below(messages.len() as u64) as usize;
            let act = if below(2) == 0 { Act::Edit(number) } else { Act::Delete(number) };
            acts.push((within(0, 700), act));
        }
        for _ in 0..below(4) {
            acts.push((within(60, 900), Act::Again(below(messages.len() as u64) as usize)));
        }
        if below(6) == 0 {
            acts.push((within(0, 800), Act::Restart(below(90_000))));
        }
        for _ in 0..below(3) {
            let number = below(messages.len() as u64) as usize;
            acts.push((within(0, 900), Act::Redeliver(number)));
        }
        for _ in 0..below(3) {
            acts.push((within(0, 900), Act::CancelConversation(below(conversations))));
        }
        // Half of the time soon after somebody wrote, when a job is on its way: what dies in idleness breaks little.
        let written: Vec<Duration> = acts.iter().map(|(at, _)| *at).take(messages.len()).collect();
        let sometime = |to: u64| match below(2) {
            0 => within(0, to),
            _ => written[below(written.len() as u64) as usize] + Duration::from_millis(below(25_000)),
        };
        for _ in 0..below(6) {
            acts.push((sometime(900), Act::KillActor));
        }
        if below(3) == 0 {
            for _ in 0..1 + below(2) {
                acts.push((sometime(800), Act::Crash(below(60_000))));
            }
        }
        if below(4) == 0 {
            acts.push((within(0, 700), Act::Refresh));
        }
        if has_intruder {
            acts.push((within(60, 600), Act::Intrude(below(300))));
        }
        acts.sort_by_key(|(at, _)| *at);
        let journal_faults = [0, 0, 0, 5, 50][below(5) as usize];
        let runners = 1 + below(3) as usize;
        let rate = [0, 5, 20, 60][below(4) as usize];
        let all = Capabilities {
            edit: true,
            react: true,
            upload: true,
            max_message_chars: 2000,
            typing_every: Some(Duration::from_secs(8)),
        };
        let few = Capabilities {
            edit: below(2) == 0,
            react: false,
            upload: false,
            max_message_chars: 150,
            typing_every: None,
        };
        let platforms =
            Platforms { left: Platform::new(world.clone(), all, rate), right: Platform::new(world.clone(), few, rate) };
        Self { world, faults, journal_faults, runners, users, acts, messages, has_intruder, platforms }
    }

    /// Plays it to its end and judges.
    pub async fn play(self) -> Report {
        let cloud = MemorySprites::new(self.world.clone(), self.faults.clone());
        let journal = MemoryJournal::new();
        if self.journal_faults > 0 {
            let (world, rate) = (self.world.clone(), self.journal_faults);
            journal.set_fault(move |_| world.random() % 1000 < rate);
        }
        let chats = Chats::new(cloud.clone());
        let mut totals = Totals { messages: self.messages.len() as u64, ..Totals::default() };
        let mut stage = Stage {
            scenario: &self,
            cloud: cloud.clone(),
            journal: journal.clone(),
            chats: chats.clone(),
            deployment: process::deployment(&journal).await,
            generation: 1,
            incarnations: 0,
            process: None,
            died: BTreeSet::new(),
            written: BTreeSet::new(),
            edited: BTreeSet::new(),
            desk: current::channel(None).0,
            underway: Arc::default(),
        };
        stage.start().await;
        let began = Instant::now();
        for (at, act) in &self.acts {
            sleep_until(began + *at).await;
            cloud.note(&format!("ACT {act:?}"));
            stage.act(act, &mut totals).await;
        }
        sleep_until(began + PLAY).await;

        cloud.note("THE FAULTS STOP");
        cloud.faults().stop();
        journal.heal();
        self.platforms.left.heal();
        self.platforms.right.heal();
        let process = stage.process.as_ref().expect("the last process is up");
        let stopped = Instant::now();
        let mut at_rest = false;
        while !at_rest && stopped.elapsed() < SETTLE {
            sleep(Duration::from_secs(5)).await;
            let open = journal.open_jobs().await.map_or(1, |open| open.len());
            let unsent = journal.open_effects(None).await.map_or(1, |open| open.len());
            let underway = stage.underway.load(Ordering::Relaxed);
            at_rest = open + unsent + underway == 0 && process.is_at_rest(self.runners).await;
        }
        let mut broken = Vec::new();
        if at_rest {
            stage.probe(process, &mut broken).await;
        }
        let status = process.pool.status().await;
        cloud.note(&format!("THE END, {status:?}"));

        broken.extend(cloud.violations());
        if !at_rest {
            broken.push(format!("returned: not at rest {} s after the faults stopped: {status:?}", SETTLE.as_secs()));
        }
        stage.judge(&mut broken, &mut totals).await;
        for platform in [&self.platforms.left, &self.platforms.right] {
            let (requests, lost) = platform.counts();
            totals.requests += requests;
            totals.lost += lost;
        }
        let chats = [("left", &self.platforms.left), ("right", &self.platforms.right)];
        let chats: Vec<_> =
            chats.iter().map(|(name, platform)| format!("THE CHAT {name}\n{}", platform.log())).collect();
        Report { broken, log: format!("{}\n{}", cloud.log(), chats.join("\n")), totals }
    }
}

/// A message with a script that says whether anything of another job was there.
fn message(number: usize, user: u64, conversation: u64, platform: &'static str, kind: u64) -> Message {
    let mut script = format!("# message {number}\nread leftover\ntouch leftover\n");
    let mut answer = Some(format!("absent\nanswer {number}"));
    match kind {
        0..4 => script += &format!("echo answer {number}"),
        4 => script += &format!("sleep 20\necho answer {number}"),
        5 => script += &format!("sleep 100\necho answer {number}"),
        6 => script += &format!("daemon\necho answer {number}"),
        7 => script += &format!("output result.txt x{number}\necho answer {number}"),
        8 => {
            script += "hang";
            answer = None;
        }
        9 => {
            script += "ignore-term\nhang";
            answer = None;
        }
        10 => {
            script += "daemon\nhang";
            answer = None;
        }
        11 => {
            script += "exit 3";
            answer = None;
        }
        12 => {
            script += "oom";
            answer = None;
        }
        _ if platform != "terminal" => {
            script = "stop".into();
            answer = None;
        }
        _ => script += &format!("echo answer {number}"),
    }
    Message { number, user, conversation, platform, script, answer }
}

/// A scenario while it is played.
pub struct Stage<'a> {
    pub scenario: &'a Scenario,
    pub cloud: MemorySprites,
    pub journal: MemoryJournal,
    pub chats: Chats,
    deployment: String,
    generation: u32,
    incarnations: u32,
    process: Option<Process>,
    /// Messages that a process had heard when it died.
    pub died: BTreeSet<usize>,
    pub written: BTreeSet<usize>,
    pub edited: BTreeSet<usize>,
    /// The desk of the process that is up, for the platforms.
    desk: Publisher<Option<DeskHandle>>,
    /// Deliveries that the platforms have not finished.
    underway: Arc<AtomicUsize>,
}

impl Stage<'_> {
    async fn start(&mut self) {
        self.incarnations += 1;
        let sprites = self.cloud.client(&format!("process {}", self.incarnations));
        let (deployment, runners) = (self.deployment.clone(), self.scenario.runners);
        let chats = self.scenario.platforms.chats();
        let process = Process::start(
            &deployment,
            runners,
            self.generation,
            sprites,
            self.journal.clone(),
            chats,
            &self.scenario.world,
        );
        let process = process.await;
        self.desk.set(Some(process.desk.clone()));
        self.process = Some(process);
    }

    /// A platform delivers a message until it is acknowledged, and sometimes once more.
    fn deliver(&self, message: &Message) {
        let (world, desk, inbound) = (self.scenario.world.clone(), self.desk.follow(), message.delivered());
        let (underway, mut again) = (self.underway.clone(), world.random() % 6);
        underway.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            sleep(Duration::from_millis(world.random() % 300)).await;
            loop {
                let heard = match desk.get() {
                    Some(desk) => timeout(Duration::from_secs(5), desk.hear(inbound.clone())).await == Ok(true),
                    None => false,
                };
                if heard && again != 0 {
                    break;
                }
                again = if heard { 1 } else { again };
                sleep(Duration::from_millis(world.random() % 30_000)).await;
            }
            underway.fetch_sub(1, Ordering::Relaxed);
        });
    }

    async fn change(&self, number: usize, text: Option<String>) {
        let message = &self.scenario.messages[number];
        let process = self.process.as_ref().expect("a process is always up between acts");
        let (key, conversation, by) = (message.key(), message.conversation_id(), message.requester());
        process.desk.change(Change { key, conversation, by, text }).await;
    }

    async fn act(&mut self, act: &Act, totals: &mut Totals) {
        let process = self.process.as_ref().expect("a process is always up between acts");
        match act {
            Act::Write(message) => {
                self.written.insert(message.number);
                if message.platform == "terminal" {
                    process.desk.send(self.chats.inbound(message)).await;
                } else {
                    self.deliver(message);
                }
            }
            Act::Redeliver(number) => {
                let message = &self.scenario.messages[*number];
                if self.written.contains(number) && message.platform != "terminal" {
                    self.deliver(message);
                } else if self.written.contains(number) {
                    process.desk.send(self.chats.inbound(&self.scenario.messages[*number])).await;
                }
            }
            Act::CancelConversation(conversation) => {
                let of_it = self.scenario.messages.iter().find(|message| message.conversation == *conversation);
                if let Some(message) = of_it {
                    let target = Target::Conversation(message.conversation_id());
                    process.desk.cancel(target, RequesterId::new("terminal:u0")).await;
                }
            }
            Act::Edit(number) if self.is_in_chat(*number) => {
                self.edited.insert(*number);
                self.change(*number, Some(self.scenario.messages[*number].edited())).await;
            }
            Act::Delete(number) if self.is_in_chat(*number) => self.change(*number, None).await,
            Act::Again(number) if self.is_in_chat(*number) => {
                let message = &self.scenario.messages[*number];
                let jobs = self.journal.recent_jobs(1000).await.unwrap_or_default();
                if let Some(row) = jobs.iter().find(|row| row.message_key == message.key()) {
                    // What runs is still judged when the answer is lost with the process.
                    let by = message.requester();
                    let pressed = timeout(Duration::from_secs(20), process.desk.again(&row.job, &by)).await;
                    totals.again += u64::from(pressed == Ok(Again::Started));
                }
            }
            Act::Edit(_) | Act::Delete(_) | Act::Again(_) => {}
            Act::KillActor => totals.kills += u64::from(process.kill_one(self.scenario.world.random())),
            Act::Crash(pause_ms) => {
                totals.crashes += 1;
                self.process.take().expect("a process is always up between acts").crash();
                self.desk.set(None);
                self.died.extend(&self.written);
                sleep(Duration::from_millis(*pause_ms)).await;
                self.start().await;
            }
            Act::Restart(drain_ms) => {
                totals.restarts += 1;
                let process = self.process.take().expect("a process is always up between acts");
                process.stop(Duration::from_millis(*drain_ms)).await;
                self.desk.set(None);
                self.start().await;
            }
            Act::Refresh => {
                self.generation += 1;
                process.refresh(self.generation);
            }
            Act::Intrude(seconds) => {
                let intruder = Process::start(
                    "another",
                    self.scenario.runners,
                    1,
                    self.cloud.client("intruder"),
                    MemoryJournal::new(),
                    janebot::chat::Chats::default(),
                    &self.scenario.world,
                )
                .await;
                sleep(Duration::from_secs(*seconds)).await;
                intruder.crash();
            }
        }
    }

    /// At rest, everybody can be served: a runner that only looks idle, or a share that was never given back, shows now.
    async fn probe(&self, process: &Process, broken: &mut Vec<String>) {
        let probes: Vec<Message> = (0..self.scenario.users)
            .map(|user| message(PROBES + user as usize, user, PROBES as u64 + user, "terminal", 0))
            .collect();
        for probe in &probes {
            process.desk.send(self.chats.inbound(probe)).await;
        }
        sleep(PROBED_WITHIN).await;
        for probe in &probes {
            let told = self.chats.told(&probe.key());
            if !matches!(told.ended.first().map(|report| &report.outcome), Some(Outcome::Answered { .. })) {
                let (user, ended) = (probe.user, &told.ended);
                broken.push(format!(
                    "returned: at rest, user {user} is not answered: {ended:?}, {:?}",
                    told.progress.last()
                ));
            }
        }
    }

    pub fn is_in_chat(&self, number: usize) -> bool {
        self.written.contains(&number) && self.scenario.messages[number].platform != "terminal"
    }
}
