//! What the journal costs on a disk: all writes of one job, one after the other, as its user waits for them.
//!
//! Prints a table. `cargo bench --bench journal`; the file is below `target/`, which should be on a real disk.

use std::path::Path;
use std::time::Duration;

use janebot::chat::Capabilities;
use janebot::desk::visible::Place;
use janebot::job::{ChannelId, ConversationId, JobReport, Outcome, RequesterId, Timings};
use janebot::journal::outgoing::{Delivery, Effect, Outgoing};
use janebot::journal::sqlite::SqliteJournal;
use janebot::journal::{JobRow, JobState, Journal as _, RunnerRow};
use janebot::pool::receipt::Receipt;
use janebot::sprites::CheckpointId;
use janebot::world::World;
use tokio::time::Instant;

const WARM_UP: usize = 100;
const JOBS: usize = 2_000;
const CONVERSATIONS: usize = 100;
const RUNNER: &str = "jane-runner-0";

const CAN: Capabilities =
    Capabilities { edit: true, react: true, upload: true, max_message_chars: 2000, typing_every: None };

fn figures(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{name:<62} {:>8.2} {:>8.2} {:>8.2}", at(0.5), at(0.99), at(1.0));
}

fn receipt(world: &World, checkpoint: CheckpointId) -> Receipt {
    Receipt {
        runner: RUNNER.into(),
        sprite_id: "sprite-1".into(),
        checkpoint,
        fingerprint: "f".into(),
        previous_job: None,
        restore_completed: true,
        canary_gone: Some(true),
        boot: "b".into(),
        allowed_hosts: vec!["ampcode.com".into()],
        verified_at: world.now(),
        fence: 1,
        isolation: "namespaces+seccomp".into(),
        warnings: Vec::new(),
    }
}

/// One job's writes by those who wait for them, and for a chat those of its outbox.
struct Writer {
    journal: SqliteJournal,
    world: World,
    fence: u64,
    receipt: Receipt,
}

impl Writer {
    async fn new(folder: &Path) -> Self {
        let journal = SqliteJournal::open(folder.join("jobs.sqlite")).await.expect("a new journal opens");
        let world = World::real();
        let checkpoint = CheckpointId::new("v1").expect("v1 is an id");
        let runner = RunnerRow {
            runner: RUNNER.into(),
            sprite_id: "sprite-1".into(),
            checkpoint: checkpoint.clone(),
            fingerprint: "f".into(),
            dirty: true,
            last_job: None,
            canary: None,
            boot: "b".into(),
            fence: 0,
        };
        journal.built(&runner).await.expect("the journal works");
        let receipt = receipt(&world, checkpoint);
        Self { journal, world, fence: 0, receipt }
    }

    /// Gives the time of the writes that a job waits for, and of those of its outbox.
    async fn job(&mut self, n: usize, in_chat: bool) -> janebot::journal::Result<(Duration, Duration)> {
        let (world, journal) = (&self.world, &self.journal);
        let (job, now) = (world.job_id(), world.now());
        let conversation = ConversationId::new(format!("chat:C1/{}", n % CONVERSATIONS));
        let row = JobRow {
            job: job.clone(),
            message_key: format!("chat:T1/C1/{in_chat}/{n}"),
            requester: RequesterId::new("chat:U1"),
            channel: ChannelId::new("chat:C1"),
            conversation: conversation.clone(),
            agent: "shell".into(),
            prompt:
                "a prompt as people write them, about a hundred characters long, with some detail on what is wanted"
                    .into(),
            files: Vec::new(),
            state: JobState::Accepted,
            runner: None,
            accepted_at: now,
            deadline: Some(now),
            started_at: None,
            ended_at: None,
            outcome: None,
            timings: None,
            receipt: None,
        };
        let report = JobReport {
            job: job.clone(),
            outcome: Outcome::Answered { answer: "An answer of some lines.\n".repeat(12) },
            agent: "shell".into(),
            timings: Timings::default(),
            receipt: Some(self.receipt.clone()),
            usage: None,
            files: Vec::new(),
            notes: Vec::new(),
            ended_at: now,
        };
        let place = Place { conversation: conversation.clone(), message_key: row.message_key.clone(), can: CAN };
        let (heard, ended) = match in_chat {
            true => (place.heard(&job), place.ended(&report).into_iter().map(|(effect, _)| effect).collect()),
            false => (Vec::new(), Vec::<Outgoing>::new()),
        };
        self.fence += 1;

        let began = Instant::now();
        journal.accept_with(&row, &heard).await?;
        journal.lease(&job, RUNNER, self.fence, "canary", now).await?;
        journal.end_with(&job, &report.outcome, &report.timings, report.receipt.as_ref(), now, &ended).await?;
        journal.clean(RUNNER, &self.receipt).await?;
        let waited_for = began.elapsed();

        let began = Instant::now();
        let sent = |key: &str| Delivery::Sent { message: Some(key.to_owned()) };
        for effect in heard.iter().chain(&ended) {
            if let Effect::Post { .. } = effect.effect {
                journal.trying(&effect.key).await?;
            }
            journal.delivered(&effect.key, &effect.effect, &sent(&effect.key), now).await?;
        }
        Ok((waited_for, began.elapsed()))
    }
}

async fn one_after_another(folder: &Path) {
    let mut writer = Writer::new(folder).await;
    let mut times = [const { Vec::new() }; 3];
    for n in 0..2 * (WARM_UP + JOBS) {
        let in_chat = n % 2 == 1;
        let (waited_for, outbox) = writer.job(n, in_chat).await.expect("the journal works");
        match in_chat {
            _ if n < 2 * WARM_UP => {}
            false => times[0].push(waited_for),
            true => {
                times[1].push(waited_for);
                times[2].push(outbox);
            }
        }
    }
    let [terminal, chat, outbox] = times;
    figures("a job of the terminal: its 4 writes", terminal);
    figures("a job of a chat: its 4 writes, effects included", chat);
    figures("a job of a chat: what its outbox writes when it sends them", outbox);
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    println!("{:<62} {:>8} {:>8} {:>8}", format!("ms, {JOBS} jobs of each kind"), "p50", "p99", "max");
    one_after_another(folder.path()).await;
}
