use proptest::prelude::*;
use serde_json::json;

use super::*;

fn me() -> Me {
    Me { team: "T1".into(), user: "UJANE".into(), bot: "BJANE".into() }
}

fn event(event: Value) -> News {
    of_event(&json!({ "type": "event_callback", "team_id": "T1", "event_id": "Ev1", "event": event }), &me())
}

fn said_of(news: News) -> Said {
    match news {
        News::Said(said) => *said,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_mention_and_its_message_are_the_same_words() {
    let mention = said_of(event(json!({
        "type": "app_mention", "user": "U1", "text": "<@UJANE> echo hi &gt; x", "ts": "10.1", "channel": "C1", "team": "T1"
    })));
    let message = said_of(event(json!({
        "type": "message", "user": "U1", "text": "<@UJANE> echo hi &gt; x", "ts": "10.1", "channel": "C1",
        "channel_type": "channel", "team": "T1", "client_msg_id": "x"
    })));
    assert_eq!((&mention.text, mention.root()), (&"echo hi > x".to_owned(), "10.1"));
    assert!(mention.is_bare && !message.is_bare);
    assert_eq!(Said { is_bare: false, ..mention }, message);
}

#[test]
fn a_root_that_names_itself_as_its_thread_is_a_root() {
    let said = said_of(event(json!({
        "type": "message", "user": "U1", "text": "hi", "ts": "10.1", "thread_ts": "10.1", "channel": "D1",
        "channel_type": "im"
    })));
    assert!(said.thread.is_none() && said.is_direct && !said.is_mention);
}

#[test]
fn our_own_words_and_those_of_programs_are_no_requests() {
    for (own, expected) in [
        (json!({ "user": "UJANE" }), true),
        (json!({ "user": "UJANE", "bot_id": "BJANE" }), true),
        (json!({ "bot_id": "BJANE", "subtype": "bot_message" }), true),
        (json!({ "bot_id": "BOTHER", "user": "U7", "text": "<@UJANE> hi" }), false),
        (json!({ "bot_id": "BOTHER", "subtype": "bot_message" }), false),
    ] {
        let mut message = json!({ "type": "message", "ts": "10.1", "channel": "C1", "text": "x" });
        message.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let news = event(message.clone());
        match expected {
            true => assert_eq!(news, News::Own { channel: "C1".into(), ts: "10.1".into() }, "{message}"),
            false => assert!(matches!(news, News::Nothing(_)), "{message}"),
        }
    }
}

#[test]
fn files_come_along_even_without_words() {
    let said = said_of(event(json!({
        "type": "message", "subtype": "file_share", "user": "U1", "text": "", "ts": "10.1", "channel": "D1",
        "channel_type": "im",
        "files": [
            { "id": "F1", "name": "a.txt", "size": 3, "url_private": "https://files.slack.com/p", "url_private_download": "https://files.slack.com/d" },
            { "id": "F2", "file_access": "check_file_info" },
            { "id": "F3", "mode": "tombstone", "url_private": "https://files.slack.com/x" },
        ]
    })));
    let files: Vec<_> = said.files.iter().map(|file| (file.name.as_str(), file.size, file.url.as_str())).collect();
    assert_eq!(files, [("a.txt", 3, "https://files.slack.com/d"), ("file", 0, "slack-file:F2")]);
}

#[test]
fn edits_and_deletions_are_changes_of_a_message() {
    let edited = |old: &str, new: &str| {
        event(json!({
            "type": "message", "subtype": "message_changed", "channel": "C1", "ts": "11.1",
            "message": { "user": "U1", "text": new, "ts": "10.2", "thread_ts": "10.1" },
            "previous_message": { "user": "U1", "text": old, "ts": "10.2" },
        }))
    };
    let changed = |text: Option<&str>| News::Changed {
        channel: "C1".into(),
        ts: "10.2".into(),
        thread: Some("10.1".into()),
        user: "U1".into(),
        text: text.map(str::to_owned),
    };
    assert_eq!(edited("a", "<@UJANE> b"), changed(Some("b")));
    assert!(matches!(edited("a", "a"), News::Nothing(_)), "an unfurled link changes no word");
    let deleted = event(json!({
        "type": "message", "subtype": "message_deleted", "channel": "C1", "ts": "11.1", "deleted_ts": "10.2",
        "previous_message": { "user": "U1", "text": "a", "ts": "10.2", "thread_ts": "10.1" },
    }));
    assert_eq!(deleted, changed(None));
    let tombstone = event(json!({
        "type": "message", "subtype": "message_changed", "channel": "C1", "ts": "11.1",
        "message": { "subtype": "tombstone", "user": "USLACKBOT", "text": "This message was deleted.", "ts": "10.2",
                     "thread_ts": "10.1" },
        "previous_message": { "user": "U1", "text": "a", "ts": "10.2" },
    }));
    assert_eq!(tombstone, changed(None));
}

#[test]
fn buttons_shortcuts_commands_and_stops_are_understood() {
    let pressed = of_interaction(
        &json!({
            "type": "block_actions", "user": { "id": "U1" }, "channel": { "id": "C1" },
            "container": { "channel_id": "C1", "message_ts": "10.5", "thread_ts": "10.1" },
            "actions": [{ "action_id": "x", "value": "janebot:cancel:01job" }],
        }),
        &me(),
    );
    let button = Button::parse("janebot:cancel:01job").unwrap();
    let thread = Some("10.1".to_owned());
    assert_eq!(pressed, News::Pressed { button, user: "U1".into(), channel: "C1".into(), thread });
    let asked = of_interaction(
        &json!({
            "type": "message_action", "callback_id": "ask", "trigger_id": "13.7", "user": { "id": "U1", "team_id": "T1" },
            "channel": { "id": "C1" },
            "message": { "user": "U2", "bot_id": "B9", "text": "disk &lt;full&gt;", "ts": "10.2", "thread_ts": "10.1" },
        }),
        &me(),
    );
    let News::Asked { said, trigger } = asked else { panic!("{asked:?}") };
    assert_eq!(
        (said.user.as_str(), said.root(), said.text.as_str(), trigger.as_str()),
        ("U1", "10.1", "disk <full>", "13.7")
    );
    assert_eq!(said.team.as_deref(), Some("T1"));
    let command = of_command(
        &json!({ "command": "/jane", "text": "do &amp; go", "user_id": "U1", "channel_id": "C1", "team_id": "T1" }),
        &me(),
    );
    assert_eq!(
        command,
        News::Command { user: "U1".into(), team: "T1".into(), channel: "C1".into(), text: "do & go".into() }
    );
    let stopped = News::Stopped { user: "U1".into(), channel: "D1".into(), thread: "10.1".into() };
    let stop = json!({ "type": "agent_session_stopped", "user": "U1", "channel": "D1", "thread_ts": "10.1",
                       "streaming_message_ts": [] });
    assert_eq!(event(stop), stopped);
    let cross =
        json!({ "type": "reaction_added", "user": "U1", "reaction": "x", "item": { "channel": "D1", "ts": "10.1" } });
    assert_eq!(event(cross), stopped);
    let ours = json!({ "type": "reaction_added", "user": "UJANE", "reaction": "x", "item": { "channel": "D1", "ts": "10.1" } });
    assert!(matches!(event(ours), News::Nothing(_)));
}

#[test]
fn what_is_not_understood_is_left_alone() {
    for payload in [json!(null), json!([]), json!({}), json!({ "type": "event_callback" }), json!({ "event": 7 })] {
        assert!(matches!(of_event(&payload, &me()), News::Nothing(_)), "{payload}");
        assert!(matches!(of_interaction(&payload, &me()), News::Nothing(_)), "{payload}");
        assert!(matches!(of_command(&payload, &me()), News::Nothing(_)), "{payload}");
    }
    for odd in [
        json!({ "type": "message", "subtype": "channel_join", "user": "U1", "channel": "C1", "ts": "1.1" }),
        json!({ "type": "message", "subtype": "brand_new", "user": "U1", "channel": "C1", "ts": "1.1" }),
        json!({ "type": "message", "user": "U1", "channel": { "id": "C1" }, "ts": "1.1" }),
        json!({ "type": "message", "user": "U1", "channel": "C1", "ts": 1.1 }),
        json!({ "type": "message", "user": "U1", "channel": "C1/../x", "ts": "1.1" }),
        json!({ "type": "channel_rename", "channel": { "id": "C1" } }),
    ] {
        assert!(matches!(event(odd.clone()), News::Nothing(_)), "{odd}");
    }
    assert_eq!(of_event(&json!({ "type": "app_rate_limited", "team_id": "T1" }), &me()), News::HeldBack);
}

fn any_json() -> impl Strategy<Value = Value> {
    let keys =
        "type|subtype|event|user|channel|ts|text|message|previous_message|files|item|actions|container|id|bot_id";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "(message|app_mention|message_changed|message_deleted|block_actions|U1|C1|1\\.1|<@UJANE>|[<>&|@]{0,9})"
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys, inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_payload_is_too_strange(payload in any_json()) {
        let _ = (of_event(&payload, &me()), of_interaction(&payload, &me()), of_command(&payload, &me()));
    }
}
