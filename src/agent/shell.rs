//! The `shell` profile: the prompt is a bash script, and its output is the answer. What runs when no agent's key is
//! configured, so that a fresh machine shows the whole path, and an operator's smoke test.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;

use super::text::{Ends, one_line};
use super::{AgentEvent, AgentReader, AgentResult, Details, Launch, StopProtocol};
use crate::sprites::Signal;

/// Bytes of standard output that are kept, half of them from its start and half from its end.
const MAX_STDOUT_BYTES: usize = 1024 * 1024;
/// The same for standard error.
const MAX_STDERR_BYTES: usize = 256 * 1024;
/// Characters of a line of output in a progress message.
const MAX_SAYS_CHARS: usize = 200;
/// Bytes kept of a line for that, so that a line without end costs nothing.
const MAX_LINE_BYTES: usize = 4 * MAX_SAYS_CHARS;
/// A script that wants to tidy up gets this long.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The script goes through a file: bash reading it from stdin would let the script's own commands eat the rest of it.
const START: &str = r#"cat > "$HOME/.janebot/prompt.sh" && exec bash "$HOME/.janebot/prompt.sh" </dev/null"#;

/// How the script in `prompt` is run.
pub(super) fn launch(prompt: &str) -> Launch {
    Launch {
        files: Vec::new(),
        env: vec![("NO_COLOR".into(), "1".into())],
        argv: ["sh", "-c", START].map(str::to_owned).to_vec(),
        stdin: Bytes::from(script(prompt).into_owned()),
        stop: StopProtocol { signal: Signal::Terminate, grace: STOP_GRACE },
        reader: Box::new(ShellReader::default()),
    }
}

/// The script in a prompt: the inside of a code fence when the prompt is one, which is how people write a script in a
/// chat. A script is never one fence by itself, since an empty command in backticks means nothing. Line ends are Unix's.
fn script(prompt: &str) -> Cow<'_, str> {
    let fenced = prompt.trim().strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let inside = match fenced.filter(|inside| !inside.contains("```")).map(|inside| inside.split_once('\n')) {
        // The first line of a fence may name a language.
        Some(Some((info, lines))) if !info.trim().contains(char::is_whitespace) => lines,
        _ => prompt,
    };
    if inside.contains('\r') { Cow::Owned(inside.replace("\r\n", "\n")) } else { Cow::Borrowed(inside) }
}

/// Keeps a script's output, in bounded memory. The two streams come apart: how they were interleaved is not known.
struct ShellReader {
    stdout: Ends,
    stderr: Ends,
    /// The start of the line that has not ended yet.
    line: Vec<u8>,
}

impl Default for ShellReader {
    fn default() -> Self {
        Self { stdout: Ends::new(MAX_STDOUT_BYTES), stderr: Ends::new(MAX_STDERR_BYTES), line: Vec::new() }
    }
}

impl AgentReader for ShellReader {
    /// What the script says is the last complete line that is not blank.
    fn stdout(&mut self, bytes: &[u8]) -> Vec<AgentEvent> {
        self.stdout.push(bytes);
        let mut last = Vec::new();
        let mut lines = bytes.split(|b| *b == b'\n').peekable();
        while let Some(line) = lines.next() {
            let room = MAX_LINE_BYTES.saturating_sub(self.line.len());
            self.line.extend_from_slice(&line[..line.len().min(room)]);
            let complete = lines.peek().is_some();
            if complete && !self.line.trim_ascii().is_empty() {
                std::mem::swap(&mut last, &mut self.line);
            }
            if complete {
                self.line.clear();
            }
        }
        let says = one_line(&String::from_utf8_lossy(&last), MAX_SAYS_CHARS);
        if says.is_empty() { Vec::new() } else { vec![AgentEvent::Says(says)] }
    }

    fn stderr(&mut self, bytes: &[u8]) {
        self.stderr.push(bytes);
    }

    fn finish(&mut self, status: u8) -> AgentResult {
        let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
        let output = match (stdout.trim_end(), stderr.trim_end()) {
            ("", "") => None,
            (out, "") => Some(out.to_owned()),
            ("", err) => Some(format!("stderr:\n{err}")),
            (out, err) => Some(format!("{out}\n\nstderr:\n{err}")),
        };
        let cut = |name: &str, ends: &Ends, limit: usize| {
            let dropped = ends.dropped();
            (dropped > 0).then(|| {
                format!(
                    "The script's {name} was longer than {} KiB: {dropped} bytes in its middle are left out.",
                    limit >> 10
                )
            })
        };
        let cuts = [cut("output", &self.stdout, MAX_STDOUT_BYTES), cut("stderr", &self.stderr, MAX_STDERR_BYTES)];
        let details = Details { notes: cuts.into_iter().flatten().collect(), ..Details::default() };
        if status == 0 {
            return AgentResult::Answered { answer: output.unwrap_or_else(|| "(no output)".into()), details };
        }
        AgentResult::Failed { message: failure(status), answer_so_far: output, retryable: false, details }
    }
}

fn failure(status: u8) -> String {
    match status {
        // Bash passes on 128 + n for a command that signal n ended; nobody can tell whether it was the script itself.
        129..=192 => format!("the script exited with status {status} (as by signal {})", status - 128),
        _ => format!("the script exited with status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(stdout: &[&[u8]], stderr: &[u8], status: u8) -> (AgentResult, Vec<AgentEvent>) {
        let mut reader = ShellReader::default();
        let events = stdout.iter().flat_map(|bytes| reader.stdout(bytes)).collect();
        reader.stderr(stderr);
        (reader.finish(status), events)
    }

    fn answer(stdout: &str, stderr: &str) -> String {
        match read(&[stdout.as_bytes()], stderr.as_bytes(), 0).0 {
            AgentResult::Answered { answer, .. } => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_answer_is_the_output_and_then_stderr_marked() {
        assert_eq!(answer("hello\nworld\n", ""), "hello\nworld");
        assert_eq!(answer("  hello\n", "oops\n"), "  hello\n\nstderr:\noops");
        assert_eq!(answer("", "oops"), "stderr:\noops");
        assert_eq!(answer("", "\n"), "(no output)");
    }

    #[test]
    fn a_script_that_fails_says_its_status_and_keeps_its_output() {
        let (result, _) = read(&[b"so far\n"], b"", 3);
        let expected = AgentResult::Failed {
            message: "the script exited with status 3".into(),
            answer_so_far: Some("so far".into()),
            retryable: false,
            details: Details::default(),
        };
        assert_eq!(result, expected);
        let AgentResult::Failed { message, answer_so_far, .. } = read(&[], b"", 137).0 else {
            panic!("a status other than zero")
        };
        assert_eq!((message.as_str(), answer_so_far), ("the script exited with status 137 (as by signal 9)", None));
    }

    #[test]
    fn the_last_complete_line_is_the_progress() {
        let (_, events) = read(&[b"one\ntw", b"o", b"\n", b"three\nfour\x1b[0m\r\nfi", b"\n\n"], b"", 0);
        let says = ["one", "two", "four", "fi"].map(|text| AgentEvent::Says(text.into()));
        assert_eq!(events, says);
    }

    #[test]
    fn long_output_keeps_both_ends_and_a_note() {
        let mut reader = ShellReader::default();
        for n in 0..300_000 {
            reader.stdout(format!("line {n}\n").as_bytes());
            assert!(reader.line.len() <= MAX_LINE_BYTES);
        }
        let AgentResult::Answered { answer, details } = reader.finish(0) else { panic!("status 0") };
        assert!(
            answer.starts_with("line 0\n") && answer.ends_with("line 299999") && answer.len() < MAX_STDOUT_BYTES + 100
        );
        assert!(details.notes[0].starts_with("The script's output was longer than 1024 KiB: "), "{:?}", details.notes);
    }

    #[test]
    fn a_fenced_prompt_is_its_inside() {
        assert_eq!(script("```bash\necho a\r\necho b\n```\n"), "echo a\necho b\n");
        assert_eq!(script("```\necho a```"), "echo a");
        for whole in ["echo a", "```echo a```", "```\na\n```\n```\nb\n```", "```a b\nc\n```", "echo `date`\n```"] {
            assert_eq!(script(whole), whole);
        }
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_where_the_output_was_cut(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..12), status in any::<u8>()) {
            let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(read(&parts, b"", status).0, read(&[&chunks.concat()], b"", status).0);
        }
    }
}
