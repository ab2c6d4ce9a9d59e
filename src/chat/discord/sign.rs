//! What our own messages carry beside their text: that they ping nobody, and by which key they can be found again. Pure.
//!
//! Discord refuses a second message with the same nonce only for some minutes, and does not show the nonce later. So the
//! key's mark is in the text as well, in characters that have no width.

use sha2::{Digest as _, Sha256};

/// Four characters without width: two bits each.
const ALPHABET: [char; 4] = ['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}'];

/// Characters of a mark: 40 bits, among the hundred messages that are looked at.
const MARK_CHARS: usize = 20;

/// Longest nonce that Discord takes.
const MAX_NONCE: usize = 25;

/// Longest content that Discord takes.
pub const MAX_CONTENT: usize = 2000;

/// Characters of a text that is given to us; what is left is for the mark and for what Discord counts differently.
pub const MAX_TEXT: usize = 1900;

/// The nonce for a message with this key: the same for ever.
pub fn nonce(key: &str) -> String {
    let mut nonce = hex::encode(Sha256::digest(key));
    nonce.truncate(MAX_NONCE);
    nonce
}

/// The invisible mark of this key.
pub fn mark(key: &str) -> String {
    let hash = Sha256::digest(key);
    (0..MARK_CHARS).map(|place| ALPHABET[usize::from(hash[place / 4] >> (2 * (place % 4)) & 3)]).collect()
}

/// The text as it is sent, with the key's mark behind it.
pub fn signed(text: &str, key: &str) -> String {
    let mut content = plain(text, MAX_CONTENT - MARK_CHARS);
    content.push_str(&mark(key));
    content
}

/// Whether the content was sent with this key.
pub fn is_signed(content: &str, key: &str) -> bool {
    content.trim_end().ends_with(&mark(key))
}

/// The content without a mark.
pub fn unsigned(content: &str) -> &str {
    content.trim_end_matches(ALPHABET)
}

/// The text so that it calls nobody and leads nobody astray, at most `max` characters long, and never empty.
///
/// That it pings nobody is said beside it, in `allowed_mentions`. A call of everyone would still be shown as one, and
/// a masked link whose words are an address would show one and lead to another. No character is added.
pub fn plain(text: &str, max: usize) -> String {
    let text: String = text.replace('\0', "\u{2400}").chars().take(max).collect();
    let mut text = text.replace("@everyone", "＠everyone").replace("@here", "＠here");
    let mut from = 0;
    while let Some(found) = text[from..].find("](") {
        let at = from + found;
        let label = &text[text[..at].rfind('[').map_or(at, |start| start + 1)..at];
        if label.contains("://") || label.contains("www.") {
            text.replace_range(at..=at, "］");
        }
        from = at + 1;
        while !text.is_char_boundary(from) {
            from += 1;
        }
    }
    if text.trim_matches(|c: char| c.is_whitespace() || ALPHABET.contains(&c)).is_empty() { "…".into() } else { text }
}

/// The name of a thread for this prompt: one line that calls nobody.
pub fn title(prompt: &str) -> String {
    /// Discord takes 100; a list of threads shows fewer.
    const MAX_TITLE: usize = 80;
    let line = crate::chat::text::one_line(prompt, MAX_TITLE);
    let line: String = line.chars().map(|c| if c == '@' { '＠' } else { c }).collect();
    let line = line.replace(['<', '>', '`', '*'], "");
    if line.trim().is_empty() { "Jane".into() } else { line.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nobody_is_called_and_links_say_where_they_lead() {
        for (given, sent) in [
            ("hello @everyone and @here", "hello ＠everyone and ＠here"),
            ("see [the docs](https://example.org)", "see [the docs](https://example.org)"),
            ("[https://bank.example](https://evil.example)", "[https://bank.example］(https://evil.example)"),
            ("a\0b", "a␀b"),
            ("", "…"),
            (" \u{200b}\n", "…"),
            ("][](", "][]("),
        ] {
            assert_eq!(plain(given, 100), sent, "{given:?}");
        }
    }

    #[test]
    fn a_title_is_one_short_line() {
        assert_eq!(title("fix the <@123> **build**\n@everyone please"), "fix the ＠123 build ＠everyone please");
        assert_eq!(title(" \n "), "Jane");
        assert_eq!(title(&"long ".repeat(100)).chars().count(), 80);
    }

    #[test]
    fn a_nonce_is_as_long_as_discord_takes() {
        assert_eq!(nonce("01job/answer/0").len(), 25);
        assert_ne!(nonce("01job/answer/0"), nonce("01job/answer/1"));
    }

    proptest! {
        #[test]
        fn a_message_is_found_by_its_key_alone(text in "(?s).{0,2100}", key in "[a-z0-9/]{1,40}", other in "[a-z0-9/]{41,50}") {
            let sent = signed(&text, &key);
            prop_assert!(sent.chars().count() <= MAX_CONTENT);
            prop_assert!(!sent.contains("@everyone") && !sent.contains('\0'));
            prop_assert!(is_signed(&sent, &key) && !is_signed(&sent, &other));
            prop_assert!(!unsigned(&sent).is_empty());
        }
    }
}
