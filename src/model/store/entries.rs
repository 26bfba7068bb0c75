//! Owns the entries of one shard: an LRU list with its table, and the expiries in it, within a budget of bytes.
//!
//! Does not compare versions and does not read the time. Invariant: after every call but [`Entries::take`], which leaves the
//! table as it is for whatever comes in its place, `bytes()` is within the budget, and the index of expiries names exactly the
//! items that have one.

use std::{collections::BTreeSet, num::NonZeroUsize};

use lru::LruCache;

use super::{
    Evicted,
    cost::{self, buckets_for, capacity},
    hasher::{Count, Seeded},
    item::Item,
    peek::peek,
};
use crate::model::entry::is_over;

pub(super) struct Entries {
    lru: LruCache<Item, (), Seeded>,
    hashed: Count,
    /// Buckets of the LRU's table, which does not tell: followed from the outside.
    buckets: usize,
    /// Only of the items that have one; most have none.
    expiries: BTreeSet<(u64, Box<[u8]>)>,
    items_bytes: usize,
    budget: usize,
}

impl Entries {
    pub(super) fn new(budget: usize, hash_seed: u64) -> Entries {
        let hashed = Count::default();
        let lru = LruCache::unbounded_with_hasher(Seeded::new(hash_seed, hashed.clone()));
        Entries { lru, hashed, buckets: 0, expiries: BTreeSet::new(), items_bytes: 0, budget }
    }

    /// The dearest item that fits a budget: alone, in the largest table a single item is left with.
    pub(super) fn item_bytes_max(budget: usize) -> usize {
        budget.saturating_sub(cost::table(8))
    }

    pub(super) fn len(&self) -> usize {
        self.lru.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.items_bytes + cost::table(self.buckets)
    }

    /// Finds an item and makes it the most recently used.
    pub(super) fn get(&mut self, key: &[u8]) -> Option<&Item> {
        self.lru.get_key_value(key).map(|(item, ())| item)
    }

    /// Reads an item without touching its recency.
    pub(super) fn peek<R>(&self, key: &[u8], read: impl Fn(&Item) -> R) -> Option<R> {
        peek(&self.lru, key, read)
    }

    /// Least recently used first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.lru.iter().rev().map(|(item, ())| item)
    }

    /// Adds an item whose key is not there and which costs no more than [`Entries::item_bytes_max`]. Tells of each that goes.
    pub(super) fn insert(&mut self, item: Item, mut tell: impl FnMut(&Item)) -> Evicted {
        let cost = item.cost();
        let is_over = |entries: &Entries| entries.bytes_with_one_more(cost) > entries.budget;
        let mut evicted = self.evict_while(is_over, &mut tell);
        self.push(item);
        // Leftovers of removed entries can have made the table grow when its length did not ask for it.
        evicted += self.evict_while(|entries| entries.bytes() > entries.budget, &mut tell);
        evicted
    }

    /// Removes an item. The table stays as large as it is, until [`Entries::shrink`].
    pub(super) fn take(&mut self, key: &[u8]) -> Option<Item> {
        let (item, ()) = self.lru.pop_entry(key)?;
        self.forget(&item);
        Some(item)
    }

    /// As [`Entries::take`], the item that expired first.
    pub(super) fn take_expired(&mut self, now_ms: u64) -> Option<Item> {
        let (_, key) = self.expiries.first().filter(|(at, _)| is_over(Some(*at), now_ms))?;
        let (item, ()) = self.lru.pop_entry(&**key)?;
        self.forget(&item);
        Some(item)
    }

    /// Gives back a table that has become far too large: less than an eighth full, so that growing again is
    /// paid for by as many removals.
    pub(super) fn shrink(&mut self) {
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

    /// Evicts before inserting, so that memory does not overshoot. One at a time: where the table would have
    /// to grow and there is no room for that, one item less is enough.
    fn bytes_with_one_more(&self, cost: usize) -> usize {
        let buckets = self.buckets.max(buckets_for(self.len() + 1));
        self.items_bytes + cost + cost::table(buckets)
    }

    fn evict_while(&mut self, over: impl Fn(&Entries) -> bool, mut tell: impl FnMut(&Item)) -> Evicted {
        let mut evicted = Evicted::default();
        while over(self) {
            let Some((item, ())) = self.lru.pop_lru() else { break };
            tell(&item);
            evicted += Evicted { entries: 1, bytes: self.forget(&item), tombstones: 0 };
            self.shrink();
        }
        evicted
    }

    fn push(&mut self, item: Item) {
        self.items_bytes += item.cost();
        if let Some(expiry) = item.expiry() {
            self.expiries.insert((expiry.at_ms, item.key().into()));
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

    /// Books out an item that has left the list.
    fn forget(&mut self, item: &Item) -> usize {
        let cost = item.cost();
        self.items_bytes -= cost;
        if let Some(expiry) = item.expiry() {
            self.expiries.remove(&(expiry.at_ms, item.key().into()));
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::model::{Entry, Key, Version};

    /// The standard library's map grows by the same rules and tells its capacity, which is what its buckets
    /// hold less the leftovers of removals.
    #[test]
    fn the_table_is_followed_through_growth_leftovers_and_shrinking() {
        let mut entries = Entries::new(usize::MAX, 7);
        let mut twin = HashMap::<Box<[u8]>, (), Seeded>::with_hasher(Seeded::new(7, Count::default()));
        let mut grown_by_leftovers = false;
        let mut step = |entries: &mut Entries, insert: Option<u64>, remove: Option<u64>| {
            if let Some(key) = remove.map(|number| Key::parse(number.to_string()).unwrap()) {
                entries.take(key.as_str().as_bytes()).unwrap();
                twin.remove(key.as_str().as_bytes()).unwrap();
            }
            if let Some(number) = insert {
                let key = Key::parse(number.to_string()).unwrap();
                let entry = Entry {
                    value: Default::default(),
                    content_type: None,
                    version: Version::new(1, 1),
                    expiry: None,
                };
                entries.push(Item::new(&key, &entry));
                twin.insert(key.as_str().as_bytes().into(), ());
            }
            let (followed, real) = (capacity(entries.buckets), twin.capacity());
            assert!((followed / 2 + 1..=followed).contains(&real), "{followed} followed, {real} real");
            grown_by_leftovers |= entries.buckets > buckets_for(entries.len());
        };
        for number in 0..28_000 {
            step(&mut entries, Some(number), None);
        }
        for number in 28_000..100_000 {
            step(&mut entries, Some(number), Some(number - 28_000));
        }
        assert!(grown_by_leftovers);

        for number in 72_000..99_000 {
            entries.take(number.to_string().as_bytes()).unwrap();
        }
        entries.shrink();
        assert_eq!(entries.buckets, buckets_for(1000));
    }
}
