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

/// How many slots of 16384 may be without an old owner after one change, up to 21 members: more than were ever seen.
const LOST_MAX: usize = 4;

/// Slots that no owner of before owns after.
fn without_an_old_owner(before: &Ring, after: &Ring) -> usize {
    let keeps_one = |slot| before.owners(slot).any(|owner| after.owns(owner, slot));
    Slot::all().filter(|slot| !keeps_one(*slot)).count()
}

#[test]
#[ignore = "a measurement: run it with --release and --nocapture"]
fn print_how_many_slots_a_change_leaves_without_an_old_owner() {
    for (count, rounds) in [
        (3, 500),
        (4, 500),
        (5, 500),
        (6, 500),
        (7, 500),
        (8, 500),
        (9, 500),
        (10, 500),
        (12, 300),
        (15, 200),
        (20, 100),
        (30, 50),
        (50, 20),
        (100, 20),
        (200, 10),
    ] {
        for copies in [2, 3] {
            let mut slots = [0; 3];
            for round in 0..rounds {
                let name = |number| NodeId::parse(&format!("cluster{round}-node{number}")).unwrap();
                let all: Vec<NodeId> = (0..=count).map(name).collect();
                let before = ring(&all[..count], copies);
                for (sum, after) in slots.iter_mut().zip([&all[..], &all[1..count], &all[2..count]]) {
                    *sum += without_an_old_owner(&before, &ring(after, copies));
                }
            }
            let [join, death, two] = slots;
            println!(
                "{count} nodes, {copies} copies, {rounds} clusters: {join} slots at a join, {death} at a death, {two} at two"
            );
        }
    }
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

    /// A former owner that stays a member holds up the new table while its former co-owners may answer by the old one; that it
    /// also stays an owner is not certain, since a cap that moves may push a slot away from both.
    #[test]
    fn a_change_of_one_member_leaves_nearly_every_slot_an_old_owner(
        names in prop::collection::btree_set(any::<u32>(), 4..=21),
        copies in 2..=3_u8,
        changed in any::<prop::sample::Index>(),
    ) {
        let more: Vec<NodeId> = names.iter().map(|name| NodeId::parse(&format!("n{name}")).unwrap()).collect();
        let mut fewer = more.clone();
        fewer.remove(changed.index(more.len()));
        let (more, fewer) = (ring(&more, copies), ring(&fewer, copies));
        prop_assert!(without_an_old_owner(&fewer, &more) <= LOST_MAX, "at a join");
        prop_assert!(without_an_old_owner(&more, &fewer) <= LOST_MAX, "at a death");
    }

    #[test]
    fn where_there_is_no_room_for_others_an_old_owner_stays(
        names in prop::collection::btree_set(any::<u32>(), 3..=7),
        changed in any::<prop::sample::Index>(),
    ) {
        let more: Vec<NodeId> = names.iter().map(|name| NodeId::parse(&format!("n{name}")).unwrap()).collect();
        let mut fewer = more.clone();
        fewer.remove(changed.index(more.len()));
        // Two sets of so many owners meet, among so many members.
        let copies = more.len() as u8 / 2 + 1;
        let (more, fewer) = (ring(&more, copies), ring(&fewer, copies));
        prop_assert_eq!(without_an_old_owner(&fewer, &more) + without_an_old_owner(&more, &fewer), 0);
    }
}
