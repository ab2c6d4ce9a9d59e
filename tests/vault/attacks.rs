//! What a hostile program in a sprite would try with its token, and without.

use janebot::config::AgentKind;
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake_provider::{FakeProvider, Play, json};
use crate::rig::{MESSAGES, Rig, request, status};

async fn stage() -> (FakeProvider, Rig) {
    let provider = FakeProvider::start(Play::Bytes(json("{}"))).await;
    let rig = Rig::new(&provider.url).await;
    (provider, rig)
}

#[tokio::test]
async fn without_a_good_token_nothing_is_asked_of_anybody() {
    let (provider, rig) = stage().await;
    let pass = rig.pass(AgentKind::Claude);
    let token = pass.token().expose_secret();
    let other = rig.pass(AgentKind::Claude);
    let other = other.token().expose_secret();
    let head = |headers: String| {
        format!("{MESSAGES} HTTP/1.1\r\nhost: v\r\n{headers}connection: close\r\ncontent-length: 0\r\n\r\n")
    };
    for (what, headers) in [
        ("none", String::new()),
        ("empty", "authorization: Bearer \r\n".into()),
        ("wrong", format!("authorization: Bearer jane_{}\r\n", "0".repeat(64))),
        ("cut", format!("authorization: Bearer {}\r\n", &token[..token.len() - 1])),
        ("upper case", format!("authorization: Bearer {}\r\n", token.to_uppercase())),
        ("another scheme", format!("authorization: Basic {token}\r\n")),
        ("two that differ", format!("authorization: Bearer {token}\r\nx-api-key: {other}\r\n")),
        ("a cookie", format!("cookie: token={token}\r\n")),
        ("real key's shape", "x-api-key: sk-ant-real\r\n".into()),
    ] {
        let answer = rig.raw(&head(headers)).await;
        assert_eq!(status(&answer), "401", "{what}: {answer}");
    }
    let in_url =
        rig.raw(&format!("POST /v1/messages?token={token} HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n")).await;
    assert_eq!(status(&in_url), "401");
    assert!(provider.asked().is_empty());
}

#[tokio::test]
async fn another_path_method_or_host_is_refused() {
    let (provider, rig) = stage().await;
    for line in [
        "GET /v1/messages",
        "DELETE /v1/messages",
        "POST /v1/messages/batches",
        "POST /v1/organizations/api_keys",
        "POST /v1/files",
        "GET /v1/models",
        "POST /v1/../v1/messages",
        "POST //v1/messages",
        "POST /v1/messages%2e",
        "POST /v1/messages?x=%0d%0aevil",
        "POST http://evil.example/v1/messages",
        "POST http://vault.janebot.internal/v1/messages",
        "OPTIONS *",
        "CONNECT api.anthropic.com:443",
        "POST /api/internal?getUserInfo",
    ] {
        let answer = rig.ask(&rig.pass(AgentKind::Claude), line, "").await;
        assert!(["403", "400"].contains(&status(&answer)), "{line}: {answer}");
    }
    assert!(provider.asked().is_empty());
}

#[tokio::test]
async fn a_connection_belongs_to_one_job() {
    let (provider, rig) = stage().await;
    let (one, two) = (rig.pass(AgentKind::Claude), rig.pass(AgentKind::Claude));
    let keep = |token: &str| request(token, MESSAGES, "{}").replace("connection: close", "connection: keep-alive");
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(keep(one.token().expose_secret()).as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"{}") {
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
    }
    stream.write_all(keep(two.token().expose_secret()).as_bytes()).await.unwrap();
    seen.clear();
    let _ = stream.read_to_end(&mut seen).await;
    assert_eq!(status(&String::from_utf8_lossy(&seen)), "401");
    assert_eq!(provider.asked().len(), 1);
}

#[tokio::test]
async fn two_readings_of_one_request_are_not_possible() {
    let (provider, rig) = stage().await;
    let pass = rig.pass(AgentKind::Claude);
    let token = pass.token().expose_secret();
    let smuggled = "GET /v1/models HTTP/1.1\r\nhost: evil\r\n\r\n";
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: v\r\nauthorization: Bearer {token}\r\n");
    for (what, framing) in [
        ("both lengths", format!("content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("the other way round", format!("transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n{smuggled}")),
        ("two lengths", format!("content-length: 0\r\ncontent-length: 44\r\n\r\n{smuggled}")),
        ("a list of lengths", format!("content-length: 0, 44\r\n\r\n{smuggled}")),
        ("a signed length", format!("content-length: +0\r\n\r\n{smuggled}")),
        ("an odd coding", format!("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("a coding twice", format!("transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}")),
        ("space before the colon", format!("content-length : 44\r\n\r\n{smuggled}")),
        ("a folded line", format!("x: a\r\n transfer-encoding: chunked\r\n\r\n{smuggled}")),
        ("a bare line feed", format!("x: a\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("a bad chunk size", format!("transfer-encoding: chunked\r\n\r\n-1\r\n{smuggled}")),
        ("a huge chunk size", format!("transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{smuggled}")),
        ("a NUL", "x: a\0b\r\n\r\n".to_owned()),
    ] {
        let answer = rig.raw(&format!("{head}{framing}")).await;
        // However a request is read, what follows it has no token and is nobody's.
        assert!(!provider.asked().iter().any(|asked| asked.head.contains("models")), "{what}: {answer}");
        for asked in provider.asked() {
            assert!(
                asked.head.starts_with("POST /v1/messages HTTP/1.1") && !asked.body.contains("evil"),
                "{what}: {asked:?}"
            );
        }
    }
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn requests_that_are_too_large_are_refused_before_they_are_read() {
    let (provider, rig) = stage().await;
    let pass = rig.pass(AgentKind::Claude);
    let token = pass.token().expose_secret();
    let large = rig
        .raw(&format!("{MESSAGES} HTTP/1.1\r\nhost: v\r\nx-api-key: {token}\r\ncontent-length: 99999999999\r\n\r\n"))
        .await;
    assert_eq!(status(&large), "413", "{large}");
    let amp = rig.pass(AgentKind::Amp);
    let body = "x".repeat(5 * 1024 * 1024);
    let answer = rig.ask(&amp, "POST /api/internal?getUserInfo", &body).await;
    assert!(status(&answer) == "413" || answer.is_empty(), "{answer}");
    let head = format!("{MESSAGES} HTTP/1.1\r\nhost: v\r\nx-api-key: {token}\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    let answer = rig.raw(&head).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    assert!(provider.asked().is_empty());
}

#[tokio::test]
async fn a_job_that_asks_too_fast_is_slowed_down_alone() {
    let (_provider, rig) = stage().await;
    let (wild, calm) = (rig.pass(AgentKind::Claude), rig.pass(AgentKind::Claude));
    let mut slowed = 0;
    for _ in 0..80 {
        let answer = rig.ask(&wild, "POST /v1/messages/count_tokens", "{}").await;
        slowed += usize::from(status(&answer) == "429" && answer.contains("retry-after: 1"));
    }
    assert!(slowed > 0);
    assert_eq!(status(&rig.ask(&calm, MESSAGES, "{}").await), "200");
}
