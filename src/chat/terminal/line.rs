//! Reads lines with editing and recall, on a thread of its own since that blocks; and keeps the terminal in order.

use std::io::{IsTerminal, stdin};
use std::sync::mpsc as blocking;
use std::thread;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::sync::mpsc;

/// What came of asking for a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the input's end.
    End,
    /// The terminal can't be read; the sentence says why.
    Broken(String),
}

/// The reading thread. It lives as long as the process: a thread that waits for a key can't be stopped.
pub struct Lines {
    prompts: blocking::Sender<Prompt>,
    lines: mpsc::UnboundedReceiver<Line>,
    _terminal: Kept,
}

/// The prompt without and with colours; both are equally wide.
pub struct Prompt {
    pub raw: String,
    pub styled: String,
}

impl Lines {
    /// # Errors
    /// A sentence, when the terminal can't be used.
    pub fn start() -> Result<Self, String> {
        let terminal = Kept::as_it_is();
        let config = rustyline::Config::builder().auto_add_history(true).history_ignore_space(false).build();
        let mut editor = DefaultEditor::with_config(config).map_err(|error| unusable(&error))?;
        let (prompts, asked) = blocking::channel::<Prompt>();
        let (answer, lines) = mpsc::unbounded_channel();
        let read = move || {
            while let Ok(Prompt { raw, styled }) = asked.recv() {
                let line = match editor.readline(&(raw, styled)) {
                    Ok(text) => Line::Text(text),
                    Err(ReadlineError::Interrupted) => Line::Interrupted,
                    Err(ReadlineError::Eof) => Line::End,
                    Err(error) => Line::Broken(unusable(&error)),
                };
                if answer.send(line).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("line".into())
            .spawn(read)
            .map_err(|error| format!("no thread can be started ({error})"))?;
        Ok(Self { prompts, lines, _terminal: terminal })
    }

    pub async fn next(&mut self, prompt: Prompt) -> Line {
        let gone = || Line::Broken("the terminal's reader has stopped".into());
        if self.prompts.send(prompt).is_err() {
            return gone();
        }
        self.lines.recv().await.unwrap_or_else(gone)
    }
}

fn unusable(error: &ReadlineError) -> String {
    format!("the terminal can't be read ({error})")
}

/// Puts the terminal's modes back when dropped, for when the program ends while a line is being edited.
struct Kept(Option<Termios>);

impl Kept {
    fn as_it_is() -> Self {
        Self(modes())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            let _ = tcsetattr(stdin(), OptionalActions::Now, modes);
        }
    }
}

/// While it lives, typed keys are not shown and wait for the next line: they would tear a spinner apart.
pub struct Hushed(Option<Termios>);

impl Hushed {
    pub fn now() -> Self {
        let before = modes();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
            let _ = tcsetattr(stdin(), OptionalActions::Now, &quiet);
        }
        Self(before)
    }
}

impl Drop for Hushed {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

fn modes() -> Option<Termios> {
    stdin().is_terminal().then(|| tcgetattr(stdin()).ok()).flatten()
}
