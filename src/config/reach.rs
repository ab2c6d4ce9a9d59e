//! What a sprite reaches: the vault by a name that only sprites of this machine resolve (a [`Grant`]), or, where the keys
//! are in the sprite, an agent's server itself.

use super::value::{self, is_loopback, is_private};
use super::{AgentsConfig, Grant};

/// The vault's name in the sprites of this machine.
pub(super) const VAULT_NAME: &str = "vault.janebot.internal";

/// Where sprites run, as far as it matters to what they reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sprites {
    /// In sandboxes of this process.
    InThisProcess,
    /// In sandboxes of a `janebot host` on this machine, which knows the vault's address from its own settings.
    OnThisMachine,
    /// As programs of this machine, with all that it reaches.
    WithoutWalls,
    Elsewhere,
}

impl Sprites {
    pub fn at(api_url: &str) -> Self {
        if is_loopback(api_url) { Self::OnThisMachine } else { Self::Elsewhere }
    }
}

/// Makes the vault's name lead to its address.
pub(super) fn grant(vault: std::net::SocketAddr) -> Grant {
    Grant { name: VAULT_NAME.to_owned(), target: vault.to_string() }
}

impl Grant {
    /// Whether it is the one that leads to the vault.
    pub fn is_vaults(&self) -> bool {
        self.name == VAULT_NAME
    }
}

/// Whether sprites elsewhere can reach a server by themselves, with the key.
pub(super) fn check_direct(url: &str) -> Result<(), &'static str> {
    if is_private(url) {
        Err("sprites in the cloud can't reach an address of this network")
    } else if url.starts_with("http://") {
        Err("it is plain http: the key could be read on the way from the cloud")
    } else {
        Ok(())
    }
}

impl AgentsConfig {
    /// The names that the network policy must allow where agents reach their servers themselves.
    pub fn hosts_needed(&self) -> Vec<String> {
        let urls = [self.amp.as_ref().map(|amp| &amp.url), self.claude.as_ref().map(|claude| &claude.url)];
        urls.into_iter().flatten().filter_map(|url| host_name(url)).collect()
    }
}

/// The host of a URL where it is a name: policies are of names.
pub(super) fn host_name(url: &str) -> Option<String> {
    value::host(url).filter(|(_, ip)| ip.is_none()).map(|(name, _)| name)
}
