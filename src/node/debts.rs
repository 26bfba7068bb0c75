//! Debts that travel: who takes over what a node holds takes over, too, what that node owes to others.
//!
//! A pair that only one node knows of would be forgotten with that node, and its member, which lacks a write, would answer
//! from its own memory as soon as it no longer waits for the one that is gone. Does not move records; see [`super::sync`].
//! Invariant: a slot counts as pushed to a member only when the member also knows for whom else, out of this node's reach, it
//! is dirty; and no lease that it gave to such a one before may still say otherwise.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::offer::BATCH_TIMEOUT;
use super::operation::unexpected;
use super::{Node, NodeError};
use crate::link::{Refusal, Reply, Request};
use crate::model::{Ledger, NodeId, Slot, SlotSet};

/// How long the last words of one that stops before it has paid may take: the lease of a creditor, and a way.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(Ledger::LEASE_MS + 400);

/// A member, and what it may lack.
pub(super) type Owed = (NodeId, SlotSet);

impl Node {
    /// What this node owes, of these slots, to others than `member` and cannot pay now.
    pub(super) fn owed_besides(&self, member: &NodeId, slots: &SlotSet) -> Vec<Owed> {
        if cfg!(feature = "fault-debts-stay") {
            return Vec::new();
        }
        let placement = self.0.placement.load();
        let is_away = |creditor: &NodeId| {
            let address = placement.addresses.get(creditor);
            address.is_none_or(|address| self.is_unheard(*address))
        };
        self.0.ledger.lock().owed_besides(member, slots, is_away)
    }

    /// Has a member take over these debts.
    ///
    /// # Errors
    /// When it does not say that it has.
    pub(super) async fn pass_on_debts(&self, member: &NodeId, debts: Vec<Owed>) -> Result<(), NodeError> {
        let address = self.0.placement.load().addresses.get(member).copied();
        let address = address.ok_or_else(|| NodeError::NodeNotFound(format!("{member} is not a member")))?;
        for (creditor, slots) in debts {
            let request = Request::Owe { node_id: creditor };
            let slots = [Bytes::from(slots.to_bytes())];
            let deadline = Instant::now() + BATCH_TIMEOUT;
            match self.0.links.call((member, address), &request, &slots, deadline).await? {
                (Reply::Noted, _) => {}
                (other, _) => return Err(unexpected(member, &other)),
            }
        }
        Ok(())
    }

    /// Takes over what another node owes to a member. Answers when that member can no longer rely on a lease of this node's
    /// which does not say so.
    pub(super) async fn take_over(&self, creditor: NodeId, slots: &[u8]) -> Reply {
        let Some(mut slots) = SlotSet::from_bytes(slots) else {
            return Reply::Refused(Refusal::Invalid("that is no set of slots".into()));
        };
        if self.is_leaving() {
            return Reply::Leaving;
        }
        let until_ms = self.update_ledger(|ledger| {
            let placement = self.0.placement.load();
            // Who comes to own a slot later is owed it by the change of the table.
            slots.retain(|slot| creditor != self.0.id && placement.ring.owns(&creditor, slot));
            ledger.mark_all(&slots, &creditor);
            if slots.is_empty() { 0 } else { ledger.lease_end(&creditor) }
        });
        self.0.owing.notify_one();
        sleep_until(self.instant_at(until_ms)).await;
        Reply::Noted
    }

    /// Tells those that stay what this node, which stops, has not paid.
    pub(super) async fn bequeath(&self) {
        if cfg!(feature = "fault-debts-stay") {
            return;
        }
        let placement = self.0.placement.load_full();
        let heirs = placement.others().map(async |(heir, _)| {
            let owned = Slot::all().filter(|slot| placement.ring.owns(heir, *slot)).collect();
            let debts = self.0.ledger.lock().owed_besides(heir, &owned, |_| true);
            if let Err(error) = self.pass_on_debts(heir, debts).await {
                debug!(%heir, %error, "does not take over what this node owes");
            }
        });
        let _ = timeout(LAST_WORDS_TIMEOUT, join_all(heirs)).await;
    }
}
