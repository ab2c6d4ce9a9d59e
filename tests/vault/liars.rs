//! Providers and streams that lie about what was used, and answers that hold the key.

use std::time::Duration;

use janebot::config::AgentKind;
use janebot::vault::budget::{Budget, Reached};
use tokio::time::timeout;

use crate::fake_provider::{FakeProvider, Play, json, ok};
use crate::rig::{KEY, MESSAGES, Rig, status};

const EVENTS: &str = "text/event-stream";

fn tokens(limit: u64) -> Budget {
    Budget { tokens: Some(limit), ..Budget::default() }
}

#[tokio::test]
async fn a_claim_of_too_much_ends_the_job_and_one_of_too_little_does_not_save_it() {
    let over = "data: {\"usage\":{\"input_tokens\":5,\"output_tokens\":1000000}}\n\n";
    let provider = FakeProvider::start(Play::Endless(ok(EVENTS, over), "data: more\n\n".into())).await;
    let rig = Rig::new(&provider.url).await;
    let pass = rig.pass_with(AgentKind::Claude, tokens(1000));
    let answer = rig.ask(&pass, MESSAGES, "{}").await;
    assert!(!answer.ends_with("0\r\n\r\n"), "the stream is cut");
    timeout(Duration::from_secs(5), pass.limit_reached()).await.expect("the runner is told");
    assert_eq!(pass.reached(), Some(Reached::Tokens { limit: 1000 }));
    let next = rig.ask(&pass, MESSAGES, "{}").await;
    assert!(status(&next) == "403" && next.contains("MAX_TOKENS_PER_JOB"), "{next}");

    let under = ok(EVENTS, "data: {\"usage\":{\"input_tokens\":0,\"output_tokens\":0}}\n\n");
    provider.play(Play::Endless(under, format!("data: {}\n\n", "x".repeat(1000))));
    let pass = rig.pass_with(AgentKind::Claude, tokens(1000));
    let answer = rig.ask(&pass, MESSAGES, "{}").await;
    assert!(answer.len() > 100_000 && answer.len() < 2_000_000, "cut after {} bytes", answer.len());
    assert_eq!(pass.reached(), Some(Reached::Tokens { limit: 1000 }));
    provider.was_left().await;
}

#[tokio::test]
async fn an_answer_without_usage_is_charged_by_its_size() {
    let provider = FakeProvider::start(Play::Bytes(json(&format!("{{\"text\":\"{}\"}}", "x".repeat(4000))))).await;
    let rig = Rig::new(&provider.url).await;
    let pass = rig.pass_with(AgentKind::Claude, tokens(1500));
    assert_eq!(status(&rig.ask(&pass, MESSAGES, &"y".repeat(400)).await), "200");
    assert!((1100..1110).contains(&pass.spent().tokens.total()), "{:?}", pass.spent());
    // The next one may begin, since something is left, and is the last.
    rig.ask(&pass, MESSAGES, &"y".repeat(4000)).await;
    assert_eq!(status(&rig.ask(&pass, MESSAGES, "{}").await), "403");
}

#[tokio::test]
async fn turns_are_counted_and_the_last_one_is_finished() {
    let provider = FakeProvider::start(Play::Bytes(json(r#"{"usage":{"input_tokens":1,"output_tokens":1}}"#))).await;
    let rig = Rig::new(&provider.url).await;
    let pass = rig.pass_with(AgentKind::Claude, Budget { turns: Some(2), ..Budget::default() });
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(status(&rig.ask(&pass, MESSAGES, "{}").await).to_owned());
    }
    assert_eq!(statuses, ["200", "200", "403"]);
    assert_eq!((pass.reached(), provider.asked().len()), (Some(Reached::Turns { limit: 2 }), 2));
}

#[tokio::test]
async fn an_answer_that_repeats_the_key_never_reaches_the_job() {
    let provider = FakeProvider::start(Play::Bytes(json(&format!("{{\"error\":\"bad key {KEY}\"}}")))).await;
    let rig = Rig::new(&provider.url).await;
    let pass = rig.pass(AgentKind::Claude);
    let answer = rig.ask(&pass, MESSAGES, "{}").await;
    assert!(!answer.contains(KEY) && !answer.contains(&KEY[..20]), "{answer}");
    let (start, end) = KEY.split_at(15);
    provider.play(Play::InTwo(ok(EVENTS, &format!("data: it is {start}")), format!("{end}\n\n")));
    provider.go_on();
    let answer = rig.ask(&pass, MESSAGES, "{}").await;
    assert!(!answer.contains(start) && !answer.contains(end), "{answer}");
    let header = format!("HTTP/1.1 400 Bad\r\nx-echo: {KEY}\r\nx-other: 1\r\ncontent-length: 0\r\n\r\n");
    provider.play(Play::Bytes(header));
    let answer = rig.ask(&pass, MESSAGES, "{}").await;
    assert!(status(&answer) == "400" && !answer.contains(KEY) && answer.contains("x-other"), "{answer}");
}
