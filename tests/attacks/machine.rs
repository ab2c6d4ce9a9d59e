//! This machine, as far as the attacks need something of it: listeners, names, and a /usr in which the test may plant.

use std::ffi::CString;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

/// Where the disguised /usr has what was planted in it.
const PLANTED: &str = "/usr/share/janebot-attacks";

pub struct Machine {
    /// A directory of /usr that everybody may write, and in it a socket that listens. Only where root could disguise
    /// /usr for this test.
    pub planted: Option<PathBuf>,
    pub port: u16,
    pub abstract_name: String,
    /// An address of one of its interfaces.
    pub own: Option<IpAddr>,
    _listeners: (TcpListener, UnixListener, Option<UnixListener>),
}

impl Machine {
    /// As root: gives this process, and nobody else, a /usr with an upper layer in `dir`.
    pub fn disguised(dir: &Path) -> Self {
        if rustix::process::geteuid().is_root()
            && let Err(error) = disguise(dir)
        {
            println!("no /usr for planting: {error}");
        }
        Self::inherited()
    }

    pub fn inherited() -> Self {
        let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
        let abstract_name = format!("janebot-attack-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let socket = Path::new(PLANTED).join(format!("{}.sock", std::process::id()));
        let planted = UnixListener::bind(&socket).ok();
        if planted.is_some() {
            std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
        Self {
            planted: planted.is_some().then_some(socket),
            port: loopback.local_addr().unwrap().port(),
            own: own_address(),
            abstract_name,
            _listeners: (loopback, UnixListener::bind_addr(&address).unwrap(), planted),
        }
    }
}

fn disguise(dir: &Path) -> std::io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // Enough to see a sprite's own limit, where this process may.
    let memory = rustix::process::Rlimit { current: Some(64 << 20), maximum: Some(64 << 20) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, memory);
    // SAFETY: no descriptors are unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let (upper, work) = (dir.join("usr"), dir.join("usr-work"));
    std::fs::create_dir(&upper)?;
    std::fs::create_dir(&work)?;
    std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(0o755))?;
    let options = format!("lowerdir=/usr,upperdir={},workdir={}", upper.display(), work.display());
    mount("overlay", "/usr", "overlay", MountFlags::empty(), CString::new(options)?.as_c_str())?;
    std::fs::create_dir(PLANTED)?;
    std::fs::set_permissions(PLANTED, std::fs::Permissions::from_mode(0o1777))
}

/// The address from which the machine would reach the world; nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Deletes what an overlay closed to everybody.
pub fn clean(dir: &Path) {
    let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    for sprite in below(dir).flat_map(|state| below(&state.path().join("sprites"))) {
        let _ = janebot::host::layers::recover(&sprite.path(), &[])
            .and_then(|()| janebot::host::layers::empty_trash(&sprite.path()));
    }
}

/// Processes of this machine whose command line holds `mark`; a zombie has none.
pub fn alive(mark: &str) -> usize {
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let command = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&command).contains(mark).then_some(())
    };
    std::fs::read_dir("/proc").unwrap().filter_map(count).count()
}
