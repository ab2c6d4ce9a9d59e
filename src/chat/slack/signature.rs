//! Whether a request over HTTP is from Slack. Pure.

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

/// A request whose time is further off, in either direction, may be a recording.
const MAX_AGE: SignedDuration = SignedDuration::from_mins(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forged {
    #[error("the request has no signature, or no time")]
    Unsigned,
    #[error("the request's time is more than five minutes off")]
    Old,
    #[error("the request's signature is not made with our signing secret")]
    Wrong,
}

/// Checks the raw body against the headers `X-Slack-Request-Timestamp` and `X-Slack-Signature`.
///
/// # Errors
/// Why it is not to be trusted.
pub fn check(
    secret: &SecretString,
    time: Option<&str>,
    signature: Option<&str>,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Forged> {
    let (Some(time), Some(signature)) = (time, signature) else { return Err(Forged::Unsigned) };
    let sent = time.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).ok_or(Forged::Unsigned)?;
    let signature = signature.strip_prefix("v0=").and_then(|hex| hex::decode(hex).ok()).ok_or(Forged::Unsigned)?;
    let key = secret.expose_secret().as_bytes();
    // HMAC takes keys of any length; that the setting is not empty is seen to where it is read.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Err(Forged::Wrong) };
    mac.update(b"v0:");
    mac.update(time.as_bytes());
    mac.update(b":");
    mac.update(body);
    // In constant time.
    mac.verify_slice(&signature).map_err(|_| Forged::Wrong)?;
    if now.duration_since(sent).abs() > MAX_AGE { Err(Forged::Old) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    const SIGNATURE: &str = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
    const TIME: &str = "1531420618";

    fn verdict(time: Option<&str>, signature: Option<&str>, body: &[u8], now: i64) -> Result<(), Forged> {
        let secret = SecretString::from("8f742231b10e8888abcd99yyyzzz85a5");
        check(&secret, time, signature, body, Timestamp::from_second(now).unwrap())
    }

    #[test]
    fn the_example_of_slacks_own_documentation_is_genuine() {
        assert_eq!(verdict(Some(TIME), Some(SIGNATURE), BODY, 1_531_420_618), Ok(()));
    }

    #[test]
    fn what_is_forged_altered_old_or_of_the_future_is_refused() {
        let now = 1_531_420_618;
        for (time, signature, body, now, why) in [
            (None, Some(SIGNATURE), BODY, now, Forged::Unsigned),
            (Some(TIME), None, BODY, now, Forged::Unsigned),
            (Some("soon"), Some(SIGNATURE), BODY, now, Forged::Unsigned),
            (Some(TIME), Some("v0=zz"), BODY, now, Forged::Unsigned),
            (Some(TIME), Some(&SIGNATURE[3..]), BODY, now, Forged::Unsigned),
            (Some(TIME), Some("v0="), BODY, now, Forged::Wrong),
            (Some(TIME), Some(SIGNATURE), &BODY[1..], now, Forged::Wrong),
            (Some("1531420619"), Some(SIGNATURE), BODY, now, Forged::Wrong),
            (Some(TIME), Some(SIGNATURE), BODY, now + 301, Forged::Old),
            (Some(TIME), Some(SIGNATURE), BODY, now - 301, Forged::Old),
        ] {
            assert_eq!(verdict(time, signature, body, now), Err(why), "{time:?} {signature:?}");
        }
        assert_eq!(verdict(Some(TIME), Some(SIGNATURE), BODY, now + 300), Ok(()));
    }
}
