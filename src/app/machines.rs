//! Where runners come from: the Sprites cloud, or the embedded host of this machine; and what they are built from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use secrecy::{ExposeSecret, SecretString};

use super::{StartError, keys};
use crate::agent::install;
use crate::config::{self, AgentKind, AgentsConfig, Config, HostConfig, KeysAt, SpritesConfig};
use crate::host::Host;
use crate::runner::build::{BuildPlan, Fetch, Program};
use crate::runner::claim::{self, Claim};
use crate::sprites::http::{Deadlines, HttpSprites};
use crate::sprites::{NetworkPolicy, Sprites as _, SpritesError};
use crate::vault::VaultHandle;
use crate::vault::scan::Secrets;
use crate::world::World;

/// Where the token of `janebot host` is kept, below the host's own folder.
const TOKEN_FILE: &str = "token";

/// The way to the machines.
pub struct Machines {
    pub sprites: HttpSprites,
    /// How they are isolated, for receipts.
    pub isolation: &'static str,
    pub url: String,
    /// What it is asked with.
    token: SecretString,
    /// There unless the machines are elsewhere.
    host: Option<Host>,
}

impl Machines {
    /// Connects to the configured machines; the embedded host is started, with a token that only this process knows,
    /// and told where the vault is.
    ///
    /// # Errors
    /// When this machine can't isolate as configured, or the settings of the API can't be used.
    pub async fn connect(config: &Config, vault: Option<SocketAddr>, world: &World) -> Result<Self, StartError> {
        match &config.sprites {
            SpritesConfig::Remote { url, token } => {
                let sprites = client(url, token.clone())?;
                let (isolation, url) = ("microVM of the Sprites host", url.clone());
                Ok(Self { sprites, isolation, url, token: token.clone(), host: None })
            }
            SpritesConfig::Embedded(host) => {
                let mut host = host.clone();
                // The vault's own address, or nothing where there is no vault; other names lead where they are to lead.
                host.grants.retain(|grant| vault.is_some() || !grant.is_vaults());
                if let Some(vault) = vault {
                    let own = host.grants.iter_mut().filter(|grant| grant.is_vaults());
                    own.for_each(|grant| grant.target = vault.to_string());
                }
                Self::serve(&host, world.token(32).into(), world).await
            }
        }
    }

    /// Starts the embedded host for other processes. Its token is kept in a file that only this user can read.
    ///
    /// # Errors
    /// As [`Self::connect`]; and when the token can't be kept.
    pub async fn serve_alone(config: &Config, world: &World) -> Result<(Self, PathBuf), StartError> {
        let host = match &config.sprites {
            SpritesConfig::Embedded(host) => host,
            SpritesConfig::Remote { url, .. } => {
                return Err(StartError::Machines(format!(
                    "SPRITES_TOKEN is set, so the machines are at {url}: unset it to serve machines of this one"
                )));
            }
        };
        let token = SecretString::from(world.token(32));
        let machines = Self::serve(host, token.clone(), world).await?;
        let file = host.state_dir.join(TOKEN_FILE);
        keep_token(&file, &token)
            .map_err(|error| StartError::Machines(format!("{} can't be written ({error})", file.display())))?;
        Ok((machines, file))
    }

    async fn serve(config: &HostConfig, token: SecretString, world: &World) -> Result<Self, StartError> {
        let exe = std::env::current_exe()
            .map_err(|error| StartError::Machines(format!("janebot does not find its own program ({error})")))?;
        let (config, kept) = (config.clone(), token.clone());
        let host = Host::start(config, exe, token.clone(), world.clone())
            .await
            .map_err(|error| StartError::Machines(error.to_string()))?;
        let url = host.url();
        Ok(Self { sprites: client(&url, token)?, isolation: host.isolation(), url, token: kept, host: Some(host) })
    }

    /// Sees whether the API answers and the runners are ours, so that whoever waits at a terminal is told at once.
    ///
    /// # Errors
    /// With what to do about it.
    pub async fn try_out(&self, prefix: &str, deployment: &str, world: &World) -> Result<(), StartError> {
        if self.host.is_some() {
            return Ok(());
        }
        let found = self.sprites.list(prefix).await.map_err(|error| {
            let remedy = match error {
                SpritesError::Unreachable { .. } => ": check SPRITES_API_URL and the way to it",
                _ => "",
            };
            StartError::Machines(format!("{error}{remedy}"))
        })?;
        for sprite in found {
            if let Claim::Foreign { owner, seconds_ago } = claim::read(&sprite.labels, deployment, world.now()) {
                return Err(StartError::Machines(format!(
                    "the sprite {} belongs to another janebot (deployment {owner}, alive {seconds_ago} s ago): stop that one, or give this one another RUNNER_PREFIX",
                    sprite.name
                )));
            }
        }
        Ok(())
    }

    pub async fn stop(self) {
        if let Some(host) = self.host {
            host.shutdown().await;
        }
    }
}

fn client(url: &str, token: SecretString) -> Result<HttpSprites, StartError> {
    HttpSprites::new(url, token, Deadlines::default()).map_err(|error| StartError::Machines(error.to_string()))
}

fn keep_token(file: &Path, token: &SecretString) -> std::io::Result<()> {
    use std::io::Write as _;
    // Removed first, so that the mode is that of a new file.
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(token.expose_secret().as_bytes())
}

/// Where agents' programs are kept once npm has brought them.
pub fn agent_cache(config: &Config) -> PathBuf {
    config.data_dir.join("agents")
}

/// What runners are built from, as configured.
pub fn plan(config: &Config, machines: &Machines, vault: Option<&VaultHandle>) -> BuildPlan {
    let (access, agents) = keys::access(config, vault);
    let isolation = machines.isolation;
    let mut versions = BTreeMap::new();
    let mut hosts = config.extra_hosts();
    let mut warnings = Vec::new();
    if isolation == "none" {
        warnings.push("no isolation: the agent's programs run as this user on this machine".to_owned());
    }
    if let Some(amp) = &agents.amp {
        versions.insert(AgentKind::Amp, version(&amp.version, amp.path.as_deref()));
    }
    if let Some(claude) = &agents.claude {
        versions.insert(AgentKind::Claude, version(&claude.version, claude.path.as_deref()));
    }
    if !versions.is_empty() {
        match config.vault.keys {
            KeysAt::Vault | KeysAt::Loopback | KeysAt::Public(_) => hosts.extend(config.vault.host()),
            KeysAt::Sprite => {
                hosts.extend(agents.hosts_needed());
                warnings.push(config::KEY_IN_SPRITE.into());
            }
        }
    }
    let fetch = fetch(agents.clone(), agent_cache(config));
    let policy = NetworkPolicy::allow(hosts);
    let mut plan = BuildPlan::new(agents, policy, versions, access, isolation.to_owned(), warnings, fetch);
    plan.limits = config.limits;
    plan.network = config.network.clone();
    plan.secrets = secrets(config, &machines.token);
    plan
}

/// What no answer may hold.
fn secrets(config: &Config, token: &SecretString) -> Secrets {
    let mut all = config.secrets.clone();
    all.push(("the token of the sprite host", token.clone()));
    let (secrets, short) = Secrets::new(&all);
    for name in short {
        tracing::warn!("{name} is too short to be looked for in answers: use a longer one");
    }
    secrets
}

/// The pinned version, or for the operator's own file what tells it from another one.
fn version(pinned: &str, path: Option<&Path>) -> String {
    let Some(path) = path else { return pinned.to_owned() };
    match std::fs::metadata(path) {
        Ok(file) => format!("file-{}-{}", file.len(), file.mtime()),
        Err(_) => "file-unreadable".to_owned(),
    }
}

fn fetch(agents: AgentsConfig, cache: PathBuf) -> Fetch {
    let (agents, cache) = (Arc::new(agents), Arc::new(cache));
    Arc::new(move |kind| {
        let (agents, cache) = (agents.clone(), cache.clone());
        async move {
            let installed = install::fetch(kind, &agents, &cache).await.map_err(|error| error.to_string())?;
            let content = tokio::fs::read(&installed.binary)
                .await
                .map_err(|error| format!("{} can't be read ({error})", installed.binary.display()))?;
            Ok(Program { content: content.into(), says: installed.version.unwrap_or_default() })
        }
        .boxed()
    })
}
