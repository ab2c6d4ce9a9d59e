//! Whom Jane answers.

use serde_json::json;

use crate::fake_slack::{ANN, BOB, FakeSlack, GENERAL, GUEST, TEAM};
use crate::service::Service;

async fn refusal(fake: &FakeSlack, user: &str, words: &str) {
    fake.until(&format!("{words:?} for {user}"), |state| {
        let is = |said: &&serde_json::Value| said["user"] == user && said["text"].as_str().unwrap().contains(words);
        state.ephemerals.iter().find(is).map(|_| ())
    })
    .await;
}

#[tokio::test]
async fn members_are_answered_and_guests_and_strangers_are_told_no() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake).with("ALLOWED_CHANNEL_IDS", GENERAL);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    fake.change(|state| {
        let outsider = json!({ "id": "UOUT", "team_id": "T9", "name": "out", "is_stranger": true });
        state.users.insert("UOUT".into(), outsider);
    });
    let bob = fake.ask(GENERAL, BOB, "echo for bob", None);
    fake.answer_with(GENERAL, &bob, "for bob").await;
    fake.ask(GENERAL, GUEST, "echo no", None);
    refusal(&fake, GUEST, "guests").await;
    fake.say_with(GENERAL, "UOUT", "<@UJANE> echo no", None, json!({ "team": "T9", "user_team": "T9" }));
    refusal(&fake, "UOUT", "only members of this workspace").await;
    let unknown = fake.ask(GENERAL, "UNOBODY", "echo no", None);
    refusal(&fake, "UNOBODY", "can't find out who you are").await;
    assert!(fake.state().message(GENERAL, &unknown).unwrap().reactions.is_empty());
    // Asked once, not for every message.
    let again = fake.ask(GENERAL, BOB, "echo again", None);
    fake.answer_with(GENERAL, &again, "again").await;
    let asked = fake.calls("users.info").iter().filter(|args| args["user"] == BOB).count();
    assert_eq!(asked, 1);
    let own: Vec<_> =
        fake.state().channels[GENERAL].messages.iter().filter(|m| m.user == GUEST).map(|m| m.ts.clone()).collect();
    assert!(own.iter().all(|ts| fake.own_in(GENERAL, ts).is_empty()));
    assert_eq!(fake.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn in_shared_channels_only_who_is_named_is_answered() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake).with("ALLOW_EVERYONE", "true");
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    fake.change(|state| state.channels.get_mut(GENERAL).unwrap().shared = true);
    fake.ask(GENERAL, BOB, "echo no", None);
    refusal(&fake, BOB, "shared with another organisation").await;
    let ann = fake.ask(GENERAL, ANN, "echo for ann", None);
    fake.answer_with(GENERAL, &ann, "for ann").await;
    // What comes of another workspace altogether is not for this bot.
    let mut payload = fake.change(|state| {
        let event =
            json!({ "type": "app_mention", "user": ANN, "text": "<@UJANE> echo x", "ts": "9.9", "channel": GENERAL });
        state.event_payload(event)
    });
    assert_eq!(payload["team_id"], TEAM);
    payload["team_id"] = "T7".into();
    let before = fake.acks().len();
    fake.deliver(crate::fake_slack::Kind::Event, payload);
    fake.until("its acknowledgement", |state| (state.acks.len() > before).then_some(())).await;
    assert!(fake.calls("reactions.add").iter().all(|args| args["timestamp"] != "9.9"));
}

#[tokio::test]
async fn while_slack_does_not_tell_who_somebody_is_the_message_waits_there() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake).with("ALLOWED_CHANNEL_IDS", GENERAL);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    for _ in 0..2 {
        fake.fault("users.info", crate::fake_slack::Fault::Status(503));
    }
    let bob = fake.ask(GENERAL, BOB, "echo later", None);
    fake.answer_with(GENERAL, &bob, "later").await;
    assert!(fake.acks().iter().any(|ack| ack.attempt > 1));
}
