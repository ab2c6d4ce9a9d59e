//! The gateway: hello, identify, resume, heartbeats, and events with sequences that a resume brings again.

use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_websockets::{CloseCode, Message as Frame, ServerBuilder};

use super::{APPLICATION, GUILD, ME, Out, Shared, TOKEN};

const HEARTBEAT_MS: u64 = 5000;

pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, shared.clone()));
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let Ok((request, mut socket)) = ServerBuilder::new().accept(stream).await else { return };
    let (to, mut out) = mpsc::unbounded_channel();
    let (close_on_open, drop_on_open) = {
        let mut state = shared.state();
        state.gateway.connections += 1;
        let query = request.uri().query().unwrap_or_default();
        if !(query.contains("v=10") && query.contains("encoding=json")) {
            state.violations.push(format!("the gateway was opened with `{query}`"));
        }
        (state.gateway.close_on_open, state.gateway.drop_on_open)
    };
    shared.changed.notify_waiters();
    if drop_on_open {
        return;
    }
    if let Some(code) = close_on_open {
        // The client may have gone.
        let _ = socket.send(close(code)).await;
        return;
    }
    let hello = json!({"op": 10, "d": {"heartbeat_interval": HEARTBEAT_MS}});
    if socket.send(Frame::text(hello.to_string())).await.is_err() {
        return;
    }
    loop {
        let frame = tokio::select! {
            frame = socket.next() => match frame {
                Some(Ok(frame)) => frame,
                Some(Err(_)) | None => return,
            },
            out = out.recv() => {
                let sent = match out {
                    Some(Out::Text(text)) => socket.send(Frame::text(text)).await,
                    Some(Out::Close(code)) => {
                        // The client answers it, or has gone.
                        let _ = socket.send(close(code)).await;
                        while let Some(Ok(_)) = socket.next().await {}
                        return;
                    }
                    Some(Out::Drop) | None => return,
                };
                if sent.is_err() {
                    return;
                }
                continue;
            }
        };
        if frame.is_close() {
            return;
        }
        let Some(text) = frame.as_text() else { continue };
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            shared.state().violations.push(format!("the gateway was sent `{text}`"));
            return;
        };
        let answers = answer(&shared, &message, &to);
        for answer in answers {
            if socket.send(answer).await.is_err() {
                return;
            }
        }
    }
}

fn close(code: u16) -> Frame {
    Frame::close(CloseCode::try_from(code).ok(), "")
}

fn answer(shared: &Arc<Shared>, message: &Value, to: &mpsc::UnboundedSender<Out>) -> Vec<Frame> {
    let text = |value: Value| Frame::text(value.to_string());
    let mut state = shared.state();
    let (op, data) = (message["op"].as_u64(), &message["d"]);
    if matches!(op, Some(2 | 6)) && data["token"].as_str().map(|token| token.trim_start_matches("Bot ")) != Some(TOKEN)
    {
        return vec![close(4004)];
    }
    let answers = match op {
        Some(1) => vec![text(json!({"op": 11}))],
        Some(2) => {
            state.gateway.identifies += 1;
            state.gateway.intents = data["intents"].as_u64().unwrap_or(0);
            if !data["shard"].is_array() || !data["properties"].is_object() {
                state.violations.push(format!("identify lacks something: {data}"));
            }
            if state.gateway.intents & !((1 << 0) | (1 << 9) | (1 << 12) | (1 << 15)) != 0 {
                state.violations.push(format!("intents are asked for that are not needed: {data}"));
            }
            if state.gateway.intents & state.gateway.not_granted != 0 {
                return vec![close(4014)];
            }
            if let Some(code) = state.gateway.close_on_identify {
                return vec![close(code)];
            }
            state.gateway.sessions += 1;
            state.gateway.session = format!("session-{}", state.gateway.sessions);
            (state.gateway.sequence, state.gateway.log) = (0, Vec::new());
            state.gateway.to = Some(to.clone());
            let ready = json!({
                "v": 10, "session_id": state.gateway.session, "resume_gateway_url": shared.gateway,
                "user": {"id": ME.to_string(), "username": "jane", "discriminator": "0", "bot": true},
                "application": {"id": APPLICATION.to_string(), "flags": 0},
                "guilds": [{"id": GUILD.to_string(), "unavailable": true}], "shard": [0, 1],
            });
            shared.dispatch(&mut state, "READY", ready);
            let of = |is_thread: bool| {
                let there = state.channels.iter().filter(|(_, channel)| channel.guild.is_some());
                let there = there.filter(|(_, channel)| channel.parent.is_some() == is_thread);
                there.map(|(id, channel)| super::rest::show_channel(*id, channel)).collect::<Vec<_>>()
            };
            let guild = json!({
                "id": GUILD.to_string(), "name": "team",
                "roles": [{"id": GUILD.to_string(), "permissions": state.permissions.to_string()}],
                "channels": of(false), "threads": of(true),
            });
            shared.dispatch(&mut state, "GUILD_CREATE", guild);
            Vec::new()
        }
        Some(6) => {
            state.gateway.resumes += 1;
            if let Some(code) = state.gateway.close_on_resume {
                return vec![close(code)];
            }
            if state.gateway.refuse_resume || data["session_id"] != state.gateway.session.as_str() {
                return vec![text(json!({"op": 9, "d": false}))];
            }
            let seen = data["seq"].as_u64().unwrap_or(0);
            let missed: Vec<_> = state.gateway.log.iter().filter(|(at, _)| *at > seen).cloned().collect();
            for (_, event) in missed {
                // In order before everything that is new.
                let _ = to.send(Out::Text(event.to_string()));
            }
            state.gateway.to = Some(to.clone());
            shared.dispatch(&mut state, "RESUMED", json!({}));
            Vec::new()
        }
        _ => {
            state.violations.push(format!("the gateway was sent {message}"));
            Vec::new()
        }
    };
    drop(state);
    shared.changed.notify_waiters();
    answers
}
