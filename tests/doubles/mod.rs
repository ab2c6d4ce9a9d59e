//! Stand-ins for the world outside, for tests only.

pub mod memory_sprites;
