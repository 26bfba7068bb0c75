//! Whether something sealed or proved has been seen before: a window of time and the nonces within it.
//!
//! Pure: the caller says what time it is. Invariant: what was admitted once is never admitted again, whatever is forgotten
//! meanwhile; for what may have been forgotten is too old.

use std::collections::BTreeSet;

/// How far the clocks of sender and receiver may be apart, and how long something may travel.
pub const WINDOW_MS: u64 = 30_000;
/// A node of a hundred hears about 1000 datagrams in a window.
const REMEMBERED_MAX: usize = 1 << 16;

/// Why something is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Its time is not now.
    #[error(
        "its time is {0} ms from this node's; at most {WINDOW_MS} ms are accepted, so look at the clocks"
    )]
    OutOfTime(u64),
    /// It was here before.
    #[error("a replay: it was here before")]
    Replayed,
    /// It may have been here before, at a time of which nothing is remembered any more.
    #[error(
        "it may be a replay: of its time nothing is remembered any more, because too much came at once or this node's \
         clock was set back (then start the node again)"
    )]
    Forgotten,
}

/// Remembers the nonces of the window.
#[derive(Debug, Default)]
pub struct Replays {
    seen: BTreeSet<(u64, u128)>,
    /// Up to this time nonces may have been forgotten.
    forgotten_ms: u64,
}

impl Replays {
    /// Lets in what was sealed or proved at `at_ms` under `nonce`, if it is new and of now. To be asked only when it is certain
    /// that a holder of the secret made it, or strangers fill the memory.
    ///
    /// # Errors
    /// See [`Stale`].
    pub fn admit(&mut self, at_ms: u64, nonce: u128, now_ms: u64) -> Result<(), Stale> {
        let oldest_ms = now_ms.saturating_sub(WINDOW_MS);
        let apart_ms = at_ms.abs_diff(now_ms);
        if apart_ms > WINDOW_MS {
            return Err(Stale::OutOfTime(apart_ms));
        }
        if at_ms <= self.forgotten_ms && self.forgotten_ms > 0 {
            return Err(Stale::Forgotten);
        }
        if !self.seen.insert((at_ms, nonce)) {
            return Err(Stale::Replayed);
        }
        while let Some(&(first_ms, _)) = self.seen.first()
            && (first_ms < oldest_ms || self.seen.len() > REMEMBERED_MAX)
        {
            self.seen.pop_first();
            self.forgotten_ms = self.forgotten_ms.max(first_ms);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000_000;

    #[test]
    fn something_is_let_in_once_and_only_in_its_time() {
        let mut replays = Replays::default();
        assert_eq!(replays.admit(NOW, 1, NOW), Ok(()));
        assert_eq!(replays.admit(NOW, 1, NOW), Err(Stale::Replayed));
        assert_eq!(replays.admit(NOW, 2, NOW), Ok(()));
        assert_eq!(replays.admit(NOW - WINDOW_MS, 3, NOW), Ok(()));
        assert_eq!(replays.admit(NOW + WINDOW_MS, 3, NOW), Ok(()));
        assert_eq!(replays.admit(NOW - WINDOW_MS - 1, 3, NOW), Err(Stale::OutOfTime(WINDOW_MS + 1)));
        assert_eq!(replays.admit(NOW + WINDOW_MS + 1, 3, NOW), Err(Stale::OutOfTime(WINDOW_MS + 1)));
    }

    #[test]
    fn what_no_longer_fits_counts_as_too_old() {
        let mut replays = Replays::default();
        for index in 0..=REMEMBERED_MAX as u64 {
            assert_eq!(replays.admit(NOW + index / 100, u128::from(index), NOW), Ok(()));
        }
        assert_eq!(replays.seen.len(), REMEMBERED_MAX);
        assert_eq!(replays.admit(NOW, 0, NOW), Err(Stale::Forgotten));
    }

    proptest! {
        /// However the clock jumps and things arrive.
        #[test]
        fn nothing_is_let_in_twice(steps in proptest::collection::vec((0..90_000_u64, 0..60_000_u64, 0..3_u128), 1..200)) {
            let (mut replays, mut admitted) = (Replays::default(), BTreeSet::new());
            for (clock, offset, nonce) in steps {
                let (now_ms, at_ms) = (NOW + clock, NOW + clock + offset - WINDOW_MS);
                if replays.admit(at_ms, nonce, now_ms).is_ok() {
                    prop_assert!(admitted.insert((at_ms, nonce)));
                }
            }
        }
    }
}
