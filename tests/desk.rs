//! The desk and its conversations against a pool that the test plays, on a paused clock.

#[path = "desk/chat.rs"]
mod chat;
#[path = "doubles/desk_rig.rs"]
mod desk_rig;
#[path = "doubles/played_chat.rs"]
mod played_chat;

use std::time::Duration;

use desk_rig::{QUEUE_TIMEOUT, RUN_TIMEOUT, Rig, answer, finish, grant, start};
use janebot::agent::{AgentEvent, AgentResult, Details};
use janebot::chat::Progress;
use janebot::desk::conversation::IDLE_AFTER;
use janebot::desk::debts::Debts;
use janebot::desk::{Target, recovery};
use janebot::job::{ConversationId, MAX_PROMPT_BYTES, Outcome, RequesterId};
use janebot::journal::memory::{Call, MemoryJournal};
use janebot::journal::{JobState, Journal, RunnerRow};
use janebot::pool::{JobEvent, NotStarted, RunEnd, StopProof, Stopped, Ticket};
use janebot::sprites::CheckpointId;
use tokio::time::{Instant, timeout};

fn answered(text: &str) -> Outcome {
    Outcome::Answered { answer: text.into() }
}

fn conversation(id: &str) -> Target {
    Target::Conversation(ConversationId::new(id))
}

fn message_of(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Answered { answer } => answer,
        Outcome::Failed { message, .. }
        | Outcome::Refused { message, .. }
        | Outcome::Cancelled { message }
        | Outcome::Merged { message, .. } => message,
    }
}

fn lose(ticket: Ticket) {
    drop(ticket);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_recorded_acknowledged_run_and_answered_once() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "hello").await;
    let job = told.accepted().await;
    assert_eq!(rig.journal.job(&job).await.unwrap().unwrap().state, JobState::Accepted);
    let ticket = rig.ticket().await;
    assert_eq!((ticket.spec.prompt.as_str(), ticket.spec.run_timeout), ("hello", RUN_TIMEOUT));
    ticket.events.send(JobEvent::Queued { ahead: 2, reason: "all runners are busy".into(), wait: None }).unwrap();
    start(&ticket);
    for event in [
        AgentEvent::Thread("t".into()),
        AgentEvent::Says("I look\nat \u{1b}[2Jit".into()),
        AgentEvent::ToolStarted { id: "1".into(), name: "Bash".into(), summary: "ls".into() },
        AgentEvent::ToolEnded { id: "1".into(), is_error: false },
    ] {
        ticket.events.send(JobEvent::Agent(event)).unwrap();
    }
    let seen = [
        Progress::Queued { ahead: 2, reason: "all runners are busy".into(), wait: None },
        Progress::Checking { runner: "jane-runner-0".into() },
        Progress::Working { text: "amp is starting".into() },
        Progress::Working { text: "I look at ␛[2Jit".into() },
        Progress::Working { text: "Bash: ls".into() },
    ];
    for progress in seen {
        assert_eq!(told.progress().await, progress);
    }
    finish(&ticket, RunEnd::Agent(AgentResult::Answered { answer: "hi".into(), details: Details::default() }));
    let report = told.ended().await;
    assert_eq!(report.outcome, answered("hi"));
    assert_eq!((report.timings.queue_ms, report.timings.run_ms), (Some(5), Some(1500)));
    assert_eq!(report.receipt.as_ref().map(|receipt| receipt.fence), Some(1));
    let row = rig.journal.job(&job).await.unwrap().unwrap();
    assert_eq!((row.state, row.outcome, row.receipt), (JobState::Ended, Some(answered("hi")), report.receipt));
    assert!(rig.debts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_conversation_run_in_order_and_those_of_another_beside_them() {
    let mut rig = Rig::new().await;
    let mut first = rig.send("c", "one").await;
    let mut second = rig.send("c", "two").await;
    let mut third = rig.send("c", "three").await;
    let mut other = rig.send("d", "other").await;
    for told in [&mut second, &mut third] {
        told.accepted().await;
        assert_eq!(told.progress().await, Progress::Behind);
    }
    let (one, beside) = (rig.ticket().await, rig.ticket().await);
    assert_eq!((one.spec.prompt.as_str(), beside.spec.prompt.as_str()), ("one", "other"));
    answer(&beside, "b");
    assert_eq!(other.ended().await.outcome, answered("b"));
    for (ticket, told, text) in
        [(Some(one), &mut first, "one"), (None, &mut second, "two"), (None, &mut third, "three")]
    {
        let ticket = match ticket {
            Some(ticket) => ticket,
            None => rig.ticket().await,
        };
        assert!(ticket.spec.prompt.ends_with(text), "{}", ticket.spec.prompt);
        answer(&ticket, text);
        assert_eq!(told.ended().await.outcome, answered(text));
    }
}

#[tokio::test(start_paused = true)]
async fn follow_ups_are_answered_after_an_error() {
    let mut rig = Rig::new().await;
    let mut first = rig.send("c", "one").await;
    let mut second = rig.send("c", "two").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    let nothing = AgentResult::NoResult { message: "exit status 1".into(), details: Details::default() };
    finish(&ticket, RunEnd::Agent(nothing));
    assert_eq!(first.ended().await.outcome.reason(), Some("no_result"));
    let ticket = rig.ticket().await;
    assert!(ticket.spec.prompt.contains("[no answer: "), "the agent knows that the first had no answer");
    answer(&ticket, "ok");
    assert_eq!(second.ended().await.outcome, answered("ok"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_told_the_conversation_so_far_and_the_shell_is_not() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "my name is Ada").await;
    answer(&rig.ticket().await, "noted");
    told.ended().await;
    let _amp = rig.send("c", "who am I?").await;
    let ticket = rig.ticket().await;
    let prompt = &ticket.spec.prompt;
    assert!(prompt.contains(r#"{"from":"terminal:alice","text":"my name is Ada"}"#), "{prompt}");
    assert!(prompt.contains(r#"{"from":"janebot","text":"noted"}"#) && prompt.ends_with("who am I?"), "{prompt}");
    answer(&ticket, "Ada");
    let (mut shell, _told) = rig.message("c", "echo hi");
    shell.agent = Some("shell".into());
    rig.desk.send(shell).await;
    assert_eq!(rig.ticket().await.spec.prompt, "echo hi");
}

#[tokio::test(start_paused = true)]
async fn an_idle_conversation_goes_and_comes_back_with_its_history() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "my name is Ada").await;
    answer(&rig.ticket().await, "noted");
    told.ended().await;
    assert_eq!(rig.desk.status().await.unwrap().conversations, 1);
    tokio::time::sleep(IDLE_AFTER + Duration::from_secs(1)).await;
    assert_eq!(rig.desk.status().await.unwrap().conversations, 0);
    let _told = rig.send("c", "who am I?").await;
    assert!(rig.ticket().await.spec.prompt.contains("my name is Ada"));
}

#[tokio::test(start_paused = true)]
async fn a_conversation_in_use_does_not_go_when_its_time_comes() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    answer(&rig.ticket().await, "1");
    told.ended().await;
    tokio::time::sleep(IDLE_AFTER - Duration::from_secs(1)).await;
    let mut told = rig.send("c", "two").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    tokio::time::sleep(Duration::from_secs(60)).await;
    finish(&ticket, RunEnd::Agent(AgentResult::Answered { answer: "2".into(), details: Details::default() }));
    assert_eq!(told.ended().await.outcome, answered("2"));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_twice_is_acknowledged_and_run_once() {
    let mut rig = Rig::new().await;
    let (inbound, mut told) = rig.message("c", "once");
    let (mut again, mut told_again) = rig.message("c", "once");
    again.key.clone_from(&inbound.key);
    rig.desk.send(inbound).await;
    rig.desk.send(again).await;
    let job = told.accepted().await;
    assert_eq!(told_again.accepted().await, job);
    assert!(told_again.0.recv().await.is_none(), "the one outcome goes to the first");
    answer(&rig.ticket().await, "ok");
    told.ended().await;
    assert_eq!(rig.journal.recent_jobs(10).await.unwrap().len(), 1);
    assert!(rig.debts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_is_told_why_and_leaves_nothing_behind() {
    let mut rig = Rig::new().await;
    let long = "x".repeat(MAX_PROMPT_BYTES + 1);
    for (text, agent, reason) in
        [("", None, "empty_prompt"), (long.as_str(), None, "prompt_too_large"), ("hi", Some("gpt"), "unknown_agent")]
    {
        let (mut inbound, mut told) = rig.message("c", text);
        inbound.agent = agent.map(Into::into);
        rig.desk.send(inbound).await;
        let report = told.ended().await;
        assert_eq!((report.outcome.word(), report.outcome.reason()), ("refused", Some(reason)));
    }
    let (mut stranger, mut told) = rig.message("c", "hi");
    stranger.requester = RequesterId::new("slack:U1");
    rig.desk.send(stranger).await;
    assert_eq!(told.ended().await.outcome.reason(), Some("not_allowed"));
    assert!(rig.journal.recent_jobs(10).await.unwrap().is_empty());
    assert_eq!(rig.desk.status().await.unwrap().conversations, 0);
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_recorded_is_not_run_and_the_next_message_is() {
    let mut rig = Rig::new().await;
    rig.journal.set_fault(|call| call == Call::Accept);
    let mut told = rig.send("c", "one").await;
    let report = told.ended().await;
    assert_eq!(report.outcome.reason(), Some("journal"));
    assert!(message_of(&report.outcome).contains("nothing was run"));
    rig.journal.heal();
    let mut told = rig.send("c", "two").await;
    answer(&rig.ticket().await, "ok");
    assert_eq!(told.ended().await.outcome, answered("ok"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_can_not_be_recorded_is_told_with_a_note_and_recorded_when_the_journal_works_again() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let ticket = rig.ticket().await;
    rig.journal.set_fault(|call| call == Call::End);
    answer(&ticket, "hi");
    let report = told.ended().await;
    assert_eq!(report.outcome, answered("hi"));
    assert!(report.notes.iter().any(|note| note.contains("could not be recorded")), "{:?}", report.notes);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(rig.journal.open_jobs().await.unwrap().len(), 1, "the journal still fails");
    rig.journal.heal();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let row = rig.journal.job(&report.job).await.unwrap().unwrap();
    assert_eq!((row.outcome, row.ended_at), (Some(answered("hi")), Some(report.ended_at)));
    assert!(rig.debts.all_recorded());
}

#[tokio::test(start_paused = true)]
async fn a_history_that_can_not_be_read_stops_nothing() {
    let mut rig = Rig::new().await;
    rig.journal.set_fault(|call| call == Call::RecentJobs);
    let mut told = rig.send("c", "one").await;
    answer(&rig.ticket().await, "hi");
    assert_eq!(told.ended().await.outcome, answered("hi"));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_a_runner_is_cancelled_at_once() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let job = told.accepted().await;
    let ticket = rig.ticket().await;
    assert_eq!(rig.cancel(Target::Job(job.clone())).await, 1);
    assert_eq!(rig.cancel(Target::Job(job.clone())).await, 1, "cancelling twice is fine");
    assert_eq!(told.progress().await, Progress::Cancelling);
    assert_eq!(rig.withdrawn().await, job);
    assert!(ticket.cancel.is_cancelled());
    ticket.events.send(JobEvent::NotStarted(NotStarted::Cancelled)).unwrap();
    let report = told.ended().await;
    assert!(message_of(&report.outcome).contains("nothing was run"), "{:?}", report.outcome);
    assert_eq!(rig.cancel(Target::Job(job)).await, 0, "what has ended is not meant");
}

#[tokio::test(start_paused = true)]
async fn a_running_job_is_cancelled_with_what_was_verified() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    told.accepted().await;
    rig.cancel(conversation("c")).await;
    ticket.cancel.cancelled().await;
    let took = Duration::from_millis(120);
    let stopped = Stopped { proof: StopProof::ProcessTable, status: Some(143), took };
    finish(&ticket, RunEnd::Cancelled { stopped });
    let report = told.ended().await;
    let message =
        "Cancelled: the agent ended with status 143, and no process of it is left on its machine (seen after 120ms).";
    assert_eq!(report.outcome, Outcome::Cancelled { message: message.into() });
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_there_before_the_cancellation_is_told() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let ticket = rig.ticket().await;
    rig.cancel(conversation("c")).await;
    answer(&ticket, "done");
    assert_eq!(told.ended().await.outcome, answered("done"));
}

#[tokio::test(start_paused = true)]
async fn a_job_behind_another_is_cancelled_without_touching_that_one() {
    let mut rig = Rig::new().await;
    let mut first = rig.send("c", "one").await;
    let mut second = rig.send("c", "two").await;
    let behind = second.accepted().await;
    let ticket = rig.ticket().await;
    let stopping = rig.desk.cancel(Target::Job(behind), RequesterId::new("terminal:bob")).await.unwrap();
    assert_eq!(stopping.jobs, 1);
    let report = second.ended().await;
    let message = "Cancelled by terminal:bob before the agent started; nothing was run.";
    assert_eq!(report.outcome, Outcome::Cancelled { message: message.into() });
    assert!(!ticket.cancel.is_cancelled());
    answer(&ticket, "ok");
    assert_eq!(first.ended().await.outcome, answered("ok"));
}

#[tokio::test(start_paused = true)]
async fn a_message_is_cancelled_before_it_is_recorded() {
    let mut rig = Rig::new().await;
    let (inbound, mut told) = rig.message("c", "one");
    rig.desk.send(inbound).await;
    assert_eq!(rig.cancel(conversation("c")).await, 1);
    loop {
        tokio::select! {
            biased;
            report = told.ended() => {
                assert_eq!(report.outcome.word(), "cancelled");
                break;
            }
            ticket = rig.ticket() => {
                ticket.cancel.cancelled().await;
                ticket.events.send(JobEvent::NotStarted(NotStarted::Cancelled)).unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_that_nobody_confirms_ends_with_an_honest_sentence() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    told.accepted().await;
    let began = Instant::now();
    rig.cancel(conversation("c")).await;
    let report = told.ended().await;
    assert_eq!(report.outcome.reason(), Some("outcome_unknown"));
    assert!(message_of(&report.outcome).contains("not confirmed within 1m"), "{:?}", report.outcome);
    assert!(began.elapsed() < Duration::from_secs(61));
    assert!(ticket.events.is_closed(), "the runner sees that nobody waits");
}

#[tokio::test(start_paused = true)]
async fn a_ticket_lost_before_the_start_is_handed_in_again_and_the_job_runs_once() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    lose(rig.ticket().await);
    let ticket = rig.ticket().await;
    grant(&ticket);
    lose(ticket);
    answer(&rig.ticket().await, "third time");
    assert_eq!(told.ended().await.outcome, answered("third time"));
}

#[tokio::test(start_paused = true)]
async fn a_ticket_lost_again_and_again_ends_the_job() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    for _ in 0..4 {
        lose(rig.ticket().await);
    }
    assert_eq!(told.ended().await.outcome.reason(), Some("no_runner"));
    let more = timeout(Duration::from_secs(3600), rig.ticket()).await;
    assert!(more.is_err(), "it is not handed in a fifth time");
}

#[tokio::test(start_paused = true)]
async fn a_runner_lost_after_the_start_interrupts_the_job_and_nothing_is_repeated() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    lose(ticket);
    let report = told.ended().await;
    assert_eq!(report.outcome.reason(), Some("interrupted"));
    assert!(message_of(&report.outcome).contains("look before you send this again"), "{:?}", report.outcome);
    assert!(report.receipt.is_some(), "it did run on a clean machine");
    let mut next = rig.send("c", "two").await;
    let ticket = rig.ticket().await;
    assert!(ticket.spec.prompt.ends_with("two"));
    answer(&ticket, "ok");
    assert_eq!(next.ended().await.outcome, answered("ok"));
}

#[tokio::test(start_paused = true)]
async fn a_ticket_that_comes_back_says_why() {
    let mut rig = Rig::new().await;
    for (why, word, reason) in [
        (NotStarted::QueueFull { limit: 3 }, "refused", "queue_full"),
        (NotStarted::QueueTimeout { reason: "all runners are busy".into() }, "failed", "queue_timeout"),
        (NotStarted::NoRunner { message: "disk full".into() }, "failed", "no_runner"),
    ] {
        let mut told = rig.send("c", "one").await;
        rig.ticket().await.events.send(JobEvent::NotStarted(why)).unwrap();
        let report = told.ended().await;
        assert_eq!((report.outcome.word(), report.outcome.reason()), (word, Some(reason)));
        let row = rig.journal.job(&report.job).await.unwrap().unwrap();
        assert_eq!(row.outcome, Some(report.outcome));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_pool_the_wait_ends_with_the_queue_timeout() {
    let mut rig = Rig::new().await;
    rig.pool_actor.set(None);
    let mut told = rig.send("c", "one").await;
    let began = Instant::now();
    let report = told.ended().await;
    assert_eq!(report.outcome.reason(), Some("queue_timeout"));
    assert_eq!(began.elapsed().as_secs(), QUEUE_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_never_answers_is_given_up() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let _silent = rig.ticket().await;
    assert_eq!(told.ended().await.outcome.reason(), Some("queue_timeout"));
    let mut told = rig.send("c", "two").await;
    let silent = rig.ticket().await;
    start(&silent);
    assert_eq!(told.ended().await.outcome.reason(), Some("outcome_unknown"));
}

#[tokio::test(start_paused = true)]
async fn a_conversation_that_dies_ends_its_jobs_and_the_next_message_finds_a_fresh_one() {
    let mut rig = Rig::new().await;
    let mut first = rig.send("c", "one").await;
    let mut second = rig.send("c", "two").await;
    first.accepted().await;
    second.accepted().await;
    let ticket = rig.ticket().await;
    start(&ticket);
    for child in rig.desk_ref().get_cell().get_children() {
        child.kill();
    }
    for told in [&mut first, &mut second] {
        let report = told.ended().await;
        assert_eq!(report.outcome.reason(), Some("interrupted"));
        let row = rig.journal.job(&report.job).await.unwrap().unwrap();
        assert_eq!(row.state, JobState::Ended);
    }
    ticket.events.closed().await;
    let mut next = rig.send("c", "three").await;
    answer(&rig.ticket().await, "ok");
    assert_eq!(next.ended().await.outcome, answered("ok"));
}

#[tokio::test(start_paused = true)]
async fn a_desk_that_dies_leaves_no_message_without_an_outcome() {
    let mut rig = Rig::new().await;
    let mut running = rig.send("c", "one").await;
    start(&rig.ticket().await);
    let mut waiting = rig.send("c", "two").await;
    waiting.accepted().await;
    let mut unheard = rig.send("d", "three").await;
    rig.desk_ref().kill();
    rig.desk_ref().wait(None).await.unwrap();
    let (inbound, mut later) = rig.message("c", "four");
    let sending = tokio::spawn({
        let desk = rig.desk.clone();
        async move { desk.send(inbound).await }
    });
    rig.start_desk().await;
    for told in [&mut running, &mut waiting, &mut unheard] {
        assert_eq!(told.ended().await.outcome.reason(), Some("interrupted"));
    }
    sending.await.unwrap();
    let ticket = loop {
        let ticket = rig.ticket().await;
        if ticket.spec.prompt.ends_with("four") {
            break ticket;
        }
    };
    answer(&ticket, "ok");
    assert_eq!(later.ended().await.outcome, answered("ok"));
    assert!(rig.journal.open_jobs().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn draining_refuses_what_is_new_and_waits_for_what_is_there() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let ticket = rig.ticket().await;
    let draining = tokio::spawn({
        let desk = rig.desk.clone();
        async move { desk.drain(Instant::now() + Duration::from_secs(60)).await }
    });
    tokio::task::yield_now().await;
    let mut late = rig.send("c", "two").await;
    assert_eq!(late.ended().await.outcome.reason(), Some("draining"));
    answer(&ticket, "ok");
    assert_eq!(told.ended().await.outcome, answered("ok"));
    assert_eq!(draining.await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_at_its_deadline_and_stopping_tells_those_who_wait() {
    let mut rig = Rig::new().await;
    let mut told = rig.send("c", "one").await;
    let ticket = rig.ticket().await;
    start(&ticket);
    let began = Instant::now();
    assert_eq!(rig.desk.drain(began + Duration::from_secs(5)).await, 1);
    assert_eq!(began.elapsed().as_secs(), 5);
    let desk = rig.desk_actor.follow().get().unwrap();
    rig.desk_actor.set(None);
    desk.stop(None);
    desk.wait(None).await.unwrap();
    let report = told.ended().await;
    assert_eq!(report.outcome.reason(), Some("interrupted"));
    assert!(rig.journal.open_jobs().await.unwrap().is_empty());
    ticket.events.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_desk_that_has_stopped_for_good_is_refused() {
    let mut rig = Rig::new().await;
    let (inbound, mut told) = rig.message("c", "one");
    let desk = rig.desk.clone();
    rig.desk_ref().stop(None);
    rig.desk_ref().wait(None).await.unwrap();
    drop(rig);
    desk.send(inbound).await;
    assert_eq!(told.ended().await.outcome.reason(), Some("draining"));
}

#[tokio::test(start_paused = true)]
async fn a_flood_in_one_conversation_is_refused_at_its_limit() {
    let mut rig = Rig::new().await;
    let mut kept = Vec::new();
    for n in 0..32 {
        kept.push(rig.send("c", &format!("{n}")).await);
    }
    assert_eq!(rig.send("c", "one too many").await.ended().await.outcome.reason(), Some("queue_full"));
    assert_eq!(rig.cancel(conversation("c")).await, 32);
}

#[tokio::test(start_paused = true)]
async fn a_new_process_ends_what_an_earlier_one_left_open() {
    let journal = MemoryJournal::new();
    let mut rig = Rig::with_journal(journal.clone()).await;
    let waiting = rig.send("c", "fix the tests").await.accepted().await;
    let running = rig.send("d", "write a poem").await.accepted().await;
    let runner = RunnerRow {
        runner: "jane-runner-0".into(),
        sprite_id: "sprite-1".into(),
        checkpoint: CheckpointId::new("v1").unwrap(),
        fingerprint: "f".into(),
        dirty: true,
        last_job: None,
        canary: None,
        boot: "b1".into(),
        fence: 0,
    };
    journal.built(&runner).await.unwrap();
    journal.lease(&running, "jane-runner-0", 1, "canary", rig.world.now()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(130)).await;
    let ended = recovery::recover(&journal, &rig.world, &Debts::default()).await.unwrap().interrupted;
    let jobs: Vec<_> = ended.iter().map(|ended| (&ended.job, ended.started)).collect();
    assert_eq!(jobs, [(&waiting, false), (&running, true)]);
    assert!(ended[0].message.contains("of 2m ago (“fix the tests”) had not started"), "{}", ended[0].message);
    assert!(ended[1].message.contains("was interrupted when janebot stopped"), "{}", ended[1].message);
    assert!(journal.open_jobs().await.unwrap().is_empty());
    let again = recovery::recover(&journal, &rig.world, &Debts::default()).await.unwrap();
    assert!(again.interrupted.is_empty(), "a second time there is nothing");
}
