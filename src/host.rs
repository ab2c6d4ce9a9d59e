//! The embedded sprite host: serves the Sprites API on loopback from sandboxes of this machine.
//!
//! Parts, from the wire down: [`api`] (HTTP and WebSocket), [`store`] (sprites, checkpoints and policies on disk, and
//! the life of each sprite), [`layers`] (the overlay layers that checkpoint and restore are made of), [`sandbox`] (one
//! running sandbox: namespaces, init, exec), [`egress`] (the only way out).

pub mod api;
pub mod egress;
pub mod layers;
pub mod sandbox;
pub mod store;
