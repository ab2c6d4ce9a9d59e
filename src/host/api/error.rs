//! Failures as the API words them: `{"error": code, "message": sentence}`, with the status the SDKs look at.

use std::io;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::host::sandbox::SandboxError;
use crate::host::store::{StoreError, Undeletable};

/// Seconds after which a busy sprite is likely to be free.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: Map<String, Value>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let mut body = Map::new();
        body.insert("error".into(), code.into());
        body.insert("message".into(), message.into().into());
        Self { status, body }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The shape of the file system calls, where `error` is the text and `code` is as in `ENOENT`.
    pub fn file(error: &str, code: &str, path: &str) -> Self {
        let status = match code {
            "ENOENT" => StatusCode::NOT_FOUND,
            "EISDIR" | "ENOTDIR" | "EINVAL" | "ELOOP" | "ENAMETOOLONG" => StatusCode::BAD_REQUEST,
            "EEXIST" | "ENOTEMPTY" | "EBUSY" | "ETXTBSY" => StatusCode::CONFLICT,
            "EACCES" | "EPERM" | "EROFS" => StatusCode::FORBIDDEN,
            "EFBIG" => StatusCode::PAYLOAD_TOO_LARGE,
            "ENOSPC" | "EDQUOT" => StatusCode::INSUFFICIENT_STORAGE,
            "ENOSYS" => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut failure = Self::new(status, error, error);
        failure.body.insert("code".into(), code.into());
        failure.body.insert("path".into(), path.into());
        failure
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.body.insert(key.to_owned(), value.into());
        self
    }

    pub fn body(&self) -> Value {
        Value::Object(self.body.clone())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        let new = |status, code: &str| Self::new(status, code, message.clone());
        match error {
            StoreError::NoSprite { .. } => new(StatusCode::NOT_FOUND, "sprite not found"),
            StoreError::NoCheckpoint { .. } | StoreError::Undeletable(Undeletable::Unknown { .. }) => {
                new(StatusCode::NOT_FOUND, "checkpoint not found")
            }
            StoreError::Exists { .. } => new(StatusCode::CONFLICT, "sprite already exists"),
            StoreError::BadName { .. } => new(StatusCode::BAD_REQUEST, "invalid_name"),
            StoreError::BadPolicy(_) => new(StatusCode::BAD_REQUEST, "invalid_policy"),
            StoreError::Busy { .. } => new(StatusCode::CONFLICT, "sprite_busy"),
            StoreError::TooManySprites { limit } => {
                new(StatusCode::TOO_MANY_REQUESTS, "concurrent_sprite_limit_exceeded").with("limit", limit)
            }
            StoreError::TooManyExecs { limit, .. } | StoreError::Sandbox(SandboxError::TooMany { limit }) => {
                new(StatusCode::TOO_MANY_REQUESTS, "concurrent_exec_limit_exceeded").with("limit", limit)
            }
            StoreError::TooManyFiles { limit, .. } => {
                new(StatusCode::TOO_MANY_REQUESTS, "concurrent_file_operation_limit_exceeded").with("limit", limit)
            }
            StoreError::TooManyCheckpoints { limit, .. } => {
                new(StatusCode::CONFLICT, "checkpoint_limit_exceeded").with("limit", limit)
            }
            StoreError::TooDeep { limit } => {
                new(StatusCode::CONFLICT, "checkpoint_depth_exceeded").with("limit", limit)
            }
            StoreError::Undeletable(Undeletable::Active { .. } | Undeletable::Parent { .. }) => {
                new(StatusCode::CONFLICT, "checkpoint_in_use")
            }
            StoreError::Sandbox(_) => new(StatusCode::BAD_GATEWAY, "sprite_not_routable"),
            StoreError::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                new(StatusCode::INSUFFICIENT_STORAGE, "disk_full")
            }
            StoreError::DiskFull { .. } => new(StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            StoreError::StillDeleting { .. } => new(StatusCode::SERVICE_UNAVAILABLE, "disk_full"),
            StoreError::Disk { .. } | StoreError::Internal(_) => new(StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            StoreError::ShuttingDown => new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // What is not offered is no failure.
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED {
            tracing::warn!(status = self.status.as_u16(), error = %json!(self.body), "request failed");
        }
        let retry = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            || self.body["error"] == "sprite_busy";
        let mut response = (self.status, Json(Value::Object(self.body))).into_response();
        if retry {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}
