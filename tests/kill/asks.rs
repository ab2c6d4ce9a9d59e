//! `janebot ask` in a loop with one data folder, most of them killed after a random time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::pin::pin;
use std::process::{Output, Stdio};
use std::time::Duration;

use janebot::world::World;
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::sleep;

use crate::verdict::Verdict;

/// Of 100 asks, so many are killed.
const KILLED: u64 = 75;
/// The last moment for that: somewhat more than most asks take, so that every part of one is met.
const KILL_WITHIN_MS: u64 = 900;
/// Every so many asks the journal is looked through for jobs that have vanished.
const LOOK_EVERY: u64 = 10;

/// One process.
struct Ask {
    killed: bool,
    began: Timestamp,
    ended: Timestamp,
    /// The object that it printed, if it came to that.
    answer: Option<Value>,
    /// Jobs of earlier processes that it called interrupted.
    interrupted: BTreeSet<String>,
}

fn janebot(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_janebot"));
    command.args(args).env_clear().env("DATA_DIR", data).env("HOME", data).env("USER", "killer");
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Why nothing can be shown here.
pub async fn sandboxes_are_missing(data: &Path) -> Option<String> {
    let output = janebot(data, &["ask", "true"]).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(2) if said.contains("can't be isolated here") => Some(said.trim().to_owned()),
        status => {
            assert_eq!(status, Some(0), "{said}");
            None
        }
    }
}

pub async fn run(data: &Path, asks: u64, chance: World) -> Verdict {
    let (mut all, mut seen, mut verdict) = (Vec::new(), BTreeSet::new(), Verdict::default());
    for n in 0..asks {
        let nap = chance.random() % 3;
        let script = format!("echo begun {n}; sleep 0.{nap}; echo done {n}");
        let kill_after = (chance.random() % 100 < KILLED).then(|| chance.random() % KILL_WITHIN_MS);
        all.push(ask(data, &script, kill_after.map(Duration::from_millis)).await);
        if n % LOOK_EVERY == LOOK_EVERY - 1 {
            let now: BTreeSet<String> = jobs(data).await.into_keys().collect();
            verdict.check(now.is_superset(&seen), || format!("jobs vanished by ask {n}: {seen:?} became {now:?}"));
            seen = now;
        }
    }
    // The start that puts everything right.
    all.push(ask(data, "echo the last", None).await);
    judge(&all, &jobs(data).await, &mut verdict);
    verdict
}

async fn ask(data: &Path, script: &str, kill_after: Option<Duration>) -> Ask {
    let began = World::real().now();
    let child = janebot(data, &["ask", "--json", script]).spawn().unwrap();
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    let mut done = pin!(child.wait_with_output());
    let kill = async {
        match kill_after {
            Some(after) => sleep(after).await,
            None => std::future::pending().await,
        }
    };
    let output = tokio::select! {
        biased;
        output = &mut done => output.unwrap(),
        () = kill => {
            // It is a zombie at the least, since only `done` waits for it.
            kill_process(pid, Signal::KILL).unwrap();
            done.await.unwrap()
        }
    };
    let Output { status, stdout, stderr } = output;
    let answer: Option<Value> = serde_json::from_slice(&stdout).ok();
    let said = String::from_utf8_lossy(&stderr);
    let noted = |line: &str| {
        let (job, rest) = line.strip_prefix("janebot: Job ")?.split_once(' ')?;
        rest.contains("when janebot stopped").then(|| job.to_owned())
    };
    let mut interrupted: BTreeSet<String> = said.lines().filter_map(noted).collect();
    if let Some(answer) = &answer {
        let listed = answer["interrupted"].as_array().unwrap();
        interrupted.extend(listed.iter().map(|job| job["job"].as_str().unwrap().to_owned()));
    }
    let killed = status.code().is_none();
    assert!(killed || answer.is_some(), "an ask that was not killed answers: {status} {said}");
    Ask { killed, began, ended: World::real().now(), answer, interrupted }
}

/// Every job that the journal has, by id.
async fn jobs(data: &Path) -> BTreeMap<String, Value> {
    let output = janebot(data, &["jobs", "--json", "--limit", "10000"]).output().await.unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let count = rows.len();
    let by_id: BTreeMap<_, _> = rows.into_iter().map(|row| (row["job"].as_str().unwrap().to_owned(), row)).collect();
    assert_eq!(by_id.len(), count, "each job is listed once");
    by_id
}

fn judge(asks: &[Ask], jobs: &BTreeMap<String, Value>, verdict: &mut Verdict) {
    let mut told: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let (mut missing, mut answers) = (0, 0);
    for (n, ask) in asks.iter().enumerate() {
        let own = ask.answer.as_ref().map(|answer| {
            answers += 1;
            (answer["job"].as_str().unwrap(), answer["outcome"].as_str().unwrap())
        });
        if let Some((job, outcome)) = own {
            let recorded = jobs.get(job).map(|row| row["outcome"]["outcome"].as_str().unwrap_or("nothing"));
            missing += usize::from(recorded.is_none());
            verdict.check(recorded == Some(outcome), || {
                format!("ask {n} told {outcome} of job {job}, and the journal has {recorded:?}")
            });
        }
        let mut mine: BTreeSet<&str> = ask.interrupted.iter().map(String::as_str).collect();
        mine.extend(own.map(|(job, _)| job));
        for job in mine {
            verdict.check(jobs.contains_key(job), || format!("ask {n} told of job {job}, which is not in the journal"));
            told.entry(job).or_default().push(n);
        }
    }
    let (mut lost, mut unheard, mut interrupted) = (0, 0, 0);
    for (job, row) in jobs {
        let is_over = row["state"] == "ended" && row["outcome"]["outcome"].is_string();
        lost += usize::from(!is_over);
        verdict.check(is_over, || format!("job {job} has no outcome: {row}"));
        let is_interrupted = row["outcome"]["reason"] == "interrupted";
        interrupted += usize::from(is_interrupted);
        if !told.contains_key(job.as_str()) && is_over {
            // Whoever recorded it was to tell it, and only being killed is an excuse.
            let at: Timestamp = row["ended_at"].as_str().unwrap().parse().unwrap();
            let excused = asks.iter().any(|ask| ask.killed && ask.began <= at && at <= ask.ended);
            // The very first ask of all, which saw whether there are sandboxes, is not among these.
            let is_earlier = asks.first().is_some_and(|first| at < first.began);
            unheard += usize::from(!is_earlier);
            verdict.check(excused || is_earlier, || format!("job {job} was told by nobody: {row}"));
        }
    }
    let doubled: Vec<_> = told.iter().filter(|(_, by)| by.len() > 1).collect();
    verdict.check(doubled.is_empty(), || format!("told more than once: {doubled:?}"));
    let killed = asks.iter().filter(|ask| ask.killed).count();
    verdict.title("janebot ask, killed at random");
    verdict.row("processes started", asks.len());
    verdict.row("of these killed", killed);
    verdict.row("jobs accepted", jobs.len());
    verdict.row("answers printed", answers);
    verdict.row("jobs interrupted, and recorded as that by a later start", interrupted);
    verdict.row("outcomes whose teller was killed before it had told them", unheard);
    verdict.row("told jobs that the journal does not know", missing);
    verdict.row("outcomes lost", lost);
    verdict.row("outcomes doubled", doubled.len());
}
