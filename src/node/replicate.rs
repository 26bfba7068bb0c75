//! Writes at an owner: stamped, kept, copied to the other owners, acknowledged when all of them have it.
//!
//! An owner acts only with authority over the slot (see [`super::placement`]), or when the asker has gathered from all
//! owners that can be reached. A copy that could not be written marks the slot dirty for its owner; the write is then
//! acknowledged as degraded, once that owner cannot answer from its own memory any more. Invariant: no write leaves here
//! without either its copies or its marks, whatever happens to the request.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};

use super::copies::Copied;
use super::placement::Placement;
use super::{NewValue, Node, NodeError, Operation, Outcome};
use crate::link::{Claim, Refusal, Request};
use crate::model::{Condition, Current, Entry, Key, NodeId, Record, Slot, Tombstone, Version};

/// How old the answers of the other owners may be when a node acts on them. No longer than an asker waits for a silent
/// node before it turns to the next: a node that was stopped in between must not act late.
const SETTLED_FOR: Duration = crate::link::SILENCE;

/// A write that is in this node's store and has to reach others.
struct Written {
    /// Its place among the operations.
    index: usize,
    key: Key,
    record: Record,
    degraded: bool,
}

impl Node {
    /// Does operations as an owner of their keys. The results in order.
    pub(super) async fn serve_all(
        &self,
        operations: &[Operation],
        claim: Claim,
        deadline: Instant,
    ) -> Vec<Result<Outcome, Refusal>> {
        self.see_clock(claim.clock);
        let mut results = Vec::with_capacity(operations.len());
        let mut written = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            results.push(match self.begin(operation, claim) {
                Ok((outcome, record)) => {
                    let key = operation.key().clone();
                    written.extend(record.map(|record| Written { index, key, record, degraded: false }));
                    Ok(outcome)
                }
                Err(refusal) => Err(refusal),
            });
        }
        if !written.is_empty() {
            let failed = self.replicate(&mut written, deadline).await;
            for Written { index, degraded: now_degraded, .. } in &written {
                if let Ok(Outcome::Stored { degraded, .. } | Outcome::Deleted { degraded, .. }) =
                    &mut results[*index]
                {
                    *degraded = *now_degraded;
                }
            }
            for (index, refusal) in failed {
                results[index] = Err(refusal);
            }
        }
        results
    }

    /// Does one operation as an owner of its key.
    pub(super) async fn serve(
        &self,
        operation: &Operation,
        claim: Claim,
        deadline: Instant,
    ) -> Result<Outcome, Refusal> {
        if let Operation::Get(key) = operation {
            return self.read(key, claim);
        }
        let mut results = self.serve_all(std::slice::from_ref(operation), claim, deadline).await;
        results.pop().unwrap_or(Err(Refusal::NotSynced))
    }

    /// Whether what is written here has no copies to wait for.
    pub(super) fn keeps_alone(&self) -> bool {
        let placement = self.0.placement.load();
        self.0.config.copies.get() == 1
            && self.is_current(&placement, self.uptime_ms())
            && placement.is_complete()
    }

    /// Writes as the only owner.
    pub(super) fn write_alone(&self, operation: &Operation, claim: Claim) -> Result<Outcome, Refusal> {
        self.see_clock(claim.clock);
        let (outcome, _) = self.begin(operation, claim)?;
        let slot = operation.key().slot();
        if !self.0.placement.load().owns(slot) {
            // The table has changed in this very moment.
            self.pass_on(slot);
            return Err(Refusal::Unconfirmed);
        }
        Ok(outcome)
    }

    /// Reads as an owner.
    pub(super) fn read(&self, key: &Key, claim: Claim) -> Result<Outcome, Refusal> {
        self.check_entitled(key.slot(), claim)?;
        Ok(self.lookup(key))
    }

    /// Does an operation on this node's own store, whoever owns the key; a write also as it is to be copied.
    pub(super) fn apply(&self, operation: &Operation) -> Result<(Outcome, Option<Record>), NodeError> {
        let now_ms = self.now_ms();
        let unstamped = Version::new(0, 0);
        let (key, condition, mut record) = match operation {
            Operation::Get(key) => return Ok((self.lookup(key), None)),
            Operation::Put(key, new, condition) => {
                (key, condition, Record::Entry(entry(new, unstamped, now_ms)))
            }
            Operation::Delete(key, condition) => {
                let expires_at_ms = now_ms.saturating_add(Tombstone::LIFE_MS);
                (key, condition, Record::Tombstone(Tombstone { version: unstamped, expires_at_ms }))
            }
        };
        let stamp = |current: Option<Current>| {
            let live = current.filter(|current| current.live).map(|current| current.version);
            if !condition.holds(live) {
                return Err(refused(condition, live));
            }
            Ok(self.0.versions.stamp_after(now_ms, current.map(|current| current.version)))
        };
        let written = self.0.store.write(key, record.clone(), now_ms, stamp)??;
        self.count_evicted(written.evicted);
        record.set_version(written.version);
        let outcome = match operation {
            Operation::Delete(..) => Outcome::Deleted { found: written.replaced, degraded: false },
            _ => Outcome::Stored { version: written.version, degraded: false },
        };
        Ok((outcome, Some(record)))
    }

    fn begin(&self, operation: &Operation, claim: Claim) -> Result<(Outcome, Option<Record>), Refusal> {
        self.check_entitled(operation.key().slot(), claim)?;
        self.apply(operation).map_err(|error| match error {
            NodeError::PreconditionFailed(reason) => Refusal::PreconditionFailed(reason),
            other => Refusal::TooLarge(other.to_string()),
        })
    }

    fn check_entitled(&self, slot: Slot, claim: Claim) -> Result<(), Refusal> {
        let placement = self.0.placement.load();
        if !self.is_admitted() || !placement.owns(slot) {
            return Err(Refusal::NotOwner);
        }
        // Both hold among those that go by one table.
        if claim.ring != placement.ring.fingerprint() {
            return Err(Refusal::NotSynced);
        }
        let is_fresh = |at_ms| self.uptime_ms().saturating_sub(at_ms) <= SETTLED_FOR.as_millis() as u64;
        let is_settled = claim.settled_at_ms.is_some_and(is_fresh) && self.may_act_settled(&placement);
        if is_settled || self.has_authority(&placement, slot) { Ok(()) } else { Err(Refusal::NotSynced) }
    }

    /// Copies what was written to all other owners and says which of it must not be acknowledged.
    async fn replicate(&self, written: &mut [Written], deadline: Instant) -> Vec<(usize, Refusal)> {
        // Taken after the writes: a change from now on finds them in the store and passes them on itself.
        let placement = self.0.placement.load_full();
        let targets = targets(&placement, &self.0.id, written);
        if targets.is_empty() {
            return Vec::new();
        }
        let mut owed = Owed::new(self, &placement, &targets, written);
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        let copying = targets.iter().map(async |(member, indexes)| {
            let records = indexes.iter().map(|&index| (&written[index].key, written[index].record.clone()));
            self.copy_to(member, Request::Copy, records, Instant::now() + patience).await
        });
        let copied = join_all(copying).await;
        let here = placement.ring.fingerprint();
        let mut failed = Vec::new();
        let mut free_at_ms = 0;
        for ((member, indexes), copied) in targets.iter().zip(copied) {
            match copied {
                Copied::Held { ring, stale } => {
                    owed.forgive(member);
                    for (place, &index) in indexes.iter().enumerate() {
                        let slot = written[index].key.slot();
                        // Newer than ours: written at the same time, if we still have authority. If not, others may have
                        // acted in our place while we were stopped, and by another table: ours must not pass for the
                        // later one.
                        let is_elsewhere = ring != here && placement.ring.owns(member, slot);
                        let is_doubtful = is_elsewhere || stale.contains(&(place as u32));
                        if is_doubtful && !self.has_authority(&placement, slot) {
                            failed.push((written[index].index, Refusal::Unconfirmed));
                        }
                    }
                }
                Copied::Gone | Copied::Rejected(_) | Copied::Late | Copied::Failed => {
                    for &index in indexes {
                        written[index].degraded |= placement.ring.owns(member, written[index].key.slot());
                    }
                    if !matches!(copied, Copied::Gone) {
                        free_at_ms = free_at_ms.max(owed.mark(member));
                    }
                }
            }
        }
        drop(owed);
        let degraded = written.iter().filter(|written| written.degraded).count();
        if degraded > 0 {
            self.0.metrics.degraded_writes.inc_by(degraded as u64);
            let free_at = self.0.started + Duration::from_millis(free_at_ms);
            sleep_until(free_at.min(deadline)).await;
            if free_at > deadline {
                let late = written.iter().filter(|written| written.degraded);
                failed.extend(late.map(|written| (written.index, Refusal::Unconfirmed)));
            }
        }
        failed
    }
}

fn entry(new: &NewValue, version: Version, now_ms: u64) -> Entry {
    let ttl_ms = new.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    Entry {
        value: new.value.clone(),
        content_type: new.content_type.clone(),
        version,
        expires_at_ms: ttl_ms.map(|ttl_ms| now_ms.saturating_add(ttl_ms)),
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

/// Who is to get which of the writes. Besides the other owners, after a change of the table also members that were not
/// heard under it: they may still answer by the former one.
fn targets(placement: &Placement, me: &NodeId, written: &[Written]) -> BTreeMap<NodeId, Vec<usize>> {
    let mut targets: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    let also_told = placement.without_report();
    for (index, one) in written.iter().enumerate() {
        let owners = placement.ring.owners(one.key.slot());
        let also = also_told.iter().filter(|member| !placement.ring.owns(member, one.key.slot()));
        for member in owners.chain(also).filter(|member| *member != me) {
            targets.entry(member.clone()).or_default().push(index);
        }
    }
    targets
}

/// The pairs that become dirty unless the copies are acknowledged; also when the request is dropped half way.
struct Owed<'a> {
    node: &'a Node,
    pairs: BTreeMap<NodeId, Vec<Slot>>,
}

impl<'a> Owed<'a> {
    fn new(
        node: &'a Node,
        placement: &Placement,
        targets: &BTreeMap<NodeId, Vec<usize>>,
        written: &[Written],
    ) -> Owed<'a> {
        let slots_of = |member: &NodeId, indexes: &[usize]| -> Vec<Slot> {
            let slots = indexes.iter().map(|&index| written[index].key.slot());
            slots.filter(|slot| placement.ring.owns(member, *slot)).collect()
        };
        let pairs = targets.iter().map(|(member, indexes)| (member.clone(), slots_of(member, indexes)));
        Owed { node, pairs: pairs.collect() }
    }

    fn forgive(&mut self, member: &NodeId) {
        self.pairs.remove(member);
    }

    /// Marks a member's pairs and says from when on it cannot answer from its own memory any more.
    fn mark(&mut self, member: &NodeId) -> u64 {
        let slots = self.pairs.remove(member).unwrap_or_default();
        self.node.update_ledger(|ledger| {
            // Who does not own it by the table in force is owed nothing; the change of the table saw to the new owners.
            let placement = self.node.0.placement.load();
            let owned = slots.iter().filter(|slot| placement.ring.owns(member, **slot));
            owned.for_each(|slot| ledger.mark(*slot, member));
            ledger.lease_end(member)
        })
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        let members: Vec<NodeId> = self.pairs.keys().cloned().collect();
        for member in members {
            self.mark(&member);
        }
        self.node.0.owing.notify_one();
    }
}
