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

/// A ledger that has granted a lease to process 1 of "b" and has nothing dirty, at `now_ms`.
fn settled(ring: &Ring, now_ms: u64) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.grant(&id("b"), (1, 0), ring.fingerprint(), ring, now_ms).unwrap();
    let all = ledger.begin(&id("b"));
    ledger.settle(&id("b"), &all);
    assert!(ledger.is_clean());
    ledger
}

#[test]
fn a_new_process_lacks_everything_it_owns() {
    let ring = ring(&["a", "b", "c"]);
    let mut ledger = settled(&ring, 0);
    let again = ledger.grant(&id("b"), (1, 0), ring.fingerprint(), &ring, 10).unwrap();
    assert!(again.is_empty());
    let restarted = ledger.grant(&id("b"), (2, 0), ring.fingerprint(), &ring, 20).unwrap();
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
fn nobody_has_a_lease_under_two_tables() {
    let (old, new) = (ring(&["a", "b", "c"]), ring(&["a", "b", "c", "d"]));
    let mut ledger = settled(&old, 1000);
    ledger.change_table(&id("a"), &old, &new);
    let at = |ledger: &mut Ledger, name: &str, ring: &Ring, now_ms| {
        ledger.grant(&id(name), (1, 0), ring.fingerprint(), &new, now_ms).is_some()
    };
    assert!(!at(&mut ledger, "b", &old, 1100), "it goes by the old table");
    assert!(!at(&mut ledger, "d", &new, 1100), "b may still go by the old table");
    assert!(ledger.is_bound_elsewhere(None, new.fingerprint(), 1600));
    assert!(at(&mut ledger, "d", &new, 1601), "what b was told has run out");
    let mut ledger = settled(&old, 1000);
    ledger.change_table(&id("a"), &old, &new);
    ledger.grant(&id("c"), (1, 0), old.fingerprint(), &old, 1050).unwrap();
    assert!(!at(&mut ledger, "b", &new, 1100), "c may still go by the old table");
    assert!(at(&mut ledger, "c", &new, 1100), "b has asked under the new one, and forgot the old");
    assert!(at(&mut ledger, "b", &new, 1100));
}

#[test]
fn a_late_frame_on_a_former_connection_clears_no_newer_lease() {
    let (ring, former) = (ring(&["a", "b", "c"]), ring(&["a", "b"]));
    let mut ledger = Ledger::default();
    let b = id("b");
    let mut ask = |asked, theirs: &Ring, now_ms| {
        let granted = ledger.grant(&b, asked, theirs.fingerprint(), &ring, now_ms).is_some();
        (granted, ledger.lease_end(&b))
    };
    let end = 5000 + Ledger::LEASE_MS + 1;
    assert_eq!(ask((1, 20), &ring, 5000), (true, end));
    assert_eq!(ask((1, 19), &former, 5001), (false, end), "asked before, under the former table");
    assert_eq!(ask((1, 19), &ring, 5002), (false, end), "what it asked since may have been answered");
    assert_eq!(ask((2, 3), &ring, 5003), (true, end + 3), "the next process, by a clock of its own");
    assert_eq!(ask((1, 21), &former, 5004), (false, end + 3), "asked by the process before");
    assert_eq!(ask((2, 4), &ring, 5005), (true, end + 5));
}

#[test]
fn a_write_that_was_missed_waits_for_the_last_lease_of_this_process_or_the_one_before() {
    let ring = ring(&["a", "b"]);
    let mut ledger = Ledger::default();
    assert_eq!(ledger.lease_end(&id("b")), Ledger::LEASE_MS + 1);
    ledger.grant(&id("b"), (1, 0), ring.fingerprint(), &ring, 5000).unwrap();
    assert_eq!(ledger.lease_end(&id("b")), 5000 + Ledger::LEASE_MS + 1);
}

#[test]
fn a_leaver_keeps_what_it_owes_to_one_that_it_cannot_reach() {
    let (all, left, reached) = (ring(&["a", "b", "c", "d"]), ring(&["b", "c", "d"]), ring(&["c", "d"]));
    let slot = Slot::all().find(|slot| all.owns(&id("a"), *slot) && all.owns(&id("b"), *slot)).unwrap();
    let mut ledger = Ledger::default();
    ledger.mark(slot, &id("b"));
    let here: SlotSet = [slot].into_iter().collect();
    let to_b = vec![(id("b"), here.clone())];
    assert_eq!(ledger.owed_besides(&id("c"), &here, |_| false), []);
    assert_eq!(ledger.owed_besides(&id("c"), &here, |_| true), to_b);
    assert_eq!(ledger.owed_besides(&id("b"), &here, |_| true), []);
    for (old, new) in [(&all, &left), (&left, &reached)] {
        ledger.leave_behind(new);
        ledger.change_table(&id("a"), old, new);
    }
    assert!(!ledger.dirty_for(&id("b")).contains(slot), "it is none of its members");
    assert_eq!(ledger.owed_besides(&id("c"), &here, |_| false), to_b);
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

    /// However often the table changes before anything is paid, nobody that once owned a slot forgets whom it owes it.
    #[test]
    fn a_holder_owes_its_slots_to_the_owners_of_today_whatever_tables_lie_between(
        memberships in prop::collection::vec(prop::collection::btree_set(0..7_u8, 1..6), 2..5),
    ) {
        let name = |number: &u8| id(&format!("n{number}"));
        let build = |numbers: &std::collections::BTreeSet<u8>| {
            Ring::build(numbers.iter().map(name), NonZeroU8::new(2).unwrap())
        };
        let tables: Vec<Ring> = memberships.iter().map(build).collect();
        let (first, last) = (&tables[0], &tables[tables.len() - 1]);
        for me in memberships[0].iter().map(name) {
            let mut ledger = Ledger::default();
            tables.windows(2).for_each(|two| ledger.change_table(&me, &two[0], &two[1]));
            for slot in Slot::all().filter(|slot| first.owns(&me, *slot)) {
                for owner in last.owners(slot).filter(|owner| **owner != me) {
                    let had_it = tables.iter().all(|table| table.owns(&me, slot) && table.owns(owner, slot));
                    prop_assert_eq!(ledger.dirty_for(owner).contains(slot), !had_it, "{} {}", owner, slot);
                }
            }
        }
    }
}
