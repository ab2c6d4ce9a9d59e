//! The official Python client against the fake workspace: proof that the fake is fair.
//!
//! The client is not part of the project: `.ci/run` installs it below the target directory.

use std::path::Path;

use crate::fake_slack::{ANN, APP_TOKEN, BOT_TOKEN, FakeSlack, GENERAL};

#[tokio::test]
async fn the_official_client_can_not_tell_the_difference() {
    // Of the test's temporary folder, which lies in it.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = target.join("slack-venv/bin/python");
    let has_client = std::process::Command::new(&python).args(["-c", "import slack_sdk"]).output();
    if !has_client.is_ok_and(|output| output.status.success()) {
        println!("skipped: slack_sdk is not below {}; .ci/run brings it", target.display());
        return;
    }
    let fake = FakeSlack::start().await;
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slack/client.py");
    let running = tokio::process::Command::new(python)
        .arg(driver)
        .env("SLACK_API_URL", format!("{}/", fake.api_url()))
        .env("SLACK_BOT_TOKEN", BOT_TOKEN)
        .env("SLACK_APP_TOKEN", APP_TOKEN)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true)
        .output();
    let talk = async {
        fake.connected(1).await;
        let ts = fake.ask(GENERAL, ANN, "hello", None);
        fake.answer_with(GENERAL, &ts, "heard: hello").await;
        fake.reactions(GENERAL, &ts, &["eyes"]).await;
        fake.recycle("refresh_requested", std::time::Duration::from_secs(8));
        fake.until("another connection", |state| (state.made >= 2).then_some(())).await;
        let ts = fake.ask(GENERAL, ANN, "bye", None);
        fake.answer_with(GENERAL, &ts, "heard: bye").await;
    };
    let (output, ()) = tokio::join!(running, talk);
    let output = output.unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), fake.story());
    assert!(fake.acks().len() >= 4 && fake.acks().iter().all(|ack| ack.attempt == 1), "{:?}", fake.acks());
    // The client's own notes on what it sends, which are no complaint about us.
    assert_eq!(fake.complaints(), Vec::<String>::new());
}
