//! Real sandboxes: what works in them, what a restore leaves, and what can't be reached from inside.
//!
//! Everything runs twice where it can: as the user that runs the tests and, when that is root, as an ordinary user in a
//! process of its own ([`again_as_an_ordinary_user`]).

use std::path::{Path, PathBuf};
use std::time::Duration;

use janebot::config::{Isolation, Limits};
use janebot::host::layers;
use janebot::host::sandbox::{Command, FsOp, Process, Sandbox, SandboxError, SandboxSpec, Stdio, probe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HELPER: &str = env!("CARGO_BIN_EXE_janebot");
/// Nothing here takes a second; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Sprite {
    dir: tempfile::TempDir,
    isolation: Isolation,
    limits: Limits,
}

struct Output {
    status: u8,
    stdout: Vec<u8>,
    stderr: String,
}

impl Output {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim_end()
    }
}

impl Sprite {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), isolation: Isolation::Full, limits: Limits::default() }
    }

    fn open() -> Self {
        let mut sprite = Self::new();
        sprite.isolation = Isolation::Off;
        sprite
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("sprite")
    }

    async fn start(&self, lower: &[&str]) -> Sandbox {
        self.start_run(lower).await.0
    }

    async fn start_run(&self, lower: &[&str]) -> (Sandbox, String) {
        let run = layers::new_run(&self.path()).unwrap();
        let spec = SandboxSpec {
            name: "sprite-under-test".into(),
            dir: self.path(),
            lower: lower.iter().map(|&l| l.into()).collect(),
            run: run.clone(),
            rootfs: None,
            limits: self.limits.clone(),
            ports: vec![443],
            isolation: self.isolation,
        };
        (Sandbox::start_with(Path::new(HELPER), spec).await.unwrap(), run)
    }
}

impl Drop for Sprite {
    fn drop(&mut self) {
        // The temporary folder can't delete what overlayfs has closed.
        let _ = layers::recover(&self.path(), &[]).and_then(|()| layers::empty_trash(&self.path()));
    }
}

fn argv(words: &[&str]) -> Command {
    Command::Exec { argv: words.iter().map(|&w| w.into()).collect(), env: Vec::new(), dir: None, tty: None }
}

fn sh(script: &str) -> Command {
    argv(&["sh", "-c", script])
}

async fn finish(process: Process, input: &[u8]) -> Output {
    let Stdio::Pipes { mut stdin, mut stdout, mut stderr } = process.stdio else { panic!("no pipes") };
    let (mut out, mut err) = (Vec::new(), String::new());
    let write = async {
        // A program that does not read its input closes the pipe.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let everything = async {
        let (_, o, e) = tokio::join!(write, stdout.read_to_end(&mut out), stderr.read_to_string(&mut err));
        (o.unwrap(), e.unwrap());
        process.exit.await.unwrap()
    };
    let status = tokio::time::timeout(PATIENCE, everything).await.unwrap();
    Output { status, stdout: out, stderr: err }
}

async fn run(sandbox: &Sandbox, command: Command) -> Output {
    finish(sandbox.spawn(command).await.unwrap(), b"").await
}

/// The text that a script prints; it must succeed.
async fn says(sandbox: &Sandbox, script: &str) -> String {
    let output = run(sandbox, sh(script)).await;
    assert_eq!(output.status, 0, "{script}: {}", output.stderr);
    output.text().to_owned()
}

fn refusal(result: Result<Process, SandboxError>) -> SandboxError {
    result.map(|process| process.pid).unwrap_err()
}

/// Runs a Python program inside, which prints what it found. `None`, with a word why, where there is no Python.
async fn python(sandbox: &Sandbox, program: &str) -> Option<String> {
    let output = match sandbox.spawn(argv(&["python3", "-c", program])).await {
        Err(e) if e.exit_status() == Some(127) => {
            println!("skipped: there is no python3 in the sandbox");
            return None;
        }
        process => finish(process.unwrap(), b"").await,
    };
    assert_eq!(output.status, 0, "{}", output.stderr);
    Some(output.text().to_owned())
}

/// Host processes whose command line holds `mark`, zombies not counted.
fn alive(mark: &str) -> usize {
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let command = std::fs::read(path.join("cmdline")).ok()?;
        (!command.is_empty() && String::from_utf8_lossy(&command).contains(mark)).then_some(())
    };
    std::fs::read_dir("/proc").unwrap().filter_map(count).count()
}

/// A number that marks this test's processes, as an argument of sleep.
fn mark(name: &str) -> String {
    let seed = name.bytes().fold(u64::from(std::process::id()), |a, b| a.wrapping_mul(31).wrapping_add(b.into()));
    format!("{}", 100_000_000 + seed % 800_000_000)
}

#[tokio::test]
async fn a_program_runs_as_the_sprite_in_its_home() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let text = says(&sandbox, "id -u; id -g; id -un; pwd; hostname; echo $HOME $USER $PATH; touch file").await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..5], ["1000", "1000", "sprite", "/home/sprite", "sprite-under-test"]);
    assert!(lines[5].starts_with("/home/sprite sprite /home/sprite/.local/bin:"));
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn the_environment_holds_nothing_of_the_services() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let command = Command::Exec {
        argv: vec!["env".into()],
        env: vec![("LANG".into(), "de_DE".into()), ("EXTRA".into(), "a=b c".into())],
        dir: Some("/tmp".into()),
        tty: None,
    };
    let text = run(&sandbox, command).await;
    let mut keys: Vec<&str> = text.text().lines().filter_map(|l| l.split('=').next()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["EXTRA", "HOME", "LANG", "LOGNAME", "PATH", "TERM", "USER"]);
    assert!(text.text().contains("EXTRA=a=b c") && text.text().contains("LANG=de_DE"));
}

#[tokio::test]
async fn exit_statuses_and_signals_are_told_as_a_shell_tells_them() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    for (script, status) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        assert_eq!(run(&sandbox, sh(script)).await.status, status, "{script}");
    }
    let absent = refusal(sandbox.spawn(argv(&["no-such-program"])).await);
    assert_eq!(absent.exit_status(), Some(127));
    assert!(absent.to_string().starts_with("no-such-program: No such file"), "{absent}");
    says(&sandbox, "echo text > plain; chmod 644 plain").await;
    assert_eq!(refusal(sandbox.spawn(argv(&["./plain"])).await).exit_status(), Some(126));
    assert_eq!(refusal(sandbox.spawn(argv(&["/etc"])).await).exit_status(), Some(126));
    says(&sandbox, "echo 'echo from a script' > script; chmod 755 script").await;
    assert_eq!(run(&sandbox, argv(&["./script"])).await.text(), "from a script");
}

#[tokio::test]
async fn standard_streams_are_separate_whole_and_reopenable() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let input: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let output = finish(sandbox.spawn(argv(&["cat"])).await.unwrap(), &input).await;
    assert!(output.stdout == input, "4 MB went through cat and came back different");
    let output = run(&sandbox, sh("echo out > /dev/stdout; echo err > /dev/stderr; echo oops >&2")).await;
    assert_eq!((output.text(), output.stderr.as_str()), ("out", "err\noops\n"));
}

#[tokio::test]
async fn a_terminal_has_the_size_it_was_given_and_ends_with_its_program() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let words = ["sh", "-c", "stty size; read line; stty size; tty"].map(String::from);
    let command = Command::Exec { argv: words.into(), env: Vec::new(), dir: None, tty: Some((24, 80)) };
    let process = sandbox.spawn(command).await.unwrap();
    let Stdio::Tty(master) = process.stdio else { panic!("no terminal") };
    sandbox.resize(process.pid, 50, 132).await.unwrap();
    let text = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut master = std::fs::File::from(master);
        master.write_all(b"go\n").unwrap();
        let (mut text, mut chunk) = (Vec::new(), [0; 1024]);
        // Linux says EIO when the last user of the slave is gone.
        while let Ok(n) = master.read(&mut chunk) {
            text.extend_from_slice(&chunk[..n]);
        }
        String::from_utf8(text).unwrap()
    });
    let text = tokio::time::timeout(PATIENCE, text).await.unwrap().unwrap();
    assert!(text.contains("50 132") && text.contains("/dev/pts/0"), "{text}");
    assert_eq!(process.exit.await.unwrap(), 0);
}

#[tokio::test]
async fn a_restore_leaves_no_file_no_daemon_and_no_memory_file() {
    let sprite = Sprite::new();
    let (sandbox, run) = sprite.start_run(&[]).await;
    says(&sandbox, "mkdir work; echo kept > work/file; rm -f nothing").await;
    sandbox.stop().await.unwrap();
    let layer = layers::freeze(&sprite.path(), &run, "clean").unwrap();

    let sandbox = sprite.start(&[&layer]).await;
    let mark = mark("restore");
    says(
        &sandbox,
        &format!(
            "echo bad > work/file; echo more > new; echo x > /tmp/t; echo x > /dev/shm/s; echo x > /run/r; \
             (setsid sh -c 'trap \"\" TERM HUP; sleep {mark} & sleep {mark}' >/dev/null 2>&1 &) ; sleep 0.1"
        ),
    )
    .await;
    assert!(alive(&mark) > 0);
    sandbox.stop().await.unwrap();
    assert_eq!(alive(&mark), 0);

    let sandbox = sprite.start(&[&layer]).await;
    assert_eq!(
        says(&sandbox, "cat work/file; ls; ls -A /tmp /dev/shm /run").await,
        "kept\nwork\n/dev/shm:\n\n/run:\n\n/tmp:"
    );
}

#[tokio::test]
async fn a_deleted_file_stays_deleted_above_its_layer() {
    let sprite = Sprite::new();
    let (sandbox, run) = sprite.start_run(&[]).await;
    says(&sandbox, "echo a > a; mkdir d; echo b > d/b").await;
    sandbox.stop().await.unwrap();
    let first = layers::freeze(&sprite.path(), &run, "v1").unwrap();
    let (sandbox, run) = sprite.start_run(&[&first]).await;
    says(&sandbox, "rm a; rm -r d; mkdir d; echo c > d/c").await;
    sandbox.stop().await.unwrap();
    let second = layers::freeze(&sprite.path(), &run, "v2").unwrap();
    let sandbox = sprite.start(&[&second, &first]).await;
    assert_eq!(says(&sandbox, "find . -type f").await, "./d/c");
    let sandbox = sprite.start(&[&first]).await;
    assert_eq!(says(&sandbox, "find . -type f | sort").await, "./a\n./d/b");
}

#[tokio::test]
async fn a_signal_reaches_the_programs_group_and_none_other() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let other = sandbox.spawn(sh("sleep 1000")).await.unwrap();
    let mut process =
        sandbox.spawn(sh("trap 'echo got; exit 9' INT; echo ready; while :; do sleep 0.05; done")).await.unwrap();
    let Stdio::Pipes { stdout, .. } = &mut process.stdio else { panic!("no pipes") };
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).await.unwrap();
    sandbox.signal(process.pid, libc::SIGINT).await.unwrap();
    let output = finish(process, b"").await;
    assert_eq!((output.status, output.text()), (9, "got"));
    assert!(!other.exit.is_terminated());
    sandbox.signal(other.pid, libc::SIGTERM).await.unwrap();
    assert_eq!(other.exit.await.unwrap(), 143);
    sandbox.signal(4242, libc::SIGTERM).await.unwrap();
}

#[tokio::test]
async fn killing_a_tree_ends_daemons_that_ignore_signals_and_spares_the_others() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let (doomed, spared) = (mark("doomed"), mark("spared"));
    let other = sandbox.spawn(argv(&["sleep", &spared])).await.unwrap();
    let script = format!(
        "for n in 1 2 3 4 5; do (setsid sh -c 'trap \"\" TERM HUP INT; sleep {doomed} & sleep {doomed}' &) ; done; sleep 0.1; echo up; sleep {doomed}"
    );
    let mut process = sandbox.spawn(sh(&script)).await.unwrap();
    let Stdio::Pipes { stdout, .. } = &mut process.stdio else { panic!("no pipes") };
    stdout.read_exact(&mut [0; 3]).await.unwrap();
    assert!(alive(&doomed) >= 10);
    sandbox.kill_tree(process.pid, Duration::from_secs(2)).await.unwrap();
    assert_eq!((alive(&doomed), alive(&spared)), (0, 1));
    assert_eq!(process.exit.await.unwrap(), 137);
    sandbox.kill_tree(process.pid, Duration::from_secs(2)).await.unwrap();
    sandbox.kill_tree(other.pid, Duration::from_secs(2)).await.unwrap();
}

#[tokio::test]
async fn a_program_that_kills_its_supervisor_takes_its_descendants_with_it() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let mark = mark("orphan");
    // The program's parent is its supervisor.
    let script = format!("(setsid sleep {mark} &); sleep 0.1; kill -KILL $PPID; sleep {mark}");
    let process = sandbox.spawn(sh(&script)).await.unwrap();
    assert_eq!(process.exit.await.unwrap(), 137);
    sandbox.kill_tree(process.pid, Duration::from_secs(2)).await.unwrap();
    assert_eq!(alive(&mark), 0);
    assert_eq!(says(&sandbox, "echo still here").await, "still here");
}

#[tokio::test]
async fn a_dropped_sandbox_is_killed() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let mark = mark("dropped");
    let process = sandbox.spawn(argv(&["sleep", &mark])).await.unwrap();
    assert_eq!(alive(&mark), 1);
    drop(sandbox);
    // Closed without a value: the sandbox has gone.
    tokio::time::timeout(PATIENCE, process.exit).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn programs_have_a_limit_and_a_dead_sandbox_says_so() {
    let mut sprite = Sprite::new();
    sprite.limits.execs = 2;
    let sandbox = sprite.start(&[]).await;
    let _running = [sandbox.spawn(sh("sleep 1000")).await.unwrap(), sandbox.spawn(sh("sleep 1000")).await.unwrap()];
    assert!(matches!(refusal(sandbox.spawn(sh("true")).await), SandboxError::TooMany { limit: 2 }));
    sandbox.kill().await.unwrap();
    sandbox.kill().await.unwrap();
    assert!(matches!(refusal(sandbox.spawn(sh("true")).await), SandboxError::Gone));
    assert_eq!(sandbox.death(), None);
}

#[tokio::test]
async fn nothing_of_the_machine_shows_but_its_programs() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let listing =
        says(&sandbox, "ls -A /home /opt /srv /mnt /var/lib; ls /sys /boot /work 2>&1 | grep -c 'No such'").await;
    assert_eq!(listing, "/home:\nsprite\n\n/mnt:\n\n/opt:\n\n/srv:\n\n/var/lib:\n3");
    assert_ne!(run(&sandbox, sh("ls /root/.bashrc || cat /etc/shadow || cat /etc/machine-id")).await.status, 0);
    assert_eq!(says(&sandbox, "ls -A /usr/etc /usr/local/etc 2>/dev/null | grep -v : | grep . || true").await, "");
    let processes: usize = says(&sandbox, "ls /proc | grep -c '^[0-9]'").await.parse().unwrap();
    assert!(processes < 10, "{processes}");
    // The one that lists is of the listing itself.
    assert_eq!(says(&sandbox, "ls /proc/self/fd | tr '\\n' ' '").await, "0 1 2 3");
    let mounts = says(&sandbox, "cat /proc/self/mountinfo").await;
    let own_path = sprite.path();
    assert!(!mounts.contains(own_path.to_str().unwrap()), "{mounts}");
    let devices = says(&sandbox, "ls /dev").await.replace('\n', " ");
    assert_eq!(devices, "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero");
    assert_eq!(run(&sandbox, sh("echo x > /usr/bin/x")).await.status, 2);
}

#[tokio::test]
async fn sockets_of_the_machine_are_out_of_reach_and_those_of_the_gateway_are_not() {
    let sprite = Sprite::new();
    let mut sandbox = sprite.start(&[]).await;
    let network = sandbox.take_network().unwrap();
    assert!(sandbox.take_network().is_none());
    assert_eq!(network.listeners.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [443]);
    let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = here.local_addr().unwrap().port();
    let program = format!(
        "
import socket, errno
def connect(address):
    s = socket.socket()
    s.settimeout(5)
    try:
        s.connect(address)
        return 'connected'
    except OSError as e:
        return errno.errorcode[e.errno]
for address in [('127.0.0.1', {port}), ('198.18.77.7', 443), ('198.18.77.7', 444), ('169.254.169.254', 80), ('1.1.1.1', 443)]:
    print(connect(address))
"
    );
    let Some(text) = python(&sandbox, &program).await else { return };
    assert_eq!(text, "ECONNREFUSED\nconnected\nECONNREFUSED\nENETUNREACH\nENETUNREACH");
    let listener = std::net::TcpListener::from(network.listeners.into_iter().next().unwrap().1);
    let (stream, _) = listener.accept().unwrap();
    assert_eq!(stream.local_addr().unwrap().to_string(), "198.18.77.7:443");
}

/// Rows of the threat table that are a single system call, with the exact error that their wall gives.
#[tokio::test]
async fn system_calls_that_lead_out_are_refused_with_their_own_error() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the numbers are those of x86_64");
        return;
    }
    let program = "
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args])
    print(name, 'done' if result >= 0 else errno.errorcode[ctypes.get_errno()])
call('mount', 165, b'none', b'/mnt', b'tmpfs', 0, 0)
call('umount', 166, b'/proc/sys', 0)
call('unshare-user', 272, 0x10000000)
call('clone-newuser', 56, 0x10000000 | 17, 0, 0, 0, 0)
call('clone3', 435, 0, 0)
call('setns', 308, 0, 0)
call('chroot', 161, b'/tmp')
call('pivot_root', 155, b'.', b'.')
call('open_tree', 428, -100, b'/', 1)
call('bpf', 321, 0, 0, 0)
call('io_uring_setup', 425, 1, 0)
call('userfaultfd', 323, 0)
call('keyctl', 250, 0, -3, 1)
call('add_key', 248, b'user', b'a', b'b', 1, -3)
call('personality', 135, 0x0040000)
call('open_by_handle_at', 304, -1, 0, 0)
call('reboot', 169, 0xfee1dead, 672274793, 0, 0)
call('perf_event_open', 298, 0, 0, -1, -1, 0)
call('vsock', 41, 40, 1, 0)
call('alg', 41, 38, 5, 0)
call('packet', 41, 17, 3, 0)
call('raw', 41, 2, 3, 1)
call('raw6', 41, 10, 3, 58)
call('netfilter', 41, 16, 3, 12)
call('netlink-route', 41, 16, 3, 0)
call('x32-getpid', 0x40000000 | 39)
call('future', 600)
call('ptrace-1', 101, 16, 1, 0, 0)
call('setuid', 105, 0)
call('setgroups', 116, 0, 0)
call('mknod', 133, b'/tmp/disk', 0o60600, 0x0801)
call('tiocsti', 16, 0, 0x5412, b'x')
call('kill-1', 62, 1, 9)
call('getppid', 110)
def opens(path, mode='rb'):
    try:
        with open(path, mode) as f: return str(len(f.read(10)))
    except OSError as e: return errno.errorcode[e.errno]
for path in ['/proc/1/environ', '/proc/1/mem', '/proc/kcore', '/proc/kallsyms', '/dev/kvm', '/sys/class']:
    print(path, opens(path))
for path in ['/proc/sys/kernel/core_pattern', '/proc/sys/user/max_user_namespaces', '/proc/self/uid_map']:
    try:
        with open(path, 'wb', buffering=0) as f: f.write(b'1')
        print(path, 'written')
    except OSError as e: print(path, errno.errorcode[e.errno])
print(open('/proc/sys/user/max_user_namespaces').read().strip())
print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapInh','CapPrm','CapEff','CapBnd','CapAmb','NoNewPrivs','Seccomp:'))])
";
    let Some(text) = python(&sandbox, program).await else { return };
    let expected = "\
mount EPERM
umount EPERM
unshare-user EPERM
clone-newuser EPERM
clone3 ENOSYS
setns EPERM
chroot EPERM
pivot_root EPERM
open_tree EPERM
bpf EPERM
io_uring_setup EPERM
userfaultfd EPERM
keyctl EPERM
add_key EPERM
personality EPERM
open_by_handle_at EPERM
reboot EPERM
perf_event_open EPERM
vsock EPERM
alg EPERM
packet EPERM
raw EPERM
raw6 EPERM
netfilter EPERM
netlink-route done
x32-getpid ENOSYS
future ENOSYS
ptrace-1 EPERM
setuid EPERM
setgroups EPERM
mknod EPERM
tiocsti EPERM
kill-1 done
getppid done
/proc/1/environ EACCES
/proc/1/mem EACCES
/proc/kcore nothing
/proc/kallsyms nothing
/dev/kvm ENOENT
/sys/class ENOENT
/proc/sys/kernel/core_pattern EROFS
/proc/sys/user/max_user_namespaces EROFS
/proc/self/uid_map EPERM
0
['0000000000000000', '0000000000000000', '0000000000000000', '0000000000000000', '0000000000000000', '1', '2']";
    // What the kernel does not have at all shows nothing either.
    let text = ["kcore", "kallsyms"].iter().fold(text, |text, name| {
        text.replace(&format!("{name} 0\n"), &format!("{name} nothing\n"))
            .replace(&format!("{name} ENOENT\n"), &format!("{name} nothing\n"))
    });
    // For an ordinary user's sandbox there is no root, mapped or not.
    let text = text.replace("setuid EINVAL", "setuid EPERM");
    similar(&text, expected);
    assert_eq!(says(&sandbox, "echo init lives").await, "init lives");
}

/// Equal line by line, and says which line is not.
fn similar(got: &str, expected: &str) {
    for (got, expected) in got.lines().zip(expected.lines()) {
        assert_eq!(got, expected);
    }
    assert_eq!(got.lines().count(), expected.lines().count());
}

#[tokio::test]
async fn the_processes_of_a_sprite_have_a_limit_that_a_fork_bomb_keeps() {
    let mut sprite = Sprite::new();
    sprite.limits.processes = 60;
    let sandbox = sprite.start(&[]).await;
    let program = "
import os, time
n = 0
while n < 1000:
    try:
        if os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(1000)
        n += 1
    except BlockingIOError: break
print(n, flush=True)
os._exit(0)
";
    let Some(text) = python(&sandbox, program).await else { return };
    let forked: usize = text.lines().last().unwrap().parse().unwrap();
    assert!((40..60).contains(&forked), "{forked}");
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_sprite_that_takes_too_much_memory_is_ended_with_the_reason() {
    let mut sprite = Sprite::new();
    sprite.limits.memory = 200 << 20;
    let sandbox = sprite.start(&[]).await;
    // In a file held by a descriptor alone, which no process's size shows.
    let program = "
import os, time
fd = os.memfd_create('bomb')
for _ in range(300): os.write(fd, b'x' * (1 << 20))
time.sleep(1000)
";
    let process = match sandbox.spawn(argv(&["python3", "-c", program])).await {
        Err(e) if e.exit_status() == Some(127) => return println!("skipped: there is no python3 in the sandbox"),
        process => process.unwrap(),
    };
    tokio::time::timeout(PATIENCE, sandbox.exited()).await.unwrap();
    let reason = sandbox.death().unwrap();
    assert!(reason.starts_with("out of memory: used 3") && reason.ends_with("limit 200 MiB"), "{reason}");
    process.exit.await.unwrap_err();
}

#[tokio::test]
async fn a_sprite_that_writes_too_much_is_ended_with_the_reason() {
    let mut sprite = Sprite::new();
    sprite.limits.disk = 20 << 20;
    let sandbox = sprite.start(&[]).await;
    let _process =
        sandbox.spawn(sh("for n in 1 2 3; do head -c 10000000 /dev/zero > $n; done; sleep 1000")).await.unwrap();
    tokio::time::timeout(PATIENCE, sandbox.exited()).await.unwrap();
    assert_eq!(sandbox.death().unwrap(), "out of disk: used more than 20 MiB");
}

async fn fs(sandbox: &Sandbox, operation: FsOp, input: &[u8]) -> Result<String, String> {
    let output = finish(sandbox.spawn(Command::Fs(operation)).await.unwrap(), input).await;
    if output.status == 0 {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    assert_eq!(output.status, 1);
    let report: serde_json::Value = serde_json::from_str(&output.stderr).unwrap();
    Err(report["code"].as_str().unwrap().to_owned())
}

async fn file_operations(sandbox: &Sandbox) {
    let read = |path: &str| FsOp::Read { path: path.into() };
    let write = |path: &str, make_parents| FsOp::Write { path: path.into(), mode: 0o640, make_parents };
    assert_eq!(fs(sandbox, write("a/b.txt", false), b"one").await, Err("ENOENT".into()));
    let written = fs(sandbox, write("a/b.txt", true), b"one").await.unwrap();
    assert_eq!(written, r#"{"mode":"0640","path":"a/b.txt","size":3}"#);
    fs(sandbox, write("/home/sprite/a/b.txt", false), b"two").await.unwrap();
    assert_eq!(fs(sandbox, read("a/b.txt"), b"").await.unwrap(), "two");
    assert_eq!(says(sandbox, "stat -c %a a/b.txt; ls -A a").await, "640\nb.txt");
    assert_eq!(fs(sandbox, read("a"), b"").await, Err("EISDIR".into()));
    assert_eq!(fs(sandbox, read("none"), b"").await, Err("ENOENT".into()));
    assert_eq!(fs(sandbox, read("/dev/zero"), b"").await, Err("EINVAL".into()));
    assert_eq!(fs(sandbox, write("a", true), b"").await, Err("EISDIR".into()));

    says(sandbox, "ln -s b.txt a/link; mkdir a/sub; echo x > a/sub/x").await;
    let listed = fs(sandbox, FsOp::List { path: "a".into(), recursive: true }, b"").await.unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let seen: Vec<String> = listed["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| format!("{} {} {}", e["path"].as_str().unwrap(), e["type"].as_str().unwrap(), e["isDir"]))
        .collect();
    assert_eq!(seen, ["a/b.txt file false", "a/link symlink false", "a/sub directory true", "a/sub/x file false"]);
    assert_eq!(listed["entries"][0]["mode"], "0640");

    let copy = |recursive| FsOp::Copy { source: "a".into(), dest: "c".into(), recursive };
    assert_eq!(fs(sandbox, copy(false), b"").await, Err("EISDIR".into()));
    fs(sandbox, copy(true), b"").await.unwrap();
    assert_eq!(says(sandbox, "cat c/link c/sub/x").await, "twox");
    let into_itself = FsOp::Copy { source: "a".into(), dest: "a/sub/a".into(), recursive: true };
    assert_eq!(fs(sandbox, into_itself, b"").await, Err("EINVAL".into()));
    fs(sandbox, FsOp::Rename { source: "c".into(), dest: "d".into() }, b"").await.unwrap();
    fs(sandbox, FsOp::Chmod { path: "d".into(), mode: 0o700, recursive: true }, b"").await.unwrap();
    assert_eq!(says(sandbox, "stat -c %a d d/b.txt d/sub/x").await, "700\n700\n700");
    assert_eq!(fs(sandbox, FsOp::Delete { path: "d".into(), recursive: false }, b"").await, Err("ENOTEMPTY".into()));
    fs(sandbox, FsOp::Delete { path: "d".into(), recursive: true }, b"").await.unwrap();
    assert_eq!(fs(sandbox, FsOp::Delete { path: "d".into(), recursive: true }, b"").await, Err("ENOENT".into()));
    fs(sandbox, FsOp::Mkdir { path: "e/f".into(), parents: true }, b"").await.unwrap();
    assert_eq!(fs(sandbox, FsOp::Mkdir { path: "e/f".into(), parents: false }, b"").await, Err("EEXIST".into()));
    assert_eq!(says(sandbox, "ls").await, "a\ne");
}

#[tokio::test]
async fn file_operations_do_what_they_say_and_fail_by_name() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    file_operations(&sandbox).await;
    // A link out leads into the sandbox's own root.
    says(&sandbox, "ln -s /etc/hostname out").await;
    assert_eq!(fs(&sandbox, FsOp::Read { path: "out".into() }, b"").await.unwrap(), "sprite-under-test\n");
}

#[tokio::test]
async fn without_isolation_the_same_things_work_in_a_plain_folder() {
    let sprite = Sprite::open();
    let (mut sandbox, first) = sprite.start_run(&[]).await;
    assert!(sandbox.take_network().is_none());
    let home = sprite.path().join(&first).join("up/home/sprite");
    assert_eq!(says(&sandbox, "pwd; echo $HOME").await, format!("{0}\n{0}", home.display()));
    file_operations(&sandbox).await;
    let command =
        Command::Exec { argv: vec!["pwd".into()], env: Vec::new(), dir: Some("/home/sprite/a".into()), tty: None };
    assert_eq!(run(&sandbox, command).await.text(), home.join("a").to_str().unwrap());
    sandbox.stop().await.unwrap();
    let layer = layers::freeze(&sprite.path(), &first, "clean").unwrap();

    let sandbox = sprite.start(&[&layer]).await;
    let mark = mark("open");
    let script =
        format!("rm -r a; (setsid sh -c 'trap \"\" TERM; sleep {mark} & sleep {mark}' >/dev/null 2>&1 &); sleep 0.1");
    says(&sandbox, &script).await;
    assert!(alive(&mark) >= 2);
    sandbox.stop().await.unwrap();
    assert_eq!(alive(&mark), 0);
    let sandbox = sprite.start(&[&layer]).await;
    assert_eq!(says(&sandbox, "ls; cat a/b.txt").await, "a\ne\ntwo");
}

#[tokio::test]
async fn the_self_test_passes_here_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let lines = probe(Some(Path::new(HELPER)), dir.path(), None).await.unwrap();
    assert!(lines[0].starts_with("sandboxes work: ready in "), "{lines:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_self_test_names_the_step_that_fails_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = probe(Some(Path::new(HELPER)), dir.path(), Some(Path::new("/no/such/root"))).await.unwrap_err();
    assert!(error.to_string().contains("HOST_ROOTFS must be a directory"), "{error}");
}

/// All of the above once more as an ordinary user: what is promised then is the same, how it is built is not.
#[test]
fn again_as_an_ordinary_user() {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;
    const ORDINARY: u32 = 12_345;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the tests run as an ordinary user already");
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let closed = |path: &Path| path.ancestors().any(|p| p.metadata().is_ok_and(|m| m.mode() & 0o001 == 0));
    if closed(&exe) || closed(Path::new(HELPER)) {
        println!("skipped: an ordinary user can't execute {}", exe.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(ORDINARY), Some(ORDINARY)).unwrap();
    let output = std::process::Command::new(exe)
        .args(["--test-threads=2", "--skip", "again_as"])
        .env("TMPDIR", dir.path())
        .current_dir(dir.path())
        .gid(ORDINARY)
        .uid(ORDINARY)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
