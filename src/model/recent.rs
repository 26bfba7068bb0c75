//! Which writes were done lately, and under which version: one that is asked for again is not done again.
//!
//! An asker that got no answer, or one in doubt, has the write done once more, by whichever owner it reaches; each try has the
//! same [`Recent::mark`]. An owner that overwrote the key since then need not do it: see [`Recent::given_plain`]. Does not know
//! records. Invariant: a version is found only by the mark of the write that it came from, or by the key that it was given to.
//! What is forgotten early, because its place was taken, is done again, as if nothing were remembered.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Key, Version, mix};

/// How many writes are remembered: those of half a second at 16 000 a second. An asker tries again within milliseconds of being
/// told, and within 150 ms where it is not. 1.4 MiB in all.
const PLACES: usize = 8192;

/// How long a write is remembered: longer than any request may take.
const LIFE_MS: u64 = 60_000;

/// The writes that a node has done or copied lately.
#[derive(Debug, Default)]
pub struct Recent {
    by_mark: Places<(Done, u64)>,
    /// This node's own writes, by key.
    given: Places<Given>,
    /// Versions that were replaced by records whose writers may not have seen them.
    hidden: Places<Noted>,
}

/// What a node knows of a write that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The version under which it was done.
    pub version: Version,
    /// What it replaced at this node.
    pub on: Option<Version>,
    /// Whether its writer had that in view. If a node does not know, it says no.
    pub is_clear: bool,
}

#[derive(Clone, Copy, Debug)]
struct Noted {
    version: Version,
    at_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Given {
    last: Noted,
    /// The last one without a condition.
    plain: Option<Noted>,
}

impl Recent {
    /// What tells the write of a key from all others. `request` is the number of the request that it belongs to, which no other
    /// one in the cluster has; a request writes a key once.
    #[must_use]
    pub fn mark(request: u64, key: &Key) -> u64 {
        mix::hash(request, key.as_str().as_bytes()).max(1)
    }

    /// Remembers that a write was done. What it replaced is seen when it first arrives: a copy that comes twice finds itself.
    pub fn note(&self, mark: u64, done: Done, now_ms: u64) {
        if mark != 0 {
            self.by_mark.change(mark, |former| {
                let former = former.map(|(former, _)| former).filter(|former| former.version == done.version);
                (former.unwrap_or(done), now_ms)
            });
        }
    }

    /// What became of a write, if that is known.
    #[must_use]
    pub fn done(&self, mark: u64, now_ms: u64) -> Option<Done> {
        let (done, at_ms) = self.by_mark.find(mark)?;
        (now_ms.saturating_sub(at_ms) <= LIFE_MS).then_some(done)
    }

    /// Remembers the version that this node gives a key, in a plain write or in a conditional one.
    pub fn note_given(&self, key: &Key, version: Version, is_plain: bool, now_ms: u64) {
        let last = Noted { version, at_ms: now_ms };
        self.given.change(Recent::mark(0, key), |given| {
            let plain = if is_plain { Some(last) } else { given.and_then(|given| given.plain) };
            Given { last, plain }
        });
    }

    /// The last version that this node gave a key in a plain write after that time, if that is known.
    #[must_use]
    pub fn given_plain(&self, key: &Key, after_ms: u64) -> Option<Version> {
        let plain = self.given.find(Recent::mark(0, key))?.plain?;
        (plain.at_ms > after_ms).then_some(plain.version)
    }

    /// Remembers that a newer record replaced this version of a key. The writer of that record may not have seen this version.
    pub fn note_hidden(&self, key: &Key, version: Version, now_ms: u64) {
        self.hidden.note(Recent::mark(0, key), Noted { version, at_ms: now_ms });
    }

    /// Whether that version is the last one of the key that was replaced in this way.
    #[must_use]
    pub fn is_hidden(&self, key: &Key, version: Version) -> bool {
        self.hidden.find(Recent::mark(0, key)).is_some_and(|hidden| hidden.version == version)
    }

    /// Whether this node gave a key that version when it knew already that a write was done.
    #[must_use]
    pub fn is_given_since(&self, key: &Key, version: Version, mark: u64) -> bool {
        let given = self.given.find(Recent::mark(0, key)).filter(|given| given.last.version == version);
        given.is_some_and(|given| self.by_mark.find(mark).is_some_and(|(_, at_ms)| at_ms < given.last.at_ms))
    }
}

/// What is remembered of each mark; a later one takes the place of an earlier one.
#[derive(Debug)]
struct Places<T>(Box<[Place<T>]>);

/// A mark, and what is remembered of it.
type Place<T> = Mutex<Option<(u64, T)>>;

impl<T> Default for Places<T> {
    fn default() -> Places<T> {
        Places((0..PLACES).map(|_| Mutex::default()).collect())
    }
}

impl<T: Copy> Places<T> {
    fn note(&self, mark: u64, what: T) {
        *self.place(mark).lock() = Some((mark, what));
    }

    fn change(&self, mark: u64, change: impl FnOnce(Option<T>) -> T) {
        let mut place = self.place(mark).lock();
        let former = place.filter(|(held, _)| *held == mark).map(|(_, what)| what);
        *place = Some((mark, change(former)));
    }

    fn find(&self, mark: u64) -> Option<T> {
        self.place(mark).lock().filter(|(held, _)| *held == mark).map(|(_, what)| what)
    }

    fn place(&self, mark: u64) -> &Place<T> {
        &self.0[mark as usize % self.0.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clear(version: Version) -> Done {
        Done { version, on: None, is_clear: true }
    }

    #[test]
    fn a_write_is_found_by_its_mark_alone_until_its_time_is_over() {
        let recent = Recent::default();
        let key = |text: &str| Key::parse(text).unwrap();
        let (mine, version) = (Recent::mark(7, &key("a")), Version::new(5, 1));
        assert_eq!(recent.done(mine, 0), None);
        recent.note(mine, clear(version), 1000);
        assert_eq!(recent.done(mine, 1000), Some(clear(version)));
        assert_eq!(recent.done(mine, 1000 + LIFE_MS), Some(clear(version)));
        assert_eq!(recent.done(mine, 1001 + LIFE_MS), None);
        assert_eq!(recent.done(Recent::mark(8, &key("a")), 1000), None, "another request");
        assert_eq!(recent.done(Recent::mark(7, &key("b")), 1000), None, "another key of the request");
    }

    #[test]
    fn what_a_write_replaced_is_said_of_its_first_copy() {
        let (recent, version) = (Recent::default(), Version::new(5, 1));
        let unclear = Done { is_clear: false, ..clear(version) };
        recent.note(3, clear(version), 0);
        recent.note(3, unclear, 1);
        assert_eq!(recent.done(3, 1), Some(clear(version)));
        recent.note(4, unclear, 0);
        recent.note(4, clear(version), 1);
        assert_eq!(recent.done(4, 1), Some(unclear));
        recent.note(4, clear(Version::new(6, 1)), 2);
        assert_eq!(recent.done(4, 2), Some(clear(Version::new(6, 1))), "done once more");
    }

    #[test]
    fn what_takes_a_place_is_not_taken_for_what_was_there() {
        let recent = Recent::default();
        let (mine, other) = (3, 3 + PLACES as u64);
        recent.note(mine, clear(Version::new(5, 1)), 0);
        recent.note(other, clear(Version::new(6, 1)), 0);
        assert_eq!(recent.done(mine, 0), None);
        assert_eq!(recent.done(other, 0), Some(clear(Version::new(6, 1))));
    }

    #[test]
    fn what_is_no_write_of_a_client_is_not_remembered() {
        let recent = Recent::default();
        recent.note(0, clear(Version::new(5, 1)), 0);
        assert_eq!(recent.done(0, 0), None);
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
        recent.note(mark, clear(Version::new(5, 2)), 1001);
        assert!(!recent.is_given_since(&key, given, mark), "perhaps it came later");
        recent.note(mark, clear(Version::new(5, 2)), 1000);
        assert!(recent.is_given_since(&key, given, mark));
        assert!(!recent.is_given_since(&key, Version::new(7, 1), mark), "another one's");
    }
}
