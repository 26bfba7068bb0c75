//! What befalls a cluster, as data: faults with a beginning and a length, made from a seed or written by hand.
//!
//! What a schedule excuses is in `schedule/excuses.rs`. The checker works from that alone, never from what it sees.

mod draw;
mod excuses;
mod nemesis;

use std::collections::BTreeSet;
use std::fmt;

pub(crate) use self::excuses::At;

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
    /// Traffic from one node to another is lost, and back if it is so in both ways.
    Pair { from: usize, to: usize, drops: Traffic, both_ways: bool },
    /// Traffic of one kind between this node and all others is lost, in these ways.
    Filter { node: usize, drops: Traffic, way: Way },
    /// Whatever the others send to this node's port is answered by a reset; its own connections to others pass.
    Refuse { node: usize },
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

/// What a network loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    All,
    Tcp,
    Udp,
}

/// As a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
    Both,
}

/// A fault with its time, in milliseconds since the load began.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) fault: Fault,
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
}

/// Everything that befalls one cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Schedule {
    /// Nodes at the start.
    pub(crate) nodes: usize,
    /// Copies of each entry.
    pub(crate) copies: u8,
    pub(crate) events: Vec<Event>,
    /// The key that most clients meet at. A pause waits for a write of it that is on its way to the node that is to stop.
    pub(crate) aim: Option<usize>,
    /// The nodes have room for fewer values than are written, so that they evict.
    pub(crate) is_small: bool,
    /// A node that leaves ends before its calls to a member out of reach have timed out.
    pub(crate) is_hasty: bool,
}

impl Fault {
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
            Fault::Pair { drops: Traffic::All, .. } => self.lost_ways(nodes),
            _ => Vec::new(),
        }
    }

    /// The kind of traffic of which it loses some, and between which ordered pairs of nodes.
    pub(crate) fn filters(&self, nodes: usize) -> Option<(Traffic, Vec<(usize, usize)>)> {
        match self {
            Fault::Pair { drops, .. } | Fault::Filter { drops, .. } => Some((*drops, self.lost_ways(nodes))),
            _ => None,
        }
    }

    fn lost_ways(&self, nodes: usize) -> Vec<(usize, usize)> {
        match self {
            Fault::Pair { from, to, both_ways: false, .. } => vec![(*from, *to)],
            Fault::Pair { from, to, .. } => vec![(*from, *to), (*to, *from)],
            Fault::Filter { node, way, .. } => {
                let others = (0..nodes).filter(|other| other != node);
                let ways = others.flat_map(|other| [(other, *node, Way::Out), (*node, other, Way::In)]);
                ways.filter(|(.., but)| way != but).map(|(from, to, _)| (from, to)).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Schedule {
    /// A schedule of faults within `0..end_ms`, from a seed.
    pub(crate) fn generate(seed: u64, end_ms: u64) -> Schedule {
        nemesis::draw(seed, end_ms).unwrap_or_else(|| draw::draw(seed, end_ms))
    }

    /// Nodes that are ever there.
    pub(crate) fn nodes_ever(&self) -> usize {
        self.nodes + self.joined()
    }

    fn joined(&self) -> usize {
        self.events.iter().filter(|event| matches!(event.fault, Fault::Join { .. })).count()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Schedule { nodes, copies, aim, is_small, is_hasty, .. } = self;
        let aim = aim.map(|key| format!(", aimed at k{key}")).unwrap_or_default();
        let [small, hasty] =
            [(is_small, ", small"), (is_hasty, ", hasty")].map(|(is, word)| if *is { word } else { "" });
        writeln!(out, "{nodes} nodes, {copies} copies{small}{hasty}{aim}")?;
        for Event { fault, start_ms, end_ms } in &self.events {
            let [start, end] = [start_ms, end_ms].map(|ms| *ms as f64 / 1000.0);
            writeln!(out, "  {start:7.3} to {end:7.3} s  {fault:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
