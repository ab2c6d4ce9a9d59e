//! What lies below a sandbox's own files: user ids, the run's empty folders, and the skeleton layer.
//!
//! The skeleton is a small frozen layer per sprite: the directories that get mounted over, the home, and the few files
//! of /etc that describe the sandbox rather than this machine. Below it is either nothing, and this machine's own
//! system directories are mounted over it read-only from a list of names ([`MACHINE_DIRS`], [`MACHINE_FILES`], of which
//! the single files are copied); or the
//! operator's root directory, whose /etc/passwd and /etc/group are taken over with the sprite's user added.
//!
//! Runs in the helper, with the service's own ids, in the sprite's folder.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::network::GATEWAY;
use super::wire::Setup;

/// User and group of everything that runs inside, as seen inside.
pub const SPRITE_ID: u32 = 1000;
/// The first user id on this machine that a sprite of a root service gets: above what people and packages use.
const FIRST_ID: u32 = 1_000_000;
/// Ends the search for free ids; a machine does not hold more sprites.
const MAX_SPRITES: u32 = 10_000;
/// Part of the skeleton's name, so that a newer version of this program builds its own.
const FORMAT: u32 = 2;

/// This machine's directories that hold programs: those at the root that exist, as links or mounts, as they are here.
pub(super) const MACHINE_DIRS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// The parts of /etc that programs need to work; nothing in them is private to this machine.
pub(super) const MACHINE_FILES: [&str; 22] = [
    "etc/ld.so.cache",
    "etc/ld.so.conf",
    "etc/ld.so.conf.d",
    "etc/alternatives",
    "etc/ssl/certs",
    "etc/ssl/openssl.cnf",
    "etc/ca-certificates.conf",
    "etc/pki/tls/certs",
    "etc/pki/ca-trust/extracted",
    "etc/crypto-policies",
    "etc/localtime",
    "etc/timezone",
    "etc/os-release",
    "etc/debian_version",
    "etc/protocols",
    "etc/services",
    "etc/mime.types",
    "etc/magic",
    "etc/bash.bashrc",
    "etc/inputrc",
    "etc/host.conf",
    "etc/gai.conf",
];

/// Who owns a sprite's files on this machine.
pub(super) struct Owners {
    /// Who is root inside, if anybody.
    pub root: (u32, u32),
    pub sprite: (u32, u32),
}

/// Finds the first of the sprite's `range` of user ids: that which its folder belongs to already, so that its files
/// keep their owners, or else one that no other sprite beside it has. For a service that is root.
pub(super) fn assign_ids(range: u32) -> io::Result<u32> {
    let own = fs::metadata(".")?.uid();
    if own >= FIRST_ID {
        return Ok(own);
    }
    // Sprites may start at the same moment.
    let parent = File::open("..")?;
    rustix::fs::flock(&parent, FlockOperation::LockExclusive)?;
    let mut taken = Vec::new();
    for entry in fs::read_dir("..")? {
        // One that is being deleted gives its ids back.
        taken.extend(entry.and_then(|e| e.metadata()).map(|m| m.uid()));
    }
    let base = (0..MAX_SPRITES)
        .map(|n| FIRST_ID + n * range)
        .find(|base| !taken.contains(base))
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EUSERS))?;
    chown(".", Some(base), Some(base))?;
    Ok(base)
}

/// Makes the run's folders and, if it is not there, the skeleton. Gives the skeleton's name.
pub(super) fn prepare(setup: &Setup, owners: &Owners) -> io::Result<String> {
    let own = |path: &Path| chown(path, Some(owners.root.0), Some(owners.root.1));
    let private = |path: &Path| -> io::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        own(path)
    };
    let run = Path::new(&setup.run);
    if !run.exists() {
        fs::create_dir_all(run)?;
    }
    private(Path::new("."))?;
    for path in run.ancestors().filter(|p| !p.as_os_str().is_empty()).chain([Path::new("layers")]) {
        if path.exists() {
            private(path)?;
        }
    }
    for part in ["up", "work", "root"] {
        let path = run.join(part);
        match fs::create_dir(&path) {
            // A run that goes on: its files stay, the rest is new.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && part == "up" => continue,
            made => made?,
        }
        own(&path)?;
    }

    let name = match &setup.rootfs {
        None => format!("base-{FORMAT}"),
        Some(path) => {
            let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
            format!("base-{FORMAT}-{}", hex::encode(&digest[..4]))
        }
    };
    if !Path::new(&name).exists() {
        // Complete or not there at all: built beside and renamed.
        let draft = Path::new("base.new");
        if draft.exists() {
            fs::remove_dir_all(draft)?;
        }
        skeleton(draft, setup, owners)?;
        fs::rename(draft, &name)?;
    }
    if setup.rootfs.is_none() {
        refresh(Path::new(&name), owners)?;
    }
    Ok(name)
}

/// Brings the skeleton's copies of this machine's files up to date: an upgrade of the machine may have moved the
/// libraries that its programs need.
fn refresh(skeleton: &Path, owners: &Owners) -> io::Result<()> {
    for name in MACHINE_FILES {
        let here = Path::new("/").join(name);
        let copy = skeleton.join(name);
        let (Ok(now), Ok(then)) = (fs::symlink_metadata(&here), fs::symlink_metadata(&copy)) else { continue };
        if !now.is_file() || (now.modified()?, now.len()) == (then.modified()?, then.len()) {
            continue;
        }
        // Beside and renamed, for a sandbox that is on its way out may still look at the old one.
        let draft = skeleton.join("etc/.new");
        fs::copy(&here, &draft)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o644))?;
        chown(&draft, Some(owners.root.0), Some(owners.root.1))?;
        File::options().write(true).open(&draft)?.set_modified(now.modified()?)?;
        fs::rename(&draft, &copy)?;
    }
    Ok(())
}

fn skeleton(at: &Path, setup: &Setup, owners: &Owners) -> io::Result<()> {
    let dir = |path: &str, mode: u32, owner: (u32, u32)| -> io::Result<()> {
        let path = at.join(path);
        DirBuilder::new().recursive(true).create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        chown(&path, Some(owner.0), Some(owner.1))
    };
    let file = |path: &str, content: &str| -> io::Result<()> {
        let path = at.join(path);
        fs::write(&path, content)?;
        chown(&path, Some(owners.root.0), Some(owners.root.1))
    };
    let places = ["", "dev", "etc", "home", "mnt", "opt", "proc", "run", "srv", "usr", "usr/local", "var", "var/lib"];
    for path in places {
        dir(path, 0o755, owners.root)?;
    }
    dir("tmp", 0o1777, owners.root)?;
    dir("var/tmp", 0o1777, owners.root)?;
    dir("root", 0o700, owners.root)?;
    dir("home/sprite", 0o755, owners.sprite)?;

    if setup.rootfs.is_none() {
        for name in MACHINE_DIRS {
            let here = Path::new("/").join(name);
            match fs::symlink_metadata(&here) {
                Ok(m) if m.is_symlink() => symlink(fs::read_link(&here)?, at.join(name))?,
                Ok(m) if m.is_dir() => dir(name, 0o755, owners.root)?,
                _ => {}
            }
        }
        for name in MACHINE_FILES {
            let here = Path::new("/").join(name);
            let Ok(metadata) = fs::symlink_metadata(&here) else { continue };
            if let Some(parent) = Path::new(name).parent().and_then(Path::to_str).filter(|p| *p != "etc") {
                dir(parent, 0o755, owners.root)?;
            }
            if metadata.is_symlink() {
                symlink(fs::read_link(&here)?, at.join(name))?;
            } else if metadata.is_dir() {
                dir(name, 0o755, owners.root)?;
            } else {
                file(name, "")?;
            }
        }
    }

    let of_base = |name: &str| -> String {
        setup.rootfs.as_ref().and_then(|root| fs::read_to_string(root.join(name)).ok()).unwrap_or_default()
    };
    let id = SPRITE_ID;
    file(
        "etc/passwd",
        &with_sprite(
            &of_base("etc/passwd"),
            ROOT_AND_NOBODY,
            &format!("sprite:x:{id}:{id}:sprite:/home/sprite:/bin/bash"),
        ),
    )?;
    file("etc/group", &with_sprite(&of_base("etc/group"), GROUPS, &format!("sprite:x:{id}:")))?;
    file("etc/hostname", &format!("{}\n", setup.name))?;
    file("etc/hosts", &format!("127.0.0.1 localhost {}\n::1 localhost\n", setup.name))?;
    file("etc/resolv.conf", &format!("nameserver {GATEWAY}\n"))?;
    file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n")
}

const ROOT_AND_NOBODY: &str =
    "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUPS: &str = "root:x:0:\nnogroup:x:65534:\n";

/// The base's accounts without those that would collide with the sprite's, and the sprite's own.
fn with_sprite(base: &str, default: &str, sprite: &str) -> String {
    let id = SPRITE_ID.to_string();
    let lines = if base.is_empty() { default } else { base }.lines();
    let mut text: String = lines
        .filter(|line| {
            let mut fields = line.split(':');
            fields.next() != Some("sprite") && fields.nth(1) != Some(&id)
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    text.push_str(sprite);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_own_user_1000_gives_way_to_the_sprite() {
        let text = with_sprite(
            "root:x:0:0::/root:/bin/sh\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n",
            "",
            "sprite:x:1000:",
        );
        assert_eq!(text, "root:x:0:0::/root:/bin/sh\nsprite:x:1000:\n");
    }

    #[test]
    fn without_an_image_there_is_root_nobody_and_the_sprite() {
        assert_eq!(with_sprite("", GROUPS, "sprite:x:1000:"), "root:x:0:\nnogroup:x:65534:\nsprite:x:1000:\n");
    }
}
