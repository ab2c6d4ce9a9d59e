//! The start-up self-test: builds a real sandbox, runs a program in it and restores it. What fails here would fail in
//! production, so the host does not start, and says which step it was and what to do.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::Instant;

use super::{Command, FsOp, Sandbox, SandboxError, SandboxSpec, launch};
use crate::config::{Isolation, Limits};
use crate::host::layers;

/// Left behind by the first sandbox, and gone in the second.
const TRACE: &str = "trace";

/// Tries everything once in a scratch folder of `state_dir`. Gives what was found, line by line, for the operator. `exe`
/// is the program that becomes the helper; this one when `None`.
///
/// # Errors
/// [`SandboxError::Unsupported`] with the step that failed and the remedy, or another failure of that step.
pub async fn probe(exe: Option<&Path>, state_dir: &Path, rootfs: Option<&Path>) -> Result<Vec<String>, SandboxError> {
    // Its own name each time: the folder of the one before is still being removed.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = state_dir.join(format!("probe.{}.{number}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).map_err(|e| SandboxError::Unsupported {
        what: format!("{} can't be written ({e})", state_dir.display()),
        remedy: "DATA_DIR must be a directory of the service's own".into(),
    })?;
    let found = attempt(exe, &dir, rootfs).await;
    let remains = dir.clone();
    let removed = tokio::task::spawn_blocking(move || {
        layers::recover(&remains, &[])?;
        layers::empty_trash(&remains)?;
        std::fs::remove_dir_all(&remains)
    });
    // The start of the service does not wait for it.
    tokio::spawn(async move {
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, dir = %dir.display(), "the self-test left its folder behind");
        }
    });
    found
}

async fn attempt(exe: Option<&Path>, dir: &Path, rootfs: Option<&Path>) -> Result<Vec<String>, SandboxError> {
    let begun = Instant::now();
    let sandbox = start(exe, dir, rootfs).await?;
    let ready = begun.elapsed();
    expect(&sandbox, Command::Fs(FsOp::Mkdir { path: TRACE.into(), parents: false }), 0, "write a file").await?;
    let shell =
        Command::Exec { argv: ["sh", "-c", "exit 7"].map(String::from).into(), env: Vec::new(), dir: None, tty: None };
    let begun = Instant::now();
    match expect(&sandbox, shell, 7, "run a shell").await {
        Err(error) if error.exit_status().is_some() => {
            let root = rootfs.unwrap_or(Path::new("/"));
            return Err(SandboxError::Unsupported {
                what: format!("{} has no shell that can be executed ({error})", root.display()),
                remedy: "HOST_ROOTFS must be the root directory of a Linux system for this processor".into(),
            });
        }
        ran => ran?,
    }
    let ran = begun.elapsed();
    let begun = Instant::now();
    sandbox.kill().await?;
    let sandbox = start(exe, dir, rootfs).await?;
    let restored = begun.elapsed();
    let look = Command::Fs(FsOp::List { path: TRACE.into(), recursive: false });
    expect(&sandbox, look, 1, "be clean after a restore").await?;
    let memory = if sandbox.inner.grouped {
        "held by the kernel"
    } else {
        "measured four times a second (for an exact limit give the service a delegated control group)"
    };
    sandbox.stop().await?;

    let mut base = rootfs.map_or("this machine's system directories, read-only".into(), |p| p.display().to_string());
    if let (None, Some(place)) = (rootfs, mounted_below_usr()) {
        base.push_str(&format!(
            " (with {place} mounted below /usr, sprites share its files with the machine: they can hear of their use and \
             signal to each other by locking them; HOST_ROOTFS avoids it)"
        ));
    }
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
    Ok(vec![
        format!(
            "sandboxes work: ready in {:.1} ms, a shell in {:.1} ms, a restore in {:.1} ms",
            ms(ready),
            ms(ran),
            ms(restored)
        ),
        format!("base: {base}"),
        format!("memory limit: {memory}"),
        "disk limit: measured every few seconds, a sprite above it is ended".into(),
    ])
}

/// A file system that keeps sprites from seeing /usr through inodes of their own.
fn mounted_below_usr() -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let place = |line: &str| line.split(' ').nth(4).filter(|place| place.starts_with("/usr/")).map(str::to_owned);
    mounts.lines().find_map(place)
}

async fn start(exe: Option<&Path>, dir: &Path, rootfs: Option<&Path>) -> Result<Sandbox, SandboxError> {
    let spec = SandboxSpec {
        name: "probe".into(),
        run: layers::new_run(dir)?,
        dir: dir.into(),
        lower: Vec::new(),
        rootfs: rootfs.map(PathBuf::from),
        limits: Limits::default(),
        ports: vec![443],
        isolation: Isolation::Full,
    };
    match exe {
        Some(exe) => Sandbox::start_with(exe, spec).await,
        None => Sandbox::start_with(&launch::helper(), spec).await,
    }
}

async fn expect(sandbox: &Sandbox, command: Command, status: u8, what: &str) -> Result<(), SandboxError> {
    let process = sandbox.spawn(command).await?;
    match process.exit.await {
        Ok(got) if got == status => Ok(()),
        Ok(got) => Err(SandboxError::Start(format!("it could not {what} (exit status {got} instead of {status})"))),
        Err(_) => Err(SandboxError::Gone),
    }
}
