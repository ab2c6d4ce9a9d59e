//! When a method may be called again. Pure.
//!
//! Two rules. A method that Slack answered with 429 rests as long as Slack says, in that channel where there is one. And
//! edits have a budget of their own, since Slack counts them for the whole workspace (about 50 a minute): all running jobs
//! share it, so that Slack need not refuse.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Method;

/// Edits that may be made at once after a quiet time.
const EDIT_BURST: f64 = 20.0;
/// Edits a second in the long run: with the burst, within 50 a minute.
const EDITS_PER_SECOND: f64 = 0.5;

/// Edits that are left to those that nothing replaces: the last ones of a job.
const EDITS_KEPT: f64 = 8.0;

/// Rests that are remembered; beyond, the earliest to end is forgotten, and Slack says it again.
const MAX_RESTS: usize = 10_000;

#[derive(Debug, Default)]
pub struct Pace {
    rests: BTreeMap<(Method, Option<String>), Instant>,
    edits: Option<Budget>,
}

#[derive(Debug)]
struct Budget {
    left: f64,
    at: Instant,
}

impl Pace {
    /// Whether the method may be called now; if not, when.
    pub fn ask(&mut self, method: Method, channel: Option<&str>, now: Instant) -> Result<(), Duration> {
        for place in [None, channel.map(str::to_owned)] {
            let key = (method, place);
            if let Some(until) = self.rests.get(&key) {
                if *until > now {
                    return Err(*until - now);
                }
                self.rests.remove(&key);
            }
        }
        if method == Method::Update { self.take_edit(now) } else { Ok(()) }
    }

    /// Whether an edit may be made that a later one will replace.
    pub fn ask_for_passing_edit(&mut self, now: Instant) -> Result<(), Duration> {
        let wanted = EDITS_KEPT + 1.0;
        match self.edits_left(now) {
            left if left >= wanted => Ok(()),
            left => Err(Duration::from_secs_f64((wanted - left) / EDITS_PER_SECOND)),
        }
    }

    fn edits_left(&mut self, now: Instant) -> f64 {
        let budget = self.edits.get_or_insert(Budget { left: EDIT_BURST, at: now });
        let gained = now.saturating_duration_since(budget.at).as_secs_f64() * EDITS_PER_SECOND;
        budget.left = (budget.left + gained).min(EDIT_BURST);
        budget.at = now;
        budget.left
    }

    fn take_edit(&mut self, now: Instant) -> Result<(), Duration> {
        let left = self.edits_left(now);
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) / EDITS_PER_SECOND));
        }
        self.edits = Some(Budget { left: left - 1.0, at: now });
        Ok(())
    }

    /// Slack wants the method left alone.
    pub fn limited(&mut self, method: Method, channel: Option<&str>, retry_after: Duration, now: Instant) {
        self.rests.insert((method, channel.map(str::to_owned)), now + retry_after);
        if self.rests.len() > MAX_RESTS {
            self.rests.retain(|_, until| *until > now);
            if let Some(first) = self.rests.iter().min_by_key(|(_, until)| **until).map(|(key, _)| key.clone())
                && self.rests.len() > MAX_RESTS
            {
                self.rests.remove(&first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_limit_holds_for_its_method_and_channel_alone() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.limited(Method::PostMessage, Some("C1"), 30 * SECOND, now);
        assert_eq!(pace.ask(Method::PostMessage, Some("C1"), now), Err(30 * SECOND));
        assert_eq!(pace.ask(Method::PostMessage, Some("C2"), now), Ok(()));
        assert_eq!(pace.ask(Method::ReactionsAdd, Some("C1"), now), Ok(()));
        assert_eq!(pace.ask(Method::PostMessage, Some("C1"), now + 30 * SECOND), Ok(()));
        pace.limited(Method::UserInfo, None, SECOND, now);
        assert_eq!(pace.ask(Method::UserInfo, Some("C1"), now), Err(SECOND), "one without a channel holds everywhere");
    }

    #[test]
    fn edits_share_a_budget_of_the_workspace() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let made = (0..60).filter(|n| pace.ask(Method::Update, Some(&format!("C{n}")), now).is_ok()).count();
        assert_eq!(made, 20);
        assert_eq!(pace.ask(Method::Update, Some("C1"), now), Err(2 * SECOND));
        let within_a_minute = (0..60).filter(|n| pace.ask(Method::Update, None, now + *n * SECOND).is_ok()).count();
        assert!(made + within_a_minute <= 50, "{within_a_minute} more");
    }

    #[test]
    fn passing_edits_leave_some_for_last_ones() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let mut passing = 0;
        while pace.ask_for_passing_edit(now).is_ok() && pace.ask(Method::Update, None, now).is_ok() {
            passing += 1;
        }
        assert_eq!(passing, 12);
        assert!((0..8).all(|_| pace.ask(Method::Update, None, now).is_ok()));
    }

    #[test]
    fn rests_do_not_pile_up() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for n in 0..MAX_RESTS + 100 {
            pace.limited(Method::PostMessage, Some(&format!("C{n}")), SECOND, now);
        }
        assert!(pace.rests.len() <= MAX_RESTS);
    }
}
