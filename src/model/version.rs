//! Owns the order of writes: a hybrid logical clock and the versions it stamps.
//!
//! Does not read the time: the caller brings it. Invariant: a clock's stamps only grow, and each is greater
//! than every time it has accepted from another node.
//!
//! Source: Kulkarni, Demirbas, Madappa, Avva and Leone 2014, "Logical Physical Clocks".

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};

use super::{key::NodeId, mix};

/// Which write an entry comes from; the greater one wins. As text (an `ETag`) it is `time-node` in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    // Compared in this order.
    time: u64,
    node: u32,
}

impl Version {
    /// Bytes of every version's text.
    pub(crate) const TEXT_BYTES: usize = TIME_DIGITS + 1 + NODE_DIGITS;

    /// A version known from elsewhere; a [`Clock`] makes new ones.
    pub const fn new(time: u64, node: u32) -> Version {
        Version { time, node }
    }

    /// Unix milliseconds (48 bits) followed by a counter (16 bits).
    pub fn time(self) -> u64 {
        self.time
    }

    /// The unix milliseconds in [`Version::time`].
    pub fn millis(self) -> u64 {
        self.time >> COUNTER_BITS
    }

    /// A hash of the stamping node's id: it only breaks ties.
    pub fn node(self) -> u32 {
        self.node
    }

    /// Its text, without an allocation: nearly every answer has one, and `format!` took an eighth of a local GET's instructions.
    pub(crate) fn to_ascii(self) -> [u8; Version::TEXT_BYTES] {
        let mut text = [b'-'; Version::TEXT_BYTES];
        write_hex(self.time, &mut text[..TIME_DIGITS]);
        write_hex(self.node.into(), &mut text[TIME_DIGITS + 1..]);
        text
    }

    /// A version right before this one, after whatever it replaced; `number` tells it from others. For a write that this one
    /// has overtaken: stamps after what exists have a greater time.
    pub(crate) fn previous(self, number: u32) -> Version {
        Version { time: self.time, node: number.checked_rem(self.node).unwrap_or_default() }
    }

    /// The first version of a node after this one.
    pub(super) fn next(self, node: u32) -> Version {
        Version { time: self.time.saturating_add(1), node }
    }
}

const COUNTER_BITS: u32 = 16;
const TIME_DIGITS: usize = 16;
const NODE_DIGITS: usize = 8;

/// Fills `text` with the last digits of `number`.
fn write_hex(number: u64, text: &mut [u8]) {
    for (place, digit) in text.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * place)) as usize & 0xf];
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.to_ascii()).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Version, VersionError> {
        let (time, node) = text.split_once('-').ok_or(VersionError)?;
        // `from_str_radix` would accept a sign and other lengths: one version has one text.
        let exact = |part: &str, digits: usize| {
            part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !exact(time, TIME_DIGITS) || !exact(node, NODE_DIGITS) {
            return Err(VersionError);
        }
        let time = u64::from_str_radix(time, 16).map_err(|_| VersionError)?;
        let node = u32::from_str_radix(node, 16).map_err(|_| VersionError)?;
        Ok(Version { time, node })
    }
}

/// A text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version is 16 hex digits, '-', 8 hex digits")]
pub struct VersionError;

/// Stamps versions for one node; shared by all its threads without a lock.
#[derive(Debug)]
pub struct Clock {
    last: AtomicU64,
    node: u32,
}

/// What became of a time seen at another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Later stamps are greater.
    Accepted,
    /// It was more than [`Clock::AHEAD_MS_MAX`] ahead; the clock moved only that far. Worth counting: some
    /// node's clock is wrong.
    Clamped,
}

impl Clock {
    /// How far ahead of this node's own time another's may be, in milliseconds.
    pub const AHEAD_MS_MAX: u64 = 60_000;

    /// A clock for that node, having seen nothing.
    pub fn new(node: &NodeId) -> Clock {
        // The upper half, as good as any of the hash; two ids share it once in 2^32 pairs.
        let node = (mix::hash(0, node.as_str().as_bytes()) >> 32) as u32;
        Clock { last: AtomicU64::new(0), node }
    }

    /// A version greater than anything this clock has stamped or accepted. When a millisecond's counter is
    /// used up it carries into the milliseconds.
    pub fn stamp(&self, now_ms: u64) -> Version {
        let now = time_at(now_ms);
        let next = |last: u64| now.max(last.saturating_add(1));
        let mut last = self.last.load(Ordering::Relaxed);
        // Only the one word matters, no other memory is published by it, so relaxed order is enough.
        while let Err(seen) =
            self.last.compare_exchange_weak(last, next(last), Ordering::Relaxed, Ordering::Relaxed)
        {
            last = seen;
        }
        Version { time: next(last), node: self.node }
    }

    /// A version that is greater than `existing`, too. One that is more than [`Clock::AHEAD_MS_MAX`] ahead leaves the clock
    /// alone, so that a single key from a node with a wrong clock does not put all others ahead: the new version is the
    /// next after it, and only that key is ahead.
    pub fn stamp_after(&self, now_ms: u64, existing: Option<Version>) -> Version {
        if let Some(existing) = existing.filter(|existing| existing.time <= limit_at(now_ms)) {
            self.last.fetch_max(existing.time, Ordering::Relaxed);
        }
        let stamp = self.stamp(now_ms);
        match existing {
            Some(existing) if existing >= stamp => existing.next(self.node),
            _ => stamp,
        }
    }

    /// Takes note of [`Version::time`] of a write stamped elsewhere.
    pub fn observe(&self, time: u64, now_ms: u64) -> Observed {
        let limit = limit_at(now_ms);
        self.last.fetch_max(time.min(limit), Ordering::Relaxed);
        if time > limit { Observed::Clamped } else { Observed::Accepted }
    }

    /// The greatest time stamped or accepted so far.
    pub fn latest(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }
}

/// The greatest time that is believed of another node.
fn limit_at(now_ms: u64) -> u64 {
    time_at(now_ms.saturating_add(Clock::AHEAD_MS_MAX))
}

/// The first time of a millisecond; 48 bits last until the year 10889.
fn time_at(ms: u64) -> u64 {
    ms.min(u64::MAX >> COUNTER_BITS) << COUNTER_BITS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clock() -> Clock {
        Clock::new(&NodeId::parse("node1").unwrap())
    }

    #[test]
    fn a_stamp_carries_the_time_it_was_given() {
        let stamp = clock().stamp(1_764_000_000_000);
        assert_eq!(stamp.millis(), 1_764_000_000_000);
        assert_eq!(stamp.time() & 0xffff, 0);
    }

    #[test]
    fn a_full_counter_carries_into_the_milliseconds() {
        let clock = clock();
        clock.observe((5 << 16) | 0xffff, 5);
        assert_eq!(clock.stamp(5).time(), 6 << 16);
    }

    #[test]
    fn a_time_far_ahead_moves_the_clock_by_a_minute_at_most() {
        let clock = clock();
        assert_eq!(clock.observe(61_000 << 16, 1_000), Observed::Accepted);
        assert_eq!(clock.observe((61_000 << 16) + 1, 1_000), Observed::Clamped);
        assert_eq!(clock.observe(u64::MAX, 1_000), Observed::Clamped);
        assert_eq!(clock.latest(), 61_000 << 16);
    }

    #[test]
    fn a_key_far_ahead_is_overwritten_without_dragging_the_clock_along() {
        let clock = clock();
        let far = Version::new((61_000 << 16) + 1, 7);
        let first = clock.stamp_after(1_000, Some(far));
        assert_eq!(first, Version::new(far.time() + 1, clock.node));
        assert_eq!(clock.stamp_after(1_000, Some(first)).time(), far.time() + 2);
        assert_eq!(clock.stamp(1_000).millis(), 1_000);
    }

    #[test]
    fn a_version_that_is_near_is_seen() {
        let clock = clock();
        let near = Version::new(61_000 << 16, 7);
        assert!(clock.stamp_after(1_000, Some(near)) > near);
        assert!(clock.stamp(1_000) > near);
    }

    #[test]
    fn threads_never_get_the_same_stamp() {
        let clock = clock();
        let stamps = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..10_000).map(|_| clock.stamp(7)).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(stamps.iter().collect::<std::collections::BTreeSet<_>>().len(), 40_000);
    }

    #[test]
    fn only_the_exact_text_is_a_version() {
        for bad in ["", "1-2", "+00000000000000f-00000001", "000000000000000F-00000001"] {
            assert_eq!(bad.parse::<Version>(), Err(VersionError), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn stamps_only_grow(
            steps in prop::collection::vec((any::<bool>(), 0..200_000_u64, 0..200_000_u64), 1..200),
        ) {
            let clock = clock();
            let mut greatest = 0;
            for (stamps, now_ms, seen_ms) in steps {
                if stamps {
                    let time = clock.stamp(now_ms).time();
                    prop_assert!(time > greatest);
                    greatest = time;
                } else if clock.observe(seen_ms << 16, now_ms) == Observed::Accepted {
                    greatest = greatest.max(seen_ms << 16);
                }
                prop_assert!(clock.latest() >= greatest);
                greatest = clock.latest();
            }
        }

        /// A clock that meets versions far ahead stays exactly where one is that does not meet them.
        #[test]
        fn stamps_after_what_exists_are_greater_and_the_clock_is_not_poisoned(
            steps in prop::collection::vec((0..200_000_u64, prop::option::of(0..400_000_u64)), 1..100),
        ) {
            let (clock, unharmed) = (clock(), clock());
            let mut greatest = None;
            for (now_ms, existing_ms) in steps {
                let existing = existing_ms.map(|ms| Version::new((ms << 16) + 3, u32::MAX));
                let is_far = existing.is_some_and(|existing| existing.time() > limit_at(now_ms));
                let stamp = clock.stamp_after(now_ms, existing);
                unharmed.stamp_after(now_ms, existing.filter(|_| !is_far));
                prop_assert_eq!(clock.latest(), unharmed.latest());
                prop_assert!(existing < Some(stamp));
                let previous = stamp.previous(now_ms as u32);
                prop_assert!(existing < Some(previous) && previous < stamp);
                if !is_far {
                    prop_assert!(greatest < Some(stamp));
                    greatest = Some(stamp);
                }
            }
        }

        #[test]
        fn text_and_version_are_the_same(time: u64, node: u32) {
            let version = Version::new(time, node);
            prop_assert_eq!(version.to_string().parse::<Version>(), Ok(version));
        }

        #[test]
        fn text_sorts_like_versions(a: (u64, u32), b: (u64, u32)) {
            let (a, b) = (Version::new(a.0, a.1), Version::new(b.0, b.1));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}
