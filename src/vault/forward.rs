//! One request: whose it is, whether it may be, what is sent instead, what comes back.
//!
//! What goes out is made anew from what was checked: a listed path, a body of known length, chosen headers. So there is
//! no second reading of a request that the first one did not see.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use secrecy::ExposeSecret;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::amp::{self, Opened, Socket};
use super::answer::{self, AnswerBody, BoxError, Counting, Watched};
use super::meter::Meter;
use super::pass::{Busy, Open};
use super::provider::{Denied, Kind};
use super::scan::Repeats;
use super::server::Owner;
use super::{Upstream, VaultHandle, tunnel};

/// Largest request of a model: Anthropic's own limit.
const MAX_MODEL_REQUEST: usize = 32 * 1024 * 1024;
/// Largest request that is read as a whole, to be checked.
const MAX_CHECKED_REQUEST: usize = 4 * 1024 * 1024;
/// Largest answer that is read as a whole.
const MAX_CHECKED_ANSWER: usize = 1024 * 1024;
/// Largest answer that is passed on.
const MAX_ANSWER: u64 = 256 * 1024 * 1024;
/// Largest request in a URL, which no call of an agent comes near.
const MAX_URI: usize = 2048;

/// What the requests of one connection share.
pub(super) struct Forward {
    pub vault: VaultHandle,
    pub owner: Arc<Owner>,
    pub stop: CancellationToken,
    /// The connection's place, held as long as anything of it lives.
    pub _place: OwnedSemaphorePermit,
}

/// Why a request has no answer of the provider's.
#[derive(Debug)]
enum Refusal {
    /// No token, or one that means nothing (any more).
    Stranger,
    Denied(Denied),
    Busy(Busy),
    TooLarge,
    /// The provider can't be reached, or does not speak HTTP.
    Down,
    Silent,
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<reqwest::Error> for Refusal {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() { Self::Silent } else { Self::Down }
    }
}

type Answer = Response<AnswerBody>;

/// Answers a request. Refusals are told at once and in few words: an agent that waits, waits for ever.
pub(super) async fn answer(forward: &Forward, request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    let path: String = request.uri().path().chars().take(80).filter(|c| c.is_ascii_graphic()).collect();
    let found = find(forward, &request);
    let refusal = match &found {
        None => Refusal::Stranger,
        Some(found) => match pass_on(forward, found, request).await {
            Ok(answer) => return answer,
            Err(refusal) => refusal,
        },
    };
    match found {
        Some(found) if found.open.refused() => {
            let job = &found.open.holder.job;
            warn!(%job, runner = found.open.holder.runner, %method, path, ?refusal, "the vault refused a request");
        }
        Some(_) | None => debug!(%method, path, ?refusal, "the vault refused a request"),
    }
    refuse(&refusal)
}

fn refuse(refusal: &Refusal) -> Answer {
    let (status, kind, message) = match refusal {
        Refusal::Stranger => {
            (StatusCode::UNAUTHORIZED, "authentication_error", "this token is not, or no longer, good here".to_owned())
        }
        Refusal::Denied(why) => (StatusCode::FORBIDDEN, "permission_error", why.to_string()),
        Refusal::Busy(Busy::Limit(reached)) => {
            (StatusCode::FORBIDDEN, "permission_error", format!("the job came to its limit: {reached}"))
        }
        Refusal::Busy(Busy::TooFast | Busy::TooMany) => (
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "this job makes more requests than a job may at a time".to_owned(),
        ),
        Refusal::TooLarge => {
            (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", "the request is larger than a job's may be".to_owned())
        }
        Refusal::Down => (StatusCode::BAD_GATEWAY, "api_error", "the provider can't be reached".to_owned()),
        Refusal::Silent => (StatusCode::GATEWAY_TIMEOUT, "timeout_error", "the provider does not answer".to_owned()),
    };
    // The form of Anthropic's errors; it has no `ok`, so that Amp takes a 401 for a bad key.
    let text = serde_json::json!({"type": "error", "error": {"type": kind, "message": message}}).to_string();
    let mut answer = Response::new(answer::whole(text));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    // Whoever was refused sends what is left of its body to nobody.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Whose a request is.
struct Found {
    open: Arc<Open>,
    socket: Option<(Socket, secrecy::SecretString)>,
}

/// The pass that the request shows, by its header or, for a WebSocket, by its sub-protocol. `None` too for a request on
/// a connection of another pass.
fn find(forward: &Forward, request: &Request<Incoming>) -> Option<Found> {
    let (headers, now) = (request.headers(), Instant::now());
    let passes = forward.vault.passes();
    let shown = token(headers);
    let found = match shown {
        Some(token) => Found { open: passes.find(token, now)?, socket: None },
        None if is_upgrade(headers) => {
            let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
            let socket = Socket::read(request.uri().query(), protocols).ok()?;
            let (open, real) = passes.find_socket(&socket.token, &socket.thread, now)?;
            Found { open, socket: Some((socket, real)) }
        }
        None => return None,
    };
    forward.owner.take(&found.open).then_some(found)
}

/// The one token that the headers show. Two that differ are none.
fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get_all(header::AUTHORIZATION).iter().map(|value| {
        let text = value.to_str().ok()?;
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let keys = headers.get_all("x-api-key").iter().map(|value| value.to_str().ok());
    let mut all = bearer.chain(keys);
    let first = all.next()??;
    all.all(|other| other == Some(first)).then_some(first)
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

async fn pass_on(forward: &Forward, found: &Found, mut request: Request<Incoming>) -> Result<Answer, Refusal> {
    let Found { open, socket } = found;
    let uri = request.uri();
    // Only a proxy's clients name a host in the request's line.
    if uri.authority().is_some() || uri.scheme().is_some() {
        return Err(Denied::Host.into());
    }
    if uri.path_and_query().is_none_or(|uri| uri.as_str().len() > MAX_URI) {
        return Err(Denied::Path.into());
    }
    // hyper reads a body by one of them, and another server might by the other.
    let headers = request.headers();
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Denied::Body.into());
    }
    let upstream = &open.upstream;
    let call = upstream.provider.call(request.method(), uri.path(), uri.query())?;
    if is_upgrade(headers) != (call.kind == Kind::AmpSocket) || socket.is_some() != (call.kind == Kind::AmpSocket) {
        return Err(Denied::Upgrade.into());
    }
    let permit = open.begin(call.kind == Kind::Model, Instant::now()).map_err(Refusal::Busy)?;
    let query = uri.query().map(str::to_owned);
    let url = match &query {
        Some(query) => format!("{}{}?{query}", upstream.url, call.path),
        None => format!("{}{}", upstream.url, call.path),
    };
    let method = request.method().clone();
    let headers = outgoing(request.headers(), upstream, call.kind);
    let owns = |thread: &str| open.owns(thread);
    match call.kind {
        Kind::Model | Kind::Plain => {
            let sent = Arc::new(AtomicU64::new(0));
            let counts = (call.kind == Kind::Model).then(|| sent.clone());
            let limit = MAX_MODEL_REQUEST;
            if request.body().size_hint().lower() > limit as u64 {
                return Err(Refusal::TooLarge);
            }
            let body = Sent { inner: Limited::new(request.into_body(), limit), sent };
            let sending = upstream.client.request(method, url).headers(headers).body(reqwest::Body::wrap(body)).send();
            let answer =
                sending.await.map_err(|error| if is_length(&error) { Refusal::TooLarge } else { error.into() })?;
            Ok(stream(open, answer, counts, permit))
        }
        Kind::Kept => Ok(Response::new(answer::whole("{}"))),
        Kind::AmpRpc => {
            let body = amp::rpc(query.as_deref(), &checked(request).await?, owns)?;
            let answer = send(upstream, method, url, headers, body).await?;
            Ok(stream(open, answer, None, permit))
        }
        Kind::AmpThreads => {
            let (body, is_new) = amp::threads(&checked(request).await?, owns)?;
            let answer = send(upstream, method, url, headers, body).await?;
            opened(forward, open, answer, is_new, permit).await
        }
        Kind::AmpSocket => {
            let Some((socket, real)) = socket else { return Err(Denied::Upgrade.into()) };
            let agent = hyper::upgrade::on(&mut request);
            let protocols = socket.clone().with_token(real.expose_secret());
            connect(forward, open, url, headers, protocols, agent, permit).await
        }
    }
}

/// A request's body on its way out, counted. Its length stays known, so that the provider is told it.
struct Sent {
    inner: Limited<Incoming>,
    sent: Arc<AtomicU64>,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.sent.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn is_length(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.is::<LengthLimitError>() {
            return true;
        }
        source = inner.source();
    }
    false
}

/// Headers that stay between the agent and the vault: credentials, what is said to the next hop only, and what the vault
/// says itself.
fn is_private(name: &HeaderName) -> bool {
    const PRIVATE: [&str; 18] = [
        "authorization",
        "x-api-key",
        "cookie",
        "host",
        "connection",
        "keep-alive",
        "proxy-authorization",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "expect",
        "forwarded",
        "via",
        // Answers are read here, so they come as they are.
        "accept-encoding",
    ];
    PRIVATE.contains(&name.as_str())
        || name.as_str().starts_with("x-forwarded-")
        || name.as_str().starts_with("sec-websocket-")
}

fn outgoing(incoming: &HeaderMap, upstream: &Upstream, kind: Kind) -> HeaderMap {
    // What the agent's side names as said to the next hop is not passed on either.
    let named: Vec<String> = incoming
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let mut headers = HeaderMap::new();
    for (name, value) in incoming {
        if !is_private(name) && !named.iter().any(|named| named == name.as_str()) {
            headers.append(name, value.clone());
        }
    }
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    match kind {
        Kind::Kept => {}
        Kind::Model | Kind::Plain | Kind::AmpRpc | Kind::AmpThreads => {
            headers.insert(upstream.provider.key.header(), upstream.key.clone());
        }
        Kind::AmpSocket => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            for name in [header::SEC_WEBSOCKET_KEY, header::SEC_WEBSOCKET_VERSION, header::SEC_WEBSOCKET_EXTENSIONS] {
                if let Some(value) = incoming.get(&name) {
                    headers.insert(name, value.clone());
                }
            }
        }
    }
    headers
}

/// The body of a request that is read before it is passed on.
async fn checked(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    match Limited::new(request.into_body(), MAX_CHECKED_REQUEST).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge),
        Err(_) => Err(Denied::Body.into()),
    }
}

async fn send(
    upstream: &Upstream,
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Vec<u8>,
) -> Result<reqwest::Response, Refusal> {
    Ok(upstream.client.request(method, url).headers(headers).body(body).send().await?)
}

/// The head of an answer, as the agent gets it.
fn head(status: StatusCode, from: &HeaderMap, upstream: &Upstream) -> Response<()> {
    let mut answer = Response::new(());
    *answer.status_mut() = status;
    let repeats = Repeats::of(&upstream.secret);
    for (name, value) in from {
        let kept = name == header::CONTENT_LENGTH || !is_private(name);
        if kept && !repeats.is_in(value.as_bytes()) && name != header::SET_COOKIE && name != header::LOCATION {
            answer.headers_mut().append(name, value.clone());
        }
    }
    answer
}

/// Passes an answer on as it comes.
fn stream(
    open: &Arc<Open>,
    answer: reqwest::Response,
    counts: Option<Arc<AtomicU64>>,
    permit: OwnedSemaphorePermit,
) -> Answer {
    let head = head(answer.status(), answer.headers(), &open.upstream);
    let content_type = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let counting = match counts {
        Some(sent) if answer.status().is_success() => {
            Some(Counting::begin(open.clone(), Meter::new(content_type), sent))
        }
        Some(_) | None => None,
    };
    let repeats = Repeats::of(&open.upstream.secret);
    let body = Watched::new(answer.into(), counting, repeats, MAX_ANSWER, permit);
    head.map(|()| body.boxed_unsync())
}

/// Passes on what a call that makes or opens a thread was answered, with a socket token of the vault's.
async fn opened(
    forward: &Forward,
    open: &Arc<Open>,
    answer: reqwest::Response,
    is_new: bool,
    permit: OwnedSemaphorePermit,
) -> Result<Answer, Refusal> {
    if !answer.status().is_success() {
        return Ok(stream(open, answer, None, permit));
    }
    let mut head = head(answer.status(), answer.headers(), &open.upstream);
    let body = Limited::new(reqwest::Body::from(answer), MAX_CHECKED_ANSWER).collect().await;
    let body = body.map_err(|_| Refusal::Down)?.to_bytes();
    // An answer that is not understood may hold a credential, so it is not passed on.
    let opened = Opened::read(&body).ok_or(Refusal::Down)?;
    if !is_new && !open.owns(&opened.thread) {
        return Err(Denied::Thread.into());
    }
    let (passes, world) = (forward.vault.passes(), forward.vault.world());
    let token = passes.thread_opened(open, &opened.thread, opened.socket_token.clone().into(), world)?;
    let body = opened.with_token(&token);
    if Repeats::of(&open.upstream.secret).is_in(&body) {
        return Err(Refusal::Down);
    }
    head.headers_mut().remove(header::CONTENT_LENGTH);
    Ok(head.map(|()| answer::whole(body)))
}

/// Opens the WebSocket to the provider and joins the agent's to it.
async fn connect(
    forward: &Forward,
    open: &Arc<Open>,
    url: String,
    mut headers: HeaderMap,
    protocols: String,
    agent: hyper::upgrade::OnUpgrade,
    permit: OwnedSemaphorePermit,
) -> Result<Answer, Refusal> {
    let mut protocols = HeaderValue::from_str(&protocols).map_err(|_| Denied::Upgrade)?;
    protocols.set_sensitive(true);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols);
    let provider = open.upstream.one.get(url).headers(headers).send().await?;
    if provider.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(stream(open, provider, None, permit));
    }
    let mut answer = Response::new(answer::whole(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in provider.headers() {
        let handshake = name.as_str().starts_with("sec-websocket-") || *name == header::CONNECTION;
        // A server that repeats the token in its choice of a sub-protocol is not the one that was measured.
        if (handshake || *name == header::UPGRADE) && !value.as_bytes().starts_with(b"rivet_conn_params") {
            answer.headers_mut().append(name, value.clone());
        }
    }
    tokio::spawn(tunnel::join(agent, provider, open.clone(), forward.stop.clone(), permit));
    Ok(answer)
}
