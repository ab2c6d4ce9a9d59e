//! `janebot ask`: one prompt, one answer on standard output, one exit status.

use std::io::{self, IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::{Path, PathBuf};

use super::job::{self, End};
use super::json::Answer;
use super::paint::{self, Paint};
use super::{Exit, Interrupts, Message, Session, files};
use crate::app::App;
use crate::chat::text::harmless;
use crate::desk::recovery::Interrupted;
use crate::job::{JobReport, MAX_PROMPT_BYTES, Outcome};

/// How the answer is wanted.
pub struct Form {
    pub json: bool,
    /// Where to save the agent's files.
    pub files: Option<PathBuf>,
}

/// The prompt: the argument, or standard input where the argument is `-` or absent.
///
/// Reads at most a little more than the longest prompt, so that a longer one is known to be too long.
///
/// # Errors
/// A sentence that says what to do.
pub fn prompt(argument: Option<String>) -> Result<String, String> {
    match argument {
        Some(text) if text != "-" => return Ok(text),
        None if stdin().is_terminal() => {
            return Err("say what the agent should do: janebot ask \"…\", or pipe the prompt in".into());
        }
        Some(_) | None => {}
    }
    let mut bytes = Vec::new();
    let limit = MAX_PROMPT_BYTES as u64 + 1;
    let read = stdin().lock().take(limit).read_to_end(&mut bytes);
    read.map_err(|error| format!("standard input can't be read ({error})"))?;
    String::from_utf8(bytes).or_else(|error| {
        let good = error.utf8_error().valid_up_to();
        let cut_at_limit = error.as_bytes().len() > MAX_PROMPT_BYTES && error.utf8_error().error_len().is_none();
        if cut_at_limit {
            // Too long whatever follows; the check for that has the sentence.
            return Ok(String::from_utf8_lossy(error.as_bytes()).into_owned());
        }
        Err(format!("standard input is not UTF-8 (the first wrong byte is number {}): convert it first", good + 1))
    })
}

/// Runs one prompt and prints what comes of it.
pub async fn ask(app: &App, session: &Session, message: Message, form: &Form, interrupts: &mut Interrupts) -> Exit {
    for earlier in app.interrupted() {
        note(&earlier.message);
    }
    match job::run(app, session, message, interrupts).await {
        End::Told(report) => print(&report, app.interrupted(), form),
        End::GaveUp => {
            note("stopped waiting; the agent is being stopped");
            Exit::Interrupted
        }
        End::ServiceFailed => {
            note("janebot stopped because a part of it failed again and again: see the messages above");
            Exit::Failed
        }
    }
}

/// Prints the outcome: the answer, or the whole report as JSON, to standard output; the rest to standard error.
pub fn print(report: &JobReport, interrupted: &[Interrupted], form: &Form) -> Exit {
    let paint = Paint::for_stream(&stderr());
    let (saved, problems) = match &form.files {
        Some(folder) => files::save(&report.files, folder),
        None => (Vec::new(), Vec::new()),
    };
    let written = if form.json {
        let path = |name: &str| {
            let path = form.files.as_deref().map(|folder| folder.join(name))?;
            saved.contains(&path).then(|| path.display().to_string())
        };
        put_line(&Answer::new(report, interrupted, path).line())
    } else {
        print_text(report, form.files.as_deref(), saved.len(), paint)
    };
    for problem in &problems {
        note(problem);
    }
    match written {
        // Whoever read the answer has had enough of it.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            note(&format!("the answer could not be written ({error})"));
            Exit::Failed
        }
        Ok(()) | Err(_) if problems.is_empty() => Exit::of(&report.outcome),
        Ok(()) | Err(_) => Exit::Failed,
    }
}

fn print_text(report: &JobReport, folder: Option<&Path>, saved: usize, paint: Paint) -> io::Result<()> {
    let written = match &report.outcome {
        Outcome::Answered { answer } if stdout().is_terminal() => put_line(&harmless(answer)),
        // Into a file or a program the answer goes as it is.
        Outcome::Answered { answer } => put_line(answer),
        Outcome::Failed { message, .. }
        | Outcome::Refused { message, .. }
        | Outcome::Cancelled { message }
        | Outcome::Merged { message, .. } => {
            let _ = writeln!(stderr(), "{} {}", paint.bad("janebot:"), harmless(message));
            Ok(())
        }
    };
    let mut lines = paint::notes(report, paint);
    if !report.files.is_empty() {
        lines.extend(files::list(&report.files).into_iter().map(|line| format!("{} {line}", paint.accent("+"))));
        lines.push(paint.dim(&match folder {
            Some(folder) => format!("{saved} of {} saved in {}", report.files.len(), folder.display()),
            None => "files are kept with --files FOLDER; these are gone".to_owned(),
        }));
    }
    if !matches!(report.outcome, Outcome::Refused { .. }) {
        lines.push(paint::summary(report, paint));
    }
    for line in lines {
        let _ = writeln!(stderr(), "{line}");
    }
    written
}

/// Ends with one line break, whether the text has one or not.
fn put_line(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// A sentence for the person, beside the answer.
pub fn note(text: &str) {
    // Standard error may be closed, and then there is nobody to tell.
    let _ = writeln!(stderr(), "janebot: {}", harmless(text));
}
