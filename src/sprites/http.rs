//! The wire client: [`Sprites`] over HTTP and WebSocket, for the Sprites cloud and the embedded host alike.
//!
//! Each call is bounded by one of the [`Deadlines`], bodies and streams included. Passing faults (401, 429, 5xx, lost
//! connections) are met here by a few repeats where a repeat is safe (`answer::Nature`); everything that lasts is the
//! caller's to handle. Programs are the matter of [`super::exec`], NDJSON streams of [`super::stream`].

pub(in crate::sprites) mod answer;
pub(in crate::sprites) mod call;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use self::answer::{Nature, Quirk};
use self::call::{Api, Call, from_now};
use super::{
    Checkpoint, CheckpointId, Exec, ExecRequest, FileInfo, FileKind, NetworkPolicy, PolicyRule, Result, SessionInfo,
    Signal, SpriteInfo, Sprites, SpritesError, exec, stream,
};

/// The home of a sprite's user. Relative paths start here.
pub(in crate::sprites) const HOME: &str = "/home/sprite";

/// The API gives at most this many sprites per page.
const PAGE: &str = "50";

/// Pages of a listing; 50,000 sprites are more than any organization has.
const PAGES_MAX: usize = 1000;

/// The checkpoint list also shows the running state, under one of these names. It can't be restored.
const LIVE_HEADS: [&str; 2] = ["Current", "active"];

/// How long each kind of call may take, from its start to the last byte of its answer, repeats included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Everything that has no deadline of its own below.
    pub rest: Duration,
    /// Making a sprite: the cloud may have to find a machine.
    pub create: Duration,
    /// A checkpoint or a restore, to the end of its stream.
    pub checkpoint: Duration,
    /// From an exec's request to the announcement of its session; then [`ExecRequest::timeout`] runs.
    pub exec_open: Duration,
    /// Reading or writing one file.
    pub transfer: Duration,
    /// Pause before a call is repeated, the second time twice as long; spread by ±25 %.
    pub retry_pause: Duration,
    /// How often a running exec's connection is pinged.
    pub ping_every: Duration,
    /// A running exec's connection that brings nothing, not even a pong, for so long is dead.
    pub dead_after: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            rest: Duration::from_secs(30),
            create: Duration::from_secs(120),
            checkpoint: Duration::from_secs(300),
            exec_open: Duration::from_secs(30),
            transfer: Duration::from_secs(300),
            retry_pause: Duration::from_secs(1),
            ping_every: Duration::from_secs(15),
            dead_after: Duration::from_secs(45),
        }
    }
}

/// Why no client could be made. Both address and token come from the operator's settings.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the address of the Sprites API can't be used: {why}")]
    Url { why: String },
    #[error("the Sprites token is empty or holds characters that no token has: check SPRITES_TOKEN")]
    Token,
    #[error("TLS can't be set up: {0}")]
    Tls(String),
}

/// The client. Clones share its connections.
#[derive(Clone)]
pub struct HttpSprites {
    api: Arc<Api>,
}

impl fmt::Debug for HttpSprites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSprites").field("url", &self.api.address()).finish_non_exhaustive()
    }
}

impl HttpSprites {
    /// A client for the API at `url`, which ends before `/v1`. Nothing is sent yet.
    ///
    /// # Errors
    /// Address or token can't be used, or there are no root certificates to check `https` with.
    pub fn new(url: &str, token: SecretString, deadlines: Deadlines) -> Result<Self, BuildError> {
        Ok(Self { api: Arc::new(Api::new(url, token, deadlines)?) })
    }

    fn limits(&self) -> &Deadlines {
        &self.api.deadlines
    }

    /// A call about a sprite as such; `rest` are the path segments after its name.
    fn call(&self, nature: Nature, method: Method, name: &str, rest: &[&str], within: Duration) -> Result<Call> {
        let url = self.api.url(&[&[name], rest].concat())?;
        Ok(Call::new(format!("sprite {name}"), nature, method, url, within))
    }

    /// A call about a file of a sprite.
    fn file_call(&self, nature: Nature, method: Method, name: &str, verb: &str, path: &str) -> Result<Call> {
        let mut call = self.call(nature, method, name, &["fs", verb], self.limits().transfer)?;
        call.what = format!("file {path} of sprite {name}");
        call.url.query_pairs_mut().append_pair("path", path).append_pair("workingDir", HOME);
        Ok(call)
    }
}

impl Sprites for HttpSprites {
    async fn create(&self, name: &str, labels: &[String]) -> Result<SpriteInfo> {
        // The name goes into later paths: one that can't be a segment must not be made.
        self.api.url(&[name])?;
        let call =
            Call::new(format!("sprite {name}"), Nature::Once, Method::POST, self.api.url(&[])?, self.limits().create);
        let call = call.quirk(Quirk::ConflictIsExists).json(&json!({"name": name, "labels": labels}));
        let made: SpriteInfo = self.api.json::<SpriteWire>(&call).await?.into();
        if made.name == name {
            return Ok(made);
        }
        Err(SpritesError::Protocol { message: format!("asked for sprite {name}, got {}", answer::quote(&made.name)) })
    }

    async fn get(&self, name: &str) -> Result<SpriteInfo> {
        let call = self.call(Nature::Read, Method::GET, name, &[], self.limits().rest)?;
        Ok(self.api.json::<SpriteWire>(&call.quirk(Quirk::FailedToRetrieveIsNotFound)).await?.into())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<SpriteInfo>> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut token = String::new();
        let deadline = from_now(self.limits().rest);
        for _ in 0..PAGES_MAX {
            let mut url = self.api.url(&[])?;
            url.query_pairs_mut().append_pair("prefix", prefix).append_pair("max_results", PAGE);
            if !token.is_empty() {
                url.query_pairs_mut().append_pair("continuation_token", &token);
            }
            let what = "the list of sprites".to_owned();
            let call = Call { deadline, ..Call::new(what, Nature::Read, Method::GET, url, self.limits().rest) };
            let page: Page = self.api.json(&call).await?;
            // Whoever asked may delete what is listed: a server that overlooks the prefix must not lead to that.
            found.extend(page.sprites.into_iter().filter(|s| s.name.starts_with(prefix)).map(SpriteInfo::from));
            token = page.next_continuation_token.unwrap_or_default();
            if !page.has_more || token.is_empty() {
                return Ok(found);
            }
            if !seen.insert(token.clone()) {
                return Err(SpritesError::Protocol { message: "the list of sprites repeats a page".into() });
            }
        }
        Err(SpritesError::Protocol { message: format!("the list of sprites has more than {PAGES_MAX} pages") })
    }

    async fn set_labels(&self, name: &str, labels: &[String]) -> Result<()> {
        let call = self.call(Nature::Idempotent, Method::PUT, name, &[], self.limits().rest)?;
        self.api.done(&call.json(&json!({"labels": labels}))).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.api.done(&self.call(Nature::Idempotent, Method::DELETE, name, &[], self.limits().rest)?).await
    }

    async fn exec(&self, name: &str, request: ExecRequest) -> Result<Exec> {
        exec::open(&self.api, name, request).await
    }

    async fn sessions(&self, name: &str) -> Result<Vec<SessionInfo>> {
        let call = self.call(Nature::Read, Method::GET, name, &["exec"], self.limits().rest)?;
        let list: SessionsWire = self.api.json(&call).await?;
        Ok(list.sessions.into_iter().map(|s| SessionInfo { id: s.id, command: s.command }).collect())
    }

    async fn kill(&self, name: &str, session: &str, signal: Signal, grace: Duration) -> Result<()> {
        // The id of a program that ended before it was announced: nothing is left to kill.
        if session.is_empty() {
            return Ok(());
        }
        let within = self.limits().rest.saturating_add(grace);
        let mut call = self.call(Nature::Once, Method::POST, name, &["exec", session, "kill"], within)?;
        call.what = format!("session {session} of sprite {name}");
        call.url
            .query_pairs_mut()
            .append_pair("signal", signal.name())
            .append_pair("timeout", &exec::go_duration(grace));
        let response = match self.api.send(&call).await {
            Err(SpritesError::NotFound { .. } | SpritesError::Refused { status: 410, .. }) => return Ok(()),
            other => other?,
        };
        let refused = |message| SpritesError::Refused { status: 200, message };
        stream::follow(&call, response, refused).await.map(drop)
    }

    async fn create_checkpoint(&self, name: &str, comment: &str) -> Result<CheckpointId> {
        let call = self.call(Nature::Once, Method::POST, name, &["checkpoint"], self.limits().checkpoint)?;
        let call = call.json(&json!({"comment": comment}));
        let response = self.api.send(&call).await?;
        let broken = |message| SpritesError::Broken { status: 200, message };
        let id = stream::follow(&call, response, broken).await?.checkpoint()?;
        let listed = self.checkpoints(name).await.map_err(|error| {
            // Whatever kept the list from us, the checkpoint may exist: the error must not say "nothing happened".
            call.lost(format!("checkpoint {id} is said to be made, but the list does not come: {error}"))
        })?;
        if listed.iter().any(|checkpoint| checkpoint.id == id) {
            return Ok(id);
        }
        Err(SpritesError::Protocol { message: format!("checkpoint {id} of sprite {name} is made but not listed") })
    }

    async fn checkpoints(&self, name: &str) -> Result<Vec<Checkpoint>> {
        let call = self.call(Nature::Read, Method::GET, name, &["checkpoints"], self.limits().rest)?;
        let list: Vec<CheckpointWire> = self.api.json(&call).await?;
        let restorable = list.into_iter().filter(|checkpoint| !LIVE_HEADS.contains(&checkpoint.id.as_str()));
        Ok(restorable
            .filter_map(|wire| Some(Checkpoint { id: CheckpointId::new(&wire.id)?, comment: wire.comment }))
            .collect())
    }

    async fn restore(&self, name: &str, checkpoint: &CheckpointId) -> Result<()> {
        let path = ["checkpoints", checkpoint.as_str(), "restore"];
        let mut call = self.call(Nature::Once, Method::POST, name, &path, self.limits().checkpoint)?;
        call.what = format!("checkpoint {checkpoint} of sprite {name}");
        let response = self.api.send(&call).await?;
        let broken = |message| SpritesError::Broken { status: 200, message };
        stream::follow(&call, response, broken).await.map(drop)
    }

    async fn set_policy(&self, name: &str, policy: &NetworkPolicy) -> Result<()> {
        if policy.rules.is_empty() {
            let message = "a policy without rules would lift all limits; to forbid everything, deny *".to_owned();
            return Err(SpritesError::Refused { status: 400, message });
        }
        let call = self.call(Nature::Idempotent, Method::POST, name, &["policy", "network"], self.limits().rest)?;
        self.api.done(&call.json(&json!({"rules": policy.rules}))).await
    }

    async fn policy(&self, name: &str) -> Result<NetworkPolicy> {
        let call = self.call(Nature::Read, Method::GET, name, &["policy", "network"], self.limits().rest)?;
        Ok(NetworkPolicy { rules: self.api.json::<PolicyWire>(&call).await?.rules })
    }

    async fn write_file(&self, name: &str, path: &str, mode: u32, content: Bytes) -> Result<()> {
        let mut call = self.file_call(Nature::Idempotent, Method::PUT, name, "write", path)?;
        call.url.query_pairs_mut().append_pair("mode", &format!("{mode:04o}")).append_pair("mkdirParents", "true");
        self.api.done(&call.bytes(content)).await
    }

    async fn read_file(&self, name: &str, path: &str, limit: u64) -> Result<Bytes> {
        let call = self.file_call(Nature::Read, Method::GET, name, "read", path)?;
        let response = self.api.send(&call).await?;
        self.api.body(&call, response, limit).await
    }

    async fn list_files(&self, name: &str, path: &str, recursive: bool) -> Result<Vec<FileInfo>> {
        let mut call = self.file_call(Nature::Read, Method::GET, name, "list", path)?;
        if recursive {
            call.url.query_pairs_mut().append_pair("recursive", "true");
        }
        let list: FilesWire = self.api.json(&call).await?;
        let dir = absolute(list.path.as_deref().unwrap_or(path));
        Ok(list.entries.into_iter().map(|entry| entry.into_info(&dir)).collect())
    }
}

/// A path in the sprite, from its root.
pub(in crate::sprites) fn absolute(path: &str) -> String {
    match path {
        "" | "." => HOME.to_owned(),
        rooted if rooted.starts_with('/') => rooted.to_owned(),
        relative => format!("{HOME}/{relative}"),
    }
}

#[derive(Deserialize)]
struct SpriteWire {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    status: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: Vec<String>,
}

impl From<SpriteWire> for SpriteInfo {
    fn from(wire: SpriteWire) -> Self {
        Self { id: wire.id, name: wire.name, status: wire.status, labels: wire.labels }
    }
}

#[derive(Deserialize)]
struct Page {
    #[serde(default, deserialize_with = "or_default")]
    sprites: Vec<SpriteWire>,
    #[serde(default)]
    has_more: bool,
    next_continuation_token: Option<String>,
}

#[derive(Deserialize)]
struct SessionsWire {
    #[serde(default, deserialize_with = "or_default")]
    sessions: Vec<SessionWire>,
}

#[derive(Deserialize)]
struct SessionWire {
    /// A string, but older servers sent a number.
    #[serde(deserialize_with = "exec::text_or_number")]
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    command: String,
}

#[derive(Deserialize)]
struct CheckpointWire {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    comment: String,
}

#[derive(Deserialize)]
struct PolicyWire {
    #[serde(default, deserialize_with = "or_default")]
    rules: Vec<PolicyRule>,
}

#[derive(Deserialize)]
struct FilesWire {
    path: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    entries: Vec<FileWire>,
}

#[derive(Deserialize)]
struct FileWire {
    name: String,
    path: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    size: u64,
}

impl FileWire {
    fn into_info(self, dir: &str) -> FileInfo {
        let kind = match self.kind.as_str() {
            "file" => FileKind::File,
            "directory" => FileKind::Directory,
            _ => FileKind::Other,
        };
        let path = match self.path {
            Some(path) if path.starts_with('/') => path,
            Some(_) | None => format!("{}/{}", dir.trim_end_matches('/'), self.name),
        };
        FileInfo { path, kind, size: self.size }
    }
}

/// Servers in Go write `null` for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}
