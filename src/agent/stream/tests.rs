//! The reader against short samples, the recorded streams of real runs where they are at hand, and noise.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const INIT: &str =
    r#"{"type":"system","subtype":"init","session_id":"s-1","model":"claude-opus-4-8[1m]","tools":["Bash"]}"#;
const AMP_RUN: &str = r#"{"type":"system","subtype":"init","session_id":"T-1","agent_mode":"medium"}
{"type":"user","message":{"role":"user","content":[{"type":"text","text":"the prompt"}]},"session_id":"T-1"}
{"type":"assistant","message":{"content":[{"type":"text","text":"I will\nrun it."},{"type":"tool_use","id":"TU-1","name":"shell_command","input":{"command":"echo ä"}}],"stop_reason":"tool_use","usage":{"input_tokens":10,"cache_creation_input_tokens":100,"cache_read_input_tokens":1000,"output_tokens":5,"max_tokens":200000}},"session_id":"T-1"}
{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"TU-1","content":"{\"output\":\"x\"}","is_error":false}]},"session_id":"T-1"}
{"type":"assistant","message":{"content":[{"type":"text","text":"All **done** ä."}],"usage":{"input_tokens":1,"output_tokens":2}},"session_id":"T-1"}
{"type":"result","subtype":"success","is_error":false,"num_turns":2,"result":"All **done** ä.","session_id":"T-1"}
"#;

struct Read {
    events: Vec<AgentEvent>,
    result: AgentResult,
}

fn read_with(mut reader: StreamReader, chunks: &[&[u8]], stderr: &str, status: u8) -> Read {
    let events = chunks.iter().flat_map(|chunk| reader.stdout(chunk)).collect();
    reader.stderr(stderr.as_bytes());
    Read { events, result: reader.finish(status) }
}

fn read(stdout: &str) -> Read {
    read_with(StreamReader::new("agent"), &[stdout.as_bytes()], "", 0)
}

fn answered(read: Read) -> (String, Details) {
    match read.result {
        AgentResult::Answered { answer, details } => (answer, details),
        other => panic!("{other:?}"),
    }
}

fn failed(read: Read) -> (String, Option<String>, Details) {
    match read.result {
        AgentResult::Failed { message, answer_so_far, details, .. } => (message, answer_so_far, details),
        other => panic!("{other:?}"),
    }
}

fn no_result(read: Read) -> String {
    match read.result {
        AgentResult::NoResult { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_amp_run_gives_its_events_its_answer_and_the_sum_of_its_messages() {
    let run = read(AMP_RUN);
    assert_eq!(
        run.events,
        [
            AgentEvent::Thread("T-1".into()),
            AgentEvent::Says("I will run it.".into()),
            AgentEvent::ToolStarted { id: "TU-1".into(), name: "shell_command".into(), summary: "echo ä".into() },
            AgentEvent::ToolEnded { id: "TU-1".into(), is_error: false },
        ]
    );
    let (answer, details) = answered(run);
    assert_eq!(answer, "All **done** ä.");
    let usage = Usage { turns: 2, input_tokens: 1111, cached_input_tokens: 1000, output_tokens: 7, cost_usd: None };
    assert_eq!(details, Details { thread: Some("T-1".into()), usage: Some(usage), notes: vec![] });
}

#[test]
fn the_usage_that_claude_repeats_for_each_block_is_counted_once() {
    let line = |id: &str, out: u64| {
        format!(
            r#"{{"type":"assistant","message":{{"id":"{id}","content":[],"usage":{{"input_tokens":10,"output_tokens":{out}}}}}}}"#
        )
    };
    let run = [line("m1", 1), line("m1", 5), line("m2", 3), line("m1", 5)].join("\n");
    let (_, details) = answered(read(&format!("{run}\n{}", r#"{"type":"result","is_error":false,"result":"x"}"#)));
    assert_eq!(details.usage, Some(Usage { turns: 2, input_tokens: 20, output_tokens: 8, ..Usage::default() }));
    let total = r#"{"type":"result","is_error":false,"result":"x","num_turns":7,"total_cost_usd":0.5,"usage":{"input_tokens":30,"output_tokens":90}}"#;
    let (_, details) = answered(read(&format!("{run}\n{total}")));
    let usage = Usage { turns: 7, input_tokens: 30, output_tokens: 90, cost_usd: Some(0.5), ..Usage::default() };
    assert_eq!(details.usage, Some(usage), "the agent's own totals are better than our sum");
}

#[test]
fn only_a_result_that_is_no_error_is_success() {
    for (line, message) in [
        (
            r#"{"type":"result","subtype":"error_during_execution","is_error":true,"error":"You have run out of credits"}"#,
            "You have run out of credits",
        ),
        (
            r#"{"type":"result","subtype":"success","is_error":true,"result":"API Error: 402 no money"}"#,
            "API Error: 402 no money",
        ),
        (
            r#"{"type":"result","is_error":true,"errors":["Reached maximum number of turns (1)",7,"b"]}"#,
            "Reached maximum number of turns (1); b",
        ),
        (
            r#"{"type":"result","is_error":true,"terminal_reason":"aborted_tools","errors":["[ede_diagnostic] x"]}"#,
            "agent failed and gave no reason but the word aborted_tools",
        ),
        (r#"{"type":"result","is_error":true}"#, "agent failed and gave no reason"),
        (
            r#"{"type":"result","subtype":"success"}"#,
            "agent ended with a result that does not say whether it succeeded",
        ),
    ] {
        assert_eq!(failed(read(line)).0, message);
    }
}

#[test]
fn a_failure_of_the_models_server_that_passes_is_told_from_one_that_stays() {
    for (status, expected) in
        [("429", true), ("500", true), ("529", true), ("402", false), ("401", false), ("null", false)]
    {
        let line = format!(
            r#"{{"type":"result","subtype":"success","is_error":true,"api_error_status":{status},"result":"API Error"}}"#
        );
        let AgentResult::Failed { retryable, .. } = read(&line).result else { panic!("a failure") };
        assert_eq!(retryable, expected, "{status}");
    }
    let credits = r#"{"type":"result","is_error":true,"error":"You have run out of credits"}"#;
    assert!(matches!(read(credits).result, AgentResult::Failed { retryable: false, .. }));
}

#[test]
fn a_failures_message_is_bounded_and_harmless() {
    for unit in ["x", "ä"] {
        let error = format!(r"\u001b[31m{}", unit.repeat(5000));
        let (message, ..) = failed(read(&format!(r#"{{"type":"result","is_error":true,"error":"{error}"}}"#)));
        assert!(message.starts_with(unit) && message.ends_with(&format!("{unit}…")), "{message}");
        assert_eq!(message.len(), MAX_MESSAGE_BYTES + '…'.len_utf8());
    }
}

#[test]
fn the_last_result_counts_and_the_exit_status_only_adds_a_note() {
    let lines = r#"{"type":"result","is_error":true,"error":"first"}
{"type":"result","is_error":false,"result":"second"}"#;
    let (answer, details) = answered(read_with(StreamReader::new("claude"), &[lines.as_bytes()], "", 137));
    assert_eq!(answer, "second");
    assert_eq!(details.notes, ["After its answer, claude ended with exit status 137, as by signal 9."]);
}

#[test]
fn a_failure_keeps_what_was_said_before_it() {
    let lines = AMP_RUN.lines().filter(|line| !line.contains(r#""result","subtype""#)).collect::<Vec<_>>().join("\n");
    let (_, so_far, _) = failed(read(&format!("{lines}\n{}", r#"{"type":"result","is_error":true,"error":"no"}"#)));
    assert_eq!(so_far.as_deref(), Some("I will\nrun it.\n\nAll **done** ä."));
}

#[test]
fn without_a_result_the_end_of_stderr_and_the_status_are_quoted() {
    let stderr = format!("{}\n\u{1b}[31mError: Invalid or missing API key.\u{1b}[0m\n", "ü".repeat(3000));
    let message =
        no_result(read_with(StreamReader::new("amp"), &[AMP_RUN.lines().next().unwrap().as_bytes()], &stderr, 1));
    assert!(
        message.starts_with("amp ended without a result (exit status 1): üü")
            && message.ends_with("Error: Invalid or missing API key.")
    );
    assert!(message.len() < 2200 && !message.contains('\u{fffd}'));
    let message = no_result(read_with(StreamReader::new("amp"), &[b"Open this page to log in\n\n"], "", 0));
    assert_eq!(message, "amp ended without a result (exit status 0): Open this page to log in");
    let message = no_result(read_with(StreamReader::new("amp"), &[], " \n", 143));
    assert_eq!(message, "amp ended without a result (exit status 143, as by signal 15) and without an error message.");
}

#[test]
fn an_answer_without_a_text_says_so() {
    let empty = r#"{"type":"result","is_error":false,"result":" \n"}"#;
    assert_eq!(answered(read(empty)).0, "The agent finished without a text.");
    let said = r#"{"type":"assistant","message":{"content":"I changed it."}}"#;
    let (answer, _) = answered(read(&format!("{said}\n{empty}")));
    assert_eq!(answer, "The agent finished without a text. The last thing it had said:\n\nI changed it.");
}

#[test]
fn claudes_api_error_is_a_message_of_nobody_and_its_retries_are_shown() {
    let lines = r#"{"type":"system","subtype":"api_retry","attempt":1,"max_retries":2,"error_status":529}
{"type":"assistant","message":{"id":"a","model":"<synthetic>","content":[{"type":"text","text":"API Error"}]}}
{"type":"result","is_error":true,"result":"API Error"}"#;
    let run = read(lines);
    assert_eq!(run.events, [AgentEvent::Says("The model's server answered 529: trying again, 1 of 2".into())]);
    assert_eq!(failed(run).1, None);
}

#[test]
fn a_sub_agents_texts_are_not_the_agents_own() {
    let lines = r#"{"type":"assistant","parent_tool_use_id":"t","message":{"model":"small","content":[{"type":"text","text":"sub"},{"type":"tool_use","id":"u","name":"Read","input":{"file_path":"/a"}}]}}
{"type":"result","is_error":true,"error":"no"}"#;
    let run = read_with(StreamReader::new("claude").asking_for(Some("big")), &[lines.as_bytes()], "", 0);
    assert_eq!(run.events, [AgentEvent::ToolStarted { id: "u".into(), name: "Read".into(), summary: "/a".into() }]);
    let (_, so_far, details) = failed(run);
    assert_eq!((so_far, details.notes), (None, vec![]));
}

#[test]
fn another_model_than_asked_for_is_noted() {
    let end = r#"{"type":"result","is_error":false,"result":"x"}"#;
    for (asked, noted) in [
        ("claude-opus-4-8", false),
        ("opus", false),
        ("claude-opus", false),
        ("default", false),
        ("sonnet", true),
        ("claude-opus-4", false),
        ("claude-opus-4-7", true),
    ] {
        let run = read_with(
            StreamReader::new("claude").asking_for(Some(asked)),
            &[INIT.as_bytes(), b"\n", end.as_bytes()],
            "",
            0,
        );
        let notes = answered(run).1.notes;
        assert_eq!(!notes.is_empty(), noted, "{asked}: {notes:?}");
        assert!(
            notes
                .iter()
                .all(|note| *note == format!("The agent used the model claude-opus-4-8[1m], not {asked} as asked."))
        );
    }
}

#[test]
fn noise_between_the_records_changes_nothing() {
    let noise = [
        "",
        "not json",
        "{\"type\":\"new_thing\",\"x\":[{}]}",
        "{\"no\":\"type\"}",
        "[1]",
        "\u{1b}[0m",
        "{\"type\":\"assistant\"}",
        "{\"type\":\"user\",\"message\":\"x\"}",
    ];
    let noisy: String =
        AMP_RUN.lines().flat_map(|line| [line.to_owned(), noise.join("\n")]).map(|line| line + "\r\n").collect();
    let (plain, noisy) = (read(AMP_RUN), read(&noisy));
    assert_eq!((plain.events, plain.result), (noisy.events, noisy.result));
}

#[test]
fn a_line_that_is_not_utf8_is_read_with_replacement_characters() {
    let run = read_with(
        StreamReader::new("amp"),
        &[b"{\"type\":\"result\",\"is_error\":false,\"result\":\"a\xffb\"}"],
        "",
        0,
    );
    assert_eq!(answered(run).0, "a\u{fffd}b");
}

#[test]
fn an_image_of_many_mib_passes_and_a_line_over_the_limit_is_noted() {
    let mut reader = StreamReader::new("claude");
    let image = |mib: usize| {
        let data = "A".repeat(mib << 20);
        format!(
            r#"{{"type":"user","message":{{"content":[{{"type":"tool_result","tool_use_id":"u","content":[{{"type":"image","data":"{data}"}}]}}]}}}}"#
        ) + "\n"
    };
    let events: Vec<_> = image(10).as_bytes().chunks(65536).flat_map(|chunk| reader.stdout(chunk)).collect();
    assert_eq!(events, [AgentEvent::ToolEnded { id: "u".into(), is_error: false }]);
    assert!(reader.stdout(image(17).as_bytes()).is_empty());
    reader.stdout(br#"{"type":"result","is_error":false,"result":"seen"}"#);
    let (answer, details) = answered(Read { events, result: reader.finish(0) });
    assert_eq!(
        (answer.as_str(), &details.notes[..]),
        ("seen", &["1 line(s) of the agent's output were longer than 16 MiB and were skipped.".to_owned()][..])
    );
}

#[test]
fn what_is_kept_of_a_talkative_agent_is_bounded() {
    let mut reader = StreamReader::new("amp");
    let say =
        |text: &str| format!(r#"{{"type":"assistant","message":{{"content":[{{"type":"text","text":"{text}"}}]}}}}"#);
    for n in 0..3000 {
        reader.stdout((say(&format!("{n} {}", "x".repeat(1000))) + "\n").as_bytes());
        assert!(reader.run.said.iter().map(String::capacity).sum::<usize>() <= MAX_SAID_BYTES);
    }
    reader.stdout(b"{\"type\":\"result\",\"is_error\":true,\"error\":\"no\"}\n");
    let (_, so_far, details) = failed(Read { events: vec![], result: reader.finish(0) });
    let so_far = so_far.unwrap();
    assert!(so_far.len() <= MAX_SAID_BYTES && so_far.contains("\n\n2999 xxx"));
    assert_eq!(details.notes, ["The agent said so much on the way that only the end of it was kept."]);
}

#[test]
fn an_answer_beyond_all_measure_is_cut_with_a_note() {
    let mut reader = StreamReader::new("amp");
    reader.stdout(
        (format!(r#"{{"type":"result","is_error":false,"result":"{}"}}"#, "ä".repeat(2 << 20)) + "\n").as_bytes(),
    );
    let Some(Ended { verdict: Ok(Some(answer)), .. }) = &reader.run.ended else {
        panic!("a result with an answer came")
    };
    assert!(answer.capacity() <= MAX_ANSWER_BYTES);
    let (answer, details) = answered(Read { events: vec![], result: reader.finish(0) });
    assert_eq!(answer.len(), MAX_ANSWER_BYTES);
    assert_eq!(details.notes, ["The answer was longer than 3 MiB and is cut."]);
}

/// The folder of recorded streams, or `None` with the reason printed.
fn recorded(agent: &str) -> Option<Vec<(String, Vec<u8>)>> {
    let root = std::env::var_os("JANEBOT_FAKE_LLM")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/fake-llm"), PathBuf::from);
    let Ok(folder) = std::fs::read_dir(root.join("recorded")) else {
        println!("skipped: no recorded streams at {}", root.join("recorded").display());
        return None;
    };
    let mut files: Vec<_> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(agent)));
    files.sort();
    Some(
        files
            .into_iter()
            .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
            .collect(),
    )
}

#[test]
fn recorded_streams_of_real_runs_are_read_as_what_they_were() {
    for (name, stream) in ["amp-", "claude-"].into_iter().filter_map(recorded).flatten() {
        let run = read_with(StreamReader::new("agent"), &[&stream], "", 0);
        let expected: Result<&str, &str> = match name.as_str() {
            "amp-success" | "claude-success" => Ok("All **done**."),
            "amp-image-and-tool-error" => Ok("see the cat"),
            "amp-thinking" => Ok("x"),
            "claude-image" => Ok("seen"),
            "claude-retry" => Ok("recovered"),
            "amp-cancelled" => Err("User cancelled (SIGINT/SIGTERM)"),
            "amp-error" => Err("You have run out of credits"),
            "claude-error" => Err("API Error: 402 no money"),
            "claude-max-turns" => Err("Reached maximum number of turns (1)"),
            "claude-resume-unknown" => {
                Err("No conversation found with session ID: 00000000-0000-4000-8000-000000000000")
            }
            "claude-sigint" => Err("agent failed and gave no reason but the word aborted_tools"),
            other => panic!("a recording that this test does not know: {other}"),
        };
        if name.ends_with("-success") {
            let kinds: Vec<_> = run.events.iter().map(std::mem::discriminant).collect();
            assert_eq!(kinds.len(), 4, "{name}: {:?}", run.events);
        }
        match run.result {
            AgentResult::Answered { answer, details } => {
                assert_eq!((Ok(answer.as_str()), true), (expected, details.thread.is_some()), "{name}");
                assert!(details.usage.unwrap().output_tokens > 0, "{name}");
            }
            AgentResult::Failed { message, .. } => assert_eq!(Err(message.as_str()), expected, "{name}"),
            AgentResult::NoResult { message, .. } => panic!("{name}: {message}"),
        }
    }
}

#[test]
fn recorded_streams_cut_anywhere_are_read_the_same() {
    for (name, stream) in ["amp-", "claude-"].into_iter().filter_map(recorded).flatten() {
        let whole = read_with(StreamReader::new("agent"), &[&stream], "", 0);
        for size in [1, 2, 3, 7, 64, 1000] {
            let cut = read_with(StreamReader::new("agent"), &stream.chunks(size).collect::<Vec<_>>(), "", 0);
            assert_eq!((&cut.events, &cut.result), (&whole.events, &whole.result), "{name} in pieces of {size}");
        }
    }
}

proptest! {
    #[test]
    fn any_cutting_of_a_run_gives_the_same(cuts in prop::collection::vec(0..AMP_RUN.len(), 0..12)) {
        let mut cuts: Vec<usize> = cuts.into_iter().chain([0, AMP_RUN.len()]).collect();
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &AMP_RUN.as_bytes()[w[0]..w[1]]).collect();
        let (cut, whole) = (read_with(StreamReader::new("agent"), &chunks, "", 0), read(AMP_RUN));
        prop_assert_eq!((cut.events, cut.result), (whole.events, whole.result));
    }

    #[test]
    fn arbitrary_bytes_never_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..8), status in any::<u8>()) {
        let mut reader = StreamReader::new("agent").asking_for(Some(""));
        for chunk in &chunks {
            reader.stdout(chunk);
            reader.stderr(chunk);
        }
        let is_no_result = matches!(reader.finish(status), AgentResult::NoResult { .. });
        prop_assert!(is_no_result);
    }

    #[test]
    fn a_run_with_bytes_changed_never_panics(changes in prop::collection::vec((0..AMP_RUN.len(), any::<u8>()), 1..10)) {
        let mut bytes = AMP_RUN.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        read_with(StreamReader::new("agent"), &[&bytes], "", 0);
    }
}
