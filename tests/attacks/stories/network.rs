//! Attacks on the gateway that need an eye outside.

use std::time::Duration;

use janebot::sprites::{NetworkPolicy, Sprites};
use tokio::time::{Instant, timeout};

use super::{SPECIAL, Scene, policy};
use crate::table::Line;

pub async fn all(scene: &Scene<'_>) -> Vec<Line> {
    let mut lines = vec![tunnel(scene).await, cut(scene).await, others_address(scene).await];
    lines.extend(special(scene).await);
    lines.push(slow(scene).await);
    lines
}

async fn tunnel(scene: &Scene<'_>) -> Line {
    let name = format!("{}.evil.test", "d".repeat(60));
    let answer = scene.one(&format!("resolve {name}")).await;
    let seen = scene.rig.outside.lookups("evil");
    Line::judge(
        "34",
        "DNS tunnel: data in labels of a name",
        "egress: policy, nothing forwarded",
        "rcode 3, 0 seen outside",
        format!("{answer}, {seen} seen outside"),
    )
}

async fn special(scene: &Scene<'_>) -> Vec<Line> {
    let mut answers = Vec::new();
    for (n, address) in SPECIAL.iter().enumerate() {
        let answer = scene.one(&format!("hello special{n}.test special{n}.test")).await;
        let dialled = scene.rig.outside.dialled(address.parse().unwrap());
        if answer != "ECONNRESET" || dialled {
            answers.push(format!("{address} {answer} dialled {dialled}"));
        }
    }
    let got = if answers.is_empty() { "ECONNRESET, none dialled".into() } else { answers.join(", ") };
    let attack = "DNS rebinding: an allowed name leads to ten special addresses";
    vec![Line::judge("40", attack, "egress: special addresses", "ECONNRESET, none dialled", got)]
}

async fn slow(scene: &Scene<'_>) -> Line {
    let begun = Instant::now();
    let answer = scene.one("slow allowed.test allowed.test").await;
    let waited = begun.elapsed();
    let in_time = Duration::from_secs(9) < waited && waited < Duration::from_secs(13);
    let got = format!("{answer} {}", if in_time { "after 10 s".into() } else { format!("after {waited:?}") });
    Line::judge("39c", "a TLS hello that never ends", "egress: 10 s", "ECONNRESET after 10 s", got)
}

async fn cut(scene: &Scene<'_>) -> Line {
    let (first, mut exec) = scene.begun(scene.one, "stay-connected allowed.test").await;
    scene.rig.sprites.set_policy(scene.one, &NetworkPolicy::deny_all()).await.unwrap();
    let last = timeout(Duration::from_secs(5), super::first_line(&mut exec)).await;
    scene.rig.sprites.set_policy(scene.one, &policy()).await.unwrap();
    let got = format!("{first}, then {}", last.unwrap_or_else(|_| "kept".into()));
    let attack = "keep a connection whose name is not allowed any more";
    Line::judge("69", attack, "egress: policy", "connected, then ECONNRESET", got)
}

async fn others_address(scene: &Scene<'_>) -> Line {
    // The second sprite has asked for nothing yet.
    for name in ["a", "b", "c"] {
        scene.one(&format!("resolve {name}.wild.test")).await;
    }
    let address = scene.one("address d.wild.test").await;
    let got = scene.two(&format!("echo {address}:443")).await;
    Line::judge("74", "another sprite's synthetic address", "egress: addresses of each sprite", "ECONNRESET", got)
}
