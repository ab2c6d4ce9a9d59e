//! The simulation's chats: people who write, and what they were told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use janebot::chat::{Inbound, Progress, Replies, Reply};
use janebot::job::{ChannelId, ConversationId, JobId, JobReport, Outcome, RequesterId};

use crate::doubles::memory_sprites::MemorySprites;

/// A message that somebody means to write.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its place in the scenario; also what its script prints.
    pub number: usize,
    pub user: u64,
    pub conversation: u64,
    /// Where the conversation is: `terminal`, or one of the two platforms.
    pub platform: &'static str,
    pub script: String,
    /// What its answer is, if it is answered.
    pub answer: Option<String>,
}

impl Message {
    pub fn key(&self) -> String {
        format!("sim/c{}/{}", self.conversation, self.number)
    }

    pub fn conversation_id(&self) -> ConversationId {
        ConversationId::new(format!("{}:c{}", self.platform, self.conversation))
    }

    pub fn requester(&self) -> RequesterId {
        RequesterId::new(format!("{}:u{}", self.platform, self.user))
    }

    /// Whether its writer wants others to stop.
    pub fn is_stop(&self) -> bool {
        self.script == "stop"
    }

    /// What it says after it was edited.
    pub fn edited(&self) -> String {
        self.script.replacen('\n', "\n\n", 1)
    }

    /// The message as a platform delivers it.
    pub fn delivered(&self) -> Inbound {
        Inbound {
            key: self.key(),
            requester: self.requester(),
            channel: ChannelId::new(format!("{}:sim", self.platform)),
            conversation: self.conversation_id(),
            text: self.script.clone(),
            files: Vec::new(),
            agent: None,
            timeout: None,
            replies: None,
        }
    }

    /// The first line of what runs, by which the cloud knows the job again.
    pub fn marker(&self) -> String {
        format!("# message {}", self.number)
    }
}

/// What was told about each message, over all processes.
#[derive(Clone)]
pub struct Chats {
    told: Arc<Mutex<BTreeMap<String, Told>>>,
    /// To compare what is told of machines with how they really are.
    cloud: MemorySprites,
}

/// What its writer was told about one message.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub accepted: Vec<JobId>,
    pub progress: Vec<Progress>,
    pub ended: Vec<JobReport>,
    /// What should not have been told.
    pub wrong: Vec<String>,
}

impl Chats {
    pub fn new(cloud: MemorySprites) -> Self {
        Self { told: Arc::default(), cloud }
    }

    /// The message on its way in.
    pub fn inbound(&self, message: &Message) -> Inbound {
        let replies: Arc<dyn Replies> =
            Arc::new(Writer { key: message.key(), marker: message.marker(), chats: self.clone() });
        Inbound { replies: Some(replies), agent: Some("shell".into()), ..message.delivered() }
    }

    pub fn told(&self, key: &str) -> Told {
        self.lock().get(key).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer {
    key: String,
    marker: String,
    chats: Chats,
}

impl Replies for Writer {
    fn reply(&self, reply: Reply) {
        let lies = self.lies(&reply);
        let mut chats = self.chats.lock();
        let told = chats.entry(self.key.clone()).or_default();
        told.wrong.extend(lies);
        // A message delivered twice has two ways back; an outcome ends only its own.
        match reply {
            Reply::Accepted { job } => told.accepted.push(job),
            Reply::Ended(report) => told.ended.push(*report),
            Reply::Progress { job, progress } => {
                if told.ended.iter().any(|report| report.job == job) {
                    told.wrong.push(format!("{progress:?} of {job} after its outcome"));
                }
                told.progress.push(progress);
            }
        }
    }
}

impl Writer {
    /// What is said of a machine and is not so.
    fn lies(&self, reply: &Reply) -> Option<String> {
        let Reply::Ended(report) = reply else { return None };
        let Outcome::Cancelled { message } = &report.outcome else { return None };
        let truth = self.chats.cloud.truth();
        let left =
            truth.iter().find(|sprite| sprite.jobs.iter().chain(&sprite.daemons).any(|job| *job == self.marker))?;
        message.contains("no process of it is left").then(|| format!("that {} is empty, and it runs there", left.name))
    }
}
