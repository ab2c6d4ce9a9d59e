//! What an operator wants to know when Slack does not work: which token, scope or switch is missing, and what to do.

use secrecy::SecretString;
use serde_json::{Value, json};

use super::api::{Api, ApiError, Method};
use crate::chat::finding::Finding::{self, Bad, Good, Odd};
use crate::config::SlackConfig;

/// Looks at everything that can be seen from here. Nobody in Slack notices it.
pub async fn examine(config: &SlackConfig) -> Vec<Finding> {
    let mut findings = bot_token(config).await;
    match &config.app_token {
        Some(token) => findings.push(app_token(config, token).await),
        None => findings.push(Good(
            "Socket Mode is not used (no SLACK_APP_TOKEN): Slack must reach /slack/events, /slack/interactive and \
             /slack/commands of the admin address from outside."
                .into(),
        )),
    }
    if config.canary.is_none() {
        findings.push(Odd("SLACK_CANARY_CHANNEL is not set: whether the app is subscribed to events shows only when somebody writes. \
             Name a channel with the bot in it.".into()));
    }
    findings
}

async fn bot_token(config: &SlackConfig) -> Vec<Finding> {
    let api = match Api::new(&config.api_url, &config.bot_token) {
        Ok(api) => api,
        Err(why) => return vec![Bad(why)],
    };
    let (answer, scopes) = match api.call_for_scopes(Method::AuthTest, &Value::Null).await {
        Ok(answered) => answered,
        Err(error) => return vec![Bad(format!("SLACK_BOT_TOKEN does not work: {error}."))],
    };
    let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
    let mut findings = vec![match answer.get("bot_id").and_then(Value::as_str) {
        Some(_) => Good(format!("SLACK_BOT_TOKEN is that of {} in {}.", text("user"), text("team"))),
        None => {
            Bad("SLACK_BOT_TOKEN is a person's token: use the Bot User OAuth Token, which begins with xoxb-.".into())
        }
    }];
    findings.push(match missing(scopes.as_deref()) {
        None => {
            Bad("Slack does not say which scopes the token has: compare them with deploy/slack-manifest.yaml.".into())
        }
        Some(missing) if missing.is_empty() => Good("The token has all scopes.".into()),
        Some(missing) => Bad(format!(
            "The token lacks the scopes {}: add them under OAuth & Permissions and install the app again.",
            missing.join(", ")
        )),
    });
    if let Some(canary) = &config.canary {
        let args = json!({ "channel": canary, "ts": "1.000000", "limit": 1 });
        let looked: Result<Value, ApiError> = api.call(Method::Replies, &args).await;
        findings.push(match looked {
            Ok(_) => Good(format!("The bot is in the canary channel {canary}.")),
            // It looked for a message that can't be there.
            Err(error) if error.word() == "thread_not_found" => {
                Good(format!("The bot is in the canary channel {canary}."))
            }
            Err(error) => Bad(format!("The canary channel {canary} can't be read: {error}.")),
        });
    }
    findings
}

async fn app_token(config: &SlackConfig, token: &SecretString) -> Finding {
    let api = match Api::new(&config.api_url, token) {
        Ok(api) => api,
        Err(why) => return Bad(why),
    };
    // Gives an address and connects nothing.
    let opened: Result<Value, ApiError> = api.call(Method::ConnectionsOpen, &json!({})).await;
    match opened {
        Ok(_) => Good("SLACK_APP_TOKEN opens Socket Mode connections.".into()),
        Err(error) => Bad(format!(
            "SLACK_APP_TOKEN opens no connection: {error}. It needs connections:write, and Socket Mode must be on."
        )),
    }
}

/// The scopes that the token lacks; `None` when it is not said which it has.
fn missing(scopes: Option<&str>) -> Option<Vec<&'static str>> {
    let has: Vec<_> = scopes?.split(',').map(str::trim).collect();
    Some(Method::all_scopes().into_iter().filter(|scope| !has.contains(scope)).collect())
}

/// Says in the log what the token lacks, once at the start.
pub(super) fn warn_of_missing(scopes: Option<&str>) {
    if let Some(missing) = missing(scopes).filter(|missing| !missing.is_empty()) {
        let missing = missing.join(", ");
        tracing::warn!(missing, "the Slack app lacks scopes: add them, and install the app again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_scopes_are_named() {
        let all = Method::all_scopes().join(",");
        assert_eq!(missing(Some(&all)), Some(vec![]));
        assert_eq!(missing(Some(&all.replace("files:read", "x"))), Some(vec!["files:read"]));
        assert_eq!(missing(None), None);
    }
}
