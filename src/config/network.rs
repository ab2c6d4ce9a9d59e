//! Lists of hosts by name, and what is risky in a list. Pure.

use std::collections::BTreeSet;

/// A list of hosts that a deployment can allow by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preset {
    /// What the first Jane allowed: model providers reached directly, and the stores that agents are installed from.
    AmpDirect,
    /// Package registries of the usual languages, which serve files and take none without an account.
    Packages,
}

impl Preset {
    pub const ALL: [Self; 2] = [Self::AmpDirect, Self::Packages];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::AmpDirect => "amp-direct",
            Self::Packages => "packages",
        }
    }

    pub fn hosts(self) -> &'static [&'static str] {
        match self {
            Self::AmpDirect => &[
                "ampcode.com",
                "*.ampcode.com",
                "storage.googleapis.com",
                "api.anthropic.com",
                "api.openai.com",
                "*.cloudflare.com",
                "*.googleapis.com",
            ],
            Self::Packages => &[
                "registry.npmjs.org",
                "pypi.org",
                "files.pythonhosted.org",
                "index.crates.io",
                "static.crates.io",
                "proxy.golang.org",
                "sum.golang.org",
                "rubygems.org",
                "repo.maven.apache.org",
            ],
        }
    }
}

/// Names under which anybody can have a place of their own: data that reaches them has left.
const SHARED: [(&str, &str); 24] = [
    ("storage.googleapis.com", "anybody can have a bucket there"),
    ("googleapis.com", "it has object stores and logs of anybody's projects"),
    ("amazonaws.com", "anybody can have a bucket there"),
    ("blob.core.windows.net", "anybody can have a store there"),
    ("azurewebsites.net", "anybody can have a site there"),
    ("cloudflare.com", "it serves DNS over HTTPS and anybody's workers"),
    ("workers.dev", "anybody can run a program there"),
    ("pages.dev", "anybody can have a site there"),
    ("r2.dev", "anybody can have a bucket there"),
    ("cloudfront.net", "it serves anybody's content"),
    ("fastly.net", "it serves anybody's content"),
    ("akamaihd.net", "it serves anybody's content"),
    ("github.com", "anybody can have a repository, a gist or an issue there"),
    ("githubusercontent.com", "it serves anybody's files"),
    ("github.io", "anybody can have a site there"),
    ("gitlab.com", "anybody can have a repository there"),
    ("bitbucket.org", "anybody can have a repository there"),
    ("herokuapp.com", "anybody can run a program there"),
    ("vercel.app", "anybody can run a program there"),
    ("netlify.app", "anybody can have a site there"),
    ("fly.dev", "anybody can run a program there"),
    ("slack.com", "anybody can have a workspace there"),
    ("discord.com", "anybody can have a webhook there"),
    ("pastebin.com", "anybody can post there"),
];

/// Model providers: allowing one lets a program use a key of somebody else's, and what it is asked is a message out.
const PROVIDERS: [&str; 3] = ["api.anthropic.com", "api.openai.com", "ampcode.com"];

/// What is risky in a list of allowed hosts, in sentences for the operator.
pub fn risks<'a>(hosts: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let hosts: BTreeSet<&str> = hosts.into_iter().collect();
    let mut found = Vec::new();
    for host in hosts {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let below = |parent: &str| name == parent || name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
        // A wildcard above a shared name covers it too.
        let above =
            |child: &str| host.starts_with("*.") && child.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        if let Some((shared, why)) = SHARED.iter().find(|(shared, _)| below(shared) || above(shared)) {
            found.push(format!("sprites may reach {host}, a way out for data: {why} ({shared})"));
        } else if host.starts_with("*.") {
            found.push(format!("sprites may reach every name below {name}: a made-up one carries data out; list the names that are needed"));
        } else if PROVIDERS.iter().any(|provider| below(provider)) {
            found.push(format!("sprites may reach {host} past the vault, where a program can use a key of its own"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_and_hosts_that_serve_anybody_are_warned_about() {
        for (host, words) in [
            ("storage.googleapis.com", "bucket"),
            ("*.googleapis.com", "bucket"),
            ("logging.googleapis.com", "object stores"),
            ("*.cloudflare.com", "DNS over HTTPS"),
            ("bucket.s3.amazonaws.com", "bucket"),
            ("*.com", "way out for data"),
            ("github.com", "gist"),
            ("*.corp.example", "every name below corp.example"),
            ("api.anthropic.com", "past the vault"),
        ] {
            let found = risks([host]);
            assert!(found.len() == 1 && found[0].contains(words), "{host}: {found:?}");
        }
        for harmless in ["registry.npmjs.org", "vault.janebot.internal", "notgithub.com", "git.corp.example"] {
            assert!(risks([harmless]).is_empty(), "{harmless}");
        }
        assert!(risks(Preset::Packages.hosts().iter().copied()).is_empty());
        assert_eq!(risks(Preset::AmpDirect.hosts().iter().copied()).len(), Preset::AmpDirect.hosts().len());
    }

    #[test]
    fn presets_have_names() {
        for preset in Preset::ALL {
            assert_eq!(Preset::named(preset.name()), Some(preset));
        }
        assert_eq!(Preset::named("defaults"), None);
    }
}
