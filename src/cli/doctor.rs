//! `janebot doctor`: what is right and wrong with the set-up, before anything is started.

use std::io::Write as _;

use crate::chat::finding::Finding;
use crate::chat::terminal::Exit;
use crate::chat::{discord, slack};
use crate::config::Config;
use crate::world::World;

/// Prints the findings; the exit status says whether one of them is wrong.
pub async fn doctor(config: &Config, world: World) -> Exit {
    let discord = match &config.discord {
        None => vec![Finding::Good("Discord is off: DISCORD_TOKEN is not set".into())],
        Some(discord) => discord::doctor::examine(discord, &config.access, world).await,
    };
    let slack = match &config.slack {
        None => vec![Finding::Good("Slack is off: SLACK_BOT_TOKEN is not set".into())],
        Some(slack) => slack::doctor::examine(slack).await,
    };
    let tagged = |platform: &'static str, findings: Vec<Finding>| {
        findings.into_iter().map(move |finding| (platform, finding)).collect::<Vec<_>>()
    };
    let findings = [tagged("discord", discord), tagged("slack", slack)].concat();
    let said: String = findings.iter().map(|(platform, finding)| format!("{platform}: {finding}\n")).collect();
    // A reader who has seen enough closes the pipe.
    let _ = std::io::stdout().write_all(said.as_bytes());
    match findings.iter().any(|(_, finding)| matches!(finding, Finding::Bad(_))) {
        true => Exit::Failed,
        false => Exit::Answered,
    }
}
