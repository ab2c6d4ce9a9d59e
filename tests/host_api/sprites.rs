//! Sprites, policies, tokens, and the host's own start.

use janebot::config::Isolation;
use janebot::host::HostError;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::served::{Frame, Served, TOKEN, config, exec, serve, serve_with, start};

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_those_that_the_sdks_need() {
    let Some(served) = serve().await else { return };
    let sprite = served.create("a1").await;
    assert_eq!(sprite["status"], "cold");
    assert!(sprite["id"].as_str().unwrap().starts_with("sprite-"));
    for (method, path, body, status) in [
        (Method::POST, "/sprites", json!({"name": "a1"}), 409),
        (Method::POST, "/sprites", json!({"name": "Not-A-Name"}), 400),
        (Method::POST, "/sprites", json!({}), 400),
        (Method::GET, "/sprites/a1", json!(null), 200),
        (Method::PUT, "/sprites/a1", json!({"labels": ["x"], "url_settings": {"auth": "public"}}), 200),
        (Method::POST, "/sprites/a1/upgrade", json!(null), 204),
        (Method::GET, "/sprites/a1/check", json!(null), 200),
        (Method::GET, "/sprites/a1/checkpoints", json!(null), 200),
        (Method::GET, "/sprites/a1/checkpoints/v9", json!(null), 404),
        (Method::DELETE, "/sprites/a1/checkpoints/v9", json!(null), 404),
        (Method::POST, "/sprites/a1/checkpoints/v9/restore", json!(null), 404),
        (Method::GET, "/sprites/a1/exec", json!(null), 200),
        (Method::HEAD, "/sprites/a1/exec", json!(null), 200),
        (Method::POST, "/sprites/a1/exec", json!(null), 400),
        (Method::POST, "/sprites/a1/exec/1/kill", json!({"signal": "SIGTERM", "timeout": 10}), 404),
        (Method::POST, "/sprites/a1/exec/1/kill", json!({"signal": "SIGNONSENSE"}), 400),
        (Method::GET, "/sprites/a1/control", json!(null), 404),
        (Method::GET, "/sprites/a1/services", json!(null), 501),
        (Method::PUT, "/sprites/a1/services/web", json!({"cmd": "x"}), 501),
        (Method::GET, "/sprites/a1/proxy", json!(null), 501),
        (Method::GET, "/sprites/a1/ports/watch", json!(null), 501),
        (Method::POST, "/sprites/a1/services/web/start", json!(null), 501),
        (Method::GET, "/sprites/a1/policy/privileges", json!(null), 501),
        (Method::POST, "/sprites/a1/policy/resources", json!({"memory": {"limit_mb": 1}}), 501),
        (Method::POST, "/sprites/a1/fs/chown", json!({"path": "x", "uid": 0}), 501),
        (Method::GET, "/sprites/a1/fs/watch", json!(null), 501),
        (Method::GET, "/sprites/a1/nonsense", json!(null), 404),
        (Method::GET, "/sprites/a1/fs/nonsense", json!(null), 404),
        (Method::GET, "/sprites/a1/policy/nonsense", json!(null), 404),
        (Method::GET, "/sprites/", json!(null), 404),
        (Method::GET, "/nonsense", json!(null), 404),
        (Method::PATCH, "/sprites/a1", json!(null), 405),
        (Method::GET, "/sprites/none", json!(null), 404),
        (Method::POST, "/sprites/none/checkpoint", json!(null), 404),
        (Method::GET, "/sprites/none/exec", json!(null), 404),
        (Method::DELETE, "/sprites/a1", json!(null), 204),
        (Method::DELETE, "/sprites/a1", json!(null), 404),
        (Method::GET, "/sprites/a1", json!(null), 404),
    ] {
        let what = format!("{method} {path} {body}");
        let is_head = method == Method::HEAD;
        let (got, reply) =
            if body.is_null() { served.call(method, path).await } else { served.call_with(method, path, body).await };
        assert_eq!(got, status, "{what}: {reply}");
        if status >= 400 && !is_head {
            assert!(reply["error"].is_string() && reply["message"].is_string(), "{what}: {reply}");
        }
    }
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_cut_into_pages_and_asked_sizes_are_clamped() {
    let Some(served) = serve().await else { return };
    for n in 0..53 {
        served.create(&format!("p-{n:02}")).await;
    }
    served.create("other").await;
    let (_, page) = served.call(Method::GET, "/sprites?prefix=p-&max_results=100&bulk_load=true").await;
    assert_eq!(page["sprites"].as_array().unwrap().len(), 50);
    assert_eq!(page["has_more"], true);
    let token = page["next_continuation_token"].as_str().unwrap();
    let (_, rest) = served.call(Method::GET, &format!("/sprites?prefix=p-&continuation_token={token}")).await;
    assert_eq!(rest["sprites"].as_array().unwrap().len(), 3);
    assert_eq!((&rest["has_more"], &rest["cold"], &rest["org"]["cold"]), (&json!(false), &json!(54), &json!(54)));
    let (_, one) = served.call(Method::GET, "/sprites?max_results=0").await;
    assert_eq!(one["sprites"].as_array().unwrap().len(), 1);
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_or_missing_token_opens_nothing() {
    let Some(served) = serve().await else { return };
    for token in ["", "wrong", &TOKEN[1..]] {
        for path in ["/v1/sprites", "/v1/sprites/a/exec", "/nonsense"] {
            let reply = served.http.get(format!("{}{path}", served.url)).bearer_auth(token).send().await.unwrap();
            assert_eq!(reply.status(), 401);
            assert!(reply.headers().contains_key("sprite-version"));
            let body: serde_json::Value = reply.json().await.unwrap();
            assert_eq!(body["error"], "unauthorized");
        }
    }
    let bare = served.http.get(format!("{}/v1/sprites", served.url)).send().await.unwrap();
    assert_eq!(bare.status(), 401);
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_read_back_as_set_holds_at_once_and_a_bad_one_is_refused() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let path = "/sprites/a/policy/network";
    assert_eq!(served.call(Method::GET, path).await.1, json!({"rules": []}));
    let policy = json!({"rules": [
        {"domain": "*", "action": "deny"}, {"include": "defaults"}, {"domain": "good.test", "action": "allow"},
    ]});
    assert_eq!(served.call_with(Method::POST, path, policy.clone()).await.0, 204);
    assert_eq!(served.call(Method::GET, path).await.1, policy);
    let look = "getent ahostsv4 good.test | head -1 | cut -d' ' -f1; getent ahostsv4 evil.test || echo none";
    let ended = served.sh("a", look).await;
    assert!(ended.stdout.starts_with("198.18.") || ended.stdout.starts_with("198.19."), "{ended:?}");
    assert!(ended.stdout.ends_with("\nnone\n"), "{ended:?}");
    assert_eq!(
        served.call_with(Method::POST, path, json!({"rules": [{"domain": "*", "action": "deny"}]})).await.0,
        204
    );
    assert_eq!(served.sh("a", "getent ahostsv4 good.test || echo none").await.stdout, "none\n");
    let (status, reply) = served.call_with(Method::POST, path, json!({"rules": [{"domain": "no good"}]})).await;
    assert_eq!(status, 400);
    assert!(reply["message"].as_str().unwrap().contains("no good"), "{reply}");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sprites_with_all_that_belongs_to_them_outlive_the_host() {
    let Some(served) = serve().await else { return };
    let before = served.create("a").await;
    served.call_with(Method::PUT, "/sprites/a", json!({"labels": ["kept"]})).await;
    let policy = json!({"rules": [{"domain": "*", "action": "deny"}]});
    served.call_with(Method::POST, "/sprites/a/policy/network", policy.clone()).await;
    assert_eq!(served.sh("a", "echo one > file").await.status, 0);
    assert_eq!(served.checkpoint("a", "first").await, "v1");
    assert_eq!(served.sh("a", "echo two > file").await.status, 0);
    served.create("b").await;
    assert_eq!(served.call(Method::DELETE, "/sprites/b").await.0, 204);

    served.host.shutdown().await;
    let host = start(config(served.dir.path())).await.unwrap();
    let served = Served { url: host.url(), host, ..served };

    let (_, after) = served.call(Method::GET, "/sprites/a").await;
    assert_eq!((&after["id"], &after["labels"]), (&before["id"], &json!(["kept"])));
    assert_eq!(served.call(Method::GET, "/sprites/b").await.0, 404);
    assert_eq!(served.call(Method::GET, "/sprites/a/policy/network").await.1, policy);
    assert_eq!(served.sh("a", "cat file").await.stdout, "two\n");
    served.restore("a", "v1").await;
    assert_eq!(served.sh("a", "cat file").await.stdout, "one\n");
    assert_eq!(served.checkpoint("a", "").await, "v2");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_host_on_a_state_directory_is_refused_with_what_to_do() {
    let Some(served) = serve().await else { return };
    let Err(error) = start(config(served.dir.path())).await else { panic!("two hosts on one directory") };
    assert!(matches!(error, HostError::InUse { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains(&std::process::id().to_string()) && message.contains("data directory of its own"),
        "{message}"
    );
    served.host.shutdown().await;
    start(config(served.dir.path())).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_dropped_stops_and_its_sprites_go_on_with_the_next_one() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.sh("a", "echo kept > file").await;
    let mut running = served.connect(&exec("a", "echo up; sleep 1000", "&tty=true")).await;
    running.expect("up").await;
    let Served { host, dir, http, .. } = served;
    drop(host);
    assert_eq!(running.frames().await.last(), Some(&Frame::Close(4000)));
    let host = loop {
        match start(config(dir.path())).await {
            Ok(host) => break host,
            Err(HostError::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    let served = Served { url: host.url(), host, dir, http };
    assert_eq!(served.sh("a", "cat file; grep -l sleep /proc/[0-9]*/comm").await.stdout, "kept\n");
    served.host.shutdown().await;
}

/// Names the directory of a host that runs in a process of its own: this very test program, started for it.
const CHILD: &str = "JANEBOT_TEST_HOST_DIR";

/// Not a test by itself: the host that the next one kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let host = start(config(dir.as_ref())).await.unwrap();
    println!("\n{}", host.url());
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_takes_its_programs_along_and_its_sprites_keep_their_files() {
    let Some(served) = serve().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sprites::a_host_in_a_process_of_its_own", "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = loop {
        let line = lines.next_line().await.unwrap().expect("the host's address");
        if line.starts_with("http://") {
            break line;
        }
    };
    let killed = Served { url, ..served };
    killed.create("a").await;
    killed.sh("a", "echo one > file").await;
    killed.checkpoint("a", "").await;
    killed.sh("a", "echo two > file").await;
    let mut running = killed.connect(&exec("a", "echo up; while sleep 0.01; do date > ticks; done", "")).await;
    running.expect("up").await;
    child.kill().await.unwrap();

    let Served { host, dir: own, http, .. } = killed;
    host.shutdown().await;
    drop(own);
    let host = start(config(dir.path())).await.unwrap();
    let served = Served { url: host.url(), host, dir, http };
    assert_eq!(served.sh("a", "cat file; grep -l sleep /proc/[0-9]*/comm").await.stdout, "two\n");
    assert_eq!(served.sh("a", "rm -f ticks; sleep 0.1; ls").await.stdout, "file\n");
    served.restore("a", "v1").await;
    assert_eq!(served.sh("a", "cat file").await.stdout, "one\n");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_isolation_off_sprites_checkpoints_and_files_work_all_the_same() {
    let Some(served) = serve_with(|config| config.isolation = Isolation::Off).await else { return };
    assert_eq!(served.host.isolation(), "none");
    served.create("a").await;
    assert_eq!(served.sh("a", "echo one > ~/file; pwd | grep -c /home/sprite").await.stdout, "1\n");
    served.checkpoint("a", "").await;
    served.sh("a", "echo two > file; mkdir more").await;
    let (_, list) = served.call(Method::GET, "/sprites/a/fs/list?path=more&workingDir=%2Fhome%2Fsprite").await;
    assert_eq!(list["count"], 0, "{list}");
    served.restore("a", "v1").await;
    assert_eq!(served.sh("a", "cat file; ls").await.stdout, "one\nfile\n");
    served.sh("a", "echo three > file").await;
    served.host.shutdown().await;
    let mut config = config(served.dir.path());
    config.isolation = Isolation::Off;
    let host = start(config).await.unwrap();
    let served = Served { url: host.url(), host, ..served };
    assert_eq!(served.sh("a", "cat file").await.stdout, "three\n");
    served.host.shutdown().await;
}

#[tokio::test]
async fn an_address_that_others_can_reach_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.listen = "0.0.0.0:0".parse().unwrap();
    let Err(error) = start(config).await else { panic!("it listens to all") };
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
}
