//! Looking for jobs: what can be asked of a journal, and how a person's words for a message become that.

use jiff::Timestamp;
use serde::Serialize;

use super::{JobRow, JobState};

/// Jobs to look for; what is `None` does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub which: Which,
    pub progress: Option<Progress>,
    /// The requester's whole id, or the platform's part of it.
    pub requester: Option<String>,
    /// Not older than this, to the second.
    pub since: Option<Timestamp>,
    pub limit: u32,
}

/// Which messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    Any,
    /// Jobs whose id begins so.
    IdStart(String),
    /// The message with this key, or whose key ends so: its channel and its own id, say.
    KeyEnd(String),
}

/// How far a job came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    State(JobState),
    /// Ended with this outcome's word, as in `answered`.
    Outcome(&'static str),
}

impl Progress {
    const OUTCOMES: [&str; 5] = ["answered", "failed", "refused", "cancelled", "merged"];

    /// The words that [`Progress::named`] knows.
    pub const WORDS: &str = "accepted, running, ended, answered, failed, refused, cancelled, merged";

    pub fn named(word: &str) -> Option<Self> {
        let state = [JobState::Accepted, JobState::Running, JobState::Ended].into_iter().find(|s| s.word() == word);
        let outcome = Self::OUTCOMES.into_iter().find(|outcome| *outcome == word);
        state.map(Self::State).or(outcome.map(Self::Outcome))
    }
}

impl Wanted {
    /// All jobs, up to `limit`.
    pub fn any(limit: u32) -> Self {
        Self { which: Which::Any, progress: None, requester: None, since: None, limit }
    }

    /// Whether the job is one of them. A store that can't ask its rows so uses this.
    pub fn matches(&self, row: &JobRow) -> bool {
        let which = match &self.which {
            Which::Any => true,
            Which::IdStart(start) => row.job.as_str().starts_with(start.as_str()),
            Which::KeyEnd(end) => row.message_key.ends_with(end.as_str()),
        };
        let progress = match self.progress {
            None => true,
            Some(Progress::State(state)) => row.state == state,
            Some(Progress::Outcome(word)) => row.outcome.as_ref().is_some_and(|outcome| outcome.word() == word),
        };
        let id = row.requester.as_str();
        let requester = self.requester.as_ref().is_none_or(|who| who == id || who == crate::config::platform_id(id));
        let since = self.since.is_none_or(|since| row.accepted_at.as_second() >= since.as_second());
        which && progress && requester && since
    }
}

impl Which {
    /// What a person means by `text`: a link to a message in Discord or Slack, a message's key, or the start of a job's
    /// id.
    pub fn named(text: &str) -> Self {
        let path = text.split_once("://").map(|(_, rest)| rest.split(['?', '#']).next().unwrap_or_default());
        let Some(path) = path else {
            return if text.contains(['/', ':']) {
                Self::KeyEnd(text.to_owned())
            } else {
                Self::IdStart(text.to_ascii_lowercase())
            };
        };
        let mut parts = path.trim_end_matches('/').rsplit('/');
        let (message, channel) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        Self::KeyEnd(format!("{channel}/{}", slack_time(message).unwrap_or_else(|| message.to_owned())))
    }
}

/// Slack writes the time that names a message without its point in links: `p1700000000000100`.
fn slack_time(message: &str) -> Option<String> {
    let digits = message.strip_prefix('p').filter(|digits| digits.len() > 6)?;
    let (seconds, micros) = digits.split_at_checked(digits.len() - 6)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| format!("{seconds}.{micros}"))
}

/// A lease that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseRow {
    pub runner: String,
    pub fence: u64,
    pub leased_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_named_by_link_key_or_the_start_of_its_jobs_id() {
        let key_end = |end: &str| Which::KeyEnd(end.into());
        for (text, which) in [
            ("06ABC", Which::IdStart("06abc".into())),
            ("terminal:alice/x/0", key_end("terminal:alice/x/0")),
            ("C1/1700000000.000100", key_end("C1/1700000000.000100")),
            ("https://team.slack.com/archives/C1/p1700000000000100", key_end("C1/1700000000.000100")),
            (
                "https://team.slack.com/archives/C1/p1700000000000100?thread_ts=1.2&cid=C1",
                key_end("C1/1700000000.000100"),
            ),
            ("https://discord.com/channels/1/22/333/", key_end("22/333")),
        ] {
            assert_eq!(Which::named(text), which, "{text}");
        }
    }
}
