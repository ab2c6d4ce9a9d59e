//! What janebot itself adds to a job: from the message handed in to the agent's process started, and to the outcome
//! told. The sprite host answers at once and from memory, so all that is measured is ours: desk, journal on disk, pool,
//! runner, and the scripts' parsing.
//!
//! Prints a table. `cargo bench --bench overhead`

#[path = "overhead/service.rs"]
mod service;

use std::sync::Arc;
use std::time::Duration;

use janebot::chat::{Chats, Inbound, Replies, Reply};
use janebot::job::{ChannelId, ConversationId, RequesterId};
use janebot::journal::sqlite::SqliteJournal;
use janebot::world::World;
use service::Instantly;
use tokio::sync::mpsc;
use tokio::time::Instant;

const WARM_UP: usize = 200;
const JOBS: usize = 3_000;

struct Told(mpsc::UnboundedSender<()>);

impl Replies for Told {
    fn reply(&self, reply: Reply) {
        if let Reply::Ended(report) = reply {
            assert_eq!(report.outcome.word(), "answered", "{report:?}");
            self.0.send(()).expect("the bench waits");
        }
    }
}

fn figures(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{name:<44} {:>8.2} {:>8.2} {:>8.2}", at(0.5), at(0.99), at(1.0));
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sprites = Instantly::default();
    let journal = SqliteJournal::open(folder.path().join("journal.sqlite")).await.expect("a new journal opens");
    let app = service::start(sprites.clone(), journal, Chats::default(), World::real()).await;
    let (to, mut told) = mpsc::unbounded_channel();
    let replies: Arc<dyn Replies> = Arc::new(Told(to));
    let (mut to_start, mut to_outcome) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for n in 0..WARM_UP + JOBS {
        let inbound = Inbound {
            key: format!("bench/{n}"),
            requester: RequesterId::new("terminal:bench"),
            channel: ChannelId::new("terminal:bench"),
            conversation: ConversationId::new(format!("terminal:bench/{}", n % 50)),
            text: "echo hello".into(),
            files: Vec::new(),
            agent: None,
            timeout: None,
            replies: Some(replies.clone()),
        };
        let asked = Instant::now();
        app.send(inbound).await;
        told.recv().await.expect("every message is answered");
        if n >= WARM_UP {
            let started = sprites.started().expect("the agent was started");
            to_start.push(started.duration_since(asked));
            to_outcome.push(asked.elapsed());
        }
    }
    let rate = (WARM_UP + JOBS) as f64 / began.elapsed().as_secs_f64();
    println!("{:<44} {:>8} {:>8} {:>8}", format!("ms, {JOBS} jobs one after another"), "p50", "p99", "max");
    figures("message handed in -> agent started", to_start);
    figures("message handed in -> outcome told", to_outcome);
    println!("{:<44} {rate:>8.0} /s", "whole jobs, restores included");
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().trim().to_owned();
        println!("{:<44} {rss:>12}", "memory afterwards");
    }
    app.shutdown(Instant::now() + Duration::from_secs(5)).await;
}
