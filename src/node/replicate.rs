//! Writes at an owner: stamped, kept, copied to the other owners, acknowledged when all of them have it.
//!
//! An owner acts only with authority over the slot (see [`super::placement`]), or when the asker has gathered from all
//! owners that can be reached; on a condition only with authority, or behind a fence (see [`super::decide`]). A copy that could not be written marks the slot dirty for its owner; the write is then
//! acknowledged as degraded, once that owner cannot answer from its own memory any more. Invariant: no write leaves here
//! without either its copies or its marks, whatever happens to the request.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};

use super::copies::Copied;
use super::owed::{Owed, targets};
use super::placement::Placement;
use super::{Node, Operation, Outcome};
use crate::link::{Claim, Refusal, Request, Settled};
use crate::model::{Key, Recent, Record, Slot, Version};

/// How old the answers of the other owners may be when a node acts on them. No longer than an asker waits for a silent
/// node before it turns to the next: a node that was stopped in between must not act late.
const SETTLED_FOR: Duration = crate::link::SILENCE;

/// A write that is in this node's store and has to reach others.
pub(super) struct Written {
    /// Its place among the operations.
    pub(super) index: usize,
    pub(super) key: Key,
    pub(super) record: Record,
    /// See [`Recent`].
    pub(super) mark: u64,
    /// Not all owners have it.
    pub(super) degraded: bool,
    /// A member that may still answer for it has not got it.
    missed: bool,
    /// Of a conditional write.
    pub(super) judged: Option<Judged>,
}

/// How a condition was decided.
pub(super) struct Judged {
    pub(super) at_ms: u64,
    /// On this version, or none.
    pub(super) on: Option<Version>,
    /// Behind a fence, otherwise with authority.
    pub(super) is_fenced: bool,
    /// Authority may have been lost since: another owner may have decided, too.
    pub(super) is_doubtful: bool,
}

/// What an operation came to at an owner that may act. None: whether its condition holds, or held, has to be seen behind a fence.
type Begun = Option<(Outcome, Option<Written>)>;

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
        let (mut written, mut open) = (Vec::new(), Vec::new());
        for (index, operation) in operations.iter().enumerate() {
            results.push(match self.begin(index, operation, claim, true) {
                Ok(Some((outcome, one))) => {
                    written.extend(one);
                    Ok(outcome)
                }
                Ok(None) => {
                    open.push(index);
                    Err(Refusal::Undecided)
                }
                Err(refusal) => Err(refusal),
            });
        }
        if !written.is_empty() {
            let mut failed = self.replicate(&mut written, deadline).await;
            self.confirm_all(&written, &mut failed, deadline).await;
            for one in &written {
                if let Ok(outcome) = &mut results[one.index] {
                    outcome.set_degraded(one.degraded);
                    // Otherwise no other owner was asked, or the asker waits here no more.
                    if claim.settled.is_some() {
                        self.take_newer_version(outcome, one);
                    }
                }
            }
            for (index, refusal) in failed {
                results[index] = Err(refusal);
            }
        }
        for (index, decided) in self.decide_all(operations, open, claim, deadline).await {
            results[index] = decided;
        }
        results
    }

    /// The asker gave up another owner, which may have done the same plain write since. That version is newer and stays, so it is
    /// the one to answer with.
    fn take_newer_version(&self, outcome: &mut Outcome, one: &Written) {
        let done = self.0.recent.done(one.mark, self.uptime_ms()).map(|done| done.version);
        if let Outcome::Stored { version, .. } = outcome
            && one.judged.is_none()
            && let Some(later) = done.filter(|done| done > version)
        {
            *version = later;
        }
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
        if self.keeps_alone(operation) {
            return self.write_alone(operation, claim);
        }
        let mut results = self.serve_all(std::slice::from_ref(operation), claim, deadline).await;
        results.pop().unwrap_or(Err(Refusal::NotSynced))
    }

    /// Whether what is written here has nothing to wait for.
    pub(super) fn keeps_alone(&self, operation: &Operation) -> bool {
        if self.0.config.copies.get() > 1 {
            return false;
        }
        let placement = self.0.placement.load();
        self.is_current(&placement, self.uptime_ms())
            && placement.is_complete()
            && !operation.is_conditional()
    }

    /// Writes as the only owner.
    pub(super) fn write_alone(&self, operation: &Operation, claim: Claim) -> Result<Outcome, Refusal> {
        self.see_clock(claim.clock);
        let Some((outcome, _)) = self.begin(0, operation, claim, false)? else {
            return Err(Refusal::Undecided);
        };
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
        self.check_entitled(key.slot(), claim, self.uptime_ms())?;
        Ok(self.lookup(key))
    }

    /// Does one operation in this node's own store. What is written comes back only if it `is_copied`.
    fn begin(
        &self,
        index: usize,
        operation: &Operation,
        claim: Claim,
        is_copied: bool,
    ) -> Result<Begun, Refusal> {
        let (slot, at_ms) = (operation.key().slot(), self.uptime_ms());
        if operation.is_write() && self.is_late(claim, at_ms) {
            return Err(Refusal::NotSynced);
        }
        let entitled = self.check_entitled(slot, claim, at_ms)?;
        if operation.is_conditional() && !cfg!(feature = "fault-decide-unfenced") {
            // All owners of a slot may have authority at a time, of which only the primary decides by it alone.
            let is_primary = self.0.placement.load().ring.primary(slot) == Some(&self.0.id);
            if entitled == Entitled::Settled || !is_primary {
                return Ok(None);
            }
        }
        let mark = if operation.is_write() { Recent::mark(claim.request, operation.key()) } else { 0 };
        if operation.is_write()
            && let Some(version) = claim
                .settled
                .and_then(|settled| settled.done)
                .or_else(|| Some(self.0.recent.done(mark, at_ms)?.version))
        {
            if operation.is_conditional() && claim.settled.is_some() {
                return Ok(None);
            }
            if let Some((outcome, written)) = self.apply_again(index, operation, claim, version)? {
                return Ok(Some((outcome, Some(written))));
            }
        }
        if let Some((outcome, written)) = self.apply_before(index, operation, claim, at_ms) {
            return Ok(Some((outcome, Some(written))));
        }
        let (outcome, applied) = self.apply_as_owner(operation, at_ms)?;
        if let Some(applied) = &applied {
            self.0.recent.note(mark, applied.done(), at_ms);
        }
        let written = applied.filter(|_| is_copied).map(|applied| {
            let on = applied.on;
            let judged = operation.is_conditional().then(|| {
                // It may have gone between the look at it and the write: this process may have been stopped there.
                let is_doubtful = !self.has_authority(&self.0.placement.load(), slot);
                Judged { at_ms, on, is_fenced: false, is_doubtful }
            });
            let record = applied.record(operation);
            Written::new(index, operation.key().clone(), record, mark, judged)
        });
        Ok(Some((outcome, written)))
    }

    fn check_entitled(&self, slot: Slot, claim: Claim, now_ms: u64) -> Result<Entitled, Refusal> {
        let placement = self.0.placement.load();
        if !self.is_admitted() || !placement.owns(slot) {
            return Err(Refusal::NotOwner);
        }
        // Both hold among those that go by one table.
        if claim.ring != placement.ring.fingerprint() {
            return Err(Refusal::NotSynced);
        }
        if self.had_authority(&placement, slot, now_ms) {
            return Ok(Entitled::ByAuthority);
        }
        let is_fresh =
            |settled: Settled| now_ms.saturating_sub(settled.at_ms) <= SETTLED_FOR.as_millis() as u64;
        // What another owner decides behind its fence must not miss a write that is done here meanwhile.
        let is_fenced_off = self.0.fences.is_given_away(slot, &self.0.id, now_ms);
        let is_settled =
            claim.settled.is_some_and(is_fresh) && !is_fenced_off && self.may_act_settled(&placement);
        if is_settled { Ok(Entitled::Settled) } else { Err(Refusal::NotSynced) }
    }

    /// Copies what was written to all other owners and says which of it must not be acknowledged.
    pub(super) async fn replicate(
        &self,
        written: &mut [Written],
        deadline: Instant,
    ) -> Vec<(usize, Refusal)> {
        // Taken after the writes: a change from now on finds them in the store and passes them on itself.
        let placement = self.0.placement.load_full();
        let targets = targets(&placement, &self.0.id, written);
        if targets.is_empty() {
            return Vec::new();
        }
        let mut owed = Owed::new(self, &placement, &targets, written);
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        let copying = targets.iter().map(async |(member, indexes)| {
            let records = indexes.iter().map(|&index| {
                let Written { key, record, mark, .. } = &written[index];
                (key, record.clone(), *mark)
            });
            self.copy_to(member, Request::Copy, records, Instant::now() + patience).await
        });
        let copied = join_all(copying).await;
        let here = placement.ring.fingerprint();
        let mut failed = Vec::new();
        let mut free_at_ms = 0;
        for ((member, indexes), copied) in targets.iter().zip(copied) {
            match copied {
                Copied::Held { ring, bound, met } => {
                    owed.forgive(member);
                    for (place, &index) in indexes.iter().enumerate() {
                        let is_elsewhere =
                            (ring != here || bound) && placement.ring.owns(member, written[index].key.slot());
                        let other = met.iter().find(|(at, _)| *at == place as u32).map(|(_, other)| *other);
                        if self.is_lost(&placement, &written[index], is_elsewhere, other) {
                            failed.push((written[index].index, Refusal::Unconfirmed));
                        }
                    }
                }
                // Also one whose port refuses connections, which a live one's may: a lease waits, and only once.
                Copied::Rejected(_) | Copied::Late | Copied::Failed => {
                    for &index in indexes {
                        written[index].missed = true;
                        written[index].degraded |= placement.ring.owns(member, written[index].key.slot());
                    }
                    let lease_end_ms = owed.mark(member);
                    // A conditional write is fenced, which includes the wait for the other owners.
                    let waits =
                        |one: &Written| one.judged.is_none() || !placement.ring.owns(member, one.key.slot());
                    if indexes.iter().any(|&index| waits(&written[index])) {
                        free_at_ms = free_at_ms.max(lease_end_ms);
                    }
                    // Evicted before its slot was dirty, it would leave nothing.
                    for Written { key, record, .. } in indexes.iter().map(|&index| &written[index]) {
                        self.0.store.note_given_up(key, record.version(), self.uptime_ms());
                    }
                }
            }
        }
        drop(owed);
        let degraded = written.iter().filter(|written| written.degraded).count();
        if degraded > 0 {
            self.0.metrics.degraded_writes.inc_by(degraded as u64);
        }
        // Also a member that is no owner by this table may answer by the former one.
        if free_at_ms > 0 {
            let free_at = self.instant_at(free_at_ms);
            sleep_until(free_at.min(deadline)).await;
            if free_at > deadline {
                let late = written
                    .iter()
                    .filter(|written| written.missed && !(written.degraded && written.judged.is_some()));
                failed.extend(late.map(|written| (written.index, Refusal::Unconfirmed)));
            }
            // Another node may have decided a condition without this write in view; the asker then tries the write again.
            let is_hidden = |one: &&Written| {
                one.judged.is_none() && self.0.recent.is_hidden(&one.key, one.record.version())
            };
            failed.extend(written.iter().filter(is_hidden).map(|one| (one.index, Refusal::Unconfirmed)));
        }
        failed
    }

    /// Whether a write must not be acknowledged, by what an owner said that took its copy: it goes by another table, holds a
    /// newer version, or held one that was just written elsewhere. A newer one was written at the same time, if this node has
    /// authority still. If not, others may have acted in its place while it was stopped, and this write must not pass for the
    /// later one. An older one that was not in view when a condition was decided would be a lost update.
    fn is_lost(
        &self,
        placement: &Placement,
        one: &Written,
        is_elsewhere: bool,
        met: Option<Version>,
    ) -> bool {
        let newer = met.filter(|met| *met > one.record.version());
        let is_unseen = met.is_some_and(|met| one.was_decided_without(met));
        if let Some(met) = met.filter(|_| is_unseen) {
            // So that whoever finishes it hears of that here, too.
            self.0.recent.note_unseen(&one.key, met, self.uptime_ms());
        }
        // The newer one must be known here: else it is of a clock far ahead, and hides this write.
        let is_hidden = newer.is_some_and(|newer| !self.holds_since(&one.key, newer));
        let is_doubtful = is_elsewhere || newer.is_some();
        let has_authority = || self.has_authority(placement, one.key.slot());
        is_hidden
            || match &one.judged {
                // While the fence stands nobody else decides, and it is looked at before the answer. An owner that has not
                // promised may write all the same.
                Some(judged) if judged.is_fenced => is_elsewhere || is_unseen,
                Some(judged) => {
                    let has_kept = || placement.has_kept_authority_since(judged.at_ms);
                    is_unseen || is_doubtful && !(has_authority() && has_kept())
                }
                None => is_doubtful && !has_authority(),
            }
    }
}

impl Written {
    pub(super) fn new(index: usize, key: Key, record: Record, mark: u64, judged: Option<Judged>) -> Written {
        Written { index, key, record, mark, degraded: false, missed: false, judged }
    }

    /// Whether its condition was decided without that older version in view.
    pub(super) fn was_decided_without(&self, older: Version) -> bool {
        older < self.record.version() && self.judged.as_ref().is_some_and(|judged| Some(older) > judged.on)
    }
}

/// By what an owner may act.
#[derive(PartialEq)]
enum Entitled {
    ByAuthority,
    /// By what the asker has gathered.
    Settled,
}
