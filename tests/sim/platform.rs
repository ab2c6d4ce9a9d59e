//! A chat platform of the simulation: it keeps what is written to it, and its network loses, delays, repeats, reorders
//! and limits. A request lives on when whoever made it dies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use janebot::chat::{Button, Capabilities, Chat, LATE_EFFECT, SendError, Sent};
use janebot::job::ConversationId;
use janebot::journal::outgoing::Mark;
use janebot::world::World;
use tokio::sync::oneshot;
use tokio::time::sleep;

/// A message of ours.
#[derive(Clone, Debug)]
pub struct Posted {
    pub id: String,
    pub conversation: ConversationId,
    pub key: String,
    /// The text, or the name of the file.
    pub text: String,
}

/// One platform; clones are the same one.
#[derive(Clone)]
pub struct Platform {
    world: World,
    capabilities: Capabilities,
    /// Of 1,000 requests, so many meet each kind of fault.
    rate: u64,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    messages: Vec<Posted>,
    marks: BTreeMap<String, BTreeSet<Mark>>,
    faults: u64,
    requests: u64,
    healed: bool,
    /// What was asked and what took effect, for whoever replays a seed.
    log: Vec<String>,
}

#[derive(Debug)]
enum Fate {
    Works,
    Unreachable,
    Limited,
    /// Takes effect; the answer gets lost.
    AnswerLost,
    /// Takes effect much later; the answer gets lost.
    Late,
    /// Gets lost, and nobody knows.
    RequestLost,
    /// Takes effect, and the connection hangs.
    Hangs,
}

impl Platform {
    pub fn new(world: World, capabilities: Capabilities, rate: u64) -> Self {
        Self { world, capabilities, rate, shared: Arc::default() }
    }

    /// The network works from now on.
    pub fn heal(&self) {
        self.lock().healed = true;
    }

    pub fn messages(&self) -> Vec<Posted> {
        self.lock().messages.clone()
    }

    pub fn marks(&self, message_key: &str) -> BTreeSet<Mark> {
        self.lock().marks.get(message_key).cloned().unwrap_or_default()
    }

    /// Requests, and those of them that met a fault.
    pub fn counts(&self) -> (u64, u64) {
        let shared = self.lock();
        (shared.requests, shared.faults)
    }

    pub fn log(&self) -> String {
        self.lock().log.join("\n")
    }

    fn note(&self, what: String) {
        let line = format!("{} {what}", self.world.now());
        self.lock().log.push(line);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn below(&self, limit: u64) -> u64 {
        self.world.random() % limit
    }

    fn fate(&self) -> Fate {
        let chance = self.below(1000);
        let mut shared = self.lock();
        shared.requests += 1;
        if shared.healed || chance >= 6 * self.rate {
            return Fate::Works;
        }
        shared.faults += 1;
        match chance / self.rate {
            0 => Fate::Unreachable,
            1 => Fate::Limited,
            2 => Fate::AnswerLost,
            3 => Fate::Late,
            4 => Fate::RequestLost,
            _ => Fate::Hangs,
        }
    }

    async fn request<T: Send + 'static>(
        &self,
        what: String,
        effect: impl FnOnce(&mut Shared) -> Sent<T> + Send + 'static,
    ) -> Sent<T> {
        let quick = Duration::from_millis(20 + self.below(400));
        let unknown = || Err(SendError::Ambiguous("simulated".into()));
        let fate = self.fate();
        self.note(format!("asked to {what}: {fate:?}"));
        let platform = self.clone();
        let effect = move |shared: &mut Shared| {
            let line = format!("{} done: {what}", platform.world.now());
            shared.log.push(line);
            effect(shared)
        };
        match fate {
            Fate::Works => match self.take_effect(quick, effect).await {
                Ok(answer) => answer,
                Err(_) => unknown(),
            },
            Fate::Unreachable => {
                sleep(quick).await;
                Err(SendError::Unreachable("simulated".into()))
            }
            Fate::Limited => {
                sleep(quick).await;
                Err(SendError::RateLimited { retry_after: Duration::from_millis(self.below(20_000)) })
            }
            Fate::AnswerLost => {
                drop(self.take_effect(quick, effect));
                sleep(quick + Duration::from_millis(1)).await;
                unknown()
            }
            Fate::Late => {
                let late = LATE_EFFECT - Duration::from_millis(1 + self.below(20_000));
                drop(self.take_effect(late, effect));
                sleep(quick).await;
                unknown()
            }
            Fate::RequestLost => {
                sleep(quick).await;
                unknown()
            }
            Fate::Hangs => {
                drop(self.take_effect(quick, effect));
                std::future::pending().await
            }
        }
    }

    fn take_effect<T: Send + 'static>(
        &self,
        after: Duration,
        effect: impl FnOnce(&mut Shared) -> Sent<T> + Send + 'static,
    ) -> oneshot::Receiver<Sent<T>> {
        let (answer, answered) = oneshot::channel();
        let platform = self.clone();
        tokio::spawn(async move {
            sleep(after).await;
            let result = effect(&mut platform.lock());
            let _ = answer.send(result);
        });
        answered
    }

    async fn write(&self, to: &ConversationId, key: &str, text: &str) -> Sent<String> {
        let (conversation, key, text) = (to.clone(), key.to_owned(), text.to_owned());
        self.request(format!("write {key}"), move |shared| {
            let id = format!("m{}", shared.messages.len());
            shared.messages.push(Posted { id: id.clone(), conversation, key, text });
            Ok(id)
        })
        .await
    }
}

impl Chat for Platform {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn post(&self, to: &ConversationId, key: &str, text: &str, _: &[Button]) -> Sent<String> {
        if text.chars().count() > self.capabilities.max_message_chars {
            return Err(SendError::Refused("it is too long".into()));
        }
        self.write(to, key, text).await
    }

    async fn edit(&self, _: &ConversationId, message: &str, text: &str, _: &[Button]) -> Sent<()> {
        let (message, text) = (message.to_owned(), text.to_owned());
        self.request(format!("edit {message} to {text:?}"), move |shared| {
            match shared.messages.iter_mut().find(|posted| posted.id == message) {
                Some(posted) => {
                    posted.text = text;
                    Ok(())
                }
                None => Err(SendError::Refused("there is no such message".into())),
            }
        })
        .await
    }

    async fn react(&self, _: &ConversationId, message_key: &str, mark: Mark, shown: bool) -> Sent<()> {
        let key = message_key.to_owned();
        self.request(format!("mark {key} {mark:?} {shown}"), move |shared| {
            let marks = shared.marks.entry(key).or_default();
            if shown {
                marks.insert(mark);
            } else {
                marks.remove(&mark);
            }
            Ok(())
        })
        .await
    }

    async fn upload(&self, to: &ConversationId, key: &str, name: &str, _: Bytes) -> Sent<String> {
        self.write(to, key, name).await
    }

    async fn find(&self, to: &ConversationId, key: &str) -> Sent<Option<String>> {
        let (to, key) = (to.clone(), key.to_owned());
        self.request(format!("find {key}"), move |shared| {
            let found = shared.messages.iter().find(|posted| posted.conversation == to && posted.key == key);
            Ok(found.map(|posted| posted.id.clone()))
        })
        .await
    }
}
