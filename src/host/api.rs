//! The Sprites API over HTTP and WebSocket: reads requests, asks the [`store`](super::store), words the answers.
//!
//! Shapes, statuses and frames are what the official SDKs need, unchanged. Every route asks for the token. What this
//! host has not (services, proxying, control connections) is refused with a sentence.

mod checkpoints;
mod error;
mod exec;
mod files;
mod params;
mod policy;
mod socket;
mod sprites;
mod watch;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post, put};
use axum::{Router, http};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use self::error::ApiError;
use super::store::Store;

/// The API's version that this host speaks. The Go SDK chooses its way to attach by it.
const VERSION: &str = "v0.0.1-rc46";
const VERSION_HEADER: HeaderName = HeaderName::from_static("sprite-version");

/// The type of a reply of JSON objects, one a line.
const NDJSON: &str = "application/x-ndjson";

/// Bytes of a JSON body.
const MAX_JSON: usize = 1024 * 1024;

/// Bytes of a refusal that the framework worded.
const MAX_REFUSAL: usize = 4096;

const NOT_OFFERED: &str = "the embedded sprite host does not offer this; the Sprites cloud does";

/// What the handlers share.
struct Api {
    store: Arc<Store>,
    /// The token's hash: hashes of a wrong token tell nothing about the right one, however they are compared.
    token: [u8; 32],
    /// Cancelled when the host is about to stop: streams without an end of their own end by it.
    stop: CancellationToken,
}

type Shared = State<Arc<Api>>;

/// The whole API.
pub fn router(store: Arc<Store>, token: &SecretString, stop: CancellationToken) -> Router {
    let api = Arc::new(Api { store, token: Sha256::digest(token.expose_secret()).into(), stop });
    let sprite = Router::new()
        .route("/", get(sprites::get).put(sprites::update).delete(sprites::delete))
        .route("/upgrade", post(sprites::upgrade))
        .route("/restart", post(sprites::restart))
        .route("/check", get(sprites::check))
        .route("/exec", get(exec::get).post(exec::post))
        .route("/exec/{id}", get(exec::attach))
        .route("/exec/{id}/kill", post(exec::kill))
        .route("/checkpoint", post(checkpoints::create))
        .route("/checkpoints", get(checkpoints::list))
        .route("/checkpoints/{id}", get(checkpoints::get).merge(delete(checkpoints::delete)))
        .route("/checkpoints/{id}/restore", post(checkpoints::restore))
        .route("/policy/network", get(policy::get).post(policy::set))
        .route("/fs/read", get(files::read))
        .route("/fs/write", put(files::write))
        .route("/fs/list", get(files::list))
        .route("/fs/delete", delete(files::delete))
        .route("/fs/rename", post(files::rename))
        .route("/fs/copy", post(files::copy))
        .route("/fs/chmod", post(files::chmod));
    let missing =
        ["/policy/privileges", "/policy/resources", "/services", "/services/{*rest}", "/proxy", "/ports/watch"];
    let sprite = missing.into_iter().fold(sprite, |router, path| router.route(path, any(not_implemented)));
    let sprite = sprite.route("/fs/chown", any(files::not_implemented)).route("/fs/watch", any(files::not_implemented));
    Router::new()
        .route("/v1/organization", get(sprites::organization))
        .route("/v1/sprites", get(sprites::list).post(sprites::create))
        .merge(prefixed(sprite))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this address does not take this method",
            )
        })
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

/// Puts a sprite's routes below its name.
fn prefixed(sprite: Router<Arc<Api>>) -> Router<Arc<Api>> {
    Router::new().nest("/v1/sprites/{name}", sprite)
}

/// Lets only those in who know the token, and names the version on every answer.
async fn guard(State(api): Shared, request: Request, next: Next) -> Response {
    let mut response = if is_known(&api, request.headers()) {
        worded(next.run(request).await).await
    } else {
        ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "the bearer token is missing or wrong").into_response()
    };
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(VERSION));
    response
}

/// Refusals of the framework's own, as of a path that is no UTF-8, are plain text; here they get our shape.
async fn worded(response: Response) -> Response {
    let is_plain =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/"));
    if !response.status().is_client_error() || !is_plain {
        return response;
    }
    let status = response.status();
    // Too long, or not readable: then the status has to do.
    let text = axum::body::to_bytes(response.into_body(), MAX_REFUSAL).await.unwrap_or_default();
    ApiError::new(status, "bad_request", String::from_utf8_lossy(&text)).into_response()
}

fn is_known(api: &Api, headers: &http::HeaderMap) -> bool {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return false };
    let Some((scheme, token)) = value.as_bytes().split_at_checked(7) else { return false };
    let given: [u8; 32] = Sha256::digest(token).into();
    // Looks at every byte, whatever the first ones were.
    let differences = given.iter().zip(api.token).fold(0, |sum, (a, b)| sum | (a ^ b));
    scheme.eq_ignore_ascii_case(b"bearer ") && differences == 0
}

async fn not_implemented() -> ApiError {
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", NOT_OFFERED)
}

/// A reply of JSON objects, one a line, each sent when it is there.
fn ndjson(events: impl Stream<Item = Value> + Send + 'static) -> Response {
    let lines = events.map(|event| Ok::<_, std::convert::Infallible>(Bytes::from(format!("{event}\n"))));
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_token_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::config::HostConfig {
            state_dir: dir.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            rootfs: None,
            isolation: crate::config::Isolation::Off,
            grants: Vec::new(),
            limits: crate::config::Limits::default(),
        };
        let lock = crate::host::lock::Lock::take(dir.path()).unwrap().unwrap();
        let store =
            Store::open(config, "unused".into(), crate::world::World::real(), lock, Default::default()).unwrap();
        let api = Api { store: Arc::new(store), token: Sha256::digest("right").into(), stop: CancellationToken::new() };
        for (value, known) in [
            ("Bearer right", true),
            ("bearer right", true),
            ("Bearer wrong", false),
            ("Basic right", false),
            ("Bearer", false),
            ("Bearer ", false),
            ("right", false),
        ] {
            let headers = [(header::AUTHORIZATION, HeaderValue::from_static(value))].into_iter().collect();
            assert_eq!(is_known(&api, &headers), known, "{value}");
        }
        assert!(!is_known(&api, &http::HeaderMap::new()));
    }
}
