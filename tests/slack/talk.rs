//! What people see: from a message to its answer, over both ways in.

use crate::fake_slack::{ANN, BOB, DIRECT, FakeSlack, GENERAL};
use crate::service::Service;

/// The whole of it, whichever way events come.
async fn a_talk(fake: &FakeSlack, service: &mut Service) {
    // A mention: 👀, progress, the answer in the thread, ✅.
    let ask = fake.ask(GENERAL, ANN, "echo 'a < b && <!channel>'; echo out > ~/output/result.txt", None);
    let answer = fake.answer_with(GENERAL, &ask, "a < b && <!channel>").await;
    assert!(answer.buttons().iter().any(|(label, _)| label == "Why"), "{answer:?}");
    fake.reactions(GENERAL, &ask, &["white_check_mark"]).await;
    let file =
        fake.until("the file", |state| state.files.values().find(|file| file.shared_in.is_some()).cloned()).await;
    assert_eq!((file.name.as_str(), file.bytes.as_deref()), ("result.txt", Some(&b"out\n"[..])));

    // It came as two events and was one job.
    let answers = fake.own_in(GENERAL, &ask).iter().filter(|message| message.shown().contains("a < b")).count();
    assert_eq!(answers, 1, "{}", fake.story());

    // A reply in the thread needs no name; one to somebody else is none of Jane's business.
    let other = fake.say(GENERAL, ANN, &format!("<@{BOB}> what do you think?"), Some(&ask));
    let follow = fake.say(GENERAL, ANN, "cat | tail -n 3; echo followed", Some(&ask));
    fake.reactions(GENERAL, &follow, &["white_check_mark"]).await;
    assert!(fake.state().message(GENERAL, &other).unwrap().reactions.is_empty());

    // Outside of threads Jane has to be named, except where she is alone with somebody.
    let nobody = fake.say(GENERAL, ANN, "echo not for jane", None);
    let direct = fake.say(DIRECT, ANN, "echo direct", None);
    fake.answer_with(DIRECT, &direct, "direct").await;
    assert!(fake.own_in(GENERAL, &nobody).is_empty());

    // Whoever is on no list is told so.
    let refused = fake.ask(GENERAL, BOB, "echo no", None);
    fake.reactions(GENERAL, &refused, &["x"]).await;
    fake.answer_with(GENERAL, &refused, "not").await;

    // A run is stopped by a word.
    let long = fake.ask(GENERAL, ANN, "echo started; sleep 300", None);
    fake.until("the run's Cancel button", |state| {
        let messages = state.channels[GENERAL].messages.iter();
        let mut own = messages.filter(|message| message.thread.as_deref() == Some(&long));
        own.find(|message| message.buttons().iter().any(|(label, _)| label == "Cancel")).map(|_| ())
    })
    .await;
    fake.say(GENERAL, ANN, "stop", Some(&long));
    fake.reactions(GENERAL, &long, &["octagonal_sign"]).await;
    service.stop();
    assert_eq!(fake.complaints(), Vec::<String>::new(), "{}", fake.story());
}

#[tokio::test]
async fn a_talk_over_socket_mode() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_sockets(&fake);
    if !service.start().await {
        return;
    }
    fake.connected(2).await;
    service.until_says("no event has come yet").await;
    a_talk(&fake, &mut service).await;
    fake.connected(0).await;
}

#[tokio::test]
async fn a_talk_over_http() {
    let fake = FakeSlack::start().await;
    let mut service = Service::over_http(&fake);
    if !service.start().await {
        return;
    }
    fake.use_http(&service.admin());
    a_talk(&fake, &mut service).await;
    assert_eq!(fake.state().made, 0, "no socket is opened");
}
