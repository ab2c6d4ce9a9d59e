//! Buttons and slash commands. Each is answered within three seconds, before anything else is done; what it leads to is
//! told after that. Only who clicked sees the answer, except for what was asked.

use serde_json::{Value, json};
use twilight_http::routing::Route;

use super::atlas::kind;
use super::mouth::SUPPRESS_EMBEDS;
use super::place::{Place, Spot, requester};
use super::rest::{Body, RestError, no_pings};
use super::sign::{MAX_TEXT, plain, title};
use super::wire::{Channel, CommandOption, Interaction, InteractionData, Member, User};
use super::{Shared, hearing};
use crate::chat::adapter::Front;
use crate::chat::{Action, Button, Inbound};
use crate::desk::Target;
use crate::desk::admission::may_ask;
use crate::job::{ChannelId, JobId, RequesterId};

/// Discord's numbers: kinds of interactions, of answers to them, and the flag of what only one person sees.
const COMMAND: u64 = 2;
const CLICK: u64 = 3;
const ANSWER: u64 = 4;
const ANSWER_LATER: u64 = 5;
const EPHEMERAL: u64 = 1 << 6;

/// Attempts to have a command recorded. A person waits, and can ask again.
const MAX_ATTEMPTS: usize = 3;

/// Who clicked, and where.
struct Clicked<'a> {
    by: RequesterId,
    /// The channel that permissions are about.
    channel: ChannelId,
    place: Option<Place>,
    interaction: &'a Interaction,
}

/// Answers one interaction, whatever comes of it.
pub async fn answer(shared: &Shared, front: &Front, interaction: Interaction) {
    let Some(user) = interaction.author().cloned() else { return };
    let Some(parent) = parent_of(&interaction) else { return };
    let clicked = Clicked {
        by: requester(user.id),
        channel: Place::direct(parent).channel(),
        place: place_of(&interaction),
        interaction: &interaction,
    };
    let Some(data) = &interaction.data else { return };
    let result = match interaction.kind {
        COMMAND if data.name == "jane" => command(shared, front, &clicked, &user, data).await,
        CLICK => click(shared, front, &clicked, data).await,
        _ => Ok(()),
    };
    if let Err(error) = result {
        // Answered by an earlier process, or too late: Discord has told the person.
        tracing::warn!(interaction = %interaction.id, %error, "a click or command could not be answered");
    }
}

async fn click(shared: &Shared, front: &Front, clicked: &Clicked<'_>, data: &InteractionData) -> Result<(), RestError> {
    let Some(Button { action, job }) = Button::parse(&data.custom_id) else { return Ok(()) };
    later(shared, clicked).await?;
    if !allowed(shared, front, clicked) {
        return tell(shared, clicked, STRANGER).await;
    }
    let said = match action {
        Action::Cancel => match front.desk.cancel(Target::Job(job), clicked.by.clone()).await {
            Some(stopping) => stopping.sentence(),
            None => BUSY.to_owned(),
        },
        Action::Retry => front.desk.again(&job, &clicked.by).await.sentence(),
        Action::Why => front.desk.why(&job, &clicked.by, &clicked.channel).await,
    };
    tell(shared, clicked, &said).await
}

const STRANGER: &str = "You may not use janebot here: ask its operator to add you or this channel to its lists.";
const BUSY: &str = "janebot is busy: try again in a minute.";
const NO_PLACE: &str = "There is no conversation here: use this in the thread of a job.";

async fn command(
    shared: &Shared,
    front: &Front,
    clicked: &Clicked<'_>,
    user: &User,
    data: &InteractionData,
) -> Result<(), RestError> {
    let Some(sub) = data.options.first() else { return Ok(()) };
    if !allowed(shared, front, clicked) {
        let said = json!({"type": ANSWER, "data": message(STRANGER, EPHEMERAL)});
        return callback(shared, clicked, &said, false).await.map(|_| ());
    }
    let said = match sub.name.as_str() {
        "ask" => return ask(shared, front, clicked, user, data, sub).await,
        "status" => {
            later(shared, clicked).await?;
            status(front).await
        }
        "cancel" => {
            later(shared, clicked).await?;
            match clicked.place {
                // In a channel each message begins a conversation of its own.
                None => NO_PLACE.to_owned(),
                Some(place) => {
                    match front.desk.cancel(Target::Conversation(place.conversation()), clicked.by.clone()).await {
                        Some(stopping) => stopping.sentence(),
                        None => BUSY.to_owned(),
                    }
                }
            }
        }
        "why" => {
            later(shared, clicked).await?;
            front.desk.why(&JobId::new(text(sub, "job").trim()), &clicked.by, &clicked.channel).await
        }
        _ => return Ok(()),
    };
    tell(shared, clicked, &said).await
}

/// Asks by command: the answer to the command is a message with the prompt, from which the conversation begins.
async fn ask(
    shared: &Shared,
    front: &Front,
    clicked: &Clicked<'_>,
    user: &User,
    data: &InteractionData,
    sub: &CommandOption,
) -> Result<(), RestError> {
    let prompt = text(sub, "prompt").replace('\0', "").trim().to_owned();
    let file = option(sub, "file").and_then(Value::as_str);
    let file = file.and_then(|id| data.resolved.as_ref()?.attachments.get(id)).cloned();
    let name = if user.username.is_empty() { "Somebody" } else { &user.username };
    let shown = message(&format!("**{}** asks:\n{prompt}", title(name)), SUPPRESS_EMBEDS);
    let made = callback(shared, clicked, &json!({"type": ANSWER, "data": shown}), true).await?;
    let made = made.ok_or_else(|| RestError::Ambiguous("it does not say which message the answer became".into()))?;
    let guild = clicked.interaction.guild_id;
    let place = match (clicked.place, guild) {
        (Some(place), _) => place,
        (None, Some(guild)) => {
            let place = Place::begun_by(guild, made.channel_id, made.id);
            shared.threads.begin(place.thread, title(&prompt));
            place
        }
        (None, None) => Place::direct(made.channel_id),
    };
    let inbound = Inbound {
        key: Spot { guild, channel: made.channel_id, message: made.id }.to_string(),
        requester: clicked.by.clone(),
        channel: place.channel(),
        conversation: place.conversation(),
        text: prompt,
        files: file.map(hearing::attachment).into_iter().collect(),
        agent: None,
        timeout: None,
        replies: None,
    };
    for _ in 0..MAX_ATTEMPTS {
        if front.desk.hear(inbound.clone()).await {
            return Ok(());
        }
    }
    tell(shared, clicked, "This could not be recorded, and will not be done: ask again in a minute.").await
}

async fn status(front: &Front) -> String {
    let (desk, pool) = tokio::join!(front.desk.status(), front.pool.status());
    let Some(desk) = desk else { return BUSY.to_owned() };
    let mut said = format!("{} open in {}", count(desk.open_jobs, "job"), count(desk.conversations, "conversation"));
    if let Some(pool) = pool {
        said.push_str(&format!("; {} waiting for one of {}", pool.queued, count(pool.runners.len(), "runner")));
    }
    if desk.draining {
        said.push_str("; the service is stopping");
    }
    said + "."
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Whether whoever clicked may use Jane here. Roles come with each click.
fn allowed(shared: &Shared, front: &Front, clicked: &Clicked<'_>) -> bool {
    let Some(rules) = shared.rules() else { return false };
    if !rules.listens_in(clicked.interaction.guild_id) {
        return false;
    }
    if let (Some(_), Some(Member { roles, .. })) = (clicked.interaction.guild_id, &clicked.interaction.member) {
        front.access.vouched.set(&clicked.by, &clicked.channel, rules.vouches(roles));
    }
    may_ask(&clicked.by, &clicked.channel, &front.access)
}

/// The channel that permissions are about.
fn parent_of(interaction: &Interaction) -> Option<super::wire::ChannelNo> {
    let is_thread = |channel: &&Channel| kind::THREADS.contains(&channel.kind);
    interaction.channel.as_ref().filter(is_thread).and_then(|thread| thread.parent_id).or(interaction.channel_id)
}

/// The conversation in which somebody clicked; `None` in a channel, where each message begins one.
fn place_of(interaction: &Interaction) -> Option<Place> {
    let channel = interaction.channel_id?;
    let Some(guild) = interaction.guild_id else { return Some(Place::direct(channel)) };
    match interaction.channel.as_ref() {
        Some(Channel { kind, parent_id: Some(parent), .. }) if kind::THREADS.contains(kind) => {
            Some(Place { guild: Some(guild), parent: *parent, thread: channel })
        }
        Some(Channel { kind: kind::TEXT | kind::ANNOUNCEMENT, .. }) | None => None,
        Some(_) => Some(Place { guild: Some(guild), parent: channel, thread: channel }),
    }
}

fn option<'a>(sub: &'a CommandOption, name: &str) -> Option<&'a Value> {
    sub.options.iter().find(|option| option.name == name).and_then(|option| option.value.as_ref())
}

fn text<'a>(sub: &'a CommandOption, name: &str) -> &'a str {
    option(sub, name).and_then(Value::as_str).unwrap_or_default()
}

fn message(text: &str, flags: u64) -> Value {
    json!({"content": plain(text, MAX_TEXT), "allowed_mentions": no_pings(), "flags": flags})
}

async fn callback(
    shared: &Shared,
    clicked: &Clicked<'_>,
    json: &Value,
    with_message: bool,
) -> Result<Option<super::wire::Message>, RestError> {
    let Interaction { id, token, .. } = clicked.interaction;
    shared.rest.callback(*id, token, json, with_message).await
}

/// Says that an answer will come, which only who clicked will see.
async fn later(shared: &Shared, clicked: &Clicked<'_>) -> Result<(), RestError> {
    let said = json!({"type": ANSWER_LATER, "data": {"flags": EPHEMERAL}});
    callback(shared, clicked, &said, false).await.map(|_| ())
}

/// Gives the answer that was said to come, or replaces the one that was given.
async fn tell(shared: &Shared, clicked: &Clicked<'_>, text: &str) -> Result<(), RestError> {
    let route = Route::UpdateInteractionOriginal {
        application_id: clicked.interaction.application_id.get(),
        interaction_token: &clicked.interaction.token,
    };
    let json = json!({"content": plain(text, MAX_TEXT), "allowed_mentions": no_pings()});
    shared.rest.send(&route, Body::Json(json)).await.map(|_| ())
}
