//! Slack end to end: the built binary, real sandboxes, and a workspace that is stricter than the real one.

mod access;
mod bad_input;
mod connections;
mod controls;
#[path = "../doubles/fake_slack.rs"]
mod fake_slack;
mod manifest;
mod sends;
mod service;
mod talk;
