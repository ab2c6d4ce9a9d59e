//! Socket Mode's ways to lose events, and that none is lost.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::fake_slack::{ANN, DIRECT, FakeSlack, Frame, Kind, PATIENCE};
use crate::service::Service;

async fn started(service: Service) -> Option<Service> {
    let mut service = service;
    service.start().await.then_some(service)
}

#[tokio::test]
async fn connections_are_replaced_before_they_go_and_nothing_is_lost() {
    let fake = FakeSlack::start().await;
    let Some(service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    let mut asked = Vec::new();
    for (round, reason) in ["refresh_requested", "warning"].into_iter().enumerate() {
        asked.push(fake.say(DIRECT, ANN, &format!("echo before {round}"), None));
        fake.recycle(reason, Duration::from_secs(20));
        asked.push(fake.say(DIRECT, ANN, &format!("echo while {round}"), None));
        fake.until("the old ones closed and two new ones open", |state| {
            (state.sockets.len() == 2 && state.sockets.values().all(|socket| !socket.leaving)).then_some(())
        })
        .await;
        asked.push(fake.say(DIRECT, ANN, &format!("echo after {round}"), None));
    }
    for ts in &asked {
        fake.reactions(DIRECT, ts, &["white_check_mark"]).await;
    }
    assert_eq!(fake.state().made, 6, "as many as were needed");
    assert!(fake.acks().iter().all(|ack| ack.attempt == 1), "nothing had to be delivered twice");
    assert_eq!(fake.complaints(), Vec::<String>::new(), "{}\n{}", fake.story(), service.log());
}

#[tokio::test]
async fn connections_that_end_without_a_word_are_replaced() {
    let fake = FakeSlack::start().await;
    let Some(_service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    fake.to_all(|| Frame::Cut);
    fake.until("two others", |state| (state.made >= 4 && state.sockets.len() == 2).then_some(())).await;
    let ts = fake.say(DIRECT, ANN, "echo back", None);
    fake.answer_with(DIRECT, &ts, "back").await;
}

#[tokio::test]
async fn a_connection_that_is_only_half_there_is_noticed_and_replaced() {
    let fake = FakeSlack::start().await;
    let service = Service::over_sockets(&fake).with("SLACK_SILENCE", "1500ms").with("SLACK_CONNECTIONS", "1");
    let Some(service) = started(service).await else { return };
    fake.connected(1).await;
    fake.to_all(|| Frame::Freeze);
    // It is delivered to what Slack takes for a connection, and again to the next.
    let ts = fake.say(DIRECT, ANN, "echo heard", None);
    fake.answer_with(DIRECT, &ts, "heard").await;
    service.until_logged("nothing came for").await;
    assert!(fake.acks().iter().any(|ack| ack.attempt > 1), "{:?}", fake.acks());
}

#[tokio::test]
async fn what_is_delivered_again_is_done_once() {
    let fake = FakeSlack::start().await;
    fake.change(|state| state.redeliver_after = Duration::from_millis(1));
    let Some(_service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    let ts = fake.say(DIRECT, ANN, "echo once", None);
    fake.reactions(DIRECT, &ts, &["white_check_mark"]).await;
    let answers = fake.own_in(DIRECT, &ts).iter().filter(|message| message.shown().starts_with("once")).count();
    assert_eq!(answers, 1, "{}", fake.story());
}

#[tokio::test]
async fn acknowledgements_come_in_time_while_all_runners_are_busy() {
    let fake = FakeSlack::start().await;
    let Some(_service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    let busy: Vec<_> = (0..2).map(|_| fake.say(DIRECT, ANN, "sleep 2; echo done", None)).collect();
    let more: Vec<_> = (0..15).map(|n| fake.say(DIRECT, ANN, &format!("echo {n}"), None)).collect();
    fake.until("all acknowledgements", |state| (state.acks.len() >= 17).then_some(())).await;
    assert!(fake.acks().iter().all(|ack| ack.took < Duration::from_secs(1)), "{:?}", fake.acks());
    for ts in busy.iter().chain(&more) {
        fake.reactions(DIRECT, ts, &["white_check_mark"]).await;
    }
    assert_eq!(fake.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn socket_mode_that_is_off_is_said_and_not_tried_again() {
    let fake = FakeSlack::start().await;
    let Some(service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    fake.broadcast(&json!({ "type": "disconnect", "reason": "link_disabled" }));
    service.until_says("Socket Mode is switched off").await;
    fake.connected(0).await;
    assert_eq!(fake.state().made, 2);
}

#[tokio::test]
async fn a_second_process_with_the_same_token_is_noticed() {
    let fake = FakeSlack::start().await;
    fake.change(|state| state.other_connections = 1);
    let Some(service) = started(Service::over_sockets(&fake)).await else { return };
    service.until_says("1 more connections use this app token").await;
}

#[tokio::test]
async fn when_slack_has_no_place_it_is_tried_again_later() {
    let fake = FakeSlack::start().await;
    fake.change(|state| state.max_connections = 0);
    let Some(service) = started(Service::over_sockets(&fake)).await else { return };
    service.until_says("no place for another connection").await;
    assert_eq!(fake.calls("apps.connections.open").len(), 1, "places do not become free within a second");
}

#[tokio::test]
async fn the_canary_shows_that_events_arrive() {
    let fake = FakeSlack::start().await;
    let service = Service::over_sockets(&fake).with("SLACK_CANARY_CHANNEL", "CCANARY");
    let Some(service) = started(service).await else { return };
    service.until_says("\"ready\"").await;
    fake.until("an empty channel", |state| {
        let written = state.calls.iter().any(|(method, _)| method == "chat.delete");
        (written && state.channels["CCANARY"].messages.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_does_not_come_back_is_reported() {
    let fake = FakeSlack::start().await;
    fake.change(|state| state.swallow_own = true);
    let service = Service::over_sockets(&fake).with("SLACK_CANARY_CHANNEL", "CCANARY");
    let Some(service) = started(service).await else { return };
    service.until_says("did not come back").await;
}

#[tokio::test]
async fn strange_frames_are_survived() {
    let fake = FakeSlack::start().await;
    let Some(service) = started(Service::over_sockets(&fake).with("SLACK_CONNECTIONS", "1")).await else { return };
    fake.connected(1).await;
    for frame in [
        "this is no JSON",
        "{\"type\":",
        "[]",
        "{}",
        r#"{"type":"brand_new"}"#,
        r#"{"type":"events_api","payload":{}}"#,
        r#"{"type":"events_api","envelope_id":"env-a"}"#,
        r#"{"type":"brand_new","envelope_id":"env-b","payload":{"x":1}}"#,
        r#"{"type":"events_api","envelope_id":"env-c","payload":{"type":"app_rate_limited","team_id":"T1"}}"#,
        r#"{"type":"interactive","envelope_id":"env-d","payload":{"type":"view_submission"}}"#,
        r#"{"type":"slash_commands","envelope_id":"env-e","payload":{}}"#,
        r#"{"type":"hello"}"#,
    ] {
        fake.send_raw(frame);
    }
    let ts = fake.say(DIRECT, ANN, "echo still here", None);
    fake.answer_with(DIRECT, &ts, "still here").await;
    assert_eq!(fake.state().made, 1, "{}", service.log());
    // A frame that is too large ends its connection, and that alone.
    fake.send_raw(&"x".repeat(5 * 1024 * 1024));
    fake.until_within("another connection", PATIENCE, |state| (state.made == 2).then_some(())).await;
    let ts = fake.say(DIRECT, ANN, "echo and now", None);
    fake.answer_with(DIRECT, &ts, "and now").await;
}

#[tokio::test]
async fn a_stop_lets_what_was_heard_be_acknowledged() {
    let fake = FakeSlack::start().await;
    let Some(mut service) = started(Service::over_sockets(&fake)).await else { return };
    fake.connected(2).await;
    for n in 0..20 {
        fake.say(DIRECT, ANN, &format!("echo {n}"), None);
    }
    fake.until("a first acknowledgement", |state| (!state.acks.is_empty()).then_some(())).await;
    let before = Instant::now();
    service.stop();
    assert!(before.elapsed() < Duration::from_secs(30));
    fake.connected(0).await;
    // What was not acknowledged is delivered to the next process, and all is answered.
    assert!(service.start().await);
    let asked: Vec<_> =
        fake.state().channels[DIRECT].messages.iter().filter(|m| m.user == ANN).map(|m| m.ts.clone()).collect();
    for ts in asked {
        fake.reactions(DIRECT, &ts, &["white_check_mark"]).await;
    }
    let kinds: Vec<_> = fake.acks().iter().map(|ack| ack.kind).collect();
    assert!(kinds.iter().all(|kind| *kind == Kind::Event));
}
