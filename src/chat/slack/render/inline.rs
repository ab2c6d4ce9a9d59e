//! What stands within a line: emphasis, code, links.

use super::escaped;

/// The line with Slack's marks in place of Markdown's.
pub fn spans(line: &str) -> String {
    Spans { out: String::with_capacity(line.len() + 16), plain: false }.all(line)
}

/// The line for a place that is emphasised already: without emphasis, which does not nest.
pub fn bare(line: &str) -> String {
    Spans { out: String::with_capacity(line.len() + 16), plain: true }.all(line)
}

struct Spans {
    out: String,
    /// Leaves emphasis out.
    plain: bool,
}

impl Spans {
    fn all(mut self, line: &str) -> String {
        let mut rest = line;
        let mut before = ' ';
        while let Some(c) = rest.chars().next() {
            let taken = match c {
                '\\' => self.backslash(rest),
                '`' => self.code(rest),
                '*' | '_' | '~' => self.emphasis(rest, before),
                '[' | '!' => self.link(rest),
                'h' | 'H' if !before.is_alphanumeric() => self.address(rest),
                _ => 0,
            };
            let taken = match taken {
                0 => {
                    self.push(c);
                    c.len_utf8()
                }
                taken => taken,
            };
            before = rest[..taken].chars().next_back().unwrap_or(c);
            rest = &rest[taken..];
        }
        self.out
    }

    fn push(&mut self, c: char) {
        match c {
            '&' => self.out.push_str("&amp;"),
            '<' => self.out.push_str("&lt;"),
            '>' => self.out.push_str("&gt;"),
            c => self.out.push(c),
        }
    }

    /// A mark that is meant as itself.
    fn backslash(&mut self, rest: &str) -> usize {
        match rest[1..].chars().next().filter(|c| "\\`*_~[]()#+-.!|<>".contains(*c)) {
            Some(c) => {
                self.push(c);
                1 + c.len_utf8()
            }
            None => 0,
        }
    }

    /// A span of code. Its content is not looked into.
    fn code(&mut self, rest: &str) -> usize {
        let run = rest.bytes().take_while(|byte| *byte == b'`').count();
        let (ticks, inside) = rest.split_at(run);
        let Some(end) = inside.find(ticks) else {
            self.out.push_str(ticks);
            return run;
        };
        let content = inside[..end].trim();
        // Slack's spans have one tick, so none can be inside.
        self.out.push('`');
        self.out.push_str(&escaped(&content.replace('`', "ˋ")));
        self.out.push('`');
        run + end + run
    }

    /// `**a**` and `__a__` are `*a*`; `*a*` and `_a_` are `_a_`; `~~a~~` is `~a~`.
    fn emphasis(&mut self, rest: &str, before: char) -> usize {
        for (mark, with) in [("***", "*_"), ("**", "*"), ("__", "*"), ("~~", "~"), ("*", "_"), ("_", "_")] {
            let Some(inside) = rest.strip_prefix(mark) else { continue };
            let Some(end) = inside.find(mark) else { continue };
            let (content, after) = (&inside[..end], &inside[end + mark.len()..]);
            // Marks within a word, as in `snake_case` and `a*b*c`, are letters.
            let opens = !before.is_alphanumeric() && !content.starts_with(char::is_whitespace);
            let closes = !content.ends_with(char::is_whitespace) && !after.starts_with(char::is_alphanumeric);
            if !opens || !closes || content.trim().is_empty() || content.starts_with(['*', '_', '~']) {
                continue;
            }
            let content = if self.plain { bare(content) } else { spans(content) };
            match self.plain {
                true => self.out.push_str(&content),
                false => {
                    let back: String = with.chars().rev().collect();
                    self.out.push_str(&format!("{with}{content}{back}"));
                }
            }
            return mark.len() + end + mark.len();
        }
        let mark = rest.chars().next().unwrap_or('*');
        let run = rest.chars().take_while(|c| *c == mark).count();
        self.out.push_str(&rest[..run]);
        run
    }

    /// `[label](address)` and `![label](address)`, with both to be seen.
    fn link(&mut self, rest: &str) -> usize {
        let start = usize::from(rest.starts_with('!'));
        let Some(inside) = rest[start..].strip_prefix('[') else { return 0 };
        let Some((label, behind)) = inside.split_once("](") else { return 0 };
        let Some((target, _)) = behind.split_once(')') else { return 0 };
        if label.contains(['[', '\n']) || target.is_empty() {
            return 0;
        }
        let address = target.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']);
        let shown = if self.plain { bare(label) } else { spans(label) };
        if !shown.is_empty() && label.trim() != address {
            self.out.push_str(&shown);
            self.out.push_str(" (");
            self.name(address);
            self.out.push(')');
        } else {
            self.name(address);
        }
        start + 1 + label.len() + 2 + target.len() + 1
    }

    /// An address in plain text.
    fn address(&mut self, rest: &str) -> usize {
        let is = |start: &str| rest.get(..start.len()).is_some_and(|text| text.eq_ignore_ascii_case(start));
        if !is("https://") && !is("http://") {
            return 0;
        }
        let end = rest.find(|c: char| c.is_whitespace() || c.is_control() || "<>\"|`*[]{}\\^".contains(c));
        let address =
            rest[..end.unwrap_or(rest.len())].trim_end_matches(['.', ',', ';', ':', '!', '?', '\'', ')', '_', '~']);
        if address.ends_with("//") {
            return 0;
        }
        self.name(address);
        address.len()
    }

    /// An address, to be followed if it is one of the web, shown as it is.
    fn name(&mut self, address: &str) {
        let is_web = ["https://", "http://"].iter().any(|start| address.to_ascii_lowercase().starts_with(start));
        let fits = !address.contains(|c: char| c.is_whitespace() || c.is_control() || "<>|".contains(c));
        match is_web && fits {
            true => self.out.push_str(&format!("<{}>", escaped(address))),
            false => self.out.push_str(&escaped(address)),
        }
    }
}
