//! The REST side: one handler that looks at method and path, as a strict server would.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State as Shown;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{APPLICATION, Answer, Channel, GUILD, ME, Message, Shared, State, TOKEN};

/// Fields that a message may have when it is made, and when it is edited.
const CREATE: [&str; 8] = [
    "content",
    "nonce",
    "enforce_nonce",
    "allowed_mentions",
    "flags",
    "components",
    "message_reference",
    "attachments",
];
const EDIT: [&str; 4] = ["content", "allowed_mentions", "flags", "components"];

pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let app = Router::new().fallback(handle).with_state(shared);
    axum::serve(listener, app).await.unwrap();
}

struct Asked {
    method: String,
    path: String,
    query: String,
    body: Bytes,
    kind: String,
}

type Told = Result<Value, (u16, u64, String)>;

async fn handle(Shown(shared): Shown<Arc<Shared>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let path = parts.uri.path().to_owned();
    if let Some(name) = path.strip_prefix("/cdn/") {
        let mut state = shared.state();
        if parts.headers.contains_key(header::AUTHORIZATION) {
            state.violations.push("the token was sent to the file server".into());
        }
        return match state.files.get(name) {
            Some(bytes) => Response::new(Body::from(bytes.clone())),
            None => respond(404, &[], &json!({})),
        };
    }
    let asked = Asked {
        method: parts.method.to_string(),
        path: path.strip_prefix("/api/v10").unwrap_or("/wrong").to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        body: to_bytes(body, 64 << 20).await.unwrap(),
        kind: header(header::CONTENT_TYPE.as_str()),
    };
    let fault = {
        let mut state = shared.state();
        state.requests.push((asked.method.clone(), asked.path.clone()));
        let is_callback = asked.path.ends_with("/callback");
        if header("user-agent").starts_with("DiscordBot (")
            && (is_callback || header("authorization") == format!("Bot {TOKEN}"))
        {
            let line = format!("{} {}", asked.method, asked.path);
            let place =
                state.faults.iter().position(|fault| line.starts_with(&fault.start) && line.ends_with(&fault.end));
            place.map(|place| {
                let fault = &mut state.faults[place];
                fault.times -= 1;
                let answer = fault.answer.clone();
                if fault.times == 0 {
                    state.faults.remove(place);
                }
                answer
            })
        } else {
            Some(Answer::Http(401, Vec::new(), json!({"code": 0, "message": "401: Unauthorized"})))
        }
    };
    if let Some(Answer::Http(status, headers, body)) = &fault {
        shared.changed.notify_waiters();
        return respond(*status, headers, body);
    }
    let told = {
        let mut state = shared.state();
        let told = route(&shared, &mut state, &asked);
        if let Err((status @ 400, code, message)) = &told
            && !matches!(code, 160_004 | 50083 | 40060)
        {
            state.violations.push(format!("{} {}: {status} {code} {message}", asked.method, asked.path));
        }
        told
    };
    shared.changed.notify_waiters();
    match fault {
        Some(Answer::Lost) => {
            // The connection breaks before anything is answered.
            return Response::new(Body::from_stream(futures_util::stream::once(async {
                Err::<Bytes, std::io::Error>(std::io::ErrorKind::ConnectionReset.into())
            })));
        }
        Some(Answer::Slow(time)) => tokio::time::sleep(time).await,
        Some(Answer::Http(..)) | None => {}
    }
    match told {
        Ok(Value::Null) => respond(204, &[], &Value::Null),
        Ok(value) => respond(200, &[], &value),
        Err((status, code, message)) => respond(status, &[], &json!({"code": code, "message": message})),
    }
}

fn respond(status: u16, headers: &[(&'static str, String)], body: &Value) -> Response {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    response.header("content-type", "application/json").body(body).unwrap()
}

fn missing(code: u64) -> (u16, u64, String) {
    (404, code, "Unknown".into())
}

fn bad(message: impl Into<String>) -> (u16, u64, String) {
    (400, 50035, message.into())
}

fn route(shared: &Shared, state: &mut State, asked: &Asked) -> Told {
    let parts: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
    let number = |text: &str| text.parse::<u64>().map_err(|_| bad(format!("{text} is no id")));
    match (asked.method.as_str(), parts.as_slice()) {
        ("GET", ["users", "@me"]) => Ok(json!({"id": ME.to_string(), "username": "jane", "bot": true})),
        ("GET", ["applications", "@me"]) => {
            Ok(json!({"id": APPLICATION.to_string(), "flags": state.application_flags, "name": "jane"}))
        }
        ("GET", ["gateway", "bot"]) => Ok(json!({
            "url": shared.gateway, "shards": 1,
            "session_start_limit": {
                "total": 1000, "remaining": state.limit.remaining, "reset_after": state.limit.reset_after,
                "max_concurrency": 1,
            },
        })),
        ("GET", ["applications", _, "commands"]) => Ok(Value::Array(state.commands.clone())),
        ("PUT", ["applications", _, "commands"]) => {
            state.commands = serde_json::from_slice(&asked.body).map_err(|error| bad(error.to_string()))?;
            state.registrations += 1;
            Ok(Value::Array(state.commands.clone()))
        }
        ("GET", ["channels", id]) => {
            let id = number(id)?;
            state.channels.get(&id).map(|channel| show_channel(id, channel)).ok_or_else(|| missing(10003))
        }
        ("GET", ["guilds", _, "roles"]) => {
            Ok(json!([{"id": GUILD.to_string(), "permissions": state.permissions.to_string()}]))
        }
        ("GET", ["guilds", _, "members", user]) => {
            let roles = state.roles.get(&number(user)?).cloned().unwrap_or_default();
            Ok(json!({"roles": roles.iter().map(ToString::to_string).collect::<Vec<_>>()}))
        }
        ("GET", ["channels", channel, "messages"]) => list(shared, state, number(channel)?, &asked.query),
        ("GET", ["channels", _, "messages", id]) => {
            let message = state.messages.get(&number(id)?).ok_or_else(|| missing(10008))?;
            Ok(shared.show(state, message))
        }
        ("POST", ["channels", channel, "messages"]) => create(shared, state, number(channel)?, asked),
        ("PATCH", ["channels", _, "messages", id]) => edit(shared, state, number(id)?, asked),
        ("DELETE", ["channels", _, "messages", id]) => {
            let id = number(id)?;
            state.deleted_messages.insert(id);
            state.messages.remove(&id).map(|_| Value::Null).ok_or_else(|| missing(10008))
        }
        (method @ ("PUT" | "DELETE"), ["channels", _, "messages", id, "reactions", emoji, "@me"]) => {
            let emoji = percent(emoji);
            let message = state.messages.get_mut(&number(id)?).ok_or_else(|| missing(10008))?;
            message.reactions.retain(|there| *there != emoji);
            if method == "PUT" {
                message.marked_at.get_or_insert_with(tokio::time::Instant::now);
                message.reactions.push(emoji);
            }
            Ok(Value::Null)
        }
        ("POST", ["channels", channel, "messages", id, "threads"]) => {
            thread(shared, state, number(channel)?, number(id)?, &asked.body)
        }
        ("PUT", ["channels", thread, "thread-members", "@me"]) => {
            let thread = number(thread)?;
            state.channels.get(&thread).filter(|there| there.parent.is_some()).ok_or_else(|| missing(10003))?;
            Ok(Value::Null)
        }
        ("POST", ["channels", channel, "typing"]) => {
            let channel = number(channel)?;
            state.channels.get(&channel).ok_or_else(|| missing(10003))?;
            state.typing += 1;
            Ok(Value::Null)
        }
        ("POST", ["interactions", id, token, "callback"]) => callback(shared, state, number(id)?, token, asked),
        ("PATCH", ["webhooks", _, token, "messages", "@original"]) => {
            let body: Value = serde_json::from_slice(&asked.body).map_err(|error| bad(error.to_string()))?;
            quiet(&body)?;
            let text = body["content"].as_str().filter(|text| !text.is_empty()).ok_or_else(|| bad("no content"))?;
            state.followups.push(((*token).to_owned(), text.to_owned()));
            Ok(json!({"id": "1", "channel_id": "2", "author": {"id": ME.to_string()}}))
        }
        _ => Err(bad("there is no such route")),
    }
}

fn list(shared: &Shared, state: &State, channel: u64, query: &str) -> Told {
    state.channels.get(&channel).ok_or_else(|| missing(10003))?;
    let value =
        |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok());
    let limit = value("limit").unwrap_or(50);
    if !(1..=100).contains(&limit) {
        return Err(bad("limit"));
    }
    let limit = usize::try_from(limit).unwrap();
    let (after, before) = (value("after"), value("before").unwrap_or(u64::MAX));
    let all: Vec<_> = state.of(channel).into_iter().filter(|m| m.id > after.unwrap_or(0) && m.id < before).collect();
    // The oldest of those after, the newest of those before; newest first in either case.
    let page: Vec<_> = match after {
        Some(_) => all.into_iter().take(limit).rev().collect(),
        None => all.into_iter().rev().take(limit).collect(),
    };
    Ok(page.into_iter().map(|message| shared.show(state, message)).collect())
}

/// That nobody can be pinged.
fn quiet(body: &Value) -> Result<(), (u16, u64, String)> {
    match body["allowed_mentions"]["parse"].as_array() {
        Some(parse) if parse.is_empty() => Ok(()),
        _ => Err(bad("allowed_mentions does not say that nobody is pinged")),
    }
}

fn check(body: &Value, fields: &[&str], has_file: bool) -> Result<String, (u16, u64, String)> {
    for field in body.as_object().ok_or_else(|| bad("no object"))?.keys() {
        if !fields.contains(&field.as_str()) {
            return Err(bad(format!("unknown field {field}")));
        }
    }
    quiet(body)?;
    let content = body["content"].as_str().unwrap_or_default();
    if content.chars().count() > 2000 {
        return Err(bad("content has more than 2000 characters"));
    }
    if content.trim().is_empty() && !has_file {
        return Err((400, 50006, "Cannot send an empty message".into()));
    }
    if content.contains('\0') || content.contains("@everyone") {
        return Err(bad("content has NUL or calls everyone"));
    }
    for row in body["components"].as_array().into_iter().flatten() {
        let buttons = row["components"].as_array().filter(|all| (1..=5).contains(&all.len()) && row["type"] == 1);
        for button in buttons.ok_or_else(|| bad("a row"))? {
            let id = button["custom_id"].as_str().unwrap_or_default();
            if button["type"] != 2
                || !(1..=100).contains(&id.len())
                || button["label"].as_str().is_none_or(|l| l.len() > 80)
            {
                return Err(bad(format!("a button: {button}")));
            }
        }
    }
    Ok(content.to_owned())
}

fn create(shared: &Shared, state: &mut State, channel: u64, asked: &Asked) -> Told {
    let (body, file) = match asked.kind.split_once("boundary=") {
        None => (serde_json::from_slice::<Value>(&asked.body).map_err(|error| bad(error.to_string()))?, None),
        Some((_, boundary)) => form(&asked.body, boundary).ok_or_else(|| bad("the form"))?,
    };
    let content = check(&body, &CREATE, file.is_some())?;
    let nonce = body["nonce"].as_str().filter(|nonce| (1..=25).contains(&nonce.len())).ok_or_else(|| bad("nonce"))?;
    if body["enforce_nonce"] != true {
        return Err(bad("the nonce is not enforced"));
    }
    let there = state.channels.get(&channel).cloned().ok_or_else(|| missing(10003))?;
    match there.shut {
        Some(code @ 50083) => return Err((400, code, "Thread is archived".into())),
        Some(code) => return Err((403, code, "Missing Permissions".into())),
        None => {}
    }
    if file.as_ref().is_some_and(|file| file.len() > 10 << 20) {
        return Err((413, 40005, "Request entity too large".into()));
    }
    let known =
        state.messages.values().find(|message| message.nonce.as_deref() == Some(nonce) && message.channel == channel);
    if let Some(known) = known {
        return Ok(shared.show(state, known));
    }
    let id = shared.id(state);
    let reply_to = body["message_reference"]["message_id"].as_str().and_then(|id| id.parse().ok());
    let message = Message {
        id,
        channel,
        author: ME,
        bot: true,
        content,
        nonce: Some(nonce.to_owned()),
        flags: body["flags"].as_u64().unwrap_or(0),
        components: body["components"].as_array().cloned().unwrap_or_default(),
        attachments: body["attachments"]
            .as_array()
            .cloned()
            .unwrap_or_default()
            .into_iter()
            .map(|mut file| {
                file["url"] = json!(format!("http://{}/cdn/{id}", shared.api));
                file
            })
            .collect(),
        reply_to,
        file,
        ..Message::default()
    };
    let (shown, event) = (shared.show(state, &message), shared.event_of(state, &message));
    state.messages.insert(id, message);
    shared.dispatch(state, "MESSAGE_CREATE", event);
    Ok(shown)
}

fn edit(shared: &Shared, state: &mut State, id: u64, asked: &Asked) -> Told {
    let body: Value = serde_json::from_slice(&asked.body).map_err(|error| bad(error.to_string()))?;
    let content = check(&body, &EDIT, false)?;
    let message = state.messages.get_mut(&id).ok_or_else(|| missing(10008))?;
    if message.author != ME {
        return Err((403, 50005, "Cannot edit a message authored by another user".into()));
    }
    message.edits.push(std::mem::replace(&mut message.content, content));
    message.components = body["components"].as_array().cloned().unwrap_or_default();
    let message = message.clone();
    Ok(shared.show(state, &message))
}

fn thread(shared: &Shared, state: &mut State, channel: u64, id: u64, body: &[u8]) -> Told {
    let body: Value = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    let name = body["name"].as_str().unwrap_or_default();
    if !(1..=100).contains(&name.chars().count()) || name.contains('@') {
        return Err(bad(format!("the name `{name}`")));
    }
    if ![60, 1440, 4320, 10080].contains(&body["auto_archive_duration"].as_u64().unwrap_or(0)) {
        return Err(bad("auto_archive_duration"));
    }
    state.messages.get(&id).filter(|message| message.channel == channel).ok_or_else(|| missing(10008))?;
    if state.channels.contains_key(&id) {
        return Err((400, 160_004, "A thread has already been created for this message".into()));
    }
    let made = Channel {
        kind: 11,
        parent: Some(channel),
        owner: Some(ME),
        name: name.to_owned(),
        guild: Some(GUILD),
        shut: None,
    };
    let shown = show_channel(id, &made);
    state.channels.insert(id, made);
    shared.dispatch(state, "THREAD_CREATE", shown.clone());
    Ok(shown)
}

fn callback(shared: &Shared, state: &mut State, interaction: u64, token: &str, asked: &Asked) -> Told {
    if token != format!("interaction-{interaction}") {
        return Err(missing(10062));
    }
    if state.callbacks.iter().any(|(known, _)| known == token) {
        return Err((400, 40060, "Interaction has already been acknowledged".into()));
    }
    let body: Value = serde_json::from_slice(&asked.body).map_err(|error| bad(error.to_string()))?;
    if body["type"] == 4 {
        check(&body["data"], &["content", "allowed_mentions", "flags"], false)?;
    }
    state.callbacks.push((token.to_owned(), body.clone()));
    if !asked.query.contains("with_response=true") {
        return Ok(Value::Null);
    }
    let id = shared.id(state);
    let content = body["data"]["content"].as_str().unwrap_or_default().to_owned();
    let message = Message { id, channel: super::CHANNEL, author: ME, bot: true, content, ..Message::default() };
    let shown = shared.show(state, &message);
    state.messages.insert(id, message);
    Ok(json!({"interaction": {"id": interaction.to_string()}, "resource": {"type": 4, "message": shown}}))
}

pub fn show_channel(id: u64, channel: &Channel) -> Value {
    json!({
        "id": id.to_string(), "type": channel.kind, "name": channel.name,
        "guild_id": channel.guild.map(|id| id.to_string()), "parent_id": channel.parent.map(|id| id.to_string()),
        "owner_id": channel.owner.map(|id| id.to_string()), "permission_overwrites": [],
    })
}

/// The JSON and the file of a form.
fn form(body: &[u8], boundary: &str) -> Option<(Value, Option<Vec<u8>>)> {
    let find = |haystack: &[u8], needle: &[u8]| haystack.windows(needle.len()).position(|window| window == needle);
    let mark = format!("--{boundary}");
    let (mut json, mut file, mut rest) = (None, None, body);
    while let Some(start) = find(rest, mark.as_bytes()) {
        rest = &rest[start + mark.len()..];
        if rest.starts_with(b"--") {
            break;
        }
        let head = find(rest, b"\r\n\r\n")?;
        let names = String::from_utf8_lossy(&rest[..head]).into_owned();
        let content = &rest[head + 4..];
        let end = find(content, format!("\r\n{mark}").as_bytes())?;
        match names.contains("name=\"payload_json\"") {
            true => json = serde_json::from_slice(&content[..end]).ok(),
            false if names.contains("name=\"files[0]\"") => file = Some(content[..end].to_vec()),
            false => return None,
        }
        rest = &content[end..];
    }
    Some((json?, file))
}

fn percent(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap_or("3f"), 16).unwrap_or(b'?'));
                rest = after;
            }
            (first, after) => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
