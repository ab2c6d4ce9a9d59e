//! Reading requests: queries with repeated keys, JSON bodies, durations, signals. Pure, but for taking the body in.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Query;
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use super::MAX_JSON;
use super::error::ApiError;

/// The longest duration that is understood: no one waits longer, and sums of it can't overflow.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// A query string in the order it came.
pub type Pairs = Query<Vec<(String, String)>>;

/// Finds values in a query.
pub struct Params(pub Vec<(String, String)>);

impl Params {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// `true` or `false`; `None` when absent.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0" | "") => Ok(Some(false)),
            Some(_) => Err(ApiError::bad_request(format!("{key} must be true or false"))),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<u16>, ApiError> {
        self.get(key)
            .map(|v| v.parse())
            .transpose()
            .map_err(|_| ApiError::bad_request(format!("{key} must be a number up to 65535")))
    }

    pub fn duration(&self, key: &str) -> Result<Option<Duration>, ApiError> {
        self.get(key).map(|text| duration(text).ok_or_else(|| bad_duration(key))).transpose()
    }
}

pub fn bad_duration(key: &str) -> ApiError {
    ApiError::bad_request(format!("{key} must be a duration, as in 10s or 1m30s"))
}

/// A duration as Go writes it, `1h2m3.5s` or `300ms`; a bare number is seconds.
pub fn duration(text: &str) -> Option<Duration> {
    let number = |text: &str| {
        let value: f64 = text.parse().ok()?;
        text.bytes().all(|b| b.is_ascii_digit() || b == b'.').then_some(value)
    };
    if let Some(seconds) = number(text) {
        return Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= MAX_DURATION);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit_end = rest[unit_at..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| unit_at + n);
        let factor = match &rest[unit_at..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum = sum.checked_add(Duration::try_from_secs_f64(number(&rest[..unit_at])? * factor).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty() && sum <= MAX_DURATION).then_some(sum)
}

/// A signal by name, with or without `SIG`, or by number.
pub fn signal(name: &str) -> Option<Signal> {
    let name = name.to_ascii_uppercase();
    Some(match name.strip_prefix("SIG").unwrap_or(&name) {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "ABRT" => Signal::ABORT,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "PIPE" => Signal::PIPE,
        "ALRM" => Signal::ALARM,
        "TERM" => Signal::TERM,
        "CONT" => Signal::CONT,
        "STOP" => Signal::STOP,
        "TSTP" => Signal::TSTP,
        "WINCH" => Signal::WINCH,
        number => Signal::from_named_raw(number.parse().ok()?)?,
    })
}

/// A JSON body of bounded size, whatever its content type says; an empty one is `{}`.
pub async fn json<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bytes = axum::body::to_bytes(body, MAX_JSON).await.map_err(|error| {
        ApiError::bad_request(format!("the body can't be read, or is longer than {MAX_JSON} bytes: {error}"))
    })?;
    let bytes: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes };
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not the JSON that was expected: {error}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query() -> impl Strategy<Value = Vec<(String, String)>> {
        let key = prop_oneof![Just("flag".to_owned()), Just("n".to_owned()), Just("t".to_owned()), any::<String>()];
        prop::collection::vec((key, prop_oneof![any::<String>(), "[0-9.hmsn]{0,8}"]), 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_query_is_read_or_refused_and_no_time_is_out_of_bounds(pairs in query()) {
            let params = Params(pairs);
            let _ = params.flag("flag");
            let _ = params.number("n");
            if let Ok(Some(time)) = params.duration("t") {
                prop_assert!(time <= MAX_DURATION);
            }
            prop_assert_eq!(params.get("n"), params.all("n").next());
        }

        #[test]
        fn durations_are_read_back_as_go_writes_them(ms in 0..(24 * 3600 * 1000_u64)) {
            let (h, m, s, ms_left) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
            for text in [format!("{ms}ms"), format!("{h}h{m}m{s}s{ms_left}ms"), format!("{}.{ms_left:03}s", ms / 1000)] {
                let read = duration(&text).unwrap();
                prop_assert!(read.abs_diff(Duration::from_millis(ms)) < Duration::from_micros(1), "{}: {:?}", text, read);
            }
        }

        #[test]
        fn no_text_makes_the_reading_of_times_and_signals_panic(text in ".{0,20}") {
            let _ = duration(&text);
            let _ = signal(&text);
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, ms) in [
            ("5s", 5000),
            ("1.0s", 1000),
            ("1m30s", 90_000),
            ("1h0m0.5s", 3_600_500),
            ("300ms", 300),
            ("86400000ms", 86_400_000),
            ("10", 10_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "5x", "-1s", "1s5", "99999999999h", "NaN", "inf", "1e400", "5s "] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        assert_eq!(signal("TERM"), Some(Signal::TERM));
        assert_eq!(signal("SIGINT"), Some(Signal::INT));
        assert_eq!(signal("sigkill"), Some(Signal::KILL));
        assert_eq!(signal("9"), Some(Signal::KILL));
        assert_eq!(signal("SIGNONSENSE"), None);
        assert_eq!(signal("9999"), None);
    }
}
