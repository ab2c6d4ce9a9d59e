//! janebot: a coding agent in your team's chat, run inside verified-clean sandboxes.
//!
//! The way of a prompt: an adapter ([`chat`]) hands it to the [`desk`], which records it in the [`journal`] and gives
//! it to its conversation; that asks the [`pool`] for a runner; the [`runner`] checks its sprite over [`sprites`], runs
//! the [`agent`] with a pass of the [`vault`], restores the sprite, proves that it is clean and offers itself again.
//! `actors.md` draws the tree.

pub mod admin;
pub mod agent;
pub mod app;
pub mod chat;
pub mod cli;
pub mod config;
pub mod desk;
pub mod host;
pub mod job;
pub mod journal;
pub mod observe;
pub mod pool;
pub mod runner;
pub mod sprites;
pub mod supervise;
pub mod vault;
pub mod world;
