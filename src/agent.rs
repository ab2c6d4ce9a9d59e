//! Agent profiles: how one CLI agent is installed, configured, started, read and stopped. Data plus a parser.
//!
//! A profile never runs anything; the runner does, with what a profile gives it. Facts about the CLIs are in the
//! modules of each agent, with the version they were measured on.

pub mod amp;
pub mod claude;
pub mod shell;
pub mod stream;

use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::sprites::Signal;

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

/// A file for the job: `path` is relative to the sprite user's home.
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
}

/// What an agent does, for the progress message. Text is shortened, on one line, and still untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// The agent's own thread or session id.
    Thread(String),
    /// It said something on the way (not the final answer).
    Says(String),
    ToolStarted { id: String, name: String, summary: String },
    ToolEnded { id: String, is_error: bool },
}

/// How a run ended, as the agent's output tells it.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentResult {
    Answered { answer: String, details: Details },
    /// The agent reported a failure, or `shell`'s script exited with a status other than zero.
    Failed { message: String, answer_so_far: Option<String>, details: Details },
    /// No result: the infrastructure failed. `message` quotes the end of standard error and the exit status.
    NoResult { message: String, details: Details },
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
