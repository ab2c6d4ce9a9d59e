//! What a program does inside an in-memory sprite: the runner's five scripts, and the mini language of `janebot-run`.
//!
//! A script is known by its name, the fourth word of `sh -c SCRIPT NAME args…`; its text is not looked at. What
//! `janebot-run` gets as standard input is a program of one command a line; see [`Step`] for the commands.

use std::time::Duration;

use bytes::Bytes;

use janebot::sprites::ExecRequest;

/// `flood` stops here, so that a typing error in a test does not eat the machine's memory.
const MAX_FLOOD: usize = 64 * 1024 * 1024;

/// One thing that a program does.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// `janebot-build`: makes the directories.
    Build,
    /// `janebot-verify CANARY…`: tells the boot identity, whether any canary is there, the disk, the agents.
    Verify { canaries: Vec<String> },
    /// `janebot-check CANARY`: leaves the canary and writes the files of its standard input.
    Check { canary: String, stdin: Bytes },
    /// `janebot-leftovers`: counts the processes of jobs.
    Leftovers,
    /// `janebot-run ENVFILE argv…`: the job begins. `marker` is the first line of its standard input.
    Start { env_file: String, marker: String },

    /// `echo TEXT`: a line of standard output.
    Echo(String),
    /// `err TEXT`: a line of standard error.
    Err(String),
    /// `sleep SECONDS`, with a fraction if need be.
    Sleep(Duration),
    /// `exit N`
    Exit(u8),
    /// `touch PATH`: makes a file, relative to home.
    Touch(String),
    /// `output NAME TEXT`: makes a file below `~/output`.
    Output { name: String, text: String },
    /// `daemon`: leaves a process that outlives the session.
    Daemon,
    /// `read PATH`: prints a file, relative to home, or `absent`.
    Read(String),
    /// `hang`: until killed.
    Hang,
    /// `ignore-term`: from here on only SIGKILL ends it.
    IgnoreTerm,
    /// `flood BYTES`: so much standard output.
    Flood(usize),
    /// `oom`: the kernel kills it.
    Oom,
    /// Anything else: an error line and status 127, and on it goes, as in a shell.
    Unknown(String),
}

/// A program as the host sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// For the log: the script's or the program's name.
    pub name: String,
    pub steps: Vec<Step>,
}

impl Program {
    /// The program that `request` asks for.
    pub fn of(request: &ExecRequest) -> Self {
        let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
        let (name, steps) = match argv[..] {
            ["sh", "-c", _, "janebot-build"] => ("janebot-build", vec![Step::Build]),
            ["sh", "-c", _, "janebot-verify", ref canaries @ ..] => {
                ("janebot-verify", vec![Step::Verify { canaries: canaries.iter().map(|&c| c.to_owned()).collect() }])
            }
            ["sh", "-c", _, "janebot-check", canary] => {
                ("janebot-check", vec![Step::Check { canary: canary.to_owned(), stdin: request.stdin.clone() }])
            }
            ["/bin/sh", "-c", _, "janebot-leftovers"] => ("janebot-leftovers", vec![Step::Leftovers]),
            // An agent is tried out while the sprite is built: no job, and it has nothing to say.
            ["sh", "-c", _, "janebot-run", "-", _, ..] => ("janebot-run -", vec![Step::Exit(0)]),
            ["sh", "-c", _, "janebot-run", env_file, _, ..] => ("janebot-run", job(env_file, &request.stdin)),
            ["true"] => ("true", vec![Step::Exit(0)]),
            ["echo", ref words @ ..] => ("echo", vec![Step::Echo(words.join(" "))]),
            [program, ..] => (program, vec![Step::Unknown(program.to_owned())]),
            [] => ("", vec![Step::Unknown(String::new())]),
        };
        Self { name: name.to_owned(), steps }
    }
}

fn job(env_file: &str, stdin: &[u8]) -> Vec<Step> {
    let text = String::from_utf8_lossy(stdin);
    let marker = text.lines().next().unwrap_or_default().trim().to_owned();
    let mut steps = vec![Step::Start { env_file: env_file.to_owned(), marker }];
    let commands = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    steps.extend(commands.map(command));
    steps
}

fn command(line: &str) -> Step {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let known = match word {
        "echo" => Some(Step::Echo(rest.to_owned())),
        "err" => Some(Step::Err(rest.to_owned())),
        "sleep" => rest.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).map(Step::Sleep),
        "exit" => rest.parse().ok().map(Step::Exit),
        "touch" if !rest.is_empty() => Some(Step::Touch(rest.to_owned())),
        "output" => rest.split_once(' ').map(|(name, text)| Step::Output { name: name.into(), text: text.into() }),
        "daemon" => Some(Step::Daemon),
        "read" if !rest.is_empty() => Some(Step::Read(rest.to_owned())),
        "hang" => Some(Step::Hang),
        "ignore-term" => Some(Step::IgnoreTerm),
        "flood" => rest.parse().ok().map(|bytes: usize| Step::Flood(bytes.min(MAX_FLOOD))),
        "oom" => Some(Step::Oom),
        _ => None,
    };
    known.unwrap_or_else(|| Step::Unknown(line.to_owned()))
}
