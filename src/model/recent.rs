//! Which writes were done lately, and under which version: one that is asked for again is not done again.
//!
//! An asker that got no answer, or one in doubt, has the write done once more, by whichever owner it reaches; each try has the
//! same [`Recent::mark`]. An owner that overwrote the key since then need not do it: see [`Recent::given_plain`]. Does not know
//! records. Invariant: a version is found only by the mark of the write that it came from, or by the key that it was given to.
//! What is forgotten early, because its place was taken, is done again, as if nothing were remembered.

use parking_lot::Mutex;

use super::{Key, Version, mix};

/// How many writes are remembered: those of half a second at 16 000 a second. An asker tries again within milliseconds of being
/// told, and within 150 ms where it is not. 256 KiB.
const PLACES: usize = 8192;

/// How long a write is remembered: longer than any request may take.
const LIFE_MS: u64 = 60_000;

/// The writes that a node has done or copied lately.
#[derive(Debug, Default)]
pub struct Recent {
    by_mark: Places,
    /// Of this node's own writes the last one of a key.
    given: Places,
    /// The last one without a condition.
    given_plain: Places,
    /// Versions that were replaced by records whose writers may not have seen them.
    hidden: Places,
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
        self.by_mark.note(mark, version, now_ms);
    }

    /// The version under which a write was done, if that is known.
    #[must_use]
    pub fn version(&self, mark: u64, now_ms: u64) -> Option<Version> {
        let done = self.by_mark.find(mark)?;
        (now_ms.saturating_sub(done.at_ms) <= LIFE_MS).then_some(done.version)
    }

    /// Remembers the version that this node gives a key, in a plain write or in a conditional one.
    pub fn note_given(&self, key: &Key, version: Version, is_plain: bool, now_ms: u64) {
        let mark = Recent::mark(0, key);
        self.given.note(mark, version, now_ms);
        if is_plain {
            self.given_plain.note(mark, version, now_ms);
        }
    }

    /// The last version that this node gave a key in a plain write after that time, if that is known.
    #[must_use]
    pub fn given_plain(&self, key: &Key, after_ms: u64) -> Option<Version> {
        let given = self.given_plain.find(Recent::mark(0, key))?;
        (given.at_ms > after_ms).then_some(given.version)
    }

    /// Remembers that a newer record replaced this version of a key. The writer of that record may not have seen this version.
    pub fn note_hidden(&self, key: &Key, version: Version, now_ms: u64) {
        self.hidden.note(Recent::mark(0, key), version, now_ms);
    }

    /// Whether that version is the last one of the key that was replaced in this way.
    #[must_use]
    pub fn is_hidden(&self, key: &Key, version: Version) -> bool {
        self.hidden.find(Recent::mark(0, key)).is_some_and(|hidden| hidden.version == version)
    }

    /// Whether this node gave a key that version when it knew already that a write was done.
    #[must_use]
    pub fn is_given_since(&self, key: &Key, version: Version, mark: u64) -> bool {
        let given = self.given.find(Recent::mark(0, key)).filter(|given| given.version == version);
        given.is_some_and(|given| self.by_mark.find(mark).is_some_and(|done| done.at_ms < given.at_ms))
    }
}

#[derive(Debug)]
struct Places(Box<[Mutex<Done>]>);

/// What a place remembers; nothing at first, as no mark is zero.
#[derive(Clone, Copy, Debug)]
struct Done {
    mark: u64,
    version: Version,
    at_ms: u64,
}

impl Default for Places {
    fn default() -> Places {
        let nothing = || Mutex::new(Done { mark: 0, version: Version::new(0, 0), at_ms: 0 });
        Places((0..PLACES).map(|_| nothing()).collect())
    }
}

impl Places {
    fn note(&self, mark: u64, version: Version, at_ms: u64) {
        if mark != 0 {
            *self.place(mark).lock() = Done { mark, version, at_ms };
        }
    }

    fn find(&self, mark: u64) -> Option<Done> {
        let done = *self.place(mark).lock();
        (mark != 0 && done.mark == mark).then_some(done)
    }

    fn place(&self, mark: u64) -> &Mutex<Done> {
        &self.0[mark as usize % self.0.len()]
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

    #[test]
    fn the_last_version_that_was_given_is_known_for_as_long_as_is_asked_for() {
        let (recent, key) = (Recent::default(), Key::parse("a").unwrap());
        recent.note_given(&key, Version::new(5, 1), true, 1000);
        assert_eq!(recent.given_plain(&key, 999), Some(Version::new(5, 1)));
        assert_eq!(recent.given_plain(&key, 1000), None);
        recent.note_given(&key, Version::new(6, 1), false, 1001);
        assert_eq!(recent.given_plain(&key, 999), Some(Version::new(5, 1)));
        assert_eq!(recent.given_plain(&Key::parse("b").unwrap(), 0), None);
    }

    #[test]
    fn a_version_that_gave_way_unseen_is_known() {
        let (recent, key) = (Recent::default(), Key::parse("a").unwrap());
        recent.note_hidden(&key, Version::new(5, 1), 1000);
        assert!(recent.is_hidden(&key, Version::new(5, 1)));
        assert!(!recent.is_hidden(&key, Version::new(6, 1)));
    }

    #[test]
    fn a_version_has_a_write_in_view_that_was_known_before_it_was_given() {
        let (recent, key) = (Recent::default(), Key::parse("a").unwrap());
        let (mark, given) = (Recent::mark(7, &key), Version::new(6, 1));
        recent.note_given(&key, given, false, 1001);
        assert!(!recent.is_given_since(&key, given, mark), "nothing is known of the write");
        recent.note(mark, Version::new(5, 2), 1001);
        assert!(!recent.is_given_since(&key, given, mark), "perhaps it came later");
        recent.note(mark, Version::new(5, 2), 1000);
        assert!(recent.is_given_since(&key, given, mark));
        assert!(!recent.is_given_since(&key, Version::new(7, 1), mark), "another one's");
    }
}
