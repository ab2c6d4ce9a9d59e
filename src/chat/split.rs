//! Long texts in pieces that a chat takes. Pure.
//!
//! A piece ends where a line does, as long as lines are short enough. A fence that is cut is closed at the end of the
//! piece and opened again in the next one, with the same words behind it.

/// Characters of a fence's first line that are repeated in the next piece.
const MAX_OPENER: usize = 40;

/// The text in pieces of at most `max` characters, which must be at least [`super::MIN_MESSAGE_CHARS`]. A text without a
/// visible character is no piece.
pub fn split(text: &str, max: usize) -> Vec<String> {
    let mut pieces = Pieces { max, done: Vec::new(), piece: String::new(), chars: 0, fence: None };
    for line in text.lines() {
        pieces.line(line);
    }
    pieces.flush();
    pieces.done
}

struct Fence {
    /// As in "```" or "~~~~".
    run: String,
    opener: String,
}

struct Pieces {
    max: usize,
    done: Vec<String>,
    piece: String,
    chars: usize,
    fence: Option<Fence>,
}

impl Pieces {
    fn line(&mut self, line: &str) {
        let mut rest = line;
        loop {
            let room = self.room();
            let needed = rest.chars().count();
            if needed <= room {
                break;
            }
            if self.has_content() {
                self.flush();
                continue;
            }
            let cut = cut_at(rest, room);
            self.push(&rest[..cut]);
            rest = rest[cut..].trim_start_matches(' ');
            self.flush();
        }
        self.push(rest);
        self.follow_fence(line);
    }

    /// Characters that another line may have.
    fn room(&self) -> usize {
        let closing = self.fence.as_ref().map_or(0, |fence| fence.run.chars().count() + 1);
        // A line may open a fence that has to be closed in this piece.
        self.max.saturating_sub(self.chars + 1 + closing.max(MAX_OPENER))
    }

    /// Whether there is more in the piece than the fence that it repeats.
    fn has_content(&self) -> bool {
        let opener = self.fence.as_ref().map_or("", |fence| fence.opener.as_str());
        let piece = self.piece.trim();
        !piece.is_empty() && piece != opener.trim()
    }

    fn push(&mut self, line: &str) {
        if !self.piece.is_empty() {
            self.piece.push('\n');
            self.chars += 1;
        }
        self.piece.push_str(line);
        self.chars += line.chars().count();
    }

    fn follow_fence(&mut self, line: &str) {
        let line = line.trim();
        let Some(first) = line.chars().next().filter(|c| matches!(c, '`' | '~')) else { return };
        let run: String = line.chars().take_while(|c| *c == first).take(MAX_OPENER / 2).collect();
        if run.len() < 3 {
            return;
        }
        match &self.fence {
            None => {
                let opener = if line.chars().count() <= MAX_OPENER { line.to_owned() } else { run.clone() };
                self.fence = Some(Fence { run, opener });
            }
            Some(fence) if fence.run.starts_with(first) && run.len() >= fence.run.len() && line == run => {
                self.fence = None;
            }
            Some(_) => {}
        }
    }

    fn flush(&mut self) {
        if self.has_content() {
            let mut piece = std::mem::take(&mut self.piece);
            if let Some(fence) = &self.fence {
                piece.push('\n');
                piece.push_str(&fence.run);
            }
            let piece = piece.trim_matches('\n').trim_end();
            self.done.push(piece.to_owned());
        }
        self.piece.clear();
        self.chars = 0;
        if let Some(fence) = &self.fence {
            self.piece.push_str(&fence.opener);
            self.chars = fence.opener.chars().count();
        }
    }
}

/// Where to cut a line that is too long: behind the last space, if there is one in the last half of `room` characters.
fn cut_at(line: &str, room: usize) -> usize {
    let end = line.char_indices().nth(room.max(1)).map_or(line.len(), |(at, _)| at);
    match line[..end].rfind(' ') {
        Some(space) if space > end / 2 => space + 1,
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_text_is_one_piece_and_an_empty_one_is_none() {
        assert_eq!(split("hello\n\nyou", 140), ["hello\n\nyou"]);
        assert_eq!(split(" \n\n", 140), Vec::<String>::new());
        assert_eq!(split("```\ncode\n```", 140), ["```\ncode\n```"]);
    }

    #[test]
    fn a_fence_that_is_cut_is_closed_and_opened_again() {
        let code = (0..12).map(|n| format!("line {n} of the code\n")).collect::<String>();
        let pieces = split(&format!("Look:\n```rust\n{code}```\nThat was it."), 140);
        assert!(pieces.len() > 2, "{pieces:?}");
        assert!(pieces[0].starts_with("Look:\n```rust\nline 0") && pieces[0].ends_with("\n```"), "{pieces:?}");
        assert!(pieces[1].starts_with("```rust\nline ") && pieces[1].ends_with("\n```"), "{pieces:?}");
        assert!(pieces.last().is_some_and(|last| last.ends_with("That was it.")), "{pieces:?}");
        assert!(pieces.iter().all(|piece| piece.matches("```").count() % 2 == 0), "{pieces:?}");
    }

    #[test]
    fn a_long_line_is_cut_between_words() {
        let pieces = split(&"words and more words ".repeat(30), 140);
        assert!(
            pieces.len() > 4
                && pieces
                    .iter()
                    .all(|piece| piece.ends_with("words") || piece.ends_with("and") || piece.ends_with("more")),
            "{pieces:?}"
        );
    }

    proptest! {
        #[test]
        fn no_piece_is_too_long_and_nothing_is_lost(
            lines in prop::collection::vec("(```[a-z]{0,3}|~~~|`{3,5}|[a-zäö ]{0,300}|[a-z]{0,20})", 0..20),
            max in 140..400usize,
        ) {
            let text = lines.join("\n");
            let pieces = split(&text, max);
            prop_assert!(pieces.iter().all(|piece| piece.chars().count() <= max), "{:?}", pieces);
            // Fences may be repeated; all else is there once and in order.
            let bare = |text: &str| -> String {
                let is_fence = |line: &&str| line.trim().starts_with("```") || line.trim().starts_with("~~~");
                let lines = text.lines().filter(|line| !is_fence(line));
                lines.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
            };
            prop_assert_eq!(bare(&pieces.join("\n")), bare(&text));
        }
    }
}
