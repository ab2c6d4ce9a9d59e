//! The methods that are called, and what each needs. deploy/slack-manifest.yaml is tested against this list.

/// Defines the methods: name at Slack, whether it takes JSON, and the scopes of which the token needs all.
macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $json:literal, [$($scope:literal),*];)*) => {
        /// A method of the Web API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Method { $($(#[$doc])* $variant,)* }
        impl Method {
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
            /// Others ignore a JSON body without a word.
            pub fn takes_json(self) -> bool { match self { $(Self::$variant => $json,)* } }
            /// The bot's scopes that it needs.
            pub fn scopes(self) -> &'static [&'static str] { match self { $(Self::$variant => &[$($scope),*],)* } }
        }
    };
}

methods! {
    AuthTest = "auth.test", true, [];
    /// With the app-level token, whose scope is `connections:write`.
    ConnectionsOpen = "apps.connections.open", true, [];
    PostMessage = "chat.postMessage", true, ["chat:write"];
    PostEphemeral = "chat.postEphemeral", true, ["chat:write"];
    Update = "chat.update", true, ["chat:write"];
    Delete = "chat.delete", true, ["chat:write"];
    ReactionsAdd = "reactions.add", true, ["reactions:write"];
    ReactionsRemove = "reactions.remove", true, ["reactions:write"];
    Replies = "conversations.replies", false, ["channels:history", "groups:history", "im:history", "mpim:history"];
    UserInfo = "users.info", false, ["users:read"];
    UploadUrl = "files.getUploadURLExternal", false, ["files:write"];
    UploadDone = "files.completeUploadExternal", true, ["files:write"];
    FileInfo = "files.info", false, ["files:read"];
    /// What Slack shows beside Jane's name while she works.
    ThreadStatus = "assistant.threads.setStatus", true, ["chat:write"];
    SuggestedPrompts = "assistant.threads.setSuggestedPrompts", true, ["assistant:write"];
    SessionStatus = "agents.sessions.setStatus", true, ["chat:write"];
}

/// Scopes that are needed for events and features, not for a method: mentions, reactions as a way to stop, the slash
/// command and the shortcut.
pub const EVENT_SCOPES: &[&str] = &["app_mentions:read", "reactions:read", "commands"];

impl Method {
    /// Every scope that the bot's token needs, sorted.
    pub fn all_scopes() -> Vec<&'static str> {
        let mut all: Vec<_> =
            Self::ALL.iter().flat_map(|method| method.scopes()).chain(EVENT_SCOPES).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
