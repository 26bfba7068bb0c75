//! Who is to get a write, and what is owed to those that did not.
//!
//! Sends nothing; see [`super::replicate`]. Invariant: a pair of member and slot is marked in the ledger unless the member has
//! acknowledged the copy, whatever becomes of the request.

use std::collections::BTreeMap;

use super::Node;
use super::placement::Placement;
use super::replicate::Written;
use crate::model::{NodeId, Slot};

/// Who is to get which of the writes. Besides the other owners, after a change of the table also members that were not
/// heard under it: they may still answer by the former one.
pub(super) fn targets(
    placement: &Placement,
    me: &NodeId,
    written: &[Written],
) -> BTreeMap<NodeId, Vec<usize>> {
    let mut targets: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    let also_told = placement.without_report();
    for (index, one) in written.iter().enumerate() {
        let owners = placement.ring.owners(one.key.slot());
        let also = also_told.iter().filter(|member| !placement.ring.owns(member, one.key.slot()));
        for member in owners.chain(also).filter(|member| *member != me) {
            targets.entry(member.clone()).or_default().push(index);
        }
    }
    targets
}

/// The pairs that become dirty unless the copies are acknowledged; also when the request is dropped half way.
pub(super) struct Owed<'a> {
    node: &'a Node,
    pairs: BTreeMap<NodeId, Vec<Slot>>,
}

impl<'a> Owed<'a> {
    pub(super) fn new(
        node: &'a Node,
        placement: &Placement,
        targets: &BTreeMap<NodeId, Vec<usize>>,
        written: &[Written],
    ) -> Owed<'a> {
        let slots_of = |member: &NodeId, indexes: &[usize]| -> Vec<Slot> {
            let slots = indexes.iter().map(|&index| written[index].key.slot());
            slots.filter(|slot| placement.ring.owns(member, *slot)).collect()
        };
        let pairs = targets.iter().map(|(member, indexes)| (member.clone(), slots_of(member, indexes)));
        Owed { node, pairs: pairs.collect() }
    }

    /// A member has what it should.
    pub(super) fn forgive(&mut self, member: &NodeId) {
        self.pairs.remove(member);
    }

    /// Marks a member's pairs and says from when on it cannot answer from its own memory any more.
    pub(super) fn mark(&mut self, member: &NodeId) -> u64 {
        let slots = self.pairs.remove(member).unwrap_or_default();
        self.node.update_ledger(|ledger| {
            // Who does not own it by the table in force is owed nothing; the change of the table saw to the new owners.
            let placement = self.node.0.placement.load();
            let owned = slots.iter().filter(|slot| placement.ring.owns(member, **slot));
            owned.for_each(|slot| ledger.mark(*slot, member));
            ledger.lease_end(member)
        })
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        let members: Vec<NodeId> = self.pairs.keys().cloned().collect();
        for member in members {
            self.mark(&member);
        }
        self.node.0.owing.notify_one();
    }
}
