//! The hostile program: this test binary itself, uploaded into a sprite and told which attack to make. Its answer is
//! one line: `done` where the attack worked, the name of the error where it did not, or what it found.

mod calls;
mod files;
mod limits;
mod network;
mod processes;

use std::io::{self, Write};

/// The first argument that makes this binary the hostile program.
pub const ARGUMENT: &str = "inside";

/// Makes the attack that the words name, and ends.
pub fn run(words: &[&str]) -> ! {
    let answer = attempt(words);
    let _ = writeln!(io::stdout(), "{answer}");
    // SAFETY: always sound. Skips what an attack may have left in the way of an orderly end.
    unsafe { libc::_exit(0) }
}

fn attempt(words: &[&str]) -> String {
    let answers = [calls::attempt, files::attempt, network::attempt, processes::attempt, limits::attempt];
    answers.iter().find_map(|attempt| attempt(words)).unwrap_or_else(|| format!("no such attack: {words:?}"))
}

/// The outcome of a system call.
fn outcome(result: libc::c_long) -> String {
    if result < 0 { error(&io::Error::last_os_error()) } else { "done".into() }
}

fn outcome_of<T>(result: io::Result<T>) -> String {
    result.map_or_else(|e| error(&e), |_| "done".into())
}

/// An error's name.
fn error(error: &io::Error) -> String {
    const NAMES: [(i32, &str); 26] = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::EMFILE, "EMFILE"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::EFBIG, "EFBIG"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENODATA, "ENODATA"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
    ];
    match error.raw_os_error() {
        Some(errno) => {
            NAMES.iter().find(|(n, _)| *n == errno).map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).into())
        }
        None => error.to_string(),
    }
}

/// One answer for many tries: what all of them gave, or each by name where they differ.
fn each<N: std::fmt::Display>(tries: impl IntoIterator<Item = (N, String)>) -> String {
    let tries: Vec<_> = tries.into_iter().collect();
    match tries.first() {
        Some((_, first)) if tries.iter().all(|(_, answer)| answer == first) => first.clone(),
        _ => tries.iter().map(|(name, answer)| format!("{name} {answer}")).collect::<Vec<_>>().join(", "),
    }
}

/// What a file holds, in short.
fn read(path: &str) -> String {
    match std::fs::read(path) {
        Ok(bytes) if bytes.is_empty() => "empty".into(),
        Ok(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).trim_end().replace('\n', " "),
        Err(e) => error(&e),
    }
}

/// Says that it is ready and stays, so that what is outside can look.
fn stay(word: &str) -> ! {
    let _ = writeln!(io::stdout(), "{word}");
    loop {
        // SAFETY: always sound.
        unsafe { libc::pause() };
    }
}
