//! The tree of processes as /proc shows it, and how to end a part of it for good.
//!
//! Used from inside: by a supervisor for its program's descendants, by init for what a dead supervisor left. Both are
//! reapers of their descendants, so a process that daemonises stays below them and can't get out of sight.

use std::collections::BTreeSet;
use std::fs;

use super::sys::{self, Reaped};

/// Rounds of stop-kill-reap. A full fork bomb of 512 processes took 25; a tree that outlives all of them is reported.
const ROUNDS: u32 = 400;
/// How long one round waits for killed processes to be reapable.
const ROUND_MS: i32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
}

/// Every process that /proc shows.
pub fn processes() -> Vec<Entry> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.filter_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    })
    .collect()
}

/// The command in a stat line is in parentheses and may hold any byte, so the fields start after the last one.
fn parse_stat(pid: i32, line: &[u8]) -> Option<Entry> {
    let end = line.iter().rposition(|&b| b == b')')?;
    let mut fields = std::str::from_utf8(&line[end + 1..]).ok()?.split_ascii_whitespace().skip(1);
    Some(Entry { pid, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
}

/// All descendants of `root`, without the `except`ed children and what is below them.
pub fn descendants(all: &[Entry], root: i32, except: &BTreeSet<i32>) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for entry in all.iter().filter(|e| e.parent == parent && !except.contains(&e.pid)) {
            parents.push(entry.pid);
            found.push(*entry);
        }
    }
    found
}

/// Ends all descendants of this process but the `except`ed ones, and tells `reaped` of each child it waited for. True
/// when none is left.
///
/// Stop first, then kill: a stopped process can't fork while the others are being killed. Repeated until a look shows
/// nothing, because a look is not atomic.
pub fn end_descendants(except: &mut BTreeSet<i32>, mut reaped: impl FnMut(i32, i32)) -> bool {
    let me = std::process::id() as i32;
    for _ in 0..ROUNDS {
        while let Reaped::Child(pid, status) = sys::reap() {
            except.remove(&pid);
            reaped(pid, status);
        }
        let left = descendants(&processes(), me, except);
        if left.is_empty() {
            return true;
        }
        for signal in [libc::SIGSTOP, libc::SIGKILL] {
            for entry in &left {
                // A process that ended meanwhile is fine, and no other error can happen to a descendant of one's own.
                let _ = sys::kill(entry.pid, signal);
            }
        }
        // SAFETY: no descriptors, only the timeout. This is a process of one thread that has nothing else to do.
        unsafe { libc::poll(std::ptr::null_mut(), 0, if left.len() > 8 { ROUND_MS } else { 1 }) };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pid: i32, parent: i32) -> Entry {
        Entry { pid, parent, group: pid }
    }

    #[test]
    fn a_command_with_parentheses_and_spaces_is_parsed() {
        assert_eq!(parse_stat(5, b"5 (a) S 9 (x) R 3 4 4 0"), Some(Entry { pid: 5, parent: 3, group: 4 }));
        assert_eq!(parse_stat(5, b"nonsense"), None);
    }

    #[test]
    fn descendants_are_found_at_any_depth_and_exceptions_are_left_out_with_their_own() {
        let all = [entry(2, 1), entry(3, 2), entry(4, 3), entry(5, 1), entry(6, 5), entry(7, 0)];
        let pids = |except: &[i32]| {
            let mut pids: Vec<_> =
                descendants(&all, 1, &except.iter().copied().collect()).iter().map(|e| e.pid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(pids(&[]), [2, 3, 4, 5, 6]);
        assert_eq!(pids(&[5]), [2, 3, 4]);
    }
}
