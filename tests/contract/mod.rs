//! What every implementation of [`Sprites`] must keep, whoever serves it: the pool is written against this and nothing
//! else. `mod contract;` brings it into a test, which calls [`keeps_the_contract`] with its own sprites.

mod programs;

use bytes::Bytes;
use janebot::sprites::{CheckpointId, ExecRequest, FileKind, NetworkPolicy, Result, Sprites, SpritesError};

/// Runs all checks on new sprites whose names start with `prefix`; they are deleted in the end. Without `real_shell`
/// the programs are left out: an in-memory host has none.
pub async fn keeps_the_contract<S: Sprites>(sprites: S, prefix: &str, real_shell: bool) {
    a_sprite_is_made_once_found_and_gone(&sprites, prefix).await;
    a_sprite_that_is_not_there_is_not_found(&sprites, &format!("{prefix}missing")).await;

    let name = format!("{prefix}contract");
    fresh(&sprites, &name).await;
    a_policy_is_read_back_as_it_was_set(&sprites, &name).await;
    files_are_kept_as_they_were_written(&sprites, &name).await;
    files_are_listed(&sprites, &name).await;
    a_restore_brings_back_the_files(&sprites, &name).await;
    if real_shell {
        programs::keep_the_contract(&sprites, &name).await;
    }
    sprites.delete(&name).await.unwrap();
}

/// A new sprite, also when an earlier run left one behind.
async fn fresh<S: Sprites>(sprites: &S, name: &str) {
    match sprites.delete(name).await {
        Ok(()) | Err(SpritesError::NotFound { .. }) => {}
        Err(error) => panic!("can't make room for {name}: {error}"),
    }
    assert_eq!(sprites.create(name, &[]).await.unwrap().name, name);
}

fn is_not_found<T>(result: Result<T>) -> bool {
    matches!(result, Err(SpritesError::NotFound { .. }))
}

async fn names<S: Sprites>(sprites: &S, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = sprites.list(prefix).await.unwrap().into_iter().map(|sprite| sprite.name).collect();
    names.sort();
    names
}

async fn a_sprite_is_made_once_found_and_gone<S: Sprites>(sprites: &S, prefix: &str) {
    let (one, two) = (format!("{prefix}one"), format!("{prefix}two"));
    fresh(sprites, &one).await;
    fresh(sprites, &two).await;
    assert!(matches!(sprites.create(&one, &[]).await, Err(SpritesError::Exists { .. })), "a name is given once");
    let info = sprites.get(&one).await.unwrap();
    assert!(info.name == one && info.labels.is_empty(), "{info:?}");
    let listed = names(sprites, prefix).await;
    assert!(listed.contains(&one) && listed.contains(&two), "{listed:?}");
    assert_eq!(names(sprites, &one).await, [one.as_str()]);

    let labels = ["job=1".to_owned(), "b".to_owned()];
    sprites.set_labels(&one, &labels).await.unwrap();
    let shown = sprites.get(&one).await.unwrap().labels;
    assert!(shown.len() == 2 && labels.iter().all(|label| shown.contains(label)), "{shown:?}");
    sprites.set_labels(&one, &labels[1..]).await.unwrap();
    assert_eq!(sprites.get(&one).await.unwrap().labels, labels[1..]);
    sprites.set_labels(&one, &[]).await.unwrap();
    assert!(sprites.get(&one).await.unwrap().labels.is_empty(), "labels are replaced, also by none");

    sprites.delete(&one).await.unwrap();
    assert!(is_not_found(sprites.get(&one).await));
    assert!(is_not_found(sprites.delete(&one).await));
    assert!(!names(sprites, prefix).await.contains(&one));
    sprites.delete(&two).await.unwrap();

    let labelled = sprites.create(&one, &labels).await.unwrap().labels;
    assert!(labelled.len() == 2, "a deleted name can be made again, with labels: {labelled:?}");
    sprites.delete(&one).await.unwrap();
}

async fn a_sprite_that_is_not_there_is_not_found<S: Sprites>(sprites: &S, name: &str) {
    let id = CheckpointId::new("v1").unwrap();
    let program = ExecRequest { argv: vec!["true".into()], ..ExecRequest::default() };
    assert!(is_not_found(sprites.get(name).await), "get");
    assert!(is_not_found(sprites.delete(name).await), "delete");
    assert!(is_not_found(sprites.set_labels(name, &[]).await), "set_labels");
    assert!(is_not_found(sprites.exec(name, program).await), "exec");
    assert!(is_not_found(sprites.sessions(name).await), "sessions");
    assert!(is_not_found(sprites.create_checkpoint(name, "clean").await), "create_checkpoint");
    assert!(is_not_found(sprites.checkpoints(name).await), "checkpoints");
    assert!(is_not_found(sprites.restore(name, &id).await), "restore");
    assert!(is_not_found(sprites.set_policy(name, &NetworkPolicy::deny_all()).await), "set_policy");
    assert!(is_not_found(sprites.policy(name).await), "policy");
    assert!(is_not_found(sprites.write_file(name, "f", 0o600, Bytes::new()).await), "write_file");
    assert!(is_not_found(sprites.read_file(name, "f", 9).await), "read_file");
    assert!(is_not_found(sprites.list_files(name, ".", false).await), "list_files");
}

async fn a_policy_is_read_back_as_it_was_set<S: Sprites>(sprites: &S, name: &str) {
    for policy in [NetworkPolicy::allow(["b.example", "*.a.example"]), NetworkPolicy::deny_all()] {
        sprites.set_policy(name, &policy).await.unwrap();
        assert_eq!(sprites.policy(name).await.unwrap(), policy);
    }
}

async fn files_are_kept_as_they_were_written<S: Sprites>(sprites: &S, name: &str) {
    let any_bytes: Bytes = (0..3 << 20).map(|n: u32| (n % 253) as u8).collect::<Vec<u8>>().into();
    let contents = [any_bytes, Bytes::from_static(b"short\0\xff\n"), Bytes::new()];
    for path in ["kept/deep/a file & more?.bin", "/home/sprite/kept/absolute.bin"] {
        for content in &contents {
            // A later content replaces a longer one.
            sprites.write_file(name, path, 0o640, content.clone()).await.unwrap();
            assert!(sprites.read_file(name, path, 4 << 20).await.unwrap() == *content, "{path}");
        }
    }
    sprites.write_file(name, "kept/five", 0o600, Bytes::from_static(b"12345")).await.unwrap();
    assert_eq!(sprites.read_file(name, "kept/five", 5).await.unwrap(), "12345");
    assert!(matches!(sprites.read_file(name, "kept/five", 4).await, Err(SpritesError::TooLarge { limit: 4, .. })));
    assert_eq!(sprites.read_file(name, "/home/sprite/kept/five", 5).await.unwrap(), "12345", "relative means home");
    assert!(is_not_found(sprites.read_file(name, "kept/none", 5).await));
    assert!(sprites.read_file(name, "kept", 5).await.is_err(), "a directory has no content");
}

async fn files_are_listed<S: Sprites>(sprites: &S, name: &str) {
    for (path, content) in [("listed/a", "1"), ("listed/sub/b", "22"), ("listed/sub/deeper/c", "")] {
        sprites.write_file(name, path, 0o644, content.into()).await.unwrap();
    }
    let below = async |path: &str, recursive| {
        let mut found: Vec<_> = sprites
            .list_files(name, path, recursive)
            .await
            .unwrap()
            .into_iter()
            .map(|file| {
                assert!(file.path.starts_with('/'), "paths are absolute: {}", file.path);
                let (_, tail) = file.path.split_once("/listed/").expect("only what is below was asked for");
                // The size of a directory has no meaning.
                (tail.to_owned(), file.kind, if file.kind == FileKind::File { file.size } else { 0 })
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    };
    let file = |path: &str, size| (path.to_owned(), FileKind::File, size);
    let dir = |path: &str| (path.to_owned(), FileKind::Directory, 0);
    assert_eq!(below("listed", false).await, [file("a", 1), dir("sub")]);
    let all = [file("a", 1), dir("sub"), file("sub/b", 2), dir("sub/deeper"), file("sub/deeper/c", 0)];
    assert_eq!(below("listed", true).await, all);
    assert_eq!(below("listed/sub", false).await, [file("sub/b", 2), dir("sub/deeper")]);
    assert!(is_not_found(sprites.list_files(name, "nowhere", true).await));
}

async fn a_restore_brings_back_the_files<S: Sprites>(sprites: &S, name: &str) {
    let write = async |path: &str, content: &'static str| {
        sprites.write_file(name, path, 0o644, content.into()).await.unwrap();
    };
    let read = async |path: &str| sprites.read_file(name, path, 100).await;

    write("state", "first").await;
    let first = sprites.create_checkpoint(name, "clean").await.unwrap();
    write("state", "second").await;
    let second = sprites.create_checkpoint(name, "clean").await.unwrap();
    assert_ne!(first, second, "a comment is no identity");
    let listed = sprites.checkpoints(name).await.unwrap();
    for id in [&first, &second] {
        assert!(listed.iter().any(|c| c.id == *id && c.comment == "clean"), "{id} is not in {listed:?}");
    }

    write("state", "third").await;
    write("stray/file", "of a job").await;
    sprites.restore(name, &first).await.unwrap();
    assert_eq!(read("state").await.unwrap(), "first");
    assert!(is_not_found(read("stray/file").await), "what came after the checkpoint is gone");
    assert!(is_not_found(sprites.list_files(name, "stray", true).await), "directories too");

    // Newer checkpoints outlive a restore of an older one, and one checkpoint can be restored many times.
    sprites.restore(name, &second).await.unwrap();
    assert_eq!(read("state").await.unwrap(), "second");
    for _ in 0..2 {
        write("stray/file", "again").await;
        sprites.restore(name, &first).await.unwrap();
        assert!(is_not_found(read("stray/file").await));
    }
    assert_eq!(read("state").await.unwrap(), "first");
    let unknown = CheckpointId::new("v987654").unwrap();
    assert!(is_not_found(sprites.restore(name, &unknown).await));
    assert!(is_not_found(sprites.restore(name, &CheckpointId::new("clean").unwrap()).await), "restore is by id only");
    assert_eq!(read("state").await.unwrap(), "first", "a restore that failed changed nothing");
}
