//! The only way out of a sandbox.

pub mod policy;
mod presets;
