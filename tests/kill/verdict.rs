//! What a part found: its table, and the promises that were broken.

use std::fmt::{Display, Write as _};

#[derive(Default)]
pub struct Verdict {
    pub table: String,
    /// Each in words; empty when all is well.
    pub broken: Vec<String>,
}

impl Verdict {
    pub fn title(&mut self, title: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(self.table, "{title}");
    }

    pub fn row(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.table, "  {name:<70} {value:>6}");
    }

    pub fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(otherwise());
        }
    }
}
