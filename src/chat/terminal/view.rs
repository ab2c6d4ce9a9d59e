//! What a job does now, shown on standard error: a spinner on a terminal, else a line for each change.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::paint::span;
use crate::chat::Progress;
use crate::chat::text::one_line;

const TICK: Duration = Duration::from_millis(100);

/// The progress of one job. Nothing of a spinner is left on the screen when it is dropped.
pub enum View {
    Spinner(ProgressBar),
    Lines { last: String },
}

impl View {
    pub fn on_stderr() -> Self {
        let term = std::env::var_os("TERM");
        if stderr().is_terminal() && term.is_none_or(|term| term != "dumb") {
            let bar = ProgressBar::new_spinner().with_style(style());
            bar.enable_steady_tick(TICK);
            Self::Spinner(bar)
        } else {
            Self::Lines { last: String::new() }
        }
    }

    pub fn progress(&mut self, progress: &Progress) {
        self.say(describe(progress));
    }

    /// Shows a line in place of the one before.
    pub fn say(&mut self, text: String) {
        match self {
            Self::Spinner(bar) => bar.set_message(text),
            Self::Lines { last } => {
                if *last != text {
                    // Standard error may be closed, which is no reason to fail a job.
                    let _ = writeln!(stderr(), "janebot: {text}");
                    *last = text;
                }
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Self::Spinner(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    let clock = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // Whole seconds: a tenth that runs draws the eye from what the agent does.
        let _ = write!(out, "{}", whole_seconds(state.elapsed()));
    };
    ProgressStyle::with_template("{spinner:.cyan} {clock:.dim} {wide_msg}")
        .expect("the template is right, as every run shows")
        .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
        .with_key("clock", clock)
}

fn whole_seconds(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds:>2} s"),
        seconds => span(Duration::from_secs(seconds)),
    }
}

fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Queued { ahead, reason, wait } => {
            let mut text = String::from("waiting for a runner");
            let before = match ahead {
                0 => String::new(),
                ahead => format!("{ahead} before you"),
            };
            let wait = match wait {
                Some(wait) => wait.to_string(),
                None if *ahead > 0 => "wait unknown".to_owned(),
                None => String::new(),
            };
            let facts: Vec<_> =
                [before, wait, one_line(reason, 160)].into_iter().filter(|fact| !fact.is_empty()).collect();
            if !facts.is_empty() {
                // Writing to a String can't fail.
                let _ = write!(text, " ({})", facts.join("; "));
            }
            text
        }
        Progress::Behind => "waiting for the answer to your earlier message".into(),
        Progress::Checking { runner } => format!("checking that {} is clean", one_line(runner, 60)),
        Progress::Working { text } => one_line(text, 200),
        Progress::Cancelling => "cancelling".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::estimate::Wait;

    #[test]
    fn progress_reads_as_a_phrase() {
        let wait = Some(Wait { low: Duration::from_secs(130), high: Duration::from_secs(290) });
        for (progress, phrase) in [
            (Progress::Queued { ahead: 0, reason: String::new(), wait: None }, "waiting for a runner"),
            (Progress::Queued { ahead: 0, reason: "building".into(), wait: None }, "waiting for a runner (building)"),
            (
                Progress::Queued { ahead: 2, reason: "all runners are busy".into(), wait: None },
                "waiting for a runner (2 before you; wait unknown; all runners are busy)",
            ),
            (
                Progress::Queued { ahead: 2, reason: "all runners are busy".into(), wait },
                "waiting for a runner (2 before you; 2 to 5 min; all runners are busy)",
            ),
            (Progress::Checking { runner: "jane-runner-0".into() }, "checking that jane-runner-0 is clean"),
            (Progress::Working { text: "\u{1b}[2J ls\n-l".into() }, "␛[2J ls -l"),
        ] {
            assert_eq!(describe(&progress), phrase);
        }
    }
}
