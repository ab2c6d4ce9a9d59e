//! Whose messages count: members of the workspace, not guests and strangers, unless they are named.
//!
//! The desk knows the lists of people and channels. This room knows what only Slack does: who is a guest, who comes from
//! another organisation, what channel is shared with one. Decided here, purely, in [`standing`]; [`People`] asks Slack.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::api::{Api, ApiError, Method};
use super::event::{Me, Said};
use super::recent::Recent;
use crate::config::{AccessConfig, platform_id};

/// Somebody who becomes a guest is one to us after this time.
const FRESH_FOR: Duration = Duration::from_secs(300);

/// More people than a workspace has that talk to Jane within that time.
const MAX_PEOPLE: usize = 5_000;

/// What Slack says of somebody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Person {
    team_id: Option<String>,
    deleted: bool,
    is_bot: bool,
    is_restricted: bool,
    is_ultra_restricted: bool,
    is_stranger: bool,
}

/// Whether a message may go to the desk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Known,
    /// It depends on who that is.
    Ask,
    /// No; the reason is a sentence for its author.
    Stranger(&'static str),
}

const OF_OTHERS: &str =
    "This channel is shared with another organisation, where I answer only people that my operator has named.";
const OUTSIDER: &str = "I answer only members of this workspace, and people that my operator has named.";
const GUEST: &str = "I answer guests only when my operator has named them.";
const UNKNOWN: &str = "I can't find out who you are, so I can't answer you.";

/// What can be said without asking Slack.
pub fn standing(said: &Said, me: &Me, access: &AccessConfig, teams: &std::collections::BTreeSet<String>) -> Standing {
    let has = |list: &std::collections::BTreeSet<String>, id: &str| list.iter().any(|item| platform_id(item) == id);
    if has(&access.users, &said.user) || has(&access.admins, &said.user) {
        return Standing::Known;
    }
    let is_named = has(&access.channels, &said.channel);
    if said.is_shared && !is_named {
        return Standing::Stranger(OF_OTHERS);
    }
    if said.team.as_ref().is_some_and(|team| *team != me.team && !teams.contains(team)) {
        return Standing::Stranger(OUTSIDER);
    }
    // Whoever is on no list is refused by the desk, whoever it is.
    if is_named || access.everyone { Standing::Ask } else { Standing::Known }
}

/// What can be said of somebody about whom Slack was asked.
pub fn judge(person: &Person, me: &Me, teams: &std::collections::BTreeSet<String>) -> Standing {
    let elsewhere = person.team_id.as_ref().is_some_and(|team| *team != me.team && !teams.contains(team));
    match person {
        person if person.deleted || person.is_bot => Standing::Stranger(OUTSIDER),
        person if person.is_stranger || elsewhere => Standing::Stranger(OUTSIDER),
        person if person.is_restricted || person.is_ultra_restricted => Standing::Stranger(GUEST),
        _ => Standing::Known,
    }
}

/// Whom Slack was asked about lately.
pub struct People(Mutex<Recent<String, (Instant, Person)>>);

impl People {
    pub fn new() -> Self {
        Self(Mutex::new(Recent::new(MAX_PEOPLE)))
    }

    /// Whether the message may go to the desk.
    ///
    /// # Errors
    /// When Slack can't be asked now.
    pub async fn standing(
        &self,
        api: &Api,
        said: &Said,
        me: &Me,
        access: &AccessConfig,
        teams: &std::collections::BTreeSet<String>,
    ) -> Result<Standing, ApiError> {
        match standing(said, me, access, teams) {
            Standing::Ask => match self.person(api, &said.user).await {
                Ok(person) => Ok(judge(&person, me, teams)),
                Err(error @ ApiError::Refused { .. }) => {
                    tracing::warn!(%error, "Slack does not say who somebody is: taken for a stranger");
                    Ok(Standing::Stranger(UNKNOWN))
                }
                Err(error) => Err(error),
            },
            known => Ok(known),
        }
    }

    async fn person(&self, api: &Api, user: &str) -> Result<Person, ApiError> {
        let now = Instant::now();
        let known =
            self.lock().get(user).filter(|(asked, _)| now - *asked < FRESH_FOR).map(|(_, person)| person.clone());
        if let Some(person) = known {
            return Ok(person);
        }
        #[derive(Deserialize)]
        struct Answer {
            user: Person,
        }
        let Answer { user: person } = api.call(Method::UserInfo, &json!({ "user": user })).await?;
        self.lock().put(user.to_owned(), (now, person.clone()));
        Ok(person)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recent<String, (Instant, Person)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn me() -> Me {
        Me { team: "T1".into(), user: "UJANE".into(), bot: "BJANE".into() }
    }

    fn said(user: &str, channel: &str, team: Option<&str>, is_shared: bool) -> Said {
        Said {
            user: user.into(),
            team: team.map(str::to_owned),
            channel: channel.into(),
            ts: "1.1".into(),
            thread: None,
            thread_by: None,
            text: "hi".into(),
            files: Vec::new(),
            is_direct: false,
            is_mention: true,
            is_for_other: false,
            is_shared,
            is_bare: false,
        }
    }

    #[test]
    fn strangers_are_told_apart_before_slack_is_asked() {
        let set = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<BTreeSet<_>>();
        let access =
            AccessConfig { users: set(&["U1", "slack:U2"]), channels: set(&["C1"]), ..AccessConfig::default() };
        let teams = set(&["T2"]);
        for (user, channel, team, is_shared, expected) in [
            ("U1", "C9", None, true, Standing::Known),
            ("U2", "C9", Some("T9"), true, Standing::Known),
            ("U3", "C9", Some("T1"), true, Standing::Stranger(OF_OTHERS)),
            ("U3", "C1", Some("T9"), true, Standing::Stranger(OUTSIDER)),
            ("U3", "C1", Some("T2"), true, Standing::Ask),
            ("U3", "C1", None, false, Standing::Ask),
            ("U3", "C9", Some("T1"), false, Standing::Known),
        ] {
            let said = said(user, channel, team, is_shared);
            assert_eq!(standing(&said, &me(), &access, &teams), expected, "{user} {channel} {team:?} {is_shared}");
        }
        let open = AccessConfig { everyone: true, ..AccessConfig::default() };
        assert_eq!(standing(&said("U3", "C9", None, false), &me(), &open, &teams), Standing::Ask);
    }

    #[test]
    fn guests_and_strangers_are_refused() {
        let of = |json: serde_json::Value| judge(&serde_json::from_value(json).unwrap(), &me(), &BTreeSet::new());
        assert_eq!(of(json!({ "team_id": "T1", "name": "ann" })), Standing::Known);
        assert_eq!(of(json!({})), Standing::Known);
        for guest in [json!({ "is_restricted": true }), json!({ "is_ultra_restricted": true })] {
            assert_eq!(of(guest), Standing::Stranger(GUEST));
        }
        for stranger in [
            json!({ "is_stranger": true }),
            json!({ "team_id": "T9" }),
            json!({ "deleted": true }),
            json!({ "is_bot": true }),
        ] {
            assert_eq!(of(stranger), Standing::Stranger(OUTSIDER));
        }
    }
}
