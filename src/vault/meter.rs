//! What a model call used, read from the answer as it streams by. Pure; in bounded memory.
//!
//! Providers are believed when they say more than the bytes show, and not when they say less: each side of a call has a
//! floor that follows from its size. An answer that says nothing is charged generously, so that silence is no way around
//! a limit.

use std::mem;

use serde_json::Value;

/// A streamed token never takes more bytes than this, with the event around it.
const MAX_BYTES_PER_TOKEN_OUT: u64 = 256;
/// Nor a token of the request: an image is the most bytes for its tokens.
const MAX_BYTES_PER_TOKEN_IN: u64 = 1024;
/// What is charged for an answer without usage: text has about four bytes a token.
const USUAL_BYTES_PER_TOKEN: u64 = 4;
/// A line of a stream that is longer is counted and not read.
const MAX_LINE: usize = 1024 * 1024;
/// The same for an answer in one piece.
const MAX_WHOLE: usize = 16 * 1024 * 1024;
/// No single call uses more; a larger claim is a lie, and sums must not overflow.
const MAX_CLAIM: u64 = 1_000_000_000;

/// Tokens of one call, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// All input tokens, cached ones included.
    pub input: u64,
    pub cached: u64,
    pub output: u64,
}

impl Tokens {
    pub fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            cached: self.cached.saturating_add(other.cached),
            output: self.output.saturating_add(other.output),
        }
    }
}

/// Reads one answer.
#[derive(Debug)]
pub struct Meter {
    form: Form,
    /// Of the line, or of the whole, that has not ended yet.
    pending: Vec<u8>,
    /// The pending line is too long to be kept.
    skipping: bool,
    claimed: Option<Tokens>,
    sent: u64,
    received: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Server-sent events: usage comes in some of them, and grows.
    Events,
    Whole,
}

impl Meter {
    /// For an answer with this content type.
    pub fn new(content_type: Option<&str>) -> Self {
        let events = content_type.is_some_and(|text| text.trim_start().starts_with("text/event-stream"));
        let form = if events { Form::Events } else { Form::Whole };
        Self { form, pending: Vec::new(), skipping: false, claimed: None, sent: 0, received: 0 }
    }

    /// The request's size, once it is known.
    pub fn sent(&mut self, bytes: u64) {
        self.sent = bytes;
    }

    /// Takes the next bytes of the answer, cut anywhere.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        self.received = self.received.saturating_add(bytes.len() as u64);
        match self.form {
            Form::Whole => {
                if self.pending.len() + bytes.len() > MAX_WHOLE {
                    self.skipping = true;
                    self.pending = Vec::new();
                }
                if !self.skipping {
                    self.pending.extend_from_slice(bytes);
                }
            }
            Form::Events => {
                while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                    let (line, rest) = bytes.split_at(end);
                    bytes = &rest[1..];
                    self.keep(line);
                    let line = mem::take(&mut self.pending);
                    if !mem::take(&mut self.skipping) {
                        self.event(&line);
                    }
                }
                self.keep(bytes);
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        if self.skipping || self.pending.len() + part.len() > MAX_LINE {
            self.skipping = true;
            self.pending = Vec::new();
        } else {
            self.pending.extend_from_slice(part);
        }
    }

    fn event(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:") else { return };
        // Most events are pieces of text; only those with usage are worth reading.
        if data.windows(7).any(|window| window == b"\"usage\"") {
            self.read(data);
        }
    }

    fn read(&mut self, json: &[u8]) {
        let Ok(value) = serde_json::from_slice::<Value>(json) else { return };
        let places = [value.get("usage"), value.pointer("/message/usage"), value.pointer("/response/usage")];
        for usage in places.into_iter().flatten().filter(|usage| usage.is_object()) {
            let new = claim(usage);
            let old = self.claimed.unwrap_or_default();
            // Later events repeat and raise the numbers; a stream can't take back what it said.
            self.claimed = Some(Tokens {
                input: old.input.max(new.input),
                cached: old.cached.max(new.cached),
                output: old.output.max(new.output),
            });
        }
    }

    /// What is to be charged so far.
    pub fn so_far(&self) -> Tokens {
        let claimed = self.claimed.unwrap_or_default();
        Tokens {
            input: claimed.input.max(self.sent / MAX_BYTES_PER_TOKEN_IN),
            output: claimed.output.max(self.received / MAX_BYTES_PER_TOKEN_OUT),
            ..claimed
        }
    }

    /// What is to be charged once the answer is over.
    pub fn finish(&mut self) -> Tokens {
        let rest = mem::take(&mut self.pending);
        match self.form {
            Form::Whole => self.read(&rest),
            Form::Events => self.event(&rest),
        }
        let so_far = self.so_far();
        match self.claimed {
            Some(_) => so_far,
            None => Tokens {
                input: self.sent / USUAL_BYTES_PER_TOKEN,
                output: self.received / USUAL_BYTES_PER_TOKEN,
                ..so_far
            },
        }
    }
}

/// The numbers of a usage object, in Anthropic's words or OpenAI's.
fn claim(usage: &Value) -> Tokens {
    let number = |names: &[&str]| {
        let value = names.iter().find_map(|name| usage.get(*name))?;
        // A negative or broken number is none.
        value.as_u64().or_else(|| value.as_f64().filter(|n| *n > 0.0).map(|n| n as u64)).map(|n| n.min(MAX_CLAIM))
    };
    let written = number(&["cache_creation_input_tokens"]).unwrap_or(0);
    let cached = number(&["cache_read_input_tokens"]).unwrap_or(0);
    Tokens {
        input: number(&["input_tokens", "prompt_tokens"]).unwrap_or(0) + written + cached,
        cached,
        output: number(&["output_tokens", "completion_tokens"]).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: Option<&str> = Some("text/event-stream; charset=utf-8");

    fn metered(content_type: Option<&str>, sent: u64, answer: &[u8], piece: usize) -> Tokens {
        let mut meter = Meter::new(content_type);
        meter.sent(sent);
        answer.chunks(piece.max(1)).for_each(|part| meter.feed(part));
        meter.finish()
    }

    const STREAM: &str = "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":100,\"cache_read_input_tokens\":1000,\"output_tokens\":1}}}\n\ndata: {\"type\":\"content_block_delta\"}\n\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":25}}\n\n";

    #[test]
    fn usage_is_read_from_streams_and_whole_answers_of_three_apis() {
        let expected = Tokens { input: 1110, cached: 1000, output: 25 };
        for piece in [1, 7, 4096] {
            assert_eq!(metered(EVENTS, 0, STREAM.as_bytes(), piece), expected);
        }
        for (content_type, answer, input, output) in [
            (Some("application/json"), r#"{"usage":{"input_tokens":3,"output_tokens":4}}"#, 3, 4),
            (None, r#"{"usage":{"prompt_tokens":5,"completion_tokens":6}}"#, 5, 6),
            (
                EVENTS,
                "data: {\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":8}}\n\n",
                7,
                8,
            ),
            (EVENTS, "data: {\"response\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":2}}}", 9, 2),
        ] {
            assert_eq!(metered(content_type, 0, answer.as_bytes(), 5), Tokens { input, cached: 0, output });
        }
    }

    #[test]
    fn liars_are_charged_by_what_went_by() {
        let under =
            format!("data: {{\"usage\":{{\"input_tokens\":0,\"output_tokens\":0}}}}\n\n{}", "x".repeat(256_000));
        let charged = metered(EVENTS, 1_024_000, under.as_bytes(), 1000);
        assert!(charged.input == 1000 && (1000..1010).contains(&charged.output), "{charged:?}");

        let none = metered(EVENTS, 4000, "data: {}\n\n".repeat(400).as_bytes(), 1000);
        assert_eq!((none.input, none.output), (1000, 1000));

        let over = metered(None, 0, br#"{"usage":{"input_tokens":1e300,"output_tokens":18446744073709551615}}"#, 9);
        assert_eq!((over.input, over.output), (MAX_CLAIM, MAX_CLAIM));
        let negative = metered(None, 0, br#"{"usage":{"input_tokens":-5,"output_tokens":"7"}}"#, 9);
        assert_eq!((negative.input, negative.output), (0, 0));

        let back = "data: {\"usage\":{\"output_tokens\":50}}\n\ndata: {\"usage\":{\"output_tokens\":1}}\n\n";
        assert_eq!(metered(EVENTS, 0, back.as_bytes(), 1000).output, 50);
    }

    #[test]
    fn an_endless_answer_is_charged_while_it_runs_and_takes_no_memory() {
        for form in [EVENTS, None] {
            let mut meter = Meter::new(form);
            let mut last = 0;
            for _ in 0..600 {
                meter.feed(&[b'x'; 64 * 1024]);
                assert!(meter.pending.len() <= MAX_WHOLE && meter.so_far().output > last);
                last = meter.so_far().output;
            }
            assert_eq!(last, 600 * 64 * 1024 / MAX_BYTES_PER_TOKEN_OUT);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_an_answer_says_breaks_the_meter(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
            events in any::<bool>(),
        ) {
            let mut meter = Meter::new(if events { EVENTS } else { None });
            let mut before = 0;
            for part in &parts {
                meter.feed(part);
                prop_assert!(meter.so_far().total() >= before);
                before = meter.so_far().total();
            }
            meter.finish();
        }
    }
}
