//! `/policy/network`: which names the sprite may reach.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::error::ApiError;
use super::{Shared, params};
use crate::sprites::NetworkPolicy;

pub async fn get(State(api): Shared, Path(name): Path<String>) -> Result<Json<NetworkPolicy>, ApiError> {
    Ok(Json(api.store.get(&name)?.meta().policy))
}

/// Replaces the policy. It is in force when the reply is sent.
pub async fn set(State(api): Shared, Path(name): Path<String>, body: Body) -> Result<StatusCode, ApiError> {
    let sprite = api.store.get(&name)?;
    sprite.set_policy(params::json(body).await?).await?;
    Ok(StatusCode::NO_CONTENT)
}
