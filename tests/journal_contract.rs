//! The journal's contract: one suite, kept by the SQLite journal and by the simulation's journal in memory.

use janebot::agent::Usage;
use janebot::chat::Action;
use janebot::job::{ChannelId, ConversationId, FailReason, JobId, Outcome, RequesterId, Timings};
use janebot::journal::memory::{Call, MemoryJournal};
use janebot::journal::outgoing::{Delivery, Effect, Mark, Outgoing, OutgoingState};
use janebot::journal::search::{LeaseRow, Progress, Wanted, Which};
use janebot::journal::sqlite::SqliteJournal;
use janebot::journal::usage::{CountedBy, Together, Used};
use janebot::journal::{Accepted, JobRow, JobState, Journal, JournalError, RunnerRow};
use janebot::pool::receipt::Receipt;
use janebot::sprites::CheckpointId;
use jiff::Timestamp;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    // Nanoseconds, because the wall clock has them and a store must not lose them.
    Timestamp::new(1_790_000_000 + second, 123_456_789).unwrap()
}

fn id(name: &str) -> JobId {
    JobId::new(name)
}

fn job(name: &str) -> JobRow {
    JobRow {
        job: id(name),
        message_key: format!("slack:T1/C1/{name}"),
        requester: RequesterId::new("slack:U1"),
        channel: ChannelId::new("slack:C1"),
        conversation: ConversationId::new("slack:C1/1700000000.000100"),
        agent: "shell".into(),
        prompt: "say 'it''s'; -- \u{1f600}\n\0 end".into(),
        files: Vec::new(),
        state: JobState::Accepted,
        runner: None,
        accepted_at: at(0),
        deadline: None,
        started_at: None,
        ended_at: None,
        outcome: None,
        timings: None,
        receipt: None,
    }
}

fn runner(name: &str) -> RunnerRow {
    RunnerRow {
        runner: name.into(),
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

fn receipt(name: &str) -> Receipt {
    Receipt {
        runner: name.into(),
        sprite_id: "sprite-1".into(),
        checkpoint: CheckpointId::new("v1").unwrap(),
        fingerprint: "f00d".into(),
        previous_job: Some(id("before")),
        restore_completed: true,
        canary_gone: Some(true),
        boot: "boot-2".into(),
        allowed_hosts: vec!["ampcode.com".into()],
        verified_at: at(5),
        fence: 1,
        isolation: "namespaces+seccomp".into(),
        warnings: vec![],
    }
}

fn answered(text: &str) -> Outcome {
    Outcome::Answered { answer: text.into() }
}

fn effect(key: &str, effect: Effect) -> Outgoing {
    Outgoing { key: key.into(), job: id("a"), conversation: job("a").conversation, effect }
}

fn post(key: &str) -> Outgoing {
    effect(key, Effect::Post { text: "it's \"x\" \u{1f600}\n{}".into(), buttons: vec![Action::Why] })
}

fn progress(text: &str, closing: bool) -> Outgoing {
    effect("a/progress", Effect::Progress { text: text.into(), closing })
}

async fn open_keys(journal: &impl Journal) -> String {
    let rows = journal.open_effects(None).await.unwrap();
    rows.iter().map(|row| row.outgoing.key.as_str()).collect::<Vec<_>>().join(" ")
}

fn sent(message: &str) -> Delivery {
    Delivery::Sent { message: Some(message.into()) }
}

fn failed_with(result: Result<impl std::fmt::Debug, JournalError>, words: &str) {
    match result {
        Err(JournalError::Failed { message }) => assert!(message.contains(words), "{message:?} lacks {words:?}"),
        other => panic!("expected a refusal with {words:?}, got {other:?}"),
    }
}

async fn a_new_job_is_kept_whole(journal: impl Journal) {
    assert_eq!(journal.accept(&job("a")).await.unwrap(), Accepted::New);
    assert_eq!(journal.job(&id("a")).await.unwrap(), Some(job("a")));
    assert_eq!(journal.job(&id("b")).await.unwrap(), None);
}

async fn a_message_heard_twice_is_the_same_job(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    let again = JobRow { job: id("b"), prompt: "other".into(), ..job("a") };
    assert_eq!(journal.accept(&again).await.unwrap(), Accepted::Known(id("a")));
    journal.end(&id("a"), &answered("done"), &Timings::default(), None, at(1)).await.unwrap();
    assert_eq!(journal.accept(&again).await.unwrap(), Accepted::Known(id("a")), "also after its end");
    assert_eq!(journal.job(&id("b")).await.unwrap(), None);
    assert_eq!(journal.recent_jobs(10).await.unwrap().len(), 1);
}

async fn one_job_id_is_never_two_messages(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    failed_with(journal.accept(&JobRow { message_key: "other".into(), ..job("a") }).await, "another message");
    failed_with(journal.accept(&JobRow { state: JobState::Running, ..job("b") }).await, "`accepted`");
}

async fn a_lease_marks_job_and_runner_together(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    journal.built(&runner("r0")).await.unwrap();
    journal.clean("r0", &receipt("r0")).await.unwrap();
    journal.lease(&id("a"), "r0", 7, "canary-7", at(2)).await.unwrap();

    let row = journal.job(&id("a")).await.unwrap().unwrap();
    let expected = JobRow { state: JobState::Running, runner: Some("r0".into()), started_at: Some(at(2)), ..job("a") };
    assert_eq!(row, expected);
    let expected = RunnerRow {
        dirty: true,
        last_job: Some(id("a")),
        canary: Some("canary-7".into()),
        boot: "boot-2".into(),
        fence: 7,
        ..runner("r0")
    };
    assert_eq!(journal.runner("r0").await.unwrap(), Some(expected));
}

async fn a_refused_lease_changes_nothing(journal: impl Journal) {
    for name in ["a", "b", "c"] {
        journal.accept(&job(name)).await.unwrap();
    }
    journal.built(&RunnerRow { fence: 5, ..runner("r0") }).await.unwrap();
    journal.clean("r0", &receipt("r0")).await.unwrap();
    let clean = journal.runner("r0").await.unwrap();

    failed_with(journal.lease(&id("a"), "r0", 5, "c", at(2)).await, "fence");
    failed_with(journal.lease(&id("a"), "r0", 4, "c", at(2)).await, "fence");
    failed_with(journal.lease(&id("a"), "r0", u64::MAX, "c", at(2)).await, "fence");
    failed_with(journal.lease(&id("a"), "r1", 6, "c", at(2)).await, "no such runner");
    failed_with(journal.lease(&id("x"), "r0", 6, "c", at(2)).await, "no such job");
    journal.end(&id("b"), &answered("done"), &Timings::default(), None, at(1)).await.unwrap();
    failed_with(journal.lease(&id("b"), "r0", 6, "c", at(2)).await, "ended");
    assert_eq!(journal.job(&id("a")).await.unwrap(), Some(job("a")));
    assert_eq!(journal.runner("r0").await.unwrap(), clean);

    journal.lease(&id("a"), "r0", 6, "c", at(2)).await.unwrap();
    let leased = journal.runner("r0").await.unwrap();
    failed_with(journal.lease(&id("a"), "r0", 7, "d", at(3)).await, "a lease already");
    failed_with(journal.lease(&id("c"), "r0", 6, "d", at(3)).await, "fence");
    assert_eq!(journal.runner("r0").await.unwrap(), leased);
    assert_eq!(journal.job(&id("c")).await.unwrap(), Some(job("c")));
}

async fn a_job_that_never_started_waits_again_and_its_runner_stays_dirty(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    journal.built(&runner("r0")).await.unwrap();
    journal.lease(&id("a"), "r0", 1, "c", at(2)).await.unwrap();
    journal.unlease(&id("a")).await.unwrap();
    journal.unlease(&id("a")).await.expect("what is wanted already is no error");
    assert_eq!(journal.job(&id("a")).await.unwrap(), Some(job("a")));
    assert!(journal.runner("r0").await.unwrap().unwrap().dirty);

    journal.lease(&id("a"), "r0", 2, "c2", at(3)).await.unwrap();
    journal.end(&id("a"), &answered("done"), &Timings::default(), None, at(4)).await.unwrap();
    journal.unlease(&id("a")).await.unwrap();
    assert_eq!(journal.job(&id("a")).await.unwrap().unwrap().state, JobState::Ended, "an end is final");
    failed_with(journal.unlease(&id("x")).await, "no such job");
}

async fn the_first_outcome_wins(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    journal.built(&runner("r0")).await.unwrap();
    journal.lease(&id("a"), "r0", 1, "c", at(2)).await.unwrap();
    let timings = Timings { queue_ms: Some(1), check_ms: None, run_ms: Some(3), collect_ms: Some(0), total_ms: 9 };
    let first = Outcome::Failed { reason: FailReason::Interrupted, message: "stopped\n".into() };
    assert!(journal.end(&id("a"), &first, &timings, Some(&receipt("r0")), at(6)).await.unwrap());
    let row = journal.job(&id("a")).await.unwrap().unwrap();
    assert!(!journal.end(&id("a"), &answered("late"), &Timings::default(), None, at(7)).await.unwrap());
    assert_eq!(journal.job(&id("a")).await.unwrap(), Some(row.clone()));
    let expected = JobRow {
        state: JobState::Ended,
        runner: Some("r0".into()),
        started_at: Some(at(2)),
        ended_at: Some(at(6)),
        outcome: Some(first),
        timings: Some(timings),
        receipt: Some(receipt("r0")),
        ..job("a")
    };
    assert_eq!(row, expected);
    failed_with(journal.end(&id("x"), &answered(""), &timings, None, at(8)).await, "no such job");
}

async fn jobs_are_listed_by_age(journal: impl Journal) {
    // Ids that would sort the other way round: the order is that of acceptance.
    for name in ["d", "c", "b", "a"] {
        journal.accept(&job(name)).await.unwrap();
    }
    journal.built(&runner("r0")).await.unwrap();
    journal.lease(&id("b"), "r0", 1, "c", at(2)).await.unwrap();
    journal.end(&id("c"), &answered("done"), &Timings::default(), None, at(3)).await.unwrap();
    let names = |rows: Vec<JobRow>| rows.iter().map(|row| row.job.to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!(names(journal.open_jobs().await.unwrap()), "d b a");
    assert_eq!(names(journal.recent_jobs(3).await.unwrap()), "a b c");
    assert_eq!(names(journal.recent_jobs(0).await.unwrap()), "");
    let elsewhere = JobRow { conversation: ConversationId::new("slack:C2/1"), ..job("e") };
    journal.accept(&elsewhere).await.unwrap();
    assert_eq!(names(journal.conversation_jobs(&job("a").conversation, 3).await.unwrap()), "a b c");
    assert_eq!(names(journal.conversation_jobs(&elsewhere.conversation, 3).await.unwrap()), "e");
    assert_eq!(names(journal.conversation_jobs(&ConversationId::new("slack:C3/1"), 3).await.unwrap()), "");
}

async fn jobs_are_found_by_what_is_known_of_them(journal: impl Journal) {
    for (n, requester) in ["slack:U1", "discord:U2", "slack:U1"].into_iter().enumerate() {
        let row =
            JobRow { requester: RequesterId::new(requester), accepted_at: at(10 * n as i64), ..job(&format!("{n}a")) };
        journal.accept(&row).await.unwrap();
    }
    journal.end(&id("1a"), &answered("x"), &Timings::default(), None, at(50)).await.unwrap();
    let found = async |wanted: Wanted| {
        let rows = journal.find_jobs(&wanted).await.unwrap();
        rows.iter().map(|row| row.job.to_string()).collect::<Vec<_>>()
    };
    let any = || Wanted::any(10);
    assert_eq!(found(any()).await, ["2a", "1a", "0a"]);
    assert_eq!(found(Wanted::any(2)).await, ["2a", "1a"]);
    assert_eq!(found(Wanted { which: Which::IdStart("1".into()), ..any() }).await, ["1a"]);
    assert_eq!(found(Wanted { which: Which::IdStart("a".into()), ..any() }).await, [""; 0]);
    assert_eq!(found(Wanted { which: Which::KeyEnd("C1/2a".into()), ..any() }).await, ["2a"]);
    assert_eq!(found(Wanted { which: Which::KeyEnd("slack:T1/C1/0a".into()), ..any() }).await, ["0a"]);
    assert_eq!(found(Wanted { requester: Some("U1".into()), ..any() }).await, ["2a", "0a"]);
    assert_eq!(found(Wanted { requester: Some("discord:U2".into()), ..any() }).await, ["1a"]);
    assert_eq!(found(Wanted { requester: Some("slack:U2".into()), ..any() }).await, [""; 0]);
    assert_eq!(found(Wanted { progress: Progress::named("accepted"), ..any() }).await, ["2a", "0a"]);
    assert_eq!(found(Wanted { progress: Progress::named("answered"), ..any() }).await, ["1a"]);
    assert_eq!(found(Wanted { progress: Progress::named("failed"), ..any() }).await, [""; 0]);
    assert_eq!(found(Wanted { since: Some(at(10)), ..any() }).await, ["2a", "1a"]);
}

async fn every_lease_of_a_job_is_told(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    for name in ["r0", "r1"] {
        journal.built(&runner(name)).await.unwrap();
    }
    assert_eq!(journal.leases(&id("a")).await.unwrap(), []);
    journal.lease(&id("a"), "r1", 8, "c1", at(1)).await.unwrap();
    journal.unlease(&id("a")).await.unwrap();
    journal.lease(&id("a"), "r0", 9, "c2", at(2)).await.unwrap();
    let lease = |runner: &str, fence, second| LeaseRow { runner: runner.into(), fence, leased_at: at(second) };
    assert_eq!(journal.leases(&id("a")).await.unwrap(), [lease("r1", 8, 1), lease("r0", 9, 2)]);
}

async fn a_built_runner_is_dirty_until_a_receipt_of_its_own_cleans_it(journal: impl Journal) {
    failed_with(journal.clean("r0", &receipt("r0")).await, "no such runner");
    journal.built(&RunnerRow { dirty: false, ..runner("r0") }).await.unwrap();
    assert_eq!(journal.runner("r0").await.unwrap(), Some(runner("r0")));

    let other_sprite = Receipt { sprite_id: "sprite-0".into(), ..receipt("r0") };
    failed_with(journal.clean("r0", &other_sprite).await, "another sprite");
    let other_checkpoint = Receipt { checkpoint: CheckpointId::new("v2").unwrap(), ..receipt("r0") };
    failed_with(journal.clean("r0", &other_checkpoint).await, "another sprite");
    assert!(journal.runner("r0").await.unwrap().unwrap().dirty);

    journal.clean("r0", &receipt("r0")).await.unwrap();
    let expected = RunnerRow { dirty: false, boot: "boot-2".into(), ..runner("r0") };
    assert_eq!(journal.runner("r0").await.unwrap(), Some(expected));
}

async fn a_fence_only_grows(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    journal.built(&runner("r0")).await.unwrap();
    journal.lease(&id("a"), "r0", 9, "c", at(2)).await.unwrap();
    let rebuilt = RunnerRow { sprite_id: "sprite-2".into(), fence: 3, ..runner("r0") };
    journal.built(&rebuilt).await.unwrap();
    assert_eq!(journal.runner("r0").await.unwrap(), Some(RunnerRow { fence: 9, ..rebuilt.clone() }));

    journal.forget_runner("r0").await.unwrap();
    journal.forget_runner("r0").await.expect("what is wanted already is no error");
    journal.forget_runner("never-seen").await.expect("what is wanted already is no error");
    assert_eq!(journal.runner("r0").await.unwrap(), None);
    journal.unlease(&id("a")).await.unwrap();
    failed_with(journal.lease(&id("a"), "r0", 10, "c", at(3)).await, "no such runner");
    journal.built(&rebuilt).await.unwrap();
    assert_eq!(journal.runner("r0").await.unwrap().unwrap().fence, 9);
    failed_with(journal.built(&RunnerRow { fence: u64::MAX, ..rebuilt }).await, "fence");
}

async fn usage_is_summed_over_a_requesters_jobs_since_a_time(journal: impl Journal) {
    let used = |input, output, counted_by| Used {
        usage: Usage {
            turns: 2,
            input_tokens: input,
            cached_input_tokens: 1,
            output_tokens: output,
            cost_usd: Some(0.5),
        },
        counted_by,
    };
    journal.built(&runner("r0")).await.unwrap();
    for (n, name) in ["j0", "j1", "j2", "j3"].into_iter().enumerate() {
        let requester = RequesterId::new(if name == "j3" { "slack:U2" } else { "slack:U1" });
        journal.accept(&JobRow { requester, ..job(name) }).await.unwrap();
        journal.lease(&id(name), "r0", n as u64 + 1, "c", at(10 * n as i64)).await.unwrap();
    }
    assert_eq!(journal.usage(&id("j0")).await.unwrap(), None);
    journal.record_usage(&id("j0"), &used(1, 1, CountedBy::Agent)).await.unwrap();
    journal.record_usage(&id("j0"), &used(100, 20, CountedBy::Vault)).await.unwrap();
    journal.record_usage(&id("j1"), &used(u64::MAX, 5, CountedBy::Agent)).await.unwrap();
    journal.record_usage(&id("j3"), &used(7, 7, CountedBy::Agent)).await.unwrap();
    assert!(journal.record_usage(&id("j9"), &used(1, 1, CountedBy::Agent)).await.is_err());
    assert_eq!(journal.usage(&id("j0")).await.unwrap(), Some(used(100, 20, CountedBy::Vault)));
    let since = async |second| journal.used_since(&RequesterId::new("slack:U1"), at(second)).await.unwrap();
    let all = since(0).await;
    assert!(all.jobs == 3 && all.tokens > i64::MAX as u64 / 2, "{all:?}");
    assert_eq!(since(20).await, Together { jobs: 1, tokens: 0 }, "j2 is running");
    assert_eq!(since(21).await, Together::default());
    let other = journal.used_since(&RequesterId::new("slack:U2"), at(0)).await.unwrap();
    assert_eq!(other, Together { jobs: 1, tokens: 14 });
}

async fn quarantines_are_kept_for_people(journal: impl Journal) {
    journal.quarantine("r0", "canary present", at(1)).await.unwrap();
    journal.quarantine("r1", "no answer", at(2)).await.unwrap();
    let newest = ("r1".to_owned(), "no answer".to_owned(), at(2));
    assert_eq!(journal.quarantines(1).await.unwrap(), vec![newest.clone()]);
    assert_eq!(journal.quarantines(9).await.unwrap(), vec![newest, ("r0".into(), "canary present".into(), at(1))]);
}

async fn effects_come_with_the_acceptance_and_with_the_first_end_or_not_at_all(journal: impl Journal) {
    let heard = effect("a/heard", Effect::React { message: "m".into(), mark: Mark::Heard, shown: true });
    assert_eq!(journal.accept_with(&job("a"), std::slice::from_ref(&heard)).await.unwrap(), Accepted::New);
    let again = JobRow { job: id("b"), ..job("a") };
    assert_eq!(journal.accept_with(&again, &[post("b/x")]).await.unwrap(), Accepted::Known(id("a")));
    let done = answered("done");
    let none = Timings::default();
    assert!(journal.end_with(&id("a"), &done, &none, None, at(1), &[post("a/0"), post("a/1")]).await.unwrap());
    assert!(!journal.end_with(&id("a"), &done, &none, None, at(2), &[post("a/2")]).await.unwrap());
    assert_eq!(open_keys(&journal).await, "a/heard a/0 a/1");
    let rows = journal.job_effects(&id("a")).await.unwrap();
    assert_eq!((&rows[0].outgoing, rows[0].put_at, rows[0].tried), (&heard, at(0), 0));
    assert_eq!((&rows[2].outgoing, rows[2].put_at), (&post("a/1"), at(1)));
    let elsewhere = ConversationId::new("slack:C2/1");
    assert!(journal.open_effects(Some(&elsewhere)).await.unwrap().is_empty());
    assert_eq!(journal.open_effects(Some(&job("a").conversation)).await.unwrap(), rows);
}

async fn a_refused_message_is_recorded_as_ended_at_once(journal: impl Journal) {
    let outcome = Outcome::Refused { reason: janebot::job::RefuseReason::NotAllowed, message: "no".into() };
    let row = JobRow {
        state: JobState::Ended,
        outcome: Some(outcome),
        ended_at: Some(at(3)),
        timings: Some(Timings::default()),
        ..job("a")
    };
    assert_eq!(journal.accept_with(&row, &[post("a/0")]).await.unwrap(), Accepted::New);
    assert_eq!(journal.accept_with(&row, &[post("a/0")]).await.unwrap(), Accepted::Known(id("a")));
    assert_eq!(journal.job(&id("a")).await.unwrap(), Some(row));
    assert_eq!(open_keys(&journal).await, "a/0");
}

async fn an_effect_is_sent_or_given_up_once(journal: impl Journal) {
    journal.put(&[post("a/0"), post("a/1")], at(1)).await.unwrap();
    journal.put(&[post("a/0")], at(2)).await.expect("what is there already is no error");
    let text = post("a/0").effect;
    journal.trying("a/0").await.unwrap();
    journal.delivered("a/0", &text, &sent("m1"), at(3)).await.unwrap();
    journal.delivered("a/0", &text, &Delivery::GivenUp { why: "late".into() }, at(4)).await.unwrap();
    let row = journal.effect("a/0").await.unwrap().unwrap();
    assert_eq!((row.state, row.tried, row.message.as_deref()), (OutgoingState::Sent, 1, Some("m1")));
    assert_eq!((row.done_at, row.why), (Some(at(3)), None));
    journal.delivered("a/1", &text, &Delivery::GivenUp { why: "gone".into() }, at(5)).await.unwrap();
    let row = journal.effect("a/1").await.unwrap().unwrap();
    assert_eq!((row.state, row.why.as_deref(), row.message), (OutgoingState::GivenUp, Some("gone"), None));
    assert_eq!(open_keys(&journal).await, "");
    failed_with(journal.trying("x").await, "no such effect");
    failed_with(journal.delivered("x", &text, &sent("m"), at(6)).await, "no such effect");
    assert_eq!(journal.effect("x").await.unwrap(), None);
}

async fn progress_takes_the_newest_text_until_it_is_closed(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    journal.put(&[progress("one", false)], at(1)).await.unwrap();
    assert_eq!(open_keys(&journal).await, "", "its sender knows better");
    journal.delivered("a/progress", &progress("one", false).effect, &sent("m1"), at(2)).await.unwrap();
    journal.put(&[progress("two", false)], at(3)).await.unwrap();
    let row = journal.effect("a/progress").await.unwrap().unwrap();
    assert_eq!((row.state, row.tried, row.message.as_deref()), (OutgoingState::Open, 2, Some("m1")));
    let (done, closing) = (answered("x"), progress("done", true));
    journal.end_with(&id("a"), &done, &Timings::default(), None, at(4), std::slice::from_ref(&closing)).await.unwrap();
    journal.delivered("a/progress", &progress("two", false).effect, &sent("m1"), at(5)).await.unwrap();
    assert_eq!(open_keys(&journal).await, "a/progress", "the older text's arrival closes nothing");
    journal.put(&[progress("three", false)], at(6)).await.unwrap();
    assert_eq!(journal.effect("a/progress").await.unwrap().unwrap().outgoing, closing);
    journal.delivered("a/progress", &closing.effect, &sent("m1"), at(7)).await.unwrap();
    journal.put(&[progress("four", false)], at(8)).await.unwrap();
    let row = journal.effect("a/progress").await.unwrap().unwrap();
    assert_eq!((row.outgoing, row.state, row.tried), (closing, OutgoingState::Sent, 2));
}

async fn a_file_is_kept_until_it_is_sent(journal: impl Journal) {
    let upload = effect("a/file/0", Effect::Upload { name: "x.bin".into() });
    let bytes = bytes::Bytes::from_static(b"\0\xff bytes");
    journal.keep_file("a/file/0", &bytes).await.unwrap();
    journal.keep_file("stray", &bytes).await.unwrap();
    journal.put(std::slice::from_ref(&upload), at(1)).await.unwrap();
    journal.drop_stray_files().await.unwrap();
    assert_eq!(journal.file("stray").await.unwrap(), None);
    assert_eq!(journal.file("a/file/0").await.unwrap(), Some(bytes));
    journal.delivered("a/file/0", &upload.effect, &sent("m"), at(2)).await.unwrap();
    assert_eq!(journal.file("a/file/0").await.unwrap(), None);
}

async fn a_prompt_is_revised_until_it_starts(journal: impl Journal) {
    journal.accept(&job("a")).await.unwrap();
    journal.built(&runner("r0")).await.unwrap();
    assert!(journal.revise(&id("a"), "other").await.unwrap());
    assert_eq!(journal.job(&id("a")).await.unwrap().unwrap().prompt, "other");
    journal.lease(&id("a"), "r0", 1, "c", at(2)).await.unwrap();
    assert!(!journal.revise(&id("a"), "late").await.unwrap());
    assert_eq!(journal.job(&id("a")).await.unwrap().unwrap().prompt, "other");
    failed_with(journal.revise(&id("x"), "").await, "no such job");
}

async fn what_is_past_its_deadline_is_found(journal: impl Journal) {
    let dated = |name: &str, deadline| JobRow { deadline: Some(deadline), ..job(name) };
    for row in [dated("a", at(10)), dated("b", at(5)), dated("c", at(5)), job("d")] {
        journal.accept(&row).await.unwrap();
    }
    journal.end(&id("c"), &answered("x"), &Timings::default(), None, at(1)).await.unwrap();
    let overdue = async |now| {
        let rows = journal.overdue_jobs(now).await.unwrap();
        rows.iter().map(|row| row.job.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(overdue(at(5)).await, "");
    assert_eq!(overdue(Timestamp::from_second(1_790_000_006).unwrap()).await, "b");
    assert_eq!(overdue(at(11)).await, "a b");
    journal.extend(&id("a"), at(20)).await.unwrap();
    journal.extend(&id("c"), at(1)).await.expect("what has ended needs no deadline");
    failed_with(journal.extend(&id("x"), at(1)).await, "no such job");
    assert_eq!(overdue(at(11)).await, "b");
}

async fn a_clone_is_the_same_journal(journal: impl Journal) {
    let other = journal.clone();
    journal.accept(&job("a")).await.unwrap();
    assert_eq!(other.job(&id("a")).await.unwrap(), Some(job("a")));
    let deployment = journal.deployment_id().await.unwrap();
    assert_eq!(deployment.len(), 16);
    assert_eq!(other.deployment_id().await.unwrap(), deployment);
}

async fn many_callers_at_once_keep_the_rules(journal: impl Journal) {
    journal.built(&runner("r0")).await.unwrap();
    journal.accept(&job("a")).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..20u64 {
        let journal = journal.clone();
        calls.spawn(async move {
            let same = JobRow { job: id(&format!("j{number}")), message_key: "same".into(), ..job("x") };
            let new = matches!(journal.accept(&same).await.unwrap(), Accepted::New);
            let leased = journal.lease(&id("a"), "r0", number + 1, "c", at(1)).await.is_ok();
            let ended = journal.end(&id("a"), &answered("x"), &Timings::default(), None, at(2)).await.unwrap();
            (u32::from(new), u32::from(leased), u32::from(ended))
        });
    }
    let (mut new, mut leased, mut ended) = (0, 0, 0);
    while let Some(done) = calls.join_next().await {
        let done = done.unwrap();
        (new, leased, ended) = (new + done.0, leased + done.1, ended + done.2);
    }
    assert_eq!((new, leased, ended), (1, 1, 1));
}

macro_rules! contract {
    ($($test:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                let folder = tempfile::tempdir().unwrap();
                super::$test(super::SqliteJournal::open(folder.path().join("journal.sqlite")).await.unwrap()).await;
            })*
        }
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::MemoryJournal::new()).await;
            })*
        }
    };
}

contract!(
    a_new_job_is_kept_whole
    a_message_heard_twice_is_the_same_job
    one_job_id_is_never_two_messages
    a_lease_marks_job_and_runner_together
    a_refused_lease_changes_nothing
    a_job_that_never_started_waits_again_and_its_runner_stays_dirty
    the_first_outcome_wins
    jobs_are_listed_by_age
    jobs_are_found_by_what_is_known_of_them
    every_lease_of_a_job_is_told
    a_built_runner_is_dirty_until_a_receipt_of_its_own_cleans_it
    a_fence_only_grows
    usage_is_summed_over_a_requesters_jobs_since_a_time
    quarantines_are_kept_for_people
    effects_come_with_the_acceptance_and_with_the_first_end_or_not_at_all
    a_refused_message_is_recorded_as_ended_at_once
    an_effect_is_sent_or_given_up_once
    progress_takes_the_newest_text_until_it_is_closed
    a_file_is_kept_until_it_is_sent
    a_prompt_is_revised_until_it_starts
    what_is_past_its_deadline_is_found
    a_clone_is_the_same_journal
    many_callers_at_once_keep_the_rules
);

#[tokio::test]
async fn a_fault_in_memory_fails_the_call_and_changes_nothing() {
    let journal = MemoryJournal::new();
    journal.fail_next(2);
    failed_with(journal.accept(&job("a")).await, "simulated");
    failed_with(journal.deployment_id().await, "simulated");
    assert_eq!(journal.job(&id("a")).await.unwrap(), None);

    journal.accept(&job("a")).await.unwrap();
    journal.set_fault(|call| call == Call::End);
    failed_with(journal.end(&id("a"), &answered("x"), &Timings::default(), None, at(1)).await, "simulated");
    assert_eq!(journal.job(&id("a")).await.unwrap(), Some(job("a")));
    journal.heal();
    assert!(journal.end(&id("a"), &answered("x"), &Timings::default(), None, at(1)).await.unwrap());
}

/// One call with small numbers for names, so that calls meet.
#[derive(Clone, Debug)]
enum Step {
    Accept { job: u8, message: u8 },
    Lease { job: u8, runner: u8, fence: u64 },
    Unlease { job: u8 },
    End { job: u8 },
    Built { runner: u8, sprite: u8, fence: u64 },
    Clean { runner: u8, sprite: u8 },
    Forget { runner: u8 },
    EndTelling { job: u8, closing: bool },
    Put { key: u8, closing: bool },
    Trying { key: u8 },
    Delivered { key: u8, closing: bool, ok: bool },
    Revise { job: u8 },
}

/// Key 0 is progress, the others are posts.
fn small_effect(key: u8, closing: bool, second: i64) -> Outgoing {
    match key {
        0 => progress(&format!("p{second}"), closing),
        key => effect(&format!("k{key}"), Effect::Post { text: format!("t{second}"), buttons: Vec::new() }),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let (job, runner, sprite, fence) = (0..4u8, 0..2u8, 0..2u8, 0..8u64);
    prop_oneof![
        (job.clone(), 0..5u8).prop_map(|(job, message)| Step::Accept { job, message }),
        (job.clone(), runner.clone(), fence.clone()).prop_map(|(job, runner, fence)| Step::Lease {
            job,
            runner,
            fence
        }),
        job.clone().prop_map(|job| Step::Unlease { job }),
        job.prop_map(|job| Step::End { job }),
        (runner.clone(), sprite.clone(), fence).prop_map(|(runner, sprite, fence)| Step::Built {
            runner,
            sprite,
            fence
        }),
        (runner.clone(), sprite).prop_map(|(runner, sprite)| Step::Clean { runner, sprite }),
        runner.prop_map(|runner| Step::Forget { runner }),
        (0..4u8, any::<bool>()).prop_map(|(job, closing)| Step::EndTelling { job, closing }),
        (0..3u8, any::<bool>()).prop_map(|(key, closing)| Step::Put { key, closing }),
        (0..3u8).prop_map(|key| Step::Trying { key }),
        (0..3u8, any::<bool>(), any::<bool>()).prop_map(|(key, closing, ok)| Step::Delivered { key, closing, ok }),
        (0..4u8).prop_map(|job| Step::Revise { job }),
    ]
}

/// Takes the step; the answer as text.
async fn take(journal: &impl Journal, step: &Step, second: i64) -> String {
    let job_id = |number: &u8| id(&format!("j{number}"));
    let name = |number: &u8| format!("r{number}");
    match step {
        Step::Accept { job: number, message } => {
            let row =
                JobRow { job: job_id(number), message_key: format!("m{message}"), accepted_at: at(second), ..job("") };
            format!("{:?}", journal.accept(&row).await)
        }
        Step::Lease { job, runner, fence } => {
            format!("{:?}", journal.lease(&job_id(job), &name(runner), *fence, &format!("c{fence}"), at(second)).await)
        }
        Step::Unlease { job } => format!("{:?}", journal.unlease(&job_id(job)).await),
        Step::End { job } => {
            let timings = Timings { total_ms: second as u64, ..Timings::default() };
            format!("{:?}", journal.end(&job_id(job), &answered("x"), &timings, None, at(second)).await)
        }
        Step::Built { runner: number, sprite, fence } => {
            let row = RunnerRow { sprite_id: format!("s{sprite}"), fence: *fence, ..runner(&name(number)) };
            format!("{:?}", journal.built(&row).await)
        }
        Step::Clean { runner, sprite } => {
            let receipt =
                Receipt { sprite_id: format!("s{sprite}"), boot: format!("b{second}"), ..receipt(&name(runner)) };
            format!("{:?}", journal.clean(&name(runner), &receipt).await)
        }
        Step::EndTelling { job, closing } => {
            let effects = [small_effect(0, *closing, second), small_effect(1, false, second)];
            let (outcome, timings) = (answered("y"), Timings::default());
            format!("{:?}", journal.end_with(&job_id(job), &outcome, &timings, None, at(second), &effects).await)
        }
        Step::Put { key, closing } => {
            format!("{:?}", journal.put(&[small_effect(*key, *closing, second)], at(second)).await)
        }
        Step::Trying { key } => format!("{:?}", journal.trying(&small_effect(*key, false, 0).key).await),
        Step::Delivered { key, closing, ok } => {
            let effect = small_effect(*key, *closing, 0);
            let delivery = if *ok { sent(&format!("m{second}")) } else { Delivery::GivenUp { why: "w".into() } };
            format!("{:?}", journal.delivered(&effect.key, &effect.effect, &delivery, at(second)).await)
        }
        Step::Revise { job } => format!("{:?}", journal.revise(&job_id(job), &format!("r{second}")).await),
        Step::Forget { runner } => format!("{:?}", journal.forget_runner(&name(runner)).await),
    }
}

/// All that can be read back.
async fn seen(journal: &impl Journal) -> String {
    let runners = (journal.runner("r0").await.unwrap(), journal.runner("r1").await.unwrap());
    let effects = (journal.job_effects(&id("a")).await.unwrap(), journal.open_effects(None).await.unwrap());
    let runners = (runners, effects);
    format!("{:#?}", (journal.recent_jobs(99).await.unwrap(), journal.open_jobs().await.unwrap(), runners))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The simulation's journal is only worth something as long as nobody can tell it from the real one.
    #[test]
    fn whatever_is_called_both_journals_answer_the_same(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let sqlite = SqliteJournal::open(folder.path().join("journal.sqlite")).await.unwrap();
            let memory = MemoryJournal::new();
            for (second, step) in steps.iter().enumerate() {
                let answers = (take(&sqlite, step, second as i64).await, take(&memory, step, second as i64).await);
                prop_assert_eq!(answers.0, answers.1, "{:?}", step);
                prop_assert_eq!(seen(&sqlite).await, seen(&memory).await, "{:?}", step);
            }
            Ok(())
        })?;
    }
}
