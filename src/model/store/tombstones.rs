//! Owns what a shard remembers of keys that are gone, so that no older copy brings them back.
//!
//! Does not decide what is newer; the shard does. Invariant: at most `budget` bytes, and each key once. When they do not
//! suffice those that would be forgotten first go first.

use std::collections::{BTreeSet, HashMap};

use super::cost;
use super::hasher::{Count, Seeded};
use crate::model::Version;
use crate::model::entry::{Tombstone, is_over};

pub(super) struct Tombstones {
    by_key: HashMap<Box<[u8]>, Tombstone, Seeded>,
    by_end: BTreeSet<(u64, Box<[u8]>)>,
    bytes: usize,
    budget: usize,
}

impl Tombstones {
    pub(super) fn new(budget: usize, hash_seed: u64) -> Tombstones {
        let by_key = HashMap::with_hasher(Seeded::new(hash_seed, Count::default()));
        Tombstones { by_key, by_end: BTreeSet::new(), bytes: 0, budget }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// One that still stands.
    pub(super) fn get(&self, key: &[u8], now_ms: u64) -> Option<Tombstone> {
        // Most shards have none: no hash for them.
        if self.is_empty() {
            return None;
        }
        self.by_key.get(key).copied().filter(|tombstone| !is_over(Some(tombstone.expires_at_ms), now_ms))
    }

    /// Whether it remembers that version of a key.
    pub(super) fn by_version(&self, key: &[u8], version: Version) -> bool {
        !self.is_empty() && self.by_key.get(key).is_some_and(|tombstone| tombstone.version == version)
    }

    /// Remembers a key, and says how many others had to be forgotten for it.
    pub(super) fn put(&mut self, key: &[u8], tombstone: Tombstone) -> usize {
        self.remove(key);
        self.by_end.insert((tombstone.expires_at_ms, key.into()));
        self.by_key.insert(key.into(), tombstone);
        self.bytes += cost_of(key);
        let mut lost = 0;
        while self.bytes > self.budget && self.forget_first() {
            lost += 1;
        }
        lost
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Tombstone> {
        if self.is_empty() {
            return None;
        }
        let tombstone = self.by_key.remove(key)?;
        self.by_end.remove(&(tombstone.expires_at_ms, key.into()));
        self.bytes -= cost_of(key);
        self.shrink();
        Some(tombstone)
    }

    /// Forgets up to `limit` whose time is over, the earliest first.
    pub(super) fn sweep(&mut self, now_ms: u64, limit: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < limit
            && self.by_end.first().is_some_and(|(end, _)| is_over(Some(*end), now_ms))
            && self.forget_first()
        {
            forgotten += 1;
        }
        forgotten
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &Tombstone)> {
        self.by_key.iter().map(|(key, tombstone)| (&**key, tombstone))
    }

    fn forget_first(&mut self) -> bool {
        let Some((_, key)) = self.by_end.pop_first() else { return false };
        self.by_key.remove(&key);
        self.bytes -= cost_of(&key);
        self.shrink();
        true
    }

    fn shrink(&mut self) {
        if self.by_key.len() < self.by_key.capacity() / 8 {
            self.by_key.shrink_to_fit();
        }
    }
}

/// The key twice, a slot in a table that may be less than half full, a place in the order of ends.
fn cost_of(key: &[u8]) -> usize {
    const SLOT: usize = size_of::<(Box<[u8]>, Tombstone)>() + 1;
    2 * cost::allocated(key.len()) + SLOT * 16 / 7 + cost::EXPIRY
}
