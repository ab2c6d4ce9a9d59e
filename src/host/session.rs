//! One program that the API started: its output kept for those who watch, its input queued, its end told once.
//!
//! A session is independent of its clients. The first one watches from the start; others may attach later and get the
//! newest output first; when all are gone the program may go on for [`Launch::max_run_after_disconnect`]. Output waits
//! for the slowest client that is attached; with none, only the newest [`REPLAY`] bytes are kept.

mod log;
mod stdio;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use self::log::Log;
pub use self::log::{Channel, Next, Piece};
use self::stdio::{Source, Target};
use super::sandbox::{Process, SandboxError};
use super::store::Machine;

/// Bytes of output in one message: small enough for any client, large enough to be cheap.
pub const CHUNK: usize = 32 * 1024;

/// Bytes of output kept for those who attach later, and by which a client may lag.
const REPLAY: u64 = 1024 * 1024;

/// Pieces of input that wait for the program; more make the client wait.
const STDIN_QUEUE: usize = 4;

/// After the program's end its pipes are read for so long at most: a grandchild may hold them open for ever ...
const DRAIN_TIME: Duration = Duration::from_millis(250);

/// ... and for so many bytes at most, for a grandchild that never stops writing. What the program itself wrote is at
/// most what a pipe can be made to hold.
const DRAIN_BYTES: u64 = 1024 * 1024;

/// Status of a program that ended with its sandbox, as if by SIGKILL.
pub const KILLED: u8 = 137;

/// What a session is told at its start.
pub struct Launch {
    pub id: String,
    /// Program and arguments, for people.
    pub command: String,
    pub dir: Option<String>,
    /// Columns and rows, for a program on a terminal.
    pub tty: Option<(u16, u16)>,
    pub created: Timestamp,
    /// How long the program may run with no client; for ever when `None`.
    pub max_run_after_disconnect: Option<Duration>,
    /// Bytes of each output stream that are passed on.
    pub output_limit: u64,
}

/// A running program and what it said. Shared by its clients and its sprite's list.
pub struct Session {
    pub launch: Launch,
    pub pid: u32,
    machine: Arc<Machine>,
    shared: Mutex<Shared>,
    /// Told when output came or the end did.
    output: watch::Sender<()>,
    /// Told when a client took output or left.
    taken: Notify,
    /// Exit status, known before the last output is passed on.
    exited: watch::Sender<Option<Exit>>,
    clients: watch::Sender<usize>,
    stdin: mpsc::Sender<Input>,
}

struct Shared {
    log: Log,
    /// The place of each client, by its number.
    places: BTreeMap<u64, u64>,
    next_client: u64,
}

/// How the program ended.
#[derive(Clone, Debug)]
struct Exit {
    status: u8,
    /// Set when it did not end by itself but with its sandbox.
    reason: Option<String>,
}

/// Input for the program.
#[derive(Debug)]
pub enum Input {
    Data(Bytes),
    End,
}

/// One client's view of a session. While it lives, no output is dropped before it was taken.
pub struct Reader {
    session: Arc<Session>,
    number: u64,
    wake: watch::Receiver<()>,
}

impl Session {
    /// Takes charge of `process`. `slot` is given back and `on_end` is called when the session has ended, before the
    /// first client learns of it.
    pub fn start(
        launch: Launch,
        process: Process,
        machine: Arc<Machine>,
        slot: OwnedSemaphorePermit,
        on_end: impl FnOnce(&Session) + Send + 'static,
    ) -> std::io::Result<(Arc<Self>, Reader)> {
        let (stdin, input) = mpsc::channel(STDIN_QUEUE);
        let (target, sources) = stdio::open(process.stdio)?;
        let session = Arc::new(Self {
            launch,
            pid: process.pid,
            machine,
            shared: Mutex::new(Shared { log: Log::new(REPLAY), places: BTreeMap::new(), next_client: 0 }),
            output: watch::Sender::new(()),
            taken: Notify::new(),
            exited: watch::Sender::new(None),
            clients: watch::Sender::new(0),
            stdin,
        });
        let reader = session.attach();
        tokio::spawn({
            let session = session.clone();
            async move {
                let exit = match process.exit.await {
                    Ok(status) => Exit { status, reason: None },
                    Err(_) => Exit { status: KILLED, reason: Some(session.machine.why_gone().await) },
                };
                session.exited.send_replace(Some(exit));
            }
        });
        let writer = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(write(target, input)));
        tokio::spawn({
            let session = session.clone();
            async move {
                let status = session.pump(sources).await;
                drop(writer);
                drop(slot);
                session.shared().log.end(status);
                on_end(&session);
                session.output.send_replace(());
            }
        });
        Ok((session, reader))
    }

    /// A further client; it gets the output that is still kept, then what comes.
    pub fn attach(self: &Arc<Self>) -> Reader {
        let mut shared = self.shared();
        let number = shared.next_client;
        shared.next_client += 1;
        shared.places.insert(number, 0);
        drop(shared);
        self.clients.send_modify(|n| *n += 1);
        Reader { session: self.clone(), number, wake: self.output.subscribe() }
    }

    /// How many watch it now.
    pub fn clients(&self) -> usize {
        *self.clients.borrow()
    }

    /// Queues input, waiting while the queue is full. Input for a program that reads no more is dropped.
    pub async fn input(&self, input: Input) {
        let _ = self.stdin.send(input).await;
    }

    /// Signals the program's process group.
    pub async fn signal(&self, signal: rustix::process::Signal) -> Result<(), SandboxError> {
        self.machine.signal(self.pid, signal).await
    }

    /// Kills the program and all that it started.
    pub async fn kill_tree(&self) -> Result<(), SandboxError> {
        self.machine.kill_tree(self.pid).await
    }

    /// Tells the program's terminal its size; without a terminal, nothing.
    pub async fn resize(&self, cols: u16, rows: u16) -> Result<(), SandboxError> {
        if self.launch.tty.is_none() {
            return Ok(());
        }
        self.machine.resize(self.pid, cols, rows).await
    }

    /// Waits until the program itself has ended; its status.
    pub async fn exited(&self) -> u8 {
        self.exit().await.status
    }

    async fn exit(&self) -> Exit {
        let mut exited = self.exited.subscribe();
        // The sender lives in `self`, so the wait can't fail.
        let exit = exited.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| exit.clone()).unwrap_or(Exit { status: KILLED, reason: None })
    }

    /// Whether all is over, output included.
    pub fn has_ended(&self) -> bool {
        self.shared().log.has_ended()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes output on until the program and its output have ended; the exit status.
    async fn pump(&self, mut sources: Vec<(Channel, Source)>) -> u8 {
        let ending = self.exit();
        tokio::pin!(ending);
        let mut exit = None;
        let mut budget = Budget::new(self.launch.output_limit);
        let mut buffer = vec![0; CHUNK];
        let mut drain_until = Instant::now();
        let mut drained = 0;
        let abandoned = self.abandoned();
        tokio::pin!(abandoned);
        let mut is_abandoned = false;
        while exit.is_none() || !sources.is_empty() {
            tokio::select! {
                biased;
                ended = &mut ending, if exit.is_none() => {
                    exit = Some(ended);
                    drain_until = Instant::now() + DRAIN_TIME;
                }
                (index, read) = stdio::read_any(&mut sources, &mut buffer), if !sources.is_empty() => {
                    let channel = sources[index].0;
                    if read == 0 {
                        sources.swap_remove(index);
                        continue;
                    }
                    // Only time spent on waiting for the program counts, not that for slow clients.
                    let began = Instant::now();
                    self.push(channel, budget.take(channel, &buffer[..read])).await;
                    if exit.is_some() {
                        drain_until += began.elapsed();
                        drained += read as u64;
                        if drained > DRAIN_BYTES {
                            sources.clear();
                        }
                    }
                    // Neither stream starves the other.
                    sources.reverse();
                }
                () = tokio::time::sleep_until(drain_until), if exit.is_some() => sources.clear(),
                () = &mut abandoned, if !is_abandoned => {
                    is_abandoned = true;
                    if let Err(error) = self.kill_tree().await {
                        tracing::warn!(session = self.launch.id, %error, "a session without clients could not be killed");
                    }
                }
            }
        }
        let exit = exit.unwrap_or(Exit { status: KILLED, reason: None });
        for note in budget.note(self.launch.output_limit).into_iter().chain(exit.reason.map(|r| format!("[{r}]\n"))) {
            let channel = if self.launch.tty.is_some() { Channel::Stdout } else { Channel::Stderr };
            self.push(channel, note.as_bytes()).await;
        }
        exit.status
    }

    /// Appends a piece once no client would lose output by it.
    async fn push(&self, channel: Channel, output: &[u8]) {
        if output.is_empty() {
            return;
        }
        let piece = Piece::new(channel, output);
        while self.is_awaited(&piece) {
            self.taken.notified().await;
        }
        self.shared().log.push(piece);
        self.output.send_replace(());
    }

    /// Whether a client has yet to take output that `piece` would push out.
    fn is_awaited(&self, piece: &Piece) -> bool {
        let shared = self.shared();
        shared.places.values().any(|place| shared.log.would_lose(*place, piece))
    }

    /// Returns when there was no client for as long as the program may run without one.
    async fn abandoned(&self) {
        let Some(max) = self.launch.max_run_after_disconnect else { return std::future::pending().await };
        let mut clients = self.clients.subscribe();
        loop {
            // The sender lives in `self`, so neither wait can fail.
            let _ = clients.wait_for(|n| *n == 0).await;
            if tokio::time::timeout(max, clients.wait_for(|n| *n > 0)).await.is_err() {
                return;
            }
        }
    }
}

impl Reader {
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Waits for the next piece, or the exit status after the last one. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Piece, u8> {
        loop {
            // Marked as seen before looking, so that what comes in between wakes the wait below.
            self.wake.borrow_and_update();
            match self.take() {
                Next::Piece(piece, _) => return Ok(piece),
                Next::End(status) => return Err(status),
                // The sender lives in the session, so the wait can't fail.
                Next::Nothing => drop(self.wake.changed().await),
            }
        }
    }

    fn take(&self) -> Next {
        let mut shared = self.session.shared();
        let Shared { log, places, .. } = &mut *shared;
        let place = places.entry(self.number).or_default();
        let next = log.next(*place);
        if let Next::Piece(_, after) = &next {
            *place = *after;
            self.session.taken.notify_one();
        }
        next
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.session.shared().places.remove(&self.number);
        self.session.taken.notify_one();
        self.session.clients.send_modify(|n| *n -= 1);
    }
}

/// How much of each output stream may still be passed on. Pure.
struct Budget {
    left: [u64; 2],
    cut: bool,
}

impl Budget {
    fn new(limit: u64) -> Self {
        Self { left: [limit; 2], cut: false }
    }

    /// What of `bytes` may be passed on.
    fn take<'a>(&mut self, channel: Channel, output: &'a [u8]) -> &'a [u8] {
        let left = &mut self.left[channel as usize - 1];
        let passed = output.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        self.cut |= passed < output.len();
        *left -= passed as u64;
        &output[..passed]
    }

    fn note(&self, limit: u64) -> Option<String> {
        self.cut.then(|| format!("[output cut after {limit} bytes]\n"))
    }
}

/// Writes input to the program until its end, or until the program reads no more.
async fn write(target: Target, mut input: mpsc::Receiver<Input>) {
    let mut target = Some(target);
    while let Some(next) = input.recv().await {
        match next {
            Input::Data(bytes) => {
                let failed = match &mut target {
                    Some(target) => target.write_all(&bytes).await.is_err(),
                    None => false,
                };
                if failed {
                    target = None;
                }
            }
            Input::End => target = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_has_its_own_limit_and_a_cut_is_noted() {
        let mut budget = Budget::new(4);
        assert_eq!(budget.take(Channel::Stdout, b"abc"), b"abc");
        assert_eq!(budget.take(Channel::Stderr, b"wxyz"), b"wxyz");
        assert_eq!(budget.note(4), None);
        assert_eq!(budget.take(Channel::Stdout, b"def"), b"d");
        assert_eq!(budget.take(Channel::Stdout, b"g"), b"");
        assert_eq!(budget.note(4).as_deref(), Some("[output cut after 4 bytes]\n"));
    }
}
