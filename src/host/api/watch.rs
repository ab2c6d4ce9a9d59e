//! `/v1/sprites` as a stream: what each sprite is doing, then each change, with signs of life between.
//!
//! A task looks at the sprites now and then and compares. That is cheap (a few hundred states in memory), also sees
//! sandboxes that died by themselves, and needs nothing from the rest of the host.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Api;
use super::sprites::{counters, status};
use crate::host::store::micros;

/// Between two looks: a change is told within this time.
const LOOK: Duration = Duration::from_millis(500);

/// Between two signs of life when nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Lines that wait for a client; one that takes none is not looked for further.
const QUEUE: usize = 64;

/// The states of at most `limit` sprites with that prefix, and what becomes of them, until the client leaves or the
/// host stops. A sprite that is deleted is seen in the organization's numbers, since the API has no word for its end.
pub fn changes(api: Arc<Api>, prefix: String, limit: usize) -> impl Stream<Item = Value> + Send + 'static {
    let (lines, queue) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let stop = api.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = lines.closed() => {}
            () = look(&api, &prefix, limit, &lines) => {}
        }
    });
    stream::unfold(queue, async |mut queue| Some((queue.recv().await?, queue)))
}

/// Returns when the client is gone.
async fn look(api: &Api, prefix: &str, limit: usize, lines: &mpsc::Sender<Value>) {
    let mut known = BTreeMap::new();
    let mut numbers = Value::Null;
    let mut told = Instant::now();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let states: BTreeMap<String, (String, &'static str)> = api
            .store
            .all()
            .into_iter()
            .map(|sprite| (sprite.meta(), status(&sprite)))
            .filter(|(meta, _)| meta.name.starts_with(prefix))
            .take(limit)
            .map(|(meta, status)| (meta.name, (meta.id, status)))
            .collect();
        let org = counters(&api.store);
        let now = micros(api.store.setup().world.now());
        let mut news: Vec<Value> = states
            .iter()
            .filter(|(name, state)| known.get(*name) != Some(*state))
            .map(|(name, (_, status))| {
                json!({"name": name, "status": status, "running_version": super::VERSION, "timestamp": now, "org": org})
            })
            .collect();
        if news.is_empty() && (numbers != org || told.elapsed() >= HEARTBEAT) {
            news.push(json!({"type": "heartbeat", "timestamp": now, "org": org}));
        }
        if !news.is_empty() {
            told = Instant::now();
        }
        for line in news {
            if lines.send(line).await.is_err() {
                return;
            }
        }
        known = states;
        numbers = org;
    }
}
