//! A control group per sandbox, where the service may make one: the kernel then holds the memory limit exactly.
//!
//! Version 2 needs a delegated subtree (systemd: `Delegate=yes` and `DelegateSubgroup=`), version 1 needs root. Nothing
//! is asked of the machine in advance: a group is made and its limit set, and where that fails there is none, and
//! [`super::watch`] measures instead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "janebot-";

/// The group of one sandbox. Removed when dropped, which works once its processes are gone.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Group {
    /// Puts the process into a group of its own with `memory` bytes, if this machine lets us.
    pub fn enclose(pid: u32, memory: u64) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        static SWEEP: Once = Once::new();
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let places = places(&own);
        SWEEP.call_once(|| places.iter().for_each(|(place, _)| sweep(place)));
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        places.into_iter().find_map(|(place, version)| {
            let path = place.join(&name);
            fs::create_dir(&path).ok()?;
            // From here on it is removed by its drop when it does not work out.
            let group = Self { path, version };
            group.limit(memory).ok()?;
            group.write("cgroup.procs", &pid.to_string()).ok()?;
            Some(group)
        })
    }

    fn limit(&self, memory: u64) -> io::Result<()> {
        let memory = memory.to_string();
        match self.version {
            Version::One => {
                self.write("memory.limit_in_bytes", &memory)?;
                // Absent without swap accounting; then there is memory alone to limit.
                let _ = self.write("memory.memsw.limit_in_bytes", &memory);
                Ok(())
            }
            Version::Two => {
                self.write("memory.max", &memory)?;
                let _ = self.write("memory.swap.max", "0");
                // All or nothing: a sprite with a hole in it is of no use.
                self.write("memory.oom.group", "1")
            }
        }
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        // Not created: in a folder without the controller the files are not there, and writing must fail.
        io::Write::write_all(&mut fs::File::options().write(true).open(self.path.join(file))?, value.as_bytes())
    }

    /// Whether the kernel has ended a process because the group was out of memory.
    pub fn ran_out(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        fs::read_to_string(self.path.join(file)).is_ok_and(|text| counted(&text, "oom_kill"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::debug!(%error, group = %self.path.display(), "a control group stays behind");
        }
    }
}

fn counted(text: &str, key: &str) -> bool {
    text.lines().any(|line| line.split_once(' ').is_some_and(|(k, count)| k == key && count.trim() != "0"))
}

/// Where a group might be made, in the order of preference: beside this process in version 2 (which allows none below a
/// group that has processes), below it in version 1.
fn places(own: &str) -> Vec<(PathBuf, Version)> {
    let root = Path::new(ROOT);
    let below = |root: PathBuf, path: &str| root.join(path.trim_start_matches('/'));
    let mut places = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            if let Some(parent) = Path::new(path).parent().and_then(Path::to_str) {
                places.insert(0, (below(root.into(), parent), Version::Two));
            }
        } else if controllers.split(',').any(|c| c == "memory") {
            places.push((below(root.join("memory"), path), Version::One));
        }
    }
    places
}

/// Removes the groups of services that are no more.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Refused when it has processes, which is right.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_two_comes_first_and_beside_this_process() {
        let own = "4:memory:/jobs/a\n1:cpu:/\n0::/system.slice/janebot.service/main\n";
        let two = PathBuf::from("/sys/fs/cgroup/system.slice/janebot.service");
        let one = PathBuf::from("/sys/fs/cgroup/memory/jobs/a");
        assert_eq!(places(own), [(two, Version::Two), (one, Version::One)]);
    }

    #[test]
    fn without_a_parent_or_a_controller_there_is_no_place() {
        assert_eq!(places("0::/\n1:cpu:/\n"), []);
    }

    #[test]
    fn the_kernels_kills_are_counted_in_both_formats() {
        assert!(counted("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"));
        assert!(!counted("low 0\noom 3\noom_kill 0\noom_group_kill 1\n", "oom_kill"));
    }
}
