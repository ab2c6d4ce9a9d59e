//! Discord's REST API: each call is one request, and its answer is told as it came.
//!
//! Paths and methods are twilight's; the sending is ours. twilight's own client repeats a 429 for ever, at once where
//! the limit is a global one, and does not tell for how long Discord wants quiet; the outbox has to know that. What may
//! be sent when, over all conversations, decides `pace`. Callbacks of interactions have a client of their own: they are
//! exempt from limits, and late after three seconds.

pub mod pace;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use twilight_http::request::Method;
use twilight_http::routing::Route;

use super::wire::{InteractionNo, Message};
use crate::chat::text::one_line;
use crate::chat::{SendError, Sent};
use crate::config::DiscordConfig;
use crate::world::World;
use pace::{Pace, Verdict};

const API: &str = "https://discord.com";

/// Discord refuses requests without a name of this form.
const USER_AGENT: &str = concat!("DiscordBot (https://janebot.example, ", env!("CARGO_PKG_VERSION"), ")");

/// Less than the outbox's patience, so that the cause is known here.
const TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Discord takes a callback within three seconds of the click.
const CALLBACK_TIMEOUT: Duration = Duration::from_millis(2500);

/// Longest wait for a turn that is spent here; whoever has to wait longer is told.
const MAX_TURN: Duration = Duration::from_secs(2);

/// Longest answer that is read: a hundred messages with everything that can hang on them.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Why a request did not do what it should.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RestError {
    #[error("Discord wants {} s of quiet", retry_after.as_secs_f32())]
    RateLimited { retry_after: Duration },
    #[error("Discord can't be reached: {0}")]
    Unreachable(String),
    #[error("Discord did not confirm it: {0}")]
    Ambiguous(String),
    #[error("{}", said(*.status, *.code, .message))]
    Refused { status: u16, code: u64, message: String },
}

impl RestError {
    /// Discord's number for what is wrong; 0 when it gave none.
    pub fn code(&self) -> u64 {
        match self {
            Self::Refused { code, .. } => *code,
            Self::RateLimited { .. } | Self::Unreachable(_) | Self::Ambiguous(_) => 0,
        }
    }

    pub fn is_token_rejected(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }
}

impl From<RestError> for SendError {
    fn from(error: RestError) -> Self {
        match error {
            RestError::RateLimited { retry_after } => Self::RateLimited { retry_after },
            RestError::Unreachable(why) => Self::Unreachable(why),
            RestError::Ambiguous(why) => Self::Ambiguous(why),
            // With the right token it would be taken, so it is not lost.
            RestError::Refused { status: 401, .. } => Self::Unreachable(error.to_string()),
            RestError::Refused { .. } => Self::Refused(error.to_string()),
        }
    }
}

/// What Discord said, in words that help. Numbers are those of its documentation.
fn said(status: u16, code: u64, message: &str) -> String {
    let words = match (status, code) {
        (401, _) => "Discord rejects the token: set DISCORD_TOKEN to the bot's present one",
        (_, 50001) => "the bot may not see this channel: give it View Channel there",
        (_, 50013) => "the bot lacks a permission in this channel; `janebot doctor` tells which",
        (_, 50007) => "this person takes no direct messages from the bot",
        (_, 10003) => "the channel or thread is not there any more",
        (_, 10008) => "the message is not there any more",
        (_, 10062) => "the click is too old to be answered",
        (_, 30010) => "the message has no room for another reaction",
        (_, 30046) => "the message is too old to be edited so often",
        (_, 40005) => "the file is too large for Discord",
        (413, _) => "the file is too large for Discord",
        (_, 40060) => "the click has been answered already",
        (_, 50083) => "the thread is archived",
        (_, 160004) => "the message has a thread already",
        (_, 160005) => "the thread is locked",
        (_, 160006) => "the server has as many open threads as it may have",
        (_, 200000 | 240000) => "a filter of the server blocks this text",
        _ => return format!("Discord answered {status}, code {code}: {}", one_line(message, 200)),
    };
    format!("{words} (Discord's code {})", if code == 0 { u64::from(status) } else { code })
}

/// What a request carries.
pub enum Body {
    Nothing,
    Json(Value),
    /// A form with the JSON as `payload_json` and this file.
    File {
        json: Value,
        name: String,
        bytes: Bytes,
    },
}

pub struct Rest {
    http: reqwest::Client,
    callbacks: reqwest::Client,
    /// The CDN's files are fetched without token and without following anybody elsewhere.
    files: reqwest::Client,
    base: String,
    /// Files may come from there as well, when tests or a proxy stand in for Discord.
    proxy: Option<String>,
    pace: Mutex<Pace>,
    world: World,
}

/// Hosts that have the files of messages.
const FILE_HOSTS: [&str; 2] = ["cdn.discordapp.com", "media.discordapp.net"];

impl Rest {
    /// # Errors
    /// When this machine can't do TLS.
    pub fn new(config: &DiscordConfig, world: World) -> Result<Self, reqwest::Error> {
        let builder = || {
            reqwest::Client::builder()
                .user_agent(USER_AGENT)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
        };
        let base = match &config.api_proxy {
            Some(proxy) => format!("http://{proxy}"),
            None => API.to_owned(),
        };
        Ok(Self {
            http: builder().default_headers(authorization(&config.token)).timeout(TIMEOUT).build()?,
            callbacks: builder().timeout(CALLBACK_TIMEOUT).build()?,
            files: builder().timeout(TIMEOUT).build()?,
            base: format!("{base}/api/v10/"),
            proxy: config.api_proxy.clone(),
            pace: Mutex::new(Pace::default()),
            world,
        })
    }

    /// One request, whose answer is read as a `T`.
    pub async fn get<T: DeserializeOwned>(&self, route: &Route<'_>) -> Result<T, RestError> {
        let bytes = self.send(route, Body::Nothing).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| RestError::Ambiguous(format!("its answer can't be read: {error}")))
    }

    /// As [`Rest::get`], with a body. An answer that can't be read leaves open what was done.
    pub async fn call<T: DeserializeOwned>(&self, route: &Route<'_>, body: Body) -> Result<T, RestError> {
        let bytes = self.send(route, body).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| RestError::Ambiguous(format!("its answer can't be read: {error}")))
    }

    /// One request, whose answer does not matter beside that it came.
    pub async fn send(&self, route: &Route<'_>, body: Body) -> Result<Bytes, RestError> {
        let path = route.to_string();
        let method = method(route.method());
        let key = pace::key(method.as_str(), &path);
        let now = Instant::now();
        // Bound, so that the lock is free while we wait.
        let verdict = self.pace().turn(&key, now);
        match verdict {
            Verdict::Now => {}
            Verdict::Wait(time) if time <= MAX_TURN => sleep(time).await,
            Verdict::Wait(retry_after) => return Err(RestError::RateLimited { retry_after }),
            Verdict::Closed(time, why) => {
                return Err(RestError::Unreachable(format!("{why}; next try in {} s", time.as_secs() + 1)));
            }
        }
        let request = self.http.request(method, format!("{}{path}", self.base));
        let answer = self.with(request, body).send().await.map_err(|error| failed(&error))?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = read(answer, MAX_ANSWER).await?;
        self.pace().learn(&key, status, &limits(&headers, &bytes), Instant::now());
        judge(status, &headers, bytes)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        // Nothing that runs under the lock can leave it half-written.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers an interaction. With `with_message`, gives the message that came of it.
    pub async fn callback(
        &self,
        interaction: InteractionNo,
        token: &str,
        json: &Value,
        with_message: bool,
    ) -> Result<Option<Message>, RestError> {
        let route = Route::InteractionCallback {
            interaction_id: interaction.get(),
            interaction_token: token,
            with_response: with_message,
        };
        let request = self.callbacks.post(format!("{}{route}", self.base));
        let answer = request.json(json).send().await.map_err(|error| failed(&error))?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = judge(status, &headers, read(answer, MAX_ANSWER).await?)?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(serde_json::from_value(answer["resource"]["message"].clone()).ok())
    }

    /// The content of a message's file.
    pub async fn file(&self, url: &str, limit: u64) -> Sent<Bytes> {
        let refused = |why: &str| Err(SendError::Refused(why.to_owned()));
        let Ok(parsed) = reqwest::Url::parse(url) else { return refused("its address can't be read") };
        let is_discords = parsed.scheme() == "https"
            && parsed.port().is_none()
            && parsed.host_str().is_some_and(|host| FILE_HOSTS.contains(&host));
        let is_proxys = parsed.scheme() == "http"
            && self.proxy.as_deref().is_some_and(|proxy| {
                parsed.host_str().zip(parsed.port()).is_some_and(|(host, port)| format!("{host}:{port}") == proxy)
            });
        if !is_discords && !is_proxys {
            return refused("it is not on Discord's own servers");
        }
        let answer = self.files.get(parsed).send().await.map_err(|error| SendError::from(failed(&error)))?;
        if !answer.status().is_success() {
            return refused(&format!("Discord's file server answered {}", answer.status().as_u16()));
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        read(answer, limit).await.map_err(|error| match error {
            RestError::Refused { .. } => SendError::Refused("it is too large".into()),
            other => other.into(),
        })
    }

    fn with(&self, request: reqwest::RequestBuilder, body: Body) -> reqwest::RequestBuilder {
        match body {
            Body::Nothing => request,
            Body::Json(json) => request.json(&json),
            Body::File { json, name, bytes } => {
                let boundary = self.world.token(16);
                let form = form(&boundary, &json, &name, &bytes);
                request.header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}")).body(form)
            }
        }
    }
}

/// That a message of ours pings nobody. Discord's default is to ping everybody whom its text names.
pub fn no_pings() -> Value {
    json!({"parse": []})
}

fn authorization(token: &SecretString) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // The settings let only visible ASCII characters through.
    if let Ok(mut value) = HeaderValue::from_str(&format!("Bot {}", token.expose_secret())) {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    headers
}

fn method(method: Method) -> reqwest::Method {
    match method {
        Method::Delete => reqwest::Method::DELETE,
        Method::Patch => reqwest::Method::PATCH,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        // `Get`; twilight reserves the right to add one.
        _ => reqwest::Method::GET,
    }
}

/// An answer did not come. Whether the request did, tells only a connection that was never there.
fn failed(error: &reqwest::Error) -> RestError {
    // The address would have an interaction's token in it.
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let cause = if error.is_timeout() { "no answer in time".to_owned() } else { one_line(&cause.to_string(), 160) };
    if error.is_connect() || error.is_builder() { RestError::Unreachable(cause) } else { RestError::Ambiguous(cause) }
}

async fn read(mut answer: reqwest::Response, limit: usize) -> Result<Bytes, RestError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| failed(&error))? {
        if bytes.len() + chunk.len() > limit {
            return Err(RestError::Refused { status: 413, code: 0, message: "the answer is too long".into() });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// What an answer says about limits.
fn limits(headers: &HeaderMap, body: &[u8]) -> pace::Said {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = |text: &str| text.trim().parse::<f64>().ok().and_then(|time| Duration::try_from_secs_f64(time).ok());
    let in_body = || {
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        body["retry_after"].as_f64().and_then(|time| Duration::try_from_secs_f64(time).ok())
    };
    pace::Said {
        scope: text("x-ratelimit-scope").map(str::to_owned),
        retry_after: text("retry-after").and_then(seconds).or_else(in_body),
        remaining: text("x-ratelimit-remaining").and_then(|text| text.parse().ok()),
        reset_after: text("x-ratelimit-reset-after").and_then(seconds),
    }
}

fn judge(status: u16, headers: &HeaderMap, bytes: Bytes) -> Result<Bytes, RestError> {
    match status {
        200..=299 => Ok(bytes),
        429 => Err(RestError::RateLimited {
            retry_after: limits(headers, &bytes).retry_after.unwrap_or(pace::UNNAMED_QUIET),
        }),
        // It may have been done before something on the way failed.
        500..=599 => Err(RestError::Ambiguous(format!("it answered {status}"))),
        _ => {
            let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            let code = body["code"].as_u64().unwrap_or(0);
            let mut message = body["message"].as_str().unwrap_or("no reason given").to_owned();
            if !body["errors"].is_null() {
                message.push(' ');
                message.push_str(&body["errors"].to_string());
            }
            Err(RestError::Refused { status, code, message })
        }
    }
}

fn form(boundary: &str, json: &Value, name: &str, bytes: &[u8]) -> Vec<u8> {
    // Whatever could end the header or the quotes has no place in a name.
    let name: String =
        name.chars().map(|c| if c.is_control() || matches!(c, '"' | '\\' | '/') { '_' } else { c }).collect();
    let mut form = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"payload_json\"\r\nContent-Type: application/json\r\n\r\n\
         {json}\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"files[0]\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    form.extend_from_slice(bytes);
    form.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    form
}
