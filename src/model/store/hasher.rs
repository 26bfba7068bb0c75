//! Owns the hash of a shard's table.
//!
//! Short keys decide its speed, strangers choose the keys: one multiplication for eight bytes, with a secret
//! start and a secret factor. It also counts, because that shows when the table has been rebuilt: then all
//! entries are hashed again. Invariant: one seed gives one hash, whatever else is in the table.

use std::{
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::model::mix::mix;

/// How many keys have been hashed. Only ever touched under the shard's lock, so it needs no atomic addition.
#[derive(Clone, Default)]
pub(super) struct Count(Arc<AtomicUsize>);

impl Count {
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes hashers of one seed.
pub(super) struct Seeded {
    start: u64,
    factor: u64,
    count: Count,
}

impl Seeded {
    pub(super) fn new(seed: u64, count: Count) -> Seeded {
        Seeded { start: mix(seed), factor: mix(!seed) | 1, count }
    }
}

impl BuildHasher for Seeded {
    type Hasher = KeyHasher;

    #[inline]
    fn build_hasher(&self) -> KeyHasher {
        self.count.0.store(self.count.get().wrapping_add(1), Ordering::Relaxed);
        KeyHasher { state: self.start, factor: self.factor }
    }
}

pub(super) struct KeyHasher {
    state: u64,
    factor: u64,
}

impl KeyHasher {
    /// Both halves of the product, so that every bit of the word reaches every bit of the state. (The idea of
    /// wyhash; Wang Yi 2019.)
    #[inline]
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for KeyHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.fold(u64::from_le_bytes(last));
        }
    }

    /// The length that a slice writes before its bytes.
    #[inline]
    fn write_usize(&mut self, length: usize) {
        self.state = self.state.wrapping_add(length as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        // The table takes its bucket from the low bits and its tag from the top seven.
        self.state ^ self.state.rotate_right(23).wrapping_mul(self.factor)
    }
}
