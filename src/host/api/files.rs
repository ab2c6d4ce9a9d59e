//! `/fs`: file operations, each done inside the sandbox with its own rights and view, so no path can lead out of it.
//!
//! Paths are absolute, or relative to `workingDir`, or to the sprite user's home when there is none.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::error::ApiError;
use super::params::{self, Pairs, Params};
use super::{NOT_OFFERED, Shared};
use crate::host::STALLED;
use crate::host::sandbox::{Command, FsOp, Process, Stdio};
use crate::host::session::CHUNK;
use crate::host::store::{Machine, Sprite};

/// Bytes of a file that can be written.
const MAX_WRITE: u64 = 512 * 1024 * 1024;

/// Bytes of a list. A longer one is refused, since half a list would be a lie.
const MAX_REPLY: u64 = 64 * 1024 * 1024;

/// Permissions of a file and of a copy unless asked for otherwise.
const MODE: u32 = 0o644;

/// A zero-byte file of this name is how the SDKs make a directory.
const KEEP: &str = ".keep";

/// A file operation that runs inside.
struct Operation {
    path: String,
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    exit: oneshot::Receiver<u8>,
    pid: u32,
    machine: Arc<Machine>,
}

/// What a failed operation says.
#[derive(Deserialize)]
struct Failure {
    error: String,
    code: String,
}

impl Operation {
    async fn start(sprite: &Arc<Sprite>, path: &str, op: FsOp) -> Result<Self, ApiError> {
        let (Process { pid, stdio, exit }, machine) = sprite.spawn(Command::Fs(op)).await?;
        let Stdio::Pipes { stdin, stdout, stderr } = stdio else {
            return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a file operation has no pipes"));
        };
        Ok(Self { path: path.to_owned(), stdin: Some(stdin), stdout, stderr, exit, pid, machine })
    }

    /// Waits for the end; an error unless it succeeded.
    async fn end(mut self) -> Result<(), ApiError> {
        let mut text = Vec::new();
        // What can't be read is not an explanation; the exit status decides.
        let _ = (&mut self.stderr).take(MAX_REPLY).read_to_end(&mut text).await;
        match self.exit.await {
            Ok(0) => Ok(()),
            Ok(status) => Err(match serde_json::from_slice::<Failure>(&text) {
                Ok(failure) => ApiError::file(&failure.error, &failure.code, &self.path),
                Err(_) => ApiError::file(&format!("the file operation ended with status {status}"), "EIO", &self.path),
            }),
            Err(_) => {
                let message = format!("the file operation was cut: {}", self.machine.why_gone().await);
                Err(if self.machine.was_stopped() {
                    ApiError::new(StatusCode::CONFLICT, "sprite_busy", message)
                } else {
                    ApiError::new(StatusCode::BAD_GATEWAY, "sprite_not_routable", message)
                })
            }
        }
    }

    /// Waits for the end and reads what it says.
    async fn reply(mut self) -> Result<Value, ApiError> {
        drop(self.stdin.take());
        let mut bytes = Vec::new();
        let read = (&mut self.stdout).take(MAX_REPLY + 1).read_to_end(&mut bytes).await;
        if bytes.len() as u64 > MAX_REPLY {
            return Err(ApiError::file("the list is too long", "EFBIG", &self.path));
        }
        self.end().await?;
        let broken = |error: String| ApiError::new(StatusCode::BAD_GATEWAY, "bad_reply", error);
        read.map_err(|error| broken(error.to_string()))?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))
    }

    /// Feeds the body to it; the number of bytes. When the body breaks off or stalls, the operation is killed: an end
    /// of input would tell it that the file is whole.
    async fn feed(&mut self, mut body: BodyDataStream) -> Result<u64, ApiError> {
        let Some(mut stdin) = self.stdin.take() else { return Ok(0) };
        let mut written = 0;
        loop {
            let fault = match more(&mut body).await {
                Ok(None) => return Ok(written),
                Ok(Some(bytes)) => {
                    written += bytes.len() as u64;
                    if written <= MAX_WRITE {
                        if stdin.write_all(&bytes).await.is_err() {
                            // It has ended early, and says why.
                            return Ok(written);
                        }
                        continue;
                    }
                    too_large(&self.path)
                }
                Err(fault) => fault,
            };
            if let Err(error) = self.machine.kill_tree(self.pid).await {
                tracing::warn!(%error, "a file operation whose input broke off could not be killed");
            }
            return Err(fault);
        }
    }
}

/// The next piece of a body, which may not let itself be waited for.
async fn more(body: &mut BodyDataStream) -> Result<Option<Bytes>, ApiError> {
    match timeout(STALLED, body.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
        Ok(Some(Err(error))) => Err(ApiError::bad_request(format!("the body broke off: {error}"))),
        Err(_) => {
            let message = format!("the body brought nothing for {} seconds", STALLED.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
        }
    }
}

fn too_large(path: &str) -> ApiError {
    ApiError::file(&format!("a file of more than {MAX_WRITE} bytes can't be written"), "EFBIG", path)
}

/// `path` below `dir`, unless it is absolute.
fn join(dir: Option<&str>, path: &str) -> String {
    match dir {
        Some(dir) if !dir.is_empty() && !path.starts_with('/') => format!("{}/{path}", dir.trim_end_matches('/')),
        _ => path.to_owned(),
    }
}

/// The query's path, joined with its working directory.
fn path_of(query: &Params) -> Result<String, ApiError> {
    let path = query.get("path").unwrap_or_default();
    check(path)?;
    Ok(join(query.get("workingDir"), path))
}

fn check(path: &str) -> Result<(), ApiError> {
    if path.is_empty() || path.contains('\0') {
        return Err(ApiError::file("a path is missing or holds a NUL", "EINVAL", path));
    }
    Ok(())
}

fn mode(text: &str) -> Result<u32, ApiError> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| ApiError::file(&format!("{text:?} is not a mode; write it as in 0644"), "EINVAL", ""))
}

pub async fn read(State(api): Shared, Path(name): Path<String>, Query(query): Pairs) -> Result<Response, ApiError> {
    let sprite = api.store.get(&name)?;
    let path = path_of(&Params(query))?;
    let slot = sprite.file_slot().await?;
    let mut operation = Operation::start(&sprite, &path, FsOp::Read { path: path.clone() }).await?;
    // The status is told with the first bytes, so a failure must be known before.
    let first = chunk(&mut operation.stdout).await;
    let Some(first) = first else {
        operation.end().await?;
        return Ok(octets(Body::empty()));
    };
    let rest = stream::unfold(Some((operation, slot)), async |reading| {
        let (mut operation, slot) = reading?;
        match chunk(&mut operation.stdout).await {
            Some(bytes) => Some((Ok(bytes), Some((operation, slot)))),
            // A failure in the middle can only be told by breaking off.
            None => match operation.end().await {
                Ok(()) => None,
                Err(error) => Some((Err(std::io::Error::other(error.body().to_string())), None)),
            },
        }
    });
    Ok(octets(Body::from_stream(stream::iter([Ok(first)]).chain(rest))))
}

fn octets(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

/// The next bytes; `None` at the end.
async fn chunk(from: &mut pipe::Receiver) -> Option<Bytes> {
    let mut bytes = BytesMut::with_capacity(CHUNK);
    match from.read_buf(&mut bytes).await {
        Ok(n) if n > 0 => Some(bytes.freeze()),
        Ok(_) | Err(_) => None,
    }
}

pub async fn write(
    State(api): Shared,
    Path(name): Path<String>,
    Query(query): Pairs,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let sprite = api.store.get(&name)?;
    let query = Params(query);
    let path = path_of(&query)?;
    let mode = query.get("mode").map(mode).transpose()?.unwrap_or(MODE);
    let make_parents = query.flag("mkdirParents")?.or(query.flag("mkdir")?).unwrap_or(true);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_WRITE) {
        return Err(too_large(&path));
    }
    let _slot = sprite.file_slot().await?;
    if !make_parents
        && let Some(parent) = path.strip_suffix(KEEP).and_then(|p| p.strip_suffix('/'))
        && !parent.is_empty()
    {
        let made = Operation::start(&sprite, parent, FsOp::Mkdir { path: parent.to_owned(), parents: false }).await?;
        match made.reply().await {
            Err(error) if error.body()["code"] != "EEXIST" => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    let mut operation =
        Operation::start(&sprite, &path, FsOp::Write { path: path.clone(), mode, make_parents }).await?;
    let size = operation.feed(body.into_data_stream()).await?;
    operation.reply().await?;
    Ok(Json(json!({"path": path, "size": size, "mode": format!("{mode:04o}")})))
}

pub async fn list(State(api): Shared, Path(name): Path<String>, Query(query): Pairs) -> Result<Json<Value>, ApiError> {
    let sprite = api.store.get(&name)?;
    let query = Params(query);
    let path = path_of(&query)?;
    let recursive = query.flag("recursive")?.unwrap_or(false);
    let mut reply = run(&sprite, &path, FsOp::List { path: path.clone(), recursive }).await?;
    let count = reply["entries"].as_array().map_or(0, Vec::len);
    Ok(Json(json!({"path": path, "entries": reply["entries"].take(), "count": count})))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Paths {
    path: Option<String>,
    source: String,
    dest: String,
    working_dir: Option<String>,
    mode: Option<String>,
    recursive: Option<bool>,
}

/// Takes the query, as the SDKs send it, or a JSON body, as the documentation has it.
pub async fn delete(
    State(api): Shared,
    Path(name): Path<String>,
    Query(query): Pairs,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let sprite = api.store.get(&name)?;
    let query = Params(query);
    let body: Paths = params::json(body).await?;
    let path = match (query.get("path"), &body.path) {
        (None, Some(path)) => {
            check(path)?;
            join(body.working_dir.as_deref(), path)
        }
        _ => path_of(&query)?,
    };
    let recursive = query.flag("recursive")?.or(body.recursive).unwrap_or(false);
    Ok(Json(run(&sprite, &path, FsOp::Delete { path: path.clone(), recursive }).await?))
}

pub async fn rename(State(api): Shared, Path(name): Path<String>, body: Body) -> Result<Json<Value>, ApiError> {
    let (sprite, paths) = (api.store.get(&name)?, params::json::<Paths>(body).await?);
    let (source, dest) = two(&paths)?;
    run(&sprite, &source, FsOp::Rename { source: source.clone(), dest: dest.clone() }).await?;
    Ok(Json(json!({"source": source, "dest": dest})))
}

pub async fn copy(State(api): Shared, Path(name): Path<String>, body: Body) -> Result<Json<Value>, ApiError> {
    let (sprite, paths) = (api.store.get(&name)?, params::json::<Paths>(body).await?);
    let (source, dest) = two(&paths)?;
    let recursive = paths.recursive.unwrap_or(false);
    let op = FsOp::Copy { source: source.clone(), dest: dest.clone(), recursive };
    let mut reply = run(&sprite, &source, op).await?;
    // Beside what was copied, as documented, what was asked for, which is what the SDKs' types have.
    reply["source"] = source.into();
    reply["dest"] = dest.into();
    Ok(Json(reply))
}

pub async fn chmod(State(api): Shared, Path(name): Path<String>, body: Body) -> Result<Json<Value>, ApiError> {
    let (sprite, paths) = (api.store.get(&name)?, params::json::<Paths>(body).await?);
    let path = paths.path.as_deref().unwrap_or_default();
    check(path)?;
    let path = join(paths.working_dir.as_deref(), path);
    let mode = mode(paths.mode.as_deref().unwrap_or_default())?;
    let op = FsOp::Chmod { path: path.clone(), mode, recursive: paths.recursive.unwrap_or(false) };
    Ok(Json(run(&sprite, &path, op).await?))
}

/// What would need root inside, or never ends.
pub async fn not_implemented() -> ApiError {
    ApiError::file(NOT_OFFERED, "ENOSYS", "")
}

fn two(paths: &Paths) -> Result<(String, String), ApiError> {
    check(&paths.source)?;
    check(&paths.dest)?;
    let dir = paths.working_dir.as_deref();
    Ok((join(dir, &paths.source), join(dir, &paths.dest)))
}

/// Does an operation that takes no input.
async fn run(sprite: &Arc<Sprite>, path: &str, op: FsOp) -> Result<Value, ApiError> {
    let _slot = sprite.file_slot().await?;
    Operation::start(sprite, path, op).await?.reply().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use tokio::time::Instant;

    use super::*;

    proptest! {
        #[test]
        fn a_joined_path_ends_as_it_was_given_and_starts_at_the_directory(dir in "[/a.]{0,6}", path in "[/a.]{1,8}") {
            let joined = join(Some(&dir), &path);
            prop_assert!(joined.ends_with(&path));
            if path.starts_with('/') || dir.is_empty() {
                prop_assert_eq!(&joined, &path);
            } else {
                prop_assert!(joined.starts_with(dir.trim_end_matches('/')) && joined.contains('/'));
            }
        }

        #[test]
        fn any_path_and_mode_is_taken_or_refused(path: String, text in ".{0,8}") {
            prop_assert_eq!(check(&path).is_ok(), !path.is_empty() && !path.contains('\0'));
            prop_assert!(mode(&text).map_or(true, |mode| mode <= 0o7777));
        }
    }

    #[test]
    fn relative_paths_begin_at_the_working_directory_and_absolute_ones_do_not() {
        assert_eq!(join(Some("/d/"), "x"), "/d/x");
        assert_eq!(join(Some("/"), "x"), "/x");
        assert_eq!(join(Some("/d"), "/x"), "/x");
        assert_eq!(join(None, "x"), "x");
        assert_eq!(join(Some(""), "x"), "x");
    }

    #[test]
    fn modes_are_octal_and_bounded() {
        assert_eq!(mode("0644").unwrap(), 0o644);
        assert_eq!(mode("755").unwrap(), 0o755);
        for bad in ["", "8", "-1", "10000", "rw"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up_and_a_slow_one_is_not() {
        let slow = stream::unfold(0, |n| async move {
            tokio::time::sleep(STALLED - std::time::Duration::from_secs(1)).await;
            (n < 2).then(|| (Ok::<_, std::io::Error>(Bytes::from_static(b"x")), n + 1))
        });
        let mut body = Body::from_stream(slow.chain(stream::pending())).into_data_stream();
        assert_eq!(more(&mut body).await.unwrap().unwrap(), "x");
        assert_eq!(more(&mut body).await.unwrap().unwrap(), "x");
        let began = Instant::now();
        let answer = more(&mut body).await.unwrap_err().into_response();
        assert_eq!((answer.status(), began.elapsed()), (StatusCode::REQUEST_TIMEOUT, STALLED));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_end() {
        let broken = stream::iter([Ok(Bytes::from_static(b"x")), Err(std::io::Error::other("reset"))]);
        let mut body = Body::from_stream(broken).into_data_stream();
        assert_eq!(more(&mut body).await.unwrap().unwrap(), "x");
        assert_eq!(more(&mut body).await.unwrap_err().into_response().status(), StatusCode::BAD_REQUEST);
    }
}
