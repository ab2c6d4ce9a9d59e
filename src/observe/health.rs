//! The board of conditions: each part that can be ill without the service being gone says here how it is, and the
//! admin listener shows it. Writing never waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// How a part is. Texts are sentences for the operator: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "why", rename_all = "snake_case")]
pub enum Condition {
    Starting,
    Ready,
    /// It works on being ready by itself.
    NotReady(String),
    /// It will not be ready before somebody does something.
    Failed(String),
}

/// The conditions of all parts. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<&'static str, Condition>>>);

impl Board {
    /// A part of this name, which is starting.
    pub fn part(&self, name: &'static str) -> Part {
        let part = Part { board: self.clone(), name };
        part.set(Condition::Starting);
        part
    }

    /// Every part with its condition, by name.
    pub fn all(&self) -> BTreeMap<&'static str, Condition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One part's place on the board.
#[derive(Clone, Debug)]
pub struct Part {
    board: Board,
    name: &'static str,
}

impl Part {
    pub fn ready(&self) {
        self.set(Condition::Ready);
    }

    pub fn not_ready(&self, why: impl Into<String>) {
        self.set(Condition::NotReady(why.into()));
    }

    pub fn failed(&self, why: impl Into<String>) {
        self.set(Condition::Failed(why.into()));
    }

    fn set(&self, condition: Condition) {
        let mut all = self.board.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(self.name) == Some(&condition) {
            return;
        }
        match &condition {
            Condition::Starting => tracing::debug!(part = self.name, "is starting"),
            Condition::Ready => tracing::info!(part = self.name, "is ready"),
            Condition::NotReady(why) => tracing::warn!(part = self.name, why, "is not ready"),
            Condition::Failed(why) => tracing::error!(part = self.name, why, "has failed"),
        }
        all.insert(self.name, condition);
    }
}
