//! Compares what co-owners hold, slowly and for ever: a difference that nobody has noted as owed would stay.
//!
//! One shard of the store each [`PERIOD`], while nothing is dirty; an empty one costs nothing. Where digests differ, versions
//! are compared, a bounded number of them, beginning elsewhere each time. Invariant: only what a co-owner holds in an older
//! version is brought. What it lacks it may have evicted, or never had room for: under memory pressure copies differ for good,
//! and bringing them again would evict others.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{debug, warn};

use super::digests::{by_slot, digest};
use super::offer::{Heads, Offered};
use super::{Node, NodeError};
use crate::link::{Reply, Request};
use crate::model::{NodeId, Slot, SlotSet, Version};

/// Pause between two shards. A store of a million entries has 36, of some milliseconds each: it is read once in three minutes,
/// and as often for each co-owner, in parts.
const PERIOD: Duration = Duration::from_secs(5);
/// How many versions are compared with one co-owner at a time, at most.
const VERSIONS_MAX: usize = 1024;
/// What was written since may still be on its way: longer than any write takes.
const SETTLED_AFTER_MS: u64 = 5000;

/// Compares shard after shard.
pub(super) async fn run(node: Node) {
    for (turn, shard) in (0..node.0.store.shards()).cycle().enumerate() {
        sleep(PERIOD).await;
        // What is dirty is being compared anyway.
        if *node.0.clean.borrow() && !node.is_leaving() {
            scrub(&node, shard, turn).await;
        }
    }
}

async fn scrub(node: &Node, shard: usize, turn: usize) {
    let placement = node.0.placement.load_full();
    let mut owned = SlotSet::full();
    owned.retain(|slot| placement.owns(slot));
    let held = by_slot(node, shard, &owned);
    let mut digests: BTreeMap<&NodeId, Vec<(Slot, u64)>> = BTreeMap::new();
    for (slot, heads) in &held {
        for owner in placement.ring.owners(*slot).filter(|owner| *owner != node.id()) {
            digests.entry(owner).or_default().push((*slot, digest(heads)));
        }
    }
    for (member, digests) in digests {
        match compare(node, member, digests, &held, turn).await {
            Ok(0) => {}
            Ok(brought) => warn!(%member, brought, "a co-owner held older versions, of which nobody knew"),
            Err(error) => debug!(%member, %error, "could not compare what a co-owner holds"),
        }
    }
}

/// Brings a co-owner what it holds in an older version. Says how much that was.
async fn compare(
    node: &Node,
    member: &NodeId,
    digests: Vec<(Slot, u64)>,
    held: &BTreeMap<Slot, Heads>,
    turn: usize,
) -> Result<usize, NodeError> {
    let Ok(Reply::Differ(mut slots)) = node.inquire(member, &Request::Digests(digests)).await else {
        return Ok(0);
    };
    if !slots.is_empty() {
        let first = turn % slots.len();
        slots.rotate_left(first);
    }
    let heads = slots.iter().filter_map(|slot| held.get(slot)).flatten();
    // The latest version is never behind, though the clock be set back.
    let now_ms = node.wall_ms().max(Version::new(node.0.versions.latest(), 0).millis());
    let heads = heads.filter(|(_, version)| version.millis() + SETTLED_AFTER_MS < now_ms);
    let heads: Heads = heads.take(VERSIONS_MAX).cloned().collect();
    let Offered { brought, .. } = node.offer_newer(member, &heads).await?;
    Ok(brought)
}
