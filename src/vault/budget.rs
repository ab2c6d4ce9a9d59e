//! What a job may use, what it has used, and how fast it may ask. Pure.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::meter::Tokens;

/// Requests that a job may make at once; an agent starts with about ten.
const BURST: u32 = 60;
/// After that, one in this time. A model's turn takes seconds.
const EVERY: Duration = Duration::from_millis(50);

/// What one job may use. `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Calls of the model.
    pub turns: Option<u64>,
    /// Tokens, input and output together.
    pub tokens: Option<u64>,
    /// What is left of the requester's day.
    pub day_tokens: Option<u64>,
}

/// A limit that a job came to. Shown to whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    Turns {
        limit: u64,
    },
    Tokens {
        limit: u64,
    },
    /// Of the requester's tokens for a day, this was left when the job started.
    DayTokens {
        left: u64,
    },
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turns { limit } => write!(f, "a job may make {limit} calls of the model (MAX_TURNS_PER_JOB)"),
            Self::Tokens { limit } => write!(f, "a job may use {limit} tokens (MAX_TOKENS_PER_JOB)"),
            Self::DayTokens { left } => {
                write!(f, "{left} tokens were left of what one person may use in 24 hours (MAX_TOKENS_PER_USER_DAY)")
            }
        }
    }
}

/// What a job has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Calls of the model that were answered.
    pub turns: u64,
    pub tokens: Tokens,
}

impl Budget {
    /// Whether nothing more may begin.
    pub fn is_used_up(&self, spent: &Spent) -> Option<Reached> {
        let tokens = spent.tokens.total();
        match *self {
            Self { turns: Some(limit), .. } if spent.turns >= limit => Some(Reached::Turns { limit }),
            Self { tokens: Some(limit), .. } if tokens >= limit => Some(Reached::Tokens { limit }),
            Self { day_tokens: Some(left), .. } if tokens >= left => Some(Reached::DayTokens { left }),
            _ => None,
        }
    }

    /// Whether what has begun must be cut. The last turn that is allowed may come to its end.
    pub fn is_exceeded(&self, spent: &Spent) -> Option<Reached> {
        let tokens = spent.tokens.total();
        match *self {
            Self { turns: Some(limit), .. } if spent.turns > limit => Some(Reached::Turns { limit }),
            Self { tokens: Some(limit), .. } if tokens > limit => Some(Reached::Tokens { limit }),
            Self { day_tokens: Some(left), .. } if tokens > left => Some(Reached::DayTokens { left }),
            _ => None,
        }
    }
}

/// How fast one job may make requests.
#[derive(Debug)]
pub struct Pace {
    left: u32,
    filled_at: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, filled_at: now }
    }

    /// Takes a turn if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.filled_at).as_nanos() / EVERY.as_nanos();
        match u32::try_from(due) {
            Ok(due) if due < BURST - self.left => {
                self.left += due;
                self.filled_at += EVERY * due;
            }
            _ => {
                self.left = BURST;
                self.filled_at = now;
            }
        }
        let granted = self.left > 0;
        self.left -= u32::from(granted);
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(turns: u64, output: u64) -> Spent {
        Spent { turns, tokens: Tokens { input: 0, cached: 0, output } }
    }

    #[test]
    fn the_first_limit_that_is_reached_is_named() {
        let budget = Budget { turns: Some(2), tokens: Some(100), day_tokens: Some(50) };
        assert_eq!(budget.is_used_up(&spent(1, 49)), None);
        assert_eq!(budget.is_used_up(&spent(2, 0)), Some(Reached::Turns { limit: 2 }));
        assert_eq!(budget.is_used_up(&spent(0, 50)), Some(Reached::DayTokens { left: 50 }));
        assert_eq!(budget.is_used_up(&spent(0, 100)), Some(Reached::Tokens { limit: 100 }));
        assert_eq!(Budget::default().is_used_up(&spent(u64::MAX, u64::MAX)), None);
    }

    #[test]
    fn the_last_allowed_turn_is_not_cut() {
        let budget = Budget { turns: Some(2), tokens: Some(100), day_tokens: None };
        assert_eq!(budget.is_exceeded(&spent(2, 100)), None);
        assert_eq!(budget.is_exceeded(&spent(3, 0)), Some(Reached::Turns { limit: 2 }));
        assert_eq!(budget.is_exceeded(&spent(1, 101)), Some(Reached::Tokens { limit: 100 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_through_and_then_one_request_in_a_while() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!((0..200).filter(|_| pace.take(start)).count(), BURST as usize);
        assert!(!pace.take(start + EVERY / 2));
        assert_eq!((0..200).filter(|_| pace.take(start + EVERY * 7)).count(), 7);
        assert_eq!((0..200).filter(|_| pace.take(start + EVERY * 1_000_000)).count(), BURST as usize);
    }
}
