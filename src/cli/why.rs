//! `janebot why` and `janebot jobs`: what the journal knows, for people and for programs. They only read, so they work
//! while the service runs.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::chat::terminal::Exit;
use crate::chat::terminal::ask::note;
use crate::chat::text::{harmless, one_line};
use crate::config::Config;
use crate::journal::search::{Wanted, Which};
use crate::journal::sqlite::SqliteJournal;
use crate::journal::story::{Event, Story};
use crate::journal::{JobRow, Journal, JournalError};
use crate::world::World;

/// Jobs that are named when a short id could mean several.
const SHOWN_WHEN_UNCLEAR: u32 = 5;

/// Tells the story of the message that `name` means.
pub async fn why(config: &Config, name: &str, json: bool, world: &World) -> Exit {
    match story(config, name, json, world).await {
        Ok(text) => print(&text),
        Err((exit, problem)) => {
            note(&problem);
            exit
        }
    }
}

async fn story(config: &Config, name: &str, json: bool, world: &World) -> Result<String, (Exit, String)> {
    let failed = |error: JournalError| (Exit::Failed, error.to_string());
    let journal = SqliteJournal::open_to_read(&config.journal_path).await.map_err(failed)?;
    let wanted = Wanted { which: Which::named(name), ..Wanted::any(SHOWN_WHEN_UNCLEAR + 1) };
    let found = journal.find_jobs(&wanted).await.map_err(failed)?;
    let row = match &found[..] {
        [row] => row,
        [] => {
            let problem = format!(
                "no job is known as {}: give the start of a job's id, a message's key, or a link to the message; `janebot jobs` lists them",
                one_line(name, 100)
            );
            return Err((Exit::Failed, problem));
        }
        several => {
            let ids: Vec<&str> = several.iter().take(SHOWN_WHEN_UNCLEAR as usize).map(|row| row.job.as_str()).collect();
            let more = if several.len() > ids.len() { " and more" } else { "" };
            let problem = format!("{} could be {}{more}: give more of the id", one_line(name, 100), ids.join(", "));
            return Err((Exit::Usage, problem));
        }
    };
    let leases = journal.leases(&row.job).await.map_err(failed)?;
    let effects = journal.job_effects(&row.job).await.map_err(failed)?;
    let story = Story::of(row, &leases, &effects, world.now());
    if json {
        return serde_json::to_string(&story).map_err(|error| (Exit::Failed, error.to_string()));
    }
    let mut text = format!("job {} of conversation {}, {}\n", row.job, row.conversation, word(row));
    for Event { at, what } in &story.events {
        let at = at.map(clock).unwrap_or_default();
        // A message of several lines stays in its column.
        let what = harmless(what).replace('\n', "\n                      ");
        text.push_str(&format!("{at:<20}  {what}\n"));
    }
    Ok(text)
}

/// Lists jobs, newest first.
pub async fn jobs(config: &Config, wanted: &Wanted, json: bool) -> Exit {
    let found = async {
        let journal = SqliteJournal::open_to_read(&config.journal_path).await?;
        journal.find_jobs(wanted).await
    };
    let rows = match found.await {
        Ok(rows) => rows,
        Err(error) => {
            note(&error.to_string());
            return Exit::Failed;
        }
    };
    if json {
        return match serde_json::to_string(&rows) {
            Ok(text) => print(&text),
            Err(error) => {
                note(&error.to_string());
                Exit::Failed
            }
        };
    }
    if rows.is_empty() {
        note("no job is like that");
        return Exit::Answered;
    }
    let mut text =
        format!("{:<15}  {:<20}  {:<22}  {:<8}  {:>8}  requester\n", "job", "heard", "outcome", "agent", "took");
    for row in &rows {
        let took = row.timings.map(|timings| format!("{:.1} s", timings.total_ms as f64 / 1000.0)).unwrap_or_default();
        text.push_str(&format!(
            "{:<15}  {:<20}  {:<22}  {:<8}  {took:>8}  {}\n",
            row.job.as_str(),
            clock(row.accepted_at),
            word(row),
            one_line(&row.agent, 8),
            one_line(row.requester.as_str(), 60)
        ));
    }
    print(&text)
}

/// How far it came, with the reason where there is one.
fn word(row: &JobRow) -> String {
    match &row.outcome {
        None => row.state.word().to_owned(),
        Some(outcome) => outcome
            .reason()
            .map_or_else(|| outcome.word().to_owned(), |reason| format!("{} ({reason})", outcome.word())),
    }
}

/// To the second, as the journal has it.
fn clock(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn print(text: &str) -> Exit {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        // Whoever read it has had enough of it.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            note(&format!("it could not be written ({error})"));
            Exit::Failed
        }
        Ok(()) | Err(_) => Exit::Answered,
    }
}
