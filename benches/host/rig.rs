//! A host of the bench's own, in this process, and the wire client for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use janebot::config::{Grant, HostConfig, Isolation, Limits};
use janebot::host::Host;
use janebot::sprites::http::{Deadlines, HttpSprites};
use janebot::sprites::{ExecRequest, Output, Sprites};
use janebot::world::World;
use secrecy::SecretString;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Outcome<T = ()> = Result<T, Failure>;

/// What the host asks of its clients.
pub const TOKEN: &str = "of-the-bench";

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Rig {
    pub host: Host,
    pub sprites: HttpSprites,
}

/// A host's settings, with its state in `dir`.
pub fn config(dir: &Path, grants: Vec<Grant>, limits: Limits) -> Result<HostConfig, std::net::AddrParseError> {
    Ok(HostConfig {
        state_dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse()?,
        rootfs: None,
        isolation: Isolation::Full,
        grants,
        limits,
    })
}

impl Rig {
    pub async fn start(config: HostConfig) -> Outcome<Self> {
        let exe = PathBuf::from(env!("CARGO_BIN_EXE_janebot"));
        let host = Host::start(config, exe, SecretString::from(TOKEN), World::real()).await?;
        let sprites = HttpSprites::new(&host.url(), SecretString::from(TOKEN), Deadlines::default())?;
        Ok(Self { host, sprites })
    }

    pub async fn stop(self) {
        self.host.shutdown().await;
    }

    /// Runs a program to its end, whatever its status.
    pub async fn run(&self, sprite: &str, argv: &[&str]) -> Outcome<Output> {
        let output = self.sprites.exec(sprite, request(argv)).await?.output(64 * 1024).await?;
        Ok(output)
    }

    /// Runs a program that must succeed; what it printed.
    pub async fn ok(&self, sprite: &str, argv: &[&str]) -> Outcome<String> {
        let output = self.run(sprite, argv).await?;
        if output.status != 0 {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{argv:?} ended with status {}: {stderr}", output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

pub fn request(argv: &[&str]) -> ExecRequest {
    let argv = argv.iter().map(|&arg| arg.to_owned()).collect();
    ExecRequest { argv, timeout: PATIENCE, ..ExecRequest::default() }
}
