//! Who we are and what we may, as Discord says it: asked at the start, before anything is listened to.

use twilight_http::routing::Route;

use super::rest::{Rest, RestError};
use super::wire::{Application, GatewayBot, User};

/// Flags of an application that may read messages: granted, or as one of few servers.
const MAY_READ: u64 = (1 << 18) | (1 << 19);

#[derive(Clone, Debug, PartialEq)]
pub struct Basics {
    pub me: User,
    pub application: Application,
    pub gateway: GatewayBot,
}

impl Basics {
    /// # Errors
    /// As the requests.
    pub async fn ask(rest: &Rest) -> Result<Self, RestError> {
        let me = rest.get(&Route::GetCurrentUser).await?;
        let application = rest.get(&Route::GetCurrentUserApplicationInfo).await?;
        let gateway = rest.get(&Route::GetGatewayBot).await?;
        Ok(Self { me, application, gateway })
    }

    /// Whether Discord gives the text of messages that do not mention us.
    pub fn may_read(&self) -> bool {
        self.application.flags & MAY_READ != 0
    }

    /// Where somebody who manages a server lets us in, with exactly what we need.
    pub fn invite(&self) -> String {
        format!(
            "https://discord.com/oauth2/authorize?client_id={}&scope=bot+applications.commands&permissions={}",
            self.application.id,
            super::permissions::NEEDED_BITS
        )
    }
}
