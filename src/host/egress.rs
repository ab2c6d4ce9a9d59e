//! The only way out of a sandbox: its names, its connections, and what they may reach.
//!
//! A sandbox's network has a loopback interface and nothing else; on it wait sockets which are served here, outside.
//! The way of a connection:
//!
//! ```text
//! program ── getaddrinfo("example.com") ─► DNS socket ─► policy ─► 198.18.0.7, an address that only this sandbox knows
//!         ── connect(198.18.0.7:443) ────► listener ───► which name? ─► policy again ─► the TLS hello names it too?
//!                                                        ─► look the real address up ─► public? ─► dial it ─► relay
//! ```
//!
//! DNS is answered and never forwarded, so a question carries nothing out. The address that was checked is the one that
//! is dialled. What is refused is reset. A connection is cut when the policy stops allowing its name. A *grant* is a
//! name that leads to a target of the operator's choice, on port 80; it needs a policy rule like any other name.
//!
//! What this can't see: what is said inside TLS, with a host that serves many names as with any other.
//!
//! Who may call: the host's store starts a [`Gateway`] with each sandbox and drops it with it. [`policy::validate`] is
//! for the API.

mod address;
mod connection;
mod dns;
mod hello;
mod ledger;
mod names;
pub mod policy;
mod presets;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::dns::{Answer, MAX_QUERY, Query};
pub use self::ledger::Counters;
use self::ledger::Ledger;
use self::names::{Bucket, Names};
use self::policy::{By, Decision};
use crate::config::Grant;
use crate::host::sandbox::NetworkFds;
use crate::host::walls::{Wall, Walls};
use crate::sprites::NetworkPolicy;

/// Connections of one sprite at a time. Package managers open some dozens.
const MAX_CONNECTIONS: usize = 256;
/// Lookups of one sprite at a time; each occupies a thread of this process.
const MAX_LOOKUPS: usize = 8;
/// DNS queries of one sprite: a burst for a program that starts many downloads, then a rate no honest program exceeds.
const QUERY_BURST: u32 = 1_000;
const QUERY_REFILL: Duration = Duration::from_millis(5);
/// DNS connections of one sprite at a time, and how long one may stay silent.
const MAX_DNS_CONNECTIONS: usize = 16;
const DNS_CONNECTION_IDLE: Duration = Duration::from_secs(5);
/// Pause after a socket failed, as when this process has no file descriptors left.
const SOCKET_BACKOFF: Duration = Duration::from_millis(100);

/// The world outside, as a gateway needs it; the tests' own leads to servers on loopback.
pub trait Resolver: Send + Sync + 'static {
    /// The addresses of `host`, in the order to try them. No address is trusted because it came from here.
    fn lookup<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
    /// Connects to exactly this address.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        TcpStream::connect(to).boxed()
    }
}

/// This machine's own resolver.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn lookup<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        async move { Ok(tokio::net::lookup_host((host, port)).await?.map(|found| found.ip()).collect()) }.boxed()
    }
}

/// Serves the network of one sandbox. Dropping it closes its sockets and resets its connections.
#[derive(Debug)]
pub struct Gateway {
    gate: Arc<Gate>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Gateway {
    /// Begins to serve `fds` for the sprite `name`; must be called inside a tokio runtime.
    ///
    /// The synthetic addresses follow the one that the DNS socket is bound to. The policy is looked at in `policy` for
    /// each query and connection, so that it holds from the moment it is set.
    ///
    /// # Errors
    /// When a socket is not what it should be, or a grant's target is not `HOST:PORT`.
    pub fn start(
        name: &str,
        fds: NetworkFds,
        policy: watch::Receiver<NetworkPolicy>,
        grants: Arc<[Grant]>,
        resolver: Arc<dyn Resolver>,
    ) -> io::Result<Self> {
        Self::start_trial(name, fds, policy, grants, resolver, &Walls::default())
    }

    /// As [`Gateway::start`], with walls taken away.
    pub(in crate::host) fn start_trial(
        name: &str,
        fds: NetworkFds,
        policy: watch::Receiver<NetworkPolicy>,
        grants: Arc<[Grant]>,
        resolver: Arc<dyn Resolver>,
        walls: &Walls,
    ) -> io::Result<Self> {
        let dns_udp = std::net::UdpSocket::from(fds.dns_udp);
        dns_udp.set_nonblocking(true)?;
        let dns_udp = UdpSocket::from_std(dns_udp)?;
        let dns_tcp = listener(fds.dns_tcp)?;
        let IpAddr::V4(own_address) = dns_udp.local_addr()?.ip() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the DNS socket has no IPv4 address"));
        };
        let now = Instant::now();
        let gate = Arc::new(Gate {
            policy,
            grants: targets(&grants)?,
            resolver,
            names: Mutex::new(Names::new(own_address, now)),
            queries: Mutex::new(Bucket::new(QUERY_BURST, QUERY_REFILL, now)),
            connections: Semaphore::new(MAX_CONNECTIONS),
            lookups: Semaphore::new(MAX_LOOKUPS),
            dns_connections: Semaphore::new(MAX_DNS_CONNECTIONS),
            ledger: Ledger::new(name),
            walls: walls.clone(),
        });
        let mut loops: Vec<BoxFuture<'static, ()>> = vec![answer_datagrams(Arc::clone(&gate), dns_udp).boxed()];
        let answering = Arc::clone(&gate);
        loops.push(accept(dns_tcp, move |stream| answer_stream(Arc::clone(&answering), stream)).boxed());
        for (port, fd) in fds.listeners {
            let gate = Arc::clone(&gate);
            loops.push(accept(listener(fd)?, move |s| connection::serve(Arc::clone(&gate), s, port)).boxed());
        }
        let tasks = loops.into_iter().map(|each| AbortOnDropHandle::new(tokio::spawn(each))).collect();
        Ok(Self { gate, _tasks: tasks })
    }

    /// What went through so far.
    pub fn counters(&self) -> Counters {
        self.gate.ledger.counters()
    }
}

fn listener(fd: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Where a grant leads.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
}

fn targets(grants: &[Grant]) -> io::Result<BTreeMap<String, Target>> {
    let target = |grant: &Grant| {
        let (host, port) = grant.target.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).to_owned();
        let port = port.parse().ok().filter(|&port| port != 0)?;
        let name = grant.name.strip_suffix('.').unwrap_or(&grant.name).to_ascii_lowercase();
        (!host.is_empty()).then_some((name, Target { host, port }))
    };
    let checked = |grant: &Grant| {
        target(grant).ok_or_else(|| {
            let message = format!("the grant {} leads to {:?}, which is not HOST:PORT", grant.name, grant.target);
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })
    };
    grants.iter().map(checked).collect()
}

/// What all tasks of a gateway share.
struct Gate {
    policy: watch::Receiver<NetworkPolicy>,
    grants: BTreeMap<String, Target>,
    resolver: Arc<dyn Resolver>,
    names: Mutex<Names>,
    queries: Mutex<Bucket>,
    connections: Semaphore,
    lookups: Semaphore,
    dns_connections: Semaphore,
    ledger: Ledger,
    walls: Walls,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("grants", &self.grants).field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

impl Gate {
    /// The reply to a DNS message; `None` when it deserves none.
    fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let now = Instant::now();
        if !self.queries.lock().unwrap_or_else(PoisonError::into_inner).take(now) {
            return None;
        }
        let query = Query::parse(packet)?;
        let decision = self.decide(&self.policy.borrow(), &query.name);
        let answer = match decision {
            Decision::Deny => {
                self.ledger.name_denied(&query.name);
                Answer::NoSuchName
            }
            Decision::Allow(_) if !query.wants_address() => Answer::Empty,
            Decision::Allow(by) => {
                let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
                names.address_of(&query.name, by, now).map_or_else(
                    |names::Exhausted| {
                        self.ledger.names_exhausted(&query.name);
                        Answer::Failure
                    },
                    Answer::Address,
                )
            }
        };
        Some(query.reply(answer))
    }

    fn decide(&self, policy: &NetworkPolicy, name: &str) -> Decision {
        match policy::decide(policy, name) {
            Decision::Deny if !self.walls.has(Wall::Policy) => Decision::Allow(By::NoRules),
            decision => decision,
        }
    }

    /// The name that a synthetic address stands for.
    fn name_of(&self, address: IpAddr) -> Option<Arc<str>> {
        let IpAddr::V4(address) = address else { return None };
        self.names.lock().unwrap_or_else(PoisonError::into_inner).name_of(address)
    }
}

async fn answer_datagrams(gate: Arc<Gate>, socket: UdpSocket) {
    // One byte more than is read, to tell a longer datagram from one that fits.
    let mut packet = [0; MAX_QUERY + 1];
    loop {
        match socket.recv_from(&mut packet).await {
            Ok((length, from)) => {
                if let Some(reply) = gate.answer(&packet[..length]) {
                    // Whoever asked may be gone or not be reading; then it asks again.
                    let _ = socket.try_send_to(&reply, from);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "receiving a DNS query failed");
                tokio::time::sleep(SOCKET_BACKOFF).await;
            }
        }
    }
}

async fn answer_stream(gate: Arc<Gate>, mut stream: TcpStream) {
    let Ok(_permit) = gate.dns_connections.try_acquire() else { return };
    let exchange = async |stream: &mut TcpStream| {
        let length = usize::from(stream.read_u16().await?);
        let mut packet = vec![0; length.min(MAX_QUERY + 1)];
        stream.read_exact(&mut packet).await?;
        let reply = gate.answer(&packet).ok_or(io::ErrorKind::InvalidData)?;
        // A reply is a query's 512 bytes and 16 more at most.
        stream.write_all(&[&(reply.len() as u16).to_be_bytes()[..], &reply].concat()).await
    };
    while let Ok(Ok(())) = timeout(DNS_CONNECTION_IDLE, exchange(&mut stream)).await {}
}

/// Accepts for ever; what `serve` returns runs as a task that ends with this one.
async fn accept<F: Future<Output = ()> + Send + 'static>(listener: TcpListener, serve: impl Fn(TcpStream) -> F) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tasks.spawn(serve(stream))),
                Err(error) => {
                    tracing::debug!(%error, "accepting a sandbox's connection failed");
                    tokio::time::sleep(SOCKET_BACKOFF).await;
                }
            },
            Some(ended) = tasks.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "serving a sandbox's connection failed");
            },
        }
    }
}
