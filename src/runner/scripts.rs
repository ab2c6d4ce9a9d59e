//! The scripts that a runner runs inside its sprite, and how their output is read. POSIX sh, from files beside this one.
//!
//! Every exec of a runner is one of these five, as `sh -c SCRIPT NAME ARGS…`. What they print is data from an untrusted
//! machine: parsed strictly, bounded, never passed on as it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};

use crate::agent::JobFile;
use crate::sprites::{ExecRequest, Output};

/// Output of a script that is read; they print a few lines.
pub const OUTPUT_LIMIT: usize = 64 * 1024;
/// Where a job's environment waits for `run`, which removes it.
pub const ENV_FILE: &str = ".janebot/job.env";

const BOOT: &str = include_str!("scripts/boot.sh");

fn script(name: &str, body: String, args: &[&str], stdin: Bytes, timeout: Duration) -> ExecRequest {
    let mut argv = vec!["sh".to_owned(), "-c".to_owned(), body, name.to_owned()];
    argv.extend(args.iter().map(|arg| (*arg).to_owned()));
    ExecRequest { argv, stdin, timeout, ..ExecRequest::default() }
}

/// Makes the folders that every job expects.
pub fn build(timeout: Duration) -> ExecRequest {
    script("janebot-build", include_str!("scripts/build.sh").into(), &[], Bytes::new(), timeout)
}

/// Looks at a machine that should be clean; `canaries` are what the last job left. Read with [`Verified::parse`].
pub fn verify(canaries: &[&str], timeout: Duration) -> ExecRequest {
    let body = [BOOT, include_str!("scripts/verify.sh")].concat();
    script("janebot-verify", body, canaries, Bytes::new(), timeout)
}

/// Leaves the canary and writes the job's files, secrets included: they travel on standard input.
pub fn check(canary: &str, files: &[JobFile], timeout: Duration) -> ExecRequest {
    let body = [BOOT, include_str!("scripts/check.sh")].concat();
    let mut stdin = String::new();
    for file in files {
        let content = BASE64.encode(file.content.expose_secret());
        writeln!(stdin, "{:o} {} {content}", file.mode & 0o777, file.path).expect("a String takes any text");
    }
    script("janebot-check", body, &[canary], stdin.into(), timeout)
}

/// Counts what runs on the machine beside the host's own. Read with [`left`]. The shell is named by its path: what comes
/// first in PATH can be written by the agent, whose traces are looked for.
pub fn leftovers(timeout: Duration) -> ExecRequest {
    let mut request =
        script("janebot-leftovers", include_str!("scripts/leftovers.sh").into(), &[], Bytes::new(), timeout);
    request.argv[0] = "/bin/sh".into();
    request
}

/// Starts the agent with its own standard input and the environment that [`check`] wrote.
pub fn run(argv: &[String], stdin: Bytes, timeout: Duration) -> ExecRequest {
    run_with(ENV_FILE, argv, stdin, timeout)
}

/// Starts a program as an agent is started, with no environment of a job.
pub fn try_out(argv: &[String], timeout: Duration) -> ExecRequest {
    run_with("-", argv, Bytes::new(), timeout)
}

fn run_with(env_file: &str, argv: &[String], stdin: Bytes, timeout: Duration) -> ExecRequest {
    let args: Vec<&str> = std::iter::once(env_file).chain(argv.iter().map(String::as_str)).collect();
    script("janebot-run", include_str!("scripts/run.sh").into(), &args, stdin, timeout)
}

/// The environment as a file that `run` reads: `export NAME='value'` lines.
pub fn env_file(env: &[(String, SecretString)]) -> JobFile {
    let mut text = String::new();
    for (name, value) in env {
        let quoted = value.expose_secret().replace('\'', r"'\''");
        writeln!(text, "export {name}='{quoted}'").expect("a String takes any text");
    }
    JobFile { path: ENV_FILE.into(), mode: 0o600, content: text.into() }
}

/// What `verify` saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub boot: String,
    pub canary_present: bool,
    pub disk_ok: bool,
    /// Agent name → version, or `changed` where the binary is not the one that was installed.
    pub agents: BTreeMap<String, String>,
}

impl Verified {
    /// `None` unless every line that must be there is.
    pub fn parse(output: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(output).ok()?;
        let mut found = BTreeMap::new();
        let mut agents = BTreeMap::new();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match name.strip_prefix("agent:") {
                Some(agent) => agents.insert(agent.to_owned(), value.to_owned()),
                None => found.insert(name, value).map(str::to_owned),
            };
        }
        let word = |name, yes, no| match *found.get(name)? {
            v if v == yes => Some(true),
            v if v == no => Some(false),
            _ => None,
        };
        Some(Self {
            boot: boot_of(found.get("boot")?)?,
            canary_present: word("canary", "present", "absent")?,
            disk_ok: word("disk", "ok", "full")?,
            agents,
        })
    }
}

/// The boot identity that `check` saw, if it ended well.
pub fn checked(output: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(output).ok()?;
    let boot = text.lines().find_map(|line| line.strip_prefix("boot="))?;
    text.lines().any(|line| line == "ready").then(|| boot_of(boot))?
}

/// How many processes [`leftovers`] counted; `None` when it did not see the machine as a whole.
pub fn left(output: &Output) -> Option<usize> {
    let text = std::str::from_utf8(&output.stdout).ok()?;
    let (init, others) = text.strip_suffix('\n')?.split_once('\n')?;
    let whole = output.status == 0 && init == "init=seen";
    others.strip_prefix("others=")?.parse().ok().filter(|_| whole)
}

fn boot_of(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= 256).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verification_needs_every_line() {
        let whole = b"boot=b1\ncanary=absent\ndisk=ok\nagent:claude=2.1.197 (Claude Code)\n";
        let seen = Verified::parse(whole).unwrap();
        assert!(!seen.canary_present && seen.disk_ok);
        assert_eq!(seen.agents["claude"], "2.1.197 (Claude Code)");
        for cut in ["boot=b1\n", "canary=absent\n", "disk=ok\n"] {
            let part = String::from_utf8_lossy(whole).replace(cut, "");
            assert_eq!(Verified::parse(part.as_bytes()), None, "without {cut}");
        }
        assert_eq!(Verified::parse(b"boot=b1\ncanary=perhaps\ndisk=ok\n"), None);
    }

    #[test]
    fn a_check_counts_only_when_it_came_to_its_end() {
        assert_eq!(checked(b"boot=b1\nready\n").as_deref(), Some("b1"));
        assert_eq!(checked(b"boot=b1\n"), None);
    }

    #[test]
    fn leftovers_count_only_when_the_whole_machine_was_seen() {
        let output = |status, text: &str| Output { status, stdout: text.into(), stderr: Vec::new() };
        assert_eq!(left(&output(0, "init=seen\nothers=0\n")), Some(0));
        assert_eq!(left(&output(0, "init=seen\nothers=12\n")), Some(12));
        for (status, text) in [
            (1, "init=seen\nothers=0\n"),
            (0, "init=hidden\nothers=0\n"),
            (0, "others=0\n"),
            (0, "init=seen\nothers=0"),
        ] {
            assert_eq!(left(&output(status, text)), None, "{text:?}");
        }
    }

    /// Runs a script on this machine with `home` as home.
    fn sh(home: &std::path::Path, request: &ExecRequest) -> std::process::Output {
        use std::io::Write as _;
        let mut child = std::process::Command::new(&request.argv[0])
            .args(&request.argv[1..])
            .env_clear()
            .env("HOME", home)
            .env("TMPDIR", home)
            .env("PATH", "/usr/bin:/bin")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&request.stdin).unwrap();
        child.wait_with_output().unwrap()
    }

    #[test]
    fn the_scripts_do_on_a_real_shell_what_is_said_of_them() {
        let home = tempfile::tempdir().unwrap();
        let limit = Duration::from_secs(5);
        let built = sh(home.path(), &build(limit));
        assert!(built.status.success(), "{built:?}");

        let seen = sh(home.path(), &verify(&["canary-1"], limit));
        let seen = Verified::parse(&seen.stdout).unwrap_or_else(|| panic!("{seen:?}"));
        assert!(!seen.canary_present && seen.disk_ok && seen.agents.is_empty());

        let nasty = "it's $HOME `id` \"x\" \\ \n second line";
        let env = env_file(&[("A_KEY".into(), nasty.into()), ("EMPTY".into(), "".into())]);
        let settings = JobFile { path: ".config/some agent.json".replace(' ', "-"), mode: 0o640, content: "{}".into() };
        let ready = sh(home.path(), &check("canary-1", &[env, settings], limit));
        assert_eq!(checked(&ready.stdout), Some(seen.boot.clone()), "{ready:?}");
        assert_eq!(std::fs::read(home.path().join(".config/some-agent.json")).unwrap(), b"{}");

        let argv = ["sh", "-c", "printf %s \"$A_KEY\"; cat; pwd; echo \"$1\"; exit 3", "x", "~/a b"].map(String::from);
        let ran = sh(home.path(), &run(&argv, Bytes::from_static(b"the prompt\n"), limit));
        let work = home.path().join("work");
        let expected = format!("{nasty}the prompt\n{}\n{}/a b\n", work.display(), home.path().display());
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), expected);
        assert_eq!(ran.status.code(), Some(3));
        assert!(!home.path().join(ENV_FILE).exists(), "the environment file is removed before the agent starts");

        let seen = sh(home.path(), &leftovers(limit));
        let seen = Output { status: 0, stdout: seen.stdout, stderr: seen.stderr };
        assert!(left(&seen).is_some_and(|others| others > 0), "this very test is left: {seen:?}");

        let after = sh(home.path(), &verify(&["canary-1"], limit));
        assert!(Verified::parse(&after.stdout).unwrap().canary_present);
    }
}
