//! Wall clock, identifiers and chance: everything that is not the same twice.
//!
//! The service takes these from a [`World`] so that the simulation can run the real actors under one seed and get the
//! same log every time. Durations and timers come from `tokio::time`, which the simulation pauses.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng, TryRng};

use crate::job::JobId;

/// Source of wall time, identifiers and random numbers. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Inner>);

enum Inner {
    Real,
    Seeded(Box<Seeded>),
}

/// Wall time advances with tokio's (paused) clock from a fixed start.
struct Seeded {
    start: Timestamp,
    began: tokio::time::Instant,
    rng: Mutex<StdRng>,
}

impl World {
    /// The machine's clock and its secure random numbers.
    pub fn real() -> Self {
        Self(Arc::new(Inner::Real))
    }

    /// A world that repeats itself for one `seed`; must be called inside a tokio runtime.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Inner::Seeded(Box::new(Seeded {
            start: Timestamp::from_second(1_790_000_000).expect("within jiff's range"),
            began: tokio::time::Instant::now(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        }))))
    }

    /// Wall time, UTC.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's wall clock")]
    pub fn now(&self) -> Timestamp {
        match &*self.0 {
            Inner::Real => Timestamp::now(),
            Inner::Seeded(seeded) => {
                seeded.start + jiff::SignedDuration::try_from(seeded.began.elapsed()).unwrap_or_default()
            }
        }
    }

    /// A uniformly random number.
    pub fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Random bytes; cryptographically secure in the real world.
    ///
    /// # Panics
    /// When the operating system has no random numbers to give, which leaves no safe way on.
    pub fn fill(&self, bytes: &mut [u8]) {
        match &*self.0 {
            Inner::Real => SysRng.try_fill_bytes(bytes).expect("the operating system's random number source works"),
            Inner::Seeded(seeded) => seeded.rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes),
        }
    }

    /// A random token of `len` bytes, as lower-case hex.
    pub fn token(&self, len: usize) -> String {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        hex::encode(bytes)
    }

    /// `base` spread by ±25 %, so that many retries do not meet.
    pub fn jitter(&self, base: Duration) -> Duration {
        base.mul_f64(0.75 + 0.5 * (self.random() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// A job identifier: 9 characters of time (so that ids sort by age) and 6 of chance, in Crockford's base 32.
    pub fn job_id(&self) -> JobId {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let ms = self.now().as_millisecond() as u64;
        let mut text = String::with_capacity(15);
        for place in (0..9).rev() {
            text.push(ALPHABET[(ms >> (5 * place) & 31) as usize] as char);
        }
        let chance = self.random();
        for place in 0..6 {
            text.push(ALPHABET[(chance >> (5 * place) & 31) as usize] as char);
        }
        JobId::new(text)
    }
}
