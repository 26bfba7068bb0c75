//! What clients did and saw, and whether that may be.
//!
//! Operations are ordered by a counter, as all clients share one host: an operation that ended before another began is
//! older. Versions are compared as text, which orders them. Invariant: nothing here looks at the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::schedule::Schedule;

/// How long a node may take for an answer: its own deadline, and a little for the way.
pub(crate) const ANSWER_MS_MAX: u64 = 2_500;

/// A moment: milliseconds since the load began, and a place in the order of all events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment {
    pub(crate) order: u64,
    pub(crate) ms: u64,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Get,
    Put(String),
    /// A PUT that is to be done only if there is nothing.
    Create(String),
    /// A PUT that is to be done only if this version is there.
    Replace(String, String),
    Delete,
}

impl Action {
    fn value(&self) -> Option<&str> {
        match self {
            Action::Put(value) | Action::Create(value) | Action::Replace(value, _) => Some(value),
            Action::Get | Action::Delete => None,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Found {
        value: String,
        version: String,
    },
    Missing,
    Stored {
        version: String,
    },
    Deleted,
    /// 412: certainly not done.
    Refused,
    /// No connection: certainly not done.
    NotSent,
    /// An error or no answer: may be done, now or later, once or not at all.
    Unknown(String),
}

/// One operation of one client.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) node: usize,
    pub(crate) key: usize,
    pub(crate) action: Action,
    pub(crate) start: Moment,
    /// None while it is under way.
    pub(crate) end: Option<(Moment, Outcome)>,
}

impl Operation {
    fn outcome(&self) -> Option<&Outcome> {
        self.end.as_ref().map(|(_, outcome)| outcome)
    }

    /// When it was acknowledged, if it is a write that was.
    fn acknowledged(&self) -> Option<Moment> {
        match &self.end {
            Some((at, Outcome::Stored { .. } | Outcome::Deleted)) => Some(*at),
            _ => None,
        }
    }

    /// Whether it may have changed something.
    fn may_be_done(&self) -> bool {
        self.action != Action::Get && !matches!(self.outcome(), Some(Outcome::Refused | Outcome::NotSent))
    }

    /// Whether it was certainly over before `other` began. One with an unknown outcome may still happen.
    fn is_older_than(&self, other: &Operation) -> bool {
        self.acknowledged().is_some_and(|at| at < other.start)
    }

    fn span(&self) -> (u64, u64) {
        (self.start.ms, self.end.as_ref().map_or(u64::MAX, |(at, _)| at.ms))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [start, end] = [self.span().0, self.span().1.min(999_999)].map(|ms| ms as f64 / 1000.0);
        let key = self.key;
        let node = self.node + 1;
        write!(
            out,
            "{start:7.3} to {end:7.3} s  client {} at node{node}: {:?} k{key}",
            self.client, self.action
        )?;
        match self.outcome() {
            Some(outcome) => write!(out, " -> {outcome:?}"),
            None => write!(out, " -> (under way)"),
        }
    }
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) key: usize,
    pub(crate) what: String,
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

    /// Every request to a node that was up ends in time.
    fn check_answers(&self, schedule: &Schedule) -> Vec<Violation> {
        let late = self.operations.iter().filter(|operation| {
            let (start, end) = operation.span();
            let up_to = end.min(start + ANSWER_MS_MAX);
            end.saturating_sub(start) > ANSWER_MS_MAX && schedule.was_up(operation.node, start, up_to)
        });
        late.map(|one| Violation { key: one.key, what: format!("no answer in time: {one}") }).collect()
    }

    fn check_key(&self, key: usize, schedule: &Schedule) -> Vec<Violation> {
        let operations: Vec<_> = self.operations.iter().filter(|operation| operation.key == key).collect();
        let writes: Vec<_> = operations.iter().copied().filter(|one| one.action != Action::Get).collect();
        let mut found = Vec::new();
        let mut values = BTreeMap::new();
        for read in &operations {
            let result = match read.outcome() {
                Some(Outcome::Found { value, version }) => {
                    let other = values.insert(version.clone(), value.clone());
                    if other.as_ref().is_some_and(|other| other != value) {
                        found.push(format!("two values of one version, the other is {other:?}: {read}"));
                    }
                    check_value(read, value, &writes, schedule)
                }
                Some(Outcome::Missing) => check_miss(read, &writes, schedule),
                _ => Ok(()),
            };
            found.extend(result.err());
        }
        found.into_iter().map(|what| Violation { key, what }).collect()
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
    match must_see(read, writes, schedule).find(|newer| origin.is_older_than(newer)) {
        None => Ok(()),
        Some(newer) if newer.action == Action::Delete => {
            Err(format!("deleted, yet it is back: {read}\n  {origin}\n  {newer}"))
        }
        Some(newer) => Err(format!("stale: {read}\n  {origin}\n  {newer}")),
    }
}

fn check_miss(read: &Operation, writes: &[&Operation], schedule: &Schedule) -> Result<(), String> {
    let lost = must_see(read, writes, schedule).filter(|write| write.action != Action::Delete).find(|put| {
        !writes.iter().any(|write| {
            let began = read.end.as_ref().is_some_and(|(end, _)| write.start < *end);
            write.action == Action::Delete && write.may_be_done() && began && !write.is_older_than(put)
        })
    });
    lost.map_or(Ok(()), |put| Err(format!("acknowledged, yet a miss: {read}\n  {put}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Event, Fault};

    /// `(start, end, action, outcome)` in milliseconds, of one key.
    type Line = (u64, u64, Action, Outcome);

    fn check(lines: &[Line], events: &[(Fault, u64, u64)]) -> Vec<String> {
        let mut history = History::default();
        for (start, end, action, outcome) in lines {
            // Twice as much, so that an end and a start of the same millisecond are told apart.
            let [start, end] =
                [(2 * start + 1, *start), (2 * end, *end)].map(|(order, ms)| Moment { order, ms });
            let end = Some((end, outcome.clone()));
            let operation = Operation { client: 0, node: 0, key: 0, action: action.clone(), start, end };
            history.operations.push(operation);
        }
        let events = events.iter().cloned();
        let events = events.map(|(fault, start_ms, end_ms)| Event { fault, start_ms, end_ms }).collect();
        let violations = history.check(&Schedule { nodes: 4, copies: 2, events });
        violations
            .into_iter()
            .map(|violation| violation.what.split(':').next().unwrap().to_string())
            .collect()
    }

    fn put(start: u64, end: u64, value: &str) -> Line {
        (start, end, Action::Put(value.into()), Outcome::Stored { version: value.into() })
    }

    fn unknown(start: u64, end: u64, action: Action) -> Line {
        (start, end, action, Outcome::Unknown("500".into()))
    }

    fn delete(start: u64, end: u64) -> Line {
        (start, end, Action::Delete, Outcome::Deleted)
    }

    fn get(start: u64, end: u64, value: &str) -> Line {
        let outcome = match value {
            "" => Outcome::Missing,
            value => Outcome::Found { value: value.into(), version: value.into() },
        };
        (start, end, Action::Get, outcome)
    }

    const CRASH_0: (Fault, u64, u64) = (Fault::Crash { node: 0 }, 10, 20);
    const CRASH_1: (Fault, u64, u64) = (Fault::Crash { node: 1 }, 15, 20);
    const CUT: (Fault, u64, u64) = (Fault::OneAgainstAll { node: 1 }, 10, 20);

    #[test]
    fn a_read_may_return_the_last_write_or_one_under_way() {
        assert!(check(&[put(1, 2, "a"), put(3, 9, "b"), get(4, 5, "a"), get(6, 7, "b")], &[]).is_empty());
        assert_eq!(check(&[put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "a")], &[]), ["stale"]);
    }

    #[test]
    fn a_read_never_returns_what_nobody_wrote_even_during_a_cut() {
        assert_eq!(check(&[get(12, 13, "x")], &[CUT]), ["a value that was never written"]);
        assert_eq!(check(&[get(1, 2, "x"), put(3, 4, "x")], &[]), ["a value from the future"]);
        let refused = (1, 2, Action::Create("x".into()), Outcome::Refused);
        assert_eq!(check(&[refused, get(3, 4, "x")], &[]), ["a value whose writing was refused"]);
    }

    #[test]
    fn a_miss_needs_a_delete_that_is_not_older() {
        assert!(check(&[put(1, 5, "a"), delete(2, 3), get(6, 7, "")], &[]).is_empty());
        assert!(check(&[put(1, 2, "a"), unknown(3, 4, Action::Delete), get(6, 7, "")], &[]).is_empty());
        let lost = ["acknowledged, yet a miss"];
        assert_eq!(check(&[put(1, 2, "a"), get(3, 4, "")], &[]), lost);
        assert_eq!(check(&[delete(1, 2), put(3, 4, "a"), get(5, 6, "")], &[]), lost);
        assert_eq!(check(&[put(1, 2, "a"), get(3, 4, ""), delete(5, 6)], &[]), lost);
        let unsent = (3, 4, Action::Delete, Outcome::NotSent);
        assert_eq!(check(&[put(1, 2, "a"), unsent, get(5, 6, "")], &[]), lost);
    }

    #[test]
    fn what_was_deleted_stays_away() {
        assert!(check(&[put(1, 4, "a"), delete(2, 3), get(5, 6, "a")], &[]).is_empty());
        assert_eq!(check(&[put(1, 2, "a"), delete(3, 4), get(5, 6, "a")], &[]), ["deleted, yet it is back"]);
    }

    #[test]
    fn a_write_of_unknown_outcome_may_come_at_any_time() {
        let late = [unknown(1, 2, Action::Put("a".into())), put(3, 4, "b"), get(5, 6, "b"), get(7, 8, "a")];
        assert!(check(&late, &[]).is_empty());
        let acknowledged = [put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "b"), get(7, 8, "a")];
        assert_eq!(check(&acknowledged, &[]), ["stale"]);
    }

    #[test]
    fn one_version_has_one_value() {
        let read = |at, value: &str| {
            let found = Outcome::Found { value: value.into(), version: "1".into() };
            (at, at + 1, Action::Get, found)
        };
        let both = [put(1, 9, "a"), put(1, 9, "b")];
        assert!(check(&[both[0].clone(), both[1].clone(), read(2, "a"), read(4, "a")], &[]).is_empty());
        let torn = check(&[both[0].clone(), both[1].clone(), read(2, "a"), read(4, "b")], &[]);
        assert_eq!(torn, ["two values of one version, the other is Some(\"a\")"]);
    }

    #[test]
    fn one_crash_excuses_nothing_and_two_excuse_a_loss() {
        let history = [put(1, 2, "a"), put(3, 4, "b"), get(16, 17, "a"), get(18, 19, "")];
        assert_eq!(check(&history, &[CRASH_0]).len(), 2);
        assert!(check(&history, &[CRASH_0, CRASH_1]).is_empty());
        let written_after = [put(16, 17, "a"), get(18, 19, "")];
        assert_eq!(check(&written_after, &[CRASH_0, CRASH_1]), ["acknowledged, yet a miss"]);
    }

    #[test]
    fn a_cut_excuses_stale_reads_until_it_is_settled() {
        let stale = [put(1, 2, "a"), put(3, 4, "b"), get(15, 16, "a")];
        assert!(check(&stale, &[CUT]).is_empty());
        let later = [put(1, 2, "a"), put(3, 4, "b"), get(10_021, 10_022, "a")];
        assert_eq!(check(&later, &[CUT]), ["stale"]);
    }

    #[test]
    fn an_answer_comes_in_time_unless_its_node_is_down() {
        let late = [unknown(1, 5_001, Action::Delete)];
        assert_eq!(check(&late, &[]), ["no answer in time"]);
        assert_eq!(check(&late, &[CRASH_1]), ["no answer in time"]);
        assert!(check(&late, &[CRASH_0]).is_empty());
    }
}
