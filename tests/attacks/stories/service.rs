//! Attacks on the service itself: its API, its helper's word, its memory, its death.

use std::process::Stdio;
use std::time::Duration;

use janebot::config::{Isolation, Limits};
use janebot::host::layers;
use janebot::host::sandbox::{Sandbox, SandboxError, SandboxSpec};
use janebot::sprites::{ExecEvent, Sprites};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use super::{Scene, within};
use crate::machine::alive;
use crate::table::Line;
use crate::{DOOMED, liar, rig};

pub async fn all(scene: &Scene<'_>) -> Vec<Line> {
    vec![flood(scene).await, lies(scene).await, killed(scene).await, strangers(scene).await, names(scene).await]
}

async fn flood(scene: &Scene<'_>) -> Line {
    let before = resident();
    let mut exec = scene.rig.begin(scene.two, &["flood", "100"]).await.unwrap();
    let (mut came, mut status) = (0, None);
    while let Some(event) = exec.next().await {
        match event {
            Ok(ExecEvent::Stdout(bytes)) => came += bytes.len(),
            Ok(ExecEvent::Exit(code)) => status = Some(code),
            Ok(ExecEvent::Stderr(_)) | Err(_) => {}
        }
    }
    let grown = resident().saturating_sub(before);
    let got = format!(
        "{}, {}, exit {status:?}",
        if came <= (1 << 20) + 4096 { "cut off at 1 MiB".into() } else { format!("{came} bytes") },
        if grown < 48 << 20 { "bounded".into() } else { format!("grown by {grown}") },
    );
    let expected = "cut off at 1 MiB, bounded, exit Some(0)";
    Line::judge("62", "100 MiB of output", "output limit; the rest is dropped", expected, got)
}

/// Bytes of memory that this process, which is the service, has.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

async fn lies(scene: &Scene<'_>) -> Line {
    let mut believed = Vec::new();
    for lie in liar::LIES {
        let dir = tempfile::tempdir().unwrap();
        let helper = liar::make(dir.path(), lie).unwrap();
        let sprite = dir.path().join("sprite");
        let spec = SandboxSpec {
            name: "lied-to".into(),
            run: layers::new_run(&sprite).unwrap(),
            dir: sprite,
            lower: Vec::new(),
            rootfs: None,
            limits: Limits::default(),
            ports: vec![443],
            isolation: Isolation::Full,
        };
        match timeout(Duration::from_secs(5), Sandbox::start_with(&helper, spec)).await {
            Ok(Err(SandboxError::Start(_) | SandboxError::Io(_))) => {}
            Ok(Err(other)) => believed.push(format!("{lie}: {other}")),
            Ok(Ok(_)) => believed.push(format!("{lie}: believed")),
            Err(_) => believed.push(format!("{lie}: waited")),
        }
    }
    let works = scene.rig.answers(scene.one).await;
    let got = if believed.is_empty() { format!("no start, service lives {works}") } else { believed.join("; ") };
    let attack = "a helper and init that lie: huge, garbled, deep, wrong, short, silent";
    Line::judge("70", attack, "bounded messages, strict parser", "no start, service lives true", got)
}

async fn killed(scene: &Scene<'_>) -> Line {
    let mark = format!("{}-doomed", scene.mark);
    let dir = tempfile::tempdir().unwrap();
    let mut service = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([DOOMED, dir.path().join("host").to_str().unwrap(), &mark])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
    let first = timeout(Duration::from_secs(20), lines.next_line()).await.unwrap().unwrap();
    // The service itself has the mark among its arguments.
    let there = within(Duration::from_secs(5), || alive(&mark) >= 4).await;
    service.kill().await.unwrap();
    let gone = within(Duration::from_secs(1), || alive(&mark) == 0).await;
    crate::machine::clean(dir.path());
    let got = format!("{} {there}, gone in 1 s {gone}", first.unwrap_or_default());
    Line::judge(
        "71",
        "outlive a service that is killed",
        "control socket, pid namespace",
        "left true, gone in 1 s true",
        got,
    )
}

/// What somebody on the machine gets without the token: no route tells what exists.
async fn strangers(scene: &Scene<'_>) -> Line {
    let client = reqwest::Client::new();
    let mut odd = Vec::new();
    let routes = [
        ("GET", "/v1/sprites"),
        ("POST", "/v1/sprites"),
        ("GET", "/v1/sprites/one"),
        ("DELETE", "/v1/sprites/one"),
        ("GET", "/v1/sprites/one/exec?cmd=id"),
        ("POST", "/v1/sprites/one/exec?cmd=id"),
        ("GET", "/v1/sprites/one/checkpoints"),
        ("POST", "/v1/sprites/one/checkpoint"),
        ("POST", "/v1/sprites/one/checkpoints/v1/restore"),
        ("GET", "/v1/sprites/one/fs/read?path=/etc/passwd"),
        ("PUT", "/v1/sprites/one/fs/write?path=/tmp/x"),
        ("POST", "/v1/sprites/one/policy/network"),
        ("GET", "/v1/sprites/nobody"),
    ];
    for (method, path) in routes {
        for token in [None, Some("wrong"), Some(""), Some("the-hosts-toke"), Some("the-hosts-tokenn")] {
            let mut request = client.request(method.parse().unwrap(), format!("{}{path}", scene.rig.host.url()));
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let status = request.send().await.unwrap().status().as_u16();
            if status != 401 {
                odd.push(format!("{method} {path} {token:?}: {status}"));
            }
        }
    }
    let got = if odd.is_empty() { "401 each".into() } else { odd.join("; ") };
    Line::judge("85", "calls of the API with a missing or guessed token, 13 routes", "token", "401 each", got)
}

/// Names that are paths, from somebody with the token.
async fn names(scene: &Scene<'_>) -> Line {
    let client = reqwest::Client::new();
    let mut odd = Vec::new();
    for name in ["..", "%2e%2e", "..%2fone", "one%2f..%2ftwo", "%00", ".", "one%20", "ONE", "lock"] {
        let url = format!("{}/v1/sprites/{name}", scene.rig.host.url());
        let status = client.get(&url).bearer_auth(rig::TOKEN).send().await.unwrap().status().as_u16();
        if !matches!(status, 400 | 404) && !matches!(name, ".." | "%2e%2e" | ".") {
            odd.push(format!("GET {name} {status}"));
        }
        let created =
            scene.rig.sprites.create(&name.replace("%2f", "/").replace("%2e", ".").replace("%00", "\0"), &[]).await;
        if created.is_ok() && name != "lock" {
            odd.push(format!("created {name}"));
        }
    }
    let _ = scene.rig.sprites.delete("lock").await;
    let outside = scene.rig.state.join("sprites");
    let found = std::fs::read_dir(&outside).unwrap().flatten().count();
    let got = if odd.is_empty() { format!("refused, {found} sprites") } else { odd.join("; ") };
    Line::judge("85a", "names of sprites that are paths", "names are checked", "refused, 8 sprites", got)
}
