//! What the vault costs: added time of a call, of a stream's first byte, and the memory of many streams.
//!
//! The vault runs in a process of its own, so that its memory is its own; provider and agents are in this one. Each row
//! is measured directly and through the vault, one after the other in turns, so that a busy machine is unfair to both.
//! `cargo bench --bench vault`

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::BufRead as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures_util::StreamExt as _;
use janebot::config::AgentKind;
use janebot::job::{JobId, RequesterId};
use janebot::supervise::Supervisor;
use janebot::vault::budget::Budget;
use janebot::vault::pass::Holder;
use janebot::vault::{Upstream, VaultHandle, actor, provider};
use janebot::world::World;
use ractor::Actor;
use reqwest::Client;
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// Each job may ask so often without being slowed down; the bench stays below.
const CALLS_PER_PASS: usize = 40;
/// Each job may have so many streams; the bench stays below.
const STREAMS_PER_PASS: usize = 25;
const PASSES: usize = 50;
const STREAMS: usize = 1000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match std::env::args().skip_while(|arg| arg != "serve").nth(1) {
        Some(url) => runtime.block_on(serve(&url)),
        None => runtime.block_on(measure()),
    }
}

/// The vault's process: prints its address and its passes' tokens, and serves until it is killed.
async fn serve(url: &str) {
    let key = "sk-ant-bench-0123456789abcdefghijkl";
    let upstream = Upstream::new(&provider::ANTHROPIC, url, key.into()).expect("a key");
    let (listener, address) = actor::listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    let vault = VaultHandle::new(BTreeMap::from([(AgentKind::Claude, upstream)]), String::new(), World::real());
    let supervisor = Supervisor { name: "bench", world: World::real() };
    let children = vec![actor::child(vault.clone(), listener)];
    let (_root, _join) = Actor::spawn(None, supervisor, children).await.expect("a supervisor");
    let holder = |n: usize| Holder {
        job: JobId::new(n.to_string()),
        runner: "bench".into(),
        requester: RequesterId::new("bench:1"),
    };
    let hour = Duration::from_secs(3600);
    let passes: Vec<_> =
        (0..PASSES * 3).filter_map(|n| vault.open(AgentKind::Claude, holder(n), Budget::default(), hour)).collect();
    println!("http://{address}");
    for pass in &passes {
        println!("{}", pass.token().expose_secret());
    }
    std::future::pending::<()>().await;
}

struct Vault {
    child: Child,
    url: String,
    tokens: Vec<String>,
}

impl Vault {
    fn start(provider: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        let mut child = command.args(["serve", provider]).stdout(Stdio::piped()).spawn().expect("a process");
        let stdout = child.stdout.take().expect("its output");
        let mut lines = std::io::BufReader::new(stdout).lines().map_while(Result::ok);
        let url = lines.next().expect("its address");
        let tokens = lines.take(PASSES * 3).collect();
        Self { child, url, tokens }
    }

    /// Resident memory in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When the provider sent the first event of its last stream.
type SentAt = Arc<Mutex<Option<Instant>>>;

async fn provider(sent_at: SentAt) -> String {
    const ANSWER: &str =
        r#"{"content":[{"type":"text","text":"hello"}],"usage":{"input_tokens":10,"output_tokens":5}}"#;
    let stream = move || {
        let sent_at = sent_at.clone();
        let events = futures_util::stream::once(async move {
            *sent_at.lock().expect("nobody panics") = Some(Instant::now());
            Ok::<_, Infallible>(Bytes::from_static(b"event: ping\ndata: {\"type\":\"ping\"}\n\n"))
        });
        Body::from_stream(events.chain(futures_util::stream::pending()))
    };
    let answer = move |body: Bytes| async move {
        let is_stream = body.windows(6).any(|window| window == b"stream");
        let (kind, body) =
            if is_stream { ("text/event-stream", stream()) } else { ("application/json", ANSWER.into()) };
        Response::builder().header("content-type", kind).body(body).expect("an answer")
    };
    let app = Router::new().route("/v1/messages", post(answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn client() -> Client {
    Client::builder().tcp_nodelay(true).no_proxy().build().expect("a client")
}

async fn call(client: &Client, url: &str, token: &str) -> Duration {
    let began = Instant::now();
    let request = client.post(format!("{url}/v1/messages")).header("x-api-key", token).body("{}");
    let answer = request.send().await.expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.status());
    answer.bytes().await.expect("its body");
    began.elapsed()
}

async fn open(client: &Client, url: &str, token: &str) -> reqwest::Response {
    let request = client.post(format!("{url}/v1/messages")).header("x-api-key", token).body("stream");
    let mut answer = request.send().await.expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.status());
    assert!(answer.chunk().await.expect("an event").is_some());
    answer
}

fn row(what: &str, direct: &mut [Duration], vault: &mut [Duration]) {
    direct.sort();
    vault.sort();
    let at = |times: &[Duration], part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let (direct, vault) = (at(direct, part), at(vault, part));
        println!("{what:<32} {name} {direct:>9.0} {vault:>9.0} {:>9.0} {:>7.2}", vault - direct, vault / direct);
    }
}

async fn measure() {
    let sent_at = SentAt::default();
    let url = provider(sent_at.clone()).await;
    let vault = Vault::start(&url);
    println!("{:<36} {:>9} {:>9} {:>9} {:>7}", "microseconds", "direct", "vault", "added", "ratio");

    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for token in &vault.tokens[..PASSES] {
        let (near, far) = (client(), client());
        call(&near, &url, token).await;
        call(&far, &vault.url, token).await;
        for _ in 1..CALLS_PER_PASS {
            direct.push(call(&near, &url, token).await);
            through.push(call(&far, &vault.url, token).await);
        }
    }
    row("a call, connection open", &mut direct, &mut through);

    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for token in &vault.tokens[PASSES..2 * PASSES] {
        let (near, far) = (client(), client());
        for _ in 0..8 {
            for (client, url, times) in [(&near, &url, &mut direct), (&far, &vault.url, &mut through)] {
                let stream = open(client, url, token).await;
                let sent = sent_at.lock().expect("nobody panics").take().expect("it was sent");
                times.push(sent.elapsed());
                drop(stream);
            }
        }
    }
    row("a stream's first event, on its way", &mut direct, &mut through);

    let before = vault.memory();
    let far = client();
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        streams.push(open(&far, &vault.url, &vault.tokens[2 * PASSES + n / STREAMS_PER_PASS]).await);
    }
    let after = vault.memory();
    println!(
        "{STREAMS} streams at a time: {:.1} MiB before, {:.1} MiB with them, {:.1} KiB each",
        before as f64 / 1024.0,
        after as f64 / 1024.0,
        after.saturating_sub(before) as f64 / STREAMS as f64
    );
}
