//! Text that came from outside, made fit to be shown. Pure functions, used by the terminal and by progress lines.

/// Replaces everything that a terminal would obey instead of show.
///
/// Colours (`ESC [ … m`) are taken out, since programs colour their output and mean no harm by it. Every other control
/// character is replaced by its picture, as in `␛`, so that what was tried stays visible. Newlines and tabs stay.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = colour(rest) {
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' | '\t' => out.push(c),
            '\r' if rest.starts_with('\n') => {}
            c => push_visible(&mut out, c),
        }
    }
    out
}

/// The text on one line of at most `max` characters, with the same care as [`harmless`].
pub fn one_line(text: &str, max: usize) -> String {
    let text = harmless(text);
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > 4 * max {
            break; // Longer than `max` characters, whatever they are.
        }
    }
    if line.chars().count() <= max {
        return line;
    }
    let mut short: String = line.chars().take(max.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// What follows a colour sequence at the start of `text`, if one is there.
fn colour(text: &str) -> Option<&str> {
    let arguments = text.strip_prefix("\u{1b}[")?;
    let end = arguments.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    arguments[end..].strip_prefix('m')
}

fn push_visible(out: &mut String, c: char) {
    match c {
        '\0'..='\u{1f}' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
        '\u{7f}' => out.push('␡'),
        // C1 controls: some terminals take U+009B for `ESC [`.
        '\u{80}'..='\u{9f}' => out.push('\u{fffd}'),
        // Overrides of the writing direction make text read as something else than it is.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn colours_vanish_and_other_sequences_become_visible() {
        for (given, shown) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\u{1b}[1;31mred\u{1b}[0m", "red"),
            ("\u{1b}[2Jgone", "␛[2Jgone"),
            ("\u{1b}]0;title\u{7}", "␛]0;title␇"),
            ("\u{1b}[31", "␛[31"),
            ("a\r\nb", "a\nb"),
            ("safe\rfake", "safe␍fake"),
            ("\u{9b}2J", "\u{fffd}2J"),
            ("abc\u{202e}cba", "abc\u{fffd}cba"),
        ] {
            assert_eq!(harmless(given), shown, "{given:?}");
        }
    }

    #[test]
    fn one_line_joins_lines_and_says_that_it_was_cut() {
        assert_eq!(one_line("  a\n\n b\tc ", 10), "a b c");
        assert_eq!(one_line("äöü äöü äöü", 5), "äöü …");
        assert_eq!(one_line("exact", 5), "exact");
    }

    proptest! {
        #[test]
        fn no_control_character_survives(text in any::<String>(), wild in "[\u{0}-\u{9f}\\[\\]0-9;mJ]{0,40}") {
            for text in [text, wild] {
                prop_assert!(harmless(&text).chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
                let line = one_line(&text, 20);
                prop_assert!(line.chars().count() <= 20 && !line.chars().any(char::is_control));
            }
        }
    }
}
