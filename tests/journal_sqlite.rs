//! What only a file can promise: the journal outlives its process, is used by one at a time, and is never damaged or
//! half-made by a failure. Children are this test binary again, told by `JANEBOT_TEST_JOURNAL` what to open.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::task::Poll;

use janebot::job::{ChannelId, ConversationId, JobId, Outcome, RequesterId, Timings};
use janebot::journal::outgoing::{Effect, Mark, Outgoing};
use janebot::journal::sqlite::SqliteJournal;
use janebot::journal::{Accepted, JobRow, JobState, Journal, JournalError, RunnerRow};
use janebot::pool::receipt::Receipt;
use janebot::sprites::CheckpointId;
use jiff::Timestamp;
use sqlx::{ConnectOptions, Connection, Executor};

const CHILD: &str = "JANEBOT_TEST_JOURNAL";

fn at() -> Timestamp {
    Timestamp::from_second(1_790_000_000).unwrap()
}

fn job(number: u64, prompt: &str) -> JobRow {
    JobRow {
        job: JobId::new(format!("j{number}")),
        message_key: format!("terminal:{number}"),
        requester: RequesterId::new("terminal:alice"),
        channel: ChannelId::new("terminal:0"),
        conversation: ConversationId::new("terminal:0/0"),
        agent: "shell".into(),
        prompt: prompt.into(),
        files: Vec::new(),
        state: JobState::Accepted,
        runner: None,
        accepted_at: at(),
        deadline: None,
        started_at: None,
        ended_at: None,
        outcome: None,
        timings: None,
        receipt: None,
    }
}

fn runner() -> RunnerRow {
    RunnerRow {
        runner: "r0".into(),
        sprite_id: "sprite-1".into(),
        checkpoint: CheckpointId::new("v1").unwrap(),
        fingerprint: "f00d".into(),
        dirty: true,
        last_job: None,
        canary: None,
        boot: "boot-1".into(),
        fence: 0,
    }
}

fn receipt(fence: u64) -> Receipt {
    Receipt {
        runner: "r0".into(),
        sprite_id: "sprite-1".into(),
        checkpoint: CheckpointId::new("v1").unwrap(),
        fingerprint: "f00d".into(),
        previous_job: None,
        restore_completed: true,
        canary_gone: None,
        boot: format!("boot-{fence}"),
        allowed_hosts: vec!["ampcode.com".into()],
        verified_at: at(),
        fence,
        isolation: "none".into(),
        warnings: vec![],
    }
}

/// All that one job writes.
async fn one_job(journal: &SqliteJournal, number: u64) {
    let row = job(number, "a prompt");
    assert_eq!(journal.accept(&row).await.unwrap(), Accepted::New);
    journal.lease(&row.job, "r0", number, "canary", at()).await.unwrap();
    let outcome = Outcome::Answered { answer: "an answer".into() };
    assert!(journal.end(&row.job, &outcome, &Timings::default(), Some(&receipt(number)), at()).await.unwrap());
    journal.clean("r0", &receipt(number)).await.unwrap();
}

/// The same with what is seen of it: a mark, progress with one edit, and the outcome's effects. What the outbox notes
/// afterwards, between requests that take a thousand times as long, is not in it.
async fn one_job_of_a_chat(journal: &SqliteJournal, number: u64) {
    let row = job(number, "a prompt");
    let effect = |name: &str, effect| Outgoing {
        key: format!("{}/{name}", row.job),
        job: row.job.clone(),
        conversation: row.conversation.clone(),
        effect,
    };
    let mark = |mark, shown| Effect::React { message: row.message_key.clone(), mark, shown };
    let progress = |closing| effect("progress", Effect::Progress { text: "what it does".into(), closing });
    let heard = [effect("heard", mark(Mark::Heard, true))];
    assert_eq!(journal.accept_with(&row, &heard).await.unwrap(), Accepted::New);
    journal.lease(&row.job, "r0", number, "canary", at()).await.unwrap();
    for _ in 0..2 {
        journal.put(&[progress(false)], at()).await.unwrap();
    }
    let outcome = Outcome::Answered { answer: "an answer".into() };
    let effects = [
        progress(true),
        effect("answer/0", Effect::Post { text: "an answer".into(), buttons: Vec::new() }),
        effect("unheard", mark(Mark::Heard, false)),
        effect("ended", mark(Mark::Answered, true)),
    ];
    let receipt = receipt(number);
    let none = Timings::default();
    assert!(journal.end_with(&row.job, &outcome, &none, Some(&receipt), at(), &effects).await.unwrap());
    journal.clean("r0", &receipt).await.unwrap();
}

/// This test binary again, running `test` with `path`; through `before` when it is not empty.
fn child(before: &[&str], test: &str, path: &Path) -> Child {
    let me = std::env::current_exe().unwrap();
    let mut words = before.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    words.extend([me.display().to_string(), test.into(), "--exact".into(), "--nocapture".into()]);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env(CHILD, path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn path_for_child() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

fn say(line: &str) {
    println!("\n{line}");
    std::io::stdout().flush().unwrap();
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn sql(path: &Path, sql: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    connection.execute(sql).await.unwrap();
    connection.close().await.unwrap();
}

/// A closed journal with some jobs, all in the main file.
async fn filled(path: &Path) {
    let journal = SqliteJournal::open(path).await.unwrap();
    journal.built(&runner()).await.unwrap();
    for number in 1..=200 {
        one_job(&journal, number).await;
    }
    drop(journal);
    sql(path, "PRAGMA wal_checkpoint(TRUNCATE)").await;
}

#[tokio::test]
async fn what_was_recorded_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let journal = SqliteJournal::open(&path).await.unwrap();
    let deployment = journal.deployment_id().await.unwrap();
    journal.built(&runner()).await.unwrap();
    one_job(&journal, 1).await;
    journal.accept(&job(2, "waits")).await.unwrap();
    journal.quarantine("r0", "seen", at()).await.unwrap();
    let (jobs, row) = (journal.recent_jobs(9).await.unwrap(), journal.runner("r0").await.unwrap());
    drop(journal);

    let journal = SqliteJournal::open(&path).await.unwrap();
    assert_eq!(journal.deployment_id().await.unwrap(), deployment);
    assert_eq!(journal.recent_jobs(9).await.unwrap(), jobs);
    assert_eq!(journal.open_jobs().await.unwrap(), vec![job(2, "waits")]);
    assert_eq!(journal.runner("r0").await.unwrap(), row);
    assert_eq!(journal.quarantines(9).await.unwrap(), vec![("r0".into(), "seen".into(), at())]);
}

#[tokio::test]
async fn two_journals_are_two_deployments() {
    let folder = tempfile::tempdir().unwrap();
    let one = SqliteJournal::open(folder.path().join("one")).await.unwrap();
    let two = SqliteJournal::open(folder.path().join("two")).await.unwrap();
    assert_ne!(one.deployment_id().await.unwrap(), two.deployment_id().await.unwrap());
}

#[tokio::test]
async fn the_folder_is_made_and_everything_in_it_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/janebot/journal.sqlite");
    let journal = SqliteJournal::open(&path).await.unwrap();
    journal.accept(&job(1, "secret")).await.unwrap();
    assert_eq!(mode(&folder.path().join("state")), 0o700);
    assert_eq!(mode(&folder.path().join("state/janebot")), 0o700);
    let files: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 4, "journal, log, index of the log, lock: {files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(folder.path().join("journal.sqlite")).await.unwrap();
    journal.built(&runner()).await.unwrap();
    for number in 1..=50 {
        let row = job(number, "a prompt");
        journal.accept(&row).await.unwrap();
        let mut lease = Box::pin(journal.lease(&row.job, "r0", number, "canary", at()));
        for _ in 0..number % 3 {
            if let Poll::Ready(done) = futures_util::poll!(&mut lease) {
                done.unwrap();
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(lease);
        let (row, runner) =
            (journal.job(&row.job).await.unwrap().unwrap(), journal.runner("r0").await.unwrap().unwrap());
        let leased = runner.last_job.as_ref() == Some(&row.job);
        assert_eq!(row.state == JobState::Running, leased);
        assert_eq!(runner.fence == number, leased);
    }
}

#[test]
fn child_that_writes_until_killed() {
    let Some(path) = path_for_child() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let journal = SqliteJournal::open(&path).await.unwrap();
        if journal.runner("r0").await.unwrap().is_none() {
            journal.built(&runner()).await.unwrap();
        }
        let first = journal.runner("r0").await.unwrap().unwrap().fence + 1;
        for number in first.. {
            let row = job(number, "a prompt");
            journal.accept(&row).await.unwrap();
            say(&format!("accepted {number}"));
            journal.lease(&row.job, "r0", number, "canary", at()).await.unwrap();
            say(&format!("leased {number}"));
            journal
                .end(&row.job, &Outcome::Cancelled { message: String::new() }, &Timings::default(), None, at())
                .await
                .unwrap();
            say(&format!("ended {number}"));
        }
    });
}

/// As in `leased 12`; the test harness says other things on the same stream.
fn acknowledgement(line: &str) -> Option<(&'static str, u64)> {
    let (what, number) = line.split_once(' ')?;
    let what = ["accepted", "leased", "ended"].into_iter().find(|word| *word == what)?;
    Some((what, number.parse().ok()?))
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let mut writer = child(&[], "child_that_writes_until_killed", &path);
        let mut heard = lines(&mut writer).filter_map(|line| acknowledgement(&line));
        acknowledged.extend(heard.by_ref().take(40 + 31 * round));
        writer.kill().unwrap();
        // What was said before the kill and not read yet was acknowledged as well.
        acknowledged.extend(heard);
        writer.wait().unwrap();

        let journal = SqliteJournal::open(&path).await.unwrap();
        for (what, number) in &acknowledged {
            let row = journal.job(&JobId::new(format!("j{number}"))).await.unwrap();
            let row = row.unwrap_or_else(|| panic!("job {number} was {what} and is lost"));
            match *what {
                "accepted" => {}
                "leased" => assert_ne!(row.state, JobState::Accepted, "job {number}"),
                _ => assert_eq!(row.state, JobState::Ended, "job {number}"),
            }
        }
        // As a restarted service does with jobs that were cut off.
        for row in journal.open_jobs().await.unwrap() {
            journal
                .end(&row.job, &Outcome::Cancelled { message: String::new() }, &Timings::default(), None, at())
                .await
                .unwrap();
        }
        let highest = journal.runner("r0").await.unwrap().unwrap().fence;
        if journal.job(&JobId::new(format!("j{}", highest + 1))).await.unwrap().is_some() {
            // Accepted and not leased before the kill: the next child starts after it.
            let skip = job(1_000_000 + highest, "skip");
            journal.accept(&skip).await.unwrap();
            journal.lease(&skip.job, "r0", highest + 1, "canary", at()).await.unwrap();
        }
    }
    assert!(acknowledged.len() > 100, "only {} writes were seen", acknowledged.len());
}

#[test]
fn child_that_holds_the_journal() {
    let Some(path) = path_for_child() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let journal = runtime.block_on(SqliteJournal::open(&path)).unwrap();
    say("open");
    // Until the parent goes away, or kills this.
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(journal);
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_journal_until_that_one_dies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let mut holder = child(&[], "child_that_holds_the_journal", &path);
    assert!(lines(&mut holder).any(|line| line == "open"));
    let error = SqliteJournal::open(&path).await.unwrap_err();
    assert!(matches!(error, JournalError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", holder.id())), "{error}");

    let other_name = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &other_name).unwrap();
    let error = SqliteJournal::open(&other_name).await.unwrap_err();
    assert!(matches!(error, JournalError::InUse { .. }), "by another name of the file: {error}");

    holder.kill().unwrap();
    holder.wait().unwrap();
    let journal = SqliteJournal::open(&path).await.unwrap();
    assert!(matches!(SqliteJournal::open(&path).await.unwrap_err(), JournalError::InUse { .. }));
    drop(journal);
    SqliteJournal::open(&path).await.unwrap();
}

#[tokio::test]
async fn a_reader_sees_what_the_service_writes_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let missing = SqliteJournal::open_to_read(&path).await.unwrap_err();
    assert!(missing.to_string().contains("there is none"), "{missing}");
    assert!(!path.exists());

    let service = SqliteJournal::open(&path).await.unwrap();
    let reader = SqliteJournal::open_to_read(&path).await.unwrap();
    service.accept(&job(1, "a prompt")).await.unwrap();
    assert_eq!(reader.recent_jobs(9).await.unwrap(), vec![job(1, "a prompt")]);
    let refused = reader.accept(&job(2, "a prompt")).await.unwrap_err();
    assert!(refused.to_string().contains("read-only"), "{refused}");
    drop(service);
    assert_eq!(reader.recent_jobs(9).await.unwrap(), vec![job(1, "a prompt")], "also when the service has gone");
}

#[tokio::test]
async fn a_damaged_file_is_named_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    filled(&whole).await;
    let whole = std::fs::read(whole).unwrap();
    let noise = |seed: u64, len: usize| {
        let mut word = seed;
        let next = || {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (word >> 56) as u8
        };
        std::iter::repeat_with(next).take(len).collect::<Vec<u8>>()
    };
    let mut middle = whole.clone();
    middle[whole.len() / 2..whole.len() / 2 + 4096].copy_from_slice(&noise(3, 4096));
    let mut header = whole.clone();
    header[16..100].copy_from_slice(&noise(4, 84));
    let cases: [(&str, Vec<u8>); 7] = [
        ("random bytes", noise(1, 20_000)),
        ("a few bytes", noise(2, 5)),
        ("text", b"not a journal at all\n".to_vec()),
        ("cut in half", whole[..whole.len() / 2].to_vec()),
        ("cut in the first page", whole[..1000].to_vec()),
        ("noise in the middle", middle),
        ("noise in the header", header),
    ];
    for (name, bytes) in cases {
        let path = folder.path().join("damaged");
        std::fs::write(&path, &bytes).unwrap();
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(folder.path().join(format!("damaged{suffix}")));
        }
        let error = SqliteJournal::open(&path).await.expect_err(name);
        // A reader looks at single pages only; whatever it finds, it does not panic.
        if let Ok(reader) = SqliteJournal::open_to_read(&path).await {
            let _ = reader.recent_jobs(1000).await;
        }
        assert!(matches!(error, JournalError::Corrupt { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains("backup"), "{name}: {error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name}");
    }
}

#[tokio::test]
async fn a_log_without_its_file_is_not_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let log = folder.path().join("journal.sqlite-wal");
    std::fs::write(&log, b"the newest jobs").unwrap();
    assert!(matches!(SqliteJournal::open(&path).await.unwrap_err(), JournalError::Corrupt { .. }));
    assert!(!path.exists());
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(SqliteJournal::open(&path).await.unwrap_err(), JournalError::Corrupt { .. }));
    assert_eq!(std::fs::read(&log).unwrap(), b"the newest jobs");
}

#[tokio::test]
async fn an_empty_file_becomes_a_journal() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let journal = SqliteJournal::open(file.path()).await.unwrap();
    assert_eq!(journal.recent_jobs(1).await.unwrap(), vec![]);
}

#[tokio::test]
async fn a_newer_or_a_strangers_file_is_refused_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    filled(&path).await;
    sql(&path, "PRAGMA user_version = 99").await;
    let before = std::fs::read(&path).unwrap();
    let error = SqliteJournal::open(&path).await.unwrap_err();
    assert!(matches!(error, JournalError::Newer { found: 99, known: 5, .. }), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let path = folder.path().join("bookmarks.sqlite");
    sql(&path, "CREATE TABLE job (id TEXT)").await;
    let before = std::fs::read(&path).unwrap();
    let error = SqliteJournal::open(&path).await.unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_place_that_can_t_be_written_is_named() {
    let error = SqliteJournal::open("/proc/janebot/journal.sqlite").await.unwrap_err();
    assert!(matches!(error, JournalError::Open { .. }) && error.to_string().contains("/proc/janebot"), "{error}");
    let error = SqliteJournal::open("/proc/journal.sqlite").await.unwrap_err();
    assert!(matches!(error, JournalError::Open { .. }), "{error}");
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(SqliteJournal::open(folder.path()).await.unwrap_err(), JournalError::Open { .. }));
}

/// Runs `test` in a mount namespace of its own, where `mount` has put a file system over `folder`; `false` when this
/// machine does not allow it.
fn in_own_mounts(mount: &str, test: &str, folder: &Path) -> bool {
    let script = format!("{mount} && exec \"$0\" \"$@\"");
    let tried = Command::new("unshare").args(["-rm", "sh", "-c", "mount -t tmpfs none \"$0\"", "/tmp"]).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        println!("skipped: this machine allows no mount namespace");
        return false;
    }
    let output = child(&["unshare", "-rm", "sh", "-c", &script], test, folder).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.lines().any(|line| line == "checked"), "{text}");
    true
}

#[test]
fn child_on_a_read_only_file_system() {
    let Some(folder) = path_for_child() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for name in ["journal.sqlite", "new.sqlite", "folder/new.sqlite"] {
        let error = runtime.block_on(SqliteJournal::open(folder.join(name))).unwrap_err();
        assert!(matches!(error, JournalError::Open { .. }), "{name}: {error}");
        assert!(error.to_string().contains("Read-only file system"), "{name}: {error}");
    }
    say("checked");
}

#[tokio::test]
async fn a_read_only_file_system_is_named() {
    let folder = tempfile::tempdir().unwrap();
    drop(SqliteJournal::open(folder.path().join("journal.sqlite")).await.unwrap());
    let mount = format!("mount --bind {0} {0} && mount -o remount,bind,ro {0}", folder.path().display());
    in_own_mounts(&mount, "child_on_a_read_only_file_system", folder.path());
}

#[test]
fn child_on_a_small_disk() {
    let Some(folder) = path_for_child() else { return };
    let fill = || {
        let mut filler = std::fs::File::create(folder.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        fill();
        let error = SqliteJournal::open(folder.join("new.sqlite")).await.unwrap_err();
        assert!(matches!(error, JournalError::Open { .. }), "{error}");
        assert!(!folder.join("new.sqlite").exists(), "nothing half-made is left");
        std::fs::remove_file(folder.join("filler")).unwrap();

        let path = folder.join("journal.sqlite");
        let journal = SqliteJournal::open(&path).await.unwrap();
        journal.built(&runner()).await.unwrap();
        one_job(&journal, 1).await;
        fill();
        let prompt = "x".repeat(10_000);
        let mut accepted = Vec::new();
        let error = loop {
            let row = job(2 + accepted.len() as u64, &prompt);
            match journal.accept(&row).await {
                Ok(_) => accepted.push(row),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("the disk is full"), "{error}");
        let refused = job(2 + accepted.len() as u64, &prompt);
        assert_eq!(journal.job(&refused.job).await.unwrap(), None);
        let lease = journal.lease(&JobId::new("j1"), "r0", 2, "canary", at()).await;
        assert!(lease.is_err());

        std::fs::remove_file(folder.join("filler")).unwrap();
        assert_eq!(journal.accept(&refused).await.unwrap(), Accepted::New, "it goes on when there is room again");
        accepted.push(refused);
        journal.lease(&accepted[0].job, "r0", 2, "canary", at()).await.unwrap();
        journal.unlease(&accepted[0].job).await.unwrap();
        assert_eq!(journal.open_jobs().await.unwrap(), accepted);
        drop(journal);
        let journal = SqliteJournal::open(&path).await.unwrap();
        assert_eq!(journal.open_jobs().await.unwrap(), accepted);
    });
    say("checked");
}

#[tokio::test]
async fn a_full_disk_fails_the_call_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=1m none {}", folder.path().display());
    in_own_mounts(&mount, "child_on_a_small_disk", folder.path());
}

#[tokio::test]
async fn the_cost_of_a_job_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(folder.path().join("journal.sqlite")).await.unwrap();
    journal.built(&runner()).await.unwrap();
    let mut costs = Vec::new();
    for number in 1..=200 {
        let began = tokio::time::Instant::now();
        one_job(&journal, number).await;
        costs.push(began.elapsed());
    }
    costs.sort();
    println!("a job's four writes: p50 {:?}, p99 {:?}", costs[100], costs[198]);
    let mut costs = Vec::new();
    for number in 201..=400 {
        let began = tokio::time::Instant::now();
        one_job_of_a_chat(&journal, number).await;
        costs.push(began.elapsed());
    }
    costs.sort();
    println!("until the outcome of a chat's job is recorded: p50 {:?}, p99 {:?}", costs[100], costs[198]);
    assert_eq!(journal.recent_jobs(1000).await.unwrap().len(), 400);
}
