//! The embedded sprite host over real HTTP and WebSocket: statuses, frames, checkpoints, and what is kept over restarts.

#[path = "host_api/served.rs"]
mod served;

mod ordinary;

#[path = "host_api/bad_input.rs"]
mod bad_input;
#[path = "host_api/checkpoints.rs"]
mod checkpoints;
#[path = "host_api/exec.rs"]
mod exec;
#[path = "host_api/files.rs"]
mod files;
#[path = "host_api/layers.rs"]
mod layers;
#[path = "host_api/sprites.rs"]
mod sprites;

#[test]
fn again_as_an_ordinary_user() {
    ordinary::again();
}
