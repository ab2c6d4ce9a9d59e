//! Files: the operations on them, what a checkpoint keeps and what a restore leaves.

use super::*;

#[tokio::test]
async fn a_restore_leaves_no_file_no_daemon_and_no_memory_file() {
    let sprite = Sprite::new();
    let (sandbox, run) = sprite.start_run(&[]).await;
    says(&sandbox, "mkdir work; echo kept > work/file; rm -f nothing").await;
    sandbox.stop().await.unwrap();
    let layer = layers::freeze(&sprite.path(), &run, "clean").unwrap();

    let sandbox = sprite.start(&[&layer]).await;
    let mark = mark("restore");
    says(
        &sandbox,
        &format!(
            "echo bad > work/file; echo more > new; echo x > /tmp/t; echo x > /dev/shm/s; echo x > /run/r; \
             (setsid sh -c 'trap \"\" TERM HUP; sleep {mark} & sleep {mark}' >/dev/null 2>&1 &) ; sleep 0.1"
        ),
    )
    .await;
    assert!(alive(&mark) > 0);
    sandbox.stop().await.unwrap();
    assert_eq!(alive(&mark), 0);

    let sandbox = sprite.start(&[&layer]).await;
    assert_eq!(
        says(&sandbox, "cat work/file; ls; ls -A /tmp /dev/shm /run").await,
        "kept\nwork\n/dev/shm:\n\n/run:\n\n/tmp:"
    );
}

#[tokio::test]
async fn a_deleted_file_stays_deleted_above_its_layer() {
    let sprite = Sprite::new();
    let (sandbox, run) = sprite.start_run(&[]).await;
    says(&sandbox, "echo a > a; mkdir d; echo b > d/b").await;
    sandbox.stop().await.unwrap();
    let first = layers::freeze(&sprite.path(), &run, "v1").unwrap();
    let (sandbox, run) = sprite.start_run(&[&first]).await;
    says(&sandbox, "rm a; rm -r d; mkdir d; echo c > d/c").await;
    sandbox.stop().await.unwrap();
    let second = layers::freeze(&sprite.path(), &run, "v2").unwrap();
    let sandbox = sprite.start(&[&second, &first]).await;
    assert_eq!(says(&sandbox, "find . -type f").await, "./d/c");
    let sandbox = sprite.start(&[&first]).await;
    assert_eq!(says(&sandbox, "find . -type f | sort").await, "./a\n./d/b");
}

async fn fs(sandbox: &Sandbox, operation: FsOp, input: &[u8]) -> Result<String, String> {
    let output = finish(sandbox.spawn(Command::Fs(operation)).await.unwrap(), input).await;
    if output.status == 0 {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    assert_eq!(output.status, 1);
    let report: serde_json::Value = serde_json::from_str(&output.stderr).unwrap();
    Err(report["code"].as_str().unwrap().to_owned())
}

async fn file_operations(sandbox: &Sandbox) {
    let read = |path: &str| FsOp::Read { path: path.into() };
    let write = |path: &str, make_parents| FsOp::Write { path: path.into(), mode: 0o640, make_parents };
    assert_eq!(fs(sandbox, write("a/b.txt", false), b"one").await, Err("ENOENT".into()));
    let written = fs(sandbox, write("a/b.txt", true), b"one").await.unwrap();
    assert_eq!(written, r#"{"mode":"0640","path":"a/b.txt","size":3}"#);
    fs(sandbox, write("/home/sprite/a/b.txt", false), b"two").await.unwrap();
    assert_eq!(fs(sandbox, read("a/b.txt"), b"").await.unwrap(), "two");
    assert_eq!(says(sandbox, "stat -c %a a/b.txt; ls -A a").await, "640\nb.txt");
    assert_eq!(fs(sandbox, read("a"), b"").await, Err("EISDIR".into()));
    assert_eq!(fs(sandbox, read("none"), b"").await, Err("ENOENT".into()));
    assert_eq!(fs(sandbox, read("/dev/zero"), b"").await, Err("EINVAL".into()));
    assert_eq!(fs(sandbox, write("a", true), b"").await, Err("EISDIR".into()));

    says(sandbox, "ln -s b.txt a/link; mkdir a/sub; echo x > a/sub/x").await;
    let listed = fs(sandbox, FsOp::List { path: "a".into(), recursive: true }, b"").await.unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let seen: Vec<String> = listed["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| format!("{} {} {}", e["path"].as_str().unwrap(), e["type"].as_str().unwrap(), e["isDir"]))
        .collect();
    assert_eq!(seen, ["a/b.txt file false", "a/link symlink false", "a/sub directory true", "a/sub/x file false"]);
    assert_eq!(listed["entries"][0]["mode"], "0640");

    let copy = |recursive| FsOp::Copy { source: "a".into(), dest: "c".into(), recursive };
    assert_eq!(fs(sandbox, copy(false), b"").await, Err("EISDIR".into()));
    fs(sandbox, copy(true), b"").await.unwrap();
    assert_eq!(says(sandbox, "cat c/link c/sub/x").await, "twox");
    let into_itself = FsOp::Copy { source: "a".into(), dest: "a/sub/a".into(), recursive: true };
    assert_eq!(fs(sandbox, into_itself, b"").await, Err("EINVAL".into()));
    fs(sandbox, FsOp::Rename { source: "c".into(), dest: "d".into() }, b"").await.unwrap();
    fs(sandbox, FsOp::Chmod { path: "d".into(), mode: 0o700, recursive: true }, b"").await.unwrap();
    assert_eq!(says(sandbox, "stat -c %a d d/b.txt d/sub/x").await, "700\n700\n700");
    assert_eq!(fs(sandbox, FsOp::Delete { path: "d".into(), recursive: false }, b"").await, Err("ENOTEMPTY".into()));
    fs(sandbox, FsOp::Delete { path: "d".into(), recursive: true }, b"").await.unwrap();
    assert_eq!(fs(sandbox, FsOp::Delete { path: "d".into(), recursive: true }, b"").await, Err("ENOENT".into()));
    fs(sandbox, FsOp::Mkdir { path: "e/f".into(), parents: true }, b"").await.unwrap();
    assert_eq!(fs(sandbox, FsOp::Mkdir { path: "e/f".into(), parents: false }, b"").await, Err("EEXIST".into()));
    assert_eq!(says(sandbox, "ls").await, "a\ne");
}

#[tokio::test]
async fn file_operations_do_what_they_say_and_fail_by_name() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    file_operations(&sandbox).await;
    // A link out leads into the sandbox's own root.
    says(&sandbox, "ln -s /etc/hostname out").await;
    assert_eq!(fs(&sandbox, FsOp::Read { path: "out".into() }, b"").await.unwrap(), "sprite-under-test\n");
}

#[tokio::test]
async fn without_isolation_the_same_things_work_in_a_plain_folder() {
    let sprite = Sprite::open();
    let (mut sandbox, first) = sprite.start_run(&[]).await;
    assert!(sandbox.take_network().is_none());
    let home = sprite.path().join(&first).join("up/home/sprite");
    assert_eq!(says(&sandbox, "pwd; echo $HOME").await, format!("{0}\n{0}", home.display()));
    file_operations(&sandbox).await;
    let command =
        Command::Exec { argv: vec!["pwd".into()], env: Vec::new(), dir: Some("/home/sprite/a".into()), tty: None };
    assert_eq!(run(&sandbox, command).await.text(), home.join("a").to_str().unwrap());
    sandbox.stop().await.unwrap();
    let layer = layers::freeze(&sprite.path(), &first, "clean").unwrap();

    let sandbox = sprite.start(&[&layer]).await;
    let mark = mark("open");
    let script =
        format!("rm -r a; (setsid sh -c 'trap \"\" TERM; sleep {mark} & sleep {mark}' >/dev/null 2>&1 &); sleep 0.1");
    says(&sandbox, &script).await;
    assert!(alive(&mark) >= 2);
    sandbox.stop().await.unwrap();
    assert_eq!(alive(&mark), 0);
    let sandbox = sprite.start(&[&layer]).await;
    assert_eq!(says(&sandbox, "ls; cat a/b.txt").await, "a\ne\ntwo");
}
