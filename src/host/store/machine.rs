//! A running sandbox with its gateway: what programs of one sprite run in until it is stopped or dies.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::sync::watch;

use super::{Setup, StoreError};
use crate::host::Trial;
use crate::host::egress::Gateway;
use crate::host::sandbox::{Command, Process, Sandbox, SandboxError, SandboxSpec};
use crate::sprites::NetworkPolicy;

/// Ports on which allowed names are reached: HTTPS for all, HTTP for grants and package mirrors, SSH for git.
pub const PORTS: [u16; 3] = [443, 80, 22];

/// How long ending a program's tree may take. A full fork bomb takes a tenth of a second.
const KILL_TIME: Duration = Duration::from_secs(5);

pub struct Machine {
    name: String,
    /// The run's folder below the sprite's.
    pub run: String,
    sandbox: Sandbox,
    /// Serves the network until the machine is dropped; absent without isolation.
    _gateway: Option<Gateway>,
    /// Why it was stopped, when it was.
    stopped: OnceLock<String>,
}

impl Machine {
    pub async fn start(
        spec: SandboxSpec,
        setup: &Setup,
        policy: watch::Receiver<NetworkPolicy>,
    ) -> Result<Arc<Self>, StoreError> {
        let (name, run) = (spec.name.clone(), spec.run.clone());
        let Trial { walls, resolver } = &setup.trial;
        let mut sandbox = Sandbox::start_trial(&setup.exe, spec, walls).await?;
        let gateway = match sandbox.take_network() {
            Some(fds) => {
                let grants = setup.config.grants.clone().into();
                let gateway = Gateway::start_trial(&name, fds, policy, grants, resolver.clone(), walls);
                Some(gateway.map_err(StoreError::disk("the sprite's network can't be served"))?)
            }
            None => None,
        };
        Ok(Arc::new(Self { name, run, sandbox, _gateway: gateway, stopped: OnceLock::new() }))
    }

    pub async fn spawn(&self, command: Command) -> Result<Process, SandboxError> {
        self.sandbox.spawn(command).await
    }

    /// Signals a program's process group.
    pub async fn signal(&self, pid: u32, signal: Signal) -> Result<(), SandboxError> {
        self.sandbox.signal(pid, signal.as_raw()).await
    }

    /// Kills a program and all that it started; `Ok` when nothing of it is left.
    pub async fn kill_tree(&self, pid: u32) -> Result<(), SandboxError> {
        self.sandbox.kill_tree(pid, KILL_TIME).await
    }

    pub fn is_alive(&self) -> bool {
        self.stopped.get().is_none() && self.sandbox.exited().now_or_never().is_none()
    }

    /// Ends everything inside; when this returns without an error, nothing of it runs. `reason` is told to those whose
    /// programs ended by it. Its run is not free yet, see [`Machine::released`].
    pub async fn kill(&self, reason: &str) -> Result<(), SandboxError> {
        // The first reason stays.
        let _ = self.stopped.set(reason.to_owned());
        self.sandbox.kill().await
    }

    /// Once everything inside has ended: waits until its run may be frozen, or go on in another machine.
    pub async fn released(&self) -> Result<(), SandboxError> {
        self.sandbox.released().await
    }

    /// Whether it was ended by the sprite's owner and did not die by itself.
    pub fn was_stopped(&self) -> bool {
        self.stopped.get().is_some()
    }

    /// Why everything inside ended, once it did.
    pub async fn why_gone(&self) -> String {
        self.sandbox.exited().await;
        let reason = self.sandbox.death().or_else(|| self.stopped.get().cloned());
        reason.unwrap_or_else(|| format!("the sandbox of sprite {} ended unexpectedly", self.name))
    }
}
