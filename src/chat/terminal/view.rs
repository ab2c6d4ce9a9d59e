//! What a job does now, shown on standard error: a spinner on a terminal, else a line for each change.

use std::io::{IsTerminal, Write as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::paint::span;
use crate::chat::{Progress, words};

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
        self.say(words::progress(progress));
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
