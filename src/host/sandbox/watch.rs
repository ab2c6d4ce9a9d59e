//! Watches what a sandbox uses of memory and disk, and ends it when it is more than it may.
//!
//! With a control group the kernel holds the memory limit and this only tells the user what happened. Measuring is the
//! second best, for machines where no group can be had, and for disk, where there is no quota: a sandbox can overshoot
//! by what it grabs between two looks. Its memory-backed file systems have sizes of their own.
//!
//! A gap of measuring disk: a file that is deleted and held by nothing but a mapping, or by a descriptor on its way
//! through a socket, is not seen.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::cgroup::Group;
use super::launch::Inner;
use super::usage::{self, Disk};
use crate::config::Limits;
use crate::host::walls::Wall;

/// Between two looks at memory: at 4 GB/s, what can be grabbed meanwhile is half of a sprite's usual limit.
const MEMORY_EVERY: Duration = Duration::from_millis(250);
/// When less memory than this is available, a sprite that uses most of its allowance has to go before the machine does.
const MEMORY_FLOOR: u64 = 256 << 20;
/// Between two walks over the files.
const DISK_EVERY: Duration = Duration::from_millis(1500);
/// A look should take this part of the time at most; the interval grows for sprites that are expensive to look at.
const SHARE: u32 = 20;
/// It grows to these and no further: a hostile sprite must not buy itself time by being expensive.
const MEMORY_SELDOM: Duration = Duration::from_secs(1);
const DISK_SELDOM: Duration = Duration::from_secs(10);
/// When less than this is free, whichever sprite has written most of its allowance has to go before the machine does.
const DISK_FLOOR: u64 = 512 << 20;
/// What a sprite may have written when the disk is full without being blamed for it.
const BLAMELESS: u64 = 64 << 20;

/// Watches until the sandbox is gone.
pub(super) async fn run(inner: Arc<Inner>, file_systems: Weak<Vec<OwnedFd>>, group: Option<Arc<Group>>) {
    let up = inner.spec.dir.join(&inner.spec.run).join("up");
    let (mut memory_due, mut disk_due) = (Instant::now() + MEMORY_EVERY, Instant::now() + DISK_EVERY);
    let [memory, disk] = [Wall::MemoryLimit, Wall::DiskLimit].map(|wall| inner.standing.has(wall));
    let mut gone = inner.gone.clone();
    loop {
        tokio::select! {
            biased;
            // An error means that whoever would tell is gone; so is the sandbox then.
            _ = gone.wait_for(|gone| *gone) => return,
            () = sleep(memory_due.min(disk_due).saturating_duration_since(Instant::now())) => {}
        }
        let begun = Instant::now();
        let look_at_memory = memory_due <= disk_due;
        let (init, limits, up, file_systems) =
            (inner.init, inner.spec.limits.clone(), up.clone(), Weak::clone(&file_systems));
        let group = group.clone();
        let look = tokio::task::spawn_blocking(move || {
            if !look_at_memory {
                disk.then(|| look_at_disk(init, &up, &limits)).flatten()
            } else if !memory {
                None
            } else if let Some(group) = group {
                // Version 1 does not count what TCP holds.
                let over = || group.ran_out() || usage::tcp_queues(init) > limits.memory;
                over().then(|| out_of_memory(&limits))
            } else {
                // Gone with the sandbox. Never the last to hold them: letting go may take long.
                let file_systems = file_systems.upgrade()?;
                let used = usage::memory(init, file_systems.get(1..).unwrap_or_default(), limits.memory);
                memory_verdict(used, usage::memory_available(), &limits)
            }
        });
        // A panic in there is a bug and must not end the watch.
        if let Ok(Some(reason)) = look.await
            && !inner.is_gone()
        {
            inner.condemn(reason);
            return;
        }
        let pause = begun.elapsed() * SHARE;
        if look_at_memory {
            memory_due = Instant::now() + pause.clamp(MEMORY_EVERY, MEMORY_SELDOM);
        } else {
            disk_due = Instant::now() + pause.clamp(DISK_EVERY, DISK_SELDOM);
        }
    }
}

fn look_at_disk(init: u32, up: &Path, limits: &Limits) -> Option<String> {
    let mut used = usage::disk(up, limits.disk, limits.inodes);
    used.bytes += usage::deleted(init);
    disk_verdict(used, usage::disk_free(up).unwrap_or(u64::MAX), limits)
}

/// What the user is told when the kernel held the limit: by then there is nothing left to measure.
pub(super) fn out_of_memory(limits: &Limits) -> String {
    format!("out of memory: limit {}", size(limits.memory))
}

fn memory_verdict(used: u64, available: u64, limits: &Limits) -> Option<String> {
    if used > limits.memory {
        Some(format!("out of memory: used {}, limit {}", size(used), size(limits.memory)))
    } else if available < MEMORY_FLOOR && used > limits.memory / 2 {
        let (available, used) = (size(available), size(used));
        Some(format!("the machine is out of memory: {available} are available, this sprite uses {used}"))
    } else {
        None
    }
}

fn disk_verdict(used: Disk, free: u64, limits: &Limits) -> Option<String> {
    if used.bytes > limits.disk {
        Some(format!("out of disk: used more than {}", size(limits.disk)))
    } else if used.inodes > limits.inodes {
        Some(format!("out of disk: more than {} files and directories", limits.inodes))
    } else if used.too_deep {
        Some("its directories are nested too deeply to be measured".into())
    } else if free < DISK_FLOOR && used.bytes > BLAMELESS {
        Some(format!(
            "the machine is out of disk: {} are free, this sprite has written {}",
            size(free),
            size(used.bytes)
        ))
    } else {
        None
    }
}

/// As people write it: `2.1 GiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_says_what_was_used_and_what_was_allowed() {
        let limits = Limits { memory: 2 << 30, disk: 4 << 30, inodes: 10, ..Limits::default() };
        assert_eq!(memory_verdict(2 << 30, u64::MAX, &limits), None);
        let verdict = memory_verdict(2_254_857_830, u64::MAX, &limits).unwrap();
        assert_eq!(verdict, "out of memory: used 2.1 GiB, limit 2 GiB");
        let used = |bytes, inodes| Disk { bytes, inodes, ..Disk::default() };
        assert_eq!(disk_verdict(used(5 << 30, 1), u64::MAX, &limits).unwrap(), "out of disk: used more than 4 GiB");
        assert_eq!(
            disk_verdict(used(1, 11), u64::MAX, &limits).unwrap(),
            "out of disk: more than 10 files and directories"
        );
    }

    #[test]
    fn a_full_machine_is_blamed_on_who_takes_much_only() {
        let limits = Limits::default();
        let used = |bytes| Disk { bytes, inodes: 1, ..Disk::default() };
        assert_eq!(memory_verdict(1 << 20, 0, &limits), None);
        assert!(memory_verdict(2000 << 20, 0, &limits).unwrap().contains("the machine is out of memory"));
        assert_eq!(disk_verdict(used(1 << 20), 0, &limits), None);
        assert!(disk_verdict(used(1 << 30), 0, &limits).unwrap().contains("the machine is out of disk"));
    }
}
