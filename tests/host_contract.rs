//! The wire client against the embedded host: both keep the contract of the Sprites API, real programs included, as the
//! user that runs the tests and as an ordinary one.

mod contract;
mod ordinary;

use janebot::config::{HostConfig, Isolation, Limits};
use janebot::host::sandbox::SandboxError;
use janebot::host::{Host, HostError};
use janebot::sprites::http::{Deadlines, HttpSprites};
use janebot::world::World;
use secrecy::SecretString;

async fn keeps_the_contract(isolation: Isolation) {
    let dir = tempfile::tempdir().unwrap();
    let config = HostConfig {
        state_dir: dir.path().join("host"),
        listen: "127.0.0.1:0".parse().unwrap(),
        rootfs: None,
        isolation,
        grants: Vec::new(),
        limits: Limits::default(),
    };
    let token = SecretString::from("a-token");
    let host = match Host::start(config, env!("CARGO_BIN_EXE_janebot").into(), token.clone(), World::real()).await {
        Ok(host) => host,
        Err(HostError::Isolation(error @ SandboxError::Unsupported { .. })) => {
            println!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let sprites = HttpSprites::new(&host.url(), token, Deadlines::default()).unwrap();
    contract::keeps_the_contract(sprites, "contract-", true).await;
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_host_keeps_the_contract() {
    keeps_the_contract(Isolation::Full).await;
}

#[test]
fn again_as_an_ordinary_user() {
    ordinary::again();
}
