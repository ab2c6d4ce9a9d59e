//! A pool that plays runs by the clock instead of making them, to look at the terminal with.

use std::sync::Arc;
use std::time::Duration;

use janebot::agent::{AgentEvent, AgentResult, Details, Usage};
use janebot::job::OutputFile;
use janebot::pool::receipt::Receipt;
use janebot::pool::{
    JobEvent, PoolHandle, PoolMsg, PoolStatus, RunEnd, RunReport, RunnerStatus, StopProof, Stopped, Ticket,
};
use janebot::sprites::CheckpointId;
use janebot::supervise::{ChildSpec, RestartPolicy};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::{Instant, sleep};

struct ScriptedPool {
    pace: Duration,
}

impl Actor for ScriptedPool {
    type Msg = PoolMsg;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<PoolMsg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<PoolMsg>, msg: PoolMsg, (): &mut ()) -> Result<(), ActorProcessingErr> {
        match msg {
            PoolMsg::Acquire(ticket) => {
                tokio::spawn(play(ticket, self.pace));
            }
            PoolMsg::Status(reply) => {
                let runner = |name: &str, state, note: Option<&str>| RunnerStatus {
                    runner: name.into(),
                    state,
                    since_ms: 34_000,
                    job: None,
                    note: note.map(Into::into),
                };
                let runners = vec![
                    runner("jane-runner-0", "idle", None),
                    runner("jane-runner-1", "building", Some("the disk is full")),
                ];
                let _ = reply.send(PoolStatus { runners, queued: 0, wait: None });
            }
            _ => {}
        }
        Ok(())
    }
}

/// The pool as a child, and the way to it. A step of a run takes `pace`.
pub fn child(pace: Duration) -> (ChildSpec, PoolHandle) {
    let (current, handle) = janebot::supervise::current::channel(None);
    let current = Arc::new(current);
    let spec = ChildSpec::new("scripted pool", RestartPolicy::ESSENTIAL, move |root| {
        let current = current.clone();
        async move {
            let (pool, _) = Actor::spawn_linked(None, ScriptedPool { pace }, (), root).await?;
            current.set(Some(pool.clone()));
            Ok(pool.get_cell())
        }
    });
    (spec, PoolHandle::new(handle))
}

async fn play(ticket: Ticket, pace: Duration) {
    let tell = |event| ticket.events.send(event).is_ok();
    tokio::select! {
        biased;
        () = ticket.cancel.cancelled() => {
            sleep(pace / 2).await;
            let stopped = Stopped { proof: StopProof::ProcessTable, status: Some(143), took: pace / 2 };
            tell(JobEvent::Finished(Box::new(report(
                RunEnd::Cancelled { stopped },
                Vec::new(),
                ticket.asked_at,
            ))));
        }
        () = perform(&ticket, pace) => {}
    }
}

async fn perform(ticket: &Ticket, pace: Duration) {
    let prompt = ticket.spec.prompt.rsplit("follows:\n\n").next().unwrap_or_default().to_owned();
    let tell = |event| drop(ticket.events.send(event));
    if prompt.contains("wait") {
        for ahead in (0..3).rev() {
            tell(JobEvent::Queued { ahead, reason: "all runners are busy".into(), wait: None });
            sleep(pace * 2).await;
        }
    }
    tell(JobEvent::Granted { runner: "jane-runner-0".into() });
    sleep(pace / 2).await;
    tell(JobEvent::Started { receipt: Box::new(receipt()) });
    for (name, summary) in [("Read", "src/main.rs"), ("Bash", "cargo test --workspace"), ("Edit", "src/lib.rs")] {
        sleep(pace).await;
        tell(JobEvent::Agent(AgentEvent::ToolStarted { id: name.into(), name: name.into(), summary: summary.into() }));
    }
    sleep(pace).await;
    let mut files = Vec::new();
    let usage =
        Usage { turns: 3, input_tokens: 12_034, cached_input_tokens: 0, output_tokens: 512, cost_usd: Some(0.0421) };
    let details = Details { usage: Some(usage), ..Details::default() };
    let ended = match prompt.trim() {
        prompt if prompt.contains("fail") => AgentResult::Failed {
            message: "exit status 3".into(),
            answer_so_far: Some("one line\nanother".into()),
            retryable: false,
            details,
        },
        prompt if prompt.contains("hostile") => AgentResult::Answered {
            answer: "\u{1b}[31mred\u{1b}[0m \u{1b}]0;pwned\u{7} \u{1b}[2Jgone?".into(),
            details,
        },
        prompt => {
            if prompt.contains("files") {
                let bytes = bytes::Bytes::from_static(b"# Report\n");
                files.push(OutputFile { name: "report.md".into(), size: bytes.len() as u64, bytes });
            }
            AgentResult::Answered { answer: format!("You wrote: {prompt}\n"), details }
        }
    };
    tell(JobEvent::Finished(Box::new(report(RunEnd::Agent(ended), files, ticket.asked_at))));
}

fn report(ended: RunEnd, files: Vec<OutputFile>, asked_at: Instant) -> RunReport {
    RunReport {
        ended,
        receipt: receipt(),
        queue_wait: Duration::from_millis(3),
        check: Duration::from_millis(11),
        run: asked_at.elapsed(),
        collect: Duration::from_millis(2),
        files,
        notes: Vec::new(),
        usage: None,
    }
}

fn receipt() -> Receipt {
    Receipt {
        runner: "jane-runner-0".into(),
        sprite_id: "sprite-1".into(),
        checkpoint: CheckpointId::new("v1").expect("a right id"),
        fingerprint: "f".into(),
        previous_job: None,
        restore_completed: true,
        canary_gone: Some(true),
        boot: "b1".into(),
        allowed_hosts: Vec::new(),
        verified_at: "2026-09-21T14:13:20Z".parse().expect("a right time"),
        fence: 1,
        isolation: "namespaces+seccomp".into(),
        warnings: Vec::new(),
    }
}
