//! What befalls a cluster, as data: faults with a beginning and a length, made from a seed or written by hand.
//!
//! Also says what a schedule excuses. The checker works from that alone, never from what it sees.

use std::collections::BTreeSet;
use std::fmt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What repair may take: that long after a fault has ended, a cluster is as if it had never been.
pub(crate) const SETTLE_MS: u64 = 10_000;
/// How long a node that starts may answer nobody while nothing else is wrong: until the others go by a table with it, which
/// may have to wait for a lease under the former one to run out.
pub(crate) const ADMISSION_MS: u64 = 1_500;
/// The same for one that was moved: its name is taken until everybody believes that its predecessor is dead.
const MOVED_MS: u64 = 4_000;
/// How long a node that was told to leave may take for it.
pub(crate) const LEAVE_MS: u64 = 5_000;
/// Share of the crashes after which the node comes back at another address.
const MOVED: f64 = 0.25;

/// One thing that goes wrong. Nodes are named by their index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The process is killed, and started again with an empty memory when the fault ends.
    Crash { node: usize },
    /// The process is killed, and started again under its name at another address when the fault ends.
    Move { node: usize },
    /// The machine falls silent, its connections with it, and is started again when the fault ends.
    PowerCut { node: usize },
    /// The process is stopped and goes on when the fault ends.
    Pause { node: usize },
    /// Nothing passes between these nodes and the others.
    Halves { left: BTreeSet<usize> },
    /// Nothing passes between this node and the others.
    OneAgainstAll { node: usize },
    /// Nothing passes from one node to another; the way back is open.
    OneWayCut { from: usize, to: usize },
    /// No connection to this node's port carries anything; datagrams and its own connections to others pass.
    Unreachable { node: usize },
    /// Datagrams of all nodes go astray, each with these probabilities.
    Datagrams { loss: f64, duplication: f64, corruption: f64 },
    /// The clock of a node is off.
    Skew { node: usize, ms: i64 },
    /// A node that was not there before starts; it stays.
    Join { node: usize },
    /// A node is told to leave, and started again with an empty memory when the fault ends.
    Leave { node: usize },
}

/// A fault with its time, in milliseconds since the load began.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) fault: Fault,
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
}

/// Everything that befalls one cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schedule {
    /// Nodes at the start.
    pub(crate) nodes: usize,
    /// Copies of each entry.
    pub(crate) copies: u8,
    pub(crate) events: Vec<Event>,
}

impl Fault {
    /// The node that does not serve the others while the fault lasts.
    pub(crate) fn down(&self) -> Option<usize> {
        match self {
            Fault::Crash { node }
            | Fault::Move { node }
            | Fault::PowerCut { node }
            | Fault::Pause { node }
            | Fault::Unreachable { node }
            | Fault::Leave { node } => Some(*node),
            _ => None,
        }
    }

    /// Whether it keeps nodes that serve from each other.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(self, Fault::Halves { .. } | Fault::OneAgainstAll { .. } | Fault::OneWayCut { .. })
    }

    /// The ordered pairs of nodes that it cuts, out of `nodes`.
    pub(crate) fn cuts(&self, nodes: usize) -> Vec<(usize, usize)> {
        let across = |left: &dyn Fn(usize) -> bool| {
            let pairs = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
            pairs.filter(|(a, b)| left(*a) != left(*b)).collect()
        };
        match self {
            Fault::Halves { left } => across(&|node| left.contains(&node)),
            Fault::OneAgainstAll { node } => across(&|other| other == *node),
            Fault::OneWayCut { from, to } => vec![(*from, *to)],
            _ => Vec::new(),
        }
    }
}

impl Event {
    fn overlaps(&self, start_ms: u64, end_ms: u64) -> bool {
        self.start_ms <= end_ms && start_ms <= self.end_ms
    }

    /// Whether it still matters at `ms`.
    fn is_felt_at(&self, ms: u64) -> bool {
        (self.start_ms..=self.end_ms + SETTLE_MS).contains(&ms)
    }
}

impl Schedule {
    /// A schedule of faults within `0..end_ms`, from a seed.
    pub(crate) fn generate(seed: u64, end_ms: u64) -> Schedule {
        let mut random = StdRng::seed_from_u64(seed);
        let nodes = random.random_range(3..=5);
        let copies = match random.random_range(0..10) {
            0 => 1,
            1..3 if nodes > 3 => 3,
            _ => 2,
        };
        let mut schedule = Schedule { nodes, copies, events: Vec::new() };
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

    fn joined(&self) -> usize {
        self.events.iter().filter(|event| matches!(event.fault, Fault::Join { .. })).count()
    }

    /// Nodes that are ever there.
    pub(crate) fn nodes_ever(&self) -> usize {
        self.nodes + self.joined()
    }

    /// Whether `node` was started so shortly before that it may not be admitted yet.
    pub(crate) fn has_just_started(&self, node: usize, ms: u64) -> bool {
        let started = self.events.iter().filter_map(|event| match event.fault {
            Fault::Crash { node } | Fault::PowerCut { node } | Fault::Leave { node } => {
                Some((node, event.end_ms, ADMISSION_MS))
            }
            Fault::Move { node } => Some((node, event.end_ms, MOVED_MS)),
            Fault::Join { node } => Some((node, event.start_ms, ADMISSION_MS)),
            _ => None,
        });
        started.into_iter().any(|(one, at, within)| one == node && (at..=at + within).contains(&ms))
    }

    /// Whether `node` was there, ran, and was not stopped, all the time.
    pub(crate) fn was_up(&self, node: usize, start_ms: u64, end_ms: u64) -> bool {
        self.events.iter().all(|event| match &event.fault {
            Fault::Join { node: joined } => *joined != node || start_ms >= event.start_ms,
            fault => fault.down() != Some(node) || !event.overlaps(start_ms, end_ms),
        })
    }

    /// Whether a read must show a write that was acknowledged before the read began, or a newer one.
    pub(crate) fn must_see(&self, write: (u64, u64), read: (u64, u64)) -> bool {
        let cut = |(start, end): (u64, u64)| {
            let cuts = self.events.iter().filter(|event| self.cuts_off(event));
            cuts.clone().any(|event| event.overlaps(start, end) || event.is_felt_at(start))
        };
        !cut(write) && !cut(read) && !self.may_have_lost(write.0, read.1)
    }

    /// Whether it keeps nodes that serve from each other: a node that listens in vain does when another one is down, too.
    fn cuts_off(&self, event: &Event) -> bool {
        let (from_ms, to_ms) = (event.start_ms.saturating_sub(SETTLE_MS), event.end_ms + SETTLE_MS);
        let is_another =
            |other: &Event| other.fault.down().is_some_and(|node| Some(node) != event.fault.down());
        event.fault.is_cut()
            || matches!(event.fault, Fault::Unreachable { .. })
                && self.events.iter().any(|other| is_another(other) && other.overlaps(from_ms, to_ms))
    }

    /// Whether all copies of something written at `from_ms` may be gone at `to_ms`.
    pub(crate) fn may_have_lost(&self, from_ms: u64, to_ms: u64) -> bool {
        self.events.iter().filter(|event| event.fault.down().is_some()).any(|event| {
            // A node that leaves takes its entries with it at the end, the others at once.
            let leaves = matches!(event.fault, Fault::Leave { .. });
            let at_ms = if leaves { event.end_ms } else { event.start_ms };
            event.start_ms <= to_ms && from_ms <= at_ms && self.is_too_much(event.start_ms, at_ms)
        })
    }

    /// Whether a clock is ever off: then times to live say nothing.
    pub(crate) fn has_skew(&self) -> bool {
        self.events.iter().any(|event| matches!(event.fault, Fault::Skew { .. }))
    }

    /// Whether a node is down in that time, or was a short while before.
    pub(crate) fn is_felt(&self, start_ms: u64, end_ms: u64) -> bool {
        let mut down = self.events.iter().filter(|event| event.fault.down().is_some());
        down.any(|event| event.start_ms <= end_ms && start_ms <= event.end_ms + SETTLE_MS)
    }

    /// Whether as many nodes are down at once as there are copies, or the nodes are cut off from each other. Any number may
    /// leave at once, as long as somebody stays and nothing else happens.
    pub(crate) fn is_too_much(&self, start_ms: u64, end_ms: u64) -> bool {
        let felt = self
            .events
            .iter()
            .filter(|event| event.start_ms <= end_ms && start_ms <= event.end_ms + SETTLE_MS);
        let down: BTreeSet<usize> = felt.clone().filter_map(|event| event.fault.down()).collect();
        let all_leave = felt.clone().all(|event| matches!(event.fault, Fault::Leave { .. }));
        let enough = if all_leave { self.nodes } else { usize::from(self.copies) };
        down.len() >= enough || felt.clone().any(|event| self.cuts_off(event))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} nodes, {} copies", self.nodes, self.copies)?;
        for Event { fault, start_ms, end_ms } in &self.events {
            let [start, end] = [start_ms, end_ms].map(|ms| *ms as f64 / 1000.0);
            writeln!(out, "  {start:7.3} to {end:7.3} s  {fault:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
