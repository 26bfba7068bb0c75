//! Which writes were done lately, and under which version: one that is asked for again is not done again. And which versions gave
//! way lately to records whose writers may not have seen them.
//!
//! An asker that got no answer, or one in doubt, has the write done once more, by whichever owner it reaches; each try has the
//! same [`Recent::mark`]. An owner that overwrote the key since then need not do it: see [`Recent::given_plain`]. Does not know
//! records. Invariant: a version is found only by the mark of the write that it came from, or by the key that it was given to.
//! What is forgotten early, because its place was taken, is done again, as if nothing were remembered.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Key, Version, mix};

/// How many writes are remembered: those of half a second at 16 000 a second. An asker tries again within milliseconds of being
/// told, and within 150 ms where it is not. 1.6 MiB in all.
const PLACES: usize = 8192;

/// How long a write is remembered: longer than any request may take.
const LIFE_MS: u64 = 60_000;

/// The writes that a node has done or copied lately.
#[derive(Debug, Default)]
pub struct Recent {
    by_mark: Places<(Done, u64)>,
    /// This node's own writes, by key.
    given: Places<Given>,
    /// What gave way unseen, by key.
    unseen: Places<Unseen>,
}

/// What a node knows of a write that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The version under which it was done.
    pub version: Version,
    /// What it replaced, as far as this node knows: the one that decided it does.
    pub on: Option<Version>,
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

/// Versions of a key that were replaced by records whose writers may not have seen them.
#[derive(Clone, Copy, Debug)]
struct Unseen {
    newest: Version,
    /// The last one of which nobody told the writer of the record.
    hidden: Option<Version>,
    at_ms: u64,
}

impl Unseen {
    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) > LIFE_MS
    }
}

impl Recent {
    /// What tells the write of a key from all others. `request` is the number of the request that it belongs to, which no other
    /// one in the cluster has; a request writes a key once.
    #[must_use]
    pub fn mark(request: u64, key: &Key) -> u64 {
        mix::hash(request, key.as_str().as_bytes()).max(1)
    }

    /// Remembers that a write was done. What it replaced is remembered even if somebody who does not know it says it again.
    pub fn note(&self, mark: u64, done: Done, now_ms: u64) {
        if mark != 0 {
            self.by_mark.change(mark, |former| {
                let former = former.map(|(former, _)| former).filter(|former| former.version == done.version);
                (Done { on: done.on.or(former.and_then(|former| former.on)), ..done }, now_ms)
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

    /// Remembers that a newer record replaced this version of a key, or came before it. The writer of that record may not have seen
    /// this version, and is told.
    pub fn note_unseen(&self, key: &Key, version: Version, now_ms: u64) {
        let mark = Recent::mark(0, key);
        self.unseen.at(mark, |place| match place {
            // Of two keys the first one stays. Nothing is known of the other one as long as its own note would be good.
            Some((held, other)) if *held != mark && !other.is_over(now_ms) => other.at_ms = now_ms,
            _ => {
                let former = place.filter(|(held, _)| *held == mark).map(|(_, former)| former);
                let newest = former.map_or(version, |former| former.newest.max(version));
                let hidden = former.and_then(|former| former.hidden);
                *place = Some((mark, Unseen { newest, hidden, at_ms: now_ms }));
            }
        });
    }

    /// The same if nobody tells the writer. It takes the place of another key's note.
    pub fn note_hidden(&self, key: &Key, version: Version, now_ms: u64) {
        self.unseen.change(Recent::mark(0, key), |former| Unseen {
            newest: former.map_or(version, |former| former.newest.max(version)),
            hidden: Some(version),
            at_ms: now_ms,
        });
    }

    /// Whether that version is the last one of the key that was replaced without a word to the writer.
    #[must_use]
    pub fn is_hidden(&self, key: &Key, version: Version) -> bool {
        self.unseen.find(Recent::mark(0, key)).is_some_and(|unseen| unseen.hidden == Some(version))
    }

    /// The newest version of a key that gave way lately to a record whose writer may not have seen it; if that is not known, a
    /// version that is newer than all.
    #[must_use]
    pub fn unseen(&self, key: &Key, now_ms: u64) -> Option<Version> {
        let mark = Recent::mark(0, key);
        self.unseen.at(mark, |place| match place.filter(|(_, unseen)| !unseen.is_over(now_ms)) {
            None => None,
            Some((held, unseen)) if held == mark => Some(unseen.newest),
            Some(_) => Some(Version::new(u64::MAX, u32::MAX)),
        })
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
    /// Looks at the place of a mark, and changes it.
    fn at<R>(&self, mark: u64, look: impl FnOnce(&mut Option<(u64, T)>) -> R) -> R {
        look(&mut self.place(mark).lock())
    }

    fn change(&self, mark: u64, change: impl FnOnce(Option<T>) -> T) {
        self.at(mark, |place| {
            let former = place.filter(|(held, _)| *held == mark).map(|(_, what)| what);
            *place = Some((mark, change(former)));
        });
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

    fn done(version: Version) -> Done {
        Done { version, on: None }
    }

    #[test]
    fn a_write_is_found_by_its_mark_alone_until_its_time_is_over() {
        let recent = Recent::default();
        let key = |text: &str| Key::parse(text).unwrap();
        let (mine, version) = (Recent::mark(7, &key("a")), Version::new(5, 1));
        assert_eq!(recent.done(mine, 0), None);
        recent.note(mine, done(version), 1000);
        assert_eq!(recent.done(mine, 1000), Some(done(version)));
        assert_eq!(recent.done(mine, 1000 + LIFE_MS), Some(done(version)));
        assert_eq!(recent.done(mine, 1001 + LIFE_MS), None);
        assert_eq!(recent.done(Recent::mark(8, &key("a")), 1000), None, "another request");
        assert_eq!(recent.done(Recent::mark(7, &key("b")), 1000), None, "another key of the request");
    }

    #[test]
    fn what_a_write_replaced_is_not_forgotten_when_its_copy_comes_back() {
        let (recent, version, on) = (Recent::default(), Version::new(5, 1), Some(Version::new(4, 1)));
        recent.note(3, Done { on, ..done(version) }, 0);
        recent.note(3, done(version), 1);
        assert_eq!(recent.done(3, 1), Some(Done { on, ..done(version) }));
        recent.note(3, done(Version::new(6, 1)), 2);
        assert_eq!(recent.done(3, 2), Some(done(Version::new(6, 1))), "done once more");
    }

    #[test]
    fn what_takes_a_place_is_not_taken_for_what_was_there() {
        let recent = Recent::default();
        let (mine, other) = (3, 3 + PLACES as u64);
        recent.note(mine, done(Version::new(5, 1)), 0);
        recent.note(other, done(Version::new(6, 1)), 0);
        assert_eq!(recent.done(mine, 0), None);
        assert_eq!(recent.done(other, 0), Some(done(Version::new(6, 1))));
    }

    #[test]
    fn what_is_no_write_of_a_client_is_not_remembered() {
        let recent = Recent::default();
        recent.note(0, done(Version::new(5, 1)), 0);
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
        recent.note_unseen(&key, Version::new(6, 1), 1000);
        assert!(recent.is_hidden(&key, Version::new(5, 1)) && !recent.is_hidden(&key, Version::new(6, 1)));
    }

    #[test]
    fn the_newest_that_gave_way_is_known_or_said_to_be_unknown() {
        let recent = Recent::default();
        let place = |key: &Key| Recent::mark(0, key) as usize % PLACES;
        let named = |number: usize| Key::parse(format!("k{number}")).unwrap();
        let key = named(0);
        let other = (1..).map(named).find(|other| place(other) == place(&key)).unwrap();
        assert_eq!(recent.unseen(&key, 1000), None);
        recent.note_unseen(&key, Version::new(6, 1), 1000);
        recent.note_hidden(&key, Version::new(5, 1), 1000);
        assert_eq!(recent.unseen(&key, 1000 + LIFE_MS), Some(Version::new(6, 1)));
        assert_eq!(recent.unseen(&key, 1001 + LIFE_MS), None);
        assert!(recent.unseen(&other, 1000) > Some(Version::new(u64::MAX, 0)));
        recent.note_unseen(&other, Version::new(7, 1), 1000);
        assert_eq!(recent.unseen(&key, 1000), Some(Version::new(6, 1)), "it has the place");
        recent.note_unseen(&other, Version::new(7, 1), 1500);
        assert!(recent.unseen(&other, 1500 + LIFE_MS).is_some(), "for as long as its own note");
        recent.note_unseen(&other, Version::new(7, 1), 1501 + LIFE_MS);
        assert_eq!(recent.unseen(&other, 1501 + LIFE_MS), Some(Version::new(7, 1)));
    }

    #[test]
    fn a_version_has_a_write_in_view_that_was_known_before_it_was_given() {
        let (recent, key) = (Recent::default(), Key::parse("a").unwrap());
        let (mark, given) = (Recent::mark(7, &key), Version::new(6, 1));
        recent.note_given(&key, given, false, 1001);
        assert!(!recent.is_given_since(&key, given, mark), "nothing is known of the write");
        recent.note(mark, done(Version::new(5, 2)), 1001);
        assert!(!recent.is_given_since(&key, given, mark), "perhaps it came later");
        recent.note(mark, done(Version::new(5, 2)), 1000);
        assert!(recent.is_given_since(&key, given, mark));
        assert!(!recent.is_given_since(&key, Version::new(7, 1), mark), "another one's");
    }
}
