//! System calls that lead out of a sandbox or into little-used parts of the kernel.

use super::{each, outcome};

/// A system call by number, with numbers as arguments.
fn call(number: libc::c_long, arguments: &[libc::c_long]) -> String {
    let a = |n: usize| arguments.get(n).copied().unwrap_or(0);
    // SAFETY: pointers among the arguments are to static, terminated strings or null; a call that should go through
    // in spite of all would only harm this hostile process.
    outcome(unsafe { libc::syscall(number, a(0), a(1), a(2), a(3), a(4), a(5)) })
}

fn text(text: &'static std::ffi::CStr) -> libc::c_long {
    text.as_ptr() as libc::c_long
}

/// No descriptor, or the present directory.
const NONE: libc::c_long = -1;
const HERE: libc::c_long = libc::AT_FDCWD as libc::c_long;
const CHILD: libc::c_long = libc::SIGCHLD as libc::c_long;

const NAMESPACES: [(&str, libc::c_int); 7] = [
    ("mnt", libc::CLONE_NEWNS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("uts", libc::CLONE_NEWUTS),
    ("ipc", libc::CLONE_NEWIPC),
    ("user", libc::CLONE_NEWUSER),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
];

pub fn attempt(words: &[&str]) -> Option<String> {
    use libc::*;
    let zeros = |numbers: &[(&'static str, c_long)]| each(numbers.iter().map(|(name, n)| (*name, call(*n, &[]))));
    Some(match words[0] {
        "mount" => call(SYS_mount, &[text(c"none"), text(c"/mnt"), text(c"tmpfs"), 0, 0]),
        "umount" => call(SYS_umount2, &[text(c"/proc/sys"), MNT_DETACH.into()]),
        "unshare-user" => call(SYS_unshare, &[CLONE_NEWUSER.into()]),
        "unshare" => each(NAMESPACES.map(|(name, flag)| (name, call(SYS_unshare, &[flag.into()])))),
        "clone" => each(NAMESPACES.map(|(name, flag)| (name, child_in_new(flag)))),
        "clone3" => call(SYS_clone3, &[0, 0]),
        "setns" => {
            let own =
                std::fs::File::open("/proc/self/ns/uts").map(|f| std::os::fd::AsRawFd::as_raw_fd(&f)).unwrap_or(-1);
            each([
                ("open", super::outcome_of(std::fs::File::open("/proc/1/ns/mnt"))),
                ("setns", call(SYS_setns, &[own.into(), 0])),
            ])
        }
        "roots" => each([
            ("pivot_root", call(SYS_pivot_root, &[text(c"."), text(c".")])),
            ("chroot", call(SYS_chroot, &[text(c"/tmp")])),
        ]),
        "mount-api" => each([
            ("open_tree", call(SYS_open_tree, &[HERE, text(c"/"), 1])),
            ("fsopen", call(SYS_fsopen, &[text(c"tmpfs"), 0])),
            ("fspick", call(SYS_fspick, &[HERE, text(c"/"), 0])),
            ("fsconfig", call(SYS_fsconfig, &[NONE])),
            ("fsmount", call(SYS_fsmount, &[NONE])),
            ("move_mount", call(SYS_move_mount, &[NONE])),
            ("mount_setattr", call(SYS_mount_setattr, &[NONE])),
        ]),
        "bpf" => each([("bpf", call(SYS_bpf, &[])), ("perf", call(SYS_perf_event_open, &[0, 0, NONE, NONE]))]),
        "io_uring" => {
            let mut parameters = [0_u8; 120];
            each([
                ("setup", call(SYS_io_uring_setup, &[1, parameters.as_mut_ptr() as c_long])),
                ("enter", call(SYS_io_uring_enter, &[NONE])),
                ("register", call(SYS_io_uring_register, &[NONE])),
            ])
        }
        "io_uring-setup" => {
            let mut parameters = [0_u8; 120];
            call(SYS_io_uring_setup, &[1, parameters.as_mut_ptr() as c_long])
        }
        "userfaultfd" => each([
            ("call", call(SYS_userfaultfd, &[1])),
            ("device", super::outcome_of(std::fs::File::open("/dev/userfaultfd"))),
        ]),
        "add_key" => call(SYS_add_key, &[text(c"user"), text(c"attack"), text(c"x"), 1, -3]),
        "keys" => each([
            ("add_key", call(SYS_add_key, &[text(c"user"), text(c"attack"), text(c"x"), 1, -3])),
            ("request_key", call(SYS_request_key, &[text(c"user"), text(c"attack"), 0, -3])),
            // KEYCTL_JOIN_SESSION_KEYRING, and the persistent keyring, which outlives every process.
            ("join", call(SYS_keyctl, &[1, 0])),
            ("persistent", call(SYS_keyctl, &[22, NONE, -3])),
        ]),
        // None of these has arguments that could work.
        "kernel" => zeros(&[
            ("kexec_load", SYS_kexec_load),
            #[cfg(target_arch = "x86_64")]
            ("kexec_file_load", SYS_kexec_file_load),
            ("init_module", SYS_init_module),
            ("finit_module", SYS_finit_module),
            ("delete_module", SYS_delete_module),
            ("reboot", SYS_reboot),
        ]),
        "handle" => call(SYS_open_by_handle_at, &[HERE, 0, 0]),
        "x32" => {
            const X32: c_long = 0x4000_0000;
            each([("getpid", call(X32 | 39, &[])), ("mount", call(X32 | 165, &[]))])
        }
        "future" => each([467, 468, 600, 10_000].map(|n| (n, call(n, &[])))),
        "personality" => call(SYS_personality, &[0x0004_0000]),
        // SYSLOG_ACTION_READ_ALL.
        "syslog" => call(SYS_syslog, &[3, 0, 0]),
        "mknod" => {
            let node = |path: &'static std::ffi::CStr, kind: mode_t, device: dev_t| {
                // SAFETY: the path is terminated.
                outcome(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, device) }.into())
            };
            each([
                ("disk", node(c"/home/sprite/disk", S_IFBLK, makedev(8, 0))),
                ("mem", node(c"/home/sprite/mem", S_IFCHR, makedev(1, 1))),
                ("whiteout", node(c"/home/sprite/whiteout", S_IFCHR, 0)),
                ("tmp", node(c"/tmp/mem", S_IFCHR, makedev(1, 1))),
            ])
        }
        "old-calls" => zeros(&[
            ("vmsplice", SYS_vmsplice),
            ("memfd_secret", SYS_memfd_secret),
            ("fanotify_init", SYS_fanotify_init),
            ("quotactl", SYS_quotactl),
            ("swapon", SYS_swapon),
            ("acct", SYS_acct),
            ("settimeofday", SYS_settimeofday),
            ("clock_settime", SYS_clock_settime),
            ("mq_open", SYS_mq_open),
        ]),
        "mq_open" => {
            let mut attributes: mq_attr = zeroed();
            (attributes.mq_maxmsg, attributes.mq_msgsize) = (1, 1);
            let flags = (O_CREAT | O_RDWR).into();
            call(SYS_mq_open, &[text(c"attack"), flags, 0o600, (&raw const attributes) as c_long])
        }
        "identity" => each([
            ("setuid", call(SYS_setuid, &[0])),
            ("setgid", call(SYS_setgid, &[0])),
            ("setgroups", call(SYS_setgroups, &[0, 0])),
            ("bits", super::outcome(control(PR_SET_SECUREBITS, 0))),
            ("bounding", super::outcome(control(PR_CAPBSET_DROP, 0))),
        ]),
        "tiocsti" => terminal_input(),
        "ptrace" => {
            let mut byte = 0_u8;
            let local = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            let supervisor = c_long::from(std::os::unix::process::parent_id());
            let reads = |pid| {
                call(SYS_process_vm_readv, &[pid, (&raw const local) as c_long, 1, (&raw const local) as c_long, 1])
            };
            each([
                ("attach-init", call(SYS_ptrace, &[PTRACE_ATTACH.into(), 1])),
                ("attach-supervisor", call(SYS_ptrace, &[PTRACE_ATTACH.into(), supervisor])),
                ("read-init", reads(1)),
                ("read-supervisor", reads(supervisor)),
                ("fd", pidfd_getfd()),
            ])
        }
        "status" => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let wanted = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
            let value = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':').map(str::trim));
            wanted.map(|key| value(key).unwrap_or("none").trim_start_matches('0')).join(",")
        }
        _ => return None,
    })
}

fn zeroed<T>() -> T {
    // SAFETY: only used for C structs of numbers.
    unsafe { std::mem::zeroed() }
}

fn control(option: libc::c_int, value: libc::c_ulong) -> libc::c_long {
    // SAFETY: plain numbers.
    unsafe { libc::prctl(option, value, 0, 0, 0) }.into()
}

/// A child in a new namespace, which ends at once.
fn child_in_new(flag: libc::c_int) -> String {
    // SAFETY: without CLONE_VM this is a fork; the child only exits.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flag) | CHILD, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: always sound.
        unsafe { libc::_exit(0) };
    }
    outcome(pid)
}

/// Takes a descriptor of init.
fn pidfd_getfd() -> String {
    // SAFETY: plain numbers.
    outcome(unsafe {
        let init = libc::syscall(libc::SYS_pidfd_open, 1, 0);
        libc::syscall(libc::SYS_pidfd_getfd, init, 3, 0)
    })
}

/// Types into a terminal of its own; it would be the same call for somebody else's.
fn terminal_input() -> String {
    // SAFETY: plain numbers, and buffers that outlive the calls.
    unsafe {
        libc::setsid();
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY);
        libc::unlockpt(master);
        let mut name = [0_i8; 64];
        libc::ptsname_r(master, name.as_mut_ptr().cast(), name.len());
        let slave = libc::open(name.as_ptr().cast(), libc::O_RDWR);
        let control = libc::ioctl(slave, libc::TIOCSCTTY, 0);
        let typed = outcome(libc::ioctl(slave, libc::TIOCSTI, c"x".as_ptr()).into());
        if control == 0 { typed } else { format!("no terminal, {typed}") }
    }
}
