//! The last look at what a run would send out: whoever holds the service's secrets must not hand them on, in whatever
//! form they came to be in an answer. The files are looked through one after the other with the answer before them, so
//! that a secret which is spread over them is found as well.

use crate::agent::{AgentEvent, AgentResult};
use crate::job::OutputFile;
use crate::pool::RunEnd;
use crate::vault::scan::{Finding, Scan, Secrets};

/// Bytes that are looked through before others get their turn.
const STEP: usize = 256 * 1024;

/// A secret of the service in what a run would send out. Names no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leak {
    pub finding: Finding,
    pub place: String,
}

impl std::fmt::Display for Leak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.finding, self.place)
    }
}

/// Looks through everything that would leave.
pub(super) async fn look(secrets: &Secrets, ended: &RunEnd, files: &[OutputFile], notes: &[String]) -> Option<Leak> {
    let mut scan = secrets.scan();
    for text in texts(ended).into_iter().chain(notes) {
        if let Some(finding) = feed(&mut scan, text.as_bytes()).await {
            return Some(Leak { finding, place: "the answer".into() });
        }
    }
    for (number, file) in files.iter().enumerate() {
        // The name itself may be what leaks, so the file is named by its number.
        let place = |part| format!("the {part} of output file {}", number + 1);
        if let Some(finding) = feed(&mut scan, file.name.as_bytes()).await {
            return Some(Leak { finding, place: place("name") });
        }
        if let Some(finding) = feed(&mut scan, &file.bytes).await {
            return Some(Leak { finding, place: place("content") });
        }
    }
    None
}

async fn feed(scan: &mut Scan, text: &[u8]) -> Option<Finding> {
    for part in text.chunks(STEP) {
        if let Some(finding) = scan.feed(part) {
            return Some(finding);
        }
        if part.len() == STEP {
            tokio::task::yield_now().await;
        }
    }
    None
}

/// Looks through a piece of news.
pub(super) fn look_at(secrets: &Secrets, news: &AgentEvent) -> Option<Leak> {
    let texts = match news {
        AgentEvent::Thread(thread) => [thread, ""],
        AgentEvent::Says(text) => [text, ""],
        AgentEvent::ToolStarted { name, summary, .. } => [name, summary.as_str()],
        AgentEvent::ToolEnded { .. } => return None,
    };
    let found = texts.into_iter().find_map(|text| secrets.find(text.as_bytes()));
    found.map(|finding| Leak { finding, place: "what the agent said on the way".into() })
}

fn texts(ended: &RunEnd) -> Vec<&String> {
    match ended {
        RunEnd::Agent(result) | RunEnd::Timeout { so_far: result } | RunEnd::Limit { so_far: result, .. } => {
            let (texts, details) = match result {
                AgentResult::Answered { answer, details } => (vec![answer], details),
                AgentResult::Failed { message, answer_so_far, details, .. } => {
                    ([message].into_iter().chain(answer_so_far).collect(), details)
                }
                AgentResult::NoResult { message, details } => (vec![message], details),
            };
            texts.into_iter().chain(&details.notes).chain(&details.thread).collect()
        }
        RunEnd::OutcomeUnknown { message } => vec![message],
        RunEnd::Cancelled { .. } | RunEnd::Held { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::agent::Details;

    const KEY: &str = "sk-ant-api03-Zm9vYmFyq7Hk2LwX9sTtR5vB8nYc4dE6";

    fn answered(answer: &str) -> RunEnd {
        RunEnd::Agent(AgentResult::Answered { answer: answer.into(), details: Details::default() })
    }

    fn file(name: &str, content: impl Into<Bytes>) -> OutputFile {
        let bytes = content.into();
        OutputFile { name: name.into(), size: bytes.len() as u64, bytes }
    }

    #[tokio::test]
    async fn a_secret_is_found_in_answers_names_contents_and_over_them() {
        let secrets = Secrets::new(&[("ANTHROPIC_API_KEY", KEY.into())]).0;
        let place =
            async |ended: RunEnd, files: &[OutputFile]| look(&secrets, &ended, files, &[]).await.map(|leak| leak.place);
        let fine = || answered("All fine.");
        assert_eq!(place(fine(), &[file("a.txt", "b")]).await, None);
        assert_eq!(place(answered(KEY), &[]).await.unwrap(), "the answer");
        let failed = AgentResult::Failed {
            message: "no".into(),
            answer_so_far: Some(hex::encode(KEY)),
            retryable: false,
            details: Details::default(),
        };
        assert_eq!(place(RunEnd::Timeout { so_far: failed }, &[]).await.unwrap(), "the answer");
        assert_eq!(place(fine(), &[file(KEY, "")]).await.unwrap(), "the name of output file 1");
        let late = [vec![b'.'; 3 * STEP + 5], KEY.as_bytes().to_vec()].concat();
        assert_eq!(place(fine(), &[file("a", ""), file("b", late)]).await.unwrap(), "the content of output file 2");
        let halves = [file("1", KEY[..15].to_owned()), file("-", KEY[15..30].to_owned())];
        assert_eq!(place(fine(), &halves).await.unwrap(), "the content of output file 2");
    }
}
