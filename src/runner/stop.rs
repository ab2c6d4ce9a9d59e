//! Stopping an agent, and seeing that it has stopped: signal, kill, look.
//!
//! What is looked at depends on what the machine shows. Where its process table holds nothing but the host's own, no
//! process of the job is left, whatever it did to get away. Elsewhere the host's list of sessions tells that the agent's
//! has ended, and where not even that can be seen, the restore that follows every job is what ends everything.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::scripts;
use crate::agent::StopProtocol;
use crate::pool::{StopProof, Stopped};
use crate::sprites::{Exec, ExecEvent, Sprites};

/// How long to wait for the output of a program that was killed.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long looking may take in all; a machine that is well answers in milliseconds.
const LOOK_WITHIN: Duration = Duration::from_secs(10);
/// Looks at the process table, for processes that are about to be gone.
const LOOKS: u32 = 5;
/// Between two looks.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Stops the program by `protocol`, passing what it still says to `take`, which gives the exit status when that came,
/// and says what was seen to be gone.
pub async fn stop<S: Sprites>(
    sprites: &S,
    sprite: &str,
    exec: &mut Exec,
    protocol: StopProtocol,
    mut take: impl FnMut(ExecEvent) -> Option<u8>,
) -> Stopped {
    let began = Instant::now();
    let session = exec.session.clone();
    // The inner option: whether a status came; the outer: whether the stream has ended.
    let mut exit: Option<Option<u8>> = None;
    {
        let kill = sprites.kill(sprite, &session, protocol.signal, protocol.grace);
        let mut kill = pin!(timeout(protocol.grace + LAST_WORDS, kill));
        loop {
            tokio::select! {
                biased;
                // Whether it worked is looked at below.
                _ = &mut kill => break,
                event = exec.next(), if exit.is_none() => exit = end_of(event.and_then(Result::ok), &mut take),
            }
        }
    }
    let last_words = async {
        while exit.is_none() {
            exit = end_of(exec.next().await.and_then(Result::ok), &mut take);
        }
    };
    // A program whose exit never comes is what looking is for.
    let _ = timeout(LAST_WORDS, last_words).await;
    let proof = if nothing_left(sprites, sprite).await {
        StopProof::ProcessTable
    } else if session_gone(sprites, sprite, &session).await {
        StopProof::SessionList
    } else {
        StopProof::Restore
    };
    Stopped { proof, status: exit.flatten(), took: began.elapsed() }
}

/// `Some` when nothing more will come.
fn end_of(event: Option<ExecEvent>, take: &mut impl FnMut(ExecEvent) -> Option<u8>) -> Option<Option<u8>> {
    match event {
        Some(event) => take(event).map(Some),
        None => Some(None),
    }
}

/// Whether the process table was seen to hold nothing but the host's own.
async fn nothing_left<S: Sprites>(sprites: &S, sprite: &str) -> bool {
    let look = async {
        for look in 0..LOOKS {
            if look > 0 {
                sleep(LOOK_AGAIN_AFTER).await;
            }
            let Ok(exec) = sprites.exec(sprite, scripts::leftovers(LOOK_WITHIN)).await else { return false };
            let Ok(output) = exec.output(scripts::OUTPUT_LIMIT).await else { return false };
            match scripts::left(&output) {
                Some(0) => return true,
                Some(_) => {}
                None => return false,
            }
        }
        false
    };
    timeout(LOOK_WITHIN, look).await.unwrap_or(false)
}

async fn session_gone<S: Sprites>(sprites: &S, sprite: &str, session: &str) -> bool {
    match timeout(LOOK_WITHIN, sprites.sessions(sprite)).await {
        Ok(Ok(sessions)) => sessions.iter().all(|other| other.id != session),
        Ok(Err(_)) | Err(_) => false,
    }
}
