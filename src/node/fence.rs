//! The fences of this node, and the promises that it has given to others.
//!
//! Sends nothing; see [`super::promise`]. Invariant: a slot that is promised to one member is dirty, in every lease that this
//! node grants from then on, for all others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::model::{Fence, Fingerprint, Ledger, NodeId, Promises, Slot, SlotSet};

/// The promises that this node has given, and the fences that it has put up.
#[derive(Debug, Default)]
pub(super) struct Fences {
    given: Mutex<Promises>,
    /// Until when the last of them runs: without any, which is nearly always so, no request has to look.
    given_until_ms: AtomicU64,
    raised: Mutex<Raised>,
}

#[derive(Debug, Default)]
struct Raised {
    by_slot: BTreeMap<Slot, Arc<SlotFence>>,
    /// When those that have fallen are dropped next.
    sweep_ms: u64,
}

/// The fence of one slot.
#[derive(Debug, Default)]
pub(super) struct SlotFence {
    /// Held by whoever asks the members.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// With the table that it belongs to.
    pub(super) state: Mutex<Option<(Fingerprint, Fence)>>,
    /// Until when it is left to other owners.
    pub(super) rests_until_ms: AtomicU64,
}

impl Fences {
    /// Promises a slot to a member.
    pub(super) fn give(&self, slot: Slot, to: &NodeId, asked_ms: u64, now_ms: u64) -> bool {
        let is_given = self.given.lock().give(slot, to, asked_ms, now_ms);
        self.given_until_ms.fetch_max(now_ms + Ledger::LEASE_MS + 1, Ordering::AcqRel);
        is_given
    }

    /// Takes a promise back.
    pub(super) fn release(&self, slot: Slot, to: &NodeId, at_ms: u64) {
        self.given.lock().release(slot, to, at_ms);
    }

    /// Whether the slot is promised to somebody else.
    pub(super) fn is_given_away(&self, slot: Slot, me: &NodeId, now_ms: u64) -> bool {
        now_ms <= self.given_until_ms.load(Ordering::Acquire)
            && self.given.lock().is_given_away(slot, me, now_ms)
    }

    /// Adds the slots that are promised to others than `member`.
    pub(super) fn add_promised_to_others(&self, dirty: &mut SlotSet, member: &NodeId, now_ms: u64) {
        if now_ms <= self.given_until_ms.load(Ordering::Acquire) {
            for slot in self.given.lock().to_others(member, now_ms) {
                dirty.insert(slot);
            }
        }
    }

    /// The fence of a slot, which may not stand.
    pub(super) fn of(&self, slot: Slot, now_ms: u64) -> Arc<SlotFence> {
        let mut raised = self.raised.lock();
        if now_ms >= raised.sweep_ms {
            raised.by_slot.retain(|_, fence| Arc::strong_count(fence) > 1 || fence.rests(now_ms));
            raised.sweep_ms = now_ms + Ledger::LEASE_MS;
        }
        raised.by_slot.entry(slot).or_default().clone()
    }
}

impl SlotFence {
    /// Whether this owner still waits, so that another one can get a majority.
    pub(super) fn rests(&self, now_ms: u64) -> bool {
        now_ms < self.rests_until_ms.load(Ordering::Acquire)
    }

    /// Looks at the fence, if it is one under this table.
    pub(super) fn look<T: Default>(&self, ring: Fingerprint, look: impl FnOnce(&mut Fence) -> T) -> T {
        match &mut *self.state.lock() {
            Some((under, fence)) if *under == ring => look(fence),
            _ => T::default(),
        }
    }

    /// Whether it has stood under this table all the time since then.
    pub(super) fn stands_since(&self, ring: Fingerprint, since_ms: u64, now_ms: u64) -> bool {
        self.look(ring, |fence| fence.stands_since(since_ms, now_ms))
    }
}
