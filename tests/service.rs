//! The built binary as a user runs it: real sandboxes, real wire, real files. Skipped, with the reason, where this
//! machine can't build sandboxes.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use janebot::config::{AgentKind, AgentsConfig, AmpConfig, ClaudeConfig};
use serde_json::Value;
use tokio::time::Instant;

/// One deployment in a folder of its own.
struct Jane {
    data: tempfile::TempDir,
    env: Vec<(String, String)>,
}

impl Jane {
    /// `None`, with the reason printed, where sandboxes can't be built.
    fn new() -> Option<Self> {
        let jane = Self { data: tempfile::tempdir().unwrap(), env: Vec::new() };
        let tried = jane.ask(&["true"]);
        let said = String::from_utf8_lossy(&tried.stderr).into_owned();
        if tried.status.code() == Some(2) && said.contains("can't be isolated here") {
            println!("skipped: {said}");
            return None;
        }
        assert_eq!(tried.status.code(), Some(0), "{said}");
        Some(jane)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_janebot"));
        command.args(args).env_clear().env("DATA_DIR", self.data.path()).env("HOME", self.data.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn ask(&self, args: &[&str]) -> Output {
        self.command(&[&["ask"], args].concat()).output().unwrap()
    }

    /// Asks for an answer as JSON.
    fn ask_json(&self, args: &[&str]) -> Value {
        let output = self.ask(&[&["--json"], args].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// Waits until `line` appears on the child's standard error, and leaves the rest unread to a thread.
fn wait_for(child: &mut Child, line: &str) {
    let stderr = child.stderr.take().unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for text in BufReader::new(stderr).lines().map_while(Result::ok) {
            // The test may have heard enough.
            let _ = told.send(text);
        }
    });
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let text = heard.recv_timeout(left).unwrap_or_else(|error| panic!("`{line}` never came: {error}"));
        if text.contains(line) {
            return;
        }
    }
}

/// Processes of this machine, in whatever sandbox, with this word in their command line.
fn processes_with(word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.windows(word.len()).any(|window| window == word.as_bytes()) && !command.starts_with(b"janebot") {
            found.push(entry.path());
        }
    }
    found
}

fn gone_soon(word: &str) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    while !processes_with(word).is_empty() {
        if Instant::now() > until {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn a_prompt_is_answered_from_a_clean_machine_and_leaves_nothing_for_the_next() {
    let Some(jane) = Jane::new() else { return };
    let first = jane.ask(&["echo hello > f; cat f; ls"]);
    assert_eq!(String::from_utf8_lossy(&first.stdout), "hello\nf\n");
    // One runner may be used twice and another never: ask until each has had several jobs.
    for _ in 0..4 {
        let next = jane.ask_json(&["ls; ls /tmp; echo here > f; echo there > /tmp/g"]);
        assert_eq!(next["answer"], "(no output)", "{next}");
        assert_eq!(next["outcome"], "answered");
        let receipt = &next["receipt"];
        assert_eq!(receipt["isolation"], "namespaces+seccomp");
        assert_eq!(receipt["checkpoint"], "v1");
        assert_eq!(receipt["restore_completed"], true);
        assert_ne!(receipt["canary_gone"], false);
        assert!(next["timings"]["run_ms"].is_u64(), "{next}");
    }
}

#[test]
fn a_machine_that_had_a_job_is_restored_before_the_next_even_in_one_process() {
    let Some(jane) = Jane::new() else { return };
    let jane = jane.with("RUNNERS", "1");
    let mut chat = jane.command(&["chat"]);
    let mut chat = chat.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = chat.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"touch leftover; (setsid sleep 7777 &); echo first\nls; echo second\n")
        .unwrap();
    drop(input);
    let output = chat.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("first") && said.contains("second"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains("leftover"), "{said}");
    assert!(gone_soon("7777"), "a process outlived its job");
}

#[test]
fn failures_timeouts_and_files_are_told_with_their_own_status() {
    let Some(jane) = Jane::new() else { return };
    let failed = jane.ask(&["echo so far; exit 3"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("status 3") && said.contains("so far"), "{said}");

    let late = jane.ask_json(&["--timeout", "1s", "echo so far; sleep 8888"]);
    assert_eq!((&late["outcome"], &late["reason"]), (&"failed".into(), &"timeout".into()), "{late}");
    assert!(late["message"].as_str().unwrap().contains("so far"), "{late}");
    assert!(gone_soon("8888"));

    let folder = jane.data.path().join("files");
    let left = jane.ask(&[
        "--files",
        folder.to_str().unwrap(),
        "mkdir $JANEBOT_OUTPUT/d; echo x > $JANEBOT_OUTPUT/d/a.txt; ln -s /etc/passwd $JANEBOT_OUTPUT/link; echo done",
    ]);
    assert_eq!(left.status.code(), Some(0), "{}", String::from_utf8_lossy(&left.stderr));
    assert_eq!(std::fs::read_to_string(folder.join("d/a.txt")).unwrap(), "x\n");
    assert!(!folder.join("link").exists(), "links are not followed");
}

#[test]
fn what_is_wrong_with_the_data_folder_is_said_in_one_sentence() {
    let Some(jane) = Jane::new() else { return };
    // A journal that is none; it is not touched.
    let journal = jane.data.path().join("journal.sqlite");
    for leftover in ["journal.sqlite-wal", "journal.sqlite-shm"] {
        let _ = std::fs::remove_file(jane.data.path().join(leftover));
    }
    std::fs::write(&journal, vec![7; 8192]).unwrap();
    let damaged = jane.ask(&["echo hi"]);
    let said = String::from_utf8_lossy(&damaged.stderr).into_owned();
    assert_eq!(damaged.status.code(), Some(2), "{said}");
    assert!(said.contains("journal") && said.contains("move it away"), "{said}");
    assert_eq!(std::fs::read(&journal).unwrap(), vec![7; 8192]);
}

#[test]
fn a_folder_that_can_not_be_written_is_said_so() {
    if rustix::process::geteuid().is_root() {
        println!("skipped: root may write anywhere");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_janebot"))
        .args(["ask", "echo hi"])
        .env_clear()
        .env("HOME", folder.path())
        .env("DATA_DIR", folder.path().join("data"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("writable"), "{said}");
}

#[test]
fn without_isolation_by_choice_the_same_line_runs_and_says_so() {
    let jane = Jane { data: tempfile::tempdir().unwrap(), env: Vec::new() };
    let jane = jane.with("ALLOW_LOCAL_EXECUTION", "true").with("RUNNERS", "1");
    for _ in 0..2 {
        let answer = jane.ask_json(&["ls; touch leftover; echo $TMPDIR > /dev/null; echo done"]);
        assert_eq!(answer["answer"].as_str().map(str::trim), Some("done"), "{answer}");
        let receipt = &answer["receipt"];
        assert_eq!(receipt["isolation"], "none");
        assert!(receipt["warnings"][0].as_str().unwrap().starts_with("no isolation"), "{receipt}");
    }
}

/// `janebot host` in a process of its own.
struct HostProcess {
    child: Child,
    url: String,
    token: String,
}

impl HostProcess {
    fn start(jane: &Jane) -> Self {
        let mut child = jane.command(&["host"]).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let url = first.strip_prefix("SPRITES_API_URL=").unwrap_or_else(|| panic!("{first}")).to_owned();
        let second = lines.next().unwrap().unwrap();
        let file = second.trim_start_matches("# The token is in ").trim_end_matches(':');
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the token is for this user alone");
        let token = std::fs::read_to_string(file).unwrap();
        Self { child, url, token }
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn machines_of_another_process_are_used_over_the_same_wire() {
    let Some(home) = Jane::new() else { return };
    let host = HostProcess::start(&home);
    let remote = |token: &str| {
        let jane = Jane { data: tempfile::tempdir().unwrap(), env: Vec::new() };
        jane.with("SPRITES_API_URL", &host.url).with("SPRITES_TOKEN", token).with("RUNNER_PREFIX", "far")
    };

    let wrong = remote("wrong").ask(&["echo hi"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{said}");
    assert!(said.contains("rejected the token") && said.contains("SPRITES_TOKEN"), "{said}");

    let jane = remote(&host.token);
    let answer = jane.ask_json(&["echo remote"]);
    assert_eq!(answer["answer"].as_str().map(str::trim), Some("remote"), "{answer}");

    // Another deployment under the same names must not touch them while the first one lives.
    let mut first = jane.command(&["ask", "echo begun; sleep 30"]).spawn().unwrap();
    wait_for(&mut first, "begun");
    let intruder = remote(&host.token).ask(&["echo hi"]);
    let said = String::from_utf8_lossy(&intruder.stderr).into_owned();
    assert_eq!(intruder.status.code(), Some(2), "{said}");
    assert!(said.contains("belongs to another janebot") && said.contains("RUNNER_PREFIX"), "{said}");
    first.kill().unwrap();
    first.wait().unwrap();
}

/// A server for a real agent from the folder of test servers, and what the agent is told of it.
fn real_agent(script: &str) -> Option<(Child, String)> {
    let folder = std::env::var_os("JANEBOT_FAKE_LLM")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fake-llm"), PathBuf::from);
    if std::env::var("JANEBOT_TEST_REAL_CLIS").as_deref() != Ok("1") {
        println!("skipped: JANEBOT_TEST_REAL_CLIS is not 1");
        return None;
    }
    let file = folder.join(script);
    if !file.exists() {
        println!("skipped: there is no {script} to run the agent against (JANEBOT_FAKE_LLM names its folder)");
        return None;
    }
    let mut server = match Command::new("python3").arg(file).args(["--key", "real-key"]).stdout(Stdio::piped()).spawn()
    {
        Ok(server) => server,
        Err(error) => {
            println!("skipped: python3 does not start ({error})");
            return None;
        }
    };
    let mut first = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let url = serde_json::from_str::<Value>(&first).unwrap()["listening"].as_str().unwrap().to_owned();
    Some((server, url))
}

/// The agent's program, by npm with this user's own settings, kept for the next time.
fn brought(agent: &str) -> Result<String, String> {
    let path = format!("{}_PATH", agent.to_uppercase());
    if let Ok(program) = std::env::var(&path) {
        return Ok(program);
    }
    let (amp_version, claude_version) = (janebot::agent::amp::VERSION, janebot::agent::claude::VERSION);
    let config = AgentsConfig {
        default: AgentKind::Shell,
        amp: Some(AmpConfig {
            key: "x".into(),
            url: String::new(),
            mode: String::new(),
            version: amp_version.into(),
            path: None,
        }),
        claude: Some(ClaudeConfig {
            key: "x".into(),
            url: String::new(),
            model: None,
            version: claude_version.into(),
            path: None,
        }),
        disabled_tools: Default::default(),
    };
    let kind = AgentKind::named(agent).unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agents");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fetched =
        runtime.block_on(janebot::agent::install::fetch(kind, &config, &cache)).map_err(|error| error.to_string())?;
    Ok(fetched.binary.to_str().unwrap().to_owned())
}

fn a_real_agent_answers(script: &str, agent: &str, url_key: &str, api_key: &str) {
    let Some(jane) = Jane::new() else { return };
    let Some((mut server, url)) = real_agent(script) else { return };
    let jane = jane.with(url_key, &url).with(api_key, "real-key");
    let jane = match brought(agent) {
        Ok(program) => jane.with(&format!("{}_PATH", agent.to_uppercase()), &program),
        Err(reason) => {
            println!("skipped: {reason}");
            let _ = server.kill();
            return;
        }
    };
    let prompt = "do it\n@@bash echo from the tool > $JANEBOT_OUTPUT/made.txt\n@@say All **done**.";
    let answer = jane.ask_json(&["--agent", agent, prompt]);
    // The test server may have ended by itself.
    let _ = server.kill();
    let _ = server.wait();
    assert_eq!(answer["answer"], "All **done**.", "{answer}");
    assert_eq!(answer["files"][0]["name"], "made.txt", "{answer}");
    assert!(answer["usage"]["output_tokens"].as_u64() > Some(0), "{answer}");
    assert_eq!(answer["receipt"]["warnings"], serde_json::json!([]), "the key is not in the sprite: {answer}");
    assert_eq!(answer["receipt"]["allowed_hosts"], serde_json::json!(["vault.janebot.internal"]), "{answer}");
}

#[test]
fn the_real_claude_answers_from_a_sandbox() {
    a_real_agent_answers("fake_llm.py", "claude", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY");
}

#[test]
fn the_real_amp_answers_from_a_sandbox() {
    a_real_agent_answers("fake_amp.py", "amp", "AMP_URL", "AMP_API_KEY");
}
