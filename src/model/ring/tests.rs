use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn nodes(count: usize) -> Vec<NodeId> {
    (1..=count).map(|number| NodeId::parse(&format!("node{number}")).unwrap()).collect()
}

fn ring(members: &[NodeId], copies: u8) -> Ring {
    Ring::build(members.iter().cloned(), NonZeroU8::new(copies).unwrap())
}

/// Slots of the fullest node at a rank.
fn fullest(ring: &Ring, rank: usize) -> usize {
    let mut slots = BTreeMap::<&NodeId, usize>::new();
    for slot in Slot::all() {
        *slots.entry(ring.owners(slot).nth(rank).unwrap()).or_default() += 1;
    }
    slots.into_values().max().unwrap()
}

fn cap(count: usize) -> usize {
    SLOTS.div_ceil(count).max(SLOTS * 105 / (count * 100))
}

fn moved(before: &Ring, after: &Ring) -> usize {
    Slot::all().filter(|slot| before.primary(*slot) != after.primary(*slot)).count()
}

#[test]
fn nobody_owns_anything_without_members() {
    let ring = ring(&[], 2);
    let slot = Slot::of(b"foo");
    assert_eq!(ring.owners(slot).len(), 0);
    assert_eq!(ring.primary(slot), None);
}

#[test]
fn a_single_member_owns_every_slot_once() {
    let members = nodes(1);
    let ring = ring(&members, 3);
    assert!(Slot::all().all(|slot| ring.owners(slot).eq(&members)));
    assert_eq!(ring.slots_of(&members[0]), 16384);
}

#[test]
fn every_slot_has_distinct_owners_even_where_all_members_are_needed() {
    for (count, copies) in [(2, 2), (3, 3), (5, 5), (8, 8), (9, 8), (4, 8), (30, 3)] {
        let ring = ring(&nodes(count), copies);
        for slot in Slot::all() {
            let owners: BTreeSet<_> = ring.owners(slot).collect();
            assert_eq!(
                owners.len(),
                count.min(usize::from(copies)),
                "{count} nodes, {copies} copies, slot {slot}"
            );
        }
    }
}

#[test]
fn no_node_is_primary_of_more_than_1_05_of_the_mean() {
    for count in 1..=100 {
        let ring = ring(&nodes(count), 1);
        assert!(fullest(&ring, 0) <= cap(count), "{count} nodes: {}", fullest(&ring, 0));
    }
}

#[test]
fn second_and_third_copies_are_spread_as_evenly_where_there_is_a_choice() {
    for count in [6, 10, 25, 50, 100] {
        let ring = ring(&nodes(count), 3);
        for rank in 0..3 {
            assert!(
                fullest(&ring, rank) <= cap(count),
                "{count} nodes, rank {rank}: {}",
                fullest(&ring, rank)
            );
        }
    }
}

#[test]
fn a_join_or_a_leave_moves_little_more_than_it_must() {
    // At 100 nodes DESIGN.md expects 1.17 of the unavoidable, up to 50 it asks for 1.10.
    for (count, bound) in [(2, 1.10), (3, 1.10), (5, 1.10), (10, 1.10), (20, 1.10), (50, 1.10), (100, 1.25)] {
        let all = nodes(count + 1);
        let (fewer, more) = (ring(&all[..count], 2), ring(&all, 2));
        let unavoidable = more.slots_of(&all[count]);
        let ratio = moved(&fewer, &more) as f64 / unavoidable as f64;
        println!("{count} and one more: moved {ratio:.3} of the unavoidable");
        assert!(ratio <= bound, "{count} nodes: {ratio}");
    }
}

#[test]
fn a_dead_primary_is_followed_by_its_replica() {
    for count in [3, 5, 10, 50, 100] {
        let members = nodes(count);
        let (before, after) = (ring(&members, 2), ring(&members[1..], 2));
        let orphans: Vec<Slot> =
            Slot::all().filter(|slot| before.primary(*slot) == Some(&members[0])).collect();
        let followed =
            orphans.iter().filter(|slot| before.owners(**slot).nth(1) == after.primary(**slot)).count()
                as f64;
        let share = followed / orphans.len() as f64;
        println!("{count} nodes: {share:.3} of a dead primary's slots go to their replica");
        assert!(share > 0.85, "{count} nodes: {share}");
    }
}

#[test]
fn the_table_never_changes_between_releases() {
    let ring = ring(&nodes(5), 2);
    assert_eq!(ring.fingerprint().to_string(), "8acf95a5cb6c6e49");
    let all: Vec<u8> = Slot::all()
        .flat_map(|slot| ring.owners(slot).flat_map(|id| id.as_str().bytes()).collect::<Vec<_>>())
        .collect();
    assert_eq!(mix::hash(0, &all), 0xe774_ebfe_b323_c1e8);
}

#[test]
fn a_fingerprint_tells_members_and_copies_apart_and_travels_as_text() {
    let of = |count, copies| ring(&nodes(count), copies).fingerprint();
    assert_ne!(of(3, 2), of(4, 2));
    assert_ne!(of(3, 2), of(3, 1));
    let text = serde_json::to_string(&of(3, 2)).unwrap();
    assert_eq!(text.len(), 18);
    assert_eq!(serde_json::from_str::<Fingerprint>(&text).unwrap(), of(3, 2));
    assert!("+00000000000000f".parse::<Fingerprint>().is_err());
}

#[test]
#[ignore = "a measurement: run it with --release and --nocapture"]
fn print_the_time_of_a_rebuild_at_100_nodes_with_3_copies() {
    let members = nodes(100);
    let mut times: Vec<_> = (0..21)
        .map(|_| {
            let start = std::time::Instant::now();
            std::hint::black_box(ring(&members, 3));
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("rebuild, 100 nodes, 3 copies: median {:?}, slowest {:?}", times[10], times[20]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_order_members_were_learned_in_does_not_matter(
        (members, shuffled) in
            (1..=40_usize).prop_flat_map(|count| (Just(nodes(count)), Just(nodes(count)).prop_shuffle())),
        copies in 1..=8_u8,
        again in any::<prop::sample::Index>(),
    ) {
        let twice = [shuffled.clone(), vec![again.get(&shuffled).clone()]].concat();
        let (one, other) = (ring(&members, copies), ring(&twice, copies));
        prop_assert_eq!(one.fingerprint(), other.fingerprint());
        prop_assert!(Slot::all().all(|slot| one.owners(slot).eq(other.owners(slot))));
    }
}
