//! The files that came with a message, as the runner takes them.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::chat::outbox::OutboxHandle;
use crate::chat::{Attachment, Inbound, SendError};
use crate::job::{ConversationId, FileSource, InputFile};

/// Files of one prompt; more are left out. Chats send ten with a message.
pub(super) const MAX_FILES: usize = 20;

/// Longest file, in bytes. One is held in memory for each job that is being started.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;

/// Characters of a file's name.
const MAX_NAME: usize = 100;

/// The files of a message, under names that are harmless and differ.
pub(super) fn of(inbound: &Inbound, outbox: &OutboxHandle) -> Vec<InputFile> {
    let mut taken = BTreeSet::new();
    let file = |attachment: &Attachment| {
        let source = ChatFile {
            outbox: outbox.clone(),
            conversation: inbound.conversation.clone(),
            attachment: attachment.clone(),
        };
        InputFile { name: free_name(&attachment.name, &mut taken), source: Arc::new(source) }
    };
    inbound.files.iter().take(MAX_FILES).map(file).collect()
}

/// What the agent is told of them, after the message.
pub(super) fn mention(files: &[InputFile]) -> String {
    if files.is_empty() {
        return String::new();
    }
    let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
    format!("\n\n(Files that came with this message are in ~/input: {}.)", names.join(", "))
}

struct ChatFile {
    outbox: OutboxHandle,
    conversation: ConversationId,
    attachment: Attachment,
}

impl FileSource for ChatFile {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, String>> {
        async move {
            let limit = format!("it is longer than {} MiB", MAX_FILE_BYTES / 1024 / 1024);
            if self.attachment.size > MAX_FILE_BYTES {
                return Err(limit);
            }
            self.outbox.fetch(&self.conversation, &self.attachment, MAX_FILE_BYTES).await.map_err(|error| match error {
                SendError::RateLimited { .. } => "the chat is asked for too much at the moment".into(),
                SendError::Unreachable(why) | SendError::Ambiguous(why) | SendError::Refused(why) => why,
            })
        }
        .boxed()
    }
}

/// The last part of the name, with letters, digits, `.`, `_` and `-` only, no dot in front, and a number where another
/// file has the name already.
fn free_name(name: &str, taken: &mut BTreeSet<String>) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    let name: String = last.chars().map(plain).collect();
    let name = name.trim_start_matches(['.', '-']);
    // What is cut is the beginning, since the end says what kind of file it is.
    let name = &name[name.len().saturating_sub(MAX_NAME)..];
    let name = if name.is_empty() { "file" } else { name };
    let numbered = (2..).map(|number| format!("{number}-{name}"));
    let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !taken.contains(name));
    let free = free.expect("there is always a next number");
    taken.insert(free.clone());
    free
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_harmless_and_differ() {
        let mut taken = BTreeSet::new();
        for (given, used) in [
            ("notes.txt", "notes.txt"),
            ("notes.txt", "2-notes.txt"),
            ("../../etc/passwd", "passwd"),
            ("C:\\x\\a b.png", "a_b.png"),
            (".bashrc", "bashrc"),
            ("-rf", "rf"),
            ("", "file"),
            ("..", "2-file"),
            ("ä\u{0}\n.md", "___.md"),
        ] {
            assert_eq!(free_name(given, &mut taken), used);
        }
    }

    proptest! {
        #[test]
        fn no_name_leaves_the_folder(name in any::<String>()) {
            let name = free_name(&name, &mut BTreeSet::new());
            prop_assert!(!name.is_empty() && name.len() <= MAX_NAME + 4);
            prop_assert!(!name.starts_with(['.', '-']) && !name.contains('/'), "{}", name);
        }
    }
}
