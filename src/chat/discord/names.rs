//! Names that come from outside: of files, and of people in texts. Pure.

/// Longest name of a file; Discord shows fewer characters.
const MAX_FILE_NAME: usize = 100;

/// The name of a file as it is sent: without folders, without what Discord or a person could read as something else.
pub fn file(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let name: String = crate::chat::text::one_line(last, MAX_FILE_NAME)
        .chars()
        .map(|c| if c.is_control() || "`\"<>|*?@".contains(c) { '_' } else { c })
        .collect();
    if name.trim_matches(['.', ' ', '_']).is_empty() { "file".into() } else { name }
}

/// The text without mentions at its start.
pub fn strip(text: &str) -> String {
    let mut rest = text.trim_start();
    while let Some(after) = rest.strip_prefix("<@") {
        let Some(end) = after.find('>').filter(|end| *end < 24) else { break };
        rest = after[end + 1..].trim_start();
    }
    rest.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_of_files_are_made_harmless() {
        for (given, name) in [
            ("report.pdf", "report.pdf"),
            ("../../etc/passwd", "passwd"),
            ("a\0b\r\n\"c`.txt", "a␀b _c_.txt"),
            ("..", "file"),
            ("", "file"),
            ("@everyone.txt", "_everyone.txt"),
        ] {
            assert_eq!(file(given), name, "{given:?}");
        }
        assert!(file(&"x".repeat(500)).chars().count() <= MAX_FILE_NAME);
    }

    #[test]
    fn mentions_at_the_start_are_left_out() {
        assert_eq!(strip("<@1> <@&2>  do <@3> it"), "do <@3> it");
        assert_eq!(strip("<@unending"), "<@unending");
    }
}
