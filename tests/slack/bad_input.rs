//! What can be wrong with tokens, channels and requests, and what is seen of it.

use janebot::chat::finding::Finding;
use janebot::chat::slack::doctor;
use serde_json::json;

use crate::fake_slack::{ANN, DIRECT, FakeSlack, GENERAL, SECRET, client, form, signed};
use crate::service::Service;

#[tokio::test]
async fn wrong_tokens_are_named_and_nothing_is_tried_again() {
    let fake = FakeSlack::start().await;
    let mut wrong_bot = Service::over_sockets(&fake).with("SLACK_BOT_TOKEN", "xoxb-wrong");
    if !wrong_bot.start().await {
        return;
    }
    wrong_bot.until_says("invalid_auth").await;
    assert!(wrong_bot.condition().await.to_string().contains("SLACK_BOT_TOKEN"));
    wrong_bot.stop();
    assert_eq!(fake.calls("auth.test").len(), 1);
    let mut wrong_app = Service::over_sockets(&fake).with("SLACK_APP_TOKEN", "xapp-wrong");
    assert!(wrong_app.start().await);
    wrong_app.until_says("SLACK_APP_TOKEN").await;
    assert!(wrong_app.condition().await["state"] == "failed", "{}", wrong_app.condition().await);
    wrong_app.stop();
    assert_eq!(fake.calls("apps.connections.open").len(), 1);
}

#[tokio::test]
async fn a_slack_that_is_away_at_the_start_is_waited_for() {
    let fake = FakeSlack::start().await;
    fake.fault("auth.test", crate::fake_slack::Fault::Status(503));
    fake.fault("apps.connections.open", crate::fake_slack::Fault::RateLimited(1));
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    let ts = fake.say(DIRECT, ANN, "echo patient", None);
    fake.answer_with(DIRECT, &ts, "patient").await;
}

#[tokio::test]
async fn a_token_that_is_revoked_is_reported_and_the_service_goes_on() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    fake.deliver_event(json!({ "type": "tokens_revoked", "tokens": { "bot": ["UJANE"] } }));
    service.until_says("its token was revoked").await;
    fake.connected(0).await;
    service.stop();
}

#[tokio::test]
async fn a_missing_scope_is_named_and_costs_only_what_it_is_for() {
    let fake = FakeSlack::start().await;
    fake.change(|state| state.scopes.remove("reactions:write"));
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    let ts = fake.say(DIRECT, ANN, "echo anyway", None);
    fake.answer_with(DIRECT, &ts, "anyway").await;
    service.until_logged("needs the scope reactions:write").await;
    service.until_logged("the Slack app lacks scopes").await;
}

#[tokio::test]
async fn channels_that_can_not_be_written_to_hold_up_nobody() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    // Archived after the request came; and one that Jane was taken out of.
    let archived = fake.ask(GENERAL, ANN, "sleep 1; echo lost", None);
    fake.reactions(GENERAL, &archived, &["eyes"]).await;
    fake.change(|state| state.channels.get_mut(GENERAL).unwrap().archived = true);
    service.until_logged("a post could not be sent and was given up").await;
    let why = service.command(&["why", &format!("{GENERAL}/{archived}")]).output().unwrap();
    let told = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(told.contains("gave up sending a message") && told.contains("the channel is archived"), "{told}");
    fake.change(|state| {
        let general = state.channels.get_mut(GENERAL).unwrap();
        (general.archived, general.has_bot) = (false, false);
    });
    let event =
        json!({ "type": "app_mention", "user": ANN, "text": "<@UJANE> echo x", "ts": "99.1", "channel": GENERAL });
    fake.deliver_event(event);
    service.until_logged("not_in_channel").await;
    let ts = fake.say(DIRECT, ANN, "echo fine", None);
    fake.answer_with(DIRECT, &ts, "fine").await;
}

#[tokio::test]
async fn a_message_that_was_deleted_while_it_was_worked_on_ends_quietly() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    let ts = fake.ask(GENERAL, ANN, "sleep 1; echo gone", None);
    fake.reactions(GENERAL, &ts, &["eyes"]).await;
    fake.change(|state| state.channels.get_mut(GENERAL).unwrap().messages.clear());
    service.until_logged("thread_not_found").await;
    service.until_says("\"ready\"").await;
}

#[tokio::test]
async fn requests_that_are_not_slacks_are_refused() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_http(&fake);
    if !service.start().await {
        return;
    }
    fake.until("it knows itself", |state| state.calls.iter().any(|(name, _)| name == "auth.test").then_some(())).await;
    service.until_says("no event has come").await;
    let url = format!("{}/slack/events", service.admin());
    let event = json!({
        "type": "event_callback", "team_id": "T1", "event_id": "Ev1",
        "event": { "type": "message", "channel_type": "im", "user": ANN, "text": "echo x", "ts": "9.9", "channel": DIRECT },
    })
    .to_string();
    let json = "application/json";
    let status = |request: reqwest::RequestBuilder| async { request.send().await.unwrap().status().as_u16() };
    assert_eq!(status(signed(&url, json, &event, "another-secret", 0)).await, 401, "forged");
    assert_eq!(status(signed(&url, json, &event, SECRET, 301)).await, 401, "replayed");
    assert_eq!(status(signed(&url, json, &event, SECRET, -310)).await, 401, "of the future");
    assert_eq!(status(client().post(&url).body(event.clone())).await, 401, "unsigned");
    assert_eq!(status(signed(&url, json, &event, SECRET, 0).body(event.replace("echo", "rm"))).await, 401, "altered");
    assert_eq!(status(signed(&url, json, "{\"type\":", SECRET, 0)).await, 400, "broken");
    assert_eq!(status(signed(&url, json, &"x".repeat(2 << 20), SECRET, 0)).await, 413, "too large");
    let odd = format!("{}/slack/interactive", service.admin());
    assert_eq!(status(signed(&odd, json, &form(&json!({ "x": "y" })), SECRET, 0)).await, 400, "no payload");
    let verification = json!({ "type": "url_verification", "challenge": "c4ll3nge" }).to_string();
    assert_eq!(status(signed(&url, json, &verification, "another-secret", 0)).await, 401);
    let answer = signed(&url, json, &verification, SECRET, 0).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "c4ll3nge");
    assert!(fake.state().channels[DIRECT].messages.is_empty(), "nothing of it was done");
    // A retry of what never arrived is taken; one of what did is done once.
    let sent = fake.say(DIRECT, ANN, "echo no event yet", None);
    let real = event.replace("9.9", &sent).replace("echo x", "echo retried");
    for attempt in ["1", "2"] {
        let request = signed(&url, json, &real, SECRET, 0).header("x-slack-retry-num", attempt);
        assert_eq!(status(request.header("x-slack-retry-reason", "http_timeout")).await, 200);
    }
    fake.answer_with(DIRECT, &sent, "retried").await;
    fake.reactions(DIRECT, &sent, &["white_check_mark"]).await;
    let answers = fake.own_in(DIRECT, &sent).iter().filter(|m| m.shown().starts_with("retried")).count();
    assert_eq!(answers, 1);
}

#[tokio::test]
async fn the_doctor_names_what_is_missing() {
    let fake = FakeSlack::start().await;
    let service = Service::over_sockets(&fake).with("SLACK_CANARY_CHANNEL", "CCANARY");
    let findings = doctor::examine(&service.config()).await;
    assert!(findings.iter().all(|finding| matches!(finding, Finding::Good(_))), "{findings:?}");
    fake.change(|state| {
        state.scopes.remove("files:write");
        state.channels.get_mut("CCANARY").unwrap().has_bot = false;
    });
    let service = service.with("SLACK_APP_TOKEN", "xapp-wrong");
    let findings = doctor::examine(&service.config()).await;
    let bad = |finding: &Finding| if let Finding::Bad(text) = finding { Some(text.clone()) } else { None };
    let ill: Vec<_> = findings.iter().filter_map(bad).collect();
    assert_eq!(ill.len(), 3, "{ill:?}");
    assert!(ill[0].contains("files:write") && ill[1].contains("invite the bot") && ill[2].contains("SLACK_APP_TOKEN"));
    let service = service.with("SLACK_BOT_TOKEN", "xoxb-wrong");
    let findings = doctor::examine(&service.config()).await;
    assert!(findings[0].to_string().contains("SLACK_BOT_TOKEN does not work"), "{findings:?}");
    assert!(fake.state().channels["CCANARY"].messages.is_empty(), "nobody noticed");
}
