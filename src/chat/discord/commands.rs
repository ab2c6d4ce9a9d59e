//! The slash commands: what they are named, and how they are made known to Discord. Pure but for the registration.

use serde_json::{Value, json};
use twilight_http::routing::Route;

use super::rest::{Body, Rest, RestError};
use super::wire::ApplicationNo;

/// Discord's numbers: a subcommand, and options that are a text or a file.
const SUBCOMMAND: u64 = 1;
const TEXT: u64 = 3;
const FILE: u64 = 11;

/// Longest prompt by command. It is shown as a message, so that everybody sees what is answered; a longer one is
/// written as a message with a mention.
const MAX_PROMPT: u64 = 1800;

/// Our commands, as Discord is told of them.
fn ours() -> Value {
    json!([{
        "name": "jane",
        "type": 1,
        "description": "Have a coding agent work for you",
        // In servers and in direct messages with the bot; installed to servers.
        "contexts": [0, 1],
        "integration_types": [0],
        "options": [
            {
                "type": SUBCOMMAND, "name": "ask", "description": "Give the agent something to do",
                "options": [
                    {"type": TEXT, "name": "prompt", "description": "What the agent should do", "required": true,
                     "max_length": MAX_PROMPT},
                    {"type": FILE, "name": "file", "description": "A file for the agent"},
                ],
            },
            {"type": SUBCOMMAND, "name": "status", "description": "How many jobs run and wait"},
            {"type": SUBCOMMAND, "name": "cancel", "description": "Stop your jobs in this thread"},
            {
                "type": SUBCOMMAND, "name": "why", "description": "Tell the story of a job",
                "options": [
                    {"type": TEXT, "name": "job", "description": "The job's id, which stands below its answer",
                     "required": true, "max_length": 64},
                ],
            },
        ],
    }])
}

/// Makes the commands known, unless they are: a bot may create only two hundred a day. Whether that was needed.
///
/// # Errors
/// As the requests.
pub async fn register(rest: &Rest, application: ApplicationNo) -> Result<bool, RestError> {
    let application_id = application.get();
    let route = Route::GetGlobalCommands { application_id, with_localizations: None };
    let theirs: Value = rest.get(&route).await?;
    if says(&theirs, &ours()) {
        return Ok(false);
    }
    rest.send(&Route::SetGlobalCommands { application_id }, Body::Json(ours())).await?;
    Ok(true)
}

/// Whether `theirs` says everything that `ours` says; Discord adds ids and defaults of its own.
fn says(theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        (Value::Array(theirs), Value::Array(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(theirs, ours)| says(theirs, ours))
        }
        (Value::Object(theirs), Value::Object(ours)) => {
            let has = |key: &str| theirs.get(key).filter(|value| !value.is_null());
            let nothing = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
            // A part that we took away is a difference, too.
            let no_more = ours.contains_key("options") || has("options").is_none_or(nothing);
            no_more && ours.iter().all(|(key, ours)| has(key).is_some_and(|theirs| says(theirs, ours)))
        }
        (theirs, ours) => theirs == ours,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_are_known_are_not_registered_again() {
        let mut theirs = ours();
        theirs[0]["id"] = json!("1");
        theirs[0]["version"] = json!("2");
        theirs[0]["options"][1]["options"] = json!([]);
        theirs[0]["options"][0]["options"][1]["required"] = json!(false);
        assert!(says(&theirs, &ours()));
        assert!(!says(&json!([]), &ours()));
        for (pointer, value) in [
            ("/0/description", json!("old")),
            ("/0/options/0/options/0/required", json!(false)),
            ("/0/options/1/options", json!([{"name": "gone"}])),
            ("/0/options", json!([])),
        ] {
            let mut changed = theirs.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            assert!(!says(&changed, &ours()), "{pointer}");
        }
    }

    #[test]
    fn names_and_descriptions_are_as_discord_takes_them() {
        fn check(commands: &Value) {
            for command in commands.as_array().unwrap() {
                let (name, description) = (command["name"].as_str().unwrap(), command["description"].as_str().unwrap());
                assert!((1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase()), "{name}");
                assert!((1..=100).contains(&description.chars().count()), "{description}");
                if !command["options"].is_null() {
                    check(&command["options"]);
                }
            }
        }
        check(&ours());
    }
}
