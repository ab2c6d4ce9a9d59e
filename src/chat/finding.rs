//! What a front end's doctor finds, in words for the operator.

use std::fmt;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good(String),
    /// It works, and something deserves a look.
    Odd(String),
    /// It does not work; the sentence says what to do.
    Bad(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(text) => write!(f, "ok    {text}"),
            Self::Odd(text) => write!(f, "look  {text}"),
            Self::Bad(text) => write!(f, "wrong {text}"),
        }
    }
}
