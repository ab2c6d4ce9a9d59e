//! All attacks of the table, those of more than one step written out.

mod bombs;
mod network;
mod restores;
mod service;
pub mod shared;

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use janebot::sprites::{CheckpointId, Exec, ExecEvent, NetworkPolicy};

use crate::calls::CALLS;
use crate::machine::Machine;
use crate::rig::{Outside, Rig, limits};
use crate::table::Line;

/// Addresses to which the owner of an allowed name might point it.
const SPECIAL: [&str; 10] = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.1.1",
    "192.168.1.1",
    "169.254.169.254",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "fe80::1",
    "fd00:ec2::254",
];
const PUBLIC: &str = "93.184.216.34";

/// Two sprites that live next to each other on one host, and the checkpoint of the first. Attacks of one scene happen
/// one after the other, those of several at the same time.
pub struct Scene<'a> {
    pub rig: &'a Rig,
    pub machine: &'a Machine,
    pub one: &'static str,
    pub two: &'static str,
    pub armed: CheckpointId,
    /// Nobody but this test has it in a command line.
    pub mark: String,
}

impl<'a> Scene<'a> {
    /// Makes both sprites.
    pub async fn set(rig: &'a Rig, machine: &'a Machine, one: &'static str, two: &'static str) -> Self {
        let armed = rig.sprite(one, &policy()).await;
        rig.sprite(two, &policy()).await;
        Self { rig, machine, one, two, armed, mark: format!("mark-{}-{one}", std::process::id()) }
    }

    /// An attack in the first sprite.
    pub async fn one(&self, words: &str) -> String {
        self.sprite(self.one, words).await
    }

    pub async fn two(&self, words: &str) -> String {
        self.sprite(self.two, words).await
    }

    async fn sprite(&self, name: &str, words: &str) -> String {
        self.rig.attack(name, &words.split(' ').collect::<Vec<_>>()).await
    }

    /// An attack that goes on, begun: it has said `ready` or another first line, which this gives.
    pub async fn begun(&self, sprite: &str, words: &str) -> (String, Exec) {
        let mut exec = self.rig.begin(sprite, &words.split(' ').collect::<Vec<_>>()).await.unwrap();
        let line = first_line(&mut exec).await;
        (line, exec)
    }

    /// A folder of the test's own that is no sprite's.
    pub fn machine_dir(&self) -> std::path::PathBuf {
        self.rig.state.parent().unwrap().to_owned()
    }

    pub async fn restore(&self) {
        janebot::sprites::Sprites::restore(&self.rig.sprites, self.one, &self.armed).await.unwrap();
    }
}

/// The first line of output.
pub async fn first_line(exec: &mut Exec) -> String {
    let mut text = String::new();
    while !text.contains('\n') {
        match exec.next().await {
            Some(Ok(ExecEvent::Stdout(bytes))) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Ok(ExecEvent::Stderr(_))) => {}
            other => return format!("{text}{other:?}"),
        }
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// The world outside in which the attacks happen.
pub async fn outside(machine: &Machine) -> Arc<Outside> {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    let mut names = vec![("allowed.test".to_owned(), ip(PUBLIC)), ("denied.test".into(), ip(PUBLIC))];
    names.extend(SPECIAL.iter().enumerate().map(|(n, address)| (format!("special{n}.test"), ip(address))));
    names.extend(machine.own.map(|own| ("own.test".into(), own)));
    // What a gateway without the wall against unknown addresses would look up.
    names.push(("198.18.77.7".into(), ip(PUBLIC)));
    Outside::open(&names).await
}

pub fn policy() -> NetworkPolicy {
    let names = (0..SPECIAL.len()).map(|n| format!("special{n}.test"));
    NetworkPolicy::allow(names.chain(["allowed.test", "own.test", "*.wild.test"].map(str::to_owned)))
}

pub async fn all(rig: &Rig, machine: &Machine, only: Option<&str>) -> Vec<Line> {
    let scene = Scene::set(rig, machine, "one", "two").await;
    let outward = Scene::set(rig, machine, "three", "four").await;
    let memory = Scene::set(rig, machine, "five", "six").await;
    let disk = Scene::set(rig, machine, "seven", "eight").await;
    let next_to_each_other = async {
        let mut lines = calls(&scene).await;
        lines.extend(shared::all(&scene).await);
        lines.extend(restores::all(&scene).await);
        lines.extend(service::all(&scene).await);
        lines
    };
    let lines =
        tokio::join!(next_to_each_other, network::all(&outward), bombs::of_memory(&memory), bombs::of_disk(&disk));
    let mut lines = [lines.0, lines.1, lines.2, lines.3].concat();
    lines.retain(|line| only.is_none_or(|only| line.attack.contains(only) || line.number == only));
    lines.sort_by_key(|line| order(&line.number));
    lines
}

async fn calls(scene: &Scene<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    for call in CALLS {
        let words = filled_in(call.words, scene);
        let expected = if rustix::process::geteuid().is_root() { call.as_root } else { call.as_user };
        lines.push(Line::judge(call.number, call.attack, call.wall, expected, scene.one(&words).await));
    }
    lines
}

/// `$NAME`s in what an attack is told.
pub fn filled_in(words: &str, scene: &Scene<'_>) -> String {
    let api = scene.rig.host.url();
    let own = scene.machine.own.map_or("192.168.0.1".into(), |own| own.to_string());
    words
        .replace("$PORT", &scene.machine.port.to_string())
        .replace("$ABSTRACT", &scene.machine.abstract_name)
        .replace("$API", api.rsplit(':').next().unwrap_or_default())
        .replace("$PID", &std::process::id().to_string())
        .replace("$STATE", scene.rig.state.to_str().unwrap())
        .replace("$OWN", &own)
}

fn order(number: &str) -> (u32, String) {
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    (digits.parse().unwrap_or(u32::MAX), number[digits.len()..].to_owned())
}

/// Looks again and again for at most so long: what is waited for happens in processes that tell nobody.
pub async fn within(time: Duration, mut happened: impl FnMut() -> bool) -> bool {
    let looking = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(time, looking).await.is_ok()
}

/// Plays the service in the attack that kills one: serves a sprite with daemons until it is killed.
pub async fn doomed(state: &str, mark: &str) -> ExitCode {
    let outside = Outside::open(&[]).await;
    let rig = Rig::start(Path::new(state), &[], limits(), &outside).await.unwrap();
    rig.sprite("doomed", &NetworkPolicy::deny_all()).await;
    let left = rig.attack("doomed", &["daemons", mark]).await;
    println!("{left}");
    std::future::pending().await
}
