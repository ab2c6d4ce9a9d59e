//! twilight's connection as it is polled, with one thing more to be seen: that it was lost without a word.
//!
//! When the other side drops a connection without a close, twilight connects again by itself, at once, however often,
//! and tells nobody. So its state is looked at each time that it has nothing to say.

use std::future::poll_fn;
use std::task::Poll;

use futures_util::StreamExt as _;
use twilight_gateway::error::ReceiveMessageError;
use twilight_gateway::{Message, ShardState};

use super::Gateway;

/// Polls that connecting may take. A connection that is lost as soon as it is made is not seen otherwise, since the next
/// is begun in the same poll; each costs about five.
const MAX_POLLS: u32 = 100;

#[derive(Debug)]
pub enum Item {
    Frame(Option<Result<Message, ReceiveMessageError>>),
    /// There was a connection, and twilight makes a new one. It does so when it is polled again.
    Lost,
}

#[derive(Debug, Default)]
pub struct Polled {
    was_up: bool,
    polls: u32,
}

impl Polled {
    /// The next thing there is to know. Can be dropped and called again without missing anything.
    pub async fn next(&mut self, gateway: &mut Gateway) -> Item {
        poll_fn(|cx| {
            let polled = gateway.poll_next_unpin(cx);
            let is_up = !matches!(gateway.state(), ShardState::Disconnected { .. });
            match polled {
                Poll::Ready(frame) => {
                    (self.was_up, self.polls) = (is_up, 0);
                    Poll::Ready(Item::Frame(frame))
                }
                // Waiting before the next attempt is no loss.
                Poll::Pending if is_waiting(gateway.state()) => Poll::Pending,
                Poll::Pending if self.lost(is_up) => Poll::Ready(Item::Lost),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    fn lost(&mut self, is_up: bool) -> bool {
        if is_up {
            (self.was_up, self.polls) = (true, 0);
            return false;
        }
        self.polls += 1;
        let lost = self.was_up || self.polls > MAX_POLLS;
        if lost {
            (self.was_up, self.polls) = (false, 0);
        }
        lost
    }
}

/// Whether connecting has failed, after which twilight waits by itself.
fn is_waiting(state: ShardState) -> bool {
    matches!(state, ShardState::Disconnected { reconnect_attempts: 1.. })
}
