//! Passes: which job holds which token, what it may do and has done. No I/O, no waiting.
//!
//! A token exists from [`Passes::open`] until its [`Pass`] is dropped, which whoever runs the job does however it ends.
//! Then it means nothing, and everything that used it is told to end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Upstream;
use super::budget::{Budget, Pace, Reached, Spent};
use super::meter::Tokens;
use super::provider::Denied;
use crate::job::{JobId, RequesterId};
use crate::world::World;

/// Requests and sockets that one job may have at a time. An agent with sub-agents has about ten.
const MAX_AT_ONCE: usize = 32;
/// Amp threads that one job may make: one, and one for each sub-agent that asks for its own.
const MAX_THREADS: usize = 16;
/// Socket tokens that one job may hold; the CLI asks for three, and for one with each reconnect.
const MAX_SOCKET_TOKENS: usize = 256;
/// Refusals of one job that are logged; a hostile one could fill the disk.
const MAX_LOGGED: u32 = 20;

/// Tokens are looked up by their hash, so that the time of a lookup tells nothing of a token.
type Fingerprint = [u8; 32];

fn fingerprint(token: &str) -> Fingerprint {
    Sha256::digest(token.as_bytes()).into()
}

/// What a pass is asked for with.
#[derive(Clone, Debug)]
pub struct Holder {
    pub job: JobId,
    pub runner: String,
    pub requester: RequesterId,
}

/// All passes that are open. Cheap to clone.
#[derive(Clone, Default)]
pub struct Passes(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    passes: BTreeMap<Fingerprint, Arc<Open>>,
    /// The socket tokens that jobs were given, each with its pass.
    sockets: BTreeMap<Fingerprint, Arc<Open>>,
}

/// One open pass.
pub struct Open {
    pub holder: Holder,
    pub upstream: Arc<Upstream>,
    pub budget: Budget,
    /// Cancelled when the pass ends: connections that use it are cut.
    pub ended: CancellationToken,
    /// Cancelled when a limit is reached.
    pub limit: CancellationToken,
    expires: Instant,
    slots: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    pace: Pace,
    spent: Spent,
    /// Calls that are being answered, by number: what they have used so far.
    running: BTreeMap<u64, Tokens>,
    next_call: u64,
    reached: Option<Reached>,
    threads: BTreeSet<String>,
    /// The job's socket tokens, each with the real one and the thread that it is for.
    sockets: BTreeMap<Fingerprint, (SecretString, String)>,
    refused: u32,
}

/// Why a request may not begin although its token is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    TooFast,
    TooMany,
    Limit(Reached),
}

impl Passes {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Nothing under the lock can leave the tables half-written, so a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a token for one job.
    pub fn open(
        &self,
        holder: Holder,
        upstream: Arc<Upstream>,
        budget: Budget,
        expires: Instant,
        world: &World,
    ) -> (SecretString, Arc<Open>) {
        let token = format!("jane_{}", world.token(32));
        let state = State {
            pace: Pace::new(Instant::now()),
            spent: Spent::default(),
            running: BTreeMap::new(),
            next_call: 0,
            reached: None,
            threads: BTreeSet::new(),
            sockets: BTreeMap::new(),
            refused: 0,
        };
        let open = Arc::new(Open {
            holder,
            upstream,
            budget,
            ended: CancellationToken::new(),
            limit: CancellationToken::new(),
            expires,
            slots: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            state: Mutex::new(state),
        });
        self.tables().passes.insert(fingerprint(&token), open.clone());
        (token.into(), open)
    }

    /// Ends a pass: its tokens mean nothing from now on, and its connections are told.
    pub fn close(&self, token: &SecretString) {
        let mut tables = self.tables();
        let Some(open) = tables.passes.remove(&fingerprint(token.expose_secret())) else { return };
        for socket in open.state().sockets.keys() {
            tables.sockets.remove(socket);
        }
        open.ended.cancel();
    }

    /// The pass of a token that is good now.
    pub fn find(&self, token: &str, now: Instant) -> Option<Arc<Open>> {
        let open = self.tables().passes.get(&fingerprint(token)).cloned()?;
        open.is_good(now).then_some(open)
    }

    /// The pass of a socket token that is good now, and the real token, if it is for this thread.
    pub fn find_socket(&self, token: &str, thread: &str, now: Instant) -> Option<(Arc<Open>, SecretString)> {
        let fingerprint = fingerprint(token);
        let open = self.tables().sockets.get(&fingerprint).cloned()?;
        let (real, of) = open.state().sockets.get(&fingerprint).cloned()?;
        (open.is_good(now) && of == thread).then_some((open, real))
    }

    /// Keeps what the server gave out for a thread of this job; the socket token that the job gets instead.
    ///
    /// # Errors
    /// When the job has as many as it may.
    pub fn thread_opened(
        &self,
        open: &Arc<Open>,
        thread: &str,
        real: SecretString,
        world: &World,
    ) -> Result<String, Denied> {
        let token = format!("jane_ws_{}", world.token(32));
        let fingerprint = fingerprint(&token);
        let mut tables = self.tables();
        let mut state = open.state();
        let is_new = !state.threads.contains(thread);
        if state.sockets.len() >= MAX_SOCKET_TOKENS || (is_new && state.threads.len() >= MAX_THREADS) {
            return Err(Denied::Threads);
        }
        // A pass that ended while the server answered gets nothing.
        if !open.ended.is_cancelled() {
            state.threads.insert(thread.to_owned());
            state.sockets.insert(fingerprint, (real, thread.to_owned()));
            tables.sockets.insert(fingerprint, open.clone());
        }
        Ok(token)
    }

    /// Passes that are open now.
    pub fn count(&self) -> usize {
        self.tables().passes.len()
    }

    /// Ends the passes whose time is up, whatever became of who holds them.
    pub fn expire(&self, now: Instant) {
        let mut tables = self.tables();
        tables.sockets.retain(|_, open| open.expires > now);
        tables.passes.retain(|_, open| {
            let good = open.expires > now;
            if !good {
                open.ended.cancel();
            }
            good
        });
    }

    /// Tokens that open passes of this requester have used so far.
    pub fn used_by(&self, requester: &RequesterId) -> u64 {
        let tables = self.tables();
        let of = tables.passes.values().filter(|open| open.holder.requester == *requester);
        of.map(|open| open.spent().tokens.total()).fold(0, u64::saturating_add)
    }
}

impl Open {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_good(&self, now: Instant) -> bool {
        !self.ended.is_cancelled() && now < self.expires
    }

    /// Lets a request begin; it holds its place until the permit is dropped.
    ///
    /// # Errors
    /// When the job asks too fast, has too much going on, or `counts` and it may use no more.
    pub fn begin(&self, counts: bool, now: Instant) -> Result<OwnedSemaphorePermit, Busy> {
        let mut state = self.state();
        if counts && let Some(reached) = self.budget.is_used_up(&Self::sum(&state)) {
            self.reach(&mut state, reached);
            return Err(Busy::Limit(reached));
        }
        if !state.pace.take(now) {
            return Err(Busy::TooFast);
        }
        self.slots.clone().try_acquire_owned().map_err(|_| Busy::TooMany)
    }

    /// A call of the model is being answered.
    pub fn call_began(&self) -> u64 {
        let mut state = self.state();
        let call = state.next_call;
        state.next_call += 1;
        state.spent.turns += 1;
        state.running.insert(call, Tokens::default());
        call
    }

    /// What a call has used so far; whether it may go on.
    pub fn call_used(&self, call: u64, tokens: Tokens) -> bool {
        let mut state = self.state();
        if let Some(used) = state.running.get_mut(&call) {
            *used = tokens;
        }
        let exceeded = self.budget.is_exceeded(&Self::sum(&state));
        if let Some(reached) = exceeded {
            self.reach(&mut state, reached);
        }
        exceeded.is_none()
    }

    /// A call is over, having used this.
    pub fn call_ended(&self, call: u64, tokens: Tokens) {
        self.call_used(call, tokens);
        let mut state = self.state();
        if let Some(used) = state.running.remove(&call) {
            state.spent.tokens = state.spent.tokens.plus(used);
        }
    }

    fn reach(&self, state: &mut State, reached: Reached) {
        state.reached.get_or_insert(reached);
        self.limit.cancel();
    }

    fn sum(state: &State) -> Spent {
        let tokens = state.running.values().fold(state.spent.tokens, |sum, used| sum.plus(*used));
        Spent { tokens, ..state.spent }
    }

    /// What was used until now, running calls included.
    pub fn spent(&self) -> Spent {
        Self::sum(&self.state())
    }

    /// The limit that was reached.
    pub fn reached(&self) -> Option<Reached> {
        self.state().reached
    }

    /// Whether the Amp thread was made by this job.
    pub fn owns(&self, thread: &str) -> bool {
        self.state().threads.contains(thread)
    }

    /// The job's Amp threads, known before its own output names them.
    pub fn threads(&self) -> Vec<String> {
        self.state().threads.iter().cloned().collect()
    }

    /// Counts a refusal; whether it is one of those to be logged.
    pub fn refused(&self) -> bool {
        let mut state = self.state();
        state.refused = state.refused.saturating_add(1);
        state.refused <= MAX_LOGGED
    }

    pub fn refusals(&self) -> u32 {
        self.state().refused
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("holder", &self.holder).field("spent", &self.spent()).finish_non_exhaustive()
    }
}

/// A job's pass. Dropping it ends the pass.
pub struct Pass {
    passes: Passes,
    token: SecretString,
    open: Arc<Open>,
}

impl Pass {
    pub(super) fn new(passes: Passes, token: SecretString, open: Arc<Open>) -> Self {
        Self { passes, token, open }
    }

    /// What the agent shows as its key.
    pub fn token(&self) -> &SecretString {
        &self.token
    }

    pub fn spent(&self) -> Spent {
        self.open.spent()
    }

    pub fn reached(&self) -> Option<Reached> {
        self.open.reached()
    }

    pub fn threads(&self) -> Vec<String> {
        self.open.threads()
    }

    /// Resolves when a limit is reached; never, if none is.
    pub async fn limit_reached(&self) {
        self.open.limit.cancelled().await;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.passes.close(&self.token);
        let (spent, refused) = (self.open.spent(), self.open.refusals());
        tracing::info!(
            job = %self.open.holder.job, runner = self.open.holder.runner, turns = spent.turns,
            tokens = spent.tokens.total(), refused, "a pass has ended"
        );
    }
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.open.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::provider;
    use super::*;

    const THREAD: &str = "T-00000000-0000-4000-8000-000000000001";

    fn open(passes: &Passes, world: &World, budget: Budget) -> Pass {
        let holder = Holder { job: JobId::new("01job"), runner: "r-0".into(), requester: RequesterId::new("slack:U1") };
        let upstream = Upstream::new(&provider::AMP, "https://amp.test", "real".into()).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let (token, open) = passes.open(holder, Arc::new(upstream), budget, until, world);
        Pass::new(passes.clone(), token, open)
    }

    fn finds(passes: &Passes, token: &SecretString) -> bool {
        passes.find(token.expose_secret(), Instant::now()).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_until_its_pass_is_dropped_or_its_time_is_up() {
        let (passes, world) = (Passes::default(), World::seeded(1));
        let pass = open(&passes, &world, Budget::default());
        let token = pass.token().clone();
        assert!(finds(&passes, &token) && token.expose_secret().len() == 5 + 64);
        assert!(passes.find("jane_0", Instant::now()).is_none() && passes.find("", Instant::now()).is_none());
        let ended = pass.open.ended.clone();
        drop(pass);
        assert!(!finds(&passes, &token) && ended.is_cancelled() && passes.count() == 0);

        let late = open(&passes, &world, Budget::default());
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(!finds(&passes, late.token()) && passes.count() == 1);
        passes.expire(Instant::now());
        assert!(passes.count() == 0 && late.open.ended.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_token_is_good_for_its_thread_and_ends_with_its_pass() {
        let (passes, world) = (Passes::default(), World::seeded(1));
        let pass = open(&passes, &world, Budget::default());
        let token = passes.thread_opened(&pass.open, THREAD, "real".into(), &world).unwrap();
        let find = |thread| passes.find_socket(&token, thread, Instant::now());
        assert_eq!(find(THREAD).unwrap().1.expose_secret(), "real");
        assert!(find("T-other").is_none() && pass.open.owns(THREAD) && !pass.open.owns("T-other"));
        assert!(passes.find(&token, Instant::now()).is_none(), "it is no key");
        let key = pass.token().expose_secret().to_owned();
        assert!(passes.find_socket(&key, THREAD, Instant::now()).is_none(), "and a key is no socket token");
        let open = pass.open.clone();
        drop(pass);
        assert!(passes.find_socket(&token, THREAD, Instant::now()).is_none());
        let late = passes.thread_opened(&open, THREAD, "real".into(), &world).unwrap();
        assert!(passes.find_socket(&late, THREAD, Instant::now()).is_none(), "an answer that comes late gives nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn threads_and_requests_of_a_job_are_limited() {
        let (passes, world) = (Passes::default(), World::seeded(1));
        let pass = open(&passes, &world, Budget::default());
        let made =
            (0..100).filter(|n| passes.thread_opened(&pass.open, &format!("T-{n}"), "real".into(), &world).is_ok());
        assert_eq!(made.count(), MAX_THREADS);
        let permits: Vec<_> = (0..50).map_while(|_| pass.open.begin(false, Instant::now()).ok()).collect();
        assert_eq!(permits.len(), MAX_AT_ONCE);
        assert_eq!(pass.open.begin(false, Instant::now()).unwrap_err(), Busy::TooMany);
        drop(permits);
        while pass.open.begin(false, Instant::now()).is_ok() {}
        assert_eq!(pass.open.begin(false, Instant::now()).unwrap_err(), Busy::TooFast);
    }

    #[tokio::test(start_paused = true)]
    async fn running_calls_count_together_and_the_limit_is_told_once() {
        let (passes, world) = (Passes::default(), World::seeded(1));
        let pass = open(&passes, &world, Budget { tokens: Some(100), ..Budget::default() });
        let used = |output| Tokens { output, ..Tokens::default() };
        let (a, b) = (pass.open.call_began(), pass.open.call_began());
        assert!(pass.open.call_used(a, used(60)) && pass.open.call_used(b, used(40)));
        assert!(!pass.open.limit.is_cancelled() && passes.used_by(&RequesterId::new("slack:U1")) == 100);
        assert!(!pass.open.call_used(b, used(41)));
        assert!(pass.open.limit.is_cancelled());
        pass.open.call_ended(a, used(60));
        pass.open.call_ended(b, used(41));
        assert_eq!((pass.spent().turns, pass.spent().tokens.total()), (2, 101));
        assert_eq!(pass.open.begin(true, Instant::now()).unwrap_err(), Busy::Limit(Reached::Tokens { limit: 100 }));
        assert!(
            pass.open.begin(false, Instant::now()).is_ok(),
            "what costs nothing goes on, so that a run can end well"
        );
    }
}
