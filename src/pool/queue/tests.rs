use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn whose(channel: usize, requester: usize, n: usize) -> Whose {
    Whose {
        job: job(n),
        requester: RequesterId::new(format!("chat:u{requester}")),
        channel: ChannelId::new(format!("chat:c{channel}")),
    }
}

fn job(n: usize) -> JobId {
    JobId::new(format!("j{n}"))
}

fn open() -> SharingConfig {
    SharingConfig::unlimited()
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A queue with these jobs: channel, requester, number.
fn queue(rules: SharingConfig, jobs: &[(usize, usize, usize)]) -> FairQueue<usize> {
    let mut queue = FairQueue::new(1000, rules);
    for (channel, requester, n) in jobs {
        queue.push(whose(*channel, *requester, *n), later(), *n).unwrap();
    }
    queue
}

/// Serves all that may be served; the slots stay taken.
fn served(queue: &mut FairQueue<usize>) -> Vec<usize> {
    std::iter::from_fn(|| Some(queue.pop()?.0)).collect()
}

#[test]
fn requesters_of_a_channel_take_turns_and_each_is_served_in_order() {
    let mut queue = queue(open(), &[(0, 1, 10), (0, 1, 11), (0, 1, 12), (0, 2, 20), (0, 3, 30), (0, 2, 21)]);
    assert_eq!(served(&mut queue), [10, 20, 30, 11, 21, 12]);
}

#[test]
fn channels_take_turns_however_many_people_write_in_one() {
    let mut queue = queue(open(), &[(0, 1, 10), (0, 2, 20), (0, 3, 30), (1, 4, 40), (1, 4, 41)]);
    assert_eq!(served(&mut queue), [10, 40, 20, 41, 30]);
}

#[test]
fn a_channel_with_a_weight_is_given_so_many_jobs_in_a_turn() {
    let rules = SharingConfig { channel_weights: BTreeMap::from([("c0".into(), 2)]), ..open() };
    let jobs = [(0, 1, 10), (0, 2, 20), (0, 1, 11), (0, 2, 21), (0, 1, 12), (1, 3, 30), (1, 3, 31)];
    let mut queue = queue(rules, &jobs);
    assert_eq!(served(&mut queue), [10, 20, 30, 11, 21, 31, 12]);
}

#[test]
fn urgent_jobs_go_first_and_an_ordinary_one_comes_after_every_few_of_them() {
    let rules = SharingConfig { urgent_users: BTreeSet::from(["u9".into()]), ..open() };
    let mut queue = FairQueue::new(1000, rules);
    for n in 0..3 {
        queue.push(whose(0, 1, n), later(), n).unwrap();
    }
    for n in 90..97 {
        queue.push(whose(0, 9, n), later(), n).unwrap();
    }
    assert_eq!(queue.ahead(&job(0)), Some(4));
    assert_eq!(queue.ahead(&job(94)), Some(5));
    assert_eq!(served(&mut queue), [90, 91, 92, 93, 0, 94, 95, 96, 1, 2]);
}

#[test]
fn whoever_has_enough_running_is_held_and_nobody_behind_waits_for_that() {
    let rules = SharingConfig { max_running_per_user: 1, max_running_per_channel: 2, ..open() };
    let mut queue = queue(rules, &[(0, 1, 10), (0, 1, 11), (0, 2, 20), (0, 3, 30), (1, 1, 12), (1, 4, 40)]);
    let (n, first) = queue.pop().unwrap();
    assert_eq!(n, 10);
    assert_eq!(served(&mut queue), [40, 20], "u1 is held in both channels, and then channel c0");
    let u3 = whose(0, 3, 0);
    assert_eq!(queue.held(&u3.requester, &u3.channel), Some(Held::Channel { limit: 2 }));
    let u1 = whose(1, 1, 0);
    assert_eq!(queue.held(&u1.requester, &u1.channel), Some(Held::Requester { limit: 1 }));
    assert_eq!(queue.held_back(9), [&11, &30, &12]);
    queue.release(first);
    assert_eq!(queue.upcoming(9), [&30, &12, &11], "held jobs come after the others' turns");
    assert_eq!(served(&mut queue), [30, 12]);
    assert_eq!(queue.drain(), [11]);
}

#[test]
fn a_job_handed_back_goes_before_all_others_and_keeps_its_slot() {
    let rules = SharingConfig { max_running_per_user: 1, ..open() };
    let mut queue = queue(rules, &[(0, 1, 10), (0, 1, 11), (0, 2, 20)]);
    let (n, slot) = queue.pop().unwrap();
    queue.push_front(whose(0, 1, n), slot, later(), n).unwrap();
    assert_eq!((queue.ahead(&job(10)), queue.ahead(&job(20))), (Some(0), Some(1)));
    assert_eq!(served(&mut queue), [10, 20]);
    assert_eq!(queue.len(), 1);
}

#[test]
fn a_full_line_is_told_by_whose_it_is() {
    let rules = SharingConfig {
        max_queued_per_user: 2,
        max_queued_per_channel: 3,
        urgent_users: BTreeSet::from(["u9".into()]),
        ..open()
    };
    let mut queue = FairQueue::new(4, rules);
    for (channel, requester, n) in [(0, 1, 0), (0, 1, 1), (0, 2, 2), (1, 3, 3)] {
        queue.push(whose(channel, requester, n), later(), n).unwrap();
    }
    let room = |queue: &FairQueue<usize>, channel, requester| {
        let Whose { requester, channel, .. } = whose(channel, requester, 0);
        queue.has_room(&requester, &channel)
    };
    assert_eq!(room(&queue, 1, 1), Err(Full::Requester { limit: 2 }));
    assert_eq!(room(&queue, 0, 3), Err(Full::Channel { limit: 3 }));
    assert_eq!(room(&queue, 1, 2), Err(Full::Queue { limit: 4 }));
    assert_eq!(room(&queue, 0, 9), Ok(()), "an urgent one is bound by its own limit only");
    queue.remove(&job(3)).unwrap();
    assert_eq!(room(&queue, 1, 2), Ok(()));
}

#[test]
fn a_job_waits_once_only() {
    let mut queue = queue(open(), &[(0, 1, 10)]);
    assert_eq!(queue.push(whose(0, 1, 10), later(), 99), Err(99));
    assert_eq!(served(&mut queue), [10]);
}

#[test]
fn expired_jobs_come_out_and_the_rest_keep_their_places() {
    let mut queue = FairQueue::new(10, open());
    let now = Instant::now();
    for n in 0..4 {
        queue.push(whose(0, 1, n), now + Duration::from_secs(10 - n as u64), n).unwrap();
    }
    assert_eq!(queue.next_deadline(), Some(now + Duration::from_secs(7)));
    assert_eq!(queue.expire(now + Duration::from_secs(8)), [3, 2]);
    assert_eq!(served(&mut queue), [0, 1]);
}

#[test]
fn nothing_is_kept_of_those_who_have_gone() {
    let mut queue = queue(open(), &[(0, 1, 10), (1, 2, 20)]);
    let (_, slot) = queue.pop().unwrap();
    queue.release(slot);
    queue.remove(&job(20)).unwrap();
    assert!(queue.requesters.loads.is_empty() && queue.channels.loads.is_empty());
    assert!(queue.requesters.numbers.is_empty() && queue.channels.numbers.is_empty());
    assert!(queue.tiers.iter().all(|tier| tier.channels.is_empty() && tier.turns.is_empty()));
}

#[derive(Clone, Debug)]
enum Step {
    Push {
        channel: usize,
        requester: usize,
    },
    Pop,
    /// The running job with this place among the running ones ends, or is handed back.
    End {
        which: usize,
        hand_back: bool,
    },
    Remove(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..3usize, 0..5usize).prop_map(|(channel, requester)| Step::Push { channel, requester }),
        4 => Just(Step::Pop),
        3 => (0..8usize, prop::bool::weighted(0.2)).prop_map(|(which, hand_back)| Step::End { which, hand_back }),
        1 => (0..60usize).prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 1..120)
}

fn rules() -> impl Strategy<Value = SharingConfig> {
    (1..4usize, 1..5usize, 1..4usize, any::<bool>()).prop_map(|(per_user, per_channel, weight, urgent)| SharingConfig {
        max_running_per_user: per_user,
        max_running_per_channel: per_channel,
        channel_weights: BTreeMap::from([("c1".into(), weight)]),
        urgent_users: if urgent { BTreeSet::from(["u0".into()]) } else { BTreeSet::new() },
        ..open()
    })
}

/// A queue with what must be true of it, kept a second time in the plainest way.
struct Model {
    queue: FairQueue<usize>,
    rules: SharingConfig,
    waiting: BTreeMap<usize, (usize, usize)>,
    handed_back: Vec<usize>,
    running: Vec<(usize, (usize, usize), Slot)>,
    /// How often each waiting job was passed over by a later one of another line while it was not held.
    bypassed: BTreeMap<usize, usize>,
    next: usize,
}

impl Model {
    fn new(rules: SharingConfig) -> Self {
        let queue = FairQueue::new(1000, rules.clone());
        let (waiting, bypassed) = (BTreeMap::new(), BTreeMap::new());
        Self { queue, rules, waiting, handed_back: Vec::new(), running: Vec::new(), bypassed, next: 0 }
    }

    fn is_held(&self, (channel, requester): (usize, usize)) -> bool {
        let of_user = self.running.iter().filter(|(_, at, _)| at.1 == requester).count();
        let of_handed_back = self.handed_back.iter().filter_map(|n| self.waiting.get(n));
        let of_channel = self.running.iter().filter(|(_, at, _)| at.0 == channel).count();
        let also_user = of_handed_back.clone().filter(|at| at.1 == requester).count();
        let also_channel = of_handed_back.filter(|at| at.0 == channel).count();
        let urgent = self.rules.urgent_users.contains(&format!("u{requester}"));
        of_user + also_user >= self.rules.max_running_per_user
            || (!urgent && of_channel + also_channel >= self.rules.max_running_per_channel)
    }

    fn pop(&mut self) -> Result<(), TestCaseError> {
        let free = |model: &Self| -> Vec<usize> {
            let lines = model.waiting.iter().filter(|(n, at)| !model.handed_back.contains(n) && !model.is_held(**at));
            lines.map(|(n, _)| *n).collect()
        };
        let may_run = free(self);
        let expected = self.queue.upcoming(1).first().map(|n| **n);
        let Some((n, slot)) = self.queue.pop() else {
            prop_assert!(may_run.is_empty() && self.handed_back.is_empty(), "{may_run:?} may run and none was served");
            return Ok(());
        };
        prop_assert_eq!(Some(n), expected, "not the one that was told to be next");
        let at = self.waiting.remove(&n).expect("a job that waits is served");
        if let Some(first) = self.handed_back.first() {
            prop_assert_eq!(n, *first, "a job handed back goes first");
            self.handed_back.remove(0);
        } else {
            prop_assert!(may_run.contains(&n), "a limit is exceeded by {}", n);
            let older =
                self.waiting.iter().find(|(m, other)| **other == at && **m < n && !self.handed_back.contains(m));
            prop_assert_eq!(older, None, "an older job of the same line still waits");
            for other in may_run.iter().filter(|other| **other < n && self.waiting.get(other) != Some(&at)) {
                *self.bypassed.entry(*other).or_default() += 1;
            }
        }
        self.running.push((n, at, slot));
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Push { channel, requester } => {
                let n = self.next;
                self.next += 1;
                self.queue.push(whose(channel, requester, n), later(), n).unwrap();
                self.waiting.insert(n, (channel, requester));
            }
            Step::Pop => self.pop()?,
            Step::End { which, hand_back } => {
                if which < self.running.len() {
                    let (n, at, slot) = self.running.remove(which);
                    if hand_back {
                        self.queue.push_front(whose(at.0, at.1, n), slot, later(), n).unwrap();
                        self.waiting.insert(n, at);
                        self.handed_back.push(n);
                    } else {
                        self.queue.release(slot);
                    }
                }
            }
            Step::Remove(n) => {
                let expected = self.waiting.remove(&n).map(|_| n);
                self.handed_back.retain(|other| *other != n);
                prop_assert_eq!(self.queue.remove(&job(n)), expected);
            }
        }
        prop_assert_eq!(self.queue.len(), self.waiting.len());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_forgotten_doubled_or_starved_and_no_limit_is_exceeded(rules in rules(), steps in steps()) {
        let mut model = Model::new(rules);
        for step in steps {
            model.step(step)?;
        }
        // Twelve lines of other people, each with at most three jobs in a turn, and the urgent ones between.
        let bound = 12 * 3 * (URGENT_IN_A_ROW + 1);
        prop_assert!(model.bypassed.values().all(|times| *times <= bound), "{:?}", model.bypassed);
        // In the end all are served, however the limits held them back.
        while !model.waiting.is_empty() {
            model.pop()?;
            if !model.running.is_empty() {
                model.step(Step::End { which: 0, hand_back: false })?;
            }
        }
        for (_, _, slot) in std::mem::take(&mut model.running) {
            model.queue.release(slot);
        }
        prop_assert!(model.queue.requesters.loads.is_empty() && model.queue.channels.loads.is_empty());
        prop_assert!(model.queue.tiers.iter().all(|tier| tier.channels.is_empty() && tier.turns.is_empty()));
    }

    #[test]
    fn what_a_job_is_told_about_its_place_is_what_happens_when_nobody_else_comes(
        rules in rules(),
        steps in steps(),
    ) {
        let mut model = Model::new(SharingConfig {
            max_running_per_user: usize::MAX,
            max_running_per_channel: usize::MAX,
            ..rules
        });
        for step in steps {
            model.step(step)?;
        }
        let order: Vec<usize> = model.queue.upcoming(usize::MAX).into_iter().copied().collect();
        for (place, n) in order.iter().enumerate() {
            prop_assert_eq!(model.queue.ahead(&job(*n)), Some(place), "job {} of {:?}", n, order);
        }
        prop_assert_eq!(served(&mut model.queue), order);
        prop_assert_eq!(model.queue.next_deadline(), None);
    }

    #[test]
    fn a_held_job_is_told_the_place_that_it_has_once_it_is_held_no_more(rules in rules(), steps in steps()) {
        let mut model = Model::new(SharingConfig { max_running_per_user: 1, max_running_per_channel: 99, ..rules });
        for step in steps {
            model.step(step)?;
        }
        while let Some((_, (_, requester), slot)) = model.running.pop() {
            let lanes = model.waiting.iter().filter(|(n, at)| at.1 == requester && !model.handed_back.contains(n));
            let lanes: Vec<usize> = lanes.map(|(n, _)| *n).collect();
            let channels: BTreeSet<usize> = lanes.iter().map(|n| model.waiting[n].0).collect();
            let told = lanes.first().and_then(|n| model.queue.ahead(&job(*n)));
            model.queue.release(slot);
            // With lines in several channels the first to be seated again decides; told is then one of the two.
            if channels.len() == 1 && let Some(n) = lanes.first() {
                prop_assert_eq!(model.queue.ahead(&job(*n)), told);
            }
        }
    }

    #[test]
    fn a_heavy_requester_delays_a_light_one_by_one_job_a_turn(heavy in 1..200usize, others in 0..6usize) {
        let mut jobs: Vec<_> = (0..heavy).map(|n| (0, 0, n)).collect();
        jobs.extend((0..others).map(|other| (0, 1 + other, 1000 + other)));
        jobs.push((0, 99, 9999));
        let queue = queue(open(), &jobs);
        prop_assert_eq!(queue.ahead(&job(9999)), Some(1 + others));
    }
}
