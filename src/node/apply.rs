//! An operation on this node's own store: the condition is judged and the version stamped under one lock.
//!
//! Does not ask who owns the key, nor does it copy anything. Invariant: a write that is refused has changed nothing.

use super::replicate::Written;
use super::{NewValue, Node, NodeError, Operation, Outcome};
use crate::link::{Claim, Refusal};
use crate::model::{Condition, Current, Done, Entry, Expiry, Recent, Record, Tombstone, Version};

/// A write that was done in this node's store.
pub(super) struct Applied {
    pub(super) version: Version,
    /// The version of what was there before.
    pub(super) on: Option<Version>,
    /// By this node's uptime.
    at_ms: u64,
}

impl Applied {
    /// What the store holds now, as it is to be copied.
    pub(super) fn record(&self, operation: &Operation) -> Record {
        operation.record(self.version, self.at_ms)
    }

    /// As the node that wrote it knows it.
    pub(super) fn done(&self) -> Done {
        Done { version: self.version, on: self.on }
    }
}

impl Node {
    /// Does an operation on this node's own store at `at_ms`, whoever owns the key; of a write also what came of it.
    pub(super) fn apply(
        &self,
        operation: &Operation,
        at_ms: u64,
    ) -> Result<(Outcome, Option<Applied>), NodeError> {
        let unstamped = Version::new(0, 0);
        let (key, condition) = match operation {
            Operation::Get(key) => return Ok((self.lookup(key), None)),
            Operation::Put(key, _, condition) | Operation::Delete(key, condition) => (key, condition),
        };
        let record = operation.record(unstamped, at_ms);
        let mut on = None;
        // The version is noted under the store's lock: a task that reads it from the store finds the note, too.
        let stamp = |current: Option<Current>| {
            on = current.map(|current| current.version);
            let live = current.filter(|current| current.live).map(|current| current.version);
            if !condition.holds(live) {
                return Err(refused(condition, live));
            }
            let version = self.0.versions.stamp_after(self.wall_ms(), on);
            let is_plain = *condition == Condition::Always;
            self.0.recent.note_given(key, version, is_plain, at_ms);
            Ok(version)
        };
        let written = self.0.store.write(key, record, at_ms, stamp)??;
        self.count_evicted(written.evicted);
        let outcome = match operation {
            Operation::Delete(..) => Outcome::Deleted { found: written.replaced, degraded: false },
            _ => Outcome::Stored { version: written.version, degraded: false },
        };
        Ok((outcome, Some(Applied { version: written.version, on, at_ms })))
    }

    /// The same, with the refusals of an owner.
    pub(super) fn apply_as_owner(
        &self,
        operation: &Operation,
        at_ms: u64,
    ) -> Result<(Outcome, Option<Applied>), Refusal> {
        self.apply(operation, at_ms).map_err(|error| match error {
            NodeError::PreconditionFailed(reason) => Refusal::PreconditionFailed(reason),
            other => Refusal::TooLarge(other.to_string()),
        })
    }

    /// Answers a write without doing it. Another owner may have done it and fell silent, and this node has overwritten the key
    /// since the write was asked for. The write counts as done just before that: doing it now would undo the newer write.
    /// None if this node remembers no such newer write.
    pub(super) fn apply_before(
        &self,
        index: usize,
        operation: &Operation,
        claim: Claim,
        at_ms: u64,
    ) -> Option<(Outcome, Written)> {
        let asked_ms = at_ms.saturating_sub(claim.settled?.unsure_ms?.into());
        let key = operation.key();
        let given = self.0.recent.given_plain(key, asked_ms).filter(|_| !operation.is_conditional())?;
        let held = self.0.store.peek(key, self.uptime_ms()).filter(|held| held.version() >= given)?;
        let outcome = match operation {
            Operation::Delete(..) => Outcome::Deleted { found: true, degraded: false },
            _ => Outcome::Stored { version: given.previous(claim.request as u32), degraded: false },
        };
        Some((outcome, Written::new(index, key.clone(), held, 0, None)))
    }

    /// Sees to a write that has been done under that version, here or elsewhere, but was not confirmed: it, or what is newer, has to
    /// reach the other owners. None if it has to be done once more. Of a conditional write see [`Node::finish`].
    pub(super) fn apply_again(
        &self,
        index: usize,
        operation: &Operation,
        claim: Claim,
        version: Version,
    ) -> Result<Option<(Outcome, Written)>, Refusal> {
        // What is known at the first try, which is not settled, came late: its asker has had it done elsewhere.
        if claim.settled.is_none() {
            return Err(Refusal::Unconfirmed);
        }
        let (key, now_ms) = (operation.key(), self.uptime_ms());
        let held = self.0.store.peek(key, now_ms).filter(|held| held.version() >= version);
        let record = held.unwrap_or_else(|| operation.record(version, now_ms));
        let mark = Recent::mark(claim.request, key);
        // A newer one may have been decided on a condition that did not see this one.
        let is_in_view = || {
            record.version().node() == version.node()
                || self.0.recent.is_given_since(key, record.version(), mark)
        };
        if record.version() > version && !is_in_view() {
            return Ok(None);
        }
        self.keep(key, record.clone());
        self.0.recent.note(mark, Done { version, on: None }, self.uptime_ms());
        let mark = if record.version() == version { mark } else { 0 };
        let outcome = match operation {
            // What was there then was seen at the first try, whose answer was lost.
            Operation::Delete(..) => Outcome::Deleted { found: true, degraded: false },
            _ => Outcome::Stored { version, degraded: false },
        };
        Ok(Some((outcome, Written::new(index, key.clone(), record, mark, None))))
    }
}

impl Operation {
    /// What a write leaves. A read would leave what a delete does.
    pub(super) fn record(&self, version: Version, now_ms: u64) -> Record {
        match self {
            Operation::Put(_, new, _) => Record::Entry(entry(new, version, now_ms)),
            Operation::Get(_) | Operation::Delete(..) => {
                let expires_at_ms = now_ms.saturating_add(Tombstone::LIFE_MS);
                Record::Tombstone(Tombstone { version, expires_at_ms })
            }
        }
    }
}

fn entry(new: &NewValue, version: Version, now_ms: u64) -> Entry {
    Entry {
        value: new.value.clone(),
        content_type: new.content_type.clone(),
        version,
        expiry: new.ttl.map(|ttl| Expiry::of_write(ttl, now_ms)),
    }
}

fn refused(condition: &Condition, live: Option<Version>) -> NodeError {
    let wanted = match condition {
        Condition::Absent => "the key must not exist".to_string(),
        Condition::Present => "the key must exist".to_string(),
        Condition::Always | Condition::Versions(_) => "the key must have the given version".to_string(),
    };
    let found =
        live.map_or("it does not exist".to_string(), |version| format!("its version is \"{version}\""));
    NodeError::PreconditionFailed(format!("{wanted}; {found}"))
}
