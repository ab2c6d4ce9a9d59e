//! Sending at its worst: limits of every kind, answers that get lost, a process that dies between send and journal.

use std::time::Duration;

use serde_json::json;

use crate::fake_discord::{Answer, CHANNEL, FakeDiscord, Message};
use crate::jane::{Jane, READY, answered};

/// That a thread has one answer, and no second progress message.
fn told_once(discord: &FakeDiscord, thread: u64, answer: &str) {
    let state = discord.state();
    let ours = state.ours(thread);
    let answers = ours.iter().filter(|message| message.content.contains(answer) && message.flags & (1 << 12) == 0);
    assert_eq!(answers.count(), 1, "{ours:#?}");
    assert!(ours.iter().filter(|message| message.flags & (1 << 12) != 0).count() <= 1, "{ours:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_confirmation_got_lost_is_found_and_not_sent_twice() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("sleep 3; echo told once");
    discord.wait("progress", |state| (!state.ours(asked).is_empty()).then_some(())).await;
    discord.answer("POST /channels", &format!("{asked}/messages"), 1, Answer::Lost);
    answered(&discord, asked, asked, "told once").await;
    told_once(&discord, asked, "told once");
    assert_eq!(discord.state().count("POST", &format!("/channels/{asked}/messages")), 2, "progress and answer");
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_between_send_and_journal_answers_once() {
    let discord = FakeDiscord::start().await;
    let deployment = Jane::new(&discord);
    let Some(jane) = deployment.start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("sleep 3; echo told once");
    discord.wait("progress", |state| (!state.ours(asked).is_empty()).then_some(())).await;
    discord.answer("POST /channels", &format!("{asked}/messages"), 1, Answer::Slow(Duration::from_secs(20)));
    discord
        .wait("the answer is made", |state| {
            let is_answer =
                |message: &&Message| message.flags & (1 << 12) == 0 && message.content.contains("told once");
            state.ours(asked).into_iter().find(is_answer).map(|_| ())
        })
        .await;
    jane.kill();
    let jane = deployment.start().unwrap();
    answered(&discord, asked, asked, "told once").await;
    told_once(&discord, asked, "told once");
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_as_it_hears_hears_it_again() {
    let discord = FakeDiscord::start().await;
    let deployment = Jane::new(&discord);
    let Some(jane) = deployment.start() else { return };
    jane.is(READY).await;
    // Long enough that the session is kept.
    let first = discord.asks("echo first");
    answered(&discord, first, first, "first").await;
    let asked = discord.asks("echo heard");
    jane.kill();
    let jane = deployment.start().unwrap();
    answered(&discord, asked, asked, "heard").await;
    assert_eq!(discord.state().ours(first).iter().filter(|message| message.content.contains("first")).count(), 1);
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_every_kind_are_waited_for() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let header = |name, value: &str| (name, value.to_owned());
    let limited = |scope: Option<&str>, after: Option<&str>| {
        let scope = scope.map(|scope| header("x-ratelimit-scope", scope));
        let after = after.map(|after| header("retry-after", after));
        let headers = scope.into_iter().chain(after).chain([header("x-ratelimit-bucket", "b")]).collect();
        Answer::Http(429, headers, json!({"message": "limited", "retry_after": 1.0, "global": false}))
    };
    for (number, answer) in [
        limited(Some("user"), Some("1")),
        limited(Some("shared"), Some("1")),
        limited(Some("global"), Some("1")),
        // As the network in front of Discord does it.
        Answer::Http(429, vec![header("retry-after", "2")], json!({})),
        Answer::Http(502, Vec::new(), json!({})),
    ]
    .into_iter()
    .enumerate()
    {
        discord.answer("PUT /channels", "/@me", 1, answer);
        let before = discord.state().requests.len();
        let asked = discord.asks(&format!("echo limited {number}"));
        answered(&discord, asked, asked, &format!("limited {number}")).await;
        told_once(&discord, asked, &format!("limited {number}"));
        let requests = discord.state().requests.len() - before;
        assert!(requests < 25, "{requests} requests: a limit was not waited for");
    }
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_are_split_where_lines_end_and_very_long_ones_are_a_file() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("echo '```rust'; seq 1 1500 | sed 's/^/line /'; echo '```'");
    discord.wait("the end", |state| (state.messages[&asked].reactions == ["✅"]).then_some(())).await;
    let whole = {
        let state = discord.state();
        let ours = state.ours(asked);
        assert!(ours.iter().all(|message| message.content.matches("```").count() % 2 == 0), "{ours:#?}");
        ours.iter().filter_map(|message| message.file.clone()).next().unwrap()
    };
    assert!(String::from_utf8(whole).unwrap().contains("line 1500"));
    let asked = discord.asks("echo '```rust'; seq 1 300 | sed 's/^/line /'; echo '```'");
    discord.wait("the end", |state| (state.messages[&asked].reactions == ["✅"]).then_some(())).await;
    let state = discord.state();
    let pieces: Vec<_> =
        state.ours(asked).into_iter().filter(|message| message.content.starts_with("```rust")).collect();
    assert!(pieces.len() >= 2 && pieces.iter().all(|piece| piece.content.matches("```").count() == 2), "{pieces:#?}");
    assert!(state.ours(CHANNEL).is_empty());
    drop(state);
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}
