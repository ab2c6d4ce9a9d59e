//! The Events API over HTTP: events, interactions and commands, as requests that Slack signs.
//!
//! What the signature covers is the body as it came, so that is checked before anything reads it. The status says whether
//! Slack is to deliver again; whether it did so before does not matter, since a first delivery may never have arrived.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use reqwest::Url;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::ear::{Answer, Ear, Kind};
use super::signature;
use crate::world::World;

/// A message with its blocks is far below.
const MAX_BODY: usize = 1024 * 1024;

/// Where the routes find the ear, once there is one.
#[derive(Clone)]
pub struct Gate {
    ear: Arc<Mutex<Option<Arc<Ear>>>>,
    world: World,
}

impl Gate {
    pub fn new(world: World) -> Self {
        Self { ear: Arc::default(), world }
    }

    /// Opens the gate to this ear, or closes it.
    pub fn set(&self, ear: Option<Arc<Ear>>) {
        *self.ear.lock().unwrap_or_else(PoisonError::into_inner) = ear;
    }

    fn ear(&self) -> Option<Arc<Ear>> {
        self.ear.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone)]
struct Door {
    gate: Gate,
    secret: SecretString,
}

/// The routes: `/slack/events`, `/slack/interactive` and `/slack/commands`.
pub fn router(gate: Gate, secret: SecretString) -> Router {
    let door = Door { gate, secret };
    Router::new()
        .route("/slack/events", post(events))
        .route("/slack/interactive", post(interactive))
        .route("/slack/commands", post(commands))
        .with_state(door)
}

async fn events(State(door): State<Door>, request: Request) -> Response {
    let body = match door.checked(request).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let Ok(payload) = serde_json::from_slice::<Value>(&body) else { return unreadable("it is no JSON") };
    if payload.get("type").and_then(Value::as_str) == Some("url_verification") {
        let Some(challenge) = payload.get("challenge").and_then(Value::as_str) else {
            return unreadable("it has no challenge");
        };
        return ([(header::CONTENT_TYPE, "text/plain")], challenge.to_owned()).into_response();
    }
    door.take(Kind::Event, &payload).await
}

async fn interactive(State(door): State<Door>, request: Request) -> Response {
    let body = match door.checked(request).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let payload = fields(&body).and_then(|fields| serde_json::from_str(fields.get("payload")?.as_str()?).ok());
    match payload {
        Some(payload) => door.take(Kind::Interaction, &payload).await,
        None => unreadable("it has no payload"),
    }
}

async fn commands(State(door): State<Door>, request: Request) -> Response {
    let body = match door.checked(request).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    match fields(&body) {
        Some(payload) => door.take(Kind::Command, &payload).await,
        None => unreadable("it is no form"),
    }
}

/// A form as an object of texts.
fn fields(body: &[u8]) -> Option<Value> {
    let query = std::str::from_utf8(body).ok()?;
    // Forms and queries have one grammar.
    let url = Url::parse(&format!("http://form/?{query}")).ok()?;
    Some(Value::Object(url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned().into())).collect()))
}

impl Door {
    /// The body, if Slack has signed it.
    async fn checked(&self, request: Request) -> Result<Bytes, Response> {
        let (head, body) = request.into_parts();
        let body = read(body).await?;
        let (time, sign) = (text(&head.headers, "x-slack-request-timestamp"), text(&head.headers, "x-slack-signature"));
        match signature::check(&self.secret, time, sign, &body, self.gate.world.now()) {
            Ok(()) => Ok(body),
            Err(forged) => {
                tracing::warn!(%forged, "a request to Slack's routes was refused");
                Err((StatusCode::UNAUTHORIZED, format!("{forged}\n")).into_response())
            }
        }
    }

    async fn take(&self, kind: Kind, payload: &Value) -> Response {
        // While the adapter starts; Slack tries again in a minute.
        let Some(ear) = self.gate.ear() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
        match ear.take(kind, payload).await {
            Answer::Taken => StatusCode::OK.into_response(),
            Answer::Say(text) if kind == Kind::Command => {
                axum::Json(json!({ "response_type": "ephemeral", "text": text })).into_response()
            }
            Answer::Say(_) => StatusCode::OK.into_response(),
            Answer::Again => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
}

async fn read(body: Body) -> Result<Bytes, Response> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(_) => Err(StatusCode::PAYLOAD_TOO_LARGE.into_response()),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What nobody can read will not be readable next time.
fn unreadable(why: &str) -> Response {
    tracing::warn!(why, "a signed request of Slack's can't be read");
    (StatusCode::BAD_REQUEST, [("x-slack-no-retry", "1")], format!("{why}\n")).into_response()
}
