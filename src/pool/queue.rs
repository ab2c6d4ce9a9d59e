//! The wait queue: who gets the next runner. Pure; the pool manager owns it.
//!
//! ```text
//! handed back ─▶ urgent ─▶ ordinary          a job that had its turn, then the two tiers: after a few urgent jobs in a
//!                  │          │              row an ordinary one is served, so that neither starves
//!                  ▼          ▼
//!              channels take turns           each as many jobs in a turn as its weight says
//!                  ▼
//!              requesters take turns         within the channel, one job a turn
//!                  ▼
//!              first come, first served      within one requester
//! ```
//!
//! So a heavy requester delays another of the same channel by at most one job a turn, and a crowded channel delays a
//! quiet one by at most its weight. Who has as many jobs running as one may have is *held*: out of the turns, in
//! nobody's way, and at the end of them again when a job of theirs has ended.
//!
//! What runs is counted in [`Slot`]s: a popped job comes with one, which its holder gives back when the job has ended.

mod order;
mod register;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use tokio::time::Instant;

use crate::config::SharingConfig;
use crate::job::{ChannelId, JobId, RequesterId};
use register::{Numbered, Register};

/// Urgent jobs that are served one after the other while an ordinary one waits.
pub const URGENT_IN_A_ROW: usize = 4;

/// A job's share of what may run at a time. Made by the queue only, so what runs can't be counted twice.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is not given back holds its requester's next job back for ever"]
pub struct Slot {
    requester: u64,
    channel: u64,
}

/// Why a job may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// So many jobs wait in all.
    Queue { limit: usize },
    /// So many of its requester's.
    Requester { limit: usize },
    /// So many of its channel's.
    Channel { limit: usize },
}

/// What keeps a waiting job from its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// So many jobs of its requester's run.
    Requester { limit: usize },
    /// So many of its channel's.
    Channel { limit: usize },
}

/// Whose job it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    pub job: JobId,
    pub requester: RequesterId,
    pub channel: ChannelId,
}

/// Jobs waiting for a runner, each with what the owner wants to get back (`T`).
#[derive(Debug)]
pub struct FairQueue<T> {
    max_queued: usize,
    rules: SharingConfig,
    /// Jobs that had their turn; each keeps its slot.
    handed_back: VecDeque<u64>,
    /// Urgent jobs, then the others.
    tiers: [Tier; 2],
    /// Urgent jobs served since the last ordinary one, up to [`URGENT_IN_A_ROW`].
    urgent_in_a_row: usize,
    entries: Numbered<Entry<T>>,
    by_job: HashMap<JobId, u64>,
    requesters: Register<RequesterId>,
    channels: Register<ChannelId>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Numbers jobs and turns, so that later ones are larger.
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    whose: Whose,
    place: Place,
    deadline: Instant,
    item: T,
}

#[derive(Debug)]
enum Place {
    HandedBack(Slot),
    Lane { tier: usize, channel: u64, requester: u64 },
}

/// Channels that take turns.
#[derive(Debug, Default)]
struct Tier {
    channels: Numbered<Channel>,
    /// Channels with a job that may run, in the order of their turns.
    turns: BTreeMap<u64, u64>,
}

/// One channel's waiting jobs.
#[derive(Debug)]
struct Channel {
    weight: usize,
    /// Its place in the turns; `None` while it is held or has nothing that may run.
    turn: Option<u64>,
    /// Jobs served in the present turn.
    used: usize,
    lanes: Numbered<Lane>,
    /// Requesters with a job that may run, in the order of their turns.
    turns: BTreeMap<u64, Seat>,
    /// Jobs of those requesters.
    ready: usize,
}

/// A requester's place in the turns, with the number of its jobs: telling places reads all of these, and must not look
/// each one up.
#[derive(Debug)]
struct Seat {
    requester: u64,
    jobs: usize,
}

/// One requester's jobs in one channel, oldest first.
#[derive(Debug, Default)]
struct Lane {
    jobs: VecDeque<u64>,
    turn: Option<u64>,
}

const URGENT: usize = 0;
const ORDINARY: usize = 1;

impl<T> FairQueue<T> {
    /// An empty queue of at most `max_queued` jobs.
    pub fn new(max_queued: usize, rules: SharingConfig) -> Self {
        Self {
            max_queued,
            rules,
            handed_back: VecDeque::new(),
            tiers: [Tier::default(), Tier::default()],
            urgent_in_a_row: 0,
            entries: Numbered::default(),
            by_job: HashMap::new(),
            requesters: Register::new(),
            channels: Register::new(),
            deadlines: BTreeSet::new(),
            next: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether one more job may wait. An urgent requester is bound by its own limit only: whoever has to act now is not
    /// refused because others have filled the queue.
    pub fn has_room(&self, requester: &RequesterId, channel: &ChannelId) -> Result<(), Full> {
        let SharingConfig { max_queued_per_user, max_queued_per_channel, .. } = self.rules;
        if self.requesters.of(requester).0 >= max_queued_per_user {
            return Err(Full::Requester { limit: max_queued_per_user });
        }
        if self.rules.is_urgent(requester) {
            return Ok(());
        }
        if self.channels.of(channel).0 >= max_queued_per_channel {
            return Err(Full::Channel { limit: max_queued_per_channel });
        }
        if self.entries.len() >= self.max_queued {
            return Err(Full::Queue { limit: self.max_queued });
        }
        Ok(())
    }

    /// What would keep a job of this requester in this channel from running now, beside a lack of runners.
    pub fn held(&self, requester: &RequesterId, channel: &ChannelId) -> Option<Held> {
        let SharingConfig { max_running_per_user, max_running_per_channel, .. } = self.rules;
        if self.requesters.of(requester).1 >= max_running_per_user {
            return Some(Held::Requester { limit: max_running_per_user });
        }
        let bound = !self.rules.is_urgent(requester) && self.channels.of(channel).1 >= max_running_per_channel;
        bound.then_some(Held::Channel { limit: max_running_per_channel })
    }

    /// Adds a job at the end of its requester's line. A job that waits already keeps its place, and the new item is
    /// given back.
    pub fn push(&mut self, whose: Whose, deadline: Instant, item: T) -> Result<(), T> {
        if self.by_job.contains_key(&whose.job) {
            return Err(item);
        }
        let tier = if self.rules.is_urgent(&whose.requester) { URGENT } else { ORDINARY };
        let (requester, channel) = self.enter(&whose.requester, &whose.channel);
        let weight = self.rules.weight(&whose.channel);
        let place = Place::Lane { tier, channel, requester };
        let number = self.admit(whose, place, deadline, item);
        let load = self.requesters.load(requester);
        load.queued += 1;
        load.lanes.insert((tier, channel));
        self.channels.load(channel).queued += 1;

        let line = self.tiers[tier].channels.entry(channel).or_insert_with(|| Channel::new(weight));
        let lane = line.lanes.entry(requester).or_default();
        lane.jobs.push_back(number);
        match lane.turn {
            Some(turn) => {
                line.ready += 1;
                line.seat(turn).jobs += 1;
            }
            None => self.seat_lane(tier, channel, requester),
        }
        Ok(())
    }

    /// Adds a job that had its turn, with its slot, before all others; the first one handed back is served first.
    pub fn push_front(&mut self, whose: Whose, slot: Slot, deadline: Instant, item: T) -> Result<(), T> {
        if self.by_job.contains_key(&whose.job) {
            self.release(slot);
            return Err(item);
        }
        let number = self.admit(whose, Place::HandedBack(slot), deadline, item);
        self.handed_back.push_back(number);
        Ok(())
    }

    /// Takes the job whose turn it is. `None` when nothing waits, or all that waits is held.
    pub fn pop(&mut self) -> Option<(T, Slot)> {
        if let Some(number) = self.handed_back.pop_front() {
            let entry = self.forget(number)?;
            let Place::HandedBack(slot) = entry.place else { return None };
            return Some((entry.item, slot));
        }
        let tier = self.next_tier()?;
        let (&channel_turn, &channel) = self.tiers[tier].turns.first_key_value()?;
        let line = self.tiers[tier].channels.get_mut(&channel).expect("a channel with a turn has jobs");
        let (_, Seat { requester, .. }) =
            line.turns.pop_first().expect("a channel with a turn has a requester with one");
        let lane = line.lanes.get_mut(&requester).expect("a requester with a turn has a lane");
        let number = lane.jobs.pop_front().expect("a requester with a turn has a job");
        lane.turn = None;
        line.ready -= lane.jobs.len() + 1;
        line.used += 1;
        let turn_is_over = line.used >= line.weight;

        let entry = self.forget(number)?;
        self.requesters.load(requester).queued -= 1;
        self.channels.load(channel).queued -= 1;
        let slot = self.occupy_numbers(requester, channel);
        // Its next job has its turn after all others of the channel, and the channel after all others.
        self.seat_lane(tier, channel, requester);
        let line = self.tiers[tier].channels.get_mut(&channel).expect("it was there a moment ago");
        let goes_on = line.turn == Some(channel_turn) && !turn_is_over && !line.turns.is_empty();
        if !goes_on {
            self.unseat_channel(tier, channel);
            self.seat_channel(tier, channel);
        }
        self.forget_empty_lane(tier, channel, requester);
        Some((entry.item, slot))
    }

    /// The slot of a job that runs already, as a new queue finds it. It is counted whatever the limits say.
    pub fn occupy(&mut self, requester: &RequesterId, channel: &ChannelId) -> Slot {
        let (requester, channel) = self.enter(requester, channel);
        self.occupy_numbers(requester, channel)
    }

    /// Takes a slot back: its job runs no more.
    pub fn release(&mut self, slot: Slot) {
        let Slot { requester, channel } = slot;
        self.requesters.load(requester).running -= 1;
        self.channels.load(channel).running -= 1;
        let lanes: Vec<_> = self.requesters.load(requester).lanes.iter().copied().collect();
        for (tier, channel) in lanes {
            self.seat_lane(tier, channel, requester);
        }
        self.seat_channel(ORDINARY, channel);
        self.requesters.forget_idle(requester);
        self.channels.forget_idle(channel);
    }

    /// What waits under this job's name.
    pub fn get(&self, job: &JobId) -> Option<&T> {
        Some(&self.entries[self.by_job.get(job)?].item)
    }

    /// Takes a job out, wherever it stands.
    pub fn remove(&mut self, job: &JobId) -> Option<T> {
        let number = *self.by_job.get(job)?;
        self.take_out(number)
    }

    /// Takes out all jobs whose time to wait is over, the longest overdue first.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        while let Some(&(deadline, number)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            expired.extend(self.take_out(number));
        }
        expired
    }

    /// When the next job's time to wait is over.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes out everything, in the order of service, what is held last.
    pub fn drain(&mut self) -> Vec<T> {
        let mut order = self.numbers_in_order(usize::MAX);
        order.extend(self.held_numbers(usize::MAX));
        order.into_iter().filter_map(|number| self.take_out(number)).collect()
    }

    // Names and slots.

    fn enter(&mut self, requester: &RequesterId, channel: &ChannelId) -> (u64, u64) {
        let fresh = self.fresh();
        (self.requesters.enter(requester, fresh), self.channels.enter(channel, fresh))
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn occupy_numbers(&mut self, requester: u64, channel: u64) -> Slot {
        self.requesters.load(requester).running += 1;
        self.channels.load(channel).running += 1;
        if self.is_held(requester) {
            let lanes: Vec<_> = self.requesters.load(requester).lanes.iter().copied().collect();
            for (tier, channel) in lanes {
                self.unseat_lane(tier, channel, requester);
            }
        }
        if self.is_channel_held(ORDINARY, channel) {
            self.unseat_channel(ORDINARY, channel);
        }
        Slot { requester, channel }
    }

    fn is_held(&self, requester: u64) -> bool {
        self.requesters.running(requester) >= self.rules.max_running_per_user
    }

    fn is_channel_held(&self, tier: usize, channel: u64) -> bool {
        tier == ORDINARY && self.channels.running(channel) >= self.rules.max_running_per_channel
    }

    // Turns.

    /// The tier that is served next.
    fn next_tier(&mut self) -> Option<usize> {
        let [urgent, ordinary] = self.tiers.each_ref().map(|tier| !tier.turns.is_empty());
        match (urgent, ordinary) {
            (false, false) => None,
            (true, ordinary) if !ordinary || self.urgent_in_a_row < URGENT_IN_A_ROW => {
                self.urgent_in_a_row = (self.urgent_in_a_row + 1).min(URGENT_IN_A_ROW);
                Some(URGENT)
            }
            _ => {
                self.urgent_in_a_row = 0;
                Some(ORDINARY)
            }
        }
    }

    /// Gives a requester that may run something a turn after the others of the channel, unless it has one.
    fn seat_lane(&mut self, tier: usize, channel: u64, requester: u64) {
        let (held, turn) = (self.is_held(requester), self.fresh());
        let Some(line) = self.tiers[tier].channels.get_mut(&channel) else { return };
        let Some(lane) = line.lanes.get_mut(&requester) else { return };
        if held || lane.turn.is_some() || lane.jobs.is_empty() {
            return;
        }
        lane.turn = Some(turn);
        line.ready += lane.jobs.len();
        line.turns.insert(turn, Seat { requester, jobs: lane.jobs.len() });
        self.seat_channel(tier, channel);
    }

    fn unseat_lane(&mut self, tier: usize, channel: u64, requester: u64) {
        let Some(line) = self.tiers[tier].channels.get_mut(&channel) else { return };
        let Some(lane) = line.lanes.get_mut(&requester) else { return };
        let Some(turn) = lane.turn.take() else { return };
        line.turns.remove(&turn);
        line.ready -= lane.jobs.len();
        if line.turns.is_empty() {
            self.unseat_channel(tier, channel);
        }
    }

    fn seat_channel(&mut self, tier: usize, channel: u64) {
        let (held, turn) = (self.is_channel_held(tier, channel), self.fresh());
        let Tier { channels, turns } = &mut self.tiers[tier];
        let Some(line) = channels.get_mut(&channel) else { return };
        if held || line.turn.is_some() || line.turns.is_empty() {
            return;
        }
        line.turn = Some(turn);
        line.used = 0;
        turns.insert(turn, channel);
    }

    fn unseat_channel(&mut self, tier: usize, channel: u64) {
        let Tier { channels, turns } = &mut self.tiers[tier];
        let Some(turn) = channels.get_mut(&channel).and_then(|line| line.turn.take()) else { return };
        turns.remove(&turn);
    }

    // Coming and going.

    fn admit(&mut self, whose: Whose, place: Place, deadline: Instant, item: T) -> u64 {
        let number = self.fresh();
        self.deadlines.insert((deadline, number));
        self.by_job.insert(whose.job.clone(), number);
        self.entries.insert(number, Entry { whose, place, deadline, item });
        number
    }

    fn forget(&mut self, number: u64) -> Option<Entry<T>> {
        let entry = self.entries.remove(&number)?;
        self.by_job.remove(&entry.whose.job);
        self.deadlines.remove(&(entry.deadline, number));
        Some(entry)
    }

    fn take_out(&mut self, number: u64) -> Option<T> {
        let entry = self.forget(number)?;
        match entry.place {
            Place::HandedBack(slot) => {
                self.handed_back.retain(|other| *other != number);
                self.release(slot);
            }
            Place::Lane { tier, channel, requester } => {
                let line = self.tiers[tier].channels.get_mut(&channel).expect("a waiting job is in its channel");
                let lane = line.lanes.get_mut(&requester).expect("a waiting job is in its requester's lane");
                // Numbers grow, so a lane is sorted.
                let place = lane.jobs.binary_search(&number).expect("a waiting job is in its requester's lane");
                lane.jobs.remove(place);
                let (turn, is_empty) = (lane.turn, lane.jobs.is_empty());
                if let Some(turn) = turn {
                    line.ready -= 1;
                    line.seat(turn).jobs -= 1;
                }
                if is_empty {
                    self.unseat_lane(tier, channel, requester);
                }
                self.requesters.load(requester).queued -= 1;
                self.channels.load(channel).queued -= 1;
                self.forget_empty_lane(tier, channel, requester);
                self.requesters.forget_idle(requester);
                self.channels.forget_idle(channel);
            }
        }
        Some(entry.item)
    }

    fn forget_empty_lane(&mut self, tier: usize, channel: u64, requester: u64) {
        let Some(line) = self.tiers[tier].channels.get_mut(&channel) else { return };
        if line.lanes.get(&requester).is_some_and(|lane| lane.jobs.is_empty()) {
            line.lanes.remove(&requester);
            if line.lanes.is_empty() {
                self.tiers[tier].channels.remove(&channel);
            }
            self.requesters.load(requester).lanes.remove(&(tier, channel));
        }
    }
}

impl Channel {
    fn new(weight: usize) -> Self {
        Self { weight, turn: None, used: 0, lanes: Numbered::default(), turns: BTreeMap::new(), ready: 0 }
    }

    fn seat(&mut self, turn: u64) -> &mut Seat {
        self.turns.get_mut(&turn).expect("a lane with a turn has a seat")
    }
}
