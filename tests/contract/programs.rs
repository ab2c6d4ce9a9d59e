//! The part of the contract about running programs; needs a real `sh` in the sprite.

use std::time::Duration;

use bytes::Bytes;
use janebot::sprites::{ExecEvent, ExecRequest, Output, Signal, Sprites, SpritesError};
use tokio::time::{Instant, sleep};

/// More than any check needs on a busy machine; reaching it is a failure.
const LONG: Duration = Duration::from_secs(60);

pub async fn keep_the_contract<S: Sprites>(sprites: &S, name: &str) {
    exit_status_and_both_streams_are_told(sprites, name).await;
    arguments_environment_and_directory_arrive_as_given(sprites, name).await;
    input_arrives_whole_and_ends(sprites, name).await;
    much_output_arrives_whole(sprites, name).await;
    files_and_programs_see_the_same(sprites, name).await;
    a_session_is_listed_until_it_is_killed(sprites, name).await;
    a_program_that_ignores_the_signal_is_killed_with_its_children(sprites, name).await;
    a_timeout_is_an_unknown_outcome(sprites, name).await;
    a_program_without_a_client_lives_as_long_as_was_asked(sprites, name).await;
    a_restore_ends_all_programs(sprites, name).await;
}

fn sh(script: &str) -> ExecRequest {
    let argv = ["sh", "-c", script, "contract"].map(str::to_owned).into();
    ExecRequest { argv, timeout: LONG, ..ExecRequest::default() }
}

async fn output<S: Sprites>(sprites: &S, name: &str, request: ExecRequest) -> Output {
    sprites.exec(name, request).await.unwrap().output(16 << 20).await.unwrap()
}

/// Looks until `done` holds.
async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done().await {
        assert!(Instant::now() < end, "{what}: not within {LONG:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn is_listed<S: Sprites>(sprites: &S, name: &str, session: &str) -> bool {
    sprites.sessions(name).await.unwrap().iter().any(|listed| listed.id == session)
}

/// Waits for a first line, so that the program is known to run.
async fn started<S: Sprites>(sprites: &S, name: &str, request: ExecRequest) -> janebot::sprites::Exec {
    let mut exec = sprites.exec(name, request).await.unwrap();
    assert!(!exec.session.is_empty());
    match exec.next().await {
        Some(Ok(ExecEvent::Stdout(line))) => assert_eq!(line, "ready\n"),
        other => panic!("{other:?}"),
    }
    exec
}

async fn exit_status_and_both_streams_are_told<S: Sprites>(sprites: &S, name: &str) {
    for status in [0, 1, 3, 42, 255] {
        let output = output(sprites, name, sh(&format!("echo out; echo err >&2; exit {status}"))).await;
        assert_eq!(output, Output { status, stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec() });
    }
    assert_eq!(output(sprites, name, sh("kill -TERM $$")).await.status, 143);
    assert_eq!(output(sprites, name, sh("kill -KILL $$")).await.status, 137);
    let none = ExecRequest { argv: vec!["no-such-program".into()], timeout: LONG, ..ExecRequest::default() };
    assert_eq!(output(sprites, name, none).await.status, 127);
    // A background child that keeps the streams open is part of the program's output.
    let late = output(sprites, name, sh("(sleep 0.2; echo late) & echo soon")).await;
    assert_eq!((late.status, &late.stdout[..]), (0, &b"soon\nlate\n"[..]));
}

async fn arguments_environment_and_directory_arrive_as_given<S: Sprites>(sprites: &S, name: &str) {
    let mut request = sh(r#"printf '%s|' "$0" "$@""#);
    request.argv.extend(["", "two words", "it's \"quoted\" $HOME `id`", "a\nb", "ü€&=+%20;#"].map(str::to_owned));
    let expected = "contract||two words|it's \"quoted\" $HOME `id`|a\nb|ü€&=+%20;#|";
    assert_eq!(String::from_utf8_lossy(&output(sprites, name, request).await.stdout), expected);

    let env = vec![("GIVEN".to_owned(), "a=b & c".to_owned()), ("EMPTY".to_owned(), String::new())];
    let script = r#"test -n "$PATH" && test -n "$HOME" && echo "$GIVEN/${EMPTY-unset}""#;
    let out = output(sprites, name, ExecRequest { env, ..sh(script) }).await;
    assert_eq!(String::from_utf8_lossy(&out.stdout), "a=b & c/\n", "variables are added to the usual ones");

    let home = output(sprites, name, sh("pwd; cd && pwd")).await.stdout;
    let home = String::from_utf8(home).unwrap();
    let (start, own) = home.trim_end().split_once('\n').unwrap();
    assert_eq!(start, own, "a program starts at home");
    let made = output(sprites, name, sh("mkdir -p somewhere/else")).await;
    assert_eq!(made.status, 0);
    let there = output(sprites, name, ExecRequest { dir: Some("somewhere/else".into()), ..sh("pwd") }).await.stdout;
    assert_eq!(String::from_utf8_lossy(&there), format!("{own}/somewhere/else\n"));
}

async fn input_arrives_whole_and_ends<S: Sprites>(sprites: &S, name: &str) {
    let input: Bytes = (0..2 << 20).map(|n: u32| (n % 251) as u8).collect::<Vec<u8>>().into();
    let echoed = output(sprites, name, ExecRequest { stdin: input.clone(), ..sh("cat") }).await;
    assert!(echoed.status == 0 && echoed.stdout == input, "{} bytes came back", echoed.stdout.len());
    let none = output(sprites, name, sh("cat; echo end")).await;
    assert_eq!((none.status, &none.stdout[..]), (0, &b"end\n"[..]), "no input is an input that ends");
    let unread = output(sprites, name, ExecRequest { stdin: input, ..sh("echo done; exit 4") }).await;
    assert_eq!((unread.status, &unread.stdout[..]), (4, &b"done\n"[..]), "input may stay unread");
}

async fn much_output_arrives_whole<S: Sprites>(sprites: &S, name: &str) {
    let out = output(sprites, name, sh("head -c 5000000 /dev/zero; head -c 1000000 /dev/zero >&2; exit 9")).await;
    assert_eq!((out.status, out.stdout.len(), out.stderr.len()), (9, 5_000_000, 1_000_000));
    let bytes = output(sprites, name, sh(r"printf '\377\000\200'")).await;
    assert_eq!(bytes.stdout, [0xff, 0, 0x80], "output is bytes, not text");
}

async fn files_and_programs_see_the_same<S: Sprites>(sprites: &S, name: &str) {
    let secret = Bytes::from_static(b"written by the API");
    sprites.write_file(name, "shared/in", 0o600, secret).await.unwrap();
    let script = "cat shared/in && stat -c ' %a' shared/in && echo own > shared/in && printf out > shared/made && \
                  ln -s made shared/link";
    let out = output(sprites, name, sh(script)).await;
    assert_eq!(String::from_utf8_lossy(&out.stdout), "written by the API 600\n", "the user owns what the API writes");
    assert_eq!(sprites.read_file(name, "shared/made", 10).await.unwrap(), "out");
    let listed = sprites.list_files(name, "shared", true).await.unwrap();
    let link = listed.iter().find(|file| file.path.ends_with("/link")).unwrap();
    assert_eq!(link.kind, janebot::sprites::FileKind::Other, "a link is listed as what it is");
}

async fn a_session_is_listed_until_it_is_killed<S: Sprites>(sprites: &S, name: &str) {
    let mut exec = started(sprites, name, sh("echo ready; sleep 600")).await;
    let session = exec.session.clone();
    assert!(is_listed(sprites, name, &session).await);
    sprites.kill(name, &session, Signal::Terminate, Duration::from_secs(10)).await.unwrap();
    assert_eq!(exec.next().await.unwrap().unwrap(), ExecEvent::Exit(143));
    assert!(exec.next().await.is_none(), "nothing follows an exit");
    eventually("an ended session leaves the list", async || !is_listed(sprites, name, &session).await).await;
    sprites.kill(name, &session, Signal::Kill, Duration::ZERO).await.unwrap();

    let ended = sprites.exec(name, sh("exit 0")).await.unwrap();
    let session = ended.session.clone();
    ended.output(0).await.unwrap();
    eventually("a session ends with its program", async || !is_listed(sprites, name, &session).await).await;
}

async fn a_program_that_ignores_the_signal_is_killed_with_its_children<S: Sprites>(sprites: &S, name: &str) {
    let script = "trap '' TERM INT; (while :; do echo alive > pulse; sleep 0.05; done) & echo ready; wait";
    let exec = started(sprites, name, sh(script)).await;
    let session = exec.session.clone();
    sprites.kill(name, &session, Signal::Terminate, Duration::from_millis(300)).await.unwrap();
    assert_eq!(exec.output(0).await.unwrap().status, 137);
    let after = output(sprites, name, sh("rm -f pulse; sleep 0.5; test -e pulse && echo alive")).await;
    assert!(after.stdout.is_empty(), "a child outlived the kill");
}

async fn a_timeout_is_an_unknown_outcome<S: Sprites>(sprites: &S, name: &str) {
    let request = ExecRequest { timeout: Duration::from_millis(300), ..sh("sleep 600") };
    let exec = sprites.exec(name, request).await.unwrap();
    let session = exec.session.clone();
    let failed = exec.output(0).await;
    assert!(matches!(failed, Err(SpritesError::OutcomeUnknown { .. })), "{failed:?}");
    sprites.kill(name, &session, Signal::Kill, Duration::ZERO).await.unwrap();
    eventually("the program is gone", async || !is_listed(sprites, name, &session).await).await;
}

async fn a_program_without_a_client_lives_as_long_as_was_asked<S: Sprites>(sprites: &S, name: &str) {
    let long =
        ExecRequest { max_run_after_disconnect: Some(LONG), ..sh("echo ready; sleep 0.5; echo > finished; sleep 600") };
    let exec = started(sprites, name, long).await;
    let session = exec.session.clone();
    drop(exec);
    eventually("the program goes on", async || sprites.read_file(name, "finished", 9).await.is_ok()).await;
    assert!(is_listed(sprites, name, &session).await);
    sprites.kill(name, &session, Signal::Kill, Duration::ZERO).await.unwrap();

    let short =
        ExecRequest { max_run_after_disconnect: Some(Duration::from_millis(200)), ..sh("echo ready; sleep 600") };
    let exec = started(sprites, name, short).await;
    let session = exec.session.clone();
    drop(exec);
    eventually("the program is ended", async || !is_listed(sprites, name, &session).await).await;
}

async fn a_restore_ends_all_programs<S: Sprites>(sprites: &S, name: &str) {
    let checkpoint = sprites.create_checkpoint(name, "before the program").await.unwrap();
    let script = "trap '' TERM HUP; echo ready; while :; do echo alive > leftover; sleep 0.05; done";
    let exec = started(sprites, name, sh(script)).await;
    let session = exec.session.clone();
    sprites.restore(name, &checkpoint).await.unwrap();
    match exec.output(0).await {
        Ok(output) => assert_ne!(output.status, 0),
        Err(error) => assert!(matches!(error, SpritesError::OutcomeUnknown { .. }), "{error}"),
    }
    assert!(!is_listed(sprites, name, &session).await);
    let after = output(sprites, name, sh("sleep 0.3; test -e leftover && echo alive")).await;
    assert!(after.stdout.is_empty(), "a program outlived the restore");
}
