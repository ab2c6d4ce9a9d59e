//! Amp's calls through the vault: its WebSocket, and threads that are not the job's.

use std::time::Duration;

use janebot::config::AgentKind;
use janebot::vault::pass::Pass;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fake_provider::{FakeProvider, Play, json};
use crate::rig::{KEY, Rig, status};

const THREAD: &str = "T-00000000-0000-4000-8000-000000000001";
const OTHER: &str = "T-00000000-0000-4000-8000-000000000002";

async fn stage() -> (FakeProvider, Rig) {
    let answer = json(&format!(r#"{{"threadId":"{THREAD}","wsToken":"ws-real-token","usesDtw":true}}"#));
    let provider = FakeProvider::start(Play::Bytes(answer)).await;
    let rig = Rig::new(&provider.url).await;
    (provider, rig)
}

/// Makes a thread; gives the socket token that the job is told.
async fn thread(rig: &Rig, pass: &Pass) -> String {
    let body = r#"{"executorType":"local-client","threadMeta":{"visibility":"private","sharedGroupIDs":[]}}"#;
    let answer = rig.ask(pass, "POST /api/thread-actors", body).await;
    assert!(status(&answer) == "200" && !answer.contains("ws-real-token"), "{answer}");
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["threadId"], THREAD);
    body["wsToken"].as_str().unwrap().to_owned()
}

fn upgrade(token: &str, thread: &str) -> String {
    let params = format!("%7B%22wsToken%22%3A%22{token}%22%2C%22transport%22%3A%22json-rpc%22%7D");
    format!(
        "GET /actors/gateway/threadActor/websocket/?rvt-namespace=default&rvt-method=get&rvt-key={thread}&rvt-skip-ready-wait=true HTTP/1.1\r\nhost: v\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: rivet, rivet_encoding.bare, rivet_conn_params.{params}\r\n\r\n"
    )
}

async fn open(rig: &Rig, request: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = timeout(Duration::from_secs(10), stream.read_buf(&mut head)).await.expect("an answer comes");
        if read.unwrap() == 0 {
            break;
        }
    }
    (stream, String::from_utf8_lossy(&head).into_owned())
}

#[tokio::test]
async fn a_socket_of_the_jobs_thread_is_joined_to_the_providers_and_cut_with_the_job() {
    let (provider, rig) = stage().await;
    let pass = rig.pass(AgentKind::Amp);
    let token = thread(&rig, &pass).await;
    assert_eq!(pass.threads(), [THREAD]);
    assert_eq!(provider.asked()[0].header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    provider.play(Play::Echo);
    let (mut stream, head) = open(&rig, &upgrade(&token, THREAD)).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_ascii_lowercase().contains("sec-websocket-protocol: rivet\r\n"), "{head}");
    let asked = provider.asked().pop().unwrap();
    assert!(asked.header("sec-websocket-protocol").unwrap().contains("ws-real-token"), "{}", asked.head);
    assert!(!asked.head.contains(&token) && asked.header("authorization").is_none(), "{}", asked.head);
    let mebibyte = vec![7_u8; 1024 * 1024];
    let (mut from, mut to) = stream.split();
    let mut echoed = vec![0; mebibyte.len()];
    let (sent, read) = tokio::join!(to.write_all(&mebibyte), from.read_exact(&mut echoed));
    sent.unwrap();
    read.unwrap();
    assert_eq!(echoed, mebibyte);
    drop(pass);
    let _ = timeout(Duration::from_secs(10), from.read(&mut echoed)).await.expect("the socket is cut");
    provider.was_left().await;
    let (_, late) = open(&rig, &upgrade(&token, THREAD)).await;
    assert_eq!(status(&late), "401");
}

#[tokio::test]
async fn no_job_reaches_another_thread_or_another_jobs_socket() {
    let (provider, rig) = stage().await;
    let (pass, other) = (rig.pass(AgentKind::Amp), rig.pass(AgentKind::Amp));
    let token = thread(&rig, &pass).await;
    provider.play(Play::Echo);
    let asked = provider.asked().len();
    for (what, request) in [
        ("another thread", upgrade(&token, OTHER)),
        ("the server's own token", upgrade("ws-real-token", THREAD)),
        ("no token", upgrade("", THREAD)),
        ("a key as a token", upgrade(secrecy::ExposeSecret::expose_secret(other.token()), THREAD)),
        ("another actor", upgrade(&token, THREAD).replace("threadActor", "userActor")),
        ("no protocols", upgrade(&token, THREAD).replace("sec-websocket-protocol", "x-protocol")),
        ("broken escapes", upgrade(&token, THREAD).replace("%7B", "%ZZ")),
        ("no upgrade", upgrade(&token, THREAD).replace("upgrade: websocket", "upgrade: h2c")),
    ] {
        let (_, answer) = open(&rig, &request).await;
        assert!(["401", "403"].contains(&status(&answer)), "{what}: {answer}");
    }
    for (line, body) in [
        ("POST /api/thread-actors", format!(r#"{{"threadId":"{OTHER}"}}"#)),
        (
            "POST /api/internal?getThreadTail",
            format!(r#"{{"method":"getThreadTail","params":{{"thread":"{OTHER}"}}}}"#),
        ),
        ("POST /api/internal?listThreads", r#"{"method":"listThreads","params":{}}"#.into()),
        ("POST /api/internal?getUserInfo", r#"{"method":"listThreads","params":{}}"#.into()),
        ("POST /api/user-actor-credentials", "{}".into()),
        ("POST /api/thread-actors", r#"{"executorType":"orb"}"#.into()),
        ("POST /api/thread-actors", r#"{"threadMeta":{"visibility":"public_unlisted"}}"#.into()),
    ] {
        let answer = rig.ask(&pass, line, &body).await;
        assert_eq!(status(&answer), "403", "{line} {body}: {answer}");
    }
    let answer = rig.ask(&pass, "POST /api/telemetry", r#"{"what":"a job does"}"#).await;
    assert_eq!(status(&answer), "200", "it is taken, and told to nobody: {answer}");
    // Another job may not open this one's thread either.
    let answer = rig.ask(&other, "POST /api/thread-actors", &format!(r#"{{"threadId":"{THREAD}"}}"#)).await;
    assert_eq!(status(&answer), "403", "{answer}");
    assert_eq!(provider.asked().len(), asked, "nothing of it reached the provider");
}

#[tokio::test]
async fn an_upgrade_that_the_provider_refuses_or_garbles_is_told() {
    let (provider, rig) = stage().await;
    let pass = rig.pass(AgentKind::Amp);
    let token = thread(&rig, &pass).await;
    for (play, expected) in
        [("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "503"), ("nonsense\r\n\r\n", "502")]
    {
        provider.play(Play::Bytes(play.into()));
        let (_, answer) = open(&rig, &upgrade(&token, THREAD)).await;
        assert_eq!(status(&answer), expected, "{answer}");
    }
    // An answer that gives out something unknown is not passed on: it may hold a credential.
    provider.play(Play::Bytes(json(r#"{"token":"ws-real-token"}"#)));
    let answer = rig.ask(&pass, "POST /api/thread-actors", "{}").await;
    assert!(status(&answer) == "502" && !answer.contains("ws-real"), "{answer}");
}
