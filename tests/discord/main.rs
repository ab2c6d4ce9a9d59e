//! Discord as its people see it: the built binary with the embedded host and the `shell` agent (prompts are scripts),
//! against a Discord that is played on loopback. Skipped, with the reason, where this machine can't build sandboxes.

#[path = "../doubles/fake_discord.rs"]
mod fake_discord;

mod bad_input;
mod clicks;
mod connection;
mod doctor;
mod jane;
mod sending;
mod talk;
