//! The built binary's command line: what it refuses, with which status, and that it says so in one sentence.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the binary with nothing of this machine's settings.
fn janebot(data: &Path, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_janebot"))
        .args(args)
        .env_clear()
        .env("DATA_DIR", data)
        .env("HOME", data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let stdin = stdin.to_vec();
    // A program that does not want all of it closes the pipe.
    let writer = std::thread::spawn(move || input.write_all(&stdin));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    output
}

/// Status, standard output and standard error.
fn run(args: &[&str], stdin: &[u8]) -> (i32, String, String) {
    let data = tempfile::tempdir().unwrap();
    let output = janebot(data.path(), args, stdin);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn wrong_usage_ends_with_status_2_and_says_what_is_wrong() {
    let cases: [(&[&str], &[u8], &str); 9] = [
        (&["ask", "--timeout", "soon", "hi"], b"", "90s"),
        (&["ask", "--timeout", "0s", "hi"], b"", "no time"),
        (&["ask", "--timeout", "1000000years", "hi"], b"", "longest run is 24h"),
        (&["ask", "--nonsense"], b"", "--nonsense"),
        (&["ask", "one", "two"], b"", "unexpected argument"),
        (&["dance"], b"", "unrecognized subcommand"),
        (&["ask", "-"], b"good\xff", "not UTF-8 (the first wrong byte is number 5)"),
        (&["--config", "/does/not/exist.toml", "config"], b"", "/does/not/exist.toml"),
        (&["ask", "--files", "/proc", "hi"], b"", "name a new one"),
    ];
    for (args, stdin, part) in cases {
        let (status, out, err) = run(args, stdin);
        assert_eq!((status, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(part), "{args:?}: {err}");
    }
}

#[test]
fn what_the_desk_would_refuse_is_refused_with_status_3_before_anything_starts() {
    let long = vec![b'x'; 2 * 1024 * 1024];
    let mut wide = vec![b'x'; 1024 * 1024];
    wide.extend("ä".repeat(10).bytes());
    let cases: [(&[&str], &[u8], &str); 7] = [
        (&["ask", ""], b"", "The prompt is empty"),
        (&["ask"], b" \n", "The prompt is empty"),
        (&["ask", "-"], &long, "longer than 1 MiB"),
        (&["ask", "-"], &wide, "longer than 1 MiB"),
        (&["ask", "--agent", "gpt", "hi"], b"", "There is no agent “gpt”. Configured: shell."),
        (&["ask", "--agent", "claude", "hi"], b"", "set ANTHROPIC_API_KEY"),
        (&["chat", "--agent", "gpt"], b"", "There is no agent “gpt”"),
    ];
    for (args, stdin, part) in cases {
        let (status, out, err) = run(args, stdin);
        assert_eq!((status, out.as_str()), (3, ""), "{args:?}: {err}");
        assert!(err.contains(part), "{args:?}: {err}");
        assert_eq!(err.lines().count(), 1, "one sentence: {err}");
    }
}

#[test]
fn a_refusal_is_a_json_object_when_json_is_wanted() {
    let (status, out, err) = run(&["ask", "--json", ""], b"");
    assert_eq!((status, err.as_str()), (3, ""));
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&object["outcome"], &object["reason"]), (&"refused".into(), &"empty_prompt".into()));
    assert_eq!(object["answer"], serde_json::Value::Null);
}

#[test]
fn without_a_chat_to_serve_it_says_what_can_be_done_instead() {
    for args in [&[][..], &["serve"]] {
        let (status, out, err) = run(args, b"");
        assert_eq!((status, out.as_str()), (2, ""));
        assert!(err.contains("janebot chat"), "{err}");
    }
}

#[test]
fn wrong_settings_are_all_told_at_once() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("janebot.toml");
    std::fs::write(&file, "RUNNERS = 0\nEXEC_TIMEOUT = \"soon\"\n").unwrap();
    let output = janebot(data.path(), &["config", "--config", file.to_str().unwrap()], b"");
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("RUNNERS") && err.contains("EXEC_TIMEOUT"), "{err}");
}

#[test]
fn the_settings_are_printed_without_secrets() {
    let data = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_janebot"))
        .arg("config")
        .env_clear()
        .env("DATA_DIR", data.path())
        .env("ANTHROPIC_API_KEY", "sk-very-secret")
        .output()
        .unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("ANTHROPIC_API_KEY=set") && out.contains("| `RUNNERS` |"), "{out}");
    assert!(!out.contains("very-secret"), "{out}");
}

#[test]
fn help_is_no_error() {
    let (status, out, err) = run(&["--help"], b"");
    assert_eq!((status, err.as_str()), (0, ""));
    for command in ["ask", "chat", "serve", "host", "why", "jobs", "config"] {
        assert!(out.contains(&format!("  {command} ")), "{out}");
    }
}
