//! Tables, which Slack's `mrkdwn` does not have: aligned in a block of code, or as a list where they are too wide.

use super::{code, inline};

/// Wider lines are broken in Slack's window, and a broken table can't be read.
const MAX_WIDTH: usize = 90;

/// A table's rows; the first is its head, if it has one.
pub struct Rows {
    head: Option<Vec<String>>,
    body: Vec<Vec<String>>,
}

/// The table that begins with the first of these lines, and how many lines it has. One that was cut off its head counts as
/// well.
pub fn read(lines: &[&str]) -> Option<(Rows, usize)> {
    let first = cells(lines.first()?)?;
    let has_head = lines.get(1).is_some_and(|line| is_border(line));
    let start = if has_head { 2 } else { 0 };
    let body: Vec<_> = lines[start..].iter().map_while(|line| cells(line)).collect();
    if !has_head && (body.len() < 2 || !lines[..body.len()].iter().all(|line| is_fenced(line))) {
        return None;
    }
    let used = start + body.len();
    let body: Vec<_> = body.into_iter().filter(|row| !row.iter().all(|cell| is_border(cell))).collect();
    Some((Rows { head: has_head.then_some(first), body }, used))
}

/// As an aligned block of code, or a list of rows.
pub fn show(rows: &Rows) -> String {
    let all: Vec<_> = rows.head.iter().chain(&rows.body).collect();
    let columns = all.iter().map(|row| row.len()).max().unwrap_or(0);
    let width = |column: usize| all.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count())).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    if widths.iter().sum::<usize>() + 3 * columns > MAX_WIDTH {
        return list(rows);
    }
    let line = |row: &Vec<String>| {
        let cell = |(at, width): (usize, &usize)| format!("{:width$}", row.get(at).map_or("", String::as_str));
        code(widths.iter().enumerate().map(cell).collect::<Vec<_>>().join(" │ ").trim_end())
    };
    let mut out = vec!["```".to_owned()];
    if let Some(head) = &rows.head {
        out.push(line(head));
        out.push(widths.iter().map(|width| "─".repeat(*width)).collect::<Vec<_>>().join("─┼─"));
    }
    out.extend(rows.body.iter().map(line));
    out.push("```".to_owned());
    out.join("\n")
}

fn list(rows: &Rows) -> String {
    let line = |row: &Vec<String>| {
        let cell = |(at, cell): (usize, &String)| {
            let name = rows.head.as_ref().and_then(|head| head.get(at)).filter(|name| !name.is_empty());
            name.map_or_else(
                || inline::spans(cell),
                |name| format!("*{}:* {}", inline::bare(name), inline::spans(cell)),
            )
        };
        let filled = row.iter().enumerate().filter(|(_, cell)| !cell.is_empty());
        format!("• {}", filled.map(cell).collect::<Vec<_>>().join(" · "))
    };
    rows.body.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn is_fenced(line: &str) -> bool {
    let line = line.trim();
    line.len() > 1 && line.starts_with('|') && line.ends_with('|')
}

/// The line between head and body, or a cell of it.
fn is_border(text: &str) -> bool {
    let text = text.trim();
    text.contains("--") && text.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '))
}

fn cells(line: &str) -> Option<Vec<String>> {
    let line = line.trim();
    if !line.contains('|') || line.starts_with("```") {
        return None;
    }
    let inside = line.strip_prefix('|').unwrap_or(line);
    let inside = inside.strip_suffix('|').filter(|rest| !rest.ends_with('\\')).unwrap_or(inside);
    let cell = |cell: &str| cell.replace('\u{1}', "|").replace("**", "").replace('`', "").trim().to_owned();
    Some(inside.replace("\\|", "\u{1}").split('|').map(cell).collect())
}
