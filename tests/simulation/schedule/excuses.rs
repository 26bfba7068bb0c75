//! What a schedule excuses: which writes may be gone or out of sight, and which requests may fail.
//!
//! Only what was really taken is excused. A node that lost its memory may have lost a write, a stopped one hides what it holds
//! for as long as it stands still, and the two sides of a split do not see each other. A pair of nodes that cannot talk, or a
//! node that cannot be called, takes nothing as long as every node reaches a majority: there only errors of the nodes
//! concerned are excused. Invariant: all of this is worked out from the schedule alone.

use std::collections::BTreeSet;

use super::{ADMISSION_MS, Event, Fault, MOVED_MS, SETTLE_MS, Schedule};

/// Where and when a request was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) node: usize,
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
}

impl Fault {
    /// The node that does not serve the others while the fault lasts.
    pub(crate) fn down(&self) -> Option<usize> {
        match self {
            Fault::Pause { node } | Fault::Unreachable { node } | Fault::Refuse { node } => Some(*node),
            fault => fault.loser(),
        }
    }

    /// The node that loses its memory.
    fn loser(&self) -> Option<usize> {
        match self {
            Fault::Crash { node }
            | Fault::Move { node }
            | Fault::PowerCut { node }
            | Fault::Leave { node } => Some(*node),
            _ => None,
        }
    }

    /// On which side of a split a node is.
    fn side(&self, node: usize) -> Option<bool> {
        match self {
            Fault::Halves { left } => Some(left.contains(&node)),
            Fault::OneAgainstAll { node: one } | Fault::Filter { node: one, .. } => Some(*one == node),
            _ => None,
        }
    }

    fn is_split(&self) -> bool {
        self.side(0).is_some()
    }

    /// The two nodes that cannot talk to each other.
    fn pair(&self) -> Option<(usize, usize)> {
        match self {
            Fault::OneWayCut { from, to } | Fault::Pair { from, to, .. } => Some((*from, *to)),
            _ => None,
        }
    }

    /// Whether it keeps nodes that serve from each other.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_split() || self.pair().is_some()
    }

    /// The other one of the two that cannot talk to each other.
    fn peer_of(&self, node: usize) -> Option<usize> {
        let (a, b) = self.pair()?;
        (a == node || b == node).then_some(if a == node { b } else { a })
    }
}

impl Event {
    pub(super) fn overlaps(&self, start_ms: u64, end_ms: u64) -> bool {
        self.start_ms <= end_ms && start_ms <= self.end_ms
    }

    /// Whether it still matters in that time.
    fn is_felt(&self, start_ms: u64, end_ms: u64) -> bool {
        self.start_ms <= end_ms && start_ms <= self.end_ms + SETTLE_MS
    }

    fn is_felt_by(&self, one: At) -> bool {
        self.is_felt(one.start_ms, one.end_ms)
    }
}

impl Schedule {
    /// Each start of a node while others run: which, when, and how long it may take until it is admitted.
    fn starts(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        self.events.iter().filter_map(|event| match event.fault {
            Fault::Crash { node } | Fault::PowerCut { node } | Fault::Leave { node } => {
                Some((node, event.end_ms, ADMISSION_MS))
            }
            Fault::Move { node } => Some((node, event.end_ms, MOVED_MS)),
            Fault::Join { node } => Some((node, event.start_ms, ADMISSION_MS)),
            _ => None,
        })
    }

    /// Whether `node` was started so shortly before that it may not be admitted yet.
    pub(crate) fn has_just_started(&self, node: usize, ms: u64) -> bool {
        self.starts().any(|(one, at_ms, within_ms)| one == node && (at_ms..=at_ms + within_ms).contains(&ms))
    }

    /// Whether `node` was there, ran, and was not stopped, all the time.
    pub(crate) fn was_up(&self, node: usize, start_ms: u64, end_ms: u64) -> bool {
        self.events.iter().all(|event| match &event.fault {
            Fault::Join { node: joined } => *joined != node || start_ms >= event.start_ms,
            fault => fault.down() != Some(node) || !event.overlaps(start_ms, end_ms),
        })
    }

    /// Whether a read must show a write that was acknowledged before the read began, or a newer one; the same of a condition
    /// that was decided after the write.
    pub(crate) fn must_see(&self, write: At, read: At) -> bool {
        !self.may_have_lost(write.start_ms, read.end_ms)
            && !self.is_hidden(write, read)
            && !self.is_parted(write, read)
    }

    /// Whether all copies of something written at `from_ms` may be gone at `to_ms`.
    pub(crate) fn may_have_lost(&self, from_ms: u64, to_ms: u64) -> bool {
        self.events.iter().filter(|event| event.fault.loser().is_some()).any(|event| {
            // A node that leaves takes its entries with it at the end, the others at once.
            let leaves = matches!(event.fault, Fault::Leave { .. });
            let at_ms = if leaves { event.end_ms } else { event.start_ms };
            event.start_ms <= to_ms && from_ms <= at_ms && self.is_one_too_many(event, at_ms)
        })
    }

    /// Whether all copies of a write may be at nodes that stand still. What was acknowledged while they did is elsewhere.
    fn is_hidden(&self, write: At, read: At) -> bool {
        let mut pauses = self.events.iter().filter(|event| matches!(event.fault, Fault::Pause { .. }));
        pauses.any(|pause| {
            let may_hold = write.start_ms <= pause.start_ms;
            may_hold && pause.is_felt_by(read) && self.is_one_too_many(pause, pause.end_ms)
        })
    }

    /// Whether with the node of this event as many are down, up to that moment, as there are copies.
    fn is_one_too_many(&self, event: &Event, at_ms: u64) -> bool {
        let node = event.fault.down();
        // It hands over to those that it reaches.
        let leaves = matches!(event.fault, Fault::Leave { .. });
        let felt = self.felt(event.start_ms, at_ms);
        let lack = felt.filter_map(|other| other.fault.peer_of(node?)).filter(|_| !leaves);
        self.felt(event.start_ms, at_ms).any(|other| other.fault.is_split())
            || self.is_too_much(lack, event.start_ms, at_ms)
    }

    /// Whether a split keeps a read from showing a write.
    fn is_parted(&self, write: At, read: At) -> bool {
        if self.is_muddle(write) || self.is_muddle(read) {
            return true;
        }
        let mut splits = self.events.iter().filter(|event| event.fault.is_split());
        splits.any(|split| {
            // What is asked of a node that has lost one protocol may be done on either side.
            let lacks_protocol = |one: At| {
                matches!(split.fault, Fault::Filter { .. }) && split.fault.side(one.node) == Some(true)
            };
            let is_anywhere =
                [write, read].into_iter().any(|one| lacks_protocol(one) || self.may_join_either(split, one));
            let is_same_side = split.fault.side(write.node) == split.fault.side(read.node) && !is_anywhere;
            if !split.is_felt_by(read) {
                false
            } else if write.end_ms < split.start_ms {
                self.is_out_of_sight(split, read) || self.may_join_either(split, read)
            } else {
                write.start_ms < split.start_ms || split.is_felt_by(write) && !is_same_side
            }
        })
    }

    /// Whether the node of a request started so late in a split that either side may have admitted it: they find each other
    /// again some time after the cut.
    fn may_join_either(&self, split: &Event, one: At) -> bool {
        self.starts().any(|(node, at_ms, within_ms)| {
            let meets_either = split.end_ms <= at_ms + within_ms && at_ms <= split.end_ms + SETTLE_MS;
            node == one.node && at_ms <= one.end_ms && meets_either
        })
    }

    /// Whether all copies of what was written before the split may be on the other side.
    fn is_out_of_sight(&self, split: &Event, one: At) -> bool {
        let other_side =
            (0..self.nodes_ever()).filter(|node| split.fault.side(*node) != split.fault.side(one.node));
        let down = self.felt(one.start_ms, one.end_ms).filter_map(|event| event.fault.down());
        other_side.chain(down).collect::<BTreeSet<_>>().len() >= usize::from(self.copies)
    }

    /// Whether so much keeps nodes from each other that it cannot be said who reaches whom.
    fn is_muddle(&self, one: At) -> bool {
        // Asked of each write beside each read, so that nothing is collected.
        let felt = || self.felt(one.start_ms, one.end_ms);
        let count = |is_it: fn(&Fault) -> bool| felt().filter(|event| is_it(&event.fault)).count();
        // Two of one side that stop one after the other take each other for dead, and are on two sides when they go on.
        let is_split_twice =
            || count(Fault::is_cut) > 1 || count(|fault| matches!(fault, Fault::Pause { .. })) > 1;
        count(Fault::is_split) > 0 && is_split_twice()
            || felt().any(|event| self.is_deaf_alone(event))
            || felt().any(|event| event.fault.pair().is_some()) && self.reaches_few(one)
    }

    /// Whether pairs that cannot talk to each other leave a node without a majority.
    fn reaches_few(&self, one: At) -> bool {
        let (leave, gone): (Vec<_>, Vec<_>) =
            self.felt(one.start_ms, one.end_ms).partition(|event| matches!(event.fault, Fault::Leave { .. }));
        let nodes = |events: &[&Event]| -> BTreeSet<usize> {
            events.iter().filter_map(|event| event.fault.down()).collect()
        };
        let (leave, down) = (nodes(&leave), nodes(&gone));
        let pairs: Vec<_> = gone.iter().filter_map(|event| event.fault.pair()).collect();
        let reaches_few = |pairs: &[(usize, usize)], members: usize| {
            (0..self.nodes).any(|node| {
                let lacks = pairs.iter().filter(|(a, b)| *a == node || *b == node).count();
                2 * (lacks + down.iter().filter(|other| **other != node).count()) >= members
            })
        };
        // One that leaves is there until it has handed over, and is no member any more.
        let stays = |node: &usize| !leave.contains(node);
        let staying: Vec<_> = pairs.iter().copied().filter(|(a, b)| stays(a) && stays(b)).collect();
        reaches_few(&pairs, self.nodes) || reaches_few(&staying, self.nodes.saturating_sub(leave.len()))
    }

    /// A node that cannot be called, while another one is down.
    fn is_deaf_alone(&self, event: &Event) -> bool {
        let (from_ms, to_ms) = (event.start_ms.saturating_sub(SETTLE_MS), event.end_ms + SETTLE_MS);
        let is_another =
            |other: &Event| other.fault.down().is_some_and(|node| Some(node) != event.fault.down());
        matches!(event.fault, Fault::Unreachable { .. } | Fault::Refuse { .. })
            && self.events.iter().any(|other| is_another(other) && other.overlaps(from_ms, to_ms))
    }

    /// Whether a clock is ever off, by which versions are made.
    pub(crate) fn has_skew(&self) -> bool {
        self.has(|fault| matches!(fault, Fault::Skew { .. }))
    }

    /// Whether two nodes ever cannot talk to each other while others reach both.
    pub(crate) fn has_pair(&self) -> bool {
        self.has(|fault| fault.pair().is_some())
    }

    /// Whether ever a node ends, is stopped, or is cut off from another: what it did last is then known to nobody else.
    pub(crate) fn silences_an_owner(&self) -> bool {
        let is_harmless = |fault: &Fault| {
            matches!(fault, Fault::Datagrams { .. } | Fault::Skew { .. } | Fault::Join { .. })
        };
        self.has(|fault| !is_harmless(fault))
    }

    pub(crate) fn has(&self, is_it: impl Fn(&Fault) -> bool) -> bool {
        self.events.iter().any(|event| is_it(&event.fault))
    }

    /// Whether the nodes are ever split into sides.
    pub(crate) fn has_split(&self) -> bool {
        self.has(Fault::is_split)
    }

    /// How many nodes are ever down.
    pub(crate) fn ever_down(&self) -> usize {
        self.events.iter().filter_map(|event| event.fault.down()).collect::<BTreeSet<_>>().len()
    }

    /// Whether a node is down in that time, or cut off from others, or was a short while before.
    pub(crate) fn is_felt(&self, start_ms: u64, end_ms: u64) -> bool {
        self.felt(start_ms, end_ms).any(|event| event.fault.down().is_some() || event.fault.is_cut())
    }

    fn felt(&self, start_ms: u64, end_ms: u64) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.is_felt(start_ms, end_ms))
    }

    /// Whether a request may fail at a node that runs: as many nodes are down at once as there are copies, or on another side,
    /// or the node is one of two that cannot talk to each other.
    pub(crate) fn may_fail(&self, one: At) -> bool {
        let is_among = |event: &Event| {
            event.fault.peer_of(one.node).is_some()
                || event.fault.is_split() && self.is_out_of_sight(event, one)
        };
        self.is_muddle(one)
            || self.felt(one.start_ms, one.end_ms).any(is_among)
            || self.is_too_much(std::iter::empty(), one.start_ms, one.end_ms)
    }

    /// Whether as many nodes are down at once as there are copies. Any number may leave at once, as long as somebody stays
    /// and nothing else happens.
    fn is_too_much(&self, lack: impl Iterator<Item = usize>, start_ms: u64, end_ms: u64) -> bool {
        let mut down: BTreeSet<usize> = lack.collect();
        let mut all_leave = true;
        for event in self.felt(start_ms, end_ms) {
            all_leave &= matches!(event.fault, Fault::Leave { .. }) || event.fault.pair().is_some();
            down.extend(event.fault.down());
        }
        down.len() >= if all_leave { self.nodes } else { usize::from(self.copies) }
    }
}

#[cfg(test)]
mod tests;
