//! Processes that outlived the one that started them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The kernel ends a sandbox with its service; how long that may take on a busy machine.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Makes this process the parent of whatever its descendants leave behind.
pub fn adopt() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// Descendants of this process that do not go away; the dead that nobody waited for do not count.
pub async fn left() -> Vec<String> {
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let alive = descendants();
        if alive.is_empty() || Instant::now() > until {
            return alive;
        }
        // There is no event to wait for: they are no children of ours until their parents are gone.
        sleep(Duration::from_millis(50)).await;
    }
}

fn descendants() -> Vec<String> {
    let mut children: BTreeMap<u32, Vec<(u32, bool, String)>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // It may have ended since it was listed.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name is in parentheses and may hold anything.
        let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let Ok(parent) = parent.parse() else { continue };
        children.entry(parent).or_default().push((pid, matches!(state, "Z" | "X"), format!("{name})")));
    }
    let (mut found, mut parents) = (Vec::new(), vec![std::process::id()]);
    while let Some(parent) = parents.pop() {
        for (pid, is_dead, name) in children.remove(&parent).unwrap_or_default() {
            parents.push(pid);
            if !is_dead {
                found.push(name);
            }
        }
    }
    found
}
