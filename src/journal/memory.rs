//! The journal in memory, for the simulation: the contract of the SQLite journal without a thread, a file or an await.
//!
//! Clones share their state, so what a "crashed" process recorded is what its successor opens. A fault makes a call
//! fail before it has done anything, as the contract demands of every `Err`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;

use super::outgoing::{Delivery, Effect, Outgoing, OutgoingRow, OutgoingState};
use super::refusal::{self, refused};
use super::search::{LeaseRow, Wanted};
use super::usage::{Together, Used};
use super::{Accepted, JobRow, JobState, Journal, JournalError, Result, RunnerRow};
use crate::job::{ConversationId, JobId, Outcome, RequesterId, Timings};
use crate::pool::receipt::Receipt;

/// The calls of [`Journal`], for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    DeploymentId,
    Accept,
    Revise,
    Extend,
    Lease,
    Unlease,
    End,
    Job,
    OpenJobs,
    OverdueJobs,
    RecentJobs,
    FindJobs,
    Leases,
    Put,
    Trying,
    Delivered,
    OpenEffects,
    Effect,
    JobEffects,
    KeepFile,
    File,
    DropStrayFiles,
    Kept,
    Keep,
    Runner,
    Built,
    Clean,
    ForgetRunner,
    Quarantine,
    Quarantines,
    RecordUsage,
    Usage,
    UsedSince,
}

/// Says whether a call is to fail.
type Fault = Box<dyn FnMut(Call) -> bool + Send>;

/// A handle to a journal in memory; clones share it.
#[derive(Clone, Default)]
pub struct MemoryJournal(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    tables: Tables,
    /// So many calls fail from now on.
    fail_next: u32,
    fault: Option<Fault>,
}

#[derive(Default)]
struct Tables {
    /// In the order of acceptance.
    jobs: Vec<JobRow>,
    by_id: BTreeMap<JobId, usize>,
    by_message: BTreeMap<String, usize>,
    runners: BTreeMap<String, RunnerRow>,
    /// Runners whose row is kept for its fence alone.
    forgotten: BTreeSet<String>,
    leases: Vec<(JobId, LeaseRow)>,
    quarantines: Vec<(String, String, Timestamp)>,
    /// In the order of recording.
    outgoing: Vec<OutgoingRow>,
    /// The number of the newest of them.
    last_seq: u64,
    files: BTreeMap<String, Bytes>,
    usage: BTreeMap<JobId, Used>,
    kept: BTreeMap<String, String>,
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("MemoryJournal")
            .field("jobs", &inner.tables.jobs.len())
            .field("runners", &inner.tables.runners.len())
            .finish_non_exhaustive()
    }
}

impl MemoryJournal {
    /// What [`Journal::deployment_id`] gives: the same in every run of the simulation.
    pub const DEPLOYMENT_ID: &'static str = "5eed5eed5eed5eed";

    /// An empty journal without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next `calls` calls fail, beside those that a fault hook picks.
    pub fn fail_next(&self, calls: u32) {
        self.lock().fail_next = calls;
    }

    /// Asks `fault` before every call from now on whether it is to fail. It must not use this journal.
    pub fn set_fault(&self, fault: impl FnMut(Call) -> bool + Send + 'static) {
        self.lock().fault = Some(Box::new(fault));
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut inner = self.lock();
        inner.fail_next = 0;
        inner.fault = None;
    }

    /// Drops jobs that have ended, and whose effects are all done, with everything about them: to play more jobs than
    /// memory holds. A message of theirs that is delivered again is then a new one. Gives the number of those that stay.
    pub fn forget_ended(&self) -> usize {
        self.lock().tables.forget_ended()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one call, unless it is to fail.
    fn call<T>(&self, call: Call, act: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        let mut inner = self.lock();
        let counted = inner.fail_next > 0;
        inner.fail_next = inner.fail_next.saturating_sub(1);
        let hooked = inner.fault.as_mut().is_some_and(|fault| fault(call));
        if counted || hooked {
            return Err(JournalError::Failed { message: format!("simulated fault in {call:?}") });
        }
        act(&mut inner.tables)
    }
}

impl Tables {
    fn forget_ended(&mut self) -> usize {
        let is_open = |row: &&OutgoingRow| row.state == OutgoingState::Open;
        let owing: BTreeSet<JobId> = self.outgoing.iter().filter(is_open).map(|row| row.outgoing.job.clone()).collect();
        self.jobs.retain(|row| row.state != JobState::Ended || owing.contains(&row.job));
        self.by_id = self.jobs.iter().enumerate().map(|(index, row)| (row.job.clone(), index)).collect();
        self.by_message = self.jobs.iter().enumerate().map(|(index, row)| (row.message_key.clone(), index)).collect();
        self.outgoing.retain(|row| self.by_id.contains_key(&row.outgoing.job));
        self.leases.retain(|(job, _)| self.by_id.contains_key(job));
        self.usage.retain(|job, _| self.by_id.contains_key(job));
        self.jobs.len()
    }

    fn job(&mut self, job: &JobId) -> Option<&mut JobRow> {
        let index = *self.by_id.get(job)?;
        self.jobs.get_mut(index)
    }

    fn runner(&mut self, runner: &str) -> Option<&mut RunnerRow> {
        if self.forgotten.contains(runner) { None } else { self.runners.get_mut(runner) }
    }

    fn accept(&mut self, row: &JobRow, effects: &[Outgoing]) -> Result<Accepted> {
        let what = format!("job {}", row.job);
        if !row.is_new() {
            return Err(refused(refusal::NOT_NEW, &what));
        }
        if let Some(known) = self.by_message.get(&row.message_key) {
            return Ok(Accepted::Known(self.jobs[*known].job.clone()));
        }
        if self.by_id.contains_key(&row.job) {
            return Err(refused(refusal::JOB_KNOWN, &what));
        }
        self.by_message.insert(row.message_key.clone(), self.jobs.len());
        self.by_id.insert(row.job.clone(), self.jobs.len());
        self.put(effects, row.ended_at.unwrap_or(row.accepted_at));
        let fresh = JobRow { runner: None, started_at: None, receipt: None, ..row.clone() };
        self.jobs.push(fresh);
        Ok(Accepted::New)
    }

    fn put(&mut self, effects: &[Outgoing], at: Timestamp) {
        for effect in effects {
            let tried = u32::from(effect.effect.is_replaceable());
            match self.outgoing.iter_mut().find(|row| row.outgoing.key == effect.key) {
                None => {
                    self.last_seq += 1;
                    self.outgoing.push(OutgoingRow {
                        seq: self.last_seq,
                        outgoing: effect.clone(),
                        state: OutgoingState::Open,
                        tried,
                        message: None,
                        why: None,
                        put_at: at,
                        done_at: None,
                    });
                }
                Some(row) if row.outgoing.effect.is_replaceable() => {
                    row.outgoing.effect = effect.effect.clone();
                    row.state = OutgoingState::Open;
                    row.tried += tried;
                    (row.why, row.done_at) = (None, None);
                }
                Some(_) => {}
            }
        }
    }

    fn effect(&mut self, key: &str) -> Result<&mut OutgoingRow> {
        let row = self.outgoing.iter_mut().find(|row| row.outgoing.key == key);
        row.ok_or_else(|| refused(refusal::NO_SUCH_EFFECT, &format!("effect {key}")))
    }

    fn delivered(&mut self, key: &str, effect: &Effect, delivery: &Delivery, at: Timestamp) -> Result<()> {
        let row = self.effect(key)?;
        if let Delivery::Sent { message: Some(message) } = delivery {
            row.message = Some(message.clone());
        }
        if row.outgoing.effect.is_replaceable() != effect.is_replaceable() || row.state != OutgoingState::Open {
            return Ok(());
        }
        row.done_at = Some(at);
        match delivery {
            Delivery::Sent { .. } => row.state = OutgoingState::Sent,
            Delivery::GivenUp { why } => {
                row.state = OutgoingState::GivenUp;
                row.why = Some(why.clone());
            }
        }
        self.files.remove(key);
        Ok(())
    }

    fn lease(&mut self, job: &JobId, runner: &str, fence: u64, canary: &str, at: Timestamp) -> Result<()> {
        let refuse = |why| Err(refused(why, &format!("lease {fence} of {runner} for job {job}")));
        if i64::try_from(fence).is_err() {
            return refuse(refusal::FENCE_TOO_LARGE);
        }
        match self.job(job).map(|row| row.state) {
            None => return refuse(refusal::NO_SUCH_JOB),
            Some(JobState::Ended) => return refuse(refusal::JOB_ENDED),
            Some(JobState::Running) => return refuse(refusal::JOB_LEASED),
            Some(JobState::Accepted) => {}
        }
        match self.runner(runner) {
            None => return refuse(refusal::NO_SUCH_RUNNER),
            Some(row) if row.fence >= fence => return refuse(refusal::OLD_FENCE),
            Some(row) => {
                row.dirty = true;
                row.last_job = Some(job.clone());
                row.canary = Some(canary.to_owned());
                row.fence = fence;
            }
        }
        self.leases.push((job.clone(), LeaseRow { runner: runner.to_owned(), fence, leased_at: at }));
        if let Some(row) = self.job(job) {
            row.state = JobState::Running;
            row.runner = Some(runner.to_owned());
            row.started_at = Some(at);
        }
        Ok(())
    }

    fn built(&mut self, row: &RunnerRow) -> Result<()> {
        if i64::try_from(row.fence).is_err() {
            return Err(refused(refusal::FENCE_TOO_LARGE, &format!("runner {}", row.runner)));
        }
        let highest = self.runners.get(&row.runner).map_or(0, |known| known.fence).max(row.fence);
        self.forgotten.remove(&row.runner);
        self.runners.insert(row.runner.clone(), RunnerRow { dirty: true, fence: highest, ..row.clone() });
        Ok(())
    }

    fn clean(&mut self, runner: &str, receipt: &Receipt) -> Result<()> {
        let what = format!("runner {runner}");
        let row = self.runner(runner).ok_or_else(|| refused(refusal::NO_SUCH_RUNNER, &what))?;
        if row.sprite_id != receipt.sprite_id || row.checkpoint != receipt.checkpoint {
            return Err(refused(refusal::OTHER_SPRITE, &what));
        }
        row.dirty = false;
        row.boot = receipt.boot.clone();
        Ok(())
    }
}

impl Journal for MemoryJournal {
    async fn deployment_id(&self) -> Result<String> {
        self.call(Call::DeploymentId, |_| Ok(Self::DEPLOYMENT_ID.to_owned()))
    }

    async fn accept_with(&self, row: &JobRow, effects: &[Outgoing]) -> Result<Accepted> {
        self.call(Call::Accept, |tables| tables.accept(row, effects))
    }

    async fn revise(&self, job: &JobId, prompt: &str) -> Result<bool> {
        self.call(Call::Revise, |tables| {
            let row = tables.job(job).ok_or_else(|| refused(refusal::NO_SUCH_JOB, &format!("job {job}")))?;
            if row.state != JobState::Accepted {
                return Ok(false);
            }
            prompt.clone_into(&mut row.prompt);
            Ok(true)
        })
    }

    async fn extend(&self, job: &JobId, deadline: Timestamp) -> Result<()> {
        self.call(Call::Extend, |tables| {
            let row = tables.job(job).ok_or_else(|| refused(refusal::NO_SUCH_JOB, &format!("job {job}")))?;
            if row.state != JobState::Ended {
                row.deadline = Some(deadline);
            }
            Ok(())
        })
    }

    async fn lease(&self, job: &JobId, runner: &str, fence: u64, canary: &str, at: Timestamp) -> Result<()> {
        self.call(Call::Lease, |tables| tables.lease(job, runner, fence, canary, at))
    }

    async fn unlease(&self, job: &JobId) -> Result<()> {
        self.call(Call::Unlease, |tables| {
            let row = tables.job(job).ok_or_else(|| refused(refusal::NO_SUCH_JOB, &format!("job {job}")))?;
            if row.state == JobState::Running {
                row.state = JobState::Accepted;
                row.runner = None;
                row.started_at = None;
            }
            Ok(())
        })
    }

    async fn end_with(
        &self,
        job: &JobId,
        outcome: &Outcome,
        timings: &Timings,
        receipt: Option<&Receipt>,
        at: Timestamp,
        effects: &[Outgoing],
    ) -> Result<bool> {
        self.call(Call::End, |tables| {
            let row = tables.job(job).ok_or_else(|| refused(refusal::NO_SUCH_JOB, &format!("job {job}")))?;
            if row.state == JobState::Ended {
                return Ok(false);
            }
            row.state = JobState::Ended;
            row.outcome = Some(outcome.clone());
            row.timings = Some(*timings);
            row.receipt = receipt.cloned();
            row.ended_at = Some(at);
            tables.put(effects, at);
            Ok(true)
        })
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobRow>> {
        self.call(Call::Job, |tables| Ok(tables.job(job).cloned()))
    }

    async fn open_jobs(&self) -> Result<Vec<JobRow>> {
        let is_open = |row: &&JobRow| row.state != JobState::Ended;
        self.call(Call::OpenJobs, |tables| Ok(tables.jobs.iter().filter(is_open).cloned().collect()))
    }

    async fn overdue_jobs(&self, now: Timestamp) -> Result<Vec<JobRow>> {
        let is_overdue =
            |row: &&JobRow| row.state != JobState::Ended && row.deadline.is_some_and(|deadline| deadline < now);
        self.call(Call::OverdueJobs, |tables| Ok(tables.jobs.iter().filter(is_overdue).cloned().collect()))
    }

    async fn recent_jobs(&self, limit: u32) -> Result<Vec<JobRow>> {
        self.call(Call::RecentJobs, |tables| Ok(tables.jobs.iter().rev().take(limit as usize).cloned().collect()))
    }

    async fn find_jobs(&self, wanted: &Wanted) -> Result<Vec<JobRow>> {
        self.call(Call::FindJobs, |tables| {
            let found = tables.jobs.iter().rev().filter(|row| wanted.matches(row));
            Ok(found.take(wanted.limit as usize).cloned().collect())
        })
    }

    async fn leases(&self, job: &JobId) -> Result<Vec<LeaseRow>> {
        self.call(Call::Leases, |tables| {
            Ok(tables.leases.iter().filter(|(leased, _)| leased == job).map(|(_, lease)| lease.clone()).collect())
        })
    }

    async fn put(&self, effects: &[Outgoing], at: Timestamp) -> Result<()> {
        self.call(Call::Put, |tables| {
            tables.put(effects, at);
            Ok(())
        })
    }

    async fn trying(&self, key: &str) -> Result<()> {
        self.call(Call::Trying, |tables| {
            tables.effect(key)?.tried += 1;
            Ok(())
        })
    }

    async fn delivered(&self, key: &str, effect: &Effect, delivery: &Delivery, at: Timestamp) -> Result<()> {
        self.call(Call::Delivered, |tables| tables.delivered(key, effect, delivery, at))
    }

    async fn open_effects(&self, conversation: Option<&ConversationId>) -> Result<Vec<OutgoingRow>> {
        let is_meant = |row: &&OutgoingRow| {
            row.state == OutgoingState::Open
                && !row.outgoing.effect.is_replaceable()
                && conversation.is_none_or(|id| row.outgoing.conversation == *id)
        };
        self.call(Call::OpenEffects, |tables| Ok(tables.outgoing.iter().filter(is_meant).cloned().collect()))
    }

    async fn effect(&self, key: &str) -> Result<Option<OutgoingRow>> {
        self.call(Call::Effect, |tables| Ok(tables.effect(key).ok().cloned()))
    }

    async fn job_effects(&self, job: &JobId) -> Result<Vec<OutgoingRow>> {
        let is_of_job = |row: &&OutgoingRow| row.outgoing.job == *job;
        self.call(Call::JobEffects, |tables| Ok(tables.outgoing.iter().filter(is_of_job).cloned().collect()))
    }

    async fn keep_file(&self, key: &str, bytes: &Bytes) -> Result<()> {
        self.call(Call::KeepFile, |tables| {
            tables.files.insert(key.to_owned(), bytes.clone());
            Ok(())
        })
    }

    async fn file(&self, key: &str) -> Result<Option<Bytes>> {
        self.call(Call::File, |tables| Ok(tables.files.get(key).cloned()))
    }

    async fn drop_stray_files(&self) -> Result<()> {
        self.call(Call::DropStrayFiles, |tables| {
            let open = tables.outgoing.iter().filter(|row| row.state == OutgoingState::Open);
            let open: BTreeSet<&str> = open.map(|row| row.outgoing.key.as_str()).collect();
            tables.files.retain(|key, _| open.contains(key.as_str()));
            Ok(())
        })
    }

    async fn kept(&self, name: &str) -> Result<Option<String>> {
        self.call(Call::Kept, |tables| Ok(tables.kept.get(name).cloned()))
    }

    async fn keep(&self, name: &str, value: Option<&str>) -> Result<()> {
        self.call(Call::Keep, |tables| {
            match value {
                Some(value) => tables.kept.insert(name.to_owned(), value.to_owned()),
                None => tables.kept.remove(name),
            };
            Ok(())
        })
    }

    async fn runner(&self, runner: &str) -> Result<Option<RunnerRow>> {
        self.call(Call::Runner, |tables| Ok(tables.runner(runner).cloned()))
    }

    async fn built(&self, row: &RunnerRow) -> Result<()> {
        self.call(Call::Built, |tables| tables.built(row))
    }

    async fn clean(&self, runner: &str, receipt: &Receipt) -> Result<()> {
        self.call(Call::Clean, |tables| tables.clean(runner, receipt))
    }

    async fn forget_runner(&self, runner: &str) -> Result<()> {
        self.call(Call::ForgetRunner, |tables| {
            if tables.runners.contains_key(runner) {
                tables.forgotten.insert(runner.to_owned());
            }
            Ok(())
        })
    }

    async fn quarantine(&self, runner: &str, evidence: &str, at: Timestamp) -> Result<()> {
        self.call(Call::Quarantine, |tables| {
            tables.quarantines.push((runner.to_owned(), evidence.to_owned(), at));
            Ok(())
        })
    }

    async fn quarantines(&self, limit: u32) -> Result<Vec<(String, String, Timestamp)>> {
        self.call(Call::Quarantines, |tables| {
            Ok(tables.quarantines.iter().rev().take(limit as usize).cloned().collect())
        })
    }

    async fn record_usage(&self, job: &JobId, used: &Used) -> Result<()> {
        self.call(Call::RecordUsage, |tables| {
            tables.job(job).ok_or_else(|| refused(refusal::NO_SUCH_JOB, &format!("job {job}")))?;
            tables.usage.insert(job.clone(), used.clone());
            Ok(())
        })
    }

    async fn usage(&self, job: &JobId) -> Result<Option<Used>> {
        self.call(Call::Usage, |tables| Ok(tables.usage.get(job).cloned()))
    }

    async fn used_since(&self, requester: &RequesterId, since: Timestamp) -> Result<Together> {
        self.call(Call::UsedSince, |tables| {
            let started = tables.jobs.iter().filter(|row| row.started_at.is_some_and(|at| at >= since));
            let mut together = Together::default();
            for row in started.filter(|row| row.requester == *requester) {
                let usage = tables.usage.get(&row.job).map(|used| &used.usage);
                let tokens = usage.map_or(0, |usage| usage.input_tokens.saturating_add(usage.output_tokens));
                together.jobs += 1;
                together.tokens = together.tokens.saturating_add(tokens);
            }
            Ok(together)
        })
    }
}
