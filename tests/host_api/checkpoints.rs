//! Checkpoints and restores, also at the same time as other things.

use reqwest::Method;
use serde_json::json;

use crate::served::{Frame, exec, serve};

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_takes_files_and_processes_away() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.sh("a", "echo kept > kept; mkdir deep; echo x > deep/file").await;
    let id = served.checkpoint("a", "clean").await;
    assert_eq!(id, "v1");
    let spoilt =
        served.sh("a", "rm -r kept deep; echo planted > planted; setsid sleep 1000 > /dev/null 2>&1 & echo $!").await;
    assert_eq!(spoilt.status, 0);
    let mut running = served.connect(&exec("a", "echo up; exec sleep 1000", "")).await;
    running.expect("up").await;

    served.restore("a", "v1").await;

    let cut = running.end().await;
    assert_eq!(cut.status, 137);
    assert!(cut.stderr.contains("restored to v1"), "{cut:?}");
    let after =
        served.sh("a", "ls; cat kept deep/file; ls /proc | grep -c '^[0-9]'; grep -l sleep /proc/[0-9]*/comm").await;
    assert!(after.stdout.starts_with("deep\nkept\nkept\nx\n"), "{after:?}");
    assert!(!after.stdout.contains("comm"), "{after:?}");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_listed_with_their_ancestors_and_those_in_use_are_not_deleted() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    for comment in ["one", "two"] {
        served.sh("a", &format!("echo {comment} > file")).await;
        served.checkpoint("a", comment).await;
    }
    served.restore("a", "v1").await;
    served.checkpoint("a", "three").await;
    let (_, list) = served.call(Method::GET, "/sprites/a/checkpoints").await;
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["Current", "v3", "v2", "v1"]);
    assert_eq!(list[1]["source_id"], "v1");
    let (status, two) = served.call(Method::GET, "/sprites/a/checkpoints/v2").await;
    assert_eq!((status.as_u16(), &two["comment"], &two["history"]), (200, &json!("two"), &json!(["v1"])));
    for (id, status) in [("v3", 409), ("v1", 409), ("v2", 204), ("v2", 404)] {
        assert_eq!(served.call(Method::DELETE, &format!("/sprites/a/checkpoints/{id}")).await.0, status, "{id}");
    }
    served.restore("a", "v3").await;
    assert_eq!(served.sh("a", "cat file").await.stdout, "one\n");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_comes_during_a_restore_waits_and_runs_on_the_restored_files() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.checkpoint("a", "").await;
    served.sh("a", "echo > planted").await;
    let (_, found) = tokio::join!(served.restore("a", "v1"), async {
        let mut found = Vec::new();
        for _ in 0..20 {
            found.push(served.sh("a", "ls; echo done").await);
        }
        found
    });
    // Before the restore it saw the file or was cut; from some moment on, never the file.
    let last = found.last().unwrap();
    assert_eq!((last.stdout.as_str(), last.status), ("done\n", 0), "{last:?}");
    let clean = found.iter().position(|ended| ended.stdout == "done\n").unwrap();
    assert!(found[clean..].iter().all(|ended| ended.stdout == "done\n"), "{found:?}");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_restores_at_once_one_is_done_and_the_other_done_or_refused_as_busy() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.checkpoint("a", "").await;
    let restore = || served.call(Method::POST, "/sprites/a/checkpoints/v1/restore");
    let replies = tokio::join!(restore(), restore(), restore());
    let replies = [replies.0, replies.1, replies.2];
    assert!(replies.iter().any(|(status, _)| *status == 200));
    for (status, body) in replies {
        match status.as_u16() {
            200 => assert!(body.as_str().unwrap().contains("\"complete\""), "{body}"),
            409 => assert_eq!(body["error"], "sprite_busy"),
            other => panic!("{other} {body}"),
        }
    }
    assert_eq!(served.sh("a", "echo fine").await.stdout, "fine\n");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_ends_what_runs_and_the_name_is_free() {
    let Some(served) = serve().await else { return };
    let old = served.create("a").await;
    served.sh("a", "echo > file").await;
    let mut running = served.connect(&exec("a", "echo up; sleep 1000", "")).await;
    running.expect("up").await;
    assert_eq!(served.call(Method::DELETE, "/sprites/a").await.0, 204);
    let frames = running.frames().await;
    assert!(frames.contains(&Frame::Binary(vec![3, 137].into())), "{frames:?}");
    let new = served.create("a").await;
    assert_ne!(old["id"], new["id"]);
    assert_eq!(served.sh("a", "ls").await.stdout, "");
    served.host.shutdown().await;
}
