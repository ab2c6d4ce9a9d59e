//! Who waits and runs, by number: looking at a number costs less than looking at a name.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// Names as numbers, each with what waits and runs. A name of which nothing does is forgotten.
#[derive(Debug)]
pub(super) struct Register<N> {
    pub(super) numbers: HashMap<N, u64>,
    pub(super) loads: Numbered<Load<N>>,
}

#[derive(Debug)]
pub(super) struct Load<N> {
    name: N,
    pub(super) queued: usize,
    pub(super) running: usize,
    /// Where it has lanes: tier and channel. Of a channel, nothing.
    pub(super) lanes: BTreeSet<(usize, u64)>,
}

impl<N: Clone + Eq + std::hash::Hash> Register<N> {
    pub(super) fn new() -> Self {
        Self { numbers: HashMap::new(), loads: Numbered::default() }
    }

    /// The number of `name`, made with `fresh` if it is new.
    pub(super) fn enter(&mut self, name: &N, fresh: u64) -> u64 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        self.numbers.insert(name.clone(), fresh);
        self.loads.insert(fresh, Load { name: name.clone(), queued: 0, running: 0, lanes: BTreeSet::new() });
        fresh
    }

    pub(super) fn load(&mut self, number: u64) -> &mut Load<N> {
        self.loads.get_mut(&number).expect("a number lives as long as something of its name waits or runs")
    }

    pub(super) fn running(&self, number: u64) -> usize {
        self.loads.get(&number).map_or(0, |load| load.running)
    }

    pub(super) fn of(&self, name: &N) -> (usize, usize) {
        let load = self.numbers.get(name).and_then(|number| self.loads.get(number));
        load.map_or((0, 0), |load| (load.queued, load.running))
    }

    pub(super) fn forget_idle(&mut self, number: u64) {
        if let Some(load) = self.loads.get(&number)
            && load.queued == 0
            && load.running == 0
        {
            self.numbers.remove(&load.name);
            self.loads.remove(&number);
        }
    }
}

/// Things by their number. The numbers are the queue's own, so nobody can choose ones that fall together, and telling a
/// place looks at a thousand of them.
pub(super) type Numbered<V> = HashMap<u64, V, BuildHasherDefault<ByNumber>>;

#[derive(Default)]
pub(super) struct ByNumber(u64);

impl Hasher for ByNumber {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }

    /// Spreads numbers that follow each other over all bits, by the golden ratio.
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}
