//! One job on one runner: lease, check, run, collect. A task of the runner's, so that its mailbox stays open.
//!
//! It owes the job's owner one last event and pays it itself, before the runner is recycled: recycling can neither
//! delay nor replace an answer. Dropping the task at any await leaves the lease in the journal, and so a dirty runner.

use std::time::Duration;

use ractor::ActorRef;
use secrecy::SecretString;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument, info_span, warn};

use super::build::BuildPlan;
use super::build::Ready;
use super::state::Blame;
use super::{Context, RunnerMsg, Trouble, collect, hold, input, limit, scripts, stop, verify};
use crate::agent::{AgentEvent, AgentReader, AgentResult, JobFile, Launch, Usage};
use crate::job::JobSpec;
use crate::journal::Journal;
use crate::journal::usage::{CountedBy, Used};
use crate::pool::manager::MAX_TRIES;
use crate::pool::receipt::Receipt;
use crate::pool::{Granted, JobEvent, NotStarted, RunEnd, RunReport, Stopped};
use crate::sprites::{Exec, ExecEvent, ExecRequest, NetworkPolicy, PolicyRule, Sprites, SpritesError};
use crate::vault::budget::Budget;
use crate::vault::pass::Pass;
use crate::vault::scan::Secrets;

const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer than the job's own limit the connection may live, so that the job's limit is what ends it.
const EXEC_MARGIN: Duration = Duration::from_secs(120);
/// How long an agent may live when the connection is lost; the next restore ends it anyway.
const AFTER_DISCONNECT: Duration = Duration::from_secs(30);
/// How long to wait for the answer to the kill of a program that was lost.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Progress is for people: one piece of news in this time is enough.
const NEWS_EVERY: Duration = Duration::from_millis(100);

/// How the work ended, for the runner.
#[derive(Debug)]
pub enum WorkEnd {
    /// The owner has its last event, and the sprite may have been touched.
    Over,
    /// The owner has its last event, which is not the answer: a secret of the service was in that.
    Leaked { evidence: String },
    /// The owner has its last event, and nothing of the job reached the sprite: its receipt still holds.
    Untouched(Box<Receipt>),
    /// The agent's process never existed; the ticket goes back to the queue.
    HandBack { granted: Granted, failure: String, blame: Blame },
}

/// Does the whole job. `run` marks the messages to the runner.
pub async fn work<S: Sprites, J: Journal>(
    context: Context<S, J>,
    plan: std::sync::Arc<BuildPlan>,
    mut receipt: Receipt,
    granted: Granted,
    runner: ActorRef<RunnerMsg>,
    run: u64,
) -> WorkEnd {
    let spec = granted.ticket.spec.clone();
    let ticket = &granted.ticket;
    if ticket.is_cancelled() {
        ticket.tell(JobEvent::NotStarted(NotStarted::Cancelled));
        return WorkEnd::Untouched(Box::new(receipt));
    }
    let queue_wait = ticket.asked_at.elapsed();
    let budget = match limit::budget(&context, &plan, &spec).await {
        Ok(budget) => budget,
        Err(why) => {
            ticket.tell(JobEvent::NotStarted(why));
            return WorkEnd::Untouched(Box::new(receipt));
        }
    };
    // The pass ends when it is dropped, wherever this function or its task ends.
    let Ready { launch, pass } = match plan.ready(&spec, &context.name, budget, EXEC_MARGIN) {
        Ok(ready) => ready,
        Err(message) => {
            ticket.tell(JobEvent::NotStarted(NotStarted::Unsuitable { message }));
            return WorkEnd::Untouched(Box::new(receipt));
        }
    };
    ticket.tell(JobEvent::Granted { runner: context.name.clone() });

    // The dirty mark is durable before anything touches the sprite.
    let canary = format!(".jane-canary-{}", context.world.token(8));
    let leased = context.journal.lease(&spec.job, &context.name, receipt.fence, &canary, context.world.now()).await;
    if let Err(error) = leased {
        ticket.tell(JobEvent::NotStarted(NotStarted::Journal { message: error.to_string() }));
        // The fence may be used up all the same; the restore finds out which one is next.
        return WorkEnd::Over;
    }

    let began = Instant::now();
    let span = info_span!("runner.check", runner = context.name, job = %spec.job);
    let checked = tokio::select! {
        biased;
        () = ticket.cancelled() => None,
        checked = async {
            open_for_channel(&context, &plan, &spec, &mut receipt).await?;
            check(&context, &canary, &launch.files, &launch.env, &spec).await
        }.instrument(span) => Some(checked),
    };
    match checked {
        None => {
            ticket.tell(JobEvent::NotStarted(NotStarted::Cancelled));
            return WorkEnd::Over;
        }
        Some(Err(trouble)) => return hand_back(&context, granted, trouble).await,
        Some(Ok(())) => {}
    }
    let brought = tokio::select! {
        biased;
        () = ticket.cancelled() => None,
        brought = input::bring(&context.sprites, &context.name, &spec.files) => Some(brought),
    };
    let mut notes = match brought {
        None => {
            ticket.tell(JobEvent::NotStarted(NotStarted::Cancelled));
            return WorkEnd::Over;
        }
        Some(Err(error)) => return hand_back(&context, granted, error.into()).await,
        Some(Ok(notes)) => notes,
    };
    notes.extend(earlier_tries(&granted));
    let check_took = began.elapsed();

    ticket.tell(JobEvent::Started { receipt: Box::new(receipt.clone()) });
    // The runner that is gone can't be told, and aborts this task.
    let _ = runner.cast(RunnerMsg::Started { run });
    let span = info_span!("agent.run", agent = spec.agent, job = %spec.job);
    let Launch { argv, stdin, stop, reader, .. } = launch;
    let request = ExecRequest {
        max_run_after_disconnect: Some(AFTER_DISCONNECT),
        ..scripts::run(&argv, stdin, spec.run_timeout + EXEC_MARGIN)
    };
    let began = Instant::now();
    let exec = match context.sprites.exec(&context.name, request).instrument(span.clone()).await {
        Ok(exec) => exec,
        Err(error) if !error.may_have_had_effect() => return hand_back(&context, granted, error.into()).await,
        Err(error) => {
            let ended = RunEnd::OutcomeUnknown { message: error.to_string() };
            let mut report = RunReport::without_output(ended, receipt, queue_wait, check_took, began.elapsed());
            report.notes = notes;
            ticket.tell(JobEvent::Finished(Box::new(report)));
            return WorkEnd::Over;
        }
    };
    let mut running = Running {
        context: &context,
        granted: &granted,
        exec,
        reader,
        stop,
        last_news: None,
        budget,
        pass: pass.as_ref(),
        secrets: &plan.secrets,
        leak: None,
    };
    let ended = running.watch(began + spec.run_timeout).instrument(span).await;
    let run_took = began.elapsed();
    let counted = pass.as_ref().and_then(counted);
    // What the agent may have left running on its machine can use no key any more.
    drop(pass);
    let mut report = RunReport::without_output(ended, receipt, queue_wait, check_took, run_took);
    if report.ended.may_have_files() {
        let began = Instant::now();
        let collected = collect::collect(&context.sprites, &context.name).await;
        (report.files, report.notes) = (collected.files, collected.notes);
        report.collect = began.elapsed();
    }
    report.notes.extend(notes);
    let used = counted.clone().map(|usage| Used { usage, counted_by: CountedBy::Vault });
    let used = used.or_else(|| said(&report.ended).map(|usage| Used { usage, counted_by: CountedBy::Agent }));
    if used.as_ref().is_some_and(|used| used.counted_by == CountedBy::Agent) && budget != Budget::default() {
        report.notes.push(format!("What was used is counted as {} tells it.", spec.agent));
    }
    report.usage = counted;
    let leak = match &report.ended {
        RunEnd::Held { leak } => Some(leak.clone()),
        ended => hold::look(&plan.secrets, ended, &report.files, &report.notes).await.map(|leak| leak.to_string()),
    };
    let end = match leak {
        None => WorkEnd::Over,
        Some(leak) => {
            let evidence =
                format!("job {}: a secret of the service was in what would have been sent: {leak}", spec.job);
            report.ended = RunEnd::Held { leak };
            (report.files, report.notes) = (Vec::new(), Vec::new());
            WorkEnd::Leaked { evidence }
        }
    };
    ticket.tell(JobEvent::Finished(Box::new(report)));
    if let Some(used) = used
        && let Err(error) = context.journal.record_usage(&spec.job, &used).await
    {
        warn!(job = %spec.job, %error, "what a job used could not be recorded: its requester's day is counted short");
    }
    end
}

/// What the vault counted, where the model's traffic passed it.
fn counted(pass: &Pass) -> Option<Usage> {
    let spent = pass.spent();
    (spent.turns > 0).then_some(Usage {
        turns: spent.turns,
        input_tokens: spent.tokens.input,
        cached_input_tokens: spent.tokens.cached,
        output_tokens: spent.tokens.output,
        cost_usd: None,
    })
}

/// What the agent itself said that it used.
fn said(ended: &RunEnd) -> Option<Usage> {
    match ended {
        RunEnd::Agent(result) | RunEnd::Timeout { so_far: result } | RunEnd::Limit { so_far: result, .. } => {
            let (AgentResult::Answered { details, .. }
            | AgentResult::Failed { details, .. }
            | AgentResult::NoResult { details, .. }) = result;
            details.usage.clone()
        }
        RunEnd::Cancelled { .. } | RunEnd::Held { .. } | RunEnd::OutcomeUnknown { .. } => None,
    }
}

/// Lets the machine reach what the job's channel may beside all others. The restore after the job takes it back.
async fn open_for_channel<S: Sprites, J: Journal>(
    context: &Context<S, J>,
    plan: &BuildPlan,
    spec: &JobSpec,
    receipt: &mut Receipt,
) -> Result<(), Trouble> {
    let Some(hosts) = plan.network.of_channel(&spec.channel) else { return Ok(()) };
    let allow = |host: &String| PolicyRule { domain: Some(host.clone()), include: None, action: Some("allow".into()) };
    let rules = plan.policy.rules.iter().cloned().chain(hosts.iter().map(allow)).collect();
    let policy = NetworkPolicy { rules };
    context.sprites.set_policy(&context.name, &policy).await?;
    if !verify::same_rules(&context.sprites.policy(&context.name).await?, &policy) {
        return Err(Trouble::sprite("the network policy read back differs from the one that was set for the channel"));
    }
    receipt.allowed_hosts.extend(hosts.iter().cloned());
    Ok(())
}

/// One round trip that shows the machine alive and writes the job's settings.
async fn check<S: Sprites, J: Journal>(
    context: &Context<S, J>,
    canary: &str,
    agent_files: &[JobFile],
    agent_env: &[(String, SecretString)],
    spec: &JobSpec,
) -> Result<(), Trouble> {
    let mut env = vec![("JANEBOT_JOB".to_owned(), spec.job.as_str().into())];
    env.extend(agent_env.iter().cloned());
    let mut files = vec![scripts::env_file(&env)];
    files.extend(agent_files.iter().cloned());
    let exec = context.sprites.exec(&context.name, scripts::check(canary, &files, CHECK_TIMEOUT)).await?;
    let output = exec.output(scripts::OUTPUT_LIMIT).await?;
    match scripts::checked(&output.stdout) {
        Some(_boot) if output.status == 0 => Ok(()),
        _ => {
            let said: String =
                String::from_utf8_lossy(&output.stderr).chars().filter(|c| !c.is_control()).take(200).collect();
            Err(Trouble::sprite(format!("the check ended with status {}: {said}", output.status)))
        }
    }
}

/// Says that runners had the job before and could not start its agent, which is the only thing that is tried again.
fn earlier_tries(granted: &Granted) -> Option<String> {
    let (tries, last) = (granted.failures.len(), granted.failures.last()?);
    let runners = if tries == 1 { "1 runner was".to_owned() } else { format!("{tries} runners were") };
    Some(format!(
        "Before this run {runners} found unfit, and the agent was not started there (try {} of at most {MAX_TRIES}); the last one: {last}",
        tries + 1
    ))
}

async fn hand_back<S: Sprites, J: Journal>(context: &Context<S, J>, granted: Granted, trouble: Trouble) -> WorkEnd {
    let failure = trouble.to_string();
    // Should this fail, a restart finds the job as running and ends it as interrupted, which is safe.
    if let Err(error) = context.journal.unlease(&granted.ticket.spec.job).await {
        warn!(job = %granted.ticket.spec.job, %error, "a lease could not be taken back");
    }
    WorkEnd::HandBack { granted, failure, blame: trouble.blame() }
}

struct Running<'a, S, J> {
    context: &'a Context<S, J>,
    granted: &'a Granted,
    exec: Exec,
    reader: Box<dyn AgentReader>,
    stop: crate::agent::StopProtocol,
    last_news: Option<Instant>,
    budget: Budget,
    pass: Option<&'a Pass>,
    secrets: &'a Secrets,
    /// A secret that the agent said on the way.
    leak: Option<hold::Leak>,
}

impl<S: Sprites, J: Journal> Running<'_, S, J> {
    /// Follows the agent to its end, its deadline, or its cancellation.
    async fn watch(&mut self, deadline: Instant) -> RunEnd {
        loop {
            let event = tokio::select! {
                biased;
                () = self.granted.ticket.cancelled() => {
                    return RunEnd::Cancelled { stopped: self.stop().await };
                }
                () = limit_reached(self.pass) => {
                    let reached = self.pass.and_then(Pass::reached).map(|reached| reached.to_string());
                    return self.limit(reached.unwrap_or_default()).await;
                }
                () = sleep_until(deadline) => {
                    self.stop().await;
                    return RunEnd::Timeout { so_far: self.reader.finish(TIMED_OUT) };
                }
                event = self.exec.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    if let Some(status) = self.take(event) {
                        return self.over(status);
                    }
                    if let Some(leak) = self.leak.take() {
                        self.stop().await;
                        return RunEnd::Held { leak: leak.to_string() };
                    }
                    let usage = self.reader.usage();
                    if let Some(reached) = usage.and_then(|usage| limit::passed(&self.budget, &usage)) {
                        return self.limit(reached.to_string()).await;
                    }
                }
                Some(Err(error)) => return self.lost(&error).await,
                None => {
                    let error = SpritesError::OutcomeUnknown {
                        what: "the agent's run".into(),
                        message: "no exit status came".into(),
                    };
                    return self.lost(&error).await;
                }
            }
        }
    }

    /// The agent ended by itself, perhaps because the vault served it no more.
    fn over(&mut self, status: u8) -> RunEnd {
        let result = self.reader.finish(status);
        match (self.leak.take(), self.pass.and_then(Pass::reached), result) {
            (Some(leak), ..) => RunEnd::Held { leak: leak.to_string() },
            (None, None, result) | (None, Some(_), result @ AgentResult::Answered { .. }) => RunEnd::Agent(result),
            (None, Some(reached), so_far) => RunEnd::Limit { reached: self.used(&reached.to_string()), so_far },
        }
    }

    async fn limit(&mut self, reached: String) -> RunEnd {
        let reached = self.used(&reached);
        self.stop().await;
        RunEnd::Limit { reached, so_far: self.reader.finish(TIMED_OUT) }
    }

    /// The limit, and what was used until then.
    fn used(&self, reached: &str) -> String {
        let usage = self.pass.and_then(counted).or_else(|| self.reader.usage()).unwrap_or_default();
        let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
        format!("{reached}; until then it had made {} calls and used {tokens} tokens", usage.turns)
    }

    /// Takes in an event; the exit status when it was the last.
    fn take(&mut self, event: ExecEvent) -> Option<u8> {
        for news in read(&mut *self.reader, &event) {
            self.pass_on(news);
        }
        match event {
            ExecEvent::Exit(status) => Some(status),
            ExecEvent::Stdout(_) | ExecEvent::Stderr(_) => None,
        }
    }

    fn pass_on(&mut self, news: AgentEvent) {
        if let Some(leak) = hold::look_at(self.secrets, &news) {
            self.leak = Some(leak);
            return;
        }
        let now = Instant::now();
        if self.last_news.is_none_or(|last| now.duration_since(last) >= NEWS_EVERY) {
            self.last_news = Some(now);
            self.granted.ticket.tell(JobEvent::Agent(news));
        }
    }

    /// Stops the agent by its protocol. What it still says is read, for its answer so far, and is news no more.
    async fn stop(&mut self) -> Stopped {
        let Context { name, sprites, .. } = self.context;
        let reader = &mut *self.reader;
        stop::stop(sprites, name, &mut self.exec, self.stop, |event| {
            read(reader, &event);
            match event {
                ExecEvent::Exit(status) => Some(status),
                ExecEvent::Stdout(_) | ExecEvent::Stderr(_) => None,
            }
        })
        .await
    }

    /// The connection broke: end what may still run, and say honestly that the outcome is not known.
    async fn lost(&mut self, error: &SpritesError) -> RunEnd {
        let Context { name, sprites, .. } = self.context;
        let kill = sprites.kill(name, &self.exec.session, crate::sprites::Signal::Kill, Duration::ZERO);
        // Whether or not it arrives, the restore that follows ends everything.
        let _ = timeout(LAST_WORDS, kill).await;
        RunEnd::OutcomeUnknown { message: error.to_string() }
    }
}

/// Resolves when the vault says that the job came to a limit; never without a pass.
async fn limit_reached(pass: Option<&Pass>) {
    match pass {
        Some(pass) => pass.limit_reached().await,
        None => std::future::pending().await,
    }
}

/// Lets the reader read, and gives what it makes of it.
fn read(reader: &mut dyn AgentReader, event: &ExecEvent) -> Vec<AgentEvent> {
    match event {
        ExecEvent::Stdout(bytes) => reader.stdout(bytes),
        ExecEvent::Stderr(bytes) => {
            reader.stderr(bytes);
            Vec::new()
        }
        ExecEvent::Exit(_) => Vec::new(),
    }
}

/// The status that `timeout(1)` uses; what a reader is told of a run that its deadline ended.
const TIMED_OUT: u8 = 124;
