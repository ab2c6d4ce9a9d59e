//! Who a sprite belongs to. Pure.
//!
//! A sprite of the pool carries two labels: its deployment and the time of that deployment's last sign of life. A sprite
//! that another deployment has lately claimed is never touched: that would restore a machine under a running job.

use std::time::Duration;

use jiff::Timestamp;

const OWNER: &str = "janebot-owner-";
const BEAT: &str = "janebot-beat-";
/// How often a runner renews its claim.
pub const BEAT_EVERY: Duration = Duration::from_secs(30);
/// A claim that was not renewed for so long is given up: four missed beats.
const STALE_AFTER_S: i64 = 120;

/// What a sprite's labels say about us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    Ours,
    /// Nobody's, or given up.
    Free,
    /// Another deployment's, alive so many seconds ago.
    Foreign {
        owner: String,
        seconds_ago: i64,
    },
}

/// The labels that claim a sprite for `deployment` at `now`.
pub fn labels(deployment: &str, now: Timestamp) -> Vec<String> {
    vec![format!("{OWNER}{deployment}"), format!("{BEAT}{}", now.as_second())]
}

/// Reads a sprite's labels.
pub fn read(labels: &[String], deployment: &str, now: Timestamp) -> Claim {
    let Some(owner) = labels.iter().find_map(|label| label.strip_prefix(OWNER)) else { return Claim::Free };
    if owner == deployment {
        return Claim::Ours;
    }
    let beat = labels.iter().find_map(|label| label.strip_prefix(BEAT)?.parse::<i64>().ok());
    match beat.map(|beat| now.as_second().saturating_sub(beat)) {
        Some(seconds_ago) if seconds_ago < STALE_AFTER_S => Claim::Foreign { owner: owner.to_owned(), seconds_ago },
        _ => Claim::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_holds_until_it_is_not_renewed() {
        let then = Timestamp::from_second(1_790_000_000).unwrap();
        let at = |seconds: i64| then + jiff::SignedDuration::from_secs(seconds);
        let claimed = labels("dep-a", then);
        assert_eq!(read(&claimed, "dep-a", at(10_000)), Claim::Ours);
        let foreign = |seconds_ago| Claim::Foreign { owner: "dep-a".into(), seconds_ago };
        assert_eq!(read(&claimed, "dep-b", at(119)), foreign(119));
        assert_eq!(read(&claimed, "dep-b", at(-5)), foreign(-5), "clocks that differ do not void a claim");
        assert_eq!(read(&claimed, "dep-b", at(120)), Claim::Free);
        assert_eq!(read(&[], "dep-b", at(0)), Claim::Free);
        assert_eq!(
            read(&["janebot-owner-dep-a".into()], "dep-b", at(0)),
            Claim::Free,
            "a claim without a beat is given up"
        );
    }
}
