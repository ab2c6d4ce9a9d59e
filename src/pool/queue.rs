//! The wait queue: fair between requesters, first come first served within one. Pure; the pool manager owns it.
//!
//! Requesters take turns: each turn serves the oldest job of the next requester that has one waiting, so a heavy user
//! delays another by at most one job per turn. A job that was given back (its runner failed before the agent started)
//! goes to the very front, since it has had its turn already.

use std::collections::{BTreeSet, HashMap, VecDeque};

use tokio::time::Instant;

use crate::job::{JobId, RequesterId};

/// Jobs waiting for a runner, each with what the owner wants to get back (`T`).
#[derive(Debug)]
pub struct FairQueue<T> {
    front: VecDeque<u64>,
    lanes: HashMap<RequesterId, VecDeque<u64>>,
    /// Requesters that have a job waiting, in the order of their turns.
    turns: VecDeque<RequesterId>,
    entries: HashMap<u64, Entry<T>>,
    by_job: HashMap<JobId, u64>,
    deadlines: BTreeSet<(Instant, u64)>,
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    job: JobId,
    requester: RequesterId,
    deadline: Instant,
    item: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            front: VecDeque::new(),
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            entries: HashMap::new(),
            by_job: HashMap::new(),
            deadlines: BTreeSet::new(),
            next: 0,
        }
    }
}

impl<T> FairQueue<T> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a job at the end of its requester's line. A job that waits already keeps its place, and the new item is
    /// given back.
    pub fn push(&mut self, job: JobId, requester: RequesterId, deadline: Instant, item: T) -> Result<(), T> {
        let entry = self.admit(job, requester.clone(), deadline, item)?;
        let lane = self.lanes.entry(requester.clone()).or_default();
        if lane.is_empty() {
            self.turns.push_back(requester);
        }
        lane.push_back(entry);
        Ok(())
    }

    /// Adds a job that had its turn before all others; the first one given back is served first.
    pub fn push_front(&mut self, job: JobId, requester: RequesterId, deadline: Instant, item: T) -> Result<(), T> {
        let entry = self.admit(job, requester, deadline, item)?;
        self.front.push_back(entry);
        Ok(())
    }

    fn admit(&mut self, job: JobId, requester: RequesterId, deadline: Instant, item: T) -> Result<u64, T> {
        if self.by_job.contains_key(&job) {
            return Err(item);
        }
        let number = self.next;
        self.next += 1;
        self.deadlines.insert((deadline, number));
        self.by_job.insert(job.clone(), number);
        self.entries.insert(number, Entry { job, requester, deadline, item });
        Ok(number)
    }

    /// Takes the job whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        if let Some(number) = self.front.pop_front() {
            return self.forget(number);
        }
        let requester = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&requester).expect("a requester with a turn has a lane");
        let number = lane.pop_front().expect("a requester with a turn has a job waiting");
        if lane.is_empty() {
            self.lanes.remove(&requester);
        } else {
            self.turns.push_back(requester);
        }
        self.forget(number)
    }

    /// What waits under this job's name.
    pub fn get(&self, job: &JobId) -> Option<&T> {
        Some(&self.entries[self.by_job.get(job)?].item)
    }

    /// Takes a job out, wherever it stands.
    pub fn remove(&mut self, job: &JobId) -> Option<T> {
        let number = *self.by_job.get(job)?;
        self.unlink(number);
        self.forget(number)
    }

    /// Takes out all jobs whose time to wait is over, the longest overdue first.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        while let Some(&(deadline, number)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.unlink(number);
            expired.extend(self.forget(number));
        }
        expired
    }

    /// When the next job's time to wait is over.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How many jobs are served before this one, as things stand.
    pub fn ahead(&self, job: &JobId) -> Option<usize> {
        let number = *self.by_job.get(job)?;
        if let Some(place) = self.front.iter().position(|n| *n == number) {
            return Some(place);
        }
        let requester = &self.entries[&number].requester;
        let own = self.lanes[requester].binary_search(&number).expect("a waiting job is in its requester's lane");
        // A requester's only job, come last, as most do: everyone else with a turn has one before it.
        if own == 0 && self.turns.back() == Some(requester) {
            return Some(self.front.len() + self.turns.len() - 1);
        }
        let mut ahead = self.front.len() + own;
        let mut before_us = true;
        for other in &self.turns {
            if other == requester {
                before_us = false;
                continue;
            }
            ahead += self.lanes[other].len().min(own + usize::from(before_us));
        }
        Some(ahead)
    }

    /// The next `limit` jobs in the order in which they would be served.
    pub fn upcoming(&self, limit: usize) -> Vec<&T> {
        let mut order: Vec<u64> = self.front.iter().copied().take(limit).collect();
        let mut round = 0;
        while order.len() < limit {
            let before = order.len();
            let served = self.turns.iter().filter_map(|requester| self.lanes[requester].get(round).copied());
            order.extend(served.take(limit - before));
            if order.len() == before {
                break;
            }
            round += 1;
        }
        order.iter().map(|number| &self.entries[number].item).collect()
    }

    /// Takes out everything, in the order of service.
    pub fn drain(&mut self) -> Vec<T> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    fn unlink(&mut self, number: u64) {
        if let Some(place) = self.front.iter().position(|n| *n == number) {
            self.front.remove(place);
            return;
        }
        let requester = &self.entries[&number].requester;
        let lane = self.lanes.get_mut(requester).expect("a waiting job is in its requester's lane");
        // Numbers grow, so a lane is sorted.
        let place = lane.binary_search(&number).expect("a waiting job is in its requester's lane");
        lane.remove(place);
        if lane.is_empty() {
            self.turns.retain(|other| other != requester);
            self.lanes.remove(requester);
        }
    }

    fn forget(&mut self, number: u64) -> Option<T> {
        let entry = self.entries.remove(&number)?;
        self.by_job.remove(&entry.job);
        self.deadlines.remove(&(entry.deadline, number));
        Some(entry.item)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn job(n: usize) -> JobId {
        JobId::new(format!("j{n}"))
    }

    fn who(n: usize) -> RequesterId {
        RequesterId::new(format!("u{n}"))
    }

    fn queue(pushes: &[(usize, usize)]) -> FairQueue<usize> {
        let mut queue = FairQueue::default();
        let deadline = Instant::now() + Duration::from_secs(60);
        for (requester, n) in pushes {
            queue.push(job(*n), who(*requester), deadline, *n).unwrap();
        }
        queue
    }

    #[test]
    fn requesters_take_turns_and_each_is_served_in_order() {
        let mut queue = queue(&[(1, 10), (1, 11), (1, 12), (2, 20), (3, 30), (2, 21)]);
        assert_eq!(queue.drain(), [10, 20, 30, 11, 21, 12]);
    }

    #[test]
    fn a_job_given_back_goes_before_all_others() {
        let mut queue = queue(&[(1, 10), (2, 20)]);
        queue.push_front(job(5), who(2), Instant::now(), 5).unwrap();
        queue.push_front(job(6), who(1), Instant::now(), 6).unwrap();
        assert_eq!(queue.ahead(&job(6)), Some(1));
        assert_eq!(queue.ahead(&job(10)), Some(2));
        assert_eq!(queue.drain(), [5, 6, 10, 20]);
    }

    #[test]
    fn a_job_waits_once_only() {
        let mut queue = queue(&[(1, 10)]);
        assert_eq!(queue.push(job(10), who(1), Instant::now(), 99), Err(99));
        assert_eq!(queue.drain(), [10]);
    }

    #[test]
    fn expired_jobs_come_out_and_the_rest_keep_their_places() {
        let mut queue = FairQueue::default();
        let now = Instant::now();
        for n in 0..4u64 {
            queue.push(job(n as usize), who(1), now + Duration::from_secs(10 - n), n).unwrap();
        }
        assert_eq!(queue.next_deadline(), Some(now + Duration::from_secs(7)));
        assert_eq!(queue.expire(now + Duration::from_secs(8)), [3, 2]);
        assert_eq!(queue.drain(), [0, 1]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        PushFront(usize),
        Pop,
        Remove(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..5usize).prop_map(Step::Push),
            1 => (0..5usize).prop_map(Step::PushFront),
            3 => Just(Step::Pop),
            1 => (0..40usize).prop_map(Step::Remove),
        ];
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn nobody_is_forgotten_doubled_or_overtaken_within_a_requester(steps in steps()) {
            let mut queue = FairQueue::default();
            let mut waiting = BTreeMap::new();
            let now = Instant::now();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(requester) => {
                        queue.push(job(n), who(requester), now, n).unwrap();
                        waiting.insert(n, (requester, false));
                    }
                    Step::PushFront(requester) => {
                        queue.push_front(job(n), who(requester), now, n).unwrap();
                        waiting.insert(n, (requester, true));
                    }
                    Step::Pop => {
                        let expected = queue.upcoming(1).first().map(|n| **n);
                        let popped = queue.pop();
                        prop_assert_eq!(popped, expected);
                        if let Some(n) = popped {
                            let (requester, front) = waiting.remove(&n).unwrap();
                            let older = waiting.iter().find(|(m, w)| **m < n && w.1 == front && (front || w.0 == requester));
                            prop_assert_eq!(older, None, "an older job of the same line is still waiting");
                        } else {
                            prop_assert!(waiting.is_empty());
                        }
                    }
                    Step::Remove(m) => {
                        prop_assert_eq!(queue.remove(&job(m)), waiting.remove(&m).map(|_| m));
                    }
                }
                prop_assert_eq!(queue.len(), waiting.len());
            }
            // What a job was told about its place is what happens when nobody else comes.
            let order: Vec<usize> = queue.upcoming(usize::MAX).into_iter().copied().collect();
            for (place, n) in order.iter().enumerate() {
                prop_assert_eq!(queue.ahead(&job(*n)), Some(place));
            }
            prop_assert_eq!(queue.drain(), order);
            prop_assert_eq!(queue.next_deadline(), None);
        }

        #[test]
        fn a_heavy_requester_delays_a_light_one_by_one_job_per_turn(heavy in 1..200usize, others in 0..6usize) {
            let mut queue = FairQueue::default();
            let now = Instant::now();
            for n in 0..heavy {
                queue.push(job(n), who(0), now, n).unwrap();
            }
            for other in 0..others {
                queue.push(job(1000 + other), who(1 + other), now, 1000 + other).unwrap();
            }
            queue.push(job(9999), who(99), now, 9999).unwrap();
            prop_assert_eq!(queue.ahead(&job(9999)), Some(1 + others));
        }
    }
}
