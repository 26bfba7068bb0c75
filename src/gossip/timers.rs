//! One ordered heap for all of foca's timers.
//!
//! Owns no clock: instants come in as arguments. Invariant: timers fire in order of deadline, those of the same instant in
//! foca's own order (a probe's indirect stage before the next probe), then in order of submission.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use foca::Timer;
use tokio::time::Instant;

use super::identity::Identity;

#[derive(PartialEq, Eq)]
struct Pending {
    at: Instant,
    sequence: u64,
    timer: Timer<Identity>,
}

impl Ord for Pending {
    fn cmp(&self, other: &Pending) -> std::cmp::Ordering {
        self.at
            .cmp(&other.at)
            .then_with(|| self.timer.cmp(&other.timer))
            .then_with(|| self.sequence.cmp(&other.sequence))
    }
}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Pending) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The pending timers.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<Pending>>,
    submitted: u64,
}

impl Timers {
    pub(super) fn submit(&mut self, at: Instant, timer: Timer<Identity>) {
        self.submitted += 1;
        self.heap.push(Reverse(Pending { at, sequence: self.submitted, timer }));
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(first)| first.at)
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer<Identity>> {
        if self.next_deadline()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(due)| due.timer)
    }

    /// Moves every deadline, as if the clock had stood still for `lateness`.
    pub(super) fn shift(&mut self, lateness: Duration) {
        self.heap = self
            .heap
            .drain()
            .map(|Reverse(pending)| Reverse(Pending { at: pending.at + lateness, ..pending }))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::model::NodeId;

    fn identity() -> Identity {
        Identity::new(NodeId::parse("a").unwrap(), SocketAddr::from(([127, 0, 0, 1], 1)), 1, 1)
    }

    #[test]
    fn timers_fire_by_deadline_then_by_focas_order_then_by_age() {
        let (start, mut timers) = (Instant::now(), Timers::default());
        let later = start + Duration::from_millis(5);
        timers.submit(later, Timer::PeriodicGossip(1));
        timers.submit(start, Timer::RemoveDown(identity()));
        timers.submit(start, Timer::ProbeRandomMember(1));
        timers.submit(start, Timer::SendIndirectProbe { probed_id: identity(), token: 1 });
        timers.submit(start, Timer::ProbeRandomMember(2));
        let mut fired = Vec::new();
        while let Some(timer) = timers.pop_due(start) {
            fired.push(timer);
        }
        assert!(matches!(
            fired[..],
            [
                Timer::SendIndirectProbe { .. },
                Timer::ProbeRandomMember(1),
                Timer::ProbeRandomMember(2),
                Timer::RemoveDown(_)
            ]
        ));
        assert_eq!(timers.next_deadline(), Some(later));
        assert!(timers.pop_due(start + Duration::from_millis(4)).is_none());
    }

    #[test]
    fn a_shift_keeps_the_distance_between_timers() {
        let (start, mut timers) = (Instant::now(), Timers::default());
        timers.submit(start + Duration::from_millis(100), Timer::PeriodicGossip(1));
        timers.submit(start + Duration::from_millis(700), Timer::PeriodicAnnounce(1));
        timers.shift(Duration::from_secs(10));
        assert!(timers.pop_due(start + Duration::from_millis(10_099)).is_none());
        assert!(timers.pop_due(start + Duration::from_millis(10_100)).is_some());
        assert_eq!(timers.next_deadline(), Some(start + Duration::from_millis(10_700)));
    }
}
