//! Owns what a shard remembers of records that were given up while another node lacked them: by slot, up to which version.
//!
//! Such a record may have been the only copy of the newest write of its key. So what of a watched slot is not here counts as
//! deleted up to the slot's floor: an older value that another node has must not pass for the newest. Which slots are watched
//! the caller says. Invariant: the floor of a watched slot never falls; while nothing is watched there is none.
//!
//! Takes at most a 128th of the shard's bytes, beside its budget; beyond that the slots that come later share one floor.

use std::{
    collections::BTreeMap,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::model::{Slot, SlotSet, Version};

pub(super) struct Floors {
    watched: Arc<Watched>,
    by_slot: BTreeMap<Slot, Version>,
    /// Of all watched slots that have none of their own.
    others: Option<Version>,
    slots_max: usize,
}

/// Slots of which some other node may lack something.
pub(super) struct Watched {
    any: AtomicBool,
    /// Some shard may have a floor.
    noted: AtomicBool,
    words: Box<[AtomicU64]>,
}

/// A slot and its version in a node of the tree, which is at least five elevenths full.
const FLOOR: usize = 64;
const SHARE: usize = 128;

impl Watched {
    pub(super) fn nothing() -> Watched {
        let words = SlotSet::empty().words().map(AtomicU64::new).collect();
        Watched { any: AtomicBool::new(false), noted: AtomicBool::new(false), words }
    }

    /// True if some slot is watched no longer that may have a floor: then all shards are to be looked through.
    pub(super) fn set(&self, slots: &SlotSet) -> bool {
        let mut any_less = false;
        for (word, new) in self.words.iter().zip(slots.words()) {
            let old = word.load(Ordering::Acquire);
            if old != new {
                word.store(new, Ordering::Release);
                any_less |= old & !new != 0;
            }
        }
        self.any.store(!slots.is_empty(), Ordering::Release);
        any_less && self.noted.swap(false, Ordering::AcqRel)
    }

    pub(super) fn is_nothing(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    fn has(&self, slot: Slot) -> bool {
        self.words[slot.index() / 64].load(Ordering::Acquire) & 1 << (slot.index() % 64) != 0
    }
}

impl Floors {
    pub(super) fn new(budget: usize, watched: Arc<Watched>) -> Floors {
        let slots_max = (budget / SHARE / FLOOR).max(1);
        Floors { watched, by_slot: BTreeMap::new(), others: None, slots_max }
    }

    /// A record of that version is given up.
    pub(super) fn note(&mut self, key: &[u8], version: Version) {
        if self.watched.is_nothing() || cfg!(feature = "fault-evict-without-mark") {
            return;
        }
        let slot = Slot::of(key);
        if !self.watched.has(slot) {
            return;
        }
        self.watched.noted.store(true, Ordering::Release);
        if self.by_slot.len() < self.slots_max || self.by_slot.contains_key(&slot) {
            let floor = self.by_slot.entry(slot).or_insert(version);
            *floor = version.max(*floor);
        } else {
            self.others = self.others.max(Some(version));
        }
    }

    /// Up to which version a key that is not here counts as deleted. Without any floor this is one branch.
    pub(super) fn get(&self, key: &[u8]) -> Option<Version> {
        if self.is_empty() {
            return None;
        }
        self.of(Slot::of(key))
    }

    pub(super) fn of(&self, slot: Slot) -> Option<Version> {
        let floor = self.by_slot.get(&slot).copied().max(self.others);
        floor.filter(|_| self.watched.has(slot))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_slot.is_empty() && self.others.is_none()
    }

    /// Forgets those of slots that are watched no longer.
    pub(super) fn forget_unwatched(&mut self) {
        self.by_slot.retain(|slot, _| self.watched.has(*slot));
        if self.watched.is_nothing() {
            self.others = None;
        }
        self.watched.noted.fetch_or(!self.is_empty(), Ordering::AcqRel);
    }
}
