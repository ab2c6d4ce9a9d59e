//! What a network policy means: whether a name may be reached, and whether a policy is fit to be stored. Pure.
//!
//! The rules are the Sprites API's. No rule at all means no limit; with any rule, what no rule allows is denied. The
//! most specific pattern decides, whatever its place in the list: an exact name before `*.suffix` before `*`; among
//! patterns of one kind the first decides. `*.example.com` covers `example.com` itself. Rules with an unknown preset or
//! action are skipped, so that a newer client's policy still limits.

use std::net::IpAddr;

use super::presets;
use crate::sprites::{NetworkPolicy, PolicyRule};

/// Longest host name that DNS can carry, as text.
pub const MAX_NAME: usize = 253;
/// Longest part between two dots.
pub const MAX_LABEL: usize = 63;
/// Rules are read through at every connection and DNS query; nobody writes more than this by hand.
const MAX_RULES: usize = 1_000;
/// Characters of a bad rule that are repeated in the message about it.
const SHOWN: usize = 80;

/// Whether a name may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(By),
    Deny,
}

/// The kind of rule that allowed a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The policy is empty, which limits nothing.
    NoRules,
    Exact,
    Suffix,
    Any,
}

/// Decides about `name`, in any case, with or without a final dot.
pub fn decide(policy: &NetworkPolicy, name: &str) -> Decision {
    if policy.rules.is_empty() {
        return Decision::Allow(By::NoRules);
    }
    let name = without_final_dot(name);
    let (mut exact, mut suffix, mut any) = (None, None, None);
    for rule in &policy.rules {
        let Some(allows) = action(rule) else { continue };
        let preset = rule.include.as_deref().and_then(presets::find).unwrap_or_default();
        for pattern in preset.iter().copied().chain(rule.domain.as_deref()) {
            match covers(pattern, name) {
                Some(By::Exact) => exact.get_or_insert(allows),
                Some(By::Suffix) => suffix.get_or_insert(allows),
                Some(By::Any) => any.get_or_insert(allows),
                Some(By::NoRules) | None => continue,
            };
        }
    }
    let by_rank = [(exact, By::Exact), (suffix, By::Suffix), (any, By::Any)];
    match by_rank.into_iter().find_map(|(allows, by)| Some((allows?, by))) {
        Some((true, by)) => Decision::Allow(by),
        Some((false, _)) | None => Decision::Deny,
    }
}

/// Whether the rule allows (`true`) or denies; `None` for a rule to skip.
fn action(rule: &PolicyRule) -> Option<bool> {
    match rule.action.as_deref() {
        Some("allow") => Some(true),
        Some("deny") => Some(false),
        None if rule.include.is_some() && rule.domain.is_none() => Some(true),
        Some(_) | None => None,
    }
}

/// How `pattern` covers `name`, if it does.
fn covers(pattern: &str, name: &str) -> Option<By> {
    if pattern == "*" {
        return Some(By::Any);
    }
    let pattern = without_final_dot(pattern);
    let Some(suffix) = pattern.strip_prefix("*.") else {
        return pattern.eq_ignore_ascii_case(name).then_some(By::Exact);
    };
    let head = name.len().checked_sub(suffix.len())?;
    let (head, tail) = (name.get(..head)?, name.get(head..)?);
    let at_boundary = head.is_empty() || head.ends_with('.');
    (at_boundary && tail.eq_ignore_ascii_case(suffix)).then_some(By::Suffix)
}

fn without_final_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Says whether a policy can be stored.
///
/// # Errors
/// A sentence for the one who sent the policy, naming the first bad rule.
pub fn validate(policy: &NetworkPolicy) -> Result<(), String> {
    if policy.rules.len() > MAX_RULES {
        return Err(format!("the policy has {} rules; at most {MAX_RULES} are taken", policy.rules.len()));
    }
    for (index, rule) in policy.rules.iter().enumerate() {
        let number = index + 1;
        match (&rule.domain, &rule.include) {
            (None, None) => return Err(format!("rule {number} has neither a domain nor a preset to include")),
            (Some(_), Some(_)) => return Err(format!("rule {number} has both a domain and a preset; write two rules")),
            (None, Some(_)) => {}
            (Some(domain), None) => {
                if let Some(fault) = fault_in(domain) {
                    let shown: String = domain.chars().take(SHOWN).collect();
                    return Err(format!("rule {number}: the domain {shown:?} {fault}"));
                }
            }
        }
    }
    Ok(())
}

/// What is wrong with a pattern, as the rest of a sentence that begins with it.
fn fault_in(domain: &str) -> Option<String> {
    if domain == "*" {
        return None;
    }
    let name = without_final_dot(domain.strip_prefix("*.").unwrap_or(domain));
    let fault = if name.is_empty() {
        "is empty; write a name, *.name or *".to_owned()
    } else if name.contains("://") {
        "has a scheme; write only the name, as in example.com".to_owned()
    } else if is_network(name) {
        "is a network; rules take names, not addresses".to_owned()
    } else if name.contains('/') {
        "has a path; write only the name, as in example.com".to_owned()
    } else if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        "is an address; rules take names".to_owned()
    } else if name.contains(':') {
        "has a port; rules take names alone".to_owned()
    } else if name.contains('*') {
        "has a star that is not the whole first part; write *.name or *".to_owned()
    } else if name.len() > MAX_NAME {
        format!("is longer than {MAX_NAME} characters")
    } else if let Some(label) = name.split('.').find(|label| label.is_empty() || label.len() > MAX_LABEL) {
        if label.is_empty() {
            "has two dots in a row or one at the start".to_owned()
        } else {
            format!("has a part longer than {MAX_LABEL} characters")
        }
    } else if let Some(odd) = name.chars().find(|&c| !(c.is_ascii_alphanumeric() || "-_.".contains(c))) {
        format!("has the character {odd:?}; names are letters, digits, hyphens and dots (xn--… for other scripts)")
    } else {
        return None;
    };
    Some(fault)
}

fn is_network(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| address.parse::<IpAddr>().is_ok() && bits.parse::<u8>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(domain: &str, action: &str) -> PolicyRule {
        PolicyRule { domain: Some(domain.into()), include: None, action: Some(action.into()) }
    }

    fn include(preset: &str, action: Option<&str>) -> PolicyRule {
        PolicyRule { domain: None, include: Some(preset.into()), action: action.map(Into::into) }
    }

    fn policy(rules: impl IntoIterator<Item = PolicyRule>) -> NetworkPolicy {
        NetworkPolicy { rules: rules.into_iter().collect() }
    }

    fn allows(policy: &NetworkPolicy, name: &str) -> bool {
        decide(policy, name) != Decision::Deny
    }

    #[test]
    fn an_empty_policy_limits_nothing_and_any_rule_denies_the_rest() {
        assert_eq!(decide(&policy([]), "any.example"), Decision::Allow(By::NoRules));
        assert!(!allows(&policy([rule("a.example", "allow")]), "b.example"));
        assert!(!allows(&policy([rule("a.example", "deny")]), "b.example"));
        assert!(!allows(&NetworkPolicy::deny_all(), "b.example"));
    }

    #[test]
    fn the_most_specific_pattern_decides_whatever_its_place() {
        let rules = [rule("*", "deny"), rule("*.example.com", "allow"), rule("bad.example.com", "deny")];
        for rules in [rules.to_vec(), rules.iter().rev().cloned().collect()] {
            let policy = policy(rules);
            assert_eq!(decide(&policy, "good.example.com"), Decision::Allow(By::Suffix));
            assert_eq!(decide(&policy, "bad.example.com"), Decision::Deny);
            assert_eq!(decide(&policy, "x.bad.example.com"), Decision::Allow(By::Suffix));
            assert_eq!(decide(&policy, "other.com"), Decision::Deny);
        }
    }

    #[test]
    fn among_patterns_of_one_kind_the_first_decides() {
        assert!(allows(&policy([rule("a.example", "allow"), rule("A.example.", "deny")]), "a.example"));
        assert!(!allows(&policy([rule("*", "deny"), rule("*", "allow")]), "a.example"));
        let suffixes = policy([rule("*.example.com", "allow"), rule("*.deep.example.com", "deny")]);
        assert!(allows(&suffixes, "x.deep.example.com"), "a longer suffix is not more specific");
    }

    #[test]
    fn a_suffix_covers_the_apex_and_every_depth_but_no_neighbour() {
        let policy = policy([rule("*.Example.com.", "allow")]);
        for name in ["example.com", "a.example.com", "a.b.c.example.com", "A.EXAMPLE.COM.", "a.example.com."] {
            assert!(allows(&policy, name), "{name}");
        }
        for name in ["notexample.com", "example.com.evil.com", "xample.com", "com", "", ".", "example.comx"] {
            assert!(!allows(&policy, name), "{name}");
        }
    }

    #[test]
    fn an_action_applies_to_a_whole_preset_and_an_exact_rule_overrides_a_preset_suffix() {
        assert!(allows(&policy([include("defaults", None)]), "registry.npmjs.org"));
        assert!(!allows(&policy([include("defaults", None)]), "example.com"));
        let denied = policy([rule("*", "allow"), include("defaults", Some("deny"))]);
        assert!(!allows(&denied, "registry.npmjs.org"));
        assert!(allows(&denied, "example.com"));
        let first = policy([rule("registry.npmjs.org", "deny"), include("defaults", Some("allow"))]);
        assert!(!allows(&first, "registry.npmjs.org"));
    }

    #[test]
    fn unknown_presets_and_actions_are_skipped_and_still_count_as_rules() {
        for skipped in [include("nonsense", None), rule("a.example", "permit"), rule("a.example", "ALLOW")] {
            assert!(!allows(&policy([skipped.clone()]), "a.example"));
            assert!(allows(&policy([skipped, rule("a.example", "allow")]), "a.example"));
        }
        let no_action = PolicyRule { domain: Some("a.example".into()), include: None, action: None };
        assert!(!allows(&policy([no_action]), "a.example"));
    }

    #[test]
    fn a_bad_rule_is_named_in_a_sentence() {
        let long = format!("{}.com", "a.".repeat(130));
        let wide = format!("{}.com", "a".repeat(64));
        let table = [
            ("", "is empty"),
            (".", "is empty"),
            ("*.", "is empty"),
            ("a.*.com", "has a star"),
            ("*example.com", "has a star"),
            ("*.*.com", "has a star"),
            ("**", "has a star"),
            ("example.com:443", "has a port"),
            ("https://example.com", "has a scheme"),
            ("example.com/path", "has a path"),
            ("10.0.0.0/8", "is a network"),
            ("fc00::/7", "is a network"),
            ("10.0.0.1", "is an address"),
            ("[::1]", "is an address"),
            ("a..example", "has two dots"),
            (".example", "has two dots"),
            ("exam ple.com", "has the character ' '"),
            ("exämple.com", "has the character 'ä'"),
            (&long, "is longer than 253"),
            (&wide, "has a part longer than 63"),
        ];
        for (domain, fault) in table {
            let said = validate(&policy([rule("fine.example", "allow"), rule(domain, "allow")])).unwrap_err();
            assert!(said.starts_with("rule 2: the domain ") && said.contains(fault), "{domain}: {said}");
        }
        let both = PolicyRule { domain: Some("a.example".into()), include: Some("defaults".into()), action: None };
        assert!(validate(&policy([both])).unwrap_err().contains("both"));
        let neither = PolicyRule { domain: None, include: None, action: Some("allow".into()) };
        assert!(validate(&policy([neither])).unwrap_err().contains("neither"));
        assert!(validate(&policy(vec![rule("*", "deny"); MAX_RULES + 1])).is_err());
    }

    #[test]
    fn good_policies_pass_unknown_words_too() {
        for domain in [
            "*",
            "example.com",
            "*.example.com",
            "Example.COM.",
            "_acme.example.com",
            "xn--exmple-cua.com",
            "localhost",
        ] {
            assert_eq!(validate(&policy([rule(domain, "allow")])), Ok(()), "{domain}");
        }
        assert_eq!(validate(&policy([include("newer", None), rule("a.example", "permit")])), Ok(()));
        assert_eq!(validate(&policy([])), Ok(()));
        assert_eq!(validate(&NetworkPolicy::deny_all()), Ok(()));
    }

    #[test]
    fn every_pattern_of_a_preset_is_a_valid_rule_and_is_there_once() {
        let patterns = presets::find("defaults").unwrap();
        for pattern in patterns {
            assert_eq!(validate(&policy([rule(pattern, "allow")])), Ok(()), "{pattern}");
        }
        let once: std::collections::BTreeSet<_> = patterns.iter().collect();
        assert_eq!(once.len(), patterns.len());
    }

    fn a_name() -> impl Strategy<Value = String> {
        prop::collection::vec("[a-c]{1,2}", 1..4).prop_map(|labels| labels.join("."))
    }

    fn a_rule() -> impl Strategy<Value = PolicyRule> {
        let pattern = prop_oneof![a_name(), a_name().prop_map(|name| format!("*.{name}")), Just("*".to_owned())];
        (pattern, prop_oneof![Just("allow"), Just("deny"), Just("perhaps")])
            .prop_map(|(pattern, action)| rule(&pattern, action))
    }

    proptest! {
        /// The same rules, said naively: candidates by label lists, sorted by kind, the first taken.
        #[test]
        fn decisions_agree_with_a_naive_reading(rules in prop::collection::vec(a_rule(), 0..6), name in a_name()) {
            let labels: Vec<&str> = name.split('.').collect();
            let rank = |pattern: &str| match pattern.strip_prefix("*.") {
                _ if pattern == "*" => Some(2),
                Some(suffix) => labels.ends_with(&suffix.split('.').collect::<Vec<_>>()).then_some(1),
                None => (pattern == name).then_some(0),
            };
            let mut candidates: Vec<(i32, bool)> = rules
                .iter()
                .filter(|rule| rule.action.as_deref() != Some("perhaps"))
                .filter_map(|rule| Some((rank(rule.domain.as_deref()?)?, rule.action.as_deref() == Some("allow"))))
                .collect();
            candidates.sort_by_key(|&(rank, _)| rank);
            let expected = rules.is_empty() || candidates.first().is_some_and(|&(_, allows)| allows);
            prop_assert_eq!(allows(&policy(rules), &name), expected);
        }

        #[test]
        fn case_and_a_final_dot_change_nothing(rules in prop::collection::vec(a_rule(), 0..6), name in a_name()) {
            let loud = rules.iter().map(|r| PolicyRule { domain: r.domain.as_ref().map(|d| d.to_uppercase()), ..r.clone() });
            let loud = policy(loud);
            let quiet = policy(rules);
            prop_assert_eq!(decide(&quiet, &name), decide(&quiet, &format!("{}.", name.to_uppercase())));
            prop_assert_eq!(decide(&quiet, &name), decide(&loud, &name));
        }

        #[test]
        fn no_text_makes_the_matcher_or_the_validation_panic(pattern in ".{0,40}", name in ".{0,40}") {
            let policy = policy([rule(&pattern, "allow")]);
            decide(&policy, &name);
            let _ = validate(&policy);
        }
    }
}
