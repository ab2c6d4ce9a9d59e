//! A program's streams, pipes or terminal, as things that can be awaited.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::unix::pipe;

use super::Channel;
use crate::host::sandbox::Stdio;

/// Where output comes from.
pub enum Source {
    Pipe(pipe::Receiver),
    Tty(Arc<AsyncFd<OwnedFd>>),
}

/// Where input goes. Dropping it is the end of input, except on a terminal, which has none.
pub enum Target {
    Pipe(pipe::Sender),
    Tty(Arc<AsyncFd<OwnedFd>>),
}

/// Splits a program's streams into input and outputs.
pub fn open(stdio: Stdio) -> io::Result<(Target, Vec<(Channel, Source)>)> {
    Ok(match stdio {
        Stdio::Pipes { stdin, stdout, stderr } => (
            Target::Pipe(stdin),
            vec![(Channel::Stdout, Source::Pipe(stdout)), (Channel::Stderr, Source::Pipe(stderr))],
        ),
        Stdio::Tty(master) => {
            let flags = rustix::fs::fcntl_getfl(&master)?;
            rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
            // SAFETY: an owned descriptor is open, and stays the same one until it is dropped, which is with the AsyncFd.
            let master = Arc::new(unsafe { AsyncFd::register(master) }?);
            (Target::Tty(master.clone()), vec![(Channel::Stdout, Source::Tty(master))])
        }
    })
}

/// Waits until one of the sources has something: its index and the number of bytes that were put into `buffer`, zero
/// at its end. Loses nothing when dropped.
pub async fn read_any(sources: &mut [(Channel, Source)], buffer: &mut [u8]) -> (usize, usize) {
    poll_fn(|cx| {
        for (index, (_, source)) in sources.iter_mut().enumerate() {
            if let Poll::Ready(read) = source.poll_read(cx, buffer) {
                return Poll::Ready((index, read));
            }
        }
        Poll::Pending
    })
    .await
}

impl Source {
    /// Zero at the end; an error is an end too (a terminal whose program is gone reads as EIO).
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<usize> {
        match self {
            Self::Pipe(pipe) => {
                let mut buffer = ReadBuf::new(buffer);
                let read = ready!(Pin::new(pipe).poll_read(cx, &mut buffer));
                Poll::Ready(read.map_or(0, |()| buffer.filled().len()))
            }
            Self::Tty(master) => loop {
                let Ok(mut guard) = ready!(master.poll_read_ready(cx)) else { return Poll::Ready(0) };
                // The other case is that it would block after all.
                if let Ok(read) = guard.try_io(|fd| rustix::io::read(fd, &mut *buffer).map_err(io::Error::from)) {
                    return Poll::Ready(read.unwrap_or(0));
                }
            },
        }
    }
}

impl Target {
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Tty(master) => {
                while !bytes.is_empty() {
                    let mut guard = master.writable().await?;
                    if let Ok(written) = guard.try_io(|fd| rustix::io::write(fd, bytes).map_err(io::Error::from)) {
                        bytes = &bytes[written?..];
                    }
                }
                Ok(())
            }
        }
    }
}
