//! Making an agent's text fit to be shown: untrusted bytes in, bounded harmless text out. Used by the readers.

use std::collections::VecDeque;

/// The printable part of `text`: without ANSI escape sequences, control characters (line feed and tab stay) and the
/// invisible characters that reorder what is written around them.
pub fn visible(text: &str) -> impl Iterator<Item = char> + '_ {
    let mut chars = text.chars().peekable();
    std::iter::from_fn(move || {
        loop {
            let c = chars.next()?;
            if c == '\u{1b}' {
                match chars.next_if(|c| *c != '\n')? {
                    // CSI: parameters up to a final byte.
                    '[' => while chars.next_if(|c| *c != '\n').is_some_and(|c| !('@'..='~').contains(&c)) {},
                    // OSC, as in window titles and links: up to BEL or ESC \.
                    ']' => while chars.next_if(|c| *c != '\n').is_some_and(|c| c != '\u{7}' && c != '\\') {},
                    _ => {}
                }
            } else if c == '\n' || c == '\t' || !(c.is_control() || reorders(c)) {
                return Some(c);
            }
        }
    })
}

fn reorders(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` on one line of at most `max` characters, each run of white space one blank; `…` marks what was cut.
pub fn one_line(text: &str, max: usize) -> String {
    let mut line = String::new();
    let mut len = 0;
    let mut blank = false;
    for c in visible(text) {
        if c.is_whitespace() {
            blank = len > 0;
            continue;
        }
        if len + usize::from(blank) >= max {
            // There is more than fits: the mark takes the last place.
            if len == max {
                line.pop();
            }
            line.push('…');
            return line;
        }
        if std::mem::take(&mut blank) {
            line.push(' ');
            len += 1;
        }
        line.push(c);
        len += 1;
    }
    line
}

/// At most `max` bytes of `text`, cut between characters.
pub fn cut(text: &mut String, max: usize) -> bool {
    let too_long = text.len() > max;
    text.truncate(text.floor_char_boundary(max));
    too_long
}

/// The first and the last bytes of a stream, each up to half of a limit. Memory is bounded by the limit.
#[derive(Debug)]
pub struct Ends {
    half: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl Ends {
    pub fn new(limit: usize) -> Self {
        Self { half: limit / 2, head: Vec::new(), tail: VecDeque::new(), dropped: 0 }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(self.half - self.head.len()));
        self.head.extend_from_slice(head);
        // What a chunk pushes out again need not be copied in first.
        let skipped = rest.len().saturating_sub(self.half);
        let rest = &rest[skipped..];
        let overflow = (self.tail.len() + rest.len()).saturating_sub(self.half);
        self.tail.drain(..overflow);
        self.tail.extend(rest);
        self.dropped += (skipped + overflow) as u64;
    }

    /// Bytes that were left out of the middle.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What was kept, as text; a mark stands where something was left out.
    pub fn text(&self) -> String {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        if self.dropped == 0 {
            return String::from_utf8_lossy(&[&self.head[..], &tail].concat()).into_owned();
        }
        format!("{}\n[… {} bytes left out …]\n{}", start(&self.head), self.dropped, end(&tail))
    }
}

/// The last bytes of a stream.
#[derive(Debug)]
pub struct Tail {
    limit: usize,
    bytes: Vec<u8>,
}

impl Tail {
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: Vec::new() }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let overflow = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..overflow);
        self.bytes.extend_from_slice(bytes);
    }

    /// What was kept, as harmless text without white space around it.
    pub fn text(&self) -> String {
        let text: String = visible(&end(&self.bytes)).collect();
        text.trim().to_owned()
    }
}

/// Bytes that were cut at their end, as text: without the half of a character.
fn start(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let half =
            chunks.peek().is_none() && std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none());
        if !chunk.invalid().is_empty() && !half {
            text.push('\u{fffd}');
        }
    }
    text
}

/// Bytes that may have been cut at their start, as text: without the half of a character.
fn end(bytes: &[u8]) -> String {
    let half = bytes.iter().take(3).take_while(|b| **b & 0xc0 == 0x80).count();
    String::from_utf8_lossy(&bytes[half..]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_line_has_no_line_ends_escapes_or_controls() {
        assert_eq!(
            one_line(" cargo\n\ttest\u{1b}[31m --all\u{1b}]0;title\u{7}\0 \u{202e}now ", 120),
            "cargo test --all now"
        );
        assert_eq!(one_line("\u{1b}", 5), "");
    }

    #[test]
    fn one_line_marks_what_it_cut() {
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdefg", 6), "abcde…");
        assert_eq!(one_line("äöü ß", 4), "äöü…");
        assert_eq!(one_line("äöü   ", 3), "äöü");
    }

    #[test]
    fn ends_keep_both_ends_and_whole_characters() {
        let mut ends = Ends::new(8);
        for chunk in ["ab".as_bytes(), "cä".as_bytes(), "0123456789".as_bytes(), "öyz".as_bytes()] {
            ends.push(chunk);
        }
        // 4 bytes of head are `abc` and half of `ä`; 4 bytes of tail are `ö`, `y`, `z`.
        assert_eq!(ends.text(), "abc\n[… 11 bytes left out …]\nöyz");
    }

    proptest! {
        #[test]
        fn ends_forget_nothing_below_the_limit_and_never_hold_more(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let whole = chunks.concat();
            let (mut ends, mut tail) = (Ends::new(64), Tail::new(16));
            for chunk in &chunks {
                ends.push(chunk);
                tail.push(chunk);
                prop_assert!(ends.head.len() + ends.tail.len() <= 64 && tail.bytes.len() <= 16);
            }
            prop_assert_eq!(ends.dropped() as usize, whole.len().saturating_sub(64));
            prop_assert_eq!(&tail.bytes[..], &whole[whole.len().saturating_sub(16)..]);
            if whole.len() <= 64 {
                prop_assert_eq!(ends.text(), String::from_utf8_lossy(&whole).into_owned());
            }
            let _ = tail.text();
        }

        #[test]
        fn one_line_is_never_too_long_and_always_one_line(text in any::<String>(), max in 1usize..50) {
            let line = one_line(&text, max);
            prop_assert!(line.chars().count() <= max);
            prop_assert!(!line.chars().any(char::is_control));
        }
    }
}
