//! Stopping by a word, and who may stop what. Pure.

use crate::config::AccessConfig;
use crate::job::RequesterId;

use super::admission::{is_terminal, listed};

/// What people write when they want an agent to stop. A message that says more than this is a prompt.
const WORDS: [&str; 12] = [
    "stop",
    "stop it",
    "stop that",
    "stop please",
    "please stop",
    "cancel",
    "cancel it",
    "cancel that",
    "abort",
    "halt",
    "stopp",
    "nevermind",
];

/// Whether the whole message is a wish to stop.
pub fn is_stop(text: &str) -> bool {
    // Longer than any of the words with some exclamation marks.
    if text.len() > 60 {
        return false;
    }
    let text = text.trim().trim_matches(|c: char| c.is_ascii_punctuation() || c.is_whitespace()).to_lowercase();
    let words: Vec<_> = text.split_whitespace().collect();
    WORDS.contains(&words.join(" ").as_str())
}

/// Whether `by` may stop a job of `requester`.
pub fn may_stop(by: &RequesterId, requester: &RequesterId, access: &AccessConfig) -> bool {
    by == requester || is_terminal(by) || listed(&access.admins, by.as_str())
}

/// How many jobs a wish to stop reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopping {
    pub jobs: usize,
    /// Jobs that were left alone, because only their requester or an admin may stop them.
    pub of_others: usize,
}

impl Stopping {
    /// For whoever wished it.
    pub fn sentence(self) -> String {
        let count = |jobs: usize| if jobs == 1 { "1 job".to_owned() } else { format!("{jobs} jobs") };
        match (self.jobs, self.of_others) {
            (0, 0) => "Nothing is running here.".into(),
            (0, others) => format!("Left {} of others alone: only who asked, or an admin, may stop it.", count(others)),
            (jobs, 0) => format!("Stopping {}.", count(jobs)),
            (jobs, others) => format!(
                "Stopping {}. Left {} of others alone: only who asked, or an admin, may stop it.",
                count(jobs),
                count(others)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_stop_only_as_a_whole() {
        for text in ["stop", "STOP!!!", " Stop it. ", "please  stop", "Cancel", "abort"] {
            assert!(is_stop(text), "{text:?}");
        }
        for text in ["", "stop the server and start it again", "don't stop", "stop?\nwhy", "stopping", &"!".repeat(99)]
        {
            assert!(!is_stop(text), "{text:?}");
        }
    }

    #[test]
    fn a_job_is_stopped_by_its_requester_an_admin_or_the_terminal() {
        let access = AccessConfig { admins: ["U7".to_owned()].into(), ..AccessConfig::default() };
        let id = |id: &str| RequesterId::new(id);
        for (by, may) in [("slack:U1", true), ("slack:U2", false), ("slack:U7", true), ("terminal:root", true)] {
            assert_eq!(may_stop(&id(by), &id("slack:U1"), &access), may, "{by}");
        }
    }

    #[test]
    fn the_sentence_says_what_was_left_alone() {
        assert_eq!(Stopping::default().sentence(), "Nothing is running here.");
        assert_eq!(Stopping { jobs: 2, of_others: 0 }.sentence(), "Stopping 2 jobs.");
        assert!(Stopping { jobs: 0, of_others: 1 }.sentence().contains("only who asked"));
        assert!(Stopping { jobs: 1, of_others: 3 }.sentence().starts_with("Stopping 1 job. Left 3 jobs"));
    }
}
