//! `janebot ask` as a user runs it: the built binary with the embedded host of this machine and the `shell` agent.
//!
//! Where the machine can't isolate, the program refuses to start with status 2, and these tests are skipped.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

fn janebot(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_janebot"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(args).env_clear().env("PATH", path).env("HOME", data).env("DATA_DIR", data.join("data"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Status, standard output and standard error; `None` when this machine can't run sprites.
fn ask(data: &Path, args: &[&str]) -> Option<(i32, String, String)> {
    let output = janebot(data, &[&["ask"], args].concat()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (status, out, err) = (output.status.code().unwrap(), text(output.stdout), text(output.stderr));
    if status == 2 {
        println!("skipped: {}", err.trim());
        return None;
    }
    Some((status, out, err))
}

/// A job that has begun to run, with the rest of its standard error.
fn begun(data: &Path, script: &str) -> Option<(Child, BufReader<std::process::ChildStderr>)> {
    let mut child = janebot(data, &["ask", script]).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("janebot: begun") {
        if err.read_line(&mut seen).unwrap() == 0 {
            assert_eq!(child.wait().unwrap().code(), Some(2), "{seen}");
            println!("skipped: {seen}");
            return None;
        }
    }
    Some((child, err))
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn only_the_answer_is_on_standard_output() {
    let data = tempfile::tempdir().unwrap();
    let Some((status, out, err)) = ask(data.path(), &["echo hello"]) else { return };
    assert_eq!((status, out.as_str()), (0, "hello\n"), "{err}");
    assert!(err.contains("✓ shell") && err.contains("clean jane-runner-"), "{err}");
}

#[test]
fn a_script_that_fails_ends_with_status_1_and_json_tells_all() {
    let data = tempfile::tempdir().unwrap();
    let Some((status, out, err)) = ask(data.path(), &["--json", "echo so far; exit 3"]) else { return };
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status, 1, "{err}");
    assert_eq!((&object["outcome"], &object["reason"]), (&"failed".into(), &"agent_failed".into()), "{out}");
    assert!(object["message"].as_str().unwrap().contains("status 3"), "{out}");
    assert!(object["receipt"]["runner"].as_str().unwrap().starts_with("jane-runner-"), "{out}");
    assert!(object["timings"]["run_ms"].is_u64(), "{out}");
}

#[test]
fn the_agents_files_are_saved_where_they_are_wanted() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("files");
    let script = "mkdir -p ~/output/deep; echo one > ~/output/one.txt; echo two > ~/output/deep/two.txt";
    let args = ["--json", "--files", folder.to_str().unwrap(), script];
    let Some((status, out, err)) = ask(data.path(), &args) else { return };
    assert_eq!(status, 0, "{err}");
    assert_eq!(fs::read_to_string(folder.join("one.txt")).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(folder.join("deep/two.txt")).unwrap(), "two\n");
    let object: Value = serde_json::from_str(&out).unwrap();
    let files = object["files"].as_array().unwrap();
    assert!(files.iter().all(|file| file["path"].as_str().is_some_and(|path| Path::new(path).is_file())), "{out}");
    assert_eq!(files.len(), 2, "{out}");
}

#[test]
fn a_chat_answers_line_by_line_and_ends_with_its_input() {
    let data = tempfile::tempdir().unwrap();
    let mut child = janebot(data.path(), &["chat"]).stdin(Stdio::piped()).spawn().unwrap();
    // The input's end is the pipe's, which is closed when this statement ends.
    child.stdin.take().unwrap().write_all(b"echo first\n/agent amp\n/status\necho second\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    if output.status.code() == Some(2) {
        println!("skipped: {err}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    let place = |part: &str| out.find(part).unwrap_or_else(|| panic!("no {part:?} in {out}"));
    let places = ["/help", "first\n✓ shell", "set AMP_API_KEY", "waiting for a runner\n", "second\n✓ shell"].map(place);
    assert!(places.is_sorted(), "{out}");
}

#[test]
fn ctrl_c_ends_the_job_with_all_that_it_started_and_the_command_with_status_130() {
    let data = tempfile::tempdir().unwrap();
    let script =
        "setsid nohup sh -c 'trap : TERM; while :; do sleep 1; done' > /dev/null 2>&1 & echo begun; sleep 1000";
    let Some((child, mut err)) = begun(data.path(), script) else { return };
    signal(&child, rustix::process::Signal::INT);
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(130), &b""[..]), "{rest}");
    assert!(rest.contains("Cancelled: ") && rest.contains("no process of it is left"), "{rest}");
}

#[test]
fn a_job_that_a_killed_process_left_is_told_to_the_next_one() {
    let data = tempfile::tempdir().unwrap();
    let Some((mut child, _err)) = begun(data.path(), "echo begun; sleep 1000") else { return };
    let Some((status, _, err)) = refused_while_running(data.path()) else { return };
    assert_eq!(status, 2);
    assert!(err.contains("another janebot") && err.contains("DATA_DIR"), "{err}");
    child.kill().unwrap();
    child.wait().unwrap();
    let (status, out, err) = ask(data.path(), &["--json", "echo after"]).unwrap();
    assert_eq!(status, 0, "{err}");
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["answer"], "after", "{out}");
    let interrupted = object["interrupted"].as_array().unwrap();
    assert_eq!(interrupted.len(), 1, "{out}");
    assert_eq!(interrupted[0]["started"], true, "{out}");
    assert!(err.contains("was interrupted when janebot stopped"), "{err}");
}

#[test]
fn the_story_of_a_message_is_told_while_it_runs_and_afterwards() {
    let data = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = janebot(data.path(), args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (status, _, err) = run(&["jobs"]);
    assert!(status == 1 && err.contains("there is none"), "{err}");
    let Some((child, _err)) = begun(data.path(), "echo begun; sleep 1000") else { return };

    let (status, out, err) = run(&["jobs", "--json", "--state", "running", "--since", "1h"]);
    let jobs: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{status} {out}{err}"));
    let job = jobs[0]["job"].as_str().unwrap();
    let (status, out, err) = run(&["why", &job[..12]]);
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("heard from terminal:") && out.contains("is on jane-runner-"), "{out}");

    signal(&child, rustix::process::Signal::INT);
    child.wait_with_output().unwrap();
    let key = jobs[0]["message_key"].as_str().unwrap();
    let (status, out, err) = run(&["why", "--json", key]);
    let story: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{status} {out}{err}"));
    assert_eq!((&story["job"], &story["outcome"]["outcome"]), (&job.into(), &"cancelled".into()), "{out}");
    assert_eq!(story["leases"].as_array().unwrap().len(), 1, "{out}");
    let told = story["events"].to_string();
    assert!(told.contains("proven clean") && told.contains("no process of it is left"), "{told}");
    let (_, out, _) = run(&["jobs", "--state", "cancelled", "--limit", "1"]);
    assert!(out.contains(job) && out.lines().count() == 2, "{out}");

    for (args, expected, part) in [
        (&["why", "zzz"][..], 1, "no job is known as zzz"),
        (&["jobs", "--state", "lost"], 2, "it is one of accepted"),
        (&["jobs", "--since", "soon"], 2, "neither a time ago"),
    ] {
        let (status, _, err) = run(args);
        assert!(status == expected && err.contains(part), "{args:?}: {status} {err}");
    }
}

/// What a second process with the same journal says.
fn refused_while_running(data: &Path) -> Option<(i32, String, String)> {
    let output = janebot(data, &["ask", "echo second"]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Some((output.status.code()?, text(output.stdout), text(output.stderr)))
}
