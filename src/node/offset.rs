//! How far the clock of a member is from this node's, and when that is worth a warning.
//!
//! Versions are made of wall clocks: of two writes that do not know of each other, the one by the clock that is ahead wins. Sealed
//! datagrams and proofs are refused when clocks are too far apart. No duration depends on a wall clock. Invariant: an offset that
//! a long round trip can explain is not reported.

use std::time::Duration;

use tracing::{info, warn};

use crate::model::NodeId;

/// A clock this far off is warned of.
const APART_MS: u64 = 1000;
/// A clock that was warned of counts as right again when it is at most this far off.
const TOGETHER_MS: u64 = 500;

/// How far the clock of a member is from this node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    /// Milliseconds by which it is ahead, as far as the last round trip tells.
    pub(super) ahead_ms: i64,
    /// A warning was given, and the clock is not right again.
    is_apart: bool,
}

/// What is to be said of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Apart,
    Together,
}

impl Offset {
    /// After a round trip whose answer, by the clock of the member, was sent at `theirs_ms`, and came at `ours_ms`.
    pub(super) fn measure(
        former: Option<Offset>,
        theirs_ms: u64,
        ours_ms: u64,
        round_trip: Duration,
    ) -> (Offset, Option<News>) {
        // It was sent somewhere within the round trip.
        let unsure_ms = round_trip.as_millis() as i64 / 2;
        let ahead_ms = (theirs_ms as i64).saturating_sub(ours_ms as i64).saturating_add(unsure_ms);
        let off_ms = ahead_ms.unsigned_abs();
        let was_apart = former.is_some_and(|former| former.is_apart);
        let news = if !was_apart && off_ms >= APART_MS + unsure_ms as u64 {
            Some(News::Apart)
        } else if was_apart && off_ms + unsure_ms as u64 <= TOGETHER_MS {
            Some(News::Together)
        } else {
            None
        };
        let is_apart = news.map_or(was_apart, |news| news == News::Apart);
        (Offset { ahead_ms, is_apart }, news)
    }

    pub(super) fn tell(self, member: &NodeId, news: News) {
        let (off, way) = match self.ahead_ms {
            ahead_ms @ 0.. => (ahead_ms, "ahead of"),
            ahead_ms => (-ahead_ms, "behind"),
        };
        let off = off as f64 / 1000.0;
        match news {
            News::Apart => warn!(
                %member,
                "the clock of {member} is {off:.1} s {way} this node's: of two writes at the same time the one by the clock that is ahead stays"
            ),
            News::Together => info!(%member, "the clock of {member} agrees with this node's again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_764_000_000_000;

    fn measure(former: Option<Offset>, ahead_ms: i64, round_trip_ms: u64) -> (Offset, Option<News>) {
        let half = Duration::from_millis(round_trip_ms / 2);
        let sent_ms = NOW_MS - half.as_millis() as u64;
        Offset::measure(former, sent_ms.saturating_add_signed(ahead_ms), NOW_MS, 2 * half)
    }

    #[test]
    fn a_clock_a_second_off_is_told_once_until_it_is_right_again() {
        let (offset, news) = measure(None, -999, 2);
        assert_eq!((offset.ahead_ms, news), (-999, None));
        let (offset, news) = measure(Some(offset), -20_000, 2);
        assert_eq!((offset.ahead_ms, news), (-20_000, Some(News::Apart)));
        let (offset, news) = measure(Some(offset), -600, 2);
        assert_eq!(news, None);
        let (offset, news) = measure(Some(offset), 20, 2);
        assert_eq!(news, Some(News::Together));
        assert_eq!(measure(Some(offset), 1001, 2).1, Some(News::Apart));
    }

    #[test]
    fn what_a_long_round_trip_could_be_the_reason_of_is_not_told() {
        assert_eq!(measure(None, 1200, 500).1, None);
        let (apart, _) = measure(None, 1250, 500);
        assert_eq!(measure(Some(apart), 400, 500).1, None);
    }
}
