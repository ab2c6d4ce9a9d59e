//! The one reader for agents that write newline-delimited JSON records: amp and claude.
//!
//! It is tolerant, because the CLIs change without notice, and strict in one thing: a run succeeded when, and only
//! when, a `result` record came whose `is_error` is `false`. Neither the exit status nor `subtype` decides (amp exits
//! with 0 after a failed turn, claude calls an API error `success`).
//!
//! Where they differ (measured with amp 0.0.1790142911 and claude 2.1.197): amp writes a whole message as one record
//! without an id, claude one block per record with the message's id and usage repeated; amp's failure text is in
//! `error`, claude's in `result` or `errors`.

mod lines;
mod record;

use std::collections::VecDeque;

use self::lines::{Lines, MAX_LINE_BYTES};
use self::record::{Block, Content, Message, Record, Tokens};
use super::text::{Tail, cut, one_line, visible};
use super::{AgentEvent, AgentReader, AgentResult, Details, Usage};

/// Bytes of the answer that are kept. No chat shows so much, not even as a file that somebody would read.
const MAX_ANSWER_BYTES: usize = 3 * 1024 * 1024;
/// Bytes kept of what the agent said on the way: the newest. With the answer this makes 4 MiB.
const MAX_SAID_BYTES: usize = 1024 * 1024;
/// Bytes of a failure's message: enough for any real one, and a chat message can hold it.
const MAX_MESSAGE_BYTES: usize = 1500;
/// Bytes kept of the end of standard error.
const STDERR_TAIL_BYTES: usize = 2048;
/// Characters of a text in a progress message.
const MAX_SAYS_CHARS: usize = 200;
/// Characters of names and ids that the agent makes up.
const MAX_NAME_CHARS: usize = 100;
/// Messages that may be open at a time, a sub-agent's being between those of its parent: usage is known per message.
const MAX_OPEN_MESSAGES: usize = 32;
/// Words for `--model` that claude turns into a model of its choice, so that no name can be compared.
const MODEL_WORDS: [&str; 4] = ["default", "best", "opusplan", "inherit"];

/// Reads one run's output. Keeps at most about 4 MiB of text, and one line while it is being received.
pub struct StreamReader {
    asked_model: Option<String>,
    lines: Lines,
    run: Run,
    stderr: Tail,
}

/// What the records so far have told.
#[derive(Default)]
struct Run {
    agent: &'static str,
    thread: Option<String>,
    models: Vec<String>,
    usage: Usages,
    /// What the agent said, oldest first.
    said: VecDeque<String>,
    said_bytes: usize,
    forgot_said: bool,
    /// The last text, until it is known whether it was the answer.
    unsaid: Option<String>,
    ended: Option<Ended>,
    /// The last line that was no record: where an agent that could not start may have written why.
    stray: Option<String>,
}

/// What a `result` record says.
struct Ended {
    /// The answer's text, which may be missing, or why there is none.
    verdict: Result<Option<String>, Failure>,
    answer_cut: bool,
    totals: Option<Tokens>,
    turns: Option<u64>,
    cost_usd: Option<f64>,
}

struct Failure {
    message: String,
    retryable: bool,
}

impl StreamReader {
    /// A reader for the output of `agent`, whose name is used in messages.
    pub fn new(agent: &'static str) -> Self {
        let run = Run { agent, ..Run::default() };
        Self { asked_model: None, lines: Lines::default(), run, stderr: Tail::new(STDERR_TAIL_BYTES) }
    }

    /// Compares the model that the agent reports with the one asked for: CLIs fall back to another without an error.
    pub fn asking_for(mut self, model: Option<&str>) -> Self {
        self.asked_model = model.map(str::to_owned);
        self
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.run.ended.as_ref().is_some_and(|ended| ended.answer_cut) {
            notes.push(format!("The answer was longer than {} MiB and is cut.", MAX_ANSWER_BYTES >> 20));
        }
        if self.lines.skipped() > 0 {
            let (n, limit) = (self.lines.skipped(), MAX_LINE_BYTES >> 20);
            notes.push(format!("{n} line(s) of the agent's output were longer than {limit} MiB and were skipped."));
        }
        if let Some(asked) = &self.asked_model
            && let Some(used) = self.run.models.iter().find(|used| !is_model(asked, used))
        {
            notes.push(format!("The agent used the model {used}, not {} as asked.", one_line(asked, MAX_NAME_CHARS)));
        }
        notes
    }
}

impl AgentReader for StreamReader {
    fn stdout(&mut self, bytes: &[u8]) -> Vec<AgentEvent> {
        let mut events = Vec::new();
        let run = &mut self.run;
        self.lines.push(bytes, |line| run.line(line, &mut events));
        events
    }

    fn stderr(&mut self, bytes: &[u8]) {
        self.stderr.push(bytes);
    }

    fn usage(&self) -> Option<Usage> {
        self.run.usage.sum(self.run.ended.as_ref())
    }

    fn finish(&mut self, status: u8) -> AgentResult {
        let run = &mut self.run;
        self.lines.finish(|line| run.line(line, &mut Vec::new()));
        let usage = run.usage.sum(run.ended.as_ref());
        let mut details = Details { thread: run.thread.clone(), usage, notes: self.notes() };
        let Some(ended) = self.run.ended.take() else {
            return AgentResult::NoResult { message: self.no_result(status), details };
        };
        let said = self.run.said.make_contiguous();
        match ended.verdict {
            Ok(answer) => {
                if status != 0 {
                    details.notes.push(format!("After its answer, {} ended with {}.", self.run.agent, exit(status)));
                }
                let answer = answer.unwrap_or_else(|| match said.last() {
                    Some(last) => format!("The agent finished without a text. The last thing it had said:\n\n{last}"),
                    None => "The agent finished without a text.".into(),
                });
                AgentResult::Answered { answer, details }
            }
            Err(Failure { message, retryable }) => {
                if self.run.forgot_said {
                    details.notes.push("The agent said so much on the way that only the end of it was kept.".into());
                }
                let answer_so_far = (!said.is_empty()).then(|| said.join("\n\n"));
                AgentResult::Failed { message, answer_so_far, retryable, details }
            }
        }
    }
}

impl StreamReader {
    fn no_result(&self, status: u8) -> String {
        let begin = format!("{} ended without a result ({})", self.run.agent, exit(status));
        let stderr = self.stderr.text();
        match (&self.run.stray, stderr.is_empty()) {
            (_, false) => format!("{begin}: {stderr}"),
            (Some(stray), true) => format!("{begin}: {stray}"),
            (None, true) => format!("{begin} and without an error message."),
        }
    }
}

impl Run {
    fn line(&mut self, line: &[u8], events: &mut Vec<AgentEvent>) {
        let Some(record) = Record::parse(line) else {
            let start = &line[..line.len().min(4 * MAX_SAYS_CHARS)];
            let text = one_line(&String::from_utf8_lossy(start), MAX_SAYS_CHARS);
            if !text.is_empty() {
                self.stray = Some(text);
            }
            return;
        };
        if self.thread.is_none()
            && let Some(id) =
                record.session_id.as_deref().map(|id| one_line(id, MAX_NAME_CHARS)).filter(|id| !id.is_empty())
        {
            self.thread = Some(id.clone());
            events.push(AgentEvent::Thread(id));
        }
        match (record.kind.as_deref(), record.subtype.as_deref()) {
            (Some("system"), Some("init")) => self.model(record.model.as_deref()),
            (Some("system"), Some("api_retry")) => events.push(AgentEvent::Says(retry(&record))),
            (Some("assistant"), _) => self.assistant(record, events),
            (Some("user"), _) => {
                for block in blocks(record.message) {
                    if let (Some("tool_result"), Some(id)) = (block.kind.as_deref(), block.tool_use_id) {
                        self.flush(events);
                        let is_error = block.is_error.unwrap_or(false);
                        events.push(AgentEvent::ToolEnded { id: one_line(&id, MAX_NAME_CHARS), is_error });
                    }
                }
            }
            (Some("result"), _) => self.result(record),
            _ => {}
        }
    }

    fn assistant(&mut self, record: Record, events: &mut Vec<AgentEvent>) {
        let Some(message) = record.message else { return };
        // claude writes API errors as messages of a model of this name; their text comes again in the result.
        if message.model.as_deref() == Some("<synthetic>") {
            return;
        }
        let of_sub_agent = record.parent_tool_use_id.is_some();
        if !of_sub_agent {
            // A sub-agent may run on another model by design.
            self.model(message.model.as_deref());
        }
        self.usage.add(message.id.as_deref(), message.usage.unwrap_or_default());
        for block in blocks(Some(message)) {
            match block {
                Block { kind: Some(kind), text: Some(text), .. } if kind == "text" && !of_sub_agent => {
                    self.flush(events);
                    self.say(text);
                }
                Block { kind: Some(kind), id: Some(id), name, input, .. } if kind == "tool_use" => {
                    self.flush(events);
                    events.push(AgentEvent::ToolStarted {
                        id: one_line(&id, MAX_NAME_CHARS),
                        name: one_line(&name.unwrap_or_default(), MAX_NAME_CHARS),
                        summary: input.unwrap_or_default().0,
                    });
                }
                _ => {}
            }
        }
    }

    /// Remembers a text. Whether it is the answer or something said on the way shows by what comes next.
    fn say(&mut self, mut text: String) {
        if text.trim().is_empty() {
            return;
        }
        self.unsaid = Some(one_line(&text, MAX_SAYS_CHARS));
        self.forgot_said |= cut(&mut text, MAX_SAID_BYTES);
        text.shrink_to_fit();
        // An empty text would cost memory without counting, so each counts a little more than its bytes.
        self.said_bytes += text.len() + size_of::<String>();
        self.said.push_back(text);
        while self.said_bytes > MAX_SAID_BYTES + size_of::<String>() {
            let Some(oldest) = self.said.pop_front() else { break };
            self.said_bytes -= oldest.len() + size_of::<String>();
            self.forgot_said = true;
        }
    }

    fn flush(&mut self, events: &mut Vec<AgentEvent>) {
        events.extend(self.unsaid.take().map(AgentEvent::Says));
    }

    fn model(&mut self, model: Option<&str>) {
        let Some(model) = model.map(|model| one_line(model, MAX_NAME_CHARS)) else { return };
        if self.models.len() < MAX_OPEN_MESSAGES && !self.models.contains(&model) {
            self.models.push(model);
        }
    }

    /// Takes out of a result what is needed, so that no other text in it is kept. A later result replaces it.
    fn result(&mut self, mut record: Record) {
        self.unsaid = None;
        let (totals, turns) = (record.usage, record.num_turns.map(|turns| turns as u64));
        let cost_usd = record.total_cost_usd.filter(|cost| *cost >= 0.0);
        let (mut verdict, mut answer_cut) = (Ok(None), false);
        if record.is_error != Some(false) {
            let retryable = record.api_error_status.is_some_and(passes);
            verdict = Err(Failure { message: failure(self.agent, record), retryable });
        } else if let Some(mut answer) = record.result.take().filter(|text| !text.trim().is_empty()) {
            answer_cut = cut(&mut answer, MAX_ANSWER_BYTES);
            answer.shrink_to_fit();
            verdict = Ok(Some(answer));
        }
        self.ended = Some(Ended { verdict, answer_cut, totals, turns, cost_usd });
    }
}

fn blocks(message: Option<Message>) -> Vec<Block> {
    message.and_then(|message| message.content).map_or_else(Vec::new, |Content(blocks)| blocks)
}

/// Token counts per message: the records of one message repeat them, and the last one counts.
#[derive(Default)]
struct Usages {
    messages: u64,
    closed: Tokens,
    open: VecDeque<(String, Tokens)>,
}

impl Usages {
    fn add(&mut self, id: Option<&str>, tokens: Tokens) {
        let Some(id) = id.map(|id| one_line(id, MAX_NAME_CHARS)) else {
            self.messages += 1;
            self.closed = plus(self.closed, tokens);
            return;
        };
        if let Some((_, known)) = self.open.iter_mut().find(|(open, _)| *open == id) {
            *known = tokens;
            return;
        }
        self.messages += 1;
        self.open.push_back((id, tokens));
        if self.open.len() > MAX_OPEN_MESSAGES
            && let Some((_, tokens)) = self.open.pop_front()
        {
            self.closed = plus(self.closed, tokens);
        }
    }

    /// What the run used; the agent's own totals where its result has them. `None` when nothing tells.
    fn sum(&self, ended: Option<&Ended>) -> Option<Usage> {
        let summed = self.open.iter().fold(self.closed, |sum, (_, tokens)| plus(sum, *tokens));
        let total = ended.and_then(|ended| ended.totals).filter(|total| *total != Tokens::default()).unwrap_or(summed);
        let new = total.input_tokens.saturating_add(total.cache_creation_input_tokens);
        let usage = Usage {
            turns: ended.and_then(|ended| ended.turns).unwrap_or(self.messages),
            input_tokens: new.saturating_add(total.cache_read_input_tokens),
            cached_input_tokens: total.cache_read_input_tokens,
            output_tokens: total.output_tokens,
            cost_usd: ended.and_then(|ended| ended.cost_usd),
        };
        (ended.is_some() || usage != Usage::default()).then_some(usage)
    }
}

fn plus(a: Tokens, b: Tokens) -> Tokens {
    Tokens {
        input_tokens: a.input_tokens.saturating_add(b.input_tokens),
        cache_creation_input_tokens: a.cache_creation_input_tokens.saturating_add(b.cache_creation_input_tokens),
        cache_read_input_tokens: a.cache_read_input_tokens.saturating_add(b.cache_read_input_tokens),
        output_tokens: a.output_tokens.saturating_add(b.output_tokens),
    }
}

/// Whether a request that the model's server refused with this status may succeed later: it was overloaded (429, 529),
/// too slow or out of order. Others, as 401 or 402, need somebody to do something. amp tells no status.
fn passes(status: f64) -> bool {
    status == 408.0 || status == 429.0 || (500.0..600.0).contains(&status)
}

/// What a result that is no success says about the reason.
fn failure(agent: &str, result: Record) -> String {
    // claude puts notes to its own developers among the errors of an interrupted run.
    let errors = result
        .errors
        .into_iter()
        .flatten()
        .filter_map(|text| text.0)
        .filter(|text| !text.starts_with("[ede_diagnostic]"));
    let errors = errors.collect::<Vec<_>>().join("; ");
    let mut texts = [result.error, result.result, Some(errors)].into_iter().flatten();
    let text = texts.find(|text| !text.trim().is_empty()).unwrap_or_default();
    let mut message: String = visible(text.trim()).take(MAX_MESSAGE_BYTES + 1).collect();
    if cut(&mut message, MAX_MESSAGE_BYTES) {
        message.push('…');
    }
    if !message.is_empty() {
        return message;
    }
    let word = |word: Option<String>| word.map(|word| one_line(&word, MAX_NAME_CHARS)).filter(|word| !word.is_empty());
    match (result.is_error, word(result.terminal_reason).or(word(result.subtype))) {
        (None, _) => format!("{agent} ended with a result that does not say whether it succeeded"),
        (Some(_), Some(reason)) => format!("{agent} failed and gave no reason but the word {reason}"),
        (Some(_), None) => format!("{agent} failed and gave no reason"),
    }
}

fn retry(record: &Record) -> String {
    let part = |name: &str, number: Option<f64>| number.map(|n| format!("{name}{}", n as u64)).unwrap_or_default();
    let status = part(" answered ", record.error_status);
    format!(
        "The model's server{status}: trying again{}{}",
        part(", ", record.attempt),
        part(" of ", record.max_retries)
    )
}

/// An exit status in words.
fn exit(status: u8) -> String {
    match status {
        129..=192 => format!("exit status {status}, as by signal {}", status - 128),
        _ => format!("exit status {status}"),
    }
}

/// Whether the model `used` may be what was `asked` for: the same name, a dated version of it, or a model of the family
/// that a short name stands for. `[1m]` at the end names a context size.
fn is_model(asked: &str, used: &str) -> bool {
    let bare = |name: &str| name.split('[').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (asked, used) = (bare(asked), bare(used));
    MODEL_WORDS.contains(&asked.as_str())
        || used.strip_prefix(&asked).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '@']))
        || used.split('-').any(|part| part == asked)
}

#[cfg(test)]
mod tests;
