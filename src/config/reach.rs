//! How a sprite reaches an agent's server. A server that only this machine reaches gets a name of its own in the
//! sandbox, which the embedded host leads there: a [`Grant`].

use reqwest::Url;

use super::value::{self, is_loopback, is_private};
use super::{AmpConfig, ClaudeConfig, Grant};

pub(super) const AMP_NAME: &str = "amp.janebot.internal";
pub(super) const ANTHROPIC_NAME: &str = "anthropic.janebot.internal";

/// Where sprites run, as far as it matters to what they reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sprites {
    /// In sandboxes whose way out is this machine's embedded host: of this process, or of one at a loopback URL, which
    /// has been given the same settings.
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

/// The URL to use in a sprite for the server at `url`, with the grant that makes `name` lead there.
pub(super) fn from_sprite(url: &str, name: &str, place: Sprites) -> Result<(String, Option<Grant>), &'static str> {
    let plain = url.starts_with("http://");
    match place {
        Sprites::WithoutWalls => Ok((url.to_owned(), None)),
        Sprites::Elsewhere if is_private(url) => Err("sprites in the cloud can't reach an address of this network"),
        Sprites::Elsewhere if plain => Err("it is plain http: the key could be read on the way from the cloud"),
        Sprites::OnThisMachine if plain => {
            let parts = Url::parse(url).map_err(|_| "it is not a URL")?;
            let host = parts.host_str().ok_or("there is no host in it")?;
            let target = format!("{host}:{}", parts.port().unwrap_or(80));
            let path = parts.path().trim_end_matches('/');
            Ok((format!("http://{name}{path}"), Some(Grant { name: name.to_owned(), target })))
        }
        Sprites::OnThisMachine if is_private(url) => {
            Err("sprites can't use https to an address of this network: write http, or a name that its certificate has")
        }
        Sprites::OnThisMachine | Sprites::Elsewhere => Ok((url.to_owned(), None)),
    }
}

impl AmpConfig {
    /// What `AMP_URL` is inside a sprite.
    pub fn url_in_sprite(&self) -> &str {
        &self.url
    }

    /// The names that the network policy must allow for amp.
    pub fn hosts_needed(&self) -> Vec<String> {
        host_name(&self.url)
    }
}

impl ClaudeConfig {
    /// What `ANTHROPIC_BASE_URL` is inside a sprite.
    pub fn url_in_sprite(&self) -> &str {
        &self.url
    }

    /// The names that the network policy must allow for claude.
    pub fn hosts_needed(&self) -> Vec<String> {
        host_name(&self.url)
    }
}

/// The host of a URL where it is a name: policies are of names, and an address is only left where nothing enforces one.
fn host_name(url: &str) -> Vec<String> {
    value::host(url).filter(|(_, ip)| ip.is_none()).map(|(name, _)| name).into_iter().collect()
}
