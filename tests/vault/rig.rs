//! A vault that serves, with passes for its tests.

use std::collections::BTreeMap;
use std::time::Duration;

use janebot::config::AgentKind;
use janebot::job::{JobId, RequesterId};
use janebot::supervise::{Msg, Supervisor};
use janebot::vault::budget::Budget;
use janebot::vault::pass::{Holder, Pass};
use janebot::vault::provider::{self, Provider};
use janebot::vault::{Upstream, VaultHandle, actor};
use janebot::world::World;
use ractor::{Actor, ActorRef};
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const KEY: &str = "sk-ant-real-0123456789abcdefghijklmnop";
/// A provider that is silent for so long has failed here.
pub const PATIENCE: Duration = Duration::from_millis(300);

pub struct Rig {
    pub vault: VaultHandle,
    pub address: std::net::SocketAddr,
    root: ActorRef<Msg>,
}

impl Rig {
    /// With claude's provider and amp's at this URL.
    pub async fn new(url: &str) -> Self {
        Self::of(&provider::ANTHROPIC, url).await
    }

    /// With this provider in claude's place.
    pub async fn of(provider: &'static Provider, url: &str) -> Self {
        let upstream = |provider| Upstream::patient(provider, url, KEY.into(), PATIENCE).unwrap();
        let upstreams =
            BTreeMap::from([(AgentKind::Claude, upstream(provider)), (AgentKind::Amp, upstream(&provider::AMP))]);
        let (listener, address) = actor::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let vault = VaultHandle::new(upstreams, format!("http://{address}"), World::real());
        let children = vec![actor::child(vault.clone(), listener)];
        let supervisor = Supervisor { name: "root", world: World::real() };
        let (root, _) = Actor::spawn(None, supervisor, children).await.unwrap();
        Self { vault, address, root }
    }

    pub fn pass(&self, kind: AgentKind) -> Pass {
        self.pass_with(kind, Budget::default())
    }

    pub fn pass_with(&self, kind: AgentKind, budget: Budget) -> Pass {
        let job = JobId::new(World::real().token(4));
        let holder = Holder { job, runner: "jane-runner-0".into(), requester: RequesterId::new("slack:U1") };
        self.vault.open(kind, holder, budget, Duration::from_secs(60)).unwrap()
    }

    /// Sends these bytes and gives all that comes back until the connection ends.
    pub async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The vault may hang up before it has read all.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        let _ = read.expect("the connection ends");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A request with this pass's token, as an agent would make it.
    pub async fn ask(&self, pass: &Pass, line: &str, body: &str) -> String {
        self.raw(&request(pass.token().expose_secret(), line, body)).await
    }

    /// Kills the vault's actor, as a fault in it would, and waits for its successor.
    pub async fn kill(&self) {
        let vault = async || {
            let children = ractor::call!(self.root, Msg::Children).unwrap();
            children.into_iter().map(|(_, cell)| cell).next()
        };
        let first = vault().await.expect("the vault is up");
        first.kill();
        while vault().await.is_none_or(|now| now.get_id() == first.get_id()) {
            tokio::task::yield_now().await;
        }
    }

    pub fn stop(&self) {
        self.root.stop(None);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn request(token: &str, line: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nhost: vault.janebot.internal\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

pub const MESSAGES: &str = "POST /v1/messages?beta=true";

pub fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}
