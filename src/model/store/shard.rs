//! Owns one part of the store: its entries, its tombstones, and the rule which of two records of a key stays.
//!
//! Does not lock: the store holds one lock a shard. Invariants: no key has both an item and a tombstone, and what a shard
//! answers does not depend on when what is over is freed: an item whose time is over counts as the tombstone it leaves.

use std::sync::Arc;

use super::{
    Current, Evicted, Lookup, Swept,
    entries::Entries,
    floors::{Floors, Watched},
    item::Item,
    tombstones::Tombstones,
};
use crate::model::{Key, Record, Slot, Tombstone, Version};

pub(super) struct Shard {
    entries: Entries,
    tombstones: Tombstones,
    floors: Floors,
}

/// What is to be kept under a key.
pub(super) enum New {
    Item(Item),
    Tombstone(Tombstone),
}

impl New {
    pub(super) fn set_version(&mut self, version: Version) {
        match self {
            New::Item(item) => item.set_version(version),
            New::Tombstone(tombstone) => tombstone.version = version,
        }
    }
}

/// Tombstones have this part of the shard's bytes: with keys of 16 bytes, 146 of them to a MiB of the store.
const TOMBSTONES_SHARE: usize = 32;

impl Shard {
    pub(super) fn new(budget: usize, hash_seed: u64, watched: Arc<Watched>) -> Shard {
        let entries = Entries::new(Shard::entries_budget(budget), hash_seed);
        let tombstones = Tombstones::new(budget / TOMBSTONES_SHARE);
        Shard { entries, tombstones, floors: Floors::new(budget, watched) }
    }

    /// The dearest item that fits a shard of that budget.
    pub(super) fn item_bytes_max(budget: usize) -> usize {
        Entries::item_bytes_max(Shard::entries_budget(budget))
    }

    fn entries_budget(budget: usize) -> usize {
        budget - budget / TOMBSTONES_SHARE
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.bytes() + self.tombstones.bytes()
    }

    pub(super) fn get(&mut self, key: &Key, now_ms: u64) -> Lookup {
        let key = key.as_str().as_bytes();
        match self.entries.get(key) {
            Some(item) if item.expired(now_ms).is_none() => Lookup::Hit(item.to_entry()),
            Some(_) => {
                let item = self.entries.take(key);
                Lookup::Expired { evicted: item.map(|item| self.bury(&item, now_ms)).unwrap_or_default() }
            }
            None => match self.absent(key, now_ms) {
                Some(tombstone) => Lookup::Deleted(tombstone.version),
                None => Lookup::Miss,
            },
        }
    }

    pub(super) fn peek(&self, key: &Key, now_ms: u64) -> Option<Record> {
        let key = key.as_str().as_bytes();
        let tombstone = || self.absent(key, now_ms).map(Record::Tombstone);
        self.entries.peek(key, |item| record_of(item, now_ms)).unwrap_or_else(tombstone)
    }

    pub(super) fn current(&self, key: &Key, now_ms: u64) -> Option<Current> {
        let key = key.as_str().as_bytes();
        let tombstone = || self.absent(key, now_ms).map(Current::from);
        self.entries.peek(key, |item| current_of(item, now_ms)).unwrap_or_else(tombstone)
    }

    /// What is remembered of a key that has no item: its tombstone, or what its slot's floor is for it.
    fn absent(&self, key: &[u8], now_ms: u64) -> Option<Tombstone> {
        let tombstone = self.tombstones.get(key, now_ms);
        let Some(version) = self.floors.get(key) else { return tombstone };
        if tombstone.is_some_and(|tombstone| tombstone.version >= version) {
            return tombstone;
        }
        Some(Tombstone { version, expires_at_ms: now_ms.saturating_add(Tombstone::LIFE_MS) })
    }

    pub(super) fn floors(&self) -> &Floors {
        &self.floors
    }

    pub(super) fn forget_unwatched(&mut self) {
        self.floors.forget_unwatched();
    }

    /// Notes that a record was given up, unless something as new is here.
    pub(super) fn note_given_up(&mut self, key: &Key, version: Version, now_ms: u64) {
        if self.current(key, now_ms).is_none_or(|current| current.version < version) {
            self.floors.note(key.as_str().as_bytes(), version);
        }
    }

    /// Puts what is new in the place of whatever was there. Of what is over as it comes only the tombstone stays, if it leaves
    /// one. An item must cost no more than [`Shard::item_bytes_max`].
    pub(super) fn replace(&mut self, key: &Key, new: New, now_ms: u64) -> Evicted {
        let key = key.as_str().as_bytes();
        self.entries.take(key);
        self.tombstones.remove(key);
        let evicted = match new {
            New::Item(item) if item.expired(now_ms).is_some() => self.bury(&item, now_ms),
            New::Item(item) => {
                let floors = &mut self.floors;
                return self.entries.insert(item, |gone| floors.note(gone.key(), gone.version()));
            }
            New::Tombstone(tombstone) => self.remember(key, tombstone.standing(now_ms), now_ms),
        };
        self.entries.shrink();
        evicted
    }

    pub(super) fn remove_version(&mut self, key: &Key, version: Version) -> bool {
        let key = key.as_str().as_bytes();
        if self.tombstones.remove_version(key, version) {
            return true;
        }
        let removed =
            self.entries.peek(key, Item::version) == Some(version) && self.entries.take(key).is_some();
        self.entries.shrink();
        removed
    }

    pub(super) fn versions(&self, wanted: impl Fn(Slot) -> bool, now_ms: u64) -> Vec<(Key, Version)> {
        let items = self.entries.iter();
        let items = items.filter_map(|item| Some((item.key(), current_of(item, now_ms)?.version)));
        let all = items.chain(self.tombstones.iter(now_ms));
        let all = all.filter(|(key, _)| wanted(Slot::of(key)));
        all.filter_map(|(key, version)| Some((Key::from_bytes(key).ok()?, version))).collect()
    }

    /// Frees up to `limit` of what is over, items before tombstones, the earliest first.
    pub(super) fn sweep(&mut self, now_ms: u64, limit: usize) -> Swept {
        let mut swept = Swept::default();
        while swept.records() < limit
            && let Some(item) = self.entries.take_expired(now_ms)
        {
            swept.entries += 1;
            swept.evicted += self.bury(&item, now_ms);
        }
        self.entries.shrink();
        while swept.records() < limit && self.tombstones.remove_over(now_ms) {
            swept.tombstones += 1;
        }
        swept
    }

    /// Remembers an item whose time is over.
    fn bury(&mut self, item: &Item, now_ms: u64) -> Evicted {
        let tombstone =
            item.expired(now_ms).and_then(|expiry| Tombstone::of_expired(item.version(), expiry, now_ms));
        self.remember(item.key(), tombstone, now_ms)
    }

    fn remember(&mut self, key: &[u8], tombstone: Option<Tombstone>, now_ms: u64) -> Evicted {
        let (tombstones, floors) = (&mut self.tombstones, &mut self.floors);
        let tell = |key: &[u8], version| floors.note(key, version);
        let lost = tombstone.map_or(0, |tombstone| tombstones.put(key, tombstone, now_ms, tell));
        Evicted { tombstones: lost, ..Evicted::default() }
    }
}

/// What an item is: a value, or if its time is over the tombstone it leaves, if any.
fn record_of(item: &Item, now_ms: u64) -> Option<Record> {
    match item.expired(now_ms) {
        Some(expiry) => Tombstone::of_expired(item.version(), expiry, now_ms).map(Record::Tombstone),
        None => Some(Record::Entry(item.to_entry())),
    }
}

/// The same without the value.
fn current_of(item: &Item, now_ms: u64) -> Option<Current> {
    match item.expired(now_ms) {
        Some(expiry) => Tombstone::of_expired(item.version(), expiry, now_ms).map(Current::from),
        None => Some(Current { version: item.version(), live: true }),
    }
}

impl From<Tombstone> for Current {
    fn from(tombstone: Tombstone) -> Current {
        Current { version: tombstone.version, live: false }
    }
}
