//! The installer against npms of our own: shell scripts that do what npm has been seen to do.

use super::*;
use crate::config::AmpConfig;

/// A machine with an npm that runs `script`; `$into` is the prefix folder in it, `$pkg` the package's folder, and each
/// run adds a line to `calls`.
struct Machine {
    dir: tempfile::TempDir,
    npm: Npm,
}

/// Puts a program in place that passes for amp: an ELF header, and a hole behind it.
const WHOLE: &str = r#"mkdir -p "$pkg"; echo '{"version":"1.2.3"}' > "$pkg/package.json"; cp "$here/elf" "$pkg/amp"; chmod +x "$pkg/amp""#;

impl Machine {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let npm = dir.path().join("npm");
        let text = format!(
            "#!/bin/sh\nhere='{}'\necho \"$*\" >> \"$here/calls\"\nwhile [ \"$1\" != --prefix ]; do shift; done\ninto=$2\npkg=\"$into/node_modules/@ampcode/cli-linux-x64\"\n{script}\n",
            dir.path().display()
        );
        fs::write(&npm, text).unwrap();
        fs::set_permissions(&npm, fs::Permissions::from_mode(0o755)).unwrap();
        write_elf(&dir.path().join("elf"), 62, MIN_PROGRAM_BYTES);
        let npm = Npm { program: npm, arch: "x86_64", deadline: Duration::from_secs(60) };
        Self { dir, npm }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    async fn fetch(&self, config: &AgentsConfig) -> Result<Installed, InstallError> {
        self.npm.fetch(AgentKind::Amp, config, &self.cache()).await
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default()
    }
}

fn write_elf(path: &Path, machine: u8, size: u64) {
    let mut header = [0; 20];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header[18] = machine;
    fs::write(path, header).unwrap();
    File::options().append(true).open(path).unwrap().set_len(size).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn config(version: &str, path: Option<PathBuf>) -> AgentsConfig {
    let amp =
        AmpConfig { key: "k".into(), url: "http://x".into(), mode: "medium".into(), version: version.into(), path };
    AgentsConfig { default: AgentKind::Amp, amp: Some(amp), claude: None, disabled_tools: Default::default() }
}

#[tokio::test]
async fn a_version_is_fetched_once_and_then_comes_from_the_cache() {
    let machine = Machine::new(WHOLE);
    let first = machine.fetch(&config("1.2.3", None)).await.unwrap();
    assert_eq!(machine.fetch(&config("1.2.3", None)).await.unwrap(), first);
    assert_eq!(first.version.as_deref(), Some("1.2.3"));
    assert_eq!(first.sha256.len(), 64);
    assert!(first.binary.starts_with(machine.cache().join("amp-1.2.3-x64")));
    let calls = machine.calls();
    assert_eq!(calls.lines().count(), 1);
    assert!(
        calls.contains("--ignore-scripts") && calls.trim_end().ends_with("@ampcode/cli-linux-x64@1.2.3"),
        "{calls}"
    );
    let set = InstalledSet(vec![first.clone()]);
    assert_eq!(set.fingerprint_input(), format!("amp 1.2.3 {}\n", first.sha256));
}

#[tokio::test]
async fn two_at_once_fetch_once() {
    let machine = Machine::new(WHOLE);
    let config = config("1.2.3", None);
    let (one, two) = tokio::join!(machine.fetch(&config), machine.fetch(&config));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(machine.calls().lines().count(), 1);
}

#[tokio::test]
async fn half_an_installation_is_not_taken_for_a_whole_one() {
    for (script, what) in [
        ("exit 0", "the package is not there"),
        (r#"mkdir -p "$pkg"; echo '{"version":"1.2.3"}' > "$pkg/package.json""#, "there is no program at"),
        (r#"mkdir -p "$pkg"; echo '{"version":"9.9.9"}' > "$pkg/package.json""#, "has version 9.9.9"),
        (
            r#"mkdir -p "$pkg"; echo '{"version":"1.2.3"}' > "$pkg/package.json"; head -c 100 "$here/elf" > "$pkg/amp"; chmod +x "$pkg/amp""#,
            "its program is a stub of 100 bytes",
        ),
    ] {
        let machine = Machine::new(script);
        let error = machine.fetch(&config("1.2.3", None)).await.unwrap_err();
        assert!(matches!(&error, InstallError::HalfInstalled { what: found, .. } if found.contains(what)), "{error}");
        for left in ["amp-1.2.3-x64", "amp-1.2.3-x64.partial"] {
            assert!(!machine.cache().join(left).exists(), "{left}");
        }
    }
}

#[tokio::test]
async fn what_a_killed_process_left_is_cleared_away() {
    let machine = Machine::new(&format!(r#"[ ! -e "$into/left" ] || exit 9; {WHOLE}"#));
    for left in ["amp-1.2.3-x64.partial", "amp-1.2.3-x64"] {
        fs::create_dir_all(machine.cache().join(left)).unwrap();
        fs::write(machine.cache().join(left).join("left"), "x").unwrap();
    }
    machine.fetch(&config("1.2.3", None)).await.unwrap();
    assert!(!machine.cache().join("amp-1.2.3-x64.partial").exists());
}

#[tokio::test]
async fn npms_errors_say_what_to_do() {
    for (script, message) in [
        (
            "echo 'npm error code ETARGET' >&2; exit 1",
            "the registry has no @ampcode/cli-linux-x64@1.2.3: set AMP_VERSION to",
        ),
        ("echo 'npm ERR! code E404' >&2; exit 1", "the registry has no @ampcode/cli-linux-x64@1.2.3"),
        ("echo 'npm error code ENOSPC' >&2; exit 1", "no space left in "),
        ("echo 'npm error code ECONNREFUSED' >&2; exit 1", "(exit status: 1): npm error code ECONNREFUSED"),
    ] {
        let error = Machine::new(script).fetch(&config("1.2.3", None)).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let mut machine = Machine::new("");
    machine.npm.program = machine.dir.path().join("no-npm");
    let error = machine.fetch(&config("1.2.3", None)).await.unwrap_err();
    assert_eq!(error.to_string(), "npm was not found: install npm, or set AMP_PATH to a binary");
    machine.npm.arch = "riscv64";
    let error = machine.fetch(&config("1.2.3", None)).await.unwrap_err().to_string();
    assert!(error.starts_with("there is no amp for this machine's architecture riscv64"), "{error}");
}

#[tokio::test]
async fn a_version_that_is_not_exact_is_refused() {
    let machine = Machine::new(WHOLE);
    for version in ["latest", "", "../1", "^1.2.3", "1.2.3 x"] {
        let error = machine.fetch(&config(version, None)).await.unwrap_err();
        assert!(matches!(error, InstallError::BadVersion { .. }), "{error}");
    }
    assert_eq!(machine.calls(), "");
}

/// Waits until `pid` is a process no more, or one that only waits to be reaped.
async fn gone(pid: &str) {
    let running = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while running() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_fetch_that_is_dropped_kills_npm_with_all_it_started() {
    let machine = Machine::new(r#"sleep 600 & echo $! > "$here/started"; mv "$here/started" "$here/child"; wait"#);
    let child = machine.dir.path().join("child");
    let started = async {
        while !child.exists() {
            tokio::task::yield_now().await;
        }
    };
    let config = config("1.2.3", None);
    tokio::select! {
        result = machine.fetch(&config) => panic!("{result:?}"),
        () = started => {}
    }
    let pid = fs::read_to_string(child).unwrap();
    timeout_at(Instant::now() + Duration::from_secs(10), gone(pid.trim())).await.expect("it ends");
}

#[tokio::test]
async fn an_npm_that_hangs_is_given_up() {
    let mut machine = Machine::new("sleep 600");
    machine.npm.deadline = Duration::from_millis(50);
    let error = machine.fetch(&config("1.2.3", None)).await.unwrap_err();
    assert!(matches!(error, InstallError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn the_operators_own_file_must_be_a_program_for_this_machine() {
    let machine = Machine::new("exit 1");
    let file = machine.dir.path().join("own");
    let error = async |what: &str| {
        let error = machine.fetch(&config("any", Some(file.clone()))).await.unwrap_err().to_string();
        assert!(error.starts_with("AMP_PATH=") && error.contains(what), "{error}");
    };
    error("there is no program at").await;
    fs::write(&file, "#!/bin/sh\n").unwrap();
    error("it is not executable").await;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    error("it is not a 64-bit Linux program").await;
    write_elf(&file, 183, 100);
    error("it is a program for aarch64, and this machine is x86_64").await;
    write_elf(&file, 62, 100);
    let own = machine.fetch(&config("any", Some(file.clone()))).await.unwrap();
    assert_eq!((own.version, own.binary), (None, file));
}

#[test]
fn npm_sees_no_secret_of_the_service() {
    for name in ["AMP_API_KEY", "ANTHROPIC_API_KEY", "SLACK_BOT_TOKEN", "signing_secret"] {
        assert!(is_secret(name), "{name}");
    }
    for name in ["PATH", "HOME", "NPM_TOKEN", "npm_config__authToken", "NODE_AUTH_TOKEN", "HTTPS_PROXY"] {
        assert!(!is_secret(name), "{name}");
    }
}
