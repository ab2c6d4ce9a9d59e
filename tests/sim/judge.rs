//! What must hold when a scenario has been played, and what of it does not.

use std::collections::{BTreeMap, BTreeSet};

use janebot::chat::{Chat as _, message_of, words};
use janebot::job::{FailReason, JobId, Outcome};
use janebot::journal::outgoing::OutgoingState;
use janebot::journal::{JobRow, JobState, Journal as _};

use crate::chat::Message;
use crate::scenario::{Stage, Totals};

impl Stage<'_> {
    /// Looks at everything that is left and says what should not be so.
    pub async fn judge(&self, broken: &mut Vec<String>, totals: &mut Totals) {
        let runs = self.cloud.runs();
        totals.runs = runs.len() as u64;
        let mut started: BTreeMap<&str, u32> = BTreeMap::new();
        for run in &runs {
            *started.entry(run.marker.as_str()).or_default() += 1;
        }
        let jobs = self.journal.recent_jobs(1000).await.expect("the journal is healed");
        // What is run again by a button is another job about the same message.
        let mut allowed: BTreeMap<String, u32> = BTreeMap::new();
        for job in &jobs {
            let number = message_of(&job.message_key).rsplit('/').next().unwrap_or_default();
            *allowed.entry(format!("# message {number}")).or_default() += 1;
        }
        // At a terminal it is a script like any other.
        started.remove("stop");
        for (marker, times) in &started {
            if *times > allowed.get(*marker).copied().unwrap_or(1) {
                broken.push(format!("not repeated: {marker:?} ran {times} times"));
            }
        }
        for job in &jobs {
            if job.state != JobState::Ended || job.outcome.is_none() {
                broken.push(format!("heard: job {} of {} has no outcome", job.job, job.message_key));
            }
        }
        for message in &self.scenario.messages {
            if self.is_in_chat(message.number) {
                self.judge_chat(message, &jobs, broken, totals).await;
                self.judge_marks(message, &jobs, broken);
            }
            if self.written.contains(&message.number) {
                self.judge_message(message, &jobs, started.contains_key(message.marker().as_str()), broken, totals);
            }
        }
        for told in self.scenario.messages.iter().map(|message| self.chats.told(&message.key())) {
            for job in told.accepted.iter().filter(|job| jobs.iter().all(|row| row.job != **job)) {
                broken.push(format!("heard: job {job} was acknowledged and is not in the journal"));
            }
        }
        let mut fences: BTreeSet<(&str, u64)> = BTreeSet::new();
        for job in jobs.iter().rev() {
            let Some(receipt) = &job.receipt else { continue };
            if receipt.canary_gone == Some(false) {
                broken.push(format!("clean: job {} has a receipt that shows a canary", job.job));
            }
            if !fences.insert((&receipt.runner, receipt.fence)) {
                broken.push(format!("alone: job {} has a lease that another job had", job.job));
            }
        }
        let quarantines = self.journal.quarantines(1000).await.expect("the journal is healed");
        totals.quarantines = quarantines.len() as u64;
        if let Some((runner, ..)) = quarantines.iter().find(|(_, evidence, _)| evidence.is_empty()) {
            broken.push(format!("explained: {runner} was quarantined without evidence"));
        }
        let truth = self.cloud.truth();
        if !self.scenario.has_intruder
            && truth.iter().any(|sprite| sprite.unclean.is_some() || !sprite.daemons.is_empty())
        {
            broken.push(format!("returned: a sprite is unclean at rest: {truth:?}"));
        }
    }

    fn judge_message(
        &self,
        message: &Message,
        jobs: &[JobRow],
        ran: bool,
        broken: &mut Vec<String>,
        totals: &mut Totals,
    ) {
        let told = self.chats.told(&message.key());
        let number = message.number;
        for wrong in &told.wrong {
            broken.push(format!("heard: message {number} was told {wrong}"));
        }
        let mut outcomes: BTreeMap<&JobId, u32> = BTreeMap::new();
        for report in &told.ended {
            *outcomes.entry(&report.job).or_default() += 1;
        }
        for (job, times) in &outcomes {
            if *times > 1 {
                broken.push(format!("heard: message {number} got {times} outcomes of job {job}"));
            }
        }
        let row = jobs.iter().find(|row| row.message_key == message.key());
        if message.platform == "terminal" && !self.died.contains(&number) && told.ended.is_empty() {
            broken.push(format!("heard: message {number} was never told an outcome"));
        }
        let outcome = row.and_then(|row| row.outcome.clone()).or_else(|| Some(told.ended.first()?.outcome.clone()));
        match outcome {
            Some(Outcome::Answered { answer }) => {
                totals.answered += 1;
                if message.is_stop() {
                    totals.stops += 1;
                    return;
                }
                // Its script is longer than the message.
                let has_parts = jobs.iter().any(|job| merged_into(job) == row.map(|row| &row.job));
                if has_parts {
                    if !answer.starts_with("absent\n") {
                        broken.push(format!("clean: message {number} is answered {answer:?}"));
                    }
                } else if message.answer.as_deref() != Some(answer.trim()) {
                    broken.push(format!(
                        "clean: message {number} should be answered {:?} and is {answer:?}",
                        message.answer
                    ));
                }
                if !ran {
                    broken.push(format!("message {number} is answered and never ran"));
                }
                if row.is_some_and(|row| row.receipt.is_none()) {
                    broken.push(format!("clean: message {number} is answered without a receipt"));
                }
            }
            Some(Outcome::Failed { reason, message }) => {
                totals.failed += 1;
                if reason == FailReason::Journal && self.scenario.journal_faults == 0 {
                    broken.push(format!("returned: message {number} failed for a journal that is well: {message}"));
                }
                if message.is_empty() {
                    broken.push(format!("explained: message {number} failed without a word"));
                }
            }
            Some(Outcome::Cancelled { .. }) => totals.cancelled += 1,
            Some(Outcome::Refused { .. }) => totals.refused += 1,
            Some(Outcome::Merged { into, .. }) => {
                totals.merged += 1;
                let lead = jobs.iter().find(|job| job.job == into);
                if lead.is_none_or(|lead| lead.requester != message.requester() || merged_into(lead).is_some()) {
                    broken.push(format!("heard: message {number} is merged into {into}, which can't be"));
                }
            }
            None => {}
        }
    }

    /// What is to be seen in the chat of a message, and nothing else.
    async fn judge_chat(&self, message: &Message, jobs: &[JobRow], broken: &mut Vec<String>, totals: &mut Totals) {
        let rows: Vec<_> = jobs.iter().filter(|row| message_of(&row.message_key) == message.key()).collect();
        if !rows.iter().any(|row| row.message_key == message.key()) {
            broken.push(format!("heard: message {} was never recorded", message.number));
        }
        for row in rows {
            self.judge_chat_job(message, row, broken, totals).await;
        }
    }

    /// The marks on a message: how each job about it ended.
    fn judge_marks(&self, message: &Message, jobs: &[JobRow], broken: &mut Vec<String>) {
        let platform = self.scenario.platforms.of(message);
        let rows = jobs.iter().filter(|row| message_of(&row.message_key) == message.key());
        let outcomes = rows.filter_map(|row| row.outcome.as_ref()).filter(|_| platform.capabilities().react);
        let (marks, expected): (_, BTreeSet<_>) = (platform.marks(&message.key()), outcomes.map(words::mark).collect());
        if marks != expected {
            broken.push(format!("heard: message {} has the marks {marks:?} and not {expected:?}", message.number));
        }
    }

    /// What is to be seen in the chat of one job about the message.
    async fn judge_chat_job(&self, message: &Message, row: &JobRow, broken: &mut Vec<String>, totals: &mut Totals) {
        let (platform, number) = (self.scenario.platforms.of(message), message.number);
        let posted: Vec<_> =
            platform.messages().into_iter().filter(|posted| posted.key.starts_with(row.job.as_str())).collect();
        let mut keys = BTreeSet::new();
        for posted in &posted {
            if !keys.insert(posted.key.as_str()) {
                broken.push(format!("heard: {} is twice in the chat of message {number}", posted.key));
            }
            if posted.conversation != message.conversation_id() {
                broken.push(format!("heard: {} is in another conversation", posted.key));
            }
        }
        let answers: Vec<_> = posted.iter().filter(|posted| posted.key.contains("/answer/")).collect();
        let in_order = (0..answers.len()).all(|n| answers[n].key == format!("{}/answer/{n}", row.job));
        if !in_order {
            broken.push(format!("heard: the answer of message {number} is out of order: {answers:?}"));
        }
        let is_merged = merged_into(row).is_some();
        if answers.is_empty() != is_merged {
            broken.push(format!("heard: message {number} has {} visible outcomes, {:?}", answers.len(), row.outcome));
        }
        if let (Some(Outcome::Answered { answer }), Some(first)) = (&row.outcome, answers.first())
            && let Some(line) = answer.lines().next()
            && !first.text.contains(line)
        {
            broken.push(format!("heard: message {number} shows {:?} for {answer:?}", first.text));
        }
        totals.seen += u64::from(!answers.is_empty());
        let closings = ["Answered", "Failed", "Not run", "Cancelled"];
        if let Some(progress) = posted.iter().find(|posted| posted.key.ends_with("/progress"))
            && !closings.iter().any(|word| progress.text.starts_with(word))
        {
            broken.push(format!("heard: the progress of message {number} still says {:?}", progress.text));
        }
        for effect in self.journal.job_effects(&row.job).await.expect("the journal is healed") {
            if effect.state == OutgoingState::GivenUp {
                broken.push(format!("heard: {} was given up: {:?}", effect.outgoing.key, effect.why));
            }
        }
    }
}

fn merged_into(job: &JobRow) -> Option<&JobId> {
    match &job.outcome {
        Some(Outcome::Merged { into, .. }) => Some(into),
        _ => None,
    }
}
