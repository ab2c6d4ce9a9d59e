//! The terminal front end with scripted runs, to look at it without a machine to run on:
//! `cargo run --example terminal -- chat`, or `… -- ask PROMPT`. A prompt that contains `wait`, `fail`, `files` or
//! `hostile` shows those cases.

#[path = "../tests/doubles/scripted_pool.rs"]
mod scripted_pool;

use std::process::ExitCode;
use std::time::Duration;

use janebot::app::{App, Parts};
use janebot::chat::Chats;
use janebot::chat::terminal::ask::{Form, ask};
use janebot::chat::terminal::repl::chat;
use janebot::chat::terminal::{Exit, Interrupts, Message, Session};
use janebot::config::{AccessConfig, AgentKind};
use janebot::desk::admission::Settings;
use janebot::journal::memory::MemoryJournal;
use janebot::world::World;
use tokio::time::Instant;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings {
        agents: vec![AgentKind::Shell, AgentKind::Amp],
        default_agent: AgentKind::Amp,
        run_timeout: Duration::from_secs(600),
        queue_timeout: Duration::from_secs(900),
        debounce: Duration::ZERO,
        access: AccessConfig::default(),
    };
    let (child, pool) = scripted_pool::child(Duration::from_millis(800));
    let world = World::real();
    let parts = Parts {
        journal: MemoryJournal::new(),
        world: world.clone(),
        settings,
        children: vec![child],
        pool,
        serving: None,
        chats: Chats::default(),
        drain_timeout: Duration::from_secs(60),
    };
    let app = App::assemble(parts).await.expect("a scripted service starts");
    let mut interrupts = Interrupts::catch().expect("signals can be caught");
    let session = Session::new("alice", &world);
    let mut args = std::env::args().skip(1);
    let exit = match args.next().as_deref() {
        Some("ask") => {
            let text = args.next().unwrap_or_default();
            let form = Form { json: args.next().as_deref() == Some("--json"), files: None };
            ask(&app, &session, Message { text, agent: None, timeout: None }, &form, &mut interrupts).await
        }
        Some("chat") | None => chat(&app, &session, AgentKind::Amp, &mut interrupts).await,
        Some(_) => Exit::Usage,
    };
    app.shutdown(Instant::now() + Duration::from_secs(5)).await;
    ExitCode::from(exit.status())
}
