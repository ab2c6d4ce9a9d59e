//! How a message comes in: admitted or refused, recorded, acknowledged, given to its conversation.
//!
//! Messages of one conversation are recorded one after the other, so that their order stays; only a wish to stop goes
//! to the front.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use ractor::{ActorProcessingErr, ActorRef};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::admission::{self, Refusal, Situation};
use super::conversation::ConversationMsg;
use super::ending::{self, Ended, JOURNAL_PATIENCE};
use super::room::{Recording, Room};
use super::{Desk, DeskMsg, Hearing, State, stop};
use crate::chat::Reply;
use crate::job::{ConversationId, JobId};
use crate::journal::{Accepted, Journal, JournalError};

impl<J: Journal> Desk<J> {
    pub(super) async fn on_heard(
        &self,
        me: &ActorRef<DeskMsg>,
        st: &mut State,
        mut hearing: Hearing,
    ) -> Result<(), ActorProcessingErr> {
        // Told already: its sender handed it to a desk that died, and this one found the debt when it started.
        if self.debts.get(&hearing.job).is_none() {
            return Ok(());
        }
        let is_stop = hearing.is_for_outbox() && stop::is_stop(&hearing.inbound.text);
        let room = st.rooms.get(&hearing.inbound.conversation);
        let situation = Situation {
            // A chat's message is recorded all the same, for the next process.
            draining: st.draining.is_some() && !hearing.is_for_outbox(),
            conversations: st.rooms.len(),
            open_in_conversation: room.map(|room| room.open.len()),
        };
        let admitted = match (is_stop, hearing.is_recorded) {
            (true, _) => admission::check_access(&hearing.inbound, &self.settings.access).map(|()| hearing.agent),
            // It was admitted before; only what can run may have changed since.
            (false, true) => admission::check_agent(hearing.inbound.agent.as_deref(), &self.settings),
            (false, false) => admission::admit(&hearing.inbound, &self.settings, situation),
        };
        let agent = match admitted {
            Ok(agent) => agent,
            Err(refusal) => {
                self.refuse(me, st, hearing, refusal);
                return Ok(());
            }
        };
        hearing.agent = agent;
        self.debts.admitted(&hearing.job, agent.name());
        let conversation = hearing.inbound.conversation.clone();
        let room = st.rooms.entry(conversation.clone()).or_default();
        let stop = is_stop.then(|| room.open.clone());
        room.open.insert(hearing.job.clone());
        if hearing.is_recorded {
            match stop {
                Some(jobs) => self.obey_stop(me, st, &hearing, jobs),
                None => return self.give(me, st, conversation, Box::new(hearing), None).await,
            }
            return Ok(());
        }
        // A wish to stop waits only for what is being written.
        let place = if stop.is_some() { usize::from(room.writing.is_some()) } else { room.recording.len() };
        let recording = Recording { hearing: Box::new(hearing), cancelled_by: None, change: None, stop };
        room.recording.insert(place.min(room.recording.len()), recording);
        if room.writing.is_none() {
            self.record_next(me, room);
        }
        Ok(())
    }

    /// Tells a message's writer why it becomes no job. A chat's is recorded first, so that it is told once.
    fn refuse(&self, me: &ActorRef<DeskMsg>, st: &mut State, mut hearing: Hearing, refusal: Refusal) {
        tracing::info!(job = %hearing.job, reason = refusal.reason.code(), "refused a message");
        let report = hearing.refused(refusal, self.world.now());
        if !hearing.is_for_outbox() {
            self.debts.pay(report);
            self.answer_drains_if_done(st);
            return;
        }
        let (journal, debts, me) = (self.journal.clone(), self.debts.clone(), me.clone());
        let job = hearing.job.clone();
        let task = tokio::spawn(async move {
            let conversation = hearing.inbound.conversation.clone();
            let recorded = match hearing.is_recorded {
                true => ending::settle(&journal, &debts, report.clone()).map(|_| true).boxed(),
                false => {
                    let effects = debts.place(&hearing.job).map(|place| place.ended(&report)).unwrap_or_default();
                    let effects: Vec<_> = effects.into_iter().map(|(effect, _)| effect).collect();
                    let (journal, row) = (journal.clone(), hearing.refused_row(&report));
                    let write = async move { timeout(JOURNAL_PATIENCE, journal.accept_with(&row, &effects)).await };
                    write.map(|written| matches!(written, Ok(Ok(_)))).boxed()
                }
            };
            // What is not recorded is not acknowledged, and comes again.
            if AssertUnwindSafe(recorded).catch_unwind().await.unwrap_or(false) {
                hearing.acknowledge();
                debts.pay(report);
            } else {
                debts.withdraw(&hearing.job);
            }
            let _ = me.cast(DeskMsg::Ended { conversation, job: hearing.job });
        });
        st.settling.insert(job, AbortOnDropHandle::new(task));
    }

    /// Writes the first message of the queue to the journal.
    fn record_next(&self, me: &ActorRef<DeskMsg>, room: &mut Room) {
        let Some(Recording { hearing, .. }) = room.recording.front() else {
            room.writing = None;
            return;
        };
        let now = self.world.now();
        let mut row = hearing.row(now, now);
        row.deadline = Some(room.deadline(now, hearing.inbound.timeout, &self.settings));
        let effects = self.debts.place(&row.job).map(|place| place.heard(&row.job)).unwrap_or_default();
        room.writing = Some({
            let (journal, me) = (self.journal.clone(), me.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                let write = timeout(JOURNAL_PATIENCE, journal.accept_with(&row, &effects));
                let written = AssertUnwindSafe(write).catch_unwind().await;
                let failed = |message: &str| Err(JournalError::Failed { message: message.into() });
                let result = match written {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => failed("it does not answer"),
                    Err(_) => failed("writing to it panicked"),
                };
                let _ = me.cast(DeskMsg::Recorded { conversation: row.conversation, job: row.job, result });
            }))
        });
    }

    pub(super) async fn on_recorded(
        &self,
        me: &ActorRef<DeskMsg>,
        st: &mut State,
        conversation: ConversationId,
        job: &JobId,
        result: Result<Accepted, JournalError>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(room) = st.rooms.get_mut(&conversation) else { return Ok(()) };
        let Some(Recording { mut hearing, cancelled_by, change, stop }) = room.recording.pop_front() else {
            return Ok(());
        };
        debug_assert_eq!(hearing.job, *job, "one message of a conversation is recorded at a time");
        self.record_next(me, room);
        match result {
            Ok(Accepted::New) => {
                tracing::info!(%job, %conversation, agent = hearing.agent.name(), bytes = hearing.inbound.text.len(), "accepted a job");
                self.debts.tell(job, Reply::Accepted { job: job.clone() });
                hearing.acknowledge();
                if let Some(jobs) = stop {
                    self.obey_stop(me, st, &hearing, jobs);
                    return Ok(());
                }
                if st.draining.is_none() || !hearing.is_for_outbox() {
                    self.give(me, st, conversation.clone(), hearing, cancelled_by).await?;
                    if let (Some(text), Some(room)) = (change, st.rooms.get(&conversation))
                        && let Some(actor) = &room.actor
                    {
                        let _ = actor.cast(ConversationMsg::Changed { job: job.clone(), text });
                    }
                    return Ok(());
                }
                tracing::info!(%job, "left a job to the next process");
                self.debts.withdraw(job);
            }
            Ok(Accepted::Known(known)) => {
                tracing::info!(job = %known, "a message came again");
                hearing.acknowledge();
                self.debts.strike_out(job, Reply::Accepted { job: known });
            }
            Err(error) => {
                tracing::error!(%job, %error, "a message could not be recorded");
                if let Some(jobs) = stop {
                    // Stopping needs no journal; the message comes again and then finds nothing to stop.
                    self.stop_jobs(st, &conversation, &jobs, &hearing.inbound.requester);
                }
                if hearing.is_for_outbox() {
                    // Not acknowledged, so it is delivered again.
                    self.debts.withdraw(job);
                } else {
                    let ended = Ended::unrun(job.clone(), hearing.agent.name().to_owned(), hearing.heard_at);
                    self.debts.pay(ended.with(ending::not_recorded(job, &error), self.world.now()));
                }
            }
        }
        self.on_ended(me, st, &conversation, job);
        Ok(())
    }
}
