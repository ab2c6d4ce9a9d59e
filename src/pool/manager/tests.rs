use std::sync::Arc;

use ractor::call;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::job::{ChannelId, ConversationId, JobId, JobSpec, RequesterId};

/// A runner that passes on what it is lent.
struct Lender;

impl Actor for Lender {
    type Msg = RunnerMsg;
    type State = mpsc::UnboundedSender<Granted>;
    type Arguments = mpsc::UnboundedSender<Granted>;
    async fn pre_start(&self, _: ActorRef<RunnerMsg>, to: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        Ok(to)
    }
    async fn handle(
        &self,
        _: ActorRef<RunnerMsg>,
        msg: RunnerMsg,
        to: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let RunnerMsg::Run(granted) = msg {
            to.send(granted)?;
        }
        Ok(())
    }
}

struct Bench {
    pool: ActorRef<PoolMsg>,
    runner: ActorRef<RunnerMsg>,
    lent: mpsc::UnboundedReceiver<Granted>,
}

impl Bench {
    async fn new(max_queue: usize) -> Self {
        Self::sharing(max_queue, SharingConfig::unlimited()).await
    }

    async fn sharing(max_queue: usize, sharing: SharingConfig) -> Self {
        let (pool, _) = Actor::spawn(None, PoolManager { max_queue, sharing, runners: 1 }, ()).await.unwrap();
        let (to, lent) = mpsc::unbounded_channel();
        let (runner, _) = Actor::spawn(None, Lender, to).await.unwrap();
        Self { pool, runner, lent }
    }

    fn offer(&self) {
        self.offer_as("r0");
    }

    fn offer_as(&self, runner: &str) {
        self.pool.cast(PoolMsg::Offer { runner: runner.into(), actor: self.runner.clone() }).unwrap();
    }

    async fn lent(&mut self) -> Granted {
        self.lent.recv().await.unwrap()
    }

    fn spec(&self, job: &str, requester: &str) -> Arc<JobSpec> {
        Arc::new(JobSpec {
            job: JobId::new(job),
            requester: RequesterId::new(requester),
            channel: ChannelId::new("c"),
            conversation: ConversationId::new("c/t"),
            agent: "shell".into(),
            prompt: String::new(),
            run_timeout: Duration::from_secs(1),
            files: Vec::new(),
        })
    }

    fn acquire(&self, job: &str, requester: &str) -> (mpsc::UnboundedReceiver<JobEvent>, CancellationToken) {
        let (events, rx) = mpsc::unbounded_channel();
        let cancel = CancellationToken::new();
        let now = Instant::now();
        let (spec, wait_until) = (self.spec(job, requester), now + Duration::from_secs(60));
        let ticket = Ticket { spec, asked_at: now, wait_until, events, cancel: cancel.clone() };
        self.pool.cast(PoolMsg::Acquire(ticket)).unwrap();
        (rx, cancel)
    }
}

async fn last(mut events: mpsc::UnboundedReceiver<JobEvent>) -> Option<NotStarted> {
    while let Some(event) = events.recv().await {
        if let JobEvent::NotStarted(why) = event {
            return Some(why);
        }
    }
    None
}

#[tokio::test(start_paused = true)]
async fn a_waiting_job_hears_its_place_and_gets_the_runner_when_it_comes() {
    let mut bench = Bench::new(10).await;
    let (mut first, _c1) = bench.acquire("j1", "u1");
    let (mut second, _c2) = bench.acquire("j2", "u2");
    assert!(matches!(first.recv().await, Some(JobEvent::Queued { ahead: 0, .. })));
    assert!(matches!(second.recv().await, Some(JobEvent::Queued { ahead: 1, .. })));
    bench.offer();
    assert_eq!(bench.lent.recv().await.unwrap().ticket.spec.job.as_str(), "j1");
    let status = call!(bench.pool, PoolMsg::Status).unwrap();
    assert_eq!(status.queued, 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_a_wait_ends_at_its_deadline() {
    let bench = Bench::new(1).await;
    let (first, _c1) = bench.acquire("j1", "u1");
    let (second, _c2) = bench.acquire("j2", "u2");
    assert_eq!(last(second).await, Some(NotStarted::QueueFull { limit: 1 }));
    let asked = Instant::now();
    assert!(matches!(last(first).await, Some(NotStarted::QueueTimeout { .. })));
    assert_eq!(asked.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_or_abandoned_job_never_gets_a_runner() {
    let mut bench = Bench::new(10).await;
    let (cancelled, token) = bench.acquire("j1", "u1");
    let (abandoned, _c2) = bench.acquire("j2", "u2");
    let (withdrawn, _c3) = bench.acquire("j3", "u3");
    let (_wanted, _c4) = bench.acquire("j4", "u4");
    token.cancel();
    drop(abandoned);
    bench.pool.cast(PoolMsg::Withdraw(JobId::new("j3"))).unwrap();
    assert_eq!(last(withdrawn).await, Some(NotStarted::Cancelled), "a withdrawal is answered at once");
    bench.offer();
    assert_eq!(last(cancelled).await, Some(NotStarted::Cancelled));
    assert_eq!(bench.lent.recv().await.unwrap().ticket.spec.job.as_str(), "j4");
}

#[tokio::test(start_paused = true)]
async fn a_dead_runner_is_passed_over_and_its_job_keeps_the_first_place() {
    let mut bench = Bench::new(10).await;
    let (_rx, _c) = bench.acquire("j1", "u1");
    let (to, _lent) = mpsc::unbounded_channel();
    let (dead, join) = Actor::spawn(None, Lender, to).await.unwrap();
    dead.kill();
    join.await.unwrap();
    bench.pool.cast(PoolMsg::Offer { runner: "dead".into(), actor: dead }).unwrap();
    let (_rx2, _c2) = bench.acquire("j2", "u2");
    bench.offer();
    assert_eq!(bench.lent.recv().await.unwrap().ticket.spec.job.as_str(), "j1");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_no_runner_can_start_is_given_up_after_a_few() {
    let mut bench = Bench::new(10).await;
    let (rx, _c) = bench.acquire("j1", "u1");
    for _ in 0..MAX_TRIES {
        bench.offer();
        let granted = bench.lent.recv().await.unwrap();
        bench.pool.cast(PoolMsg::HandBack { granted, failure: "disk full".into() }).unwrap();
    }
    assert_eq!(
        last(rx).await,
        Some(NotStarted::NoRunner { message: "5 runners were tried; the last: disk full".into() })
    );
}

#[tokio::test(start_paused = true)]
async fn one_job_asked_for_twice_waits_once() {
    let mut bench = Bench::new(10).await;
    let (_first, _c1) = bench.acquire("j1", "u1");
    let (second, _c2) = bench.acquire("j1", "u1");
    assert_eq!(last(second).await, Some(NotStarted::Cancelled));
    bench.offer();
    bench.lent.recv().await.unwrap();
    assert_eq!(call!(bench.pool, PoolMsg::Status).unwrap().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn draining_answers_all_who_wait_and_all_who_come() {
    let bench = Bench::new(10).await;
    let (first, _c1) = bench.acquire("j1", "u1");
    bench.pool.cast(PoolMsg::Drain).unwrap();
    let (second, _c2) = bench.acquire("j2", "u2");
    assert_eq!(last(first).await, Some(NotStarted::Draining));
    assert_eq!(last(second).await, Some(NotStarted::Draining));
}

fn one_at_a_time() -> SharingConfig {
    SharingConfig { max_running_per_user: 1, ..SharingConfig::unlimited() }
}

#[tokio::test(start_paused = true)]
async fn a_job_beyond_its_requesters_limit_is_told_why_it_waits_and_blocks_nobody() {
    let mut bench = Bench::sharing(10, one_at_a_time()).await;
    let (_first, _c1) = bench.acquire("j1", "u1");
    bench.offer_as("r0");
    let running = bench.lent().await;
    let (mut second, _c2) = bench.acquire("j2", "u1");
    let Some(JobEvent::Queued { reason, wait, .. }) = second.recv().await else { panic!("it waits") };
    assert!(reason.contains("your jobs") && wait.is_none(), "{reason}");
    bench.offer_as("r1");
    let (_other, _c3) = bench.acquire("j3", "u2");
    assert_eq!(bench.lent().await.ticket.spec.job.as_str(), "j3");
    bench.offer_as("r2");
    // The job is over when its ticket is gone, however it ended, and its runner may take its time.
    drop(running);
    bench.pool.cast(PoolMsg::Tick).unwrap();
    assert_eq!(bench.lent().await.ticket.spec.job.as_str(), "j2");
}

#[tokio::test(start_paused = true)]
async fn a_new_pool_manager_counts_what_runs_already() {
    let mut bench = Bench::sharing(10, one_at_a_time()).await;
    let (events, _rx) = mpsc::unbounded_channel();
    let (_waiting, _c) = bench.acquire("j2", "u1");
    let spec = bench.spec("j1", "u1");
    let now = Instant::now();
    let running = Ticket { spec, asked_at: now, wait_until: now, events, cancel: CancellationToken::new() };
    let status = RunnerStatus { runner: "r0".into(), state: "executing", since_ms: 5, job: None, note: None };
    bench.pool.cast(PoolMsg::RunnerIs { status, holds: Some(Holding::of(&running)) }).unwrap();
    bench.offer_as("r1");
    assert_eq!(call!(bench.pool, PoolMsg::Status).unwrap().queued, 1, "u1 has one running already");
    drop(running);
    bench.pool.cast(PoolMsg::Tick).unwrap();
    assert_eq!(bench.lent().await.ticket.spec.job.as_str(), "j2");
}

#[tokio::test(start_paused = true)]
async fn a_job_handed_back_keeps_its_share() {
    let mut bench = Bench::sharing(10, one_at_a_time()).await;
    let (_first, _c1) = bench.acquire("j1", "u1");
    let (_second, _c2) = bench.acquire("j2", "u1");
    bench.offer_as("r0");
    let granted = bench.lent().await;
    bench.pool.cast(PoolMsg::HandBack { granted, failure: "disk full".into() }).unwrap();
    bench.offer_as("r1");
    let again = bench.lent().await;
    assert_eq!((again.ticket.spec.job.as_str(), &again.failures[..]), ("j1", &["disk full".to_owned()][..]));
    bench.offer_as("r2");
    assert_eq!(call!(bench.pool, PoolMsg::Status).unwrap().queued, 1, "only one of u1's jobs runs");
}

#[tokio::test(start_paused = true)]
async fn too_many_of_one_requester_are_refused_and_the_queue_is_not_full() {
    let sharing = SharingConfig { max_queued_per_user: 1, max_queued_per_channel: 2, ..SharingConfig::unlimited() };
    let bench = Bench::sharing(10, sharing).await;
    let (_first, _c1) = bench.acquire("j1", "u1");
    let (second, _c2) = bench.acquire("j2", "u1");
    assert_eq!(last(second).await, Some(NotStarted::TooManyOfRequester { limit: 1 }));
    let (_third, _c3) = bench.acquire("j3", "u2");
    let (fourth, _c4) = bench.acquire("j4", "u3");
    assert_eq!(last(fourth).await, Some(NotStarted::TooManyOfChannel { limit: 2 }));
}

#[tokio::test(start_paused = true)]
async fn after_a_few_runs_a_wait_is_told_as_a_range() {
    let mut bench = Bench::new(10).await;
    for n in 0..6 {
        let (_rx, _c) = bench.acquire(&format!("j{n}"), "u1");
        bench.offer();
        let granted = bench.lent().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(granted);
    }
    bench.offer();
    let (_running, _c1) = bench.acquire("j8", "u1");
    let _lent = bench.lent().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (mut waiting, _c2) = bench.acquire("j9", "u2");
    let Some(JobEvent::Queued { wait: Some(wait), ahead: 0, .. }) = waiting.recv().await else {
        panic!("it waits, and it is known how long")
    };
    assert_eq!((wait.low.as_secs(), wait.high.as_secs()), (40, 40));
    assert_eq!(call!(bench.pool, PoolMsg::Status).unwrap().wait.unwrap().high.as_secs(), 100);
}
