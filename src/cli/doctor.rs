//! `janebot doctor`: what is right and wrong with the set-up, before anything is started.

use std::io::Write as _;

use crate::chat::discord::doctor::{Finding, examine};
use crate::chat::terminal::Exit;
use crate::config::Config;
use crate::world::World;

/// Prints the findings; the exit status says whether one of them is wrong.
pub async fn doctor(config: &Config, world: World) -> Exit {
    let findings = match &config.discord {
        None => vec![Finding::Good("Discord is off: DISCORD_TOKEN is not set".into())],
        Some(discord) => examine(discord, &config.access, world).await,
    };
    let said: String = findings.iter().map(|finding| format!("discord: {finding}\n")).collect();
    // A reader who has seen enough closes the pipe.
    let _ = std::io::stdout().write_all(said.as_bytes());
    match findings.iter().any(|finding| matches!(finding, Finding::Bad(_))) {
        true => Exit::Failed,
        false => Exit::Answered,
    }
}
