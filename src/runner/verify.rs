//! Making a sprite clean again, and proving it: promise 1 of the design.

use std::time::Duration;

use tokio::time::Instant;

use super::build::BuildPlan;
use super::scripts::{self, Verified};
use super::{Context, Trouble};
use crate::journal::Journal;
use crate::pool::receipt::Receipt;
use crate::sprites::{CheckpointId, NetworkPolicy, Output, Sprites, SpritesError};

/// The verification script takes milliseconds once the machine answers.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the old machine may go on answering after a restore is said to be complete, before that is called a lie.
const LINGERS_FOR: Duration = Duration::from_secs(15);
/// A machine that takes longer to be marked is ill.
const MARK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a machine may take to answer after a restore: on the Sprites cloud it restarts asynchronously.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(60);

/// Restores the sprite (or, when nothing ran on it since the last verification, does not) and verifies it. The receipt
/// is in the journal when this returns.
///
/// # Errors
/// [`Trouble::Lied`] when the host says that it restored and the machine shows otherwise.
pub async fn make_clean<S: Sprites, J: Journal>(
    context: &Context<S, J>,
    plan: &BuildPlan,
    restore: bool,
) -> Result<Receipt, Trouble> {
    let Context { name, sprites, journal, world, .. } = context;
    let row = journal.runner(name).await?.ok_or_else(|| Trouble::sprite("the journal does not know it"))?;
    context.assert_not_foreign().await?;
    let mark = if restore { Some(restore_marked(context, &row.checkpoint).await?) } else { None };
    let sprite = sprites.get(name).await?;
    if sprite.id != row.sprite_id {
        return Err(Trouble::sprite(format!(
            "it is another machine ({}) than the one that was built ({})",
            sprite.id, row.sprite_id
        )));
    }
    let canaries: Vec<&str> =
        row.canary.iter().chain(mark.iter().map(|mark| &mark.canary)).map(String::as_str).collect();
    let boots_before: Vec<&str> = match restore {
        true => [row.boot.as_str()].into_iter().chain(mark.iter().map(|mark| mark.boot.as_str())).collect(),
        false => Vec::new(),
    };
    let (seen, mut evidence) = look(sprites, name, &canaries, &boots_before, restore).await?;
    sprites.set_policy(name, &plan.policy).await?;
    let policy = sprites.policy(name).await?;
    evidence.extend(contradictions(&row.fingerprint, plan, &seen, &policy));
    if !evidence.is_empty() {
        return Err(Trouble::Lied { evidence: evidence.join("; ") });
    }
    if !seen.disk_ok {
        return Err(Trouble::sprite("its disk can't be written"));
    }
    let mut warnings = plan.warnings.clone();
    if row.fingerprint != plan.fingerprint {
        warnings.push("an older build generation, soon to be refreshed".into());
    }
    let receipt = Receipt {
        runner: name.clone(),
        sprite_id: row.sprite_id.clone(),
        checkpoint: row.checkpoint.clone(),
        fingerprint: row.fingerprint.clone(),
        previous_job: row.last_job.clone(),
        // A sprite that is not dirty was restored after its last job, by this process or an earlier one.
        restore_completed: restore || !row.dirty,
        canary_gone: (!canaries.is_empty()).then_some(!seen.canary_present),
        boot: seen.boot,
        allowed_hosts: allowed(&policy),
        verified_at: world.now(),
        fence: row.fence + 1,
        isolation: plan.isolation.clone(),
        warnings,
    };
    journal.clean(name, &receipt).await?;
    Ok(receipt)
}

/// What was left on the machine just before its restore.
struct Mark {
    canary: String,
    boot: String,
}

/// Restores the sprite, and leaves a mark on it before, without which nothing would show whether the machine that
/// answers afterwards is the old one or the restored one. A machine that is too ill to be marked is restored all the
/// same, which heals it; then it is marked, and restored again.
async fn restore_marked<S: Sprites, J: Journal>(
    context: &Context<S, J>,
    checkpoint: &CheckpointId,
) -> Result<Mark, Trouble> {
    let Context { name, sprites, .. } = context;
    let marked = match mark(context).await {
        Some(marked) => marked,
        None => {
            sprites.restore(name, checkpoint).await?;
            look(sprites, name, &[], &[], false).await?;
            mark(context)
                .await
                .ok_or_else(|| Trouble::sprite("it could not be marked before its restore, which so proves nothing"))?
        }
    };
    sprites.restore(name, checkpoint).await?;
    Ok(marked)
}

/// Leaves a fresh canary and sees the present boot, so that a restore which did nothing shows even when the machine
/// restarted by itself since the last verification, or no job came before.
async fn mark<S: Sprites, J: Journal>(context: &Context<S, J>) -> Option<Mark> {
    let canary = format!(".jane-mark-{}", context.world.token(8));
    let exec = context.sprites.exec(&context.name, scripts::check(&canary, &[], MARK_TIMEOUT)).await.ok()?;
    let output = exec.output(scripts::OUTPUT_LIMIT).await.ok()?;
    Some(Mark { boot: scripts::checked(&output.stdout)?, canary })
}

/// Runs the verification script, waiting for a machine that is coming back; gives what it saw and, where there are any,
/// the signs of the time before the restore.
///
/// On the Sprites cloud a restore goes on after its stream has said `complete`, so for a while the old machine may still
/// be the one that answers.
async fn look<S: Sprites>(
    sprites: &S,
    name: &str,
    canaries: &[&str],
    boots_before: &[&str],
    restored: bool,
) -> Result<(Verified, Vec<String>), Trouble> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let tried = async {
            let exec = sprites.exec(name, scripts::verify(canaries, VERIFY_TIMEOUT)).await?;
            exec.output(scripts::OUTPUT_LIMIT).await
        };
        match tried.await {
            Ok(output) => {
                let seen = parse(&output)?;
                let signs = signs_of_before(boots_before, &seen);
                if signs.is_empty() || !restored || began.elapsed() + pause >= LINGERS_FOR {
                    return Ok((seen, signs));
                }
            }
            Err(error) => {
                // The script only looks, so it may be run again whatever became of the last one.
                let worth_waiting = matches!(
                    error,
                    SpritesError::Broken { .. }
                        | SpritesError::OutcomeUnknown { .. }
                        | SpritesError::RateLimited { .. }
                );
                if !worth_waiting || began.elapsed() + pause >= COMES_BACK_WITHIN {
                    return Err(error.into());
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

fn parse(output: &Output) -> Result<Verified, Trouble> {
    match Verified::parse(&output.stdout) {
        Some(seen) if output.status == 0 => Ok(seen),
        _ => {
            let said: String =
                String::from_utf8_lossy(&output.stderr).chars().filter(|c| !c.is_control()).take(200).collect();
            Err(Trouble::sprite(format!("the verification ended with status {}: {said}", output.status)))
        }
    }
}

/// What only the machine from before the restore would show.
fn signs_of_before(boots_before: &[&str], seen: &Verified) -> Vec<String> {
    let mut found = Vec::new();
    if seen.canary_present {
        found.push("a canary from before the restore is still there".to_owned());
    }
    if boots_before.contains(&seen.boot.as_str()) {
        found.push("the machine was not restarted".to_owned());
    }
    found
}

/// What else a clean machine would not show.
fn contradictions(fingerprint: &str, plan: &BuildPlan, seen: &Verified, policy: &NetworkPolicy) -> Vec<String> {
    let mut found = Vec::new();
    if !same_rules(policy, &plan.policy) {
        found.push("the network policy read back differs from the one that was set".to_owned());
    }
    // A sprite of an older generation has older agents; that they are the ones it was built with, it says itself.
    let same_generation = fingerprint == plan.fingerprint;
    for (kind, version) in &plan.versions {
        match seen.agents.get(kind.name()) {
            None => found.push(format!("the agent {} is missing", kind.name())),
            Some(other) if other == "changed" || (same_generation && other != version) => {
                found.push(format!("the agent {} is not the one that was installed", kind.name()));
            }
            Some(_) => {}
        }
    }
    found
}

/// Whether two policies say the same; their order says nothing (a name matches by how exact its rule is).
pub(super) fn same_rules(a: &NetworkPolicy, b: &NetworkPolicy) -> bool {
    let key = |policy: &NetworkPolicy| {
        let mut rules: Vec<_> = policy.rules.iter().map(|rule| format!("{rule:?}")).collect();
        rules.sort();
        rules
    };
    key(a) == key(b)
}

fn allowed(policy: &NetworkPolicy) -> Vec<String> {
    let allowed = policy.rules.iter().filter(|rule| rule.action.as_deref() == Some("allow"));
    allowed
        .filter_map(|rule| rule.domain.clone().or_else(|| Some(format!("preset {}", rule.include.as_ref()?))))
        .collect()
}
