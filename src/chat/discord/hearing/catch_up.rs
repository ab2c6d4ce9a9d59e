//! What was written while nobody listened: fetched, channel by channel, from the last message that was seen.

use std::time::Duration;

use twilight_http::routing::Route;

use super::Hearing;
use crate::chat::discord::wire::{ChannelNo, GuildNo, Message, MessageNo};

/// Messages that are older are not answered any more: whoever wrote them has long asked again.
const MAX_AGE: Duration = Duration::from_secs(6 * 60 * 60);

const PAGE: u16 = 100;
/// Pages that are fetched of one channel. More was written only where people talk to each other.
const MAX_PAGES: usize = 5;

/// The first moment of Discord's time, in milliseconds of the common one; a message's number has its time above bit 22.
const EPOCH_MS: u64 = 1_420_070_400_000;

impl Hearing {
    /// Fetches what was written since in every channel that is followed.
    pub(super) async fn catch_up(&mut self) {
        let seen = self.inquiry.course.seen();
        if seen.is_empty() {
            return;
        }
        tracing::info!(channels = seen.len(), "a new session began: fetching what was written before it");
        for (channel, seen) in seen {
            self.fetch(channel, seen.guild, seen.last).await;
        }
    }

    /// Hears what was written in a channel after a message.
    pub(super) async fn fetch(&mut self, channel: ChannelNo, guild: Option<GuildNo>, mut after: MessageNo) {
        after = after.max(self.oldest());
        for _ in 0..MAX_PAGES {
            let route = Route::GetMessages {
                channel_id: channel.get(),
                after: Some(after.get()),
                around: None,
                before: None,
                limit: Some(PAGE),
            };
            let mut page: Vec<Message> = match self.inquiry.shared.rest.get(&route).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%channel, %error, "what was written meanwhile can't be fetched");
                    if matches!(error.code(), 10003 | 50001) {
                        self.inquiry.course.forget(channel);
                    }
                    return;
                }
            };
            // Newest first.
            page.sort_by_key(|message| message.id);
            let is_last = page.len() < usize::from(PAGE);
            for mut message in page {
                after = message.id;
                message.guild_id = guild;
                self.inquiry.course.see(channel, guild, message.id, false);
                self.written(None, message).await;
            }
            if is_last {
                return;
            }
        }
    }

    fn oldest(&self) -> MessageNo {
        let now = u64::try_from(self.inquiry.front.world.now().as_millisecond()).unwrap_or(EPOCH_MS);
        let then = now.saturating_sub(MAX_AGE.as_secs() * 1000).saturating_sub(EPOCH_MS);
        MessageNo::new_checked(then << 22).unwrap_or(MessageNo::new(1))
    }
}
