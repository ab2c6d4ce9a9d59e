//! Agent profiles: how one CLI agent is installed, configured, started, read and stopped. Data plus a parser.
//!
//! A profile never runs anything; the runner does, with what [`launch`] gives it. Facts about the CLIs are in the
//! modules of each agent, with the version they were measured on. [`install`] brings their programs to this machine.

pub mod amp;
pub mod claude;
pub mod install;
pub mod shell;
pub mod stream;
mod text;

use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::config::{AgentKind, AgentsConfig};
use crate::sprites::Signal;

/// What every agent is told about its part: who it is, what to trust, what to leave alone.
const GUIDANCE: &str = include_str!("agent/guidance.md");

/// What a runner needs to run one prompt with one agent.
pub struct Launch {
    /// Written before the start, below the home directory.
    pub files: Vec<JobFile>,
    /// Environment of the agent. Secret, so it is written as a file and never put in a URL.
    pub env: Vec<(String, SecretString)>,
    /// Program and arguments; nothing secret. `~/` at the start of an argument is the sprite user's home.
    pub argv: Vec<String>,
    /// The prompt, usually.
    pub stdin: Bytes,
    pub stop: StopProtocol,
    pub reader: Box<dyn AgentReader>,
}

/// The way to an agent's server, as a sprite has it.
#[derive(Clone, Debug)]
pub struct Way {
    /// The URL there.
    pub url: String,
    /// What to show: a token of the vault, or the key itself.
    pub key: SecretString,
}

/// A file for the job: `path` is relative to the sprite user's home.
#[derive(Clone)]
pub struct JobFile {
    pub path: String,
    pub mode: u32,
    pub content: SecretString,
}

/// How an agent is asked to stop: `signal` to its process group, SIGKILL after `grace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopProtocol {
    pub signal: Signal,
    pub grace: Duration,
}

/// Turns an agent's output into events and, at the end, a verdict. Never panics, whatever it is fed.
pub trait AgentReader: Send {
    /// Takes the next bytes of standard output, cut anywhere.
    fn stdout(&mut self, bytes: &[u8]) -> Vec<AgentEvent>;
    /// Takes the next bytes of standard error.
    fn stderr(&mut self, bytes: &[u8]);
    /// The verdict, given the exit status. The exit status alone never decides for `amp` and `claude`: a run
    /// succeeded only if a `result` record came that is no error.
    fn finish(&mut self, status: u8) -> AgentResult;
    /// What it has used so far, as far as its output tells.
    fn usage(&self) -> Option<Usage> {
        None
    }
}

/// What an agent does, for the progress message. Text is shortened, on one line, and still untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// The agent's own thread or session id.
    Thread(String),
    /// It said something on the way (not the final answer).
    Says(String),
    ToolStarted {
        id: String,
        name: String,
        summary: String,
    },
    ToolEnded {
        id: String,
        is_error: bool,
    },
}

/// How a run ended, as the agent's output tells it.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentResult {
    Answered {
        answer: String,
        details: Details,
    },
    /// The agent reported a failure, or `shell`'s script exited with a status other than zero.
    Failed {
        message: String,
        answer_so_far: Option<String>,
        /// The model's server was overloaded or failing, as far as the agent's output tells: the same may succeed later.
        retryable: bool,
        details: Details,
    },
    /// No result: the infrastructure failed. `message` quotes the end of standard error and the exit status.
    NoResult {
        message: String,
        details: Details,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub thread: Option<String>,
    pub usage: Option<Usage>,
    /// What the user should know: output cut, model other than asked for.
    pub notes: Vec<String>,
}

/// What a run used, as far as the agent's stream tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub turns: u64,
    /// All input tokens, cached ones included.
    pub input_tokens: u64,
    pub cached_input_tokens: u64,
    pub output_tokens: u64,
    /// US dollars, where the agent reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}

/// Why a prompt can't be given to an agent. Found before anything is started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    #[error("the agent {agent} is not configured: set {setting}")]
    NotConfigured { agent: &'static str, setting: &'static str },
    /// amp would wait for a login for ever, claude say that nobody is logged in.
    #[error("{setting} is empty: set it to a key, or remove it to do without this agent")]
    EmptyKey { setting: &'static str },
    #[error("{setting} holds a line end or another control character: it can't be sent as a key")]
    UnusableKey { setting: &'static str },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the prompt holds a NUL character, which no agent takes")]
    NulInPrompt,
    #[error("the prompt is too long for {agent}: {bytes} bytes as JSON, and it takes {limit}")]
    PromptTooLarge { agent: &'static str, bytes: usize, limit: usize },
}

/// The URL of the agent's server, as configured; none for `shell`.
pub fn server_url(kind: AgentKind, config: &AgentsConfig) -> Option<&str> {
    match kind {
        AgentKind::Shell => None,
        AgentKind::Amp => config.amp.as_ref().map(|amp| amp.url.as_str()),
        AgentKind::Claude => config.claude.as_ref().map(|claude| claude.url.as_str()),
    }
}

/// The key that is configured for the agent; none for `shell`.
pub fn real_key(kind: AgentKind, config: &AgentsConfig) -> Option<&SecretString> {
    match kind {
        AgentKind::Shell => None,
        AgentKind::Amp => config.amp.as_ref().map(|amp| &amp.key),
        AgentKind::Claude => config.claude.as_ref().map(|claude| &claude.key),
    }
}

/// What a runner needs to run `prompt` with this agent, which reaches its server by `way`; `shell` has no server.
///
/// # Errors
/// When the agent is not configured or would not take the prompt.
pub fn launch(kind: AgentKind, config: &AgentsConfig, way: Option<&Way>, prompt: &str) -> Result<Launch, LaunchError> {
    if prompt.trim().is_empty() {
        return Err(LaunchError::EmptyPrompt);
    }
    if prompt.contains('\0') {
        return Err(LaunchError::NulInPrompt);
    }
    let missing = |setting| LaunchError::NotConfigured { agent: kind.name(), setting };
    match kind {
        AgentKind::Shell => Ok(shell::launch(prompt)),
        AgentKind::Amp => {
            let (amp, way) = config.amp.as_ref().zip(way).ok_or(missing("AMP_API_KEY"))?;
            amp::launch(amp, &config.disabled_tools, way, prompt)
        }
        AgentKind::Claude => {
            let (claude, way) = config.claude.as_ref().zip(way).ok_or(missing("ANTHROPIC_API_KEY"))?;
            claude::launch(claude, &config.disabled_tools, way, prompt)
        }
    }
}

/// The key in `setting`, without white space around it (a key read from a file ends with a line feed).
fn usable_key(setting: &'static str, key: &SecretString) -> Result<SecretString, LaunchError> {
    let key = key.expose_secret().trim();
    match key {
        "" => Err(LaunchError::EmptyKey { setting }),
        key if key.chars().any(char::is_control) => Err(LaunchError::UnusableKey { setting }),
        key => Ok(key.into()),
    }
}

/// The value of NO_PROXY: loopback, and the agent's server when it is reached in the clear, as only one close by is. A
/// proxy that a sprite has for the way to the internet stays in use for the rest.
fn no_proxy(url: &str) -> String {
    let near = "127.0.0.1,localhost";
    match url.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("http") => format!("{near},{}", uri.host().unwrap_or_default()),
        _ => near.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AmpConfig, ClaudeConfig};

    fn config() -> AgentsConfig {
        let amp = AmpConfig {
            key: " sgamp-'quoted' \"key\" $HOME\n".into(),
            url: "https://ampcode.com".into(),
            mode: "medium".into(),
            version: amp::VERSION.into(),
            path: None,
        };
        let claude = ClaudeConfig {
            key: "sk-ant".into(),
            url: "https://api.anthropic.com".into(),
            model: Some("claude-opus-4-8".into()),
            version: claude::VERSION.into(),
            path: None,
        };
        AgentsConfig {
            default: AgentKind::Amp,
            amp: Some(amp),
            claude: Some(claude),
            disabled_tools: ["WebFetch".into()].into(),
        }
    }

    fn way(kind: AgentKind, config: &AgentsConfig, url: &str) -> Option<Way> {
        Some(Way { url: url.into(), key: real_key(kind, config)?.clone() })
    }

    fn start(kind: AgentKind, config: &AgentsConfig, url: &str, prompt: &str) -> Result<Launch, LaunchError> {
        launch(kind, config, way(kind, config, url).as_ref(), prompt)
    }

    fn env<'a>(launch: &'a Launch, name: &str) -> &'a str {
        launch.env.iter().find(|(known, _)| known == name).unwrap().1.expose_secret()
    }

    #[test]
    fn no_key_is_in_the_arguments_and_every_key_is_in_the_environment() {
        for (kind, name, key) in [
            (AgentKind::Amp, "AMP_API_KEY", "sgamp-'quoted' \"key\" $HOME"),
            (AgentKind::Claude, "ANTHROPIC_API_KEY", "sk-ant"),
        ] {
            let launch = start(kind, &config(), "http://model.test:8080/x", "hello").unwrap();
            assert_eq!(env(&launch, name), key);
            assert_eq!(env(&launch, "NO_PROXY"), "127.0.0.1,localhost,model.test");
            assert!(launch.argv.iter().all(|argument| !argument.contains(key)));
            assert_eq!(launch.stdin, "hello");
        }
        let launch = start(AgentKind::Amp, &config(), "https://ampcode.com", "hello").unwrap();
        assert_eq!(env(&launch, "NO_PROXY"), "127.0.0.1,localhost");
    }

    #[test]
    fn amps_settings_are_json_and_its_files_lie_below_home() {
        let launch = start(AgentKind::Amp, &config(), "http://127.0.0.1:1", "hello").unwrap();
        let settings: serde_json::Value = serde_json::from_str(launch.files[0].content.expose_secret()).unwrap();
        assert_eq!(settings["amp.dangerouslyAllowAll"], true);
        assert!(settings["amp.tools.disable"].as_array().unwrap().contains(&"WebFetch".into()));
        assert!(launch.argv.contains(&format!("~/{}", launch.files[0].path)));
        let guidance = launch.files[1].content.expose_secret();
        assert!(guidance.contains("Jane") && guidance.contains("~/output") && guidance.contains("other Amp threads"));
    }

    #[test]
    fn what_an_agent_would_not_take_is_refused_before_the_start() {
        let refusal = |kind, config: &AgentsConfig, prompt: &str| start(kind, config, "http://x", prompt).err();
        for kind in AgentKind::ALL {
            assert_eq!(refusal(kind, &config(), " \n\t"), Some(LaunchError::EmptyPrompt));
            assert_eq!(refusal(kind, &config(), "a\0b"), Some(LaunchError::NulInPrompt));
        }
        let mut bad = config();
        bad.claude = None;
        assert_eq!(
            refusal(AgentKind::Claude, &bad, "a"),
            Some(LaunchError::NotConfigured { agent: "claude", setting: "ANTHROPIC_API_KEY" })
        );
        for (key, error) in [
            (" \n", LaunchError::EmptyKey { setting: "AMP_API_KEY" }),
            ("a\nb", LaunchError::UnusableKey { setting: "AMP_API_KEY" }),
        ] {
            bad.amp.as_mut().unwrap().key = key.into();
            assert_eq!(refusal(AgentKind::Amp, &bad, "a"), Some(error));
        }
    }

    #[test]
    fn a_prompt_is_measured_for_amp_as_the_json_that_amp_makes_of_it() {
        const LIMIT: usize = 1024 * 1024 - 27;
        let fits = |prompt: &str| start(AgentKind::Amp, &config(), "http://x", prompt).is_ok();
        assert!(fits(&"a".repeat(LIMIT)) && !fits(&"a".repeat(LIMIT + 1)));
        // Each line feed is two characters in JSON.
        assert!(!fits(&("a".to_owned() + &"\n".repeat(LIMIT / 2 + 1))));
    }
}
