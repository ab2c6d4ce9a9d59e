//! Cuts a stream of bytes into lines, in bounded memory.

/// Lines longer than this are skipped. An image that a tool returned is one line, so several MiB are normal.
pub const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;
/// A buffer that grew beyond this for one long line is given back afterwards.
const KEPT_BUFFER_BYTES: usize = 256 * 1024;

/// The line that is not complete yet.
#[derive(Debug)]
pub struct Lines {
    limit: usize,
    begun: Vec<u8>,
    /// The present line was found too long: it is dropped up to its end.
    skipping: bool,
    skipped: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self::new(MAX_LINE_BYTES)
    }
}

impl Lines {
    pub fn new(limit: usize) -> Self {
        Self { limit, begun: Vec::new(), skipping: false, skipped: 0 }
    }

    /// Takes the next bytes and hands each line that is complete now, without its line feed, to `line`.
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (last, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.begun.is_empty() && !self.skipping && last.len() <= self.limit {
                line(last);
            } else {
                self.begin(last);
                self.end(&mut line);
            }
            bytes = rest;
        }
        self.begin(bytes);
    }

    /// Hands over the last line, which had no line feed.
    pub fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.begun.is_empty() || self.skipping {
            self.end(&mut line);
        }
    }

    /// How many lines were too long.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn begin(&mut self, bytes: &[u8]) {
        if self.skipping || bytes.len() > self.limit - self.begun.len() {
            self.skipping = true;
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(bytes);
        }
    }

    fn end(&mut self, line: &mut impl FnMut(&[u8])) {
        if std::mem::take(&mut self.skipping) {
            self.skipped += 1;
            return;
        }
        line(&self.begun);
        self.begun.clear();
        self.begun.shrink_to(KEPT_BUFFER_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(lines: &mut Lines, chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| seen.push(line.to_vec()));
        }
        lines.finish(|line| seen.push(line.to_vec()));
        seen
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_and_the_next_one_is_read() {
        let mut lines = Lines::new(4);
        assert_eq!(all(&mut lines, &[b"ab", b"cde", b"fg\n1234\n12345\nok\n", b"toolong"]), [&b"1234"[..], b"ok"]);
        assert_eq!(lines.skipped(), 3);
        assert_eq!(lines.begun.capacity(), 0);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_where_the_stream_was_cut(text in "[ab\n]{0,60}", cuts in prop::collection::vec(0usize..60, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|c| *c <= text.len()).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            let (mut cut, mut whole) = (Lines::new(5), Lines::new(5));
            prop_assert_eq!(all(&mut cut, &chunks), all(&mut whole, &[text.as_bytes()]));
            prop_assert_eq!(cut.skipped(), whole.skipped());
        }
    }
}
