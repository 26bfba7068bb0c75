//! Which writes were done lately, and under which version: one that is asked for again is not done again.
//!
//! An asker that got no answer, or one in doubt, has the write done once more, by whichever owner it reaches; each try has the
//! same [`Recent::mark`]. Does not know records. Invariant: a version is found only by the mark of the write that it came
//! from. What is forgotten early, because its place was taken, is done again, as if nothing were remembered.

use parking_lot::Mutex;

use super::{Key, Version, mix};

/// How many writes are remembered: those of half a second at 16 000 a second. An asker tries again within milliseconds of being
/// told, and within 150 ms where it is not. 256 KiB.
const PLACES: usize = 8192;

/// How long a write is remembered: longer than any request may take.
const LIFE_MS: u64 = 60_000;

/// The writes that a node has done or copied lately.
#[derive(Debug)]
pub struct Recent {
    places: Box<[Mutex<Done>]>,
}

/// What a place remembers; nothing at first, as no mark is zero.
#[derive(Clone, Copy, Debug)]
struct Done {
    mark: u64,
    version: Version,
    at_ms: u64,
}

impl Default for Recent {
    fn default() -> Recent {
        let nothing = || Mutex::new(Done { mark: 0, version: Version::new(0, 0), at_ms: 0 });
        Recent { places: (0..PLACES).map(|_| nothing()).collect() }
    }
}

impl Recent {
    /// What tells the write of a key from all others. `request` is the number of the request that it belongs to, which no other
    /// one in the cluster has; a request writes a key once.
    #[must_use]
    pub fn mark(request: u64, key: &Key) -> u64 {
        mix::hash(request, key.as_str().as_bytes()).max(1)
    }

    /// Remembers under which version a write was done.
    pub fn note(&self, mark: u64, version: Version, now_ms: u64) {
        if mark != 0 {
            *self.place(mark).lock() = Done { mark, version, at_ms: now_ms };
        }
    }

    /// The version under which a write was done, if that is known.
    #[must_use]
    pub fn version(&self, mark: u64, now_ms: u64) -> Option<Version> {
        let done = *self.place(mark).lock();
        let is_it = mark != 0 && done.mark == mark && now_ms.saturating_sub(done.at_ms) <= LIFE_MS;
        is_it.then_some(done.version)
    }

    fn place(&self, mark: u64) -> &Mutex<Done> {
        &self.places[mark as usize % self.places.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_found_by_its_mark_alone_until_its_time_is_over() {
        let recent = Recent::default();
        let key = |text: &str| Key::parse(text).unwrap();
        let (mine, version) = (Recent::mark(7, &key("a")), Version::new(5, 1));
        assert_eq!(recent.version(mine, 0), None);
        recent.note(mine, version, 1000);
        assert_eq!(recent.version(mine, 1000), Some(version));
        assert_eq!(recent.version(mine, 1000 + LIFE_MS), Some(version));
        assert_eq!(recent.version(mine, 1001 + LIFE_MS), None);
        assert_eq!(recent.version(Recent::mark(8, &key("a")), 1000), None, "another request");
        assert_eq!(recent.version(Recent::mark(7, &key("b")), 1000), None, "another key of the request");
    }

    #[test]
    fn what_takes_a_place_is_not_taken_for_what_was_there() {
        let recent = Recent::default();
        let (mine, other) = (3, 3 + PLACES as u64);
        recent.note(mine, Version::new(5, 1), 0);
        recent.note(other, Version::new(6, 1), 0);
        assert_eq!(recent.version(mine, 0), None);
        assert_eq!(recent.version(other, 0), Some(Version::new(6, 1)));
    }

    #[test]
    fn what_is_no_write_of_a_client_is_not_remembered() {
        let recent = Recent::default();
        recent.note(0, Version::new(5, 1), 0);
        assert_eq!(recent.version(0, 0), None);
    }
}
