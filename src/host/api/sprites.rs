//! `/v1/sprites`: making, listing, changing and deleting sprites.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::error::ApiError;
use super::params::{Pairs, Params};
use super::{NDJSON, Shared, VERSION, ndjson, params, watch};
use crate::host::sandbox::Command;
use crate::host::store::{MAX_SPRITES, Meta, NewSprite, Sprite, Store, UrlSettings, micros};

/// The organization that all sprites of this host belong to.
const ORGANIZATION: &str = "local";

/// Entries of one page. Clients ask for more and get this many.
const MAX_PAGE: usize = 50;

/// Labels of a sprite, and characters of each.
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 256;

/// How long a sprite may take to show that it is well.
const CHECK_TIME: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
pub struct Create {
    name: String,
    #[serde(default)]
    labels: Option<Vec<String>>,
    #[serde(default)]
    url_settings: Option<UrlSettings>,
    #[serde(default)]
    environment: Option<BTreeMap<String, String>>,
}

pub async fn create(State(api): Shared, body: Body) -> Result<(StatusCode, Json<Value>), ApiError> {
    let create: Create = params::json(body).await?;
    let labels = create.labels.unwrap_or_default();
    check_labels(&labels)?;
    let environment = create.environment.unwrap_or_default();
    if let Some(name) = environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(ApiError::bad_request(format!("{name:?} can't be the name of an environment variable")));
    }
    let url_settings = create.url_settings.unwrap_or_default();
    let sprite = api.store.create(NewSprite { name: create.name, labels, url_settings, environment }).await?;
    Ok((StatusCode::CREATED, Json(object(&sprite.meta(), &sprite))))
}

pub async fn get(State(api): Shared, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let sprite = api.store.get(&name)?;
    Ok(Json(object(&sprite.meta(), &sprite)))
}

/// A page, or with `Accept: application/x-ndjson` the states of all sprites and then their changes.
pub async fn list(State(api): Shared, Query(query): Pairs, headers: HeaderMap) -> Result<Response, ApiError> {
    let query = Params(query);
    let prefix = query.get("prefix").unwrap_or_default();
    let asked = match query.get("max_results") {
        None | Some("") => None,
        Some(text) => {
            let asked: i64 = text.parse().map_err(|_| ApiError::bad_request("max_results must be a number"))?;
            Some(usize::try_from(asked).unwrap_or(0).max(1))
        }
    };
    if headers.get(header::ACCEPT).is_some_and(|kinds| kinds.as_bytes().starts_with(NDJSON.as_bytes())) {
        return Ok(ndjson(watch::changes(api.clone(), prefix.to_owned(), asked.unwrap_or(MAX_SPRITES))));
    }
    let after = query.get("continuation_token").unwrap_or_default();
    Ok(Json(page(&api.store, prefix, after, asked.unwrap_or(MAX_PAGE).min(MAX_PAGE))).into_response())
}

/// A page continues after the name that the last one ended with; that is all the token says.
fn page(store: &Store, prefix: &str, after: &str, size: usize) -> Value {
    let mut found = store
        .all()
        .into_iter()
        .map(|s| (s.meta(), s))
        .filter(|(m, _)| m.name.starts_with(prefix) && m.name.as_str() > after);
    let page: Vec<_> = found.by_ref().take(size).collect();
    let has_more = found.next().is_some();
    let token = page.last().filter(|_| has_more).map(|(meta, _)| meta.name.as_str()).unwrap_or_default();
    let sprites: Vec<Value> = page.iter().map(|(meta, sprite)| object(meta, sprite)).collect();
    let mut reply = counters(store);
    reply["org"] = reply.clone();
    reply["sprites"] = sprites.into();
    reply["has_more"] = has_more.into();
    reply["next_continuation_token"] = token.into();
    reply
}

pub async fn organization(State(api): Shared) -> Json<Value> {
    Json(counters(&api.store))
}

#[derive(Deserialize)]
pub struct Update {
    #[serde(default)]
    labels: Option<Vec<String>>,
    #[serde(default)]
    clear_labels: bool,
    #[serde(default)]
    url_settings: Option<UrlSettings>,
}

pub async fn update(State(api): Shared, Path(name): Path<String>, body: Body) -> Result<Json<Value>, ApiError> {
    let sprite = api.store.get(&name)?;
    let update: Update = params::json(body).await?;
    check_labels(update.labels.as_deref().unwrap_or_default())?;
    let meta = sprite
        .update(move |meta| {
            if update.clear_labels {
                meta.labels.clear();
            }
            if let Some(labels) = update.labels {
                meta.labels = labels;
            }
            if let Some(settings) = update.url_settings {
                meta.url_settings = settings;
            }
        })
        .await?;
    Ok(Json(object(&meta, &sprite)))
}

pub async fn delete(State(api): Shared, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    api.store.delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// There is nothing to upgrade: a sprite's base is this machine's or the operator's.
pub async fn upgrade(State(api): Shared, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    api.store.get(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn restart(State(api): Shared, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let sprite = api.store.get(&name)?;
    sprite.restart().await?;
    Ok(Json(json!({"sprite_name": name, "machine_id": sprite.meta().id, "message": "restarted"})))
}

/// Runs `true` in a running sprite. One that is not running is not started for it.
pub async fn check(State(api): Shared, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let sprite = api.store.get(&name)?;
    let begun = Instant::now();
    let (status, reason) = if sprite.is_running() {
        let argv = vec!["true".to_owned()];
        let alive = timeout(CHECK_TIME, async {
            let (process, _machine) =
                sprite.spawn(Command::Exec { argv, env: Vec::new(), dir: None, tty: None }).await?;
            Ok::<_, ApiError>(process.exit.await.ok())
        });
        match alive.await {
            Ok(Ok(Some(0))) => ("healthy", String::new()),
            Ok(Ok(Some(status))) => ("unhealthy", format!("the program true ended with status {status}")),
            Ok(Ok(None)) => ("unhealthy", "the sandbox died".to_owned()),
            Ok(Err(error)) => ("unhealthy", error.body()["message"].as_str().unwrap_or_default().to_owned()),
            Err(_) => ("unhealthy", format!("the program true did not end within {} seconds", CHECK_TIME.as_secs())),
        }
    } else {
        ("hibernated", "nothing runs in it; it starts when something is to".to_owned())
    };
    Ok(Json(json!({
        "sprite_name": name,
        "sprite_id": sprite.meta().id,
        "status": status,
        "reason": reason,
        "checked_at": micros(api.store.setup().world.now()),
        // Milliseconds: the SDK that reads it wants a number.
        "elapsed": begun.elapsed().as_millis() as u64,
    })))
}

/// The sprite as the API shows it.
fn object(meta: &Meta, sprite: &Sprite) -> Value {
    json!({
        "id": meta.id,
        "name": meta.name,
        "organization": ORGANIZATION,
        "org_slug": ORGANIZATION,
        "status": status(sprite),
        "url": "",
        "url_settings": meta.url_settings,
        "labels": meta.labels,
        "created_at": meta.created_at,
        "updated_at": meta.updated_at,
        "version": VERSION,
        "environment_version": VERSION,
        "environment": meta.environment,
    })
}

/// In the words of the API. There is no `warm` here: what runs is not frozen.
pub fn status(sprite: &Sprite) -> &'static str {
    if sprite.is_running() { "running" } else { "cold" }
}

/// The organization's name, numbers and limits.
pub fn counters(store: &Store) -> Value {
    let all = store.all();
    let running = all.iter().filter(|sprite| sprite.is_running()).count();
    let limit = MAX_SPRITES;
    json!({"name": ORGANIZATION, "running": running, "warm": 0, "cold": all.len() - running, "running_limit": limit, "warm_limit": limit})
}

fn check_labels(labels: &[String]) -> Result<(), ApiError> {
    if labels.len() > MAX_LABELS || labels.iter().any(|label| label.chars().count() > MAX_LABEL) {
        return Err(ApiError::bad_request(format!(
            "at most {MAX_LABELS} labels of at most {MAX_LABEL} characters are kept"
        )));
    }
    Ok(())
}
