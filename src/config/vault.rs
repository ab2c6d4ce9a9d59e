//! Where the agents' keys are, what sprites may reach, what jobs may use: read, and the rules between these settings.

use std::net::{Ipv4Addr, SocketAddr};

use super::keys;
use super::reach::{self, Sprites};
use super::source::Source;
use super::{KeysAt, NetworkConfig, UsageLimits, VaultConfig};

/// Where the vault listens when somebody else must know it: a proxy in front, or a `janebot host`.
pub(super) const KNOWN_PORT: u16 = 8320;

/// `None` only after a complaint. `has_keys` says whether any agent has a key to be kept.
pub(super) fn vault(
    source: &mut Source,
    place: Sprites,
    listen: Option<SocketAddr>,
    has_keys: bool,
) -> Option<VaultConfig> {
    let public = source.get(&keys::PUBLIC_URL);
    let in_sprite = source.get(&keys::ALLOW_KEY_IN_SPRITE)?;
    let listen = match (listen, place, &public) {
        (Some(listen), ..) => listen,
        // A complaint was made.
        (None, ..) if source.is_set(&keys::VAULT_LISTEN.about) => return None,
        (None, Sprites::InThisProcess | Sprites::WithoutWalls, None) => (Ipv4Addr::LOCALHOST, 0).into(),
        (None, ..) => (Ipv4Addr::LOCALHOST, KNOWN_PORT).into(),
    };
    let keys = match place {
        Sprites::WithoutWalls => KeysAt::Loopback,
        Sprites::InThisProcess | Sprites::OnThisMachine => KeysAt::Vault,
        Sprites::Elsewhere => match public {
            Some(url) => KeysAt::Public(url),
            None if in_sprite || !has_keys => KeysAt::Sprite,
            None => {
                let problem = "sprites in the cloud reach the vault, which keeps the agents' keys, at this URL only: set \
                               it, or set ALLOW_KEY_IN_SPRITE=true to put the keys into the sprites";
                source.complain(&keys::PUBLIC_URL.about, problem.into());
                return None;
            }
        },
    };
    if !listen.ip().is_loopback() && !matches!(keys, KeysAt::Public(_)) {
        let problem = "it is not a loopback address, and nobody but this machine needs the vault without PUBLIC_URL";
        source.complain(&keys::VAULT_LISTEN.about, problem.into());
        return None;
    }
    if listen.port() == 0 && !matches!(place, Sprites::InThisProcess | Sprites::WithoutWalls) {
        let problem = "somebody else must know the vault's port here, so it can't be any free one";
        source.complain(&keys::VAULT_LISTEN.about, problem.into());
        return None;
    }
    Some(VaultConfig { listen, keys })
}

/// The vault's address as a host knows it that is not the vault's own process.
pub(super) fn known_address(listen: Option<SocketAddr>) -> SocketAddr {
    listen.filter(|address| address.port() != 0).unwrap_or_else(|| (Ipv4Addr::LOCALHOST, KNOWN_PORT).into())
}

/// Whether an agent's server can be reached as the vault's settings want it. `false` after a complaint.
pub(super) fn check_server(source: &mut Source, key: &keys::Key<String>, url: &str, keys: &KeysAt) -> bool {
    match keys {
        KeysAt::Sprite => match reach::check_direct(url) {
            Ok(()) => true,
            Err(problem) => {
                source.complain(&key.about, problem.into());
                false
            }
        },
        KeysAt::Vault | KeysAt::Loopback | KeysAt::Public(_) => true,
    }
}

pub(super) fn network(source: &mut Source) -> NetworkConfig {
    NetworkConfig {
        presets: source.get(&keys::NETWORK_PRESETS).unwrap_or_default(),
        channels: source.get(&keys::CHANNEL_ALLOWED_HOSTS).unwrap_or_default(),
    }
}

pub(super) fn limits(source: &mut Source) -> UsageLimits {
    UsageLimits {
        turns_per_job: source.get(&keys::MAX_TURNS_PER_JOB),
        tokens_per_job: source.get(&keys::MAX_TOKENS_PER_JOB),
        jobs_per_day: source.get(&keys::MAX_JOBS_PER_USER_DAY),
        tokens_per_day: source.get(&keys::MAX_TOKENS_PER_USER_DAY),
    }
}
