//! Conditional writes at an owner without authority: fenced first, decided then.
//!
//! Such an owner has a majority of the members promise it the slot and waits until no other owner can act by a lease of its
//! own (see [`Fence`]); only then does it ask everybody what they hold, and decide. A write that an owner lacks is
//! granted only when a majority holds it, and while the fence has stood all the time: whoever decides next finds it. A write that
//! another owner decided and did not answer for is finished in the same way.
//! Invariant: of two conditional writes that are granted, the later one was decided with the earlier one in view.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::copies::Copied;
use super::fence::SlotFence;
use super::gather::Gathered;
use super::placement::Placement;
use super::replicate::{Judged, Written};
use super::{Node, Operation, Outcome};
use crate::link::{Claim, Refusal, Reply, Request};
use crate::model::{
    Condition, Done, Fence, Fingerprint, Key, Ledger, NodeId, Recent, Record, Slot, Version, mix,
};
use crate::net::spawn;

/// How long a member may take to promise, or to take a copy that is not its own.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// How often promises are asked for again while a lease is waited out.
const RENEWAL: Duration = Duration::from_millis(Ledger::LEASE_MS / 3);
/// An owner that got no majority waits this long, and at random up to as much again, so that another owner can get one.
const REST_MS: u64 = 40;
/// Operations of one batch whose conditions are decided at a time.
const DECIDING_MAX: usize = 32;
/// Pause before a write is confirmed again.
const PAUSE: Duration = Duration::from_millis(50);

/// What an owner decides on: its fence, and all that was found since it stands.
struct Fenced {
    placement: Arc<Placement>,
    fence: Arc<SlotFence>,
    since_ms: u64,
    found: Gathered,
    /// What others have seen of owners that could not be asked themselves.
    seen: Vec<Record>,
}

impl Fenced {
    fn stands(&self, now_ms: u64) -> bool {
        self.fence.stands_since(self.placement.ring.fingerprint(), self.since_ms, now_ms)
    }

    fn newest(&self) -> Option<&Record> {
        let found = self.found.newest().map(|(_, record)| record);
        found.into_iter().chain(&self.seen).max_by_key(|record| record.version())
    }

    /// The record of that version, if nothing else was found that is newer than `on`, nor gave way to it unseen.
    fn clear(&self, version: Version, on: Option<Version>) -> Option<&Record> {
        let mut versions = self.found.versions().chain(self.seen.iter().map(Record::version));
        let is_alone = versions.all(|found| found == version || Some(found) <= on);
        self.found.clear(version, on).filter(|_| is_alone)
    }
}

impl Node {
    /// Answers a member that asks for a promise.
    pub(super) fn promise(&self, to: &NodeId, slot: Slot, theirs: Fingerprint, asked_ms: u64) -> bool {
        let now_ms = self.uptime_ms();
        // The process before this one may have given one to somebody else.
        let may_give = self.is_admitted() && !self.is_leaving() && now_ms > Ledger::LEASE_MS;
        may_give && theirs == self.ring().fingerprint() && self.0.fences.give(slot, to, asked_ms, now_ms)
    }

    /// Does conditional writes as an owner that has no authority; the results with their indexes.
    pub(super) async fn decide_all(
        &self,
        operations: &[Operation],
        open: Vec<usize>,
        claim: Claim,
        deadline: Instant,
    ) -> Vec<(usize, Result<Outcome, Refusal>)> {
        let mut deciding = Vec::with_capacity(open.len());
        for &index in &open {
            deciding.push(self.decide(&operations[index], claim, deadline));
        }
        let decided: Vec<_> = stream::iter(deciding).buffered(DECIDING_MAX).collect().await;
        open.into_iter().zip(decided).collect()
    }

    /// Confirms those conditional writes that others may have decided, too, and notes which must not be acknowledged.
    pub(super) async fn confirm_all(
        &self,
        written: &[Written],
        failed: &mut Vec<(usize, Refusal)>,
        deadline: Instant,
    ) {
        let (mut indexes, mut confirming) = (Vec::new(), Vec::new());
        for one in written {
            let is_doubtful = one.judged.as_ref().is_some_and(|judged| one.degraded || judged.is_doubtful);
            if is_doubtful && !failed.iter().any(|(index, _)| *index == one.index) {
                indexes.push(one.index);
                confirming.push(self.confirm(one, deadline));
            }
        }
        let confirmed: Vec<_> = stream::iter(confirming).buffered(DECIDING_MAX).collect().await;
        let refused =
            indexes.into_iter().zip(confirmed).filter_map(|(index, done)| Some((index, done.err()?)));
        failed.extend(refused);
    }

    async fn decide(
        &self,
        operation: &Operation,
        claim: Claim,
        deadline: Instant,
    ) -> Result<Outcome, Refusal> {
        let key = operation.key();
        let mark = Recent::mark(claim.request, key);
        let fenced = self.fence_and_gather(key, mark, deadline).await?;
        let done = claim.settled.and_then(|settled| settled.done).max(fenced.found.done());
        if let Some(version) = done {
            return self.finish(operation, fenced, mark, version, deadline).await;
        }
        if let Some(newest) = fenced.newest() {
            self.keep_found(key, newest.clone());
        }
        if !fenced.stands(self.uptime_ms()) {
            return Err(Refusal::Undecided);
        }
        // Its copy has arrived in the meantime.
        if self.0.recent.done(mark, self.uptime_ms()).is_some() {
            return Err(Refusal::DecidedBefore);
        }
        let (outcome, applied) = self.apply_as_owner(operation, self.uptime_ms())?;
        let Some(applied) = applied else { return Ok(outcome) };
        self.0.recent.note(mark, applied.done(), self.uptime_ms());
        let written = self.fenced(key, applied.record(operation), mark, applied.on);
        self.acknowledge(outcome, fenced, written, deadline).await
    }

    /// Grants a conditional write that another owner decided, and did not answer for, if that decision is as good as one made
    /// now: nobody who answers has anything but this write and what it was decided on, nor had anything that gave way to it.
    async fn finish(
        &self,
        operation: &Operation,
        fenced: Fenced,
        mark: u64,
        version: Version,
        deadline: Instant,
    ) -> Result<Outcome, Refusal> {
        let key = operation.key();
        let on = operation.condition().oldest().max(fenced.found.replaced(version));
        let record = fenced.clear(version, on).ok_or(Refusal::DecidedBefore)?.clone();
        if !fenced.stands(self.uptime_ms()) {
            return Err(Refusal::Undecided);
        }
        if self.keep(key, record.clone()) > on {
            return Err(Refusal::DecidedBefore);
        }
        self.0.recent.note(mark, Done { version, on }, self.uptime_ms());
        let outcome = match operation {
            Operation::Delete(_, condition) => {
                Outcome::Deleted { found: *condition != Condition::Absent, degraded: false }
            }
            _ => Outcome::Stored { version, degraded: false },
        };
        self.acknowledge(outcome, fenced, self.fenced(key, record, mark, on), deadline).await
    }

    /// A write whose condition was decided behind a fence, on that version.
    fn fenced(&self, key: &Key, record: Record, mark: u64, on: Option<Version>) -> Written {
        let judged = Judged { at_ms: self.uptime_ms(), on, is_fenced: true, is_doubtful: false };
        Written::new(0, key.clone(), record, mark, Some(judged))
    }

    /// Brings a write that was decided behind a fence to the others, and answers it.
    async fn acknowledge(
        &self,
        mut outcome: Outcome,
        fenced: Fenced,
        written: Written,
        deadline: Instant,
    ) -> Result<Outcome, Refusal> {
        let mut written = [written];
        if let Some((_, refusal)) = self.replicate(&mut written, deadline).await.pop() {
            return Err(refusal);
        }
        let [written] = written;
        if written.degraded {
            self.spread(&fenced, &written).await?;
        }
        if !fenced.stands(self.uptime_ms()) {
            return Err(Refusal::Unconfirmed);
        }
        outcome.set_degraded(written.degraded);
        Ok(outcome)
    }

    /// Sees to it that a conditional write, which was decided with authority and which an owner lacks, is the only one: as
    /// if it were decided now.
    async fn confirm(&self, written: &Written, deadline: Instant) -> Result<(), Refusal> {
        // Another owner may have the fence. Its asker needs time to have the write finished by that one.
        let deadline = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        loop {
            match self.confirm_once(written, deadline).await {
                // Soon perhaps: a member may be about to be declared dead.
                Err(Refusal::Undecided)
                    if Instant::now() + PAUSE < deadline
                        && self.0.placement.load().owns(written.key.slot()) =>
                {
                    sleep(PAUSE).await;
                }
                Err(Refusal::Undecided) => return Err(Refusal::Unconfirmed),
                done => return done,
            }
        }
    }

    async fn confirm_once(&self, written: &Written, deadline: Instant) -> Result<(), Refusal> {
        let fenced = self.fence_and_gather(&written.key, 0, deadline).await?;
        let on = written.judged.as_ref().and_then(|judged| judged.on);
        fenced.clear(written.record.version(), on).ok_or(Refusal::Unconfirmed)?;
        self.spread(&fenced, written).await?;
        if fenced.stands(self.uptime_ms()) { Ok(()) } else { Err(Refusal::Unconfirmed) }
    }

    /// Puts up the fence of a key's slot, then asks everybody what they hold.
    async fn fence_and_gather(&self, key: &Key, mark: u64, deadline: Instant) -> Result<Fenced, Refusal> {
        let placement = self.0.placement.load_full();
        if !placement.owns(key.slot()) || !self.may_act_settled(&placement) {
            return Err(Refusal::Undecided);
        }
        let fence = self.raise(&placement, key.slot(), deadline).await.ok_or(Refusal::Undecided)?;
        let since_ms = self.uptime_ms();
        let (found, heard) = tokio::join!(
            self.gather_all(&placement, key, mark, deadline),
            self.hear_witnesses(&placement, key, deadline)
        );
        let members = placement.ring.members();
        let is_sure = found.is_heard() && found.is_of_majority(members) && 2 * heard.answered > members.len();
        let seen = heard.writes.into_iter().filter(|seen| !found.has_answered(&seen.holder));
        let seen = seen.map(|seen| seen.record).collect();
        let fenced = Fenced { placement, fence, since_ms, found, seen };
        // The table may have changed meanwhile, or this process may have slept.
        let is_owner = self.ring().fingerprint() == fenced.placement.ring.fingerprint()
            && self.may_act_settled(&self.0.placement.load());
        if is_sure && is_owner && fenced.stands(self.uptime_ms()) {
            Ok(fenced)
        } else {
            Err(Refusal::Undecided)
        }
    }

    /// Has a majority of the members hold a write that an owner lacks.
    async fn spread(&self, fenced: &Fenced, written: &Written) -> Result<(), Refusal> {
        let ring = &fenced.placement.ring;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let holding = fenced.placement.other_members().map(async |member| {
            let (key, record) = (&written.key, &written.record);
            if !ring.owns(member, key.slot()) {
                return Ok(self.show(&fenced.placement, member, (key, record), deadline).await);
            }
            let records = [(key, record.clone(), written.mark)].into_iter();
            match self.copy_to(member, Request::Copy, records, deadline).await {
                // It had something that the decision had not in view: a majority without it changes nothing.
                Copied::Held { met, .. } if met.iter().any(|(_, met)| written.was_decided_without(*met)) => {
                    Err(Refusal::Unconfirmed)
                }
                Copied::Held { ring: theirs, .. } => Ok(theirs == ring.fingerprint()),
                _ => Ok(false),
            }
        });
        let held: Vec<bool> = join_all(holding).await.into_iter().collect::<Result<_, _>>()?;
        let holders = 1 + held.into_iter().filter(|is_held| *is_held).count();
        if 2 * holders > ring.members().len() { Ok(()) } else { Err(Refusal::Unconfirmed) }
    }

    /// Puts up a fence, or keeps it up. None if that cannot be had now.
    async fn raise(&self, placement: &Placement, slot: Slot, deadline: Instant) -> Option<Arc<SlotFence>> {
        let ring = placement.ring.fingerprint();
        let fence = self.0.fences.of(slot, self.uptime_ms());
        let _turn = timeout_at(deadline, fence.turn.lock()).await.ok()?;
        loop {
            let now_ms = self.uptime_ms();
            if fence.look(ring, |fence| fence.is_firm(now_ms)) {
                return Some(fence.clone());
            }
            if fence.rests(now_ms) || self.ring().fingerprint() != ring {
                return None;
            }
            self.ask_for_promises(placement, slot, &fence, deadline).await;
            let now_ms = self.uptime_ms();
            if fence.stands_since(ring, now_ms, now_ms) {
                return Some(fence.clone());
            }
            let Some(expected_ms) = fence.look(ring, |fence| fence.expected_ms(now_ms)) else {
                self.give_back(placement, slot, &fence);
                return None;
            };
            let until = self.instant_at(expected_ms).min(Instant::now() + RENEWAL);
            if until >= deadline {
                return None;
            }
            sleep_until(until).await;
        }
    }

    /// Asks every member for its promise, until the fence stands or all have answered.
    async fn ask_for_promises(
        &self,
        placement: &Placement,
        slot: Slot,
        fence: &SlotFence,
        deadline: Instant,
    ) {
        let (ring, asked_ms) = (placement.ring.fingerprint(), self.uptime_ms());
        if !self.0.fences.give(slot, self.id(), asked_ms, asked_ms) {
            return;
        }
        let goes_on = fence.look(ring, |fence| fence.has_promised(self.id(), asked_ms));
        if !goes_on {
            // After the promise: from then on no lease says any more that another owner lacks nothing here.
            let ledger = self.0.ledger.lock();
            let others = placement.ring.owners(slot).filter(|owner| *owner != self.id());
            let leases = others.map(|owner| (owner.clone(), ledger.lease_end(owner))).collect();
            *fence.state.lock() = Some((ring, Fence::new(placement.ring.members().len(), leases)));
        }
        fence.look(ring, |fence| fence.add(self.id(), asked_ms, asked_ms));
        let deadline = deadline.min(Instant::now() + ANSWER_TIMEOUT);
        let request =
            Request::Promise { node_id: self.id().clone(), slot, ring: Some(ring), at_ms: asked_ms };
        let others = placement.other_members();
        let mut asking: FuturesUnordered<_> =
            others.map(async |member| (member, self.call(member, &request, &[], deadline).await)).collect();
        while let Some((member, answer)) = asking.next().await {
            if let Ok((Reply::Promised(true), _)) = answer {
                let now_ms = self.uptime_ms();
                fence.look(ring, |fence| fence.add(member, asked_ms, now_ms));
                if fence.look(ring, |fence| fence.is_firm(now_ms)) {
                    return;
                }
            }
        }
    }

    /// Gives up a fence that has no majority, so that another owner may have one.
    fn give_back(&self, placement: &Placement, slot: Slot, fence: &SlotFence) {
        let now_ms = self.uptime_ms();
        *fence.state.lock() = None;
        let chance = mix::mix(self.0.config.seed ^ now_ms ^ slot.index() as u64) % (REST_MS + 1);
        fence.rests_until_ms.store(now_ms + REST_MS + chance, Ordering::Release);
        self.0.fences.release(slot, self.id(), now_ms);
        let request = Request::Promise { node_id: self.id().clone(), slot, ring: None, at_ms: now_ms };
        let node = self.clone();
        let others: Vec<NodeId> = placement.other_members().cloned().collect();
        // Nobody waits for it: a promise that is not given back runs out.
        spawn(async move {
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            join_all(others.iter().map(|member| node.call(member, &request, &[], deadline))).await;
        });
    }
}
