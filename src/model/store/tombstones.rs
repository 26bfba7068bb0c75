//! Owns what a shard remembers of keys that are gone, so that no older copy brings them back.
//!
//! Does not decide what is newer; the shard does. Invariant: at most `budget` bytes, and each key once. When they do not
//! suffice those that would be forgotten first go first.
//!
//! Trees and not tables: they take what `cost` says at any length, and nothing is moved all at once under the shard's lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::cost;
use crate::model::{
    Version,
    entry::{Tombstone, is_over},
};

pub(super) struct Tombstones {
    by_key: BTreeMap<Arc<[u8]>, Tombstone>,
    by_end: BTreeSet<(u64, Arc<[u8]>)>,
    bytes: usize,
    budget: usize,
}

impl Tombstones {
    pub(super) fn new(budget: usize) -> Tombstones {
        Tombstones { by_key: BTreeMap::new(), by_end: BTreeSet::new(), bytes: 0, budget }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// One that still stands. Without any, which most shards are, this is one branch.
    pub(super) fn get(&self, key: &[u8], now_ms: u64) -> Option<Tombstone> {
        let tombstone = self.by_key.get(key).filter(|_| !cfg!(feature = "fault-no-tombstones")).copied();
        tombstone.filter(|tombstone| !is_over(Some(tombstone.expires_at_ms), now_ms))
    }

    /// Those that still stand, in the order of their keys.
    pub(super) fn iter(&self, now_ms: u64) -> impl Iterator<Item = (&[u8], Version)> {
        let standing = self.by_key.iter().filter(move |(_, one)| !is_over(Some(one.expires_at_ms), now_ms));
        standing.map(|(key, tombstone)| (&**key, tombstone.version))
    }

    /// Remembers a key and says how many that still stood had to be forgotten early for it, and tells of each; it may be among
    /// them itself.
    pub(super) fn put(
        &mut self,
        key: &[u8],
        tombstone: Tombstone,
        now_ms: u64,
        mut tell: impl FnMut(&[u8], Version),
    ) -> usize {
        self.remove(key);
        let key: Arc<[u8]> = key.into();
        self.bytes += cost::tombstone(key.len());
        self.by_end.insert((tombstone.expires_at_ms, key.clone()));
        self.by_key.insert(key, tombstone);
        let mut lost = 0;
        while self.bytes > self.budget
            && let Some((key, first)) = self.remove_first()
        {
            if !is_over(Some(first.expires_at_ms), now_ms) {
                lost += 1;
                tell(&key, first.version);
            }
        }
        lost
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some((key, tombstone)) = self.by_key.remove_entry(key) {
            self.bytes -= cost::tombstone(key.len());
            self.by_end.remove(&(tombstone.expires_at_ms, key));
        }
    }

    /// True if that version was remembered.
    pub(super) fn remove_version(&mut self, key: &[u8], version: Version) -> bool {
        let matches = self.by_key.get(key).is_some_and(|tombstone| tombstone.version == version);
        if matches {
            self.remove(key);
        }
        matches
    }

    /// Forgets the one that ended first. False if all still stand.
    pub(super) fn remove_over(&mut self, now_ms: u64) -> bool {
        let is_over = self.by_end.first().is_some_and(|(end, _)| is_over(Some(*end), now_ms));
        is_over && self.remove_first().is_some()
    }

    /// Forgets the one that ends first.
    fn remove_first(&mut self) -> Option<(Arc<[u8]>, Tombstone)> {
        let (_, key) = self.by_end.pop_first()?;
        self.bytes -= cost::tombstone(key.len());
        self.by_key.remove_entry(&key)
    }
}
