//! Answers on their way: streamed as they come, cut when the job ends, whatever the provider does.

use std::time::Duration;

use janebot::config::AgentKind;
use janebot::vault::{actor, provider};
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fake_provider::{FakeProvider, Play, json, ok};
use crate::rig::{KEY, MESSAGES, Rig, request, status};

const EVENTS: &str = "text/event-stream";
const SOON: Duration = Duration::from_secs(10);

async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        }
    };
    timeout(SOON, read).await.unwrap_or_else(|_| panic!("`{text}` does not come"));
    String::from_utf8_lossy(&seen).into_owned()
}

#[tokio::test]
async fn the_provider_sees_the_real_key_and_nothing_of_the_job() {
    let provider = FakeProvider::start(Play::Bytes(json(r#"{"usage":{"input_tokens":3,"output_tokens":4}}"#))).await;
    let rig = Rig::new(&format!("{}/gateway", provider.url)).await;
    let pass = rig.pass(AgentKind::Claude);
    let token = pass.token().expose_secret().to_owned();
    let body = r#"{"model":"m"}"#;
    let answer = rig
        .raw(&format!(
            "{MESSAGES} HTTP/1.1\r\nhost: evil.example\r\nx-api-key: {token}\r\nanthropic-version: 2023-06-01\r\nanthropic-beta: b\r\ncookie: c\r\nx-forwarded-for: 1.2.3.4\r\nx-secret-hop: 1\r\nconnection: close, x-secret-hop\r\naccept-encoding: gzip\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert!(status(&answer) == "200" && answer.ends_with(r#""output_tokens":4}}"#), "{answer}");
    let [asked] = &provider.asked()[..] else { panic!("one request") };
    assert!(asked.head.starts_with("POST /gateway/v1/messages?beta=true HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!((asked.header("x-api-key"), asked.body.as_str()), (Some(KEY), body));
    assert_eq!((asked.header("anthropic-version"), asked.header("anthropic-beta")), (Some("2023-06-01"), Some("b")));
    assert_eq!(asked.header("accept-encoding"), Some("identity"));
    assert_eq!(asked.header("content-length"), Some("13"));
    assert!(provider.url.ends_with(asked.header("host").unwrap()));
    for (gone, name) in [(token.as_str(), "authorization"), ("evil.example", "cookie"), ("1.2.3.4", "x-secret-hop")] {
        assert!(!asked.head.contains(gone) && asked.header(name).is_none(), "{}", asked.head);
    }
    let spent = pass.spent();
    assert_eq!((spent.turns, spent.tokens.input, spent.tokens.output), (1, 3, 4));
}

#[tokio::test]
async fn an_event_reaches_the_agent_before_the_next_one_exists() {
    let provider = FakeProvider::start(Play::InTwo(ok(EVENTS, "data: one\n\n"), "data: two\n\n".into())).await;
    let rig = Rig::new(&provider.url).await;
    let pass = rig.pass(AgentKind::Claude);
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(request(pass.token().expose_secret(), MESSAGES, "{}").as_bytes()).await.unwrap();
    let seen = read_until(&mut stream, "data: one\n\n").await;
    assert!(!seen.contains("two"));
    provider.go_on();
    read_until(&mut stream, "data: two\n\n").await;
}

#[tokio::test]
async fn when_a_job_ends_its_token_is_dead_and_its_stream_is_cut_on_both_sides() {
    let provider = FakeProvider::start(Play::InTwo(ok(EVENTS, "data: one\n\n"), String::new())).await;
    let rig = Rig::new(&provider.url).await;
    let pass = rig.pass(AgentKind::Claude);
    let token = pass.token().expose_secret().to_owned();
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(request(&token, MESSAGES, "{}").as_bytes()).await.unwrap();
    read_until(&mut stream, "data: one\n\n").await;
    drop(pass);
    let mut rest = Vec::new();
    // An error is an end as well.
    let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the stream is cut");
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"), "a cut must not look like the answer's end");
    provider.was_left().await;
    let late = rig.raw(&request(&token, MESSAGES, "{}")).await;
    assert!(status(&late) == "401" && !late.contains("\"ok\""), "{late}");
    assert_eq!(provider.asked().len(), 1);
}

#[tokio::test]
async fn a_provider_that_is_down_silent_or_speaks_nonsense_is_told_from_one_that_answers() {
    let down = Rig::new("http://127.0.0.1:9").await;
    let answer = down.ask(&down.pass(AgentKind::Claude), MESSAGES, "{}").await;
    assert!(
        status(&answer) == "502" && answer.contains("can't be reached") && !answer.contains("127.0.0.1"),
        "{answer}"
    );

    let provider = FakeProvider::start(Play::Silence).await;
    let rig = Rig::new(&provider.url).await;
    let answer = rig.ask(&rig.pass(AgentKind::Claude), MESSAGES, "{}").await;
    assert!(status(&answer) == "504" && answer.contains("does not answer"), "{answer}");

    for garbage in ["garbage\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"] {
        provider.play(Play::Bytes(garbage.into()));
        let answer = rig.ask(&rig.pass(AgentKind::Claude), MESSAGES, "{}").await;
        assert_eq!(status(&answer), "502", "{garbage:?}: {answer}");
    }

    // In the middle of a stream there is no status left to say it with: the agent sees a broken connection.
    let half = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n";
    provider.play(Play::Bytes(half.into()));
    let answer = rig.ask(&rig.pass(AgentKind::Claude), MESSAGES, "{}").await;
    assert!(status(&answer) == "200" && !answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_providers_own_refusals_reach_the_agent_as_they_are() {
    let refusal = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\nset-cookie: a=b\r\nlocation: http://evil.example\r\nrequest-id: r1\r\ncontent-length: 4\r\n\r\nslow";
    let provider = FakeProvider::start(Play::Bytes(refusal.into())).await;
    let rig = Rig::new(&provider.url).await;
    let pass = rig.pass(AgentKind::Claude);
    let answer = rig.ask(&pass, MESSAGES, "{}").await;
    assert!(status(&answer) == "429" && answer.contains("retry-after: 7") && answer.contains("request-id: r1"));
    assert!(answer.ends_with("slow") && !answer.contains("set-cookie") && !answer.contains("evil"), "{answer}");
    assert_eq!(pass.spent().turns, 0, "what was refused costs nothing");

    // A redirect is not followed: it would carry the key elsewhere.
    let elsewhere = FakeProvider::start(Play::Bytes(json("{}"))).await;
    provider.play(Play::Bytes(format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: {}/v1/messages\r\ncontent-length: 0\r\n\r\n",
        elsewhere.url
    )));
    assert_eq!(status(&rig.ask(&pass, MESSAGES, "{}").await), "307");
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn another_provider_is_another_table() {
    let answer = ok(
        EVENTS,
        "data: {\"choices\":[]}\n\ndata: {\"usage\":{\"prompt_tokens\":70,\"completion_tokens\":8}}\n\ndata: [DONE]\n\n",
    );
    let provider = FakeProvider::start(Play::Bytes(answer)).await;
    let rig = Rig::of(&provider::OPENAI, &provider.url).await;
    let pass = rig.pass(AgentKind::Claude);
    let answer = rig.ask(&pass, "POST /v1/chat/completions", "{}").await;
    assert!(status(&answer) == "200" && answer.contains("[DONE]"), "{answer}");
    assert_eq!(provider.asked()[0].header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    assert_eq!((pass.spent().tokens.input, pass.spent().tokens.output), (70, 8));
}

#[tokio::test]
async fn a_vault_whose_server_dies_serves_the_same_passes_again() {
    let provider = FakeProvider::start(Play::Bytes(json("{}"))).await;
    let rig = Rig::new(&provider.url).await;
    let pass = rig.pass(AgentKind::Claude);
    assert_eq!(status(&rig.ask(&pass, MESSAGES, "{}").await), "200");
    provider.play(Play::InTwo(ok(EVENTS, "data: one\n\n"), String::new()));
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(request(pass.token().expose_secret(), MESSAGES, "{}").as_bytes()).await.unwrap();
    read_until(&mut stream, "data: one\n\n").await;
    rig.kill().await;
    let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("its connections are cut");
    let taken = actor::listen(rig.address).await;
    assert!(taken.is_err_and(|error| error.to_string().contains("VAULT_LISTEN")), "the address stays the vault's");
    provider.play(Play::Bytes(json("{}")));
    assert_eq!(status(&rig.ask(&pass, MESSAGES, "{}").await), "200");
}
