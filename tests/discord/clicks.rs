//! Buttons and slash commands.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fake_discord::{Answer, BOB, CHANNEL, FakeDiscord};
use crate::jane::{Jane, READY, answered, button};

/// Waits for what a click was answered with.
async fn told(discord: &FakeDiscord, token: &str) -> String {
    discord
        .wait("an answer to a click", |state| {
            state.followups.iter().find(|(to, _)| to == token).map(|(_, text)| text.clone())
        })
        .await
}

fn command(discord: &FakeDiscord, user: u64, channel: u64, sub: &str, options: Value) -> String {
    let sub = json!({"name": sub, "type": 1, "options": options});
    discord.interacts(user, channel, 2, json!({"id": "5", "name": "jane", "type": 1, "options": [sub]}))
}

#[tokio::test(flavor = "multi_thread")]
async fn buttons_cancel_run_again_and_tell_why() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("echo begun; sleep 600");
    discord.wait("it runs", |state| state.said(asked, "begun").then_some(())).await;
    let cancel = button(&discord, asked, "cancel").await;
    // Somebody else may not, since the job is not theirs.
    let other = discord.clicks(77, asked, &cancel);
    assert!(told(&discord, &other).await.contains("only who asked, or an admin"), "of others");
    let own = discord.clicks(BOB, asked, &cancel);
    assert_eq!(told(&discord, &own).await, "Stopping 1 job.");
    discord.wait("it was stopped", |state| (state.messages[&asked].reactions == ["🛑"]).then_some(())).await;

    let failing = discord.asks("echo attempt; exit 3");
    discord.wait("it failed", |state| (state.messages[&failing].reactions == ["❌"]).then_some(())).await;
    let again = button(&discord, failing, "retry").await;
    let clicked = discord.clicks(BOB, failing, &again);
    assert_eq!(told(&discord, &clicked).await, "Running it again.");
    discord
        .wait("a second end", |state| {
            let ends =
                state.ours(failing).into_iter().filter(|m| m.flags & (1 << 12) == 0 && m.content.contains("status 3"));
            (ends.count() == 2).then_some(())
        })
        .await;
    let why = button(&discord, failing, "why").await;
    let clicked = discord.clicks(BOB, failing, &why);
    assert!(told(&discord, &clicked).await.contains("• "), "a story");
    // What nobody made is left alone.
    discord.clicks(BOB, failing, "janebot:explode:1");
    {
        let state = discord.state();
        assert!(
            state.callbacks.iter().all(|(_, body)| body["type"] == 5 && body["data"]["flags"] == 64),
            "{:?}",
            state.callbacks
        );
    }
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_ask_tell_the_status_and_cancel() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    command(
        &discord,
        BOB,
        CHANNEL,
        "ask",
        json!([{"name": "prompt", "type": 3, "value": "echo by command; sleep 600"}]),
    );
    let thread = discord
        .wait("a thread from the command's answer", |state| {
            let made = state.channels.iter().find(|(_, channel)| channel.parent == Some(CHANNEL));
            made.map(|(id, _)| *id)
        })
        .await;
    discord.wait("it runs", |state| state.said(thread, "by command").then_some(())).await;
    assert!(discord.state().messages[&thread].content.contains("**bob** asks:\necho by command"));
    let status = command(&discord, BOB, CHANNEL, "status", json!([]));
    assert!(told(&discord, &status).await.starts_with("1 job open in 1 conversation"));
    let in_channel = command(&discord, BOB, CHANNEL, "cancel", json!([]));
    assert!(told(&discord, &in_channel).await.contains("no conversation here"));
    let cancel = command(&discord, BOB, thread, "cancel", json!([]));
    assert_eq!(told(&discord, &cancel).await, "Stopping 1 job.");
    discord.wait("it was stopped", |state| (state.messages[&thread].reactions == ["🛑"]).then_some(())).await;
    let why = command(&discord, BOB, CHANNEL, "why", json!([{"name": "job", "type": 3, "value": "01nothere"}]));
    assert_eq!(told(&discord, &why).await, "There is no such job.");
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_commands_are_refused_and_late_clicks_harm_nobody() {
    let discord = FakeDiscord::start().await;
    let jane = Jane::new(&discord).with("ALLOWED_CHANNEL_IDS", "").with("ALLOWED_USER_IDS", "10");
    let Some(jane) = jane.start() else { return };
    jane.is(READY).await;
    let token = command(&discord, BOB, CHANNEL, "ask", json!([{"name": "prompt", "type": 3, "value": "echo secret"}]));
    let refusal = discord
        .wait("a refusal", |state| state.callbacks.iter().find(|(to, _)| *to == token).map(|(_, body)| body.clone()))
        .await;
    assert!(refusal["data"]["content"].as_str().unwrap().contains("You may not use janebot here"), "{refusal}");
    assert_eq!(refusal["data"]["flags"], 64, "only the stranger sees it");
    discord.answer("POST /interactions", "/callback", 1, Answer::Http(404, Vec::new(), json!({"code": 10062})));
    command(&discord, 10, CHANNEL, "status", json!([]));
    discord.wait("the late click", |state| (state.count("POST", "/callback") == 2).then_some(())).await;
    // Requests to channels that hang do not make a click late.
    discord.answer("PUT /channels", "/@me", 5, Answer::Slow(Duration::from_secs(5)));
    let asked = discord.says(crate::fake_discord::Message {
        channel: CHANNEL,
        author: 10,
        content: "<@900> echo fine".into(),
        mentions: vec![900],
        ..Default::default()
    });
    let began = tokio::time::Instant::now();
    let status = command(&discord, 10, CHANNEL, "status", json!([]));
    told(&discord, &status).await;
    assert!(began.elapsed() < Duration::from_secs(3));
    answered(&discord, asked, asked, "fine").await;
    jane.stop();
}
