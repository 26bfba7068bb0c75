//! What clients did and saw, and whether that may be.
//!
//! Operations are ordered by a counter, as all clients share one host: an operation that ended before another began is
//! older. What is checked of one key is in `record/order.rs`. Invariant: nothing here looks at the cluster.

mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::AddAssign;

use crate::operation::{Action, Moment, Operation, Outcome};
use crate::schedule::{At, Schedule};

/// How long a node may take for an answer: its own deadline, and a little for the way.
pub(crate) const ANSWER_MS_MAX: u64 = 2_500;

/// How long after its beginning a write is on its way from the node that was asked to the one that does it, and among how
/// many of the latest operations it is.
const FORWARDED_MS: std::ops::RangeInclusive<u64> = 2..=5;
const FORWARDED_MAX: usize = 32;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) key: usize,
    pub(crate) what: String,
}

/// What a history holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) operations: usize,
    pub(crate) reads: usize,
    /// Reads that had to show a certain write or a newer one.
    pub(crate) strict_reads: usize,
    /// Errors of nodes that were up all the time.
    pub(crate) errors: usize,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.operations += other.operations;
        self.reads += other.reads;
        self.strict_reads += other.strict_reads;
        self.errors += other.errors;
    }
}

/// All operations, in the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) operations: Vec<Operation>,
    events: u64,
}

impl History {
    /// The next moment.
    pub(crate) fn moment(&mut self, ms: u64) -> Moment {
        self.events += 1;
        Moment { order: self.events, ms }
    }

    /// Notes that an operation begins; the number is for [`History::end`].
    pub(crate) fn begin(&mut self, ms: u64, client: usize, node: usize, key: usize, action: Action) -> usize {
        let start = self.moment(ms);
        self.operations.push(Operation { client, node, key, action, start, end: None });
        self.operations.len() - 1
    }

    /// Notes what came of it.
    pub(crate) fn end(&mut self, operation: usize, ms: u64, outcome: Outcome) {
        let at = self.moment(ms);
        self.operations[operation].end = Some((at, outcome));
    }

    /// Whether a write of `key` is on its way to these nodes from another one.
    pub(crate) fn is_forwarded(&self, key: usize, nodes: &[usize], now_ms: u64) -> bool {
        let latest = self.operations.iter().rev().take(FORWARDED_MAX);
        let mut writes = latest.filter(|one| one.is_write_of(key) && one.end.is_none());
        writes.any(|one| {
            !nodes.contains(&one.node) && (FORWARDED_MS.contains(&now_ms.saturating_sub(one.start.ms)))
        })
    }

    /// A number that tells two histories apart.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.operations.hash(&mut hasher);
        hasher.finish()
    }

    /// The history of one key, for people.
    pub(crate) fn of_key(&self, key: usize) -> String {
        self.operations.iter().filter(|operation| operation.key == key).fold(
            String::new(),
            |mut text, one| {
                // Writing into a string does not fail.
                let _ = writeln!(text, "  {one}");
                text
            },
        )
    }

    fn of(&self, key: usize) -> Vec<&Operation> {
        self.operations.iter().filter(|operation| operation.key == key).collect()
    }

    /// Everything in it that must not be.
    pub(crate) fn check(&self, schedule: &Schedule) -> Vec<Violation> {
        let keys: BTreeSet<usize> = self.operations.iter().map(|operation| operation.key).collect();
        let of_key = |key| {
            let found = order::check(&self.of(key), schedule);
            found.into_iter().map(move |what| Violation { key, what })
        };
        let mut found: Vec<_> = keys.into_iter().flat_map(of_key).collect();
        found.extend(self.check_answers(schedule));
        found
    }

    /// Every request to a node that was up ends in time, and not with an error unless too much is wrong. One that has a
    /// condition may also end in doubt when a node fell silent, as its own effect may be what stands in its way.
    fn check_answers(&self, schedule: &Schedule) -> Vec<Violation> {
        let wrong = self.operations.iter().filter_map(|operation| {
            let (start, end) = operation.span();
            let up_to = end.min(start + ANSWER_MS_MAX);
            let is_late = end.saturating_sub(start) > ANSWER_MS_MAX;
            let is_error = match operation.outcome() {
                Some(Outcome::NotAdmitted) => !schedule.has_just_started(operation.node, start),
                outcome => matches!(outcome, Some(Outcome::Unknown(_) | Outcome::NotSent)),
            };
            let is_excused = schedule.may_fail(At { end_ms: up_to, ..operation.at() })
                || operation.is_in_doubt() && schedule.is_felt(start, up_to);
            let what = match (is_late, is_error && !is_excused) {
                _ if !schedule.was_up(operation.node, start, up_to) => return None,
                (true, _) => "no answer in time",
                (_, true) => "an error although little is wrong",
                _ => return None,
            };
            Some(Violation { key: operation.key, what: format!("{what}: {operation}") })
        });
        wrong.collect()
    }

    /// How much of it was checked strictly.
    pub(crate) fn count(&self, schedule: &Schedule) -> Count {
        let mut count = Count { operations: self.operations.len(), ..Count::default() };
        let mut writes = BTreeMap::<usize, Vec<&Operation>>::new();
        for write in self.operations.iter().filter(|one| one.is_write_of(one.key)) {
            writes.entry(write.key).or_default().push(write);
        }
        for read in &self.operations {
            let (start, end) = read.span();
            let is_up = schedule.was_up(read.node, start, end);
            count.errors += usize::from(is_up && matches!(read.outcome(), Some(Outcome::Unknown(_))));
            if read.action == Action::Get {
                let writes = writes.get(&read.key).map_or(&[][..], Vec::as_slice);
                count.reads += 1;
                count.strict_reads += usize::from(order::must_see(read, writes, schedule).next().is_some());
            }
        }
        count
    }

    /// The greatest acknowledged version of a key that cannot be lost, for comparison with the final one.
    pub(crate) fn newest_version(&self, key: usize, now_ms: u64, schedule: &Schedule) -> Option<&str> {
        let stored = self.operations.iter().filter(|operation| operation.key == key).filter_map(|one| {
            match one.outcome() {
                Some(Outcome::Stored { version }) if !schedule.may_have_lost(one.start.ms, now_ms) => {
                    Some(version.as_str())
                }
                _ => None,
            }
        });
        stored.max()
    }
}

#[cfg(test)]
mod tests;
