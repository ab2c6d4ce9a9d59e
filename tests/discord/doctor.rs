//! `janebot doctor` against a Discord that is set up rightly and wrongly.

use crate::fake_discord::{CHANNEL, FakeDiscord};
use crate::jane::Jane;

/// Exit status and standard output.
async fn doctor(jane: &Jane) -> (i32, String) {
    let mut command = jane.command(&["doctor"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_set_up_is_told_with_the_link_that_invites_the_bot() {
    let discord = FakeDiscord::start().await;
    let (status, said) = doctor(&Jane::new(&discord)).await;
    assert_eq!(status, 0, "{said}");
    for line in [
        "ok    the token is jane's (user 900, application 901)",
        "ok    the bot may read messages that do not mention it",
        "ok    1000 of 1000 new sessions are left for the next 24 h",
        "ok    channel 2: everything that is needed is allowed",
        "client_id=901&scope=bot+applications.commands&permissions=309237763136",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    assert_eq!(discord.violations(), Vec::<String>::new());
    assert!(discord.state().requests.iter().all(|(method, _)| method == "GET"), "a doctor only looks");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_told_with_what_to_do() {
    let discord = FakeDiscord::start().await;
    {
        let mut state = discord.state();
        state.application_flags = 0;
        state.limit.remaining = 40;
        state.permissions &= !((1 << 35) | (1 << 6));
    }
    let jane = Jane::new(&discord).with("ALLOWED_CHANNEL_IDS", &format!("{CHANNEL},77"));
    let (status, said) = doctor(&jane).await;
    assert_eq!(status, 1, "{said}");
    for line in [
        "wrong DISCORD_MESSAGE_CONTENT=true needs \"Message Content Intent\"",
        "look  40 of 1000 new sessions are left",
        "wrong channel 2: the bot lacks Create Public Threads, Add Reactions",
        "wrong channel 77: the channel or thread is not there any more",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    let (status, said) = doctor(&jane.with("DISCORD_TOKEN", "MTE4.another.token")).await;
    assert_eq!(status, 1);
    assert!(said.contains("Discord rejects the token") && !said.contains("another"), "{said}");
    let nobody = Jane::new(&discord).with("ALLOWED_CHANNEL_IDS", "");
    assert!(doctor(&nobody).await.1.contains("wrong nobody may ask"), "{said}");
}
