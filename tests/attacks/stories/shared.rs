//! Attacks on what sprites share: the machine's files, and being next to each other.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use janebot::sprites::Sprites;

use super::Scene;
use crate::table::Line;

/// Files of the machine that every sprite sees, of a directory and alone.
const SHARED: [&str; 2] = ["/usr/bin/env", "/etc/ld.so.cache"];

pub async fn all(scene: &Scene<'_>) -> Vec<Line> {
    vec![
        layer_socket(scene).await,
        machine_socket(scene).await,
        two_sprites(scene).await,
        memory_of_the_machine(scene).await,
        watch(scene).await,
        lock(scene).await,
        links(scene).await,
        setuid(scene).await,
        kill_init(scene).await,
        Line::not_runnable("66", "hostile entries in an imported image", "none", "images are not imported"),
    ]
}

async fn layer_socket(scene: &Scene<'_>) -> Line {
    let path = scene.rig.dir(scene.one).join("layers").join(scene.armed.as_str()).join("home/sprite/socket");
    // A socket's path has at most 108 bytes.
    let near = scene.machine_dir().join("s");
    let listener = symlink(path.parent().unwrap(), &near).and_then(|()| UnixListener::bind(near.join("socket")));
    let open = std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777));
    let got = match listener.and(open) {
        Ok(()) => {
            scene.restore().await;
            scene.one("path-socket /home/sprite/socket").await
        }
        Err(error) => format!("no listener: {error}"),
    };
    let _ = std::fs::remove_file(&path);
    Line::judge("43", "a socket that listens in a lower layer", "own inodes of the overlay", "ECONNREFUSED", got)
}

async fn machine_socket(scene: &Scene<'_>) -> Line {
    let (attack, wall) = ("a socket that listens in the machine's /usr", "own inodes of the overlay");
    match &scene.machine.planted {
        Some(path) => {
            let got = scene.one(&format!("path-socket {}", path.display())).await;
            Line::judge("43a", attack, wall, "ECONNREFUSED", got)
        }
        None => Line::not_runnable("43a", attack, wall, "only root can plant one"),
    }
}

async fn two_sprites(scene: &Scene<'_>) -> Line {
    let planted = scene.one("plant").await;
    let (ready, listening) = scene.begun(scene.one, "listen").await;
    let pid = format!("{}", 2);
    let answers = [
        scene.two("planted").await,
        scene.two("connect 127.0.0.1:7777").await,
        scene.two("abstract sprite-attack").await,
        scene.two(&format!("see {pid}00")).await,
    ];
    drop(listening);
    let got = format!("{planted}, {ready}; {}", answers.join(", "));
    let expected = "planted true, ready; absent, ECONNREFUSED, ECONNREFUSED, ENOENT, few";
    let attack = "another sprite's files, shared memory, ports, sockets, processes";
    Line::judge("68", attack, "namespaces of each sprite", expected, got)
}

async fn memory_of_the_machine(scene: &Scene<'_>) -> Line {
    let segment = Segment::new();
    let got = scene.one(&format!("shmget {}", segment.key)).await;
    Line::judge("68a", "the machine's System V shared memory", "ipc namespace", "ENOENT", got)
}

async fn watch(scene: &Scene<'_>) -> Line {
    let mut answers = Vec::new();
    for file in SHARED {
        answers.push(watched(scene, file).await);
    }
    let got = if answers[0] == answers[1] { answers[0].clone() } else { answers.join(", ") };
    let attack = "hear by inotify when the machine uses a program";
    Line::judge("76", attack, "own inodes of the overlay", "ready, then unseen", got)
}

/// What a sprite that watches a file of the machine hears of its use.
pub async fn watched(scene: &Scene<'_>, file: &str) -> String {
    let (first, mut exec) = scene.begun(scene.one, &format!("watch {file}")).await;
    let _ = std::fs::read(file);
    format!("{first}, then {}", super::first_line(&mut exec).await)
}

async fn lock(scene: &Scene<'_>) -> Line {
    let mut answers = Vec::new();
    for file in SHARED {
        let (first, holding) = scene.begun(scene.one, &format!("lock {file} stay")).await;
        answers.push(format!("{first}, {}", scene.two(&format!("lock {file}")).await));
        scene
            .rig
            .sprites
            .kill(scene.one, &holding.session, janebot::sprites::Signal::Kill, std::time::Duration::ZERO)
            .await
            .unwrap();
    }
    let got = if answers[0] == answers[1] { answers[0].clone() } else { answers.join("; ") };
    let attack = "signal to another sprite by locking a file of the machine";
    Line::judge("77", attack, "own inodes of the overlay", "done, done", got)
}

async fn links(scene: &Scene<'_>) -> Line {
    let dir = scene.machine_dir();
    std::fs::write(dir.join("secret"), "secret").unwrap();
    let told = scene.one(&format!("link {0}/secret /home/sprite/link {0} /home/sprite/dirlink", dir.display())).await;
    let sprites = &scene.rig.sprites;
    let read = sprites.read_file(scene.one, "link", 100).await.is_ok();
    let below = sprites.read_file(scene.one, "dirlink/secret", 100).await.is_ok();
    let _ = sprites.write_file(scene.one, "dirlink/planted", 0o644, "x".into()).await;
    let _ = sprites.write_file(scene.one, "link", 0o644, "x".into()).await;
    let intact = std::fs::read(dir.join("secret")).unwrap() == b"secret" && !dir.join("planted").exists();
    let got = format!("{told}; read {read} {below}; intact {intact}");
    let attack = "links to the machine's files, then the service's own reads and writes";
    Line::judge("65", attack, "file operations are done inside", "done; read false false; intact true", got)
}

async fn setuid(scene: &Scene<'_>) -> Line {
    let (attack, wall) = ("a program that is setuid root", "nosuid, no_new_privs");
    if !rustix::process::geteuid().is_root() {
        return Line::not_runnable("55", attack, wall, "an ordinary user's sprite has one id");
    }
    plant_setuid(scene);
    scene.restore().await;
    Line::judge("55", attack, wall, "1000", scene.one("setuid /home/sprite/setuid").await)
}

/// Puts into the checkpoint what an image might bring: a program that belongs to the sprite's root and is setuid.
pub fn plant_setuid(scene: &Scene<'_>) {
    use std::os::unix::fs::{MetadataExt, chown};
    let home = scene.rig.dir(scene.one).join("layers").join(scene.armed.as_str()).join("home/sprite");
    let root = std::fs::metadata(scene.rig.dir(scene.one)).unwrap().uid();
    let program = home.join("setuid");
    std::fs::copy(home.join("attack"), &program).unwrap();
    chown(&program, Some(root), Some(root)).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
}

async fn kill_init(scene: &Scene<'_>) -> Line {
    let sent = scene.one("kill-init").await;
    let alive = scene.rig.answers(scene.one).await;
    let got = format!("{sent}, init lives {alive}");
    Line::judge("48", "kill, stop and terminate init", "pid namespace", "done, init lives true", got)
}

/// A segment of System V shared memory that everybody on this machine may use.
pub struct Segment {
    pub key: i32,
    id: i32,
}

impl Segment {
    pub fn new() -> Self {
        let key = 0x6a00_0000 + std::process::id() as i32;
        // SAFETY: plain numbers.
        let id = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | 0o666) };
        assert!(id >= 0, "{}", std::io::Error::last_os_error());
        Self { key, id }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: nobody has it attached.
        unsafe { libc::shmctl(self.id, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}
