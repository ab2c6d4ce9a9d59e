//! The synthetic addresses of one sprite: which name each stands for, and how fast they are handed out. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::policy::By;

/// Names that one run of a sprite may use. An agent at work uses dozens.
const MAX_NAMES: usize = 4_096;
/// New names below an allowed suffix: each makes this machine look one up, and a made-up name carries data to whoever
/// runs the suffix's DNS. Exact names carry none, and where every name is allowed there is nothing to hide from.
const SUFFIX_BURST: u32 = 60;
const SUFFIX_REFILL: Duration = Duration::from_secs(3);

/// A table that only grows, so an address means the same name as long as the sandbox runs.
#[derive(Debug)]
pub(super) struct Names {
    /// The resolver's own address; the first name gets the one after it.
    resolver: Ipv4Addr,
    names: Vec<Arc<str>>,
    index: BTreeMap<Arc<str>, usize>,
    below_suffixes: Bucket,
}

/// No more names now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Names {
    pub fn new(resolver: Ipv4Addr, now: Instant) -> Self {
        let below_suffixes = Bucket::new(SUFFIX_BURST, SUFFIX_REFILL, now);
        Self { resolver, names: Vec::new(), index: BTreeMap::new(), below_suffixes }
    }

    /// The address that stands for `name`, which a rule of kind `by` allows.
    pub fn address_of(&mut self, name: &str, by: By, now: Instant) -> Result<Ipv4Addr, Exhausted> {
        if let Some(&index) = self.index.get(name) {
            return self.address(index).ok_or(Exhausted);
        }
        if self.names.len() >= MAX_NAMES || (by == By::Suffix && !self.below_suffixes.take(now)) {
            return Err(Exhausted);
        }
        let index = self.names.len();
        let address = self.address(index).ok_or(Exhausted)?;
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.index.insert(name, index);
        Ok(address)
    }

    /// The name that `address` stands for; `None` for an address that was never handed out.
    pub fn name_of(&self, address: Ipv4Addr) -> Option<Arc<str>> {
        let index = address.to_bits().checked_sub(self.resolver.to_bits())?.checked_sub(1)?;
        self.names.get(usize::try_from(index).ok()?).cloned()
    }

    fn address(&self, index: usize) -> Option<Ipv4Addr> {
        let offset = u32::try_from(index).ok()?.checked_add(1)?;
        self.resolver.to_bits().checked_add(offset).map(Ipv4Addr::from_bits)
    }
}

/// A token bucket: `burst` at once, then one per `refill`.
#[derive(Debug)]
pub(super) struct Bucket {
    burst: u32,
    refill: Duration,
    tokens: u32,
    /// Up to when refilling is accounted for.
    filled_at: Instant,
}

impl Bucket {
    pub fn new(burst: u32, refill: Duration, now: Instant) -> Self {
        Self { burst, refill, tokens: burst, filled_at: now }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.filled_at).as_nanos() / self.refill.as_nanos().max(1);
        let missing = self.burst - self.tokens;
        match u32::try_from(due) {
            Ok(due) if due < missing => {
                self.tokens += due;
                self.filled_at += self.refill * due;
            }
            _ => {
                self.tokens = self.burst;
                self.filled_at = now;
            }
        }
        let granted = self.tokens > 0;
        self.tokens -= u32::from(granted);
        granted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    #[tokio::test(start_paused = true)]
    async fn a_name_keeps_its_address_and_addresses_lead_back_to_names() {
        let now = Instant::now();
        let mut names = Names::new(RESOLVER, now);
        let a = names.address_of("a.example", By::Exact, now).unwrap();
        let b = names.address_of("b.example", By::Any, now).unwrap();
        assert_eq!((a, b), (Ipv4Addr::new(198, 18, 0, 2), Ipv4Addr::new(198, 18, 0, 3)));
        assert_eq!(names.address_of("a.example", By::Exact, now), Ok(a));
        assert_eq!(names.name_of(b).as_deref(), Some("b.example"));
        for stranger in [RESOLVER, Ipv4Addr::new(198, 18, 0, 4), Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::BROADCAST] {
            assert_eq!(names.name_of(stranger), None, "{stranger}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_old_names_still_resolve_when_it_is_full() {
        let now = Instant::now();
        let mut names = Names::new(RESOLVER, now);
        for n in 0..MAX_NAMES {
            names.address_of(&format!("n{n}.example"), By::NoRules, now).unwrap();
        }
        assert_eq!(names.address_of("more.example", By::Exact, now), Err(Exhausted));
        assert_eq!(names.address_of("n0.example", By::Exact, now), Ok(Ipv4Addr::new(198, 18, 0, 2)));
        assert_eq!(names.name_of(Ipv4Addr::new(198, 18, 16, 1)).as_deref(), Some("n4095.example"));
    }

    #[tokio::test(start_paused = true)]
    async fn new_names_below_a_suffix_come_slowly_after_a_burst() {
        let start = Instant::now();
        let mut names = Names::new(RESOLVER, start);
        let mut ask = |n: u32, now| names.address_of(&format!("n{n}.example"), By::Suffix, now).is_ok();
        assert_eq!((0..200).filter(|&n| ask(n, start)).count(), SUFFIX_BURST as usize);
        assert!(ask(0, start), "a known name costs nothing");
        let later = start + Duration::from_secs(60);
        assert_eq!((200..300).filter(|&n| ask(n, later)).count(), 20);
        assert_eq!(names.address_of("exact.example", By::Exact, later).map(|_| ()), Ok(()));
    }

    proptest! {
        #[test]
        fn no_schedule_gets_more_than_burst_and_rate_out_of_a_bucket(waits in prop::collection::vec(0u64..50, 1..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let start = runtime.block_on(async { Instant::now() });
            let mut bucket = Bucket::new(5, Duration::from_millis(10), start);
            let (mut now, mut granted) = (start, 0);
            for wait in waits {
                now += Duration::from_millis(wait);
                granted += u128::from(bucket.take(now));
            }
            prop_assert!(granted <= 5 + now.duration_since(start).as_millis() / 10);
        }
    }
}
