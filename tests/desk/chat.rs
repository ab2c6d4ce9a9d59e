//! The desk and the outbox in a chat that the test plays: what people see there, and what they can do about it.

use std::time::Duration;

use crate::desk_rig::{answer, finish, grant, start};
use crate::played_chat::{ChatRig, settled};
use janebot::agent::{AgentResult, Details};
use janebot::chat::{Action, Attachment, Inbound, Said};
use janebot::desk::Target;
use janebot::desk::lookup::Again;
use janebot::job::{ChannelId, JobId, Outcome, RequesterId};
use janebot::journal::memory::Call;
use janebot::journal::outgoing::{Mark, OutgoingState};
use janebot::journal::{JobState, Journal};
use janebot::pool::{JobEvent, NotStarted, RunEnd, StopProof, Stopped};
use tokio::time::Instant;

fn stopped() -> RunEnd {
    let took = Duration::from_millis(40);
    RunEnd::Cancelled { stopped: Stopped { proof: StopProof::ProcessTable, status: Some(143), took } }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_marked_shown_and_answered_in_its_chat() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "hello").await;
    settled().await;
    assert_eq!(rig.chat.marks("m1"), [Mark::Heard].into());
    let ticket = rig.ticket().await;
    ticket.events.send(JobEvent::Queued { ahead: 2, reason: "all runners are busy".into(), wait: None }).unwrap();
    settled().await;
    assert_eq!(rig.chat.texts(), ["waiting for a runner (2 before you; wait unknown; all runners are busy)"]);
    answer(&ticket, "hi");
    settled().await;
    let texts = rig.chat.texts();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("Answered after"), "{texts:?}");
    assert!(texts[1].starts_with("hi\n\nNote: a note\n\namp · "), "{texts:?}");
    assert_eq!(rig.chat.marks("m1"), [Mark::Answered].into());
    assert!(rig.journal.open_effects(None).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_delivered_twice_is_answered_once_also_when_it_was_refused() {
    let mut rig = ChatRig::new().await;
    for _ in 0..2 {
        rig.says("m1", "U1", "hello").await;
        rig.says("m2", "U1", " ").await;
    }
    answer(&rig.ticket().await, "hi");
    settled().await;
    let texts = rig.chat.texts();
    assert_eq!(texts.iter().filter(|text| text.starts_with("hi")).count(), 1, "{texts:?}");
    assert_eq!(texts.iter().filter(|text| text.starts_with("The prompt is empty")).count(), 1, "{texts:?}");
    assert_eq!(rig.journal.recent_jobs(9).await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_not_recorded_is_not_acknowledged_and_runs_when_it_comes_again() {
    let mut rig = ChatRig::new().await;
    rig.journal.set_fault(|call| call == Call::Accept);
    assert!(!rig.desk.hear(rig.inbound("m1", "U1", "hello")).await);
    assert!(!rig.desk.hear(rig.inbound("m2", "U1", "")).await, "a refusal is recorded first, too");
    rig.journal.heal();
    rig.says("m1", "U1", "hello").await;
    answer(&rig.ticket().await, "hi");
    settled().await;
    assert!(rig.chat.texts().iter().any(|text| text.starts_with("hi")));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_journal_did_not_take_is_seen_when_it_does() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "hello").await;
    let ticket = rig.ticket().await;
    rig.journal.set_fault(|call| call == Call::End);
    answer(&ticket, "hi");
    settled().await;
    assert!(!rig.chat.texts().iter().any(|text| text.starts_with("hi")), "not before it is recorded");
    rig.journal.heal();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.chat.texts().iter().filter(|text| text.starts_with("hi")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn stop_acts_at_once_and_is_answered_itself() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "long work").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    rig.says("m2", "U1", "more work").await;
    rig.says("m3", "U1", "Stop!").await;
    ticket.cancel.cancelled().await;
    finish(&ticket, stopped());
    settled().await;
    let texts = rig.chat.texts();
    for part in [
        "Stopping 2 jobs.",
        "Cancelled: the agent ended with status 143, and no process of it is left",
        "nothing was run",
    ] {
        assert_eq!(texts.iter().filter(|text| text.contains(part)).count(), 1, "{part}: {texts:?}");
    }
    // The wish comes again when something else runs.
    rig.says("m4", "U1", "other work").await;
    let ticket = rig.ticket().await;
    rig.says("m3", "U1", "Stop!").await;
    settled().await;
    assert!(!ticket.cancel.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_stranger_can_not_stop_a_job_and_an_admin_can() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "long work").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    rig.says("m2", "U2", "stop").await;
    settled().await;
    assert!(!ticket.cancel.is_cancelled());
    assert!(rig.chat.texts().iter().any(|text| text.starts_with("Left 1 job of others alone")));
    let target = Target::Conversation(rig.conversation());
    let stopping = rig.desk.cancel(target.clone(), RequesterId::new("test:U2")).await.unwrap();
    assert_eq!((stopping.jobs, stopping.of_others), (0, 1));
    let stopping = rig.desk.cancel(target, RequesterId::new("test:ADMIN")).await.unwrap();
    assert_eq!((stopping.jobs, stopping.of_others), (1, 0));
    ticket.cancel.cancelled().await;
    finish(&ticket, stopped());
    settled().await;
    assert!(rig.chat.texts().iter().any(|text| text.starts_with("Cancelled by test:ADMIN: the agent ended")));
}

#[tokio::test(start_paused = true)]
async fn an_edit_before_the_start_changes_what_runs_and_one_after_it_stops_the_job() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "one").await;
    rig.says("m2", "U1", "two").await;
    let ticket = rig.ticket().await;
    rig.edits("m2", Some("second")).await;
    rig.edits("m1", Some("first")).await;
    ticket.cancel.cancelled().await;
    ticket.events.send(JobEvent::NotStarted(NotStarted::Cancelled)).unwrap();
    let ticket = rig.ticket().await;
    assert_eq!(ticket.spec.prompt, "first");
    start(&ticket);
    settled().await;
    rig.edits("m1", Some("first")).await;
    settled().await;
    assert!(!ticket.cancel.is_cancelled(), "the same text is no edit");
    rig.edits("m1", Some("fist")).await;
    ticket.cancel.cancelled().await;
    finish(&ticket, stopped());
    settled().await;
    let texts = rig.chat.texts();
    assert!(
        texts.iter().any(
            |text| text.contains("because the message was edited: the agent ended with status 143, and no process")
        ),
        "{texts:?}"
    );
    let ticket = rig.ticket().await;
    assert!(ticket.spec.prompt.ends_with("second"), "{}", ticket.spec.prompt);
    let row = rig.journal.job(&ticket.spec.job).await.unwrap().unwrap();
    assert_eq!(row.prompt, "second", "what runs after a crash is the new text as well");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_message_is_withdrawn_or_its_job_stopped() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "one").await;
    rig.says("m2", "U1", "two").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    rig.edits("m2", None).await;
    rig.edits("m1", None).await;
    ticket.cancel.cancelled().await;
    finish(&ticket, stopped());
    settled().await;
    let texts = rig.chat.texts();
    for part in
        ["because the message was deleted before the agent started", "because the message was deleted: the agent ended"]
    {
        assert_eq!(texts.iter().filter(|text| text.contains(part)).count(), 1, "{part}: {texts:?}");
    }
    rig.edits("m1", None).await;
    rig.edits("never heard", None).await;
}

#[tokio::test(start_paused = true)]
async fn messages_that_follow_quickly_are_one_prompt_with_one_answer() {
    let mut rig = ChatRig::with_debounce(Duration::from_millis(1500)).await;
    rig.says("m1", "U1", "one").await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    rig.says("m2", "U1", "two").await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    rig.says("m3", "U2", "three").await;
    let ticket = rig.ticket().await;
    assert_eq!(ticket.spec.prompt, "one\n\ntwo");
    answer(&ticket, "both");
    let ticket = rig.ticket().await;
    assert!(ticket.spec.prompt.ends_with("three"), "somebody else's is a prompt of its own");
    answer(&ticket, "drei");
    settled().await;
    let texts = rig.chat.texts();
    assert_eq!(texts.iter().filter(|text| text.contains("amp · ")).count(), 2, "{texts:?}");
    assert_eq!(rig.chat.marks("m2"), [Mark::Merged].into());
    let rows = rig.journal.recent_jobs(9).await.unwrap();
    let lead = rows.iter().find(|row| row.message_key == "m1").unwrap();
    let merged = rows.iter().find(|row| row.message_key == "m2").unwrap();
    assert!(matches!(&merged.outcome, Some(Outcome::Merged { into, .. }) if *into == lead.job));
}

#[tokio::test(start_paused = true)]
async fn a_lone_message_waits_for_company_no_longer_than_the_window() {
    let mut rig = ChatRig::with_debounce(Duration::from_millis(1500)).await;
    let began = Instant::now();
    rig.says("m1", "U1", "one").await;
    rig.ticket().await;
    assert_eq!(began.elapsed(), Duration::from_millis(1500));
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_what_runs_finish_and_leaves_what_waits_to_the_next_process() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "runs").await;
    let running = rig.ticket().await;
    start(&running);
    rig.says("m2", "U1", "is behind").await;
    rig.says_in("elsewhere", "m3", "U1", "waits").await;
    let waiting = rig.ticket().await;
    grant(&waiting);
    settled().await;
    let draining = rig.drain(Duration::from_secs(60));
    waiting.cancel.cancelled().await;
    waiting.events.send(JobEvent::NotStarted(NotStarted::Cancelled)).unwrap();
    settled().await;
    rig.says("m4", "U1", "is late").await;
    finish(&running, RunEnd::Agent(AgentResult::Answered { answer: "in time".into(), details: Details::default() }));
    assert_eq!(draining.await.unwrap(), 0);
    settled().await;
    let texts = rig.chat.texts();
    assert!(texts.iter().any(|text| text.starts_with("in time")), "{texts:?}");
    let open = rig.journal.open_jobs().await.unwrap();
    let left: Vec<_> = open.iter().map(|row| (row.message_key.as_str(), row.state)).collect();
    let accepted = JobState::Accepted;
    assert_eq!(left, [("m2", accepted), ("m3", accepted), ("m4", accepted)]);

    let mut next = rig.next_process().await;
    let mut prompts = Vec::new();
    for _ in 0..3 {
        let ticket = next.ticket().await;
        prompts.push(ticket.spec.prompt.rsplit('\n').next().unwrap().to_owned());
        answer(&ticket, "later");
    }
    prompts.sort();
    assert_eq!(prompts, ["is behind", "is late", "waits"]);
    settled().await;
    assert_eq!(next.chat.texts().iter().filter(|text| text.starts_with("later")).count(), 3);
    assert!(next.journal.open_jobs().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_what_ran_is_told_in_its_thread_and_its_progress_put_right() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "runs").await;
    let running = rig.ticket().await;
    rig.lease(&running.spec.job).await;
    start(&running);
    rig.says("m2", "U1", "waits").await;
    settled().await;
    assert!(rig.chat.texts().iter().any(|text| text.contains("is starting")), "{:?}", rig.chat.texts());
    let mut next = rig.crash().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let texts = next.chat.texts();
    assert!(texts.iter().any(|text| text.starts_with("Failed after") && text.contains("interrupted")), "{texts:?}");
    assert!(!texts.iter().any(|text| text.contains("is starting")), "{texts:?}");
    let told = texts.iter().filter(|text| text.contains("was interrupted while the agent ran")).count();
    assert_eq!(told, 1, "{texts:?}");
    assert_eq!(next.chat.marks("m1"), [Mark::Failed].into());
    let ticket = next.ticket().await;
    assert!(ticket.spec.prompt.ends_with("waits"));
    answer(&ticket, "here you are");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(next.chat.texts().iter().filter(|text| text.starts_with("here you are")).count(), 1);
    assert!(next.journal.open_effects(None).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waited_for_more_than_a_day_is_not_run_any_more() {
    let rig = ChatRig::new().await;
    rig.says("m1", "U1", "old").await;
    settled().await;
    let (journal, chat, world) = (rig.journal.clone(), rig.chat.clone(), rig.world.clone());
    rig.kill().await;
    tokio::time::sleep(Duration::from_secs(25 * 3600)).await;
    let next = ChatRig::start(journal, chat, world, Duration::ZERO).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(next.chat.texts().iter().any(|text| text.contains("was stopped for so long")), "{:?}", next.chat.texts());
    assert!(next.journal.open_jobs().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_leaves_alone_what_another_chat_is_owed() {
    let rig = ChatRig::new().await;
    rig.says("m1", "U1", "waits").await;
    settled().await;
    let (journal, world) = (rig.journal.clone(), rig.world.clone());
    rig.kill().await;
    let nobody = janebot::desk::debts::Debts::default();
    let found = janebot::desk::recovery::recover(&journal, &world, &nobody).await.unwrap();
    assert!(found.interrupted.is_empty() && found.accepted.is_empty());
    assert_eq!(journal.open_jobs().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_ends_a_job_that_everybody_forgot() {
    let mut rig = ChatRig::new().await;
    // A row that no conversation has: as a bug would leave it.
    let mut forgotten = rig.row("m9", "forgotten");
    forgotten.deadline = Some(rig.world.now() + jiff::SignedDuration::from_secs(600));
    rig.journal.accept(&forgotten).await.unwrap();
    rig.says("m1", "U1", "hello").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    tokio::time::sleep(Duration::from_secs(590)).await;
    assert_eq!(rig.journal.open_jobs().await.unwrap().len(), 2);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let row = rig.journal.job(&forgotten.job).await.unwrap().unwrap();
    assert_eq!(row.outcome.as_ref().and_then(Outcome::reason), Some("overdue"));
    assert!(rig.chat.texts().iter().any(|text| text.contains("lost track of this job")), "{:?}", rig.chat.texts());
    assert_eq!(rig.journal.open_jobs().await.unwrap().len(), 1, "what is in time goes on");
}

#[tokio::test(start_paused = true)]
async fn an_effect_that_the_chat_refuses_is_given_up_with_its_reason() {
    let mut rig = ChatRig::new().await;
    rig.chat.refuse("the channel is archived");
    rig.says("m1", "U1", "hello").await;
    let ticket = rig.ticket().await;
    answer(&ticket, "hi");
    settled().await;
    let effects = rig.journal.job_effects(&ticket.spec.job).await.unwrap();
    let answer = effects.iter().find(|row| row.outgoing.key.ends_with("answer/0")).unwrap();
    assert_eq!((answer.state, answer.why.as_deref()), (OutgoingState::GivenUp, Some("the channel is archived")));
}

#[tokio::test(start_paused = true)]
async fn an_outbox_that_dies_sends_nothing_twice_and_loses_nothing() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "hello").await;
    let ticket = rig.ticket().await;
    rig.chat.hang(true);
    answer(&ticket, "hi");
    settled().await;
    rig.kill_outbox();
    rig.chat.hang(false);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let texts = rig.chat.texts();
    assert_eq!(texts.iter().filter(|text| text.starts_with("hi")).count(), 1, "{texts:?}");
    assert!(rig.journal.open_effects(None).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_running_job_can_be_cancelled_by_a_button_and_a_failed_one_run_again_once() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "hello").await;
    let first = rig.ticket().await;
    start(&first);
    settled().await;
    assert_eq!(rig.chat.buttons("amp is starting"), [Action::Cancel]);
    let by = RequesterId::new("test:U1");
    let job = first.spec.job.clone();
    assert_eq!(rig.desk.again(&job, &by).await, Again::NotOver);
    let broke = AgentResult::Failed {
        message: "it broke".into(),
        answer_so_far: None,
        retryable: false,
        details: Details::default(),
    };
    finish(&first, RunEnd::Agent(broke));
    settled().await;
    assert_eq!(rig.chat.buttons("Failed after"), []);
    assert_eq!(rig.chat.buttons("it broke"), [Action::Retry, Action::Why]);
    let (stranger, here) = (RequesterId::new("test:U2"), ChannelId::new("test:C"));
    assert_eq!(rig.desk.why(&job, &stranger, &ChannelId::new("test:D")).await, "There is no such job.");
    let why = rig.desk.why(&job, &stranger, &here).await;
    assert!(
        why.contains("failed (agent_failed)") && why.contains("sent: a message") && !why.contains("hello"),
        "{why}"
    );

    assert_eq!(rig.desk.again(&job, &RequesterId::new("test:U2")).await, Again::NotYours);
    assert_eq!(rig.desk.again(&JobId::new("01none"), &by).await, Again::Unknown);
    assert_eq!(rig.desk.again(&job, &by).await, Again::Started);
    let second = rig.ticket().await;
    assert_eq!(second.spec.prompt.lines().last(), Some("hello"));
    assert_eq!(rig.desk.again(&job, &by).await, Again::Before(second.spec.job.clone()));
    answer(&second, "done");
    settled().await;
    assert_eq!(rig.chat.buttons("done"), [Action::Why]);
    assert_eq!(rig.chat.marks("m1"), [Mark::Answered, Mark::Failed].into(), "the marks are on the person's message");
    assert_eq!(rig.desk.again(&second.spec.job, &by).await, Again::NotFailed);
}

#[tokio::test(start_paused = true)]
async fn files_come_with_the_job_and_what_is_gone_is_a_note() {
    let mut rig = ChatRig::new().await;
    rig.chat.keep("https://files/1", "first");
    let file = |name: &str, url: &str| Attachment { name: name.into(), size: 5, url: url.into() };
    let files = vec![file("a.txt", "https://files/1"), file("../a.txt", "https://files/2")];
    assert!(rig.desk.hear(Inbound { files, ..rig.inbound("m1", "U1", "read them") }).await);
    let ticket = rig.ticket().await;
    let said = "read them\n\n(Files that came with this message are in ~/input: a.txt, 2-a.txt.)";
    assert_eq!(ticket.spec.prompt, said);
    let [first, second] = &ticket.spec.files[..] else { panic!("two files") };
    assert_eq!(first.source.fetch().await.unwrap(), "first");
    assert_eq!(second.source.fetch().await.unwrap_err(), "it was deleted");
    // The process dies before it runs: the next one has them still.
    let mut next = rig.crash().await;
    assert_eq!(next.ticket().await.spec.files.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_chat_says_was_said_before_is_the_history() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "one").await;
    answer(&rig.ticket().await, "eins");
    settled().await;
    rig.says("m2", "U1", "two").await;
    let ticket = rig.ticket().await;
    assert!(ticket.spec.prompt.contains("eins"), "the journal's, where the chat is not to be asked");
    answer(&ticket, "zwei");
    settled().await;
    rig.chat.remember(vec![Said { from: Some(RequesterId::new("test:U7")), text: "lunch at noon".into() }]);
    rig.says("m3", "U1", "three").await;
    let ticket = rig.ticket().await;
    assert!(ticket.spec.prompt.contains("lunch at noon") && !ticket.spec.prompt.contains("eins"));
    // While it is being asked, the job can be stopped.
    answer(&ticket, "drei");
    settled().await;
    rig.chat.hang(true);
    rig.says("m4", "U1", "four").await;
    rig.says("m5", "U1", "stop").await;
    settled().await;
    rig.chat.hang(false);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(rig.chat.texts().iter().any(|text| text.contains("nothing was run")), "{:?}", rig.chat.texts());
}

#[tokio::test(start_paused = true)]
async fn it_is_shown_that_jane_is_at_work_as_long_as_she_is() {
    let mut rig = ChatRig::new().await;
    rig.says("m1", "U1", "hello").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let typed = rig.chat.typing();
    assert!((6..=9).contains(&typed), "{typed}");
    answer(&ticket, "hi");
    settled().await;
    let typed = rig.chat.typing();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.chat.typing(), typed);
}
