//! Attacks on the machine's resources, with small limits.

use super::Scene;
use crate::table::{Line, Verdict};

pub async fn of_memory(scene: &Scene<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    for (number, kind, what) in [
        ("60", "malloc", "memory bomb: malloc"),
        ("60a", "memfd", "memory bomb: memfd"),
        ("60d", "sockets", "memory bomb: buffers of Unix sockets"),
        ("60e", "tcp", "memory bomb: buffers of TCP connections"),
    ] {
        lines.push(memory(scene, number, kind, what, "killed, answers true").await);
    }
    // Half of the limit for /tmp, a quarter for /dev/shm, 16 MiB for /run: it may stay, and no more goes in.
    lines.push(memory(scene, "60b", "tmpfs", "memory bomb: /tmp, /run, /dev/shm", "held 208 MiB, answers true").await);
    // The kernel gives an unprivileged user 64 MiB for pipes, and after that little for each.
    let line = memory(scene, "60c", "pipes", "memory bomb: pipes", "").await;
    let held = match &line.verdict {
        Verdict::GotThrough { got, .. } => got.clone(),
        verdict => format!("{verdict:?}"),
    };
    let mib = held.strip_prefix("held ").and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let bounded = held == "killed, answers true" || held.ends_with("answers true") && mib.is_some_and(|mib| mib < 256);
    let got = if bounded { "below the limit" } else { &held };
    lines.push(Line::judge("60c", &line.attack, "kernel; memory limit", "below the limit", got));
    lines
}

pub async fn of_disk(scene: &Scene<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    for (number, kind, amount, what) in [
        ("61", "bytes", 120, "disk bomb: bytes"),
        ("61b", "inodes", 6, "disk bomb: 6,000 files"),
        ("61c", "unlinked", 120, "disk bomb: files that are deleted while open"),
        ("61d", "hidden", 120, "disk bomb: in a directory closed to its owner"),
    ] {
        let got = scene.one(&format!("disk {kind} {amount}")).await;
        scene.restore().await;
        let got = format!("{got}, answers {}", scene.rig.answers(scene.one).await);
        lines.push(Line::judge(number, what, "disk limit: the service looks", "killed, answers true", got));
    }
    lines
}

async fn memory(scene: &Scene<'_>, number: &str, kind: &str, what: &str, expected: &str) -> Line {
    let got = scene.one(&format!("memory {kind} 400")).await;
    scene.restore().await;
    let got = format!("{got}, answers {}", scene.rig.answers(scene.one).await);
    Line::judge(number, what, "memory limit", expected, got)
}
