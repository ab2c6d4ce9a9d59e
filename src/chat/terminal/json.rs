//! The one object that `janebot ask --json` prints. Its fields are always all there, `null` where nothing is known.

use serde::Serialize;

use crate::agent::Usage;
use crate::desk::recovery::Interrupted;
use crate::job::{JobReport, Outcome, Timings};
use crate::pool::receipt::Receipt;

#[derive(Serialize)]
pub struct Answer<'a> {
    /// `answered`, `failed`, `refused`, `cancelled` or `merged`.
    outcome: &'static str,
    /// The code of a failure or refusal.
    reason: Option<&'static str>,
    /// Whether sending the same again may succeed by itself.
    retryable: bool,
    /// The answer's text, when there is one.
    answer: Option<&'a str>,
    /// What to tell a person when there is no answer.
    message: Option<&'a str>,
    job: &'a str,
    agent: &'a str,
    timings: Timings,
    receipt: Option<&'a Receipt>,
    usage: Option<&'a Usage>,
    files: Vec<File<'a>>,
    notes: &'a [String],
    ended_at: String,
    /// Jobs that the end of an earlier process interrupted.
    interrupted: &'a [Interrupted],
}

#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    size: u64,
    /// Where it was saved, when it was.
    path: Option<String>,
}

impl<'a> Answer<'a> {
    /// `saved` tells where a file with this name was saved.
    pub fn new(report: &'a JobReport, interrupted: &'a [Interrupted], saved: impl Fn(&str) -> Option<String>) -> Self {
        let (answer, message) = match &report.outcome {
            Outcome::Answered { answer } => (Some(answer.as_str()), None),
            Outcome::Failed { message, .. }
            | Outcome::Refused { message, .. }
            | Outcome::Cancelled { message }
            | Outcome::Merged { message, .. } => (None, Some(message.as_str())),
        };
        let file =
            |file: &'a crate::job::OutputFile| File { name: &file.name, size: file.size, path: saved(&file.name) };
        Self {
            outcome: report.outcome.word(),
            reason: report.outcome.reason(),
            retryable: report.outcome.is_retryable(),
            answer,
            message,
            job: report.job.as_str(),
            agent: &report.agent,
            timings: report.timings,
            receipt: report.receipt.as_ref(),
            usage: report.usage.as_ref(),
            files: report.files.iter().map(file).collect(),
            notes: &report.notes,
            ended_at: report.ended_at.to_string(),
            interrupted,
        }
    }

    /// On one line, so that a reader of lines gets it whole.
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("it has no map with keys other than text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, OutputFile, RefuseReason};

    fn report(outcome: Outcome) -> JobReport {
        JobReport {
            job: JobId::new("01job"),
            outcome,
            agent: "shell".into(),
            timings: Timings { total_ms: 7, ..Timings::default() },
            receipt: None,
            usage: None,
            files: vec![OutputFile { name: "a.txt".into(), bytes: bytes::Bytes::new(), size: 3 }],
            notes: vec!["cut".into()],
            ended_at: "2026-09-21T14:13:20Z".parse().unwrap(),
        }
    }

    #[test]
    fn the_shape_does_not_depend_on_the_outcome() {
        let answered = report(Outcome::Answered { answer: "42\n".into() });
        let line = Answer::new(&answered, &[], |_| Some("out/a.txt".into())).line();
        assert_eq!(
            line,
            r#"{"outcome":"answered","reason":null,"retryable":false,"answer":"42\n","message":null,"job":"01job","agent":"shell","timings":{"queue_ms":null,"check_ms":null,"run_ms":null,"collect_ms":null,"total_ms":7},"receipt":null,"usage":null,"files":[{"name":"a.txt","size":3,"path":"out/a.txt"}],"notes":["cut"],"ended_at":"2026-09-21T14:13:20Z","interrupted":[]}"#
        );
        let refused = report(Outcome::Refused { reason: RefuseReason::EmptyPrompt, message: "empty".into() });
        let value: serde_json::Value = serde_json::from_str(&Answer::new(&refused, &[], |_| None).line()).unwrap();
        assert_eq!((&value["outcome"], &value["reason"]), (&"refused".into(), &"empty_prompt".into()));
        assert_eq!((&value["answer"], &value["message"]), (&serde_json::Value::Null, &"empty".into()));
        let answered: serde_json::Value = serde_json::from_str(&line).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&value), keys(&answered));
    }
}
