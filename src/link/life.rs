//! Signs of life of a peer: when something last arrived from it, on whichever connection.
//!
//! Says nothing of membership; that is for gossip, which takes longer and asks others too. Invariant: whatever arrives ends
//! the silence.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::SILENT_FOR;

/// Shared by the connections to one peer.
#[derive(Debug)]
pub(super) struct Life {
    epoch: Instant,
    /// Milliseconds since `epoch`, as the next.
    heard_ms: AtomicU64,
    /// By a detour.
    heard_through_ms: AtomicU64,
    silent_until_ms: AtomicU64,
}

impl Default for Life {
    fn default() -> Life {
        Life {
            epoch: Instant::now(),
            heard_ms: AtomicU64::new(0),
            heard_through_ms: AtomicU64::new(0),
            silent_until_ms: AtomicU64::new(0),
        }
    }
}

impl Life {
    /// Something has arrived.
    pub(super) fn hear(&self) {
        self.heard_ms.store(self.since_epoch(Instant::now()), Ordering::Relaxed);
        self.silent_until_ms.store(0, Ordering::Relaxed);
    }

    /// Something has arrived by a detour.
    pub(super) fn hear_through(&self) {
        self.heard_through_ms.store(self.since_epoch(Instant::now()), Ordering::Relaxed);
    }

    /// When something last arrived at all.
    pub(super) fn heard_by_any_way_at(&self) -> Instant {
        let through_ms = self.heard_through_ms.load(Ordering::Relaxed);
        self.heard_at().max(self.epoch + Duration::from_millis(through_ms))
    }

    pub(super) fn heard_at(&self) -> Instant {
        self.epoch + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }

    /// Nothing has arrived although the peer was asked: for a while it is not asked again.
    pub(super) fn fall_silent(&self, now: Instant) {
        self.silent_until_ms.store(self.since_epoch(now + SILENT_FOR), Ordering::Relaxed);
    }

    pub(super) fn is_silent(&self) -> bool {
        let until = self.silent_until_ms.load(Ordering::Relaxed);
        until > 0 && self.since_epoch(Instant::now()) < until
    }

    fn since_epoch(&self, at: Instant) -> u64 {
        at.duration_since(self.epoch).as_millis() as u64
    }
}
