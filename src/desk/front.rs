//! The front door: how adapters hand in messages, over restarts of the desk.

use std::sync::Arc;
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{ActorRef, MessagingErr, RpcReplyPort};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::Settings;
use super::debts::Debts;
use super::ending::{Ended, JOURNAL_PATIENCE};
use super::lookup::{Again, Lookup};
use super::recovery::Left;
use super::stop::Stopping;
use super::{DeskMsg, DeskStatus, Hearing, Target};
use crate::chat::{Change, Inbound};
use crate::job::{ChannelId, JobId, Outcome, RefuseReason, RequesterId};
use crate::journal;
use crate::supervise::current::Follower;
use crate::world::World;

/// How long the desk may take to answer. It waits for nothing, so this is a matter of its mailbox.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way to the desk. Clones lead to the same one.
#[derive(Clone)]
pub struct DeskHandle {
    current: Follower<Option<ActorRef<DeskMsg>>>,
    debts: Debts,
    world: World,
    settings: Arc<Settings>,
}

impl DeskHandle {
    /// Follows the desk that `current` names; `debts` are those that it was started with.
    pub fn new(
        current: Follower<Option<ActorRef<DeskMsg>>>,
        debts: Debts,
        world: World,
        settings: Arc<Settings>,
    ) -> Self {
        Self { current, debts, world, settings }
    }

    /// Hands in a message, which from then on is owed an outcome. Waits while the desk is being restarted; when it has
    /// stopped for good, the message is refused.
    pub async fn send(&self, inbound: Inbound) {
        self.hand_in(self.hearing(inbound)).await;
    }

    /// Hands in a message of a chat that the outbox writes to, and waits until it is in the journal: as a job, or as
    /// refused. Only then may the platform be told that it need not deliver the message again. Whether it is; if not,
    /// it is to be handed in again, which does nothing when it was recorded after all.
    pub async fn hear(&self, inbound: Inbound) -> bool {
        let (heard, is_heard) = oneshot::channel();
        self.hand_in(Hearing { heard: Some(heard), ..self.hearing(inbound) }).await;
        is_heard.await.is_ok()
    }

    /// Says that a message was edited or deleted. One that is not open any more is left as it is.
    pub async fn change(&self, change: Change) {
        let mut current = self.current.clone();
        let mut message = DeskMsg::Changed(change);
        loop {
            let desk = current.see();
            if let Some(desk) = desk {
                match desk.cast(message) {
                    Err(MessagingErr::SendErr(back)) => message = back,
                    Ok(()) | Err(_) => return,
                }
            }
            if current.changed().await.is_err() {
                return;
            }
        }
    }

    /// Hands in what an earlier process left, in its order.
    pub async fn resume(&self, left: Vec<Left>) {
        for left in left {
            self.hand_in(Hearing::left(left, self.settings.default_agent)).await;
        }
    }

    fn hearing(&self, inbound: Inbound) -> Hearing {
        Hearing {
            job: self.world.job_id(),
            inbound,
            heard_at: Instant::now(),
            agent: self.settings.default_agent,
            heard: None,
            is_recorded: false,
            parts: Vec::new(),
        }
    }

    async fn hand_in(&self, hearing: Hearing) {
        let mut current = self.current.clone();
        let mut hearing = Box::new(hearing);
        loop {
            let desk = current.see();
            if let Some(desk) = desk {
                // Before the desk has it: should it die over the message, the next one finds the debt.
                self.debts.owe(&hearing.job, &hearing.inbound, hearing.heard_at);
                match desk.cast(DeskMsg::Heard(hearing)) {
                    Ok(()) => return,
                    Err(MessagingErr::SendErr(DeskMsg::Heard(back))) => {
                        self.debts.withdraw(&back.job);
                        hearing = back;
                    }
                    // Not possible, since the reference and the message have one type; the debt stays for the next desk.
                    Err(_) => return,
                }
            }
            if current.changed().await.is_err() {
                self.refuse_stopped(&hearing);
                return;
            }
        }
    }

    /// Asks jobs to stop. Returns how many are meant, or `None` when the desk does not answer.
    pub async fn cancel(&self, target: Target, by: RequesterId) -> Option<Stopping> {
        self.ask(|reply| DeskMsg::Cancel { target, by, reply }, PATIENCE).await
    }

    /// Runs a job again that failed, as a new message of its requester in the same conversation; once, however often it
    /// is asked.
    pub async fn again(&self, job: &JobId, by: &RequesterId) -> Again {
        match self.look(job).await {
            None | Some(Err(_)) => Again::Failed,
            Some(Ok(None)) => Again::Unknown,
            Some(Ok(Some(known))) => match known.again(by, &self.settings.access) {
                Err(why) => why,
                // Nobody would be told what became of it.
                Ok(inbound) if self.debts.place_of(&inbound.conversation, &inbound.key).is_none() => Again::Unknown,
                Ok(inbound) => match self.hear(inbound).await {
                    true => Again::Started,
                    false => Again::Failed,
                },
            },
        }
    }

    /// The story of a job, without prompt and answer, for somebody who asks in `channel`: it is told to its requester, to
    /// admins, and in its own channel. A sentence when it is not to be had.
    pub async fn why(&self, job: &JobId, by: &RequesterId, channel: &ChannelId) -> String {
        match self.look(job).await {
            None | Some(Err(_)) => "The journal does not tell at the moment: try again in a minute.".into(),
            Some(Ok(Some(known))) if known.is_for(by, channel, &self.settings.access) => known.story(&self.world),
            Some(Ok(_)) => Again::Unknown.sentence(),
        }
    }

    async fn look(&self, job: &JobId) -> Option<journal::Result<Option<Lookup>>> {
        self.ask(|reply| DeskMsg::Look { job: job.clone(), reply }, PATIENCE + JOURNAL_PATIENCE).await
    }

    /// Takes nothing new and waits until all jobs have ended, at most until `deadline`. Returns how many have not.
    pub async fn drain(&self, deadline: Instant) -> usize {
        let patience = deadline.saturating_duration_since(Instant::now()) + PATIENCE;
        let left = self.ask(|reply| DeskMsg::Drain { deadline, reply }, patience).await;
        left.unwrap_or_else(|| self.debts.len())
    }

    pub async fn status(&self) -> Option<DeskStatus> {
        self.ask(DeskMsg::Status, PATIENCE).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        message: impl FnOnce(RpcReplyPort<T>) -> DeskMsg,
        patience: Duration,
    ) -> Option<T> {
        let desk = self.current.get()?;
        match desk.call(message, Some(patience)).await {
            Ok(CallResult::Success(answer)) => Some(answer),
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => None,
        }
    }

    fn refuse_stopped(&self, hearing: &Hearing) {
        // Not recorded, so the platform delivers it again, to the next process.
        if hearing.is_for_outbox() {
            return;
        }
        let outcome = Outcome::Refused {
            reason: RefuseReason::Draining,
            message: "janebot has stopped and takes nothing new: send this again in a minute.".into(),
        };
        self.debts.owe(&hearing.job, &hearing.inbound, hearing.heard_at);
        let agent = hearing.inbound.agent.clone().unwrap_or_else(|| hearing.agent.name().to_owned());
        self.debts.pay(Ended::unrun(hearing.job.clone(), agent, hearing.heard_at).with(outcome, self.world.now()));
    }
}
