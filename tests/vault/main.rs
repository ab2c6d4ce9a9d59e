//! The vault over real sockets: what a job can do with its token and what it can't, against a provider that misbehaves.

#[path = "../doubles/fake_provider.rs"]
mod fake_provider;

mod amp;
mod attacks;
mod liars;
mod rig;
mod streams;
