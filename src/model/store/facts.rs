//! Owns what the store tells its callers, who count it.
//!
//! Decides nothing. Invariant: an error says that nothing changed.

use std::ops::AddAssign;

use crate::model::{Entry, Version};

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Stored {
        /// What had to go for it.
        evicted: Evicted,
        /// Whether there was a live entry of an older version.
        replaced: bool,
        /// The older version, of a live entry or not.
        older: Option<Version>,
    },
    /// What is kept is as new or newer; nothing changed.
    Stale {
        /// Its version.
        held: Version,
    },
}

/// What is kept under a key when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// Its version.
    pub version: Version,
    /// Whether there is a value: not after a delete, and not when its time is over.
    pub live: bool,
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version it got.
    pub version: Version,
    /// Whether there was a value.
    pub replaced: bool,
    /// What had to go for it.
    pub evicted: Evicted,
}

/// What was given up for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// How many entries.
    pub entries: usize,
    /// The memory they had taken.
    pub bytes: usize,
    /// How many tombstones: deletes, and entries whose time was over, that are forgotten before their time.
    pub tombstones: usize,
}

impl AddAssign for Evicted {
    fn add_assign(&mut self, more: Evicted) {
        self.entries += more.entries;
        self.bytes += more.bytes;
        self.tombstones += more.tombstones;
    }
}

/// Why an entry was not stored. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The value is longer than allowed, or the entry would not fit a shard even alone.
    #[error("the entry takes {bytes} bytes, at most {bytes_max} are accepted")]
    TooLarge {
        /// Of the value, or of the entry with its overhead.
        bytes: usize,
        /// What is accepted of the same.
        bytes_max: usize,
    },
}

/// What a sweep freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries whose time was over.
    pub entries: usize,
    /// Tombstones whose time was over.
    pub tombstones: usize,
    /// What had to go for the tombstones that the entries left.
    pub evicted: Evicted,
}

impl Swept {
    /// How many together.
    pub(super) fn records(&self) -> usize {
        self.entries + self.tombstones
    }
}

impl AddAssign for Swept {
    fn add_assign(&mut self, more: Swept) {
        self.entries += more.entries;
        self.tombstones += more.tombstones;
        self.evicted += more.evicted;
    }
}

/// What a get found.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// A live entry.
    Hit(Entry),
    /// An entry whose time was over; it has been removed.
    Expired {
        /// What had to go for the tombstone it left.
        evicted: Evicted,
    },
    /// Nothing since the delete of that version.
    Deleted(Version),
    /// Nothing.
    Miss,
}
