//! What must stay flat while the host works, and whether it did.

use std::fs;
use std::io;
use std::path::Path;

use crate::processes;

/// One look at the host, which is this process.
#[derive(Clone, Copy, Debug)]
pub struct Gauges {
    pub seconds: f64,
    /// Bytes of memory of this process.
    pub rss: f64,
    pub descriptors: f64,
    /// Of this process's mount namespace.
    pub mounts: f64,
    /// Below this process, the sandboxes' own included.
    pub processes: f64,
    pub zombies: f64,
    /// Control groups of this process.
    pub groups: f64,
    pub threads: f64,
}

impl Gauges {
    pub fn look(seconds: f64) -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |key: &str| -> f64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0.0)
        };
        let below = processes::below(std::process::id());
        let zombies = below.iter().filter(|&&pid| is_zombie(pid)).count();
        Ok(Self {
            seconds,
            rss: field("VmRSS:") * 1024.0,
            descriptors: fs::read_dir("/proc/self/fd")?.count() as f64,
            mounts: fs::read_to_string("/proc/self/mountinfo")?.lines().count() as f64,
            processes: below.len() as f64,
            zombies: zombies as f64,
            groups: groups() as f64,
            threads: field("Threads:"),
        })
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// Control groups that this process has made, wherever the memory controller is.
fn groups() -> usize {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let prefix = format!("janebot-{}-", std::process::id());
    let memory = own.lines().find_map(|line| line.split_once(":memory:")).map_or("/", |(_, path)| path);
    let place = Path::new("/sys/fs/cgroup/memory").join(memory.trim_start_matches('/'));
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

/// How much a gauge grew over the second half of the time, by the line that fits it best.
pub fn growth(looks: &[Gauges], gauge: impl Fn(&Gauges) -> f64) -> f64 {
    let half = &looks[looks.len() / 2..];
    let (Some(first), Some(last)) = (half.first(), half.last()) else { return 0.0 };
    let n = half.len() as f64;
    let mean = |of: &dyn Fn(&Gauges) -> f64| half.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(&|g| g.seconds), mean(&gauge));
    let spread: f64 = half.iter().map(|g| (g.seconds - x).powi(2)).sum();
    let together: f64 = half.iter().map(|g| (g.seconds - x) * (gauge(g) - y)).sum();
    if spread == 0.0 { 0.0 } else { together / spread * (last.seconds - first.seconds) }
}
