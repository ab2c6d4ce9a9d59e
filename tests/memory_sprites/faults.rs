//! Each fault and lie does what it says and no more, and one seed gives one story.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use janebot::sprites::{NetworkPolicy, Result, Signal, Sprites, SpritesError};
use janebot::world::World;

use crate::doubles::memory_sprites::MemorySprites;
use crate::doubles::memory_sprites::faults::{Fault, FaultPlan};
use crate::{GRACE, LIMIT, NAME, built, check, cloud, exec, job, ready, script, started, unknown, verify};

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_before_its_effect_has_none() {
    for fault in [Fault::Unreachable, Fault::GatewayError, Fault::RateLimited, Fault::TokenRejected] {
        let (cloud, _) = ready().await;
        cloud.faults().once(fault);
        let error = cloud.set_labels(NAME, &["new".to_owned()]).await.unwrap_err();
        assert!(!error.may_have_had_effect(), "{fault:?}: {error}");
        assert_eq!(cloud.get(NAME).await.unwrap().labels, ["pool=test"], "{fault:?}");
        cloud.faults().once(fault);
        assert!(!cloud.exec(NAME, job("# j")).await.unwrap_err().may_have_had_effect(), "{fault:?}");
        assert!(cloud.runs().is_empty(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_and_a_lost_answer_look_the_same() {
    for (fault, labels) in [(Fault::LostRequest, "pool=test"), (Fault::LostAnswer, "new")] {
        let (cloud, _) = ready().await;
        cloud.faults().once(fault);
        assert!(unknown(&cloud.set_labels(NAME, &["new".to_owned()]).await), "{fault:?}");
        assert_eq!(cloud.get(NAME).await.unwrap().labels, [labels], "{fault:?}");
    }
    let (cloud, _) = ready().await;
    cloud.faults().once(Fault::LostAnswer);
    assert!(unknown(&cloud.exec(NAME, job("# j\nhang")).await));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cloud.runs().len(), 1, "it was started all the same");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(cloud.sessions(NAME).await.unwrap().is_empty(), "and ended for want of a client");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_returns_at_its_deadline() {
    let (cloud, clean) = ready().await;
    for (restore, deadline) in [(false, 30), (true, 300)] {
        cloud.faults().once(Fault::Hang);
        let began = Instant::now();
        let ended = if restore { cloud.restore(NAME, &clean).await } else { cloud.get(NAME).await.map(drop) };
        assert!(unknown(&ended));
        assert_eq!(began.elapsed(), Duration::from_secs(deadline));
    }
    cloud.faults().once(Fault::Slow);
    let began = Instant::now();
    cloud.get(NAME).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_never_shows_an_exit_status() {
    for fault in [Fault::CutBeforeExit, Fault::CutAfterExit] {
        let (cloud, _) = ready().await;
        cloud.faults().once(fault);
        let mut running = cloud.exec(NAME, job("echo a\nsleep 10")).await.unwrap();
        let mut last = None;
        while let Some(event) = running.next().await {
            last = Some(event);
        }
        assert!(unknown(&last.unwrap()), "{fault:?}");
        assert_eq!(cloud.sessions(NAME).await.unwrap().is_empty(), fault == Fault::CutAfterExit);
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_never_exits_can_be_killed_unless_that_fails_too() {
    let (cloud, _) = ready().await;
    cloud.faults().once(Fault::NeverExits);
    let running = cloud.exec(NAME, job("echo done")).await.unwrap();
    let session = running.session.clone();
    assert!(unknown(&running.output(0).await));
    cloud.faults().once(Fault::KillIgnored);
    cloud.kill(NAME, &session, Signal::Kill, GRACE).await.unwrap();
    assert_eq!(cloud.sessions(NAME).await.unwrap().len(), 1);
    cloud.kill(NAME, &session, Signal::Kill, GRACE).await.unwrap();
    assert!(cloud.sessions(NAME).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_lies_leaves_what_a_verification_can_find() {
    let lies = [
        Fault::RestoreKeepsFiles,
        Fault::RestoreKeepsProcesses,
        Fault::RestoreForgetsPolicy,
        Fault::AgentMissing,
        Fault::AgentOtherVersion,
        Fault::DiskFull,
    ];
    for lie in lies {
        let (cloud, clean) = ready().await;
        let before = verify(&cloud, "c1").await;
        exec(&cloud, job("# one\ndaemon\ntouch left")).await.unwrap();
        cloud.faults().once(lie);
        cloud.restore(NAME, &clean).await.expect("it says that it is done");
        let after = verify(&cloud, "c1").await;
        let same_boot = before.lines().next() == after.lines().next();
        assert_eq!(after.contains("canary=present"), lie == Fault::RestoreKeepsFiles, "{lie:?}");
        assert_eq!(same_boot, lie == Fault::RestoreKeepsProcesses, "{lie:?}");
        assert_eq!(cloud.truth()[0].daemons.len(), usize::from(lie == Fault::RestoreKeepsProcesses), "{lie:?}");
        let no_policy = cloud.policy(NAME).await.unwrap().rules.is_empty();
        assert_eq!(no_policy, lie == Fault::RestoreForgetsPolicy, "{lie:?}");
        let agent_changed = matches!(lie, Fault::AgentMissing | Fault::AgentOtherVersion);
        assert_eq!(after.contains("agent:amp=changed"), agent_changed, "{lie:?}");
        assert_eq!(after.contains("disk=full"), lie == Fault::DiskFull, "{lie:?}");
        if lie == Fault::DiskFull {
            let written = cloud.write_file(NAME, "x", 0o600, Bytes::new()).await;
            assert!(matches!(written, Err(SpritesError::Refused { status: 507, .. })));
            assert_eq!(exec(&cloud, script("janebot-check", &["c2"], "")).await.unwrap().0, 1);
        } else {
            check(&cloud, "c2").await;
            exec(&cloud, job("# two\nread left")).await.unwrap();
            assert!(!cloud.violations().is_empty(), "{lie:?}: a job on a sprite that was not put back is noticed");
        }

        cloud.restore(NAME, &clean).await.unwrap();
        cloud.set_policy(NAME, &NetworkPolicy::deny_all()).await.unwrap();
        let violations = cloud.violations().len();
        check(&cloud, "c3").await;
        assert_eq!(exec(&cloud, job("# three\nread left")).await.unwrap().1, "absent\n", "{lie:?}");
        assert_eq!(cloud.violations().len(), violations, "{lie:?}: an honest restore mends it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_is_not_found_may_come_back_or_not() {
    for (fault, comes_back) in [(Fault::RestoreFails, true), (Fault::CheckpointGone, false)] {
        let (cloud, clean) = ready().await;
        cloud.faults().once(fault);
        assert!(matches!(cloud.restore(NAME, &clean).await, Err(SpritesError::NotFound { .. })), "{fault:?}");
        assert_eq!(cloud.restore(NAME, &clean).await.is_ok(), comes_back, "{fault:?}");
        assert_eq!(cloud.checkpoints(NAME).await.unwrap().len(), usize::from(comes_back), "{fault:?}");
        assert!(cloud.violations().is_empty(), "{fault:?}: the id was good once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sprite_that_vanished_can_be_made_again() {
    let (cloud, _) = ready().await;
    let mut running = started(&cloud, "echo up\nhang").await;
    cloud.faults().once(Fault::SpriteGone);
    assert!(matches!(cloud.get(NAME).await, Err(SpritesError::NotFound { .. })));
    assert!(unknown(&running.next().await.unwrap()));
    cloud.create(NAME, &[]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sprite_that_restarts_loses_its_programs_and_keeps_its_files() {
    let (cloud, _) = ready().await;
    let before = verify(&cloud, "c1").await;
    let mut running = started(&cloud, "daemon\necho up\nhang").await;
    cloud.faults().once(Fault::SpriteRestarts);
    let after = verify(&cloud, "c1").await;
    assert!(unknown(&running.next().await.unwrap()));
    assert_ne!(before.lines().next(), after.lines().next());
    assert!(after.contains("canary=present"));
    assert!(cloud.truth()[0].daemons.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_broken_sprite_can_only_be_deleted() {
    let (cloud, clean) = ready().await;
    cloud.faults().once(Fault::SpriteBreaks);
    let broken = |result: Result<()>| assert!(matches!(result, Err(SpritesError::Broken { status: 502, .. })));
    broken(cloud.get(NAME).await.map(drop));
    cloud.faults().stop();
    broken(cloud.get(NAME).await.map(drop));
    broken(cloud.restore(NAME, &clean).await);
    broken(cloud.checkpoints(NAME).await.map(drop));
    broken(cloud.exec(NAME, job("# j")).await.map(drop));
    assert_eq!(cloud.list("").await.unwrap().len(), 1);
    cloud.delete(NAME).await.unwrap();
    built(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn a_create_limit_passes() {
    let cloud = cloud(FaultPlan::none());
    cloud.faults().once(Fault::CreateLimited);
    let error = cloud.create(NAME, &[]).await.unwrap_err();
    let SpritesError::RateLimited { code, retry_after: Some(wait) } = error else { panic!("{error}") };
    assert_eq!(code, "concurrent_sprite_limit_exceeded");
    assert!(matches!(cloud.create(NAME, &[]).await, Err(SpritesError::RateLimited { .. })), "still limited");
    tokio::time::sleep(wait).await;
    cloud.create(NAME, &[]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_set_can_differ_from_what_is_kept() {
    let (cloud, _) = ready().await;
    cloud.faults().once(Fault::PolicyDiffers);
    cloud.set_policy(NAME, &NetworkPolicy::deny_all()).await.unwrap();
    assert_ne!(cloud.policy(NAME).await.unwrap(), NetworkPolicy::deny_all());
    exec(&cloud, job("# j")).await.unwrap();
    assert!(cloud.violations()[0].contains("another policy"));

    cloud.faults().once(Fault::LabelsLost);
    cloud.set_labels(NAME, &["new".to_owned()]).await.unwrap();
    assert_eq!(cloud.get(NAME).await.unwrap().labels, ["pool=test"]);

    cloud.faults().once(Fault::CheckpointUnlisted);
    assert!(matches!(cloud.create_checkpoint(NAME, "x").await, Err(SpritesError::Protocol { .. })));
    assert_eq!(cloud.checkpoints(NAME).await.unwrap().len(), 1);

    cloud.faults().once(Fault::ReadFails);
    assert!(cloud.read_file(NAME, ".local/bin/amp", 10).await.is_err());
    assert_eq!(cloud.read_file(NAME, ".local/bin/amp", 10).await.unwrap(), "program");
}

// One seed, one story.

/// Two processes at work on three sprites, with every fault, one of them crashing; then the faults stop.
fn story(seed: u64) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::seeded(seed);
        let cloud = MemorySprites::new(
            world.clone(),
            FaultPlan::all(0.04).with(Fault::SpriteGone, 0.01).with(Fault::Hang, 0.01),
        );
        let mut tasks = tokio::task::JoinSet::new();
        for process in 0..2u64 {
            let client = cloud.client(&format!("process-{process}"));
            for runner in 0..3 {
                let (client, world, name) = (client.clone(), world.clone(), format!("jane-runner-{runner}"));
                tasks.spawn(async move {
                    for round in 0..30 {
                        let _ = client.create(&name, &[]).await;
                        let _ = client.set_policy(&name, &NetworkPolicy::deny_all()).await;
                        let _ = client.write_file(&name, ".janebot/job.env", 0o600, Bytes::new()).await;
                        let clean = client.create_checkpoint(&name, "clean").await;
                        if matches!(clean, Err(SpritesError::Broken { .. })) {
                            let _ = client.delete(&name).await;
                        }
                        let stdin =
                            format!("# {process} {runner} {round}\necho a\nsleep {}\necho b", world.random() % 90);
                        if let Ok(running) = client.exec(&name, job(&stdin)).await {
                            let session = running.session.clone();
                            let _ = running.output(LIMIT).await;
                            let _ = client.kill(&name, &session, Signal::Terminate, GRACE).await;
                        }
                        if let Ok(clean) = clean {
                            let _ = client.restore(&name, &clean).await;
                        }
                    }
                });
            }
            if process == 1 {
                tasks.spawn(async move {
                    tokio::time::sleep(Duration::from_secs(200)).await;
                    client.crash();
                });
            }
        }
        let _ = timeout(Duration::from_secs(2_000), async { while tasks.join_next().await.is_some() {} }).await;
        drop(tasks);

        cloud.faults().stop();
        for sprite in cloud.list("").await.expect("honest now") {
            cloud.delete(&sprite.name).await.expect("deleting always works");
        }
        built(&cloud).await;
        cloud.note(&format!("{} runs, {} violations", cloud.runs().len(), cloud.violations().len()));
        cloud.log()
    })
}

#[test]
fn one_seed_gives_one_log_and_another_seed_another() {
    let first = story(1);
    assert!(first.lines().count() > 500, "{first}");
    let hit: BTreeSet<&str> = first.lines().filter_map(|l| l.split_once("fault ")?.1.split(' ').next()).collect();
    assert!(hit.len() > 20, "faults that happened: {hit:?}");
    assert_eq!(first, story(1));
    assert_ne!(first, story(2));
}

#[tokio::test(start_paused = true)]
async fn a_plan_for_a_seed_leaves_most_faults_out() {
    let plans: Vec<FaultPlan> = (0..20).map(|seed| FaultPlan::swarm(&World::seeded(seed))).collect();
    assert_eq!(plans[3], FaultPlan::swarm(&World::seeded(3)));
    assert!(plans.windows(2).all(|pair| pair[0] != pair[1]));
}
