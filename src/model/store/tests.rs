use std::time::Duration;

use super::*;
use crate::model::{Entry, Expiry, Tombstone};

mod properties;

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
        expiry: None,
    }
}

/// Written when its version was stamped.
fn until(at_ms: u64, entry: Entry) -> Entry {
    let written_ms = entry.version.millis();
    let ttl = Duration::from_millis(at_ms.saturating_sub(written_ms));
    Entry { expiry: Some(Expiry { at_ms, ..Expiry::of_write(ttl, written_ms) }), ..entry }
}

fn put(store: &Store, number: usize, entry: Entry) -> Put {
    store.put_if_newer(&key(number), Record::Entry(entry), NOW).unwrap()
}

fn peek(store: &Store, number: usize, now_ms: u64) -> Option<Entry> {
    match store.peek(&key(number), now_ms) {
        Some(Record::Entry(entry)) => Some(entry),
        _ => None,
    }
}

/// A version stamped at that millisecond.
fn at(ms: u64) -> Version {
    Version::new(ms << 16, 1)
}

fn tombstone(version: Version) -> Record {
    Record::Tombstone(Tombstone { version, expires_at_ms: version.millis() + Tombstone::LIFE_MS })
}

/// The smallest table, of four buckets, stays when its only entry goes.
const EMPTY_TABLE: usize = 96;

const EXPIRED: Lookup = Lookup::Expired { evicted: Evicted { entries: 0, bytes: 0, tombstones: 0 } };

const STORED: Put =
    Put::Stored { evicted: Evicted { entries: 0, bytes: 0, tombstones: 0 }, replaced: false, older: None };

#[test]
fn what_was_put_is_there_until_it_is_removed() {
    let store = store(1 << 20);
    assert_eq!(put(&store, 1, entry(1, 100)), STORED);
    assert_eq!(store.get(&key(1), NOW), Lookup::Hit(entry(1, 100)));
    assert_eq!(store.get(&key(2), NOW), Lookup::Miss);
    assert!(store.remove_version(&key(1), Version::new(1, 1)));
    assert!(!store.remove_version(&key(1), Version::new(1, 1)));
    assert_eq!((store.get(&key(1), NOW), store.len()), (Lookup::Miss, 0));
    assert_eq!(store.bytes(), EMPTY_TABLE);
}

#[test]
fn an_older_or_equal_version_is_stale() {
    let store = store(1 << 20);
    put(&store, 1, entry(5, 10));
    let held = Version::new(5, 1);
    assert_eq!(put(&store, 1, entry(5, 20)), Put::Stale { held });
    assert_eq!(put(&store, 1, entry(4, 20)), Put::Stale { held });
    assert!(matches!(put(&store, 1, entry(6, 20)), Put::Stored { replaced: true, .. }));
    assert_eq!(peek(&store, 1, NOW), Some(entry(6, 20)));
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
    assert_eq!(store.get(&key(1), NOW + 10), EXPIRED);
    assert_eq!((store.get(&key(1), NOW + 10), store.bytes()), (Lookup::Miss, EMPTY_TABLE));
}

#[test]
fn an_expired_entry_was_not_there_to_be_replaced() {
    let store = store(1 << 20);
    put(&store, 1, until(NOW + 1, entry(1, 10)));
    let put = store.put_if_newer(&key(1), Record::Entry(entry(2, 10)), NOW + 1).unwrap();
    assert_eq!(put, STORED);
}

#[test]
fn a_delete_keeps_older_versions_out_and_gives_way_to_newer_ones() {
    let store = store(1 << 20);
    let deleted = at(NOW);
    put(&store, 1, Entry { version: at(NOW - 1), ..entry(1, 10) });
    let put_tombstone = |number| store.put_if_newer(&key(number), tombstone(deleted), NOW).unwrap();
    assert!(matches!(put_tombstone(1), Put::Stored { replaced: true, .. }));
    assert_eq!(put_tombstone(2), STORED);
    for number in [1, 2] {
        assert_eq!(store.get(&key(number), NOW), Lookup::Deleted(deleted));
        let older = Entry { version: at(NOW - 1), ..entry(1, 10) };
        assert_eq!(put(&store, number, older), Put::Stale { held: deleted });
    }
    assert_eq!((store.len(), store.tombstones()), (0, 2));
    let newer = Entry { version: at(NOW + 1), ..entry(1, 10) };
    let stored = put(&store, 1, newer.clone());
    assert!(
        matches!(stored, Put::Stored { replaced: false, older, .. } if older == Some(deleted)),
        "{stored:?}"
    );
    assert_eq!(store.get(&key(1), NOW), Lookup::Hit(newer));
    assert!(store.remove_version(&key(2), deleted));
    assert_eq!(store.tombstones(), 0);
}

#[test]
fn a_delete_is_forgotten_when_its_time_is_over_and_leaves_no_bytes() {
    let store = store(1 << 20);
    store.put_if_newer(&key(1), tombstone(at(NOW)), NOW).unwrap();
    assert!(store.bytes() > 0);
    let end = NOW + Tombstone::LIFE_MS;
    assert!(store.peek(&key(1), end - 1).is_some());
    assert_eq!(store.peek(&key(1), end), None);
    store.sweep(end, 10);
    assert_eq!((store.tombstones(), store.bytes()), (0, 0));
}

#[test]
fn an_entry_whose_time_is_over_uncovers_nothing_older() {
    let store = store(1 << 20);
    let [old, new] = [1, 2].map(|ms| Entry { version: at(NOW + ms), ..entry(1, 10) });
    let is_stale = |number: usize, now: u64| {
        let put = store.put_if_newer(&key(number), Record::Entry(old.clone()), now).unwrap();
        put == Put::Stale { held: new.version }
    };
    for number in 1..=3 {
        put(&store, number, until(NOW + 10, new.clone()));
    }
    assert!(is_stale(1, NOW + 20), "not yet freed");
    assert_eq!(store.get(&key(2), NOW + 20), EXPIRED);
    assert!(is_stale(2, NOW + 20), "freed by a read");
    store.sweep(NOW + 20, 10);
    assert!(is_stale(3, NOW + 20), "freed by a sweep");
    store.put_if_newer(&key(4), Record::Entry(until(NOW + 10, new.clone())), NOW + 20).unwrap();
    assert!(is_stale(4, NOW + 20), "over when it came");
    assert!(!is_stale(4, NOW + 2 + Tombstone::LIFE_MS), "long ago");
}

#[test]
fn an_entry_whose_time_is_over_stands_as_a_tombstone_before_it_is_freed_too() {
    let store = store(1 << 20);
    let version = at(NOW + 1);
    put(&store, 1, until(NOW + 10, Entry { version, ..entry(1, 10) }));
    let there = store.peek(&key(1), NOW + 10);
    assert_eq!(there.map(|record| record.version()), Some(version));
    let shard = store.shard_of(key(1).slot());
    assert_eq!(store.versions_in(shard, |_| true, NOW + 10), [(key(1), version)]);
}

#[test]
fn no_tombstone_outlives_ten_minutes_from_when_it_came() {
    let store = store(1 << 20);
    let endless = Tombstone { version: at(NOW), expires_at_ms: u64::MAX };
    store.put_if_newer(&key(1), Record::Tombstone(endless), NOW).unwrap();
    assert!(store.peek(&key(1), NOW + Tombstone::LIFE_MS - 1).is_some());
    assert_eq!(store.peek(&key(1), NOW + Tombstone::LIFE_MS), None);
}

#[test]
fn deletes_beyond_their_budget_go_in_the_order_of_their_ends_and_entries_stay() {
    let store = Store::new(StoreConfig { memory_bytes_max: 1 << 20, value_bytes_max: 1 << 20, hash_seed: 7 });
    put(&store, 0, entry(1, 100));
    let mut lost = 0;
    for number in 1..2000_u64 {
        let put = store.put_if_newer(&key(number as usize), tombstone(at(NOW + number)), NOW + 2000).unwrap();
        let Put::Stored { evicted, .. } = put else { panic!("{put:?}") };
        assert_eq!(evicted.entries, 0);
        lost += evicted.tombstones;
        assert!(store.bytes() <= store.bytes_max());
    }
    assert_eq!(store.tombstones() + lost, 1999);
    assert_eq!(store.tombstones(), (1 << 20) / 32 / cost::tombstone("key-1000".len()));
    assert_eq!(store.peek(&key(lost), NOW), None);
    assert!(store.peek(&key(lost + 1), NOW).is_some());
    assert!(peek(&store, 0, NOW).is_some());
}

#[test]
fn entries_beyond_their_budget_spare_the_deletes() {
    let store = store(64 << 10);
    store.put_if_newer(&key(0), tombstone(at(NOW)), NOW).unwrap();
    for number in 1..1000 {
        put(&store, number, entry(1, 100));
    }
    assert!(store.len() < 999);
    assert_eq!(store.get(&key(0), NOW), Lookup::Deleted(at(NOW)));
}

#[test]
fn what_is_lost_for_tombstones_is_told_whoever_leaves_them() {
    let filled = || {
        let store = store(64 << 10);
        put(&store, 0, until(NOW + 10, Entry { version: at(NOW + 9), ..entry(1, 10) }));
        (1..100).for_each(|number| {
            store.put_if_newer(&key(number), tombstone(at(NOW)), NOW).unwrap();
        });
        store
    };
    let one = Evicted { tombstones: 1, ..Evicted::default() };
    assert_eq!(filled().get(&key(0), NOW + 10), Lookup::Expired { evicted: one });
    let swept = Swept { entries: 1, tombstones: 0, evicted: one };
    assert_eq!(filled().sweep(NOW + 10, 10), swept);
    let delete = filled().write(&key(0), tombstone(at(NOW)), NOW, |_| Ok::<_, ()>(at(NOW + 10)));
    assert_eq!(delete, Ok(Ok(Written { version: at(NOW + 10), replaced: true, evicted: one })));
    // At their ends they are no loss.
    let delete = tombstone(at(NOW + Tombstone::LIFE_MS));
    assert_eq!(filled().put_if_newer(&key(100), delete, NOW + Tombstone::LIFE_MS), Ok(STORED));
}

#[test]
fn a_sweep_frees_tombstones_in_steps_too() {
    let store = store(8 << 20);
    for number in 0..500 {
        store.put_if_newer(&key(number), tombstone(at(NOW)), NOW).unwrap();
    }
    store.put_if_newer(&key(500), tombstone(at(NOW + 1)), NOW + 1).unwrap();
    let end = NOW + Tombstone::LIFE_MS;
    assert_eq!(store.sweep(end - 1, 1000), Swept::default());
    assert_eq!(store.sweep(end, 200), Swept { tombstones: 200, ..Swept::default() });
    assert_eq!(store.sweep(end, 1000), Swept { tombstones: 300, ..Swept::default() });
    assert_eq!(store.tombstones(), 1);
}

#[test]
fn writes_that_look_at_the_version_do_not_lose_one_another() {
    let store = store(1 << 20);
    let count = |entry: &Entry| u64::from_le_bytes(entry.value[..].try_into().unwrap());
    let add_one = || loop {
        let seen = peek(&store, 1, NOW);
        let next = seen.as_ref().map_or(0, count) + 1;
        let new = Entry { value: next.to_le_bytes().to_vec().into(), ..entry(0, 0) };
        let expected = seen.map(|entry| entry.version);
        let written = store.write(&key(1), Record::Entry(new), NOW, |current| {
            let found = current.map(|current| current.version);
            if found == expected {
                Ok(Version::new(found.map_or(1, |found| found.time() + 1), 1))
            } else {
                Err(())
            }
        });
        if written.unwrap().is_ok() {
            return;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| add_one()));
        }
    });
    assert_eq!(count(&peek(&store, 1, NOW).unwrap()), 2000);
}

#[test]
fn a_write_that_is_refused_changes_nothing() {
    let store = store(1 << 20);
    put(&store, 1, entry(5, 10));
    let refused = store.write(&key(1), tombstone(at(NOW)), NOW, |current| {
        assert_eq!(current, Some(Current { version: Version::new(5, 1), live: true }));
        Err("no")
    });
    assert_eq!(refused, Ok(Err("no")));
    assert_eq!(peek(&store, 1, NOW), Some(entry(5, 10)));
}

#[test]
fn a_sweep_frees_what_has_expired_and_nothing_else() {
    let store = store(8 << 20);
    for number in 0..1000 {
        put(&store, number, until(NOW + 1 + number as u64, entry(1, 10)));
    }
    put(&store, 1000, entry(1, 10));
    assert_eq!(store.sweep(NOW + 500, 200).entries, 200);
    assert_eq!(store.sweep(NOW + 500, 1000).entries, 300);
    assert_eq!(store.sweep(NOW + 500, 1000).entries, 0);
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
    assert_eq!(store.sweep(NOW + 999, 10).entries, 0);
    assert_eq!(store.sweep(NOW + 1000, 10).entries, 1);
    assert_eq!(store.len(), 1);
}

#[test]
fn what_is_too_large_is_refused_and_changes_nothing() {
    let store =
        Store::new(StoreConfig { memory_bytes_max: 8 << 10, value_bytes_max: 16 << 10, hash_seed: 7 });
    put(&store, 1, entry(1, 100));
    let refused = |bytes| store.put_if_newer(&key(1), Record::Entry(entry(2, bytes)), NOW);
    assert_eq!(refused((16 << 10) + 1), Err(StoreError::TooLarge { bytes: 16385, bytes_max: 16384 }));
    assert!(matches!(refused(8 << 10), Err(StoreError::TooLarge { bytes_max: 7776, .. })));
    assert_eq!(peek(&store, 1, NOW), Some(entry(1, 100)));
    assert!(refused(7 << 10).is_ok());
    assert_eq!(store.len(), 1);
}

#[test]
fn a_large_value_is_shared_with_its_readers() {
    let store = store(1 << 20);
    put(&store, 1, entry(1, 16 << 10));
    let (Some(one), Some(other)) = (peek(&store, 1, NOW), peek(&store, 1, NOW)) else { panic!() };
    assert_eq!(one.value.as_ptr(), other.value.as_ptr());
}

#[test]
fn versions_are_listed_by_shard_and_slot_deletes_among_them() {
    let store = store(64 << 20);
    assert_eq!(store.shards(), SHARDS_MAX);
    for number in 0..900 {
        put(&store, number, entry(1, 10));
    }
    for number in 900..1000 {
        store.put_if_newer(&key(number), tombstone(at(NOW)), NOW).unwrap();
    }
    put(&store, 1000, until(NOW + 1, entry(1, 10)));
    let even = |slot: Slot| slot.index().is_multiple_of(2);
    let listed: Vec<(Key, Version)> =
        (0..store.shards()).flat_map(|shard| store.versions_in(shard, even, NOW + 1)).collect();
    assert_eq!(listed.len(), (0..1000).filter(|number| even(key(*number).slot())).count());
    for (key, version) in listed {
        assert!(even(key.slot()));
        assert_eq!(store.peek(&key, NOW).unwrap().version(), version);
    }
    assert!(store.versions_in(store.shards(), |_| true, NOW).is_empty());
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

fn slots(numbers: impl IntoIterator<Item = usize>) -> SlotSet {
    numbers.into_iter().map(|number| key(number).slot()).collect()
}

#[test]
fn an_eviction_from_a_watched_slot_leaves_nothing_older_visible() {
    let store = store(64 << 10);
    let big = |time| Entry { version: at(NOW + time), ..entry(time, 8000) };
    store.watch(&slots([1]));
    put(&store, 1, big(50));
    for number in 2..20 {
        put(&store, number, big(100));
    }
    assert_eq!(store.get(&key(1), NOW), Lookup::Deleted(at(NOW + 50)));
    assert_eq!(store.peek(&key(1), NOW).map(|record| record.version()), Some(at(NOW + 50)));
    assert_eq!(put(&store, 1, big(49)), Put::Stale { held: at(NOW + 50) });
    // Of others nothing is remembered.
    assert_eq!((store.get(&key(2), NOW), store.get(&key(3), NOW)), (Lookup::Miss, Lookup::Miss));
    assert_eq!(store.floors(0, &SlotSet::full()), [(key(1).slot(), at(NOW + 50))]);
    assert!(matches!(put(&store, 1, big(51)), Put::Stored { .. }));
    store.watch(&SlotSet::empty());
    assert_eq!(store.floors(0, &SlotSet::full()), []);
    assert!(store.watches_nothing());
}

#[test]
fn a_lost_tombstone_and_a_version_given_up_leave_a_floor_where_something_is_watched() {
    let store = store(64 << 10);
    store.watch(&SlotSet::full());
    for number in 0..100 {
        let deleted = tombstone(at(NOW + number as u64));
        store.put_if_newer(&key(number), deleted, NOW + 200).unwrap();
    }
    assert!(store.tombstones() < 100);
    for number in 0..100 {
        let older = Entry { version: at(NOW - 1), ..entry(1, 10) };
        assert!(matches!(put(&store, number, older), Put::Stale { .. }), "{number}");
    }
    let new = Entry { version: at(NOW + 300), ..entry(1, 10) };
    put(&store, 200, new.clone());
    assert!(store.give_up_version(&key(200), new.version, NOW));
    assert_eq!(store.get(&key(200), NOW), Lookup::Deleted(new.version));
    store.note_given_up(&key(300), at(NOW + 400), NOW);
    assert_eq!(store.get(&key(300), NOW), Lookup::Deleted(at(NOW + 400)));
}

#[test]
fn what_gives_way_is_told_before_it_is_gone() {
    let store = store(1 << 20);
    let told = |number| {
        let mut told = None;
        let put = store.put_over(&key(1), Record::Entry(entry(number, 10)), NOW, |older| told = Some(older));
        (told, put.unwrap())
    };
    assert_eq!(told(2).0, None);
    let (older, put) = told(3);
    assert_eq!(older, Some(Version::new(2, 1)));
    assert!(matches!(put, Put::Stored { older: Some(_), .. }));
    assert_eq!(told(3), (None, Put::Stale { held: Version::new(3, 1) }));
    assert_eq!(told(1).0, None);
}
