//! How long a job will wait, from how long runners were taken lately. Pure; the pool manager owns it.
//!
//! Measured is the whole time that a job keeps a runner from the next one: check, run, collecting and restore. The
//! estimate is a range between two quantiles, so that one run of hours does not move it, and it is unknown while there
//! is too little to tell it from.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

/// Measurements kept of each agent and of all together: the habits of today, not of last month.
const WINDOW: usize = 50;
/// With fewer measurements than this nothing is told.
const ENOUGH: usize = 5;
/// The range leaves out the shortest and the longest fifth.
const LOW: f64 = 0.2;
const HIGH: f64 = 0.8;

/// A wait, as a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Wait {
    #[serde(rename = "low_ms", serialize_with = "as_millis")]
    pub low: Duration,
    #[serde(rename = "high_ms", serialize_with = "as_millis")]
    pub high: Duration,
}

fn as_millis<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

impl fmt::Display for Wait {
    /// In words, as coarse as it is known: `less than 10 s`, `20 to 45 s`, `3 to 5 min`, `about 2 h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = (self.low.as_secs_f64(), self.high.as_secs_f64());
        let (unit, step, name) = match high {
            ..10.0 => return f.write_str("less than 10 s"),
            ..60.0 => (1.0, 5.0, "s"),
            ..5400.0 => (60.0, 1.0, "min"),
            _ => (3600.0, 1.0, "h"),
        };
        let low = (low / unit / step).floor() * step;
        let high = (high / unit / step).ceil() * step;
        match low {
            0.0 => write!(f, "less than {high} {name}"),
            low if low + step >= high => write!(f, "about {high} {name}"),
            low => write!(f, "{low} to {high} {name}"),
        }
    }
}

/// The newest measurements, each also in its place by length.
#[derive(Debug, Default)]
struct Window {
    newest: VecDeque<Duration>,
    sorted: Vec<Duration>,
}

impl Window {
    fn record(&mut self, time: Duration) {
        if self.newest.len() == WINDOW
            && let Some(oldest) = self.newest.pop_front()
            && let Ok(place) = self.sorted.binary_search(&oldest)
        {
            self.sorted.remove(place);
        }
        self.newest.push_back(time);
        let place = self.sorted.partition_point(|other| *other < time);
        self.sorted.insert(place, time);
    }

    fn is_thin(&self) -> bool {
        self.sorted.len() < ENOUGH
    }

    /// What is left of a run that has lasted for `elapsed`: of those that lasted longer, the low and the high one. None
    /// when hardly any did: then it is not known when this one will end.
    fn left_after(&self, elapsed: Duration) -> Option<(Duration, Duration)> {
        let longer = &self.sorted[self.sorted.partition_point(|time| *time <= elapsed)..];
        if self.is_thin() || longer.is_empty() {
            return None;
        }
        Some((quantile(longer, LOW) - elapsed, quantile(longer, HIGH) - elapsed))
    }
}

/// `sorted` has something in it.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// How long jobs kept their runners.
#[derive(Debug, Default)]
pub struct RunTimes {
    by_agent: BTreeMap<String, Window>,
    /// Of all agents: the mix that ran lately stands for the mix that waits.
    all: Window,
}

impl RunTimes {
    /// A job of `agent` kept its runner from others for so long.
    pub fn record(&mut self, agent: &str, time: Duration) {
        match self.by_agent.get_mut(agent) {
            Some(window) => window.record(time),
            None => self.by_agent.entry(agent.to_owned()).or_default().record(time),
        }
        self.all.record(time);
    }

    /// What lies ahead when each of these runners, with its job's agent, has been taken for so long.
    pub fn outlook<'a>(&self, taken: impl IntoIterator<Item = (&'a str, Duration)>) -> Outlook {
        let mut outlook = Outlook { low: Vec::new(), high: Vec::new(), next: None };
        for (agent, elapsed) in taken {
            match self.by_agent.get(agent).and_then(|window| window.left_after(elapsed)) {
                Some((low, high)) => {
                    outlook.low.push(low);
                    outlook.high.push(high);
                }
                // It may come free at any moment, and must not be counted on.
                None => outlook.low.push(Duration::ZERO),
            }
        }
        outlook.low.sort_unstable();
        outlook.high.sort_unstable();
        outlook.next =
            (!self.all.is_thin()).then(|| (quantile(&self.all.sorted, LOW), quantile(&self.all.sorted, HIGH)));
        outlook
    }
}

/// When the runners come free.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// Times until each runner is free, shortest first: at best, and what may be counted on.
    low: Vec<Duration>,
    high: Vec<Duration>,
    /// How long each job after that keeps a runner.
    next: Option<(Duration, Duration)>,
}

impl Outlook {
    /// How long the job with `ahead` others before it waits. `None` when that can't be told.
    pub fn wait(&self, ahead: usize) -> Option<Wait> {
        Some(Wait {
            low: nth(&self.low, ahead, self.next.map(|(low, _)| low))?,
            high: nth(&self.high, ahead, self.next.map(|(_, high)| high))?,
        })
    }
}

/// When the `n`th job gets a runner, each keeping one for `each`: the `n`th of the times at which some runner comes free.
fn nth(free: &[Duration], n: usize, each: Option<Duration>) -> Option<Duration> {
    let millis = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let Some(each) = each.map(|each| millis(&each).max(1)) else { return free.get(n).copied() };
    let first = millis(free.first()?);
    // Jobs that have got a runner by `time`.
    let served = |time: u64| {
        let of = |free: &Duration| time.checked_sub(millis(free)).map_or(0, |since| since / each + 1);
        free.iter().map(of).fold(0u64, u64::saturating_add)
    };
    let (mut too_early, mut enough) = (first, first.saturating_add(each.saturating_mul(n as u64)));
    if served(too_early) > n as u64 {
        return Some(Duration::from_millis(first));
    }
    while enough - too_early > 1 {
        let middle = too_early + (enough - too_early) / 2;
        if served(middle) > n as u64 { enough = middle } else { too_early = middle }
    }
    Some(Duration::from_millis(enough))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn measured(times: impl IntoIterator<Item = u64>) -> RunTimes {
        let mut measured = RunTimes::default();
        times.into_iter().for_each(|time| measured.record("amp", secs(time)));
        measured
    }

    #[test]
    fn nothing_is_told_from_a_few_measurements() {
        let times = measured([60; ENOUGH - 1]);
        assert_eq!(times.outlook([("amp", secs(10))]).wait(0), None);
        let times = measured([60; ENOUGH]);
        assert_eq!(times.outlook([("amp", secs(10))]).wait(0), Some(Wait { low: secs(50), high: secs(50) }));
        assert_eq!(times.outlook([("claude", secs(10))]).wait(0), None, "nothing is known of that agent");
        assert_eq!(times.outlook([]).wait(0), None, "no runner runs anything that would end");
    }

    #[test]
    fn one_run_of_hours_does_not_move_the_estimate() {
        let times = measured([50, 60, 70, 60, 60, 10_000]);
        let wait = times.outlook([("amp", secs(0))]).wait(1).unwrap();
        assert!(wait.high <= secs(140), "{wait:?}");
    }

    #[test]
    fn jobs_ahead_are_shared_between_the_runners() {
        let times = measured([100; 10]);
        let outlook = times.outlook([("amp", secs(90)), ("amp", secs(40))]);
        let at = |ahead| outlook.wait(ahead).unwrap().high.as_secs();
        assert_eq!([at(0), at(1), at(2), at(3), at(4)], [10, 60, 110, 160, 210]);
        let outlook = times.outlook([("amp", secs(99)), ("amp", secs(0))]);
        assert_eq!(outlook.wait(100_000).unwrap().high.as_secs(), 5_000_001);
    }

    #[test]
    fn a_runner_that_is_overdue_is_not_counted_on() {
        let times = measured([100; 10]);
        let wait = times.outlook([("amp", secs(500)), ("amp", secs(40))]).wait(0).unwrap();
        assert_eq!((wait.low, wait.high), (secs(0), secs(60)));
        assert_eq!(times.outlook([("amp", secs(500))]).wait(0), None);
    }

    #[test]
    fn a_wait_reads_like_speech() {
        for (low, high, words) in [
            (0, 9, "less than 10 s"),
            (21, 42, "20 to 45 s"),
            (2, 90, "less than 2 min"),
            (65, 119, "about 2 min"),
            (130, 290, "2 to 5 min"),
            (7000, 9000, "1 to 3 h"),
        ] {
            assert_eq!(Wait { low: secs(low), high: secs(high) }.to_string(), words);
        }
    }

    proptest! {
        #[test]
        fn a_later_place_never_waits_less_and_low_never_exceeds_high(
            times in proptest::collection::vec(1u64..5000, 0..120),
            taken in proptest::collection::vec(0u64..6000, 0..6),
        ) {
            let outlook = measured(times).outlook(taken.iter().map(|time| ("amp", secs(*time))));
            let waits: Vec<_> = (0..20).map(|ahead| outlook.wait(ahead)).collect();
            for pair in waits.windows(2) {
                let [Some(first), Some(second)] = pair else { continue };
                prop_assert!(first.low <= second.low && first.high <= second.high, "{pair:?}");
            }
            prop_assert!(waits.iter().flatten().all(|wait| wait.low <= wait.high), "{waits:?}");
        }
    }
}
