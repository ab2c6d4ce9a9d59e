//! The control run: each wall is taken away, and the attack that it stops gets through. Without it a wall that does
//! nothing would go unnoticed, for another one often stops the same attack; where that is so, the line says which.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use janebot::host::HostError;
use janebot::host::Wall::{self, *};
use janebot::sprites::Sprites;

use crate::machine::Machine;
use crate::rig::{Outside, Rig, limits};
use crate::stories::shared::{Segment, plant_setuid, watched};
use crate::stories::{Scene, filled_in, policy};
use crate::table::Line;

/// Where an attack works at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runs {
    Always,
    /// Only where root runs the host: an ordinary user's sprite has one id.
    AsRoot,
    /// Only where root could give this test a /usr of its own.
    WithPlanted,
    /// Only where cores are files.
    WithCoreFiles,
    /// Only where this process itself may lock as much memory.
    WithLockedMemory,
}

/// Walls of which the last to fall lets an attack through.
struct Control {
    /// Taken away one after the other; the attack works once all are.
    walls: &'static [Wall],
    attack: &'static str,
    words: &'static str,
    /// The answer while walls stand: with all of them, then with one after the other gone.
    stopped: &'static [&'static str],
    /// The answer when all these walls are gone.
    through: &'static str,
    runs: Runs,
}

const fn control(
    walls: &'static [Wall],
    attack: &'static str,
    words: &'static str,
    stopped: &'static [&'static str],
    through: &'static str,
) -> Control {
    Control { walls, attack, words, stopped, through, runs: Runs::Always }
}

const fn only(runs: Runs, control: Control) -> Control {
    Control { runs, ..control }
}

const CONTROLS: &[Control] = &[
    control(&[Seccomp], "add a key to the kernel's keyring", "add_key", &["EPERM"], "done"),
    control(&[Seccomp], "io_uring", "io_uring-setup", &["EPERM"], "done"),
    control(&[Seccomp], "a socket to the hypervisor", "vsock", &["EPERM"], "done"),
    control(&[Seccomp], "no address randomisation", "personality", &["EPERM"], "done"),
    control(&[Capabilities], "reconfigure the network", "interface", &["EPERM"], "done"),
    control(&[Seccomp, Capabilities], "mount a tmpfs", "mount", &["EPERM", "EPERM"], "done"),
    control(&[Seccomp, NestedNamespaces], "a user namespace", "unshare-user", &["EPERM", "ENOSPC"], "done"),
    // The library that installs the filters sets no_new_privs as well.
    only(
        Runs::AsRoot,
        control(
            &[NoSuid, Seccomp, NoNewPrivs],
            "a program that is setuid root",
            "setuid /home/sprite/setuid",
            &["1000", "1000", "1000"],
            "0",
        ),
    ),
    only(
        Runs::AsRoot,
        control(
            &[NoNewPrivs, Seccomp, NoSuid],
            "a program that is setuid root",
            "setuid /home/sprite/setuid",
            &["1000", "1000", "1000"],
            "0",
        ),
    ),
    control(&[PidNamespace], "see the machine's processes", "see $PID", &["ENOENT, few"], "done, many"),
    only(
        Runs::AsRoot,
        control(
            &[PidNamespace, UserIds],
            "signal a process of the machine's user 1000",
            "signal $VICTIM",
            &["ESRCH", "EPERM"],
            "done",
        ),
    ),
    control(
        &[NetworkNamespace],
        "a service on the machine's loopback",
        "connect 127.0.0.1:$PORT",
        &["ECONNREFUSED"],
        "done",
    ),
    control(&[NetworkNamespace], "the machine's abstract sockets", "abstract $ABSTRACT", &["ECONNREFUSED"], "done"),
    control(&[NetworkNamespace], "the host's API by its port", "connect 127.0.0.1:$API", &["ECONNREFUSED"], "done"),
    control(&[IpcNamespace], "the machine's shared memory", "shmget $SEGMENT", &["ENOENT"], "done"),
    control(&[UtsNamespace], "the machine's name", "host-name", &["one"], "$HOSTNAME"),
    control(&[CgroupNamespace], "the service's control group", "cgroup", &["absent"], "shown"),
    control(&[ProcMasks], "how the machine was booted", "boot-line", &["empty"], "readable"),
    control(
        &[ProcReadOnly, Capabilities],
        "allow nested user namespaces again",
        "settings-user",
        &["EROFS", "EACCES"],
        "done",
    ),
    control(&[OwnDevices], "the machine's /dev/shm", "read $SHM", &["ENOENT"], "the machine's"),
    only(
        Runs::WithPlanted,
        control(&[MachineReadOnly, OwnInodes], "write into /usr", "nameless $PLANTED", &["EROFS", "EROFS"], "done"),
    ),
    only(
        Runs::WithPlanted,
        control(&[OwnInodes, MachineReadOnly], "write into /usr", "nameless $PLANTED", &["EROFS", "EROFS"], "done"),
    ),
    only(
        Runs::WithPlanted,
        control(&[OwnInodes], "a socket in the machine's /usr", "path-socket $PLANTED", &["ECONNREFUSED"], "done"),
    ),
    control(&[OwnInodes], "hear of the use of a program", "$WATCH", &["ready, then unseen"], "ready, then seen"),
    control(&[ClosedInit], "read init's environment and memory map", "init-readable", &["EACCES"], "done"),
    control(&[ProcessLimit], "fork 150 processes", "fork-bomb 150", &["EAGAIN"], "done"),
    only(
        Runs::WithCoreFiles,
        control(&[CoreLimit], "leave a core", "crash", &["not dumped, 0 files"], "dumped, 1 files"),
    ),
    control(&[OpenFileLimit], "open 400 files", "open-files 400", &["EMFILE"], "done"),
    only(
        Runs::WithLockedMemory,
        control(&[LockedMemoryLimit], "lock 16 MiB of memory", "lock-memory 16", &["ENOMEM"], "done"),
    ),
    control(&[Seccomp, MessageQueueLimit], "a POSIX message queue", "mq_open", &["EPERM", "EMFILE"], "done"),
    control(&[SignalLimit], "queue 6,000 signals", "queue-signals 6000", &["EAGAIN"], "done"),
    control(&[FileSizeLimit], "a file of 1 TiB", "file-size 1048576", &["EFBIG"], "done"),
    control(&[MemoryLimit], "400 MiB of memory", "memory memfd 400", &["killed"], "held all"),
    control(&[DiskLimit], "120 MiB of files", "disk bytes 120", &["killed"], "held all"),
    control(&[Policy], "resolve a name that is not allowed", "resolve denied.test", &["rcode 3"], "rcode 0"),
    control(
        &[SpecialAddresses],
        "an allowed name that leads to 127.0.0.1",
        "hello special0.test special0.test",
        &["ECONNRESET"],
        "echo",
    ),
    control(&[ServerName], "a TLS hello for another name", "hello allowed.test denied.test", &["ECONNRESET"], "echo"),
    // The address stands for no name, so no policy allows it either.
    control(
        &[UnknownAddresses, Policy],
        "an address that was never handed out",
        "echo 198.18.77.7:22",
        &["ECONNRESET", "ECONNRESET"],
        "echo",
    ),
];

impl Control {
    fn impossible(&self, machine: &Machine) -> Option<&'static str> {
        let root = rustix::process::geteuid().is_root();
        match self.runs {
            Runs::Always => None,
            Runs::AsRoot => (!root).then_some("an ordinary user's sprite has one id"),
            Runs::WithPlanted => machine.planted.is_none().then_some("only root can plant something in /usr"),
            Runs::WithCoreFiles => {
                let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
                let limit = rustix::process::getrlimit(rustix::process::Resource::Core).maximum;
                (pattern.starts_with(['|', '/', '@']) || limit == Some(0))
                    .then_some("cores are not files beside the program")
            }
            Runs::WithLockedMemory => {
                let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum;
                limit
                    .is_some_and(|limit| limit < 17 << 20)
                    .then_some("this process itself may lock no more than a sprite")
            }
        }
    }

    /// Which walls are missing in each run, with the answer that must come.
    fn runs(&self) -> impl Iterator<Item = (&'static [Wall], &'static str)> {
        let answers = self.stopped.iter().copied().chain([self.through]);
        (0..=self.walls.len()).map(|n| &self.walls[..n]).zip(answers)
    }
}

/// Things of the machine that the attacks reach for.
struct Targets {
    segment: Segment,
    shm: String,
    /// A process of the machine's user 1000.
    victim: Option<std::process::Child>,
}

impl Targets {
    fn new() -> Self {
        use std::os::unix::process::CommandExt;
        let shm = format!("/dev/shm/janebot-attacks-{}", std::process::id());
        std::fs::write(&shm, "the machine's").unwrap();
        let mut sleep = std::process::Command::new("sleep");
        let victim =
            rustix::process::geteuid().is_root().then(|| sleep.arg("300").uid(1000).gid(1000).spawn().unwrap());
        Self { segment: Segment::new(), shm, victim }
    }

    fn fill_in(&self, words: &str, machine: &Machine) -> String {
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let planted = machine.planted.as_ref().map_or(String::new(), |path| path.display().to_string());
        words
            .replace("$SEGMENT", &self.segment.key.to_string())
            .replace("$SHM", &self.shm)
            .replace("$VICTIM", &self.victim.as_ref().map_or(0, std::process::Child::id).to_string())
            .replace("$HOSTNAME", host_name.trim())
            .replace("$PLANTED", &planted)
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.shm);
        if let Some(victim) = &mut self.victim {
            let _ = victim.kill();
            let _ = victim.wait();
        }
    }
}

pub async fn all(dir: &Path, machine: &Machine, outside: &Arc<Outside>) -> Vec<Line> {
    let targets = Targets::new();
    // One start of a host for each set of missing walls.
    let possible = CONTROLS.iter().filter(|control| control.impossible(machine).is_none());
    let possible: Vec<&'static Control> = possible.collect();
    let mut sets: Vec<&[Wall]> = possible.iter().flat_map(|c| c.runs().map(|(missing, _)| missing)).collect();
    sets.sort_unstable();
    sets.dedup();
    // Each row of hosts has a directory, which makes do with one sprite.
    let rows = (0..ROWS).map(|row| {
        let (sets, possible, targets) = (&sets, &possible, &targets);
        async move {
            let mut answers = Vec::new();
            for missing in sets.iter().skip(row).step_by(ROWS) {
                // Files of a sprite whose ids are not shifted are another user's.
                let state = if missing.contains(&UserIds) { "unshifted".into() } else { format!("control-{row}") };
                let asked = possible.iter().filter(|c| c.runs().any(|(walls, _)| walls == *missing));
                let asked: Vec<_> = asked.copied().collect();
                answers.extend(run(&dir.join(state), missing, &asked, targets, machine, outside).await);
            }
            answers
        }
    });
    let answers = futures_util::future::join_all(rows).await.concat();
    let mut shown = BTreeSet::<Wall>::new();
    let mut lines = Vec::new();
    for control in CONTROLS {
        let names = control.walls.iter().map(|wall| format!("{wall:?}")).collect::<Vec<_>>().join(" + ");
        if let Some(reason) = control.impossible(machine) {
            shown.extend(control.walls.iter().copied());
            lines.push(Line::not_runnable("-", control.attack, &names, reason));
            continue;
        }
        let expected: Vec<String> = control.runs().map(|(_, answer)| targets.fill_in(answer, machine)).collect();
        let got: Vec<String> = control
            .runs()
            .map(|(missing, _)| {
                let answer = answers.iter().find(|(attack, words, walls, _)| {
                    (*attack, *words, *walls) == (control.attack, control.words, missing)
                });
                answer.map_or_else(|| "not asked".to_owned(), |(_, _, _, answer)| answer.clone())
            })
            .collect();
        if got.last() == expected.last() {
            shown.extend(control.walls.iter().copied());
        }
        lines.push(Line::judge("-", control.attack, &names, &expected.join(" → "), got.join(" → ")));
    }
    let unproved: Vec<String> =
        Wall::ALL.iter().filter(|wall| !shown.contains(wall)).map(|wall| format!("{wall:?}")).collect();
    let got = if unproved.is_empty() { "none".to_owned() } else { unproved.join(", ") };
    lines.push(Line::judge("-", "walls whose absence shows nothing", "all", "none", got));
    lines
}

/// Hosts at a time. They mostly wait.
const ROWS: usize = 6;

type Answer = (&'static str, &'static str, &'static [Wall], String);

/// Makes the attacks in a sprite that lacks some walls.
async fn run(
    state: &Path,
    missing: &'static [Wall],
    controls: &[&'static Control],
    targets: &Targets,
    machine: &Machine,
    outside: &Arc<Outside>,
) -> Vec<Answer> {
    let rig = loop {
        match Rig::start(state, missing, limits(), outside).await {
            Ok(rig) => break rig,
            // Another host of this process is starting a program, which for a moment holds all that this process holds.
            Err(HostError::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("a host without {missing:?}: {error}"),
        }
    };
    let armed = match rig.sprites.checkpoints("one").await.ok().and_then(|list| list.first().map(|c| c.id.clone())) {
        Some(armed) => armed,
        None => rig.sprite("one", &policy()).await,
    };
    let scene = Scene { rig: &rig, machine, one: "one", two: "one", armed, mark: String::new() };
    let mut answers = Vec::new();
    for control in controls {
        let answer = answer(&scene, control, targets).await;
        answers.push((control.attack, control.words, missing, answer));
    }
    rig.host.shutdown().await;
    answers
}

async fn answer(scene: &Scene<'_>, control: &Control, targets: &Targets) -> String {
    if control.words.starts_with("setuid") {
        plant_setuid(scene);
        scene.restore().await;
    }
    if control.words == "$WATCH" {
        return watched(scene, "/usr/bin/env").await;
    }
    let answer = scene.one(&filled_in(&targets.fill_in(control.words, scene.machine), scene)).await;
    // What a bomb left must not be the next attack's.
    if control.words.starts_with("disk") || control.words.starts_with("memory") {
        scene.restore().await;
    }
    answer
}
