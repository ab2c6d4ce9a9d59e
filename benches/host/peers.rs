//! The same work done by crun, runc and bubblewrap: a root with this machine's /usr, own namespaces, one command.
//!
//! Runs in a process of its own in a private mount namespace, where crun's refusal of hosts that have both versions of
//! control groups is met by hiding the second. Every exit status and output is checked: a failed start is no fast one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::figures::Samples;
use crate::rig::Outcome;

/// The word by which this program knows that it is to be the peers' process.
pub const WORD: &str = "peers";

const ROUNDS: usize = 20;
const RESTORES: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Crun,
    CrunWithoutGroup,
    Runc,
    Bubblewrap,
}

impl Peer {
    const ALL: [Self; 4] = [Self::Crun, Self::CrunWithoutGroup, Self::Runc, Self::Bubblewrap];

    fn name(self) -> &'static str {
        match self {
            Self::Crun => "crun",
            Self::CrunWithoutGroup => "crun without cgroup",
            Self::Runc => "runc",
            Self::Bubblewrap => "bubblewrap",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Crun | Self::CrunWithoutGroup => "crun",
            Self::Runc => "runc",
            Self::Bubblewrap => "bwrap",
        }
    }
}

/// Measures the peers in a process of its own, which prints the table.
pub fn measure(files: usize) -> Outcome {
    let this = std::env::current_exe()?;
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(this)
        .args([WORD, &files.to_string()])
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the peers could not be measured: {status}").into()),
        Err(error) => Err(format!("the peers need unshare of util-linux: {error}").into()),
    }
}

/// In that process.
pub fn main(files: &str) -> Outcome {
    let files: usize = files.parse()?;
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.is_dir() && !Command::new("umount").arg(hybrid).status()?.success() {
        return Err("the second version of control groups could not be hidden from crun".into());
    }
    println!(
        "{:<22}{:>18}{:>20}{:>14}{:>27}",
        "medians, ms",
        "new root to output",
        "(of it, the start)",
        "exec",
        format!("restore, {files} files")
    );
    for peer in Peer::ALL {
        let found = Command::new(peer.program()).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            println!("{:<22}{:>20}", peer.name(), "not installed");
            continue;
        }
        match row(peer, files) {
            Ok([new, start, exec, restore]) => {
                let exec = if exec.is_nan() { "none".to_owned() } else { format!("{exec:.2}") };
                println!("{:<22}{new:>18.2}{start:>20.2}{exec:>14}{restore:>27.2}", peer.name());
            }
            Err(error) => println!("{:<22}  failed: {error}", peer.name()),
        }
    }
    Ok(())
}

fn row(peer: Peer, files: usize) -> Outcome<[f64; 4]> {
    let dir = tempfile::tempdir()?;
    let (mut new, mut start, mut exec, mut restore) = Default::default();
    let add = |samples: &mut Samples, begun: Instant| samples.add(begun.elapsed());
    for round in 0..ROUNDS {
        let fresh = Bundle { peer, dir: dir.path().join(round.to_string()) };
        let begun = Instant::now();
        fresh.mount()?;
        let mounted = Instant::now();
        fresh.start_and_run(&format!("s{round}"))?;
        add(&mut start, mounted);
        add(&mut new, begun);
        fresh.unmount()?;
    }
    let bundle = Bundle { peer, dir: dir.path().join("kept") };
    bundle.mount()?;
    if peer != Peer::Bubblewrap {
        bundle.run_detached("kept")?;
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            bundle.check(bundle.runtime().args(["exec", "kept", "/bin/echo", "here"]))?;
            add(&mut exec, begun);
        }
        done(bundle.runtime().args(["delete", "--force", "kept"]))?;
    }
    for round in 0..RESTORES {
        crate::inside::main(&[
            "fill".into(),
            format!("{}/up/dirty", bundle.dir.display()),
            files.to_string(),
            "100".into(),
        ])
        .ok_or("no fill")??;
        let begun = Instant::now();
        bundle.unmount()?;
        fs::remove_dir_all(bundle.dir.join("up"))?;
        bundle.mount()?;
        bundle.start_and_run(&format!("r{round}"))?;
        add(&mut restore, begun);
    }
    bundle.unmount()?;
    Ok([new, start, exec, restore].map(|samples: Samples| samples.median()))
}

/// A folder with an overlay root, as `root`, whose changes are in `up`.
struct Bundle {
    peer: Peer,
    dir: PathBuf,
}

impl Bundle {
    fn mount(&self) -> Outcome {
        let at = |name: &str| self.dir.join(name);
        for name in ["base", "up", "work", "root"] {
            fs::create_dir_all(at(name))?;
        }
        for name in ["usr", "proc", "dev", "tmp", "etc", "home", "run"] {
            fs::create_dir_all(at("base").join(name))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            let link = at("base").join(name);
            if let Ok(to) = fs::read_link(Path::new("/").join(name))
                && !link.is_symlink()
            {
                std::os::unix::fs::symlink(to, link)?;
            }
        }
        let layers = |name: &str| at(name).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", layers("base"), layers("up"), layers("work"));
        done(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(at("root")))?;
        if self.peer != Peer::Bubblewrap {
            fs::write(at("config.json"), serde_json::to_vec(&self.config(&["/bin/echo", "here"]))?)?;
        }
        Ok(())
    }

    fn unmount(&self) -> Outcome {
        done(Command::new("umount").arg(self.dir.join("root")))
    }

    fn runtime(&self) -> Command {
        let mut command = Command::new(self.peer.program());
        if self.peer == Peer::CrunWithoutGroup {
            command.arg("--cgroup-manager=disabled");
        }
        command
    }

    /// Starts a sandbox for one command, and has it gone afterwards.
    fn start_and_run(&self, id: &str) -> Outcome {
        let bundle = self.dir.display().to_string();
        if self.peer == Peer::Bubblewrap {
            let root = format!("{bundle}/root");
            let mut command = Command::new("bwrap");
            command.args(["--bind", &root, "/", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]);
            command.args([
                "--tmpfs",
                "/tmp",
                "--tmpfs",
                "/run",
                "--unshare-all",
                "--die-with-parent",
                "/bin/echo",
                "here",
            ]);
            return self.check(&mut command);
        }
        self.check(self.runtime().args(["run", "--bundle", &bundle, id]))
    }

    /// Starts a sandbox that stays.
    fn run_detached(&self, id: &str) -> Outcome {
        fs::write(self.dir.join("config.json"), serde_json::to_vec(&self.config(&["/bin/sleep", "600"]))?)?;
        let bundle = self.dir.display().to_string();
        done(
            self.runtime()
                .args(["run", "--detach", "--bundle", &bundle, id])
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        fs::write(self.dir.join("config.json"), serde_json::to_vec(&self.config(&["/bin/echo", "here"]))?)?;
        Ok(())
    }

    fn check(&self, command: &mut Command) -> Outcome {
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.success() && output.stdout == b"here\n" {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{}: {} {}", self.peer.name(), output.status, said.trim()).into())
    }

    fn config(&self, argv: &[&str]) -> Value {
        let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 1000, "gid": 1000}, "args": argv, "cwd": "/", "noNewPrivileges": true,
                "env": ["PATH=/usr/bin:/bin"], "capabilities": {},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096}],
            },
            "root": {"path": "root"},
            "hostname": "peer",
            "mounts": [
                {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
            ],
            "linux": {
                "namespaces": namespaces,
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi"],
                "readonlyPaths": ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/sysrq-trigger"],
            },
        })
    }
}

/// Runs a command that must succeed.
fn done(command: &mut Command) -> Outcome {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}").into()) }
}
