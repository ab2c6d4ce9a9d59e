//! The simulation's chats: people who write, and what they were told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use janebot::chat::{Inbound, Replies, Reply};
use janebot::job::{ChannelId, ConversationId, JobId, JobReport, RequesterId};

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
#[derive(Clone, Default)]
pub struct Chats(Arc<Mutex<BTreeMap<String, Told>>>);

/// What its writer was told about one message.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub accepted: Vec<JobId>,
    pub ended: Vec<JobReport>,
    /// Something came after the outcome.
    pub late: Vec<String>,
}

impl Chats {
    /// The message on its way in.
    pub fn inbound(&self, message: &Message) -> Inbound {
        let replies: Arc<dyn Replies> = Arc::new(Writer { key: message.key(), chats: self.clone() });
        Inbound { replies: Some(replies), agent: Some("shell".into()), ..message.delivered() }
    }

    pub fn told(&self, key: &str) -> Told {
        self.lock().get(key).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer {
    key: String,
    chats: Chats,
}

impl Replies for Writer {
    fn reply(&self, reply: Reply) {
        let mut chats = self.chats.lock();
        let told = chats.entry(self.key.clone()).or_default();
        // A message delivered twice has two ways back; an outcome ends only its own.
        match reply {
            Reply::Accepted { job } => told.accepted.push(job),
            Reply::Ended(report) => told.ended.push(*report),
            Reply::Progress { job, progress } => {
                if told.ended.iter().any(|report| report.job == job) {
                    told.late.push(format!("{progress:?} of {job}"));
                }
            }
        }
    }
}
