//! Running programs: the upgrade, the frames, and every way for a connection to end.

use std::time::Duration;

use bytes::Bytes;
use janebot::sprites::http::Deadlines;
use janebot::sprites::{ExecEvent, ExecRequest, Signal, Sprites, SpritesError};
use serde_json::json;
use tokio::time::timeout;

use super::wire::{Answer, Step, Wire, exit_byte, exit_text, json, ndjson, out, session, text};
use super::{EXEC_A, Is, client, is_unknown, patient, patient_client, program};

/// Runs a program against these steps and collects what came.
async fn run(steps: Vec<Step>) -> (Vec<ExecEvent>, Option<SpritesError>) {
    let (wire, sprites) = patient_client().await;
    wire.on(EXEC_A, [Answer::Exec(steps)]);
    let mut exec = match sprites.exec("a", program(&["sh"])).await {
        Ok(exec) => exec,
        Err(error) => return (vec![], Some(error)),
    };
    let mut events = Vec::new();
    let mut failed = None;
    while let Some(event) = exec.next().await {
        match event {
            Ok(event) => events.push(event),
            Err(error) => failed = Some(error),
        }
    }
    assert_eq!(wire.count(EXEC_A), 1, "a program whose upgrade succeeded is never started again");
    (events, failed)
}

#[tokio::test]
async fn a_program_is_asked_for_in_full_and_its_input_ends() {
    let (wire, sprites) = patient_client().await;
    wire.on(EXEC_A, [Answer::Exec(vec![session("28883"), Step::ReadInput, out(b"ok"), exit_text(3), exit_byte(3)])]);
    let request = ExecRequest {
        env: vec![("A".into(), "1 &=".into()), ("B".into(), String::new())],
        dir: Some("work".into()),
        stdin: "prompt".into(),
        max_run_after_disconnect: Some(Duration::from_secs(300)),
        ..program(&["sh", "-c", "echo \"$1\" #?&+", "näme"])
    };
    let exec = sprites.exec("a", request).await.unwrap();
    assert_eq!(exec.session, "28883");
    let output = exec.output(100).await.unwrap();
    assert_eq!((output.status, &output.stdout[..]), (3, &b"ok"[..]));
    assert_eq!(wire.input(), b"prompt");
    let request = &wire.requests()[0];
    assert_eq!(request.all("cmd"), ["sh", "-c", "echo \"$1\" #?&+", "näme"]);
    assert_eq!(request.all("path"), ["sh"]);
    assert_eq!(request.all("env"), ["A=1 &=", "B="]);
    assert_eq!(request.all("dir"), ["/home/sprite/work"]);
    assert_eq!(request.all("stdin"), ["true"]);
    assert_eq!(request.all("max_run_after_disconnect"), ["300s"]);
}

#[tokio::test]
async fn without_input_none_is_promised_and_its_end_is_still_sent() {
    let (wire, sprites) = patient_client().await;
    wire.on(EXEC_A, [Answer::Exec(vec![session("1"), Step::ReadInput, exit_byte(0)])]);
    sprites.exec("a", program(&["true"])).await.unwrap().output(0).await.unwrap();
    assert_eq!(wire.requests()[0].all("stdin"), ["false"]);
    assert!(wire.requests()[0].all("dir").is_empty());
    let refused = sprites.exec("a", ExecRequest::default()).await;
    assert!(matches!(refused, Err(SpritesError::Refused { .. })));
}

#[tokio::test]
async fn an_exit_is_taken_from_either_message_and_the_first_counts() {
    let s = || session("1");
    let cases = [
        (vec![s(), exit_text(3), Step::Close(1000, "")], 3),
        (vec![s(), exit_byte(4), Step::Close(1000, "")], 4),
        (vec![s(), exit_text(5), exit_byte(6)], 5),
        (vec![s(), exit_byte(7), exit_text(8)], 7),
        // The connection is dropped after the exit: that is no failure.
        (vec![s(), exit_text(0)], 0),
        (vec![s(), exit_byte(143), Step::Close(1011, "bad")], 143),
        // An exit frame without a status says nothing; the text does.
        (vec![s(), Step::Binary(vec![3]), exit_text(9)], 9),
    ];
    for (steps, status) in cases {
        let (events, failed) = run(steps).await;
        assert_eq!((events, failed.is_none()), (vec![ExecEvent::Exit(status)], true));
    }
}

#[tokio::test]
async fn no_exit_is_never_success() {
    let s = || session("1");
    let cases = [
        vec![s(), out(b"half")],
        vec![s(), out(b"half"), Step::Close(1000, "bye")],
        vec![s(), out(b"half"), Step::Close(1011, "")],
        vec![s(), out(b"half"), Step::Binary(vec![3]), Step::Close(1000, "")],
    ];
    for steps in cases {
        let (events, failed) = run(steps).await;
        assert_eq!(events, [ExecEvent::Stdout("half".into())]);
        assert!(failed.as_ref().is_some_and(is_unknown), "{failed:?}");
    }
    let (events, failed) = run(vec![s(), exit_text(-1), exit_byte(0)]).await;
    assert!(events.is_empty() && matches!(failed, Some(SpritesError::Protocol { .. })), "{failed:?}");
    for steps in [vec![], vec![out(b"x")], vec![Step::Close(1000, "")]] {
        let (events, failed) = run(steps).await;
        assert!(events.is_empty() && failed.as_ref().is_some_and(is_unknown), "{failed:?}");
    }
}

#[tokio::test]
async fn output_is_bytes_wherever_it_is_cut() {
    let euro = "€".as_bytes();
    let (events, failed) = run(vec![
        session("1"),
        out(&euro[..1]),
        Step::Binary([&[2][..], &[0xff, 0x00]].concat()),
        out(&euro[1..]),
        Step::Text(r#"{"type":"port_opened","port":80,"address":"127.0.0.1","pid":9}"#.into()),
        Step::Text("not json".into()),
        Step::Binary(vec![]),
        Step::Binary(vec![9, 9]),
        exit_byte(0),
    ])
    .await;
    assert!(failed.is_none());
    let expected = [
        ExecEvent::Stdout(Bytes::copy_from_slice(&euro[..1])),
        ExecEvent::Stderr(Bytes::from_static(&[0xff, 0x00])),
        ExecEvent::Stdout(Bytes::copy_from_slice(&euro[1..])),
        ExecEvent::Exit(0),
    ];
    assert_eq!(events, expected);
}

#[tokio::test]
async fn output_before_the_session_is_kept_and_a_number_is_a_session_too() {
    let (wire, sprites) = patient_client().await;
    let number = Step::Text(r#"{"type":"session_info","session_id":77,"tty":false}"#.into());
    wire.on(EXEC_A, [Answer::Exec(vec![out(b"early "), number, session("78"), out(b"late"), exit_byte(0)])]);
    let exec = sprites.exec("a", program(&["sh"])).await.unwrap();
    assert_eq!(exec.session, "77");
    assert_eq!(exec.output(100).await.unwrap().stdout, b"early late");

    let (wire, sprites) = patient_client().await;
    wire.on(EXEC_A, [Answer::Exec(vec![out(b"x"), exit_byte(2)])]);
    let exec = sprites.exec("a", program(&["sh"])).await.unwrap();
    sprites.kill("a", &exec.session, Signal::Terminate, Duration::ZERO).await.unwrap();
    assert_eq!(exec.output(100).await.unwrap().status, 2);
}

#[tokio::test]
async fn much_input_and_much_output_do_not_block_each_other() {
    let input: Vec<u8> = (0..2 << 20).map(|n: u32| (n % 251) as u8).collect();
    let request = || ExecRequest { stdin: input.clone().into(), ..program(&["cat"]) };
    let (wire, sprites) = patient_client().await;
    wire.on(EXEC_A, [Answer::Exec(vec![session("1"), Step::Echo, exit_byte(0)])]);
    let output = sprites.exec("a", request()).await.unwrap().output(usize::MAX).await.unwrap();
    assert!(output.stdout == input && wire.input() == input);

    // The program writes more than all buffers hold before it reads anything.
    let (wire, sprites) = patient_client().await;
    let steps = vec![session("1"), Step::Flood(16 << 20), Step::ReadInput, exit_byte(0)];
    wire.on(EXEC_A, [Answer::Exec(steps)]);
    let output = sprites.exec("a", request()).await.unwrap().output(usize::MAX).await.unwrap();
    assert_eq!(output.stdout.len(), 16 << 20);
    assert!(wire.input() == input);
}

#[tokio::test]
async fn a_slow_reader_makes_the_program_wait_and_loses_nothing() {
    let wire = Wire::start().await;
    // Shorter than the wait: not to read is no sign of a dead connection.
    let sprites = client(&wire, Deadlines { dead_after: Duration::from_millis(400), ..patient() });
    // A server that hung up here, with the end of input unread, would reset the connection and lose what it holds.
    wire.on(EXEC_A, [Answer::Exec(vec![session("1"), Step::FloodUntilBlocked, exit_byte(0), Step::AwaitEnd])]);
    let exec = sprites.exec("a", program(&["yes"])).await.unwrap();
    timeout(Duration::from_secs(20), wire.blocked()).await.unwrap();
    let output = exec.output(usize::MAX).await.unwrap();
    assert_eq!((output.status, output.stdout.len() % (32 * 1024)), (0, 0));
}

#[tokio::test]
async fn a_program_that_ends_without_reading_its_input_has_still_ended() {
    let (wire, sprites) = patient_client().await;
    wire.on(EXEC_A, [Answer::Exec(vec![session("1"), out(b"done"), exit_text(1), exit_byte(1)])]);
    let request = ExecRequest { stdin: vec![0; 8 << 20].into(), ..program(&["true"]) };
    let output = sprites.exec("a", request).await.unwrap().output(100).await.unwrap();
    assert_eq!((output.status, &output.stdout[..]), (1, &b"done"[..]));
}

#[tokio::test]
async fn a_refused_upgrade_is_repeated_because_nothing_runs_yet() {
    let (wire, sprites) = patient_client().await;
    wire.on(EXEC_A, [text(500, "boom"), text(401, ""), Answer::Exec(vec![session("1"), exit_byte(0)])]);
    sprites.exec("a", program(&["sh"])).await.unwrap();
    assert_eq!(wire.count(EXEC_A), 3);

    let cases: [(u16, &str, Is, usize); 6] = [
        (404, r#"{"error":"sprite not found"}"#, |e| matches!(e, SpritesError::NotFound { .. }), 1),
        (400, "No command specified", |e| matches!(e, SpritesError::Refused { status: 400, .. }), 1),
        (401, "", |e| matches!(e, SpritesError::Unauthorized), 3),
        (502, "", |e| matches!(e, SpritesError::Broken { .. }), 3),
        // Behind a gateway that gave up waiting, the program may start yet.
        (504, "", is_unknown, 1),
        (200, r#"{"sessions":[]}"#, |e| matches!(e, SpritesError::Protocol { .. }), 1),
    ];
    for (status, body, expected, sent) in cases {
        let (wire, sprites) = patient_client().await;
        wire.on(EXEC_A, [text(status, body)]);
        let error = sprites.exec("a", program(&["sh"])).await.unwrap_err();
        assert!(expected(&error), "{status}: {error:?}");
        assert_eq!(wire.count(EXEC_A), sent, "{status}");
    }
}

#[tokio::test]
async fn a_false_handshake_is_seen() {
    let (wire, sprites) = patient_client().await;
    let nonsense = Answer::Handshake { accept: Some("bm9uc2Vuc2U="), extension: None };
    let compressed = Answer::Handshake { accept: None, extension: Some("permessage-deflate") };
    wire.on(EXEC_A, [nonsense, compressed]);
    for word in ["Sec-WebSocket-Accept", "extension"] {
        let error = sprites.exec("a", program(&["sh"])).await.unwrap_err();
        assert!(matches!(&error, SpritesError::Protocol { message } if message.contains(word)), "{error:?}");
    }
    assert_eq!(wire.count(EXEC_A), 2);
}

#[tokio::test]
async fn a_silent_connection_is_dead_and_one_that_answers_pings_is_not() {
    let wire = Wire::start().await;
    let deadlines =
        Deadlines { ping_every: Duration::from_millis(50), dead_after: Duration::from_secs(1), ..patient() };
    let sprites = client(&wire, deadlines);
    let quiet = vec![session("1"), Step::Read(Duration::from_millis(2500)), exit_byte(0)];
    wire.on(EXEC_A, [Answer::Exec(quiet), Answer::Exec(vec![session("1"), Step::Hang])]);
    assert_eq!(sprites.exec("a", program(&["sleep"])).await.unwrap().output(0).await.unwrap().status, 0);
    let error = sprites.exec("a", program(&["sleep"])).await.unwrap().output(0).await.unwrap_err();
    assert!(is_unknown(&error) && error.to_string().contains("silent"), "{error}");
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_given_up_after_its_timeout() {
    let (wire, sprites) = patient_client().await;
    let endless = vec![session("1"), out(b"x"), Step::Hang];
    wire.on(EXEC_A, [Answer::Exec(endless), Answer::Exec(vec![session("1"), Step::Flood(usize::MAX)])]);
    for _ in 0..2 {
        let request = ExecRequest { timeout: Duration::from_millis(200), ..program(&["sleep"]) };
        let mut exec = sprites.exec("a", request).await.unwrap();
        let mut last = None;
        while let Some(event) = timeout(Duration::from_secs(20), exec.next()).await.unwrap() {
            last = Some(event);
        }
        assert!(matches!(last, Some(Err(error)) if is_unknown(&error)));
    }
}

#[tokio::test]
async fn dropping_a_running_program_closes_its_connection() {
    let (wire, sprites) = patient_client().await;
    wire.on(EXEC_A, [Answer::Exec(vec![session("1"), Step::AwaitEnd])]);
    drop(sprites.exec("a", program(&["sleep"])).await.unwrap());
    timeout(Duration::from_secs(20), wire.client_gone()).await.unwrap();
}

#[tokio::test]
async fn sessions_are_listed_and_killed() {
    let (wire, sprites) = patient_client().await;
    let sessions = json!({"sessions":[{"id":"7","command":"/bin/sleep 9"},{"id":8,"command":null}],"count":2});
    wire.on(EXEC_A, [json(200, sessions)]);
    let listed = sprites.sessions("a").await.unwrap();
    assert_eq!(listed.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["7", "8"]);
    let kill = "POST /v1/sprites/a/exec/7/kill";
    let events = [r#"{"type":"signal","pid":7}"#, r#"{"type":"exited"}"#, r#"{"type":"complete","exit_code":143}"#];
    let failed = ndjson(&[r#"{"type":"error","message":"operation not permitted"}"#]);
    wire.on(kill, [ndjson(&events), ndjson(&events[..2]), text(404, ""), text(410, ""), failed]);
    let end = async || sprites.kill("a", "7", Signal::Terminate, Duration::from_secs(2)).await;
    end().await.unwrap();
    assert!(is_unknown(&end().await.unwrap_err()));
    end().await.unwrap();
    end().await.unwrap();
    assert!(matches!(end().await, Err(SpritesError::Refused { .. })));
    assert_eq!((wire.requests()[1].all("signal"), wire.requests()[1].all("timeout")), (vec!["SIGTERM"], vec!["2s"]));
}
