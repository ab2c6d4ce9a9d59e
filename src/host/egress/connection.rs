//! One connection out of a sandbox, from its acceptance to its end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::policy::Decision;
use super::{Gate, MAX_CONNECTIONS, address, hello};
use crate::host::walls::Wall;

/// Port of TLS: the hello must name the host that was resolved.
const TLS: u16 = 443;
/// Port on which grants are reached, and nothing else.
const GRANTS: u16 = 80;

/// Time for the machine's resolver. glibc's own is 5 seconds per server.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one address to answer; a handshake takes one round trip.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of a name that are tried, in the resolver's order.
const MAX_DIALS: usize = 4;
/// A connection that moves no byte between two looks this far apart is given up.
const IDLE_LOOK: Duration = Duration::from_secs(600);

/// What a relay reads at a time, once a direction proved busy; before that, a connection costs little memory.
const LARGE_BUFFER: usize = 64 * 1024;
const SMALL_BUFFER: usize = 4 * 1024;

/// Why a connection did not come about or did not end well: the rest of a sentence that begins with `HOST:PORT`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("by policy")]
    Policy,
    #[error("because only port 443 leads out")]
    Port,
    #[error("because this name is served on port 80 only")]
    GrantPort,
    #[error("because its TLS hello names {0}")]
    OtherServerName(String),
    #[error("because its TLS hello names no server")]
    NoServerName,
    #[error("because it does not begin with a TLS hello")]
    NotTls,
    #[error("because its TLS hello is too long")]
    LongHello,
    #[error("because its TLS hello did not come in time")]
    SlowHello,
    #[error("because it resolves to {0}, which is not a public address")]
    SpecialAddress(IpAddr),
    #[error("because it has no address")]
    NoAddress,
    #[error("because its address can't be looked up: {0}")]
    Unresolved(io::Error),
    #[error("because it can't be reached: {0}")]
    Unreachable(io::Error),
    #[error("because the program hung up")]
    HungUp,
    #[error("because the connection broke: {0}")]
    Broken(io::Error),
}

/// Serves a connection accepted on the listener for `port`.
pub(super) async fn serve(gate: Arc<Gate>, mut client: TcpStream, port: u16) {
    // From here to its orderly end, dropping the socket for whatever reason resets the connection: the program inside
    // must never take a refusal, a cut or a stop of this gateway for the end of what it was reading.
    let (Ok(()), Ok(local)) = (reset_on_drop(&client), client.local_addr()) else { return };
    let Ok(_permit) = gate.connections.try_acquire() else {
        return gate.ledger.too_many_connections(MAX_CONNECTIONS);
    };
    let name = match gate.name_of(local.ip()) {
        Some(name) => name,
        None if gate.walls.has(Wall::UnknownAddresses) => {
            return gate.ledger.unknown_address(SocketAddr::new(local.ip(), port));
        }
        None => local.ip().to_string().into(),
    };
    let result = tokio::select! {
        // First the policy: it is asked before anything is done, and whenever it changes.
        biased;
        () = denied(&gate, &name) => Err(Refusal::Policy),
        result = connect_and_relay(&gate, &mut client, &name, port) => result,
    };
    match result {
        Ok(()) => close_in_order(&client),
        Err(why) => gate.ledger.refused(&name, port, &why),
    }
}

/// Returns once the policy denies `name`; at once if it does so now. When whoever sets the policy is gone, the last one
/// stays in force.
async fn denied(gate: &Gate, name: &str) {
    let mut policy = gate.policy.clone();
    if policy.wait_for(|policy| gate.decide(policy, name) == Decision::Deny).await.is_err() {
        std::future::pending().await
    }
}

async fn connect_and_relay(gate: &Arc<Gate>, client: &mut TcpStream, name: &str, port: u16) -> Result<(), Refusal> {
    let (mut upstream, first) = match (gate.grants.get(name), port) {
        (Some(target), GRANTS) => (dial(gate, &target.host, target.port, Addresses::Any).await?, Vec::new()),
        (Some(_), _) => return Err(Refusal::GrantPort),
        (None, GRANTS) => return Err(Refusal::Port),
        (None, TLS) if gate.walls.has(Wall::ServerName) => {
            let hello = hello::read(client).await?;
            if hello.server_name != name {
                return Err(Refusal::OtherServerName(hello.server_name));
            }
            (dial(gate, &absolute(name), port, Addresses::Public).await?, hello.bytes)
        }
        (None, _) => (dial(gate, &absolute(name), port, Addresses::Public).await?, Vec::new()),
    };
    gate.ledger.connected();
    relay(gate, client, &mut upstream, &first).await.map_err(Refusal::Broken)
}

/// The name with its final dot, so that no search domain of this machine is tried on it.
fn absolute(name: &str) -> String {
    format!("{name}.")
}

/// Which addresses may be dialled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Addresses {
    /// Only those of the public internet that are not this machine's own.
    Public,
    /// All: the operator chose the target.
    Any,
}

/// Looks `host` up once and connects to one of the addresses that the lookup gave and the check passed.
async fn dial(gate: &Arc<Gate>, host: &str, port: u16, allowed: Addresses) -> Result<TcpStream, Refusal> {
    let found = lookup(gate, host, port).await.map_err(Refusal::Unresolved)?;
    let first = *found.first().ok_or(Refusal::NoAddress)?;
    let any = allowed == Addresses::Any || !gate.walls.has(Wall::SpecialAddresses);
    let usable = |&ip: &IpAddr| any || (address::is_public(ip) && !address::is_own(ip));
    let mut failure = Refusal::SpecialAddress(first);
    for ip in found.into_iter().filter(usable).take(MAX_DIALS) {
        let connecting = gate.resolver.connect(SocketAddr::new(ip, port));
        match timeout(DIAL_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = Refusal::Unreachable(error),
        }
    }
    Err(failure)
}

async fn lookup(gate: &Arc<Gate>, host: &str, port: u16) -> io::Result<Vec<IpAddr>> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let (gate, host) = (Arc::clone(gate), host.to_owned());
    // A task of its own, since a lookup that nobody waits for any more still occupies a thread: it keeps its permit
    // until it is over, so that a sprite holds a few threads at most.
    let lookup = tokio::spawn(async move {
        let _permit = gate.lookups.acquire().await.map_err(io::Error::other)?;
        gate.resolver.lookup(&host, port).await
    });
    match timeout(LOOKUP_TIMEOUT, lookup).await {
        Ok(result) => result.map_err(io::Error::other)?,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Sends `first` to the other side, then copies both ways until both sides have finished.
async fn relay(gate: &Gate, client: &mut TcpStream, upstream: &mut TcpStream, first: &[u8]) -> io::Result<()> {
    reset_on_drop(upstream)?;
    // Small messages must not wait for one another; failing to say so costs time only.
    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
    let moved = AtomicU64::new(0);
    let (from_client, to_client) = client.split();
    let (from_upstream, mut to_upstream) = upstream.split();
    let outward = async {
        to_upstream.write_all(first).await?;
        gate.ledger.sent(first.len() as u64);
        let count = |bytes| {
            gate.ledger.sent(bytes);
            moved.fetch_add(bytes, Relaxed);
        };
        copy(from_client, to_upstream, count).await
    };
    let count = |bytes| {
        gate.ledger.received(bytes);
        moved.fetch_add(bytes, Relaxed);
    };
    let inward = copy(from_upstream, to_client, count);
    tokio::select! {
        result = async { tokio::try_join!(outward, inward) } => result?,
        () = idle(&moved) => return Err(io::ErrorKind::TimedOut.into()),
    };
    close_in_order(upstream);
    Ok(())
}

/// Copies until the end of `from`, which it passes on.
async fn copy(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, count: impl Fn(u64)) -> io::Result<()> {
    let mut buffer = vec![0; SMALL_BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        count(read as u64);
        if read == buffer.len() && read < LARGE_BUFFER {
            buffer.resize(LARGE_BUFFER, 0);
        }
    }
}

/// Returns once `moved` stayed the same from one look to the next.
async fn idle(moved: &AtomicU64) {
    let mut before = moved.load(Relaxed);
    loop {
        tokio::time::sleep(IDLE_LOOK).await;
        let now = moved.load(Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

fn reset_on_drop(stream: &TcpStream) -> io::Result<()> {
    stream.set_zero_linger()
}

/// Takes [`reset_on_drop`] back, so that what was sent last still arrives.
fn close_in_order(stream: &TcpStream) {
    if let Err(error) = rustix::net::sockopt::set_socket_linger(stream, None) {
        tracing::debug!(%error, "a finished connection may lose its last bytes");
    }
}
