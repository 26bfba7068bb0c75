//! Faults that aim: at the owners of one key, at the moment of a write, at a leave; and those that the first seeds do not have.
//!
//! Invariant: seeds below [`FIRST`] have none of it, so that their schedules stay as they are.

use std::num::NonZeroU8;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal::model::{Key, NodeId, Ring};

use super::{Event, Fault, LEAVE_MS, Schedule, Traffic, Way};

/// The first seed that may have what is drawn here.
const FIRST: u64 = 10_000;
/// Divisor and remainder of the seeds with a hasty leave: chosen so that every seed that was listed before keeps its schedule.
const HASTY: (u64, u64) = (16, 2);
/// The same of those whose primary cannot be called, again and again for a moment.
const FLAPPING: (u64, u64) = (16, 11);
/// Keys that are aimed at; clients meet at them anyway.
const KEYS: std::ops::Range<usize> = 0..4;

/// A schedule with faults of this kind; none where the seed is to have the usual ones.
pub(super) fn draw(seed: u64, end_ms: u64) -> Option<Schedule> {
    if seed < FIRST {
        return None;
    }
    let mut random = StdRng::seed_from_u64(seed ^ FIRST);
    let nodes = random.random_range(3..=5);
    let copies = if nodes > 3 && random.random_bool(0.2) { 3 } else { 2 };
    let key = random.random_range(KEYS);
    let mut schedule = Schedule { nodes, copies, aim: Some(key), ..Schedule::default() };
    let (start_ms, for_ms) = (random.random_range(500..4_000), random.random_range(2_000..9_000));
    let owners = schedule.owners(key);
    if seed % HASTY.0 == HASTY.1 {
        return Some(leave_in_haste(schedule, &owners, start_ms, &mut random));
    }
    if seed % FLAPPING.0 == FLAPPING.1 {
        schedule.repeat(start_ms, end_ms - 2_000, || {
            // It writes by leases that run while another owner, which finds it silent, writes, too.
            let fault = Fault::Unreachable { node: owners[0] };
            (fault, random.random_range(150..400), random.random_range(300..700))
        });
        return Some(schedule);
    }
    match random.random_range(0..20) {
        0..4 => return None,
        4..7 => {
            let fault = pair(&mut random, &owners);
            schedule.add(fault, start_ms, for_ms);
        }
        7..9 => {
            let fault = Fault::Pair { from: owners[0], to: owners[1], drops: Traffic::Tcp, both_ways: true };
            let leave_ms = LEAVE_MS + random.random_range(0..3_000);
            schedule.add(fault, start_ms, leave_ms + 4_000);
            schedule.add(
                Fault::Leave { node: owners[0] },
                start_ms + random.random_range(500..3_000),
                leave_ms,
            );
        }
        9 => schedule.add(Fault::Refuse { node: owners[random.random_range(0..2)] }, start_ms, for_ms),
        10..12 => schedule.add(Fault::Unreachable { node: owners[0] }, start_ms, for_ms),
        12 => {
            let drops = if random.random() { Traffic::Tcp } else { Traffic::Udp };
            let way = [Way::In, Way::Out, Way::Both][random.random_range(0..3)];
            schedule.add(Fault::Filter { node: owners[0], drops, way }, start_ms, for_ms);
        }
        13..16 => {
            (schedule.is_small, schedule.aim) = (true, None);
            let node = owners[random.random_range(0..2)];
            // For so long that much is evicted meanwhile, and not so long that the node is no owner any more.
            schedule.repeat(start_ms, end_ms - 3_000, || {
                let (fault, for_ms) = match random.random_range(0..5) {
                    0 => (pair(&mut random, &owners), 3_000),
                    _ => (Fault::Pause { node }, random.random_range(500..2_500)),
                };
                (fault, for_ms, random.random_range(2_000..4_000))
            });
        }
        16..18 => schedule.repeat(start_ms, end_ms - 2_000, || {
            // Around what the others take for silence, or for as long as its leases run.
            let range = if random.random() { 80..100 } else { 100..590 };
            let fault = Fault::Pause { node: owners[0] };
            (fault, random.random_range(range), random.random_range(400..1_000))
        }),
        _ => {
            // One that none of those who sleep is needed for.
            let for_ms = random.random_range(1_100..1_700);
            for at_ms in [start_ms, start_ms + 12_000] {
                owners
                    .iter()
                    .take(2)
                    .for_each(|node| schedule.add(Fault::Pause { node: *node }, at_ms, for_ms));
            }
        }
    }
    Some(schedule)
}

/// One owner leaves before it has paid what it owes to the other one, which it cannot call and to which there is no detour yet.
fn leave_in_haste(mut schedule: Schedule, owners: &[usize], start_ms: u64, random: &mut StdRng) -> Schedule {
    (schedule.is_hasty, schedule.aim) = (true, None);
    let fault = Fault::Pair { from: owners[0], to: owners[1], drops: Traffic::Tcp, both_ways: true };
    let leave_ms = LEAVE_MS + random.random_range(0..6_000);
    let leaves_at_ms = start_ms + random.random_range(50..600);
    schedule.add(fault, start_ms, leaves_at_ms + leave_ms - start_ms);
    schedule.add(Fault::Leave { node: owners[random.random_range(0..2)] }, leaves_at_ms, leave_ms);
    schedule
}

fn pair(random: &mut StdRng, owners: &[usize]) -> Fault {
    let drops = [Traffic::All, Traffic::Tcp, Traffic::Tcp, Traffic::Udp][random.random_range(0..4)];
    let [from, to] = if random.random() { [owners[0], owners[1]] } else { [owners[1], owners[0]] };
    Fault::Pair { from, to, drops, both_ways: random.random_bool(0.6) }
}

impl Schedule {
    fn add(&mut self, fault: Fault, start_ms: u64, for_ms: u64) {
        self.events.push(Event { fault, start_ms, end_ms: start_ms + for_ms });
    }

    /// Adds faults one after the other; each is drawn with how long it and the pause after it last.
    fn repeat(&mut self, start_ms: u64, until_ms: u64, mut draw: impl FnMut() -> (Fault, u64, u64)) {
        let mut at_ms = start_ms;
        while at_ms < until_ms {
            let (fault, for_ms, pause_ms) = draw();
            self.add(fault, at_ms, for_ms);
            at_ms += for_ms + pause_ms;
        }
    }

    /// The owners of a key among the first nodes, the primary first.
    pub(crate) fn owners(&self, key: usize) -> Vec<usize> {
        let ids: Vec<NodeId> =
            (1..=self.nodes).filter_map(|node| NodeId::parse(&format!("node{node}")).ok()).collect();
        let copies = NonZeroU8::new(self.copies).unwrap_or(NonZeroU8::MIN);
        let ring = Ring::build(ids.iter().cloned(), copies);
        let slot = Key::parse(format!("k{key}")).expect("it is a key").slot();
        let place = |owner: &NodeId| ids.iter().position(|id| id == owner);
        ring.owners(slot).filter_map(place).collect()
    }

    /// Whether nodes stop at the moment of a write.
    pub(crate) fn aims_at_writes(&self) -> bool {
        self.aim.is_some() && self.has(|fault| matches!(fault, Fault::Pause { .. }))
    }

    /// Puts off the pauses that are due until a write is on its way to the nodes that are to stop; all that are due together
    /// begin together.
    pub(crate) fn wait_for_aim(&mut self, now_ms: u64, is_forwarded: impl Fn(&[usize]) -> bool) {
        let is_due =
            |event: &&mut Event| matches!(event.fault, Fault::Pause { .. }) && event.start_ms == now_ms;
        let mut due: Vec<_> = self.events.iter_mut().filter(is_due).collect();
        let nodes: Vec<usize> = due.iter().filter_map(|event| event.fault.down()).collect();
        if !nodes.is_empty() && !is_forwarded(&nodes) {
            for event in &mut due {
                event.start_ms += 1;
                event.end_ms += 1;
            }
        }
    }
}

#[test]
fn seeds_from_the_first_on_aim() {
    assert_eq!(draw(FIRST - 1, 20_000), None);
    let all: Vec<_> = (FIRST..FIRST + 200).filter_map(|seed| draw(seed, 20_000)).collect();
    let has = |wanted: &dyn Fn(&Fault) -> bool| {
        all.iter().flat_map(|schedule| &schedule.events).any(|event| wanted(&event.fault))
    };
    assert!(
        has(&|fault| matches!(fault, Fault::Pair { .. }))
            && has(&|fault| matches!(fault, Fault::Filter { .. }))
    );
    assert!(
        has(&|fault| matches!(fault, Fault::Refuse { .. })) && all.iter().any(|schedule| schedule.is_small)
    );
    assert_eq!(all.iter().filter(|schedule| schedule.is_hasty).count(), 13);
    let flaps = |schedule: &&Schedule| {
        schedule.events.iter().filter(|event| matches!(event.fault, Fault::Unreachable { .. })).count() > 5
    };
    assert_eq!(all.iter().filter(flaps).count(), 12);
}

#[test]
fn a_pause_waits_for_its_write() {
    let mut schedule = Schedule { nodes: 3, copies: 2, aim: Some(0), ..Schedule::default() };
    schedule.add(Fault::Pause { node: 1 }, 100, 50);
    schedule.wait_for_aim(99, |_| false);
    assert_eq!(schedule.events[0].start_ms, 100);
    schedule.wait_for_aim(100, |nodes| nodes != [1]);
    assert_eq!((schedule.events[0].start_ms, schedule.events[0].end_ms), (101, 151));
    schedule.wait_for_aim(101, |nodes| nodes == [1]);
    assert_eq!(schedule.events[0].start_ms, 101);
}
