//! The Web API, with the refusals of the real one.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::delivery::link;
use super::state::{Fault, File, Message, State};
use super::{APP_TOKEN, BOT, FakeSlack, JANE, TEAM};

/// Below which Slack takes all blocks of a message together.
const MAX_BLOCKS_CHARS: usize = 13_200;

/// Methods, the arguments that they take, and whether they take JSON.
const METHODS: &[(&str, &[&str], bool)] = &[
    ("auth.test", &[], true),
    ("apps.connections.open", &[], true),
    (
        "chat.postMessage",
        &["channel", "thread_ts", "text", "blocks", "metadata", "unfurl_links", "unfurl_media", "parse", "mrkdwn"],
        true,
    ),
    ("chat.postEphemeral", &["channel", "thread_ts", "user", "text", "blocks"], true),
    ("chat.update", &["channel", "ts", "text", "blocks", "metadata", "parse"], true),
    ("chat.delete", &["channel", "ts"], true),
    ("reactions.add", &["channel", "timestamp", "name"], true),
    ("reactions.remove", &["channel", "timestamp", "name"], true),
    (
        "conversations.replies",
        &["channel", "ts", "limit", "cursor", "include_all_metadata", "latest", "oldest", "inclusive"],
        false,
    ),
    ("users.info", &["user"], false),
    ("files.getUploadURLExternal", &["filename", "length"], false),
    ("files.completeUploadExternal", &["files", "channel_id", "thread_ts", "initial_comment"], true),
    ("files.info", &["file"], false),
    ("assistant.threads.setStatus", &["channel_id", "thread_ts", "status"], true),
    ("assistant.threads.setSuggestedPrompts", &["channel_id", "thread_ts", "prompts"], true),
    ("agents.sessions.setStatus", &["channel_id", "thread_ts", "status"], true),
];

pub fn router(fake: FakeSlack) -> Router {
    Router::new()
        .route("/api/{method}", any(call))
        .route("/link/{ticket}", get(link))
        .route("/upload/{file}", post(upload))
        .route("/files/{file}", get(download))
        .layer(axum::extract::DefaultBodyLimit::max(64 * 1024 * 1024))
        .with_state(fake)
}

type Refusal = (&'static str, Map<String, Value>);

fn refuse<T>(word: &'static str) -> Result<T, Refusal> {
    Err((word, Map::new()))
}

async fn call(
    Shared(fake): Shared<FakeSlack>,
    Path(method): Path<String>,
    verb: Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // Arguments of a GET are in its query.
    let body = if verb == Method::GET { uri.query().unwrap_or_default().to_owned().into() } else { body };
    let args = match read(&fake, &method, &verb, &headers, &body) {
        Ok(args) => args,
        Err((word, _)) => return answer(&json!({ "ok": false, "error": word })),
    };
    let fault = fake.change(|state| {
        state.calls.push_back((method.clone(), args.clone()));
        state.take_fault(&method, &args.to_string())
    });
    match fault {
        Some(Fault::RateLimited(seconds)) => {
            let body = json!({ "ok": false, "error": "ratelimited" });
            return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())], axum::Json(body))
                .into_response();
        }
        Some(Fault::Status(status)) => {
            return (StatusCode::from_u16(status).unwrap(), "upstream trouble").into_response();
        }
        Some(Fault::Error(word)) => return answer(&json!({ "ok": false, "error": word, "needed": "chat:write" })),
        Some(Fault::LostBefore) => return lost(),
        Some(Fault::LostAfter | Fault::SlowAfter(_)) | None => {}
    }
    let (done, events) = fake.change(|state| {
        let mut events = Vec::new();
        let done = act(state, &fake.host(), &method, &args, &headers, &mut events);
        (done, events)
    });
    for event in events {
        fake.deliver_event(event);
    }
    match fault {
        Some(Fault::LostAfter) => return lost(),
        Some(Fault::SlowAfter(time)) => tokio::time::sleep(time).await,
        _ => {}
    }
    let scopes: Vec<_> = fake.state().scopes.iter().cloned().collect();
    let body = match done {
        Ok(mut fields) => {
            fields.insert("ok".into(), true.into());
            fields
        }
        Err((word, mut fields)) => {
            fields.insert("ok".into(), false.into());
            fields.insert("error".into(), word.into());
            fields
        }
    };
    ([("x-oauth-scopes", scopes.join(","))], answer(&Value::Object(body))).into_response()
}

fn answer(body: &Value) -> Response {
    axum::Json(body).into_response()
}

/// An answer that breaks off.
fn lost() -> Response {
    let broken = futures_util::stream::iter([Err::<Bytes, _>(std::io::Error::other("lost"))]);
    Response::new(Body::from_stream(broken))
}

/// The arguments, as the method takes them.
fn read(fake: &FakeSlack, method: &str, verb: &Method, headers: &HeaderMap, body: &Bytes) -> Result<Value, Refusal> {
    let Some((_, known, takes_json)) = METHODS.iter().find(|(name, ..)| *name == method) else {
        return refuse("unknown_method");
    };
    let complain = |what: String| fake.change(|state| state.complain(what));
    if verb != Method::POST {
        complain(format!("{method} by {verb}"));
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_json = content_type.starts_with("application/json");
    let args: Value = match (is_json, takes_json) {
        (true, _) if body.is_empty() => json!({}),
        (true, true) if verb != Method::GET => match serde_json::from_slice(body) {
            Ok(args) => args,
            Err(_) => return refuse("invalid_json"),
        },
        // A JSON body is ignored without a word.
        (true, false) if verb != Method::GET => {
            complain(format!("{method} with JSON, which it ignores"));
            json!({})
        }
        _ => form(body),
    };
    for name in args.as_object().into_iter().flat_map(Map::keys) {
        if name == "token" {
            complain(format!("{method} with its token in the body"));
        } else if !known.contains(&name.as_str()) {
            complain(format!("{method} with an unknown argument {name}"));
        }
    }
    Ok(args)
}

fn form(body: &[u8]) -> Value {
    let url = reqwest::Url::parse(&format!("http://form/?{}", String::from_utf8_lossy(body))).unwrap();
    let value = |text: &str| match text {
        "true" => true.into(),
        "false" => false.into(),
        text if text.starts_with(['[', '{']) => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        text => text.into(),
    };
    Value::Object(url.query_pairs().map(|(key, text)| (key.into_owned(), value(&text))).collect())
}

fn text<'a>(args: &'a Value, key: &str) -> &'a str {
    args.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn fields(value: Value) -> Result<Map<String, Value>, Refusal> {
    Ok(value.as_object().cloned().unwrap_or_default())
}

fn act(
    state: &mut State,
    host: &str,
    method: &str,
    args: &Value,
    headers: &HeaderMap,
    events: &mut Vec<Value>,
) -> Result<Map<String, Value>, Refusal> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = bearer.strip_prefix("Bearer ").unwrap_or_default();
    if token.is_empty() {
        return refuse("not_authed");
    }
    if method == "apps.connections.open" {
        return match token {
            APP_TOKEN => {
                let ticket = format!("ticket-{}", state.next_id());
                state.tickets.insert(ticket.clone());
                fields(json!({ "url": format!("ws://{host}/link/{ticket}?app_id=A1") }))
            }
            token if token.starts_with("xoxb-") => refuse("not_allowed_token_type"),
            _ => refuse("invalid_auth"),
        };
    }
    if state.bot_token.as_deref() != Some(token) {
        return refuse(if token.starts_with("xapp-") { "not_allowed_token_type" } else { "invalid_auth" });
    }
    if let Some(known) = janebot::chat::slack::api::Method::ALL.iter().find(|known| known.name() == method)
        && let Some(needed) = known.scopes().iter().find(|scope| !state.scopes.contains(**scope))
    {
        let provided: Vec<_> = state.scopes.iter().cloned().collect();
        let extra = json!({ "needed": needed, "provided": provided.join(",") });
        return Err(("missing_scope", extra.as_object().cloned().unwrap_or_default()));
    }
    match method {
        "auth.test" => fields(json!({
            "url": "https://test.slack.com/", "team": "Test", "user": "jane", "team_id": TEAM, "user_id": JANE,
            "bot_id": BOT, "is_enterprise_install": false,
        })),
        "chat.postMessage" => post_message(state, args, events),
        "chat.postEphemeral" => {
            writable(state, text(args, "channel"))?;
            check_text(state, args);
            state.ephemerals.push(args.clone());
            fields(json!({ "message_ts": "1.1" }))
        }
        "chat.update" => update(state, args),
        "chat.delete" => {
            let channel = state.channels.get_mut(text(args, "channel")).ok_or(("channel_not_found", Map::new()))?;
            let before = channel.messages.len();
            channel.messages.retain(|message| message.ts != text(args, "ts"));
            if channel.messages.len() == before { refuse("message_not_found") } else { fields(json!({})) }
        }
        "reactions.add" | "reactions.remove" => {
            let name = text(args, "name").to_owned();
            let Some(message) = state.message_mut(text(args, "channel"), text(args, "timestamp")) else {
                return refuse("message_not_found");
            };
            message.marked_at.get_or_insert_with(Instant::now);
            match method {
                "reactions.add" if !message.reactions.insert(name.clone()) => refuse("already_reacted"),
                "reactions.remove" if !message.reactions.remove(&name) => refuse("no_reaction"),
                _ => fields(json!({})),
            }
        }
        "conversations.replies" => replies(state, args),
        "users.info" => match state.users.get(text(args, "user")) {
            Some(user) => fields(json!({ "user": user })),
            None => refuse("user_not_found"),
        },
        "files.getUploadURLExternal" => {
            let length = text(args, "length").parse().unwrap_or(0);
            if length == 0 || text(args, "filename").is_empty() {
                return refuse("invalid_arguments");
            }
            let id = format!("F{:06}", state.next_id());
            let file = File { name: text(args, "filename").to_owned(), length, ..File::default() };
            state.files.insert(id.clone(), file);
            fields(json!({ "upload_url": format!("http://{host}/upload/{id}"), "file_id": id }))
        }
        "files.completeUploadExternal" => complete(state, args),
        "files.info" => match state.files.get(text(args, "file")) {
            Some(_) => {
                let url = format!("http://{host}/files/{}", text(args, "file"));
                fields(json!({ "file": { "id": text(args, "file"), "url_private": url } }))
            }
            None => refuse("file_not_found"),
        },
        "assistant.threads.setStatus" | "assistant.threads.setSuggestedPrompts" | "agents.sessions.setStatus" => {
            if !state.channels.contains_key(text(args, "channel_id")) {
                return refuse("channel_not_found");
            }
            state.statuses.push((method.to_owned(), args.clone()));
            fields(json!({}))
        }
        _ => refuse("unknown_method"),
    }
}

fn writable(state: &State, channel: &str) -> Result<(), Refusal> {
    match state.channels.get(channel) {
        None => refuse("channel_not_found"),
        Some(channel) if channel.archived => refuse("is_archived"),
        Some(channel) if !channel.has_bot => refuse("not_in_channel"),
        Some(_) => Ok(()),
    }
}

/// Notes what people would regret in a text of ours.
fn check_text(state: &mut State, args: &Value) {
    let whole = text(args, "text");
    if whole.chars().count() > 4000 {
        state.complain(format!("a text of {} characters", whole.chars().count()));
    }
    let blocks = args.get("blocks").and_then(Value::as_array).cloned().unwrap_or_default();
    let of_blocks = blocks.iter().filter_map(|block| block.pointer("/text/text").and_then(Value::as_str));
    for part in of_blocks.chain([whole]) {
        let without_asker = part.split_once(" asks: ").map_or(part, |(_, rest)| rest);
        for token in ["<!", "<@", "<#"] {
            if without_asker.contains(token) {
                state.complain(format!("{token} in {part:?}"));
            }
        }
    }
}

fn check_blocks(state: &mut State, args: &Value) -> Result<Vec<Value>, Refusal> {
    let blocks = args.get("blocks").and_then(Value::as_array).cloned().unwrap_or_default();
    if blocks.len() > 50 {
        return refuse("invalid_blocks");
    }
    let mut chars = 0;
    for block in &blocks {
        match text(block, "type") {
            "section" => {
                let count = block.pointer("/text/text").and_then(Value::as_str).map_or(0, |text| text.chars().count());
                if !(1..=3000).contains(&count) {
                    return refuse("invalid_blocks");
                }
                chars += count;
                if block.pointer("/text/verbatim") != Some(&true.into()) {
                    state.complain("a text that Slack looks into for names and addresses");
                }
            }
            "actions" => {
                let elements = block.get("elements").and_then(Value::as_array).cloned().unwrap_or_default();
                let mut ids: Vec<_> = elements.iter().map(|element| text(element, "action_id").to_owned()).collect();
                ids.sort();
                ids.dedup();
                if elements.is_empty() || elements.len() > 25 || ids.len() != elements.len() {
                    return refuse("invalid_blocks");
                }
            }
            _ => return refuse("invalid_blocks"),
        }
    }
    if chars > MAX_BLOCKS_CHARS {
        return refuse("msg_blocks_too_long");
    }
    Ok(blocks)
}

fn post_message(state: &mut State, args: &Value, events: &mut Vec<Value>) -> Result<Map<String, Value>, Refusal> {
    let channel = text(args, "channel").to_owned();
    writable(state, &channel)?;
    let blocks = check_blocks(state, args)?;
    check_text(state, args);
    let whole = text(args, "text");
    if whole.is_empty() {
        if blocks.is_empty() {
            return refuse("no_text");
        }
        state.complain("blocks without a text for notifications");
    }
    let has_link = args.to_string().contains("://");
    if has_link && (args.get("unfurl_links") != Some(&false.into()) || args.get("unfurl_media") != Some(&false.into()))
    {
        state.complain("a message whose links are looked up");
    }
    let thread = args.get("thread_ts").and_then(Value::as_str).map(str::to_owned);
    if let Some(thread) = &thread {
        match state.message(&channel, thread) {
            None => return refuse("thread_not_found"),
            Some(parent) if parent.thread.as_ref().is_some_and(|root| *root != parent.ts) => {
                state.complain("a thread_ts that is a reply's");
            }
            Some(_) => {}
        }
    }
    let ts = state.next_ts();
    let message = Message {
        ts: ts.clone(),
        thread,
        user: JANE.into(),
        text: whole.to_owned(),
        blocks,
        metadata: args.get("metadata").cloned(),
        written_at: Some(Instant::now()),
        ..Message::default()
    };
    if !state.swallow_own {
        let mut event = message.json(false);
        event["channel"] = channel.clone().into();
        event["channel_type"] = state.channels[&channel].channel_type.into();
        events.push(event);
    }
    let shown = message.json(false);
    state.channels.get_mut(&channel).expect("it is writable").messages.push(message);
    fields(json!({ "channel": channel, "ts": ts, "message": shown }))
}

fn update(state: &mut State, args: &Value) -> Result<Map<String, Value>, Refusal> {
    let channel = text(args, "channel").to_owned();
    writable(state, &channel)?;
    if text(args, "text").chars().count() > 4000 {
        return refuse("msg_too_long");
    }
    if text(args, "parse") != "none" {
        state.complain("chat.update without parse: none");
    }
    let blocks = check_blocks(state, args)?;
    check_text(state, args);
    let Some(message) = state.message_mut(&channel, text(args, "ts")) else { return refuse("message_not_found") };
    if message.user != JANE {
        return refuse("cant_update_message");
    }
    message.text = text(args, "text").to_owned();
    message.blocks = blocks;
    message.edits += 1;
    fields(json!({ "channel": channel, "ts": text(args, "ts"), "text": text(args, "text") }))
}

fn replies(state: &mut State, args: &Value) -> Result<Map<String, Value>, Refusal> {
    let channel = text(args, "channel").to_owned();
    let room = state.channels.get(&channel).ok_or(("channel_not_found", Map::new()))?;
    if !room.has_bot {
        return refuse("not_in_channel");
    }
    let root = text(args, "ts");
    let all: Vec<_> =
        room.messages.iter().filter(|m| m.ts == root || m.thread.as_deref() == Some(root)).cloned().collect();
    if all.is_empty() {
        return refuse("thread_not_found");
    }
    let limit = text(args, "limit").parse::<usize>().unwrap_or(100).clamp(1, state.page_max);
    let start = text(args, "cursor").strip_prefix("at:").and_then(|at| at.parse::<usize>().ok()).unwrap_or(0);
    let with_metadata = args.get("include_all_metadata") == Some(&true.into());
    let page: Vec<_> = all.iter().skip(start).take(limit).map(|message| message.json(with_metadata)).collect();
    let more = start + limit < all.len();
    let cursor = if more { format!("at:{}", start + limit) } else { String::new() };
    fields(json!({ "messages": page, "has_more": more, "response_metadata": { "next_cursor": cursor } }))
}

fn complete(state: &mut State, args: &Value) -> Result<Map<String, Value>, Refusal> {
    let channel = text(args, "channel_id").to_owned();
    writable(state, &channel)?;
    let thread = args.get("thread_ts").and_then(Value::as_str).map(str::to_owned);
    let ids: Vec<_> = args.get("files").and_then(Value::as_array).into_iter().flatten().cloned().collect();
    let mut files = Vec::new();
    for given in &ids {
        let Some(file) = state.files.get_mut(text(given, "id")) else { return refuse("file_not_found") };
        if file.bytes.is_none() || file.shared_in.is_some() {
            return refuse("invalid_arguments");
        }
        file.shared_in = Some(channel.clone());
        files.push(json!({ "id": text(given, "id"), "name": file.name, "title": text(given, "title") }));
    }
    let ts = state.next_ts();
    let message = Message {
        ts,
        thread,
        user: JANE.into(),
        files: files.clone(),
        written_at: Some(Instant::now()),
        ..Message::default()
    };
    state.channels.get_mut(&channel).expect("it is writable").messages.push(message);
    fields(json!({ "files": files }))
}

async fn upload(Shared(fake): Shared<FakeSlack>, Path(id): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    if fake.change(|state| state.take_fault("upload", "")).is_some() {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let status = fake.change(|state| {
        if headers.contains_key(header::AUTHORIZATION) {
            state.complain("an upload with the token");
        }
        let Some(file) = state.files.get_mut(&id) else { return StatusCode::NOT_FOUND };
        if file.length != body.len() {
            return StatusCode::BAD_REQUEST;
        }
        file.bytes = Some(body.to_vec());
        StatusCode::OK
    });
    (status, "OK").into_response()
}

async fn download(Shared(fake): Shared<FakeSlack>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let state = fake.state();
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_known = state.bot_token.as_ref().is_some_and(|token| bearer == format!("Bearer {token}"));
    match state.files.get(&id) {
        Some(file) if is_known && !file.is_page && state.scopes.contains("files:read") => {
            ([(header::CONTENT_TYPE, "text/plain")], file.bytes.clone().unwrap_or_default()).into_response()
        }
        // As if all were well.
        Some(_) => ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], "<html>Sign in</html>").into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
