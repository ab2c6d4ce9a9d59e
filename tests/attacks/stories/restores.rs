//! Attacks on what comes after: a restore, a checkpoint, the next sprite.

use std::time::Duration;

use janebot::sprites::{NetworkPolicy, Signal, Sprites};
use tokio::time::Instant;

use super::{Scene, within};
use crate::machine::alive;
use crate::table::Line;

pub async fn all(scene: &Scene<'_>) -> Vec<Line> {
    vec![
        daemons(scene).await,
        hiding_places(scene).await,
        fork_bomb(scene).await,
        cancelled(scene).await,
        held_output(scene).await,
        base(scene).await,
        forged_marks(scene).await,
    ]
}

async fn daemons(scene: &Scene<'_>) -> Line {
    let left = scene.one(&format!("daemons {}", scene.mark)).await;
    let there = within(Duration::from_secs(5), || alive(&scene.mark) == 3).await;
    scene.restore().await;
    let got = format!("{left} {there}, {} alive", alive(&scene.mark));
    let attack = "daemons with timers and watches live through a restore";
    Line::judge("59", attack, "pid namespace", "left true, 0 alive", got)
}

async fn hiding_places(scene: &Scene<'_>) -> Line {
    let before = scene.one("plant").await;
    let present = scene.one("planted").await != "absent";
    scene.restore().await;
    let got = format!("{before} {present}; {}", scene.one("planted").await);
    let attack = "files, cron, at, timers, shared memory, /run, /tmp, /dev/shm kept through a restore";
    Line::judge("67", attack, "a new upper layer, new namespaces", "planted true true; absent", got)
}

async fn fork_bomb(scene: &Scene<'_>) -> Line {
    let mark = format!("{}-bomb", scene.mark);
    // As many as may live, one after the other.
    let mut left = 0;
    for _ in 0..30 {
        left += usize::from(scene.one(&format!("daemons {mark}")).await == "left");
    }
    let crowd = alive(&mark);
    let begun = Instant::now();
    scene.restore().await;
    let quick = begun.elapsed() < Duration::from_secs(3);
    let got = format!(
        "{} before, restored {quick}, {} after, answers {}",
        if left > 5 && (20..=64).contains(&crowd) { "a crowd".into() } else { format!("{crowd}") },
        alive(&mark),
        scene.rig.answers(scene.one).await
    );
    let expected = "a crowd before, restored true, 0 after, answers true";
    Line::judge("58a", "restore while processes are at their limit", "process limit, pid namespace", expected, got)
}

async fn cancelled(scene: &Scene<'_>) -> Line {
    let mark = format!("{}-cancel", scene.mark);
    let (_, exec) = scene.begun(scene.two, &format!("daemons-and-stay {mark}")).await;
    let there = within(Duration::from_secs(5), || alive(&mark) >= 3).await;
    scene.rig.sprites.kill(scene.two, &exec.session, Signal::Terminate, Duration::from_millis(100)).await.unwrap();
    let gone = within(Duration::from_secs(2), || alive(&mark) == 0).await;
    let got = format!("there {there}, gone {gone}");
    let attack = "daemons outlive the program that is killed";
    Line::judge("63", attack, "a reaper for each program", "there true, gone true", got)
}

async fn held_output(scene: &Scene<'_>) -> Line {
    let begun = Instant::now();
    let answer = scene.two("hold-output").await;
    let waited = begun.elapsed();
    let got =
        format!("{answer}, {}", if waited < Duration::from_secs(1) { "at once".into() } else { format!("{waited:?}") });
    Line::judge("64", "a grandchild keeps the output open", "deadline for what is left", "ended, at once", got)
}

async fn base(scene: &Scene<'_>) -> Line {
    let own = scene.one("take-over-etc").await;
    let expected = if rustix::process::geteuid().is_root() {
        "EACCES"
    } else {
        // All files of an ordinary user's sprite are its own.
        "done"
    };
    let other = scene.two("read /etc/ld.so.preload").await;
    scene.restore().await;
    let after = scene.one("read /etc/ld.so.preload").await;
    let fresh = scene.rig.sprites.create("new", &[]).await.is_ok();
    scene.rig.sprites.set_policy("new", &NetworkPolicy::deny_all()).await.unwrap();
    let passwd = scene.rig.sprites.read_file("new", "/etc/passwd", 10_000).await.unwrap();
    let clean = !String::from_utf8_lossy(&passwd).contains("forged");
    scene.rig.sprites.delete("new").await.unwrap();
    let got = format!("{own}; other {other}, restored {after}, new {}", fresh && clean);
    let expected = format!("{expected}; other ENOENT, restored ENOENT, new true");
    Line::judge("82", "poison /etc for others and for later", "own layers, frozen ones below", &expected, got)
}

async fn forged_marks(scene: &Scene<'_>) -> Line {
    // Kernels differ in whether they say no or store the mark under another name.
    scene.one("forge-marks").await;
    let id = scene.rig.sprites.create_checkpoint(scene.one, "forged").await.unwrap();
    let works = scene.rig.answers(scene.one).await;
    let layer = scene.rig.dir(scene.one).join("layers").join(id.as_str()).join("home/sprite/forged");
    let mut names = vec![0; 4096];
    let length = rustix::fs::listxattr(&layer, &mut names).unwrap_or(0);
    let marked = String::from_utf8_lossy(&names[..length])
        .split('\0')
        .any(|name| name == "user.overlay.redirect" || name == "user.overlay.opaque");
    scene.restore().await;
    let got = format!("marked {marked}, works {works}");
    let attack = "forge overlay's marks in a checkpoint, so that it shows other layers' files";
    Line::judge("83", attack, "kernel; capabilities", "marked false, works true", got)
}
