//! Owns the entries of this node: bounded in bytes, least recently used out first, over at their expiry.
//!
//! Does not count hits or evictions (it tells the caller), does not know what the node should hold, and takes
//! the time as an argument. Invariant: what [`Store::bytes`] says never exceeds the budget, and the version
//! of a key never goes back while the key is remembered: as long as it is there, and for [`Tombstone::LIFE_MS`](super::Tombstone::LIFE_MS) after the
//! write that deleted it or whose time is over.
//!
//! Remembered is a key that is gone by its tombstone, which has the version of that write and is copied between nodes as
//! entries are. Tombstones have a budget of their own within the bound, of a thirty-second part; beyond it those that end
//! first are forgotten early. Neither tombstones nor entries are given up for the other.
//!
//! What is given up, by eviction or a tombstone too many, of a slot that the caller watches leaves a floor: what is not there
//! counts as deleted up to that version, until the slot is watched no longer.
//!
//! It is cut into shards by slot, each one LRU behind a short lock. Bytes are counted as they are taken from
//! the machine, so that resident memory follows the budget: see `store/cost.rs`.

mod cost;
mod entries;
mod facts;
mod floors;
mod hasher;
mod item;
mod peek;
mod shard;
mod tombstones;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

pub use self::facts::{Current, Evicted, Lookup, Put, StoreError, Swept, Written};
use self::{
    floors::Watched,
    item::Item,
    shard::{New, Shard},
};
use super::{Key, Record, Slot, SlotSet, Version, mix};

/// How much a store may hold.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// Everything the entries take: keys, values, tables, the allocator's rounding. A thirty-second of it is for tombstones:
    /// 146 of them to a MiB with keys of 16 bytes. The process adds its own.
    pub memory_bytes_max: usize,
    /// The longest value. A store has fewer shards where this is large: an entry must fit its shard four
    /// times.
    pub value_bytes_max: usize,
    /// A secret that strangers' keys cannot be made to collide with; random, anew for each process.
    pub hash_seed: u64,
}

impl StoreConfig {
    /// A store whose *resident* memory is to stay at about `resident_bytes_max`.
    ///
    /// A sixteenth is left for what the allocator cannot use of its pages: requests allocate and free between the entries.
    /// Measured by `benches/memory.rs`, with whole nodes that are filled over HTTP.
    #[must_use]
    pub fn for_resident(resident_bytes_max: usize, value_bytes_max: usize, hash_seed: u64) -> StoreConfig {
        StoreConfig { memory_bytes_max: resident_bytes_max / 16 * 15, value_bytes_max, hash_seed }
    }
}

/// The entries of a node, shared by all its threads.
pub struct Store {
    shards: Box<[Mutex<Shard>]>,
    shard_bytes_max: usize,
    value_bytes_max: usize,
    watched: Arc<Watched>,
    /// Where the last sweep ended.
    swept: AtomicUsize,
}

/// More shards would hardly meet less often, and each has a table that is up to half empty. Not a power of
/// two: slots spread as well over any number, and with 36 the tables of a million entries are 85 % full,
/// where 32 or 64 would have just doubled theirs.
const SHARDS_MAX: usize = 36;

/// How many of the largest entries a shard should have room for.
const ENTRIES_PER_SHARD_MIN: usize = 4;

/// How many entries and tombstones a sweep frees under one lock: some ten microseconds.
const SWEEP_STEP: usize = 64;

impl Store {
    /// An empty store.
    pub fn new(config: StoreConfig) -> Store {
        let StoreConfig { memory_bytes_max, value_bytes_max, hash_seed } = config;
        let wanted = value_bytes_max.saturating_add(Key::BYTES_MAX).saturating_mul(ENTRIES_PER_SHARD_MIN);
        let shards = (memory_bytes_max / wanted).clamp(1, SHARDS_MAX);
        let shard_bytes_max = memory_bytes_max / shards;
        // Tables of one seed would be filled in bucket order when keys are copied from one to another.
        let watched = Arc::new(Watched::nothing());
        let shard = |number| {
            let seed = mix::mix(hash_seed.wrapping_add(number));
            Mutex::new(Shard::new(shard_bytes_max, seed, watched.clone()))
        };
        Store {
            shards: (0..shards as u64).map(shard).collect(),
            shard_bytes_max,
            value_bytes_max,
            watched,
            swept: AtomicUsize::new(0),
        }
    }

    /// Looks a key up and makes it the most recently used.
    pub fn get(&self, key: &Key, now_ms: u64) -> Lookup {
        self.shard(key).lock().get(key, now_ms)
    }

    /// What is kept under a key, unless its time is over: a value, or a tombstone, which is also what an entry whose own time
    /// is over counts as. Leaves recency alone.
    pub fn peek(&self, key: &Key, now_ms: u64) -> Option<Record> {
        self.shard(key).lock().peek(key, now_ms)
    }

    /// Keeps a record unless what is there is of the same or a newer version. In whatever order and however often the same
    /// records come, the newest remains; if its time is over, nothing older is visible for [`Tombstone::LIFE_MS`] after it
    /// was written.
    ///
    /// [`Tombstone::LIFE_MS`]: super::Tombstone::LIFE_MS
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn put_if_newer(&self, key: &Key, record: Record, now_ms: u64) -> Result<Put, StoreError> {
        self.put_over(key, record, now_ms, |_| {})
    }

    /// The same, and calls `gives_way` with the version that is replaced, if there is one, before anybody can find the new one.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn put_over(
        &self,
        key: &Key,
        record: Record,
        now_ms: u64,
        gives_way: impl FnOnce(Version),
    ) -> Result<Put, StoreError> {
        let version = record.version();
        let new = self.prepare(key, record)?;
        let mut shard = self.shard(key).lock();
        Ok(match shard.current(key, now_ms) {
            Some(current) if current.version >= version => Put::Stale { held: current.version },
            current => {
                let older = current.map(|current| current.version);
                if let Some(older) = older {
                    gives_way(older);
                }
                let evicted = shard.replace(key, new, now_ms);
                Put::Stored { evicted, replaced: current.is_some_and(|current| current.live), older }
            }
        })
    }

    /// Writes a record under the version that `decide` gives it, which sees what is there and must give a greater one. All
    /// under one lock, so that nothing comes between. An `Err` of `decide` changes nothing.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn write<E>(
        &self,
        key: &Key,
        record: Record,
        now_ms: u64,
        decide: impl FnOnce(Option<Current>) -> Result<Version, E>,
    ) -> Result<Result<Written, E>, StoreError> {
        let mut new = self.prepare(key, record)?;
        let mut shard = self.shard(key).lock();
        let current = shard.current(key, now_ms);
        let mut version = match decide(current) {
            Ok(version) => version,
            Err(refused) => return Ok(Err(refused)),
        };
        if let Some(held) = current.map(|current| current.version).filter(|held| version <= *held) {
            debug_assert!(false, "{version} is to be written over {held}, which is not older");
            version = held.next(version.node());
        }
        new.set_version(version);
        let evicted = shard.replace(key, new, now_ms);
        Ok(Ok(Written { version, replaced: current.is_some_and(|current| current.live), evicted }))
    }

    /// Outside the lock: the copy is made, the caller's buffer let go.
    fn prepare(&self, key: &Key, record: Record) -> Result<New, StoreError> {
        Ok(match record {
            Record::Tombstone(tombstone) => New::Tombstone(tombstone),
            Record::Entry(entry) => {
                check(entry.value.len(), self.value_bytes_max)?;
                let item = Item::new(key, &entry);
                check(item.cost(), Shard::item_bytes_max(self.shard_bytes_max))?;
                New::Item(item)
            }
        })
    }

    /// Removes what is kept under a key, value or tombstone, if it is of exactly that version; true if it was.
    pub fn remove_version(&self, key: &Key, version: Version) -> bool {
        self.shard(key).lock().remove_version(key, version)
    }

    /// Says which slots some other node may lack something of. The floors of all others are forgotten.
    pub fn watch(&self, slots: &SlotSet) {
        if self.watched.set(slots) {
            self.shards.iter().for_each(|shard| shard.lock().forget_unwatched());
        }
    }

    /// Whether no slot is watched.
    pub fn watches_nothing(&self) -> bool {
        self.watched.is_nothing()
    }

    /// The floors of these slots of one shard: up to which version something of them was given up.
    pub fn floors(&self, shard: usize, slots: &SlotSet) -> Vec<(Slot, Version)> {
        let Some(shard) = self.shards.get(shard).map(|shard| shard.lock()) else { return Vec::new() };
        if shard.floors().is_empty() {
            return Vec::new();
        }
        slots.iter().filter_map(|slot| Some((slot, shard.floors().of(slot)?))).collect()
    }

    /// Notes that a record of this version was here and is not any more, if that is so.
    pub fn note_given_up(&self, key: &Key, version: Version, now_ms: u64) {
        self.shard(key).lock().note_given_up(key, version, now_ms);
    }

    /// As [`Store::remove_version`], as if it was evicted: it leaves a floor.
    pub fn give_up_version(&self, key: &Key, version: Version, now_ms: u64) -> bool {
        let mut shard = self.shard(key).lock();
        let removed = shard.remove_version(key, version);
        if removed {
            shard.note_given_up(key, version, now_ms);
        }
        removed
    }

    /// How many shards there are. A slot's entries are in one of them.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The shard that holds a slot's entries.
    pub fn shard_of(&self, slot: Slot) -> usize {
        slot.index() % self.shards.len()
    }

    /// Keys and versions of all that a shard keeps in the wanted slots, values and tombstones, but nothing whose time is over;
    /// values least recently used first. Goes through the whole shard under its lock: some milliseconds for 100 000 entries.
    pub fn versions_in(
        &self,
        shard: usize,
        wanted: impl Fn(Slot) -> bool,
        now_ms: u64,
    ) -> Vec<(Key, Version)> {
        self.shards.get(shard).map(|shard| shard.lock().versions(wanted, now_ms)).unwrap_or_default()
    }

    /// Frees up to `limit` entries and tombstones whose time is over, holding a lock for a small step at a time. The next call
    /// goes on at the shard where this one ended.
    pub fn sweep(&self, now_ms: u64, limit: usize) -> Swept {
        let mut swept = Swept::default();
        let start = self.swept.load(Ordering::Relaxed);
        for turn in 0..self.shards.len() {
            let at = (start + turn) % self.shards.len();
            loop {
                let step = SWEEP_STEP.min(limit - swept.records());
                let done = self.shards[at].lock().sweep(now_ms, step);
                swept += done;
                if swept.records() == limit {
                    self.swept.store(at, Ordering::Relaxed);
                    return swept;
                }
                if done.records() < step {
                    break;
                }
            }
        }
        swept
    }

    /// Entries, those expired but not yet removed among them.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Deletes, and entries whose time was over, that are remembered.
    pub fn tombstones(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().tombstones()).sum()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory taken: keys, values and all that goes with them.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes()).sum()
    }

    /// The most that [`Store::bytes`] can be: the configured bound, less what does not divide by the shards.
    pub fn bytes_max(&self) -> usize {
        self.shard_bytes_max * self.shards.len()
    }

    fn shard(&self, key: &Key) -> &Mutex<Shard> {
        &self.shards[self.shard_of(key.slot())]
    }
}

fn check(bytes: usize, bytes_max: usize) -> Result<(), StoreError> {
    if bytes > bytes_max { Err(StoreError::TooLarge { bytes, bytes_max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
