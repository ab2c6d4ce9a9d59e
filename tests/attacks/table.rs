//! The table that the suite prints: one line for each attack, with what stops it and what came of it.

use std::fmt::Write;

/// What came of an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ended exactly as it should, in these words.
    Stopped(String),
    GotThrough {
        expected: String,
        got: String,
    },
    NotRunnable(String),
}

#[derive(Clone, Debug)]
pub struct Line {
    pub number: String,
    pub attack: String,
    pub wall: String,
    pub verdict: Verdict,
}

impl Line {
    /// Judges an attack's answer.
    pub fn judge(number: &str, attack: &str, wall: &str, expected: &str, got: impl Into<String>) -> Self {
        let got = got.into();
        let verdict = if got == expected {
            Verdict::Stopped(got)
        } else {
            Verdict::GotThrough { expected: expected.into(), got }
        };
        Self { number: number.into(), attack: attack.into(), wall: wall.into(), verdict }
    }

    pub fn not_runnable(number: &str, attack: &str, wall: &str, reason: &str) -> Self {
        let verdict = Verdict::NotRunnable(reason.into());
        Self { number: number.into(), attack: attack.into(), wall: wall.into(), verdict }
    }

    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::GotThrough { .. })
    }

    fn result(&self) -> String {
        match &self.verdict {
            Verdict::Stopped(how) => how.clone(),
            Verdict::GotThrough { expected, got } => format!("**FAILED**: {got} instead of {expected}"),
            Verdict::NotRunnable(reason) => format!("not runnable here: {reason}"),
        }
    }
}

/// SECURITY.md has to name each attack and each wall taken away.
pub fn undocumented(lines: &[Line]) -> Option<Line> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md")).unwrap_or_default();
    let missing = |line: &&Line| !text.contains(&format!("| {} | {} | {} |", line.number, line.attack, line.wall));
    let missing: Vec<&str> = lines.iter().filter(missing).map(|line| line.attack.as_str()).collect();
    if missing.is_empty() {
        return None;
    }
    println!("not in SECURITY.md: {}", missing.join("; "));
    Some(Line::judge("SECURITY.md", "attacks that it leaves out", "", "none", missing.join("; ")))
}

/// The lines as a table in Markdown.
pub fn render(title: &str, lines: &[Line]) -> String {
    let mut text = format!("\n{title}\n\n| # | attack | wall | result |\n|---|---|---|---|\n");
    for line in lines {
        let cells = [&line.number, &line.attack, &line.wall, &line.result()].map(|cell| cell.replace('|', "\\|"));
        // Writing to a string can't fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}
