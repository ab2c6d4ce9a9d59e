//! Which system calls a sandbox may make: three filters, installed by init before any foreign code runs.
//!
//! The first is by number and has the shape "the numbers known when this was written, minus the denied": x32 numbers
//! and calls that a later kernel adds answer `ENOSYS`, as on an old kernel, so programs fall back. Its answers are
//! constant, which the kernel caches: an allowed call costs nothing. The second looks at
//! arguments. The third makes calls succeed without effect.
//!
//! Known price: Chrome's own sandbox, nested bubblewrap, containers and io_uring programs do not work inside; nor do
//! 32-bit programs. Debuggers do.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

/// One above the newest system call that was looked at: `removexattrat`, Linux 6.13. The same on both architectures.
const KNOWN: u32 = 467;

/// Answered with `EPERM`: what reaches parts of the kernel that no agent needs and that exploits like.
const DENIED: &[libc::c_long] = &[
    // Mounts, old and new ways, and other roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Namespaces.
    libc::SYS_setns,
    libc::SYS_unshare,
    // Large, young or powerful interfaces.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_vmsplice,
    libc::SYS_process_madvise,
    libc::SYS_memfd_secret,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_personality,
    // Keyrings are not tied to any namespace that we make.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The machine itself.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    SYS_QUOTACTL_FD,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    // POSIX message queues hold memory that no limit of ours counts.
    libc::SYS_mq_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// Not in libc for every target; the number is the same on all.
const SYS_QUOTACTL_FD: libc::c_long = 443;

/// Flags of `clone` that make namespaces. (`CLONE_NEWTIME` can't be given to `clone`: its bit is part of the signal.)
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Installs the filters, for this process and all that come from it. `no_new_privs` must be set.
pub fn install() -> io::Result<()> {
    // In any order: none denies `seccomp` itself.
    for filter in [by_argument().map_err(io::Error::other)?, without_effect().map_err(io::Error::other)?, by_number()] {
        seccompiler::apply_filter(&filter).map_err(|e| match e {
            seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e) => e,
            e => io::Error::other(e),
        })?;
    }
    Ok(())
}

/// The filter by number, written out in BPF: one range and a list.
fn by_number() -> BpfProgram {
    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xC000_003E;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xC000_00B7;
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    const fn errno(errno: libc::c_int) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno as u32
    }
    fn step(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
        sock_filter { code, jt, jf, k }
    }

    // `seccomp_data`: the number is at offset 0, the architecture at 4.
    let mut program = vec![
        step(LOAD, 4, 0, 0),
        step(EQUAL, ARCH, 1, 0),
        step(RETURN, KILL, 0, 0),
        step(LOAD, 0, 0, 0),
        step(AT_LEAST, KNOWN, 0, 1),
        step(RETURN, errno(libc::ENOSYS), 0, 0),
        // clone3 takes its flags by pointer, where a filter can't look; C libraries fall back to clone.
        step(EQUAL, libc::SYS_clone3 as u32, 0, 1),
        step(RETURN, errno(libc::ENOSYS), 0, 0),
    ];
    for &number in DENIED {
        program.push(step(EQUAL, number as u32, 0, 1));
        program.push(step(RETURN, errno(libc::EPERM), 0, 0));
    }
    program.push(step(RETURN, ALLOW, 0, 0));
    program
}

/// The filter by argument: a rule that matches refuses the call.
fn by_argument() -> Result<BpfProgram, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let is = |argument, op, value: libc::c_int| {
        // The kernel takes 32 bits of these arguments, so must the comparison: garbage above them means nothing.
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, u64::from(value as u32))
    };
    let kind = MaskedEq(0xF);
    let mut rules = BTreeMap::new();

    let clone: Result<Vec<_>, _> = NAMESPACE_FLAGS
        .into_iter()
        .map(|flag| SeccompRule::new(vec![is(0, MaskedEq(u64::from(flag as u32)), flag)?]))
        .collect();
    rules.insert(libc::SYS_clone, clone?);
    // AF_VSOCK above all: it is not tied to the network namespace and reaches the hypervisor of a virtual machine.
    rules.insert(
        libc::SYS_socket,
        vec![
            SeccompRule::new(vec![
                is(0, Ne, libc::AF_UNIX)?,
                is(0, Ne, libc::AF_INET)?,
                is(0, Ne, libc::AF_INET6)?,
                is(0, Ne, libc::AF_NETLINK)?,
            ])?,
            SeccompRule::new(vec![is(0, Eq, libc::AF_INET)?, is(1, kind.clone(), libc::SOCK_RAW)?])?,
            SeccompRule::new(vec![is(0, Eq, libc::AF_INET6)?, is(1, kind.clone(), libc::SOCK_RAW)?])?,
            // SOCK_PACKET, the old way to a packet socket.
            SeccompRule::new(vec![is(0, Eq, libc::AF_INET)?, is(1, kind, 10)?])?,
            // Of netlink only NETLINK_ROUTE, which getifaddrs needs.
            SeccompRule::new(vec![is(0, Eq, libc::AF_NETLINK)?, is(2, Ne, libc::NETLINK_ROUTE)?])?,
        ],
    );
    rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(vec![is(0, Ne, libc::AF_UNIX)?])?]);
    // Typing into a terminal on behalf of its user.
    const TIOCLINUX: libc::c_int = 0x541C;
    rules.insert(
        libc::SYS_ioctl,
        vec![
            SeccompRule::new(vec![is(1, Eq, libc::TIOCSTI as libc::c_int)?])?,
            SeccompRule::new(vec![is(1, Eq, TIOCLINUX)?])?,
        ],
    );
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), arch)?;
    filter.try_into()
}

/// The filter of calls that are answered with success and not done: a program's wish for larger socket buffers. The
/// sizes are hints, which the kernel cuts as well; but it cuts at megabytes for each socket, and where no control group
/// counts them a sprite could fill the machine's memory with a few hundred. TCP's buffers grow by themselves.
fn without_effect() -> Result<BpfProgram, seccompiler::BackendError> {
    let is = |argument, value: libc::c_int| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value as u32))
    };
    let sizes: Result<Vec<_>, _> = [libc::SO_SNDBUF, libc::SO_RCVBUF]
        .into_iter()
        .map(|size| SeccompRule::new(vec![is(1, libc::SOL_SOCKET)?, is(2, size)?]))
        .collect();
    let rules = BTreeMap::from([(libc::SYS_setsockopt, sizes?)]);
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(0), arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_filters_compile_and_fit_the_kernel() {
        assert!(without_effect().unwrap().len() < 4096);
        assert!(by_argument().unwrap().len() < 4096);
        assert!(by_number().len() < 4096);
    }

    #[test]
    fn every_denied_call_is_within_the_known_range() {
        assert!(DENIED.iter().all(|&n| n >= 0 && n < i64::from(KNOWN)));
    }
}
