//! What was seen lately, within a limit: the oldest is forgotten first.

use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
pub struct Recent<K, V> {
    max: usize,
    values: BTreeMap<K, V>,
    /// Each key once, in the order in which it came.
    order: VecDeque<K>,
}

impl<K: Ord + Clone, V> Recent<K, V> {
    pub fn new(max: usize) -> Self {
        Self { max, values: BTreeMap::new(), order: VecDeque::new() }
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.values.get(key)
    }

    /// Keeps the value; one that was there keeps its age.
    pub fn put(&mut self, key: K, value: V) {
        if self.values.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.max {
            if let Some(oldest) = self.order.pop_front() {
                self.values.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_nothing_is_kept_twice() {
        let mut recent = Recent::new(2);
        for (key, value) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            recent.put(key, value);
        }
        assert_eq!((recent.get("a"), recent.get("b"), recent.get("c")), (None, Some(&2), Some(&4)));
        assert_eq!((recent.values.len(), recent.order.len()), (2, 2));
    }
}
