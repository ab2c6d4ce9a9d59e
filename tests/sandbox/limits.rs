//! What a sprite may use, and what becomes of one that uses more.

use super::*;

#[tokio::test]
async fn programs_have_a_limit_and_a_dead_sandbox_says_so() {
    let mut sprite = Sprite::new();
    sprite.limits.execs = 2;
    let sandbox = sprite.start(&[]).await;
    let _running = [sandbox.spawn(sh("sleep 1000")).await.unwrap(), sandbox.spawn(sh("sleep 1000")).await.unwrap()];
    assert!(matches!(refusal(sandbox.spawn(sh("true")).await), SandboxError::TooMany { limit: 2 }));
    sandbox.kill().await.unwrap();
    sandbox.kill().await.unwrap();
    assert!(matches!(refusal(sandbox.spawn(sh("true")).await), SandboxError::Gone));
    assert_eq!(sandbox.death(), None);
}

#[tokio::test]
async fn the_processes_of_a_sprite_have_a_limit_that_a_fork_bomb_keeps() {
    let mut sprite = Sprite::new();
    sprite.limits.processes = 60;
    let sandbox = sprite.start(&[]).await;
    let program = "
import os, time
n = 0
while n < 1000:
    try:
        if os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(1000)
        n += 1
    except BlockingIOError: break
print(n, flush=True)
os._exit(0)
";
    let Some(text) = python(&sandbox, program).await else { return };
    let forked: usize = text.lines().last().unwrap().parse().unwrap();
    assert!((40..60).contains(&forked), "{forked}");
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_sprite_that_takes_too_much_memory_is_ended_with_the_reason() {
    memory_bomb(Sprite::new()).await;
    memory_bomb(Sprite::open()).await;
}

async fn memory_bomb(mut sprite: Sprite) {
    sprite.limits.memory = 200 << 20;
    let sandbox = sprite.start(&[]).await;
    // In a file held by a descriptor alone, which no process's size shows.
    let program = "
import os, time
fd = os.memfd_create('bomb')
for _ in range(300): os.write(fd, b'x' * (1 << 20))
time.sleep(1000)
";
    let process = match sandbox.spawn(argv(&["python3", "-c", program])).await {
        Err(e) if e.exit_status() == Some(127) => return println!("skipped: there is no python3 in the sandbox"),
        process => process.unwrap(),
    };
    tokio::time::timeout(PATIENCE, sandbox.exited()).await.unwrap();
    let reason = sandbox.death().unwrap();
    assert!(reason.starts_with("out of memory: ") && reason.ends_with("limit 200 MiB"), "{reason}");
    // Killed by the kernel before the sandbox was ended, or gone with it.
    assert!(matches!(process.exit.await, Ok(137) | Err(_)));
}

#[tokio::test]
async fn a_sprite_that_writes_too_much_is_ended_with_the_reason() {
    let mut sprite = Sprite::new();
    sprite.limits.disk = 20 << 20;
    let sandbox = sprite.start(&[]).await;
    let _process =
        sandbox.spawn(sh("for n in 1 2 3; do head -c 10000000 /dev/zero > $n; done; sleep 1000")).await.unwrap();
    tokio::time::timeout(PATIENCE, sandbox.exited()).await.unwrap();
    assert_eq!(sandbox.death().unwrap(), "out of disk: used more than 20 MiB");
}
