//! The manifest that operators copy has what the code uses.

use std::collections::BTreeSet;

use janebot::chat::slack::api::Method;

/// The items of the list below this key. The manifest is simple enough to be read by line.
fn list(manifest: &str, key: &str) -> BTreeSet<String> {
    let lines = manifest.lines().skip_while(|line| line.trim() != format!("{key}:")).skip(1);
    lines.map_while(|line| line.trim().strip_prefix("- ").map(str::to_owned)).collect()
}

#[test]
fn the_manifest_asks_for_what_is_used_and_no_more() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/slack-manifest.yaml");
    let manifest = std::fs::read_to_string(path).unwrap();
    let used: BTreeSet<_> = Method::all_scopes().into_iter().map(str::to_owned).collect();
    assert_eq!(list(&manifest, "bot"), used);
    let events = [
        "agent_session_stopped",
        "app_home_opened",
        "app_mention",
        "app_uninstalled",
        "message.channels",
        "message.groups",
        "message.im",
        "message.mpim",
        "reaction_added",
        "tokens_revoked",
    ];
    assert_eq!(list(&manifest, "bot_events"), events.into_iter().map(str::to_owned).collect());
    for line in ["socket_mode_enabled: true", "is_enabled: true", "should_escape: true", "messages_tab_enabled: true"] {
        assert!(manifest.contains(line), "{line}");
    }
}
