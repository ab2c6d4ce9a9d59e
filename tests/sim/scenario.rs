//! One seed: what happens, when, and what must hold afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use janebot::desk::Target;
use janebot::job::{ConversationId, FailReason, JobId, Outcome, RequesterId};
use janebot::journal::memory::MemoryJournal;
use janebot::journal::{JobState, Journal as _};
use janebot::world::World;

use crate::chat::{Chats, Message};
use crate::doubles::memory_sprites::MemorySprites;
use crate::doubles::memory_sprites::faults::{Fault, FaultPlan};
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
    KillActor,
    /// The process dies and is started again after so many milliseconds.
    Crash(u64),
    /// Another deployment under the same names comes, and goes after so many seconds.
    Intrude(u64),
    Refresh,
}

/// A scenario, ready to be played.
pub struct Scenario {
    world: World,
    faults: FaultPlan,
    journal_faults: u64,
    runners: usize,
    users: u64,
    acts: Vec<(Duration, Act)>,
    messages: Vec<Message>,
    has_intruder: bool,
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
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, answered, failed, cancelled, refused, runs, kills, crashes, quarantines } = self;
        write!(
            f,
            "{messages} messages, {runs} runs; {answered} answered, {failed} failed, {cancelled} cancelled, {refused} refused; \
             {kills} actors killed, {crashes} crashes, {quarantines} quarantines"
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
        let messages: Vec<Message> = (0..1 + below(10) as usize)
            .map(|number| {
                let (user, conversation) = (below(users), below(conversations));
                message(number, user, conversation, below(13))
            })
            .collect();
        let within = |from: u64, to: u64| Duration::from_millis(from * 1000 + below((to - from) * 1000));
        let mut acts: Vec<(Duration, Act)> = messages.iter().map(|m| (within(0, 600), Act::Write(m.clone()))).collect();
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
        Self { world, faults, journal_faults, runners, users, acts, messages, has_intruder }
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
        let process = stage.process.as_ref().expect("the last process is up");
        let stopped = Instant::now();
        let mut at_rest = false;
        while !at_rest && stopped.elapsed() < SETTLE {
            sleep(Duration::from_secs(5)).await;
            let open = journal.open_jobs().await.map_or(1, |open| open.len());
            at_rest = open == 0 && process.is_at_rest(self.runners).await;
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
        Report { broken, log: cloud.log(), totals }
    }
}

/// A message with a script that says whether anything of another job was there.
fn message(number: usize, user: u64, conversation: u64, kind: u64) -> Message {
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
        _ => {
            script += "oom";
            answer = None;
        }
    }
    Message { number, user, conversation, script, answer }
}

/// A scenario while it is played.
struct Stage<'a> {
    scenario: &'a Scenario,
    cloud: MemorySprites,
    journal: MemoryJournal,
    chats: Chats,
    deployment: String,
    generation: u32,
    incarnations: u32,
    process: Option<Process>,
    /// Messages that a process had heard when it died.
    died: BTreeSet<usize>,
    written: BTreeSet<usize>,
}

impl Stage<'_> {
    async fn start(&mut self) {
        self.incarnations += 1;
        let sprites = self.cloud.client(&format!("process {}", self.incarnations));
        let (deployment, runners) = (self.deployment.clone(), self.scenario.runners);
        let process =
            Process::start(&deployment, runners, self.generation, sprites, self.journal.clone(), &self.scenario.world);
        self.process = Some(process.await);
    }

    async fn act(&mut self, act: &Act, totals: &mut Totals) {
        let process = self.process.as_ref().expect("a process is always up between acts");
        match act {
            Act::Write(message) => {
                self.written.insert(message.number);
                process.desk.send(self.chats.inbound(message)).await;
            }
            Act::Redeliver(number) => {
                if self.written.contains(number) {
                    process.desk.send(self.chats.inbound(&self.scenario.messages[*number])).await;
                }
            }
            Act::CancelConversation(conversation) => {
                let target = Target::Conversation(ConversationId::new(format!("terminal:c{conversation}")));
                process.desk.cancel(target, RequesterId::new("terminal:u0")).await;
            }
            Act::KillActor => totals.kills += u64::from(process.kill_one(self.scenario.world.random())),
            Act::Crash(pause_ms) => {
                totals.crashes += 1;
                self.process.take().expect("a process is always up between acts").crash();
                self.died.extend(&self.written);
                sleep(Duration::from_millis(*pause_ms)).await;
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
            .map(|user| message(PROBES + user as usize, user, PROBES as u64 + user, 0))
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

    /// Looks at everything that is left and says what should not be so.
    async fn judge(&self, broken: &mut Vec<String>, totals: &mut Totals) {
        let runs = self.cloud.runs();
        totals.runs = runs.len() as u64;
        let mut started: BTreeMap<&str, u32> = BTreeMap::new();
        for run in &runs {
            *started.entry(run.marker.as_str()).or_default() += 1;
        }
        for (marker, times) in &started {
            if *times > 1 {
                broken.push(format!("not repeated: {marker:?} ran {times} times"));
            }
        }
        let jobs = self.journal.recent_jobs(1000).await.expect("the journal is healed");
        for job in &jobs {
            if job.state != JobState::Ended || job.outcome.is_none() {
                broken.push(format!("heard: job {} of {} has no outcome", job.job, job.message_key));
            }
        }
        for message in &self.scenario.messages {
            if self.written.contains(&message.number) {
                self.judge_message(message, &jobs, started.contains_key(message.marker().as_str()), broken, totals);
            }
        }
        for told in self.scenario.messages.iter().map(|message| self.chats.told(&message.key())) {
            for job in told.accepted.iter().filter(|job| jobs.iter().all(|row| row.job != **job)) {
                broken.push(format!("heard: job {job} was acknowledged and is not in the journal"));
            }
        }
        let mut fences: BTreeSet<(&str, u64)> = BTreeSet::new();
        for job in jobs.iter().rev() {
            let Some(receipt) = &job.receipt else { continue };
            if receipt.canary_gone == Some(false) {
                broken.push(format!("clean: job {} has a receipt that shows a canary", job.job));
            }
            if !fences.insert((&receipt.runner, receipt.fence)) {
                broken.push(format!("alone: job {} has a lease that another job had", job.job));
            }
        }
        let quarantines = self.journal.quarantines(1000).await.expect("the journal is healed");
        totals.quarantines = quarantines.len() as u64;
        if let Some((runner, ..)) = quarantines.iter().find(|(_, evidence, _)| evidence.is_empty()) {
            broken.push(format!("explained: {runner} was quarantined without evidence"));
        }
        let truth = self.cloud.truth();
        if !self.scenario.has_intruder
            && truth.iter().any(|sprite| sprite.unclean.is_some() || !sprite.daemons.is_empty())
        {
            broken.push(format!("returned: a sprite is unclean at rest: {truth:?}"));
        }
    }

    fn judge_message(
        &self,
        message: &Message,
        jobs: &[janebot::journal::JobRow],
        ran: bool,
        broken: &mut Vec<String>,
        totals: &mut Totals,
    ) {
        let told = self.chats.told(&message.key());
        let number = message.number;
        for wrong in &told.wrong {
            broken.push(format!("heard: message {number} was told {wrong}"));
        }
        let mut outcomes: BTreeMap<&JobId, u32> = BTreeMap::new();
        for report in &told.ended {
            *outcomes.entry(&report.job).or_default() += 1;
        }
        for (job, times) in &outcomes {
            if *times > 1 {
                broken.push(format!("heard: message {number} got {times} outcomes of job {job}"));
            }
        }
        let row = jobs.iter().find(|row| row.message_key == message.key());
        if !self.died.contains(&number) && told.ended.is_empty() {
            broken.push(format!("heard: message {number} was never told an outcome"));
        }
        let outcome = row.and_then(|row| row.outcome.clone()).or_else(|| Some(told.ended.first()?.outcome.clone()));
        match outcome {
            Some(Outcome::Answered { answer }) => {
                totals.answered += 1;
                if message.answer.as_deref() != Some(answer.trim()) {
                    broken.push(format!(
                        "clean: message {number} should be answered {:?} and is {answer:?}",
                        message.answer
                    ));
                }
                if !ran {
                    broken.push(format!("message {number} is answered and never ran"));
                }
                if row.is_some_and(|row| row.receipt.is_none()) {
                    broken.push(format!("clean: message {number} is answered without a receipt"));
                }
            }
            Some(Outcome::Failed { reason, message }) => {
                totals.failed += 1;
                if reason == FailReason::Journal && self.scenario.journal_faults == 0 {
                    broken.push(format!("returned: message {number} failed for a journal that is well: {message}"));
                }
                if message.is_empty() {
                    broken.push(format!("explained: message {number} failed without a word"));
                }
            }
            Some(Outcome::Cancelled { .. }) => totals.cancelled += 1,
            Some(Outcome::Refused { .. }) => totals.refused += 1,
            None => {}
        }
    }
}
