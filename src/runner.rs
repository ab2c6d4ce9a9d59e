//! The runner: the one owner of one sprite of the pool. It makes the sprite, lends it to one job at a time, and proves
//! it clean before every offer. [`state`] draws its states.
//!
//! Started and restarted by the pool's supervisor; stopped with it. When it dies, its work is aborted with it: a job's
//! ticket is dropped (its owner sees the channel close), and the dirty mark in the journal makes the next incarnation
//! restore before it offers. Nothing that matters is kept here alone.

pub mod build;
pub mod claim;
pub mod collect;
mod hold;
pub mod input;
mod limit;
pub mod scripts;
pub mod state;
pub mod stop;
pub mod verify;
pub mod work;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::journal::{Journal, JournalError};
use crate::pool::receipt::Receipt;
use crate::pool::{Granted, Holding, PoolMsg, RunnerStatus};
use crate::sprites::{Sprites, SpritesError};
use crate::supervise::current::Follower;
use crate::world::World;
use build::BuildPlan;
use claim::Claim;
use state::{Blame, Event, JobEnd, Machine, Next, Phase};
use work::WorkEnd;

/// The ports of one runner. Cheap to clone.
#[derive(Clone)]
pub struct Context<S, J> {
    /// The runner's name and its sprite's.
    pub name: String,
    pub sprites: S,
    pub journal: J,
    pub world: World,
    /// This deployment's identity, from the journal.
    pub deployment: String,
}

/// Why a step of a runner's own work failed.
#[derive(Debug)]
pub enum Trouble {
    /// The sprite is at fault.
    Sprite { message: String },
    /// Something outside is: API, network, journal, the agent's package.
    Outside { message: String },
    /// The host says that it restored, and the machine shows otherwise.
    Lied { evidence: String },
    /// Another deployment holds the sprite.
    Foreign { message: String },
}

impl Trouble {
    fn sprite(message: impl Into<String>) -> Self {
        Self::Sprite { message: message.into() }
    }

    fn outside(message: impl Into<String>) -> Self {
        Self::Outside { message: message.into() }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Sprite { .. } | Self::Lied { .. } => Blame::Sprite,
            Self::Outside { .. } | Self::Foreign { .. } => Blame::Outside,
        }
    }

    fn event(&self) -> Event {
        match self {
            Self::Sprite { .. } => Event::Failed(Blame::Sprite),
            Self::Outside { .. } => Event::Failed(Blame::Outside),
            Self::Lied { .. } => Event::Lied,
            Self::Foreign { .. } => Event::Foreign,
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sprite { message } | Self::Outside { message } | Self::Foreign { message } => f.write_str(message),
            Self::Lied { evidence } => write!(f, "the restore was claimed and not done: {evidence}"),
        }
    }
}

impl From<SpritesError> for Trouble {
    fn from(error: SpritesError) -> Self {
        let message = error.to_string();
        if error.blames_sprite() { Self::Sprite { message } } else { Self::Outside { message } }
    }
}

impl From<JournalError> for Trouble {
    fn from(error: JournalError) -> Self {
        Self::outside(error.to_string())
    }
}

impl<S: Sprites, J: Journal> Context<S, J> {
    /// Looks whose the sprite is, just before something is done to it that would hurt another owner's job.
    async fn assert_not_foreign(&self) -> Result<(), Trouble> {
        match self.sprites.get(&self.name).await {
            Ok(sprite) => self.refuse_foreign(&sprite.labels),
            Err(SpritesError::NotFound { .. }) => Ok(()),
            // A sprite that does not even show itself is nobody's running machine.
            Err(SpritesError::Broken { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn refuse_foreign(&self, labels: &[String]) -> Result<(), Trouble> {
        match claim::read(labels, &self.deployment, self.world.now()) {
            Claim::Ours | Claim::Free => Ok(()),
            Claim::Foreign { owner, seconds_ago } => Err(Trouble::Foreign {
                message: format!(
                    "the sprite {} belongs to another janebot (deployment {owner}, alive {seconds_ago} s ago): stop that one, or give this one another RUNNER_PREFIX",
                    self.name
                ),
            }),
        }
    }

    /// Learns what there is to start from.
    async fn look(&self, plan: &BuildPlan) -> Result<Event, Trouble> {
        let sprite = match self.sprites.get(&self.name).await {
            Ok(sprite) => sprite,
            Err(SpritesError::NotFound { .. } | SpritesError::Broken { .. }) => return Ok(Event::Unknown),
            Err(error) => return Err(error.into()),
        };
        self.refuse_foreign(&sprite.labels)?;
        let known = self.journal.runner(&self.name).await?;
        let Some(row) = known.filter(|row| row.sprite_id == sprite.id && plan.is_served_by(&row.fingerprint)) else {
            return Ok(Event::Unknown);
        };
        self.renew_claim().await?;
        Ok(Event::Known { clean: !row.dirty })
    }

    /// Renews our claim on the sprite, and sees in passing that it is there.
    async fn renew_claim(&self) -> Result<(), Trouble> {
        let sprite = self.sprites.get(&self.name).await?;
        self.refuse_foreign(&sprite.labels)?;
        Ok(self.sprites.set_labels(&self.name, &claim::labels(&self.deployment, self.world.now())).await?)
    }
}

/// Messages of a runner.
#[derive(Debug)]
pub enum RunnerMsg {
    /// From the pool manager: a job has this runner.
    Run(Granted),
    /// From its own job: the agent is about to start.
    Started { run: u64 },
    /// From its own work.
    Done { run: u64, done: Done },
    /// From its own timer: the time of `Waiting` or `Quarantined` is over.
    Wake { run: u64 },
    /// From its own timer: renew the claim.
    Beat,
    /// From its own beat: what came of it.
    Beaten(Result<(), Trouble>),
    /// A new pool manager is there.
    PoolIs(ActorRef<PoolMsg>),
    /// It may be built anew now; the permit is held until the build is over.
    RefreshTurn(OwnedSemaphorePermit),
    /// Another build generation is wanted.
    Refresh(Arc<BuildPlan>),
    /// From an operator: build it anew, also out of quarantine.
    Rebuild,
}

/// What a piece of work came to.
#[derive(Debug)]
pub enum Done {
    Step(Event),
    Clean(Box<Receipt>),
    Trouble(Trouble),
    Job(WorkEnd),
    Panicked,
}

/// Owns one sprite.
pub struct Runner<S, J> {
    pub context: Context<S, J>,
}

/// What a runner starts with.
pub struct RunnerArgs {
    /// What to build; a change leads to a rolling refresh.
    pub plan: Follower<Arc<BuildPlan>>,
    /// Who the pool manager is, over its restarts.
    pub pool: Follower<Option<ActorRef<PoolMsg>>>,
    /// How many runners may be out of service for a refresh at a time.
    pub refreshes: Arc<Semaphore>,
}

pub struct State {
    machine: Machine,
    since: Instant,
    plan: Arc<BuildPlan>,
    pool: Option<ActorRef<PoolMsg>>,
    refreshes: Arc<Semaphore>,
    /// Numbers pieces of work and waits; an answer to an older one is dropped.
    run: u64,
    /// The piece of work of the present phase; aborted when replaced or when the actor ends.
    work: Option<AbortOnDropHandle<()>>,
    /// Proof of the present cleanness; there only while `Idle`.
    receipt: Option<Receipt>,
    /// The job that has it.
    holds: Option<Holding>,
    /// Last trouble, for people; none while all is well.
    note: Option<String>,
    permit: Option<OwnedSemaphorePermit>,
    helpers: Helpers,
}

/// Tasks beside the main work, each aborted with the actor.
#[derive(Default)]
struct Helpers {
    follow: Option<AbortOnDropHandle<()>>,
    beat: Option<AbortOnDropHandle<()>>,
    turn: Option<AbortOnDropHandle<()>>,
}

impl<S: Sprites, J: Journal> Actor for Runner<S, J> {
    type Msg = RunnerMsg;
    type State = State;
    type Arguments = RunnerArgs;

    async fn pre_start(&self, myself: ActorRef<RunnerMsg>, mut args: RunnerArgs) -> Result<State, ActorProcessingErr> {
        let mut state = State {
            machine: Machine::new(),
            since: Instant::now(),
            plan: args.plan.see(),
            pool: None,
            refreshes: args.refreshes,
            run: 0,
            work: None,
            receipt: None,
            holds: None,
            note: None,
            permit: None,
            helpers: Helpers::default(),
        };
        state.helpers.follow = Some(follow(myself.clone(), args.pool, args.plan));
        myself.send_after(claim::BEAT_EVERY, || RunnerMsg::Beat);
        self.carry_out(&myself, Next::Look, &mut state);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<RunnerMsg>,
        msg: RunnerMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            RunnerMsg::Run(granted) => self.run(&myself, granted, state),
            RunnerMsg::Started { run } if run == state.run => self.advance(&myself, Event::JobStarted, state),
            RunnerMsg::Done { run, done } if run == state.run => self.done(&myself, done, state).await,
            RunnerMsg::Wake { run } if run == state.run => self.advance(&myself, Event::Timer, state),
            RunnerMsg::Started { .. } | RunnerMsg::Done { .. } | RunnerMsg::Wake { .. } => {
                debug!(runner = self.context.name, "an answer to earlier work is dropped");
            }
            RunnerMsg::Beat => self.beat(&myself, state),
            RunnerMsg::Beaten(result) => self.beaten(&myself, result, state),
            RunnerMsg::PoolIs(pool) => {
                state.pool = Some(pool);
                self.report(state);
                if state.machine.is_lendable() {
                    self.offer(&myself, state);
                }
            }
            RunnerMsg::RefreshTurn(permit) => {
                state.permit = Some(permit);
                self.advance(&myself, Event::RefreshTurn, state);
            }
            RunnerMsg::Refresh(plan) => {
                state.plan = plan;
                self.ask_for_refresh(&myself, state);
            }
            RunnerMsg::Rebuild => self.advance(&myself, Event::Rebuild, state),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<RunnerMsg>,
        event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children.
        warn!(runner = self.context.name, ?event, "a runner got an event of a child that it does not have");
        Ok(())
    }
}

impl<S: Sprites, J: Journal> Runner<S, J> {
    fn run(&self, myself: &ActorRef<RunnerMsg>, granted: Granted, state: &mut State) {
        // A grant can cross a retraction; then the job has lost nothing but a moment.
        let lent = if state.machine.is_lendable() { state.receipt.take() } else { None };
        let Some(receipt) = lent else {
            return self.give_back(granted, "it was no longer free".into(), state);
        };
        state.holds = Some(Holding::of(&granted.ticket));
        state.machine.on(Event::Granted);
        state.note = None;
        self.entered(state);
        let (context, plan, me, run) = (self.context.clone(), state.plan.clone(), myself.clone(), state.run + 1);
        self.begin(myself, state, async move { Done::Job(work::work(context, plan, receipt, granted, me, run).await) });
    }

    async fn done(&self, myself: &ActorRef<RunnerMsg>, done: Done, state: &mut State) {
        state.work = None;
        let event = match done {
            Done::Step(event) => event,
            Done::Clean(receipt) => {
                if receipt.fingerprint != state.plan.fingerprint {
                    self.ask_for_refresh(myself, state);
                }
                state.receipt = Some(*receipt);
                state.note = None;
                state.permit = None;
                Event::Verified
            }
            Done::Trouble(trouble) => {
                state.note = Some(trouble.to_string());
                trouble.event()
            }
            Done::Job(end) => {
                state.holds = None;
                match end {
                    WorkEnd::Over => Event::JobOver(JobEnd::Ran),
                    WorkEnd::Leaked { evidence } => {
                        state.note = Some(evidence);
                        Event::JobOver(JobEnd::Leaked)
                    }
                    WorkEnd::Untouched(receipt) => {
                        state.receipt = Some(*receipt);
                        Event::JobOver(JobEnd::Untouched)
                    }
                    WorkEnd::HandBack { granted, failure, blame } => {
                        state.note = Some(failure.clone());
                        self.give_back(granted, failure, state);
                        Event::JobOver(JobEnd::Unfit(blame))
                    }
                }
            }
            Done::Panicked => {
                error!(runner = self.context.name, phase = state.machine.phase().word(), "a piece of work panicked");
                state.note = Some("a fault in janebot itself; see the log".into());
                state.holds = None;
                match state.machine.phase() {
                    Phase::Checking | Phase::Executing => Event::JobOver(JobEnd::Ran),
                    _ => Event::Failed(Blame::Outside),
                }
            }
        };
        self.advance(myself, event, state);
    }

    fn give_back(&self, granted: Granted, failure: String, state: &State) {
        if let Some(pool) = &state.pool {
            // Should the pool manager be gone, the ticket is dropped here and its owner asks again.
            let _ = pool.cast(PoolMsg::HandBack { granted, failure });
        }
    }

    /// Takes the event to the state machine and begins what it says.
    fn advance(&self, myself: &ActorRef<RunnerMsg>, event: Event, state: &mut State) {
        let was_lendable = state.machine.is_lendable();
        let next = state.machine.on(event);
        if next == Next::Stay {
            return;
        }
        if was_lendable {
            state.receipt = None;
            if let Some(pool) = &state.pool {
                // A pool manager that is gone lends nothing.
                let _ = pool.cast(PoolMsg::Retract { runner: self.context.name.clone() });
            }
        }
        self.carry_out(myself, next, state);
    }

    fn carry_out(&self, myself: &ActorRef<RunnerMsg>, next: Next, state: &mut State) {
        self.entered(state);
        let (context, plan) = (self.context.clone(), state.plan.clone());
        match next {
            Next::Stay | Next::Check => {}
            // The job's own task goes on.
            Next::Execute => {}
            Next::Look => self.begin(myself, state, async move {
                match context.look(&plan).await {
                    Ok(event) => Done::Step(event),
                    Err(trouble) => Done::Trouble(trouble),
                }
            }),
            Next::Build => self.begin(myself, state, async move {
                match build::build(&context, &plan).await {
                    Ok(()) => Done::Step(Event::Built),
                    Err(trouble) => Done::Trouble(trouble),
                }
            }),
            Next::Restore | Next::Verify => {
                let restore = next == Next::Restore;
                self.begin(myself, state, async move {
                    match verify::make_clean(&context, &plan, restore).await {
                        Ok(receipt) => Done::Clean(Box::new(receipt)),
                        Err(trouble) => Done::Trouble(trouble),
                    }
                });
            }
            Next::Offer => self.offer(myself, state),
            Next::Wait(delay) => {
                let note = state.note.as_deref().unwrap_or_default();
                warn!(runner = self.context.name, note, delay_ms = delay.as_millis(), "a runner will try again");
                self.wake_after(myself, delay, state);
            }
            Next::Quarantine(delay) => {
                self.keep_evidence(state);
                self.wake_after(myself, delay, state);
            }
        }
    }

    /// Starts the work of a phase. A panic in it is caught and reported like any other end.
    fn begin(
        &self,
        myself: &ActorRef<RunnerMsg>,
        state: &mut State,
        work: impl Future<Output = Done> + Send + 'static,
    ) {
        state.run += 1;
        let (me, run) = (myself.clone(), state.run);
        let span = info_span!("runner", runner = self.context.name, state = state.machine.phase().word());
        let task = async move {
            let done = AssertUnwindSafe(work).catch_unwind().await.unwrap_or(Done::Panicked);
            // An actor that is gone needs no answer.
            let _ = me.cast(RunnerMsg::Done { run, done });
        };
        state.work = Some(AbortOnDropHandle::new(tokio::spawn(task.instrument(span))));
    }

    fn wake_after(&self, myself: &ActorRef<RunnerMsg>, delay: Duration, state: &mut State) {
        state.run += 1;
        state.work = None;
        let run = state.run;
        myself.send_after(self.context.world.jitter(delay), move || RunnerMsg::Wake { run });
    }

    fn offer(&self, myself: &ActorRef<RunnerMsg>, state: &State) {
        debug_assert!(state.receipt.is_some(), "a runner is offered with the proof that it is clean");
        if let Some(pool) = &state.pool {
            // A pool manager that is gone has a successor, which will be offered to.
            let _ = pool.cast(PoolMsg::Offer { runner: self.context.name.clone(), actor: myself.clone() });
        }
    }

    fn keep_evidence(&self, state: &mut State) {
        let evidence = state.note.clone().unwrap_or_default();
        error!(runner = self.context.name, evidence, "a runner is quarantined");
        let (context, at) = (self.context.clone(), self.context.world.now());
        state.helpers.turn = None;
        tokio::spawn(async move {
            if let Err(error) = context.journal.quarantine(&context.name, &evidence, at).await {
                error!(runner = context.name, %error, "the evidence of a quarantine could not be kept");
            }
        });
    }

    fn entered(&self, state: &mut State) {
        state.since = Instant::now();
        info!(runner = self.context.name, state = state.machine.phase().word(), "runner");
        self.report(state);
    }

    /// Tells the pool manager how things are here.
    fn report(&self, state: &State) {
        let status = RunnerStatus {
            runner: self.context.name.clone(),
            state: state.machine.phase().word(),
            since_ms: state.since.elapsed().as_millis() as u64,
            job: state.holds.as_ref().map(|holds| holds.spec.job.clone()),
            note: state.note.clone(),
        };
        if let Some(pool) = &state.pool {
            // A pool manager that is gone has a successor, which will be told.
            let _ = pool.cast(PoolMsg::RunnerIs { status, holds: state.holds.clone() });
        }
    }

    fn beat(&self, myself: &ActorRef<RunnerMsg>, state: &mut State) {
        myself.send_after(claim::BEAT_EVERY, || RunnerMsg::Beat);
        // While it looks or builds there may be no sprite yet, or none of ours.
        if matches!(state.machine.phase(), Phase::Starting | Phase::Building | Phase::Quarantined) {
            return;
        }
        let (context, me) = (self.context.clone(), myself.clone());
        state.helpers.beat = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let beaten = context.renew_claim().await;
            // An actor that is gone needs no answer.
            let _ = me.cast(RunnerMsg::Beaten(beaten));
        })));
    }

    fn beaten(&self, myself: &ActorRef<RunnerMsg>, result: Result<(), Trouble>, state: &mut State) {
        let Err(trouble) = result else { return };
        warn!(runner = self.context.name, %trouble, "a runner's sprite did not take its sign of life");
        // Any other phase meets the trouble in its own work.
        if state.machine.is_lendable() {
            state.note = Some(trouble.to_string());
            self.advance(myself, trouble.event(), state);
        }
    }

    fn ask_for_refresh(&self, myself: &ActorRef<RunnerMsg>, state: &mut State) {
        let (refreshes, me) = (state.refreshes.clone(), myself.clone());
        state.helpers.turn = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Ok(permit) = refreshes.acquire_owned().await {
                // An actor that is gone gives its turn to the next.
                let _ = me.cast(RunnerMsg::RefreshTurn(permit));
            }
        })));
    }
}

/// Tells the runner about each pool manager and each change of plan.
fn follow(
    me: ActorRef<RunnerMsg>,
    mut pool: Follower<Option<ActorRef<PoolMsg>>>,
    mut plan: Follower<Arc<BuildPlan>>,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let news = tokio::select! {
                biased;
                Ok(current) = pool.changed() => current.map(RunnerMsg::PoolIs),
                Ok(plan) = plan.changed() => Some(RunnerMsg::Refresh(plan)),
                else => return,
            };
            if news.is_some_and(|news| me.cast(news).is_err()) {
                return;
            }
        }
    }))
}
