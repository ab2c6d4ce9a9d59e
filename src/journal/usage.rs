//! What is recorded of a run's usage, and what a requester's runs used together.

use crate::agent::Usage;

/// What one run used.
#[derive(Clone, Debug, PartialEq)]
pub struct Used {
    pub usage: Usage,
    pub counted_by: CountedBy,
}

/// Whose word a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedBy {
    /// The vault saw the traffic.
    Vault,
    /// The agent said so.
    Agent,
}

impl CountedBy {
    pub fn word(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::Agent => "agent",
        }
    }
}

/// What one requester's runs come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Together {
    /// Jobs that got a runner, running ones included.
    pub jobs: u64,
    /// Input and output tokens of those that have ended.
    pub tokens: u64,
}
