//! Jane's side of the talk: what the outbox has sent, as calls of the Web API.
//!
//! A message bears the outbox's key in its metadata, so that it can be found again after an answer that was lost. Files
//! bear none; for them the file's id is kept before they are shown.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::api::{Api, ApiError, Method, who_is};
use super::event::Me;
use super::thread::{Message, Thread};
use super::{render, words};
use crate::chat::adapter::Keep;
use crate::chat::{Attachment, Button, Capabilities, Chat, Said, SendError, Sent, message_of};
use crate::job::{ConversationId, RequesterId};
use crate::journal::outgoing::Mark;

/// Names our messages' metadata.
pub const EVENT_TYPE: &str = "janebot";

/// Slack forgets the status after two minutes.
const TYPING_EVERY: Duration = Duration::from_secs(50);

/// What Slack shows beside Jane's name.
const STATUS: &str = "is working…";

/// Jane's voice. Clones are the same one.
#[derive(Clone)]
pub struct Speech(Arc<Inner>);

struct Inner {
    api: Arc<Api>,
    /// Known once Slack has said it.
    me: OnceLock<Me>,
    /// Known once the service has started.
    keep: OnceLock<Keep>,
    /// Cancelled once Slack says that this app is no agent, which has no sessions.
    no_sessions: CancellationToken,
}

/// Where a message goes: `slack:<team>/<channel>/<ts>`, of which the team is the one of the token.
struct Place<'a> {
    channel: &'a str,
    ts: &'a str,
}

fn place(id: &str) -> Result<Place<'_>, SendError> {
    let mut parts = id.rsplit('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(ts), Some(channel), Some(_)) => Ok(Place { channel, ts }),
        _ => Err(SendError::Refused(format!("{id} is no place in Slack"))),
    }
}

impl Speech {
    pub fn new(api: Arc<Api>) -> Self {
        let inner = Inner { api, me: OnceLock::new(), keep: OnceLock::new(), no_sessions: CancellationToken::new() };
        Self(Arc::new(inner))
    }

    /// Who Jane is, as Slack says.
    pub fn introduce(&self, me: &Me) {
        // It is the same every time: a token has one bot.
        let _ = self.0.me.set(me.clone());
    }

    pub fn keep_in(&self, keep: Keep) {
        // The service starts once.
        let _ = self.0.keep.set(keep);
    }

    /// Who Jane is; asked here where the adapter does not know it yet.
    async fn me(&self) -> Sent<&Me> {
        if self.0.me.get().is_none() {
            let answer: Value = self.api().call(Method::AuthTest, &Value::Null).await?;
            self.introduce(&who_is(&answer)?);
        }
        self.0.me.get().ok_or_else(|| SendError::Unreachable("Slack has not said yet who we are".into()))
    }

    fn keep(&self) -> Sent<&Keep> {
        self.0.keep.get().ok_or_else(|| SendError::Unreachable("the service has not started yet".into()))
    }

    fn api(&self) -> &Api {
        &self.0.api
    }

    /// Tells Slack how it stands with the session of this conversation, for its own Stop button.
    async fn session(&self, place: &Place<'_>, status: &str) -> Result<(), ApiError> {
        if self.0.no_sessions.is_cancelled() {
            return Ok(());
        }
        let args = json!({ "channel_id": place.channel, "thread_ts": place.ts, "status": status });
        match self.api().call::<Value>(Method::SessionStatus, &args).await {
            Err(error)
                if matches!(
                    error.word(),
                    "feature_disabled" | "not_agent_app" | "unknown_method" | "missing_scope"
                ) =>
            {
                tracing::info!(%error, "there will be no Stop button of Slack's own; Jane's is there");
                self.0.no_sessions.cancel();
                Ok(())
            }
            done => done.map(|_| ()),
        }
    }

    async fn read(&self, place: &Place<'_>) -> Result<Vec<Message>, ApiError> {
        let mut thread = Thread::new(self.api(), place.channel, place.ts);
        let mut all = Vec::new();
        while let Some(page) = thread.next().await? {
            all.extend(page);
        }
        Ok(all)
    }
}

#[derive(Deserialize)]
struct Posted {
    ts: String,
}

impl Chat for Speech {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            edit: true,
            react: true,
            upload: true,
            max_message_chars: render::MAX_MARKDOWN,
            typing_every: Some(TYPING_EVERY),
        }
    }

    async fn post(&self, to: &ConversationId, key: &str, text: &str, buttons: &[Button]) -> Sent<String> {
        let place = place(to.as_str())?;
        let sections = render::sections(text);
        let args = json!({
            "channel": place.channel,
            "thread_ts": place.ts,
            "text": sections[0],
            "blocks": render::blocks(&sections, buttons),
            "metadata": { "event_type": EVENT_TYPE, "event_payload": { "key": key } },
            "unfurl_links": false,
            "unfurl_media": false,
        });
        let Posted { ts } = self.api().call(Method::PostMessage, &args).await?;
        Ok(ts)
    }

    async fn edit(&self, to: &ConversationId, message: &str, text: &str, buttons: &[Button]) -> Sent<()> {
        let place = place(to.as_str())?;
        // What has buttons goes on, and will be edited again.
        if !buttons.is_empty() {
            self.api().may_edit_in_passing()?;
        }
        let sections = render::sections(text);
        let args = json!({
            "channel": place.channel,
            "ts": message,
            "text": sections[0],
            "blocks": render::blocks(&sections, buttons),
            "parse": "none",
        });
        self.api().call::<Value>(Method::Update, &args).await?;
        Ok(())
    }

    async fn react(&self, to: &ConversationId, message_key: &str, mark: Mark, shown: bool) -> Sent<()> {
        let place = place(message_of(message_key))?;
        let args = json!({ "channel": place.channel, "timestamp": place.ts, "name": emoji(mark) });
        let method = if shown { Method::ReactionsAdd } else { Method::ReactionsRemove };
        if shown && mark != Mark::Heard {
            // The job is over. Lost, Slack's button stays for a while and does nothing.
            let (speech, to) = (self.clone(), to.clone());
            tokio::spawn(async move {
                if let Ok(place) = self::place(to.as_str())
                    && let Err(error) = speech.session(&place, "active").await
                {
                    tracing::debug!(%error, "the end of a session was not told");
                }
            });
        }
        match self.api().call::<Value>(method, &args).await {
            Err(error) if matches!(error.word(), "already_reacted" | "no_reaction") => Ok(()),
            done => Ok(done.map(|_| ())?),
        }
    }

    async fn upload(&self, to: &ConversationId, key: &str, name: &str, bytes: Bytes) -> Sent<String> {
        let place = place(to.as_str())?;
        if bytes.is_empty() {
            return Err(SendError::Refused("Slack takes no empty files".into()));
        }
        #[derive(Deserialize)]
        struct Slot {
            upload_url: String,
            file_id: String,
        }
        // A path below the agent's folder; Slack wants a name.
        let name = name.rsplit('/').next().unwrap_or(name);
        let args = json!({ "filename": name, "length": bytes.len() });
        // Until the last step nobody sees anything, so what is not confirmed before is as good as not done.
        let unseen = |error: ApiError| match SendError::from(error) {
            SendError::Ambiguous(why) => SendError::Unreachable(why),
            error => error,
        };
        let Slot { upload_url, file_id } = self.api().call(Method::UploadUrl, &args).await.map_err(unseen)?;
        self.api().put(&upload_url, bytes).await.map_err(unseen)?;
        let noted = self.keep()?.put(&upload_name(key), &file_id).await;
        noted.map_err(|error| SendError::Unreachable(error.to_string()))?;
        let args = json!({
            "files": [{ "id": file_id, "title": name }],
            "channel_id": place.channel,
            "thread_ts": place.ts,
        });
        self.api().call::<Value>(Method::UploadDone, &args).await?;
        self.forget_upload(key).await;
        Ok(file_id)
    }

    async fn find(&self, to: &ConversationId, key: &str) -> Sent<Option<String>> {
        let place = place(to.as_str())?;
        let me = self.me().await?;
        let kept = self.keep()?.get(&upload_name(key)).await;
        let file = kept.map_err(|error| SendError::Unreachable(error.to_string()))?;
        let messages = self.read(&place).await?;
        let own = messages.iter().filter(|message| message.is_by(me));
        if let Some(file) = file {
            let is_there = own.into_iter().any(|message| message.files.iter().any(|other| other.id == file));
            if is_there {
                self.forget_upload(key).await;
            }
            return Ok(is_there.then_some(file));
        }
        Ok(own.into_iter().find(|message| message.key() == Some(key)).map(|message| message.ts.clone()))
    }

    async fn typing(&self, to: &ConversationId) -> Sent<()> {
        let place = place(to.as_str())?;
        let args = json!({ "channel_id": place.channel, "thread_ts": place.ts, "status": STATUS });
        let status = self.api().call::<Value>(Method::ThreadStatus, &args);
        let (status, session) = tokio::join!(status, self.session(&place, "processing"));
        status?;
        Ok(session?)
    }

    async fn fetch(&self, file: &Attachment, limit: u64) -> Sent<Bytes> {
        let url = match file.url.strip_prefix(HELD_BACK) {
            None => file.url.clone(),
            Some(id) => {
                let answer: Value = self.api().call(Method::FileInfo, &json!({ "file": id })).await?;
                let url = answer.pointer("/file/url_private").and_then(Value::as_str);
                url.ok_or_else(|| SendError::Refused("Slack does not give the file".into()))?.to_owned()
            }
        };
        Ok(self.api().get(&url, limit).await?)
    }

    async fn history(&self, to: &ConversationId, before: &str, budget: usize) -> Sent<Option<Vec<Said>>> {
        let (thread, message) = (place(to.as_str())?, place(message_of(before))?);
        if thread.ts == message.ts {
            // It begins the conversation.
            return Ok(Some(Vec::new()));
        }
        let me = self.me().await?;
        match self.read(&thread).await {
            Ok(messages) => {
                let earlier = messages.into_iter().filter(|other| other.ts.as_str() < message.ts).collect();
                Ok(Some(within(turns(earlier, me), budget)))
            }
            // Apps that are sold outside of Slack's marketplace may read once a minute; the journal has what Jane needs.
            Err(error @ ApiError::RateLimited { .. }) => {
                tracing::debug!(%error, "the thread is not read");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Begins the address of a file that has to be asked for.
pub const HELD_BACK: &str = "slack-file:";

impl Speech {
    async fn forget_upload(&self, key: &str) {
        if let Ok(keep) = self.keep()
            && let Err(error) = keep.remove(&upload_name(key)).await
        {
            tracing::debug!(%error, "a note about a file stays in the journal");
        }
    }
}

fn upload_name(key: &str) -> String {
    format!("upload/{key}")
}

fn emoji(mark: Mark) -> &'static str {
    match mark {
        Mark::Heard => "eyes",
        Mark::Answered => "white_check_mark",
        Mark::Failed => "x",
        Mark::Cancelled => "octagonal_sign",
        Mark::Merged => "leftwards_arrow_with_hook",
    }
}

/// The messages as turns of the talk; Jane's are known by her user id alone, and what she said in passing is left out.
fn turns(messages: Vec<Message>, me: &Me) -> Vec<Said> {
    let turn = |message: Message| {
        let is_own = message.is_by(me);
        if is_own && message.key().is_some_and(|key| key.ends_with("/progress")) {
            return None;
        }
        let from = (!is_own).then(|| RequesterId::new(format!("slack:{}", message.author())));
        let text = words::of_person(&message.whole_text(), &me.user).text;
        (!text.is_empty()).then_some(Said { from, text })
    };
    messages.into_iter().filter_map(turn).collect()
}

/// The first, which says what it is about, and of the others the newest that fit.
fn within(mut turns: Vec<Said>, budget: usize) -> Vec<Said> {
    if turns.is_empty() {
        return turns;
    }
    let rest = turns.split_off(1);
    let mut used = turns[0].text.len();
    let mut kept: Vec<_> = rest
        .into_iter()
        .rev()
        .take_while(|turn| {
            used += turn.text.len();
            used <= budget
        })
        .collect();
    kept.reverse();
    turns.extend(kept);
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        Said { from: None, text: text.into() }
    }

    #[test]
    fn of_a_long_thread_the_first_and_the_newest_are_kept() {
        let all = ["root", "one", "two", "three"].map(said).to_vec();
        let texts = |budget| within(all.clone(), budget).into_iter().map(|turn| turn.text).collect::<Vec<_>>();
        assert_eq!(texts(100), ["root", "one", "two", "three"]);
        assert_eq!(texts(12), ["root", "two", "three"]);
        assert_eq!(texts(4), ["root"]);
        assert!(within(Vec::new(), 9).is_empty());
    }

    #[test]
    fn turns_are_whose_they_are() {
        let me = Me { team: "T1".into(), user: "UJANE".into(), bot: "BJANE".into() };
        let messages: Vec<Message> = serde_json::from_value(json!([
            { "ts": "1", "user": "U1", "text": "<@UJANE> a &lt; b" },
            { "ts": "2", "user": "UJANE", "bot_id": "BJANE", "text": "working",
              "metadata": { "event_type": EVENT_TYPE, "event_payload": { "key": "01job/progress" } } },
            { "ts": "3", "user": "UJANE", "bot_id": "BJANE", "text": "42" },
            { "ts": "4", "bot_id": "BX", "username": "janebot", "attachments": [{ "fallback": "disk full" }] },
        ]))
        .unwrap();
        let turns: Vec<_> = turns(messages, &me)
            .into_iter()
            .map(|turn| (turn.from.map(|from| from.as_str().to_owned()), turn.text))
            .collect();
        let by = |who: &str| Some(who.to_owned());
        assert_eq!(
            turns,
            [(by("slack:U1"), "a < b".into()), (None, "42".to_owned()), (by("slack:BX"), "disk full".into()),]
        );
    }
}
