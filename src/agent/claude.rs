//! The `claude` profile: Anthropic's Claude Code CLI. Facts measured with 2.1.197 on Linux x64.
//!
//! - The agent's loop runs in the CLI, which talks to the model by HTTPS and server-sent events.
//! - As root it refuses to skip permissions unless `IS_SANDBOX=1`.
//! - Left alone it tries a wrong key or a busy server ten times, over minutes; two tries are enough here.
//! - SIGINT makes it end its tools and write a last `result`; SIGTERM ends it at once and leaves the tools running.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;

use super::stream::StreamReader;
use super::{GUIDANCE, Launch, LaunchError, StopProtocol, Way, no_proxy};
use crate::config::ClaudeConfig;
use crate::sprites::Signal;

/// The npm package's version that this profile was measured with.
pub const VERSION: &str = "2.1.197";

const STOP_GRACE: Duration = Duration::from_secs(5);

/// How `prompt` is run against the API that `way` leads to, without the tools in `disabled`.
pub(super) fn launch(
    config: &ClaudeConfig,
    disabled: &BTreeSet<String>,
    way: &Way,
    prompt: &str,
) -> Result<Launch, LaunchError> {
    let (url, key) = (way.url.as_str(), super::usable_key("ANTHROPIC_API_KEY", &way.key)?);
    let env: [(&str, SecretString); 7] = [
        ("ANTHROPIC_BASE_URL", url.into()),
        ("ANTHROPIC_API_KEY", key),
        ("IS_SANDBOX", "1".into()),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".into()),
        ("CLAUDE_CODE_MAX_RETRIES", "2".into()),
        ("NO_COLOR", "1".into()),
        ("NO_PROXY", no_proxy(url).into()),
    ];
    // The guidance goes with the system prompt and not into ~/.claude/CLAUDE.md, whose text the CLI puts beside the
    // prompt, as context that "may or may not be relevant" (seen in its request).
    let mut argv: Vec<String> = [
        "~/.local/bin/claude",
        "-p",
        "--output-format",
        "stream-json",
        "--verbose",
        "--dangerously-skip-permissions",
        // What a repository brings, such as hooks and MCP servers, is not trusted.
        "--setting-sources",
        "user",
        "--strict-mcp-config",
        "--append-system-prompt",
        GUIDANCE,
    ]
    .map(str::to_owned)
    .into();
    if !disabled.is_empty() {
        argv.push(format!("--disallowedTools={}", disabled.iter().map(String::as_str).collect::<Vec<_>>().join(",")));
    }
    if let Some(model) = &config.model {
        argv.extend(["--model".into(), model.clone()]);
    }
    Ok(Launch {
        files: Vec::new(),
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        argv,
        stdin: Bytes::from(prompt.to_owned()),
        stop: StopProtocol { signal: Signal::Interrupt, grace: STOP_GRACE },
        reader: Box::new(StreamReader::new("claude").asking_for(config.model.as_deref())),
    })
}
