//! Other processes: init, the supervisor, the machine's, and those that should outlive their sprite.

use std::fs;
use std::process::Command;

use super::{each, outcome, outcome_of};

pub fn attempt(words: &[&str]) -> Option<String> {
    let argument = |n: usize| words.get(n).copied().unwrap_or_default();
    let number = |n: usize| argument(n).parse::<i32>().unwrap_or(-1);
    // SAFETY: plain numbers.
    let kill = |pid: i32, signal: i32| outcome(unsafe { libc::kill(pid, signal) }.into());
    Some(match words[0] {
        // The kernel takes them and gives them to nobody.
        "kill-init" => {
            each([("KILL", kill(1, libc::SIGKILL)), ("STOP", kill(1, libc::SIGSTOP)), ("TERM", kill(1, libc::SIGTERM))])
        }
        "signal" => kill(number(1), 0),
        "see" => {
            let named = fs::read_to_string(format!("/proc/{}/comm", number(1)));
            let count = fs::read_dir("/proc").map_or(0, |dir| {
                dir.flatten()
                    .filter(|e| e.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()))
                    .count()
            });
            format!("{}, {}", outcome_of(named), if count < 12 { "few" } else { "many" })
        }
        // Leaves processes that have left session, group and parent, ignore signals, and hold a timer and a watch.
        "daemons" => {
            for _ in 0..3 {
                daemon(argument(1));
            }
            "left".into()
        }
        "daemons-and-stay" => {
            for _ in 0..3 {
                daemon(argument(1));
            }
            super::stay("left")
        }
        "pretend" => super::stay("ready"),
        "hold-output" => {
            // A grandchild that keeps standard output open after its parent has ended.
            // SAFETY: the process has one thread.
            match unsafe { libc::fork() } {
                0 => loop {
                    // SAFETY: always sound.
                    unsafe { libc::pause() };
                },
                _ => "ended".into(),
            }
        }
        "oom-score" => outcome_of(fs::write("/proc/self/oom_score_adj", "-1000")),
        "crash" => crash(),
        _ => return None,
    })
}

/// A process that does all it can to stay. `mark` is in its arguments, where the machine sees it.
fn daemon(mark: &str) {
    let exe = std::env::current_exe().unwrap_or_default();
    // SAFETY: the process has one thread; the children do no more than start a program.
    unsafe {
        if libc::fork() != 0 {
            return;
        }
        libc::setsid();
        if libc::fork() != 0 {
            libc::_exit(0);
        }
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            libc::signal(signal, libc::SIG_IGN);
        }
        let timer = libc::timerfd_create(libc::CLOCK_REALTIME, 0);
        let mut soon: libc::itimerspec = std::mem::zeroed();
        (soon.it_value.tv_sec, soon.it_interval.tv_sec) = (1, 1);
        libc::timerfd_settime(timer, 0, &raw const soon, std::ptr::null_mut());
        let inotify = libc::inotify_init1(0);
        libc::inotify_add_watch(inotify, c"/home/sprite".as_ptr(), libc::IN_ALL_EVENTS);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for fd in 0..3 {
            libc::dup2(null, fd);
        }
    }
    let error = std::os::unix::process::CommandExt::exec(Command::new(exe).args([super::ARGUMENT, "pretend", mark]));
    drop(error);
    // SAFETY: always sound.
    unsafe { libc::_exit(1) }
}

/// A child that crashes: whether the kernel dumped its core, and what is in the folder.
fn crash() -> String {
    let _ = fs::create_dir_all("/home/sprite/crash");
    let _ = std::env::set_current_dir("/home/sprite/crash");
    let mut status = 0;
    // SAFETY: the process has one thread; the child only raises a signal.
    let dumped = unsafe {
        let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        let pid = libc::fork();
        if pid == 0 {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const unlimited);
            libc::abort();
        }
        libc::waitpid(pid, &raw mut status, 0);
        libc::WCOREDUMP(status)
    };
    let files = fs::read_dir(".").map_or(0, Iterator::count);
    format!("{}, {files} files", if dumped { "dumped" } else { "not dumped" })
}
