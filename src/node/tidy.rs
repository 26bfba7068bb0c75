//! Takes out what does not belong here any more: records of slots that others own, and what has expired.
//!
//! Invariant: a record of a slot that this node does not own is dropped only in a version that every owner has acknowledged, a
//! grace later, and under the same table.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use tokio::time::{interval, sleep};
use tracing::warn;

use super::Node;
use super::membership::note_older;
use super::offer::Heads;
use super::placement::Placement;
use crate::model::{Key, NodeId, SlotSet};

/// How long what has been handed over stays, for readers that still go by the former table.
const GRACE: Duration = Duration::from_secs(1);
/// How often, and how many at a time, expired records are freed.
const SWEEP_PERIOD: Duration = Duration::from_millis(250);
const SWEEP_RECORDS: usize = 10_000;

/// Drops what this node does not own, once all is clean and the owners have it.
pub(super) async fn run(node: Node) {
    let mut clean = node.0.clean.subscribe();
    loop {
        node.0.foreign.notified().await;
        loop {
            if cfg!(feature = "fault-early-drop") {
                drop_foreign(&node);
            }
            if clean.wait_for(|clean| *clean).await.is_err() {
                return;
            }
            sleep(GRACE).await;
            let placement = node.0.placement.load_full();
            if *clean.borrow() && hand_over(&node, &placement).await {
                break;
            }
        }
    }
}

/// Frees expired records, a bounded number at a time.
pub(super) async fn sweep(node: Node) {
    let mut ticks = interval(SWEEP_PERIOD);
    loop {
        ticks.tick().await;
        note_older(&node);
        let swept = node.0.store.sweep(node.uptime_ms(), SWEEP_RECORDS);
        node.0.metrics.expirations.inc_by(swept.entries as u64);
    }
}

/// Offers what is not this node's to the owners once more and drops what all of them have. False if that is not everything, or
/// the table has changed.
async fn hand_over(node: &Node, placement: &Placement) -> bool {
    let mut away: BTreeSet<&NodeId> = BTreeSet::new();
    let mut is_all_taken = true;
    for shard in 0..node.0.store.shards() {
        let foreign = node.0.store.versions_in(shard, |slot| !placement.owns(slot), node.uptime_ms());
        let mut by_owner: BTreeMap<&NodeId, Heads> = BTreeMap::new();
        for (key, version) in &foreign {
            for owner in placement.ring.owners(key.slot()) {
                by_owner.entry(owner).or_default().push((key.clone(), *version));
            }
        }
        let (mut postponed, mut left_out) = (SlotSet::empty(), HashSet::new());
        for (owner, heads) in by_owner {
            if !away.contains(owner) {
                match node.offer(owner, &heads).await {
                    Ok(offered) => {
                        postponed.add(&offered.postponed);
                        left_out.extend(offered.left_out);
                        continue;
                    }
                    Err(error) => {
                        warn!(%owner, %error, "an owner does not take what it should have; trying again");
                        away.insert(owner);
                    }
                }
            }
            postponed.add(&heads.iter().map(|(key, _)| key.slot()).collect());
        }
        if node.ring().fingerprint() != placement.ring.fingerprint() {
            return false;
        }
        is_all_taken &= postponed.is_empty();
        // What an owner cannot take stays where it is.
        let is_taken = |key: &Key| !postponed.contains(key.slot()) && !left_out.contains(key);
        for (key, version) in foreign.into_iter().filter(|(key, _)| is_taken(key)) {
            node.0.store.remove_version(&key, version);
        }
    }
    is_all_taken
}

/// A deliberate fault: drops what nobody has acknowledged.
fn drop_foreign(node: &Node) {
    let placement = node.0.placement.load_full();
    for shard in 0..node.0.store.shards() {
        for (key, version) in node.0.store.versions_in(shard, |slot| !placement.owns(slot), node.uptime_ms())
        {
            node.0.store.remove_version(&key, version);
        }
    }
}
