//! Sync: pays the debts of the [`Ledger`].
//!
//! For each member that may lack something one task compares digests of the dirty slots and offers what it holds of those
//! that differ; see [`super::offer`]. Rate: each batch is followed by a pause as long as it took, and longer if it was large,
//! so that requests always find a free half of the link and of the processors. Invariant: a pair is settled only after the
//! member has acknowledged whatever this node held of the slot when it began, but for what it can never take, and the debts
//! that go with it; see [`super::debts`].
//!
//! [`Ledger`]: crate::model::Ledger

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::digests::{by_slot, digest};
use super::offer::{Heads, Unanswered};
use super::operation::unexpected;
use super::{Node, NodeError};
use crate::link::{Reply, Request};
use crate::model::{Ledger, NodeId, Slot, SlotSet};
use crate::net::task;

/// Pause before a member that did not acknowledge is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a rebalance waits for anything to be taken.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// What sync has moved.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct SyncReport {
    /// Records that others acknowledged.
    pub keys: u64,
    /// Their values' bytes.
    pub bytes: u64,
    /// Times that something was not acknowledged; it is tried again.
    pub failed: u64,
    /// Records that a member cannot take.
    pub left_out: u64,
    /// How long it took.
    pub duration_ms: u64,
}

/// Pushes whatever is dirty, and tells when it begins and when all is done.
pub(super) async fn run(node: Node) {
    let mut pushing = JoinSet::new();
    let mut busy: BTreeMap<tokio::task::Id, NodeId> = BTreeMap::new();
    let mut began: Option<(Instant, SyncReport)> = None;
    loop {
        let creditors = node.0.ledger.lock().creditors();
        for member in creditors {
            if !busy.values().any(|one| *one == member) {
                let started = pushing.spawn(task(push(node.clone(), member.clone())));
                busy.insert(started.id(), member);
            }
        }
        let clean = busy.is_empty() && *node.0.clean.borrow();
        match began {
            None if !clean => {
                began = Some((Instant::now(), totals(&node)));
                let data = json!({"ring": node.ring().fingerprint(), "slots": node.under_replicated_slots()});
                node.0.events.publish("sync_started", node.wall_ms(), data);
            }
            Some((at, before)) if clean => {
                began = None;
                tell_done(&node, at, before);
            }
            _ => {}
        }
        tokio::select! {
            biased;
            Some(ended) = pushing.join_next_with_id(), if !pushing.is_empty() => {
                match ended {
                    Ok((id, ())) => drop(busy.remove(&id)),
                    // It has panicked, which was reported: what was under way waits again.
                    Err(failed) => if let Some(member) = busy.remove(&failed.id()) {
                        let all = SlotSet::full();
                        node.update_ledger(|ledger| ledger.postpone(&member, &all));
                        sleep(RETRY_PAUSE).await;
                    }
                }
            }
            () = node.0.owing.notified() => {}
        }
    }
}

impl Node {
    /// Changes the ledger. Whether nothing is dirty is made known before anybody can see it otherwise.
    pub(super) fn update_ledger<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.0.ledger.lock();
        let result = change(&mut ledger);
        self.publish_ledger(&ledger);
        result
    }

    /// Makes known what is dirty, before the lock is let go.
    pub(super) fn publish_ledger(&self, ledger: &Ledger) {
        let is_clean = ledger.is_clean();
        let watched = ledger.watched();
        if !(watched.is_empty() && self.0.store.watches_nothing()) {
            self.0.store.watch(&watched);
        }
        self.0.clean.send_if_modified(|clean| std::mem::replace(clean, is_clean) != is_clean);
    }

    /// Notes what is owed, and has it paid; and there may be something of slots that others own.
    pub(super) fn owe(&self, mark: impl FnOnce(&mut Ledger)) {
        self.update_ledger(mark);
        self.0.owing.notify_one();
        self.0.foreign.notify_one();
    }

    /// Notes that a slot which is not this node's holds something for its owners.
    pub(super) fn pass_on(&self, slot: Slot) {
        self.owe(|ledger| {
            let placement = self.0.placement.load();
            let others = placement.ring.owners(slot).filter(|owner| **owner != self.0.id);
            others.for_each(|owner| ledger.mark(slot, owner));
        });
    }

    /// Compares everything with everybody and moves what is missing; answers when that is done.
    ///
    /// # Errors
    /// When it does not get on, because a member does not take what it lacks; or when the node is stopping.
    pub async fn rebalance(&self) -> Result<SyncReport, NodeError> {
        let (started, before) = (Instant::now(), totals(self));
        self.share_everything();
        let mut clean = self.0.clean.subscribe();
        loop {
            let progress = (totals(self).keys, self.under_replicated_slots());
            match timeout(STALLED_AFTER, clean.wait_for(|clean| *clean)).await {
                Ok(Ok(_)) => return Ok(report(self, started, before)),
                Ok(Err(_)) => return Err(NodeError::Overloaded("the node is stopping".into())),
                Err(_) if progress != (totals(self).keys, self.under_replicated_slots()) => {}
                Err(_) => return Err(self.stalled()),
            }
        }
    }

    fn stalled(&self) -> NodeError {
        let (members, slots) = {
            let ledger = self.0.ledger.lock();
            (ledger.owed().map(NodeId::as_str).collect::<Vec<_>>().join(", "), ledger.dirty().len())
        };
        let seconds = STALLED_AFTER.as_secs();
        NodeError::ForwardFailed(format!(
            "nothing was taken for {seconds} s: {slots} slots are still to be compared with {members}; it goes on in the background"
        ))
    }

    /// Makes everything dirty: nobody knows what the others have got.
    pub(super) fn share_everything(&self) {
        self.owe(|ledger| ledger.mark_everything(&self.0.id, &self.0.placement.load().ring));
    }

    /// Waits until nobody has lacked anything that this node holds for `quiet`.
    pub(super) async fn wait_until_quiet(&self, quiet: Duration) {
        let mut clean = self.0.clean.subscribe();
        // Fails when the node is gone.
        while clean.wait_for(|clean| *clean).await.is_ok() {
            if timeout(quiet, clean.wait_for(|clean| !clean)).await.is_err() {
                return;
            }
        }
    }

    /// How many slots have an owner that may lack something which this node holds.
    #[must_use]
    pub fn under_replicated_slots(&self) -> usize {
        self.0.ledger.lock().dirty().len()
    }
}

/// Pushes to one member until nothing waits for it, or it is no member any more.
async fn push(node: Node, member: NodeId) {
    loop {
        let mut slots = node.update_ledger(|ledger| ledger.begin(&member));
        if slots.is_empty() {
            return;
        }
        let mut has_failed = false;
        // What others out of reach may lack, too.
        let mut also_owed = SlotSet::empty();
        for shard in 0..node.0.store.shards() {
            let mut here = slots.clone();
            here.retain(|slot| node.0.store.shard_of(slot) == shard);
            if here.is_empty() {
                continue;
            }
            let postponed = match push_slots(&node, &member, shard, &here).await {
                Ok(postponed) => postponed,
                Err(error) => {
                    debug!(%member, %error, "could not bring a member up to date; trying again");
                    // It is away: so it would be for all that is left.
                    here.clone_from(&slots);
                    slots.clone()
                }
            };
            slots.subtract(&here);
            here.subtract(&postponed);
            for (_, owed) in node.owed_besides(&member, &here) {
                here.subtract(&owed);
                also_owed.add(&owed);
            }
            node.update_ledger(|ledger| {
                ledger.settle(&member, &here);
                ledger.postpone(&member, &postponed);
            });
            if !postponed.is_empty() {
                node.0.metrics.sync_failures.inc();
                has_failed = true;
            }
        }
        if !also_owed.is_empty() {
            // As they are now: more may have been marked.
            let debts = node.owed_besides(&member, &also_owed);
            let passed_on = node.pass_on_debts(&member, debts).await;
            node.update_ledger(|ledger| match &passed_on {
                Ok(()) => ledger.settle(&member, &also_owed),
                Err(_) => ledger.postpone(&member, &also_owed),
            });
            if let Err(error) = passed_on {
                debug!(%member, %error, "did not take over what is owed to others");
                has_failed = true;
            }
        }
        if has_failed {
            sleep(RETRY_PAUSE).await;
        }
    }
}

/// Brings a member up to date with the slots of one shard. Says of which it did not acknowledge everything.
async fn push_slots(
    node: &Node,
    member: &NodeId,
    shard: usize,
    slots: &SlotSet,
) -> Result<SlotSet, NodeError> {
    let mut by_slot = by_slot(node, shard, slots);
    // After the versions: what is evicted from now on is offered as deleted.
    if !node.tell_given_up(member, shard, slots, &by_slot).await? {
        return Ok(slots.clone());
    }
    if by_slot.is_empty() {
        return Ok(SlotSet::empty());
    }
    let digests = by_slot.iter().map(|(slot, heads)| (*slot, digest(heads))).collect();
    let differing = match node.inquire(member, &Request::Digests(digests)).await {
        Ok(Reply::Differ(slots)) => slots,
        Ok(other) => return Err(unexpected(member, &other)),
        Err(Unanswered::Away(error)) => return Err(error),
        Err(Unanswered::Late(error)) => {
            debug!(%member, %error, "the digests of a shard were not compared");
            return Ok(slots.clone());
        }
    };
    let heads: Heads = differing.iter().filter_map(|slot| by_slot.remove(slot)).flatten().collect();
    Ok(node.offer(member, &heads).await?.postponed)
}

fn totals(node: &Node) -> SyncReport {
    let metrics = &node.0.metrics;
    SyncReport {
        keys: metrics.sync_keys.get(),
        bytes: metrics.sync_bytes.get(),
        failed: metrics.sync_failures.get(),
        left_out: metrics.sync_left_out.get(),
        duration_ms: 0,
    }
}

fn report(node: &Node, started: Instant, before: SyncReport) -> SyncReport {
    let now = totals(node);
    SyncReport {
        keys: now.keys - before.keys,
        bytes: now.bytes - before.bytes,
        failed: now.failed - before.failed,
        left_out: now.left_out - before.left_out,
        duration_ms: started.elapsed().as_millis() as u64,
    }
}

fn tell_done(node: &Node, started: Instant, before: SyncReport) {
    let report = report(node, started, before);
    let mut moves = node.0.moves.lock();
    moves.last_duration = Duration::from_millis(report.duration_ms);
    moves.last_at_ms = Some(node.uptime_ms());
    drop(moves);
    let SyncReport { keys, bytes, failed, left_out, duration_ms } = report;
    let is_news = keys > 0 || failed > 0 || left_out > 0;
    // A member that comes and goes brings about many small ones: one a minute is told.
    let is_large = keys >= 100 || left_out > 0;
    if is_news && (is_large || node.0.complaints.is_due("brought up to date")) {
        info!(keys, bytes, failed, left_out, duration_ms, "brought the members up to date");
    }
    node.0.events.publish("sync_done", node.wall_ms(), json!(report));
}
