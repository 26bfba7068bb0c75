//! What has been evicted before all owners had it: they must not go on with something older.
//!
//! The store keeps a floor for each slot that is dirty for somebody (see [`crate::model::Store::watch`]); before such a slot is
//! pushed, its member drops what it has up to that floor and this node has not: a miss, not an old value. Invariant: a pair is
//! settled only after its member knows of the floor.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tracing::debug;

use super::offer::{Heads, Unanswered};
use super::operation::unexpected;
use super::{Node, NodeError};
use crate::link::{GivenUp, Reply, Request};
use crate::model::{Key, NodeId, Slot, SlotSet, mix};

/// Hashes of one question, but for a slot that alone has more.
const HASHES_MAX: usize = 1 << 16;

impl Node {
    /// Tells a member what was given up of these slots of a shard, where this node holds `held`. False if that was not
    /// acknowledged in time.
    pub(super) async fn tell_given_up(
        &self,
        member: &NodeId,
        shard: usize,
        slots: &SlotSet,
        held: &BTreeMap<Slot, Heads>,
    ) -> Result<bool, NodeError> {
        let mut given_up = self.0.store.floors(shard, slots).into_iter().peekable();
        while given_up.peek().is_some() {
            let (mut question, mut hashes) = (Vec::new(), 0);
            while hashes < HASHES_MAX
                && let Some((slot, version)) = given_up.next()
            {
                let heads = held.get(&slot).map_or(&[][..], Vec::as_slice);
                let held: Vec<u64> = heads.iter().map(|(key, _)| hash(key)).collect();
                hashes += 1 + held.len();
                question.push(GivenUp { slot, version, held });
            }
            match self.inquire(member, &Request::GiveUp(question)).await {
                Ok(Reply::Copied { .. }) => {}
                Ok(other) => return Err(unexpected(member, &other)),
                Err(Unanswered::Away(error)) => return Err(error),
                Err(Unanswered::Late(error)) => {
                    debug!(%member, %error, "what was given up was not acknowledged");
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Drops what may be older than what another node has given up.
    pub(super) fn give_up(&self, given_up: Vec<GivenUp>) {
        let by_slot: BTreeMap<Slot, _> = given_up
            .into_iter()
            .map(|one| (one.slot, (one.version, one.held.into_iter().collect::<HashSet<_>>())))
            .collect();
        let shards: BTreeSet<usize> = by_slot.keys().map(|slot| self.0.store.shard_of(*slot)).collect();
        let now_ms = self.uptime_ms();
        for shard in shards {
            for (key, version) in self.0.store.versions_in(shard, |slot| by_slot.contains_key(&slot), now_ms)
            {
                let Some((floor, held)) = by_slot.get(&key.slot()) else { continue };
                if version <= *floor && !held.contains(&hash(&key)) {
                    self.0.store.give_up_version(&key, version, now_ms);
                }
            }
        }
    }
}

fn hash(key: &Key) -> u64 {
    mix::hash(0, key.as_str().as_bytes())
}
