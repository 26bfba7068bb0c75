//! Owns what is stored under a key, as the rest of the node sees it: a value, or that it was deleted.
//!
//! How they lie in memory is the store's affair. Invariant: a record is whole, with the version of the one write it
//! comes from.

use std::time::Duration;

use bytes::Bytes;

use super::{content_type::ContentType, version::Version};

/// A value and what was said about it when it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The bytes as they were put.
    pub value: Bytes,
    /// The Content-Type of raw bytes; none for the text of a JSON string.
    pub content_type: Option<ContentType>,
    /// Which write this is.
    pub version: Version,
    /// The unix millisecond from which on it is gone; none keeps it until it is evicted.
    pub expires_at_ms: Option<u64>,
}

/// Says that a key is gone since that version, so that no older copy brings it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Of the delete, or of the entry whose time was over.
    pub version: Version,
    /// The unix millisecond from which on it is forgotten. It travels with copies, so that they do not live longer.
    pub expires_at_ms: u64,
}

impl Tombstone {
    /// How long a delete is remembered, in milliseconds: as long as a copy may be under way or cut off.
    pub const LIFE_MS: u64 = 10 * 60 * 1000;

    /// What an entry leaves when its time is over: without it, an older version that comes late would be visible again.
    /// None if it is so old that nothing older is under way.
    pub(super) fn of_expired(version: Version, now_ms: u64) -> Option<Tombstone> {
        let expires_at_ms = version.millis() + Tombstone::LIFE_MS;
        Tombstone { version, expires_at_ms }.standing(now_ms)
    }

    /// As it is to be kept, if its time is not over. A node whose clock is wrong may have given it an end far ahead: it is
    /// remembered for [`Tombstone::LIFE_MS`] from now at most.
    pub(super) fn standing(self, now_ms: u64) -> Option<Tombstone> {
        let expires_at_ms = self.expires_at_ms.min(now_ms.saturating_add(Tombstone::LIFE_MS));
        (!is_over(Some(expires_at_ms), now_ms)).then_some(Tombstone { expires_at_ms, ..self })
    }
}

/// What is kept under a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A value.
    Entry(Entry),
    /// That there is none any more.
    Tombstone(Tombstone),
}

impl Record {
    /// Which write it is.
    pub fn version(&self) -> Version {
        match self {
            Record::Entry(entry) => entry.version,
            Record::Tombstone(tombstone) => tombstone.version,
        }
    }

    /// The same under another version.
    pub fn set_version(&mut self, version: Version) {
        match self {
            Record::Entry(entry) => entry.version = version,
            Record::Tombstone(tombstone) => tombstone.version = version,
        }
    }
}

impl Entry {
    /// Whether its time is over.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        is_over(self.expires_at_ms, now_ms)
    }

    /// How long it has left; none if it has no TTL, zero if it is over.
    pub fn ttl_left(&self, now_ms: u64) -> Option<Duration> {
        self.expires_at_ms.map(|at| Duration::from_millis(at.saturating_sub(now_ms)))
    }
}

/// The one reading of an expiry: at its very millisecond the entry is gone.
pub(super) fn is_over(expires_at_ms: Option<u64>, now_ms: u64) -> bool {
    expires_at_ms.is_some_and(|at| at <= now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(expires_at_ms: Option<u64>) -> Entry {
        Entry { value: Bytes::new(), content_type: None, version: Version::new(1, 1), expires_at_ms }
    }

    #[test]
    fn an_entry_is_gone_at_its_very_millisecond() {
        assert!(!entry(Some(1000)).is_expired(999));
        assert_eq!(entry(Some(1000)).ttl_left(999), Some(Duration::from_millis(1)));
        assert!(entry(Some(1000)).is_expired(1000));
        assert_eq!(entry(Some(1000)).ttl_left(2000), Some(Duration::ZERO));
    }

    #[test]
    fn an_entry_without_a_ttl_stays() {
        assert!(!entry(None).is_expired(u64::MAX));
        assert_eq!(entry(None).ttl_left(0), None);
    }
}
