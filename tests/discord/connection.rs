//! The gateway at its worst: closes of every kind, lost sockets, sessions that can't go on, deafness.

use std::time::Duration;

use crate::fake_discord::{CHANNEL, Channel, FakeDiscord, GUILD};
use crate::jane::{Jane, READY, answered};

/// Waits until the gateway has seen this.
async fn seen(discord: &FakeDiscord, what: &str, see: impl Fn(&crate::fake_discord::Gateway) -> bool) {
    discord.wait(what, |state| see(&state.gateway).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_a_connection_is_down_comes_with_the_resumed_session() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    discord.closes(4000);
    let first = discord.asks("echo after a close");
    answered(&discord, first, first, "after a close").await;
    discord.loses_the_socket();
    let second = discord.asks("echo after a loss");
    answered(&discord, second, second, "after a loss").await;
    discord.sends(7, serde_json::Value::Null);
    let third = discord.asks("echo after a wish");
    answered(&discord, third, third, "after a wish").await;
    let state = discord.state();
    assert_eq!((state.gateway.identifies, state.gateway.resumes), (1, 3));
    drop(state);
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_session_does_not_bring_is_fetched() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let before = discord.asks("echo before");
    answered(&discord, before, before, "before").await;
    discord.state().gateway.refuse_resume = true;
    discord.loses_the_socket();
    let (in_channel, in_thread) = (discord.asks("echo fetched"), discord.writes(before, "echo followed"));
    answered(&discord, in_channel, in_channel, "fetched").await;
    answered(&discord, in_thread, before, "followed").await;
    assert_eq!(discord.state().gateway.identifies, 2);
    assert_eq!(discord.state().ours(before).iter().filter(|m| m.content.contains("before")).count(), 1);
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_dead_is_not_resumed_again_and_again() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    discord.closes(4009);
    seen(&discord, "a new session", |gateway| gateway.identifies == 2).await;
    assert_eq!(discord.state().gateway.resumes, 0);
    discord.state().gateway.close_on_resume = Some(4000);
    discord.loses_the_socket();
    seen(&discord, "a session after failed resumes", |gateway| gateway.identifies == 3).await;
    assert_eq!(discord.state().gateway.resumes, 3);
    jane.is(READY).await;
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_closes_everything_is_asked_more_and_more_rarely() {
    let discord = FakeDiscord::start().await;
    discord.state().gateway.close_on_open = Some(4000);
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is("connecting again").await;
    seen(&discord, "four attempts", |gateway| gateway.connections == 4).await;
    let more = discord
        .wait_within(Duration::from_millis(2500), "", &mut |state| (state.gateway.connections > 5).then_some(()))
        .await;
    assert_eq!(more, None, "after four closes it waits for seconds");
    discord.state().gateway.close_on_open = None;
    jane.is(READY).await;
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drops_everything_without_a_word_is_asked_more_and_more_rarely() {
    let discord = FakeDiscord::start().await;
    discord.state().gateway.drop_on_open = true;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is("connecting again").await;
    let many = discord
        .wait_within(Duration::from_secs(6), "", &mut |state| (state.gateway.connections > 60).then_some(()))
        .await;
    assert_eq!(many, None, "{} connections in seconds", discord.state().gateway.connections);
    println!("{} connections in six seconds", discord.state().gateway.connections);
    discord.state().gateway.drop_on_open = false;
    jane.is(READY).await;
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_nothing_repairs_is_said_and_the_service_lives_on() {
    let discord = FakeDiscord::start().await;
    discord.state().gateway.not_granted = 1 << 15;
    let Some(jane) = Jane::new(&discord).start() else { return };
    let health = jane.is("Message Content Intent").await;
    assert_eq!(health["ready"], false);
    assert!(health["parts"]["discord"]["state"] == "failed", "{health}");
    let connections = discord.state().gateway.connections;
    let more = discord
        .wait_within(Duration::from_secs(3), "", &mut |state| (state.gateway.connections > connections).then_some(()))
        .await;
    assert_eq!(more, None, "it is not tried again");
    let alive = reqwest::get(format!("http://{}/healthz", jane.admin)).await.unwrap();
    assert!(alive.status().is_success());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_said_and_not_tried_again_and_again() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).with("DISCORD_TOKEN", "MTE4.another.token").start() else { return };
    jane.is("rejects the token").await;
    let state = discord.state();
    assert_eq!((state.requests.len(), state.gateway.connections), (1, 0));
    drop(state);
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_sessions_of_a_day_are_left_alone() {
    let discord = FakeDiscord::start().await;
    discord.state().limit.remaining = 5;
    let Some(mut jane) = Jane::new(&discord).start() else { return };
    jane.log_line(&["no new session is begun before Discord counts anew"]);
    seen(&discord, "a connection", |gateway| gateway.connections == 1).await;
    let identified = discord
        .wait_within(Duration::from_secs(2), "", &mut |state| (state.gateway.identifies > 0).then_some(()))
        .await;
    assert_eq!(identified, None);
    let (status, _) = jane.health().await;
    assert_eq!(status, 503);
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_that_went_deaf_notices_it_and_begins_anew() {
    let discord = FakeDiscord::start().await;
    let room = Channel { kind: 0, parent: None, owner: None, name: "canary".into(), guild: Some(GUILD), shut: None };
    discord.state().channels.insert(4, room);
    let jane = Jane::new(&discord).with("DISCORD_CANARY_CHANNEL", "4").with("DISCORD_CANARY_EVERY", "1s");
    let Some(jane) = jane.start() else { return };
    jane.is(READY).await;
    discord.wait("two canaries", |state| (state.ours(4).len() > 1).then_some(())).await;
    jane.is(READY).await;
    discord.state().gateway.deaf_to = Some("MESSAGE_CREATE");
    jane.is("did not come back").await;
    seen(&discord, "a new session", |gateway| gateway.identifies > 1).await;
    discord.state().gateway.deaf_to = None;
    jane.is(READY).await;
    // One that can't be posted is told as well.
    discord.state().channels.remove(&4);
    jane.is("the self-test can't be posted").await;
    assert_eq!(discord.violations(), Vec::<String>::new());
    assert!(discord.state().channels.contains_key(&CHANNEL));
    jane.stop();
}
