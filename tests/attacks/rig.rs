//! A real host with sprites in it, the client that drives them, and a world outside that the test makes up.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use janebot::config::{HostConfig, Isolation, Limits};
use janebot::host::egress::Resolver;
use janebot::host::{Host, HostError, Trial, Wall, Walls};
use janebot::sprites::http::{Deadlines, HttpSprites};
use janebot::sprites::{CheckpointId, Exec, ExecRequest, NetworkPolicy, Sprites, SpritesError};
use janebot::world::World;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::inside;

pub const TOKEN: &str = "the-hosts-token";
/// Where the hostile program is in a sprite.
pub const PROBE: &str = "/home/sprite/attack";
/// More than any attack takes.
const PATIENCE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// What the sprites here may use: little, so that a bomb is a small one.
pub fn limits() -> Limits {
    Limits {
        memory: 256 * MIB,
        processes: 64,
        disk: 64 * MIB,
        inodes: 3000,
        open_files: 256,
        output: MIB,
        ..Limits::default()
    }
}

/// The names that exist outside, each with the address that whoever owns it chose.
pub struct Outside {
    names: BTreeMap<String, IpAddr>,
    server: SocketAddr,
    lookups: Mutex<Vec<String>>,
    dialled: Mutex<Vec<SocketAddr>>,
}

impl Outside {
    /// Whatever is dialled leads to one server on loopback, which sends back what it gets.
    pub async fn open(names: &[(String, IpAddr)]) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        if stream.write_all(&buffer[..n]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let names = names.iter().map(|(name, ip)| (format!("{name}."), *ip)).collect();
        Arc::new(Self { names, server, lookups: Mutex::default(), dialled: Mutex::default() })
    }

    /// Names looked up that hold `part`.
    pub fn lookups(&self, part: &str) -> usize {
        self.lookups.lock().unwrap().iter().filter(|name| name.contains(part)).count()
    }

    pub fn dialled(&self, ip: IpAddr) -> bool {
        self.dialled.lock().unwrap().iter().any(|to| to.ip() == ip)
    }
}

impl Resolver for Outside {
    fn lookup<'a>(&'a self, host: &'a str, _: u16) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        self.lookups.lock().unwrap().push(host.to_owned());
        let found = self.names.get(host).map(|ip| vec![*ip]).ok_or_else(|| io::Error::other("no such host"));
        std::future::ready(found).boxed()
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.dialled.lock().unwrap().push(to);
        TcpStream::connect(self.server).boxed()
    }
}

/// A host with its client.
pub struct Rig {
    pub host: Host,
    pub sprites: HttpSprites,
    pub outside: Arc<Outside>,
    pub state: PathBuf,
    probe: Bytes,
}

impl Rig {
    /// Starts a host on `state` whose sprites lack the `missing` walls.
    pub async fn start(
        state: &Path,
        missing: &[Wall],
        limits: Limits,
        outside: &Arc<Outside>,
    ) -> Result<Self, HostError> {
        let config = HostConfig {
            state_dir: state.to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            rootfs: None,
            isolation: Isolation::Full,
            grants: Vec::new(),
            limits,
        };
        let trial = Trial { walls: Walls::without(missing), resolver: outside.clone() };
        let exe = env!("CARGO_BIN_EXE_janebot").into();
        let host = Host::start_trial(config, exe, TOKEN.into(), World::real(), trial).await?;
        let sprites = HttpSprites::new(&host.url(), SecretString::from(TOKEN), Deadlines::default()).unwrap();
        Ok(Self { host, sprites, outside: outside.clone(), state: state.to_owned(), probe: probe() })
    }

    /// A sprite with the hostile program in a checkpoint, whose id this gives.
    pub async fn sprite(&self, name: &str, policy: &NetworkPolicy) -> CheckpointId {
        self.sprites.create(name, &[]).await.unwrap();
        self.sprites.set_policy(name, policy).await.unwrap();
        self.sprites.write_file(name, PROBE, 0o755, self.probe.clone()).await.unwrap();
        self.sprites.create_checkpoint(name, "armed").await.unwrap()
    }

    pub async fn begin(&self, sprite: &str, words: &[&str]) -> Result<Exec, SpritesError> {
        let argv = [&[PROBE, inside::ARGUMENT], words].concat().iter().map(|&word| word.into()).collect();
        self.sprites.exec(sprite, ExecRequest { argv, timeout: PATIENCE, ..ExecRequest::default() }).await
    }

    /// Makes an attack to its end, and gives its answer: the last line that it wrote.
    pub async fn attack(&self, sprite: &str, words: &[&str]) -> String {
        let output = match self.begin(sprite, words).await {
            Ok(exec) => exec.output(1 << 20).await,
            Err(error) => Err(error),
        };
        match output {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                let answer = text.trim_end().lines().last().unwrap_or_default().to_owned();
                match (output.status, answer.is_empty()) {
                    (0, false) => answer,
                    (0, true) => format!("no answer; {}", String::from_utf8_lossy(&output.stderr).trim()),
                    (137, _) => "killed".into(),
                    (status, _) => format!("status {status}; {}", String::from_utf8_lossy(&output.stderr).trim()),
                }
            }
            // The program's sandbox ended under it.
            Err(SpritesError::OutcomeUnknown { .. } | SpritesError::Broken { .. }) => "killed".into(),
            Err(error) => format!("failed: {error}"),
        }
    }

    /// Whether the sprite still does what it is told.
    pub async fn answers(&self, sprite: &str) -> bool {
        self.attack(sprite, &["euid"]).await == "1000"
    }

    pub fn dir(&self, sprite: &str) -> PathBuf {
        self.state.join("sprites").join(sprite)
    }
}

/// The hostile program, made once.
fn probe() -> Bytes {
    static PROBE: OnceLock<Bytes> = OnceLock::new();
    PROBE.get_or_init(stripped).clone()
}

/// This binary without what only debuggers read: an ELF file is loaded by its segments, which come first.
fn stripped() -> Bytes {
    let mut elf = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let number = |at: usize, width: usize| {
        elf[at..at + width].iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    const LOAD: usize = 1;
    let segments = (0..count).map(|n| table + n * size).filter(|&at| number(at, 4) == LOAD);
    let end = segments.map(|at| number(at + 8, 8) + number(at + 32, 8)).max().unwrap();
    elf.truncate(end);
    // No section headers any more: their offset, number and names.
    elf[40..48].fill(0);
    elf[58..64].fill(0);
    elf.into()
}
