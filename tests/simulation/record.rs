//! What clients did and saw, and whether that may be.
//!
//! Operations are ordered by a counter, as all clients share one host: an operation that ended before another began is
//! older. Versions are compared as text, which orders them. Invariant: nothing here looks at the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::AddAssign;

use crate::operation::{Action, Moment, Operation, Outcome};
use crate::schedule::Schedule;

/// How long a node may take for an answer: its own deadline, and a little for the way.
pub(crate) const ANSWER_MS_MAX: u64 = 2_500;

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

    /// Everything in it that must not be.
    pub(crate) fn check(&self, schedule: &Schedule) -> Vec<Violation> {
        let keys: BTreeSet<usize> = self.operations.iter().map(|operation| operation.key).collect();
        let mut found: Vec<_> = keys.into_iter().flat_map(|key| self.check_key(key, schedule)).collect();
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
            let is_excused = schedule.is_too_much(start, up_to)
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

    fn check_key(&self, key: usize, schedule: &Schedule) -> Vec<Violation> {
        let operations: Vec<_> = self.operations.iter().filter(|operation| operation.key == key).collect();
        let writes: Vec<_> = operations.iter().copied().filter(|one| one.is_write_of(key)).collect();
        let mut found = Vec::new();
        let mut values: BTreeMap<&str, &str> = BTreeMap::new();
        for operation in &operations {
            let Some((version, value)) = operation.version() else { continue };
            let other = values.insert(version, value);
            if other.is_some_and(|other| other != value) {
                found.push(format!("two values of one version, the other is {other:?}: {operation}"));
            }
        }
        for operation in &operations {
            let result = match (&operation.action, operation.outcome()) {
                (Action::Get, Some(Outcome::Found { value, .. })) => {
                    check_value(operation, value, &writes, schedule)
                }
                // What was created was missing, and what was replaced was there: as if it had been read.
                (Action::Get, Some(Outcome::Missing)) | (Action::Create(_), Some(Outcome::Stored { .. })) => {
                    check_miss(operation, &writes, schedule)
                }
                (Action::Replace(_, version), Some(Outcome::Stored { .. })) => {
                    let replaced = values.get(version.as_str()).copied().unwrap_or_default();
                    check_value(operation, replaced, &writes, schedule)
                }
                _ => Ok(()),
            };
            found.extend(result.err());
        }
        found.into_iter().map(|what| Violation { key, what }).collect()
    }

    /// How much of it was checked strictly.
    pub(crate) fn count(&self, schedule: &Schedule) -> Count {
        let mut count = Count { operations: self.operations.len(), ..Count::default() };
        for read in &self.operations {
            let (start, end) = read.span();
            let is_up = schedule.was_up(read.node, start, end);
            count.errors += usize::from(is_up && matches!(read.outcome(), Some(Outcome::Unknown(_))));
            if read.action == Action::Get {
                let writes: Vec<_> = self.operations.iter().filter(|one| one.is_write_of(read.key)).collect();
                count.reads += 1;
                count.strict_reads += usize::from(must_see(read, &writes, schedule).next().is_some());
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

/// A write that the read must show, or something not older.
fn must_see<'a>(
    read: &'a Operation,
    writes: &'a [&Operation],
    schedule: &'a Schedule,
) -> impl Iterator<Item = &'a Operation> {
    writes
        .iter()
        .copied()
        .filter(move |write| write.is_older_than(read) && schedule.must_see(write.span(), read.span()))
}

fn check_value(
    read: &Operation,
    value: &str,
    writes: &[&Operation],
    schedule: &Schedule,
) -> Result<(), String> {
    let Some(origin) = writes.iter().find(|write| write.action.value() == Some(value)) else {
        return Err(format!("a value that was never written: {read}"));
    };
    if !origin.may_be_done() {
        return Err(format!("a value whose writing was refused: {read}\n  {origin}"));
    }
    if read.end.as_ref().is_some_and(|(end, _)| *end < origin.start) {
        return Err(format!("a value from the future: {read}\n  {origin}"));
    }
    let is_timely = !schedule.has_skew() && schedule.must_see(origin.span(), read.span());
    if is_timely && origin.must_be_over_at(read.start.ms) {
        return Err(format!("its time to live was over: {read}\n  {origin}"));
    }
    match must_see(read, writes, schedule).find(|newer| origin.is_older_than(newer)) {
        None => Ok(()),
        Some(newer) if newer.action == Action::Delete => {
            Err(format!("deleted, yet it is back: {read}\n  {origin}\n  {newer}"))
        }
        Some(newer) => Err(format!("stale: {read}\n  {origin}\n  {newer}")),
    }
}

fn check_miss(read: &Operation, writes: &[&Operation], schedule: &Schedule) -> Result<(), String> {
    let is_gone = |write: &Operation| match write.action {
        Action::Delete => true,
        Action::Lend(..) => schedule.has_skew() || write.may_be_over_at(read.span().1),
        _ => false,
    };
    let lost = must_see(read, writes, schedule).filter(|write| !is_gone(write)).find(|put| {
        !writes.iter().any(|write| {
            let began = read.end.as_ref().is_some_and(|(end, _)| write.start < *end);
            is_gone(write) && write.may_be_done() && began && !write.is_older_than(put)
        })
    });
    lost.map_or(Ok(()), |put| Err(format!("acknowledged, yet a miss: {read}\n  {put}")))
}

#[cfg(test)]
mod tests;
