//! Does anything grow with the number of jobs? A million of them through desk, conversations, outbox, pool manager and
//! runners, in ever new conversations of ever new people, told half directly and half through a chat.
//!
//! `cargo bench --bench memory -- [JOBS]`; 1,000,000 unless told otherwise. The sprite host answers at once, the journal
//! is in memory and forgets what has ended, and the clock is tokio's, paused: days pass in minutes, so that
//! conversations go to sleep and are forgotten as in real life. Prints a line every tenth of the way. Exits with 1 when
//! memory grew after the first fifth.

#[path = "overhead/service.rs"]
mod service;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use janebot::chat::{Button, Capabilities, Chat, Chats, Inbound, Replies, Reply, Sent};
use janebot::job::{ChannelId, ConversationId, RequesterId};
use janebot::journal::memory::MemoryJournal;
use janebot::journal::outgoing::Mark;
use janebot::world::World;
use service::Instantly;
use tokio::time::sleep;

const JOBS: u64 = 1_000_000;
/// Between two messages: a busy service's day, with a few thousand conversations awake at a time.
const PAUSE: Duration = Duration::from_millis(50);
/// Messages of one conversation, of one person and of one channel.
const PER_CONVERSATION: u64 = 3;
const PER_REQUESTER: u64 = 7;
const PER_CHANNEL: u64 = 500;
/// Jobs between two sweeps of the journal.
const SWEEP_EVERY: u64 = 500;
/// Longer than any conversation, timer or retry lives without something to do.
const REST: Duration = Duration::from_secs(3600);
/// What counts as flat: less than ten bytes for each job of a million.
const SLACK_KIB: u64 = 8 * 1024;

/// Counts outcomes, and does nothing else.
#[derive(Clone, Default)]
struct Counted(Arc<Counts>);

#[derive(Default)]
struct Counts {
    told: AtomicU64,
    marked: AtomicU64,
    messages: AtomicU64,
}

impl Replies for Counted {
    fn reply(&self, reply: Reply) {
        if let Reply::Ended(report) = reply {
            assert_eq!(report.outcome.word(), "answered", "{report:?}");
            self.0.told.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Counted {
    fn name(&self) -> Sent<String> {
        Ok(format!("m{}", self.0.messages.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Chat for Counted {
    fn capabilities(&self) -> Capabilities {
        Capabilities { edit: true, react: true, upload: true, max_message_chars: 2000, typing_every: None }
    }
    async fn post(&self, _: &ConversationId, _: &str, _: &str, _: &[Button]) -> Sent<String> {
        self.name()
    }
    async fn edit(&self, _: &ConversationId, _: &str, _: &str, _: &[Button]) -> Sent<()> {
        Ok(())
    }
    async fn react(&self, _: &ConversationId, _: &str, mark: Mark, shown: bool) -> Sent<()> {
        if shown && mark == Mark::Answered {
            self.0.marked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
    async fn upload(&self, _: &ConversationId, _: &str, _: &str, _: Bytes) -> Sent<String> {
        self.name()
    }
    async fn find(&self, _: &ConversationId, _: &str) -> Sent<Option<String>> {
        Ok(None)
    }
}

fn message(n: u64, counted: &Counted) -> Inbound {
    // Whole conversations are of one kind.
    let is_direct = (n / PER_CONVERSATION).is_multiple_of(2);
    let platform = if is_direct { "terminal" } else { "chat" };
    let replies: Option<Arc<dyn Replies>> = if is_direct { Some(Arc::new(counted.clone())) } else { None };
    Inbound {
        key: format!("{platform}:{n}"),
        requester: RequesterId::new(format!("{platform}:U{}", n / PER_REQUESTER)),
        channel: ChannelId::new(format!("{platform}:C{}", n / PER_CHANNEL)),
        conversation: ConversationId::new(format!("{platform}:C{}/{}", n / PER_CHANNEL, n / PER_CONVERSATION)),
        text: format!("echo {n}"),
        files: Vec::new(),
        agent: None,
        timeout: None,
        replies,
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// One thread, so that the clock goes on as soon as there is nothing to do.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-'));
    let jobs: u64 = words.next().map_or(JOBS, |word| word.parse().expect("the number of jobs is a number"));
    let (counted, journal) = (Counted::default(), MemoryJournal::new());
    let chats = Chats::default().with("chat", counted.clone());
    let app = service::start(Instantly::default(), journal.clone(), chats, World::seeded(1)).await;
    println!("{:>10} {:>12} {:>14} {:>12} {:>12}", "jobs", "memory, KiB", "conversations", "open jobs", "in journal");
    let mut lines = Vec::new();
    for n in 0..jobs {
        app.desk().send(message(n, &counted)).await;
        sleep(PAUSE).await;
        if (n + 1).is_multiple_of(SWEEP_EVERY) {
            journal.forget_ended();
        }
        if (n + 1).is_multiple_of((jobs / 10).max(1)) {
            let (desk, _) = app.status().await;
            let (desk, memory) = (desk.unwrap_or_default(), resident_kib());
            let kept = journal.forget_ended();
            println!("{:>10} {memory:>12} {:>14} {:>12} {kept:>12}", n + 1, desk.conversations, desk.open_jobs);
            lines.push(memory);
        }
    }
    sleep(REST).await;
    let (desk, _) = app.status().await;
    let (desk, kept) = (desk.unwrap_or_default(), journal.forget_ended());
    println!(
        "{:>10} {:>12} {:>14} {:>12} {kept:>12}",
        "an hour on",
        resident_kib(),
        desk.conversations,
        desk.open_jobs
    );
    let counts = &counted.0;
    let (told, marked) = (counts.told.load(Ordering::Relaxed), counts.marked.load(Ordering::Relaxed));
    println!(
        "told directly {told}, seen in the chat {marked}, of {jobs}; {} messages",
        counts.messages.load(Ordering::Relaxed)
    );
    let early = lines.iter().take(2).max().copied().unwrap_or_default();
    let late = lines.iter().skip(2).max().copied().unwrap_or_default();
    let grown = late.saturating_sub(early);
    let is_flat = grown <= SLACK_KIB;
    let is_all = told + marked == jobs && desk.open_jobs == 0 && kept == 0;
    println!("{}: {grown} KiB more than in the first fifth", if is_flat { "flat" } else { "NOT FLAT" });
    if !is_all {
        println!("NOT ALL have their outcome, or something is left");
    }
    if is_flat && is_all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
