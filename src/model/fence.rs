//! Promises about a slot, and the fence that one owner builds from them: while it stands nobody else decides a conditional
//! write there.
//!
//! A member promises a slot to one owner at a time. From then on its leases call the slot dirty for everybody else (see
//! [`Ledger`]), so that no other owner answers for it alone. A *fence* stands while a majority of the members has promised
//! the slot to its owner, that owner among them, and no other owner has a lease from before; two owners can never both have
//! a majority. (Promises with an end, and majorities: Gray and Cheriton 1989; Lamport 1998.)
//!
//! Does no I/O; times are milliseconds since the process started. Invariants: a promise runs for [`Ledger::LEASE_MS`] from when
//! it was given, and is relied on for as long from when it was asked for; a gap in a fence is never overlooked.

use std::collections::BTreeMap;

use super::key::{NodeId, Slot};
use super::ledger::Ledger;

/// The promises that a node has given.
#[derive(Debug, Default)]
pub struct Promises {
    given: BTreeMap<Slot, Promise>,
    /// When those that are over are dropped next.
    sweep_ms: u64,
}

#[derive(Debug)]
struct Promise {
    to: NodeId,
    /// When the member asked last, by its own clock.
    asked_ms: u64,
    until_ms: u64,
}

impl Promises {
    /// Promises a slot to a member, which asked at `asked_ms` by its own clock, unless it is promised to another one.
    pub fn give(&mut self, slot: Slot, to: &NodeId, asked_ms: u64, now_ms: u64) -> bool {
        if now_ms >= self.sweep_ms {
            self.given.retain(|_, promise| promise.runs(now_ms));
            self.sweep_ms = now_ms + Ledger::LEASE_MS;
        }
        if self.given.get(&slot).is_some_and(|promise| promise.to != *to && promise.runs(now_ms)) {
            return false;
        }
        // One millisecond more, because both clocks are cut to milliseconds.
        let until_ms = now_ms + Ledger::LEASE_MS + 1;
        self.given.insert(slot, Promise { to: to.clone(), asked_ms, until_ms });
        true
    }

    /// The member gives the slot back; unless it has asked for it again, which this may have been overtaken by.
    pub fn release(&mut self, slot: Slot, to: &NodeId, at_ms: u64) {
        if self.given.get(&slot).is_some_and(|promise| promise.to == *to && promise.asked_ms <= at_ms) {
            self.given.remove(&slot);
        }
    }

    /// Whether a slot is promised to another than this member.
    #[must_use]
    pub fn is_given_away(&self, slot: Slot, than: &NodeId, now_ms: u64) -> bool {
        self.given.get(&slot).is_some_and(|promise| promise.to != *than && promise.runs(now_ms))
    }

    /// The slots that are promised to others than this member.
    pub fn to_others<'a>(&'a self, than: &'a NodeId, now_ms: u64) -> impl Iterator<Item = Slot> + 'a {
        let others = self.given.iter().filter(move |(_, given)| given.to != *than && given.runs(now_ms));
        others.map(|(slot, _)| *slot)
    }
}

impl Promise {
    fn runs(&self, now_ms: u64) -> bool {
        now_ms <= self.until_ms
    }
}

/// What an owner knows of the promises that it has asked for, for one slot and under one table.
#[derive(Debug)]
pub struct Fence {
    members: usize,
    /// By the member that promised, the owner itself among them: until when it may be relied on.
    promised: BTreeMap<NodeId, u64>,
    /// By the other owners: until when the leases run that they were granted before.
    leases: BTreeMap<NodeId, u64>,
    /// Since when it stands.
    from_ms: Option<u64>,
    /// Until when it does without another promise; meaningful while it stands.
    until_ms: u64,
}

impl Fence {
    /// The fence of an owner under a table of so many members. `leases`: when those are over that it granted to the other
    /// owners before it promised the slot to itself.
    #[must_use]
    pub fn new(members: usize, leases: BTreeMap<NodeId, u64>) -> Fence {
        Fence { members, promised: BTreeMap::new(), leases, from_ms: None, until_ms: 0 }
    }

    /// A member has promised, asked at `asked_ms`.
    pub fn add(&mut self, member: &NodeId, asked_ms: u64, now_ms: u64) {
        self.look(now_ms);
        let until_ms = self.promised.entry(member.clone()).or_default();
        *until_ms = (asked_ms + Ledger::LEASE_MS).max(*until_ms);
        self.look(now_ms);
    }

    /// Whether a member's promise runs.
    #[must_use]
    pub fn has_promised(&self, member: &NodeId, now_ms: u64) -> bool {
        self.until(member) > now_ms
    }

    /// Whether it has stood all the time since then.
    pub fn stands_since(&mut self, since_ms: u64, now_ms: u64) -> bool {
        self.look(now_ms);
        self.from_ms.is_some_and(|from_ms| from_ms <= since_ms)
    }

    /// Whether it stands and will do so for a while.
    pub fn is_firm(&mut self, now_ms: u64) -> bool {
        self.look(now_ms);
        self.from_ms.is_some() && self.until_ms > now_ms + Ledger::LEASE_MS / 2
    }

    /// When it will stand if the promises are kept alive until then; none without a majority.
    #[must_use]
    pub fn expected_ms(&self, now_ms: u64) -> Option<u64> {
        self.majority_until().filter(|until_ms| *until_ms > now_ms)?;
        let lacking = self.leases.iter().filter(|(owner, _)| self.until(owner) <= now_ms);
        Some(lacking.map(|(_, until_ms)| *until_ms).max().unwrap_or(0).max(now_ms))
    }

    fn look(&mut self, now_ms: u64) {
        if self.from_ms.is_some() && now_ms >= self.until_ms {
            self.from_ms = None;
        }
        let promised = self.majority_until().unwrap_or(0);
        // An owner whose lease is over cannot act alone, so its promise is not needed.
        let leased = self.leases.iter().filter(|(_, until_ms)| now_ms < **until_ms);
        let free = leased.map(|(owner, _)| self.until(owner)).min().unwrap_or(u64::MAX);
        self.until_ms = promised.min(free);
        if self.until_ms > now_ms {
            self.from_ms.get_or_insert(now_ms);
        } else {
            self.from_ms = None;
        }
    }

    fn until(&self, member: &NodeId) -> u64 {
        self.promised.get(member).copied().unwrap_or(0)
    }

    /// Until when a majority has promised.
    fn majority_until(&self) -> Option<u64> {
        let mut ends: Vec<u64> = self.promised.values().copied().collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.get(self.members / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn slot() -> Slot {
        Slot::of(b"lock")
    }

    #[test]
    fn a_slot_is_promised_to_one_member_at_a_time() {
        let mut promises = Promises::default();
        assert!(promises.give(slot(), &id("n1"), 0, 0));
        assert!(promises.give(slot(), &id("n1"), 90, 100), "again");
        assert!(!promises.give(slot(), &id("n2"), 700, 701), "it runs to the end");
        assert!(promises.give(slot(), &id("n2"), 700, 702));
        assert!(!promises.give(slot(), &id("n1"), 700, 702));
    }

    #[test]
    fn only_the_member_that_has_a_promise_gives_it_back_and_not_by_an_old_word() {
        let mut promises = Promises::default();
        promises.give(slot(), &id("n1"), 50, 0);
        promises.release(slot(), &id("n2"), 60);
        promises.release(slot(), &id("n1"), 49);
        assert!(promises.is_given_away(slot(), &id("n2"), 0));
        promises.release(slot(), &id("n1"), 50);
        assert!(!promises.is_given_away(slot(), &id("n2"), 0));
    }

    #[test]
    fn what_is_promised_to_one_is_dirty_for_the_others_alone() {
        let mut promises = Promises::default();
        promises.give(slot(), &id("n1"), 0, 0);
        assert_eq!(promises.to_others(&id("n1"), 0).count(), 0);
        assert_eq!(promises.to_others(&id("n2"), 601).collect::<Vec<_>>(), [slot()]);
        assert_eq!(promises.to_others(&id("n2"), 602).count(), 0);
    }

    #[test]
    fn a_fence_stands_by_a_majority_once_no_other_owner_has_a_lease() {
        let mut fence = Fence::new(4, [(id("n2"), 500)].into());
        fence.add(&id("n1"), 0, 0);
        fence.add(&id("n3"), 0, 10);
        assert_eq!(fence.expected_ms(10), None, "two of four are no majority");
        fence.add(&id("n4"), 5, 20);
        assert!(!fence.stands_since(20, 20), "n2 has its lease");
        assert_eq!(fence.expected_ms(20), Some(500));
        assert!(!fence.stands_since(499, 499));
        assert!(fence.stands_since(500, 500));
        assert!(!fence.stands_since(499, 510), "it did not stand then");
        assert!(fence.stands_since(500, 599));
        assert!(!fence.stands_since(500, 600), "n1 and n3 were asked at 0");
    }

    #[test]
    fn an_owner_that_has_promised_may_keep_its_lease() {
        let mut fence = Fence::new(2, [(id("n2"), 900)].into());
        fence.add(&id("n1"), 0, 0);
        fence.add(&id("n2"), 0, 1);
        assert!(fence.stands_since(1, 1));
        fence.add(&id("n1"), 550, 550);
        assert!(!fence.stands_since(1, 600), "the promise is over, the lease is not");
    }

    #[test]
    fn a_gap_is_noticed_though_nobody_looked_while_it_lasted() {
        let mut fence = Fence::new(3, [(id("n2"), 700)].into());
        for (member, asked_ms) in [("n1", 0), ("n2", 0), ("n3", 200)] {
            fence.add(&id(member), asked_ms, asked_ms);
        }
        fence.add(&id("n1"), 200, 200);
        assert!(fence.stands_since(0, 300));
        // From 600, when the promise of n2 is over, to 700, when its lease is, nothing stands.
        fence.add(&id("n1"), 500, 720);
        assert!(fence.stands_since(720, 720));
        assert!(!fence.stands_since(300, 720));
    }

    #[test]
    fn a_fence_whose_promises_are_renewed_in_time_stands_on() {
        let mut fence = Fence::new(3, BTreeMap::new());
        for round in 0..10 {
            let now_ms = round * 250;
            fence.add(&id("n1"), now_ms, now_ms);
            // Another one each time.
            fence.add(&id(["n2", "n3"][round as usize % 2]), now_ms, now_ms);
        }
        assert!(fence.stands_since(0, 2500));
        assert!(fence.is_firm(2300) && !fence.is_firm(2600));
    }
}
