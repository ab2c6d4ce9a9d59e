//! The walls of a sprite by name, so that the tests can take away each one and see an attack get through where it
//! stood: a wall whose absence nobody notices may have been absent for long.
//!
//! In production all walls stand. No setting, request or variable leads here; only [`Walls::without`] takes one away,
//! and nothing in this program calls it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::egress::{Resolver, SystemResolver};

/// One thing that holds hostile code in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Wall {
    /// Both system call filters.
    Seccomp,
    /// Programs hold no capability and can get none.
    Capabilities,
    NoNewPrivs,
    /// The sprite's files can't make a program run as their owner.
    NoSuid,
    PidNamespace,
    NetworkNamespace,
    IpcNamespace,
    UtsNamespace,
    CgroupNamespace,
    /// No user namespaces inside.
    NestedNamespaces,
    /// Ids inside are other ids outside, when the service is root.
    UserIds,
    /// Files of /proc about the machine read as empty.
    ProcMasks,
    /// The kernel's settings in /proc can't be written.
    ProcReadOnly,
    /// A /dev of the sprite's own.
    OwnDevices,
    /// The machine's programs can't be written.
    MachineReadOnly,
    /// The machine's programs are seen through inodes of the sprite's own, which nobody else can lock or watch.
    OwnInodes,
    /// Init can't be traced or read by its own user.
    ClosedInit,
    ProcessLimit,
    CoreLimit,
    OpenFileLimit,
    LockedMemoryLimit,
    MessageQueueLimit,
    SignalLimit,
    FileSizeLimit,
    /// The control group, or where there is none the service's look at memory.
    MemoryLimit,
    /// The service's look at what was written.
    DiskLimit,
    /// Only names that the policy allows exist and are connected.
    Policy,
    /// Names do not lead to private, local and own addresses.
    SpecialAddresses,
    /// A TLS hello names the host that was resolved.
    ServerName,
    /// Addresses that stand for no name are reset.
    UnknownAddresses,
}

impl Wall {
    pub const ALL: [Self; 30] = [
        Self::Seccomp,
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::NoSuid,
        Self::PidNamespace,
        Self::NetworkNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
        Self::NestedNamespaces,
        Self::UserIds,
        Self::ProcMasks,
        Self::ProcReadOnly,
        Self::OwnDevices,
        Self::MachineReadOnly,
        Self::OwnInodes,
        Self::ClosedInit,
        Self::ProcessLimit,
        Self::CoreLimit,
        Self::OpenFileLimit,
        Self::LockedMemoryLimit,
        Self::MessageQueueLimit,
        Self::SignalLimit,
        Self::FileSizeLimit,
        Self::MemoryLimit,
        Self::DiskLimit,
        Self::Policy,
        Self::SpecialAddresses,
        Self::ServerName,
        Self::UnknownAddresses,
    ];
}

/// Which walls stand; by default all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    missing: Vec<Wall>,
}

impl Walls {
    /// For tests alone.
    #[doc(hidden)]
    pub fn without(missing: &[Wall]) -> Self {
        Self { missing: missing.to_vec() }
    }

    pub fn has(&self, wall: Wall) -> bool {
        !self.missing.contains(&wall)
    }
}

/// What a test may change about a host: its walls, and the world outside.
#[derive(Clone)]
pub struct Trial {
    pub walls: Walls,
    pub resolver: Arc<dyn Resolver>,
}

impl Default for Trial {
    fn default() -> Self {
        Self { walls: Walls::default(), resolver: Arc::new(SystemResolver) }
    }
}
