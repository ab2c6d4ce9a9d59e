//! What to do when the gateway closes a connection: how long to wait, whether the session can go on, when to give up.
//! Pure.
//!
//! twilight reconnects at once after a connection that opened and was then closed, however often, and keeps sessions
//! that Discord says are dead. Each new session costs one of a thousand a day; beyond that Discord resets the token.

use std::time::Duration;

use tokio::time::Instant;

use crate::supervise::backoff;

/// A session that held for so long was a good one: the next close is a new story.
const STABLE_AFTER: Duration = Duration::from_secs(60);

const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(300);

/// Attempts to resume a session after which it is taken for dead.
const MAX_FAILED_RESUMES: u32 = 3;

/// Codes by which Discord says that the session can't be resumed.
const SESSION_DEAD: [u16; 2] = [4007, 4009];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Connect again after this time, and go on with the session if there is one.
    Again(Duration),
    /// Connect again after this time, with a new session.
    Renew(Duration),
    /// Never connect again with these settings: the sentence says what to do.
    Fatal(String),
}

#[derive(Debug, Default)]
pub struct Policy {
    /// Closes since the last session that held.
    closes: u32,
    failed_resumes: u32,
    since: Option<Instant>,
}

impl Policy {
    /// READY or RESUMED arrived.
    pub fn began(&mut self, now: Instant) {
        self.since = Some(now);
        self.failed_resumes = 0;
    }

    /// Whether there is a session now.
    pub fn is_up(&self) -> bool {
        self.since.is_some()
    }

    /// The connection is or is to be closed. `resumes` says that there is a session to go on with.
    pub fn closed(&mut self, code: Option<u16>, resumes: bool, now: Instant) -> Next {
        if let Some(why) = code.and_then(fatal) {
            return Next::Fatal(why);
        }
        match self.since.take() {
            Some(since) if now.duration_since(since) >= STABLE_AFTER => self.closes = 0,
            Some(_) => {}
            None if resumes => self.failed_resumes += 1,
            None => {}
        }
        let delay = match self.closes.checked_sub(1) {
            None => Duration::ZERO,
            Some(attempt) => backoff(FIRST_DELAY, MAX_DELAY, attempt),
        };
        self.closes += 1;
        let is_dead = code.is_some_and(|code| SESSION_DEAD.contains(&code));
        if is_dead || self.failed_resumes >= MAX_FAILED_RESUMES {
            self.failed_resumes = 0;
            return Next::Renew(delay);
        }
        Next::Again(delay)
    }
}

/// What to do about a close that no further attempt can repair.
pub fn fatal(code: u16) -> Option<String> {
    let why = match code {
        4004 => "Discord rejects the token: set DISCORD_TOKEN to the bot's present one and restart",
        4010 => "Discord does not know this shard: restart, and report it if that does not help",
        4011 => "the bot is in so many servers that Discord wants more shards: restart, which asks how many",
        4012 => "Discord has given up this version of its gateway: update janebot",
        4013 => "Discord does not know what is asked for: update janebot",
        4014 => {
            "Discord does not let the bot read messages: switch on \"Message Content Intent\" for it in the developer \
             portal (Bot, Privileged Gateway Intents), or set DISCORD_MESSAGE_CONTENT=false; then restart"
        }
        _ => return None,
    };
    Some(format!("{why} (close code {code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(next: &Next) -> u64 {
        match next {
            Next::Again(delay) | Next::Renew(delay) => delay.as_secs(),
            Next::Fatal(why) => panic!("{why}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn closes_that_follow_each_other_are_waited_for_longer_and_longer() {
        let mut policy = Policy::default();
        let delays: Vec<_> = (0..12).map(|_| seconds(&policy.closed(Some(4000), false, Instant::now()))).collect();
        assert_eq!(delays, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        policy.began(Instant::now());
        assert_eq!(
            seconds(&policy.closed(None, true, Instant::now())),
            300,
            "a session that did not hold proves nothing"
        );
        policy.began(Instant::now());
        tokio::time::advance(STABLE_AFTER).await;
        assert_eq!(seconds(&policy.closed(None, true, Instant::now())), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_session_is_not_resumed_for_ever() {
        let mut policy = Policy::default();
        for code in SESSION_DEAD {
            assert!(matches!(policy.closed(Some(code), true, Instant::now()), Next::Renew(_)));
        }
        assert!(matches!(policy.closed(Some(4000), true, Instant::now()), Next::Again(_)));
        assert!(matches!(policy.closed(None, true, Instant::now()), Next::Again(_)));
        assert!(matches!(policy.closed(None, true, Instant::now()), Next::Renew(_)), "the third resume failed");
        assert!(matches!(policy.closed(None, true, Instant::now()), Next::Again(_)));
        policy.began(Instant::now());
        for _ in 0..2 {
            assert!(matches!(policy.closed(None, true, Instant::now()), Next::Again(_)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_attempt_repairs_is_said_in_a_sentence() {
        for code in [4004, 4010, 4011, 4012, 4013, 4014] {
            let next = Policy::default().closed(Some(code), true, Instant::now());
            assert!(matches!(&next, Next::Fatal(why) if why.contains(&code.to_string())), "{next:?}");
        }
        for code in [1000, 1006, 4000, 4001, 4002, 4003, 4005, 4008] {
            assert_eq!(fatal(code), None);
        }
    }
}
