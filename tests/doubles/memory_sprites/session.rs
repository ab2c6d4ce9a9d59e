//! Programs in an in-memory sprite: starting, stepping through, signalling, and the stream to the client.
//!
//! A program is a task of the server's, so it lives on when the client's stream breaks, until its time without a
//! client is up. The pump of the [`Exec`] is the client's end of the connection.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use janebot::sprites::{Exec, ExecEvent, ExecRequest, Result, Signal, SpritesError};

use super::cloud::{Cloud, Run};
use super::faults::Fault;
use super::machine::{End, Machine, Session};
use super::script::{Program, Step};
use super::{Client, SharedCloud};

/// How long a program lives without a client, when the client did not say.
const DEFAULT_RUN_AFTER_DISCONNECT: Duration = Duration::from_secs(10);
/// Time from the start of a program to its first step.
const START_MS: (u64, u64) = (1, 20);
/// When a stream that is to break does so.
const CUT_MS: (u64, u64) = (1, 5_000);
/// `flood` comes in pieces of this size.
const CHUNK: usize = 32 * 1024;
static FLOOD: [u8; CHUNK] = [b'x'; CHUNK];

/// What travels from the program to its client.
#[derive(Debug)]
enum Wire {
    Stdout(Bytes),
    Stderr(Bytes),
    Exit(u8),
    Cut,
}

/// A program that was started, before its client's end is connected.
pub struct Started {
    session: String,
    wire: mpsc::UnboundedReceiver<Wire>,
    cut: Cut,
}

/// What becomes of the stream.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Never,
    BeforeExit { after: Duration },
    AfterExit,
}

/// What a step leads to.
enum Flow {
    Next { status: u8 },
    Exit(u8),
    Wait(Duration),
    WaitForEver,
}

/// A program's life on the server.
struct Life {
    cloud: SharedCloud,
    sprite: String,
    session: String,
    end: mpsc::UnboundedReceiver<End>,
    out: mpsc::UnboundedSender<Wire>,
}

impl Cloud {
    /// Starts the program; `shared` is this very cloud, for the program's task.
    pub fn start(
        &mut self,
        shared: &SharedCloud,
        client: &Client,
        sprite: &str,
        request: &ExecRequest,
    ) -> Result<Started> {
        self.machine(sprite)?;
        let program = Program::of(request);
        let cut = if self.hit(Fault::CutBeforeExit, sprite) {
            // Every other one breaks at once, so that short programs are cut as well.
            let after = if self.world.random().is_multiple_of(2) { 0 } else { self.between(CUT_MS) };
            Cut::BeforeExit { after: Duration::from_millis(after) }
        } else if self.hit(Fault::CutAfterExit, sprite) {
            Cut::AfterExit
        } else {
            Cut::Never
        };
        let never_exits = self.hit(Fault::NeverExits, sprite);
        let first_step = Duration::from_millis(self.between(START_MS));

        self.sessions_made += 1;
        let id = self.sessions_made.to_string();
        self.note(&format!("session {id} {sprite} {}", program.name));
        let (end, ended) = mpsc::unbounded_channel();
        let (out, wire) = mpsc::unbounded_channel();
        let session = Session {
            program: program.name.clone(),
            command: request.argv.join(" "),
            client: client.clone(),
            job: None,
            ignores_term: false,
            end,
        };
        self.machines.get_mut(sprite).expect("looked at above").sessions.insert(id.clone(), session);

        let life = Life {
            cloud: Arc::clone(shared),
            sprite: sprite.to_owned(),
            session: id.clone(),
            end: ended,
            out: out.clone(),
        };
        tokio::spawn(life.live(program.steps, first_step, never_exits));
        let alone = request.max_run_after_disconnect.unwrap_or(DEFAULT_RUN_AFTER_DISCONNECT);
        let (cloud, name, session) = (Arc::clone(shared), sprite.to_owned(), id.clone());
        tokio::spawn(async move {
            out.closed().await;
            let runs = super::lock(&cloud).machines.get(&name).is_some_and(|m| m.sessions.contains_key(&session));
            if !runs {
                return;
            }
            sleep(alone).await;
            super::lock(&cloud).end_session(&name, &session, End::Signal(9));
        });
        Ok(Started { session: id, wire, cut })
    }

    /// Signals a program. `true` when it takes no notice, so that only SIGKILL will end it.
    pub fn signal(&mut self, sprite: &str, session: &str, signal: Signal) -> Result<bool> {
        self.machine(sprite)?;
        if self.hit(Fault::KillIgnored, sprite) {
            return Ok(false);
        }
        let number = match signal {
            Signal::Interrupt => 2,
            Signal::Terminate => 15,
            Signal::Kill => 9,
        };
        let Some(target) = self.machines.get(sprite).and_then(|m| m.sessions.get(session)) else { return Ok(false) };
        if target.ignores_term && signal != Signal::Kill {
            return Ok(true);
        }
        self.end_session(sprite, session, End::Signal(number));
        Ok(false)
    }

    /// Ends a program from outside, if it still runs.
    pub fn end_session(&mut self, sprite: &str, session: &str, end: End) {
        let ended = self.machines.get_mut(sprite).is_some_and(|machine| machine.end_session(session, end));
        if ended {
            self.note(&format!("session {session} {sprite} ends: {end:?}"));
        }
    }

    /// Takes a step; `None` when the program has been ended from outside.
    fn step(&mut self, sprite: &str, session: &str, step: &Step, say: &mut Vec<Wire>) -> Option<Flow> {
        if !self.machines.get(sprite)?.sessions.contains_key(session) {
            return None;
        }
        if let Step::Start { env_file, marker } = step {
            return Some(self.begin_job(sprite, session, env_file, marker, say));
        }
        let machine = self.machines.get_mut(sprite)?;
        Some(match step {
            Step::Build => {
                for dir in ["work", "output", "input", ".janebot", ".local/bin"] {
                    machine.files.make_dir(&format!("{}/{dir}", super::machine::HOME));
                }
                Flow::Exit(0)
            }
            Step::Verify { canaries } => verify(machine, canaries, say),
            Step::Check { canary, stdin } => check(machine, canary, stdin, say),
            Step::Start { .. } => unreachable!("taken above"),
            Step::Leftovers => {
                let jobs = machine.sessions.values().filter(|session| session.job.is_some()).count();
                let text = format!("init=seen\nothers={}\n", jobs + machine.daemons.len());
                say.push(Wire::Stdout(text.into()));
                Flow::Exit(0)
            }
            Step::Echo(text) => {
                say.push(Wire::Stdout(format!("{text}\n").into()));
                Flow::Next { status: 0 }
            }
            Step::Err(text) => {
                say.push(Wire::Stderr(format!("{text}\n").into()));
                Flow::Next { status: 0 }
            }
            Step::Sleep(time) => Flow::Wait(*time),
            Step::Exit(status) => Flow::Exit(*status),
            Step::Touch(path) => write(machine, path, Bytes::new(), say),
            Step::Output { name, text } => {
                write(machine, &format!("output/{name}"), text.clone().into_bytes().into(), say)
            }
            Step::Daemon => {
                let job = machine.sessions[session].job.clone().unwrap_or_default();
                machine.daemons.push(job);
                Flow::Next { status: 0 }
            }
            Step::Read(path) => {
                let text = machine.files.read(path, u64::MAX).unwrap_or_else(|_| Bytes::from_static(b"absent"));
                say.push(Wire::Stdout(text));
                say.push(Wire::Stdout(Bytes::from_static(b"\n")));
                Flow::Next { status: 0 }
            }
            Step::Hang => Flow::WaitForEver,
            Step::IgnoreTerm => {
                machine.sessions.get_mut(session)?.ignores_term = true;
                Flow::Next { status: 0 }
            }
            Step::Flood(bytes) => {
                for start in (0..*bytes).step_by(CHUNK) {
                    say.push(Wire::Stdout(Bytes::from_static(&FLOOD[..CHUNK.min(bytes - start)])));
                }
                Flow::Next { status: 0 }
            }
            Step::Oom => Flow::Exit(128 + 9),
            Step::Unknown(line) => {
                say.push(Wire::Stderr(format!("sh: {line}: not found\n").into()));
                Flow::Next { status: 127 }
            }
        })
    }

    /// A job begins: what must hold at this moment is looked at here.
    fn begin_job(&mut self, sprite: &str, session: &str, env_file: &str, marker: &str, say: &mut Vec<Wire>) -> Flow {
        let machine = self.machines.get_mut(sprite).expect("the caller looked");
        if !machine.files.exists(env_file) {
            say.push(Wire::Stderr(format!("sh: can't open {env_file}\n").into()));
            return Flow::Exit(2);
        }
        machine.files.remove(env_file);
        let mut wrong = Vec::new();
        if let Some(before) = &machine.unclean {
            wrong.push(format!("after {before:?} without a restore that worked"));
        }
        if let Some(other) = machine.sessions.values().find_map(|session| session.job.as_ref()) {
            wrong.push(format!("while {other:?} runs there"));
        }
        if let Some(left) = machine.daemons.first() {
            wrong.push(format!("where a process of {left:?} runs"));
        }
        if machine.policy.rules.is_empty() {
            wrong.push("without a limit to the network".to_owned());
        } else if machine.policy != machine.policy_asked {
            wrong.push("under another policy than was asked for".to_owned());
        }
        if machine.files.agents() != machine.agents_expected {
            wrong.push("with other agents than its checkpoint holds".to_owned());
        }
        machine.unclean = Some(marker.to_owned());
        let sprite_id = machine.id.clone();
        let running = machine.sessions.get_mut(session).expect("the caller looked");
        running.job = Some(marker.to_owned());
        let client = running.client.name.clone();

        self.note(&format!("run {marker:?} on {sprite}"));
        for what in wrong {
            self.violation(&format!("{client} runs {marker:?} on {sprite} {what}"));
        }
        let at = self.elapsed();
        self.runs.push(Run { marker: marker.to_owned(), sprite: sprite.to_owned(), sprite_id, client, at });
        Flow::Next { status: 0 }
    }
}

fn verify(machine: &mut Machine, canaries: &[String], say: &mut Vec<Wire>) -> Flow {
    let present = canaries.iter().flat_map(canary_paths).any(|path| machine.files.exists(&path));
    let mut text = format!(
        "boot={}\ncanary={}\ndisk={}\n",
        machine.boot(),
        if present { "present" } else { "absent" },
        if machine.disk_full { "full" } else { "ok" },
    );
    for (name, version) in machine.files.agents() {
        text.push_str(&format!("agent:{name}={version}\n"));
    }
    say.push(Wire::Stdout(text.into()));
    Flow::Exit(0)
}

fn check(machine: &mut Machine, canary: &String, stdin: &[u8], say: &mut Vec<Wire>) -> Flow {
    for path in canary_paths(canary) {
        if let Flow::Next { status: 1 } = write(machine, &path, Bytes::new(), say) {
            return Flow::Exit(1);
        }
    }
    for line in String::from_utf8_lossy(stdin).lines() {
        let Some((mode, path, content)) = file_line(line) else {
            say.push(Wire::Stderr(format!("not a file: {} bytes\n", line.len()).into()));
            return Flow::Exit(1);
        };
        if machine.disk_full || machine.files.write(path, mode, content).is_err() {
            say.push(Wire::Stderr(format!("{path}: can't be written\n").into()));
            return Flow::Exit(1);
        }
    }
    say.push(Wire::Stdout(format!("boot={}\nready\n", machine.boot()).into()));
    Flow::Exit(0)
}

/// `<octal mode> <path> <base64 content>`; an empty file has nothing after the path.
fn file_line(line: &str) -> Option<(u32, &str, Bytes)> {
    let (mode, rest) = line.split_once(' ')?;
    let (path, content) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((u32::from_str_radix(mode, 8).ok()?, path, BASE64.decode(content.trim_end()).ok()?.into()))
}

fn canary_paths(name: &String) -> [String; 2] {
    [format!(".janebot/{name}"), format!("/tmp/{name}")]
}

fn write(machine: &mut Machine, path: &str, content: Bytes, say: &mut Vec<Wire>) -> Flow {
    let error = if machine.disk_full {
        "no space left on device".to_owned()
    } else {
        match machine.files.write(path, 0o644, content) {
            Ok(()) => return Flow::Next { status: 0 },
            Err(error) => error.to_string(),
        }
    };
    say.push(Wire::Stderr(format!("sh: {path}: {error}\n").into()));
    Flow::Next { status: 1 }
}

impl Life {
    async fn live(mut self, steps: Vec<Step>, first_step: Duration, never_exits: bool) {
        let end = match self.run(steps, first_step).await {
            Ok(status) if !never_exits => {
                let mut cloud = super::lock(&self.cloud);
                let machine = cloud.machines.get_mut(&self.sprite);
                match machine.and_then(|machine| machine.sessions.remove(&self.session)) {
                    Some(_) => {
                        cloud.note(&format!("session {} {} exits {status}", self.session, self.sprite));
                        Wire::Exit(status)
                    }
                    None => self.end.try_recv().map_or(Wire::Cut, ended),
                }
            }
            Ok(_) => self.end.recv().await.map_or(Wire::Cut, ended),
            Err(end) => ended(end),
        };
        // The client may be gone.
        let _ = self.out.send(end);
    }

    /// All steps, up to the exit status; `Err` when it was ended from outside.
    async fn run(&mut self, steps: Vec<Step>, first_step: Duration) -> Result<u8, End> {
        self.wait(first_step).await?;
        let mut last = 0;
        for step in steps {
            let mut say = Vec::new();
            let flow = super::lock(&self.cloud).step(&self.sprite, &self.session, &step, &mut say);
            for wire in say {
                // The client may be gone; the program goes on.
                let _ = self.out.send(wire);
            }
            match flow {
                Some(Flow::Next { status }) => last = status,
                Some(Flow::Exit(status)) => return Ok(status),
                Some(Flow::Wait(time)) => self.wait(time).await?,
                Some(Flow::WaitForEver) | None => return Err(self.end.recv().await.unwrap_or(End::Cut)),
            }
        }
        Ok(last)
    }

    async fn wait(&mut self, time: Duration) -> Result<(), End> {
        tokio::select! {
            biased;
            end = self.end.recv() => Err(end.unwrap_or(End::Cut)),
            () = sleep(time) => Ok(()),
        }
    }
}

fn ended(end: End) -> Wire {
    match end {
        End::Signal(number) => Wire::Exit(128 + number),
        End::Cut => Wire::Cut,
    }
}

impl Started {
    /// The client's end of the connection.
    pub fn connect(self, client: Client, until: Instant) -> Exec {
        let (events, receiver) = mpsc::channel(1);
        let session = self.session.clone();
        let pump = tokio::spawn(async move {
            let crashed = client.crashed.clone();
            tokio::select! {
                biased;
                // The program sees the connection closed, and nobody sees the stream end.
                () = crashed.cancelled() => {}
                () = self.pump(&events, until) => return,
            }
            let _events = events;
            pending::<()>().await;
        });
        Exec::new(session, receiver, pump)
    }

    async fn pump(mut self, events: &mpsc::Sender<Result<ExecEvent>>, until: Instant) {
        let cut_at = match self.cut {
            Cut::BeforeExit { after } => Some(Instant::now() + after),
            Cut::AfterExit | Cut::Never => None,
        };
        loop {
            let wire = tokio::select! {
                biased;
                () = sleep_until(cut_at.unwrap_or(until)), if cut_at.is_some() => Wire::Cut,
                wire = self.wire.recv() => wire.unwrap_or(Wire::Cut),
                () = sleep_until(until) => {
                    let _ = events.send(Err(unknown("no exit status came in time"))).await;
                    return;
                }
            };
            let event = match (wire, self.cut) {
                (Wire::Stdout(bytes), _) => Ok(ExecEvent::Stdout(bytes)),
                (Wire::Stderr(bytes), _) => Ok(ExecEvent::Stderr(bytes)),
                (Wire::Exit(status), Cut::Never) => Ok(ExecEvent::Exit(status)),
                (Wire::Exit(_), _) | (Wire::Cut, _) => Err(unknown("the connection broke before an exit status came")),
            };
            let last = !matches!(event, Ok(ExecEvent::Stdout(_) | ExecEvent::Stderr(_)));
            if events.send(event).await.is_err() || last {
                return;
            }
        }
    }
}

fn unknown(message: &str) -> SpritesError {
    SpritesError::OutcomeUnknown { what: "exec".into(), message: message.into() }
}
