//! Bombs. Each stops by itself a little above the limit that should have stopped it, so that a missing wall costs the
//! machine nothing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

use super::{each, error, outcome};

const MIB: usize = 1 << 20;

pub fn attempt(words: &[&str]) -> Option<String> {
    let argument = |n: usize| words.get(n).copied().unwrap_or_default();
    let number = |n: usize| argument(n).parse::<usize>().unwrap_or(0);
    Some(match words[0] {
        // COUNT: forks so many children that stay.
        "fork-bomb" => fork_bomb(number(1)),
        "open-files" => {
            raise(libc::RLIMIT_NOFILE);
            let mut open = Vec::new();
            let refused = (0..number(1)).find_map(|_| File::open("/dev/null").map(|file| open.push(file)).err());
            refused.map_or("done".into(), |e| error(&e))
        }
        "lock-memory" => {
            raise(libc::RLIMIT_MEMLOCK);
            let block = vec![1_u8; number(1) * MIB];
            // SAFETY: the block outlives the call.
            outcome(unsafe { libc::mlock(block.as_ptr().cast(), block.len()) }.into())
        }
        "queue-signals" => queue_signals(number(1)),
        "file-size" => {
            raise(libc::RLIMIT_FSIZE);
            // SAFETY: ignoring a signal is always sound. What is sparse takes no room.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
            let file = File::create("/home/sprite/sparse");
            let grown = file.and_then(|file| file.set_len((number(1) * MIB) as u64));
            let _ = fs::remove_file("/home/sprite/sparse");
            grown.map_or_else(|e| error(&e), |()| "done".into())
        }
        "raise-limits" => {
            let limits = [
                ("NPROC", libc::RLIMIT_NPROC),
                ("CORE", libc::RLIMIT_CORE),
                ("NOFILE", libc::RLIMIT_NOFILE),
                ("MEMLOCK", libc::RLIMIT_MEMLOCK),
                ("MSGQUEUE", libc::RLIMIT_MSGQUEUE),
                ("SIGPENDING", libc::RLIMIT_SIGPENDING),
                ("FSIZE", libc::RLIMIT_FSIZE),
            ];
            each(limits.map(|(name, limit)| (name, raise_hard(limit))))
        }
        "memory" => memory(argument(1), number(2)),
        "disk" => disk(argument(1), number(2)),
        "flood" => {
            let line = "y\n".repeat(MIB / 2);
            let mut out = std::io::stdout();
            for _ in 0..number(1) {
                if out.write_all(line.as_bytes()).is_err() {
                    break;
                }
            }
            "flooded".into()
        }
        _ => return None,
    })
}

fn fork_bomb(count: usize) -> String {
    raise(libc::RLIMIT_NPROC);
    let mut children = Vec::new();
    let mut refused = "done".to_owned();
    for _ in 0..count {
        // SAFETY: the process has one thread.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: always sound.
                unsafe { libc::pause() };
            },
            -1 => {
                refused = error(&std::io::Error::last_os_error());
                break;
            }
            child => children.push(child),
        }
    }
    for child in &children {
        // SAFETY: plain numbers, of children not waited for yet.
        unsafe {
            libc::kill(*child, libc::SIGKILL);
            libc::waitpid(*child, std::ptr::null_mut(), 0);
        }
    }
    refused
}

/// Signals to this process itself, which it does not take.
fn queue_signals(count: usize) -> String {
    raise(libc::RLIMIT_SIGPENDING);
    // SAFETY: the set is initialised before use; the rest are plain numbers.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGRTMIN());
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
        let refused = (0..count).any(|_| libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), value) != 0);
        if refused { error(&std::io::Error::last_os_error()) } else { "done".into() }
    }
}

fn limit(resource: libc::__rlimit_resource_t) -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct outlives the call.
    unsafe { libc::getrlimit(resource, &raw mut limit) };
    limit
}

/// As far as anybody may.
fn raise(resource: libc::__rlimit_resource_t) {
    let mut limit = limit(resource);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the struct outlives the call.
    unsafe { libc::setrlimit(resource, &raw const limit) };
}

/// Beyond what anybody may.
fn raise_hard(resource: libc::__rlimit_resource_t) -> String {
    let mut limit = limit(resource);
    if limit.rlim_max == libc::RLIM_INFINITY {
        return "unlimited".into();
    }
    limit.rlim_max += 1;
    // SAFETY: the struct outlives the call.
    outcome(unsafe { libc::setrlimit(resource, &raw const limit) }.into())
}

/// Takes so many MiB of memory in one of many ways, and holds them for longer than the service looks away.
fn memory(kind: &str, mib: usize) -> String {
    raise(libc::RLIMIT_NOFILE);
    let chunk = vec![1_u8; MIB];
    // SAFETY: ignoring a signal is always sound.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // Below the limit of a single file.
    let fill = |file: &File| (0..50).take_while(|_| { file }.write_all(&chunk).is_ok()).count();
    let mut blocks = Vec::new();
    let mut files = Vec::new();
    let taken = match kind {
        "malloc" => {
            blocks.extend((0..mib).map(|_| chunk.clone()));
            mib
        }
        "memfd" => {
            // SAFETY: a terminated string; the descriptors are new.
            files.extend((0..mib / 50).map(|_| unsafe { File::from_raw_fd(libc::memfd_create(c"bomb".as_ptr(), 0)) }));
            files.iter().map(fill).sum()
        }
        // Memory-backed file systems, which have sizes of their own.
        "tmpfs" => {
            let paths =
                ["/dev/shm", "/tmp", "/run"].iter().flat_map(|dir| (0..3).map(move |n| format!("{dir}/bomb{n}")));
            files.extend(paths.filter_map(|path| File::create(path).ok()));
            files.iter().map(fill).sum()
        }
        "sockets" | "pipes" => full_pairs(kind == "sockets", mib),
        "tcp" => full_connections(mib),
        _ => return format!("no such memory: {kind}"),
    };
    // SAFETY: only waits.
    unsafe { libc::sleep(4) };
    drop((blocks, files));
    if taken >= mib { "held all".into() } else { format!("held {taken} MiB") }
}

/// Fills buffers of the kernel until they hold so many MiB, or nothing more goes in. Descriptors are limited for each
/// process, so it takes many.
fn full_pairs(sockets: bool, mib: usize) -> usize {
    let (mut taken, mut before) = (0, usize::MAX);
    while taken / MIB < mib && taken != before {
        before = taken;
        let Ok((mut count, report)) = std::io::pipe() else { break };
        // SAFETY: the process has one thread.
        if unsafe { libc::fork() } == 0 {
            let mut held = 0;
            for _ in 0..100 {
                held += full_pair(sockets);
                if held + taken >= mib * MIB {
                    break;
                }
            }
            let _ = { &report }.write_all(&held.to_ne_bytes());
            drop((report, count));
            super::stay("full");
        }
        drop(report);
        let mut held = [0; size_of::<usize>()];
        if count.read_exact(&mut held).is_ok() {
            taken += usize::from_ne_bytes(held);
        }
    }
    taken / MIB
}

/// Fills the buffers of connections to itself.
fn full_connections(mib: usize) -> usize {
    let Ok(listener) = std::net::TcpListener::bind("127.0.0.1:0") else { return 0 };
    let (mut held, mut taken) = (Vec::new(), 0);
    let block = vec![1_u8; MIB];
    while let Ok(address) = listener.local_addr()
        && let Ok(mut from) = std::net::TcpStream::connect(address)
        && let Ok((to, _)) = listener.accept()
        && taken < mib * MIB
    {
        let _ = from.set_write_timeout(Some(std::time::Duration::from_millis(20)));
        while let Ok(n @ 1..) = from.write(&block) {
            taken += n;
        }
        held.push((from, to));
    }
    // Held for as long as this process lives.
    std::mem::forget(held);
    taken / MIB
}

/// Makes a pipe or a socket pair, and fills it; how many bytes went in.
fn full_pair(socket: bool) -> usize {
    let mut ends = [-1; 2];
    let block = [1_u8; 65_536];
    let mut held = 0;
    let mut fill = |end: libc::c_int| {
        // SAFETY: the block outlives the call.
        while let Ok(n @ 1..) = usize::try_from(unsafe { libc::write(end, block.as_ptr().cast(), block.len()) }) {
            held += n;
        }
    };
    // SAFETY: the arrays outlive the calls.
    unsafe {
        if socket {
            libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0, ends.as_mut_ptr());
            let size: libc::c_int = 1 << 20;
            for end in ends {
                let length = size_of::<libc::c_int>() as libc::socklen_t;
                libc::setsockopt(end, libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const size).cast(), length);
                fill(end);
            }
        } else {
            libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK);
            libc::fcntl(ends[1], libc::F_SETPIPE_SZ, 1 << 20);
            fill(ends[1]);
        }
    }
    held
}

/// Takes so many MiB (or thousands of files) of disk in one of many ways, and waits for longer than the service looks
/// away.
fn disk(kind: &str, amount: usize) -> String {
    let home = "/home/sprite/bomb";
    let _ = fs::create_dir_all(home);
    let chunk = vec![1_u8; MIB];
    let mut held = Vec::new();
    match kind {
        "bytes" | "unlinked" | "hidden" => {
            for n in 0..amount.div_ceil(20) {
                let path = format!("{home}/{n}");
                let Ok(mut file) = File::create(&path) else { return "no file".into() };
                for _ in 0..20 {
                    if let Err(e) = file.write_all(&chunk) {
                        return error(&e);
                    }
                }
                match kind {
                    "unlinked" => {
                        let _ = fs::remove_file(&path);
                        held.push(file);
                    }
                    _ => drop(file),
                }
            }
            if kind == "hidden" {
                // SAFETY: a terminated string.
                unsafe { libc::chmod(c"/home/sprite/bomb".as_ptr(), 0) };
            }
        }
        "inodes" => {
            for n in 0..amount * 1000 {
                if let Err(e) = File::create(format!("{home}/{n}")) {
                    return error(&e);
                }
            }
        }
        _ => return format!("no such disk: {kind}"),
    }
    // SAFETY: only waits.
    unsafe { libc::sleep(4) };
    drop(held);
    "held all".into()
}
