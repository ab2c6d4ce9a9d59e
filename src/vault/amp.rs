//! Which of Amp's calls a job may make, and what the vault reads in them. Pure.
//!
//! Measured with amp 0.0.1790142911: each HTTP call carries the key; the WebSocket carries none, but a `wsToken` in its
//! sub-protocol, which `POST /api/thread-actors` gave out for one thread. The job gets a `wsToken` of the vault's instead.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;

use super::provider::Denied;

/// Remote calls that the CLI makes in a run. The others reach the key owner's other threads, settings and secrets.
const RPCS: [&str; 7] = [
    "getUserInfo",
    "loadPlugins",
    "loadSkills",
    "getThreadTail",
    "getThreadProject",
    "addThreadLabels",
    "archiveThread",
];

/// The parameters of the WebSocket's query, and the value that each must have; the thread's varies, and so does the
/// publishable token of Amp's gateway, which is in the CLI and is sent to every host but localhost.
const SOCKET_QUERY: [(&str, Option<&str>); 5] = [
    ("rvt-namespace", Some("default")),
    ("rvt-method", Some("get")),
    ("rvt-key", None),
    ("rvt-token", None),
    ("rvt-skip-ready-wait", Some("true")),
];

const PARAMS: &str = "rivet_conn_params.";
/// A sub-protocol header that is longer is not the CLI's.
const MAX_PROTOCOLS: usize = 8 * 1024;
/// JSON that is nested deeper than this is not the CLI's.
const MAX_DEPTH: usize = 32;

/// What JavaScript's `encodeURIComponent` leaves as it is.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// Checks a remote call and gives the body to send: written anew, so that what was checked is what is sent, whatever
/// tricks the text played with doubled keys.
///
/// # Errors
/// When it is not one of a run's, or names a thread that `is_own` does not know.
pub fn rpc(query: Option<&str>, body: &[u8], is_own: impl Fn(&str) -> bool) -> Result<Vec<u8>, Denied> {
    let body = object(body)?;
    let method = body.get("method").and_then(Value::as_str).ok_or(Denied::Body)?;
    if query != Some(method) || !RPCS.contains(&method) {
        return Err(Denied::Rpc);
    }
    own_threads_only(&body, &is_own)?;
    Ok(body.to_string().into_bytes())
}

/// Checks a call that makes or opens a thread; gives the body to send, and whether it makes one.
///
/// # Errors
/// When the thread would not be a private one of this job, run here.
pub fn threads(body: &[u8], is_own: impl Fn(&str) -> bool) -> Result<(Vec<u8>, bool), Denied> {
    let body = object(body)?;
    own_threads_only(&body, &is_own)?;
    let is_new = match body.get("threadId") {
        None | Some(Value::Null) => true,
        Some(Value::String(thread)) if is_own(thread) => false,
        Some(Value::String(_)) => return Err(Denied::Thread),
        Some(_) => return Err(Denied::Body),
    };
    let says = |value: Option<&Value>, right: &str| value.is_none_or(|value| value.is_null() || value == right);
    let meta = body.get("threadMeta");
    let here = says(body.get("executorType"), "local-client");
    let private = says(meta.and_then(|meta| meta.get("visibility")), "private");
    let shared = meta.and_then(|meta| meta.get("sharedGroupIDs")).and_then(Value::as_array);
    if !here || !private || shared.is_some_and(|groups| !groups.is_empty()) {
        return Err(Denied::ThreadKind);
    }
    Ok((body.to_string().into_bytes(), is_new))
}

/// What the answer to a call of [`threads`] gave out.
pub struct Opened {
    pub thread: String,
    pub socket_token: String,
    answer: Value,
}

impl Opened {
    /// `None` for an answer that gives nothing out.
    pub fn read(body: &[u8]) -> Option<Self> {
        let answer = object(body).ok()?;
        let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        let (thread, socket_token) = (text("threadId")?, text("wsToken")?);
        is_thread(&thread).then_some(Self { thread, socket_token, answer })
    }

    /// The answer with another socket token in it.
    pub fn with_token(mut self, token: &str) -> Vec<u8> {
        self.answer["wsToken"] = token.into();
        self.answer.to_string().into_bytes()
    }
}

/// A request for a thread's WebSocket.
#[derive(Clone, PartialEq, Eq)]
pub struct Socket {
    pub thread: String,
    pub token: String,
    /// The sub-protocols before and after the one with the token.
    protocols: (Vec<String>, Vec<String>),
    params: Value,
}

impl std::fmt::Debug for Socket {
    /// Leaves out the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Socket {
    /// Reads query and sub-protocols.
    ///
    /// # Errors
    /// When they are not the CLI's.
    pub fn read(query: Option<&str>, protocols: &str) -> Result<Self, Denied> {
        let mut thread = None;
        let mut seen = Vec::new();
        for pair in query.unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').ok_or(Denied::Query)?;
            let known = SOCKET_QUERY.iter().find(|(known, _)| *known == name).ok_or(Denied::Query)?;
            if seen.contains(&name) || known.1.is_some_and(|right| right != value) {
                return Err(Denied::Query);
            }
            seen.push(name);
            if name == "rvt-key" {
                thread = Some(value).filter(|value| is_thread(value));
            }
        }
        let thread = thread.ok_or(Denied::Query)?.to_owned();
        if protocols.len() > MAX_PROTOCOLS {
            return Err(Denied::Upgrade);
        }
        let all: Vec<&str> = protocols.split(',').map(str::trim).collect();
        let mut with_params = all.iter().enumerate().filter(|(_, protocol)| protocol.starts_with(PARAMS));
        let (at, protocol) = with_params.next().ok_or(Denied::Upgrade)?;
        if with_params.next().is_some() {
            return Err(Denied::Upgrade);
        }
        let text = percent_decode_str(&protocol[PARAMS.len()..]).decode_utf8().map_err(|_| Denied::Upgrade)?;
        let params = object(text.as_bytes()).map_err(|_| Denied::Upgrade)?;
        let token = params.get("wsToken").and_then(Value::as_str).ok_or(Denied::Upgrade)?.to_owned();
        let texts = |part: &[&str]| part.iter().map(|text| (*text).to_owned()).collect();
        Ok(Self { thread, token, protocols: (texts(&all[..at]), texts(&all[at + 1..])), params })
    }

    /// The sub-protocols with another token.
    pub fn with_token(mut self, token: &str) -> String {
        self.params["wsToken"] = token.into();
        let text = self.params.to_string();
        let params = format!("{PARAMS}{}", utf8_percent_encode(&text, COMPONENT));
        let (mut all, after) = self.protocols;
        all.push(params);
        all.extend(after);
        all.join(", ")
    }
}

fn object(text: &[u8]) -> Result<Value, Denied> {
    let value: Value = serde_json::from_slice(text).map_err(|_| Denied::Body)?;
    if value.is_object() { Ok(value) } else { Err(Denied::Body) }
}

/// `T-` and a UUID.
fn is_thread(text: &str) -> bool {
    let id = text.strip_prefix("T-").unwrap_or_default();
    id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Whatever a call names, no thread may be another's.
fn own_threads_only(value: &Value, is_own: &impl Fn(&str) -> bool) -> Result<(), Denied> {
    fn look(value: &Value, depth: usize, is_own: &impl Fn(&str) -> bool) -> Result<(), Denied> {
        if depth > MAX_DEPTH {
            return Err(Denied::Body);
        }
        match value {
            Value::String(text) => named(text).iter().all(|thread| is_own(thread)).then_some(()).ok_or(Denied::Thread),
            Value::Array(items) => items.iter().try_for_each(|item| look(item, depth + 1, is_own)),
            Value::Object(entries) => entries.iter().try_for_each(|(name, item)| {
                let own = named(name).iter().all(|thread| is_own(thread));
                if own { look(item, depth + 1, is_own) } else { Err(Denied::Thread) }
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }
    look(value, 0, is_own)
}

/// The thread ids in a text, as in a URL of a thread.
fn named(text: &str) -> Vec<&str> {
    let starts = text.match_indices("T-").map(|(at, _)| at);
    starts.filter_map(|at| text.get(at..at + 38)).filter(|id| is_thread(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "T-00000000-0000-4000-8000-000000000001";
    const OTHER: &str = "T-00000000-0000-4000-8000-000000000002";

    fn own(thread: &str) -> bool {
        thread == OWN
    }

    #[test]
    fn a_remote_call_is_passed_on_when_query_and_body_name_the_same_harmless_method() {
        let sent = rpc(Some("getUserInfo"), br#"{"method":"getUserInfo","params":{}}"#, own).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap()["method"], "getUserInfo");
        for (query, body, why) in [
            (Some("getUserInfo"), r#"{"method":"deleteThread","params":{}}"#, Denied::Rpc),
            (Some("deleteThread"), r#"{"method":"deleteThread","params":{}}"#, Denied::Rpc),
            (Some("listThreads"), r#"{"method":"listThreads"}"#, Denied::Rpc),
            (None, r#"{"method":"getUserInfo"}"#, Denied::Rpc),
            (Some("getUserInfo&x=1"), r#"{"method":"getUserInfo"}"#, Denied::Rpc),
            (Some("getUserInfo"), r#"{"method":["getUserInfo"]}"#, Denied::Body),
            (Some("getUserInfo"), "[]", Denied::Body),
            (Some("getUserInfo"), "nonsense", Denied::Body),
            (Some("getUserInfo"), "", Denied::Body),
        ] {
            assert_eq!(rpc(query, body.as_bytes(), own), Err(why), "{query:?} {body}");
        }
    }

    #[test]
    fn a_doubled_key_is_sent_as_it_was_checked() {
        let twice = br#"{"method":"getUserInfo","method":"deleteThread"}"#;
        assert_eq!(rpc(Some("getUserInfo"), twice, own), Err(Denied::Rpc));
        let sent = rpc(Some("getUserInfo"), br#"{"method":"deleteThread","method":"getUserInfo"}"#, own).unwrap();
        assert_eq!(sent, br#"{"method":"getUserInfo"}"#);
    }

    #[test]
    fn no_call_names_another_jobs_thread_anywhere() {
        let call = |params: String| {
            rpc(Some("getThreadTail"), format!(r#"{{"method":"getThreadTail","params":{params}}}"#).as_bytes(), own)
        };
        assert!(call(format!(r#"{{"thread":"{OWN}"}}"#)).is_ok());
        for params in [
            format!(r#"{{"thread":"{OTHER}"}}"#),
            format!(r#"{{"thread":"{OWN}","also":[{{"x":"https://ampcode.com/threads/{OTHER}"}}]}}"#),
            format!(r#"{{"{OTHER}":1}}"#),
            format!(r#""{OTHER}""#),
        ] {
            assert_eq!(call(params.clone()), Err(Denied::Thread), "{params}");
        }
        assert_eq!(call("[".repeat(100) + &"]".repeat(100)), Err(Denied::Body));
    }

    #[test]
    fn a_thread_is_new_or_the_jobs_own_and_always_private_and_run_here() {
        let ask = |body: &str| threads(body.as_bytes(), own).map(|(_, is_new)| is_new);
        let new = r#"{"executorType":"local-client","threadMeta":{"visibility":"private","sharedGroupIDs":[]}}"#;
        assert_eq!(ask(new), Ok(true));
        assert_eq!(ask(&format!(r#"{{"threadId":"{OWN}"}}"#)), Ok(false));
        assert_eq!(ask(&format!(r#"{{"threadId":"{OTHER}"}}"#)), Err(Denied::Thread));
        assert_eq!(ask(r#"{"threadId":"T-odd"}"#), Err(Denied::Thread));
        assert_eq!(ask(r#"{"threadId":7}"#), Err(Denied::Body));
        assert_eq!(ask(r#"{"executorType":"orb"}"#), Err(Denied::ThreadKind));
        assert_eq!(ask(r#"{"threadMeta":{"visibility":"public_unlisted"}}"#), Err(Denied::ThreadKind));
        assert_eq!(ask(r#"{"threadMeta":{"sharedGroupIDs":["g"]}}"#), Err(Denied::ThreadKind));
    }

    #[test]
    fn the_job_gets_another_socket_token_than_the_server_gave_out() {
        let answer = format!(r#"{{"threadId":"{OWN}","wsToken":"real","poolName":"p"}}"#);
        let opened = Opened::read(answer.as_bytes()).unwrap();
        assert_eq!((opened.thread.as_str(), opened.socket_token.as_str()), (OWN, "real"));
        let text = String::from_utf8(opened.with_token("ours")).unwrap();
        assert!(text.contains("ours") && !text.contains("real") && text.contains("poolName"));
        for other in ["{}", r#"{"threadId":"T-odd","wsToken":"x"}"#, "garbage", r#"{"error":"no"}"#] {
            assert!(Opened::read(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn a_sockets_token_is_found_in_its_sub_protocol_and_replaced_there() {
        let query = format!("rvt-namespace=default&rvt-method=get&rvt-key={OWN}&rvt-skip-ready-wait=true");
        let params = r#"{"wsToken":"ours","clientApplication":{"name":"CLI ä"},"transport":"json-rpc"}"#;
        let protocols = format!("rivet, rivet_encoding.bare, {PARAMS}{}, last", utf8_percent_encode(params, COMPONENT));
        let elsewhere = Socket::read(Some(&format!("{query}&rvt-token=pk_Ab9")), &protocols);
        assert_eq!(elsewhere.unwrap().thread, OWN, "the CLI sends this to every host but localhost");
        let socket = Socket::read(Some(&query), &protocols).unwrap();
        assert_eq!((socket.thread.as_str(), socket.token.as_str()), (OWN, "ours"));
        let sent = socket.with_token("real");
        let again = Socket::read(Some(&query), &sent).unwrap();
        assert_eq!(again.token, "real");
        assert_eq!(again.params["clientApplication"]["name"], "CLI ä");
        assert!(sent.starts_with("rivet, rivet_encoding.bare, rivet_conn_params.") && sent.ends_with(", last"));
        for (query, protocols, why) in [
            ("rvt-key=T-odd", protocols.as_str(), Denied::Query),
            ("", &protocols, Denied::Query),
            (&format!("{query}&rvt-key={OTHER}"), &protocols, Denied::Query),
            (&format!("{query}&more=1"), &protocols, Denied::Query),
            (&query.replace("default", "other"), &protocols, Denied::Query),
            (&query, "rivet", Denied::Upgrade),
            (&query, &format!("{PARAMS}%7B%7D"), Denied::Upgrade),
            (&query, &format!("{PARAMS}%FF"), Denied::Upgrade),
            (&query, &format!("{protocols}, {PARAMS}%7B%22wsToken%22%3A%22x%22%7D"), Denied::Upgrade),
            (&query, &"x".repeat(MAX_PROTOCOLS + 1), Denied::Upgrade),
        ] {
            assert_eq!(Socket::read(Some(query), protocols), Err(why), "{query} {protocols}");
        }
    }
}
