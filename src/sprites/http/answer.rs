//! What a failed answer means: from status, headers and body to a [`SpritesError`], and whether asking again may help.
//!
//! Pure. The API has three shapes of error body (`{"error","message"}`, `{"error","code","path"}`, plain text) and some
//! habits that are met here once: a missing sprite may be a 500 when it is read, a taken name a 400 or a 409, a valid
//! token may get a passing 401, and a lost machine is told by a code and not by its status.

use std::time::Duration;

use serde_json::Value;

use crate::sprites::SpritesError;

/// Text of others that goes into an error message is cut here: enough to see the cause, too little to flood a log.
const QUOTE_CHARS: usize = 300;

/// A longer "try again later" is taken for nonsense.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// What a second sending of the same call could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sprites) enum Nature {
    /// Reads. Repeated freely.
    Read,
    /// Sets something to a value or removes it: a second time changes nothing more. Repeated freely.
    Idempotent,
    /// Starts a program, but only with the upgrade: as long as that was refused, nothing runs. Repeated only then.
    Upgrade,
    /// Does something each time. Repeated only when the answer says that nothing was done.
    Once,
}

/// Answers that mean something else for one call than for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sprites) enum Quirk {
    None,
    /// Create: 409, or 400 with "exists" in its text, is a name that is taken.
    ConflictIsExists,
    /// Get: 500 "failed to retrieve" is a sprite that is not there.
    FailedToRetrieveIsNotFound,
}

/// A call that did not succeed.
#[derive(Debug)]
pub(in crate::sprites) struct Failure {
    pub error: SpritesError,
    pub again: Again,
}

/// Whether the same call may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sprites) enum Again {
    No,
    /// After the usual pause.
    Soon,
    /// Not before this time has passed: the server said so.
    After(Duration),
}

impl Nature {
    /// The error for a call whose request was, or may have been, sent and whose answer did not come.
    pub fn lost(self, what: &str, url: &str, message: String) -> SpritesError {
        match self {
            Self::Read => SpritesError::Unreachable { url: url.to_owned(), message },
            Self::Idempotent | Self::Upgrade | Self::Once => {
                SpritesError::OutcomeUnknown { what: what.to_owned(), message }
            }
        }
    }

    /// Whether a call may be sent again when it is not known what came of the first.
    pub fn repeats_blindly(self) -> bool {
        matches!(self, Self::Read | Self::Idempotent)
    }
}

/// Judges an answer that is not a success. `retry_after` is the header of that name, `body` the start of the body.
pub(in crate::sprites) fn judge(
    nature: Nature,
    quirk: Quirk,
    what: &str,
    status: u16,
    retry_after: Option<&str>,
    body: &str,
) -> Failure {
    let said = Said::read(body);
    let code = said.code.as_deref().unwrap_or_default();
    let failure = |error, again| Failure { error, again };
    let what = what.to_owned();
    let message = said.message.clone();

    if quirk == Quirk::FailedToRetrieveIsNotFound && status == 500 && mentions(body, "failed to retrieve") {
        return failure(SpritesError::NotFound { what }, Again::No);
    }
    // The limit on sprites that exist at once does not pass by waiting a little: whoever asked has to know at once.
    if code == "concurrent_sprite_limit_exceeded" {
        return failure(SpritesError::RateLimited { code: code.to_owned(), retry_after: None }, Again::No);
    }
    if code == "sprite_not_routable" || mentions(body, "sprite_not_routable") {
        let again = if nature.repeats_blindly() || nature == Nature::Upgrade { Again::Soon } else { Again::No };
        return failure(SpritesError::Broken { status, message }, again);
    }
    match status {
        // Nothing was asked for that could be missing: this is some other server, or another version of the API.
        404 if quirk == Quirk::ConflictIsExists => failure(SpritesError::Refused { status, message }, Again::No),
        404 => failure(SpritesError::NotFound { what }, Again::No),
        409 if quirk == Quirk::ConflictIsExists => failure(SpritesError::Exists { what }, Again::No),
        400 if quirk == Quirk::ConflictIsExists && mentions(body, "exists") => {
            failure(SpritesError::Exists { what }, Again::No)
        }
        401 => failure(SpritesError::Unauthorized, Again::Soon),
        429 => {
            let wait = said.retry_after.or_else(|| retry_after.and_then(|text| seconds(text.trim().parse().ok()?)));
            let code = if code.is_empty() { "rate_limited".to_owned() } else { code.to_owned() };
            let error = SpritesError::RateLimited { code, retry_after: wait };
            failure(error, wait.map_or(Again::Soon, Again::After))
        }
        500.. => server_error(nature, what, status, message),
        _ => failure(SpritesError::Refused { status, message }, Again::No),
    }
}

/// A 5xx: passing or not, and whether it leaves open what was done.
fn server_error(nature: Nature, what: String, status: u16, message: String) -> Failure {
    let unknown = |message| SpritesError::OutcomeUnknown { what, message: format!("HTTP {status}: {message}") };
    match (nature, status) {
        (Nature::Read | Nature::Idempotent, _) => {
            Failure { error: SpritesError::Broken { status, message }, again: Again::Soon }
        }
        // A gateway that gave up waiting: behind it the upgrade may still happen, and the program with it.
        (Nature::Upgrade, 504) => Failure { error: unknown(message), again: Again::No },
        (Nature::Upgrade, _) => Failure { error: SpritesError::Broken { status, message }, again: Again::Soon },
        (Nature::Once, 502 | 503) => Failure { error: SpritesError::Broken { status, message }, again: Again::No },
        (Nature::Once, _) => Failure { error: unknown(message), again: Again::No },
    }
}

/// What an error body says, whichever of its shapes it has.
struct Said {
    code: Option<String>,
    message: String,
    retry_after: Option<Duration>,
}

impl Said {
    fn read(body: &str) -> Self {
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(body) else {
            let message = if body.trim().is_empty() { "no explanation".to_owned() } else { quote(body) };
            return Self { code: None, message, retry_after: None };
        };
        let text = |key: &str| fields.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let first_of_many = fields.get("errors").and_then(|errors| errors.get(0)).and_then(Value::as_str);
        let error = text("error").or(first_of_many);
        let message = match (error, text("message")) {
            (Some(error), Some(message)) if error != message => format!("{error}: {message}"),
            (Some(only), _) | (None, Some(only)) => only.to_owned(),
            (None, None) => body.to_owned(),
        };
        // The field `error` holds a code on some paths and prose on others; a code is one word.
        let is_code =
            |text: &&str| text.len() <= 64 && text.bytes().all(|b| b == b'_' || b == b'-' || b.is_ascii_alphanumeric());
        Self {
            code: text("code").or(error).filter(is_code).map(str::to_owned),
            message: quote(&message),
            retry_after: fields.get("retry_after_seconds").and_then(Value::as_f64).and_then(seconds),
        }
    }
}

fn seconds(count: f64) -> Option<Duration> {
    let wait = Duration::try_from_secs_f64(count).ok()?;
    (!wait.is_zero() && wait <= RETRY_AFTER_MAX).then_some(wait)
}

fn mentions(body: &str, words: &str) -> bool {
    body.to_ascii_lowercase().contains(words)
}

/// Text from outside, fit for an error message: no control characters, at most [`QUOTE_CHARS`] characters.
pub(in crate::sprites) fn quote(text: &str) -> String {
    let clean = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut quoted: String = clean.clone().take(QUOTE_CHARS).collect();
    if clean.count() > QUOTE_CHARS {
        quoted.pop();
        quoted.push('…');
    }
    quoted
}

/// An error and its causes in one line, without the URL.
pub(in crate::sprites) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    quote(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(nature: Nature, quirk: Quirk, status: u16, body: &str) -> String {
        let Failure { error, again } = judge(nature, quirk, "sprite a", status, None, body);
        format!("{again:?} {error}")
    }

    #[test]
    fn every_status_has_its_meaning() {
        use Nature::{Idempotent, Once, Read, Upgrade};
        let json = r#"{"error":"sprite_not_routable","message":"no machine"}"#;
        let cases = [
            (Read, Quirk::None, 404, "", "No sprite a not found"),
            (Read, Quirk::FailedToRetrieveIsNotFound, 500, "Failed to retrieve sprite", "No sprite a not found"),
            (Read, Quirk::None, 500, "failed to retrieve", "Soon the sprite does not answer (500): failed to retrieve"),
            (Read, Quirk::FailedToRetrieveIsNotFound, 500, "oops", "Soon the sprite does not answer (500): oops"),
            (Once, Quirk::ConflictIsExists, 409, "", "No sprite a exists already"),
            (Once, Quirk::ConflictIsExists, 400, r#"{"error":"name already exists"}"#, "No sprite a exists already"),
            (Once, Quirk::ConflictIsExists, 400, "bad", "No the Sprites API refused the request (400): bad"),
            (Once, Quirk::ConflictIsExists, 404, "nginx", "No the Sprites API refused the request (404): nginx"),
            (Once, Quirk::None, 409, "busy", "No the Sprites API refused the request (409): busy"),
            (Once, Quirk::None, 401, "", "Soon the Sprites API rejected the token: check SPRITES_TOKEN"),
            (Read, Quirk::None, 403, "", "No the Sprites API refused the request (403): no explanation"),
            (Read, Quirk::None, 429, "", "Soon the Sprites API limits requests (rate_limited)"),
            (Idempotent, Quirk::None, 502, "x", "Soon the sprite does not answer (502): x"),
            (Once, Quirk::None, 502, "x", "No the sprite does not answer (502): x"),
            (Once, Quirk::None, 503, "x", "No the sprite does not answer (503): x"),
            (Once, Quirk::None, 500, "x", "No sprite a: the outcome is unknown (HTTP 500: x)"),
            (Once, Quirk::None, 504, "x", "No sprite a: the outcome is unknown (HTTP 504: x)"),
            (Once, Quirk::None, 500, json, "No the sprite does not answer (500): sprite_not_routable: no machine"),
            (Upgrade, Quirk::None, 500, "x", "Soon the sprite does not answer (500): x"),
            (Upgrade, Quirk::None, 504, "x", "No sprite a: the outcome is unknown (HTTP 504: x)"),
            (Read, Quirk::None, 301, "x", "No the Sprites API refused the request (301): x"),
        ];
        for (nature, quirk, status, body, expected) in cases {
            assert_eq!(error_of(nature, quirk, status, body), expected, "{nature:?} {status} {body}");
        }
    }

    #[test]
    fn numbers_inside_a_text_are_not_taken_for_a_status() {
        let said = error_of(Nature::Read, Quirk::FailedToRetrieveIsNotFound, 400, "timeout after 15000ms, 404, 500");
        assert_eq!(said, "No the Sprites API refused the request (400): timeout after 15000ms, 404, 500");
    }

    #[test]
    fn the_wait_comes_from_the_body_before_the_header_and_nonsense_is_ignored() {
        let wait = |header, body| judge(Nature::Read, Quirk::None, "x", 429, header, body).again;
        assert_eq!(wait(Some("9"), r#"{"error":"x","retry_after_seconds":7}"#), Again::After(Duration::from_secs(7)));
        assert_eq!(wait(Some("9"), r#"{"error":"x","retry_after_seconds":0}"#), Again::After(Duration::from_secs(9)));
        assert_eq!(wait(Some("Wed, 21 Oct 2026 07:28:00 GMT"), ""), Again::Soon);
        assert_eq!(wait(Some("-5"), ""), Again::Soon);
        assert_eq!(wait(Some("1e300"), ""), Again::Soon);
    }

    #[test]
    fn the_limit_on_sprites_is_told_at_once() {
        let body = r#"{"error":"concurrent_sprite_limit_exceeded","message":"3 of 3","retry_after_seconds":1}"#;
        let said = error_of(Nature::Once, Quirk::ConflictIsExists, 429, body);
        assert_eq!(said, "No the Sprites API limits requests (concurrent_sprite_limit_exceeded)");
    }

    #[test]
    fn quotes_are_short_and_harmless() {
        assert_eq!(quote(" a\u{1b}[31m\nb "), "a [31m b");
        let long = quote(&"é".repeat(1000));
        assert_eq!(long.chars().count(), QUOTE_CHARS);
        assert!(long.ends_with('…'));
        assert_eq!(quote(&"é".repeat(300)).chars().count(), 300);
    }

    proptest::proptest! {
        #[test]
        fn any_body_gives_a_short_clean_error(status in 300u16..600, body: String) {
            let text = error_of(Nature::Read, Quirk::None, status, &body);
            proptest::prop_assert!(text.chars().count() < QUOTE_CHARS + 100);
            proptest::prop_assert!(!text.chars().any(char::is_control));
        }
    }
}
