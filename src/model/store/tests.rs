use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_000_000;

fn store(memory_bytes_max: usize) -> Store {
    Store::new(StoreConfig { memory_bytes_max, value_bytes_max: 16 << 10, hash_seed: 7 })
}

fn key(number: usize) -> Key {
    Key::parse(format!("key-{number}")).unwrap()
}

fn entry(time: u64, bytes: usize) -> Entry {
    Entry {
        value: vec![time as u8; bytes].into(),
        content_type: None,
        version: Version::new(time, 1),
        expires_at_ms: None,
    }
}

fn until(at: u64, entry: Entry) -> Entry {
    Entry { expires_at_ms: Some(at), ..entry }
}

fn put(store: &Store, number: usize, entry: Entry) -> Put {
    store.put_if_newer(&key(number), entry, NOW).unwrap()
}

/// The smallest table, of four buckets, stays when its only entry goes.
const EMPTY_TABLE: usize = 96;

const STORED: Put = Put::Stored { evicted: Evicted { entries: 0, bytes: 0 }, replaced: false };

#[test]
fn what_was_put_is_there_until_it_is_removed() {
    let store = store(1 << 20);
    assert_eq!(put(&store, 1, entry(1, 100)), STORED);
    assert_eq!(store.get(&key(1), NOW), Lookup::Hit(entry(1, 100)));
    assert_eq!(store.get(&key(2), NOW), Lookup::Miss);
    assert!(store.remove(&key(1), NOW));
    assert!(!store.remove(&key(1), NOW));
    assert_eq!((store.get(&key(1), NOW), store.len()), (Lookup::Miss, 0));
    assert_eq!(store.bytes(), EMPTY_TABLE);
}

#[test]
fn an_older_or_equal_version_is_stale() {
    let store = store(1 << 20);
    put(&store, 1, entry(5, 10));
    assert_eq!(put(&store, 1, entry(5, 20)), Put::Stale);
    assert_eq!(put(&store, 1, entry(4, 20)), Put::Stale);
    assert!(matches!(put(&store, 1, entry(6, 20)), Put::Stored { replaced: true, .. }));
    assert_eq!(store.peek(&key(1), NOW), Some(entry(6, 20)));
}

#[test]
fn a_removal_of_a_version_spares_every_other() {
    let store = store(1 << 20);
    put(&store, 1, entry(5, 10));
    assert!(!store.remove_version(&key(1), Version::new(4, 1)));
    assert!(!store.remove_version(&key(1), Version::new(6, 1)));
    assert!(store.remove_version(&key(1), Version::new(5, 1)));
    assert!(store.is_empty());
}

#[test]
fn an_expired_entry_is_gone_when_it_is_read() {
    let store = store(1 << 20);
    put(&store, 1, until(NOW + 10, entry(1, 10)));
    assert!(matches!(store.get(&key(1), NOW + 9), Lookup::Hit(_)));
    assert_eq!(store.peek(&key(1), NOW + 10), None);
    assert_eq!(store.get(&key(1), NOW + 10), Lookup::Expired);
    assert_eq!((store.get(&key(1), NOW + 10), store.bytes()), (Lookup::Miss, EMPTY_TABLE));
}

#[test]
fn an_expired_entry_was_not_there_to_be_replaced_or_removed() {
    let store = store(1 << 20);
    put(&store, 1, until(NOW, entry(1, 10)));
    assert_eq!(put(&store, 1, entry(2, 10)), STORED);
    put(&store, 2, until(NOW, entry(1, 10)));
    assert!(!store.remove(&key(2), NOW));
}

#[test]
fn a_sweep_frees_what_has_expired_and_nothing_else() {
    let store = store(8 << 20);
    for number in 0..1000 {
        put(&store, number, until(NOW + number as u64, entry(1, 10)));
    }
    put(&store, 1000, entry(1, 10));
    assert_eq!(store.sweep(NOW + 499, 200), 200);
    assert_eq!(store.sweep(NOW + 499, 1000), 300);
    assert_eq!(store.sweep(NOW + 499, 1000), 0);
    assert_eq!(store.len(), 501);
    assert!((500..=1000).all(|number| store.peek(&key(number), NOW).is_some()));
}

#[test]
fn a_new_ttl_replaces_the_old() {
    let store = store(1 << 20);
    put(&store, 1, until(NOW + 10, entry(1, 10)));
    put(&store, 1, until(NOW + 1000, entry(2, 10)));
    put(&store, 2, until(NOW + 10, entry(1, 10)));
    put(&store, 2, entry(2, 10));
    assert_eq!(store.sweep(NOW + 999, 10), 0);
    assert_eq!(store.sweep(NOW + 1000, 10), 1);
    assert_eq!(store.len(), 1);
}

#[test]
fn what_is_too_large_is_refused_and_changes_nothing() {
    let store =
        Store::new(StoreConfig { memory_bytes_max: 8 << 10, value_bytes_max: 16 << 10, hash_seed: 7 });
    put(&store, 1, entry(1, 100));
    let refused = |bytes| store.put_if_newer(&key(1), entry(2, bytes), NOW);
    assert_eq!(refused((16 << 10) + 1), Err(StoreError::TooLarge { bytes: 16385, bytes_max: 16384 }));
    assert!(matches!(refused(8 << 10), Err(StoreError::TooLarge { bytes_max: 8032, .. })));
    assert_eq!(store.peek(&key(1), NOW), Some(entry(1, 100)));
    assert!(refused(7 << 10).is_ok());
    assert_eq!(store.len(), 1);
}

#[test]
fn a_large_value_is_shared_with_its_readers() {
    let store = store(1 << 20);
    put(&store, 1, entry(1, 16 << 10));
    let (Some(one), Some(other)) = (store.peek(&key(1), NOW), store.peek(&key(1), NOW)) else { panic!() };
    assert_eq!(one.value.as_ptr(), other.value.as_ptr());
}

#[test]
fn keys_are_listed_by_shard_and_slot() {
    let store = store(64 << 20);
    assert_eq!(store.shards(), SHARDS_MAX);
    for number in 0..1000 {
        put(&store, number, entry(1, 10));
    }
    let even = |slot: Slot| slot.index().is_multiple_of(2);
    let listed: Vec<Key> =
        (0..store.shards()).flat_map(|shard| store.keys_in(shard, even, usize::MAX)).collect();
    assert_eq!(listed.len(), (0..1000).filter(|number| even(key(*number).slot())).count());
    assert!(listed.iter().all(|key| even(key.slot())));
    assert_eq!(store.keys_in(0, |_| true, 3).len(), 3);
    assert!(store.keys_in(store.shards(), |_| true, 3).is_empty());
}

#[test]
fn a_store_has_as_many_shards_as_its_largest_values_allow() {
    let shards = |memory_bytes_max, value_bytes_max| {
        Store::new(StoreConfig { memory_bytes_max, value_bytes_max, hash_seed: 7 }).shards()
    };
    assert_eq!(shards(256 << 20, 8 << 20), 7);
    assert_eq!(shards(256 << 20, 1 << 20), 36);
    assert_eq!(shards(1 << 20, 8 << 20), 1);
    assert_eq!(shards(0, usize::MAX), 1);
}

#[test]
fn small_entries_make_way_for_large_ones_and_so_does_their_table() {
    let store =
        Store::new(StoreConfig { memory_bytes_max: 1 << 20, value_bytes_max: 900 << 10, hash_seed: 7 });
    for number in 0..20_000 {
        put(&store, number, entry(1, 1));
    }
    assert!(store.len() > 5_000);
    put(&store, 0, entry(2, 900 << 10));
    assert!(store.peek(&key(0), NOW).is_some());
    assert!(store.bytes() <= 1 << 20);
}

#[derive(Clone, Debug)]
enum Step {
    Put { number: usize, time: u64, bytes: usize, ttl: Option<u64> },
    Get(usize),
    Peek(usize),
    Remove(usize),
    Sweep,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..60_usize;
    let ttl = prop::option::weighted(0.3, 1..200_u64);
    prop_oneof![
        6 => (number.clone(), 0..1000_u64, 0..9000_usize, ttl)
            .prop_map(|(number, time, bytes, ttl)| Step::Put { number, time, bytes, ttl }),
        3 => number.clone().prop_map(Step::Get),
        1 => number.clone().prop_map(Step::Peek),
        1 => number.prop_map(Step::Remove),
        1 => Just(Step::Sweep),
        1 => (1..50_u64).prop_map(Step::Wait),
    ]
}

/// Entries in a list, least recently used first: slow and plain.
#[derive(Default)]
struct Model(Vec<(usize, Entry)>);

impl Model {
    fn find(&self, number: usize) -> Option<&Entry> {
        self.0.iter().find(|(other, _)| *other == number).map(|(_, entry)| entry)
    }

    fn take(&mut self, number: usize) -> Option<Entry> {
        let at = self.0.iter().position(|(other, _)| *other == number)?;
        Some(self.0.remove(at).1)
    }
}

proptest! {
    #[test]
    fn the_store_is_an_lru_list_that_never_exceeds_its_budget(
        memory_bytes_max in 20_000..120_000_usize,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let store = store(memory_bytes_max);
        prop_assert_eq!(store.shards(), 1);
        let mut model = Model::default();
        let mut now = NOW;
        for step in steps {
            match step {
                Step::Put { number, time, bytes, ttl } => {
                    let entry = Entry { expires_at_ms: ttl.map(|ttl| now + ttl), ..entry(time, bytes) };
                    let before = model.find(number).cloned();
                    match store.put_if_newer(&key(number), entry.clone(), now).unwrap() {
                        Put::Stale => prop_assert!(before.unwrap().version >= entry.version),
                        Put::Stored { evicted, replaced } => {
                            prop_assert_eq!(replaced, before.is_some_and(|before| !before.is_expired(now)));
                            model.take(number);
                            // The least recently used go, and the new one is not among them.
                            model.0.drain(..evicted.entries);
                            model.0.push((number, entry));
                        }
                    }
                }
                Step::Get(number) => match (store.get(&key(number), now), model.take(number)) {
                    (Lookup::Hit(hit), Some(entry)) => {
                        prop_assert!(!entry.is_expired(now));
                        prop_assert_eq!(&hit, &entry);
                        model.0.push((number, entry));
                    }
                    (Lookup::Expired, Some(entry)) => prop_assert!(entry.is_expired(now)),
                    (Lookup::Miss, None) => {}
                    other => prop_assert!(false, "{:?}", other),
                },
                Step::Peek(number) => {
                    let live = model.find(number).filter(|entry| !entry.is_expired(now));
                    prop_assert_eq!(store.peek(&key(number), now), live.cloned());
                }
                Step::Remove(number) => {
                    let live = model.take(number).is_some_and(|entry| !entry.is_expired(now));
                    prop_assert_eq!(store.remove(&key(number), now), live);
                }
                Step::Sweep => {
                    let before = model.0.len();
                    model.0.retain(|(_, entry)| !entry.is_expired(now));
                    prop_assert_eq!(store.sweep(now, usize::MAX), before - model.0.len());
                }
                Step::Wait(ms) => now += ms,
            }
            prop_assert!(store.bytes() <= memory_bytes_max);
            let order: Vec<Key> = model.0.iter().rev().map(|(number, _)| key(*number)).collect();
            prop_assert_eq!(store.keys_in(0, |_| true, usize::MAX), order);
        }
    }

    #[test]
    fn the_newest_remains_in_whatever_order_puts_come(
        (puts, shuffled) in prop::collection::vec((0..5_usize, 0..50_u64), 1..60)
            .prop_flat_map(|puts| (Just(puts.clone()), Just([puts.clone(), puts].concat()).prop_shuffle())),
    ) {
        let (one, other) = (store(1 << 20), store(1 << 20));
        let mut newest = HashMap::<usize, u64>::new();
        for (number, time) in &puts {
            put(&one, *number, entry(*time, 10));
            let newest = newest.entry(*number).or_default();
            *newest = (*newest).max(*time);
            prop_assert_eq!(one.peek(&key(*number), NOW).unwrap().version.time(), *newest);
        }
        for (number, time) in shuffled {
            put(&other, number, entry(time, 10));
        }
        for (number, time) in newest {
            prop_assert_eq!(one.peek(&key(number), NOW).unwrap(), entry(time, 10));
            prop_assert_eq!(other.peek(&key(number), NOW).unwrap(), entry(time, 10));
        }
    }
}
