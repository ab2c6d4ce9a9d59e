//! What is to be sent to one conversation, and what to do next about it. Pure: no clock, no journal, no chat.
//!
//! Effects go out in the order in which they were recorded, one request at a time. A message that may be in the chat is
//! looked for before it is written again, and nothing overtakes it meanwhile. Edits and reactions can be repeated
//! instead: when an older one may still arrive, the newest is sent once more after that can't be any longer, so that an
//! old text never stays. Progress texts come last, and only the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::chat::{LATE_EFFECT, SendError};
use crate::job::JobId;
use crate::journal::outgoing::{Delivery, Effect, OutgoingRow};
use crate::supervise::backoff;

/// After this time a message is given up that the chat can't be given. Whoever reads it then has long asked again.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Pause after a failure, doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Longest wait that a chat may ask for; one that asks for more is tried again all the same.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);

/// How often a message that may be there is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// People read no faster, and all runs of a workspace share its budget of edits.
const PROGRESS_EVERY: Duration = Duration::from_secs(3);

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the open effects from the journal.
    Load,
    /// Make the request for this effect; note first that it is tried, where repeating it would be seen.
    Send(Box<OutgoingRow>),
    /// Look for the message that has this row's key.
    Find(Box<OutgoingRow>),
    /// Tell the journal how it ended.
    Record(Box<OutgoingRow>, Delivery),
    /// Show this progress in its message, if the name of that is known. `late` says that a message of it which is not
    /// found now will not come any more.
    Show { job: JobId, text: String, message: Option<String>, late: bool },
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Loaded(Vec<(OutgoingRow, Duration)>),
    /// The chat's answer to a request.
    Sent(Result<Option<String>, SendError>),
    /// The chat's answer to a search.
    Found(Result<Option<String>, SendError>),
    Recorded,
    /// What progress showed: the message's name, as far as it is known.
    Shown {
        message: Option<String>,
        result: Result<(), SendError>,
    },
    /// The chat refused the progress's message, and there is no earlier one.
    NeverShown,
    /// The progress has a message that may still arrive, so that it can be shown neither in that nor in another.
    ShowLater,
    /// The progress is closed, so that no text of it is wanted any more.
    Closed,
    /// The journal failed, before anything else was done.
    JournalFailed,
}

/// Whether there is something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Do(Step),
    /// Nothing before this time.
    At(Instant),
    Nothing,
}

#[derive(Clone, Debug)]
struct Entry {
    row: OutgoingRow,
    expires: Instant,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    /// The request may be made.
    Ready,
    /// A request may have been seen, or may yet be until `until`; `look_at` is the time of the next search.
    Unsure {
        until: Instant,
        look_at: Instant,
    },
    /// It was sent; once more at this time, because an older one may arrive before.
    Repeat {
        at: Instant,
    },
    Ended(Delivery),
}

/// One conversation's way out.
#[derive(Debug)]
pub struct Lane {
    entries: Vec<Entry>,
    /// The newest texts that were not shown yet.
    progress: BTreeMap<JobId, String>,
    /// Names of progress messages.
    shown: BTreeMap<JobId, String>,
    /// Jobs whose progress the chat refused to show, so that there is no message of it.
    unshown: BTreeSet<JobId>,
    stale: bool,
    /// The step that is being done, with what it is about.
    doing: Option<About>,
    not_before: Instant,
    failures: u32,
    next_progress: Instant,
    /// Until then an older edit or reaction may still arrive.
    unsure_until: Instant,
}

#[derive(Clone, Debug)]
enum About {
    Load,
    Entry { key: String, asked_at: Instant },
    Progress { job: JobId, text: String },
}

impl Lane {
    /// A lane about whose past nothing is known: a request of before `unsure_until` may still arrive.
    pub fn new(now: Instant, unsure_until: Instant) -> Self {
        Self {
            entries: Vec::new(),
            progress: BTreeMap::new(),
            shown: BTreeMap::new(),
            unshown: BTreeSet::new(),
            stale: true,
            doing: None,
            not_before: now,
            failures: 0,
            next_progress: now,
            unsure_until,
        }
    }

    /// The journal may have new effects.
    pub fn reload(&mut self) {
        self.stale = true;
    }

    /// The newest text of a job's progress. Older ones that were not shown are forgotten.
    pub fn progress(&mut self, job: JobId, text: String) {
        self.progress.insert(job, text);
    }

    /// Whether everything that is recorded has been sent, as far as this lane knows.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.doing.is_none() && !self.stale
    }

    /// Whether nothing is lost when the lane is.
    pub fn can_go(&self, now: Instant) -> bool {
        self.is_empty() && self.progress.is_empty() && now >= self.unsure_until && now >= self.not_before
    }

    /// Decides what to do. The step counts as being done until [`Lane::answer`] is told of it.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.doing.is_some() {
            return Next::Nothing;
        }
        if now < self.not_before {
            return Next::At(self.not_before);
        }
        if self.stale {
            self.doing = Some(About::Load);
            return Next::Do(Step::Load);
        }
        let mut wake: Option<Instant> = None;
        let mut later = |at: Instant| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        for entry in &mut self.entries {
            if let Some(step) = entry.step(now, &self.shown) {
                self.doing = Some(About::Entry { key: entry.row.outgoing.key.clone(), asked_at: now });
                return Next::Do(step);
            }
            match entry.stage {
                Stage::Repeat { at } => later(at),
                Stage::Unsure { look_at, .. } => {
                    // Nothing overtakes it.
                    later(look_at);
                    return Next::At(look_at.min(wake.unwrap_or(look_at)));
                }
                Stage::Ready | Stage::Ended(_) => {}
            }
        }
        if let Some((job, text)) = self.progress.first_key_value() {
            if now >= self.next_progress {
                let (job, text) = (job.clone(), text.clone());
                let message = self.shown.get(&job).cloned();
                self.doing = Some(About::Progress { job: job.clone(), text: text.clone() });
                return Next::Do(Step::Show { job, text, message, late: now >= self.unsure_until });
            }
            later(self.next_progress);
        }
        wake.map_or(Next::Nothing, Next::At)
    }

    /// Takes what came of the step that [`Lane::next`] gave last.
    pub fn answer(&mut self, answer: Answer, now: Instant) {
        let Some(about) = self.doing.take() else { return };
        match (about, answer) {
            (about, Answer::JournalFailed) => {
                if matches!(about, About::Load) {
                    self.stale = true;
                }
                self.pause(now);
            }
            (About::Load, Answer::Loaded(rows)) => self.load(rows, now),
            (About::Entry { key, asked_at }, Answer::Sent(result)) => self.sent(&key, result, asked_at, now),
            (About::Entry { key, .. }, Answer::Found(result)) => self.found(&key, result, now),
            (About::Entry { key, .. }, Answer::Recorded) => {
                self.failures = 0;
                self.entries.retain(|entry| entry.row.outgoing.key != key);
            }
            (About::Progress { job, .. }, Answer::Closed) => {
                self.progress.remove(&job);
            }
            (About::Progress { job, text }, Answer::NeverShown) => {
                self.next_progress = now + PROGRESS_EVERY;
                if self.progress.get(&job) == Some(&text) {
                    self.progress.remove(&job);
                }
                self.unshown.insert(job);
            }
            (About::Progress { .. }, Answer::ShowLater) => {
                self.next_progress = self.unsure_until.max(now + PROGRESS_EVERY);
            }
            (About::Progress { job, text }, Answer::Shown { message, result }) => {
                // A later text may have got there, or may yet.
                self.unshown.remove(&job);
                if let Some(message) = message {
                    self.shown.insert(job.clone(), message);
                }
                self.next_progress = now + PROGRESS_EVERY;
                match result {
                    Ok(()) => self.failures = 0,
                    Err(error) => {
                        if self.failed(&error, now) {
                            // It will not be better next time; the outcome is a message of its own.
                            self.failures = 0;
                        } else {
                            return;
                        }
                    }
                }
                if self.progress.get(&job) == Some(&text) {
                    self.progress.remove(&job);
                }
            }
            // Not an answer to what was asked: asked again.
            (about, _) => {
                self.stale |= matches!(about, About::Load);
                self.pause(now);
            }
        }
    }

    /// What the journal has open replaces nothing that this lane knows better.
    fn load(&mut self, rows: Vec<(OutgoingRow, Duration)>, now: Instant) {
        self.stale = false;
        self.failures = 0;
        for (row, age) in rows {
            if self.entries.iter().any(|entry| entry.row.outgoing.key == row.outgoing.key) {
                continue;
            }
            let mut may_be_there = row.tried > 0 && row.message.is_none();
            if let Effect::Progress { .. } = row.outgoing.effect {
                self.progress.remove(&row.outgoing.job);
                may_be_there &= !self.unshown.remove(&row.outgoing.job);
            }
            let stage = match &row.outgoing.effect {
                Effect::React { .. } => Stage::Ready,
                Effect::Progress { .. } if self.shown.contains_key(&row.outgoing.job) => Stage::Ready,
                Effect::Post { .. } | Effect::Upload { .. } | Effect::Progress { .. } if may_be_there => {
                    Stage::Unsure { until: now + LATE_EFFECT, look_at: now }
                }
                // No request was ever made for it, so there is nothing to close.
                Effect::Progress { .. } if row.message.is_none() => Stage::Ended(Delivery::Sent { message: None }),
                Effect::Post { .. } | Effect::Upload { .. } | Effect::Progress { .. } => Stage::Ready,
            };
            self.entries.push(Entry { row, expires: now + GIVE_UP_AFTER.saturating_sub(age), stage });
        }
        self.entries.sort_by_key(|entry| entry.row.seq);
        // The newest of several that undo each other has the last word, so it alone is repeated.
        let waiting = self.entries.iter().filter(|entry| matches!(entry.stage, Stage::Repeat { .. }));
        let keys = waiting.map(|entry| entry.row.outgoing.key.clone()).filter(|key| self.is_superseded(key));
        for key in keys.collect::<Vec<_>>() {
            if let Some(entry) = self.entries.iter_mut().find(|entry| entry.row.outgoing.key == key) {
                entry.stage = Stage::Ended(Delivery::Sent { message: entry.row.message.clone() });
            }
        }
    }

    /// Whether a later effect puts there or takes away what this one took away or put there.
    fn is_superseded(&self, key: &str) -> bool {
        let Some(place) = self.entries.iter().position(|entry| entry.row.outgoing.key == key) else { return false };
        let Effect::React { message, mark, .. } = &self.entries[place].row.outgoing.effect else { return false };
        self.entries[place + 1..].iter().any(|later| match &later.row.outgoing.effect {
            Effect::React { message: other, mark: other_mark, .. } => message == other && mark == other_mark,
            Effect::Post { .. } | Effect::Progress { .. } | Effect::Upload { .. } => false,
        })
    }

    fn sent(&mut self, key: &str, result: Result<Option<String>, SendError>, asked_at: Instant, now: Instant) {
        let unsure_until = self.unsure_until;
        let is_newest = !self.is_superseded(key);
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.row.outgoing.key == key) else { return };
        let repeatable = entry.is_repeatable();
        match result {
            // What was asked for before that may have been overtaken.
            Ok(_) if repeatable && is_newest && asked_at < unsure_until => {
                entry.stage = Stage::Repeat { at: unsure_until }
            }
            Ok(message) => {
                let message = message.or_else(|| entry.row.message.clone());
                self.failures = 0;
                if let Effect::Progress { .. } = entry.row.outgoing.effect {
                    self.shown.remove(&entry.row.outgoing.job);
                }
                entry.stage = Stage::Ended(Delivery::Sent { message });
            }
            Err(SendError::Refused(why)) => entry.stage = Stage::Ended(Delivery::GivenUp { why }),
            Err(error) => {
                if let SendError::Ambiguous(_) = error
                    && !repeatable
                {
                    entry.stage = Stage::Unsure { until: now + LATE_EFFECT, look_at: now + FIRST_PAUSE };
                }
                self.failed(&error, now);
            }
        }
    }

    fn found(&mut self, key: &str, result: Result<Option<String>, SendError>, now: Instant) {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.row.outgoing.key == key) else { return };
        let Stage::Unsure { until, .. } = entry.stage else { return };
        let is_progress = matches!(entry.row.outgoing.effect, Effect::Progress { .. });
        match result {
            Ok(Some(message)) => {
                self.failures = 0;
                entry.row.message = Some(message.clone());
                entry.stage = match is_progress {
                    true => Stage::Ready,
                    false => Stage::Ended(Delivery::Sent { message: Some(message) }),
                };
            }
            Ok(None) if now < until => {
                entry.stage = Stage::Unsure { until, look_at: (now + LOOK_EVERY).min(until) };
            }
            Ok(None) if is_progress => entry.stage = Stage::Ended(Delivery::Sent { message: None }),
            Ok(None) => entry.stage = Stage::Ready,
            Err(SendError::Refused(why)) if now >= until => {
                // It can't be known, and an answer seen twice is better than one that is never seen.
                tracing::warn!(key, why, "the chat does not let us look for a message: sending it again");
                entry.stage = match is_progress {
                    true => Stage::Ended(Delivery::GivenUp { why }),
                    false => Stage::Ready,
                };
            }
            Err(SendError::Refused(_)) => entry.stage = Stage::Unsure { until, look_at: until },
            // A search changes nothing, so it does not matter whether it arrived.
            Err(error) => {
                let error = match error {
                    SendError::Ambiguous(why) => SendError::Unreachable(why),
                    error => error,
                };
                self.failed(&error, now);
            }
        }
    }

    /// Waits as the error demands. Whether trying again is useless.
    fn failed(&mut self, error: &SendError, now: Instant) -> bool {
        match error {
            SendError::RateLimited { retry_after } => {
                self.not_before = now + (*retry_after).min(LONGEST_RETRY_AFTER);
                false
            }
            SendError::Unreachable(_) => {
                self.pause(now);
                false
            }
            SendError::Ambiguous(_) => {
                self.unsure_until = now + LATE_EFFECT;
                self.pause(now);
                false
            }
            SendError::Refused(_) => true,
        }
    }

    fn pause(&mut self, now: Instant) {
        self.not_before = now + backoff(FIRST_PAUSE, LONGEST_PAUSE, self.failures);
        self.failures = self.failures.saturating_add(1);
    }
}

impl Entry {
    /// Whether sending it twice looks like sending it once.
    fn is_repeatable(&self) -> bool {
        match self.row.outgoing.effect {
            Effect::React { .. } | Effect::Progress { .. } => true,
            Effect::Post { .. } | Effect::Upload { .. } => false,
        }
    }

    fn step(&mut self, now: Instant, shown: &BTreeMap<JobId, String>) -> Option<Step> {
        if now >= self.expires && !matches!(self.stage, Stage::Ended(_)) {
            let hours = GIVE_UP_AFTER.as_secs() / 3600;
            let why = format!("it could not be sent within {hours} hours");
            self.stage = Stage::Ended(Delivery::GivenUp { why });
        }
        match &self.stage {
            Stage::Ready => {
                if let Effect::Progress { .. } = self.row.outgoing.effect
                    && let Some(message) = shown.get(&self.row.outgoing.job)
                {
                    self.row.message = Some(message.clone());
                }
                Some(Step::Send(Box::new(self.row.clone())))
            }
            Stage::Repeat { at } if now >= *at => Some(Step::Send(Box::new(self.row.clone()))),
            Stage::Unsure { look_at, .. } if now >= *look_at => Some(Step::Find(Box::new(self.row.clone()))),
            Stage::Ended(delivery) => Some(Step::Record(Box::new(self.row.clone()), delivery.clone())),
            Stage::Repeat { .. } | Stage::Unsure { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
