//! Owns what is stored under a key, as the rest of the node sees it: a value, or that it was deleted.
//!
//! How they lie in memory is the store's affair. Invariants: a record is whole, with the version of the one write it comes
//! from; when it is over is said by the clock of the node that holds it, which nobody can set, and travels as what is left.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

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
    /// When it is gone; none keeps it until it is evicted.
    pub expiry: Option<Expiry>,
}

/// When the time to live of an entry is over, in milliseconds of the clock of the node that holds it: its uptime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// From this millisecond on the entry is gone.
    pub at_ms: u64,
    /// For how long its key is remembered after that: until [`Tombstone::LIFE_MS`] after it was written.
    pub remembered_ms: u32,
}

/// What is left of a time to live, as it travels between nodes, whose clocks have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeLeft {
    /// Milliseconds.
    pub ms: u64,
    /// See [`Expiry::remembered_ms`].
    pub remembered_ms: u32,
}

/// Says that a key is gone since that version, so that no older copy brings it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Of the delete, or of the entry whose time was over.
    pub version: Version,
    /// From when on it is forgotten, in milliseconds of the uptime of the node that holds it. What is left travels with copies,
    /// so that they do not live longer.
    pub expires_at_ms: u64,
}

impl Tombstone {
    /// How long a delete is remembered, in milliseconds: as long as a copy may be under way or cut off.
    pub const LIFE_MS: u64 = 10 * 60 * 1000;

    /// What an entry leaves when its time is over: without it, an older version that comes late would be visible again.
    /// None if it is so old that nothing older is under way.
    pub(super) fn of_expired(version: Version, expiry: Expiry, now_ms: u64) -> Option<Tombstone> {
        let expires_at_ms = expiry.at_ms.saturating_add(expiry.remembered_ms.into());
        Tombstone { version, expires_at_ms }.standing(now_ms)
    }

    /// As it is to be kept, if its time is not over. Whatever another node says, it is remembered for [`Tombstone::LIFE_MS`]
    /// from now at most.
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
        is_over(self.expiry.map(|expiry| expiry.at_ms), now_ms)
    }

    /// How long it has left; none if it has no TTL, zero if it is over.
    pub fn ttl_left(&self, now_ms: u64) -> Option<Duration> {
        self.expiry.map(|expiry| Duration::from_millis(expiry.at_ms.saturating_sub(now_ms)))
    }
}

impl Expiry {
    /// Of what is written at `now_ms`, by the clock of the node that writes it, to live that long.
    #[must_use]
    pub fn of_write(ttl: Duration, now_ms: u64) -> Expiry {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        // At most ten minutes.
        let remembered_ms = Tombstone::LIFE_MS.saturating_sub(ttl_ms) as u32;
        Expiry { at_ms: now_ms.saturating_add(ttl_ms), remembered_ms }
    }

    /// What is left at `now_ms`.
    #[must_use]
    pub fn left(self, now_ms: u64) -> TimeLeft {
        TimeLeft { ms: self.at_ms.saturating_sub(now_ms), remembered_ms: self.remembered_ms }
    }
}

impl TimeLeft {
    /// By the clock of a node on which it was left at `then_ms`.
    #[must_use]
    pub fn since(self, then_ms: u64) -> Expiry {
        Expiry { at_ms: then_ms.saturating_add(self.ms), remembered_ms: self.remembered_ms }
    }
}

/// The one reading of an expiry: at its very millisecond the entry is gone.
pub(super) fn is_over(expires_at_ms: Option<u64>, now_ms: u64) -> bool {
    expires_at_ms.is_some_and(|at| at <= now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at_ms: Option<u64>) -> Entry {
        let expiry = at_ms.map(|at_ms| Expiry { at_ms, remembered_ms: 0 });
        Entry { value: Bytes::new(), content_type: None, version: Version::new(1, 1), expiry }
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

    #[test]
    fn what_is_left_of_a_write_is_the_same_by_another_clock_and_its_key_is_remembered_ten_minutes_in_all() {
        let here = Expiry::of_write(Duration::from_secs(15), 1_000_000);
        let there = here.left(1_010_000).since(77_000);
        assert_eq!(there.at_ms, 82_000);
        let until = |expiry: Expiry| expiry.at_ms + u64::from(expiry.remembered_ms);
        assert_eq!((until(here), until(there)), (1_600_000, 667_000));
        let long = Expiry::of_write(Duration::MAX, 5);
        assert_eq!(long, Expiry { at_ms: u64::MAX, remembered_ms: 0 });
        assert_eq!(long.left(7).since(9), long);
    }
}
