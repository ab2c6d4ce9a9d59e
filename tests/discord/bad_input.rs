//! What people and servers do wrong, each with what is to be seen of it.

use serde_json::json;

use crate::fake_discord::{Answer, BOB, CHANNEL, Channel, FakeDiscord, GUILD, ME, Message};
use crate::jane::{Jane, READY, answered};

#[tokio::test(flavor = "multi_thread")]
async fn a_mention_with_nothing_else_is_told_what_to_do() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("");
    discord.wait("a hint", |state| state.said(asked, "write what the agent should do").then_some(())).await;
    discord.wait("its mark", |state| (state.messages[&asked].reactions == ["❌"]).then_some(())).await;
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn four_thousand_characters_with_nul_and_hostile_file_names_are_answered() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    discord.state().files.insert("x".into(), b"x".to_vec());
    let long = format!("<@{ME}> echo done\0 # {}", "ü\0".repeat(1950));
    let file =
        |name: &str| json!({"id": "1", "filename": name, "size": 1, "url": format!("http://{}/cdn/x", discord.api)});
    let asked = discord.says(Message {
        channel: CHANNEL,
        author: BOB,
        content: long,
        mentions: vec![ME],
        attachments: vec![file("../../../.bashrc"), file("a\0\r\n\"b`@everyone"), file("")],
        ..Message::default()
    });
    answered(&discord, asked, asked, "done").await;
    let made = discord.asks("printf x > ~/output/'a`\"@everyone.txt'; echo made");
    answered(&discord, made, made, "made").await;
    discord.wait("the file", |state| state.ours(made).iter().any(|message| message.file.is_some()).then_some(())).await;
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_thread_can_be_opened_the_answer_is_a_reply() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    discord.answer(
        "POST /channels",
        "/threads",
        1,
        Answer::Http(403, Vec::new(), json!({"code": 50013, "message": "no"})),
    );
    let asked = discord.asks("echo in the channel");
    answered(&discord, asked, CHANNEL, "in the channel").await;
    let state = discord.state();
    assert!(state.ours(CHANNEL).iter().all(|message| message.reply_to == Some(asked)));
    drop(state);
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_is_shut_in_mid_job_does_not_swallow_the_answer() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    for code in [50013, 50083, 160_005] {
        let asked = discord.asks(&format!("sleep 3; echo outcome {code}"));
        discord.wait("progress", |state| (!state.ours(asked).is_empty()).then_some(())).await;
        discord.state().channels.get_mut(&asked).unwrap().shut = Some(code);
        answered(&discord, asked, CHANNEL, &format!("outcome {code}")).await;
    }
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_thread_stops_its_job_and_a_deleted_channel_is_no_trouble() {
    let discord = FakeDiscord::start().await;
    let Some(mut jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("echo begun; sleep 600");
    discord.wait("it runs", |state| state.said(asked, "begun").then_some(())).await;
    discord.deletes_channel(asked);
    discord.wait("it was stopped", |state| (state.messages[&asked].reactions == ["🛑"]).then_some(())).await;
    // A private thread that bob opened, gone before anything can be said there.
    let thread = Channel {
        kind: 12,
        parent: Some(CHANNEL),
        owner: Some(BOB),
        name: "t".into(),
        guild: Some(GUILD),
        shut: Some(50013),
    };
    discord.state().channels.insert(3, thread);
    let said = discord.says(Message {
        channel: 3,
        author: BOB,
        content: format!("<@{ME}> echo private"),
        mentions: vec![ME],
        ..Message::default()
    });
    discord.wait("its mark", |state| (state.messages[&said].reactions == ["✅"]).then_some(())).await;
    assert!(!discord.state().said(CHANNEL, "private"), "what was asked in private is not answered in public");
    jane.log_line(&["lacks a permission"]);
    let next = discord.asks("echo next");
    answered(&discord, next, next, "next").await;
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn bots_webhooks_and_system_messages_are_ignored() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let bot = discord.says(Message {
        channel: CHANNEL,
        author: 55,
        bot: true,
        content: format!("<@{ME}> echo loop"),
        mentions: vec![ME],
        ..Message::default()
    });
    let event = |extra: serde_json::Value| {
        let id = discord.id();
        let mut event = json!({
            "id": id.to_string(), "channel_id": CHANNEL.to_string(), "guild_id": GUILD.to_string(), "type": 0,
            "author": {"id": BOB.to_string(), "username": "bob"}, "content": format!("<@{ME}> echo never"),
            "mentions": [{"id": ME.to_string()}],
        });
        event.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        discord.dispatch("MESSAGE_CREATE", event);
    };
    event(json!({"webhook_id": "5"}));
    event(json!({"type": 18}));
    event(json!({"author": {"id": "9", "username": "x", "system": true}}));
    // An event that can't be read loses itself only.
    discord.dispatch("MESSAGE_CREATE", json!({"id": [], "content": 5}));
    let next = discord.asks("echo next");
    answered(&discord, next, next, "next").await;
    let state = discord.state();
    assert!(state.messages[&bot].reactions.is_empty());
    assert_eq!(state.channels.len(), 2, "one thread was opened");
    drop(state);
    jane.stop();
}
