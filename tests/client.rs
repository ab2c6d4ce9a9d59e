//! The wire client against a server that says whatever a test needs: every status, every way for a connection to end.

#[path = "client/programs.rs"]
mod programs;
#[path = "doubles/wire.rs"]
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use janebot::sprites::http::{Deadlines, HttpSprites};
use janebot::sprites::{CheckpointId, ExecRequest, FileInfo, FileKind, NetworkPolicy, Signal, Sprites, SpritesError};
use serde_json::json;
use wire::{Answer, Part, Step, TOKEN, Wire, exit_byte, json, ndjson, session, text};

/// Long enough for a busy machine where an answer is expected, and no real pauses between repeats.
fn patient() -> Deadlines {
    let long = Duration::from_secs(20);
    Deadlines {
        rest: long,
        create: long,
        checkpoint: long,
        exec_open: long,
        transfer: long,
        retry_pause: Duration::from_millis(2),
        ..Deadlines::default()
    }
}

/// For servers that never answer.
fn hasty() -> Deadlines {
    let short = Duration::from_millis(150);
    Deadlines { rest: short, create: short, checkpoint: short, exec_open: short, transfer: short, ..patient() }
}

fn client(wire: &Wire, deadlines: Deadlines) -> HttpSprites {
    HttpSprites::new(&wire.url(), TOKEN.into(), deadlines).unwrap()
}

async fn patient_client() -> (Wire, HttpSprites) {
    let wire = Wire::start().await;
    let sprites = client(&wire, patient());
    (wire, sprites)
}

fn program(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(|arg| arg.to_string()).collect(),
        timeout: Duration::from_secs(20),
        ..ExecRequest::default()
    }
}

const GET_A: &str = "GET /v1/sprites/a";
const EXEC_A: &str = "GET /v1/sprites/a/exec";

/// Recognises the error that a case expects.
type Is = fn(&SpritesError) -> bool;

fn is_unknown(error: &SpritesError) -> bool {
    matches!(error, SpritesError::OutcomeUnknown { .. })
}

// Sprites.

#[tokio::test]
async fn a_sprite_is_made_read_labelled_and_deleted() {
    let (wire, sprites) = patient_client().await;
    let sprite = json!({"id":"sprite-1","name":"a","status":"cold","labels":null,"url":"u","new_field":{"x":1}});
    wire.on("POST /v1/sprites", [json(201, sprite.clone())]);
    wire.on(GET_A, [json(200, sprite)]);
    wire.on("PUT /v1/sprites/a", [json(200, json!({}))]);
    wire.on("DELETE /v1/sprites/a", [text(204, ""), text(404, "gone")]);
    let labels = ["x".to_owned()];
    let made = sprites.create("a", &labels).await.unwrap();
    assert_eq!((made.id.as_str(), made.status.as_str(), made.labels.len()), ("sprite-1", "cold", 0));
    assert_eq!(sprites.get("a").await.unwrap(), made);
    sprites.set_labels("a", &labels).await.unwrap();
    sprites.delete("a").await.unwrap();
    assert!(matches!(sprites.delete("a").await, Err(SpritesError::NotFound { .. })));
    let requests = wire.requests();
    assert_eq!(requests[0].json(), json!({"name":"a","labels":["x"]}));
    assert_eq!(requests[2].json(), json!({"labels":["x"]}));
}

#[tokio::test]
async fn every_status_becomes_its_error() {
    let cases: [(u16, &str, Is, usize); 10] = [
        (404, "", |e| matches!(e, SpritesError::NotFound { .. }), 1),
        (500, "failed to retrieve sprite", |e| matches!(e, SpritesError::NotFound { .. }), 1),
        (500, "boom", |e| matches!(e, SpritesError::Broken { status: 500, .. }), 3),
        (502, "bad gateway", |e| matches!(e, SpritesError::Broken { status: 502, .. }), 3),
        (503, "", |e| matches!(e, SpritesError::Broken { status: 503, .. }), 3),
        (504, "", |e| matches!(e, SpritesError::Broken { status: 504, .. }), 3),
        (400, r#"{"error":"sprite_not_routable"}"#, |e| matches!(e, SpritesError::Broken { status: 400, .. }), 3),
        (401, "", |e| matches!(e, SpritesError::Unauthorized), 3),
        (403, "no", |e| matches!(e, SpritesError::Refused { status: 403, .. }), 1),
        (302, "", |e| matches!(e, SpritesError::Refused { status: 302, .. }), 1),
    ];
    for (status, body, expected, sent) in cases {
        let (wire, sprites) = patient_client().await;
        wire.on(GET_A, [text(status, body)]);
        let error = sprites.get("a").await.unwrap_err();
        assert!(expected(&error), "{status} {body}: {error:?}");
        assert_eq!(wire.count(GET_A), sent, "{status} {body}");
    }
}

#[tokio::test]
async fn a_taken_name_is_told_and_create_is_not_repeated() {
    for (status, body) in [(409, "conflict"), (400, r#"{"error":"sprite already exists"}"#)] {
        let (wire, sprites) = patient_client().await;
        wire.on("POST /v1/sprites", [text(status, body)]);
        assert!(matches!(sprites.create("a", &[]).await, Err(SpritesError::Exists { .. })));
    }
    let (wire, sprites) = patient_client().await;
    wire.on("POST /v1/sprites", [text(500, "boom")]);
    assert!(is_unknown(&sprites.create("a", &[]).await.unwrap_err()));
    assert_eq!(wire.count("POST /v1/sprites"), 1);
}

#[tokio::test]
async fn passing_faults_pass_unseen() {
    let (wire, sprites) = patient_client().await;
    let sprite = json(200, json!({"name":"a"}));
    wire.on(GET_A, [text(401, "who?"), text(502, "waking"), sprite]);
    sprites.get("a").await.unwrap();
    wire.on("POST /v1/sprites", [text(401, "who?"), json(201, json!({"name":"b"}))]);
    sprites.create("b", &[]).await.unwrap();
    wire.on("DELETE /v1/sprites/a", [text(500, "boom"), text(204, "")]);
    sprites.delete("a").await.unwrap();
}

#[tokio::test]
async fn a_rate_limit_is_waited_for_within_the_deadline() {
    let limited = |headers, body: &str| Answer::Http(429, headers, vec![Part::Bytes(body.into())]);
    let (wire, sprites) = patient_client().await;
    wire.on(GET_A, [limited(vec![("retry-after", "1".into())], "slow down"), json(200, json!({"name":"a"}))]);
    let began = tokio::time::Instant::now();
    sprites.get("a").await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));

    let (wire, sprites) = patient_client().await;
    let body = r#"{"error":"sprite_creation_rate_limited","retry_after_seconds":60}"#;
    wire.on("POST /v1/sprites", [limited(vec![], body)]);
    match sprites.create("a", &[]).await {
        Err(SpritesError::RateLimited { code, retry_after }) => {
            assert_eq!((code.as_str(), retry_after), ("sprite_creation_rate_limited", Some(Duration::from_secs(60))));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(wire.count("POST /v1/sprites"), 1);
}

#[tokio::test]
async fn a_list_takes_all_pages_and_only_what_was_asked_for() {
    let (wire, sprites) = patient_client().await;
    let page = |names: &[&str], more: bool, token: &str| {
        let sprites: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
        json(200, json!({"sprites": sprites, "has_more": more, "next_continuation_token": token}))
    };
    wire.on("GET /v1/sprites", [page(&["j-0", "j-1"], true, "t&1"), page(&["other", "j-2"], false, "t2")]);
    let names: Vec<String> = sprites.list("j-").await.unwrap().into_iter().map(|sprite| sprite.name).collect();
    assert_eq!(names, ["j-0", "j-1", "j-2"]);
    assert_eq!(wire.requests()[1].all("continuation_token"), ["t&1"]);
    assert_eq!(wire.requests()[1].all("prefix"), ["j-"]);

    let (wire, sprites) = patient_client().await;
    wire.on("GET /v1/sprites", [page(&["j-0"], true, "same")]);
    assert!(matches!(sprites.list("j-").await, Err(SpritesError::Protocol { .. })));
    assert_eq!(wire.count("GET /v1/sprites"), 2);
}

#[tokio::test]
async fn names_stay_one_encoded_segment() {
    let (wire, sprites) = patient_client().await;
    wire.on("DELETE /v1/sprites/a%2F..%2Fb%3Fc", [text(204, "")]);
    sprites.delete("a/../b?c").await.unwrap();
    for name in ["", ".", ".."] {
        assert!(matches!(sprites.delete(name).await, Err(SpritesError::Refused { .. })));
        assert!(matches!(sprites.create(name, &[]).await, Err(SpritesError::Refused { .. })));
    }
    assert_eq!(wire.requests().len(), 1);
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_had_no_effect() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let sprites = HttpSprites::new(&url, TOKEN.into(), patient()).unwrap();
    for error in [sprites.create("a", &[]).await.unwrap_err(), sprites.exec("a", program(&["sh"])).await.unwrap_err()] {
        assert!(matches!(error, SpritesError::Unreachable { .. }), "{error:?}");
        assert!(!error.may_have_had_effect());
    }
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_is_tried_again_only_where_that_is_safe() {
    use tokio::io::AsyncReadExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let came = Arc::new(AtomicUsize::new(0));
    let counter = came.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            counter.fetch_add(1, Relaxed);
            _ = connection.read(&mut [0; 4096]).await;
        }
    });
    let sprites = HttpSprites::new(&url, TOKEN.into(), patient()).unwrap();
    let error = sprites.get("a").await.unwrap_err();
    assert!(matches!(error, SpritesError::Unreachable { .. }) && came.swap(0, Relaxed) == 3, "{error:?}");
    let error = sprites.delete("a").await.unwrap_err();
    assert!(is_unknown(&error) && came.swap(0, Relaxed) == 3, "{error:?}");
    let error = sprites.create("a", &[]).await.unwrap_err();
    assert!(is_unknown(&error) && came.swap(0, Relaxed) == 1, "{error:?}");
    let error = sprites.exec("a", program(&["sh"])).await.unwrap_err();
    assert!(is_unknown(&error) && came.swap(0, Relaxed) == 1, "{error:?}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_at_the_deadline() {
    let wire = Wire::start().await;
    let sprites = client(&wire, hasty());
    let stuck = Answer::Http(200, vec![], vec![Part::Bytes(b"{\"type\":\"info\"}\n".into()), Part::Hang]);
    wire.on(GET_A, [Answer::Hang]);
    wire.on("POST /v1/sprites", [Answer::Hang]);
    wire.on("GET /v1/sprites", [stuck.clone()]);
    wire.on("POST /v1/sprites/a/checkpoints/v1/restore", [stuck.clone()]);
    wire.on("POST /v1/sprites/a/checkpoint", [Answer::Hang]);
    wire.on("GET /v1/sprites/a/fs/read", [stuck.clone()]);
    wire.on("PUT /v1/sprites/a/fs/write", [Answer::Hang]);
    wire.on("POST /v1/sprites/a/exec/7/kill", [stuck]);
    wire.on(EXEC_A, [Answer::Hang, Answer::Exec(vec![Step::Hang])]);
    let id = CheckpointId::new("v1").unwrap();
    let reads = [
        sprites.get("a").await.unwrap_err(),
        sprites.list("").await.unwrap_err(),
        sprites.read_file("a", "f", 99).await.unwrap_err(),
    ];
    for error in reads {
        assert!(matches!(error, SpritesError::Unreachable { .. }), "{error:?}");
    }
    let writes = [
        sprites.create("a", &[]).await.unwrap_err(),
        sprites.restore("a", &id).await.unwrap_err(),
        sprites.create_checkpoint("a", "c").await.unwrap_err(),
        sprites.write_file("a", "f", 0o600, Bytes::new()).await.unwrap_err(),
        sprites.kill("a", "7", Signal::Kill, Duration::ZERO).await.unwrap_err(),
        sprites.exec("a", program(&["sh"])).await.unwrap_err(),
        sprites.exec("a", program(&["sh"])).await.unwrap_err(),
    ];
    for error in writes {
        assert!(is_unknown(&error), "{error:?}");
    }
}

// Secrets.

#[tokio::test]
async fn the_token_and_the_input_are_in_no_url_no_error_and_no_debug_text() {
    let (wire, sprites) = patient_client().await;
    wire.on(GET_A, [text(400, &format!("bad header Authorization: Bearer {TOKEN}"))]);
    wire.on(EXEC_A, [Answer::Exec(vec![session("1"), Step::ReadInput, exit_byte(0)])]);
    let error = sprites.get("a").await.unwrap_err();
    let request = ExecRequest { stdin: "export KEY='input-secret'".into(), ..program(&["cat"]) };
    sprites.exec("a", request).await.unwrap().output(0).await.unwrap();
    for request in wire.requests() {
        assert!(!request.url.contains("hunter2") && !request.url.contains("input-secret"), "{}", request.url);
    }
    let shown = format!("{sprites:?} {error:?} {error}");
    assert!(shown.contains("127.0.0.1") && !shown.contains("hunter2"), "{shown}");
}

// Checkpoints.

const CHECKPOINT: &str = "POST /v1/sprites/a/checkpoint";
const RESTORE: &str = "POST /v1/sprites/a/checkpoints/v3/restore";
const MADE: &str = r#"{"type":"complete","data":"Checkpoint v3 created successfully","time":"t"}"#;

fn checkpoints(ids: &[&str]) -> Answer {
    json(200, ids.iter().map(|id| json!({"id": id, "create_time": "t", "comment": "clean"})).collect())
}

#[tokio::test]
async fn a_checkpoint_is_what_the_stream_and_the_list_agree_on() {
    let (wire, sprites) = patient_client().await;
    let lines = [r#"{"type":"info","data":"Creating…"}"#, r#"{"type":"info","data":"  ID: v3"}"#, "", "junk", MADE];
    wire.on(CHECKPOINT, [ndjson(&lines)]);
    wire.on("GET /v1/sprites/a/checkpoints", [checkpoints(&["Current", "v2", "v3", "bad id!"])]);
    assert_eq!(sprites.create_checkpoint("a", "clean").await.unwrap().as_str(), "v3");
    assert_eq!(wire.requests()[0].json(), json!({"comment":"clean"}));
    let listed: Vec<String> = sprites.checkpoints("a").await.unwrap().iter().map(|c| c.id.to_string()).collect();
    assert_eq!(listed, ["v2", "v3"]);
}

#[tokio::test]
async fn a_checkpoint_that_is_not_proven_is_not_returned() {
    let complete = r#"{"type":"complete","data":"done"}"#;
    let failed = r#"{"type":"error","error":"disk full"}"#;
    let cases: [(Answer, Answer, Is); 6] = [
        (ndjson(&[complete]), checkpoints(&["v3"]), |e| matches!(e, SpritesError::Protocol { .. })),
        (ndjson(&[MADE]), checkpoints(&["v2"]), |e| matches!(e, SpritesError::Protocol { .. })),
        (ndjson(&[MADE]), text(502, ""), is_unknown),
        (ndjson(&[failed]), checkpoints(&["v3"]), |e| e.to_string().contains("disk full") && e.blames_sprite()),
        (ndjson(&[]), checkpoints(&["v3"]), is_unknown),
        (text(500, "boom"), checkpoints(&["v3"]), is_unknown),
    ];
    for (made, listed, expected) in cases {
        let (wire, sprites) = patient_client().await;
        wire.on(CHECKPOINT, [made]);
        wire.on("GET /v1/sprites/a/checkpoints", [listed]);
        let error = sprites.create_checkpoint("a", "c").await.unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert_eq!(wire.count(CHECKPOINT), 1);
    }
}

#[tokio::test]
async fn a_restore_is_done_only_when_it_says_so() {
    let id = CheckpointId::new("v3").unwrap();
    let info = r#"{"type":"info","data":"Restoring"}"#;
    let done = r#"{"type":"complete","data":"Restored to v3"}"#;
    let with_cut = |parts: &[&str]| {
        let parts = parts.iter().map(|text| Part::Bytes(text.as_bytes().into())).chain([Part::Cut]).collect();
        Answer::Http(200, vec![], parts)
    };
    let (wire, sprites) = patient_client().await;
    wire.on(
        RESTORE,
        [
            ndjson(&[info, done]),
            // The end is missing, or comes in pieces without a last line end.
            Answer::Http(200, vec![], [&done[..9], &done[9..]].map(|text| Part::Bytes(text.into())).into()),
            ndjson(&[info]),
            with_cut(&[info, "\n"]),
            with_cut(&[&done[..20]]),
            ndjson(&[info, r#"{"type":"error","error":"failed to start overlay service tree"}"#]),
            text(404, "checkpoint not found"),
            text(502, r#"{"error":"sprite_not_routable"}"#),
        ],
    );
    sprites.restore("a", &id).await.unwrap();
    sprites.restore("a", &id).await.unwrap();
    for _ in 0..3 {
        let error = sprites.restore("a", &id).await.unwrap_err();
        assert!(is_unknown(&error), "{error:?}");
    }
    let error = sprites.restore("a", &id).await.unwrap_err();
    assert!(matches!(&error, SpritesError::Broken { message, .. } if message.contains("overlay")), "{error:?}");
    assert!(matches!(sprites.restore("a", &id).await, Err(SpritesError::NotFound { .. })));
    assert!(matches!(sprites.restore("a", &id).await, Err(SpritesError::Broken { .. })));
    assert_eq!(wire.count(RESTORE), 8);
}

// Policies and files.

#[tokio::test]
async fn a_policy_is_set_and_read_and_never_empty() {
    let (wire, sprites) = patient_client().await;
    let policy = NetworkPolicy::allow(["B.example", "a.example"]);
    wire.on("POST /v1/sprites/a/policy/network", [text(503, ""), text(204, "")]);
    let rules = json!([
        {"domain":"*","action":"deny"},
        {"domain":"a.example","action":"allow"},
        {"domain":"b.example","action":"allow"},
    ]);
    wire.on(
        "GET /v1/sprites/a/policy/network",
        [json(200, json!({"rules": rules})), json(200, json!({"rules": null}))],
    );
    sprites.set_policy("a", &policy).await.unwrap();
    assert_eq!(wire.requests()[1].json(), json!({"rules": rules}));
    assert_eq!(sprites.policy("a").await.unwrap(), policy);
    assert_eq!(sprites.policy("a").await.unwrap(), NetworkPolicy::default());
    assert!(sprites.set_policy("a", &NetworkPolicy::default()).await.is_err());
    assert_eq!(wire.count("POST /v1/sprites/a/policy/network"), 2);
}

#[tokio::test]
async fn files_are_written_read_within_limits_and_listed() {
    let (wire, sprites) = patient_client().await;
    let missing = r#"{"error":"no such file","code":"ENOENT","path":"/x"}"#;
    let content = |parts: &[&[u8]]| Answer::Http(200, vec![], parts.iter().map(|p| Part::Bytes(p.to_vec())).collect());
    wire.on("PUT /v1/sprites/a/fs/write", [json(200, json!({"path":"p","size":2,"mode":"0600"}))]);
    wire.on("GET /v1/sprites/a/fs/read", [content(&[b"12", b"345"]), content(&[b"123", b"456"]), text(404, missing)]);
    let entries = json!({"path":"/home/sprite/output","entries":[
        {"name":"a.txt","path":"/home/sprite/output/a.txt","type":"file","size":2,"mode":"0644","isDir":false},
        {"name":"d","type":"directory","size":null},
        {"name":"l","path":"/home/sprite/output/l","type":"symlink","size":1},
    ],"count":3});
    wire.on("GET /v1/sprites/a/fs/list", [json(200, entries)]);

    sprites.write_file("a", "in/put &.txt", 0o600, Bytes::from_static(b"\0\xff")).await.unwrap();
    let request = &wire.requests()[0];
    assert_eq!(&request.body[..], b"\0\xff");
    let query: Vec<(&str, &str)> = request.query.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected =
        [("path", "in/put &.txt"), ("workingDir", "/home/sprite"), ("mode", "0600"), ("mkdirParents", "true")];
    assert_eq!(query, expected);

    assert_eq!(&sprites.read_file("a", "f", 5).await.unwrap()[..], b"12345");
    assert!(matches!(sprites.read_file("a", "f", 5).await, Err(SpritesError::TooLarge { limit: 5, .. })));
    assert!(matches!(sprites.read_file("a", "f", 5).await, Err(SpritesError::NotFound { .. })));

    let file = |path: &str, kind, size| FileInfo { path: path.into(), kind, size };
    let expected = [
        file("/home/sprite/output/a.txt", FileKind::File, 2),
        file("/home/sprite/output/d", FileKind::Directory, 0),
        file("/home/sprite/output/l", FileKind::Other, 1),
    ];
    assert_eq!(sprites.list_files("a", "output", true).await.unwrap(), expected);
}

#[tokio::test]
async fn an_answer_that_is_not_understood_is_said_to_be_that() {
    let (wire, sprites) = patient_client().await;
    wire.on(GET_A, [text(200, "<html>captive portal</html>")]);
    assert!(matches!(sprites.get("a").await, Err(SpritesError::Protocol { .. })));
    wire.on("POST /v1/sprites", [json(201, json!({"name":"other"}))]);
    assert!(matches!(sprites.create("a", &[]).await, Err(SpritesError::Protocol { .. })));
}
