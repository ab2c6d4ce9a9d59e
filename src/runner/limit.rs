//! What a job may use when it starts: its own limits, and what is left of its requester's day.

use jiff::SignedDuration;

use super::Context;
use super::build::{Access, BuildPlan};
use crate::agent::Usage;
use crate::config::UsageLimits;
use crate::job::JobSpec;
use crate::journal::Journal;
use crate::journal::usage::Together;
use crate::pool::NotStarted;
use crate::sprites::Sprites;
use crate::vault::budget::{Budget, Reached, Spent};
use crate::vault::meter::Tokens;

/// What "a day" is: the last 24 hours, so that nobody waits for a midnight that is somebody else's.
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// The budget of a job, or why it may not start.
pub(super) async fn budget<S: Sprites, J: Journal>(
    context: &Context<S, J>,
    plan: &BuildPlan,
    spec: &JobSpec,
) -> Result<Budget, NotStarted> {
    let limits = &plan.limits;
    if limits.jobs_per_day.is_none() && limits.tokens_per_day.is_none() {
        return Ok(decide(limits, Together::default(), 0)?);
    }
    let since = context.world.now().saturating_sub(DAY).unwrap_or_default();
    let used = context.journal.used_since(&spec.requester, since).await;
    let used = used.map_err(|error| NotStarted::Journal { message: error.to_string() })?;
    let running = match &plan.access {
        Access::Vault(vault) => vault.passes().used_by(&spec.requester),
        Access::Direct(_) => 0,
    };
    Ok(decide(limits, used, running)?)
}

/// A requester's day is used up. In words for the requester.
#[derive(Debug, PartialEq, Eq)]
struct UsedUp(String);

impl From<UsedUp> for NotStarted {
    fn from(UsedUp(message): UsedUp) -> Self {
        Self::OverLimit { message }
    }
}

fn decide(limits: &UsageLimits, used: Together, running: u64) -> Result<Budget, UsedUp> {
    if let Some(limit) = limits.jobs_per_day.filter(|limit| used.jobs >= *limit) {
        return Err(UsedUp(format!(
            "you have started {} jobs in the last 24 hours, and {limit} are allowed",
            used.jobs
        )));
    }
    let tokens = used.tokens.saturating_add(running);
    let left = limits.tokens_per_day.map(|limit| limit.saturating_sub(tokens));
    if let (Some(limit), Some(0)) = (limits.tokens_per_day, left) {
        return Err(UsedUp(format!(
            "your jobs have used {tokens} tokens in the last 24 hours, and {limit} are allowed"
        )));
    }
    Ok(Budget { turns: limits.turns_per_job, tokens: limits.tokens_per_job, day_tokens: left })
}

/// The limit that a run has passed by its agent's own account.
pub(super) fn passed(budget: &Budget, usage: &Usage) -> Option<Reached> {
    let Usage { turns, input_tokens: input, cached_input_tokens: cached, output_tokens: output, .. } = *usage;
    budget.is_exceeded(&Spent { turns, tokens: Tokens { input, cached, output } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_that_is_used_up_refuses_and_one_that_is_not_leaves_a_budget() {
        let limits = UsageLimits {
            turns_per_job: Some(3),
            tokens_per_job: Some(1000),
            jobs_per_day: Some(2),
            tokens_per_day: Some(500),
        };
        let used = |jobs, tokens| Together { jobs, tokens };
        let budget = decide(&limits, used(1, 100), 150).unwrap();
        assert_eq!(budget, Budget { turns: Some(3), tokens: Some(1000), day_tokens: Some(250) });
        assert!(decide(&limits, used(2, 0), 0).unwrap_err().0.contains("2 jobs"));
        assert!(decide(&limits, used(0, 400), 100).unwrap_err().0.contains("500 tokens"));
        assert_eq!(decide(&UsageLimits::default(), used(u64::MAX, u64::MAX), u64::MAX), Ok(Budget::default()));
    }
}
