//! The profiles with the programs they are for: the shell always, amp and claude where they are installed.
//!
//! The real CLIs run on this machine, in a home of their own, against servers that play the model and do what the
//! prompt's `@@` lines say. Needed, or else the test says what is missing and passes: `AMP_PATH` and `CLAUDE_PATH`, or
//! `JANEBOT_TEST_REAL_CLIS=1` to fetch the pinned versions with npm; python3; the servers' folder, beside the project or
//! named by `JANEBOT_FAKE_LLM`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use janebot::agent::{AgentEvent, AgentResult, Details, Way, amp, claude, install, launch, real_key, server_url};
use janebot::config::{AgentKind, AgentsConfig, AmpConfig, ClaudeConfig};
use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::ExposeSecret;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

/// No run here takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
const KEY: &str = "the-right-key";

/// A home directory, with the agent installed, and the server that plays its model.
struct Stage {
    kind: AgentKind,
    home: TempDir,
    config: AgentsConfig,
    log: PathBuf,
    _server: Option<Child>,
}

struct Run {
    result: AgentResult,
    events: Vec<AgentEvent>,
    /// From the signal to the end, for a run that was stopped.
    stopping: Option<Duration>,
}

impl Stage {
    /// `None`, with the reason printed, where something that the agent needs is absent.
    async fn set(kind: AgentKind) -> Option<Self> {
        let mut config = config("http://unused", KEY);
        let home = tempfile::tempdir().unwrap();
        for folder in ["work", ".janebot", ".local/bin"] {
            std::fs::create_dir_all(home.path().join(folder)).unwrap();
        }
        let log = home.path().join("server.log");
        let mut server = None;
        if kind != AgentKind::Shell {
            let binary = program(kind).await.inspect_err(|reason| println!("skipped: {reason}")).ok()?;
            std::os::unix::fs::symlink(binary, home.path().join(".local/bin").join(kind.name())).unwrap();
            let (child, url) = serve(kind, &log).await.inspect_err(|reason| println!("skipped: {reason}")).ok()?;
            config = self::config(&url, KEY);
            server = Some(child);
        }
        Some(Self { kind, home, config, log, _server: server })
    }

    fn way(&self) -> Option<Way> {
        let (url, key) = server_url(self.kind, &self.config).zip(real_key(self.kind, &self.config))?;
        Some(Way { url: url.into(), key: key.clone() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    async fn run(&self, prompt: &str) -> Run {
        self.run_until(prompt, |_| false).await
    }

    /// Runs the prompt as a runner would in a sprite, and stops it by its protocol at the first event that `stop` picks.
    async fn run_until(&self, prompt: &str, stop: impl Fn(&AgentEvent) -> bool) -> Run {
        let mut launch = launch(self.kind, &self.config, self.way().as_ref(), prompt).unwrap();
        for file in &launch.files {
            let path = self.path(&file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, file.content.expose_secret()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode)).unwrap();
        }
        let home = self.home.path().to_str().unwrap();
        let argv: Vec<String> = launch
            .argv
            .iter()
            .map(|word| word.strip_prefix("~/").map_or(word.clone(), |rest| format!("{home}/{rest}")))
            .collect();
        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .env_clear()
            .envs([("HOME", home), ("PATH", "/usr/local/bin:/usr/bin:/bin")])
            .envs(launch.env.iter().map(|(name, value)| (name, value.expose_secret())))
            .current_dir(self.path("work"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let group = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&launch.stdin).await.unwrap();
        drop(stdin);
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (mut events, mut stopped) = (Vec::new(), None);
        let (mut out, mut err) = ([0; 4096], [0; 4096]);
        let (mut out_open, mut err_open) = (true, true);
        let talk = async {
            while out_open || err_open {
                tokio::select! {
                    n = stdout.read(&mut out), if out_open => match n.unwrap() {
                        0 => out_open = false,
                        n => events.extend(launch.reader.stdout(&out[..n])),
                    },
                    n = stderr.read(&mut err), if err_open => match n.unwrap() {
                        0 => err_open = false,
                        n => launch.reader.stderr(&err[..n]),
                    },
                }
                if stopped.is_none() && events.iter().any(&stop) {
                    self.wait_for_tool().await;
                    stopped = Some(Instant::now());
                    let signal = match launch.stop.signal {
                        janebot::sprites::Signal::Interrupt => Signal::INT,
                        janebot::sprites::Signal::Terminate => Signal::TERM,
                        janebot::sprites::Signal::Kill => Signal::KILL,
                    };
                    kill_process_group(group, signal).unwrap();
                }
            }
            child.wait().await.unwrap()
        };
        let status = timeout(PATIENCE, talk).await.expect("the run ends");
        let stopping = stopped.map(|at| at.elapsed());
        assert!(stopping.is_none_or(|took| took < launch.stop.grace), "{stopping:?} is longer than the grace");
        let status = std::os::unix::process::ExitStatusExt::signal(&status)
            .map_or_else(|| status.code().unwrap(), |signal| 128 + signal);
        Run { result: launch.reader.finish(u8::try_from(status).unwrap()), events, stopping }
    }

    /// Waits until the tool that writes its process id to `~/work/pid` has done so.
    async fn wait_for_tool(&self) {
        while self.tool().is_none() {
            tokio::task::yield_now().await;
        }
    }

    fn tool(&self) -> Option<u32> {
        std::fs::read_to_string(self.path("work/pid")).ok()?.strip_suffix('\n')?.parse().ok()
    }

    /// Waits until the tool runs no more. A zombie, where nobody reaps orphans, does not run.
    async fn tool_is_gone(&self) {
        let stat = format!("/proc/{}/stat", self.tool().expect("the tool ran"));
        let ended = async {
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(5), ended).await.expect("the tool ends");
    }
}

fn config(url: &str, key: &str) -> AgentsConfig {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let amp = AmpConfig {
        key: key.into(),
        url: url.into(),
        mode: "medium".into(),
        version: amp::VERSION.into(),
        path: path("AMP_PATH"),
    };
    let claude = ClaudeConfig {
        key: key.into(),
        url: url.into(),
        model: None,
        version: claude::VERSION.into(),
        path: path("CLAUDE_PATH"),
    };
    AgentsConfig { default: AgentKind::Shell, amp: Some(amp), claude: Some(claude), disabled_tools: Default::default() }
}

/// The agent's program, fetched at most once for all tests, or why there is none.
async fn program(kind: AgentKind) -> Result<PathBuf, String> {
    static FOUND: [OnceCell<Result<PathBuf, String>>; 2] = [const { OnceCell::const_new() }; 2];
    let find = async || {
        let given = std::env::var_os(if kind == AgentKind::Amp { "AMP_PATH" } else { "CLAUDE_PATH" }).is_some();
        if !given && std::env::var_os("JANEBOT_TEST_REAL_CLIS").is_none_or(|set| set != "1") {
            return Err(format!("{} is not at hand (JANEBOT_TEST_REAL_CLIS=1 fetches it)", kind.name()));
        }
        let cache = std::env::temp_dir().join("janebot-test-agents");
        install::fetch(kind, &config("http://unused", KEY), &cache)
            .await
            .map(|found| found.binary)
            .map_err(|e| e.to_string())
    };
    FOUND[usize::from(kind == AgentKind::Amp)].get_or_init(find).await.clone()
}

/// Starts the server that plays the agent's model; it takes only [`KEY`].
async fn serve(kind: AgentKind, log: &Path) -> Result<(Child, String), String> {
    let folder = std::env::var_os("JANEBOT_FAKE_LLM")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fake-llm"), PathBuf::from);
    let script = folder.join(if kind == AgentKind::Amp { "fake_amp.py" } else { "fake_llm.py" });
    if !script.is_file() {
        return Err(format!("there is no {}", script.display()));
    }
    let mut server = Command::new("python3")
        .arg(script)
        .args(["--key", KEY, "--log"])
        .arg(log)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("python3 can't be started ({e})"))?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    let hello: serde_json::Value =
        serde_json::from_str(&line).map_err(|e| format!("the server did not start ({e})"))?;
    Ok((server, hello["listening"].as_str().unwrap().to_owned()))
}

fn answered(run: &Run) -> (&str, &Details) {
    match &run.result {
        AgentResult::Answered { answer, details } => (answer, details),
        other => panic!("{other:?}"),
    }
}

fn failed(run: &Run) -> (&str, Option<&str>) {
    match &run.result {
        AgentResult::Failed { message, answer_so_far, .. } => (message, answer_so_far.as_deref()),
        other => panic!("{other:?}"),
    }
}

fn is_tool(event: &AgentEvent) -> bool {
    matches!(event, AgentEvent::ToolStarted { .. })
}

const AGENTS: [AgentKind; 2] = [AgentKind::Amp, AgentKind::Claude];

#[tokio::test]
async fn a_run_with_a_tool_call_is_answered_and_its_progress_seen() {
    for kind in AGENTS {
        let Some(stage) = Stage::set(kind).await else { continue };
        let run = stage.run("Please.\n@@say I will run it.\n@@bash echo hello > made.txt\n@@say All **done** ä.").await;
        let (answer, details) = answered(&run);
        assert_eq!(answer, "All **done** ä.");
        assert!(details.notes.is_empty(), "{:?}", details.notes);
        let usage = details.usage.as_ref().unwrap();
        assert!(usage.turns == 2 && usage.output_tokens > 0 && usage.input_tokens > 0, "{usage:?}");
        assert_eq!(usage.cost_usd.is_some(), kind == AgentKind::Claude);
        assert_eq!(std::fs::read_to_string(stage.path("work/made.txt")).unwrap(), "hello\n");
        let [
            AgentEvent::Thread(thread),
            AgentEvent::Says(says),
            AgentEvent::ToolStarted { id, summary, .. },
            AgentEvent::ToolEnded { id: ended, is_error: false },
        ] = &run.events[..]
        else {
            panic!("{:?}", run.events);
        };
        assert_eq!((says.as_str(), summary.as_str(), id), ("I will run it.", "echo hello > made.txt", ended));
        assert_eq!(details.thread.as_ref(), Some(thread));
        let log = std::fs::read_to_string(&stage.log).unwrap();
        assert!(log.contains("You are Jane, a coding assistant"), "{}'s guidance reaches the model", kind.name());
    }
}

#[tokio::test]
async fn a_turn_that_fails_is_a_failure_with_the_agents_own_words() {
    for (kind, error, message) in [
        (AgentKind::Amp, "@@error OUT_OF_CREDITS|You have run out of credits", "You have run out of credits"),
        (AgentKind::Claude, "@@http 402 no money", "API Error: 402 no money"),
    ] {
        let Some(stage) = Stage::set(kind).await else { continue };
        let run = stage.run(&format!("@@say I begin.\n@@bash echo hello\n{error}")).await;
        assert!(failed(&run).0.contains(message), "{:?}", run.result);
    }
}

#[tokio::test]
async fn a_run_that_is_stopped_ends_in_time_and_takes_its_tools_with_it() {
    for kind in AGENTS {
        let Some(stage) = Stage::set(kind).await else { continue };
        let run = stage.run_until("@@say I begin.\n@@bash echo $$ > pid; exec sleep 600", is_tool).await;
        println!("{} stopped within {:?}", kind.name(), run.stopping.unwrap());
        assert_eq!(failed(&run).1, Some("I begin."), "{:?}", run.result);
        stage.tool_is_gone().await;
    }
}

#[tokio::test]
async fn a_wrong_key_is_said_to_be_wrong() {
    for (kind, message) in [(AgentKind::Amp, "Invalid or missing API key"), (AgentKind::Claude, "Invalid API key")] {
        let Some(mut stage) = Stage::set(kind).await else { continue };
        stage.config = config(server_url(kind, &stage.config).unwrap(), "another-key");
        let began = Instant::now();
        let run = stage.run("@@say hello").await;
        println!("{} gave up after {:?}", kind.name(), began.elapsed());
        match &run.result {
            AgentResult::NoResult { message: said, .. } | AgentResult::Failed { message: said, .. } => {
                assert!(said.contains(message) && !said.contains("another-key"), "{said}");
            }
            AgentResult::Answered { answer, .. } => panic!("{answer}"),
        }
    }
}

#[tokio::test]
async fn amp_may_not_reach_into_other_threads() {
    let Some(stage) = Stage::set(AgentKind::Amp).await else { return };
    let run = stage.run("@@tool find_thread {\"query\":\"secrets\"}\n@@say looked").await;
    assert_eq!(answered(&run).0, "looked");
    assert!(
        run.events.iter().any(|event| matches!(event, AgentEvent::ToolEnded { is_error: true, .. })),
        "{:?}",
        run.events
    );
}

#[tokio::test]
async fn the_longest_prompt_that_is_accepted_is_accepted_by_amp_too() {
    let Some(stage) = Stage::set(AgentKind::Amp).await else { return };
    let end = "\n@@say read it";
    let longest = 1024 * 1024 - 27;
    let prompt = "ä".repeat(10) + &"a".repeat(longest - 20 - end.len() - 1) + end;
    assert_eq!(answered(&stage.run(&prompt).await).0, "read it");
    assert!(launch(AgentKind::Amp, &stage.config, stage.way().as_ref(), &format!("a{prompt}")).is_err());
}

#[tokio::test]
async fn claude_is_asked_for_the_configured_model() {
    let Some(mut stage) = Stage::set(AgentKind::Claude).await else { return };
    stage.config.claude.as_mut().unwrap().model = Some("claude-sonnet-4-5".into());
    let run = stage.run("@@say hello").await;
    assert_eq!(answered(&run).0, "hello");
    assert!(std::fs::read_to_string(&stage.log).unwrap().contains("claude-sonnet-4-5"));
}

/// Hooks, permissions and MCP servers of a repository would be its author's, not the operator's.
#[tokio::test]
async fn claude_runs_nothing_that_a_repository_brings() {
    let Some(stage) = Stage::set(AgentKind::Claude).await else { return };
    let mark = |name: &str| stage.path(name).display().to_string();
    let hook =
        |name: &str| serde_json::json!([{"hooks": [{"type": "command", "command": format!("touch {}", mark(name))}]}]);
    let settings = serde_json::json!({"hooks": {"SessionStart": hook("hooked"), "UserPromptSubmit": hook("hooked")}});
    std::fs::create_dir(stage.path("work/.claude")).unwrap();
    for name in ["settings.json", "settings.local.json"] {
        std::fs::write(stage.path("work/.claude").join(name), settings.to_string()).unwrap();
    }
    let servers = serde_json::json!({"mcpServers": {"evil": {"command": "touch", "args": [mark("served")]}}});
    std::fs::write(stage.path("work/.mcp.json"), servers.to_string()).unwrap();
    assert_eq!(answered(&stage.run("@@say hello").await).0, "hello");
    assert!(!stage.path("hooked").exists() && !stage.path("served").exists());

    // The same hook in the user's own settings, which the sprite has none of: so it would have shown.
    std::fs::create_dir_all(stage.path(".claude")).unwrap();
    std::fs::write(stage.path(".claude/settings.json"), settings.to_string()).unwrap();
    stage.run("@@say hello").await;
    assert!(stage.path("hooked").exists());
}

#[tokio::test]
async fn a_script_runs_with_its_input_closed_and_its_output_is_the_answer() {
    let stage = Stage::set(AgentKind::Shell).await.unwrap();
    let run = stage.run("pwd\ncat\necho \"it's $((6 * 7))\"\necho oops >&2\n").await;
    let work = stage.path("work").canonicalize().unwrap();
    assert_eq!(answered(&run).0, format!("{}\nit's 42\n\nstderr:\noops", work.display()));
    assert_eq!(answered(&stage.run("true").await).0, "(no output)");
    let run = stage.run("echo so far\nexit 3").await;
    assert_eq!(failed(&run), ("the script exited with status 3", Some("so far")));
}

#[tokio::test]
async fn a_script_that_is_stopped_ends_with_all_it_started() {
    let stage = Stage::set(AgentKind::Shell).await.unwrap();
    let run = stage
        .run_until("sleep 600 & echo $! > pid\necho started\nwait", |event| matches!(event, AgentEvent::Says(_)))
        .await;
    assert_eq!(failed(&run), ("the script exited with status 143 (as by signal 15)", Some("started")));
    stage.tool_is_gone().await;
}
