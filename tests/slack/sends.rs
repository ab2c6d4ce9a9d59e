//! Answers that Slack does not want, or does not confirm: each is seen once.

use std::time::Duration;

use crate::fake_slack::{ANN, DIRECT, FakeSlack, Fault, GENERAL};
use crate::service::Service;

fn answers(fake: &FakeSlack, channel: &str, ts: &str, words: &str) -> usize {
    fake.own_in(channel, ts).iter().filter(|message| message.shown().starts_with(words)).count()
}

#[tokio::test]
async fn every_call_may_be_limited_or_lost_and_all_is_seen_once() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    for method in ["reactions.add", "reactions.remove", "chat.postMessage", "files.getUploadURLExternal"] {
        fake.fault(method, Fault::RateLimited(1));
    }
    fake.fault("reactions.add", Fault::LostAfter);
    fake.fault("reactions.remove", Fault::Status(502));
    fake.fault_on("chat.postMessage", "precious", Fault::LostAfter);
    fake.fault("conversations.replies", Fault::Status(503));
    fake.fault("upload", Fault::Status(502));
    fake.fault("files.completeUploadExternal", Fault::LostAfter);
    let ts = fake.ask(GENERAL, ANN, "echo precious; echo x > ~/output/only.txt", None);
    fake.reactions(GENERAL, &ts, &["white_check_mark"]).await;
    assert_eq!(answers(&fake, GENERAL, &ts, "precious"), 1, "{}", fake.story());
    let files = fake.own_in(GENERAL, &ts).iter().flat_map(|message| message.files.clone()).count();
    assert_eq!(files, 1, "{}", fake.story());
    assert!(fake.state().faults.is_empty(), "each was met: {:?}", fake.state().faults);
    assert_eq!(fake.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn an_answer_that_was_written_when_the_process_was_killed_is_not_written_again() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    fake.fault_on("chat.postMessage", "survivor", Fault::SlowAfter(Duration::from_secs(60)));
    let ts = fake.ask(GENERAL, ANN, "echo survivor", None);
    fake.answer_with(GENERAL, &ts, "survivor").await;
    service.kill();
    fake.connected(0).await;
    assert!(service.start().await);
    fake.reactions(GENERAL, &ts, &["white_check_mark"]).await;
    assert_eq!(answers(&fake, GENERAL, &ts, "survivor"), 1, "{}", fake.story());
    // The thread is still Jane's.
    let follow = fake.say(GENERAL, ANN, "echo once more", Some(&ts));
    fake.reactions(GENERAL, &follow, &["white_check_mark"]).await;
}

#[tokio::test]
async fn a_message_that_was_heard_before_a_kill_is_answered_after_it() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake).with("DEBOUNCE", "5s");
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    let ts = fake.say(DIRECT, ANN, "echo kept", None);
    fake.until("the acknowledgement", |state| (!state.acks.is_empty()).then_some(())).await;
    service.kill();
    fake.connected(0).await;
    assert!(service.start().await);
    fake.answer_with(DIRECT, &ts, "kept").await;
    fake.reactions(DIRECT, &ts, &["white_check_mark"]).await;
}

#[tokio::test]
async fn long_and_hostile_answers_arrive_whole_and_harmless() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    let script = "for n in $(seq 1 400); do echo \"$n <!here> & <@UANN> <https://evil.test|https://bank.test>\"; done";
    let ts = fake.say(DIRECT, ANN, &crate::fake_slack::escaped(script), None);
    fake.reactions(DIRECT, &ts, &["white_check_mark"]).await;
    let file = fake.state().files.values().find(|file| file.name == "answer.md").cloned().expect("it is a file");
    assert!(String::from_utf8(file.bytes.unwrap()).unwrap().contains("400 <!here>"));
    let medium = "for n in $(seq 1 120); do echo \"$n <&><&><&><&><&><&>\"; done; echo '| a | b |'; echo '|--|--|'; echo '| 1 | 2 |'";
    let ts = fake.say(DIRECT, ANN, &crate::fake_slack::escaped(medium), None);
    fake.reactions(DIRECT, &ts, &["white_check_mark"]).await;
    let all: String = fake.own_in(DIRECT, &ts).iter().map(|message| message.shown() + "\n").collect();
    for n in 1..=120 {
        assert!(all.contains(&format!("{n} <&><&>")), "line {n} is missing");
    }
    assert!(all.contains("a │ b"), "{all}");
    assert_eq!(fake.complaints(), Vec::<String>::new());
}
