//! Every rule of listening, by table.

use serde_json::{Value, json};
use twilight_model::id::Id;

use super::*;
use crate::chat::discord::wire::{Channel, GuildCreate};

const ME: u64 = 900;

fn rules() -> Rules {
    Rules {
        me: Id::new(ME),
        guilds: BTreeSet::new(),
        roles: ["70".to_owned()].into(),
        bots: ["55".to_owned()].into(),
        follow_ups: true,
    }
}

fn atlas() -> Atlas {
    let mut atlas = Atlas::default();
    let guild: GuildCreate = serde_json::from_value(json!({
        "id": "1",
        "roles": [{"id": "71", "permissions": "0", "tags": {"bot_id": ME.to_string()}}, {"id": "70"}],
        "channels": [{"id": "2", "type": 0}, {"id": "4", "type": 2}],
        "threads": [
            {"id": "30", "type": 11, "parent_id": "2", "owner_id": ME.to_string()},
            {"id": "31", "type": 11, "parent_id": "2", "owner_id": "8"}
        ],
    }))
    .unwrap();
    atlas.guild(&guild, Some(Id::new(ME)));
    atlas
}

/// A message of user 8 in channel 2 of server 1, with these fields instead.
fn message(fields: Value) -> Message {
    let mut message = json!({
        "id": "100", "channel_id": "2", "guild_id": "1", "type": 0, "content": "hello",
        "author": {"id": "8", "username": "bob"}, "mentions": [], "referenced_message": null,
    });
    message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(message).unwrap()
}

fn hear(fields: Value) -> Heard {
    rules().hear(&message(fields), &atlas())
}

fn ask(fields: Value) -> Ask {
    match hear(fields.clone()) {
        Heard::Ask(ask) => *ask,
        other => panic!("{fields}: {other:?}"),
    }
}

#[test]
fn a_mention_begins_a_conversation_in_a_thread_of_its_own() {
    let asked = ask(json!({"content": "<@900> do it\0 <@!900>", "mentions": [{"id": "900"}]}));
    assert_eq!(asked.place.conversation().as_str(), "discord:1/2/100");
    assert_eq!(asked.spot.to_string(), "discord:1/2/100");
    assert_eq!((asked.text.as_str(), asked.opens), ("do it", true));
    let by_role = ask(json!({"content": "<@&71> do it", "mention_roles": ["71"]}));
    assert_eq!(by_role.text, "do it");
    let reply = ask(json!({"type": 19, "referenced_message": {"id": "1", "author": {"id": "900"}}}));
    assert_eq!(reply.text, "hello");
    assert!(!ask(json!({"channel_id": "4", "mentions": [{"id": "900"}]})).opens, "voice channels have no threads");
}

#[test]
fn in_our_thread_a_message_needs_no_mention_unless_it_is_for_somebody_else() {
    let followed = ask(json!({"channel_id": "30"}));
    assert_eq!(followed.place.conversation().as_str(), "discord:1/2/30");
    assert!(!followed.opens);
    for fields in [
        json!({"channel_id": "30", "mentions": [{"id": "9"}]}),
        json!({"channel_id": "30", "type": 19, "referenced_message": {"id": "1", "author": {"id": "9"}}}),
        // Without the privileged intent, a text that does not mention us arrives empty.
        json!({"channel_id": "30", "content": ""}),
        json!({"channel_id": "31"}),
        json!({}),
    ] {
        assert_eq!(hear(fields.clone()), Heard::Ignored(Why::NotAddressed), "{fields}");
    }
    let in_theirs = ask(json!({"channel_id": "31", "mentions": [{"id": "900"}]}));
    assert_eq!(in_theirs.place.conversation().as_str(), "discord:1/2/31");
    let strict = Rules { follow_ups: false, ..rules() };
    assert_eq!(strict.hear(&message(json!({"channel_id": "30"})), &atlas()), Heard::Ignored(Why::NotAddressed));
}

#[test]
fn direct_messages_are_for_us() {
    let asked = ask(json!({"guild_id": null, "channel_id": "500"}));
    assert_eq!(asked.place.conversation().as_str(), "discord:@me/500/500");
}

#[test]
fn whoever_is_no_person_is_ignored() {
    let mention = json!([{"id": "900"}]);
    for (fields, why) in [
        (json!({"author": {"id": "900", "bot": true}, "mentions": mention}), Why::Own),
        (json!({"author": {"id": "9", "bot": true}, "mentions": mention}), Why::Bot),
        (json!({"author": {"id": "55", "bot": true}, "channel_id": "30"}), Why::Bot),
        (json!({"webhook_id": "5", "mentions": mention}), Why::Webhook),
        (json!({"type": 18, "mentions": mention}), Why::System),
        (json!({"author": {"id": "9", "system": true}, "mentions": mention}), Why::System),
    ] {
        assert_eq!(hear(fields.clone()), Heard::Ignored(why), "{fields}");
    }
    assert!(ask(json!({"author": {"id": "55", "bot": true}, "mentions": mention})).of_bot);
    let elsewhere = Rules { guilds: ["7".to_owned()].into(), ..rules() };
    assert_eq!(elsewhere.hear(&message(json!({"mentions": mention})), &atlas()), Heard::Ignored(Why::OtherServer));
}

#[test]
fn a_role_vouches_for_its_members() {
    assert!(ask(json!({"mentions": [{"id": "900"}], "member": {"roles": ["69", "70"]}})).vouched);
    assert!(!ask(json!({"mentions": [{"id": "900"}], "member": {"roles": ["69"]}})).vouched);
    assert!(!ask(json!({"mentions": [{"id": "900"}]})).vouched);
}

#[test]
fn an_unknown_channel_is_looked_up_only_when_the_message_may_be_for_us() {
    assert_eq!(hear(json!({"channel_id": "77", "mentions": [{"id": "900"}]})), Heard::Unknown);
    assert_eq!(hear(json!({"channel_id": "77"})), Heard::Unknown);
    assert_eq!(hear(json!({"channel_id": "77", "mentions": [{"id": "9"}]})), Heard::Ignored(Why::NotAddressed));
    let mut atlas = atlas();
    let channel: Channel = serde_json::from_value(json!({"id": "77", "type": 12, "parent_id": "2"})).unwrap();
    atlas.channel(&channel, Some(Id::new(1)));
    let heard = rules().hear(&message(json!({"channel_id": "77"})), &atlas);
    assert_eq!(heard, Heard::Ignored(Why::NotAddressed));
}

#[test]
fn the_preview_of_a_link_is_no_edit() {
    let changed = |fields| rules().changed(&message(fields), &atlas());
    assert_eq!(changed(json!({"edited_timestamp": null, "embeds": [{"url": "https://example.org"}]})), None);
    assert_eq!(changed(json!({"edited_timestamp": "2026-01-01T00:00:00+00:00", "author": {"id": "900"}})), None);
    let change = changed(json!({"edited_timestamp": "2026-01-01T00:00:00+00:00", "content": "<@900> other"})).unwrap();
    assert_eq!((change.key.as_str(), change.text.as_deref()), ("discord:1/2/100", Some("other")));
    assert_eq!(change.conversation.as_str(), "discord:1/2/100");
    assert_eq!(change.by.as_str(), "discord:8");
}

#[tokio::test(start_paused = true)]
async fn bots_that_talk_too_much_are_not_heard_for_a_while() {
    let mut guard = LoopGuard::default();
    let (here, there) = (Id::new(1), Id::new(2));
    for _ in 0..MAX_OF_BOTS {
        assert!(guard.allows(here, Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(!guard.allows(here, Instant::now()));
    assert!(guard.allows(there, Instant::now()), "other channels are not meant");
    tokio::time::advance(LOOP_WINDOW).await;
    assert!(!guard.allows(here, Instant::now()), "a pause of a minute is no end of a loop");
    tokio::time::advance(LOOP_REST).await;
    assert!(guard.allows(here, Instant::now()));
}
