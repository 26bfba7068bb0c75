//! Promises of slots: given to the members that ask, and asked for until a fence stands.
//!
//! What they are is said at [`Fence`]; [`super::fence`] keeps them, and [`super::decide`] acts behind them. Invariant: the leases
//! that a fence waits out are read after this owner has promised itself the slot: from then on no lease says any more that
//! another owner lacks nothing there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Node;
use super::fence::SlotFence;
use super::placement::Placement;
use crate::link::{Reply, Request};
use crate::model::{Fence, Fingerprint, Ledger, NodeId, Slot, mix};
use crate::net::spawn;

/// How long a member may take to promise.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// How often promises are asked for again while a lease is waited out.
const RENEWAL: Duration = Duration::from_millis(Ledger::LEASE_MS / 3);
/// An owner that got no majority waits this long, and at random up to as much again, so that another owner can get one.
const REST_MS: u64 = 40;

impl Node {
    /// Answers a member that asks for a promise.
    pub(super) fn promise(&self, to: &NodeId, slot: Slot, theirs: Fingerprint, asked_ms: u64) -> bool {
        let now_ms = self.uptime_ms();
        // The process before this one may have given one to somebody else.
        let may_give = self.is_admitted() && !self.is_leaving() && now_ms > Ledger::LEASE_MS;
        may_give && theirs == self.ring().fingerprint() && self.0.fences.give(slot, to, asked_ms, now_ms)
    }

    /// Puts up a fence, or keeps it up. None if that cannot be had now.
    pub(super) async fn raise(
        &self,
        placement: &Placement,
        slot: Slot,
        deadline: Instant,
    ) -> Option<Arc<SlotFence>> {
        let ring = placement.ring.fingerprint();
        let fence = self.0.fences.of(slot, self.uptime_ms());
        let _turn = timeout_at(deadline, fence.turn.lock()).await.ok()?;
        loop {
            let now_ms = self.uptime_ms();
            if fence.look(ring, |fence| fence.is_firm(now_ms)) {
                return Some(fence.clone());
            }
            if fence.rests(now_ms) || self.ring().fingerprint() != ring {
                return None;
            }
            self.ask_for_promises(placement, slot, &fence, deadline).await;
            let now_ms = self.uptime_ms();
            if fence.stands_since(ring, now_ms, now_ms) {
                return Some(fence.clone());
            }
            let Some(expected_ms) = fence.look(ring, |fence| fence.expected_ms(now_ms)) else {
                self.give_back(placement, slot, &fence);
                return None;
            };
            let until = self.instant_at(expected_ms).min(Instant::now() + RENEWAL);
            if until >= deadline {
                return None;
            }
            sleep_until(until).await;
        }
    }

    /// Asks every member for its promise, until the fence stands or all have answered.
    async fn ask_for_promises(
        &self,
        placement: &Placement,
        slot: Slot,
        fence: &SlotFence,
        deadline: Instant,
    ) {
        let (ring, asked_ms) = (placement.ring.fingerprint(), self.uptime_ms());
        if !self.0.fences.give(slot, self.id(), asked_ms, asked_ms) {
            return;
        }
        let goes_on = fence.look(ring, |fence| fence.has_promised(self.id(), asked_ms));
        if !goes_on {
            // After the promise: from then on no lease says any more that another owner lacks nothing here.
            let ledger = self.0.ledger.lock();
            let others = placement.ring.owners(slot).filter(|owner| *owner != self.id());
            let leases = others.map(|owner| (owner.clone(), ledger.lease_end(owner))).collect();
            *fence.state.lock() = Some((ring, Fence::new(placement.ring.members().len(), leases)));
        }
        fence.look(ring, |fence| fence.add(self.id(), asked_ms, asked_ms));
        let deadline = deadline.min(Instant::now() + ANSWER_TIMEOUT);
        let request =
            Request::Promise { node_id: self.id().clone(), slot, ring: Some(ring), at_ms: asked_ms };
        let others = placement.other_members();
        let mut asking: FuturesUnordered<_> =
            others.map(async |member| (member, self.call(member, &request, &[], deadline).await)).collect();
        while let Some((member, answer)) = asking.next().await {
            if let Ok((Reply::Promised(true), _)) = answer {
                let now_ms = self.uptime_ms();
                fence.look(ring, |fence| fence.add(member, asked_ms, now_ms));
                if fence.look(ring, |fence| fence.is_firm(now_ms)) {
                    return;
                }
            }
        }
    }

    /// Gives up a fence that has no majority, so that another owner may have one.
    fn give_back(&self, placement: &Placement, slot: Slot, fence: &SlotFence) {
        let now_ms = self.uptime_ms();
        *fence.state.lock() = None;
        let chance = mix::mix(self.0.config.seed ^ now_ms ^ slot.index() as u64) % (REST_MS + 1);
        fence.rests_until_ms.store(now_ms + REST_MS + chance, Ordering::Release);
        self.0.fences.release(slot, self.id(), now_ms);
        let request = Request::Promise { node_id: self.id().clone(), slot, ring: None, at_ms: now_ms };
        let node = self.clone();
        let others: Vec<NodeId> = placement.other_members().cloned().collect();
        // Nobody waits for it: a promise that is not given back runs out.
        spawn(async move {
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            join_all(others.iter().map(|member| node.call(member, &request, &[], deadline))).await;
        });
    }
}
