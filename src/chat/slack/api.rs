//! The Web API: one request a call, typed errors, and never faster than Slack allows.
//!
//! Nothing is repeated here. Whoever calls is told whether the request may have had an effect, and decides. A method that
//! Slack wants left alone for a while is not asked again before that, in the channel or everywhere as it was said; so one
//! busy channel does not stop another.

mod method;
mod pace;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout};

pub use method::Method;
use pace::Pace;

use super::event::Me;
use crate::chat::SendError;
use crate::chat::text::one_line;

/// A call that takes longer is taken for lost. Below the outbox's own patience, so that the reason is known.
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(5);

/// Moving a file takes longer than a call.
const FILE_PATIENCE: Duration = Duration::from_secs(28);

/// The largest answer that is read. A page of a thread with long messages is far below.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// When Slack does not say how long to wait.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("Slack wants {} s of quiet for {method}", retry_after.as_secs_f32())]
    RateLimited { method: &'static str, retry_after: Duration },
    /// It did not get there.
    #[error("Slack can't be reached for {method} ({why})")]
    Unreachable { method: &'static str, why: String },
    /// It got there, and nobody knows what came of it.
    #[error("{method} was not confirmed by Slack ({why})")]
    Lost { method: &'static str, why: String },
    /// `ok: false`. Nothing was done.
    #[error("Slack refused {method}: {error}{}", hint(error, needed))]
    Refused { method: &'static str, error: String, needed: Option<String>, provided: Option<String> },
}

/// What to do about an error, as the end of a sentence.
fn hint(error: &str, needed: &Option<String>) -> String {
    let hint = match error {
        "missing_scope" => {
            let needed = needed.as_deref().unwrap_or("?");
            return format!(" (the app needs the scope {needed}: add it and install the app again)");
        }
        "not_in_channel" | "channel_not_found" => "invite the bot to the channel",
        "is_archived" => "the channel is archived",
        "invalid_auth" | "not_authed" | "token_revoked" | "token_expired" => {
            "the token is wrong, or was revoked: install the app again and set SLACK_BOT_TOKEN"
        }
        "account_inactive" | "user_removed_from_team" | "team_disabled" => "the bot's account or workspace is gone",
        "not_allowed_token_type" => "it is another kind of token than this needs",
        "message_not_found" | "thread_not_found" => "the message was deleted",
        _ => return String::new(),
    };
    format!(" ({hint})")
}

impl ApiError {
    /// The word of a refusal.
    pub fn word(&self) -> &str {
        match self {
            Self::Refused { error, .. } => error,
            Self::RateLimited { .. } | Self::Unreachable { .. } | Self::Lost { .. } => "",
        }
    }

    /// Whether trying again is useless until somebody changes a setting.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self.word(),
            "not_authed"
                | "invalid_auth"
                | "account_inactive"
                | "user_removed_from_team"
                | "team_disabled"
                | "token_revoked"
                | "token_expired"
                | "forbidden_team"
                | "not_allowed_token_type"
                | "missing_scope"
        )
    }
}

impl From<ApiError> for SendError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::RateLimited { retry_after, .. } => Self::RateLimited { retry_after },
            ApiError::Unreachable { .. } => Self::Unreachable(error.to_string()),
            ApiError::Lost { .. } => Self::Ambiguous(error.to_string()),
            ApiError::Refused { .. } => Self::Refused(error.to_string()),
        }
    }
}

/// Arguments of a call, in any order. `null` counts as left out.
pub type Args = Value;

/// The way to the Web API with one token.
pub struct Api {
    client: Client,
    base: Url,
    authorization: HeaderValue,
    pace: Mutex<Pace>,
}

impl Api {
    /// # Errors
    /// When the token or the address can't be used, or this machine has no root certificates.
    pub fn new(base: &str, token: &SecretString) -> Result<Self, String> {
        let base = Url::parse(&format!("{base}/")).map_err(|error| format!("SLACK_API_URL: {error}"))?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
            .map_err(|_| "Slack's token has characters that can't be sent".to_owned())?;
        authorization.set_sensitive(true);
        let client = client(&base)?;
        Ok(Self { client, base, authorization, pace: Mutex::new(Pace::default()) })
    }

    /// Calls a method.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn call<T: DeserializeOwned>(&self, method: Method, args: &Args) -> Result<T, ApiError> {
        let (answer, _) = self.call_for_scopes(method, args).await?;
        let name = method.name();
        // It was done; what else there is in the answer can't be told.
        serde_json::from_value(answer).map_err(|error| ApiError::Lost { method: name, why: error.to_string() })
    }

    /// Calls a method; with the answer come the scopes of the token, if Slack tells them.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn call_for_scopes(&self, method: Method, args: &Args) -> Result<(Value, Option<String>), ApiError> {
        let channel = args.get("channel").or_else(|| args.get("channel_id")).and_then(Value::as_str);
        self.pace()
            .ask(method, channel, Instant::now())
            .map_err(|retry_after| ApiError::RateLimited { method: method.name(), retry_after })?;
        let name = method.name();
        let lost = |why: String| ApiError::Lost { method: name, why };
        let sent = timeout(PATIENCE, self.send(method, args)).await;
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if is_unsent(&error) => {
                return Err(ApiError::Unreachable { method: name, why: causes(&error) });
            }
            Ok(Err(error)) => return Err(lost(causes(&error))),
            Err(_) => return Err(lost(format!("no answer within {} s", PATIENCE.as_secs()))),
        };
        let status = response.status().as_u16();
        let retry_after = retry_after(&response);
        if status == 429 {
            let retry_after = retry_after.unwrap_or(DEFAULT_RETRY_AFTER);
            self.pace().limited(method, channel, retry_after, Instant::now());
            return Err(ApiError::RateLimited { method: name, retry_after });
        }
        let scopes = response.headers().get("x-oauth-scopes").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = match timeout(PATIENCE, read(response, MAX_ANSWER)).await {
            Ok(Ok(body)) => body,
            Ok(Err(why)) => return Err(lost(why)),
            Err(_) => return Err(lost("the answer did not end".into())),
        };
        let Ok(answer) = serde_json::from_slice::<Value>(&body) else {
            return Err(lost(format!("HTTP {status} with something that is no JSON")));
        };
        match answer.get("ok").and_then(Value::as_bool) {
            Some(true) => {
                let warning = answer.get("warning").and_then(Value::as_str);
                if let Some(warning) = warning.filter(|warning| *warning != "missing_charset") {
                    tracing::warn!(method = name, warning, "Slack did it, with a warning");
                }
                Ok((answer, scopes))
            }
            Some(false) => Err(self.refusal(method, channel, &answer, retry_after)),
            None => Err(lost(format!("HTTP {status} without a verdict"))),
        }
    }

    /// Whether an edit may be made that a later one will replace.
    ///
    /// # Errors
    /// When to ask again.
    pub fn may_edit_in_passing(&self) -> Result<(), ApiError> {
        let asked = self.pace().ask_for_passing_edit(Instant::now());
        asked.map_err(|retry_after| ApiError::RateLimited { method: Method::Update.name(), retry_after })
    }

    fn refusal(
        &self,
        method: Method,
        channel: Option<&str>,
        answer: &Value,
        retry_after: Option<Duration>,
    ) -> ApiError {
        let text = |key: &str| answer.get(key).and_then(Value::as_str).map(|text| one_line(text, 200));
        let (name, error) = (method.name(), text("error").unwrap_or_else(|| "it gives no reason".into()));
        match error.as_str() {
            "ratelimited" | "rate_limited" => {
                let retry_after = retry_after.unwrap_or(DEFAULT_RETRY_AFTER);
                self.pace().limited(method, channel, retry_after, Instant::now());
                ApiError::RateLimited { method: name, retry_after }
            }
            "service_unavailable" | "team_added_to_org" => ApiError::Unreachable { method: name, why: error },
            // By their descriptions, something may have been done before.
            "fatal_error" | "internal_error" | "request_timeout" => ApiError::Lost { method: name, why: error },
            _ => ApiError::Refused { method: name, error, needed: text("needed"), provided: text("provided") },
        }
    }

    async fn send(&self, method: Method, args: &Args) -> Result<Response, reqwest::Error> {
        // A method's name has nothing that a URL would take for something else.
        let url = self.base.join(method.name()).unwrap_or_else(|_| self.base.clone());
        let request = self.client.post(url).header(AUTHORIZATION, self.authorization.clone());
        let request = match method.takes_json() {
            true => {
                let body = serde_json::to_vec(&without_nulls(args)).unwrap_or_default();
                request.header(CONTENT_TYPE, "application/json; charset=utf-8").body(body)
            }
            false => request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form(args)),
        };
        request.send().await
    }

    /// Sends the content of a file to the address that Slack gave for it, which needs no token.
    ///
    /// # Errors
    /// See [`ApiError`]. Nobody sees the file by this alone.
    pub async fn put(&self, url: &str, content: Bytes) -> Result<(), ApiError> {
        let name = "the upload";
        let unreachable = |why: String| ApiError::Unreachable { method: name, why };
        let url = self.slack_url(url).map_err(&unreachable)?;
        let request = self.client.post(url).header(CONTENT_TYPE, "application/octet-stream").body(content);
        match timeout(FILE_PATIENCE, request.send()).await {
            Ok(Ok(response)) if response.status().is_success() => Ok(()),
            Ok(Ok(response)) if response.status().as_u16() == 429 => {
                let retry_after = retry_after(&response).unwrap_or(DEFAULT_RETRY_AFTER);
                Err(ApiError::RateLimited { method: name, retry_after })
            }
            Ok(Ok(response)) => Err(unreachable(format!("HTTP {}", response.status().as_u16()))),
            Ok(Err(error)) => Err(unreachable(causes(&error))),
            Err(_) => Err(unreachable("it did not end".into())),
        }
    }

    /// Reads a file of the workspace, with the token, at most `limit` bytes of it.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn get(&self, url: &str, limit: u64) -> Result<Bytes, ApiError> {
        let name = "the download";
        let unreachable = |why: String| ApiError::Unreachable { method: name, why };
        let refused =
            |error: &str| ApiError::Refused { method: name, error: error.to_owned(), needed: None, provided: None };
        let url = self.slack_url(url).map_err(|why| refused(&why))?;
        let request = self.client.get(url).header(AUTHORIZATION, self.authorization.clone());
        let load = async {
            let response = request.send().await.map_err(|error| unreachable(causes(&error)))?;
            let status = response.status();
            if status.as_u16() == 429 {
                let retry_after = retry_after(&response).unwrap_or(DEFAULT_RETRY_AFTER);
                return Err(ApiError::RateLimited { method: name, retry_after });
            }
            if status.is_server_error() {
                return Err(unreachable(format!("HTTP {}", status.as_u16())));
            }
            if !status.is_success() {
                return Err(refused(&format!("HTTP {}", status.as_u16())));
            }
            // A page to log in at, sent as if all were well.
            let is_page = |value: &HeaderValue| value.as_bytes().starts_with(b"text/html");
            if response.headers().get(CONTENT_TYPE).is_some_and(is_page) {
                return Err(refused("a page came instead of the file (the app may need the scope files:read)"));
            }
            if response.content_length().is_some_and(|length| length > limit) {
                return Err(refused(&format!("it has more than {limit} bytes")));
            }
            read(response, limit).await.map_err(|why| refused(&why))
        };
        match timeout(FILE_PATIENCE, load).await {
            Ok(loaded) => loaded,
            Err(_) => Err(unreachable("it did not end".into())),
        }
    }

    /// An address that is Slack's own, so that what is sent there stays with Slack: https below slack.com, or, in tests,
    /// wherever the Web API is.
    fn slack_url(&self, text: &str) -> Result<Url, String> {
        let url = Url::parse(text).map_err(|_| "its address is none".to_owned())?;
        let host = url.host_str().unwrap_or_default();
        let is_slack = url.scheme() == "https" && (host == "slack.com" || host.ends_with(".slack.com"));
        match is_slack || url.origin() == self.base.origin() {
            true => Ok(url),
            false => Err("its address is not one of Slack's".into()),
        }
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        // Nothing under the lock leaves it half-written.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose the token is, from the answer to `auth.test`.
///
/// # Errors
/// When it is not a bot's.
pub fn who_is(answer: &Value) -> Result<Me, ApiError> {
    let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
    let method = Method::AuthTest.name();
    match (text("team_id"), text("user_id"), text("bot_id")) {
        (Some(team), Some(user), Some(bot)) => Ok(Me { team, user, bot }),
        (_, _, None) => {
            Err(ApiError::Refused { method, error: "not_allowed_token_type".into(), needed: None, provided: None })
        }
        _ => Err(ApiError::Lost { method, why: "it does not say whose the token is".into() }),
    }
}

/// A client that follows nothing and carries no token by itself.
pub(super) fn client(base: &Url) -> Result<Client, String> {
    let is_plain = base.scheme() == "http";
    let builder = Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .http1_only()
        .tcp_nodelay(true)
        .user_agent(concat!("janebot/", env!("CARGO_PKG_VERSION")));
    // Plain http is to this machine alone, which no proxy reaches and no certificate is needed for.
    let builder = if is_plain { builder.no_proxy().tls_certs_only([]) } else { builder };
    builder.build().map_err(|error| format!("there is no way to Slack ({})", causes(&error)))
}

/// Whether the request can't have been heard.
fn is_unsent(error: &reqwest::Error) -> bool {
    error.is_connect() || error.is_builder()
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

async fn read(mut response: Response, limit: u64) -> Result<Bytes, String> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| causes(&error))? {
        if body.len() as u64 + chunk.len() as u64 > limit {
            return Err(format!("it has more than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn without_nulls(args: &Args) -> Value {
    let fields = args.as_object().into_iter().flatten();
    Value::Object(
        fields.filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect(),
    )
}

/// The arguments as a form; what is neither text nor number nor flag is JSON in it.
fn form(args: &Args) -> String {
    // Only the part behind the `?` is used.
    let Ok(mut url) = Url::parse("http://form") else { return String::new() };
    {
        let mut pairs = url.query_pairs_mut();
        for (key, value) in args.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            match value.as_str() {
                Some(text) => pairs.append_pair(key, text),
                None => pairs.append_pair(key, &value.to_string()),
            };
        }
    }
    url.query().unwrap_or_default().to_owned()
}

/// An error and its causes in one line, without the URL.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    if let Some(at) = text.find(" for url (") {
        text.truncate(at);
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    one_line(&text, 300)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_form_has_texts_numbers_and_flags() {
        let args = json!({ "channel": "C1", "limit": 15, "inclusive": true, "cursor": null, "q": "a b&c" });
        assert_eq!(form(&args), "channel=C1&inclusive=true&limit=15&q=a+b%26c");
    }

    #[test]
    fn files_are_asked_of_slack_alone() {
        let api = Api::new("https://slack.com/api", &SecretString::from("xoxb-1")).unwrap();
        for (url, fits) in [
            ("https://files.slack.com/files-pri/T1-F1/a.txt", true),
            ("https://slack.com/a", true),
            ("http://files.slack.com/a", false),
            ("https://files.slack.com.evil.test/a", false),
            ("https://evil.test/files.slack.com", false),
            ("https://notslack.com/a", false),
            ("https://x@evil.test:443/slack.com", false),
            ("slack-file:F1", false),
        ] {
            assert_eq!(api.slack_url(url).is_ok(), fits, "{url}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = ApiError::Refused {
            method: "reactions.add",
            error: "missing_scope".into(),
            needed: Some("reactions:write".into()),
            provided: None,
        };
        assert!(error.to_string().contains("needs the scope reactions:write"), "{error}");
        assert!(matches!(SendError::from(error), SendError::Refused(_)));
    }
}
