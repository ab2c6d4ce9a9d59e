//! Texts that people typed into Slack, as they typed them. Pure.

/// What somebody typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    pub text: String,
    pub names_me: bool,
    pub begins_with_other: bool,
}

/// Longest `<…>` that is taken for one of Slack's marks; Slack's own are links at most.
const MAX_TOKEN: usize = 4096;

/// Undoes Slack's marks: `<@U1>`, `<#C1|name>`, `<url|label>`, `<!here>` and the three entities, each once. The name of
/// `me` is left out.
pub fn of_person(raw: &str, me: &str) -> Typed {
    let mut out = String::with_capacity(raw.len());
    let (mut names_me, mut begins_with_other) = (false, false);
    let mut rest = raw;
    while let Some(at) = rest.find('<') {
        out.push_str(&decoded(&rest[..at]));
        let token = rest[at + 1..].find('>').filter(|end| *end <= MAX_TOKEN).map(|end| &rest[at + 1..at + 1 + end]);
        // A `<` that somebody typed arrives as `&lt;`, so one without its end is Slack's mistake, and kept.
        let Some(token) = token.filter(|token| !token.contains('<')) else {
            out.push('<');
            rest = &rest[at + 1..];
            continue;
        };
        rest = &rest[at + 1 + token.len() + 1..];
        match person(token) {
            Some((user, _)) if user == me => {
                names_me = true;
                rest = rest.strip_prefix(' ').unwrap_or(rest);
            }
            Some((user, name)) => {
                begins_with_other |= out.trim().is_empty() && !names_me;
                out.push('@');
                out.push_str(&decoded(name.unwrap_or(user)));
            }
            None => out.push_str(&mark(token)),
        }
    }
    out.push_str(&decoded(rest));
    Typed { text: out.trim().to_owned(), names_me, begins_with_other }
}

fn person(token: &str) -> Option<(&str, Option<&str>)> {
    let token = token.strip_prefix('@')?;
    Some(match token.split_once('|') {
        Some((user, name)) => (user, Some(name)),
        None => (token, None),
    })
}

/// A channel, group, call or link as text.
fn mark(token: &str) -> String {
    let (target, label) = match token.split_once('|') {
        Some((target, label)) => (target, Some(label)),
        None => (token, None),
    };
    if let Some(channel) = target.strip_prefix('#') {
        return format!("#{}", decoded(label.filter(|label| !label.is_empty()).unwrap_or(channel)));
    }
    if let Some(call) = target.strip_prefix('!') {
        let name = label.unwrap_or(call);
        return format!("@{}", decoded(name.strip_prefix('@').unwrap_or(name)));
    }
    let (target, label) = (decoded(target), label.map(decoded));
    let bare = target.strip_prefix("mailto:").or_else(|| target.strip_prefix("tel:")).unwrap_or(&target);
    match label {
        // Slack makes links of what looks like one; the label is what was typed.
        Some(label) if bare == label || bare.trim_end_matches('/') == label => label,
        Some(label) if bare.split_once("://").is_some_and(|(_, rest)| rest.trim_end_matches('/') == label) => label,
        Some(label) => format!("{label} ({target})"),
        None => target,
    }
}

/// The three entities, decoded once: `&amp;lt;` was typed as `&lt;`.
fn decoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let entity =
            [("&amp;", '&'), ("&lt;", '<'), ("&gt;", '>')].into_iter().find(|(name, _)| rest.starts_with(name));
        let (len, plain) = entity.map_or((1, '&'), |(name, plain)| (name.len(), plain));
        out.push(plain);
        rest = &rest[len..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(raw: &str) -> String {
        of_person(raw, "UJANE").text
    }

    #[test]
    fn marks_become_what_was_typed() {
        for (raw, typed) in [
            ("<@UJANE> echo a &amp;&amp; echo b &gt; c", "echo a && echo b > c"),
            ("hey <@UJANE|jane>, look", "hey , look"),
            ("ask <@U2> or <@U3|bob>", "ask @U2 or @bob"),
            ("in <#C1|general> and <#C2>", "in #general and #C2"),
            ("<!here> <!subteam^S1|@devs> <!channel>", "@here @devs @channel"),
            ("see <https://x.test/a?b=1&amp;c=2>", "see https://x.test/a?b=1&c=2"),
            ("see <https://x.test|the page>", "see the page (https://x.test)"),
            ("go to <http://x.test|x.test>", "go to x.test"),
            ("<mailto:a@x.test|a@x.test>", "a@x.test"),
            ("typed &amp;lt; once", "typed &lt; once"),
            ("if a &lt; b; then", "if a < b; then"),
            ("a < b with <no end", "a < b with <no end"),
        ] {
            assert_eq!(text(raw), typed, "{raw}");
        }
    }

    #[test]
    fn names_are_told_apart() {
        let typed = of_person("<@U2> can you, or <@UJANE>?", "UJANE");
        assert!(typed.names_me && typed.begins_with_other);
        let typed = of_person("<@UJANE> tell <@U2> hello", "UJANE");
        assert!(typed.names_me && !typed.begins_with_other);
    }

    proptest! {
        #[test]
        fn what_was_typed_comes_back(typed in "[a-z&;<> \n]{0,40}") {
            let raw = typed.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            prop_assert_eq!(text(&raw), typed.trim());
        }

        #[test]
        fn no_input_is_too_strange(raw in "[<>@#!|&;a-zU1\u{e4} ]{0,80}") {
            let _ = of_person(&raw, "UJANE");
        }
    }
}
