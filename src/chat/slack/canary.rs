//! The canary: a message of our own in a channel of its own, which has to come back as an event. Pure, but for the two
//! calls at the end.
//!
//! Nothing else shows that events arrive when nobody writes: a second process with the same app token takes events away
//! while every connection looks well.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{Api, ApiError, Method};

/// How often it is tried while all is well, and while it is not.
const EVERY: Duration = Duration::from_secs(300);
const AGAIN: Duration = Duration::from_secs(30);

/// An event takes a second or so.
const BACK_WITHIN: Duration = Duration::from_secs(15);

/// Between two looks at the clock.
const BEAT: Duration = Duration::from_secs(5);

/// What became of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    Sent(String),
    /// It was not written, for this reason.
    Not(String),
}

#[derive(Debug)]
pub struct Canary {
    channel: String,
    state: Flight,
    /// Messages of ours that came back before it was known that they are canaries.
    early: Vec<String>,
}

#[derive(Debug)]
enum Flight {
    /// None is out; the next starts at this time, or as soon as there is a connection.
    Home {
        next: Option<Instant>,
    },
    Starting,
    Out {
        ts: String,
        until: Instant,
    },
    Lost {
        next: Instant,
    },
    /// It could not be sent.
    Grounded {
        why: String,
        next: Instant,
    },
}

impl Canary {
    pub fn new(channel: String) -> Self {
        Self { channel, state: Flight::Home { next: None }, early: Vec::new() }
    }

    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// Whether to send one now, and when to ask again.
    pub fn due(&mut self, now: Instant, is_connected: bool) -> (bool, Duration) {
        if let Flight::Out { until, .. } = &self.state
            && now >= *until
        {
            self.state = Flight::Lost { next: now + AGAIN };
        }
        let is_due = match &self.state {
            Flight::Home { next } => next.is_none_or(|next| now >= next),
            Flight::Lost { next } | Flight::Grounded { next, .. } => now >= *next,
            Flight::Starting | Flight::Out { .. } => false,
        };
        let send = is_due && is_connected;
        if send {
            self.early.clear();
            self.state = Flight::Starting;
        }
        (send, if matches!(self.state, Flight::Home { next: None }) { Duration::from_millis(200) } else { BEAT })
    }

    /// Takes what became of the last one; if that has come back before this was known, its name.
    pub fn sent(&mut self, tried: Tried, now: Instant) -> Option<String> {
        let mut back = None;
        self.state = match tried {
            Tried::Sent(ts) if self.early.contains(&ts) => {
                back = Some(ts);
                Flight::Home { next: Some(now + EVERY) }
            }
            Tried::Sent(ts) => Flight::Out { ts, until: now + BACK_WITHIN },
            Tried::Not(why) => Flight::Grounded { why, next: now + AGAIN },
        };
        back
    }

    /// A message of our own came as an event. Whether it is the one that is out.
    pub fn came_back(&mut self, channel: &str, ts: &str, now: Instant) -> bool {
        match &self.state {
            Flight::Starting if channel == self.channel => self.early.push(ts.to_owned()),
            Flight::Out { ts: out, .. } if out == ts && channel == self.channel => {
                self.state = Flight::Home { next: Some(now + EVERY) };
                return true;
            }
            Flight::Starting | Flight::Home { .. } | Flight::Out { .. } => {}
            Flight::Lost { .. } | Flight::Grounded { .. } => {}
        }
        false
    }

    /// Whether one was sent and did not come back.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, Flight::Lost { .. })
    }

    /// Why none can be sent.
    pub fn problem(&self) -> Option<String> {
        match &self.state {
            Flight::Grounded { why, .. } => Some(format!("the canary channel can't be written to ({why})")),
            _ => None,
        }
    }
}

/// Writes one.
pub async fn send(api: &Api, channel: &str) -> Tried {
    let args = json!({ "channel": channel, "text": "janebot looks whether events arrive." });
    let sent: Result<Value, ApiError> = api.call(Method::PostMessage, &args).await;
    match sent {
        Ok(answer) => Tried::Sent(answer.get("ts").and_then(Value::as_str).unwrap_or_default().to_owned()),
        Err(error) => Tried::Not(error.to_string()),
    }
}

/// Takes one away again.
pub async fn bury(api: &Api, channel: &str, ts: &str) {
    let done: Result<Value, ApiError> = api.call(Method::Delete, &json!({ "channel": channel, "ts": ts })).await;
    if let Err(error) = done {
        tracing::debug!(%error, "a canary stays where it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_that_does_not_come_back_is_lost_and_the_next_may_be_found() {
        let mut now = Instant::now();
        let mut canary = Canary::new("C1".into());
        assert!(!canary.due(now, false).0, "without a connection it would be lost for sure");
        assert!(canary.due(now, true).0 && !canary.due(now, true).0);
        canary.sent(Tried::Sent("1.1".into()), now);
        assert!(!canary.came_back("C2", "1.1", now) && !canary.came_back("C1", "1.2", now));
        now += BACK_WITHIN;
        assert!(!canary.due(now, true).0 && canary.is_lost());
        now += AGAIN;
        assert!(canary.due(now, true).0);
        // An event may be faster than the answer.
        assert!(!canary.came_back("C1", "2.2", now));
        assert_eq!(canary.sent(Tried::Sent("2.2".into()), now), Some("2.2".to_owned()));
        assert!(!canary.is_lost() && !canary.due(now, true).0);
        assert!(canary.due(now + EVERY, true).0);
        canary.sent(Tried::Not("not_in_channel".into()), now);
        assert!(canary.problem().is_some_and(|why| why.contains("not_in_channel")));
    }
}
