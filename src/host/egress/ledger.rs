//! What went through the gateway of one sprite, and what did not and why.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::connection::Refusal;

/// Sentences that are kept; older ones make room.
const MAX_SENTENCES: usize = 50;

/// A sprite's network use since its sandbox started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that reached the other side.
    pub connections: u64,
    /// Bytes from the sprite to the world.
    pub bytes_out: u64,
    /// Bytes from the world to the sprite.
    pub bytes_in: u64,
    /// DNS queries about names that the policy denies or for which no address is left.
    pub names_denied: u64,
    /// Connections refused or cut, for whatever reason but [`Self::sni_mismatches`].
    pub connects_denied: u64,
    /// Connections whose TLS hello named another host or none.
    pub sni_mismatches: u64,
    /// Connections to allowed names that the other side or the network failed.
    pub failures: u64,
    /// The last denials and failures as sentences, oldest first, the same one not twice in a row; as in
    /// `denied: example.com:443 by policy`. At most 50.
    pub recent: Vec<String>,
}

/// Collects [`Counters`]; shared by all tasks of a gateway.
#[derive(Debug)]
pub(super) struct Ledger {
    sprite: String,
    connections: AtomicU64,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    names_denied: AtomicU64,
    connects_denied: AtomicU64,
    sni_mismatches: AtomicU64,
    failures: AtomicU64,
    recent: Mutex<VecDeque<String>>,
}

impl Ledger {
    pub fn new(sprite: &str) -> Self {
        Self {
            sprite: sprite.to_owned(),
            connections: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            bytes_in: AtomicU64::default(),
            names_denied: AtomicU64::default(),
            connects_denied: AtomicU64::default(),
            sni_mismatches: AtomicU64::default(),
            failures: AtomicU64::default(),
            recent: Mutex::default(),
        }
    }

    pub fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub fn sent(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Relaxed);
    }

    pub fn received(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Relaxed);
    }

    pub fn name_denied(&self, name: &str) {
        self.names_denied.fetch_add(1, Relaxed);
        self.note(format_args!("denied: {name} by policy"));
    }

    pub fn names_exhausted(&self, name: &str) {
        self.names_denied.fetch_add(1, Relaxed);
        self.note(format_args!("denied: {name} because this sprite uses too many new names"));
    }

    pub fn unknown_address(&self, address: SocketAddr) {
        self.connects_denied.fetch_add(1, Relaxed);
        self.note(format_args!("denied: {address} because this address was never handed out"));
    }

    pub fn too_many_connections(&self, limit: usize) {
        self.connects_denied.fetch_add(1, Relaxed);
        self.note(format_args!("denied: a connection because {limit} are open"));
    }

    pub fn refused(&self, name: &str, port: u16, why: &Refusal) {
        let (counter, verdict) = match why {
            Refusal::OtherServerName(_) | Refusal::NoServerName => (&self.sni_mismatches, "denied"),
            Refusal::NoAddress | Refusal::Unresolved(_) | Refusal::Unreachable(_) => (&self.failures, "failed"),
            Refusal::Policy
            | Refusal::Port
            | Refusal::GrantPort
            | Refusal::NotTls
            | Refusal::LongHello
            | Refusal::SlowHello
            | Refusal::SpecialAddress(_) => (&self.connects_denied, "denied"),
            // The program inside hung up, or an established connection broke: nobody was refused anything.
            Refusal::HungUp | Refusal::Broken(_) => return,
        };
        counter.fetch_add(1, Relaxed);
        self.note(format_args!("{verdict}: {name}:{port} {why}"));
    }

    pub fn counters(&self) -> Counters {
        Counters {
            connections: self.connections.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            names_denied: self.names_denied.load(Relaxed),
            connects_denied: self.connects_denied.load(Relaxed),
            sni_mismatches: self.sni_mismatches.load(Relaxed),
            failures: self.failures.load(Relaxed),
            recent: self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect(),
        }
    }

    /// Keeps a sentence. Code in the sandbox decides how often this happens, so it goes no further than the debug log.
    fn note(&self, sentence: fmt::Arguments<'_>) {
        let sentence = sentence.to_string();
        tracing::debug!(sprite = self.sprite, "{sentence}");
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.back() == Some(&sentence) {
            return;
        }
        if recent.len() == MAX_SENTENCES {
            recent.pop_front();
        }
        recent.push_back(sentence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sentences_are_kept_and_repetitions_are_counted_only() {
        let ledger = Ledger::new("box");
        for n in 0..60 {
            ledger.name_denied(&format!("n{n}.example"));
            ledger.name_denied(&format!("n{n}.example"));
        }
        ledger.refused("a.example", 443, &Refusal::Policy);
        ledger.refused("a.example", 443, &Refusal::OtherServerName("b.example".into()));
        ledger.refused("a.example", 443, &Refusal::HungUp);
        let counters = ledger.counters();
        assert_eq!((counters.names_denied, counters.connects_denied, counters.sni_mismatches), (120, 1, 1));
        assert_eq!(counters.recent.len(), MAX_SENTENCES);
        assert_eq!(counters.recent[0], "denied: n12.example by policy");
        assert_eq!(counters.recent[48], "denied: a.example:443 by policy");
        assert_eq!(counters.recent[49], "denied: a.example:443 because its TLS hello names b.example");
    }
}
