//! Messages that follow each other so quickly that they are one thought in several lines. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::desk::Hearing;
use crate::job::MAX_PROMPT_BYTES;

/// Messages that become one prompt at most; whoever writes more than this without a pause is answered all the same.
const MAX_PARTS: usize = 20;

/// Between two merged texts.
const BETWEEN: &str = "\n\n";

/// What to begin with.
pub(super) enum Next {
    Nothing,
    /// More may come within this time.
    Wait(Duration),
    /// This one; the others are part of it now.
    Begin {
        hearing: Box<Hearing>,
        merged: VecDeque<Box<Hearing>>,
    },
}

/// Takes the next message from those that wait, with those that belong to it.
pub(super) fn next(waiting: &mut VecDeque<Box<Hearing>>, debounce: Duration, now: Instant) -> Next {
    let Some(first) = waiting.front() else { return Next::Nothing };
    let together = together(waiting, debounce);
    let last = waiting.get(together - 1).unwrap_or(first);
    // Only the last that waits can get company.
    if together == waiting.len() && together < MAX_PARTS && is_open(last) {
        let left = (last.heard_at + debounce).saturating_duration_since(now);
        if !left.is_zero() {
            return Next::Wait(left);
        }
    }
    let Some(mut hearing) = waiting.pop_front() else { return Next::Nothing };
    let merged: VecDeque<_> = waiting.drain(..together - 1).collect();
    for other in &merged {
        hearing.parts.push(other.inbound.text.clone());
        hearing.inbound.files.extend(other.inbound.files.iter().cloned());
    }
    Next::Begin { hearing, merged }
}

/// The whole prompt: the message's own text and those that were merged into it.
pub(in crate::desk) fn whole_text(text: &str, parts: &[String]) -> String {
    let mut text = text.to_owned();
    for part in parts {
        text.push_str(BETWEEN);
        text.push_str(part);
    }
    text
}

/// How many of the messages in front belong together; one at least.
fn together(waiting: &VecDeque<Box<Hearing>>, debounce: Duration) -> usize {
    let Some(first) = waiting.front().filter(|first| is_open(first)) else { return 1 };
    let mut bytes = whole_text(&first.inbound.text, &first.parts).len();
    let mut before = first.heard_at;
    let belongs = |next: &&Hearing| {
        bytes += BETWEEN.len() + next.inbound.text.len();
        let soon = next.heard_at.saturating_duration_since(before) < debounce;
        before = next.heard_at;
        let (one, other) = (&first.inbound, &next.inbound);
        let same = one.requester == other.requester && one.timeout == other.timeout && first.agent == next.agent;
        soon && same && is_open(next) && bytes <= MAX_PROMPT_BYTES
    };
    1 + waiting.iter().map(|next| &**next).skip(1).take(MAX_PARTS - 1).take_while(belongs).count()
}

/// Whether it may be merged: it is of a chat, and came to this process, so that it is known when.
fn is_open(hearing: &Hearing) -> bool {
    hearing.is_for_outbox() && !hearing.is_recorded
}
