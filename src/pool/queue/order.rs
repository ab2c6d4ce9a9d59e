//! The order in which waiting jobs will be served, told without serving them: what a job is told about its place is
//! what happens when nobody else comes and nobody is held.

use std::collections::{HashMap, VecDeque};

use super::{Channel, FairQueue, ORDINARY, Place, Tier, URGENT, URGENT_IN_A_ROW};
use crate::job::JobId;

impl<T> FairQueue<T> {
    /// How many jobs are served before this one, as things stand; of a job that is held, as if it were held no more
    /// from now on.
    pub fn ahead(&self, job: &JobId) -> Option<usize> {
        let number = *self.by_job.get(job)?;
        match &self.entries[&number].place {
            Place::HandedBack(_) => self.handed_back.iter().position(|other| *other == number),
            Place::Lane { tier, channel, requester } => {
                let within = self.tiers[*tier].ahead(*channel, *requester, number)?;
                Some(self.handed_back.len() + within + self.of_other_tier(*tier, within))
            }
        }
    }

    /// The next `limit` jobs in the order in which they will be served. Held ones are not among them.
    pub fn upcoming(&self, limit: usize) -> Vec<&T> {
        self.numbers_in_order(limit).iter().map(|number| &self.entries[number].item).collect()
    }

    /// Up to `limit` jobs that are held.
    pub fn held_back(&self, limit: usize) -> Vec<&T> {
        self.held_numbers(limit).iter().map(|number| &self.entries[number].item).collect()
    }

    /// Jobs of the other tier that are served before the one with `within` jobs of its own tier before it.
    fn of_other_tier(&self, tier: usize, within: usize) -> usize {
        let left_in_row = URGENT_IN_A_ROW - self.urgent_in_a_row;
        match tier {
            ORDINARY => self.tiers[URGENT].ready().min(within * URGENT_IN_A_ROW + left_in_row),
            _ if within < left_in_row => 0,
            _ => self.tiers[ORDINARY].ready().min(1 + (within - left_in_row) / URGENT_IN_A_ROW),
        }
    }

    pub(super) fn numbers_in_order(&self, limit: usize) -> Vec<u64> {
        let mut order: Vec<u64> = self.handed_back.iter().copied().take(limit).collect();
        let [mut urgent, mut ordinary] = self.tiers.each_ref().map(Walk::new);
        let mut in_a_row = self.urgent_in_a_row;
        while order.len() < limit {
            let is_urgent = !urgent.is_over() && (in_a_row < URGENT_IN_A_ROW || ordinary.is_over());
            let next = if is_urgent { urgent.next() } else { ordinary.next() };
            let Some(number) = next else { break };
            in_a_row = if is_urgent { (in_a_row + 1).min(URGENT_IN_A_ROW) } else { 0 };
            order.push(number);
        }
        order
    }

    /// In the order of coming.
    pub(super) fn held_numbers(&self, limit: usize) -> Vec<u64> {
        let channels = self.tiers.iter().flat_map(|tier| tier.channels.values());
        let lanes = channels
            .flat_map(|channel| channel.lanes.values().filter(|lane| channel.turn.is_none() || lane.turn.is_none()));
        let mut held: Vec<u64> = lanes.flat_map(|lane| lane.jobs.iter().copied().take(limit)).collect();
        held.sort_unstable();
        held.truncate(limit);
        held
    }
}

impl Tier {
    /// Jobs that may run.
    fn ready(&self) -> usize {
        self.turns.values().map(|channel| self.channels[channel].ready).sum()
    }

    /// Jobs of this tier before `number`.
    fn ahead(&self, channel: u64, requester: u64, number: u64) -> Option<usize> {
        let own = self.channels.get(&channel)?;
        let in_channel = own.ahead(requester, number)?;
        // Turns of the channel until then, and with that the turns of the others.
        let (turn, used) = (own.turn.unwrap_or(u64::MAX), if own.turn.is_some() { own.used } else { 0 });
        let turns = (in_channel + used) / own.weight;
        let of_others = self.turns.iter().filter(|(_, other)| **other != channel).map(|(other_turn, other)| {
            let other = &self.channels[other];
            let turns = turns + usize::from(*other_turn < turn);
            other.ready.min((turns * other.weight).saturating_sub(other.used))
        });
        Some(in_channel + of_others.sum::<usize>())
    }
}

impl Channel {
    /// Jobs of this channel before `number`.
    fn ahead(&self, requester: u64, number: u64) -> Option<usize> {
        let lane = self.lanes.get(&requester)?;
        let own = lane.jobs.binary_search(&number).ok()?;
        let turn = lane.turn.unwrap_or(u64::MAX);
        if own == 0 {
            // Most have one job: those before it in the turns are served first, each with one.
            return Some(self.turns.range(..turn).count());
        }
        let others = self.turns.iter().filter(|(_, seat)| seat.requester != requester);
        let of_others = others.map(|(other, seat)| seat.jobs.min(own + usize::from(*other < turn)));
        Some(own + of_others.sum::<usize>())
    }
}

/// Goes through a tier's jobs as they would be served, looking at a channel's lanes only when its turn comes.
struct Walk<'a> {
    tier: &'a Tier,
    /// Channels in the order of their turns, each with the jobs of its present turn.
    turns: VecDeque<(u64, usize)>,
    /// Lanes of the channels seen so far, each with the jobs taken from it.
    lanes: HashMap<u64, VecDeque<(u64, usize)>>,
}

impl<'a> Walk<'a> {
    fn new(tier: &'a Tier) -> Self {
        let turns = tier.turns.values().map(|channel| (*channel, tier.channels[channel].used)).collect();
        Self { tier, turns, lanes: HashMap::new() }
    }

    fn is_over(&self) -> bool {
        self.turns.is_empty()
    }

    fn next(&mut self) -> Option<u64> {
        let (number, used) = *self.turns.front()?;
        let channel = &self.tier.channels[&number];
        let lanes = self
            .lanes
            .entry(number)
            .or_insert_with(|| channel.turns.values().map(|seat| (seat.requester, 0)).collect());
        let (requester, taken) = lanes.pop_front()?;
        let jobs = &channel.lanes[&requester].jobs;
        if taken + 1 < jobs.len() {
            lanes.push_back((requester, taken + 1));
        }
        match (lanes.is_empty(), used + 1 >= channel.weight) {
            (true, _) => drop(self.turns.pop_front()),
            (false, true) => {
                self.turns.pop_front();
                self.turns.push_back((number, 0));
            }
            (false, false) => self.turns[0].1 = used + 1,
        }
        jobs.get(taken).copied()
    }
}
