//! Colours, and the words for times, sizes and summaries. Pure but for the question what the terminal can show.

use std::io::IsTerminal;
use std::time::Duration;

use crate::chat::text::one_line;
use crate::job::{JobReport, Outcome};

/// Colours for one stream; none unless it is a terminal that shows them.
#[derive(Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    /// Follows <https://no-color.org>.
    pub fn for_stream(stream: &impl IsTerminal) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(stream.is_terminal() && !unwanted && !dumb)
    }

    #[cfg(test)]
    pub fn plain() -> Self {
        Self(false)
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    pub fn dim(self, text: &str) -> String {
        self.code("2", text)
    }

    pub fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    pub fn good(self, text: &str) -> String {
        self.code("32", text)
    }

    pub fn warn(self, text: &str) -> String {
        self.code("33", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.code("31", text)
    }

    pub fn accent(self, text: &str) -> String {
        self.code("36", text)
    }
}

/// A time as people say it: `12 ms`, `3.4 s`, `2 min 5 s`, `3 h 2 min`.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 if time.as_millis() < 1000 => format!("{} ms", time.as_millis()),
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

pub fn span_ms(ms: u64) -> String {
    span(Duration::from_millis(ms))
}

/// A size as people say it: `512 B`, `3.1 KiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count as people say it: `812`, `12.5k`, `1.2M`.
fn thousands(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.1}k", count as f64 / 1e3),
        1_000_000.. => format!("{:.1}M", count as f64 / 1e6),
    }
}

/// The line below an answer: how it ended, what it took, where it ran, and which job it was.
pub fn summary(report: &JobReport, paint: Paint) -> String {
    let mark = match &report.outcome {
        Outcome::Answered { .. } => paint.good("✓"),
        Outcome::Failed { .. } => paint.bad("✗"),
        Outcome::Refused { .. } => paint.bad("✗ refused"),
        Outcome::Cancelled { .. } | Outcome::Merged { .. } => paint.warn("■"),
    };
    let mut parts = vec![report.agent.clone(), span_ms(report.timings.total_ms)];
    // What is left of the whole is the agent's own time.
    let phases = [("wait", report.timings.queue_ms), ("check", report.timings.check_ms)];
    let phases: Vec<_> =
        phases.iter().filter_map(|(name, ms)| ms.map(|ms| format!("{name} {}", span_ms(ms)))).collect();
    if !phases.is_empty() {
        parts[1] = format!("{} ({})", parts[1], phases.join(", "));
    }
    if let Some(usage) = &report.usage {
        let cost = usage.cost_usd.map(|cost| format!(", ${cost:.4}")).unwrap_or_default();
        parts.push(format!("{} tokens{cost}", thousands(usage.input_tokens + usage.output_tokens)));
    }
    if let Some(receipt) = &report.receipt {
        parts.push(format!("clean {}", one_line(&receipt.runner, 40)));
    }
    parts.push(format!("job {}", report.job));
    format!("{mark} {}", paint.dim(&parts.join(" · ")))
}

/// What else the user should know, one line each.
pub fn notes(report: &JobReport, paint: Paint) -> Vec<String> {
    let warnings = report.receipt.iter().flat_map(|receipt| &receipt.warnings);
    let notes = report.notes.iter().chain(warnings);
    notes.map(|note| format!("{} {}", paint.warn("!"), one_line(note, 400))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{FailReason, JobId, Timings};

    #[test]
    fn times_and_sizes_read_like_speech() {
        for (ms, words) in
            [(0, "0 ms"), (999, "999 ms"), (3_420, "3.4 s"), (125_000, "2 min 5 s"), (10_930_000, "3 h 2 min")]
        {
            assert_eq!(span_ms(ms), words);
        }
        for (bytes, words) in [(0, "0 B"), (1023, "1023 B"), (3174, "3.1 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(size(bytes), words);
        }
    }

    #[test]
    fn the_summary_shows_only_what_is_known() {
        let mut report = JobReport {
            job: JobId::new("01job"),
            outcome: Outcome::Failed { reason: FailReason::QueueTimeout, message: "m".into() },
            agent: "shell".into(),
            timings: Timings { total_ms: 1900, ..Timings::default() },
            receipt: None,
            usage: None,
            files: Vec::new(),
            notes: vec!["output\ncut".into()],
            ended_at: "2026-09-21T14:13:20Z".parse().unwrap(),
        };
        assert_eq!(summary(&report, Paint::plain()), "✗ shell · 1.9 s · job 01job");
        report.timings.queue_ms = Some(5);
        assert_eq!(summary(&report, Paint::plain()), "✗ shell · 1.9 s (wait 5 ms) · job 01job");
        assert_eq!(notes(&report, Paint::plain()), ["! output cut"]);
    }
}
