//! What the service and the inside of a sandbox say to each other, and how: one message per packet, with descriptors.
//!
//! Two kinds of socket, both `SOCK_SEQPACKET`: the *control* socket (one per sandbox, service to helper, later to init)
//! and one *exec* socket per program (service to that program's supervisor). What comes from inside is never trusted:
//! a message is bounded, holds only numbers and short words, and one that can't be read ends its sender.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::FsOp;
use crate::host::walls::Walls;

/// Bytes of one message to the inside: room for a script of 64 KiB, escaped, with its environment. It also has to fit
/// a socket buffer of the kernel's default size (208 KiB).
pub const TO_INSIDE_MAX: usize = 160 * 1024;
/// Bytes of one message from the inside. They are numbers and one step's name.
pub const FROM_INSIDE_MAX: usize = 1024;
/// Descriptors with one message: DNS twice, the pidfd, and a listener for each port.
pub const FDS_MAX: usize = 24;

/// The first message to the helper: what to build.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    pub name: String,
    pub dir: PathBuf,
    pub lower: Vec<String>,
    pub run: String,
    pub rootfs: Option<PathBuf>,
    pub ports: Vec<u16>,
    pub caps: Caps,
    /// False for isolation off: no walls, only the tree of processes is held together.
    pub walls: bool,
    /// Which of them stand: all, but in tests.
    pub standing: Walls,
}

/// The limits that the kernel holds from inside.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Caps {
    pub memory: u64,
    pub processes: u64,
    pub disk: u64,
    pub inodes: u64,
    pub open_files: u64,
}

/// From the helper and from init while the sandbox is built. `Born` and `Ready` may come in either order.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// Init exists. Descriptors: its pidfd, DNS udp, DNS tcp, one listener per port. Without walls: none.
    Born {
        pid: u32,
        uid: u32,
        gid: u32,
    },
    /// Programs can be started. Descriptors: the root, then the roots of the memory-backed file systems.
    Ready,
    Failed {
        step: String,
        errno: i32,
    },
}

/// To init.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Descriptors: the exec socket, then stdin, stdout and stderr unless `tty`.
    Run(Start),
    /// End what a dead supervisor left. Descriptor: a socket that is closed when nothing is left.
    Sweep,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    pub program: Program,
    pub env: Vec<(String, String)>,
    pub dir: String,
    pub tty: Option<(u16, u16)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Program {
    Exec(Vec<String>),
    Fs(FsOp),
}

/// From a supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// The program runs. Descriptor: the terminal's master side when one was asked for.
    Started {
        pid: u32,
    },
    /// It could not be started; nothing of it is left.
    Refused {
        dir: bool,
        errno: i32,
    },
    Exited {
        status: u8,
    },
    /// Neither the program nor any descendant of it is left. The last message.
    Empty,
}

/// To a supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    Signal(i32),
    Resize { rows: u16, cols: u16 },
    KillTree,
}

/// A connected pair of message sockets, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message; `EMSGSIZE` when it is longer than the peer will read.
pub fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    if bytes.len() > TO_INSIDE_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message of at most `limit` bytes; `None` when the peer has closed its end.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd, limit: usize) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            got => break got?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let message = serde_json::from_slice(&bytes[..got.bytes])
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a message from the other side can't be understood"))?;
    Ok(Some((message, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (a, b) = pair().unwrap();
        send(&a, &Event::Started { pid: 7 }, &[a.as_fd(), b.as_fd()]).unwrap();
        let (event, fds) = receive::<Event>(&b, FROM_INSIDE_MAX).unwrap().unwrap();
        assert!(matches!(event, Event::Started { pid: 7 }));
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn a_message_longer_than_the_limit_is_an_error_and_not_cut() {
        let (a, b) = pair().unwrap();
        send(&a, &Report::Failed { step: "x".repeat(FROM_INSIDE_MAX), errno: 1 }, &[]).unwrap();
        let error = receive::<Report>(&b, FROM_INSIDE_MAX).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn garbage_is_an_error_and_a_closed_peer_is_the_end() {
        let (a, b) = pair().unwrap();
        rustix::net::send(&a, b"{\"Started\":", SendFlags::empty()).unwrap();
        assert_eq!(receive::<Event>(&b, FROM_INSIDE_MAX).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(a);
        assert!(receive::<Event>(&b, FROM_INSIDE_MAX).unwrap().is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_from_inside_are_a_message_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..FROM_INSIDE_MAX)) {
            let (a, b) = pair().unwrap();
            for _ in 0..2 {
                rustix::net::send(&a, &bytes, SendFlags::empty()).unwrap();
            }
            let _ = receive::<Event>(&b, FROM_INSIDE_MAX);
            let _ = receive::<Report>(&b, FROM_INSIDE_MAX);
        }
    }
}
