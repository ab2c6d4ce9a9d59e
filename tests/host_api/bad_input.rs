//! What no honest client sends, and what goes wrong at the worst moment: each is told, and the sprite goes on.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::served::{Served, TOKEN, exec, quiet, serve, serve_with, start};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

const MB: usize = 1_000_000;

/// Opens a connection and sends a request's head.
async fn raw(served: &Served, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(served.url.trim_start_matches("http://")).await.unwrap();
    let head = format!("{head}\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// A WebSocket whose frames are the test's own.
async fn raw_socket(served: &Served, path: &str) -> TcpStream {
    let mut stream = raw(served, &format!("GET /v1{path} HTTP/1.1")).await;
    let rest = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(rest.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Reads until the other side closes; also a reset is an end.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the host closes the connection");
    bytes
}

/// The code of the close that ends what a server sent.
fn close_code(mut frames: &[u8]) -> Option<u16> {
    while let [kind, length, more @ ..] = frames {
        let (length, more) = match length {
            126 => (u16::from_be_bytes([more[0], more[1]]).into(), &more[2..]),
            length => (usize::from(*length), more),
        };
        if *kind == 0x88 {
            return Some(u16::from_be_bytes([more[0], more[1]]));
        }
        frames = &more[length..];
    }
    None
}

async fn is_well(served: &Served) {
    assert_eq!(served.sh("a", "echo well").await.stdout, "well\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_frames_end_their_connection_and_its_program_and_nothing_else() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let malformed: [(&str, &[u8], u16); 8] = [
        ("not masked", b"\x82\x02\0x", 1002),
        ("a reserved kind", b"\x83\x80\0\0\0\0", 1002),
        ("a reserved bit", b"\xc2\x81\0\0\0\0\0", 1002),
        ("a long ping", b"\x89\xfe\x00\x7e\0\0\0\0", 1002),
        ("a ping in parts", b"\x09\x80\0\0\0\0", 1002),
        ("a continuation of nothing", b"\x80\x81\0\0\0\0x", 1002),
        ("a text that is no UTF-8", b"\x81\x82\0\0\0\0\xff\xff", 1007),
        ("longer than anything may be", b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009),
    ];
    for (what, bytes, code) in malformed {
        let path = exec("a", "sleep 1000", "&stdin=true&max_run_after_disconnect=100ms");
        let mut stream = raw_socket(&served, &path).await;
        stream.write_all(bytes).await.unwrap();
        assert_eq!(close_code(&rest(&mut stream).await), Some(code), "{what}");
        quiet(&served, "a").await;
    }
    // Cut in the middle of a frame.
    let mut stream = raw_socket(&served, &exec("a", "sleep 1000", "&max_run_after_disconnect=100ms")).await;
    stream.write_all(b"\x82\xfe\x01\x00").await.unwrap();
    drop(stream);
    quiet(&served, "a").await;
    is_well(&served).await;
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_mean_nothing_are_passed_over() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let mut client = served.connect(&exec("a", "read line; echo got $line", "&stdin=true")).await;
    for bytes in [&b""[..], b"\x01out", b"\x02", b"\x03\x00", b"\xff\xff"] {
        client.send(bytes).await;
    }
    for text in [
        json!("text"),
        json!([]),
        json!({"type": "resize", "cols": -1, "rows": 1e9}),
        json!({"type": "signal", "signal": "SIGNONSENSE"}),
        json!({"type": "exit", "exit_code": 9}),
        json!({"type": {"type": null}}),
    ] {
        client.say(text).await;
    }
    client.send(b"\0line\n").await;
    let ended = client.end().await;
    assert_eq!((ended.stdout.as_str(), ended.status), ("got line\n", 0));
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_100_megabytes_go_through_or_are_refused_and_are_never_held_whole() {
    let Some(served) = serve_with(|config| config.limits.output = 200 * MB as u64).await else { return };
    served.create("a").await;
    // Out of a program, and into one.
    let script = format!("head -c {} /dev/zero | tr '\\0' x", 100 * MB);
    let mut client = served.connect(&exec("a", &script, "")).await;
    let mut length = 0;
    while let Some(frame) = client.frame().await {
        if let crate::served::Frame::Binary(bytes) = frame
            && bytes[0] == 1
        {
            length += bytes.len() - 1;
        }
    }
    assert_eq!(length, 100 * MB);
    let mut client = served.connect(&exec("a", "wc -c", "&stdin=true")).await;
    let mut part = vec![b'x'; MB + 1];
    part[0] = 0;
    for _ in 0..100 {
        client.send(&part).await;
    }
    client.send(&[4]).await;
    assert_eq!(client.end().await.stdout.trim(), "100000000");
    // As one message: more than is taken.
    let path = exec("a", "sleep 1000", "&stdin=true&max_run_after_disconnect=100ms");
    let mut stream = raw_socket(&served, &path).await;
    stream.write_all(b"\x82\xff\0\0\0\0\x05\xf5\xe1\0\0\0\0\0").await.unwrap();
    assert_eq!(close_code(&rest(&mut stream).await), Some(1009));
    quiet(&served, "a").await;
    // As a JSON body, and as a request's head.
    let body = format!("{{\"name\": \"{}\"}}", "x".repeat(100 * MB));
    for (method, path) in
        [(Method::POST, "/sprites"), (Method::PUT, "/sprites/a"), (Method::POST, "/sprites/a/checkpoint")]
    {
        match served.request(method, path).body(body.clone()).send().await {
            Ok(reply) => {
                assert_eq!(reply.status(), 400);
                let reply: Value = reply.json().await.unwrap();
                assert!(reply["message"].as_str().unwrap().contains("1048576 bytes"), "{reply}");
            }
            // It was refused before all of it was sent, and the client did not look.
            Err(error) => assert!(error.is_request(), "{error:?}"),
        }
    }
    let mut stream = raw(&served, &format!("GET /v1/sprites?prefix={}", "x".repeat(MB))).await;
    let told = rest(&mut stream).await;
    assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&told));
    is_well(&served).await;
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none_are_refused_and_lead_nowhere() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let outside = served.dir.path().join("host/meta.json");
    std::fs::copy(served.dir.path().join("host/sprites/a/meta.json"), &outside).unwrap();
    let long = "x".repeat(64);
    for name in ["", ".", "..", "../a", "a/b", "a.b", "a\0b", "a b", "a\n", "-a", "a-", "A", "ä", "%2e%2e", &long] {
        let (status, reply) = served.call_with(Method::POST, "/sprites", json!({"name": name})).await;
        assert_eq!((status.as_u16(), &reply["error"]), (400, &json!("invalid_name")), "{name:?}: {reply}");
    }
    for name in ["..%2Fa", "a%2Fb", "a%00", "%2e%2e", "..%2f..", "A", "%F0%9F%98%80"] {
        for path in ["", "/check", "/checkpoints", "/policy/network", "/exec", "/fs/read?path=x"] {
            let (status, reply) = served.call(Method::GET, &format!("/sprites/{name}{path}")).await;
            // A client of ours removes dots before it asks, and then finds no such address.
            assert_eq!(status, 404, "{name}{path}: {reply}");
            assert!(reply["message"].is_string(), "{name}{path}: {reply}");
        }
        assert_eq!(served.call(Method::DELETE, &format!("/sprites/{name}")).await.0, 404, "{name}");
    }
    let (status, reply) = served.call(Method::GET, "/sprites/%FF").await;
    assert!(status == 400 && reply["message"].is_string(), "{reply}");
    let (_, list) = served.call(Method::GET, "/sprites").await;
    assert_eq!(list["sprites"].as_array().unwrap().len(), 1);
    assert!(outside.exists());
    is_well(&served).await;
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_ids_that_are_none_are_not_found_and_change_nothing() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.create("b").await;
    served.sh("a", "echo kept > file").await;
    served.checkpoint("a", "clean").await;
    served.sh("a", "echo changed > file").await;
    let long = "v".repeat(5000);
    for id in ["v0", "v2", "V1", "v01", "v1%00", "clean", "Current", "..%2Fv1", "..%2F..%2Fb", " ", &long] {
        for (method, path) in [(Method::GET, ""), (Method::DELETE, ""), (Method::POST, "/restore")] {
            let (status, reply) = served.call(method, &format!("/sprites/a/checkpoints/{id}{path}")).await;
            assert_eq!(status, 404, "{id}{path}: {reply}");
            assert!(reply["error"].is_string() && reply["message"].is_string(), "{id}{path}: {reply}");
        }
    }
    assert_eq!(served.call(Method::POST, "/sprites/b/checkpoints/v1/restore").await.0, 404, "another sprite's");
    assert_eq!(served.sh("a", "cat file").await.stdout, "changed\n");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_nonsense_is_refused_and_the_old_one_holds() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let path = "/sprites/a/policy/network";
    let closed = json!({"rules": [{"domain": "*", "action": "deny"}]});
    assert_eq!(served.call_with(Method::POST, path, closed.clone()).await.0, 204);
    let many: Vec<Value> = (0..20_000).map(|n| json!({"domain": format!("x{n}.example"), "action": "allow"})).collect();
    for policy in [
        json!({}),
        json!([]),
        json!(null),
        json!("allow"),
        json!({"rules": null}),
        json!({"rules": {}}),
        json!({"rules": [null]}),
        json!({"rules": ["example.com"]}),
        json!({"rules": [{}]}),
        json!({"rules": [{"action": "allow"}]}),
        json!({"rules": [{"domain": 7, "action": "allow"}]}),
        json!({"rules": [{"domain": "a.example", "include": "defaults"}]}),
        json!({"rules": [{"domain": "", "action": "allow"}]}),
        json!({"rules": [{"domain": "a b", "action": "allow"}]}),
        json!({"rules": [{"domain": "a..b", "action": "allow"}]}),
        json!({"rules": [{"domain": "a.*.b", "action": "allow"}]}),
        json!({"rules": [{"domain": "https://a.example/x", "action": "allow"}]}),
        json!({"rules": [{"domain": "10.0.0.0/8", "action": "allow"}]}),
        json!({"rules": [{"domain": "::1", "action": "allow"}]}),
        json!({"rules": [{"domain": "x".repeat(300), "action": "allow"}]}),
        json!({"rules": many}),
    ] {
        let (status, reply) = served.call_with(Method::POST, path, policy.clone()).await;
        let shown: String = policy.to_string().chars().take(100).collect();
        assert_eq!(status, 400, "{shown}: {reply}");
        assert!(reply["message"].as_str().is_some_and(|text| text.len() < 500), "{shown}: {reply}");
    }
    // Nothing at all is no policy either: an empty one would open the network.
    assert_eq!(served.call(Method::POST, path).await.0, 400);
    // What the cloud passes over allows nothing.
    for rule in [json!({"domain": "good.test", "action": "perhaps"}), json!({"include": "nonsense"})] {
        assert_eq!(served.call_with(Method::POST, path, json!({"rules": [rule]})).await.0, 204);
        assert_eq!(served.sh("a", "getent ahostsv4 good.test || echo none").await.stdout, "none\n");
    }
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_waits_for_a_restore_and_of_two_deletions_one_finds_nothing() {
    let Some(served) = serve().await else { return };
    for _ in 0..5 {
        served.create("a").await;
        served.checkpoint("a", "").await;
        let restore = served.call(Method::POST, "/sprites/a/checkpoints/v1/restore");
        let checkpoint = served.call(Method::POST, "/sprites/a/checkpoint");
        let delete = || served.call(Method::DELETE, "/sprites/a");
        let (restored, frozen, one, two) = tokio::join!(restore, checkpoint, delete(), delete());
        let mut deleted = [one.0.as_u16(), two.0.as_u16()];
        deleted.sort_unstable();
        assert_eq!(deleted, [204, 404]);
        for (status, reply) in [restored, frozen] {
            let said = reply.to_string();
            let is_told = match status.as_u16() {
                200 => said.contains("complete") || said.contains("not found"),
                status => matches!(status, 404 | 409) && reply["message"].is_string(),
            };
            assert!(is_told, "{status} {said}");
        }
        assert_eq!(served.call(Method::GET, "/sprites/a").await.0, 404);
    }
    served.create("a").await;
    is_well(&served).await;
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_cuts_file_operations_with_a_word_and_programs_come_after_it() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.sh("a", "echo kept > file").await;
    served.checkpoint("a", "").await;
    let (sender, body) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    sender.send(Ok(Bytes::from_static(b"half"))).await.unwrap();
    let body = futures_util::stream::unfold(body, async |mut body| Some((body.recv().await?, body)));
    let upload =
        served.request(Method::PUT, "/sprites/a/fs/write?path=upload").body(reqwest::Body::wrap_stream(body)).send();
    let (upload, _) = tokio::join!(upload, async {
        served.restore("a", "v1").await;
        // More comes, and finds nobody.
        let _ = sender.send(Ok(Bytes::from_static(b"more"))).await;
        drop(sender);
    });
    let reply = upload.unwrap();
    let status = reply.status().as_u16();
    let body: Value = reply.json().await.unwrap();
    // It may also have begun after the restore, and be whole.
    assert!(status == 200 || status == 409 && body["error"] == "sprite_busy", "{status} {body}");
    assert!(served.sh("a", "cat file; ls").await.stdout.starts_with("kept\nfile\n"));
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_leaves_the_old_file_and_nothing_beside_it() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.sh("a", "echo old > file").await;
    for announced in ["Content-Length: 1000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"] {
        let mut stream = raw(&served, "PUT /v1/sprites/a/fs/write?path=file HTTP/1.1").await;
        stream.write_all(announced.as_bytes()).await.unwrap();
        stream.write_all(b"4\r\nhalf\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let told = String::from_utf8(rest(&mut stream).await).unwrap();
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 400") && told.contains("broke off"), "{told}");
    }
    assert_eq!(served.sh("a", "cat file; ls -A").await.stdout, "old\nfile\n");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_stop_reading_hold_up_themselves_only() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.checkpoint("a", "").await;
    served.sh("a", "head -c 50000000 /dev/zero > big").await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        stalled.push(raw_socket(&served, &exec("a", "yes", "&max_run_after_disconnect=100ms")).await);
        for request in ["GET /v1/sprites/a/fs/read?path=big HTTP/1.1", "POST /v1/sprites/a/exec?cmd=yes HTTP/1.1"] {
            let mut stream = raw(&served, request).await;
            stream.write_all(b"Content-Length: 0\r\n\r\n").await.unwrap();
            // The answer has begun.
            stream.read_u8().await.unwrap();
            stalled.push(stream);
        }
    }
    is_well(&served).await;
    let (status, _) = served.call(Method::GET, "/sprites/a/fs/list?path=.").await;
    assert_eq!(status, 200);
    let (_, list) = served.call(Method::GET, "/sprites/a/exec").await;
    assert_eq!(list["count"], 6, "{list}");
    let id = list["sessions"][0]["id"].as_str().unwrap();
    let events = served.stream(&format!("/sprites/a/exec/{id}/kill"), json!({})).await;
    assert_eq!(events.last().unwrap()["type"], "complete", "{events:?}");
    timeout(PATIENCE, served.restore("a", "v1")).await.unwrap();
    is_well(&served).await;
    drop(stalled);
    quiet(&served, "a").await;
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_changes_neither_the_order_nor_the_ids_of_checkpoints() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.sh("a", "echo one > file").await;
    served.checkpoint("a", "").await;
    served.host.shutdown().await;
    // As if all until now had happened in a far future.
    let path = served.dir.path().join("host/sprites/a/meta.json");
    let mut meta: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for time in ["/created_at", "/updated_at", "/checkpoints/0/create_time"] {
        *meta.pointer_mut(time).unwrap() = json!("2099-01-01T00:00:00Z");
    }
    std::fs::write(&path, meta.to_string()).unwrap();
    let host = start(crate::served::config(served.dir.path())).await.unwrap();
    let served = Served { url: host.url(), host, ..served };

    served.sh("a", "echo two > file").await;
    assert_eq!(served.checkpoint("a", "").await, "v2");
    let (_, list) = served.call(Method::GET, "/sprites/a/checkpoints?history=v1&includeAuto=true").await;
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["Current", "v2", "v1"]);
    assert!(list[1]["create_time"].as_str() < list[2]["create_time"].as_str(), "{list}");
    for (id, content) in [("v1", "one\n"), ("v2", "two\n")] {
        served.restore("a", id).await;
        assert_eq!(served.sh("a", "cat file").await.stdout, content);
    }
    served.host.shutdown().await;
}

/// A small file system of its own, mounted on a folder; taken away in the end.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(megabytes: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can mount a small file system");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={megabytes}m,mode=755")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if let Err(error) = rustix::mount::mount("small", dir.path(), "tmpfs", flags, options.as_c_str()) {
            println!("skipped: a small file system can't be mounted here: {error}");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_on_a_full_disk_fails_with_a_word_and_the_sprite_keeps_its_files() {
    // The host keeps 512 MiB free, so the disk is full for it when less is left.
    let Some(small) = Small::mount(640) else { return };
    let Some(served) = serve_with(|config| config.state_dir = small.0.path().join("host")).await else { return };
    served.create("a").await;
    served.sh("a", "echo one > file").await;
    served.checkpoint("a", "").await;
    served.sh("a", "echo two > file").await;
    let filler = small.0.path().join("filler");
    std::fs::write(&filler, vec![1; 160 << 20]).unwrap();
    let (status, said) = served.call(Method::POST, "/sprites/a/checkpoint").await;
    let said = said.to_string();
    assert!(said.contains("error") && !said.contains("complete"), "{status} {said}");
    assert!(said.contains("disk"), "{status} {said}");
    let (_, list) = served.call(Method::GET, "/sprites/a/checkpoints").await;
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    // Nothing of it is lost, and there is a way on.
    assert_eq!(served.sh("a", "cat file").await.stdout, "two\n");
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(served.checkpoint("a", "").await, "v2");
    served.restore("a", "v1").await;
    assert_eq!(served.sh("a", "cat file").await.stdout, "one\n");
    served.restore("a", "v2").await;
    assert_eq!(served.sh("a", "cat file").await.stdout, "two\n");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_can_not_be_meant_are_refused_with_what_was_expected() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    for (method, path, word) in [
        (Method::POST, "/sprites/a/exec?cmd=true&env=NOVALUE", "NAME=VALUE"),
        (Method::POST, "/sprites/a/exec?cmd=true&env==x", "NAME=VALUE"),
        (Method::POST, "/sprites/a/exec?cmd=a%00b", "NUL"),
        (Method::POST, "/sprites/a/exec?cmd=true&stdin=perhaps", "stdin"),
        (Method::POST, "/sprites/a/exec?cmd=true&max_run_after_disconnect=soon", "duration"),
        (Method::POST, "/sprites/a/exec/1/kill?timeout=-1s", "duration"),
        (Method::GET, "/sprites?max_results=many", "max_results"),
    ] {
        let (status, reply) = served.call(method, path).await;
        assert_eq!(status, 400, "{path}: {reply}");
        assert!(reply["message"].as_str().unwrap().contains(word), "{path}: {reply}");
    }
    for (path, word) in [("cmd=sh&tty=true&rows=many", "rows"), ("cmd=sh&tty=7", "tty"), ("", "command")] {
        let request = served.request(Method::GET, &format!("/sprites/a/exec?{path}"));
        let reply = request.header("Connection", "Upgrade").header("Upgrade", "websocket").send().await.unwrap();
        assert_eq!(reply.status(), 400, "{path}");
        let reply: Value = reply.json().await.unwrap();
        assert!(reply["message"].as_str().unwrap().contains(word), "{path}: {reply}");
    }
    is_well(&served).await;
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_states_of_sprites_come_as_a_stream_that_ends_with_the_host() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.create("b").await;
    let request = served.request(Method::GET, "/sprites?prefix=a").header("Accept", "application/x-ndjson");
    let reply = request.send().await.unwrap();
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()["content-type"]),
        (200, &"application/x-ndjson".parse().unwrap())
    );
    let mut chunks = reply.bytes_stream();
    let mut next = async || -> Option<Value> {
        let line = timeout(PATIENCE, chunks.next()).await.expect("a line in time")?.ok()?;
        Some(serde_json::from_slice(&line).unwrap())
    };
    let first = next().await.unwrap();
    assert_eq!((&first["name"], &first["status"], &first["org"]["cold"]), (&json!("a"), &json!("cold"), &json!(2)));
    served.sh("a", "true").await;
    let changed = next().await.unwrap();
    assert_eq!(
        (&changed["name"], &changed["status"], &changed["org"]["running"]),
        (&json!("a"), &json!("running"), &json!(1))
    );
    served.call(Method::DELETE, "/sprites/b").await;
    let beat = next().await.unwrap();
    assert_eq!((&beat["type"], &beat["org"]["cold"]), (&json!("heartbeat"), &json!(0)));
    let (_, end) = tokio::join!(served.host.shutdown(), next());
    // The numbers may change once more before the end.
    assert!(end.is_none_or(|beat| beat["type"] == "heartbeat" || beat["status"] == "cold"));
}
