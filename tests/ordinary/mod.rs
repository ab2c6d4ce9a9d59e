//! Once more as an ordinary user: what is promised then is the same, how it is built is not. `mod ordinary;` brings it
//! into a test program, which has a test named `again_as_an_ordinary_user` that calls [`again`].

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;

/// A user id that has no account.
const ORDINARY: u32 = 12_345;

/// Runs all other tests of this program as an ordinary user, in a process and a temporary folder of their own.
pub fn again() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the tests run as an ordinary user already");
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let closed = |path: &Path| path.ancestors().any(|p| p.metadata().is_ok_and(|m| m.mode() & 0o001 == 0));
    for program in [&exe, Path::new(env!("CARGO_BIN_EXE_janebot"))] {
        if closed(program) {
            println!("skipped: an ordinary user can't execute {}", program.display());
            return;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(ORDINARY), Some(ORDINARY)).unwrap();
    let output = std::process::Command::new(exe)
        .args(["--test-threads=2", "--show-output", "--skip", "again_as"])
        .env("TMPDIR", dir.path())
        .env("HOME", dir.path())
        .current_dir(dir.path())
        .gid(ORDINARY)
        .uid(ORDINARY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| line.starts_with("skipped")).for_each(|line| println!("as an ordinary user {line}"));
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
