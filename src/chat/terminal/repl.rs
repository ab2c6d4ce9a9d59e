//! `janebot chat`: a conversation on one screen.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use super::job::{self, End};
use super::line::{Line, Lines, Prompt};
use super::paint::{self, Paint, span_ms};
use super::{Exit, Interrupts, Message, Session, files};
use crate::app::App;
use crate::chat::text::{harmless, one_line};
use crate::config::AgentKind;
use crate::desk::Target;
use crate::desk::admission::check_agent;
use crate::desk::stop::Stopping;
use crate::job::{JobReport, Outcome};
use crate::pool::PoolStatus;

const HELP: &str = "\
  /agent NAME    use another agent from now on; without a name, list them
  /status        runners, queue and open jobs
  /save [FOLDER] save the files of the last answer
  /cancel        stop what still runs of this conversation
  /quit          leave (Ctrl-D does the same)
While the agent works, Ctrl-C stops it. What you type meanwhile waits for the next prompt.";

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command<'a> {
    Say(&'a str),
    Nothing,
    Help,
    Status,
    Cancel,
    Agent(Option<&'a str>),
    Save(Option<&'a str>),
    Quit,
    Unknown(&'a str),
}

impl<'a> Command<'a> {
    /// A line is a command when its first character is a slash and its first word is no path.
    fn read(line: &'a str) -> Self {
        if line.trim().is_empty() {
            return Self::Nothing;
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        match (word, rest) {
            ("/help" | "/?", _) => Self::Help,
            ("/status", _) => Self::Status,
            ("/cancel" | "/stop", _) => Self::Cancel,
            ("/agent", name) => Self::Agent(name),
            ("/save", folder) => Self::Save(folder),
            ("/quit" | "/exit", _) => Self::Quit,
            (word, _) if word.strip_prefix('/').is_some_and(|rest| !rest.contains('/')) => Self::Unknown(word),
            _ => Self::Say(line),
        }
    }
}

/// The talk's state.
struct Talk<'a> {
    app: &'a App,
    session: &'a Session,
    agent: AgentKind,
    last: Option<Box<JobReport>>,
    paint: Paint,
}

/// Runs the conversation until the person leaves.
pub async fn chat(app: &App, session: &Session, agent: AgentKind, interrupts: &mut Interrupts) -> Exit {
    let mut talk = Talk { app, session, agent, last: None, paint: Paint::for_stream(&stdout()) };
    let mut lines = match Lines::start() {
        Ok(lines) => lines,
        Err(problem) => {
            super::ask::note(&problem);
            return Exit::Failed;
        }
    };
    talk.greet();
    let mut leaving = false;
    loop {
        let line = tokio::select! {
            biased;
            line = lines.next(talk.prompt()) => line,
            // At the prompt Ctrl-C is a key, so this is SIGTERM.
            () = interrupts.next() => {
                talk.say("");
                Line::End
            }
            () = app.failed() => Line::Broken("janebot stopped because a part of it failed again and again".into()),
        };
        match line {
            Line::Text(line) => {
                leaving = false;
                match talk.obey(Command::read(&line), interrupts).await {
                    None => {}
                    Some(exit) => return exit,
                }
            }
            Line::Interrupted if leaving => break,
            Line::Interrupted => {
                leaving = true;
                talk.say(&talk.paint.dim("Ctrl-C once more to leave"));
            }
            Line::End => break,
            Line::Broken(problem) => {
                super::ask::note(&problem);
                return Exit::Failed;
            }
        }
    }
    talk.leave().await
}

impl Talk<'_> {
    fn greet(&self) {
        let version = env!("CARGO_PKG_VERSION");
        self.say(&format!(
            "{} {}",
            self.paint.bold("janebot"),
            self.paint.dim(&format!("{version} · /help lists commands"))
        ));
        if self.agent == AgentKind::Shell {
            self.say(&self.paint.dim(
                "The agent is a shell: what you write runs as a bash script on a clean machine.\n\
                 Set AMP_API_KEY or ANTHROPIC_API_KEY for a coding agent.",
            ));
        }
        for earlier in self.app.interrupted() {
            self.say(&format!("{} {}", self.paint.warn("!"), harmless(&earlier.message)));
        }
    }

    fn prompt(&self) -> Prompt {
        let name = self.agent.name();
        Prompt { raw: format!("{name} ❯ "), styled: format!("{} ", self.paint.accent(&format!("{name} ❯"))) }
    }

    /// Does what the line asks for. `Some` when the talk is over.
    async fn obey(&mut self, command: Command<'_>, interrupts: &mut Interrupts) -> Option<Exit> {
        match command {
            Command::Nothing => {}
            Command::Say(text) => return self.ask(text, interrupts).await,
            Command::Help => self.say(HELP),
            Command::Status => self.status().await,
            Command::Cancel => self.cancel().await,
            Command::Agent(name) => self.choose(name),
            Command::Save(folder) => self.save(folder),
            Command::Quit => return Some(self.leave().await),
            Command::Unknown(word) => {
                self.say(&format!(
                    "There is no command {}; /help lists them. A space before it sends it to the agent.",
                    one_line(word, 40)
                ));
            }
        }
        None
    }

    async fn ask(&mut self, text: &str, interrupts: &mut Interrupts) -> Option<Exit> {
        let message = Message { text: text.to_owned(), agent: Some(self.agent.name().to_owned()), timeout: None };
        match job::run(self.app, self.session, message, interrupts).await {
            End::Told(report) => {
                self.show(&report);
                self.last = Some(report);
                None
            }
            End::GaveUp => {
                self.say("Not waiting any longer; the agent is still being stopped. /status shows how far that is.");
                None
            }
            End::ServiceFailed => {
                super::ask::note("janebot stopped because a part of it failed again and again");
                Some(Exit::Failed)
            }
        }
    }

    fn show(&self, report: &JobReport) {
        match &report.outcome {
            Outcome::Answered { answer } => self.say(harmless(answer).trim_end()),
            Outcome::Failed { message, .. } | Outcome::Refused { message, .. } => {
                self.say(&self.paint.bad(harmless(message).trim_end()));
            }
            Outcome::Cancelled { message } | Outcome::Merged { message, .. } => {
                self.say(&self.paint.warn(harmless(message).trim_end()));
            }
        }
        for line in paint::notes(report, self.paint) {
            self.say(&line);
        }
        if !report.files.is_empty() {
            for line in files::list(&report.files) {
                self.say(&format!("{} {line}", self.paint.accent("+")));
            }
            self.say(&self.paint.dim("/save keeps these files"));
        }
        if !matches!(report.outcome, Outcome::Refused { .. }) {
            self.say(&paint::summary(report, self.paint));
        }
        self.say("");
    }

    async fn status(&self) {
        let (desk, pool) = self.app.status().await;
        match pool {
            Some(pool) => self.say(&runners(&pool, self.paint)),
            None => self.say("The runner pool does not answer; it is being started or restarted."),
        }
        match desk {
            Some(desk) => self.say(&self.paint.dim(&format!("{} open here", count(desk.open_jobs, "job")))),
            None => self.say("The desk does not answer; it is being restarted."),
        }
    }

    async fn cancel(&self) {
        let target = Target::Conversation(self.session.conversation.clone());
        let answer = match self.app.cancel(target, self.session.requester.clone()).await {
            Some(Stopping { jobs: 0, .. }) => "Nothing is running.".to_owned(),
            Some(Stopping { jobs, .. }) => format!("Stopping {}.", count(jobs, "job")),
            None => "The desk does not answer; it is being restarted. Try again in a moment.".to_owned(),
        };
        self.say(&answer);
    }

    fn choose(&mut self, name: Option<&str>) {
        let Some(name) = name else {
            let names = self.app.settings().agents.iter().map(|agent| {
                if *agent == self.agent { format!("{} (in use)", agent.name()) } else { agent.name().to_owned() }
            });
            self.say(&format!("Agents: {}", names.collect::<Vec<_>>().join(", ")));
            return;
        };
        match check_agent(Some(name), self.app.settings()) {
            Ok(agent) => self.agent = agent,
            Err(refusal) => self.say(&self.paint.bad(&refusal.message)),
        }
    }

    fn save(&self, folder: Option<&str>) {
        let Some(report) = self.last.as_ref().filter(|report| !report.files.is_empty()) else {
            self.say("The last answer came without files.");
            return;
        };
        let folder = folder.map_or_else(|| PathBuf::from(format!("janebot-output-{}", report.job)), PathBuf::from);
        match files::prepare(&folder) {
            Ok(()) => self.save_in(report, &folder),
            Err(problem) => self.say(&self.paint.bad(&harmless(&problem))),
        }
    }

    fn save_in(&self, report: &JobReport, folder: &Path) {
        let (saved, problems) = files::save(&report.files, folder);
        for problem in problems {
            self.say(&self.paint.bad(&problem));
        }
        self.say(&format!("{} saved in {}", count(saved.len(), "file"), folder.display()));
    }

    /// Stops what still runs, since nobody is left to read its answer.
    async fn leave(&self) -> Exit {
        let target = Target::Conversation(self.session.conversation.clone());
        self.app.cancel(target, self.session.requester.clone()).await;
        Exit::Answered
    }

    fn say(&self, text: &str) {
        // A closed screen is noticed when the next line is read.
        let _ = writeln!(stdout(), "{text}");
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The runners as a table.
fn runners(pool: &PoolStatus, paint: Paint) -> String {
    let width = pool.runners.iter().map(|runner| runner.runner.len()).max().unwrap_or_default();
    let mut lines = Vec::new();
    for runner in &pool.runners {
        let state = format!("{:<12}", runner.state);
        let state = match runner.state {
            "idle" => paint.good(&state),
            "quarantined" => paint.bad(&state),
            "building" | "restoring" => paint.warn(&state),
            _ => paint.accent(&state),
        };
        let mut line = format!("{:<width$}  {state} {:>10}", runner.runner, span_ms(runner.since_ms));
        if let Some(job) = &runner.job {
            line.push_str(&format!("  job {job}"));
        }
        if let Some(note) = &runner.note {
            line.push_str(&paint.dim(&format!("  {}", one_line(note, 100))));
        }
        lines.push(line);
    }
    let wait = pool.wait.map(|wait| format!("; a new one would wait {wait}")).unwrap_or_default();
    lines.push(paint.dim(&format!("{} waiting for a runner{wait}", count(pool.queued, "job"))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;
    use crate::pool::RunnerStatus;

    #[test]
    fn a_line_is_a_command_or_a_message() {
        for (line, command) in [
            ("", Command::Nothing),
            ("   ", Command::Nothing),
            ("/help", Command::Help),
            ("/agent", Command::Agent(None)),
            ("/agent  amp ", Command::Agent(Some("amp"))),
            ("/save my folder", Command::Save(Some("my folder"))),
            ("/exit", Command::Quit),
            ("/stats", Command::Unknown("/stats")),
            (" /stats", Command::Say(" /stats")),
            ("/bin/ls -l", Command::Say("/bin/ls -l")),
            ("fix /etc/hosts", Command::Say("fix /etc/hosts")),
        ] {
            assert_eq!(Command::read(line), command, "{line:?}");
        }
    }

    #[test]
    fn the_status_shows_each_runner_on_a_line() {
        let runner =
            |name: &str, state, job, note| RunnerStatus { runner: name.into(), state, since_ms: 1500, job, note };
        let pool = PoolStatus {
            runners: vec![
                runner("jane-runner-0", "executing", Some(JobId::new("01job")), None),
                runner("jane-runner-10", "building", None, Some("disk\nfull".into())),
            ],
            queued: 1,
            wait: None,
        };
        let table = runners(&pool, Paint::plain());
        let expected = "\
jane-runner-0   executing         1.5 s  job 01job
jane-runner-10  building          1.5 s  disk full
1 job waiting for a runner";
        assert_eq!(table, expected);
    }
}
