//! The sandbox's network namespace: a loopback device and the sockets that are its only way out.
//!
//! On a loopback device the kernel makes the whole prefix of an address local, so every synthetic address of
//! 198.18.0.0/15 arrives at the listeners here, which the service accepts on. It is also what makes resolvers that ask
//! only for configured families (`AI_ADDRCONFIG`) find names at all: 127.0.0.1 does not count for them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use super::sys::{self, Fault, Step};

/// The resolver's address inside, and the address of `lo` that makes the whole range local.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 254, 0, 0);
/// Connections waiting to be accepted, per port. The service accepts at once; this covers a burst.
const BACKLOG: i32 = 128;

/// Sets the network up. Gives DNS over UDP, DNS over TCP, then a listener for each port.
pub(super) fn build(ports: &[u16]) -> Result<Vec<OwnedFd>, Fault> {
    loopback().step("set up the loopback device")?;
    let mut sockets = vec![
        bound(SocketType::DGRAM, GATEWAY, 53).step("bind the resolver")?,
        bound(SocketType::STREAM, GATEWAY, 53).step("bind the resolver")?,
    ];
    for &port in ports {
        sockets.push(bound(SocketType::STREAM, Ipv4Addr::UNSPECIFIED, port).step("bind the gateway's ports")?);
    }
    Ok(sockets)
}

fn bound(kind: SocketType, address: Ipv4Addr, port: u16) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::new(IpAddr::V4(address), port))?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// Brings `lo` up, which also gives it 127.0.0.1 and ::1, and adds the gateway's address.
fn loopback() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut up = request("lo");
    // IFF_UP fits: it is 1.
    up.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(&socket, libc::SIOCSIFFLAGS, &up)?;
    // A label after a colon adds an address instead of replacing the first.
    let mut address = request("lo:1");
    address.ifr_ifru.ifru_addr = sockaddr(GATEWAY);
    ioctl(&socket, libc::SIOCSIFADDR, &address)?;
    address.ifr_ifru.ifru_addr = sockaddr(NETMASK);
    ioctl(&socket, libc::SIOCSIFNETMASK, &address)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The names given are shorter than the 16 bytes there, so it stays terminated.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

fn ioctl(socket: &OwnedFd, code: libc::Ioctl, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: these three requests read an `ifreq`, which outlives the call.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), code, request) }.into())?;
    Ok(())
}
