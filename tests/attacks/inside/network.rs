//! Sockets: families, addresses, names, TLS hellos.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{each, error, outcome, outcome_of};

const GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 53);
const PATIENCE: Duration = Duration::from_secs(3);
/// For an answer that must not come; the one that comes takes a tenth of a millisecond.
const SILENCE: Duration = Duration::from_millis(300);

pub fn attempt(words: &[&str]) -> Option<String> {
    let argument = |n: usize| words.get(n).copied().unwrap_or_default();
    Some(match words[0] {
        "vsock" => socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        "families" => {
            let known = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
            let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET];
            let families = (0..64).filter(|family| !known.contains(family));
            let tries =
                families.flat_map(|family| kinds.map(|kind| (format!("{family}/{kind}"), socket(family, kind, 0))));
            each(tries)
        }
        "netlink" => each((0..32).map(|protocol| {
            let answer = socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol);
            // Asked for as it should be: route alone works.
            (protocol, if protocol == libc::NETLINK_ROUTE { answer.replace("done", "EPERM") } else { answer })
        })),
        "raw" => each([
            ("v4", socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
            ("v6", socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)),
            ("packet", socket(libc::AF_INET, 10, 0)),
            // Garbage in the upper half of an argument must not hide its lower half.
            ("wide", wide_socket()),
        ]),
        "connect" => each(words[1..].iter().map(|to| (*to, connect(to)))),
        "udp" => each(words[1..].iter().map(|to| (*to, datagram(to)))),
        "resolve" => each(words[1..].iter().map(|name| (*name, ask(&query(name)).0))),
        // Gets an address handed out, then sends it a datagram.
        "quic" => match ask(&query(argument(1))) {
            (_, Some(address)) => datagram(&format!("{address}:443")),
            (code, None) => code,
        },
        "address" => ask(&query(argument(1))).1.map_or("none".into(), |address| address.to_string()),
        "malformed" => {
            let good = query("allowed.test");
            let with = |at: usize, byte: u8| {
                let mut packet = good.clone();
                packet[at] = byte;
                packet
            };
            each([
                ("dot in a label", ask(&with(14, b'.')).0),
                ("nul in a label", ask(&with(14, 0)).0),
                ("compression loop", ask(&[&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat()).0),
                ("two questions", ask(&with(5, 2)).0),
                ("cut short", ask(&good[..good.len() - 1]).0),
                ("a reply", ask(&with(2, 0x80)).0),
            ])
        }
        // NAME SENT: connects to NAME's address on 443 and says SENT in some form; what comes back.
        "hello" => tls(argument(1), &record(&hello(argument(2)))),
        "plain" => tls(argument(1), b"GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n"),
        "no-server-name" => tls(argument(1), &record(&hello(""))),
        "split" => tls(argument(1), &hello(argument(2)).iter().flat_map(|byte| record(&[*byte])).collect::<Vec<_>>()),
        "long" => {
            let message = hello(argument(2));
            // A hello that claims and brings 20,000 bytes.
            let body = [&message[4..], &vec![0; 20_000]].concat();
            let long = [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat();
            tls(argument(1), &long.chunks(10_000).flat_map(record).collect::<Vec<_>>())
        }
        "slow" => tls(argument(1), &record(&hello(argument(2)))[..20]),
        "ssh" => through(argument(1), 22, b"hello"),
        "echo" => match argument(1).parse::<SocketAddr>().map_err(io::Error::other).and_then(TcpStream::connect) {
            Ok(stream) => exchange(stream, b"hello"),
            Err(e) => error(&e),
        },
        // A connection that stays until it is cut.
        "stay-connected" => {
            let Some(address) = ask(&query(argument(1))).1 else { return Some("no address".into()) };
            let Ok(mut stream) = TcpStream::connect((address, 22)) else { return Some("no connection".into()) };
            let mut byte = [0];
            let first = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte));
            println!("{}", outcome_of(first).replace("done", "connected"));
            match stream.read(&mut byte) {
                Ok(n) => format!("read {n}"),
                Err(e) => error(&e),
            }
        }
        "abstract" => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(argument(1));
            outcome_of(address.and_then(|address| UnixStream::connect_addr(&address)))
        }
        "path-socket" => outcome_of(UnixStream::connect(argument(1))),
        "listen" => {
            let port = std::net::TcpListener::bind("127.0.0.1:7777");
            let name = std::os::unix::net::SocketAddr::from_abstract_name("sprite-attack");
            let name = name.and_then(|name| std::os::unix::net::UnixListener::bind_addr(&name));
            super::stay(if port.is_ok() && name.is_ok() { "ready" } else { "not ready" })
        }
        "interface" => {
            // SAFETY: an all-zero request is valid, and outlives the call.
            outcome(unsafe {
                let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
                let mut request: libc::ifreq = std::mem::zeroed();
                (request.ifr_name[0], request.ifr_name[1]) = (b'l' as _, b'o' as _);
                libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request).into()
            })
        }
        _ => return None,
    })
}

fn socket(family: i32, kind: i32, protocol: i32) -> String {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    let answer = outcome(fd.into());
    // SAFETY: just made, or -1.
    unsafe { libc::close(fd) };
    answer
}

fn wide_socket() -> String {
    let wide = |n: i32| libc::c_long::from(n) | (1 << 40);
    // SAFETY: plain numbers.
    outcome(unsafe { libc::syscall(libc::SYS_socket, wide(libc::AF_INET), wide(libc::SOCK_RAW), 1) })
}

fn connect(to: &str) -> String {
    let Ok(to) = to.parse::<SocketAddr>() else { return format!("{to} is no address") };
    outcome_of(TcpStream::connect_timeout(&to, PATIENCE))
}

/// Sends a datagram and tells what comes of it.
fn datagram(to: &str) -> String {
    let attempt = || -> io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"hello")?;
        socket.recv(&mut [0; 8]).map(drop)
    };
    outcome_of(attempt())
}

/// A query for the IPv4 address of a name.
fn query(name: &str) -> Vec<u8> {
    let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}

/// The response code, and the address when there is one.
fn ask(packet: &[u8]) -> (String, Option<Ipv4Addr>) {
    let attempt = || -> io::Result<Vec<u8>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.send_to(packet, GATEWAY)?;
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply)?;
        Ok(reply[..length].to_vec())
    };
    match attempt() {
        Ok(reply) if reply.len() > 12 => {
            let address = (reply[7] == 1).then(|| reply.last_chunk::<4>().map(|last| Ipv4Addr::from(*last))).flatten();
            (format!("rcode {}", reply[3] & 15), address)
        }
        Ok(_) => ("short reply".into(), None),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => ("no reply".into(), None),
        Err(e) => (error(&e), None),
    }
}

fn tls(name: &str, bytes: &[u8]) -> String {
    through(name, 443, bytes)
}

/// Sends the bytes to the address of a name: `echo` when they come back, or how it ended.
fn through(name: &str, port: u16, bytes: &[u8]) -> String {
    let (code, Some(address)) = ask(&query(name)) else { return "no address".into() };
    match TcpStream::connect((address, port)) {
        Ok(stream) => exchange(stream, bytes),
        Err(e) => format!("{code} {}", error(&e)),
    }
}

fn exchange(mut stream: TcpStream, bytes: &[u8]) -> String {
    let mut back = vec![0; bytes.len()];
    // A reset may come while this still writes.
    let sent = stream.write_all(bytes);
    match sent.and_then(|()| stream.read_exact(&mut back)) {
        Ok(()) if back == bytes => "echo".into(),
        Ok(()) => "something else".into(),
        Err(e) if e.raw_os_error() == Some(libc::EPIPE) => "ECONNRESET".into(),
        Err(e) => error(&e),
    }
}

fn sized(width: usize, content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_be_bytes()[4 - width..], content].concat()
}

/// A TLS record of a handshake.
fn record(content: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &sized(2, content)].concat()
}

/// The handshake message of a TLS 1.3 client that asks for `name`, or for none.
fn hello(name: &str) -> Vec<u8> {
    let extension = |kind: u16, content: &[u8]| [&kind.to_be_bytes()[..], &sized(2, content)].concat();
    let server_name = extension(0, &sized(2, &[&[0][..], &sized(2, name.as_bytes())].concat()));
    let mut extensions = if name.is_empty() { Vec::new() } else { server_name };
    extensions.extend(extension(43, &sized(1, &[3, 4])));
    extensions.extend(extension(13, &sized(2, &[4, 3])));
    let body = [&[3, 3][..], &[7; 32], &[0], &sized(2, &[0x13, 1]), &[1, 0], &sized(2, &extensions)].concat();
    [&[1][..], &sized(3, &body)].concat()
}
