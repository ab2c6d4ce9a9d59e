//! One call to the Sprites API: building its URL, sending it within its deadline, repeating it where that is safe, and
//! reading its body. Used by [`super::HttpSprites`] and, for the upgrade, by [`crate::sprites::exec`].

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, UPGRADE};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

use super::answer::{Again, Failure, Nature, Quirk, causes, judge};
use super::{BuildError, Deadlines};
use crate::sprites::{Result, SpritesError};
use crate::world::World;

/// A call is sent this often at most. Passing faults of the cloud clear within seconds; what lasts longer is for the
/// pool's own, slower back-off.
const TRIES: u32 = 3;

/// Time to make a connection. Shorter than every deadline, so that an unreachable server is known as one.
const CONNECT: Duration = Duration::from_secs(10);

/// Of a failed answer's body, more than this is not read.
const ERROR_BODY: u64 = 64 * 1024;

/// The largest JSON answer: a recursive listing of some 100,000 files.
const JSON_BODY: u64 = 32 * 1024 * 1024;

/// A connection that waited longer is not used again: whatever stands between may have forgotten it. Load balancers
/// commonly wait 60 s.
const IDLE: Duration = Duration::from_secs(30);

/// The server, the token and the two clients. Both speak HTTP/1.1 only: upgrades need it, and a connection that hangs
/// then hangs one call and is closed with it.
pub(in crate::sprites) struct Api {
    base: Url,
    token: SecretString,
    /// For what may be repeated: uses connections again.
    pooled: Client,
    /// For what may not: a new connection each time. A kept one may turn out to be closed just when the request is on
    /// its way, which would leave the outcome unknown for no reason.
    fresh: Client,
    pub world: World,
    pub deadlines: Deadlines,
}

/// A call, ready to be sent any number of times.
pub(in crate::sprites) struct Call {
    /// What the call is about, for errors: `sprite a1`.
    pub what: String,
    pub nature: Nature,
    pub quirk: Quirk,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    /// End of all: tries, pauses and body.
    pub deadline: Instant,
}

impl Call {
    /// `within` counts from now.
    pub fn new(what: String, nature: Nature, method: Method, url: Url, within: Duration) -> Self {
        let deadline = from_now(within);
        Self { what, nature, quirk: Quirk::None, method, url, headers: HeaderMap::new(), body: None, deadline }
    }

    pub fn quirk(self, quirk: Quirk) -> Self {
        Self { quirk, ..self }
    }

    pub fn json(mut self, body: &serde_json::Value) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = Some(body.to_string().into());
        self
    }

    pub fn bytes(mut self, body: Bytes) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        self.body = Some(body);
        self
    }

    pub fn lost(&self, message: impl Into<String>) -> SpritesError {
        // Only the origin: path and query say nothing about reachability.
        self.nature.lost(&self.what, &self.url.origin().ascii_serialization(), message.into())
    }
}

impl Api {
    pub fn new(url: &str, token: SecretString, deadlines: Deadlines) -> Result<Self, BuildError> {
        let base = parse_base(url)?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
            .ok()
            .filter(|_| !token.expose_secret().trim().is_empty())
            .ok_or(BuildError::Token)?;
        authorization.set_sensitive(true);
        let builder = || {
            // No redirects: one would carry the token to wherever it points.
            let builder = Client::builder()
                .redirect(redirect::Policy::none())
                .connect_timeout(CONNECT)
                .http1_only()
                .tcp_nodelay(true)
                .user_agent(concat!("janebot/", env!("CARGO_PKG_VERSION")))
                .default_headers(HeaderMap::from_iter([(AUTHORIZATION, authorization.clone())]));
            // A proxy from the environment can't reach this machine's loopback, and would see the token in clear.
            let builder = if is_loopback(&base) { builder.no_proxy() } else { builder };
            // Without TLS there is nothing to verify; a machine without root certificates must not fail here.
            if base.scheme() == "http" { builder.tls_certs_only([]) } else { builder }
        };
        if base.scheme() == "http" && !is_loopback(&base) {
            tracing::warn!(url = %base, "the Sprites token travels unencrypted: use an https:// address");
        }
        let build = |builder: reqwest::ClientBuilder| builder.build().map_err(|error| BuildError::Tls(causes(&error)));
        let pooled = build(builder().pool_idle_timeout(IDLE))?;
        let fresh = build(builder().pool_max_idle_per_host(0))?;
        Ok(Self { base, token, pooled, fresh, world: World::real(), deadlines })
    }

    /// The server's address, without anything that could be secret.
    pub fn address(&self) -> &str {
        self.base.as_str()
    }

    /// `/v1/sprites` and `segments`, each percent-encoded.
    ///
    /// # Errors
    /// A segment that the URL rules would drop (empty, `.`, `..`): the call would go to another resource.
    pub fn url(&self, segments: &[&str]) -> Result<Url> {
        if let Some(segment) = segments.iter().find(|s| matches!(**s, "" | "." | "..")) {
            let message = format!("{segment:?} can't be a name");
            return Err(SpritesError::Refused { status: 400, message });
        }
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["v1", "sprites"]).extend(segments);
        }
        Ok(url)
    }

    /// Sends the call until it succeeds, fails for good, has been tried [`TRIES`] times, or its deadline is too near.
    pub async fn send(&self, call: &Call) -> Result<Response> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let tried = timeout_at(call.deadline, self.attempt(call)).await;
            let failure = match tried {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(call.lost("no answer within the deadline")),
            };
            let pause = self.world.jitter(self.deadlines.retry_pause * attempt);
            let pause = match failure.again {
                Again::Soon if attempt < TRIES => pause,
                Again::After(wait) if attempt < TRIES => wait.max(pause),
                Again::No | Again::Soon | Again::After(_) => return Err(failure.error),
            };
            if Instant::now() + pause >= call.deadline {
                return Err(failure.error);
            }
            tracing::warn!(what = call.what, error = %failure.error, ?pause, "calling the Sprites API again");
            sleep(pause).await;
        }
    }

    async fn attempt(&self, call: &Call) -> Result<Response, Failure> {
        let client = if call.nature.repeats_blindly() { &self.pooled } else { &self.fresh };
        let mut request = client.request(call.method.clone(), call.url.clone()).headers(call.headers.clone());
        if let Some(body) = &call.body {
            request = request.body(body.clone());
        }
        let response = request.send().await.map_err(|error| unsent(call, error.without_url()))?;
        let status = response.status();
        let succeeded = match call.nature {
            Nature::Upgrade => status == StatusCode::SWITCHING_PROTOCOLS,
            Nature::Read | Nature::Idempotent | Nature::Once => status.is_success(),
        };
        if succeeded {
            return Ok(response);
        }
        if status.is_success() || status.is_informational() {
            let message = format!("HTTP {status} does not answer the call about {}", call.what);
            return Err(Failure { error: SpritesError::Protocol { message }, again: Again::No });
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = error_body(response).await;
        // A server that repeats the request's headers must not put the token into our log.
        let body = String::from_utf8_lossy(&body).replace(self.token.expose_secret(), "[token]");
        Err(judge(call.nature, call.quirk, &call.what, status.as_u16(), retry_after.as_deref(), &body))
    }

    /// Sends the call and reads a JSON answer.
    pub async fn json<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let response = self.send(call).await?;
        let body = self.body(call, response, JSON_BODY).await?;
        serde_json::from_slice(&body)
            .map_err(|error| SpritesError::Protocol { message: format!("about {}: {error}", call.what) })
    }

    /// Sends the call; what the answer says besides success does not matter.
    pub async fn done(&self, call: &Call) -> Result<()> {
        let response = self.send(call).await?;
        // Read to its end, so that the connection can be used again; a fault in it changes nothing.
        _ = timeout_at(call.deadline, error_body(response)).await;
        Ok(())
    }

    /// Reads the body, at most `limit` bytes of it.
    pub async fn body(&self, call: &Call, mut response: Response, limit: u64) -> Result<Bytes> {
        let too_large = || SpritesError::TooLarge { what: call.what.clone(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = next_chunk(call, &mut response).await? {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The headers of a WebSocket upgrade, and the `Sec-WebSocket-Accept` that proves that the server understood it.
    pub fn upgrade_headers(&self) -> (HeaderMap, String) {
        let mut nonce = [0; 16];
        self.world.fill(&mut nonce);
        let key = STANDARD.encode(nonce);
        let accept = accept_key(&key);
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        let key = HeaderValue::from_str(&key).expect("base 64 has only visible ASCII");
        headers.insert("sec-websocket-key", key);
        (headers, accept)
    }
}

/// The moment `within` from now; one that is too far for the clock is a year away.
pub(in crate::sprites) fn from_now(within: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(within).unwrap_or(now + YEAR)
}

/// What RFC 6455 wants a server to answer to `key`.
fn accept_key(key: &str) -> String {
    use sha1::{Digest, Sha1};
    STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")))
}

/// The next piece of a body, `None` at its end; a body that breaks off is [`Nature::lost`].
pub(in crate::sprites) async fn next_chunk(call: &Call, response: &mut Response) -> Result<Option<Bytes>> {
    match timeout_at(call.deadline, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => Err(call.lost(format!("the answer broke off: {}", causes(&error.without_url())))),
        Err(_) => Err(call.lost("the answer did not end within the deadline")),
    }
}

/// An error for which no answer came: nobody there, or the connection was lost.
fn unsent(call: &Call, error: reqwest::Error) -> Failure {
    let message = causes(&error);
    if error.is_connect() {
        let url = call.url.origin().ascii_serialization();
        return Failure { error: SpritesError::Unreachable { url, message }, again: Again::Soon };
    }
    let again = if call.nature.repeats_blindly() { Again::Soon } else { Again::No };
    Failure { error: call.lost(message), again }
}

async fn error_body(mut response: Response) -> BytesMut {
    let mut body = BytesMut::new();
    while (body.len() as u64) < ERROR_BODY
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body
}

/// An address that calls can be built on: a scheme we speak, and nothing that would get lost or leak.
fn parse_base(text: &str) -> Result<Url, BuildError> {
    let bad = |why: &str| BuildError::Url { why: why.to_owned() };
    let url = Url::parse(text.trim()).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("it has to start with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it must not hold a user name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it must not have a query or fragment"));
    }
    if url.path_segments().is_some_and(|mut segments| segments.any(|segment| segment == "v1")) {
        return Err(bad("it has to end before /v1"));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(url: &str) -> Result<Api, BuildError> {
        Api::new(url, "token".into(), Deadlines::default())
    }

    #[test]
    fn addresses_that_would_go_wrong_later_are_refused_at_once() {
        let cases = [
            "",
            "api.sprites.dev",
            "ftp://a",
            "unix:/x",
            "http://u:p@a",
            "http://u@a",
            "https://a/?x=1",
            "https://a#x",
            "https://a/v1",
            "https://a/v1/",
        ];
        for url in cases {
            assert!(matches!(api(url), Err(BuildError::Url { .. })), "{url}");
        }
        for url in ["http://127.0.0.1:1", "https://api.sprites.dev/", "http://[::1]:80", " http://localhost "] {
            assert!(api(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn a_password_in_the_address_is_not_repeated() {
        let error = api("http://user:hunter2@host").err().map(|error| format!("{error} {error:?}")).unwrap_or_default();
        assert!(error.contains("password") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_token_that_is_no_header_value_is_refused() {
        for token in ["", "  ", "a\nb"] {
            let built = Api::new("http://a", token.into(), Deadlines::default());
            assert!(matches!(built, Err(BuildError::Token)), "{token:?}");
        }
    }

    #[test]
    fn names_are_one_segment_each_and_never_lost() {
        let api = api("http://127.0.0.1:1").unwrap();
        assert_eq!(api.url(&["a/b?c#d é", "exec"]).unwrap().path(), "/v1/sprites/a%2Fb%3Fc%23d%20%C3%A9/exec");
        assert_eq!(api.url(&[]).unwrap().path(), "/v1/sprites");
        for name in ["", ".", ".."] {
            assert!(matches!(api.url(&[name]), Err(SpritesError::Refused { .. })), "{name:?}");
        }
        let below = Api::new("https://proxy.example/sprites/", "t".into(), Deadlines::default()).unwrap();
        assert_eq!(below.url(&["a"]).unwrap().as_str(), "https://proxy.example/sprites/v1/sprites/a");
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
