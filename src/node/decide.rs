//! Conditional writes at an owner without authority: fenced first, decided then.
//!
//! Such an owner has a majority of the members promise it the slot and waits until no other owner can act by a lease of its
//! own (see [`super::promise`]); only then does it ask everybody what they hold, and decide. A write that an owner lacks is
//! granted only when a majority holds it, and while the fence has stood all the time: whoever decides next finds it. A write that
//! another owner decided and did not answer for is finished in the same way.
//! Invariant: of two conditional writes that are granted, the later one was decided with the earlier one in view.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, sleep};

use super::copies::Copied;
use super::fence::SlotFence;
use super::gather::Gathered;
use super::placement::Placement;
use super::replicate::{Judged, Written};
use super::{Node, Operation, Outcome};
use crate::link::{Claim, Refusal, Request};
use crate::model::{Condition, Done, Key, Recent, Record, Version};

/// How long a member may take to keep a copy, or to witness it.
const SPREAD_TIMEOUT: Duration = Duration::from_millis(300);
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
        let deadline = Instant::now() + SPREAD_TIMEOUT;
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
}
