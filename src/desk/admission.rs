//! Who may ask for what: the rules by which a message becomes a job or is refused. Pure; the desk asks it once for
//! each message, and the command line may ask a part of it before anything is started.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::chat::Inbound;
use crate::config::{AccessConfig, AgentKind, Config, platform_id};
use crate::job::{ChannelId, MAX_PROMPT_BYTES, RefuseReason, RequesterId};

/// Conversations that have an actor at a time. Each costs a few KiB beside its history; more than this is a flood.
pub const MAX_CONVERSATIONS: usize = 10_000;

/// Jobs of one conversation that have not ended. They run one after the other, so the last would wait for hours.
pub const MAX_OPEN_IN_CONVERSATION: usize = 32;

/// Longest run that can be asked for.
pub const MAX_RUN_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What the desk and its conversations need of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Profiles that can run, in a fixed order.
    pub agents: Vec<AgentKind>,
    pub default_agent: AgentKind,
    pub run_timeout: Duration,
    pub queue_timeout: Duration,
    /// Messages of one person that follow each other faster than this become one prompt, where a chat has the outbox.
    pub debounce: Duration,
    pub access: AccessConfig,
}

impl Settings {
    pub fn of(config: &Config) -> Self {
        Self {
            agents: config.agents.installed(),
            default_agent: config.agents.default,
            run_timeout: config.pool.run_timeout,
            queue_timeout: config.pool.queue_timeout,
            debounce: config.debounce,
            access: config.access.clone(),
        }
    }
}

/// How things stand when a message arrives.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    pub draining: bool,
    pub conversations: usize,
    /// Jobs of the message's own conversation that have not ended; `None` when it has no actor yet.
    pub open_in_conversation: Option<usize>,
}

/// A message that becomes no job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: RefuseReason,
    /// For whoever asked: what is wrong, and what to do.
    pub message: String,
}

fn refuse<T>(reason: RefuseReason, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, message: message.into() })
}

/// Decides on a message: the agent to run it with, or why not.
///
/// Strangers are told nothing but that they are strangers, so permission comes first.
pub fn admit(inbound: &Inbound, settings: &Settings, situation: Situation) -> Result<AgentKind, Refusal> {
    check_access(inbound, &settings.access)?;
    check_prompt(&inbound.text)?;
    let agent = check_agent(inbound.agent.as_deref(), settings)?;
    if situation.draining {
        return refuse(
            RefuseReason::Draining,
            "janebot is stopping and takes nothing new: send this again in a minute.",
        );
    }
    match situation.open_in_conversation {
        Some(open) if open >= MAX_OPEN_IN_CONVERSATION => refuse(
            RefuseReason::QueueFull,
            format!("{open} messages of this conversation are waiting already: wait for answers, or cancel some."),
        ),
        None if situation.conversations >= MAX_CONVERSATIONS => refuse(
            RefuseReason::QueueFull,
            format!("{MAX_CONVERSATIONS} conversations are open already: send this again in a few minutes."),
        ),
        Some(_) | None => Ok(agent),
    }
}

/// Checks a prompt by itself.
pub fn check_prompt(text: &str) -> Result<(), Refusal> {
    if text.trim().is_empty() {
        return refuse(RefuseReason::EmptyPrompt, "The prompt is empty: write what the agent should do.");
    }
    if text.len() > MAX_PROMPT_BYTES {
        return refuse(
            RefuseReason::PromptTooLarge,
            format!(
                "The prompt is longer than {} MiB, the most that an agent reads: shorten it, or tell the agent where to find the text.",
                MAX_PROMPT_BYTES / 1024 / 1024
            ),
        );
    }
    Ok(())
}

/// Finds the profile that was asked for.
pub fn check_agent(asked: Option<&str>, settings: &Settings) -> Result<AgentKind, Refusal> {
    let Some(asked) = asked else { return Ok(settings.default_agent) };
    if let Some(agent) = settings.agents.iter().find(|agent| agent.name() == asked) {
        return Ok(*agent);
    }
    let configured: Vec<_> = settings.agents.iter().map(|agent| agent.name()).collect();
    let configured = configured.join(", ");
    let setting = match AgentKind::ALL.into_iter().find(|agent| agent.name() == asked) {
        Some(AgentKind::Amp) => "AMP_API_KEY",
        Some(AgentKind::Claude) => "ANTHROPIC_API_KEY",
        Some(AgentKind::Shell) | None => {
            let asked = crate::chat::text::one_line(asked, 40);
            return refuse(
                RefuseReason::UnknownAgent,
                format!("There is no agent “{asked}”. Configured: {configured}."),
            );
        }
    };
    refuse(
        RefuseReason::UnknownAgent,
        format!("The agent {asked} is not configured: set {setting}, or use one of: {configured}."),
    )
}

/// Whether this person may ask in this channel.
pub fn may_ask(requester: &RequesterId, channel: &ChannelId, access: &AccessConfig) -> bool {
    is_terminal(requester)
        || access.everyone
        || listed(&access.users, requester.as_str())
        || listed(&access.channels, channel.as_str())
        || access.vouched.has(requester, channel)
}

pub(super) fn check_access(inbound: &Inbound, access: &AccessConfig) -> Result<(), Refusal> {
    if may_ask(&inbound.requester, &inbound.channel, access) {
        return Ok(());
    }
    let (user, channel) = (inbound.requester.as_str(), inbound.channel.as_str());
    let (user, channel) = (platform_id(user), platform_id(channel));
    refuse(
        RefuseReason::NotAllowed,
        format!(
            "You may not use janebot here: ask its operator to add you ({user}) to ALLOWED_USER_IDS, or this channel ({channel}) to ALLOWED_CHANNEL_IDS."
        ),
    )
}

/// Whether the message comes from whoever runs the process, who needs no permission.
pub(super) fn is_terminal(requester: &RequesterId) -> bool {
    requester.as_str().starts_with("terminal:")
}

/// Deny by default: an empty list allows nobody.
pub(super) fn listed(list: &BTreeSet<String>, id: &str) -> bool {
    list.contains(id) || list.contains(platform_id(id))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::chat::{Replies, Reply};
    use crate::config::Vouched;
    use crate::job::ConversationId;

    struct Nowhere;
    impl Replies for Nowhere {
        fn reply(&self, _: Reply) {}
    }

    fn message(requester: &str, text: &str, agent: Option<&str>) -> Inbound {
        Inbound {
            key: "k".into(),
            requester: RequesterId::new(requester),
            channel: ChannelId::new("slack:C1"),
            conversation: ConversationId::new("slack:C1/1"),
            text: text.into(),
            files: Vec::new(),
            agent: agent.map(Into::into),
            timeout: None,
            replies: Some(Arc::new(Nowhere)),
        }
    }

    fn settings(users: &[&str], channels: &[&str]) -> Settings {
        Settings {
            agents: vec![AgentKind::Shell, AgentKind::Amp],
            default_agent: AgentKind::Amp,
            run_timeout: Duration::from_secs(600),
            queue_timeout: Duration::from_secs(900),
            debounce: Duration::ZERO,
            access: AccessConfig {
                admins: BTreeSet::new(),
                everyone: false,
                vouched: Vouched::default(),
                users: users.iter().map(ToString::to_string).collect(),
                channels: channels.iter().map(ToString::to_string).collect(),
            },
        }
    }

    const QUIET: Situation = Situation { draining: false, conversations: 0, open_in_conversation: None };

    #[test]
    fn the_default_agent_is_used_unless_another_is_named() {
        let settings = settings(&[], &[]);
        assert_eq!(admit(&message("terminal:a", "hi", None), &settings, QUIET), Ok(AgentKind::Amp));
        assert_eq!(admit(&message("terminal:a", "hi", Some("shell")), &settings, QUIET), Ok(AgentKind::Shell));
    }

    #[test]
    fn empty_lists_let_in_nobody_but_the_terminal() {
        let nobody = settings(&[], &[]);
        assert!(admit(&message("terminal:a", "hi", None), &nobody, QUIET).is_ok());
        let refusal = admit(&message("slack:U1", "hi", None), &nobody, QUIET).unwrap_err();
        assert_eq!(refusal.reason, RefuseReason::NotAllowed);
        assert!(
            refusal.message.contains("add you (U1) to ALLOWED_USER_IDS, or this channel (C1)"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn a_listed_user_may_ask_anywhere_and_anybody_in_a_listed_channel() {
        for (users, channels, allowed) in [
            (["U1"], ["C9"], true),
            (["slack:U1"], ["C9"], true),
            (["U9"], ["C1"], true),
            (["U9"], ["slack:C1"], true),
            (["U9"], ["C9"], false),
            (["discord:U1"], ["discord:C1"], false),
            (["C1"], ["U1"], false),
        ] {
            let admitted = admit(&message("slack:U1", "hi", None), &settings(&users, &channels), QUIET);
            assert_eq!(admitted.is_ok(), allowed, "{users:?} {channels:?}");
        }
    }

    #[test]
    fn whom_an_adapter_vouches_for_may_ask_in_that_channel_until_it_does_not_any_more() {
        let settings = settings(&[], &[]);
        let asked = message("slack:U1", "hi", None);
        settings.access.vouched.set(&asked.requester, &asked.channel, true);
        assert!(admit(&asked, &settings, QUIET).is_ok());
        let elsewhere = Inbound { channel: ChannelId::new("slack:C2"), ..message("slack:U1", "hi", None) };
        assert!(admit(&elsewhere, &settings, QUIET).is_err());
        settings.access.vouched.set(&asked.requester, &asked.channel, false);
        assert!(admit(&asked, &settings, QUIET).is_err());
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let settings = settings(&[], &[]);
        let big = "x".repeat(MAX_PROMPT_BYTES + 1);
        let full = Situation { open_in_conversation: Some(MAX_OPEN_IN_CONVERSATION), ..QUIET };
        let crowd = Situation { conversations: MAX_CONVERSATIONS, ..QUIET };
        let draining = Situation { draining: true, ..QUIET };
        for (text, agent, situation, reason, hint) in [
            ("", None, QUIET, RefuseReason::EmptyPrompt, "write what the agent should do"),
            (" \n\t ", None, QUIET, RefuseReason::EmptyPrompt, "write what the agent should do"),
            (big.as_str(), None, QUIET, RefuseReason::PromptTooLarge, "shorten it"),
            ("hi", Some("gpt"), QUIET, RefuseReason::UnknownAgent, "Configured: shell, amp."),
            (
                "hi",
                Some("claude"),
                QUIET,
                RefuseReason::UnknownAgent,
                "set ANTHROPIC_API_KEY, or use one of: shell, amp",
            ),
            ("hi", None, draining, RefuseReason::Draining, "again in a minute"),
            ("hi", None, full, RefuseReason::QueueFull, "cancel some"),
            ("hi", None, crowd, RefuseReason::QueueFull, "again in a few minutes"),
        ] {
            let refusal = admit(&message("terminal:a", text, agent), &settings, situation).unwrap_err();
            assert_eq!(refusal.reason, reason);
            assert!(refusal.message.contains(hint), "{}", refusal.message);
        }
    }

    #[test]
    fn a_conversation_that_is_open_goes_on_when_there_are_too_many() {
        let crowd = Situation { conversations: MAX_CONVERSATIONS, open_in_conversation: Some(0), draining: false };
        assert!(admit(&message("terminal:a", "hi", None), &settings(&[], &[]), crowd).is_ok());
    }

    #[test]
    fn a_prompt_of_exactly_the_limit_is_taken() {
        assert!(check_prompt(&"x".repeat(MAX_PROMPT_BYTES)).is_ok());
    }
}
