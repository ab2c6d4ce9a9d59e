use proptest::prelude::*;

use super::*;

#[test]
fn markdown_becomes_what_slack_renders() {
    for (markdown, expected) in [
        ("plain", "plain"),
        ("**bold** and *it* and ~~gone~~", "*bold* and _it_ and ~gone~"),
        ("__bold__ and _it_ and ***both***", "*bold* and _it_ and *_both_*"),
        ("snake_case_name and 2*3*4", "snake_case_name and 2*3*4"),
        ("# Title **x**", "*Title x*"),
        ("- one\n  * two\n- [x] done\n- [ ] open", "• one\n  • two\n☑ done\n☐ open"),
        ("> quoted `a<b`", "> quoted `a&lt;b`"),
        ("---", "──────────"),
        ("see [the docs](https://x.test/a?b=1&c=2)", "see the docs (<https://x.test/a?b=1&amp;c=2>)"),
        ("![alt](https://x.test/i.png)", "alt (<https://x.test/i.png>)"),
        ("[https://x.test](https://x.test)", "<https://x.test>"),
        ("go to https://x.test/a.", "go to <https://x.test/a>."),
        ("[click](javascript:alert)", "click (javascript:alert)"),
        ("```rust\nif a < b && c {}\n```", "```\nif a &lt; b &amp;&amp; c {}\n```"),
        ("~~~\n```\n~~~", "```\n`\u{200b}`\u{200b}`\n```"),
        ("`a & b`", "`a &amp; b`"),
        ("\\*not bold\\*", "*not bold*"),
        ("1. first\n2. second", "1. first\n2. second"),
    ] {
        assert_eq!(mrkdwn(markdown), expected, "{markdown}");
    }
}

#[test]
fn nobody_is_pinged_and_no_link_lies() {
    for hostile in [
        "<!channel>",
        "<!here|x>",
        "<!everyone>",
        "<!subteam^S1|@all>",
        "<@U1>",
        "<#C1>",
        "<https://evil.test|https://bank.test>",
        "`<!channel>`",
        "```\n<!channel>\n```",
        "**<!here>**",
        "[<!channel>](https://x.test)",
        "[a](<https://x.test|b>)",
        "https://x.test|<!here>",
        "# <!channel>",
        "| <!here> |\n| --- |\n| <@U1> |",
        "> <!channel>",
        "<date^1^{date}|x>",
    ] {
        for section in sections(hostile) {
            let mut rest = section.as_str();
            while let Some(at) = rest.find('<') {
                let end = rest[at..].find('>').expect("an address ends");
                let address = &rest[at + 1..at + end];
                assert!(address.starts_with("http") && !address.contains('|'), "{hostile} became {section}");
                rest = &rest[at + end..];
            }
        }
    }
}

#[test]
fn tables_are_aligned_and_wide_ones_become_lists() {
    let table = "| name | size |\n|:---|---:|\n| **a** | 1 |\n| `long-name` | 1000 |\nafter";
    let expected = "```\nname      │ size\n──────────┼─────\na         │ 1\nlong-name │ 1000\n```\nafter";
    assert_eq!(mrkdwn(table), expected);
    assert_eq!(mrkdwn("| a | b |\n| c | d |"), "```\na │ b\nc │ d\n```", "one that was cut off its head");
    assert_eq!(mrkdwn("this | that"), "this | that", "no table");
    let wide = format!("| k | v |\n| --- | --- |\n| x | {} |", "word ".repeat(30));
    assert!(mrkdwn(&wide).starts_with("• *k:* x · *v:* word word"), "{}", mrkdwn(&wide));
}

#[test]
fn a_message_of_entities_fits_into_its_blocks() {
    let all = sections(&"&".repeat(MAX_MARKDOWN));
    assert!(all.len() > 1 && all.iter().all(|text| text.chars().count() <= MAX_SECTION));
    assert_eq!(all.concat().replace("&amp;", "&").chars().filter(|c| *c == '&').count(), MAX_MARKDOWN);
    assert_eq!(sections(""), ["…"]);
}

proptest! {
    #[test]
    fn every_text_fits_and_none_escapes(text in "[<>&|!@#*_~`\\[\\]()ht:/.a \n\\\\-]{0,400}") {
        let all = sections(&text);
        prop_assert!(all.iter().map(|text| text.chars().count()).sum::<usize>() <= 12_500);
        for section in all {
            prop_assert!(section.chars().count() <= MAX_SECTION);
            for (at, _) in section.match_indices('<') {
                let token = section[at + 1..].split('>').next().unwrap();
                prop_assert!(token.starts_with("http") && !token.contains(['|', '<']), "{section}");
            }
            for (at, _) in section.match_indices('&') {
                let rest = &section[at..];
                prop_assert!(["&amp;", "&lt;", "&gt;"].iter().any(|entity| rest.starts_with(entity)), "{section}");
            }
        }
    }
}
