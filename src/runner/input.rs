//! Bringing the files of a message into the sprite, before the agent starts.

use crate::job::InputFile;
use crate::sprites::{Sprites, SpritesError};

/// Where an agent finds the files that came with the message, below the sprite user's home.
pub const INPUT_DIR: &str = "input";

/// Writes the files one after the other, so that only one is held at a time. What can't be had is no failure of the job:
/// gives what to tell the user about it.
///
/// # Errors
/// When the sprite does not take a file.
pub async fn bring<S: Sprites>(sprites: &S, name: &str, files: &[InputFile]) -> Result<Vec<String>, SpritesError> {
    let mut notes = Vec::new();
    for file in files {
        match file.source.fetch().await {
            Ok(bytes) => sprites.write_file(name, &format!("{INPUT_DIR}/{}", file.name), 0o644, bytes).await?,
            Err(why) => notes.push(format!("The file {} was not given to the agent: {why}.", file.name)),
        }
    }
    Ok(notes)
}
