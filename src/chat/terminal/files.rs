//! Saves the files that an agent left. Their names are the agent's choice, so nothing that exists is touched.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use super::paint::size;
use crate::chat::text::one_line;
use crate::job::OutputFile;

/// Makes sure that `folder` is new or empty, so that an agent's file can't land among the user's own.
///
/// # Errors
/// A sentence that says what to do.
pub fn prepare(folder: &Path) -> Result<(), String> {
    let problem =
        |error: io::Error| format!("the folder {} can't be used ({error}): name another one", folder.display());
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(format!(
                "the folder {} is not empty: name a new one, so that no file of yours can be overwritten",
                folder.display()
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(folder).map_err(problem),
        Err(error) => Err(problem(error)),
    }
}

/// Writes the files below `folder`. Returns the paths of those written, and a sentence for each that was not.
pub fn save(files: &[OutputFile], folder: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let mut saved = Vec::new();
    let mut problems = Vec::new();
    for file in files {
        match write(file, folder) {
            Ok(path) => saved.push(path),
            Err(error) => problems.push(format!("the file {} was not saved ({error})", one_line(&file.name, 200))),
        }
    }
    (saved, problems)
}

fn write(file: &OutputFile, folder: &Path) -> io::Result<PathBuf> {
    let path = folder.join(safe_name(&file.name)?);
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    // `create_new` follows no link and overwrites nothing.
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
    out.write_all(&file.bytes)?;
    Ok(path)
}

/// The name as a path that stays below the folder. The collector has checked names before; this is the last door.
fn safe_name(name: &str) -> io::Result<&Path> {
    let refuse = || io::Error::new(io::ErrorKind::InvalidInput, "its name is not safe");
    let path = Path::new(name);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(part) if part != OsStr::new(".git"));
    if name.is_empty() || name.chars().any(char::is_control) || !path.components().all(plain) {
        return Err(refuse());
    }
    Ok(path)
}

/// One line for each file.
pub fn list(files: &[OutputFile]) -> Vec<String> {
    files.iter().map(|file| format!("{} ({})", one_line(&file.name, 120), size(file.size))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &str) -> OutputFile {
        let bytes = bytes::Bytes::copy_from_slice(content.as_bytes());
        OutputFile { name: name.into(), size: bytes.len() as u64, bytes }
    }

    #[test]
    fn files_are_saved_below_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        prepare(&folder).unwrap();
        let (saved, problems) = save(&[file("a.txt", "A"), file("deep/er/b.txt", "B")], &folder);
        assert_eq!(saved, [folder.join("a.txt"), folder.join("deep/er/b.txt")]);
        assert!(problems.is_empty());
        assert_eq!(fs::read_to_string(&saved[1]).unwrap(), "B");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "../up", "/etc/passwd", "a/../../b", "a\nb", ".", ".git/hooks/post-commit"] {
            let (saved, problems) = save(&[file(name, "x")], dir.path());
            assert!(saved.is_empty() && problems.len() == 1, "{name:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused_and_an_existing_file_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "mine").unwrap();
        assert!(prepare(dir.path()).unwrap_err().contains("is not empty"));
        let (saved, problems) = save(&[file("mine", "theirs")], dir.path());
        assert!(saved.is_empty() && problems.len() == 1);
        assert_eq!(fs::read_to_string(dir.path().join("mine")).unwrap(), "mine");
    }
}
