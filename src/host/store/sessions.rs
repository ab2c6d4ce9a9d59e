//! The sessions of one sprite: those that run, and the last ones that ended.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::host::session::Session;

/// Ended sessions that are still known as such.
const REMEMBERED: usize = 64;

#[derive(Default)]
pub struct Sessions {
    running: BTreeMap<String, Arc<Session>>,
    /// Oldest first.
    ended: VecDeque<String>,
}

/// What is known of a session id.
pub enum Lookup {
    Running(Arc<Session>),
    Ended,
    Unknown,
}

impl Sessions {
    /// Takes a session in, unless it has ended already.
    pub fn add(&mut self, session: &Arc<Session>) {
        if !session.has_ended() {
            self.running.insert(session.launch.id.clone(), session.clone());
        }
    }

    pub fn end(&mut self, id: &str) {
        self.running.remove(id);
        self.ended.push_back(id.to_owned());
        if self.ended.len() > REMEMBERED {
            self.ended.pop_front();
        }
    }

    /// Those that run, in the order of their start.
    pub fn running(&self) -> Vec<Arc<Session>> {
        // One that has ended is taken out in a moment, and must not be seen by a client that knows of its end.
        self.running.values().filter(|session| !session.has_ended()).cloned().collect()
    }

    pub fn find(&self, id: &str) -> Lookup {
        match self.running.get(id) {
            Some(session) if !session.has_ended() => Lookup::Running(session.clone()),
            Some(_) => Lookup::Ended,
            None if self.ended.iter().any(|ended| ended == id) => Lookup::Ended,
            None => Lookup::Unknown,
        }
    }
}
