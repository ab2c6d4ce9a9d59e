//! Programs: how they start, talk, end, and are ended.

use super::*;

#[tokio::test]
async fn a_program_runs_as_the_sprite_in_its_home() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let text = says(&sandbox, "id -u; id -g; id -un; pwd; hostname; echo $HOME $USER $PATH; touch file").await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..5], ["1000", "1000", "sprite", "/home/sprite", "sprite-under-test"]);
    assert!(lines[5].starts_with("/home/sprite sprite /home/sprite/.local/bin:"));
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn the_environment_holds_nothing_of_the_services() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let command = Command::Exec {
        argv: vec!["env".into()],
        env: vec![("LANG".into(), "de_DE".into()), ("EXTRA".into(), "a=b c".into())],
        dir: Some("/tmp".into()),
        tty: None,
    };
    let text = run(&sandbox, command).await;
    let mut keys: Vec<&str> = text.text().lines().filter_map(|l| l.split('=').next()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["EXTRA", "HOME", "LANG", "LOGNAME", "PATH", "SPRITE_BOOT", "TERM", "USER"]);
    assert!(text.text().contains("EXTRA=a=b c") && text.text().contains("LANG=de_DE"));
}

#[tokio::test]
async fn exit_statuses_and_signals_are_told_as_a_shell_tells_them() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    for (script, status) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        assert_eq!(run(&sandbox, sh(script)).await.status, status, "{script}");
    }
    let absent = refusal(sandbox.spawn(argv(&["no-such-program"])).await);
    assert_eq!(absent.exit_status(), Some(127));
    assert!(absent.to_string().starts_with("no-such-program: No such file"), "{absent}");
    says(&sandbox, "echo text > plain; chmod 644 plain").await;
    assert_eq!(refusal(sandbox.spawn(argv(&["./plain"])).await).exit_status(), Some(126));
    assert_eq!(refusal(sandbox.spawn(argv(&["/etc"])).await).exit_status(), Some(126));
    says(&sandbox, "echo 'echo from a script' > script; chmod 755 script").await;
    assert_eq!(run(&sandbox, argv(&["./script"])).await.text(), "from a script");
}

#[tokio::test]
async fn standard_streams_are_separate_whole_and_reopenable() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let input: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let output = finish(sandbox.spawn(argv(&["cat"])).await.unwrap(), &input).await;
    assert!(output.stdout == input, "4 MB went through cat and came back different");
    let output = run(&sandbox, sh("echo out > /dev/stdout; echo err > /dev/stderr; echo oops >&2")).await;
    assert_eq!((output.text(), output.stderr.as_str()), ("out", "err\noops\n"));
}

#[tokio::test]
async fn a_terminal_has_the_size_it_was_given_and_ends_with_its_program() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let words = ["sh", "-c", "stty size; read line; stty size; tty"].map(String::from);
    let command = Command::Exec { argv: words.into(), env: Vec::new(), dir: None, tty: Some((24, 80)) };
    let process = sandbox.spawn(command).await.unwrap();
    let Stdio::Tty(master) = process.stdio else { panic!("no terminal") };
    sandbox.resize(process.pid, 50, 132).await.unwrap();
    // It is asked for by then, and soon done.
    until(|| rustix::termios::tcgetwinsize(&master).unwrap().ws_col == 132).await;
    let text = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut master = std::fs::File::from(master);
        master.write_all(b"go\n").unwrap();
        let (mut text, mut chunk) = (Vec::new(), [0; 1024]);
        // Linux says EIO when the last user of the slave is gone.
        while let Ok(n) = master.read(&mut chunk) {
            text.extend_from_slice(&chunk[..n]);
        }
        String::from_utf8(text).unwrap()
    });
    let text = tokio::time::timeout(PATIENCE, text).await.unwrap().unwrap();
    assert!(text.contains("50 132") && text.contains("/dev/pts/0"), "{text}");
    assert_eq!(process.exit.await.unwrap(), 0);
}

/// A shell without job control ignores SIGINT for what it starts in the background.
#[tokio::test]
async fn signals_that_the_service_ignores_are_not_ignored_inside() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let said = says(&sandbox, "grep SigIgn /proc/self/status").await;
    let ignored = u64::from_str_radix(said.split_whitespace().last().unwrap(), 16).unwrap();
    // The C library keeps 32 and 33 to itself.
    assert_eq!(ignored & !(0b11 << 31), 0, "{said}");
}

#[tokio::test]
async fn a_signal_reaches_the_programs_group_and_none_other() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let other = sandbox.spawn(sh("sleep 1000")).await.unwrap();
    let mut process =
        sandbox.spawn(sh("trap 'echo got; exit 9' INT; echo ready; while :; do sleep 0.05; done")).await.unwrap();
    let Stdio::Pipes { stdout, .. } = &mut process.stdio else { panic!("no pipes") };
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).await.unwrap();
    sandbox.signal(process.pid, libc::SIGINT).await.unwrap();
    let output = finish(process, b"").await;
    assert_eq!((output.status, output.text()), (9, "got"));
    assert!(!other.exit.is_terminated());
    sandbox.signal(other.pid, libc::SIGTERM).await.unwrap();
    assert_eq!(other.exit.await.unwrap(), 143);
    sandbox.signal(4242, libc::SIGTERM).await.unwrap();
}

#[tokio::test]
async fn killing_a_tree_ends_daemons_that_ignore_signals_and_spares_the_others() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let (doomed, spared) = (mark("doomed"), mark("spared"));
    let other = sandbox.spawn(argv(&["sleep", &spared])).await.unwrap();
    let script = format!(
        "for n in 1 2 3 4 5; do (setsid sh -c 'trap \"\" TERM HUP INT; sleep {doomed} & sleep {doomed}' &) ; done; sleep 0.1; echo up; sleep {doomed}"
    );
    let mut process = sandbox.spawn(sh(&script)).await.unwrap();
    let Stdio::Pipes { stdout, .. } = &mut process.stdio else { panic!("no pipes") };
    stdout.read_exact(&mut [0; 3]).await.unwrap();
    assert!(alive(&doomed) >= 10);
    sandbox.kill_tree(process.pid, Duration::from_secs(2)).await.unwrap();
    assert_eq!((alive(&doomed), alive(&spared)), (0, 1));
    assert_eq!(process.exit.await.unwrap(), 137);
    sandbox.kill_tree(process.pid, Duration::from_secs(2)).await.unwrap();
    sandbox.kill_tree(other.pid, Duration::from_secs(2)).await.unwrap();
}

#[tokio::test]
async fn a_program_that_kills_its_supervisor_takes_its_descendants_with_it() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let mark = mark("orphan");
    // The program's parent is its supervisor.
    let script = format!("(setsid sleep {mark} &); sleep 0.1; kill -KILL $PPID; sleep {mark}");
    let process = sandbox.spawn(sh(&script)).await.unwrap();
    assert_eq!(process.exit.await.unwrap(), 137);
    sandbox.kill_tree(process.pid, Duration::from_secs(2)).await.unwrap();
    assert_eq!(alive(&mark), 0);
    assert_eq!(says(&sandbox, "echo still here").await, "still here");
}

#[tokio::test]
async fn a_dropped_sandbox_is_killed() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let mark = mark("dropped");
    let process = sandbox.spawn(argv(&["sleep", &mark])).await.unwrap();
    assert_eq!(alive(&mark), 1);
    drop(sandbox);
    // Closed without a value: the sandbox has gone.
    tokio::time::timeout(PATIENCE, process.exit).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn arguments_are_long_or_refused_as_too_long() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let long = "x".repeat(120_000);
    assert_eq!(run(&sandbox, argv(&["sh", "-c", "echo ${#1}", "sh", &long])).await.text(), "120000");
    for words in [vec!["echo"; 200_000], vec!["echo", "a\0b"], vec![]] {
        let error = refusal(sandbox.spawn(argv(&words)).await);
        assert!(matches!(error, SandboxError::Spawn { .. }), "{error}");
    }
}
