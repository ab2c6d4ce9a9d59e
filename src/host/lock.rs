//! One process per state directory, by a lock that the kernel takes back however the process ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Held while it lives.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not do while a child that was just forked has the descriptor too, until it executes. Unlocking
        // fails only for a descriptor that is none.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Lock {
    /// Takes the lock of `dir`. The inner error says who holds it, as far as is known: ` (process 123)` or nothing.
    pub fn take(dir: &Path) -> io::Result<Result<Self, String>> {
        let path = dir.join("lock");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                file.set_len(0)?;
                write!(file, "{}", std::process::id())?;
                Ok(Ok(Self(file)))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Only a hint: without it the message is just shorter.
                let _ = file.read_to_string(&mut holder);
                Ok(Err(holder.parse::<u32>().map(|pid| format!(" (process {pid})")).unwrap_or_default()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_told_who_has_it_until_it_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap().unwrap();
        let holder = Lock::take(dir.path()).unwrap().unwrap_err();
        assert_eq!(holder, format!(" (process {})", std::process::id()));
        drop(lock);
        assert!(Lock::take(dir.path()).unwrap().is_ok());
    }
}
