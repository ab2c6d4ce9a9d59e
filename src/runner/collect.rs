//! Collecting the files that an agent left for the user, while the lease is held.

use std::time::Duration;

use tokio::time::timeout;

use crate::job::OutputFile;
use crate::sprites::{FileInfo, FileKind, Sprites};

/// Where an agent puts files for the user, below the sprite user's home.
pub const OUTPUT_DIR: &str = "output";
/// More files than this are not collected; chats take about ten per message.
pub const MAX_FILES: usize = 20;
/// Largest file collected, in bytes: below Discord's limit of 10 MiB for bots.
pub const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// All files of one job together, in bytes.
pub const MAX_TOTAL_BYTES: u64 = 32 * 1024 * 1024;
/// The answer waits no longer than this for its files.
const COLLECT_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Collected {
    pub files: Vec<OutputFile>,
    /// What was left out, in sentences for the user.
    pub notes: Vec<String>,
}

/// Reads the output folder. What can't be read is noted, never a failure of the job.
pub async fn collect<S: Sprites>(sprites: &S, name: &str) -> Collected {
    let mut collected = Collected::default();
    if timeout(COLLECT_WITHIN, gather(sprites, name, &mut collected)).await.is_err() {
        collected.notes.push("Collecting the output files took too long; some are missing.".into());
    }
    collected
}

async fn gather<S: Sprites>(sprites: &S, name: &str, collected: &mut Collected) {
    let listed = match sprites.list_files(name, OUTPUT_DIR, true).await {
        Ok(listed) => listed,
        Err(crate::sprites::SpritesError::NotFound { .. }) => return,
        Err(error) => return collected.notes.push(format!("The output files could not be listed: {error}.")),
    };
    let (chosen, notes) = choose(listed);
    collected.notes.extend(notes);
    for (shown, path) in chosen {
        match sprites.read_file(name, &path, MAX_FILE_BYTES).await {
            Ok(bytes) => collected.files.push(OutputFile { name: shown, size: bytes.len() as u64, bytes }),
            Err(error) => collected.notes.push(format!("The output file {shown} could not be read: {error}.")),
        }
    }
}

/// Picks the files to read, as (name to show, path to read), and says what is left out.
fn choose(mut listed: Vec<FileInfo>) -> (Vec<(String, String)>, Vec<String>) {
    listed.sort_by(|a, b| a.path.cmp(&b.path));
    let (mut chosen, mut notes, mut total, mut uncounted) = (Vec::new(), Vec::new(), 0, 0);
    for file in listed.into_iter().filter(|file| file.kind == FileKind::File) {
        let Some((_, shown)) = file.path.split_once(&format!("/{OUTPUT_DIR}/")) else { continue };
        let shown = shown.to_owned();
        if shown.chars().any(char::is_control) || shown.split('/').any(|part| part.is_empty() || part == "..") {
            notes.push("An output file with an unusable name was left out.".into());
        } else if file.size > MAX_FILE_BYTES {
            notes.push(format!(
                "The output file {shown} is too large ({} MiB, limit {} MiB).",
                file.size >> 20,
                MAX_FILE_BYTES >> 20
            ));
        } else if chosen.len() == MAX_FILES || total + file.size > MAX_TOTAL_BYTES {
            uncounted += 1;
        } else {
            total += file.size;
            chosen.push((shown, file.path));
        }
    }
    if uncounted > 0 {
        notes.push(format!(
            "{uncounted} more output files were left out (at most {MAX_FILES} files, {} MiB in all).",
            MAX_TOTAL_BYTES >> 20
        ));
    }
    (chosen, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, size: u64) -> FileInfo {
        FileInfo { path: format!("/home/sprite/output/{path}"), kind: FileKind::File, size }
    }

    #[test]
    fn files_are_chosen_within_the_limits_and_the_rest_is_named() {
        let mut listed = vec![file("b/plot.png", 10), file("a.txt", 1), file("huge.bin", MAX_FILE_BYTES + 1)];
        listed.push(FileInfo { kind: FileKind::Other, ..file("link", 1) });
        listed.push(file("bad\u{1b}[31m", 1));
        let (chosen, notes) = choose(listed);
        let names: Vec<_> = chosen.iter().map(|(shown, _)| shown.as_str()).collect();
        assert_eq!(names, ["a.txt", "b/plot.png"]);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(!notes.concat().contains('\u{1b}'));
    }

    #[test]
    fn too_many_files_are_counted() {
        let (chosen, notes) = choose((0..30).map(|n| file(&format!("{n:02}"), 1)).collect());
        assert_eq!((chosen.len(), notes.len()), (MAX_FILES, 1));
        assert!(notes[0].starts_with("10 more"));
    }

    #[test]
    fn a_lying_list_of_sizes_can_not_overflow_the_total() {
        let (chosen, _) = choose((0..10).map(|n| file(&format!("{n}"), MAX_FILE_BYTES)).collect());
        assert_eq!(chosen.len(), 4);
    }
}
