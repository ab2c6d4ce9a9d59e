//! The named lists that a policy rule can include.
//!
//! The Sprites cloud documents one preset, `defaults`, by its kinds of hosts and not by its names; this is the
//! project's own list of the same kinds. Hosts that serve everybody's files (object stores, general CDNs) are left out
//! unless a package manager can't work without them: each is a way for data to leave.

/// The patterns of a preset; `None` for an unknown name.
pub(super) fn find(preset: &str) -> Option<&'static [&'static str]> {
    (preset == "defaults").then_some(DEFAULTS)
}

#[rustfmt::skip]
const DEFAULTS: &[&str] = &[
    // Model providers and coding agents
    "api.anthropic.com", "console.anthropic.com", "claude.ai", "statsig.anthropic.com",
    "api.openai.com", "auth.openai.com", "chatgpt.com",
    "generativelanguage.googleapis.com", "aiplatform.googleapis.com", "cloudcode-pa.googleapis.com",
    "api.githubcopilot.com", "copilot-proxy.githubusercontent.com", "api.individual.githubcopilot.com",
    "ampcode.com", "*.ampcode.com", "api.mistral.ai", "openrouter.ai", "api.groq.com", "api.x.ai", "api.deepseek.com",
    "huggingface.co", "cdn-lfs.huggingface.co",
    // Code hosts
    "github.com", "api.github.com", "codeload.github.com", "gist.github.com", "uploads.github.com",
    "raw.githubusercontent.com", "objects.githubusercontent.com", "release-assets.githubusercontent.com",
    "gist.githubusercontent.com", "github-releases.githubusercontent.com", "*.githubassets.com",
    "gitlab.com", "registry.gitlab.com", "bitbucket.org", "api.bitbucket.org", "codeberg.org", "git.sr.ht",
    "sourceforge.net", "downloads.sourceforge.net",
    // Container registries
    "registry-1.docker.io", "auth.docker.io", "index.docker.io", "hub.docker.com", "production.cloudflare.docker.com",
    "download.docker.com", "ghcr.io", "pkg-containers.githubusercontent.com", "quay.io", "cdn.quay.io", "gcr.io",
    "mcr.microsoft.com", "public.ecr.aws",
    // JavaScript
    "registry.npmjs.org", "registry.npmjs.com", "npmjs.com", "www.npmjs.com", "registry.yarnpkg.com", "yarnpkg.com",
    "repo.yarnpkg.com", "nodejs.org", "deb.nodesource.com", "bun.sh", "deno.land", "jsr.io", "npm.jsr.io", "get.pnpm.io",
    // Python
    "pypi.org", "files.pythonhosted.org", "bootstrap.pypa.io", "python.org", "www.python.org", "astral.sh",
    "conda.anaconda.org", "repo.anaconda.com",
    // Rust, Go
    "crates.io", "index.crates.io", "static.crates.io", "static.rust-lang.org", "sh.rustup.rs",
    "proxy.golang.org", "sum.golang.org", "go.dev", "dl.google.com", "golang.org",
    // JVM
    "repo.maven.apache.org", "repo1.maven.org", "central.sonatype.com", "services.gradle.org", "plugins.gradle.org",
    "downloads.gradle.org", "maven.google.com", "api.sdkman.io",
    // Ruby, PHP, Elixir, .NET, Haskell, Swift, Dart, Perl, R
    "rubygems.org", "index.rubygems.org", "packagist.org", "repo.packagist.org", "getcomposer.org",
    "hex.pm", "repo.hex.pm", "builds.hex.pm", "api.nuget.org", "globalcdn.nuget.org", "dot.net",
    "hackage.haskell.org", "swift.org", "download.swift.org", "pub.dev", "www.cpan.org", "cran.r-project.org",
    // Operating systems
    "deb.debian.org", "security.debian.org", "archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com",
    "ppa.launchpadcontent.net", "dl-cdn.alpinelinux.org", "mirrors.fedoraproject.org", "cache.nixos.org",
    "formulae.brew.sh",
    // Infrastructure tools
    "registry.k8s.io", "dl.k8s.io", "pkgs.k8s.io", "get.helm.sh", "releases.hashicorp.com", "registry.terraform.io",
    "apt.releases.hashicorp.com", "checkpoint-api.hashicorp.com", "sentry.io", "*.ingest.sentry.io",
    "fly.io", "api.fly.io", "api.machines.dev", "registry.fly.io", "sprites.dev", "api.sprites.dev",
];
