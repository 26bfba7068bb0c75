//! Owns one part of the store: an LRU list with its table, the expiries in it, the tombstones, and its share of the budget.
//!
//! Does not lock: the store holds one lock a shard. Invariant: after every call `bytes()` is within the budget, the
//! index of expiries names exactly the items that have one, and no key has both an item and a tombstone.

use std::{collections::BTreeSet, num::NonZeroUsize};

use lru::LruCache;

use super::{
    Current, Evicted, Lookup, Put,
    cost::{self, buckets_for, capacity},
    hasher::{Count, Seeded},
    item::Item,
    peek::peek,
    tombstones::Tombstones,
};
use crate::model::{Key, Record, Slot, Tombstone, Version, entry::is_over};

pub(super) struct Shard {
    lru: LruCache<Item, (), Seeded>,
    hashed: Count,
    /// Buckets of the LRU's table, which does not tell: followed from the outside.
    buckets: usize,
    /// Only of the items that have one; most have none.
    expiries: BTreeSet<(u64, Box<[u8]>)>,
    items_bytes: usize,
    budget: usize,
    tombstones: Tombstones,
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

/// Tombstones have this part of the shard's bytes: with short keys about 1500 of them to a MiB of the store.
const TOMBSTONES_SHARE: usize = 32;

impl Shard {
    pub(super) fn new(budget: usize, hash_seed: u64) -> Shard {
        let tombstones = Tombstones::new(budget / TOMBSTONES_SHARE, !hash_seed);
        let budget = Shard::entry_bytes_max(budget);
        let hashed = Count::default();
        let lru = LruCache::unbounded_with_hasher(Seeded::new(hash_seed, hashed.clone()));
        Shard { lru, hashed, buckets: 0, expiries: BTreeSet::new(), items_bytes: 0, budget, tombstones }
    }

    /// The dearest item that fits: alone, in the largest table a single item is left with.
    pub(super) fn item_bytes_max(budget: usize) -> usize {
        Shard::entry_bytes_max(budget).saturating_sub(cost::table(8))
    }

    fn entry_bytes_max(budget: usize) -> usize {
        budget - budget / TOMBSTONES_SHARE
    }

    pub(super) fn len(&self) -> usize {
        self.lru.len()
    }

    pub(super) fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.entry_bytes() + self.tombstones.bytes()
    }

    fn entry_bytes(&self) -> usize {
        self.items_bytes + cost::table(self.buckets)
    }

    pub(super) fn get(&mut self, key: &Key, now_ms: u64) -> Lookup {
        let bytes = key.as_str().as_bytes();
        match self.lru.get_key_value(bytes) {
            None => match self.tombstones.get(bytes, now_ms) {
                Some(tombstone) => Lookup::Deleted(tombstone.version),
                None => Lookup::Miss,
            },
            Some((item, ())) if !is_over(item.expires_at_ms(), now_ms) => Lookup::Hit(item.to_entry()),
            Some(_) => {
                if let Some(item) = self.take(bytes) {
                    self.bury(&item, now_ms);
                }
                Lookup::Expired
            }
        }
    }

    /// Reads an item without touching its recency.
    pub(super) fn peek<R>(&self, key: &Key, read: impl Fn(&Item) -> R) -> Option<R> {
        peek(&self.lru, key.as_str().as_bytes(), read)
    }

    pub(super) fn peek_record(&self, key: &Key, now_ms: u64) -> Option<Record> {
        match self.peek(key, Item::to_entry) {
            Some(entry) => Some(entry).filter(|entry| !entry.is_expired(now_ms)).map(Record::Entry),
            None => self.tombstones.get(key.as_str().as_bytes(), now_ms).map(Record::Tombstone),
        }
    }

    pub(super) fn current(&self, key: &Key, now_ms: u64) -> Option<Current> {
        let stored = self.peek(key, |item| Current {
            version: item.version(),
            live: !is_over(item.expires_at_ms(), now_ms),
        });
        let deleted = || self.tombstones.get(key.as_str().as_bytes(), now_ms);
        let deleted = || deleted().filter(|_| !cfg!(feature = "fault-no-tombstones"));
        stored.or_else(|| Some(Current { version: deleted()?.version, live: false }))
    }

    /// An item must cost no more than [`Shard::item_bytes_max`].
    pub(super) fn put_if_newer(&mut self, key: &Key, version: Version, new: New, now_ms: u64) -> Put {
        match self.current(key, now_ms) {
            Some(current) if current.version >= version => Put::Stale { held: current.version },
            current => {
                let evicted = self.replace(key, new, now_ms);
                Put::Stored { evicted, replaced: current.is_some_and(|current| current.live) }
            }
        }
    }

    /// Puts what is new in the place of whatever was there.
    pub(super) fn replace(&mut self, key: &Key, new: New, now_ms: u64) -> Evicted {
        let bytes = key.as_str().as_bytes();
        self.take(bytes);
        self.tombstones.remove(bytes);
        match new {
            New::Item(item) if is_over(item.expires_at_ms(), now_ms) => self.bury(&item, now_ms),
            New::Item(item) => {
                let cost = item.cost();
                let mut evicted = self.evict_while(|shard| shard.bytes_with_one_more(cost) > shard.budget);
                self.insert(item);
                // Leftovers of removed entries can have made the table grow when its length did not ask for it.
                evicted += self.evict_while(|shard| shard.entry_bytes() > shard.budget);
                evicted
            }
            New::Tombstone(tombstone) => {
                self.shrink();
                let mut evicted = Evicted::default();
                if !is_over(Some(tombstone.expires_at_ms), now_ms) {
                    evicted.tombstones = self.tombstones.put(bytes, tombstone);
                }
                evicted
            }
        }
    }

    pub(super) fn remove_version(&mut self, key: &Key, version: Version) -> bool {
        let bytes = key.as_str().as_bytes();
        if self.tombstones.by_version(bytes, version) {
            return self.tombstones.remove(bytes).is_some();
        }
        let removed = self.peek(key, Item::version) == Some(version) && self.take(bytes).is_some();
        self.shrink();
        removed
    }

    pub(super) fn versions(&self, wanted: impl Fn(Slot) -> bool, now_ms: u64) -> Vec<(Key, Version)> {
        let live = self.lru.iter().rev().filter(|(item, ())| !is_over(item.expires_at_ms(), now_ms));
        let entries = live.map(|(item, ())| (item.key(), item.version()));
        let standing = self.tombstones.iter().filter(|(_, one)| !is_over(Some(one.expires_at_ms), now_ms));
        let all = entries.chain(standing.map(|(key, tombstone)| (key, tombstone.version)));
        let all = all.filter(|(key, _)| wanted(Slot::of(key)));
        all.filter_map(|(key, version)| Some((Key::from_bytes(key).ok()?, version))).collect()
    }

    /// Frees up to `limit` expired items, the earliest first, and as many tombstones.
    pub(super) fn sweep(&mut self, now_ms: u64, limit: usize) -> usize {
        self.tombstones.sweep(now_ms, limit);
        let mut freed = 0;
        while freed < limit && self.expiries.first().is_some_and(|(at, _)| is_over(Some(*at), now_ms)) {
            let Some((_, key)) = self.expiries.pop_first() else { break };
            if let Some((item, ())) = self.lru.pop_entry(&*key) {
                self.items_bytes -= item.cost();
                self.bury(&item, now_ms);
            }
            freed += 1;
        }
        self.shrink();
        freed
    }

    /// Remembers an item whose time is over.
    fn bury(&mut self, item: &Item, now_ms: u64) -> Evicted {
        let tombstone = Tombstone::of_expired(item.version(), now_ms);
        let lost = tombstone.map_or(0, |tombstone| self.tombstones.put(item.key(), tombstone));
        Evicted { tombstones: lost, ..Evicted::default() }
    }

    /// Evicts before inserting, so that memory does not overshoot. One at a time: where the table would have
    /// to grow and there is no room for that, one item less is enough.
    fn bytes_with_one_more(&self, cost: usize) -> usize {
        let buckets = self.buckets.max(buckets_for(self.len() + 1));
        self.items_bytes + cost + cost::table(buckets)
    }

    fn evict_while(&mut self, over: impl Fn(&Shard) -> bool) -> Evicted {
        let mut evicted = Evicted::default();
        while over(self) {
            let Some((item, ())) = self.lru.pop_lru() else { break };
            evicted += Evicted { entries: 1, bytes: self.forget(&item), tombstones: 0 };
            self.shrink();
        }
        evicted
    }

    fn insert(&mut self, item: Item) {
        self.items_bytes += item.cost();
        if let Some(at) = item.expires_at_ms() {
            self.expiries.insert((at, item.key().into()));
        }
        let hashed = self.hashed.get();
        self.lru.put(item, ());
        // One hash looks for the key, one inserts it; more have rebuilt the table.
        let rebuilt = self.hashed.get().wrapping_sub(hashed) > 2;
        let len = self.len();
        if self.buckets == 0 {
            self.buckets = buckets_for(len);
        } else if rebuilt && len > capacity(self.buckets) / 2 {
            // Source: `reserve_rehash_inner` of hashbrown: less than half full it only clears its leftovers.
            self.buckets = buckets_for(len.max(capacity(self.buckets) + 1));
        }
    }

    fn take(&mut self, key: &[u8]) -> Option<Item> {
        let (item, ()) = self.lru.pop_entry(key)?;
        self.forget(&item);
        Some(item)
    }

    /// Books out an item that has left the list.
    fn forget(&mut self, item: &Item) -> usize {
        let cost = item.cost();
        self.items_bytes -= cost;
        if let Some(at) = item.expires_at_ms() {
            self.expiries.remove(&(at, item.key().into()));
        }
        cost
    }

    /// Gives back a table that has become far too large: less than an eighth full, so that growing again is
    /// paid for by as many removals.
    fn shrink(&mut self) {
        if self.len() >= self.buckets / 8 {
            return;
        }
        // The only call that shrinks the table; it wants a capacity that differs from the last, and none of
        // these two is ever reached.
        let unbounded = NonZeroUsize::MAX;
        let other = NonZeroUsize::MIN.saturating_add(usize::MAX - 2);
        self.lru.resize(if self.lru.cap() == unbounded { other } else { unbounded });
        self.buckets = self.buckets.min(buckets_for(self.len()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::model::Entry;

    /// The standard library's map grows by the same rules and tells its capacity, which is what its buckets
    /// hold less the leftovers of removals.
    #[test]
    fn the_table_is_followed_through_growth_leftovers_and_shrinking() {
        let mut shard = Shard::new(usize::MAX, 7);
        let mut twin = HashMap::<Box<[u8]>, (), Seeded>::with_hasher(Seeded::new(7, Count::default()));
        let mut grown_by_leftovers = false;
        let mut step = |shard: &mut Shard, insert: Option<u64>, remove: Option<u64>| {
            if let Some(key) = remove.map(|number| Key::parse(number.to_string()).unwrap()) {
                shard.take(key.as_str().as_bytes()).unwrap();
                twin.remove(key.as_str().as_bytes()).unwrap();
            }
            if let Some(number) = insert {
                let key = Key::parse(number.to_string()).unwrap();
                let entry = Entry {
                    value: Default::default(),
                    content_type: None,
                    version: Version::new(1, 1),
                    expires_at_ms: None,
                };
                shard.insert(Item::new(&key, &entry));
                twin.insert(key.as_str().as_bytes().into(), ());
            }
            let (followed, real) = (capacity(shard.buckets), twin.capacity());
            assert!((followed / 2 + 1..=followed).contains(&real), "{followed} followed, {real} real");
            grown_by_leftovers |= shard.buckets > buckets_for(shard.len());
        };
        for number in 0..28_000 {
            step(&mut shard, Some(number), None);
        }
        for number in 28_000..100_000 {
            step(&mut shard, Some(number), Some(number - 28_000));
        }
        assert!(grown_by_leftovers);

        for number in 72_000..99_000 {
            shard.take(number.to_string().as_bytes()).unwrap();
        }
        shard.shrink();
        assert_eq!(shard.buckets, buckets_for(1000));
    }
}
