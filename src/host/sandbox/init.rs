//! Init, process 1 of a sandbox: starts programs when the service says so, and reaps.
//!
//! It has no capabilities, is closed to tracing, and can't be killed from inside. When the service dies, the control
//! socket ends, init ends, and the kernel ends everything inside with it. Without walls the helper is init; then it
//! ends its descendants itself.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use super::sys::{self, Fault, Reaped, Step};
use super::wire::{self, Event, Order, Start};
use super::{supervise, tree};

/// Serves the control socket until it ends.
pub(super) fn run(control: &OwnedFd, walls: bool) -> Result<Infallible, Fault> {
    let signals = sys::child_signals().step("watch for ended processes")?;
    let mut supervisors = BTreeSet::new();
    loop {
        let [order, ended] = sys::wait_readable(control.as_fd(), signals.as_fd(), -1);
        if ended {
            sys::drain(&signals);
            reap(&mut supervisors);
        }
        if order && !serve(control, &mut supervisors) {
            break;
        }
    }
    if !walls {
        tree::end_descendants(&mut BTreeSet::new(), |_, _| {});
    }
    sys::exit(0)
}

/// Does one order. False when there will be no more.
fn serve(control: &OwnedFd, supervisors: &mut BTreeSet<i32>) -> bool {
    match wire::receive::<Order>(control, wire::TO_INSIDE_MAX) {
        Ok(Some((Order::Run(start), fds))) => {
            supervisors.extend(start_supervisor(control, start, fds));
            true
        }
        Ok(Some((Order::Sweep, fds))) => {
            tree::end_descendants(supervisors, |_, _| {});
            // Closing it is the answer.
            drop(fds);
            true
        }
        // A service that can't be understood is as good as none.
        Ok(None) | Err(_) => false,
    }
}

fn start_supervisor(control: &OwnedFd, start: Start, mut fds: Vec<OwnedFd>) -> Option<i32> {
    if fds.len() != if start.tty.is_some() { 1 } else { 4 } {
        return None;
    }
    let stdio = fds.split_off(1);
    let exec = fds.pop()?;
    match sys::fork() {
        Ok(Some(pid)) => Some(pid),
        Ok(None) => supervise::run(control, &exec, &start, stdio),
        Err(e) => {
            let errno = e.raw_os_error().unwrap_or(libc::EIO);
            // A service that hung up has no use for the answer.
            let _ = wire::send(&exec, &Event::Refused { dir: false, errno }, &[]);
            None
        }
    }
}

/// Takes ended children. A supervisor that did not end by itself was killed from inside: what it held together has
/// come to init, and ends now.
fn reap(supervisors: &mut BTreeSet<i32>) {
    let mut killed = false;
    while let Reaped::Child(pid, status) = sys::reap() {
        killed |= supervisors.remove(&pid) && status != 0;
    }
    if killed {
        tree::end_descendants(supervisors, |_, _| {});
    }
}
