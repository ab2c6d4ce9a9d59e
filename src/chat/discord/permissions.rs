//! What the bot may do in a channel, from roles and the channel's own rules, as Discord computes it. Pure.

use super::wire::{Overwrite, Role, RoleNo, UserNo};

/// What is needed, with the words of Discord's own settings.
pub const NEEDED: [(u64, &str); 8] = [
    (1 << 10, "View Channel"),
    (1 << 11, "Send Messages"),
    (1 << 38, "Send Messages in Threads"),
    (1 << 35, "Create Public Threads"),
    (1 << 14, "Embed Links"),
    (1 << 15, "Attach Files"),
    (1 << 16, "Read Message History"),
    (1 << 6, "Add Reactions"),
];

/// All of it as one number, as in the invite link.
pub const NEEDED_BITS: u64 = {
    let (mut bits, mut place) = (0, 0);
    while place < NEEDED.len() {
        bits |= NEEDED[place].0;
        place += 1;
    }
    bits
};

const ADMINISTRATOR: u64 = 1 << 3;

/// Kinds of overwrites.
const OF_ROLE: u64 = 0;
const OF_MEMBER: u64 = 1;

/// The permissions of `me`, who has `mine` among the server's `roles`, in a channel with these overwrites. The role that
/// everybody has bears the server's own number.
pub fn granted(guild: u64, me: UserNo, mine: &[RoleNo], roles: &[Role], overwrites: &[Overwrite]) -> u64 {
    let is_mine = |role: u64| role == guild || mine.iter().any(|mine| mine.get() == role);
    let of_roles = roles.iter().filter(|role| is_mine(role.id.get()));
    let mut bits = of_roles.fold(0, |bits, role| bits | number(&role.permissions));
    if bits & ADMINISTRATOR != 0 {
        return u64::MAX;
    }
    let is_of = |overwrite: &&Overwrite, kind: u64, id: u64| overwrite.kind == kind && overwrite.id == id.to_string();
    if let Some(everyone) = overwrites.iter().find(|overwrite| is_of(overwrite, OF_ROLE, guild)) {
        bits = (bits & !number(&everyone.deny)) | number(&everyone.allow);
    }
    let of_mine = || {
        let is_mine = |overwrite: &&Overwrite| {
            overwrite.kind == OF_ROLE && overwrite.id.parse().is_ok_and(|id: u64| id != guild && is_mine(id))
        };
        overwrites.iter().filter(is_mine)
    };
    let denied = of_mine().fold(0, |bits, overwrite| bits | number(&overwrite.deny));
    let allowed = of_mine().fold(0, |bits, overwrite| bits | number(&overwrite.allow));
    bits = (bits & !denied) | allowed;
    if let Some(own) = overwrites.iter().find(|overwrite| is_of(overwrite, OF_MEMBER, me.get())) {
        bits = (bits & !number(&own.deny)) | number(&own.allow);
    }
    bits
}

/// What of the needed is missing, in words.
pub fn missing(bits: u64) -> Vec<&'static str> {
    NEEDED.into_iter().filter(|(bit, _)| bits & bit == 0).map(|(_, name)| name).collect()
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use twilight_model::id::Id;

    use super::*;

    #[test]
    fn the_invite_asks_for_what_is_needed_and_no_more() {
        assert_eq!(NEEDED_BITS, 309_237_763_136);
        assert!(missing(NEEDED_BITS).is_empty());
        assert_eq!(missing(NEEDED_BITS & !(1 << 35)), ["Create Public Threads"]);
    }

    #[test]
    fn permissions_are_computed_as_discord_does() {
        let roles: Vec<Role> = serde_json::from_value(json!([
            {"id": "1", "permissions": "3072"},
            {"id": "5", "permissions": "64"},
            {"id": "6", "permissions": "8"},
        ]))
        .unwrap();
        let of = |mine: &[u64], overwrites: serde_json::Value| {
            let mine: Vec<RoleNo> = mine.iter().map(|id| Id::new(*id)).collect();
            let overwrites: Vec<Overwrite> = serde_json::from_value(overwrites).unwrap();
            granted(1, Id::new(9), &mine, &roles, &overwrites)
        };
        assert_eq!(of(&[], json!([])), 3072);
        assert_eq!(of(&[5], json!([])), 3072 | 64);
        assert_eq!(of(&[6], json!([])), u64::MAX);
        assert_eq!(of(&[], json!([{"id": "1", "type": 0, "allow": "0", "deny": "1024"}])), 2048);
        let denied_but_role = json!([
            {"id": "1", "type": 0, "allow": "0", "deny": "3072"},
            {"id": "5", "type": 0, "allow": "1024", "deny": "0"},
        ]);
        assert_eq!(of(&[5], denied_but_role), 1024 | 64);
        assert_eq!(of(&[], json!([{"id": "9", "type": 1, "allow": "16384", "deny": "2048"}])), 1024 | 16384);
    }
}
