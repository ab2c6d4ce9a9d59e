//! Helpers that lie to the service: this binary under another name.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// What each says instead of the truth.
pub const LIES: [&str; 6] = ["huge", "garbled", "wrong-process", "no-descriptors", "early-exit", "deep"];
const PREFIX: &str = "lie-";

/// A helper that tells the lie, in `dir`.
pub fn make(dir: &Path, lie: &str) -> std::io::Result<std::path::PathBuf> {
    let path = dir.join(format!("{PREFIX}{lie}"));
    std::fs::copy(std::env::current_exe()?, &path)?;
    Ok(path)
}

/// Lies and ends, when this process is such a helper.
pub fn maybe_run() {
    let exe = std::env::current_exe().unwrap_or_default();
    let Some(lie) = exe.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX)) else { return };
    // SAFETY: the service gave it; nobody else here uses it.
    let control = unsafe { OwnedFd::from_raw_fd(0) };
    let send = |bytes: &[u8]| {
        // SAFETY: the bytes outlive the call.
        unsafe { libc::send(control.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    };
    match lie {
        "huge" => send(&vec![b'['; 150_000]),
        "garbled" => send(b"{\"Born\":{\"pid\":\xff}}"),
        "wrong-process" => {
            send(b"{\"Born\":{\"pid\":4294967295,\"uid\":0,\"gid\":0}}");
            send(b"\"Ready\"");
        }
        "no-descriptors" => {
            send(b"{\"Born\":{\"pid\":1,\"uid\":0,\"gid\":0}}");
            send(b"\"Ready\"");
        }
        "deep" => send(&[vec![b'['; 500], vec![b']'; 500]].concat()),
        _ => {}
    }
    std::process::exit(0);
}
