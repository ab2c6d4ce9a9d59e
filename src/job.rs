//! What a job is: one accepted prompt, from journal row to outcome. Plain data, shared by every part.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::Usage;
use crate::pool::receipt::Receipt;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps the text as it is; where it comes from outside, the caller has checked it.
            pub fn new(text: impl Into<String>) -> Self { Self(text.into()) }
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    };
}

text_id!(
    /// One job. Made by [`crate::world::World::job_id`]; sorts by age.
    JobId
);
text_id!(
    /// Who asked: the platform and the platform's user id, as in `discord:123` or `terminal:alice`.
    RequesterId
);
text_id!(
    /// Where it was asked: the platform and the platform's channel id, as in `slack:C042`.
    ChannelId
);
text_id!(
    /// The chat thread, DM or terminal session that jobs belong to, as in `slack:C042/1700000000.000100`.
    ConversationId
);

impl ConversationId {
    /// The part before the colon, as in `slack`.
    pub fn platform(&self) -> &str {
        self.0.split_once(':').map_or("", |(platform, _)| platform)
    }
}

/// How a job ended. Every accepted prompt gets exactly one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Answered {
        answer: String,
    },
    Failed {
        reason: FailReason,
        message: String,
    },
    Refused {
        reason: RefuseReason,
        message: String,
    },
    Cancelled {
        message: String,
    },
    /// Came so soon after another message that both became one prompt; the answer is that job's.
    Merged {
        into: JobId,
        message: String,
    },
}

impl Outcome {
    /// The word used in journal rows, spans, metrics and `--json`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Answered { .. } => "answered",
            Self::Failed { .. } => "failed",
            Self::Refused { .. } => "refused",
            Self::Cancelled { .. } => "cancelled",
            Self::Merged { .. } => "merged",
        }
    }

    /// The reason code of a failure or refusal, as written to journal and metrics.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Failed { reason, .. } => Some(reason.code()),
            Self::Refused { reason, .. } => Some(reason.code()),
            Self::Answered { .. } | Self::Cancelled { .. } | Self::Merged { .. } => None,
        }
    }

    /// Whether sending the same again may succeed by itself: nothing stood against the prompt, only the moment. An
    /// adapter offers a button then; nothing is ever repeated without one.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Failed { reason, .. } => match reason {
                FailReason::ModelBusy | FailReason::QueueTimeout | FailReason::NoRunner => true,
                FailReason::AgentFailed | FailReason::NoResult | FailReason::Timeout => false,
                FailReason::OutcomeUnknown | FailReason::Interrupted => false,
                FailReason::Journal | FailReason::Overdue | FailReason::Limit | FailReason::Held => false,
            },
            Self::Refused { reason, .. } => match reason {
                RefuseReason::QueueFull | RefuseReason::TooManyWaiting | RefuseReason::Draining => true,
                RefuseReason::NotAllowed | RefuseReason::EmptyPrompt | RefuseReason::PromptTooLarge => false,
                RefuseReason::UnknownAgent | RefuseReason::Unsuitable | RefuseReason::OverLimit => false,
            },
            Self::Answered { .. } | Self::Cancelled { .. } | Self::Merged { .. } => false,
        }
    }
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
        impl $name {
            /// The stable word for journal rows, metrics and `--json`.
            pub fn code(self) -> &'static str { match self { $(Self::$variant => $code,)* } }
        }
    };
}

reasons!(
    /// Why an accepted job has no answer.
    FailReason {
        /// The agent ran and said that it failed (or, for `shell`, exited with a status other than zero).
        AgentFailed = "agent_failed",
        /// The agent failed because the model's server was overloaded or failing.
        ModelBusy = "model_busy",
        /// The agent ended without a result.
        NoResult = "no_result",
        /// The job's time was up.
        Timeout = "timeout",
        /// It came to a limit of what a job may use.
        Limit = "limit",
        /// What it would have sent out held a secret of the service.
        Held = "held",
        /// It waited longer than allowed for a runner.
        QueueTimeout = "queue_timeout",
        /// The connection to the sprite was lost after the agent had started; what it did is unknown.
        OutcomeUnknown = "outcome_unknown",
        /// The service stopped or lost the runner's actor while the agent was running.
        Interrupted = "interrupted",
        /// No runner could be made to start the agent.
        NoRunner = "no_runner",
        /// The journal could not be written.
        Journal = "journal",
        /// Its deadline passed without an outcome, and the watchdog ended it.
        Overdue = "overdue",
    }
);

reasons!(
    /// Why a prompt was not accepted.
    RefuseReason {
        NotAllowed = "not_allowed",
        EmptyPrompt = "empty_prompt",
        PromptTooLarge = "prompt_too_large",
        UnknownAgent = "unknown_agent",
        /// The agent would not take this prompt, or is not set up.
        Unsuitable = "unsuitable",
        /// The requester's limit for a day is reached.
        OverLimit = "over_limit",
        QueueFull = "queue_full",
        /// As many of the requester's, or of the channel's, wait as may.
        TooManyWaiting = "too_many_waiting",
        Draining = "draining",
    }
);

/// Where a job's time went. `None` for a phase that it never reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    pub queue_ms: Option<u64>,
    pub check_ms: Option<u64>,
    pub run_ms: Option<u64>,
    /// Collecting the output files while the lease was held.
    pub collect_ms: Option<u64>,
    pub total_ms: u64,
}

/// A file that the agent left in its output folder.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Path below the output folder; checked to have no `..` and no control characters.
    pub name: String,
    #[serde(skip)]
    pub bytes: Bytes,
    pub size: u64,
}

impl fmt::Debug for OutputFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputFile").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}

/// Everything known about a job that ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobReport {
    pub job: JobId,
    #[serde(flatten)]
    pub outcome: Outcome,
    pub agent: String,
    pub timings: Timings,
    /// Proof that the job ran on a clean machine; absent when it never got one.
    pub receipt: Option<Receipt>,
    pub usage: Option<Usage>,
    pub files: Vec<OutputFile>,
    /// What the user should know beside the answer: files left out, output cut.
    pub notes: Vec<String>,
    pub ended_at: Timestamp,
}

/// The prompt of a job with what is needed to run it.
#[derive(Clone)]
pub struct JobSpec {
    pub job: JobId,
    pub requester: RequesterId,
    pub channel: ChannelId,
    pub conversation: ConversationId,
    /// Profile name, checked to be configured.
    pub agent: String,
    /// What the agent gets: the user's text with fenced history, UTF-8, at most [`MAX_PROMPT_BYTES`].
    pub prompt: String,
    /// Wall time allowed for the agent's run.
    pub run_timeout: Duration,
    /// Files that came with the message, for the input folder.
    pub files: Vec<InputFile>,
}

/// A file that the agent is to find in its input folder.
#[derive(Clone)]
pub struct InputFile {
    /// A harmless name, different from those of the job's other files.
    pub name: String,
    pub source: Arc<dyn FileSource>,
}

/// Where a file's content comes from. It is asked for when the machine for the job is there, so that waiting jobs hold
/// no files.
pub trait FileSource: Send + Sync {
    /// The content, or a sentence for the user why it is not to be had.
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, String>>;
}

impl fmt::Debug for JobSpec {
    /// Leaves out the prompt, which must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobSpec").field("job", &self.job).field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// Longest prompt taken. Amp refuses more than 1 MiB on stdin (measured with 0.0.1790142911).
pub const MAX_PROMPT_BYTES: usize = 1024 * 1024;
