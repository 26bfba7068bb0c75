//! Owns what this node owes the others: which slots they may lack a write of, and what it has vouched for.
//!
//! A pair (slot, member) is *dirty* while that member may lack something this node holds. A *vouch* tells a member
//! which slots are dirty for it; for [`Ledger::LEASE_MS`] after it asked it may answer from its own memory in all others. So a
//! write that a member has missed may be acknowledged once the last vouch given to it has run out, and not before: from
//! then on the member knows that it has to ask. (Leases: Gray and Cheriton 1989.)
//!
//! Does no I/O; the caller's clock comes as milliseconds since the process started. Invariants: a pair leaves the ledger only
//! when its member has acknowledged everything that was there when the push began; nobody is vouched for under two tables at
//! a time.

use std::collections::BTreeMap;

use super::key::{NodeId, Slot};
use super::ring::{Fingerprint, Ring};
use super::slots::SlotSet;

/// Dirty pairs, and the vouches given.
#[derive(Debug, Default)]
pub struct Ledger {
    debts: BTreeMap<NodeId, Debt>,
    given: BTreeMap<NodeId, Given>,
}

impl Given {
    fn is_under_another(&self, ring: Fingerprint) -> bool {
        self.last.is_some_and(|(under, _)| under != ring)
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
struct Given {
    boot: u64,
    /// The table it was given under, and when. None before the first.
    last: Option<(Fingerprint, u64)>,
}

impl Ledger {
    /// How long a vouch holds, counted from the moment it was asked for. Four times the pause between two, so that two may
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

    /// Makes everything dirty that this node should share or hand over.
    pub fn mark_everything(&mut self, me: &NodeId, ring: &Ring) {
        for member in ring.members().iter().filter(|member| *member != me) {
            let owned = Slot::all().filter(|slot| ring.owns(member, *slot)).collect();
            self.mark_all(&owned, member);
        }
    }

    /// Answers a member, the process `boot`, that goes by the table `theirs`: the slots that are dirty for it. None, and
    /// nothing is vouched for, while the tables differ or a vouch under another table has not run out. A process that is
    /// new has nothing in memory: all it owns is dirty.
    pub fn vouch(
        &mut self,
        member: &NodeId,
        boot: u64,
        theirs: Fingerprint,
        ring: &Ring,
        now_ms: u64,
    ) -> Option<SlotSet> {
        let is_same = |given: &Given| given.boot == boot || cfg!(feature = "fault-restart-is-renewal");
        if !self.given.get(member).is_some_and(is_same) {
            let is_over = |given: &Given| given.last.is_none_or(|(_, at)| now_ms >= at + Ledger::LEASE_MS);
            self.given.retain(|other, given| ring.members().binary_search(other).is_ok() || !is_over(given));
            let owned = Slot::all().filter(|slot| ring.owns(member, *slot)).collect();
            self.mark_all(&owned, member);
            self.given.insert(member.clone(), Given { boot, last: None });
        }
        // It has another table now, and with it forgot what it was told under the former.
        if let Some(given) = self.given.get_mut(member).filter(|given| given.is_under_another(theirs)) {
            given.last = None;
        }
        let ours = ring.fingerprint();
        if theirs != ours || self.is_bound_elsewhere(Some(member), ours, now_ms) {
            return None;
        }
        if let Some(given) = self.given.get_mut(member) {
            given.last = Some((ours, now_ms));
        }
        Some(self.dirty_for(member))
    }

    /// Whether a vouch given under another table than `ring` still holds, to somebody else than `asker`.
    pub fn is_bound_elsewhere(&self, asker: Option<&NodeId>, ring: Fingerprint, now_ms: u64) -> bool {
        self.given.iter().any(|(member, given)| {
            let binds = |(under, at): (Fingerprint, u64)| under != ring && now_ms < at + Ledger::LEASE_MS;
            Some(member) != asker && given.last.is_some_and(binds)
        })
    }

    /// When the last vouch given to a member runs out. The process before this one, of the same name, may have given one
    /// up to the moment at which this one's clock began.
    pub fn free_of(&self, member: &NodeId) -> u64 {
        let last = self.given.get(member).and_then(|given| given.last);
        last.map_or(0, |(_, at)| at) + Ledger::LEASE_MS
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
mod tests {
    use std::num::NonZeroU8;

    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn ring(names: &[&str]) -> Ring {
        Ring::build(names.iter().map(|name| id(name)), NonZeroU8::new(2).unwrap())
    }

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    fn owned(ring: &Ring, name: &str) -> SlotSet {
        Slot::all().filter(|slot| ring.owns(&id(name), *slot)).collect()
    }

    /// A ledger that has vouched for process 1 of "b" and has nothing dirty, at `now_ms`.
    fn settled(ring: &Ring, now_ms: u64) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.vouch(&id("b"), 1, ring.fingerprint(), ring, now_ms).unwrap();
        let all = ledger.begin(&id("b"));
        ledger.settle(&id("b"), &all);
        assert!(ledger.is_clean());
        ledger
    }

    #[test]
    fn a_new_process_lacks_everything_it_owns() {
        let ring = ring(&["a", "b", "c"]);
        let mut ledger = settled(&ring, 0);
        let again = ledger.vouch(&id("b"), 1, ring.fingerprint(), &ring, 10).unwrap();
        assert!(again.is_empty());
        let restarted = ledger.vouch(&id("b"), 2, ring.fingerprint(), &ring, 20).unwrap();
        assert_eq!(restarted, owned(&ring, "b"));
    }

    #[test]
    fn a_slot_stays_dirty_until_the_member_has_what_was_marked_last() {
        let (ring, b) = (ring(&["a", "b"]), id("b"));
        let mut ledger = settled(&ring, 0);
        ledger.mark(slot(7), &b);
        let first = ledger.begin(&b);
        ledger.mark(slot(7), &b);
        ledger.settle(&b, &first);
        assert!(ledger.dirty_for(&b).contains(slot(7)), "marked again while it was pushed");
        let second = ledger.begin(&b);
        ledger.postpone(&b, &second);
        assert_eq!(ledger.creditors(), std::slice::from_ref(&b), "it was not acknowledged");
        let third = ledger.begin(&b);
        ledger.settle(&b, &third);
        assert!(ledger.is_clean());
        assert!(ledger.begin(&b).is_empty());
        assert!(ledger.is_clean());
    }

    #[test]
    fn nobody_is_vouched_for_under_two_tables() {
        let (old, new) = (ring(&["a", "b", "c"]), ring(&["a", "b", "c", "d"]));
        let mut ledger = settled(&old, 1000);
        ledger.change_table(&id("a"), &old, &new);
        let at = |ledger: &mut Ledger, name: &str, ring: &Ring, now_ms| {
            ledger.vouch(&id(name), 1, ring.fingerprint(), &new, now_ms).is_some()
        };
        assert!(!at(&mut ledger, "b", &old, 1100), "it goes by the old table");
        assert!(!at(&mut ledger, "d", &new, 1100), "b may still go by the old table");
        assert!(ledger.is_bound_elsewhere(None, new.fingerprint(), 1599));
        assert!(at(&mut ledger, "d", &new, 1600), "what b was told has run out");
        let mut ledger = settled(&old, 1000);
        ledger.change_table(&id("a"), &old, &new);
        ledger.vouch(&id("c"), 1, old.fingerprint(), &old, 1050).unwrap();
        assert!(!at(&mut ledger, "b", &new, 1100), "c may still go by the old table");
        assert!(at(&mut ledger, "c", &new, 1100), "b has asked under the new one, and forgot the old");
        assert!(at(&mut ledger, "b", &new, 1100));
    }

    #[test]
    fn a_write_that_was_missed_waits_for_the_last_vouch_of_this_process_or_the_one_before() {
        let ring = ring(&["a", "b"]);
        let mut ledger = Ledger::default();
        assert_eq!(ledger.free_of(&id("b")), Ledger::LEASE_MS);
        ledger.vouch(&id("b"), 1, ring.fingerprint(), &ring, 5000).unwrap();
        assert_eq!(ledger.free_of(&id("b")), 5000 + Ledger::LEASE_MS);
    }

    proptest! {
        /// Whoever leaves or joins: each owner of a slot that did not own it before is told so by every former owner.
        #[test]
        fn every_new_owner_is_owed_its_slots(
            before in prop::collection::btree_set(0..8_u8, 1..6),
            after in prop::collection::btree_set(0..8_u8, 1..6),
        ) {
            let name = |number: &u8| format!("n{number}");
            let build = |numbers: &std::collections::BTreeSet<u8>| {
                Ring::build(numbers.iter().map(|number| id(&name(number))), NonZeroU8::new(2).unwrap())
            };
            let (old, new) = (build(&before), build(&after));
            for me in before.iter().map(|number| id(&name(number))) {
                let mut ledger = Ledger::default();
                ledger.change_table(&me, &old, &new);
                for slot in Slot::all().filter(|slot| old.owns(&me, *slot)) {
                    for owner in new.owners(slot).filter(|owner| **owner != me) {
                        let had_it = old.owns(owner, slot) && new.owns(&me, slot);
                        prop_assert_eq!(ledger.dirty_for(owner).contains(slot), !had_it);
                    }
                }
            }
        }
    }
}
