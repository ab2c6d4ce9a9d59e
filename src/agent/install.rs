//! Brings the pinned agent programs to this machine, so that they can be put into a sprite.
//!
//! From the operator's own file (`AMP_PATH`, `CLAUDE_PATH`) or by npm, whose integrity check covers the download. The
//! platform package is asked for directly and its install scripts never run: it holds one self-contained program, and
//! the usual package would need its script to put that in place. Nothing fetched is ever run on this machine; whether
//! it works and is the right version shows inside a sprite.
//!
//! Installed versions stay below the cache folder, `<agent>-<version>-<arch>/`. A folder of that name is complete: it
//! was filled under another name, checked, and renamed. A lock file makes a second process wait instead of fetching too.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout_at};

use super::text::{Tail, one_line};
use crate::config::{AgentKind, AgentsConfig};

/// Time for one agent, waiting for another process's download included. The largest is 250 MB.
const DEADLINE: Duration = Duration::from_secs(5 * 60);
/// How often a lock that another process holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// A program from npm is not smaller than this (amp 101 MB, claude 245 MB): what is, is a stub.
const MIN_PROGRAM_BYTES: u64 = 10 * 1024 * 1024;
/// Bytes kept of the end of npm's messages, and characters shown of them.
const NPM_TAIL_BYTES: usize = 8 * 1024;
const NPM_SHOWN_CHARS: usize = 400;
/// Words in a variable's name that mark a secret, which npm has no business to see.
const SECRET_WORDS: [&str; 4] = ["TOKEN", "KEY", "SECRET", "PASSWORD"];

/// An agent's program on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    pub kind: AgentKind,
    /// The pinned version; `None` for the operator's own file, whose version is not known.
    pub version: Option<String>,
    pub binary: PathBuf,
    /// Lower-case hex.
    pub sha256: String,
}

/// All agents that a sprite gets, `shell` needing none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledSet(pub Vec<Installed>);

impl InstalledSet {
    /// A line per agent: name, version, hash. Differs whenever a sprite built with the set would differ.
    pub fn fingerprint_input(&self) -> String {
        let mut lines: Vec<String> = self
            .0
            .iter()
            .map(|agent| {
                format!("{} {} {}\n", agent.kind.name(), agent.version.as_deref().unwrap_or("-"), agent.sha256)
            })
            .collect();
        lines.sort_unstable();
        lines.concat()
    }
}

/// Why an agent's program is not there. Messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("the agent {agent} is not configured, or needs no program")]
    NotConfigured { agent: &'static str },
    #[error("npm was not found: install npm, or set {setting} to a binary")]
    NpmMissing { setting: &'static str },
    #[error("{setting} is {version:?}, which is no exact version: use one like {example}")]
    BadVersion { setting: &'static str, version: String, example: &'static str },
    #[error(
        "the registry has no {package}@{version}: set {setting} to a version that it has, or {path_setting} to a binary"
    )]
    VersionNotFound { package: String, version: String, setting: &'static str, path_setting: &'static str },
    #[error("npm said it had installed {package}@{version}, but {what}: try again, or set {path_setting} to a binary")]
    HalfInstalled { package: String, version: String, what: String, path_setting: &'static str },
    #[error("{setting}={path} can't be used: {what}", path = path.display())]
    NotAProgram { setting: &'static str, path: PathBuf, what: String },
    #[error("there is no {agent} for this machine's architecture {arch}: set {path_setting} to a binary for it")]
    Unsupported { agent: &'static str, arch: &'static str, path_setting: &'static str },
    #[error("no space left in {path}: installing an agent takes up to 600 MB", path = path.display())]
    DiskFull { path: PathBuf },
    #[error("installing {agent} took longer than {} s: check that npm can reach its registry", .limit.as_secs())]
    Timeout { agent: &'static str, limit: Duration },
    #[error("npm could not install {package}@{version} ({status}): {message}")]
    Npm { package: String, version: String, status: String, message: String },
    #[error("{path} can't be used ({source})", path = path.display())]
    Files { path: PathBuf, source: io::Error },
}

/// The programs of all configured agents, fetched one after another.
///
/// # Errors
/// The first agent's error; those before it stay in the cache.
pub async fn fetch_all(config: &AgentsConfig, cache: &Path) -> Result<InstalledSet, InstallError> {
    let mut set = InstalledSet::default();
    for (kind, configured) in [(AgentKind::Amp, config.amp.is_some()), (AgentKind::Claude, config.claude.is_some())] {
        if configured {
            set.0.push(fetch(kind, config, cache).await?);
        }
    }
    Ok(set)
}

/// The program of one agent: the operator's file, or the pinned version from the cache, or from npm. Dropping the
/// future stops npm and leaves nothing that a later call would take for complete.
///
/// # Errors
/// Whatever kept the program from being here, checked, within five minutes.
pub async fn fetch(agent: AgentKind, config: &AgentsConfig, cache: &Path) -> Result<Installed, InstallError> {
    let npm = Npm { program: "npm".into(), arch: std::env::consts::ARCH, deadline: DEADLINE };
    npm.fetch(agent, config, cache).await
}

/// The agents whose programs npm has yet to bring, with their versions. A quick look, for telling people why they wait.
pub fn missing(config: &AgentsConfig, cache: &Path) -> Vec<(AgentKind, String)> {
    let absent = |source: &Source<'_>| source.path.is_none() && !cache.join(source.folder(npm_arch())).is_dir();
    let sources = AgentKind::ALL.into_iter().filter_map(|kind| source(kind, config));
    sources.filter(absent).map(|source| (source.kind, source.version.to_owned())).collect()
}

/// What npm calls this machine's architecture, or Rust's name where npm has no agent for it.
fn npm_arch() -> &'static str {
    as_npm_says(std::env::consts::ARCH).unwrap_or(std::env::consts::ARCH)
}

fn as_npm_says(arch: &str) -> Option<&'static str> {
    match arch {
        "x86_64" => Some("x64"),
        "aarch64" => Some("arm64"),
        _ => None,
    }
}

/// What is known about an agent's package.
struct Source<'a> {
    kind: AgentKind,
    version: &'a str,
    path: Option<&'a Path>,
    /// npm name of the platform package, without the architecture at its end.
    package: &'static str,
    version_setting: &'static str,
    path_setting: &'static str,
    example: &'static str,
}

impl Source<'_> {
    /// Name of its folder in the cache.
    fn folder(&self, arch: &str) -> String {
        format!("{}-{}-{arch}", self.kind.name(), self.version)
    }
}

fn source(agent: AgentKind, config: &AgentsConfig) -> Option<Source<'_>> {
    match agent {
        AgentKind::Shell => None,
        AgentKind::Amp => config.amp.as_ref().map(|amp| Source {
            kind: agent,
            version: &amp.version,
            path: amp.path.as_deref(),
            package: "@ampcode/cli-linux-",
            version_setting: "AMP_VERSION",
            path_setting: "AMP_PATH",
            example: super::amp::VERSION,
        }),
        AgentKind::Claude => config.claude.as_ref().map(|claude| Source {
            kind: agent,
            version: &claude.version,
            path: claude.path.as_deref(),
            package: "@anthropic-ai/claude-code-linux-",
            version_setting: "CLAUDE_VERSION",
            path_setting: "CLAUDE_PATH",
            example: super::claude::VERSION,
        }),
    }
}

/// npm, as found on this machine.
struct Npm {
    program: PathBuf,
    /// As Rust names it.
    arch: &'static str,
    deadline: Duration,
}

impl Npm {
    async fn fetch(&self, agent: AgentKind, config: &AgentsConfig, cache: &Path) -> Result<Installed, InstallError> {
        let source = source(agent, config).ok_or(InstallError::NotConfigured { agent: agent.name() })?;
        if let Some(path) = source.path {
            let refused =
                |what| InstallError::NotAProgram { setting: source.path_setting, path: path.to_owned(), what };
            check_program(path, self.arch, 0).map_err(refused)?;
            return Ok(Installed { kind: agent, version: None, binary: path.to_owned(), sha256: sha256(path).await? });
        }
        let arch = as_npm_says(self.arch).ok_or(InstallError::Unsupported {
            agent: agent.name(),
            arch: self.arch,
            path_setting: source.path_setting,
        })?;
        // Also keeps a version from naming a folder elsewhere, and words like `latest` from being pinned by accident.
        let exact = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_digit())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        };
        if !exact(source.version) {
            let (setting, version, example) = (source.version_setting, source.version.to_owned(), source.example);
            return Err(InstallError::BadVersion { setting, version, example });
        }
        let until = Instant::now() + self.deadline;
        match timeout_at(until, self.cached(&source, arch, cache)).await {
            Ok(binary) => {
                let binary = binary?;
                Ok(Installed {
                    kind: agent,
                    version: Some(source.version.into()),
                    sha256: sha256(&binary).await?,
                    binary,
                })
            }
            Err(_) => Err(InstallError::Timeout { agent: agent.name(), limit: self.deadline }),
        }
    }

    /// The program in the cache, after npm put it there if need be.
    async fn cached(&self, source: &Source<'_>, arch: &str, cache: &Path) -> Result<PathBuf, InstallError> {
        let package = format!("{}{arch}", source.package);
        let name = source.folder(arch);
        let ready = cache.join(&name);
        let program = Path::new("node_modules").join(&package).join(source.kind.name());
        if ready.join(&program).is_file() {
            return Ok(ready.join(program));
        }
        fs::create_dir_all(cache).map_err(at(cache))?;
        let _lock = lock(&cache.join(format!("{name}.lock"))).await?;
        if ready.join(&program).is_file() {
            return Ok(ready.join(program));
        }
        // Left by a process that was killed: whoever else could be filling them would have the lock.
        let partial = Partial(cache.join(format!("{name}.partial")));
        let folder = &partial.0;
        remove(folder)?;
        remove(&ready)?;
        fs::create_dir(folder).map_err(at(folder))?;
        self.install(source, &package, arch, folder).await?;
        let half = |what| {
            let (package, version) = (package.clone(), source.version.to_owned());
            InstallError::HalfInstalled { package, version, what, path_setting: source.path_setting }
        };
        check_version(&folder.join("node_modules").join(&package), source.version).map_err(half)?;
        check_program(&folder.join(&program), self.arch, MIN_PROGRAM_BYTES).map_err(half)?;
        fs::rename(folder, &ready).map_err(at(&ready))?;
        Ok(ready.join(program))
    }

    async fn install(&self, source: &Source<'_>, package: &str, arch: &str, into: &Path) -> Result<(), InstallError> {
        let mut command = Command::new(&self.program);
        command
            .args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"])
            // The program is for a sprite, which is Linux with glibc whatever this machine is.
            .args(["--os=linux", "--libc=glibc", &format!("--cpu={arch}")])
            .arg("--prefix")
            .arg(into)
            .arg(format!("{package}@{}", source.version))
            .current_dir(into)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_secret(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let mut npm = Group(command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => InstallError::NpmMissing { setting: source.path_setting },
            _ => at(&self.program)(e),
        })?);
        let (stdout, stderr) = (npm.0.stdout.take(), npm.0.stderr.take());
        let (status, out, err) = tokio::join!(npm.0.wait(), tail(stdout), tail(stderr));
        let status = status.map_err(at(&self.program))?;
        if status.success() {
            return Ok(());
        }
        let said = if err.is_empty() { out } else { err };
        let (package, version) = (package.to_owned(), source.version.to_owned());
        let code =
            |codes: &[&str]| codes.iter().any(|code| said.lines().any(|line| line.ends_with(&format!(" code {code}"))));
        Err(if code(&["ETARGET", "E404"]) {
            let (setting, path_setting) = (source.version_setting, source.path_setting);
            InstallError::VersionNotFound { package, version, setting, path_setting }
        } else if code(&["ENOSPC", "EDQUOT"]) {
            InstallError::DiskFull { path: into.to_owned() }
        } else {
            InstallError::Npm {
                package,
                version,
                status: status.to_string(),
                message: one_line(&said, NPM_SHOWN_CHARS),
            }
        })
    }
}

/// A folder that is being filled. What is still there when this is dropped is removed: it may be what filled the disk.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // What can't be removed now is removed by the next call.
        let _ = remove(&self.0);
    }
}

/// A program with its process group, which is killed when this is dropped: npm may be a script that starts the real one.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // No id means that it was waited for, and the group's number may be another's by now.
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // Fails only when the group is gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The end of what a program writes, read until it closes its side.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut tail = Tail::new(NPM_TAIL_BYTES);
    let Some(mut stream) = stream else { return String::new() };
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        tail.push(&buffer[..n]);
    }
    tail.text()
}

/// Waits for the lock file; the lock ends when the file is dropped or the process dies.
async fn lock(path: &Path) -> Result<File, InstallError> {
    let file = File::options().create(true).append(true).open(path).map_err(at(path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(LOCK_POLL).await,
            Err(TryLockError::Error(e)) => return Err(at(path)(e)),
        }
    }
}

/// Removes a folder, if it is there.
fn remove(folder: &Path) -> Result<(), InstallError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(folder)(e)),
        _ => Ok(()),
    }
}

/// Whether npm may not see the variable. Its own may hold a registry's token, which it needs.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    !name.starts_with("NPM_") && name != "NODE_AUTH_TOKEN" && SECRET_WORDS.iter().any(|word| name.contains(word))
}

fn check_version(package: &Path, version: &str) -> Result<(), String> {
    let text = fs::read_to_string(package.join("package.json")).map_err(|_| "the package is not there".to_owned())?;
    let found = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|json| json.get("version")?.as_str().map(str::to_owned));
    match found {
        Some(found) if found == version => Ok(()),
        found => Err(format!("the package there has version {}", found.as_deref().unwrap_or("unknown"))),
    }
}

/// Whether `path` is an executable ELF file of at least `min` bytes for `arch`.
fn check_program(path: &Path, arch: &str, min: u64) -> Result<(), String> {
    /// Offset and width of what is looked at: magic and class at the start, the machine's number at 18.
    const HEADER: usize = 20;
    let meta = fs::metadata(path).map_err(|e| format!("there is no program at {} ({e})", path.display()))?;
    if !meta.is_file() {
        return Err("it is not a file".into());
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err("it is not executable (chmod +x)".into());
    }
    let mut header = [0; HEADER];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    match read {
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(format!("it can't be read ({e})")),
        Ok(()) if header.starts_with(b"\x7fELF\x02\x01") => {}
        _ => return Err("it is not a 64-bit Linux program (ELF); scripts can't be used".into()),
    }
    let machine = match u16::from_le_bytes([header[18], header[19]]) {
        62 => "x86_64",
        183 => "aarch64",
        _ => "another architecture",
    };
    if machine != arch {
        return Err(format!("it is a program for {machine}, and this machine is {arch}"));
    }
    if meta.len() < min {
        return Err(format!("its program is a stub of {} bytes", meta.len()));
    }
    Ok(())
}

/// The hash of a file, off the runtime's threads: 250 MB take a while.
async fn sha256(path: &Path) -> Result<String, InstallError> {
    let owned = path.to_owned();
    let hash = tokio::task::spawn_blocking(move || {
        let (mut file, mut hash) = (File::open(owned)?, Sha256::new());
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hex::encode(hash.finalize())),
                Ok(n) => hash.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    });
    hash.await.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(at(path))
}

/// Wraps an I/O error with its place; a full disk is told as such.
fn at(path: &Path) -> impl Fn(io::Error) -> InstallError + '_ {
    |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => InstallError::DiskFull { path: path.to_owned() },
        _ => InstallError::Files { path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests;
