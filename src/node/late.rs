//! How long a frame was under way: writes that arrive when nobody waits for them any more, as their asker has had another owner
//! do them, and times to live that ran on.
//!
//! A frame may wait at a node that is stopped, or on a way that is cut, and carries only the time that is left until its
//! deadline. So the sender says what the receiver's own clock showed at least when the frame was sent, by the questions
//! for a lease that it has from there. Invariant: that is never later than it was.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::Node;
use crate::link::{BULK_BYTES, Claim, SILENCE};
use crate::model::NodeId;

/// How old a write may be when it arrives. A segment that was lost is sent again after 200 ms at the earliest, and the asker has
/// given up by then if nothing else came from the owner; where all is well but slow, it is refused and settled, not lost.
const LATE: Duration = SILENCE.checked_mul(2).expect("short");
/// For how long a sight counts if there is a later one that says less. A clock that stood still is found out by then.
const SIGHT: Duration = Duration::from_secs(1);

/// What this node has seen of the clocks of others.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    seen: Mutex<BTreeMap<NodeId, Sight>>,
}

/// A process had been running for at least so long at that moment of this node's own uptime.
#[derive(Clone, Copy, Debug)]
struct Sight {
    boot: u64,
    uptime_us: u64,
    at_us: u64,
}

impl Sight {
    fn uptime_us(&self, now_us: u64) -> u64 {
        self.uptime_us.saturating_add(now_us.saturating_sub(self.at_us))
    }

    fn is_fresh(&self, now_us: u64) -> bool {
        now_us.saturating_sub(self.at_us) < SIGHT.as_micros() as u64
    }
}

impl Clocks {
    /// A process has said how long it has been running.
    pub(super) fn see(&self, member: &NodeId, boot: u64, uptime_us: u64, now_us: u64) {
        let mut seen = self.seen.lock();
        // What was long under way says less than what is known already.
        let is_better =
            |old: &Sight| old.boot == boot && old.uptime_us(now_us) > uptime_us && old.is_fresh(now_us);
        if !seen.get(member).is_some_and(is_better) {
            seen.insert(member.clone(), Sight { boot, uptime_us, at_us: now_us });
        }
    }

    /// How long a member's process has been running at least.
    fn uptime_ms(&self, member: &NodeId, now_us: u64) -> Option<u64> {
        self.seen.lock().get(member).map(|sight| sight.uptime_us(now_us) / 1000)
    }

    /// The same, if the process has said something lately. Its machine may have been suspended since, which counts there.
    fn fresh_uptime_ms(&self, member: &NodeId, now_us: u64) -> Option<u64> {
        let seen = self.seen.lock();
        let sight = seen.get(member).filter(|sight| sight.is_fresh(now_us));
        sight.map(|sight| sight.uptime_us(now_us) / 1000)
    }

    /// When, by this node's clock, a member answered at the earliest: after it was asked, and so long ago as its clock has gone on
    /// since at least.
    fn answered_at_ms(&self, member: &NodeId, at_ms: u64, asked_ms: u64, now_us: u64) -> u64 {
        let there_ms = self.uptime_ms(member, now_us).unwrap_or(at_ms);
        // What is known may be of a former process, which had been running for longer.
        (now_us / 1000).saturating_sub(there_ms.saturating_sub(at_ms)).max(asked_ms)
    }

    /// Forgets those that are no members any more.
    pub(super) fn retain(&self, is_member: impl Fn(&NodeId) -> bool) {
        self.seen.lock().retain(|member, _| is_member(member));
    }
}

/// The present, for the times left in what is sent to a member.
#[derive(Clone, Copy)]
pub(super) struct SentAt {
    /// By this node's clock.
    pub(super) here_ms: u64,
    /// By the member's at least, if that is known.
    pub(super) there_ms: Option<u64>,
}

impl Node {
    /// The present here and at a member.
    pub(super) fn sent_now(&self, to: &NodeId) -> SentAt {
        let now_us = self.uptime_us();
        SentAt { here_ms: now_us / 1000, there_ms: self.0.clocks.fresh_uptime_ms(to, now_us) }
    }

    /// When, by this node's clock, the times were left in what came with [`SentAt::there_ms`].
    pub(super) fn left_at_ms(&self, sent_at_ms: Option<u64>) -> u64 {
        let now_ms = self.uptime_ms();
        // What was meant for a former process may be later than now.
        sent_at_ms.unwrap_or(now_ms).min(now_ms)
    }

    /// The same of an answer that a member gave at `at_ms` of its own clock, to a question that was asked at `asked_ms`.
    pub(super) fn answered_at_ms(&self, member: &NodeId, at_ms: u64, asked_ms: u64) -> u64 {
        self.0.clocks.answered_at_ms(member, at_ms, asked_ms, self.uptime_us())
    }

    /// What an owner's own time is at least, for a write with so long values that is sent now.
    pub(super) fn sent_at_ms(&self, owner: &NodeId, value_bytes: usize) -> Option<u64> {
        // Long ones take their time.
        (value_bytes <= BULK_BYTES).then(|| self.0.clocks.uptime_ms(owner, self.uptime_us())).flatten()
    }

    /// Whether the asker of a write has given it up.
    pub(super) fn is_late(&self, claim: Claim, now_ms: u64) -> bool {
        let Some(sent_at_ms) = claim.sent_at_ms else { return false };
        let old_ms = now_ms.saturating_sub(sent_at_ms);
        let has_slept = || self.woke_ms() > sent_at_ms;
        old_ms > LATE.as_millis() as u64 || old_ms > SILENCE.as_millis() as u64 && has_slept()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;
    const SIGHT_US: u64 = SIGHT.as_micros() as u64;

    #[test]
    fn a_clock_is_known_by_what_was_least_long_under_way() {
        let (clocks, start, member) = (Clocks::default(), 7 * MS, NodeId::parse("node1").unwrap());
        assert_eq!(clocks.uptime_ms(&member, start), None);
        clocks.see(&member, 1, 5_000_000, start);
        assert_eq!(clocks.uptime_ms(&member, start + 300 * MS), Some(5300));
        clocks.see(&member, 1, 5_100_000, start + 150 * MS);
        assert_eq!(clocks.uptime_ms(&member, start + 150 * MS), Some(5150), "50 ms under way");
        clocks.see(&member, 1, 5_299_000, start + 290 * MS);
        assert_eq!(clocks.uptime_ms(&member, start + 290 * MS), Some(5299), "there was a delay before");
    }

    #[test]
    fn an_answer_is_as_old_as_its_clock_says_and_never_older_than_its_question() {
        let (clocks, start, member) = (Clocks::default(), 7_000 * MS, NodeId::parse("node1").unwrap());
        let answered_at_ms = |at_ms| clocks.answered_at_ms(&member, at_ms, 6_900, start);
        assert_eq!(answered_at_ms(5_000), 7_000, "nothing is known");
        clocks.see(&member, 1, 5_000_000, start);
        assert_eq!(answered_at_ms(4_970), 6_970);
        assert_eq!(answered_at_ms(5_001), 7_000);
        assert_eq!(answered_at_ms(3), 6_900, "of a process that has just started");
    }

    #[test]
    fn a_clock_that_stood_still_and_one_that_began_anew_are_believed() {
        let (clocks, start, member) = (Clocks::default(), 7 * MS, NodeId::parse("node1").unwrap());
        clocks.see(&member, 1, 5_000_000, start);
        clocks.see(&member, 1, 5_000_001, start + SIGHT_US);
        assert_eq!(clocks.uptime_ms(&member, start + SIGHT_US), Some(5000));
        clocks.see(&member, 2, 3_000, start + SIGHT_US + MS);
        assert_eq!(clocks.uptime_ms(&member, start + SIGHT_US + MS), Some(3));
        clocks.retain(|_| false);
        assert_eq!(clocks.uptime_ms(&member, start), None);
    }
}
