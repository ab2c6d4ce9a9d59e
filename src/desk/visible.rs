//! What is to be seen of a job in its chat, as effects for the outbox. Pure.
//!
//! A job's message gets the mark that it was heard; then there is one progress message, if the chat can edit; then the
//! outcome, as new messages, with the agent's files, and the mark of how it ended in place of the first.

use bytes::Bytes;

use crate::chat::outbox::progress_key;
use crate::chat::split::split;
use crate::chat::{Capabilities, message_of, words};
use crate::job::{ConversationId, JobId, JobReport, Outcome};
use crate::journal::outgoing::{Effect, Mark, Outgoing};

/// More messages than this for one answer are a nuisance: it becomes a file, with its beginning as a message.
const MAX_PIECES: usize = 5;

/// Where something is to be seen: by whom it was asked, and what the chat can do.
#[derive(Clone, Debug)]
pub struct Place {
    pub conversation: ConversationId,
    pub message_key: String,
    pub can: Capabilities,
}

/// An effect with the content of its file, if it is one.
pub type WithFile = (Outgoing, Option<Bytes>);

impl Place {
    fn effect(&self, job: &JobId, name: &str, effect: Effect) -> Outgoing {
        Outgoing { key: format!("{job}/{name}"), job: job.clone(), conversation: self.conversation.clone(), effect }
    }

    fn mark(&self, job: &JobId, name: &str, mark: Mark, shown: bool) -> Option<Outgoing> {
        let effect = Effect::React { message: message_of(&self.message_key).to_owned(), mark, shown };
        self.can.react.then(|| self.effect(job, name, effect))
    }

    /// What is seen as soon as the message is recorded.
    pub fn heard(&self, job: &JobId) -> Vec<Outgoing> {
        self.mark(job, "heard", Mark::Heard, true).into_iter().collect()
    }

    /// What is seen of the outcome, in this order.
    pub fn ended(&self, report: &JobReport) -> Vec<WithFile> {
        let job = &report.job;
        let mut effects = Vec::new();
        if self.can.edit {
            let effect = Effect::Progress { text: words::closing(report), closing: true };
            let key = progress_key(job);
            effects.push((Outgoing { key, job: job.clone(), conversation: self.conversation.clone(), effect }, None));
        }
        // A merged message is answered by the one that it was merged into.
        if !matches!(report.outcome, Outcome::Merged { .. }) {
            self.say(report, &mut effects);
        }
        let marks = [
            self.mark(job, "unheard", Mark::Heard, false),
            self.mark(job, "ended", words::mark(&report.outcome), true),
        ];
        effects.extend(marks.into_iter().flatten().map(|mark| (mark, None)));
        effects
    }

    fn say(&self, report: &JobReport, effects: &mut Vec<WithFile>) {
        let (job, text) = (&report.job, words::outcome(report));
        let mut pieces = split(&text, self.can.max_message_chars);
        let mut files: Vec<_> = report.files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
        if pieces.len() > MAX_PIECES && self.can.upload {
            let room = self.can.max_message_chars - WHOLE_IN_FILE.chars().count();
            pieces = split(&text, room);
            pieces.truncate(1);
            pieces[0].push_str(WHOLE_IN_FILE);
            files.insert(0, ("answer.md".into(), Bytes::from(text)));
        }
        let count = pieces.len();
        for (number, text) in pieces.into_iter().enumerate() {
            let buttons = if number + 1 == count { words::buttons(&report.outcome) } else { Vec::new() };
            effects.push((self.effect(job, &format!("answer/{number}"), Effect::Post { text, buttons }), None));
        }
        if !self.can.upload {
            return;
        }
        for (number, (name, bytes)) in files.into_iter().enumerate() {
            effects.push((self.effect(job, &format!("file/{number}"), Effect::Upload { name }), Some(bytes)));
        }
    }
}

const WHOLE_IN_FILE: &str = "\n\n[… the whole of it is in answer.md]";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{OutputFile, Timings};

    fn place(can: Capabilities) -> Place {
        Place { conversation: ConversationId::new("slack:C1/1"), message_key: "m1".into(), can }
    }

    const ALL: Capabilities =
        Capabilities { edit: true, react: true, upload: true, max_message_chars: 200, typing_every: None };

    fn report(answer: &str) -> JobReport {
        JobReport {
            job: JobId::new("01job"),
            outcome: Outcome::Answered { answer: answer.into() },
            agent: "shell".into(),
            timings: Timings::default(),
            receipt: None,
            usage: None,
            files: vec![OutputFile { name: "a.txt".into(), bytes: Bytes::from_static(b"x"), size: 1 }],
            notes: Vec::new(),
            ended_at: "2026-09-21T14:13:20Z".parse().unwrap(),
        }
    }

    fn keys(effects: &[WithFile]) -> Vec<&str> {
        effects.iter().map(|(effect, _)| effect.key.strip_prefix("01job/").unwrap()).collect()
    }

    #[test]
    fn an_outcome_is_progress_answer_files_and_marks_in_this_order() {
        let effects = place(ALL).ended(&report("42"));
        assert_eq!(keys(&effects), ["progress", "answer/0", "file/0", "unheard", "ended"]);
        assert_eq!(effects[2].1, Some(Bytes::from_static(b"x")));
    }

    #[test]
    fn a_chat_gets_only_what_it_can() {
        let can = Capabilities { edit: false, react: false, upload: false, max_message_chars: 200, typing_every: None };
        assert!(place(can).heard(&JobId::new("01job")).is_empty());
        assert_eq!(keys(&place(can).ended(&report("42"))), ["answer/0"]);
    }

    #[test]
    fn a_long_answer_is_pieces_and_a_very_long_one_a_file() {
        assert_eq!(
            keys(&place(ALL).ended(&report(&"word ".repeat(60)))[..4]),
            ["progress", "answer/0", "answer/1", "answer/2"]
        );
        let effects = place(ALL).ended(&report(&"word ".repeat(600)));
        assert_eq!(keys(&effects), ["progress", "answer/0", "file/0", "file/1", "unheard", "ended"]);
        let Effect::Post { text, .. } = &effects[1].0.effect else { panic!("{effects:?}") };
        assert!(text.ends_with("in answer.md]") && text.chars().count() <= 200, "{text}");
        assert!(effects[2].1.as_ref().is_some_and(|bytes| bytes.len() >= 3000));
    }

    #[test]
    fn a_merged_message_gets_its_mark_and_no_answer_of_its_own() {
        let outcome = Outcome::Merged { into: JobId::new("01other"), message: "with the one before".into() };
        let effects = place(ALL).ended(&JobReport { outcome, ..report("") });
        assert_eq!(keys(&effects), ["progress", "unheard", "ended"]);
    }
}
