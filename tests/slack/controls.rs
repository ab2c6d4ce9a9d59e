//! Everything that people can do beside writing a message.

use janebot::chat::Chats;
use janebot::chat::adapter::Adapter as _;
use janebot::chat::slack::Slack;
use janebot::job::ConversationId;
use serde_json::{Value, json};

use crate::fake_slack::{ANN, BOB, DIRECT, FakeSlack, Fault, File, GENERAL, Kind, TEAM};
use crate::service::Service;

async fn started(service: Service) -> Option<Service> {
    let mut service = service;
    service.start().await.then_some(service)
}

/// The message of ours in the thread that has this button.
async fn with_button(fake: &FakeSlack, channel: &str, thread: &str, label: &str) -> String {
    fake.until(&format!("a {label} button"), |state| {
        let messages = state.channels[channel].messages.iter();
        let mut own = messages.filter(|message| message.thread.as_deref() == Some(thread));
        own.find(|message| message.buttons().iter().any(|(text, _)| text == label)).map(|message| message.ts.clone())
    })
    .await
}

async fn whispered(fake: &FakeSlack, user: &str, words: &str) -> Value {
    fake.until(&format!("{words:?} for {user}"), |state| {
        let mut all = state.ephemerals.iter();
        let is_meant = |said: &&Value| said["user"] == user && said["text"].as_str().is_some_and(|t| t.contains(words));
        all.find(is_meant).cloned()
    })
    .await
}

#[tokio::test]
async fn buttons_cancel_explain_and_run_again() {
    let fake = FakeSlack::start().await;
    let Some(_service) = started(Service::over_sockets(&fake).with("ALLOWED_USER_IDS", "UANN,UBOB")).await else {
        return;
    };
    fake.connected(2).await;
    let long = fake.ask(GENERAL, ANN, "sleep 300", None);
    let progress = with_button(&fake, GENERAL, &long, "Cancel").await;
    // Somebody else may not.
    fake.press(GENERAL, &progress, BOB, "Cancel");
    whispered(&fake, BOB, "").await;
    fake.press(GENERAL, &progress, ANN, "Cancel");
    fake.reactions(GENERAL, &long, &["octagonal_sign"]).await;
    let closed = fake.state().message(GENERAL, &progress).unwrap().clone();
    assert!(closed.buttons().is_empty(), "what can't be done is not offered: {closed:?}");
    let failed = fake.ask(GENERAL, ANN, "echo tried >> ~/work/x; exit 7", None);
    let outcome = with_button(&fake, GENERAL, &failed, "Retry").await;
    fake.press(GENERAL, &outcome, ANN, "Why");
    let story = whispered(&fake, ANN, "•").await;
    assert_eq!(story["thread_ts"], failed.as_str(), "{story}");
    fake.press(GENERAL, &outcome, ANN, "Retry");
    whispered(&fake, ANN, "Running it again").await;
    fake.until("a second outcome", |state| {
        let messages = state.channels[GENERAL].messages.iter();
        let own = messages.filter(|message| message.thread.as_deref() == Some(&failed));
        (own.filter(|message| message.buttons().iter().any(|(text, _)| text == "Retry")).count() == 2).then_some(())
    })
    .await;
    fake.press(GENERAL, &outcome, ANN, "Retry");
    whispered(&fake, ANN, "run again already").await;
    assert!(fake.acks().iter().filter(|ack| ack.kind == Kind::Interaction).all(|ack| ack.answer.is_null()));
    assert_eq!(fake.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn slacks_own_stop_and_a_cross_end_a_run_and_sessions_are_told() {
    let fake = FakeSlack::start().await;
    let Some(_service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    let first = fake.say(DIRECT, ANN, "sleep 300", None);
    let is_session = |state: &crate::fake_slack::State, ts: &str, status: &str| {
        let is = |(method, args): &(String, Value)| {
            method == "agents.sessions.setStatus" && args["thread_ts"] == ts && args["status"] == status
        };
        state.statuses.iter().any(is).then_some(())
    };
    fake.until("a session that goes on", |state| is_session(state, &first, "processing")).await;
    with_button(&fake, DIRECT, &first, "Cancel").await;
    fake.deliver_event(json!({
        "type": "agent_session_stopped", "user": ANN, "channel": DIRECT, "thread_ts": first, "streaming_message_ts": [],
        "event_ts": "1.1",
    }));
    fake.reactions(DIRECT, &first, &["octagonal_sign"]).await;
    fake.until("a session that has ended", |state| is_session(state, &first, "active")).await;
    let second = fake.say(DIRECT, ANN, "sleep 300", None);
    with_button(&fake, DIRECT, &second, "Cancel").await;
    fake.deliver_event(json!({
        "type": "reaction_added", "user": ANN, "reaction": "x", "item": { "type": "message", "channel": DIRECT, "ts": second },
        "item_user": ANN, "event_ts": "1.2",
    }));
    fake.reactions(DIRECT, &second, &["octagonal_sign"]).await;
    assert_eq!(fake.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn the_command_the_shortcut_and_the_greeting_work() {
    let fake = FakeSlack::start().await;
    let Some(_service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    fake.command(GENERAL, ANN, "echo by command");
    let anchor = fake
        .until("what was asked", |state| {
            let mut messages = state.channels[GENERAL].messages.iter();
            messages.find(|message| message.shown().contains("asks: echo by command")).map(|message| message.ts.clone())
        })
        .await;
    fake.answer_with(GENERAL, &anchor, "by command").await;
    fake.reactions(GENERAL, &anchor, &["white_check_mark"]).await;
    // An empty one, and one where Jane can't write, are explained to who used them.
    fake.command(GENERAL, ANN, " ");
    fake.change(|state| state.channels.get_mut("CCANARY").unwrap().has_bot = false);
    fake.command("CCANARY", ANN, "echo x");
    for words in ["behind the command", "invite the bot"] {
        fake.until(words, |state| {
            state.acks.iter().any(|ack| ack.answer["text"].as_str().is_some_and(|t| t.contains(words))).then_some(())
        })
        .await;
    }
    let message = fake.say(GENERAL, BOB, "the disk is full", None);
    let payload = json!({
        "type": "message_action", "callback_id": "ask_jane", "trigger_id": "9.9", "user": { "id": ANN, "team_id": TEAM },
        "team": { "id": TEAM }, "channel": { "id": GENERAL },
        "message": { "type": "message", "user": BOB, "text": "the disk is full", "ts": message },
    });
    fake.deliver(Kind::Interaction, payload.clone());
    fake.deliver(Kind::Interaction, payload);
    let answer = fake.answer_with(GENERAL, &message, "job").await;
    assert!(answer.shown().contains("shell"), "{answer:?}");
    let opened =
        json!({ "type": "app_home_opened", "tab": "messages", "user": ANN, "channel": DIRECT, "event_ts": "1.3" });
    fake.deliver_event(opened);
    fake.until("suggested prompts", |state| {
        let is = |(method, _): &(String, Value)| method == "assistant.threads.setSuggestedPrompts";
        state.statuses.iter().any(is).then_some(())
    })
    .await;
    assert_eq!(fake.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn an_edit_before_the_start_counts_and_a_deleted_request_is_not_run() {
    let fake = FakeSlack::start().await;
    let Some(_service) = started(Service::over_sockets(&fake).with("DEBOUNCE", "2s")).await else { return };
    fake.connected(2).await;
    let edited = fake.say(DIRECT, ANN, "echo wrong", None);
    fake.until("it is heard", |state| (!state.acks.is_empty()).then_some(())).await;
    fake.deliver_event(json!({
        "type": "message", "subtype": "message_changed", "channel": DIRECT, "channel_type": "im", "ts": "5.5",
        "message": { "type": "message", "user": ANN, "text": "echo right", "ts": edited, "edited": { "user": ANN } },
        "previous_message": { "type": "message", "user": ANN, "text": "echo wrong", "ts": edited },
    }));
    fake.answer_with(DIRECT, &edited, "right").await;
    let deleted = fake.say(DIRECT, ANN, "echo never", None);
    fake.reactions(DIRECT, &deleted, &["eyes"]).await;
    fake.deliver_event(json!({
        "type": "message", "subtype": "message_deleted", "channel": DIRECT, "channel_type": "im", "ts": "6.6",
        "deleted_ts": deleted, "previous_message": { "type": "message", "user": ANN, "text": "echo never", "ts": deleted },
    }));
    fake.reactions(DIRECT, &deleted, &["octagonal_sign"]).await;
    assert!(fake.own_in(DIRECT, &deleted).iter().all(|message| !message.shown().starts_with("never")));
}

#[tokio::test]
async fn files_come_in_also_with_a_mention_that_lacks_them() {
    let fake = FakeSlack::start().await;
    let Some(_service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    fake.change(|state| {
        let file = |is_page| File { bytes: Some(b"content of the file".to_vec()), is_page, ..File::default() };
        state.files.insert("FIN".into(), file(false));
        state.files.insert("FHELD".into(), file(false));
        state.files.insert("FPAGE".into(), file(true));
    });
    let url = |id: &str| format!("http://{}/files/{id}", fake.host());
    let more = json!({ "subtype": "file_share", "files": [
        { "id": "FIN", "name": "in.txt", "size": 19, "url_private": url("FIN") },
        { "id": "FHELD", "name": "held.txt", "file_access": "check_file_info" },
        { "id": "FPAGE", "name": "page.txt", "size": 19, "url_private": url("FPAGE") },
        { "id": "FEVIL", "name": "evil.txt", "size": 19, "url_private": "https://evil.test/files/FEVIL" },
    ]});
    let ask = fake.say_with(GENERAL, ANN, "<@UJANE> cd ~/input; ls; cat *", None, more);
    let answer = fake.answer_with(GENERAL, &ask, "content of the file").await;
    fake.reactions(GENERAL, &ask, &["white_check_mark"]).await;
    let shown = answer.shown();
    assert!(shown.contains("in.txt") && shown.contains("held.txt"), "{shown}");
    // What could not be had is said.
    assert!(shown.contains("page.txt") && shown.contains("evil.txt"), "{shown}");
    assert_eq!(fake.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn a_thread_is_read_to_its_end() {
    let fake = FakeSlack::start().await;
    let service = Service::over_sockets(&fake);
    let chats = Slack::new(&service.config()).unwrap().join(Chats::default());
    // As few as some apps get.
    fake.change(|state| state.page_max = 2);
    let root = fake.say(GENERAL, BOB, "<@UJANE> the alarm is about host seven", None);
    for n in 0..5 {
        fake.say(GENERAL, BOB, &format!("note {n} &amp; more"), Some(&root));
    }
    fake.say_with(
        GENERAL,
        "UBOT",
        "",
        Some(&root),
        json!({ "bot_id": "BX", "attachments": [{ "text": "disk full" }] }),
    );
    let ask = fake.say(GENERAL, ANN, "<@UJANE> help", Some(&root));
    fake.say(GENERAL, ANN, "later", Some(&root));
    let conversation = ConversationId::new(format!("slack:{TEAM}/{GENERAL}/{root}"));
    let before = format!("slack:{TEAM}/{GENERAL}/{ask}");
    let told = chats.history(&conversation, &before, 10_000).await.unwrap().unwrap();
    let texts: Vec<_> = told.iter().map(|said| said.text.as_str()).collect();
    let notes = ["note 0 & more", "note 1 & more", "note 2 & more", "note 3 & more", "note 4 & more"];
    assert_eq!(texts, [&["the alarm is about host seven"], &notes[..], &["disk full"]].concat());
    assert_eq!(told[0].from.as_ref().unwrap().as_str(), format!("slack:{BOB}"));
    assert_eq!(fake.calls("conversations.replies").len(), 5);
    // Of more than fits, the root and the newest.
    let told = chats.history(&conversation, &before, 60).await.unwrap().unwrap();
    let texts: Vec<_> = told.iter().map(|said| said.text.as_str()).collect();
    assert_eq!(texts, ["the alarm is about host seven", "note 4 & more", "disk full"]);
    // Where Slack does not let it be read, the journal has to do.
    fake.fault("conversations.replies", Fault::RateLimited(60));
    assert_eq!(chats.history(&conversation, &before, 60).await, Ok(None));
    assert_eq!(fake.complaints(), Vec::<String>::new());
}
