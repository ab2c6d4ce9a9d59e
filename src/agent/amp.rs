//! The `amp` profile: the Amp CLI. Facts measured with 0.0.1790142911-g7618fb on Linux x64.
//!
//! - The agent's loop runs on Amp's server; the CLI runs the tools. It speaks HTTPS and WebSocket to one host.
//! - Without a key it starts a login and waits for ever, so a key is checked for before the start.
//! - It prints nothing until the server's first answer; a run stopped before that leaves no record at all.
//! - SIGTERM makes it cancel the turn on the server, end its tools and write a last `result`; SIGKILL does none of it.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use serde_json::json;

use super::stream::StreamReader;
use super::{GUIDANCE, JobFile, Launch, LaunchError, StopProtocol, Way, no_proxy};
use crate::config::AmpConfig;
use crate::sprites::Signal;

/// The npm package's version that this profile was measured with.
pub const VERSION: &str = "0.0.1790142911-g7618fb";

/// The CLI refuses a prompt that is longer than this when written as JSON, in an envelope of 27 bytes.
const MAX_PROMPT_JSON_BYTES: usize = 1024 * 1024 - 27;
/// It ends within 40 ms when all is well; a tool may take a moment to die.
const STOP_GRACE: Duration = Duration::from_secs(5);
const SETTINGS: &str = ".janebot/amp-settings.json";

/// Tools that reach beyond the job, into other threads of the key's owner. The CLI refuses to run them; what the
/// server runs by itself can only be asked for in the guidance.
const FORBIDDEN_TOOLS: [&str; 6] = [
    "find_thread",
    "read_thread",
    "create_thread",
    "download_thread_changes",
    "download_thread_file",
    "upload_thread_file",
];

const THREADS: &str = "- Do not read, search or list other Amp threads, and do not share this one.\n";

/// How `prompt` is run against the server that `way` leads to, without the tools in `disabled`.
pub(super) fn launch(
    config: &AmpConfig,
    disabled: &BTreeSet<String>,
    way: &Way,
    prompt: &str,
) -> Result<Launch, LaunchError> {
    let (url, key) = (way.url.as_str(), super::usable_key("AMP_API_KEY", &way.key)?);
    // With its two quotation marks, which are part of the envelope.
    let encoded = serde_json::to_string(prompt).map_or(usize::MAX, |text| text.len() - 2);
    if encoded > MAX_PROMPT_JSON_BYTES {
        return Err(LaunchError::PromptTooLarge { agent: "amp", bytes: encoded, limit: MAX_PROMPT_JSON_BYTES });
    }
    let disabled: Vec<&str> = FORBIDDEN_TOOLS.into_iter().chain(disabled.iter().map(String::as_str)).collect();
    // MCP servers that a repository brings wait for an approval that nobody gives.
    let settings = json!({
        "amp.dangerouslyAllowAll": true,
        "amp.updates.mode": "disabled",
        "amp.git.commit.ampThread.enabled": false,
        "amp.tools.disable": disabled,
    });
    let file = |path: &str, content: String| JobFile { path: path.into(), mode: 0o600, content: content.into() };
    let env: [(&str, SecretString); 5] = [
        ("AMP_URL", url.into()),
        ("AMP_API_KEY", key),
        ("AMP_SKIP_UPDATE_CHECK", "1".into()),
        ("NO_COLOR", "1".into()),
        ("NO_PROXY", no_proxy(url).into()),
    ];
    let settings_path = format!("~/{SETTINGS}");
    let argv = [
        "~/.local/bin/amp",
        "--execute",
        "--stream-json",
        "--dangerously-allow-all",
        "--mode",
        &config.mode,
        "--log-level",
        "warn",
        "--settings-file",
        &settings_path,
    ];
    Ok(Launch {
        files: vec![
            file(SETTINGS, settings.to_string()),
            file(".config/amp/AGENTS.md", format!("{GUIDANCE}{THREADS}")),
        ],
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        argv: argv.map(str::to_owned).into(),
        stdin: Bytes::from(prompt.to_owned()),
        stop: StopProtocol { signal: Signal::Terminate, grace: STOP_GRACE },
        reader: Box::new(StreamReader::new("amp")),
    })
}
