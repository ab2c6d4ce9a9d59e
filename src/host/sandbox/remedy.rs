//! From the step that failed while a sandbox was built, and how, to what an operator can do about it.

use std::fs;

use super::SandboxError;
use super::sys::Fault;

/// What of this machine decides which remedy is the right one.
#[derive(Clone, Copy, Debug, Default)]
struct Machine {
    /// `kernel.apparmor_restrict_unprivileged_userns`, of Ubuntu.
    apparmor_restricts: bool,
    /// `user.max_user_namespaces` is 0.
    none_allowed: bool,
    /// `kernel.unprivileged_userns_clone` is 0, of old Debian and hardened kernels.
    clone_forbidden: bool,
    root: bool,
    in_container: bool,
}

impl Machine {
    fn look() -> Self {
        let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
        Self {
            apparmor_restricts: is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
            none_allowed: is("/proc/sys/user/max_user_namespaces", "0"),
            clone_forbidden: is("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            root: rustix::process::geteuid().is_root(),
            in_container: fs::exists("/.dockerenv").unwrap_or(false)
                || fs::exists("/run/.containerenv").unwrap_or(false),
        }
    }
}

const CONTAINER: &str = "in a container, start it with --cap-add SYS_ADMIN and --security-opt seccomp=unconfined \
     apparmor=unconfined systempaths=unconfined (Kubernetes: hostUsers: false, procMount: Unmasked), or use the Sprites \
     cloud by setting SPRITES_TOKEN";

/// The error for a sandbox that could not be built.
pub(super) fn explain(fault: &Fault) -> SandboxError {
    let what =
        format!("this machine does not let janebot {} (error {}: {})", fault.step, fault.errno, text(fault.errno));
    match remedy(&fault.step, fault.errno, Machine::look()) {
        Some(remedy) => SandboxError::Unsupported { what, remedy },
        None => SandboxError::Start(format!("could not {}: {}", fault.step, text(fault.errno))),
    }
}

fn text(errno: i32) -> String {
    let message = std::io::Error::from_raw_os_error(errno).to_string();
    message.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn remedy(step: &str, errno: i32, machine: Machine) -> Option<String> {
    let refused = matches!(errno, libc::EPERM | libc::EACCES);
    let some = |text: &str| Some(text.to_owned());
    match step {
        "make namespaces" if machine.none_allowed => {
            some("allow user namespaces: sysctl -w user.max_user_namespaces=15000")
        }
        "make namespaces" if errno == libc::ENOSPC => {
            some("too many namespaces exist: raise user.max_user_namespaces and its siblings with sysctl")
        }
        "make namespaces" if machine.clone_forbidden && !machine.root => {
            some("allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1, or run the service as root")
        }
        "make namespaces" | "start the id mapper" | "start init" if refused => some(CONTAINER),
        "make namespaces" if errno == libc::EINVAL => {
            some("the kernel was built without some kind of namespace: use the Sprites cloud by setting SPRITES_TOKEN")
        }
        "start init" if errno == libc::ENOSYS => some(CONTAINER),
        // Ubuntu lets the namespace be made and then denies everything in it.
        "map user ids" | "set up the loopback device" | "make mounts private" | "bind the resolver"
            if refused && machine.apparmor_restricts && !machine.root =>
        {
            some(
                "AppArmor restricts user namespaces here: give this program a profile with 'userns' (see \
                 deploy/apparmor/janebot), or run the service as root",
            )
        }
        "map user ids" | "take the sandbox's user id" if refused && machine.root => some(
            "the service is root without the right to map user ids from 1000000 on: run it as an ordinary user, or give it a wider id range",
        ),
        "mount the overlay" if matches!(errno, libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP | libc::EPERM) => some(
            "the file system of DATA_DIR can't hold overlay layers (an overlay itself, NFS or an old kernel): put \
             DATA_DIR on another volume, ext4 or xfs; Linux 5.14 or newer is needed",
        ),
        "mount /proc" if refused => some(CONTAINER),
        "mount this machine's system directories" | "build /dev" | "mount /tmp" | "mount /run"
            if refused || errno == libc::ENOSYS =>
        {
            some(if machine.in_container {
                CONTAINER
            } else {
                "Linux 5.14 or newer with the new mount calls is needed"
            })
        }
        "install the system call filters" | "set no_new_privs" => some(
            "the kernel needs seccomp filters (CONFIG_SECCOMP_FILTER), or use the Sprites cloud by setting SPRITES_TOKEN",
        ),
        "open HOST_ROOTFS" => some("HOST_ROOTFS must be a directory that the service can read"),
        "prepare the sprite's folder" if matches!(errno, libc::EACCES | libc::EPERM | libc::EROFS | libc::ENOSPC) => {
            some("DATA_DIR must be writable, with space left, and belong to the user that runs the service")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_obstacle_has_its_own_remedy() {
        let user = Machine::default();
        let root = Machine { root: true, ..user };
        let cases = [
            ("make namespaces", libc::ENOSPC, Machine { none_allowed: true, ..user }, "max_user_namespaces"),
            ("make namespaces", libc::EPERM, Machine { clone_forbidden: true, ..user }, "unprivileged_userns_clone"),
            ("make namespaces", libc::EPERM, root, "seccomp=unconfined"),
            ("map user ids", libc::EPERM, Machine { apparmor_restricts: true, ..user }, "AppArmor"),
            ("set up the loopback device", libc::EPERM, Machine { apparmor_restricts: true, ..user }, "AppArmor"),
            ("mount the overlay", libc::EINVAL, user, "another volume"),
            ("mount /proc", libc::EPERM, root, "systempaths"),
        ];
        for (step, errno, machine, expected) in cases {
            let remedy = remedy(step, errno, machine).unwrap();
            assert!(remedy.contains(expected), "{step}: {remedy}");
        }
    }

    #[test]
    fn an_unknown_failure_is_not_explained_away() {
        assert_eq!(remedy("drop capabilities", libc::EIO, Machine::default()), None);
    }
}
