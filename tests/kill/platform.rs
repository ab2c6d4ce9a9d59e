//! A chat platform in memory, served over HTTP. It is strict, it keeps whatever is written to it however often that is,
//! and it may kill the service that talks to it: before a request takes effect, or between that and the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use janebot::journal::outgoing::Mark;
use janebot::world::World;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::service::{Asked, Delivered, MAX_CHARS};

/// What is not acknowledged by then is delivered once more.
const REDELIVER_AFTER: Duration = Duration::from_secs(2);
/// How long a service waits at most to be told that there is nothing.
const POLL: Duration = Duration::from_millis(100);
/// Of 1,000 requests, so many meet each kind of fault.
const RATE: u64 = 20;
/// A request that was sent by a process which is dead may be done as late as this.
const LATE_MS: u64 = 6_000;

/// Something of the service's in the chat.
#[derive(Clone, Debug)]
pub struct Post {
    pub conversation: String,
    pub key: String,
    pub text: String,
    pub is_file: bool,
}

/// What happened, for the table.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub requests: u64,
    pub delivered: u64,
    pub redelivered: u64,
    pub killed_at_delivery: u64,
    pub killed_before_effect: u64,
    pub killed_before_answer: u64,
    pub late: u64,
    pub lost: u64,
    pub limited: u64,
    pub busy: u64,
}

#[derive(Default)]
pub struct State {
    pub messages: Vec<Delivered>,
    /// When each was delivered last, and in which session.
    deliveries: BTreeMap<usize, (u64, Instant)>,
    pub acknowledged: BTreeMap<usize, u64>,
    /// In the order of appearance.
    pub posts: Vec<Post>,
    pub marks: BTreeMap<String, BTreeSet<Mark>>,
    /// How often each message's script said that it ran.
    pub runs: BTreeMap<usize, u64>,
    pub counts: Counts,
    /// No faults any more.
    calm: bool,
}

#[derive(Clone)]
pub struct Platform {
    state: Arc<Mutex<State>>,
    chance: World,
    /// Sessions whose process is to be killed.
    kill: mpsc::UnboundedSender<u64>,
    /// The session that is alive.
    session: watch::Receiver<u64>,
}

#[derive(Debug)]
enum Fate {
    Works,
    KillBeforeEffect,
    KillBeforeAnswer,
    /// Killed, and the request takes effect some time afterwards.
    Late,
    /// Takes effect; the connection breaks instead of an answer.
    AnswerLost,
    Limited,
    Busy,
}

impl Platform {
    /// Serves at an address of its own.
    pub async fn serve(
        chance: World,
        kill: mpsc::UnboundedSender<u64>,
        session: watch::Receiver<u64>,
    ) -> (Self, SocketAddr) {
        let platform = Self { state: Arc::default(), chance, kill, session };
        let router = Router::new().route("/{session}", post(asked)).route("/ran/{number}", get(ran));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router.with_state(platform.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (platform, address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody writes a message.
    pub fn write(&self, message: Delivered) {
        self.state().messages.push(message);
    }

    /// From now on everything works.
    pub fn calm(&self) {
        self.state().calm = true;
    }

    pub fn all_acknowledged(&self) -> bool {
        let state = self.state();
        state.messages.iter().all(|message| state.acknowledged.contains_key(&message.number))
    }

    fn kill(&self, session: u64) {
        // The test may have ended.
        let _ = self.kill.send(session);
    }

    /// Never gives an answer to the process of this session.
    async fn outlive(&self, session: u64) -> Response {
        // An error means that the test has ended.
        let _ = self.session.clone().wait_for(|now| *now != session).await;
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }

    fn fate(&self) -> Fate {
        let chance = self.chance.random() % 1000;
        let mut state = self.state();
        state.counts.requests += 1;
        if state.calm || chance >= 6 * RATE {
            return Fate::Works;
        }
        let counts = &mut state.counts;
        let (count, fate) = match chance / RATE {
            0 => (&mut counts.killed_before_effect, Fate::KillBeforeEffect),
            1 => (&mut counts.killed_before_answer, Fate::KillBeforeAnswer),
            2 => (&mut counts.late, Fate::Late),
            3 => (&mut counts.lost, Fate::AnswerLost),
            4 => (&mut counts.limited, Fate::Limited),
            _ => (&mut counts.busy, Fate::Busy),
        };
        *count += 1;
        fate
    }

    async fn deliver(&self, session: u64) -> Response {
        let until = Instant::now() + POLL;
        loop {
            let due = self.state().due(session);
            if !due.is_empty() {
                if !self.state().calm && self.chance.random() % 1000 < 4 * RATE {
                    // About when the message gets into the journal.
                    self.state().counts.killed_at_delivery += 1;
                    let (platform, after) = (self.clone(), Duration::from_millis(self.chance.random() % 20));
                    tokio::spawn(async move {
                        sleep(after).await;
                        platform.kill(session);
                    });
                }
                return Json(due).into_response();
            }
            if Instant::now() > until {
                return Json(due).into_response();
            }
            sleep(POLL / 10).await;
        }
    }
}

impl State {
    /// What the process of this session is to be given, which is noted as given.
    fn due(&mut self, session: u64) -> Vec<Delivered> {
        let now = Instant::now();
        let is_due = |message: &&Delivered| {
            !self.acknowledged.contains_key(&message.number)
                && self
                    .deliveries
                    .get(&message.number)
                    .is_none_or(|(to, at)| *to != session || now.duration_since(*at) > REDELIVER_AFTER)
        };
        let due: Vec<Delivered> = self.messages.iter().filter(is_due).cloned().collect();
        for message in &due {
            let again = self.deliveries.insert(message.number, (session, now)).is_some();
            self.counts.delivered += 1;
            self.counts.redelivered += u64::from(again);
        }
        due
    }

    fn take_effect(&mut self, asked: &Asked) -> Result<Value, String> {
        match asked {
            Asked::Deliver => Ok(json!([])),
            Asked::Acknowledge { number } => {
                *self.acknowledged.entry(*number).or_default() += 1;
                Ok(Value::Null)
            }
            Asked::Post { conversation, key, text, is_file } => {
                if !self.messages.iter().any(|message| format!("puppet:C{}", message.conversation) == *conversation) {
                    return Err(format!("there is no conversation {conversation}"));
                }
                if text.is_empty() || text.chars().count() > MAX_CHARS {
                    return Err("a message has between 1 and 200 characters".into());
                }
                let (conversation, key, text) = (conversation.clone(), key.clone(), text.clone());
                self.posts.push(Post { conversation, key, text, is_file: *is_file });
                Ok(json!(format!("P{}", self.posts.len() - 1)))
            }
            Asked::Edit { message, text } => {
                if text.is_empty() || text.chars().count() > MAX_CHARS {
                    return Err("a message has between 1 and 200 characters".into());
                }
                let number = message.strip_prefix('P').and_then(|number| number.parse::<usize>().ok());
                let post = number.and_then(|number| self.posts.get_mut(number));
                let post = post.filter(|post| !post.is_file).ok_or("there is no such message")?;
                post.text.clone_from(text);
                Ok(Value::Null)
            }
            Asked::React { message_key, mark, shown } => {
                if !self.messages.iter().any(|message| message.key() == *message_key) {
                    return Err(format!("there is no message {message_key}"));
                }
                let marks = self.marks.entry(message_key.clone()).or_default();
                if *shown {
                    marks.insert(*mark)
                } else {
                    marks.remove(mark)
                };
                Ok(Value::Null)
            }
            Asked::Find { conversation, key } => {
                let found = self.posts.iter().position(|post| post.conversation == *conversation && post.key == *key);
                Ok(found.map_or(Value::Null, |number| json!(format!("P{number}"))))
            }
        }
    }
}

async fn asked(Shared(platform): Shared<Platform>, Path(session): Path<u64>, Json(asked): Json<Asked>) -> Response {
    if matches!(asked, Asked::Deliver) {
        return platform.deliver(session).await;
    }
    let effect = || match platform.state().take_effect(&asked) {
        Ok(answer) => Json(answer).into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
    };
    match platform.fate() {
        Fate::Works => effect(),
        Fate::KillBeforeEffect => {
            platform.kill(session);
            platform.outlive(session).await
        }
        Fate::KillBeforeAnswer => {
            effect();
            platform.kill(session);
            platform.outlive(session).await
        }
        Fate::Late => {
            let (late, asked) = (platform.clone(), asked.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(late.chance.random() % LATE_MS)).await;
                // What is refused has no effect.
                let _ = late.state().take_effect(&asked);
            });
            platform.kill(session);
            platform.outlive(session).await
        }
        Fate::AnswerLost => {
            effect();
            // No answer of a platform, and so nothing that says what was done.
            let body = axum::body::Body::from_stream(futures_util::stream::iter([Err::<bytes::Bytes, _>("broken")]));
            Response::new(body)
        }
        Fate::Limited => StatusCode::TOO_MANY_REQUESTS.into_response(),
        Fate::Busy => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// A script in a sprite says that it runs.
async fn ran(Shared(platform): Shared<Platform>, Path(number): Path<usize>) -> Response {
    *platform.state().runs.entry(number).or_default() += 1;
    if !platform.state().calm && platform.chance.random() % 1000 < 2 * RATE {
        let session = *platform.session.borrow();
        platform.kill(session);
    }
    "counted\n".into_response()
}
