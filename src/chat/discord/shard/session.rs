//! What a shard needs to go on where it was: its session, how far it came, and what it saw last in each conversation.
//!
//! An event counts as done when its message is in the journal. The sequence that is kept never passes one that is not,
//! so a session that is resumed after a crash brings it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::chat::discord::wire::{ChannelNo, GuildNo, MessageNo};

/// Channels whose last message is remembered. Each costs a request after a session that could not be resumed.
const MAX_SEEN: usize = 500;

/// What is kept over a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Names the bot's token without telling it: another bot's session is of no use.
    pub of: String,
    pub session: Option<Session>,
    pub seen: BTreeMap<ChannelNo, Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: String,
    pub sequence: u64,
    pub url: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub guild: Option<GuildNo>,
    pub last: MessageNo,
}

/// How far a shard came. Shared by the one who listens and the one who hands in.
#[derive(Debug, Default)]
pub struct Course(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Events that are not done.
    open: BTreeSet<u64>,
    seen: BTreeMap<ChannelNo, Seen>,
}

impl Course {
    pub fn of(seen: BTreeMap<ChannelNo, Seen>) -> Self {
        Self(Mutex::new(Inner { open: BTreeSet::new(), seen }))
    }

    pub fn begin(&self, sequence: u64) {
        self.lock().open.insert(sequence);
    }

    pub fn done(&self, sequence: u64) {
        self.lock().open.remove(&sequence);
    }

    /// The last sequence before which everything is done, where `latest` arrived last.
    pub fn safe(&self, latest: u64) -> u64 {
        self.lock().open.first().map_or(latest, |first| latest.min(first.saturating_sub(1)))
    }

    /// Whether everything that arrived is done.
    pub fn is_done(&self) -> bool {
        self.lock().open.is_empty()
    }

    /// A message of a channel that is followed, or, with `begins`, one from which on it is.
    pub fn see(&self, channel: ChannelNo, guild: Option<GuildNo>, message: MessageNo, begins: bool) {
        let mut inner = self.lock();
        match inner.seen.get_mut(&channel) {
            Some(seen) => seen.last = seen.last.max(message),
            None if begins => {
                inner.seen.insert(channel, Seen { guild, last: message });
                if inner.seen.len() > MAX_SEEN {
                    let oldest = inner.seen.iter().min_by_key(|(_, seen)| seen.last).map(|(channel, _)| *channel);
                    oldest.map(|oldest| inner.seen.remove(&oldest));
                }
            }
            None => {}
        }
    }

    pub fn forget(&self, channel: ChannelNo) {
        self.lock().seen.remove(&channel);
    }

    pub fn seen(&self) -> BTreeMap<ChannelNo, Seen> {
        self.lock().seen.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that runs under the lock can leave it half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name for the token that does not tell it.
pub fn name_of(token: &str) -> String {
    let mut name = hex::encode(Sha256::digest(format!("janebot session of {token}")));
    name.truncate(16);
    name
}

#[cfg(test)]
mod tests {
    use twilight_model::id::Id;

    use super::*;

    #[test]
    fn the_kept_sequence_never_passes_an_event_that_is_not_done() {
        let course = Course::default();
        course.begin(5);
        course.begin(7);
        assert_eq!(course.safe(9), 4);
        course.done(5);
        assert_eq!(course.safe(9), 6);
        course.done(7);
        assert_eq!(course.safe(9), 9);
    }

    #[test]
    fn the_channels_that_were_quiet_for_longest_are_forgotten() {
        let course = Course::default();
        for number in 1..=600 {
            course.see(Id::new(number), None, Id::new(1000 + number), true);
        }
        course.see(Id::new(700), None, Id::new(5), false);
        let seen = course.seen();
        assert_eq!(
            (seen.len(), seen.contains_key(&Id::new(100)), seen.contains_key(&Id::new(101))),
            (500, false, true)
        );
        course.see(Id::new(600), None, Id::new(1), false);
        assert_eq!(course.seen()[&Id::new(600)].last, Id::new(1600), "an older message is no news");
    }
}
