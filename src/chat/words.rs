//! What people are told in a chat, in words. Pure functions.

use std::fmt::Write as _;

use super::text::{harmless, one_line};
use super::{Action, Progress};
use crate::job::{JobReport, Outcome};
use crate::journal::outgoing::Mark;

/// What a job does now, in a phrase.
pub fn progress(progress: &Progress) -> String {
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

/// The last text of the progress message.
pub fn closing(report: &JobReport) -> String {
    let took = humantime::format_duration(std::time::Duration::from_secs(report.timings.total_ms / 1000));
    match &report.outcome {
        Outcome::Answered { .. } => format!("Answered after {took}."),
        Outcome::Failed { reason, .. } => format!("Failed after {took} ({}).", reason.code().replace('_', " ")),
        Outcome::Refused { .. } => "Not run.".into(),
        Outcome::Cancelled { .. } => format!("Cancelled after {took}."),
        Outcome::Merged { .. } => "Answered together with the message before it.".into(),
    }
}

/// The whole text of the outcome: what came out, what else is to be known, and how to ask about it.
pub fn outcome(report: &JobReport) -> String {
    let mut text = match &report.outcome {
        Outcome::Answered { answer } if answer.trim().is_empty() => "The agent ended without a word.".into(),
        Outcome::Answered { answer } => harmless(answer).trim_end().to_owned(),
        Outcome::Failed { message, .. }
        | Outcome::Refused { message, .. }
        | Outcome::Cancelled { message }
        | Outcome::Merged { message, .. } => harmless(message).trim_end().to_owned(),
    };
    let is_job = !matches!(report.outcome, Outcome::Refused { .. } | Outcome::Merged { .. });
    for note in &report.notes {
        // Writing to a String can't fail.
        let _ = write!(text, "\n\nNote: {}", one_line(note, 400));
    }
    if is_job {
        let took = report.timings.total_ms as f64 / 1000.0;
        let _ = write!(text, "\n\n{} · {took:.1} s · job {}", report.agent, report.job);
    }
    text
}

/// What can be done about the outcome. A job that failed, or a moment that was wrong, may be tried again by whoever asked.
pub fn buttons(outcome: &Outcome) -> Vec<Action> {
    match outcome {
        Outcome::Failed { .. } => vec![Action::Retry, Action::Why],
        Outcome::Refused { .. } if outcome.is_retryable() => vec![Action::Retry],
        Outcome::Refused { .. } | Outcome::Merged { .. } => Vec::new(),
        Outcome::Answered { .. } | Outcome::Cancelled { .. } => vec![Action::Why],
    }
}

/// The mark that the message gets in the end.
pub fn mark(outcome: &Outcome) -> Mark {
    match outcome {
        Outcome::Answered { .. } => Mark::Answered,
        Outcome::Failed { .. } | Outcome::Refused { .. } => Mark::Failed,
        Outcome::Cancelled { .. } => Mark::Cancelled,
        Outcome::Merged { .. } => Mark::Merged,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            assert_eq!(super::progress(&progress), phrase);
        }
    }
}
