//! Owns one part of the store: an LRU list with its table, the expiries in it, and its share of the budget.
//!
//! Does not lock: the store holds one lock a shard. Invariant: after every call `bytes() <= budget`, and the
//! index of expiries names exactly the items that have one.

use std::{collections::BTreeSet, num::NonZeroUsize};

use lru::LruCache;

use super::{
    Evicted, Lookup, Put,
    cost::{self, buckets_for, capacity},
    hasher::{Count, Seeded},
    item::Item,
    peek::peek,
};
use crate::model::{Key, Slot, Version, entry::is_over};

pub(super) struct Shard {
    lru: LruCache<Item, (), Seeded>,
    hashed: Count,
    /// Buckets of the LRU's table, which does not tell: followed from the outside.
    buckets: usize,
    /// Only of the items that have one; most have none.
    expiries: BTreeSet<(u64, Box<[u8]>)>,
    items_bytes: usize,
    budget: usize,
}

impl Shard {
    pub(super) fn new(budget: usize, hash_seed: u64) -> Shard {
        let hashed = Count::default();
        let lru = LruCache::unbounded_with_hasher(Seeded::new(hash_seed, hashed.clone()));
        Shard { lru, hashed, buckets: 0, expiries: BTreeSet::new(), items_bytes: 0, budget }
    }

    /// The dearest item that fits: alone, in the largest table a single item is left with.
    pub(super) fn item_bytes_max(budget: usize) -> usize {
        budget.saturating_sub(cost::table(8))
    }

    pub(super) fn len(&self) -> usize {
        self.lru.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.items_bytes + cost::table(self.buckets)
    }

    pub(super) fn get(&mut self, key: &Key, now_ms: u64) -> Lookup {
        let key = key.as_str().as_bytes();
        match self.lru.get_key_value(key) {
            None => Lookup::Miss,
            Some((item, ())) if !is_over(item.expires_at_ms(), now_ms) => Lookup::Hit(item.to_entry()),
            Some(_) => {
                self.take(key);
                Lookup::Expired
            }
        }
    }

    /// Reads an item without touching its recency.
    pub(super) fn peek<R>(&self, key: &Key, read: impl Fn(&Item) -> R) -> Option<R> {
        peek(&self.lru, key.as_str().as_bytes(), read)
    }

    /// The item must cost no more than [`Shard::item_bytes_max`].
    pub(super) fn put_if_newer(&mut self, key: &Key, item: Item, now_ms: u64) -> Put {
        let stored = self.peek(key, |stored| (stored.version(), is_over(stored.expires_at_ms(), now_ms)));
        if stored.is_some_and(|(version, _)| version >= item.version()) {
            return Put::Stale;
        }
        self.take(key.as_str().as_bytes());
        let replaced = stored.is_some_and(|(_, over)| !over);
        let cost = item.cost();
        let mut evicted = self.evict_while(|shard| shard.bytes_with_one_more(cost) > shard.budget);
        self.insert(item);
        // Leftovers of removed entries can have made the table grow when its length did not ask for it.
        evicted += self.evict_while(|shard| shard.bytes() > shard.budget);
        Put::Stored { evicted, replaced }
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Item> {
        let item = self.take(key.as_str().as_bytes());
        self.shrink();
        item
    }

    pub(super) fn remove_version(&mut self, key: &Key, version: Version) -> bool {
        let matches = self.peek(key, Item::version) == Some(version);
        matches && self.remove(key).is_some()
    }

    pub(super) fn keys(&self, wanted: impl Fn(Slot) -> bool, limit: usize) -> Vec<Key> {
        let keys = self.lru.iter().filter_map(|(item, ())| Key::from_bytes(item.key()).ok());
        keys.filter(|key| wanted(key.slot())).take(limit).collect()
    }

    /// Frees up to `limit` expired items, the earliest first.
    pub(super) fn sweep(&mut self, now_ms: u64, limit: usize) -> usize {
        let mut freed = 0;
        while freed < limit && self.expiries.first().is_some_and(|(at, _)| is_over(Some(*at), now_ms)) {
            let Some((_, key)) = self.expiries.pop_first() else { break };
            if let Some((item, ())) = self.lru.pop_entry(&*key) {
                self.items_bytes -= item.cost();
            }
            freed += 1;
        }
        self.shrink();
        freed
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
            evicted += Evicted { entries: 1, bytes: self.forget(&item) };
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
