//! Markdown, as agents write it, turned into what Slack renders, and made harmless. Pure.
//!
//! Slack obeys `<…>` in a text wherever it stands: `<!channel>` rings for everybody, `<https://a|b>` shows one address and
//! leads to another. So the three characters that these are made of are replaced everywhere, in code as well (Slack shows
//! the entities as what they stand for), and the only `<` that go out are around addresses that were found in the text, which
//! are shown as they are. Text objects are sent as `verbatim`, so that Slack looks for nothing else by itself.

mod inline;
mod table;

use serde_json::{Value, json};

use crate::chat::Button;
use crate::chat::split::split;

/// Characters of Markdown in one message. Were each to become an entity of five, the message would still be below the
/// 13,200 or so at which Slack refuses all blocks together.
pub const MAX_MARKDOWN: usize = 2400;

/// Slack's limit of a section's text.
const MAX_SECTION: usize = 3000;

/// So many characters of Markdown fit into a section whatever they are.
const SURE: usize = MAX_SECTION / 5;

/// The Markdown as `mrkdwn` texts of one section each. An empty text has one, since a message must have something.
pub fn sections(markdown: &str) -> Vec<String> {
    let mut done = Vec::new();
    fit(markdown, MAX_MARKDOWN, &mut done);
    if done.is_empty() {
        done.push("…".into());
    }
    done
}

fn fit(markdown: &str, max: usize, done: &mut Vec<String>) {
    for piece in split(markdown, max) {
        let text = mrkdwn(&piece);
        match text.chars().count() {
            0..=MAX_SECTION => done.push(text),
            _ if max <= SURE => done.push(escaped(&piece)),
            _ => fit(&piece, (max / 2).max(SURE), done),
        }
    }
}

/// A message's blocks: its text, and its buttons below.
pub fn blocks(sections: &[String], buttons: &[Button]) -> Value {
    let text = |text: &String| json!({ "type": "section", "expand": true, "text": { "type": "mrkdwn", "text": text, "verbatim": true } });
    let mut blocks: Vec<Value> = sections.iter().map(text).collect();
    if !buttons.is_empty() {
        let elements: Vec<_> = buttons.iter().map(element).collect();
        blocks.push(json!({ "type": "actions", "elements": elements }));
    }
    blocks.into()
}

fn element(button: &Button) -> Value {
    let text = json!({ "type": "plain_text", "text": button.action.label() });
    // Within one message an action's name may occur only once.
    json!({ "type": "button", "action_id": button.id(), "value": button.id(), "text": text })
}

/// `&`, `<` and `>` as entities, in an order in which none is replaced twice.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The Markdown as Slack's `mrkdwn`.
pub fn mrkdwn(markdown: &str) -> String {
    let lines: Vec<&str> = markdown.lines().collect();
    let mut out = Vec::new();
    let mut fence: Option<String> = None;
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        if let Some(run) = &fence {
            if line.trim().starts_with(run.as_str()) && line.trim().trim_matches(['`', '~']).is_empty() {
                out.push("```".into());
                fence = None;
            } else {
                out.push(code(line));
            }
            continue;
        }
        if let Some(run) = opener(line) {
            // What stands behind it, as in `rust`, would be shown as a line of code.
            out.push("```".into());
            fence = Some(run);
            continue;
        }
        if let Some((rows, used)) = table::read(&lines[at - 1..]) {
            out.push(table::show(&rows));
            at += used - 1;
            continue;
        }
        out.push(inline_line(line));
    }
    if fence.is_some() {
        out.push("```".into());
    }
    out.join("\n")
}

/// The run of characters that opens a fence on this line.
fn opener(line: &str) -> Option<String> {
    let line = line.trim_start();
    let first = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let run: String = line.chars().take_while(|c| *c == first).collect();
    // A line like ```a``` is a span.
    (run.len() >= 3 && !line[run.len()..].contains('`')).then_some(run)
}

/// A line of code in a fence, which it must not close.
fn code(line: &str) -> String {
    escaped(&line.replace("```", "`\u{200b}`\u{200b}`"))
}

fn inline_line(line: &str) -> String {
    let body = line.trim_start();
    let indent = &line[..line.len() - body.len()];
    if let Some(quoted) = body.strip_prefix('>') {
        return format!(">{}", inline::spans(quoted));
    }
    let hashes = body.bytes().take_while(|byte| *byte == b'#').count();
    if (1..=6).contains(&hashes)
        && let Some(title) = body[hashes..].strip_prefix(' ')
    {
        let title = title.trim().trim_end_matches('#').trim_end();
        return match inline::bare(title) {
            title if title.is_empty() => String::new(),
            title => format!("*{title}*"),
        };
    }
    let is_rule = |mark: char| {
        body.chars().filter(|c| !c.is_whitespace()).count() >= 3 && body.chars().all(|c| c == mark || c == ' ')
    };
    if is_rule('-') || is_rule('*') || is_rule('_') {
        return "──────────".into();
    }
    if let Some(item) = ["- ", "* ", "+ "].iter().find_map(|mark| body.strip_prefix(mark)) {
        let (mark, item) = match (item.strip_prefix("[ ] "), item.strip_prefix("[x] ").or(item.strip_prefix("[X] "))) {
            (Some(open), _) => ("☐", open),
            (None, Some(done)) => ("☑", done),
            (None, None) => ("•", item),
        };
        return format!("{indent}{mark} {}", inline::spans(item));
    }
    format!("{indent}{}", inline::spans(body))
}

#[cfg(test)]
mod tests;
