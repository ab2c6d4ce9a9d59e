//! When a request may be made, over all conversations: what Discord said about its limits, obeyed. Pure.
//!
//! Discord blocks the address of a bot that makes 10,000 invalid requests (401, 403, 429) within ten minutes, which
//! would silence every bot behind it. So after a limit that is everybody's nothing is sent until it is over, and long
//! before the line is reached nothing is sent at all.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Quiet after a limit that says no time, as a block by the network in front of Discord does; doubled each time.
pub const UNNAMED_QUIET: Duration = Duration::from_secs(5);
const LONGEST_QUIET: Duration = Duration::from_secs(600);

/// After a token was rejected. A new one comes with a restart; asking again meanwhile only counts against us.
const AFTER_REJECTION: Duration = Duration::from_secs(60);

/// Discord takes 50 requests a second of one bot; some are left for callbacks' kin that do not come by here.
const PER_SECOND: usize = 45;
const SECOND: Duration = Duration::from_secs(1);

/// Invalid requests within [`INVALID_WINDOW`] after which nothing is sent: a tenth of what Discord takes.
const MAX_INVALID: usize = 1000;
const INVALID_WINDOW: Duration = Duration::from_secs(600);

/// Routes whose limits are remembered.
const MAX_ROUTES: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Now,
    Wait(Duration),
    /// Nothing is sent to anywhere for this time, and why.
    Closed(Duration, &'static str),
}

/// What an answer said about limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    pub scope: Option<String>,
    pub retry_after: Option<Duration>,
    pub remaining: Option<u32>,
    pub reset_after: Option<Duration>,
}

#[derive(Debug, Default)]
pub struct Pace {
    closed: Option<(Instant, &'static str)>,
    unnamed: u32,
    routes: BTreeMap<String, Instant>,
    /// When the last requests were or will be made.
    turns: VecDeque<Instant>,
    invalid: VecDeque<Instant>,
}

impl Pace {
    /// Takes a turn: says when the request may be made.
    pub fn turn(&mut self, route: &str, now: Instant) -> Verdict {
        if let Some((until, why)) = self.closed {
            if now < until {
                return Verdict::Closed(until - now, why);
            }
            self.closed = None;
        }
        let at = self.routes.get(route).copied().unwrap_or(now).max(now);
        while self.turns.front().is_some_and(|turn| now.saturating_duration_since(*turn) >= SECOND) {
            self.turns.pop_front();
        }
        let at = match self.turns.len().checked_sub(PER_SECOND).and_then(|place| self.turns.get(place)) {
            Some(turn) => at.max(*turn + SECOND),
            None => at,
        };
        let wait = at - now;
        // Whoever is sent away comes back for another turn.
        if wait <= super::MAX_TURN {
            let place = self.turns.partition_point(|turn| *turn <= at);
            self.turns.insert(place, at);
        }
        if wait.is_zero() { Verdict::Now } else { Verdict::Wait(wait) }
    }

    /// Takes what an answer said.
    pub fn learn(&mut self, route: &str, status: u16, said: &Said, now: Instant) {
        if matches!(status, 401 | 403) || (status == 429 && said.scope.as_deref() != Some("shared")) {
            self.count_invalid(now);
        }
        match (status, said.scope.as_deref()) {
            (429, Some("user" | "shared")) => self.hold(route, now + said.retry_after.unwrap_or(SECOND), now),
            (429, _) => {
                let growing = UNNAMED_QUIET.saturating_mul(1 << self.unnamed.min(10)).min(LONGEST_QUIET);
                let quiet = said.retry_after.unwrap_or(growing).clamp(Duration::from_millis(100), LONGEST_QUIET);
                self.unnamed = if said.retry_after.is_none() { self.unnamed + 1 } else { self.unnamed };
                self.close(now + quiet, "Discord limits all requests of this bot");
            }
            (401, _) => self.close(now + AFTER_REJECTION, "Discord rejects the token"),
            (200..=299, _) => {
                self.unnamed = 0;
                if let (Some(0), Some(reset)) = (said.remaining, said.reset_after) {
                    self.hold(route, now + reset, now);
                }
            }
            (_, _) => {}
        }
    }

    fn count_invalid(&mut self, now: Instant) {
        self.invalid.push_back(now);
        while self.invalid.front().is_some_and(|at| now.duration_since(*at) >= INVALID_WINDOW) {
            self.invalid.pop_front();
        }
        if self.invalid.len() >= MAX_INVALID {
            self.close(now + INVALID_WINDOW, "too many requests were invalid, and Discord blocks who goes on so");
        }
    }

    fn close(&mut self, until: Instant, why: &'static str) {
        if self.closed.is_none_or(|(closed, _)| closed < until) {
            self.closed = Some((until, why));
        }
    }

    fn hold(&mut self, route: &str, until: Instant, now: Instant) {
        if self.routes.len() >= MAX_ROUTES {
            self.routes.retain(|_, until| *until > now);
        }
        if self.routes.len() < MAX_ROUTES {
            self.routes.insert(route.to_owned(), until);
        }
    }
}

/// Requests that share a limit: the same method and route in the same channel, server or webhook.
pub fn key(method: &str, path: &str) -> String {
    let path = path.split('?').next().unwrap_or(path);
    let mut key = method.to_owned();
    for (place, part) in path.split('/').enumerate() {
        key.push('/');
        match place {
            0 | 1 => key.push_str(part),
            _ if part.bytes().all(|byte| byte.is_ascii_digit()) || part.starts_with('%') => key.push(':'),
            _ => key.push_str(part),
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(scope: Option<&str>, retry_after: Option<u64>) -> Said {
        Said { scope: scope.map(str::to_owned), retry_after: retry_after.map(Duration::from_secs), ..Said::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_one_route_holds_that_route_only() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.learn("POST/channels/1/messages", 429, &said(Some("user"), Some(7)), now);
        assert_eq!(pace.turn("POST/channels/1/messages", now), Verdict::Wait(Duration::from_secs(7)));
        assert_eq!(pace.turn("POST/channels/2/messages", now), Verdict::Now);
        assert_eq!(pace.turn("POST/channels/1/messages", now + Duration::from_secs(7)), Verdict::Now);
        let last = Said { remaining: Some(0), reset_after: Some(SECOND), ..Said::default() };
        pace.learn("POST/channels/2/messages", 200, &last, now);
        assert_eq!(pace.turn("POST/channels/2/messages", now), Verdict::Wait(SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_global_limit_and_one_without_a_name_stop_everything() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.learn("a", 429, &said(Some("global"), Some(3)), now);
        assert!(matches!(pace.turn("b", now), Verdict::Closed(time, _) if time == Duration::from_secs(3)));
        let mut now = now + Duration::from_secs(3);
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert_eq!(pace.turn("b", now), Verdict::Now);
            pace.learn("b", 429, &said(None, None), now);
            let Verdict::Closed(time, _) = pace.turn("c", now) else { panic!("open") };
            waits.push(time.as_secs());
            now += time;
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_spread_over_time() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let waits: Vec<_> = (0..200)
            .map(|_| match pace.turn("a", now) {
                Verdict::Now => Duration::ZERO,
                Verdict::Wait(time) => time,
                Verdict::Closed(..) => panic!("closed"),
            })
            .collect();
        assert_eq!(waits.iter().filter(|wait| wait.is_zero()).count(), PER_SECOND);
        assert_eq!(waits.iter().filter(|wait| **wait == SECOND).count(), PER_SECOND);
        assert!(waits.iter().all(|wait| *wait <= SECOND * 3));
        assert_eq!(pace.turn("a", now + SECOND * 5), Verdict::Now);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_sent_long_before_discord_blocks_the_address() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        for _ in 0..MAX_INVALID {
            assert!(matches!(pace.turn("a", now), Verdict::Now | Verdict::Wait(_)));
            pace.learn("a", 403, &Said::default(), now);
            now += Duration::from_millis(100);
        }
        assert!(matches!(pace.turn("b", now), Verdict::Closed(..)));
    }

    #[test]
    fn requests_that_share_a_limit_have_one_key() {
        assert_eq!(
            key("PUT", "channels/1/messages/2/reactions/%F0%9F/@me"),
            "PUT/channels/1/messages/:/reactions/:/@me"
        );
        assert_eq!(key("GET", "channels/1/messages?limit=5"), "GET/channels/1/messages");
        assert_ne!(key("POST", "channels/1/messages"), key("POST", "channels/2/messages"));
    }
}
