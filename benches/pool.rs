//! The pool manager under load: acquire and release through its mailbox, alone and with a long queue.
//!
//! Prints a table. The runners are actors that answer at once, so what is measured is the pool manager.

use std::sync::Arc;
use std::time::Duration;

use janebot::config::SharingConfig;
use janebot::job::{ChannelId, ConversationId, JobId, JobSpec, RequesterId};
use janebot::pool::manager::PoolManager;
use janebot::pool::{JobEvent, NotStarted, PoolMsg, Ticket};
use janebot::runner::RunnerMsg;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const RUNNERS: usize = 8;

/// Takes a job, ends it, and offers itself again.
struct InstantRunner(ActorRef<PoolMsg>);

impl Actor for InstantRunner {
    type Msg = RunnerMsg;
    type State = String;
    type Arguments = String;

    async fn pre_start(&self, myself: ActorRef<RunnerMsg>, name: String) -> Result<String, ActorProcessingErr> {
        self.0.cast(PoolMsg::Offer { runner: name.clone(), actor: myself })?;
        Ok(name)
    }

    async fn handle(
        &self,
        myself: ActorRef<RunnerMsg>,
        msg: RunnerMsg,
        name: &mut String,
    ) -> Result<(), ActorProcessingErr> {
        if let RunnerMsg::Run(granted) = msg {
            granted.ticket.tell(JobEvent::NotStarted(NotStarted::Cancelled));
            self.0.cast(PoolMsg::Offer { runner: name.clone(), actor: myself })?;
        }
        Ok(())
    }
}

/// Who asks, and where: job `n` is requester `n % requesters`'s, who writes in `each_in` of `channels` channels.
#[derive(Clone, Copy)]
struct Crowd {
    requesters: usize,
    channels: usize,
    each_in: usize,
}

impl Crowd {
    fn of(requesters: usize) -> Self {
        Self { requesters, channels: 1, each_in: 1 }
    }
}

fn ticket(n: usize, crowd: Crowd, events: mpsc::UnboundedSender<JobEvent>) -> Ticket {
    let requester = n % crowd.requesters;
    let channel = (requester + n / crowd.requesters % crowd.each_in) % crowd.channels;
    let spec = JobSpec {
        job: JobId::new(format!("j{n}")),
        requester: RequesterId::new(format!("u{requester}")),
        channel: ChannelId::new(format!("c{channel}")),
        conversation: ConversationId::new("c/t"),
        agent: "shell".into(),
        prompt: String::new(),
        run_timeout: Duration::from_secs(1),
        files: Vec::new(),
    };
    let now = Instant::now();
    Ticket {
        spec: Arc::new(spec),
        asked_at: now,
        wait_until: now + Duration::from_secs(3600),
        events,
        cancel: CancellationToken::new(),
    }
}

async fn pool(runners: usize) -> (ActorRef<PoolMsg>, Vec<ActorRef<RunnerMsg>>) {
    let (pool, _) =
        Actor::spawn(None, PoolManager { max_queue: 1_000_000, sharing: SharingConfig::unlimited(), runners }, ())
            .await
            .expect("the pool starts");
    let mut started = Vec::new();
    for n in 0..runners {
        started
            .push(Actor::spawn(None, InstantRunner(pool.clone()), format!("r{n}")).await.expect("a runner starts").0);
    }
    (pool, started)
}

async fn end(events: &mut mpsc::UnboundedReceiver<JobEvent>) {
    while let Some(event) = events.recv().await {
        if matches!(event, JobEvent::NotStarted(_)) {
            return;
        }
    }
}

/// `jobs` acquired and released by `askers` askers, each with one job at a time.
async fn throughput(jobs: usize, askers: usize) -> f64 {
    let (pool, _runners) = pool(RUNNERS).await;
    let began = Instant::now();
    let tasks: Vec<_> = (0..askers)
        .map(|asker| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let (events, mut told) = mpsc::unbounded_channel();
                for n in 0..jobs / askers {
                    let ticket = ticket(asker * jobs + n, Crowd::of(askers), events.clone());
                    pool.cast(PoolMsg::Acquire(ticket)).expect("the pool lives");
                    end(&mut told).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no asker panics");
    }
    jobs as f64 / began.elapsed().as_secs_f64()
}

/// How long `Acquire` takes to be answered by the pool manager while `waiting` jobs of a crowd wait and every runner is busy: the time until it says which place the job has.
async fn answer_times(waiting: usize, crowd: Crowd) -> (Vec<Duration>, f64) {
    let (pool, _) = pool(0).await;
    let (events, mut told) = mpsc::unbounded_channel();
    let began = Instant::now();
    for n in 0..waiting {
        pool.cast(PoolMsg::Acquire(ticket(n, crowd, events.clone()))).expect("the pool lives");
    }
    for _ in 0..waiting {
        told.recv().await;
    }
    let rate = waiting as f64 / began.elapsed().as_secs_f64();
    let mut times = Vec::new();
    for n in 0..10_000 {
        let (events, mut told) = mpsc::unbounded_channel();
        let asked = Instant::now();
        let job = waiting + n;
        pool.cast(PoolMsg::Acquire(ticket(job, crowd, events))).expect("the pool lives");
        told.recv().await;
        times.push(asked.elapsed());
        pool.cast(PoolMsg::Withdraw(JobId::new(format!("j{job}")))).expect("the pool lives");
    }
    times.sort();
    (times, rate)
}

#[tokio::main]
async fn main() {
    println!("pool manager                                         figure");
    for askers in [1, 64, 1000] {
        let rate = throughput(400_000, askers).await;
        println!("acquire+release, {RUNNERS} runners, {askers:>4} askers      {rate:>10.0} /s");
    }
    let crowds = [
        ("1,000 requesters, 1 channel", Crowd::of(1_000)),
        ("1,000 requesters, 200 channels", Crowd { requesters: 1_000, channels: 200, each_in: 1 }),
        ("1,000 requesters, each in 20 of 1,000 channels", Crowd { requesters: 1_000, channels: 1_000, each_in: 20 }),
    ];
    for (name, crowd) in crowds {
        let (times, rate) = answer_times(100_000, crowd).await;
        let at = |share: f64| times[(times.len() as f64 * share) as usize].as_micros();
        println!("100,000 jobs of {name}");
        println!("  queueing them                                  {rate:>10.0} /s");
        println!("  acquire: p50 {} us, p99 {} us, p99.9 {} us", at(0.5), at(0.99), at(0.999));
    }
}
