//! Stopping a job: what ends, what is said of it, and that nothing of it is heard afterwards. The real service on a
//! paused clock, with an in-memory cloud.

use std::time::Duration;

use janebot::chat::Progress;
use janebot::desk::Target;
use janebot::job::{ConversationId, Outcome, RequesterId};
use janebot::journal::memory::MemoryJournal;
use janebot::world::World;
use tokio::time::{Instant, sleep};

use crate::chat::{Chats, Message, Told};
use crate::doubles::memory_sprites::MemorySprites;
use crate::doubles::memory_sprites::faults::{Fault, FaultPlan};
use crate::process::Process;

/// A script that is stopped five seconds after it began: what was told, and how long the stop took.
async fn stopped(commands: &str, faults: FaultPlan) -> (Told, Duration) {
    let world = World::seeded(1);
    let cloud = MemorySprites::new(world.clone(), faults);
    let journal = MemoryJournal::new();
    let process =
        Process::start("d", 1, 1, cloud.client("process"), journal, janebot::chat::Chats::default(), &world).await;
    let chats = Chats::new(cloud.clone());
    let script = format!("# message 0\n{commands}");
    let message = Message { number: 0, user: 0, conversation: 0, platform: "terminal", script, answer: None };
    process.desk.send(chats.inbound(&message)).await;
    while cloud.runs().is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(5)).await;
    let target = Target::Conversation(ConversationId::new("terminal:c0"));
    let asked = Instant::now();
    assert_eq!(
        process.desk.cancel(target, RequesterId::new("terminal:u0")).await.map(|stopping| stopping.jobs),
        Some(1)
    );
    while chats.told(&message.key()).ended.is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    let took = asked.elapsed();
    // Whatever is late has time to come.
    sleep(Duration::from_secs(120)).await;
    (chats.told(&message.key()), took)
}

fn cancelled(told: &Told) -> &str {
    let [report] = &told.ended[..] else { panic!("one outcome, not {:?}", told.ended) };
    assert_eq!(told.wrong, [""; 0]);
    match &report.outcome {
        Outcome::Cancelled { message } => message,
        other => panic!("cancelled, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_obeys_is_seen_to_be_gone_by_the_process_table() {
    let (told, took) = stopped("hang", FaultPlan::none()).await;
    let message = cancelled(&told);
    assert!(message.contains("with status 143") && message.contains("no process of it is left"), "{message}");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_does_not_obey_is_killed_after_its_grace() {
    let (told, took) = stopped("ignore-term\nhang", FaultPlan::none()).await;
    let message = cancelled(&told);
    assert!(message.contains("with status 137") && message.contains("no process of it is left"), "{message}");
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(30), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_it_left_in_the_background_is_never_called_gone_before_it_is() {
    let (told, _) = stopped("daemon\nhang", FaultPlan::none()).await;
    let message = cancelled(&told);
    assert!(message.contains("its session is gone") && message.contains("is wiped"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_kill_that_did_nothing_is_told_as_what_it_is() {
    let (told, _) = stopped("hang", FaultPlan::none().with(Fault::KillIgnored, 1.0)).await;
    let message = cancelled(&told);
    assert!(message.contains("its end was not seen within") && message.contains("is wiped"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn what_a_job_says_while_it_is_being_stopped_is_heard_by_nobody() {
    let chatter = "echo talking\nsleep 1\n".repeat(60);
    let (told, _) = stopped(&format!("ignore-term\n{chatter}"), FaultPlan::none()).await;
    cancelled(&told);
    let talking = Progress::Working { text: "talking".into() };
    assert!(told.progress.contains(&talking), "it is heard before: {:?}", told.progress);
    let after = told.progress.iter().skip_while(|progress| **progress != Progress::Cancelling).skip(1);
    assert_eq!(after.collect::<Vec<_>>(), Vec::<&Progress>::new());
}
