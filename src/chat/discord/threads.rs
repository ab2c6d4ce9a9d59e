//! What is known of the threads of conversations: which are still to be opened, and which can't be written in. Pure.
//!
//! Kept in memory only. After a restart nothing is known, and Discord's refusal of a message says what is missing.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::wire::ChannelNo;

/// Threads that are remembered; of more, the oldest are forgotten.
const MAX_THREADS: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thread {
    /// To be opened from the message that began the conversation, under this title.
    ToOpen {
        title: String,
    },
    Open,
    /// It can't be written in: answers go to its channel, as replies to the message that began the conversation.
    InChannel,
    /// Somebody deleted it, and with it every wish for answers.
    Gone,
}

#[derive(Debug, Default)]
pub struct Threads(Mutex<BTreeMap<ChannelNo, Thread>>);

impl Threads {
    pub fn get(&self, thread: ChannelNo) -> Option<Thread> {
        self.lock().get(&thread).cloned()
    }

    pub fn set(&self, thread: ChannelNo, state: Thread) {
        let mut threads = self.lock();
        threads.insert(thread, state);
        while threads.len() > MAX_THREADS {
            threads.pop_first();
        }
    }

    /// A message began a conversation. One that is delivered again changes nothing.
    pub fn begin(&self, thread: ChannelNo, title: String) {
        let mut threads = self.lock();
        threads.entry(thread).or_insert(Thread::ToOpen { title });
        while threads.len() > MAX_THREADS {
            threads.pop_first();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ChannelNo, Thread>> {
        // Nothing that runs under the lock can leave it half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
