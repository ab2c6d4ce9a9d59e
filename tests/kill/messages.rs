//! A scripted chat with a service that is killed: by the platform in the middle of a request, at random moments, and
//! now and then told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use janebot::job::{FailReason, JobId, Outcome};
use janebot::journal::outgoing::{Effect, Mark, OutgoingState};
use janebot::journal::search::Wanted;
use janebot::journal::sqlite::SqliteJournal;
use janebot::journal::{JobRow, JobState, Journal as _};
use janebot::world::World;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::platform::{Platform, State};
use crate::service::{COUNTER, Delivered, PLATFORM};
use crate::verdict::Verdict;

/// The longest life. Most have the time to start, which takes less than a second.
const LIFE_MS: u64 = 5_000;
/// Of 100 services, so many are told to stop at the end of their life, not killed.
const TOLD: u64 = 25;
/// Their longest life, which is shorter so that most of them are not killed before.
const LIFE_OF_TOLD_MS: u64 = 2_500;
/// Messages come this far apart at most.
const PAUSE_MS: u64 = 250;
/// After the last acknowledgement deaths go on for so long, so that the last outcomes meet some, too.
const RAGE: Duration = Duration::from_secs(6);
/// By when all must be at rest afterwards. A message that may have been sent is looked for during half a minute.
const SETTLE: Duration = Duration::from_secs(180);
/// How long a service may take to stop when it is told to.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// How the services ended.
#[derive(Default)]
struct Deaths {
    started: u64,
    killed: u64,
    told: u64,
    killed_while_stopping: u64,
}

pub async fn run(data: &Path, messages: u64, chance: World) -> Verdict {
    let (kill, mut kills) = mpsc::unbounded_channel();
    let (session, see_session) = watch::channel(0);
    let (platform, address) = Platform::serve(chance.clone(), kill, see_session).await;
    let writer = tokio::spawn(write(platform.clone(), messages, chance.clone()));
    let mut verdict = Verdict::default();
    let mut keeper =
        Keeper { data: data.to_owned(), address, session, chance, living: None, deaths: Deaths::default() };
    std::fs::create_dir_all(data).unwrap();

    let rage = async {
        writer.await.unwrap();
        while !platform.all_acknowledged() {
            sleep(Duration::from_millis(50)).await;
        }
        sleep(RAGE).await;
    };
    tokio::select! {
        () = rage => {}
        () = keeper.rage(&mut kills, &mut verdict) => {}
    }
    platform.calm();
    let began = Instant::now();
    // The next service may have the journal only when this one is gone.
    if let Some(mut child) = keeper.living.take() {
        signal(&child, Signal::KILL);
        child.wait().await.unwrap();
    }
    let mut last = keeper.start();
    let settled = timeout(SETTLE, settle(data, &platform)).await.is_ok();
    verdict.check(settled, || format!("not all was at rest after {} s", SETTLE.as_secs()));
    let took = began.elapsed();
    signal(&last, Signal::TERM);
    let stopped = timeout(STOP_WITHIN, last.wait()).await;
    verdict.check(matches!(&stopped, Ok(Ok(status)) if status.success()), || {
        format!("the last service did not stop as it should: {stopped:?}")
    });
    let seen = std::mem::take(&mut *platform.state());
    judge(data, &seen, &mut verdict).await;
    tell(&seen, &keeper.deaths, took, &mut verdict);
    verdict
}

async fn write(platform: Platform, messages: u64, chance: World) {
    let conversations = (messages / 5).max(4);
    for number in 0..messages as usize {
        sleep(Duration::from_millis(chance.random() % PAUSE_MS)).await;
        let conversation = chance.random() % conversations;
        platform.write(Delivered { number, conversation, text: script(number) });
    }
}

fn is_to_fail(number: usize) -> bool {
    number % 5 == 4
}

fn has_file(number: usize) -> bool {
    number % 5 == 3
}

/// What a message says: it tells the platform that it runs, and then is one of five kinds.
fn script(number: usize) -> String {
    let count = format!(
        "exec 3<>/dev/tcp/{COUNTER}/80 && printf 'GET /ran/{number} HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q counted <&3 || exit 9\n"
    );
    let then = match number % 5 {
        0 => "true".to_owned(),
        1 => format!("for line in $(seq 40); do echo \"line $line of {number}\"; done"),
        2 => "echo begun; sleep 0.7".to_owned(),
        3 => format!("echo {number} > ~/output/file-{number}.txt"),
        _ => return format!("{count}echo done {number}; exit 3"),
    };
    format!("{count}{then}\necho done {number}")
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id() {
        // It was not waited for, so that the number is still its own.
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    }
}

/// Starts one service after the other.
struct Keeper {
    data: PathBuf,
    address: SocketAddr,
    session: watch::Sender<u64>,
    chance: World,
    /// The service of the rage, which outlives the rage.
    living: Option<Child>,
    deaths: Deaths,
}

impl Keeper {
    fn start(&mut self) -> Child {
        self.deaths.started += 1;
        self.session.send_replace(self.deaths.started);
        let log = std::fs::File::options().create(true).append(true).open(self.data.join("service.log")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env_clear().env("DATA_DIR", &self.data).env("HOME", &self.data);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("RUNNERS", "2");
        command.env(PLATFORM, format!("http://{}/{}", self.address, self.deaths.started));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        command.spawn().unwrap()
    }

    /// Until it is dropped.
    async fn rage(&mut self, kills: &mut mpsc::UnboundedReceiver<u64>, verdict: &mut Verdict) {
        loop {
            let child = self.start();
            let child = self.living.insert(child);
            let to_be_told = self.chance.random() % 100 < TOLD;
            let longest = if to_be_told { LIFE_OF_TOLD_MS } else { LIFE_MS };
            let end = Instant::now() + Duration::from_millis(self.chance.random() % longest);
            let is_told = loop {
                tokio::select! {
                    biased;
                    status = child.wait() => {
                        verdict.broken.push(format!("a service ended by itself: {status:?}"));
                        return;
                    }
                    Some(session) = kills.recv() => {
                        if session == self.deaths.started {
                            break false;
                        }
                    }
                    () = sleep_until(end) => break to_be_told,
                }
            };
            if is_told {
                self.deaths.told += 1;
                signal(child, Signal::TERM);
                // While it stops it may be killed like any other; but not each of them, or none would come to its end.
                let is_spared = self.chance.random().is_multiple_of(2);
                let killed = async { while kills.recv().await != Some(self.deaths.started) || is_spared {} };
                let stopped = tokio::select! {
                    biased;
                    stopped = timeout(STOP_WITHIN, child.wait()) => Some(stopped),
                    () = killed => None,
                };
                match stopped {
                    Some(Ok(Ok(_))) => continue,
                    Some(other) => verdict.broken.push(format!("a service did not stop when told to: {other:?}")),
                    None => self.deaths.killed_while_stopping += 1,
                }
            }
            self.deaths.killed += 1;
            signal(child, Signal::KILL);
            child.wait().await.unwrap();
        }
    }
}

/// Waits until every message has an outcome, and nothing is left to be sent.
async fn settle(data: &Path, platform: &Platform) {
    loop {
        // Another process writes it, so there is nothing to wait for but time.
        sleep(Duration::from_millis(200)).await;
        if !platform.all_acknowledged() {
            continue;
        }
        let Ok(journal) = SqliteJournal::open_to_read(data.join("journal.sqlite")).await else { continue };
        if let (Ok(jobs), Ok(effects)) = (journal.open_jobs().await, journal.open_effects(None).await)
            && jobs.is_empty()
            && effects.is_empty()
        {
            return;
        }
    }
}

/// Compares what is to be seen on the platform with what the journal has.
async fn judge(data: &Path, state: &State, verdict: &mut Verdict) {
    let journal = SqliteJournal::open_to_read(data.join("journal.sqlite")).await.unwrap();
    let rows = journal.find_jobs(&Wanted::any(100_000)).await.unwrap();
    let (mut by_key, mut lost, mut doubled) = (BTreeMap::<&str, &JobRow>::new(), 0, 0);
    for row in &rows {
        let known = by_key.insert(&row.message_key, row);
        verdict.check(known.is_none(), || format!("two jobs for the message {}", row.message_key));
    }
    let mut outcomes = BTreeMap::<String, u64>::new();
    for message in &state.messages {
        let Some(row) = by_key.remove(message.key().as_str()) else {
            lost += 1;
            verdict.broken.push(format!("message {} is not in the journal", message.number));
            continue;
        };
        let (Some(outcome), JobState::Ended) = (&row.outcome, row.state) else {
            lost += 1;
            verdict.broken.push(format!("message {} has no outcome: {row:?}", message.number));
            continue;
        };
        let word = outcome.reason().map_or(outcome.word().to_owned(), |code| format!("{}: {code}", outcome.word()));
        *outcomes.entry(word).or_default() += 1;
        if let Some(what) = wrong_outcome(message.number, outcome, state.runs.get(&message.number).copied()) {
            verdict.broken.push(format!("message {}: {what}: {outcome:?}", message.number));
        }
        let seen: Vec<_> = state.posts.iter().filter(|post| post.key.starts_with(row.job.as_str())).collect();
        let keys: BTreeSet<_> = seen.iter().map(|post| &post.key).collect();
        doubled += u64::from(keys.len() < seen.len());
        verdict.check(keys.len() == seen.len(), || {
            format!("message {}: something is there twice: {seen:#?}", message.number)
        });
        let answers: Vec<_> = seen.iter().filter(|post| post.key.contains("/answer/")).collect();
        lost += u64::from(answers.is_empty());
        let numbers: Vec<_> = answers.iter().map(|post| post.key.rsplit('/').next().unwrap()).collect();
        let in_order = numbers.iter().enumerate().all(|(place, number)| *number == place.to_string());
        verdict.check(!answers.is_empty() && in_order, || {
            format!("message {}: the pieces {numbers:?} are not all, or not in order", message.number)
        });
        let text: String = answers.iter().map(|post| post.text.as_str()).collect::<Vec<_>>().join("\n");
        if let Outcome::Answered { .. } = outcome {
            let end = format!("done {}", message.number);
            verdict.check(text.contains(&end), || format!("message {}: the answer is {text:?}", message.number));
        }
        let files = seen.iter().filter(|post| post.is_file).count();
        let has_file = has_file(message.number) && matches!(outcome, Outcome::Answered { .. });
        verdict
            .check(files == usize::from(has_file), || format!("message {}: {files} files are there", message.number));
        let shown: Vec<_> = seen.iter().filter(|post| post.key.ends_with("/progress")).collect();
        let closed = ["Answered after", "Failed after", "Not run."];
        verdict.check(shown.iter().all(|post| closed.iter().any(|end| post.text.starts_with(end))), || {
            format!("message {}: its progress goes on: {shown:?}", message.number)
        });
        let mark = if let Outcome::Answered { .. } = outcome { Mark::Answered } else { Mark::Failed };
        let marks = state.marks.get(&message.key()).cloned().unwrap_or_default();
        verdict
            .check(marks == BTreeSet::from([mark]), || format!("message {}: its marks are {marks:?}", message.number));
        effects(&journal, &row.job, &keys, verdict).await;
    }
    verdict.check(by_key.is_empty(), || format!("jobs of no message: {:?}", by_key.keys()));
    let twice: Vec<_> = state.runs.iter().filter(|(_, runs)| **runs > 1).collect();
    verdict.check(twice.is_empty(), || format!("scripts that ran more than once: {twice:?}"));
    verdict.title("A chat whose service is killed");
    verdict.row("messages", state.messages.len());
    for (word, count) in &outcomes {
        verdict.row(word, count);
    }
    verdict.row("scripts that ran twice", twice.len());
    verdict.row("outcomes lost", lost);
    verdict.row("outcomes doubled", doubled);
}

/// What the journal says was sent is to be seen, and nothing was given up.
async fn effects(journal: &SqliteJournal, job: &JobId, seen: &BTreeSet<&String>, verdict: &mut Verdict) {
    for row in journal.job_effects(job).await.unwrap() {
        let key = &row.outgoing.key;
        verdict.check(row.state == OutgoingState::Sent, || format!("{key} is {} ({:?})", row.state.word(), row.why));
        if let Effect::Post { .. } | Effect::Upload { .. } = row.outgoing.effect {
            verdict.check(seen.contains(key), || format!("{key} counts as sent, and is not there"));
        }
    }
}

/// Why a message can't have ended like this, if it can't.
fn wrong_outcome(number: usize, outcome: &Outcome, runs: Option<u64>) -> Option<&'static str> {
    match outcome {
        Outcome::Answered { .. } if is_to_fail(number) => Some("a script that fails was answered"),
        Outcome::Answered { .. } if runs != Some(1) => Some("it was answered, and did not run once"),
        Outcome::Answered { .. } => None,
        Outcome::Failed { reason: FailReason::AgentFailed, .. } if is_to_fail(number) && runs == Some(1) => None,
        Outcome::Failed { reason: FailReason::Interrupted, .. } => None,
        Outcome::Failed { .. } | Outcome::Refused { .. } | Outcome::Cancelled { .. } | Outcome::Merged { .. } => {
            Some("nothing can have led to this")
        }
    }
}

fn tell(state: &State, deaths: &Deaths, took: Duration, verdict: &mut Verdict) {
    let counts = &state.counts;
    verdict.row("services started", deaths.started);
    verdict.row("services killed", deaths.killed);
    verdict.row("services told to stop", deaths.told);
    verdict.row("of these killed while they stopped", deaths.killed_while_stopping);
    verdict.row("killed while a message came in", counts.killed_at_delivery);
    verdict.row("killed before a request took effect, which it never did", counts.killed_before_effect);
    verdict.row("killed before a request took effect, which it did later", counts.late);
    verdict.row("killed between a request's effect and its answer", counts.killed_before_answer);
    verdict.row("answers lost otherwise", counts.lost);
    verdict.row("requests refused for a moment", counts.limited + counts.busy);
    verdict.row("requests", counts.requests);
    verdict.row("deliveries", counts.delivered);
    verdict.row("of these of a message delivered before", counts.redelivered);
    verdict.row("acknowledgements", state.acknowledged.values().sum::<u64>());
    verdict.row("seconds from the last death to rest", format!("{:.1}", took.as_secs_f64()));
}
