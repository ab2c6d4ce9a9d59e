//! Files: those of /proc and of the machine, and what is planted for later.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{each, error, outcome, outcome_of, read};

/// Where a sprite could hide what should survive a restore.
const HIDING_PLACES: [&str; 10] = [
    "/home/sprite/mark",
    "/home/sprite/.profile",
    "/home/sprite/.config/systemd/user/mark.timer",
    "/tmp/mark",
    "/run/mark",
    "/dev/shm/mark",
    "/var/tmp/mark",
    "/etc/mark",
    "/var/spool/cron/crontabs/sprite",
    "/var/spool/at/mark",
];
const KEY: libc::key_t = 0x6a61;

pub fn attempt(words: &[&str]) -> Option<String> {
    let argument = |n: usize| words.get(n).copied().unwrap_or_default();
    Some(match words[0] {
        "read" => each(words[1..].iter().map(|path| (*path, read(path)))),
        "secrets" => {
            // Absent in this kernel is as good as empty.
            let names = ["kcore", "kmsg", "keys", "kallsyms", "cmdline", "timer_list"];
            each(names.map(|name| (name, read(&format!("/proc/{name}")).replace("ENOENT", "empty"))))
        }
        "boot-line" => match read("/proc/cmdline").as_str() {
            "empty" => "empty".into(),
            _ => "readable".into(),
        },
        "settings-user" => write("/proc/sys/user/max_user_namespaces", b"1"),
        "init-readable" => {
            each(["environ", "maps"].map(|name| (name, outcome_of(File::open(format!("/proc/1/{name}"))))))
        }
        "settings" => {
            let names = [
                "sys/kernel/core_pattern",
                "sys/kernel/modprobe",
                "sys/kernel/sysrq",
                "sys/vm/drop_caches",
                "sys/net/ipv4/ip_forward",
                "sys/user/max_user_namespaces",
            ];
            // Some are absent in some kernels.
            let tries = names.map(|name| (name, write(&format!("/proc/{name}"), b"1")));
            each(tries.into_iter().filter(|(_, answer)| answer != "ENOENT"))
        }
        "sysrq" => fs::metadata("/proc/sysrq-trigger").map_or_else(
            // Absent in some kernels, which is as good.
            |e| error(&e).replace("ENOENT", "null"),
            |m| {
                if m.file_type().is_char_device() && m.rdev() == libc::makedev(1, 3) {
                    "null".into()
                } else {
                    "real".into()
                }
            },
        ),
        "write" => write(argument(1), b"1"),
        "write-each" => each(words[1..].iter().map(|path| (*path, write(path, b"1")))),
        // A file without a name beside one that has one.
        "nameless" => Path::new(argument(1)).parent().map_or("no such place".into(), nameless),
        // In the machine's own directories, without a name, so that nothing stays should it work.
        "usr" => each(["/usr", "/usr/bin", "/usr/lib"].map(|dir| (dir, nameless(Path::new(dir))))),
        "uid_map" => write("/proc/self/uid_map", b"0 0 1"),
        "init-files" => each(
            ["mem", "fd/3", "root/etc", "environ", "maps", "cwd/x"]
                .map(|name| (name, outcome_of(File::open(format!("/proc/1/{name}"))))),
        ),
        "present" => each(words[1..].iter().map(|path| (*path, outcome_of(fs::symlink_metadata(path))))),
        "descriptors" => {
            let mut found: Vec<i32> = (0..1024).filter(|&fd| is_open(fd)).collect();
            found.sort_unstable();
            format!("{found:?}")
        }
        "mentions" => {
            let files = ["self/mountinfo", "mounts", "self/environ", "self/cgroup", "self/maps"];
            let seen = |name: &&str| {
                fs::read(format!("/proc/{name}")).is_ok_and(|text| String::from_utf8_lossy(&text).contains(argument(1)))
            };
            let found: Vec<&str> = files.into_iter().filter(seen).collect();
            if found.is_empty() { "absent".into() } else { found.join(" ") }
        }
        "cgroup" => {
            let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let paths: Vec<&str> = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
            if paths.iter().all(|path| *path == "/") { "absent".into() } else { "shown".into() }
        }
        "host-name" => fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().into(),
        "plant" => {
            let plant = |path: &&str| {
                if let Some(parent) = Path::new(path).parent() {
                    let _ = fs::create_dir_all(parent);
                }
                fs::write(path, "mark").is_ok()
            };
            let planted = HIDING_PLACES.iter().filter(|path| plant(path)).count();
            // SAFETY: plain numbers.
            let segment = unsafe { libc::shmget(KEY, 4096, libc::IPC_CREAT | 0o666) };
            format!("{} {}", if planted >= 6 { "planted" } else { "too few" }, segment >= 0)
        }
        "planted" => {
            let mut found: Vec<&str> = HIDING_PLACES.into_iter().filter(|path| read(path) == "mark").collect();
            // SAFETY: plain numbers.
            if unsafe { libc::shmget(KEY, 4096, 0o666) } >= 0 {
                found.push("shared memory");
            }
            if found.is_empty() { "absent".into() } else { found.join(" ") }
        }
        "shmget" => {
            let key = argument(1).parse().unwrap_or(0);
            // SAFETY: plain numbers.
            outcome(unsafe { libc::shmget(key, 0, 0) }.into())
        }
        "forge-marks" => {
            let _ = fs::create_dir_all("/home/sprite/forged");
            let marks =
                ["user.overlay.opaque", "user.overlay.redirect", "trusted.overlay.redirect", "security.capability"];
            each(marks.map(|name| (name, set_mark("/home/sprite/forged", name))))
        }
        "poison" => each([
            ("/usr/bin/sh", write("/usr/bin/sh", b"x")),
            ("/usr/bin/new", outcome_of(File::create("/usr/bin/new"))),
            ("/lib/new", outcome_of(File::create("/lib/new"))),
            ("unlink", outcome_of(fs::remove_file("/usr/bin/env"))),
            ("rename", outcome_of(fs::rename("/usr/bin", "/usr/nib"))),
        ]),
        "take-over-etc" => {
            each(["/etc/passwd", "/etc/ld.so.preload", "/etc/hosts"].map(|path| (path, write_new(path, b"forged"))))
        }
        // Holds or asks for a lock on a file that every sprite sees.
        "lock" => {
            let file = File::open(argument(1));
            let taken = match &file {
                Ok(file) => {
                    // SAFETY: plain numbers.
                    outcome(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }.into())
                }
                Err(e) => error(e),
            };
            if argument(2) == "stay" {
                super::stay(&taken)
            }
            taken
        }
        "link" => each(
            words[1..].chunks_exact(2).map(|pair| (pair[1], outcome_of(std::os::unix::fs::symlink(pair[0], pair[1])))),
        ),
        "watch" => watch(argument(1)),
        "setuid" => {
            // The real id of a program that is somebody else's and says "run me as my owner".
            let output = std::process::Command::new(argument(1)).args([super::ARGUMENT, "euid"]).output();
            output.map_or_else(|e| error(&e), |o| String::from_utf8_lossy(&o.stdout).trim().into())
        }
        // SAFETY: always sound.
        "euid" => unsafe { libc::geteuid() }.to_string(),
        _ => return None,
    })
}

fn is_open(fd: i32) -> bool {
    // SAFETY: asks only.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

fn write(path: &str, bytes: &[u8]) -> String {
    // Truncating asks the mount before the file's mode, so that a read-only mount shows itself.
    let file = OpenOptions::new().write(true).truncate(true).open(path);
    outcome_of(file.and_then(|mut file| file.write_all(bytes)))
}

fn nameless(dir: &Path) -> String {
    outcome_of(OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(dir))
}

fn write_new(path: &str, bytes: &[u8]) -> String {
    outcome_of(fs::write(path, bytes))
}

fn set_mark(path: &str, name: &str) -> String {
    let (Ok(path), Ok(name)) = (CString::new(path), CString::new(name)) else { return "no name".into() };
    // SAFETY: terminated strings, and one byte of value.
    outcome(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), c"y".as_ptr().cast(), 1, 0) }.into())
}

/// Tells whether the program hears of somebody else's use of a file: it says `ready` and waits for a use, or for a line
/// of input that says that it has been.
fn watch(path: &str) -> String {
    let Ok(path) = CString::new(path) else { return "no name".into() };
    // SAFETY: a terminated string, and buffers that outlive the calls.
    unsafe {
        let inotify = libc::inotify_init1(libc::IN_NONBLOCK);
        if libc::inotify_add_watch(inotify, path.as_ptr(), libc::IN_OPEN | libc::IN_ACCESS) < 0 {
            return error(&std::io::Error::last_os_error());
        }
        println!("ready");
        let mut used = libc::pollfd { fd: inotify, events: libc::POLLIN, revents: 0 };
        if libc::poll(&raw mut used, 1, 700) == 1 { "seen".into() } else { "unseen".into() }
    }
}
