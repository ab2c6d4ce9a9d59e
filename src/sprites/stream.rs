//! Reading the API's NDJSON streams (checkpoint, restore, kill): lines out of bytes, and what the events say.
//!
//! Neither the HTTP status nor a clean end of such a stream proves anything: only a `complete` event is success. Used
//! by [`super::http`] alone.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use reqwest::Response;
use serde::Deserialize;
use tokio::time::timeout;

use super::http::answer::quote;
use super::http::call::{Call, next_chunk};
use super::{CheckpointId, Result, SpritesError};

/// An event is a sentence or two; a longer line is not from this API.
const LINE_BYTES: usize = 256 * 1024;

/// After the last event the server only has to end the body. It gets a moment for that: hanging up on it could cut
/// short what it does last.
const DRAIN: Duration = Duration::from_millis(100);

/// Cuts a byte stream into lines, however the bytes are split. Blank lines are left out.
#[derive(Debug)]
pub struct Lines {
    partial: BytesMut,
    /// Bytes of `partial` in which no line end was found yet.
    searched: usize,
    limit: usize,
}

/// A line is longer than allowed.
#[derive(Debug, PartialEq, Eq)]
pub struct LineTooLong;

impl Lines {
    pub fn new(limit: usize) -> Self {
        Self { partial: BytesMut::new(), searched: 0, limit }
    }

    /// Takes bytes that came; [`Self::take_line`] then gives the lines they completed.
    pub fn push(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    ///
    /// # Errors
    /// The line is longer than the limit, finished or not.
    pub fn take_line(&mut self) -> Result<Option<BytesMut>, LineTooLong> {
        loop {
            let Some(at) = self.partial[self.searched..].iter().position(|&byte| byte == b'\n') else {
                self.searched = self.partial.len();
                return if self.searched > self.limit { Err(LineTooLong) } else { Ok(None) };
            };
            let line = self.partial.split_to(self.searched + at);
            self.partial.advance(1);
            self.searched = 0;
            if line.len() > self.limit {
                return Err(LineTooLong);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    /// What came after the last line end, once the stream is over.
    pub fn rest(&mut self) -> Option<BytesMut> {
        let rest = self.partial.split();
        self.searched = 0;
        (!rest.trim_ascii().is_empty()).then_some(rest)
    }
}

/// What a stream has told so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// From the event `  ID: v3`.
    announced: Option<CheckpointId>,
    end: Option<End>,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// With the checkpoint id in its text, if there is one.
    Complete(Option<CheckpointId>),
    Failed(String),
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    data: Option<String>,
    error: Option<String>,
    message: Option<String>,
}

impl Account {
    /// Takes one line; true when it was the last that matters. Lines and event types that are not known are ignored.
    pub fn hear(&mut self, line: &[u8]) -> bool {
        let Ok(event) = serde_json::from_slice::<Event>(line) else { return false };
        match event.kind.as_str() {
            "info" => {
                if let Some(id) = event.data.as_deref().and_then(|data| data.trim().strip_prefix("ID:")) {
                    self.announced = checkpoint_in(id);
                }
            }
            "complete" => self.end = Some(End::Complete(event.data.as_deref().and_then(checkpoint_in))),
            "error" => {
                let text = event.error.or(event.message).or(event.data).unwrap_or_default();
                let text = if text.trim().is_empty() { "no explanation".into() } else { quote(&text) };
                self.end = Some(End::Failed(text));
            }
            _ => {}
        }
        self.end.is_some()
    }

    /// The id of the checkpoint that was made.
    ///
    /// # Errors
    /// No id was told, or two that differ.
    pub fn checkpoint(self) -> Result<CheckpointId> {
        let completed = match self.end {
            Some(End::Complete(id)) => id,
            Some(End::Failed(_)) | None => None,
        };
        match (self.announced, completed) {
            (Some(a), Some(b)) if a != b => {
                let message = format!("the new checkpoint is called both {a} and {b}");
                Err(SpritesError::Protocol { message })
            }
            (_, Some(id)) | (Some(id), None) => Ok(id),
            (None, None) => Err(SpritesError::Protocol { message: "the new checkpoint's id was not told".into() }),
        }
    }
}

/// The first word `v` + digits in a sentence.
fn checkpoint_in(text: &str) -> Option<CheckpointId> {
    text.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_')
        .find(|word| word.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())))
        .and_then(CheckpointId::new)
}

/// Reads a stream up to its `complete` event.
///
/// # Errors
/// [`SpritesError::OutcomeUnknown`] when the stream ends or the deadline passes without one; what `failed` makes of the
/// text when an `error` event comes.
pub(super) async fn follow(
    call: &Call,
    mut response: Response,
    failed: impl FnOnce(String) -> SpritesError,
) -> Result<Account> {
    let mut lines = Lines::new(LINE_BYTES);
    let mut account = Account::default();
    let too_long = |LineTooLong| SpritesError::Protocol { message: format!("endless line about {}", call.what) };
    'stream: while let Some(chunk) = next_chunk(call, &mut response).await? {
        lines.push(&chunk);
        while let Some(line) = lines.take_line().map_err(too_long)? {
            if account.hear(&line) {
                break 'stream;
            }
        }
    }
    if account.end.is_none()
        && let Some(line) = lines.rest()
    {
        account.hear(&line);
    }
    match account.end {
        Some(End::Complete(_)) => {
            _ = timeout(DRAIN, async { while let Ok(Some(_)) = response.chunk().await {} }).await;
            Ok(account)
        }
        Some(End::Failed(text)) => Err(failed(text)),
        None => Err(call.lost("the stream ended without saying that it is complete")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all_lines(cuts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(1000);
        let mut found = Vec::new();
        for cut in cuts {
            lines.push(cut);
            while let Some(line) = lines.take_line().unwrap() {
                found.push(line.to_vec());
            }
        }
        found.extend(lines.rest().map(|line| line.to_vec()));
        found
    }

    fn account(lines: &[&str]) -> Account {
        let mut account = Account::default();
        for line in lines {
            account.hear(line.as_bytes());
        }
        account
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_are_cut(
            text in proptest::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..300),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..10),
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).chain([0, text.len()]).collect();
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let whole: Vec<Vec<u8>> = text
                .split(|&byte| byte == b'\n')
                .filter(|line| !line.trim_ascii().is_empty())
                .map(<[u8]>::to_vec)
                .collect();
            prop_assert_eq!(all_lines(&pieces), whole);
        }

        #[test]
        fn no_line_can_break_the_account(line: Vec<u8>) {
            let mut account = Account::default();
            prop_assert!(!account.hear(&line));
        }
    }

    #[test]
    fn a_line_over_the_limit_is_an_error_before_and_after_its_end_comes() {
        let mut lines = Lines::new(4);
        lines.push(b"1234\n12345");
        assert_eq!(lines.take_line().unwrap().unwrap(), b"1234"[..]);
        assert_eq!(lines.take_line(), Err(LineTooLong));
        let mut lines = Lines::new(4);
        lines.push(b"12345\n");
        assert_eq!(lines.take_line(), Err(LineTooLong));
    }

    #[test]
    fn the_checkpoint_id_comes_from_either_event_and_must_agree() {
        let id = |lines: &[&str]| account(lines).checkpoint().map(|id| id.to_string());
        let announced = r#"{"type":"info","data":"  ID: v3","time":"t"}"#;
        let complete = r#"{"type":"complete","data":"Checkpoint v3 created successfully"}"#;
        assert_eq!(id(&[complete]).unwrap(), "v3");
        assert_eq!(id(&[announced, r#"{"type":"complete"}"#]).unwrap(), "v3");
        assert_eq!(id(&[announced, complete]).unwrap(), "v3");
        let other = r#"{"type":"complete","data":"Checkpoint v4 created successfully"}"#;
        assert!(matches!(id(&[announced, other]), Err(SpritesError::Protocol { .. })));
        assert!(matches!(id(&[r#"{"type":"complete","data":"done"}"#]), Err(SpritesError::Protocol { .. })));
    }

    #[test]
    fn only_a_whole_word_is_an_id() {
        assert_eq!(checkpoint_in("made v12.").unwrap().as_str(), "v12");
        for text in ["", "v", "version", "v1a", "rev3", "my-v3", "v3-old", "v 3"] {
            assert_eq!(checkpoint_in(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_ignored_and_an_error_is_the_end() {
        let mut account = Account::default();
        assert!(!account.hear(br#"{"type":"news","data":5}"#));
        assert!(!account.hear(br#"["type"]"#));
        assert!(!account.hear(br#"{"type":"info"}"#));
        assert!(account.hear(br#"{"type":"error","error":"no\nspace"}"#));
        assert_eq!(account.end, Some(End::Failed("no space".into())));
    }
}
