//! Digests of slots: whether two nodes hold the same, in eight bytes.
//!
//! Knows nothing of what follows from a difference. Invariant: the order of records does not matter.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use super::offer::Heads;
use crate::model::{Key, Slot, SlotSet, Version, mix};

/// What this node holds of these slots of one shard.
pub(super) fn by_slot(node: &Node, shard: usize, slots: &SlotSet) -> BTreeMap<Slot, Heads> {
    let mut by_slot: BTreeMap<Slot, Heads> = BTreeMap::new();
    for head in node.0.store.versions_in(shard, |slot| slots.contains(slot), node.uptime_ms()) {
        by_slot.entry(head.0.slot()).or_default().push(head);
    }
    by_slot
}

/// The same for the same records in any order.
pub(super) fn digest(heads: &[(Key, Version)]) -> u64 {
    heads.iter().fold(0, |sum: u64, (key, version)| {
        let stamp = mix::mix(version.time() ^ u64::from(version.node()).rotate_left(32));
        sum.wrapping_add(mix::hash(stamp, key.as_str().as_bytes()))
    })
}

/// The slots in which this node does not hold what the digests say.
pub(super) fn differing(node: &Node, theirs: &[(Slot, u64)]) -> Vec<Slot> {
    let asked: SlotSet = theirs.iter().map(|(slot, _)| *slot).collect();
    let shards: BTreeSet<usize> = asked.iter().map(|slot| node.0.store.shard_of(slot)).collect();
    let by_slot: BTreeMap<Slot, Heads> =
        shards.into_iter().flat_map(|shard| by_slot(node, shard, &asked)).collect();
    let ours = |slot| digest(by_slot.get(&slot).map_or(&[][..], Vec::as_slice));
    theirs.iter().filter(|(slot, digest)| ours(*slot) != *digest).map(|(slot, _)| *slot).collect()
}
