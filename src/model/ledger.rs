//! Owns what this node owes the others: which slots they may lack a write of, and the leases it has granted them.
//!
//! A pair (slot, member) is *dirty* while that member may lack something this node holds. A *lease* tells a member
//! which slots are dirty for it; for [`Ledger::LEASE_MS`] after it asked it may answer from its own memory in all others. So a
//! write that a member has missed may be acknowledged once the last lease granted to it has run out, and not before: from
//! then on the member knows that it has to ask. (Leases: Gray and Cheriton 1989.)
//!
//! Does no I/O; the caller's clock comes as milliseconds since the process started. Invariants: a pair leaves the ledger only
//! when its member has acknowledged everything that was there when the push began; nobody has a lease under two tables at a
//! time.

use std::collections::BTreeMap;

use super::key::{NodeId, Slot};
use super::ring::{Fingerprint, Ring};
use super::slots::SlotSet;

/// Dirty pairs, and the leases granted.
#[derive(Debug, Default)]
pub struct Ledger {
    debts: BTreeMap<NodeId, Debt>,
    /// What one that leaves owes to members that it has taken out of its own table, for others to pay.
    left_behind: BTreeMap<NodeId, SlotSet>,
    leases: BTreeMap<NodeId, Lease>,
    /// A member was declared dead and may come back with what it had.
    has_missing: bool,
}

impl Lease {
    fn is_under_another(&self, ring: Fingerprint) -> bool {
        self.last.is_some_and(|(under, _)| under != ring)
    }

    /// Whether the member has asked something later, or is a later process by now: frames on a former connection may be read
    /// after those on the next.
    fn is_stale(&self, boot: u64, asked_us: u64) -> bool {
        self.former_boot == Some(boot) || self.boot == boot && asked_us < self.asked_us
    }
}

/// What one member may lack.
#[derive(Debug)]
struct Debt {
    waiting: SlotSet,
    /// Being pushed; what is marked meanwhile goes to `waiting` once more.
    under_way: SlotSet,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    boot: u64,
    /// The process before this one.
    former_boot: Option<u64>,
    /// When its last question was asked, by its own clock.
    asked_us: u64,
    /// The table it was last granted under, and when. None before the first.
    last: Option<(Fingerprint, u64)>,
}

impl Ledger {
    /// How long a lease holds, counted from the moment it was asked for. Four times the pause between two, so that two may
    /// be lost; short, because the first writes after a failure wait for it to run out.
    pub const LEASE_MS: u64 = 600;

    /// Notes that a member may lack a write of that slot.
    pub fn mark(&mut self, slot: Slot, member: &NodeId) {
        self.debt(member).waiting.insert(slot);
    }

    /// Notes that a member may lack writes of these slots.
    pub fn mark_all(&mut self, slots: &SlotSet, member: &NodeId) {
        if !slots.is_empty() {
            self.debt(member).waiting.add(slots);
        }
    }

    /// What a change of the table makes dirty for a node that goes by both: all slots that got a new owner, for that
    /// owner; and the slots that this node does not own any more, for all their owners. Pairs of members that do not own
    /// the slot any more are dropped.
    pub fn change_table(&mut self, me: &NodeId, old: &Ring, new: &Ring) {
        for (member, debt) in &mut self.debts {
            debt.waiting.retain(|slot| new.owns(member, slot));
            debt.under_way.retain(|slot| new.owns(member, slot));
        }
        let mut marks: BTreeMap<&NodeId, SlotSet> = BTreeMap::new();
        for slot in Slot::all() {
            let stays = new.owns(me, slot);
            for owner in new.owners(slot).filter(|owner| *owner != me) {
                if !stays || !old.owns(owner, slot) {
                    marks.entry(owner).or_insert_with(SlotSet::empty).insert(slot);
                }
            }
        }
        for (owner, slots) in marks {
            self.mark_all(&slots, owner);
        }
        self.debts.retain(|_, debt| !debt.is_paid());
    }

    /// Keeps, before such a change, what would be dropped by it. For one that leaves: by the others' tables those members go on
    /// to own the slots.
    pub fn leave_behind(&mut self, new: &Ring) {
        for (member, debt) in &self.debts {
            let mut dropped = debt.all();
            dropped.retain(|slot| !new.owns(member, slot));
            if !dropped.is_empty() {
                self.left_behind.entry(member.clone()).or_insert_with(SlotSet::empty).add(&dropped);
            }
        }
    }

    /// What is owed, of these slots, to others than `member`: to those that are away, and to those left behind.
    pub fn owed_besides(
        &self,
        member: &NodeId,
        slots: &SlotSet,
        is_away: impl Fn(&NodeId) -> bool,
    ) -> Vec<(NodeId, SlotSet)> {
        let mut owed: BTreeMap<&NodeId, SlotSet> = BTreeMap::new();
        let debts = self.debts.iter().filter(|(creditor, _)| is_away(creditor));
        let debts = debts.map(|(creditor, debt)| (creditor, debt.all()));
        let left_behind = self.left_behind.iter().map(|(creditor, slots)| (creditor, slots.clone()));
        for (creditor, all) in debts.chain(left_behind).filter(|(creditor, _)| *creditor != member) {
            owed.entry(creditor).or_insert_with(SlotSet::empty).add(&all.intersection(slots));
        }
        owed.retain(|_, slots| !slots.is_empty());
        owed.into_iter().map(|(creditor, slots)| (creditor.clone(), slots)).collect()
    }

    /// Makes everything dirty that this node should share or hand over.
    pub fn mark_everything(&mut self, me: &NodeId, ring: &Ring) {
        for member in ring.members().iter().filter(|member| *member != me) {
            let owned = Slot::all().filter(|slot| ring.owns(member, *slot)).collect();
            self.mark_all(&owned, member);
        }
    }

    /// Whether this process of a member has asked before. If not, its first question makes slots dirty.
    pub fn knows(&self, member: &NodeId, boot: u64) -> bool {
        let is_same = |lease: &Lease| lease.boot == boot || cfg!(feature = "fault-restart-is-renewal");
        self.leases.get(member).is_some_and(is_same)
    }

    /// Answers what a member, the process `boot`, asked at `asked_us` by its own clock, going by the table `theirs`: the
    /// slots that are dirty for it. None, and no lease is granted, while the tables differ or a lease under another table has
    /// not run out. A process that is new has nothing in memory: all it owns is dirty. A stale question changes nothing.
    pub fn grant(
        &mut self,
        member: &NodeId,
        (boot, asked_us): (u64, u64),
        theirs: Fingerprint,
        ring: &Ring,
        now_ms: u64,
    ) -> Option<SlotSet> {
        if self.leases.get(member).is_some_and(|lease| lease.is_stale(boot, asked_us)) {
            return None;
        }
        if !self.knows(member, boot) {
            let is_over = |lease: &Lease| lease.last.is_none_or(|(_, at)| now_ms > at + Ledger::LEASE_MS);
            self.leases.retain(|other, lease| ring.members().binary_search(other).is_ok() || !is_over(lease));
            let owned = Slot::all().filter(|slot| ring.owns(member, *slot)).collect();
            self.mark_all(&owned, member);
            let former_boot = self.leases.get(member).map(|lease| lease.boot);
            self.leases.insert(member.clone(), Lease { boot, former_boot, asked_us, last: None });
        }
        if let Some(lease) = self.leases.get_mut(member) {
            lease.asked_us = asked_us;
            // It has another table now, and with it forgot what it was told under the former.
            if lease.is_under_another(theirs) {
                lease.last = None;
            }
        }
        let ours = ring.fingerprint();
        if theirs != ours || self.is_bound_elsewhere(Some(member), ours, now_ms) {
            return None;
        }
        if let Some(lease) = self.leases.get_mut(member) {
            lease.last = Some((ours, now_ms));
        }
        Some(self.dirty_for(member))
    }

    /// Whether a lease granted under another table than `ring` still holds, to somebody else than `asker`.
    pub fn is_bound_elsewhere(&self, asker: Option<&NodeId>, ring: Fingerprint, now_ms: u64) -> bool {
        self.leases.iter().any(|(member, lease)| {
            let binds = |(under, at): (Fingerprint, u64)| under != ring && now_ms <= at + Ledger::LEASE_MS;
            lease.last.is_some_and(binds) && Some(member) != asker
        })
    }

    /// When the last lease granted to a member runs out. The process before this one, of the same name, may have granted one
    /// up to the moment at which this one's clock began.
    pub fn lease_end(&self, member: &NodeId) -> u64 {
        let last = self.leases.get(member).and_then(|lease| lease.last);
        // Both ends cut their clocks to milliseconds, so that the other's may run for one more.
        last.map_or(0, |(_, at)| at) + Ledger::LEASE_MS + 1
    }

    /// The slots that are dirty for a member.
    pub fn dirty_for(&self, member: &NodeId) -> SlotSet {
        self.debts.get(member).map_or_else(SlotSet::empty, Debt::all)
    }

    /// Members that something waits to be pushed to.
    pub fn creditors(&self) -> Vec<NodeId> {
        let waits = self.debts.iter().filter(|(_, debt)| !debt.waiting.is_empty());
        waits.map(|(member, _)| member.clone()).collect()
    }

    /// Members that may lack something.
    pub fn owed(&self) -> impl Iterator<Item = &NodeId> {
        self.debts.keys()
    }

    /// Takes up the slots that wait for a member, to push them.
    pub fn begin(&mut self, member: &NodeId) -> SlotSet {
        let Some(debt) = self.debts.get_mut(member) else { return SlotSet::empty() };
        let slots = std::mem::replace(&mut debt.waiting, SlotSet::empty());
        debt.under_way.add(&slots);
        slots
    }

    /// The member has acknowledged all that was in these slots.
    pub fn settle(&mut self, member: &NodeId, slots: &SlotSet) {
        if let Some(debt) = self.debts.get_mut(member) {
            debt.under_way.subtract(slots);
        }
        self.debts.retain(|_, debt| !debt.is_paid());
    }

    /// Pushing these slots failed: they wait again, if they are still due.
    pub fn postpone(&mut self, member: &NodeId, slots: &SlotSet) {
        if let Some(debt) = self.debts.get_mut(member) {
            let mut due = debt.under_way.clone();
            debt.under_way.subtract(slots);
            due.subtract(&debt.under_way);
            debt.waiting.add(&due);
        }
    }

    /// All slots that some member may lack something of.
    pub fn dirty(&self) -> SlotSet {
        let mut dirty = SlotSet::empty();
        self.debts.values().for_each(|debt| dirty.add(&debt.all()));
        dirty
    }

    /// Notes whether members that may live are in no table.
    pub fn set_missing(&mut self, has_missing: bool) {
        self.has_missing = has_missing;
    }

    /// The slots in which another node may have something older that it takes for the newest: the dirty ones, and all while a
    /// member is missing.
    pub fn watched(&self) -> SlotSet {
        if self.has_missing { SlotSet::full() } else { self.dirty() }
    }

    /// Whether nobody lacks anything.
    pub fn is_clean(&self) -> bool {
        self.debts.is_empty()
    }

    fn debt(&mut self, member: &NodeId) -> &mut Debt {
        if !self.debts.contains_key(member) {
            let debt = Debt { waiting: SlotSet::empty(), under_way: SlotSet::empty() };
            self.debts.insert(member.clone(), debt);
        }
        self.debts.get_mut(member).expect("just inserted")
    }
}

impl Debt {
    fn all(&self) -> SlotSet {
        let mut all = self.waiting.clone();
        all.add(&self.under_way);
        all
    }

    fn is_paid(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }
}

#[cfg(test)]
mod tests;
