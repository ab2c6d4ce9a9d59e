//! Reading a thread, page by page to its end.

use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Api, ApiError, Method};
use super::event::Me;

/// Messages asked for in one request. Apps that Slack allows fewer get fewer, and another page.
const PAGE: usize = 200;

/// More than a thread has that people still follow.
const MAX_PAGES: usize = 50;

/// A message of a thread, as far as it is used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Message {
    pub ts: String,
    user: Option<String>,
    bot_id: Option<String>,
    text: String,
    attachments: Vec<Value>,
    blocks: Vec<Value>,
    pub files: Vec<File>,
    metadata: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct File {
    pub id: String,
    name: String,
}

impl Message {
    /// By the user id alone: a name can be anybody's.
    pub fn is_by(&self, me: &Me) -> bool {
        self.user.as_deref() == Some(&me.user)
    }

    /// The outbox's key, if it has one.
    pub fn key(&self) -> Option<&str> {
        let metadata = self.metadata.as_ref()?;
        let is_ours = metadata.get("event_type").and_then(Value::as_str) == Some(super::speech::EVENT_TYPE);
        metadata.pointer("/event_payload/key").and_then(Value::as_str).filter(|_| is_ours)
    }

    pub fn author(&self) -> &str {
        self.user.as_deref().or(self.bot_id.as_deref()).unwrap_or("unknown")
    }

    /// What it says, wherever it stands: programs that raise alarms leave the text empty and use attachments or blocks.
    pub fn whole_text(&self) -> String {
        let mut parts = vec![self.text.clone()];
        if self.text.is_empty() {
            parts.extend(self.blocks.iter().filter_map(|block| block.pointer("/text/text")).filter_map(text));
        }
        for attachment in &self.attachments {
            let fields = ["pretext", "title", "text"].iter().filter_map(|name| attachment.get(*name)).filter_map(text);
            let fields: Vec<_> = fields.filter(|text| !text.is_empty()).collect();
            match fields.is_empty() {
                true => parts.extend(attachment.get("fallback").and_then(text)),
                false => parts.extend(fields),
            }
        }
        parts.extend(self.files.iter().map(|file| format!("[file: {}]", file.name)));
        parts.retain(|part| !part.is_empty());
        parts.join("\n")
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

pub struct Thread<'a> {
    api: &'a Api,
    channel: &'a str,
    ts: &'a str,
    cursor: Option<String>,
    pages: usize,
    is_done: bool,
}

impl<'a> Thread<'a> {
    pub fn new(api: &'a Api, channel: &'a str, ts: &'a str) -> Self {
        Self { api, channel, ts, cursor: None, pages: 0, is_done: false }
    }

    /// The next messages, oldest first; `None` at the end.
    ///
    /// # Errors
    /// As [`Api::call`].
    pub async fn next(&mut self) -> Result<Option<Vec<Message>>, ApiError> {
        if self.is_done || self.pages == MAX_PAGES {
            return Ok(None);
        }
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            messages: Vec<Message>,
            #[serde(default)]
            response_metadata: Cursor,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Cursor {
            next_cursor: String,
        }
        let args = json!({
            "channel": self.channel,
            "ts": self.ts,
            "limit": PAGE,
            "cursor": self.cursor,
            "include_all_metadata": true,
        });
        let page: Page = self.api.call(Method::Replies, &args).await?;
        self.pages += 1;
        self.is_done = page.response_metadata.next_cursor.is_empty();
        self.cursor = Some(page.response_metadata.next_cursor);
        Ok(Some(page.messages))
    }
}
