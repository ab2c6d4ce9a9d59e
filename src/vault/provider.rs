//! What each provider's API is to the vault: its paths, and how a key is shown to it. Data: another provider that speaks
//! one of these dialects is another table.

use http::{HeaderName, Method, header};

/// Longest query that is passed on.
const MAX_QUERY: usize = 512;

/// One provider's API, as far as an agent needs it. What is not listed is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Provider {
    /// For logs and messages.
    pub name: &'static str,
    /// How the real key is sent.
    pub key: KeyForm,
    pub calls: &'static [Call],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// `Authorization: Bearer KEY`
    Bearer,
    /// `x-api-key: KEY`
    XApiKey,
}

impl KeyForm {
    pub fn header(self) -> HeaderName {
        match self {
            Self::Bearer => header::AUTHORIZATION,
            Self::XApiKey => HeaderName::from_static("x-api-key"),
        }
    }

    pub fn value(self, key: &str) -> String {
        match self {
            Self::Bearer => format!("Bearer {key}"),
            Self::XApiKey => key.to_owned(),
        }
    }
}

/// A method and path that a job may use.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    pub method: Method,
    pub path: &'static str,
    pub kind: Kind,
}

/// What the vault does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call of a model: counted as a turn, its answer streamed, its usage read from the answer.
    Model,
    /// Passed on and not counted.
    Plain,
    /// Answered here and told to nobody.
    Kept,
    /// Amp's remote calls: the method's name is checked.
    AmpRpc,
    /// Makes or opens an Amp thread: the answer names the thread, and the socket's credential.
    AmpThreads,
    /// The WebSocket of an Amp thread.
    AmpSocket,
}

const fn call(method: Method, path: &'static str, kind: Kind) -> Call {
    Call { method, path, kind }
}

/// The Anthropic API, and gateways that speak it.
pub static ANTHROPIC: Provider = Provider {
    name: "anthropic",
    key: KeyForm::XApiKey,
    calls: &[
        call(Method::POST, "/v1/messages", Kind::Model),
        call(Method::POST, "/v1/messages/count_tokens", Kind::Plain),
    ],
};

/// The Amp server.
pub static AMP: Provider = Provider {
    name: "amp",
    key: KeyForm::Bearer,
    calls: &[
        call(Method::POST, "/api/internal", Kind::AmpRpc),
        call(Method::POST, "/api/thread-actors", Kind::AmpThreads),
        call(Method::POST, "/api/telemetry", Kind::Kept),
        call(Method::GET, "/actors/gateway/threadActor/websocket/", Kind::AmpSocket),
    ],
};

/// APIs that are like OpenAI's. No profile uses it yet.
pub static OPENAI: Provider = Provider {
    name: "openai",
    key: KeyForm::Bearer,
    calls: &[
        call(Method::POST, "/v1/chat/completions", Kind::Model),
        call(Method::POST, "/v1/responses", Kind::Model),
        call(Method::GET, "/v1/models", Kind::Plain),
    ],
};

/// Why a request is not passed on. The text is for the log and for the agent; it repeats nothing of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this path is not one that a job may use")]
    Path,
    #[error("this query is not one that a job may use")]
    Query,
    #[error("the request names another host")]
    Host,
    #[error("the request's body is not what this call takes")]
    Body,
    #[error("this remote call reaches beyond a job")]
    Rpc,
    #[error("this thread is not the job's own")]
    Thread,
    #[error("a job runs its tools itself, and its thread is private")]
    ThreadKind,
    #[error("this WebSocket request is malformed")]
    Upgrade,
    #[error("the job has made as many threads as it may")]
    Threads,
}

impl Provider {
    /// The call that a request is for. Paths are compared as they are: nothing is decoded, so nothing can be hidden.
    ///
    /// # Errors
    /// When a job may not make it.
    pub fn call(&self, method: &Method, path: &str, query: Option<&str>) -> Result<&'static Call, Denied> {
        let call = self.calls.iter().find(|call| call.method == *method && call.path == path).ok_or(Denied::Path)?;
        let query = query.unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=&".contains(&byte);
        if query.len() > MAX_QUERY || !query.bytes().all(plain) {
            return Err(Denied::Query);
        }
        Ok(call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_calls_are_passed_on_and_no_spelling_of_a_path_gets_around_it() {
        let kind = |provider: &Provider, method: &Method, path, query| {
            provider.call(method, path, query).map(|call| call.kind)
        };
        assert_eq!(kind(&ANTHROPIC, &Method::POST, "/v1/messages", Some("beta=true")), Ok(Kind::Model));
        assert_eq!(kind(&AMP, &Method::POST, "/api/internal", Some("getUserInfo")), Ok(Kind::AmpRpc));
        assert_eq!(kind(&OPENAI, &Method::POST, "/v1/responses", None), Ok(Kind::Model));
        for path in [
            "/v1/messages/",
            "//v1/messages",
            "/v1/./messages",
            "/v1/x/../messages",
            "/v1/%6dessages",
            "/v1/messages%2f..",
            "/V1/messages",
            "/v1/organizations",
            "/v1/files",
            "/v1/messages/batches",
            "/api/internal",
            "*",
            "",
        ] {
            assert_eq!(kind(&ANTHROPIC, &Method::POST, path, None), Err(Denied::Path), "{path}");
        }
        assert_eq!(kind(&ANTHROPIC, &Method::GET, "/v1/messages", None), Err(Denied::Path));
        assert_eq!(kind(&ANTHROPIC, &Method::DELETE, "/v1/messages", None), Err(Denied::Path));
        for query in ["a=%0d%0aHost:x", "a=b#c", "a b", &"x".repeat(MAX_QUERY + 1)] {
            assert_eq!(kind(&ANTHROPIC, &Method::POST, "/v1/messages", Some(query)), Err(Denied::Query), "{query}");
        }
    }
}
