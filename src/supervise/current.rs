//! The present value of something that is replaced now and then: who the pool manager is, what is built.
//!
//! Like `tokio::sync::watch`, but those who wait are woken in the order in which they began to wait. `watch` spreads
//! them over lists by chance, and one seed of the simulation would not give one log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Sets the value. The followers are told when the last publisher is gone.
pub struct Publisher<T>(Arc<Shared<T>>);

/// Follows the value. Clones follow by themselves.
pub struct Follower<T> {
    shared: Arc<Shared<T>>,
    /// The version that was seen last.
    seen: u64,
}

/// There will be no other value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Final;

struct Shared<T> {
    slot: Mutex<Slot<T>>,
    news: Notify,
}

struct Slot<T> {
    value: T,
    version: u64,
    is_final: bool,
}

/// A value with its first follower, to whom it is not new.
pub fn channel<T: Clone>(value: T) -> (Publisher<T>, Follower<T>) {
    let slot = Mutex::new(Slot { value, version: 1, is_final: false });
    let shared = Arc::new(Shared { slot, news: Notify::new() });
    (Publisher(shared.clone()), Follower { shared, seen: 1 })
}

impl<T> Shared<T> {
    /// Nothing that runs under the lock can leave it half-written, so a poisoned lock is as good as any.
    fn slot(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Publisher<T> {
    pub fn set(&self, value: T) {
        let mut slot = self.0.slot();
        slot.value = value;
        slot.version += 1;
        drop(slot);
        self.0.news.notify_waiters();
    }

    /// A new follower, to whom the present value is news.
    pub fn follow(&self) -> Follower<T> {
        Follower { shared: self.0.clone(), seen: 0 }
    }
}

impl<T> Drop for Publisher<T> {
    fn drop(&mut self) {
        self.0.slot().is_final = true;
        self.0.news.notify_waiters();
    }
}

impl<T: Clone> Follower<T> {
    /// The present value.
    pub fn get(&self) -> T {
        self.shared.slot().value.clone()
    }

    /// The present value, which then is no news any more.
    pub fn see(&mut self) -> T {
        let slot = self.shared.slot();
        self.seen = slot.version;
        slot.value.clone()
    }

    /// Waits until the value is another than the one that was seen last, and returns it. Can be dropped and called
    /// again without missing anything.
    ///
    /// # Errors
    /// When it never will be.
    pub async fn changed(&mut self) -> Result<T, Final> {
        let shared = self.shared.clone();
        loop {
            let news = shared.news.notified();
            tokio::pin!(news);
            // From here on no news is missed.
            news.as_mut().enable();
            {
                let slot = shared.slot();
                if slot.version != self.seen {
                    self.seen = slot.version;
                    return Ok(slot.value.clone());
                }
                if slot.is_final {
                    return Err(Final);
                }
            }
            news.await;
        }
    }
}

impl<T> Clone for Follower<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> std::fmt::Debug for Follower<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("seen", &self.seen).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn followers_see_the_newest_value_and_the_end() {
        let (publisher, mut follower) = channel(1);
        let mut late = publisher.follow();
        assert_eq!(late.changed().await, Ok(1), "the present value is news to a new follower");
        publisher.set(2);
        publisher.set(3);
        assert_eq!(follower.get(), 1 + 2);
        assert_eq!(follower.changed().await, Ok(3), "values in between may be missed");
        assert_eq!(late.see(), 3);
        drop(publisher);
        assert_eq!(follower.changed().await, Err(Final));
        assert_eq!(late.changed().await, Err(Final));
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_of_waiting() {
        let (publisher, follower) = channel(0);
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for n in 0..20 {
            let (mut follower, told) = (follower.clone(), told.clone());
            tasks.push(tokio::spawn(async move {
                follower.changed().await.unwrap();
                told.send(n).unwrap();
            }));
            tokio::task::yield_now().await;
        }
        publisher.set(1);
        for n in 0..20 {
            assert_eq!(order.recv().await, Some(n));
        }
    }
}
