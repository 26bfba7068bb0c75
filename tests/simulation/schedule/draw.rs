//! Faults of every kind at any time, as the first seeds had them.
//!
//! Invariant: the schedules of seeds that are known stay as they are; what is new is drawn in `schedule/nemesis.rs`.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Event, Fault, LEAVE_MS, MOVED, SETTLE_MS, Schedule};

/// A schedule of faults within `0..end_ms`, from a seed.
pub(super) fn draw(seed: u64, end_ms: u64) -> Schedule {
    let mut random = StdRng::seed_from_u64(seed);
    let nodes = random.random_range(3..=5);
    let copies = match random.random_range(0..10) {
        0 => 1,
        1..3 if nodes > 3 => 3,
        _ => 2,
    };
    let mut schedule = Schedule { nodes, copies, ..Schedule::default() };
    let style = random.random_range(0..11);
    if style == 10 {
        schedule.draw_leaves(&mut random, end_ms);
        return schedule;
    }
    // Alone, one after the other with time to settle in between, or anyhow.
    let (faults, spacing_ms) = match style {
        0..3 => (1, end_ms),
        3..6 => (2, SETTLE_MS),
        _ => (random.random_range(2..=5), 0),
    };
    let mut from_ms = 500;
    for _ in 0..faults {
        let start_ms = if spacing_ms == 0 {
            random.random_range(500..end_ms * 3 / 4)
        } else {
            from_ms + random.random_range(0..2000)
        };
        let Some(event) = schedule.draw(&mut random, start_ms, end_ms) else { continue };
        from_ms = event.end_ms + spacing_ms;
        schedule.events.push(event);
        if from_ms + 2000 > end_ms && spacing_ms > 0 {
            break;
        }
    }
    schedule.events.sort_by_key(|event| event.start_ms);
    schedule.draw_moves(seed);
    schedule
}

impl Schedule {
    /// Some of the nodes that crash come back elsewhere. A generator of its own leaves the schedules of all other seeds as they
    /// were.
    fn draw_moves(&mut self, seed: u64) {
        let mut random = StdRng::seed_from_u64(!seed);
        for event in &mut self.events {
            if let Fault::Crash { node } = event.fault
                && random.random_bool(MOVED)
            {
                event.fault = Fault::Move { node };
            }
        }
    }

    /// Several nodes are told to leave within a second, so that they hand over to each other.
    fn draw_leaves(&mut self, random: &mut StdRng, end_ms: u64) {
        let (first_ms, leavers) = (random.random_range(500..end_ms / 2), random.random_range(2..self.nodes));
        for node in 0..leavers {
            let start_ms = first_ms + random.random_range(0..1000);
            let end_ms = start_ms + LEAVE_MS + random.random_range(0..3000);
            self.events.push(Event { fault: Fault::Leave { node }, start_ms, end_ms });
        }
        self.events.sort_by_key(|event| event.start_ms);
    }

    fn draw(&self, random: &mut StdRng, start_ms: u64, end_ms: u64) -> Option<Event> {
        let node = random.random_range(0..self.nodes);
        let mut for_ms = random.random_range(1_500..8_000);
        let fault = match random.random_range(0..100) {
            // Half of them are back before anybody has noticed.
            0..20 => {
                if random.random_bool(0.5) {
                    for_ms = random.random_range(20..600);
                }
                Fault::Crash { node }
            }
            20..28 => Fault::PowerCut { node },
            28..46 => {
                for_ms = random.random_range(100..6_000);
                Fault::Pause { node }
            }
            46..54 => {
                let left = (0..self.nodes).filter(|other| *other != node && random.random_bool(0.4));
                Fault::Halves { left: left.chain([node]).collect() }
            }
            54..60 => Fault::OneAgainstAll { node },
            60..66 => {
                Fault::OneWayCut { from: node, to: (node + random.random_range(1..self.nodes)) % self.nodes }
            }
            66..76 => Fault::Datagrams {
                loss: random.random_range(0.0..0.1),
                duplication: random.random_range(0.0..0.2),
                corruption: random.random_range(0.0..0.1),
            },
            76..82 => Fault::Skew { node, ms: random.random_range(-300_000..=300_000) },
            // Of those that have just joined, too.
            82..86 => Fault::Unreachable { node: random.random_range(0..self.nodes_ever()) },
            86..92 => Fault::Join { node: self.nodes + self.joined() },
            _ => {
                for_ms = LEAVE_MS + random.random_range(0..5_000);
                Fault::Leave { node }
            }
        };
        let event = Event { fault, start_ms, end_ms: (start_ms + for_ms).min(end_ms) };
        let down = event.fault.down();
        let twice = |earlier: &Event| {
            down.is_some()
                && earlier.fault.down() == down
                && earlier.overlaps(start_ms.saturating_sub(500), event.end_ms + 500)
        };
        let impossible = self.events.iter().any(twice)
            || matches!(event.fault, Fault::Leave { .. }) && event.end_ms < start_ms + LEAVE_MS;
        (!impossible).then_some(event)
    }
}
