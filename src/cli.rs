//! The command line: what can be asked for, and the way from there to the parts that do it.

mod doctor;
mod why;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::admin;
use crate::agent::install;
use crate::app::machines::{self, Machines};
use crate::app::{App, Serving};
use crate::chat;
use crate::chat::adapter::Adapter;
use crate::chat::terminal::ask::{self, Form, note};
use crate::chat::terminal::{Exit, Interrupts, Message, Session, repl};
use crate::chat::text::one_line;
use crate::config::{self, Config};
use crate::desk::admission::{MAX_RUN_TIMEOUT, Refusal, Settings, check_agent, check_prompt};
use crate::job::{JobReport, Outcome, Timings};
use crate::journal::search::{Progress, Wanted};
use crate::observe::{self, LogFormat};
use crate::world::World;

/// What a job may still take when the terminal's owner has gone.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// A coding agent in your team's chat, run inside verified-clean sandboxes.
#[derive(Parser)]
#[command(name = "janebot", version, about, disable_help_subcommand = true)]
struct Cli {
    /// Settings file (TOML); the environment wins over it
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What to log to standard error: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run one prompt and print the answer
    ///
    /// Exit status: 0 answered, 1 failed, 2 bad usage or configuration, 3 refused, 130 cancelled.
    Ask(AskArgs),
    /// Talk to an agent in this terminal
    Chat {
        /// Agent to talk to
        #[arg(long, value_name = "NAME")]
        agent: Option<String>,
    },
    /// Serve the configured chats (the default)
    Serve,
    /// Serve only the Sprites API of this machine
    Host,
    /// Tell the story of one message, from the journal
    Why {
        /// Start of a job's id, a message's key, or a link to the message
        #[arg(value_name = "ID|LINK")]
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List jobs, newest first, from the journal
    Jobs(JobsArgs),
    /// Tell what is right and wrong with the set-up of the chats
    ///
    /// Exit status: 0 nothing is wrong, 1 something is.
    Doctor,
    /// Print the settings in use, and what can be set
    Config,
}

#[derive(Args)]
struct AskArgs {
    /// What the agent should do; `-` or nothing reads standard input
    prompt: Option<String>,
    /// Agent to use
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Longest time for the agent's run, as in `90s` or `1h 30m`
    #[arg(long, value_name = "TIME", value_parser = run_timeout)]
    timeout: Option<Duration>,
    /// Print one JSON object with all that is known of the job
    #[arg(long)]
    json: bool,
    /// Save the files that the agent leaves in this folder, which must be new or empty
    #[arg(long, value_name = "FOLDER")]
    files: Option<PathBuf>,
}

#[derive(Args)]
struct JobsArgs {
    /// How far they came: accepted, running, ended, answered, failed, refused or cancelled
    #[arg(long, value_name = "STATE", value_parser = progress)]
    state: Option<Progress>,
    /// Whose they are: the platform's user id, with or without the platform before it
    #[arg(long, value_name = "ID")]
    requester: Option<String>,
    /// Not older than this: a time ago, as in `2h`, or a moment, as in `2026-09-21T14:00:00Z`
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// At most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

impl JobsArgs {
    fn wanted(&self, world: &World) -> Result<Wanted, String> {
        let since = self.since.as_deref().map(|text| moment(text, world)).transpose()?;
        let (progress, requester) = (self.state, self.requester.clone());
        Ok(Wanted { progress, requester, since, ..Wanted::any(self.limit) })
    }
}

fn progress(word: &str) -> Result<Progress, String> {
    Progress::named(word).ok_or_else(|| format!("it is one of {}", Progress::WORDS))
}

fn moment(text: &str, world: &World) -> Result<Timestamp, String> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let ago = humantime::parse_duration(text).ok().and_then(|ago| world.now().checked_sub(ago).ok());
    ago.ok_or_else(|| {
        format!(
            "--since {} is neither a time ago, as in 2h, nor a moment, as in 2026-09-21T14:00:00Z",
            one_line(text, 40)
        )
    })
}

fn run_timeout(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}; write it as in 90s or 1h 30m"))?;
    match time {
        Duration::ZERO => Err("it leaves the agent no time".into()),
        time if time > MAX_RUN_TIMEOUT => Err("the longest run is 24h".into()),
        time => Ok(time),
    }
}

/// Runs the program with these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output with status 0, complaints to standard error with status 2.
            let _ = error.print();
            return if error.use_stderr() { exit(Exit::Usage) } else { ExitCode::SUCCESS };
        }
    };
    exit(execute(cli))
}

fn exit(exit: Exit) -> ExitCode {
    ExitCode::from(exit.status())
}

fn execute(cli: Cli) -> Exit {
    let env = Config::environment();
    let config = match Config::load(&env, cli.config.as_deref()) {
        Ok(config) => config,
        Err(errors) => return complain(&errors.to_string()),
    };
    let command = match cli.command.unwrap_or(Command::Serve) {
        Command::Config => return print_config(&config),
        Command::Doctor => return look(doctor::doctor(&config, World::real())),
        Command::Serve => match chat::configured(&config, &World::real()) {
            Ok(adapters) if adapters.is_empty() => return complain(NO_CHAT),
            Ok(adapters) => Work::Serve(adapters),
            Err(problem) => return complain(&problem),
        },
        Command::Why { name, json } => return look(why::why(&config, &name, json, &World::real())),
        Command::Jobs(args) => {
            return match args.wanted(&World::real()) {
                Ok(wanted) => look(why::jobs(&config, &wanted, args.json)),
                Err(problem) => complain(&problem),
            };
        }
        Command::Ask(args) => match Asked::read(args, &config) {
            Ok(asked) => Work::Terminal(Terminal::Ask(asked)),
            Err(exit) => return exit,
        },
        Command::Chat { agent } => match check_agent(agent.as_deref(), &Settings::of(&config)) {
            Ok(agent) => Work::Terminal(Terminal::Chat(agent)),
            Err(refusal) => {
                note(&refusal.message);
                return Exit::Refused;
            }
        },
        Command::Host => Work::Host,
    };
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work(command, &config, &env, cli.log.as_deref())),
        Err(error) => complain(&format!("no threads can be started ({error})")),
    }
}

/// Runs what only reads.
fn look(work: impl Future<Output = Exit>) -> Exit {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => complain(&format!("no event loop can be started ({error})")),
    }
}

const NO_CHAT: &str = "there is no chat to serve: set DISCORD_TOKEN or SLACK_BOT_TOKEN (see deploy/), talk to an agent here with \
    `janebot chat`, run one prompt with `janebot ask \"…\"`, or see all commands with `janebot --help`";

fn complain(problem: &str) -> Exit {
    note(problem);
    Exit::Usage
}

fn print_config(config: &Config) -> Exit {
    // A reader who has seen enough closes the pipe.
    let risky: String = config.warnings().iter().map(|warning| format!("# Careful: {warning}\n")).collect();
    let reference = config::reference();
    let _ = write!(std::io::stdout(), "# Settings in use\n\n{config}{risky}\n# What can be set\n\n{reference}");
    Exit::Answered
}

/// What needs the runtime.
enum Work {
    Terminal(Terminal),
    Serve(Vec<Box<dyn Adapter>>),
    Host,
}

enum Terminal {
    Ask(Asked),
    Chat(config::AgentKind),
}

struct Asked {
    message: Message,
    form: Form,
}

impl Asked {
    /// Everything that can be told wrong before anything is started.
    fn read(args: AskArgs, config: &Config) -> Result<Self, Exit> {
        let form = Form { json: args.json, files: args.files };
        let text = ask::prompt(args.prompt).map_err(|problem| complain(&problem))?;
        let settings = Settings::of(config);
        let checked = check_prompt(&text).and_then(|()| check_agent(args.agent.as_deref(), &settings));
        if let Err(refusal) = checked {
            let agent = args.agent.unwrap_or_else(|| settings.default_agent.name().to_owned());
            return Err(ask::print(&refused(refusal, agent), &[], &form));
        }
        if let Some(folder) = &form.files {
            crate::chat::terminal::prepare_folder(folder).map_err(|problem| complain(&problem))?;
        }
        Ok(Self { message: Message { text, agent: args.agent, timeout: args.timeout }, form })
    }
}

fn refused(refusal: Refusal, agent: String) -> JobReport {
    let world = World::real();
    JobReport {
        job: world.job_id(),
        outcome: Outcome::Refused { reason: refusal.reason, message: refusal.message },
        agent,
        timings: Timings::default(),
        receipt: None,
        usage: None,
        files: Vec::new(),
        notes: Vec::new(),
        ended_at: world.now(),
    }
}

async fn work(work: Work, config: &Config, env: &BTreeMap<String, String>, level: Option<&str>) -> Exit {
    let world = World::real();
    let (default_level, format) = match &work {
        // What a person should know is told in the command's own words.
        Work::Terminal(_) => ("error", LogFormat::Human),
        Work::Serve(_) | Work::Host => ("info", LogFormat::Json),
    };
    let telemetry = match observe::start(level.unwrap_or(default_level), format, env, &world) {
        Ok(telemetry) => telemetry,
        Err(error) => return complain(&error.to_string()),
    };
    let mut interrupts = match Interrupts::catch() {
        Ok(interrupts) => interrupts,
        Err(error) => return complain(&format!("signals can't be caught ({error})")),
    };
    let exit = match work {
        Work::Host => host(config, world, &mut interrupts).await,
        Work::Serve(adapters) => serve(adapters, config, world, &mut interrupts).await,
        Work::Terminal(command) => terminal(command, config, world, &mut interrupts).await,
    };
    telemetry.shutdown().await;
    exit
}

/// Brings the agents' programs while somebody watches, so that what is wrong with it ends the command at once.
async fn bring_agents(config: &Config) -> Result<(), String> {
    let cache = machines::agent_cache(config);
    for (agent, version) in install::missing(&config.agents, &cache) {
        note(&format!("installing {} {version} with npm, which happens once", agent.name()));
        install::fetch(agent, &config.agents, &cache).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn terminal(command: Terminal, config: &Config, world: World, interrupts: &mut Interrupts) -> Exit {
    let brought = tokio::select! {
        biased;
        brought = bring_agents(config) => brought,
        () = interrupts.next() => return Exit::Interrupted,
    };
    if let Err(problem) = brought {
        return complain(&problem);
    }
    let started = tokio::select! {
        biased;
        started = App::start(config, world, None) => started,
        () = interrupts.next() => return Exit::Interrupted,
    };
    let app = match started {
        Ok(app) => app,
        Err(error) => return complain(&error.to_string()),
    };
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    let session = Session::new(&user, app.world());
    let exit = match command {
        Terminal::Ask(Asked { message, form }) => ask::ask(&app, &session, message, &form, interrupts).await,
        Terminal::Chat(agent) => repl::chat(&app, &session, agent, interrupts).await,
    };
    tokio::select! {
        biased;
        () = app.shutdown(Instant::now() + LEAVE_WITHIN) => {}
        // Whoever asks once more does not want to wait for order.
        () = interrupts.next() => {}
    }
    exit
}

/// Serves the chats until the service is told to stop. Agents that are not there yet are brought while it runs, as the
/// runners that need them are built.
async fn serve(adapters: Vec<Box<dyn Adapter>>, config: &Config, world: World, interrupts: &mut Interrupts) -> Exit {
    let socket = match admin::Socket::bind(config.admin_listen) {
        Ok(socket) => socket,
        Err(problem) => return complain(&problem),
    };
    let address = socket.address();
    let platforms: Vec<_> = adapters.iter().map(|adapter| adapter.platform()).collect();
    let platforms = platforms.join(", ");
    let started = tokio::select! {
        biased;
        started = App::start(config, world, Some(Serving { adapters, socket })) => started,
        () = interrupts.next() => return Exit::Interrupted,
    };
    let app = match started {
        Ok(app) => app,
        Err(error) => return complain(&error.to_string()),
    };
    let address = address.map(|address| address.to_string()).unwrap_or_default();
    tracing::info!(platforms, admin = address, "serving chats");
    let exit = tokio::select! {
        biased;
        () = interrupts.next() => Exit::Answered,
        () = app.failed() => {
            tracing::error!("stopping: a part failed again and again");
            Exit::Failed
        }
    };
    tracing::info!("stopping: what runs may end, what waits is left to the next start");
    tokio::select! {
        biased;
        () = app.drain() => {}
        () = interrupts.next() => tracing::warn!("told to stop once more: what still runs is interrupted"),
    }
    exit
}

async fn host(config: &Config, world: World, interrupts: &mut Interrupts) -> Exit {
    let (machines, token_file) = match Machines::serve_alone(config, &world).await {
        Ok(served) => served,
        Err(error) => {
            return complain(&error.to_string());
        }
    };
    let file = token_file.display();
    let said = format!(
        "SPRITES_API_URL={}\n# The token is in {file}:\n# export SPRITES_TOKEN=\"$(cat {file})\"\n",
        machines.url
    );
    // A reader who has seen enough closes the pipe.
    let _ = std::io::stdout().write_all(said.as_bytes());
    interrupts.next().await;
    machines.stop().await;
    Exit::Answered
}
