//! A gateway without a sandbox: its own listeners on loopback stand for the sandbox's, a resolver of the test's choice
//! for the world's, and servers on loopback for the world.
//!
//! All of 127.0.0.0/8 is local, so a gateway whose DNS socket is bound to 127.64.0.1 hands out addresses that the test
//! can connect to.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdUdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use janebot::config::Grant;
use janebot::host::egress::{Counters, Gateway, Resolver};
use janebot::host::sandbox::NetworkFds;
use janebot::sprites::{NetworkPolicy, PolicyRule};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

/// Longer than anything here takes; a test that hangs fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Names to addresses, and the one server on loopback that all dialled addresses lead to.
#[derive(Default)]
pub struct World {
    names: BTreeMap<String, Vec<IpAddr>>,
    server: Option<SocketAddr>,
    lookups: Mutex<Vec<String>>,
    dialled: Mutex<Vec<SocketAddr>>,
}

impl World {
    pub fn with(server: Option<SocketAddr>, names: &[(&str, &str)]) -> Arc<Self> {
        let addresses = |list: &str| list.split(' ').map(|ip| ip.parse().unwrap()).collect();
        let names = names.iter().map(|(name, list)| (format!("{name}."), addresses(list))).collect();
        Arc::new(Self { names, server, ..Self::default() })
    }

    pub fn lookups(&self) -> Vec<String> {
        self.lookups.lock().unwrap().clone()
    }

    pub fn dialled(&self) -> Vec<String> {
        self.dialled.lock().unwrap().iter().map(SocketAddr::to_string).collect()
    }
}

impl Resolver for World {
    fn lookup<'a>(&'a self, host: &'a str, _: u16) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        self.lookups.lock().unwrap().push(host.to_owned());
        let found = self.names.get(host).cloned().ok_or_else(|| io::Error::other("no such host"));
        std::future::ready(found).boxed()
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.dialled.lock().unwrap().push(to);
        let server = if to.ip().is_loopback() { Some(to) } else { self.server };
        async move { TcpStream::connect(server.ok_or(io::ErrorKind::ConnectionRefused)?).await }.boxed()
    }
}

/// A gateway with the test in the place of the sandbox.
pub struct Sandbox {
    pub gateway: Gateway,
    pub policy: watch::Sender<NetworkPolicy>,
    pub dns: SocketAddr,
    /// Where the listener for a port of the sandbox really listens.
    pub ports: BTreeMap<u16, u16>,
    pub client: UdpSocket,
}

impl Sandbox {
    pub async fn start(rules: &[(&str, &str)], grants: &[Grant], world: Arc<World>) -> Self {
        // The same port for UDP and TCP, as DNS has it.
        let (udp, tcp) = std::iter::repeat_with(|| {
            let udp = StdUdpSocket::bind("127.64.0.1:0").unwrap();
            let tcp = StdListener::bind(udp.local_addr().unwrap());
            (udp, tcp)
        })
        .find_map(|(udp, tcp)| Some((udp, tcp.ok()?)))
        .unwrap();
        let dns = udp.local_addr().unwrap();
        let (mut ports, mut listeners) = (BTreeMap::new(), Vec::new());
        for port in [22, 80, 443] {
            let listener = StdListener::bind("0.0.0.0:0").unwrap();
            ports.insert(port, listener.local_addr().unwrap().port());
            listeners.push((port, listener.into()));
        }
        let (policy, rules) = watch::channel(policy(rules));
        let fds = NetworkFds { dns_udp: udp.into(), dns_tcp: tcp.into(), listeners };
        let gateway = Gateway::start("box", fds, rules, grants.into(), world).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        Self { gateway, policy, dns, ports, client }
    }

    /// Sends a packet to the DNS socket; `None` when no reply comes.
    pub async fn datagram(&self, packet: &[u8], wait: Duration) -> Option<Vec<u8>> {
        self.client.send_to(packet, self.dns).await.unwrap();
        let mut reply = vec![0; 1024];
        let (length, _) = timeout(wait, self.client.recv_from(&mut reply)).await.ok()?.unwrap();
        reply.truncate(length);
        Some(reply)
    }

    pub async fn ask(&self, name: &str, kind: TYPE) -> (RCODE, Option<Ipv4Addr>) {
        let reply = self.datagram(&query(name, kind), PATIENCE).await.expect("a reply");
        read_reply(&reply)
    }

    pub async fn resolve(&self, name: &str) -> Ipv4Addr {
        self.ask(name, TYPE::A).await.1.expect("an address")
    }

    pub async fn connect(&self, to: Ipv4Addr, port: u16) -> TcpStream {
        TcpStream::connect((to, self.ports[&port])).await.unwrap()
    }

    /// Resolves, connects and sends a hello for `server_name`.
    pub async fn open(&self, name: &str, server_name: &str) -> TcpStream {
        let mut stream = self.connect(self.resolve(name).await, 443).await;
        stream.write_all(&client_hello(Some(server_name))).await.unwrap();
        stream
    }

    /// Resolves and connects to port 22, where no hello is asked for.
    pub async fn open_plain(&self, name: &str) -> TcpStream {
        self.connect(self.resolve(name).await, 22).await
    }

    pub fn counters(&self) -> Counters {
        self.gateway.counters()
    }

    pub fn last_sentence(&self) -> String {
        self.counters().recent.last().cloned().unwrap_or_default()
    }
}

pub fn policy(rules: &[(&str, &str)]) -> NetworkPolicy {
    let rule = |&(domain, action): &(&str, &str)| PolicyRule {
        domain: Some(domain.into()),
        include: None,
        action: Some(action.into()),
    };
    NetworkPolicy { rules: rules.iter().map(rule).collect() }
}

pub fn query(name: &str, kind: TYPE) -> Vec<u8> {
    let mut packet = Packet::new_query(7);
    packet.questions.push(Question::new(Name::new(name).unwrap(), QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().unwrap()
}

pub fn read_reply(reply: &[u8]) -> (RCODE, Option<Ipv4Addr>) {
    let reply = Packet::parse(reply).unwrap();
    let address = reply.answers.first().map(|record| match &record.rdata {
        RData::A(a) => Ipv4Addr::from_bits(a.address),
        other => panic!("{other:?}"),
    });
    (reply.rcode(), address)
}

pub fn with_length(width: usize, content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_be_bytes()[4 - width..], content].concat()
}

pub fn client_hello(server_name: Option<&str>) -> Vec<u8> {
    let extension = |kind: u16, content: &[u8]| [&kind.to_be_bytes()[..], &with_length(2, content)].concat();
    let name = server_name.map(|name| {
        let entry = [&[0][..], &with_length(2, name.as_bytes())].concat();
        extension(0, &with_length(2, &entry))
    });
    let extensions = [
        name.unwrap_or_default(),
        extension(13, &with_length(2, &[0x04, 0x03])), // signature algorithms
        extension(43, &with_length(1, &[0x03, 0x04])), // versions
    ]
    .concat();
    let suites = [0, 2, 0x13, 0x01];
    let no_compression = [1, 0];
    let body = [&[3, 3][..], &[7; 32], &[0], &suites, &no_compression, &with_length(2, &extensions)].concat();
    let message = [&[1][..], &with_length(3, &body)].concat();
    [&[22, 3, 1][..], &with_length(2, &message)].concat()
}

/// A server that sends back what it gets, and ends when the other side ends.
pub async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    address
}

/// Waits for the end of a stream and demands that it is a reset, with nothing before it.
pub async fn expect_reset(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the connection ends");
    let kind = ended.map_err(|error| error.kind());
    assert_eq!((kind, rest.len()), (Err(io::ErrorKind::ConnectionReset), 0));
}

pub async fn expect_echo(stream: &mut TcpStream, sent: &[u8]) {
    let mut back = vec![0; sent.len()];
    timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an echo in time").unwrap();
    assert!(back == sent);
}
