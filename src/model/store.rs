//! placeholder
#![allow(missing_docs)]
use super::*;
use parking_lot::Mutex;
use std::collections::HashMap;
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub memory_bytes_max: usize,
    pub value_bytes_max: usize,
    pub hash_seed: u64,
}
pub struct Store {
    c: StoreConfig,
    m: Mutex<HashMap<Key, Entry>>,
}
pub enum Put {
    Stored { evicted: Evicted, replaced: bool },
    Stale,
}
#[derive(Default)]
pub struct Evicted {
    pub entries: usize,
    pub bytes: usize,
}
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("too large")]
    TooLarge { bytes: usize, bytes_max: usize },
}
pub enum Lookup {
    Hit(Entry),
    Expired,
    Miss,
}
impl Store {
    pub fn new(c: StoreConfig) -> Store {
        Store { c, m: Mutex::default() }
    }
    pub fn get(&self, key: &Key, now_ms: u64) -> Lookup {
        match self.peek(key, now_ms) {
            Some(e) => Lookup::Hit(e),
            None => Lookup::Miss,
        }
    }
    pub fn peek(&self, key: &Key, now_ms: u64) -> Option<Entry> {
        self.m.lock().get(key).filter(|e| !e.is_expired(now_ms)).cloned()
    }
    pub fn put_if_newer(&self, key: &Key, entry: Entry, _n: u64) -> Result<Put, StoreError> {
        let mut m = self.m.lock();
        if m.get(key).is_some_and(|e| e.version >= entry.version) {
            return Ok(Put::Stale);
        }
        m.insert(key.clone(), entry);
        Ok(Put::Stored { evicted: Evicted::default(), replaced: false })
    }
    pub fn remove(&self, key: &Key, _n: u64) -> bool {
        self.m.lock().remove(key).is_some()
    }
    pub fn remove_version(&self, key: &Key, version: Version) -> bool {
        let mut m = self.m.lock();
        if m.get(key).is_some_and(|e| e.version == version) {
            m.remove(key);
            true
        } else {
            false
        }
    }
    pub fn shards(&self) -> usize {
        1
    }
    pub fn keys_in(&self, _shard: usize, wanted: impl Fn(Slot) -> bool, _limit: usize) -> Vec<Key> {
        self.m.lock().keys().filter(|k| wanted(k.slot())).cloned().collect()
    }
    pub fn sweep(&self, _n: u64, _l: usize) -> usize {
        0
    }
    pub fn len(&self) -> usize {
        self.m.lock().len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn bytes(&self) -> usize {
        0
    }
    pub fn bytes_max(&self) -> usize {
        self.c.memory_bytes_max
    }
}
