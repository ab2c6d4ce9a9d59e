//! Samples, and the tables that they end up in.

use std::time::Duration;

/// What was measured several times.
#[derive(Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    pub fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// In milliseconds; `share` is 0.5 for the median. NaN without samples.
    pub fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let index = (sorted.len() as f64 * share) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0)
    }

    pub fn median(&self) -> f64 {
        self.at(0.5)
    }
}

/// Prints one figure with what it should be: below `limit`, or at least that when `more`.
pub fn figure(what: &str, value: f64, unit: &str, target: Option<Target>) {
    let verdict = match target {
        None => String::new(),
        Some(Target::Below(limit)) => format!("< {limit} {unit}   {}", word(value < limit)),
        Some(Target::AtLeast(limit)) => format!(">= {limit} {unit}   {}", word(value >= limit)),
    };
    println!("{what:<58}{value:>10.2} {unit:<6}{verdict}");
}

#[derive(Clone, Copy)]
pub enum Target {
    Below(f64),
    AtLeast(f64),
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
