use proptest::prelude::*;

use super::*;
use crate::job::ConversationId;
use crate::journal::outgoing::{Mark, Outgoing, OutgoingState};

fn row(seq: u64, key: &str, effect: Effect, tried: u32) -> OutgoingRow {
    let (job, conversation) = (JobId::new("j"), ConversationId::new("slack:C1/1"));
    OutgoingRow {
        seq,
        outgoing: Outgoing { key: key.into(), job, conversation, effect },
        state: OutgoingState::Open,
        tried,
        message: None,
        why: None,
        put_at: "2026-09-21T14:13:20Z".parse().unwrap(),
        done_at: None,
    }
}

fn post(seq: u64, key: &str, tried: u32) -> OutgoingRow {
    row(seq, key, Effect::Post { text: key.into(), buttons: Vec::new() }, tried)
}

fn closing(message: Option<&str>, tried: u32) -> OutgoingRow {
    let row = row(1, "j/progress", Effect::Progress { text: "done".into(), closing: true }, tried);
    OutgoingRow { message: message.map(Into::into), ..row }
}

struct Bench {
    lane: Lane,
    now: Instant,
}

impl Bench {
    /// A lane with these rows loaded, about whose past all is known.
    fn with(rows: &[OutgoingRow]) -> Self {
        let now = Instant::now();
        let mut bench = Self { lane: Lane::new(now, now), now };
        assert_eq!(bench.lane.next(now), Next::Do(Step::Load));
        bench.answer(Answer::Loaded(rows.iter().map(|row| (row.clone(), Duration::ZERO)).collect()));
        bench
    }

    fn answer(&mut self, answer: Answer) {
        self.lane.answer(answer, self.now);
    }

    fn step(&mut self) -> Step {
        match self.lane.next(self.now) {
            Next::Do(step) => step,
            other => panic!("expected a step, got {other:?}"),
        }
    }

    /// Waits until the lane wants to go on; how long that was.
    fn wait(&mut self) -> Duration {
        match self.lane.next(self.now) {
            Next::At(at) => {
                let waited = at - self.now;
                self.now = at;
                waited
            }
            other => panic!("expected to wait, got {other:?}"),
        }
    }

    fn sends(&mut self, key: &str) {
        match self.step() {
            Step::Send(row) => assert_eq!(row.outgoing.key, key),
            other => panic!("expected to send {key}, got {other:?}"),
        }
    }

    fn looks_for(&mut self, key: &str) {
        match self.step() {
            Step::Find(row) => assert_eq!(row.outgoing.key, key),
            other => panic!("expected to look for {key}, got {other:?}"),
        }
    }

    fn records(&mut self, key: &str) -> Delivery {
        match self.step() {
            Step::Record(row, delivery) => {
                assert_eq!(row.outgoing.key, key);
                self.answer(Answer::Recorded);
                delivery
            }
            other => panic!("expected to record {key}, got {other:?}"),
        }
    }
}

fn sent(message: &str) -> Answer {
    Answer::Sent(Ok(Some(message.into())))
}

fn ambiguous() -> Answer {
    Answer::Sent(Err(SendError::Ambiguous("reset".into())))
}

#[test]
fn messages_go_out_in_their_order_and_each_is_recorded() {
    let mut bench = Bench::with(&[post(2, "b", 0), post(1, "a", 0)]);
    for key in ["a", "b"] {
        bench.sends(key);
        assert_eq!(bench.lane.next(bench.now), Next::Nothing, "one request at a time");
        bench.answer(sent(key));
        assert_eq!(bench.records(key), Delivery::Sent { message: Some(key.into()) });
    }
    assert!(bench.lane.can_go(bench.now));
}

#[test]
fn a_message_that_may_be_there_is_looked_for_until_it_can_not_come_any_more() {
    let mut bench = Bench::with(&[post(1, "a", 0), post(2, "b", 0)]);
    bench.sends("a");
    bench.answer(ambiguous());
    let began = bench.now;
    while bench.now < began + LATE_EFFECT {
        bench.wait();
        bench.looks_for("a");
        bench.answer(Answer::Found(Ok(None)));
    }
    assert_eq!(bench.now, began + LATE_EFFECT);
    bench.sends("a");
    bench.answer(sent("m1"));
    bench.records("a");
    bench.sends("b");
}

#[test]
fn a_message_that_is_found_is_not_sent_again() {
    let mut bench = Bench::with(&[post(1, "a", 1)]);
    bench.looks_for("a");
    bench.answer(Answer::Found(Ok(Some("m7".into()))));
    assert_eq!(bench.records("a"), Delivery::Sent { message: Some("m7".into()) });
}

#[test]
fn a_request_that_did_not_get_there_is_made_again_after_a_growing_pause() {
    let mut bench = Bench::with(&[post(1, "a", 0)]);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        bench.sends("a");
        bench.answer(Answer::Sent(Err(SendError::Unreachable("refused".into()))));
        pauses.push(bench.wait().as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn the_chat_gets_the_quiet_that_it_asks_for() {
    let mut bench = Bench::with(&[post(1, "a", 0)]);
    bench.sends("a");
    bench.answer(Answer::Sent(Err(SendError::RateLimited { retry_after: Duration::from_secs(17) })));
    assert_eq!(bench.wait(), Duration::from_secs(17));
    bench.sends("a");
}

#[test]
fn what_is_refused_or_too_old_is_given_up_with_its_reason_and_the_next_goes_on() {
    let mut bench = Bench::with(&[post(1, "a", 0), post(2, "b", 0)]);
    bench.sends("a");
    bench.answer(Answer::Sent(Err(SendError::Refused("the channel is archived".into()))));
    assert_eq!(bench.records("a"), Delivery::GivenUp { why: "the channel is archived".into() });
    bench.sends("b");
    bench.answer(Answer::Sent(Err(SendError::Unreachable("refused".into()))));
    bench.now += GIVE_UP_AFTER;
    assert!(matches!(bench.records("b"), Delivery::GivenUp { why } if why.contains("24 hours")));
}

#[test]
fn an_older_edit_that_arrives_late_does_not_have_the_last_word() {
    let mut bench = Bench::with(&[]);
    let job = JobId::new("j");
    bench.lane.progress(job.clone(), "working".into());
    assert!(matches!(bench.step(), Step::Show { .. }));
    bench.answer(Answer::Shown { message: Some("m1".into()), result: Err(SendError::Ambiguous("reset".into())) });
    let unsure_until = bench.now + LATE_EFFECT;
    bench.now += Duration::from_secs(1);
    bench.lane.reload();
    assert_eq!(bench.step(), Step::Load);
    bench.answer(Answer::Loaded(vec![(closing(None, 1), Duration::ZERO), (post(2, "a", 0), Duration::ZERO)]));
    let Step::Send(row) = bench.step() else { panic!("the closing text is sent at once") };
    assert_eq!(row.message.as_deref(), Some("m1"));
    bench.answer(Answer::Sent(Ok(None)));
    bench.sends("a");
    bench.answer(sent("m2"));
    bench.records("a");
    bench.wait();
    assert_eq!(bench.now, unsure_until);
    bench.sends("j/progress");
    bench.answer(Answer::Sent(Ok(None)));
    bench.records("j/progress");
}

#[test]
fn a_mark_that_was_taken_away_is_not_put_back_by_a_repetition() {
    let mark =
        |seq, key: &str, shown| row(seq, key, Effect::React { message: "m".into(), mark: Mark::Heard, shown }, 0);
    let mut bench = Bench::with(&[mark(1, "heard", true)]);
    bench.sends("heard");
    bench.answer(ambiguous());
    let unsure_until = bench.now + LATE_EFFECT;
    bench.wait();
    bench.sends("heard");
    bench.answer(Answer::Sent(Ok(None)));
    bench.lane.reload();
    assert_eq!(bench.step(), Step::Load);
    bench.answer(Answer::Loaded(vec![(mark(2, "unheard", false), Duration::ZERO)]));
    bench.records("heard");
    bench.now = unsure_until - Duration::from_millis(1);
    bench.sends("unheard");
    bench.now = unsure_until + Duration::from_secs(1);
    bench.answer(Answer::Sent(Ok(None)));
    bench.sends("unheard");
    bench.answer(Answer::Sent(Ok(None)));
    bench.records("unheard");
    assert_eq!(bench.lane.next(bench.now), Next::Nothing);
}

#[test]
fn progress_shows_the_newest_text_only_and_never_after_the_end() {
    let mut bench = Bench::with(&[]);
    let job = JobId::new("j");
    let show = |text: &str, message: Option<&str>| Step::Show {
        job: JobId::new("j"),
        text: text.into(),
        message: message.map(Into::into),
        late: true,
    };
    for text in ["one", "two", "three"] {
        bench.lane.progress(job.clone(), text.into());
    }
    assert_eq!(bench.step(), show("three", None));
    bench.lane.progress(job.clone(), "four".into());
    bench.answer(Answer::Shown { message: Some("m1".into()), result: Ok(()) });
    assert_eq!(bench.wait(), PROGRESS_EVERY);
    assert_eq!(bench.step(), show("four", Some("m1")));
    bench.answer(Answer::Shown { message: Some("m1".into()), result: Ok(()) });
    bench.lane.progress(job.clone(), "five".into());
    bench.lane.reload();
    assert_eq!(bench.step(), Step::Load);
    bench.answer(Answer::Loaded(vec![(closing(Some("m1"), 2), Duration::ZERO)]));
    bench.sends("j/progress");
    bench.answer(Answer::Sent(Ok(None)));
    bench.records("j/progress");
    assert_eq!(bench.lane.next(bench.now), Next::Nothing, "the fifth text is not wanted any more");
}

#[test]
fn a_progress_message_that_was_never_sent_needs_no_last_text() {
    let mut bench = Bench::with(&[closing(None, 0)]);
    assert_eq!(bench.records("j/progress"), Delivery::Sent { message: None });
    // One that a dead process may have sent is looked for.
    let mut bench = Bench::with(&[closing(None, 1)]);
    bench.looks_for("j/progress");
    bench.answer(Answer::Found(Ok(Some("m1".into()))));
    let Step::Send(row) = bench.step() else { panic!("it is edited") };
    assert_eq!(row.message.as_deref(), Some("m1"));
}

#[test]
fn a_progress_message_that_the_chat_refused_needs_no_last_text_and_holds_up_nothing() {
    let mut bench = Bench::with(&[]);
    let job = JobId::new("j");
    bench.lane.progress(job.clone(), "running".into());
    assert!(matches!(bench.step(), Step::Show { .. }));
    bench.answer(Answer::NeverShown);
    bench.lane.reload();
    assert_eq!(bench.step(), Step::Load);
    let rows = [closing(None, 1), post(2, "answer", 0)];
    bench.answer(Answer::Loaded(rows.iter().map(|row| (row.clone(), Duration::ZERO)).collect()));
    assert_eq!(bench.records("j/progress"), Delivery::Sent { message: None });
    bench.sends("answer");
    bench.answer(Answer::Sent(Err(SendError::Refused("is_archived".into()))));
    assert!(matches!(bench.records("answer"), Delivery::GivenUp { .. }));
}

#[test]
fn a_journal_that_fails_is_asked_again() {
    let mut bench = Bench::with(&[post(1, "a", 0)]);
    bench.sends("a");
    bench.answer(Answer::JournalFailed);
    bench.wait();
    bench.sends("a");
    bench.answer(sent("m1"));
    assert!(matches!(bench.step(), Step::Record(..)));
    bench.answer(Answer::JournalFailed);
    bench.wait();
    assert_eq!(bench.records("a"), Delivery::Sent { message: Some("m1".into()) }, "and nothing is sent again");
}

/// How the played chat treats a request.
#[derive(Clone, Copy, Debug)]
enum Luck {
    Fine,
    Unreachable,
    Limited,
    DoneUnknown,
    LostUnknown,
}

proptest! {
    #[test]
    fn whatever_the_chat_does_each_message_is_there_once_and_in_order(
        posts in 1..5usize,
        luck in prop::collection::vec(prop::sample::select(vec![
            Luck::Fine, Luck::Unreachable, Luck::Limited, Luck::DoneUnknown, Luck::LostUnknown,
        ]), 0..30),
    ) {
        let mark = Effect::React { message: "m".into(), mark: Mark::Heard, shown: true };
        let mut rows = vec![row(1, "mark", mark, 0)];
        rows.extend((0..posts).map(|n| post(n as u64 + 2, &format!("p{n}"), 0)));
        let mut bench = Bench::with(&rows);
        let (mut there, mut recorded) = (Vec::<String>::new(), Vec::new());
        let mut luck = luck.into_iter();
        for _ in 0..400 {
            match bench.lane.next(bench.now) {
                Next::Nothing => break,
                Next::At(at) => bench.now = at,
                Next::Do(Step::Record(row, delivery)) => {
                    prop_assert!(matches!(delivery, Delivery::Sent { .. }), "{:?}", delivery);
                    recorded.push(row.outgoing.key);
                    bench.answer(Answer::Recorded);
                }
                Next::Do(Step::Find(row)) => {
                    let found = there.contains(&row.outgoing.key).then(|| row.outgoing.key.clone());
                    bench.answer(Answer::Found(Ok(found)));
                }
                Next::Do(Step::Send(row)) => {
                    let luck = luck.next().unwrap_or(Luck::Fine);
                    if matches!(luck, Luck::Fine | Luck::DoneUnknown) && row.outgoing.key != "mark" {
                        there.push(row.outgoing.key.clone());
                    }
                    bench.answer(match luck {
                        Luck::Fine => sent(&row.outgoing.key),
                        Luck::Unreachable => Answer::Sent(Err(SendError::Unreachable("refused".into()))),
                        Luck::Limited => {
                            let retry_after = Duration::from_secs(3);
                            Answer::Sent(Err(SendError::RateLimited { retry_after }))
                        }
                        Luck::DoneUnknown | Luck::LostUnknown => ambiguous(),
                    });
                }
                Next::Do(other) => prop_assert!(false, "{:?}", other),
            }
        }
        let expected: Vec<_> = (0..posts).map(|n| format!("p{n}")).collect();
        prop_assert_eq!(&there, &expected);
        prop_assert_eq!(recorded.len(), posts + 1);
        recorded.retain(|key| key != "mark");
        prop_assert_eq!(recorded, expected);
    }
}
