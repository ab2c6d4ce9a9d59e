//! One in-memory sprite: its files, processes, checkpoints and policy. No clock, no chance: plain state.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use janebot::sprites::{CheckpointId, FileInfo, FileKind, NetworkPolicy, Result, SpriteInfo, SpritesError};

use super::Client;

pub const HOME: &str = "/home/sprite";

/// Where the runner notes the agents that it installed: a line each of name, size and version.
const AGENTS: &str = "/home/sprite/.janebot/agents";

#[derive(Debug)]
pub struct Machine {
    pub id: String,
    pub name: String,
    pub labels: Vec<String>,
    pub files: Files,
    /// Programs that a client started and that still run, by session id.
    pub sessions: BTreeMap<String, Session>,
    /// What jobs left running, by the job's marker.
    pub daemons: Vec<String>,
    pub checkpoints: BTreeMap<CheckpointId, Frozen>,
    /// Ids given out so far: `v1` to `v<this>`.
    pub checkpoints_made: u64,
    pub policy: NetworkPolicy,
    /// What was last asked for, which a lie makes differ from `policy`.
    pub policy_asked: NetworkPolicy,
    boots: u64,
    /// How often a restore was asked for.
    pub restores: u64,
    pub broken: bool,
    pub disk_full: bool,
    /// The truth that a runner has to find out: whose job was here since the files and processes were last put back.
    pub unclean: Option<String>,
    /// The agents of the checkpoint that was made or restored last.
    pub agents_expected: Vec<(String, String)>,
    /// Calls that change the sprite are acted upon one at a time, in the order of arrival.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// A running program.
#[derive(Debug)]
pub struct Session {
    /// Short, for the log.
    pub program: String,
    pub command: String,
    pub client: Client,
    /// The job, when it is one.
    pub job: Option<String>,
    pub ignores_term: bool,
    /// Tells the program's task how it ended.
    pub end: mpsc::UnboundedSender<End>,
}

/// How a program ends when it does not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Signal(u8),
    /// The machine is gone from under it: no exit status comes.
    Cut,
}

/// A checkpoint.
#[derive(Clone, Debug)]
pub struct Frozen {
    pub comment: String,
    pub files: Files,
    pub unclean: Option<String>,
}

impl Machine {
    pub fn new(id: String, name: &str, labels: &[String]) -> Self {
        Self {
            id,
            name: name.to_owned(),
            labels: labels.to_vec(),
            files: Files::fresh(),
            sessions: BTreeMap::new(),
            daemons: Vec::new(),
            checkpoints: BTreeMap::new(),
            checkpoints_made: 0,
            policy: NetworkPolicy::default(),
            policy_asked: NetworkPolicy::default(),
            boots: 1,
            restores: 0,
            broken: false,
            disk_full: false,
            unclean: None,
            agents_expected: Vec::new(),
            turn: Arc::default(),
        }
    }

    pub fn info(&self) -> SpriteInfo {
        SpriteInfo {
            id: self.id.clone(),
            name: self.name.clone(),
            status: "running".into(),
            labels: self.labels.clone(),
        }
    }

    /// The boot identity: another text after each restore, and on each machine.
    pub fn boot(&self) -> String {
        format!("{}-boot-{}", self.id, self.boots)
    }

    /// Starts the machine anew: another boot identity, no processes of jobs.
    pub fn reboot(&mut self) {
        self.boots += 1;
        self.daemons.clear();
    }

    /// Ends a session and tells its program; whether there was one.
    pub fn end_session(&mut self, id: &str, end: End) -> bool {
        let Some(session) = self.sessions.remove(id) else { return false };
        // A program that has ended in the same moment does not listen any more.
        let _ = session.end.send(end);
        true
    }

    pub fn end_all_sessions(&mut self, end: End) {
        for session in std::mem::take(&mut self.sessions).into_values() {
            let _ = session.end.send(end);
        }
    }

    /// A session of a client other than `client` that is still alive.
    pub fn foreign_session(&self, client: &Client) -> Option<&Session> {
        self.sessions.values().find(|session| session.client.id != client.id && !session.client.crashed.is_cancelled())
    }

    pub fn freeze(&mut self, comment: &str) -> CheckpointId {
        self.checkpoints_made += 1;
        self.agents_expected = self.files.agents();
        let id = CheckpointId::new(&format!("v{}", self.checkpoints_made)).expect("letters and digits");
        let frozen = Frozen { comment: comment.to_owned(), files: self.files.clone(), unclean: self.unclean.clone() };
        self.checkpoints.insert(id.clone(), frozen);
        id
    }

    /// Whether `id` was given out for this machine, even if it is gone by now.
    pub fn gave_out(&self, id: &CheckpointId) -> bool {
        let number = id.as_str().strip_prefix('v').and_then(|n| n.parse::<u64>().ok());
        number.is_some_and(|n| (1..=self.checkpoints_made).contains(&n))
    }

    /// Takes away or replaces the first installed agent; whether there was one.
    pub fn damage_agent(&mut self, replacement: Option<&'static str>) -> bool {
        let Some((name, _)) = self.files.agents().into_iter().next() else { return false };
        let path = agent_path(&name);
        match replacement {
            Some(text) => self.files.put(&path, 0o755, Bytes::from_static(text.as_bytes())),
            None => self.files.remove(&path),
        }
        true
    }
}

fn agent_path(name: &str) -> String {
    format!("{HOME}/.local/bin/{name}")
}

/// A sprite's files and directories, by absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files(BTreeMap<String, Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    File { content: Bytes, mode: u32 },
}

impl Files {
    fn fresh() -> Self {
        let mut files = Self(BTreeMap::new());
        files.make_dir(HOME);
        files.make_dir("/tmp");
        files
    }

    /// Makes a directory with all above it; what is a file already stays one.
    pub fn make_dir(&mut self, path: &str) {
        for (end, _) in path.match_indices('/').skip(1) {
            self.0.entry(path[..end].to_owned()).or_insert(Entry::Directory);
        }
        self.0.entry(path.to_owned()).or_insert(Entry::Directory);
    }

    fn put(&mut self, path: &str, mode: u32, content: Bytes) {
        self.0.insert(path.to_owned(), Entry::File { content, mode });
    }

    pub fn remove(&mut self, path: &str) {
        self.0.remove(&absolute(path));
    }

    /// The agents by name, each with its noted version, or `changed` when its program is not the noted one.
    pub fn agents(&self) -> Vec<(String, String)> {
        let Ok(noted) = self.read(AGENTS, u64::MAX) else { return Vec::new() };
        let noted = String::from_utf8_lossy(&noted).into_owned();
        let agent = |line: &str| {
            let (name, rest) = line.split_once(' ')?;
            let (size, version) = rest.split_once(' ')?;
            let there = self.read(&agent_path(name), u64::MAX).is_ok_and(|program| program.len().to_string() == size);
            Some((name.to_owned(), if there { version.to_owned() } else { "changed".to_owned() }))
        };
        noted.lines().filter_map(agent).collect()
    }

    pub fn exists(&self, path: &str) -> bool {
        self.0.contains_key(&absolute(path))
    }

    /// The permission bits of a file.
    pub fn mode(&self, path: &str) -> Option<u32> {
        match self.0.get(&absolute(path)) {
            Some(Entry::File { mode, .. }) => Some(*mode),
            Some(Entry::Directory) | None => None,
        }
    }

    pub fn write(&mut self, path: &str, mode: u32, content: Bytes) -> Result<()> {
        let path = absolute(path);
        if let Some(Entry::Directory) = self.0.get(&path) {
            return Err(refused(&format!("EISDIR: {path} is a directory")));
        }
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let above = parent.match_indices('/').skip(1).map(|(end, _)| &parent[..end]).chain([parent]);
        for dir in above {
            if let Some(Entry::File { .. }) = self.0.get(dir) {
                return Err(refused(&format!("ENOTDIR: {dir} is not a directory")));
            }
        }
        if !parent.is_empty() {
            self.make_dir(parent);
        }
        self.put(&path, mode, content);
        Ok(())
    }

    pub fn read(&self, path: &str, limit: u64) -> Result<Bytes> {
        let path = absolute(path);
        match self.0.get(&path) {
            Some(Entry::File { content, .. }) if content.len() as u64 > limit => {
                Err(SpritesError::TooLarge { what: path, limit })
            }
            Some(Entry::File { content, .. }) => Ok(content.clone()),
            Some(Entry::Directory) => Err(refused(&format!("EISDIR: {path} is a directory"))),
            None => Err(SpritesError::NotFound { what: path }),
        }
    }

    pub fn list(&self, path: &str, recursive: bool) -> Result<Vec<FileInfo>> {
        let path = absolute(path);
        match self.0.get(&path) {
            None if path != "/" => return Err(SpritesError::NotFound { what: path }),
            Some(file @ Entry::File { .. }) => return Ok(vec![file.info(&path)]),
            Some(Entry::Directory) | None => {}
        }
        let prefix = if path == "/" { path } else { format!("{path}/") };
        let below = self.0.iter().filter_map(|(at, entry)| Some((at, at.strip_prefix(&prefix)?, entry)));
        Ok(below
            .filter(|(_, rest, _)| !rest.is_empty() && (recursive || !rest.contains('/')))
            .map(|(at, _, entry)| entry.info(at))
            .collect())
    }
}

impl Entry {
    fn info(&self, path: &str) -> FileInfo {
        match self {
            Self::Directory => FileInfo { path: path.to_owned(), kind: FileKind::Directory, size: 0 },
            Self::File { content, .. } => {
                FileInfo { path: path.to_owned(), kind: FileKind::File, size: content.len() as u64 }
            }
        }
    }
}

fn refused(message: &str) -> SpritesError {
    SpritesError::Refused { status: 400, message: message.to_owned() }
}

/// `path` from the root, without `.`, `..` and `~/`.
fn absolute(path: &str) -> String {
    let path = path.strip_prefix("~/").unwrap_or(path);
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{HOME}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}
