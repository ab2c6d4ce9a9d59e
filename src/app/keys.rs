//! Where the agents' keys are kept, as configured: in the vault, or in the sprites by the operator's choice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use secrecy::SecretString;
use tokio::net::TcpListener;

use super::StartError;
use crate::agent::{self, Way};
use crate::config::{AgentKind, AgentsConfig, Config};
use crate::runner::build::Access;
use crate::vault::provider::{self, Provider};
use crate::vault::{Upstream, VaultError, VaultHandle, actor};
use crate::world::World;

/// A vault that has its address and its keys, and is not served yet.
pub struct Opened {
    pub handle: VaultHandle,
    pub listener: Arc<TcpListener>,
    pub address: SocketAddr,
}

impl From<VaultError> for StartError {
    fn from(error: VaultError) -> Self {
        Self::Vault(error)
    }
}

/// Opens the vault; `None` where no agent has a key, or keys are in the sprites.
///
/// # Errors
/// When a key can't be used, or the address can't be had.
pub async fn open(config: &Config, world: &World) -> Result<Option<Opened>, StartError> {
    let mut upstreams = BTreeMap::new();
    for kind in AgentKind::ALL {
        let found = agent::server_url(kind, &config.agents).zip(agent::real_key(kind, &config.agents));
        if let (Some((url, key)), Some(provider)) = (found, provider_of(kind)) {
            upstreams.insert(kind, Upstream::new(provider, url, key.clone())?);
        }
    }
    // Asked before it listens: where keys are in the sprites there is no URL, whatever the address.
    if upstreams.is_empty() || config.vault.url(config.vault.listen).is_none() {
        return Ok(None);
    }
    let (listener, address) = actor::listen(config.vault.listen).await?;
    let url = config.vault.url(address).unwrap_or_default();
    Ok(Some(Opened { handle: VaultHandle::new(upstreams, url, world.clone()), listener, address }))
}

fn provider_of(kind: AgentKind) -> Option<&'static Provider> {
    match kind {
        AgentKind::Shell => None,
        AgentKind::Amp => Some(&provider::AMP),
        AgentKind::Claude => Some(&provider::ANTHROPIC),
    }
}

/// How agents reach their servers, and the agents' settings as runners may know them: without a key.
pub fn access(config: &Config, vault: Option<&VaultHandle>) -> (Access, AgentsConfig) {
    let mut agents = config.agents.clone();
    let access = match vault {
        Some(vault) => Access::Vault(vault.clone()),
        None => {
            let way = |kind| {
                let (url, key) = agent::server_url(kind, &agents).zip(agent::real_key(kind, &agents))?;
                Some((kind, Way { url: url.to_owned(), key: key.clone() }))
            };
            Access::Direct(AgentKind::ALL.into_iter().filter_map(way).collect())
        }
    };
    let nothing = || SecretString::from("");
    if let Some(amp) = &mut agents.amp {
        amp.key = nothing();
    }
    if let Some(claude) = &mut agents.claude {
        claude.key = nothing();
    }
    (access, agents)
}
