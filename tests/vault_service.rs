//! The vault in the built binary: real sandboxes, and in them programs that look for the key. Skipped, with the reason,
//! where this machine can't build sandboxes; the real CLIs are run where they can be had (see `tests/agents.rs`).

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use janebot::config::{AgentKind, Config};
use serde_json::Value;

/// This program is the test and, by another name, the hostile agent in the sprite.
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let name = Path::new(&words[0]).file_name().unwrap_or_default();
    if name == "amp" || name == "claude" {
        return play_agent();
    }
    let tests: [(&str, fn()); 8] = [
        ("a_job_that_dumps_all_it_can_see_finds_no_key", a_job_that_dumps_all_it_can_see_finds_no_key),
        ("an_answer_that_holds_a_secret_is_held", an_answer_that_holds_a_secret_is_held),
        ("limits_end_a_job_with_the_reason", limits_end_a_job_with_the_reason),
        ("a_channels_own_hosts_are_open_to_its_jobs_alone", a_channels_own_hosts_are_open_to_its_jobs_alone),
        ("machines_of_another_process_reach_the_same_vault", machines_of_another_process_reach_the_same_vault),
        ("the_real_claude_runs_without_its_key", the_real_claude_runs_without_its_key),
        ("the_real_claude_is_stopped_at_its_limit", the_real_claude_is_stopped_at_its_limit),
        ("the_real_amp_runs_without_its_key", the_real_amp_runs_without_its_key),
    ];
    let filters: Vec<&String> = words[1..].iter().filter(|word| !word.starts_with('-')).collect();
    let mut failed = false;
    for (name, test) in tests {
        if words.iter().any(|word| word == "--list") {
            println!("{name}: test");
        } else if filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())) {
            let result = std::panic::catch_unwind(test);
            println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
            failed |= result.is_err();
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Looks like a key, and is nowhere but in the settings of the service and in the providers of these tests.
const KEY: &str = "sgamp-real-7Hk2LwX9sTtR5vB8nYc4dE6gJ1pM3zQ0uW";

/// One deployment in a folder of its own.
struct Jane {
    data: tempfile::TempDir,
    env: BTreeMap<String, String>,
}

impl Jane {
    /// `None`, with the reason printed, where sandboxes can't be built.
    fn new(env: &[(&str, &str)]) -> Option<Self> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let jane = Self { data: tempfile::tempdir().unwrap(), env };
        let tried = jane.command(&["ask", "--agent", "shell", "true"]).output().unwrap();
        let said = String::from_utf8_lossy(&tried.stderr).into_owned();
        if tried.status.code() == Some(2) && said.contains("can't be isolated here") {
            println!("skipped: {said}");
            return None;
        }
        assert_eq!(tried.status.code(), Some(0), "{said}");
        Some(jane)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_janebot"));
        command.args(args).env_clear().env("DATA_DIR", self.data.path()).env("HOME", self.data.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("RUNNERS", "1").envs(&self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Asks; the answer as JSON, what was logged, and the files' contents together.
    fn ask(&self, agent: &str, prompt: &str) -> (Value, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("files");
        let args = ["ask", "--json", "--agent", agent, "--files", files.to_str().unwrap(), "--log", "info", prompt];
        let output = self.command(&args).output().unwrap();
        let (text, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let answer = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{log}"));
        let contents = std::fs::read_dir(&files).into_iter().flatten().flatten();
        let contents = contents.map(|file| String::from_utf8_lossy(&std::fs::read(file.path()).unwrap()).into_owned());
        (answer, log.into_owned(), contents.collect())
    }
}

/// What this program is when it is installed as an agent: it runs the prompt as a script, and says how it went in the
/// agents' own words.
fn play_agent() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!("1.0-test");
        return ExitCode::SUCCESS;
    }
    let mut prompt = String::new();
    std::io::Read::read_to_string(&mut std::io::stdin(), &mut prompt).unwrap();
    let ran = Command::new("bash").args(["-c", &prompt]).stdin(Stdio::null()).output().unwrap();
    let output = std::env::var_os("JANEBOT_OUTPUT").unwrap();
    std::fs::write(Path::new(&output).join("said.txt"), [ran.stdout, ran.stderr].concat()).unwrap();
    println!(
        r#"{{"type":"assistant","message":{{"id":"m1","role":"assistant","content":[{{"type":"text","text":"done"}}],"usage":{{"input_tokens":700,"output_tokens":80}}}}}}"#
    );
    println!(r#"{{"type":"result","subtype":"success","is_error":false,"num_turns":1,"result":"done"}}"#);
    ExitCode::SUCCESS
}

/// This program, to be installed as an agent.
fn agent_program() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

/// All that a program in a sprite can look at: environment, processes, files, names.
const DUMP: &str = r#"cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr "\0" "\n"; env; set; find / -xdev -type f -size -64k -not -path "/usr/*" -not -path "/proc/*" -not -path "/sys/*" -not -path "$JANEBOT_OUTPUT/*" 2>/dev/null | head -3000 | xargs -d "\n" cat 2>/dev/null; find / -xdev -name "*sgamp*" 2>/dev/null; for name in ampcode.com api.anthropic.com localhost vault.janebot.internal amp.janebot.internal; do getent hosts $name && echo "name $name leads somewhere"; done"#;

fn a_job_that_dumps_all_it_can_see_finds_no_key() {
    let program = &agent_program();
    // Nothing listens there: whether the provider answers is not what is tried here.
    let env = [("ANTHROPIC_API_KEY", KEY), ("CLAUDE_PATH", program), ("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")];
    let Some(jane) = Jane::new(&env) else { return };
    let through_the_vault = r#"
        ask() { exec 3<>/dev/tcp/vault.janebot.internal/80 && printf "$1 HTTP/1.1\r\nhost: v\r\nx-api-key: $2\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}" >&3 && head -1 <&3; }
        echo "own: $(ask 'POST /v1/messages' "$ANTHROPIC_API_KEY")"; echo "none: $(ask 'POST /v1/messages' x)"; echo "path: $(ask 'POST /v1/files' "$ANTHROPIC_API_KEY")"
    "#;
    let (answer, log, dump) = jane.ask("claude", &format!("{through_the_vault}\n{DUMP}"));
    assert_eq!(answer["outcome"], "answered", "{answer}\n{log}");
    for line in ["own: HTTP/1.1 502", "none: HTTP/1.1 401", "path: HTTP/1.1 403"] {
        assert!(dump.contains(line), "{line} is not in {}", &dump[..dump.len().min(2000)]);
    }
    assert!(dump.contains("ANTHROPIC_API_KEY=jane_") && dump.contains("http://vault.janebot.internal"));
    assert!(dump.contains("name vault.janebot.internal leads") && !dump.contains("name ampcode.com leads"));
    assert!(!dump.contains("name api.anthropic.com leads"));
    for text in [&dump, &log, &answer.to_string()] {
        assert!(!text.contains(KEY) && !text.contains(&KEY[11..30]), "the key is somewhere");
    }
    assert_eq!(answer["receipt"]["allowed_hosts"], serde_json::json!(["vault.janebot.internal"]));
    assert!(log.contains("the vault refused a request") && !log.contains("jane_"), "{log}");

    // The token of a job that is over is nobody's.
    let token = dump.lines().find_map(|line| line.strip_prefix("ANTHROPIC_API_KEY=")).unwrap().to_owned();
    let (_, _, later) =
        jane.ask("claude", &format!("{through_the_vault}\necho \"old: $(ask 'POST /v1/messages' {token})\""));
    assert!(later.contains("old: HTTP/1.1 401") && later.contains("own: HTTP/1.1 502"), "{later}");
}

/// And its runner is quarantined, with evidence.
fn an_answer_that_holds_a_secret_is_held() {
    let program = &agent_program();
    let env = [("AMP_API_KEY", KEY), ("AMP_PATH", program)];
    let Some(jane) = Jane::new(&env) else { return };
    for (prompt, place) in [
        (format!("echo {KEY}"), "as it is"),
        (format!("echo {KEY} | base64 | rev"), "in base64"),
        (
            format!("echo hi; echo {KEY} | xxd -p > $JANEBOT_OUTPUT/x || echo {KEY} > $JANEBOT_OUTPUT/x"),
            "output file 1",
        ),
        (format!("touch $JANEBOT_OUTPUT/{KEY}; echo hi"), "the name of output file 1"),
    ] {
        let (answer, log, files) = jane.ask("shell", &prompt);
        assert_eq!((&answer["outcome"], &answer["reason"]), (&"failed".into(), &"held".into()), "{prompt}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains("AMP_API_KEY") && message.contains(place), "{message}");
        assert!(files.is_empty() && !answer.to_string().contains(KEY) && !log.contains(KEY), "{answer}\n{log}");
        assert!(log.contains("a runner is quarantined") && log.contains("a secret of the service"), "{log}");
    }
}

/// And with what was used; those of a day before the job starts.
fn limits_end_a_job_with_the_reason() {
    let program = &agent_program();
    let env = [("AMP_API_KEY", KEY), ("AMP_PATH", program), ("MAX_TOKENS_PER_JOB", "500")];
    let Some(jane) = Jane::new(&env) else { return };
    let (answer, log, _) = jane.ask("amp", "true");
    assert_eq!((&answer["outcome"], &answer["reason"]), (&"failed".into(), &"limit".into()), "{answer}\n{log}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("500 tokens") && message.contains("used 780 tokens"), "{message}");

    // The first job was the trial of the sandboxes, the second the one above.
    let jane = Jane {
        env: [&env[..2], &[("MAX_JOBS_PER_USER_DAY", "3")]]
            .concat()
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
        ..jane
    };
    let (answer, ..) = jane.ask("amp", "true");
    assert_eq!(answer["outcome"], "answered", "{answer}");
    let (answer, ..) = jane.ask("amp", "true");
    assert_eq!((&answer["outcome"], &answer["reason"]), (&"refused".into(), &"over_limit".into()), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("3 jobs"), "{answer}");

    let jane = Jane {
        env: [&env[..2], &[("MAX_TOKENS_PER_USER_DAY", "1500")]]
            .concat()
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
        ..jane
    };
    let (answer, ..) = jane.ask("amp", "true");
    assert_eq!(answer["reason"], "over_limit", "780 tokens of each of two jobs: {answer}");
    assert!(answer["message"].as_str().unwrap().contains("1560 tokens"), "{answer}");
}

fn a_channels_own_hosts_are_open_to_its_jobs_alone() {
    let env = [("CHANNEL_ALLOWED_HOSTS", "local=git.example.com,C1=other.example.com")];
    let Some(jane) = Jane::new(&env) else { return };
    let names = "for name in git.example.com other.example.com; do getent hosts $name; done; echo looked";
    let (answer, log, _) = jane.ask("shell", names);
    let said = answer["answer"].as_str().unwrap_or_else(|| panic!("{answer}\n{log}"));
    assert!(said.contains("git.example.com") && !said.contains("other.example.com"), "{said}");
    assert_eq!(answer["receipt"]["allowed_hosts"], serde_json::json!(["git.example.com"]));
    // The restore took it back.
    let jane = Jane { env: BTreeMap::new(), ..jane };
    let (answer, ..) = jane.ask("shell", names);
    assert_eq!(answer["answer"].as_str().map(str::trim), Some("looked"), "{answer}");
}

fn machines_of_another_process_reach_the_same_vault() {
    let Some(host) = Jane::new(&[]) else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut machines = host.command(&["host"]).env("VAULT_LISTEN", &port).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(machines.stdout.take().unwrap()).lines().map_while(Result::ok);
    let url = lines.next().unwrap().trim_start_matches("SPRITES_API_URL=").to_owned();
    let file = lines.next().unwrap().trim_start_matches("# The token is in ").trim_end_matches(':').to_owned();
    let token = std::fs::read_to_string(file).unwrap();
    let program = &agent_program();
    let env = [
        ("SPRITES_API_URL", url.as_str()),
        ("SPRITES_TOKEN", &token),
        ("RUNNER_PREFIX", "far"),
        ("VAULT_LISTEN", &port),
        ("ANTHROPIC_API_KEY", KEY),
        ("CLAUDE_PATH", program),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:9"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let jane = Jane { data: tempfile::tempdir().unwrap(), env };
    let prompt = r#"exec 3<>/dev/tcp/vault.janebot.internal/80 && printf "POST /v1/messages HTTP/1.1\r\nhost: v\r\nx-api-key: $ANTHROPIC_API_KEY\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}" >&3 && head -1 <&3"#;
    let (answer, log, said) = jane.ask("claude", prompt);
    let _ = machines.kill();
    let _ = machines.wait();
    assert!(said.contains("HTTP/1.1 502"), "{said}\n{answer}\n{log}");
}

/// A server that plays the model of a real agent and takes only [`KEY`]; its log tells what it was sent.
struct Model {
    child: Child,
    url: String,
}

impl Model {
    fn start(script: &str, log: &Path) -> Option<Self> {
        if std::env::var("JANEBOT_TEST_REAL_CLIS").as_deref() != Ok("1") {
            println!("skipped: JANEBOT_TEST_REAL_CLIS is not 1");
            return None;
        }
        let folder = std::env::var_os("JANEBOT_FAKE_LLM")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fake-llm"), PathBuf::from);
        let file = folder.join(script);
        if !file.exists() {
            println!("skipped: there is no {script} to run the agent against (JANEBOT_FAKE_LLM names its folder)");
            return None;
        }
        let mut python = Command::new("python3");
        python.arg(file).args(["--key", KEY, "--log"]).arg(log).stdout(Stdio::piped());
        let mut child = match python.spawn() {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: python3 does not start ({error})");
                return None;
            }
        };
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let url = serde_json::from_str::<Value>(&first).unwrap()["listening"].as_str().unwrap().to_owned();
        Some(Self { child, url })
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent's program, by npm with this user's own settings, kept for the next time.
fn program(agent: &str) -> Result<String, String> {
    let path = format!("{}_PATH", agent.to_uppercase());
    if let Ok(program) = std::env::var(&path) {
        return Ok(program);
    }
    let key = if agent == "amp" { "AMP_API_KEY" } else { "ANTHROPIC_API_KEY" };
    let env = [("HOME", "/nonexistent"), (key, KEY)].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::load(&env.into(), None).map_err(|error| error.to_string())?;
    let kind = AgentKind::named(agent).unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agents");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fetched = runtime.block_on(janebot::agent::install::fetch(kind, &config.agents, &cache));
    Ok(fetched.map_err(|error| error.to_string())?.binary.to_str().unwrap().to_owned())
}

fn a_real_agent_runs_without_its_key(script: &str, agent: &str, url_key: &str, api_key: &str) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("asked.ndjson");
    let Some(model) = Model::start(script, &log) else { return };
    let program = match program(agent) {
        Ok(program) => program,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let path = format!("{}_PATH", agent.to_uppercase());
    let env = [(url_key, model.url.as_str()), (api_key, KEY), (path.as_str(), &program)];
    let Some(jane) = Jane::new(&env) else { return };
    let prompt =
        format!("look\n@@say I look.\n@@bash {{ {DUMP}; }} > $JANEBOT_OUTPUT/dump.txt 2>&1\n@@say All **done**.");
    let (answer, said, dump) = jane.ask(agent, &prompt);
    assert_eq!(answer["answer"], "All **done**.", "{answer}\n{said}");
    assert_eq!(answer["receipt"]["warnings"], serde_json::json!([]), "{answer}");
    assert!(answer["usage"]["output_tokens"].as_u64() > Some(0), "{answer}");
    assert!(dump.contains(&format!("{api_key}=jane_")) && dump.contains("name vault.janebot.internal leads"), "{dump}");
    for text in [&dump, &said, &answer.to_string()] {
        assert!(!text.contains(KEY), "the key is somewhere");
    }
    let asked = std::fs::read_to_string(&log).unwrap();
    let requests: Vec<Value> = asked
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["headers"].is_object())
        .collect();
    assert!(!requests.is_empty());
    for request in &requests {
        let headers = request["headers"].as_object().unwrap();
        let shown = headers.iter().find_map(|(name, value)| {
            let known = ["authorization", "x-api-key"].contains(&name.to_ascii_lowercase().as_str());
            known.then(|| value.as_str().unwrap().trim_start_matches("Bearer ").to_owned())
        });
        let is_socket = headers.keys().any(|name| name.eq_ignore_ascii_case("upgrade"));
        assert_eq!(shown.as_deref(), (!is_socket).then_some(KEY), "{request}");
        // The vault's tokens never go upstream in a header; a body may quote one, as a tool's output does.
        assert!(!serde_json::to_string(headers).unwrap().contains("jane_"), "{request}");
    }
    let journal = std::fs::read(jane.data.path().join("journal.sqlite")).unwrap();
    assert!(!journal.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "the journal holds no key");
}

fn the_real_claude_runs_without_its_key() {
    a_real_agent_runs_without_its_key("fake_llm.py", "claude", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY");
}

fn the_real_claude_is_stopped_at_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("asked.ndjson");
    let Some(model) = Model::start("fake_llm.py", &log) else { return };
    let program = match program("claude") {
        Ok(program) => program,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let env = [("ANTHROPIC_BASE_URL", model.url.as_str()), ("ANTHROPIC_API_KEY", KEY), ("CLAUDE_PATH", &program)];
    let Some(jane) = Jane::new(&[&env[..], &[("MAX_TURNS_PER_JOB", "2")]].concat()) else { return };
    let (answer, said, _) = jane.ask("claude", "@@say One.\n@@bash true\n@@say Two.\n@@bash true\n@@say Three.");
    assert_eq!((&answer["outcome"], &answer["reason"]), (&"failed".into(), &"limit".into()), "{answer}\n{said}");
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("MAX_TURNS_PER_JOB") && message.contains("2 calls") && message.contains("Two."),
        "{message}"
    );
    assert_eq!(answer["usage"]["turns"], 2, "{answer}");
}

fn the_real_amp_runs_without_its_key() {
    a_real_agent_runs_without_its_key("fake_amp.py", "amp", "AMP_URL", "AMP_API_KEY");
}
