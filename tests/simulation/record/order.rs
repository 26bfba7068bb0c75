//! What the operations on one key must have seen of each other.
//!
//! Versions order all writes, and each answer carries its own: no search for an order is needed. Operations follow each other
//! by time where one ended before the other began, and by version where both made one. A write of unknown outcome
//! may have been done or not. Versions are compared as text, which orders them.
//!
//! Invariant: whatever is found here breaks a promise in every order that the versions and the times allow.

use std::collections::BTreeMap;

use crate::operation::{Action, Operation, Outcome};
use crate::schedule::Schedule;

/// Everything in the operations on one key that must not be.
pub(super) fn check(operations: &[&Operation], schedule: &Schedule) -> Vec<String> {
    let writes: Vec<_> = operations.iter().copied().filter(|one| one.action != Action::Get).collect();
    let mut found = check_names(operations);
    for operation in operations {
        let result = match (&operation.action, operation.outcome()) {
            (Action::Get, Some(Outcome::Found { value, version })) => {
                check_value(operation, (version, value), &writes, schedule, "stale")
            }
            (Action::Get, Some(Outcome::Missing)) => {
                check_miss(operation, &writes, schedule, "acknowledged, yet a miss")
            }
            // What was created was missing, and what was replaced was there: as if it had been read.
            (Action::Create(_), Some(Outcome::Stored { .. })) => {
                check_miss(operation, &writes, schedule, "created over a value")
            }
            (Action::Replace(_, version), Some(Outcome::Stored { .. })) => {
                let origin =
                    operations.iter().find_map(|one| one.version().filter(|(one, _)| one == version));
                let value = origin.map(|(_, value)| value).unwrap_or_default();
                check_value(operation, (version, value), &writes, schedule, "a lost update")
            }
            (Action::Create(_) | Action::Replace(..), Some(Outcome::Refused)) => {
                check_refusal(operation, operations, &writes, schedule)
            }
            _ => Ok(()),
        };
        found.extend(result.err());
        found.extend(check_own_version(operation, &writes, schedule).err());
    }
    found
}

/// A write that the read must show, or something not older. For a write with a condition it is one that the condition
/// must have been decided on.
pub(super) fn must_see<'a>(
    read: &'a Operation,
    writes: &'a [&Operation],
    schedule: &'a Schedule,
) -> impl Iterator<Item = &'a Operation> {
    let is_before = |write: &Operation| write.acknowledged().is_some() && write.is_before(read);
    // A version may be too small where clocks are too far apart to be followed.
    let is_later = |write: &Operation| read.end.as_ref().is_some_and(|(end, _)| *end < write.start);
    let writes = writes.iter().copied().filter(move |write| is_before(write) && !is_later(write));
    writes.filter(|write| schedule.must_see(write.at(), read.at()))
}

/// A version names one value, and a value, as no two writes have the same, one version. A write was done twice if something
/// came between two that were seen. The version in its answer says nothing of that: it may have been overtaken before it was
/// done.
fn check_names(operations: &[&Operation]) -> Vec<String> {
    let (mut values, mut seen) = (BTreeMap::new(), BTreeMap::new());
    let mut found = Vec::new();
    for operation in operations {
        let Some((version, value)) = operation.version() else { continue };
        let other = *values.entry(version).or_insert(value);
        if other != value {
            found.push(format!("two values of one version: {operation}\n  the other is {other:?}"));
        }
        if matches!(operation.outcome(), Some(Outcome::Found { .. })) {
            seen.entry(version).or_insert((value, *operation));
        }
    }
    let mut last_of = BTreeMap::new();
    for (place, (version, (value, later))) in seen.iter().enumerate() {
        let Some((last, earlier)) = last_of.insert(value, (place, later)) else { continue };
        let is_between =
            last + 1 < place || operations.iter().any(|one| is_write_between(earlier, one, later));
        let what = if is_between { "a write done twice" } else { "a write under two versions" };
        found.push(format!("{what}: {earlier}\n  also under {version}: {later}"));
    }
    found
}

/// Whether another write was asked for and acknowledged between two reads.
fn is_write_between(earlier: &Operation, one: &Operation, later: &Operation) -> bool {
    let is_after = earlier.end.as_ref().is_some_and(|(end, _)| *end < one.start);
    is_after && one.is_older_than(later)
}

/// A write has a greater version than all that were acknowledged before it began.
fn check_own_version(write: &Operation, writes: &[&Operation], schedule: &Schedule) -> Result<(), String> {
    let Some(version) = write.made() else { return Ok(()) };
    let mut earlier = writes.iter().filter(|earlier| earlier.is_older_than(write));
    let greater = earlier
        .find(|earlier| earlier.made() >= Some(version) && schedule.must_see(earlier.at(), write.at()));
    greater.map_or(Ok(()), |earlier| {
        Err(format!("acknowledged, yet older than what was there: {write}\n  {earlier}"))
    })
}

/// `seen` is the version and the value that were there.
fn check_value(
    read: &Operation,
    (version, value): (&str, &str),
    writes: &[&Operation],
    schedule: &Schedule,
    what: &str,
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
    if schedule.must_see(origin.at(), read.at()) && origin.must_be_over_at(read.start.ms) {
        return Err(format!("its time to live was over: {read}\n  {origin}"));
    }
    // A deletion does not tell its version; it is the greater one if it saw what it deleted.
    let is_newer = |write: &Operation| match write.made() {
        Some(made) => made > version,
        None => origin.is_older_than(write) && schedule.must_see(origin.at(), write.at()),
    };
    // The cheap question first: many writes may come before a read, and few are newer than what it shows.
    let newer: Vec<_> =
        writes.iter().copied().filter(|write| write.is_before(read) && is_newer(write)).collect();
    match must_see(read, &newer, schedule).next() {
        None => Ok(()),
        Some(newer) if newer.action == Action::Delete => {
            Err(format!("deleted, yet it is back: {read}\n  {origin}\n  {newer}"))
        }
        Some(newer) => Err(format!("{what}: {read}\n  {origin}\n  {newer}")),
    }
}

fn check_miss(
    read: &Operation,
    writes: &[&Operation],
    schedule: &Schedule,
    what: &str,
) -> Result<(), String> {
    // Evicted.
    if schedule.is_small {
        return Ok(());
    }
    let is_gone = |write: &Operation| match write.action {
        Action::Delete => true,
        Action::Lend(..) => write.may_be_over_at(read.span().1),
        _ => false,
    };
    let lost = must_see(read, writes, schedule).filter(|write| !is_gone(write)).find(|put| {
        !writes.iter().rev().any(|write| {
            let began = read.end.as_ref().is_some_and(|(end, _)| write.start < *end);
            is_gone(write) && write.may_be_done() && began && may_follow(write, put, schedule)
        })
    });
    lost.map_or(Ok(()), |put| Err(format!("{what}: {read}\n  {put}")))
}

/// A condition fails only if there was a moment, while it was asked for, at which it did not hold.
fn check_refusal(
    refused: &Operation,
    operations: &[&Operation],
    writes: &[&Operation],
    schedule: &Schedule,
) -> Result<(), String> {
    let end = refused.end.as_ref().map(|(end, _)| *end);
    let mut others = writes.iter().rev().filter(|write| {
        write.may_be_done() && !std::ptr::eq(**write, refused) && end.is_some_and(|end| write.start < end)
    });
    let is_justified = match &refused.action {
        // Something may have been there.
        Action::Create(_) => others
            .any(|write| write.action != Action::Delete && !is_surely_gone(write, refused, writes, schedule)),
        // Something else may have been there, or nothing.
        Action::Replace(_, version) => {
            let Some(wanted) = writes.iter().find(|write| write.made() == Some(version)) else {
                return Ok(());
            };
            wanted.may_be_over_at(refused.span().1)
                || schedule.is_small
                || !wanted.is_older_than(refused)
                || !schedule.must_see(wanted.at(), refused.at())
                || others.any(|write| !std::ptr::eq(*write, *wanted) && may_follow(write, wanted, schedule))
        }
        _ => true,
    };
    if is_justified {
        return Ok(());
    }
    // What it was to replace may be there under another version.
    let other = operations.iter().find(|one| is_again(one, refused, writes));
    Err(other.map_or(format!("refused without a reason: {refused}"), |other| {
        format!("a write under two versions: {other}\n  {refused}")
    }))
}

/// Whether what `write` did may have come on top of an acknowledged one.
fn may_follow(write: &Operation, acknowledged: &Operation, schedule: &Schedule) -> bool {
    // A deletion does not tell its version. Done before on another side, by a clock that is ahead, it may have the greater one.
    let is_apart = || schedule.has_skew() && !schedule.must_see(write.at(), acknowledged.at());
    match write.made() {
        Some(version) => acknowledged.made() < Some(version),
        None => !write.is_before(acknowledged) || is_apart(),
    }
}

/// Whether `seen` shows the write that `refused` was to replace, under another version.
fn is_again(seen: &Operation, refused: &Operation, writes: &[&Operation]) -> bool {
    let Action::Replace(_, wanted) = &refused.action else { return false };
    let write = writes.iter().find(|write| write.made() == Some(wanted));
    let value = write.and_then(|write| write.action.value());
    value.is_some()
        && seen.version().is_some_and(|(version, shown)| version != wanted && Some(shown) == value)
}

/// Whether nothing of a write can have been there since `later` began.
fn is_surely_gone(write: &Operation, later: &Operation, writes: &[&Operation], schedule: &Schedule) -> bool {
    let ends = |one: &Operation| one.action == Action::Delete || one.must_be_over_at(later.start.ms);
    writes.iter().any(|one| {
        let is_after = || write.is_before(one) && schedule.must_see(write.at(), one.at());
        let is_it_or_after = std::ptr::eq(*one, write) || is_after();
        let is_seen = one.is_older_than(later) && schedule.must_see(one.at(), later.at());
        ends(one) && is_it_or_after && is_seen
    })
}
