//! The in-memory sprite host keeps the promises of the Sprites API, and notices who breaks them.
//!
//! Here: the honest host. In [`faults`]: each fault and lie, and that one seed gives one story.

#[path = "../contract/mod.rs"]
mod contract;
#[path = "../doubles/mod.rs"]
mod doubles;
mod faults;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use janebot::sprites::{
    CheckpointId, Exec, ExecEvent, ExecRequest, FileKind, NetworkPolicy, Output, Result, Signal, Sprites, SpritesError,
};
use janebot::world::World;

use doubles::memory_sprites::MemorySprites;
use doubles::memory_sprites::faults::FaultPlan;

const NAME: &str = "jane-runner-0";
const GRACE: Duration = Duration::from_secs(5);
const LIMIT: usize = 1 << 20;

fn cloud(plan: FaultPlan) -> MemorySprites {
    MemorySprites::new(World::seeded(7), plan)
}

fn script(name: &str, args: &[&str], stdin: &str) -> ExecRequest {
    let argv = ["sh", "-c", "the text does not matter", name].into_iter().chain(args.iter().copied());
    ExecRequest {
        argv: argv.map(str::to_owned).collect(),
        stdin: Bytes::copy_from_slice(stdin.as_bytes()),
        timeout: Duration::from_secs(60),
        ..ExecRequest::default()
    }
}

fn job(stdin: &str) -> ExecRequest {
    script("janebot-run", &[".janebot/job.env", "bash"], stdin)
}

async fn exec(cloud: &MemorySprites, request: ExecRequest) -> Result<(u8, String, String)> {
    let Output { status, stdout, stderr } = cloud.exec(NAME, request).await?.output(LIMIT).await?;
    Ok((status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap()))
}

async fn verify(cloud: &MemorySprites, canary: &str) -> String {
    exec(cloud, script("janebot-verify", &[canary], "")).await.unwrap().1
}

async fn check(cloud: &MemorySprites, canary: &str) {
    let (status, out, _) =
        exec(cloud, script("janebot-check", &[canary], "600 .janebot/job.env Cg==\n")).await.unwrap();
    assert_eq!(status, 0);
    assert!(out.ends_with("ready\n"), "{out}");
}

/// A sprite as the pool makes it: policy, directories, an agent, a checkpoint, and the first job's settings.
async fn built(cloud: &MemorySprites) -> CheckpointId {
    cloud.create(NAME, &["pool=test".to_owned()]).await.unwrap();
    cloud.set_policy(NAME, &NetworkPolicy::deny_all()).await.unwrap();
    assert_eq!(exec(cloud, script("janebot-build", &[], "")).await.unwrap().0, 0);
    cloud.write_file(NAME, ".local/bin/amp", 0o755, Bytes::from_static(b"program")).await.unwrap();
    cloud.write_file(NAME, ".janebot/agents", 0o600, Bytes::from_static(b"amp 7 1.2.3 (amp)\n")).await.unwrap();
    cloud.create_checkpoint(NAME, "clean").await.unwrap()
}

async fn ready() -> (MemorySprites, CheckpointId) {
    let cloud = cloud(FaultPlan::none());
    let clean = built(&cloud).await;
    check(&cloud, "c1").await;
    (cloud, clean)
}

/// Starts a job and waits for its first line of output, so that it is known to be at that point.
async fn started(cloud: &MemorySprites, stdin: &str) -> Exec {
    check(cloud, "c1").await;
    let mut exec = cloud.exec(NAME, job(&format!("{stdin}\n"))).await.unwrap();
    assert!(matches!(exec.next().await, Some(Ok(ExecEvent::Stdout(_)))));
    exec
}

fn unknown<T>(result: &Result<T>) -> bool {
    matches!(result, Err(SpritesError::OutcomeUnknown { .. }))
}

// The honest host.

#[tokio::test(start_paused = true)]
async fn it_keeps_the_contract_of_the_sprites_api() {
    contract::keeps_the_contract(cloud(FaultPlan::none()), "jane-", false).await;
}

#[tokio::test(start_paused = true)]
async fn a_restore_brings_back_the_checkpoint_and_another_boot_identity() {
    let (cloud, clean) = ready().await;
    let before = verify(&cloud, "c1").await;
    assert!(before.contains("canary=present\ndisk=ok\nagent:amp=1.2.3 (amp)\n"), "{before}");
    let (status, out, err) = exec(&cloud, job("# job 1\ntouch left\noutput a.txt hi\nread left\n")).await.unwrap();
    assert_eq!((status, out.as_str(), err.as_str()), (0, "\n", ""));
    assert_eq!(cloud.read_file(NAME, "output/a.txt", 2).await.unwrap(), "hi");

    cloud.restore(NAME, &clean).await.unwrap();
    let after = verify(&cloud, "c1").await;
    assert!(after.contains("canary=absent\ndisk=ok\nagent:amp=1.2.3 (amp)\n"), "{after}");
    assert_ne!(before.lines().next(), after.lines().next());
    assert_eq!(cloud.policy(NAME).await.unwrap(), NetworkPolicy::deny_all());

    check(&cloud, "c2").await;
    assert_eq!(exec(&cloud, job("# job 2\nread left\n")).await.unwrap().1, "absent\n");
    let markers: Vec<_> = cloud.runs().into_iter().map(|run| run.marker).collect();
    assert_eq!(markers, ["# job 1", "# job 2"]);
    assert_eq!(cloud.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn sprites_are_made_listed_labelled_and_deleted() {
    let cloud = cloud(FaultPlan::none());
    let made = cloud.create(NAME, &[]).await.unwrap();
    cloud.create("other", &[]).await.unwrap();
    assert!(matches!(cloud.create(NAME, &[]).await, Err(SpritesError::Exists { .. })));
    assert!(matches!(cloud.create("Bad Name", &[]).await, Err(SpritesError::Refused { status: 400, .. })));
    cloud.set_labels(NAME, &["a=b".to_owned()]).await.unwrap();
    let listed = cloud.list("jane-").await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].labels, ["a=b"]);
    assert_eq!(cloud.get(NAME).await.unwrap(), listed[0]);
    cloud.delete(NAME).await.unwrap();
    assert!(matches!(cloud.delete(NAME).await, Err(SpritesError::NotFound { .. })));
    assert!(matches!(cloud.get(NAME).await, Err(SpritesError::NotFound { .. })));
    assert_ne!(cloud.create(NAME, &[]).await.unwrap().id, made.id, "another machine under the same name");
}

#[tokio::test(start_paused = true)]
async fn files_keep_their_bytes_and_their_limits() {
    let (cloud, _) = ready().await;
    cloud.write_file(NAME, "input/deep/x", 0o600, Bytes::from_static(b"12345")).await.unwrap();
    assert_eq!(cloud.read_file(NAME, "/home/sprite/input/deep/x", 5).await.unwrap(), "12345");
    let longer = cloud.read_file(NAME, "input/deep/x", 4).await;
    assert!(matches!(longer, Err(SpritesError::TooLarge { limit: 4, .. })));
    assert!(matches!(cloud.read_file(NAME, "nothing", 4).await, Err(SpritesError::NotFound { .. })));
    assert!(matches!(cloud.read_file(NAME, "input", 4).await, Err(SpritesError::Refused { status: 400, .. })));
    let onto_dir = cloud.write_file(NAME, "input", 0o600, Bytes::new()).await;
    assert!(matches!(onto_dir, Err(SpritesError::Refused { status: 400, .. })));

    let flat = cloud.list_files(NAME, "input", false).await.unwrap();
    assert_eq!(flat.len(), 1);
    assert_eq!((flat[0].path.as_str(), flat[0].kind), ("/home/sprite/input/deep", FileKind::Directory));
    let deep = cloud.list_files(NAME, "input", true).await.unwrap();
    assert_eq!((deep[1].path.as_str(), deep[1].kind, deep[1].size), ("/home/sprite/input/deep/x", FileKind::File, 5));
    assert!(cloud.list_files(NAME, "output", true).await.unwrap().is_empty());
    assert!(matches!(cloud.list_files(NAME, "nothing", true).await, Err(SpritesError::NotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn programs_say_and_end_as_their_script_tells() {
    let (cloud, clean) = ready().await;
    let table = [
        ("echo a b\nerr c", 0, "a b\n", "c\n"),
        ("echo a\nexit 3\necho b", 3, "a\n", ""),
        ("oom", 137, "", ""),
        ("what is this", 127, "", "sh: what is this: not found\n"),
        ("what is this\necho on", 0, "on\n", "sh: what is this: not found\n"),
        ("sleep 1.5\necho woke", 0, "woke\n", ""),
    ];
    for (stdin, status, out, err) in table {
        let ended = exec(&cloud, job(stdin)).await.unwrap();
        assert_eq!(ended, (status, out.to_owned(), err.to_owned()), "{stdin}");
        cloud.restore(NAME, &clean).await.unwrap();
        check(&cloud, "c1").await;
    }
    assert_eq!(exec(&cloud, job("flood 100000")).await.unwrap().1.len(), 100_000);
    let program = |argv: &[&str]| ExecRequest {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        timeout: Duration::from_secs(1),
        ..ExecRequest::default()
    };
    assert_eq!(exec(&cloud, program(&["true"])).await.unwrap().0, 0);
    assert_eq!(exec(&cloud, program(&["echo", "a", "b"])).await.unwrap().1, "a b\n");
    assert_eq!(exec(&cloud, program(&["rm", "-rf"])).await.unwrap().0, 127);
    assert!(matches!(cloud.exec(NAME, program(&[])).await, Err(SpritesError::Refused { .. })));
    assert_eq!(cloud.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_job_without_its_environment_file_does_not_start() {
    let cloud = cloud(FaultPlan::none());
    built(&cloud).await;
    assert_eq!(exec(&cloud, job("echo hi")).await.unwrap().0, 2);
    assert!(cloud.runs().is_empty());
    check(&cloud, "c1").await;
    assert_eq!(exec(&cloud, job("echo hi")).await.unwrap().0, 0);
    assert_eq!(exec(&cloud, job("echo hi")).await.unwrap().0, 2, "it is read once");
    assert_eq!(cloud.runs().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn signals_end_programs_and_only_kill_ends_stubborn_ones() {
    let (cloud, _) = ready().await;
    let table = [
        ("echo up\nhang", Signal::Terminate, 143, Duration::ZERO),
        ("echo up\nhang", Signal::Interrupt, 130, Duration::ZERO),
        ("ignore-term\necho up\nhang", Signal::Terminate, 137, GRACE),
        ("ignore-term\necho up\nhang", Signal::Kill, 137, Duration::ZERO),
    ];
    for (stdin, signal, status, at_least) in table {
        let mut running = started(&cloud, stdin).await;
        let began = Instant::now();
        cloud.kill(NAME, &running.session, signal, GRACE).await.unwrap();
        assert!(began.elapsed() >= at_least && began.elapsed() < at_least + Duration::from_secs(1));
        assert!(cloud.sessions(NAME).await.unwrap().is_empty());
        assert_eq!(running.next().await.unwrap().unwrap(), ExecEvent::Exit(status), "{stdin} {signal:?}");
        assert!(running.next().await.is_none());
        cloud.kill(NAME, &running.session, signal, GRACE).await.expect("gone already is fine");
    }
}

#[tokio::test(start_paused = true)]
async fn a_background_process_outlives_its_session_and_not_a_restore() {
    let (cloud, clean) = ready().await;
    assert_eq!(exec(&cloud, job("# j\ndaemon")).await.unwrap().0, 0);
    assert_eq!(cloud.truth()[0].daemons, ["# j"]);
    assert!(cloud.sessions(NAME).await.unwrap().is_empty());
    cloud.restore(NAME, &clean).await.unwrap();
    assert!(cloud.truth()[0].daemons.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restore_ends_running_programs_and_a_deletion_cuts_them() {
    let (cloud, clean) = ready().await;
    let mut running = started(&cloud, "echo up\nhang").await;
    cloud.restore(NAME, &clean).await.unwrap();
    assert_eq!(running.next().await.unwrap().unwrap(), ExecEvent::Exit(137));
    let mut running = started(&cloud, "echo up\nhang").await;
    cloud.delete(NAME).await.unwrap();
    assert!(unknown(&running.next().await.unwrap()));
    assert!(running.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_program_lives_on_without_its_client_for_the_time_it_was_given() {
    let (cloud, _) = ready().await;
    let request = ExecRequest { max_run_after_disconnect: Some(Duration::from_secs(60)), ..job("hang") };
    let running = cloud.exec(NAME, request).await.unwrap();
    drop(running);
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(cloud.sessions(NAME).await.unwrap().len(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(cloud.sessions(NAME).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_the_stream_and_not_the_program() {
    let (cloud, _) = ready().await;
    let began = Instant::now();
    let ended = exec(&cloud, job("hang")).await;
    assert!(unknown(&ended));
    assert_eq!(began.elapsed(), Duration::from_secs(60));
    assert_eq!(cloud.sessions(NAME).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_process_hears_nothing_more_and_its_requests_and_programs_live_on() {
    let (cloud, clean) = ready().await;
    let crashing = cloud.client("process-1");
    let mut running = crashing.exec(NAME, job("# j\nsleep 5\ntouch late\necho up\nsleep 100")).await.unwrap();
    let sent = {
        let crashing = crashing.clone();
        async move { crashing.set_labels(NAME, &["sent".to_owned()]).await }
    };
    let sent = tokio::spawn(sent);
    tokio::task::yield_now().await;
    crashing.crash();

    let long = Duration::from_secs(3_600);
    assert!(timeout(Duration::from_secs(7), running.next()).await.is_err());
    assert_eq!(cloud.read_file(NAME, "late", 0).await.unwrap(), "");
    assert!(timeout(long, crashing.get(NAME)).await.is_err());
    assert!(timeout(long, sent).await.is_err());
    assert!(timeout(long, running.next()).await.is_err());
    assert_eq!(cloud.get(NAME).await.unwrap().labels, ["sent"], "the request was on its way");
    assert!(cloud.sessions(NAME).await.unwrap().is_empty(), "its time without a client is over");
    cloud.restore(NAME, &clean).await.unwrap();
    assert_eq!(cloud.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_request_is_acted_upon_although_its_future_was_dropped() {
    let (cloud, clean) = ready().await;
    let boot = cloud.truth()[0].boot.clone();
    assert!(timeout(Duration::from_millis(1), cloud.restore(NAME, &clean)).await.is_err());
    assert!(verify(&cloud, "c1").await.contains("canary=absent"), "a later call waits for its turn");
    assert_ne!(cloud.truth()[0].boot, boot);
}

// What callers must not do.

#[tokio::test(start_paused = true)]
async fn the_model_notices_what_callers_must_not_do() {
    let (cloud, clean) = ready().await;
    let other = cloud.client("process-2");
    let mut seen = 0;
    let mut notices = |cloud: &MemorySprites, text: &str| {
        let violations = cloud.violations();
        assert_eq!(violations.len(), seen + 1, "{text}: {violations:#?}");
        assert!(violations[seen].contains(text), "{text}: {violations:#?}");
        seen += 1;
    };

    let running = started(&cloud, "# one\necho up\nhang").await;
    other.restore(NAME, &clean).await.unwrap();
    notices(&cloud, "process-2 restores jane-runner-0");
    drop(running);

    check(&cloud, "c2").await;
    exec(&cloud, job("# two")).await.unwrap();
    check(&cloud, "c2").await;
    exec(&cloud, job("# three")).await.unwrap();
    notices(&cloud, "after \"# two\" without a restore");

    cloud.set_policy(NAME, &NetworkPolicy::default()).await.unwrap();
    notices(&cloud, "empty policy");
    cloud.restore(NAME, &clean).await.unwrap();
    check(&cloud, "c3").await;
    exec(&cloud, job("# four")).await.unwrap();
    notices(&cloud, "without a limit to the network");
    cloud.set_policy(NAME, &NetworkPolicy::deny_all()).await.unwrap();

    let never = CheckpointId::new("v9").unwrap();
    assert!(matches!(cloud.restore(NAME, &never).await, Err(SpritesError::NotFound { .. })));
    notices(&cloud, "v9, which it never had");

    cloud.restore(NAME, &clean).await.unwrap();
    check(&cloud, "c4").await;
    let _running = started(&cloud, "# five\necho up\nhang").await;
    other.delete(NAME).await.unwrap();
    notices(&cloud, "process-2 deletes jane-runner-0");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_an_unclean_sprite_is_no_clean_one() {
    let (cloud, _) = ready().await;
    exec(&cloud, job("# one")).await.unwrap();
    let unclean = cloud.create_checkpoint(NAME, "clean").await.unwrap();
    cloud.restore(NAME, &unclean).await.unwrap();
    check(&cloud, "c2").await;
    exec(&cloud, job("# two")).await.unwrap();
    assert_eq!(cloud.violations().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_jobs_at_once_on_one_sprite_are_noticed() {
    let (cloud, _) = ready().await;
    let _first = started(&cloud, "# one\necho up\nhang").await;
    let _second = started(&cloud, "# two\necho up\nhang").await;
    assert!(cloud.violations().iter().any(|v| v.contains("while \"# one\" runs there")), "{:?}", cloud.violations());
}
