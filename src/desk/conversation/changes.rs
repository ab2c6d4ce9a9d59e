//! What befalls a job from outside while it waits or runs: it is to stop, its message changes, the process ends.
//!
//! A ticket that was handed in is taken back by cancelling it, and nothing is done about its job until the ticket's
//! holder has answered: it may have started the agent in that moment.

use std::collections::VecDeque;
use std::sync::Arc;

use ractor::ActorRef;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{CANCEL_PATIENCE, Conversation, ConversationMsg, Doing, State};
use crate::chat::Progress;
use crate::desk::admission::check_prompt;
use crate::desk::ending::{self, Cause, Ended, JOURNAL_PATIENCE};
use crate::desk::{DeskMsg, Hearing};
use crate::job::{JobId, RequesterId};
use crate::journal::Journal;

impl<J: Journal> Conversation<J> {
    /// Cancelling what is being cancelled, or has ended, changes nothing.
    pub(super) fn on_cancel(&self, me: &ActorRef<ConversationMsg>, st: &mut State, job: &JobId, by: RequesterId) {
        self.stop(me, st, job, Cause::Wish(by));
    }

    fn stop(&self, me: &ActorRef<ConversationMsg>, st: &mut State, job: &JobId, cause: Cause) {
        if let Some(place) = st.waiting.iter().position(|hearing| hearing.job == *job) {
            if let Some(hearing) = st.waiting.remove(place) {
                let ended = Ended::unrun(hearing.job.clone(), hearing.agent.name().to_owned(), hearing.heard_at);
                let outcome = ending::cancelled_before_start(Some(&cause), &hearing.inbound.requester);
                self.settle(me, st, ended.with(outcome, self.world.now()));
            }
            return;
        }
        if let Doing::Run(run) = &mut st.doing
            && run.hearing.job == *job
            && run.cause.is_none()
        {
            run.cause = Some(cause);
            // The token before the withdrawal: a runner sees only the token.
            run.cancel.cancel();
            self.pool.withdraw(&run.hearing.job);
            self.progress(&run.hearing.job, Progress::Cancelling);
            run.watch(me, CANCEL_PATIENCE);
        }
    }

    /// A new text is run instead of the old one as long as the agent has not started; then the job is stopped. An empty
    /// text, or one that is too long, is as good as none.
    pub(super) fn on_changed(&self, me: &ActorRef<ConversationMsg>, st: &mut State, job: &JobId, text: Option<String>) {
        let Some(text) = text.filter(|text| check_prompt(text).is_ok()) else {
            self.stop(me, st, job, Cause::Deleted);
            return;
        };
        if let Some(hearing) = st.waiting.iter_mut().find(|hearing| hearing.job == *job) {
            hearing.inbound.text.clone_from(&text);
            self.revise(job, text);
            return;
        }
        let Doing::Run(run) = &mut st.doing else { return };
        // Platforms tell of a change, too, when they have added the preview of a link.
        if run.hearing.job != *job || run.hearing.inbound.text == text || run.cause.is_some() {
            return;
        }
        if run.is_before_start() {
            run.new_text = Some(text.clone());
            run.cancel.cancel();
            self.pool.withdraw(job);
            run.watch(me, CANCEL_PATIENCE);
            self.revise(job, text);
        } else {
            self.stop(me, st, job, Cause::Edited);
        }
    }

    /// The journal's prompt is what runs after a crash.
    fn revise(&self, job: &JobId, text: String) {
        let (journal, job) = (self.journal.clone(), job.clone());
        tokio::spawn(async move {
            match timeout(JOURNAL_PATIENCE, journal.revise(&job, &text)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%job, %error, "a message's new text could not be recorded"),
                Err(_) => tracing::warn!(%job, "a message's new text could not be recorded: no answer"),
            }
        });
    }

    pub(super) fn on_hand_over(&self, me: &ActorRef<ConversationMsg>, st: &mut State) {
        st.handing_over = true;
        let (left, kept) = std::mem::take(&mut st.waiting).into_iter().partition(|hearing| hearing.is_for_outbox());
        st.waiting = kept;
        let left: VecDeque<Box<Hearing>> = left;
        for hearing in left {
            self.leave(&hearing.job);
        }
        if let Doing::Run(run) = &mut st.doing
            && run.hearing.is_for_outbox()
            && run.is_before_start()
            && run.cause.is_none()
        {
            run.handing_over = true;
            run.cancel.cancel();
            self.pool.withdraw(&run.hearing.job);
            run.watch(me, CANCEL_PATIENCE);
        }
    }

    /// Leaves a job that has not started to the next process.
    fn leave(&self, job: &JobId) {
        tracing::info!(%job, "left a job to the next process");
        self.debts.withdraw(job);
        // A desk that is gone has lost this actor as well.
        let _ = self.desk.cast(DeskMsg::Ended { conversation: self.id.clone(), job: job.clone() });
    }

    /// A ticket came back before the agent started. Whether it did because this conversation wanted it back: then the
    /// job goes on in its new way.
    pub(super) fn took_back(&self, me: &ActorRef<ConversationMsg>, st: &mut State) -> bool {
        let Doing::Run(run) = &mut st.doing else { return false };
        if run.cause.is_some() {
            return false;
        }
        if run.handing_over {
            // The check of a machine may have begun, and then the journal has a lease of it.
            let (journal, job, me) = (self.journal.clone(), run.hearing.job.clone(), me.clone());
            run.pump = AbortOnDropHandle::new(tokio::spawn(async move {
                let given_back = timeout(JOURNAL_PATIENCE, journal.unlease(&job)).await;
                if !matches!(given_back, Ok(Ok(()))) {
                    tracing::warn!(%job, "a job that is left to the next process could not be marked as not started");
                }
                let _ = me.cast(ConversationMsg::HandedOver { job });
            }));
            return true;
        }
        let (Some(text), Some(history)) = (run.new_text.take(), &st.history) else { return false };
        run.hearing.inbound.text = text;
        run.spec = Arc::new(self.spec(&run.hearing, history, run.said.as_deref()));
        run.cancel = CancellationToken::new();
        st.runs += 1;
        self.ask_again(me, run, st.runs);
        // The requester's own wish does not count as a failure.
        run.reasks -= 1;
        true
    }

    pub(super) fn on_handed_over(&self, me: &ActorRef<ConversationMsg>, st: &mut State, job: &JobId) {
        if let Doing::Run(run) = &st.doing
            && run.hearing.job == *job
        {
            self.leave(job);
            st.doing = Doing::Idle;
            self.begin_next(me, st);
        }
    }
}
