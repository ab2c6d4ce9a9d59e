//! Conversations: from a mention to the answer and its file, follow-ups, edits, direct messages, restarts.

use std::time::Duration;

use serde_json::json;

use crate::fake_discord::{BOB, CHANNEL, Channel, FakeDiscord, GUILD, ME, Message};
use crate::jane::{Jane, READY, answered};

#[tokio::test(flavor = "multi_thread")]
async fn a_mention_becomes_a_thread_with_progress_an_answer_and_a_file() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("echo hello @everyone; echo data > ~/output/out.txt; sleep 4");
    discord.wait("the eyes", |state| (state.messages[&asked].reactions == ["👀"]).then_some(())).await;
    discord.wait("a thread", |state| state.channels.contains_key(&asked).then_some(())).await;
    answered(&discord, asked, asked, "hello ＠everyone").await;
    discord
        .wait("the file", |state| state.ours(asked).iter().any(|m| m.file.as_deref() == Some(b"data\n")).then_some(()))
        .await;
    {
        let state = discord.state();
        let thread = &state.channels[&asked];
        assert!(thread.name.starts_with("echo hello ＠everyone"), "{}", thread.name);
        let ours = state.ours(asked);
        assert_eq!(ours.len(), 3, "progress, answer, file: {ours:#?}");
        assert!(!ours[0].edits.is_empty() && ours[0].content.contains("Answered after"), "{ours:#?}");
        assert!(ours[0].components.is_empty(), "what is over can't be cancelled");
        assert!(ours[1].edits.is_empty(), "the answer is a new message, never an edited one");
        assert!(state.typing > 0);
        assert!(state.ours(CHANNEL).is_empty(), "the channel is not talked into");
    }
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_ups_in_the_thread_need_no_mention_and_a_word_stops() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let first = discord.asks("echo one");
    answered(&discord, first, first, "one").await;
    let second = discord.writes(first, "echo two");
    answered(&discord, second, first, "two").await;
    // People who talk to each other are left alone.
    let aside = discord.says(Message {
        channel: first,
        author: BOB,
        content: "<@77> look at this".into(),
        mentions: vec![77],
        ..Message::default()
    });
    let long = discord.writes(first, "echo started; sleep 600");
    discord.wait("it runs", |state| state.said(first, "started").then_some(())).await;
    discord.writes(first, "stop!");
    discord.wait("it was stopped", |state| (state.messages[&long].reactions == ["🛑"]).then_some(())).await;
    assert!(discord.state().messages[&aside].reactions.is_empty());
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_changes_what_waits_and_a_deletion_takes_it_back() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let running = discord.asks("echo running; sleep 5");
    discord.wait("it runs", |state| state.said(running, "running").then_some(())).await;
    let (edited, deleted) = (discord.asks("echo before"), discord.asks("echo never"));
    for message in [edited, deleted] {
        discord.wait("the eyes", |state| (state.messages[&message].reactions == ["👀"]).then_some(())).await;
    }
    // The preview of a link is no edit.
    discord.edits(running, &format!("<@{ME}> https://example.org"), false);
    discord.edits(edited, &format!("<@{ME}> echo after"), true);
    discord.deletes(deleted);
    answered(&discord, running, running, "running").await;
    answered(&discord, edited, edited, "after").await;
    assert!(!discord.state().said(deleted, "never\n"));
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_twice_is_answered_once() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("echo once");
    let again = json!({
        "id": asked.to_string(), "channel_id": CHANNEL.to_string(), "guild_id": GUILD.to_string(), "type": 0,
        "author": {"id": BOB.to_string(), "username": "bob"}, "content": format!("<@{ME}> echo once"),
        "mentions": [{"id": ME.to_string(), "username": "jane"}],
    });
    discord.dispatch("MESSAGE_CREATE", again.clone());
    answered(&discord, asked, asked, "once").await;
    discord.dispatch("MESSAGE_CREATE", again);
    let next = discord.asks("echo next");
    answered(&discord, next, next, "next").await;
    let state = discord.state();
    assert_eq!(state.ours(asked).iter().filter(|message| message.content.contains("once")).count(), 1);
    drop(state);
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_members_of_a_role_are_not() {
    let discord = FakeDiscord::start().await;
    let jane = Jane::new(&discord).with("ALLOWED_CHANNEL_IDS", "").with("DISCORD_ROLE_IDS", "70");
    let Some(jane) = jane.with("ALLOWED_USER_IDS", "10").start() else { return };
    jane.is(READY).await;
    let direct = Channel { kind: 1, parent: None, owner: None, name: String::new(), guild: None, shut: None };
    discord.state().channels.insert(500, direct);
    let stranger = discord.writes(500, "echo secret");
    discord.wait("a refusal", |state| state.said(500, "You may not use janebot here").then_some(())).await;
    discord.wait("its mark", |state| (state.messages[&stranger].reactions == ["❌"]).then_some(())).await;
    let friend =
        discord.says(Message { channel: 500, author: 10, content: "echo welcome".into(), ..Message::default() });
    answered(&discord, friend, 500, "welcome").await;
    discord.state().roles.insert(BOB, vec![70]);
    let member = discord.asks("echo member");
    answered(&discord, member, member, "member").await;
    assert!(!discord.state().said(500, "secret\n"));
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_message_reach_the_agent_and_other_servers_files_do_not() {
    let discord = FakeDiscord::start().await;
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    discord.state().files.insert("notes".into(), b"from the file".to_vec());
    let file = |name: &str, url: String| json!({"id": "1", "filename": name, "size": 13, "url": url, "proxy_url": url});
    let asked = discord.says(Message {
        channel: CHANNEL,
        author: BOB,
        content: format!("<@{ME}> cat ~/input/*"),
        mentions: vec![ME],
        attachments: vec![
            file("../../notes.txt", format!("http://{}/cdn/notes", discord.api)),
            file("evil.txt", "https://evil.example/notes".into()),
        ],
        ..Message::default()
    });
    answered(&discord, asked, asked, "from the file").await;
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_mid_job_tells_how_it_ended_and_the_conversation_goes_on() {
    let discord = FakeDiscord::start().await;
    let deployment = Jane::new(&discord);
    let Some(jane) = deployment.start() else { return };
    jane.is(READY).await;
    let asked = discord.asks("echo begun; sleep 600");
    discord.wait("it runs", |state| state.said(asked, "begun").then_some(())).await;
    jane.stop();
    // Written while nobody listens.
    let meanwhile = discord.writes(asked, "echo still there");
    let jane = deployment.start().unwrap();
    discord.wait("the end is told", |state| (state.messages[&asked].reactions == ["❌"]).then_some(())).await;
    answered(&discord, meanwhile, asked, "still there").await;
    {
        let state = discord.state();
        assert_eq!((state.gateway.identifies, state.gateway.resumes), (1, 1), "the session goes on over a restart");
        assert_eq!(state.registrations, 1, "commands are registered once");
    }
    assert_eq!(discord.violations(), Vec::<String>::new());
    jane.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_in_a_thread_before_is_known_to_the_agent() {
    let discord = FakeDiscord::start().await;
    // An agent that shows what it was given.
    let Some(jane) = Jane::new(&discord).start() else { return };
    jane.is(READY).await;
    let thread = Channel {
        kind: 11,
        parent: Some(CHANNEL),
        owner: Some(77),
        name: "theirs".into(),
        guild: Some(GUILD),
        shut: None,
    };
    discord.state().channels.insert(3, thread);
    discord.writes(3, "the password is swordfish");
    let asked = discord.says(Message {
        channel: 3,
        author: BOB,
        content: format!("<@{ME}> echo heard"),
        mentions: vec![ME],
        ..Message::default()
    });
    answered(&discord, asked, 3, "heard").await;
    discord
        .wait_within(Duration::from_secs(5), "history", &mut |state| {
            (state.count("GET", "/channels/3/messages") > 0).then_some(())
        })
        .await;
    jane.stop();
}
