//! The vault: keeps the agents' real keys out of the sprites. Each job gets a token that means something only here, only
//! while it runs, and only for what its agent needs; the vault puts the real key in on the way to the provider.
//!
//! Parts: [`provider`] (what may be called, as data), `amp` (what is read in Amp's calls), [`meter`] and [`budget`] (what
//! was used, what may be), [`pass`] (who holds which token); these decide, and do nothing. `server` (connections, their
//! limits and their end), `forward` (one request), `answer` (an answer on its way back), `tunnel` (WebSockets) do it.
//! [`scan`] looks for secrets in what leaves the service. [`actor`] keeps the server up.
//!
//! Runners open a [`Pass`] and drop it when their job is over, however it ends. Real keys are in [`Upstream`]s, which
//! nobody else has, and leave it in the header of a request to the provider's own address.

pub mod actor;
mod amp;
mod answer;
pub mod budget;
mod forward;
pub mod meter;
pub mod pass;
pub mod provider;
pub mod scan;
mod server;
mod tunnel;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use reqwest::redirect;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::agent::Way;
use crate::config::AgentKind;
use crate::world::World;
use budget::Budget;
use pass::{Holder, Pass, Passes};
use provider::Provider;

/// Time to reach a provider.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A provider that sends nothing for so long has failed. A model may think for minutes before its first word.
const SILENT_FOR: Duration = Duration::from_secs(300);
/// Idle connections to a provider are kept so long, ready for the next turn.
const KEEP_IDLE: Duration = Duration::from_secs(90);

/// One provider with this deployment's key for it.
pub struct Upstream {
    pub(crate) provider: &'static Provider,
    /// Scheme, host and perhaps a path; no slash at its end.
    url: String,
    /// The header that shows the key, marked as sensitive.
    key: HeaderValue,
    /// The key by itself, to see that no answer repeats it.
    secret: SecretString,
    client: reqwest::Client,
    /// For WebSockets, which begin as HTTP/1.1.
    one: reqwest::Client,
}

/// Why the vault can't keep a key. Messages say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error("the key for {0} is empty: set it, or remove it to do without this agent")]
    EmptyKey(&'static str),
    #[error("the key for {0} holds a line end or another character that can't be sent")]
    UnusableKey(&'static str),
    #[error("no connections can be made to {0}: {1}")]
    Client(&'static str, String),
    #[error("the vault can't listen on {0}: {1}; choose another address with VAULT_LISTEN")]
    Listen(std::net::SocketAddr, String),
}

impl Upstream {
    /// White space around the key is left out: one that was read from a file ends with a line feed.
    ///
    /// # Errors
    /// When the key can't be sent.
    pub fn new(provider: &'static Provider, url: &str, key: SecretString) -> Result<Self, VaultError> {
        Self::patient(provider, url, key, SILENT_FOR)
    }

    /// As [`Self::new`], with another patience for a provider that sends nothing.
    ///
    /// # Errors
    /// When the key can't be sent.
    pub fn patient(
        provider: &'static Provider,
        url: &str,
        key: SecretString,
        silent_for: Duration,
    ) -> Result<Self, VaultError> {
        let secret = SecretString::from(key.expose_secret().trim());
        if secret.expose_secret().is_empty() {
            return Err(VaultError::EmptyKey(provider.name));
        }
        let key = HeaderValue::from_str(&provider.key.value(secret.expose_secret()));
        let mut key = key.map_err(|_| VaultError::UnusableKey(provider.name))?;
        key.set_sensitive(true);
        // No redirects: they would carry the key to another host.
        let client = || {
            let client = reqwest::Client::builder().redirect(redirect::Policy::none()).connect_timeout(CONNECT_WITHIN);
            let client = client.read_timeout(silent_for).pool_idle_timeout(KEEP_IDLE).tcp_nodelay(true);
            // A provider that is reached in the clear is close by; a proxy on the way there would read the key.
            if url.starts_with("http://") { client.no_proxy() } else { client }
        };
        let built = |client: reqwest::ClientBuilder| {
            client.build().map_err(|error| VaultError::Client(provider.name, error.to_string()))
        };
        Ok(Self {
            provider,
            url: url.trim_end_matches('/').to_owned(),
            key,
            secret,
            client: built(client())?,
            // A socket may be silent between its pings; its end is the job's.
            one: built(client().http1_only().read_timeout(Duration::from_secs(24 * 60 * 60)))?,
        })
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("provider", &self.provider.name)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// The way to the vault, for whoever runs jobs. Cheap to clone; it outlives the server's restarts, and so do passes.
#[derive(Clone)]
pub struct VaultHandle(Arc<Shared>);

struct Shared {
    passes: Passes,
    upstreams: BTreeMap<AgentKind, Arc<Upstream>>,
    /// Where sprites reach it, as in `http://vault.janebot.internal`.
    url: String,
    world: World,
}

impl VaultHandle {
    pub fn new(upstreams: BTreeMap<AgentKind, Upstream>, url: String, world: World) -> Self {
        let upstreams = upstreams.into_iter().map(|(kind, upstream)| (kind, Arc::new(upstream))).collect();
        Self(Arc::new(Shared { passes: Passes::default(), upstreams, url, world }))
    }

    /// A pass for one job, good until it is dropped, `lifetime` at the most; `None` for an agent that needs none.
    pub fn open(&self, kind: AgentKind, holder: Holder, budget: Budget, lifetime: Duration) -> Option<Pass> {
        let upstream = self.0.upstreams.get(&kind)?.clone();
        let passes = &self.0.passes;
        let (token, open) = passes.open(holder, upstream, budget, Instant::now() + lifetime, &self.0.world);
        Some(Pass::new(passes.clone(), token, open))
    }

    /// How the holder of a pass reaches its agent's server.
    pub fn way(&self, pass: &Pass) -> Way {
        Way { url: self.0.url.clone(), key: pass.token().clone() }
    }

    pub fn url(&self) -> &str {
        &self.0.url
    }

    pub fn passes(&self) -> &Passes {
        &self.0.passes
    }

    fn world(&self) -> &World {
        &self.0.world
    }
}

impl std::fmt::Debug for VaultHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VaultHandle").field("url", &self.0.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_can_not_be_sent_is_refused_and_none_is_ever_shown() {
        let make = |key: &str| Upstream::new(&provider::ANTHROPIC, "https://api.test/", key.into());
        let upstream = make(" sk-real\n").unwrap();
        assert_eq!((upstream.url.as_str(), upstream.key.as_bytes()), ("https://api.test", &b"sk-real"[..]));
        assert!(!format!("{upstream:?} {:?}", upstream.key).contains("sk-real"));
        assert_eq!(make(" \n").unwrap_err(), VaultError::EmptyKey("anthropic"));
        assert_eq!(make("a\nb").unwrap_err(), VaultError::UnusableKey("anthropic"));
        assert_eq!(make("a\u{1}b").unwrap_err(), VaultError::UnusableKey("anthropic"));
    }
}
