//! `/checkpoint`, `/checkpoints`: freezing a sprite's files, and putting them back.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinError;

use super::error::ApiError;
use super::{Api, Shared, ndjson, params};
use crate::host::store::{Checkpoint, Meta, StoreError, micros};

/// Id of the list's entry for the present files.
const CURRENT: &str = "Current";

/// Characters of a comment.
const MAX_COMMENT: usize = 1000;

#[derive(Deserialize)]
pub struct Create {
    #[serde(default)]
    comment: String,
}

/// Begins at once and goes on when the client leaves. The clients find the id in the wording of the last lines.
pub async fn create(State(api): Shared, Path(name): Path<String>, body: Body) -> Result<Response, ApiError> {
    let sprite = api.store.get(&name)?;
    let Create { comment } = params::json(body).await?;
    if comment.chars().count() > MAX_COMMENT {
        return Err(ApiError::bad_request(format!("the comment is longer than {MAX_COMMENT} characters")));
    }
    let freezing = sprite.checkpoint(comment)?;
    let begun = event(&api, "info", "Creating checkpoint...");
    let ended = stream::once(async move {
        stream::iter(match flat(freezing.await, "a checkpoint") {
            Ok(id) => vec![
                event(&api, "info", &format!("  ID: {id}")),
                event(&api, "complete", &format!("Checkpoint {id} created successfully")),
            ],
            Err(error) => vec![failure(&api, &error)],
        })
    });
    Ok(ndjson(stream::iter([begun]).chain(ended.flatten())))
}

pub async fn restore(State(api): Shared, Path((name, id)): Path<(String, String)>) -> Result<Response, ApiError> {
    let restoring = api.store.get(&name)?.restore(&id)?;
    let begun = event(&api, "info", &format!("Restoring checkpoint {id}..."));
    let ended = stream::once(async move {
        match flat(restoring.await, "a restore") {
            Ok(()) => event(&api, "complete", &format!("Checkpoint {id} restored successfully")),
            Err(error) => failure(&api, &error),
        }
    });
    Ok(ndjson(stream::iter([begun]).chain(ended)))
}

/// Newest first, below the present files. By their order of creation, not by time: a clock may be set back. The
/// query's `history` and `includeAuto` change nothing: every entry tells its ancestors, and none is made by itself.
pub async fn list(State(api): Shared, Path(name): Path<String>) -> Result<Json<Vec<Value>>, ApiError> {
    let meta = api.store.get(&name)?.meta();
    let current = json!({
        "id": CURRENT,
        "create_time": micros(api.store.setup().world.now()),
        "comment": "",
        "source_id": meta.head.as_deref().unwrap_or_default(),
        "history": history(&meta, meta.head.as_deref()),
        "health": "",
        "is_auto": false,
    });
    Ok(Json([current].into_iter().chain(meta.checkpoints.iter().rev().map(|c| object(&meta, c))).collect()))
}

pub async fn get(State(api): Shared, Path((name, id)): Path<(String, String)>) -> Result<Json<Value>, ApiError> {
    let meta = api.store.get(&name)?.meta();
    let Some(checkpoint) = meta.checkpoint(&id) else { return Err(StoreError::NoCheckpoint { id }.into()) };
    Ok(Json(object(&meta, checkpoint)))
}

pub async fn delete(State(api): Shared, Path((name, id)): Path<(String, String)>) -> Result<StatusCode, ApiError> {
    api.store.get(&name)?.delete_checkpoint(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn object(meta: &Meta, checkpoint: &Checkpoint) -> Value {
    json!({
        "id": checkpoint.id,
        "create_time": checkpoint.create_time,
        "comment": checkpoint.comment,
        "source_id": checkpoint.source_id.as_deref().unwrap_or_default(),
        "history": history(meta, checkpoint.source_id.as_deref()),
        "health": "",
        "is_auto": false,
    })
}

/// The ancestors, oldest first.
fn history(meta: &Meta, source: Option<&str>) -> Vec<String> {
    let mut chain = meta.chain(source);
    chain.reverse();
    chain
}

fn event(api: &Api, kind: &str, data: &str) -> Value {
    json!({"type": kind, "data": data, "time": micros(api.store.setup().world.now())})
}

/// With the text in `error`, where the SDKs look, and in `data`, which some print.
fn failure(api: &Api, error: &StoreError) -> Value {
    let mut event = event(api, "error", &error.to_string());
    event["error"] = error.to_string().into();
    event
}

fn flat<T>(ended: Result<Result<T, StoreError>, JoinError>, doing: &'static str) -> Result<T, StoreError> {
    ended.unwrap_or(Err(StoreError::Internal(doing)))
}
