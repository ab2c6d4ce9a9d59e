//! Slack end to end: the built binary, real sandboxes, and a workspace that is stricter than the real one.

#[path = "../doubles/fake_slack.rs"]
mod fake_slack;
mod connections;
mod controls;
mod sends;
mod service;
mod talk;
