//! The store against plain models, over random calls.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

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
                    let expiry = ttl.map(|ttl| Expiry { at_ms: now + ttl, remembered_ms: 0 });
                    let entry = Entry { expiry, ..entry(time, bytes) };
                    let before = model.find(number).cloned();
                    match store.put_if_newer(&key(number), Record::Entry(entry.clone()), now).unwrap() {
                        Put::Stale { .. } => prop_assert!(before.unwrap().version >= entry.version),
                        Put::Stored { evicted, replaced, older } => {
                            let live = before.filter(|before| !before.is_expired(now));
                            prop_assert_eq!(replaced, live.is_some());
                            prop_assert!(live.is_none_or(|live| older == Some(live.version)));
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
                    (Lookup::Expired { .. }, Some(entry)) => prop_assert!(entry.is_expired(now)),
                    (Lookup::Miss, None) => {}
                    other => prop_assert!(false, "{:?}", other),
                },
                Step::Peek(number) => {
                    let live = model.find(number).filter(|entry| !entry.is_expired(now));
                    prop_assert_eq!(peek(&store, number, now), live.cloned());
                }
                Step::Remove(number) => {
                    let there = model.take(number);
                    let version = there.as_ref().map_or(Version::new(0, 0), |entry| entry.version);
                    prop_assert_eq!(store.remove_version(&key(number), version), there.is_some());
                }
                Step::Sweep => {
                    let before = model.0.len();
                    model.0.retain(|(_, entry)| !entry.is_expired(now));
                    prop_assert_eq!(store.sweep(now, usize::MAX).entries, before - model.0.len());
                }
                Step::Wait(ms) => now += ms,
            }
            prop_assert!(store.bytes() <= memory_bytes_max);
            let live = model.0.iter().filter(|(_, entry)| !entry.is_expired(now));
            let order: Vec<_> = live.map(|(number, entry)| (key(*number), entry.version)).collect();
            prop_assert_eq!(store.versions_in(0, |_| true, now), order);
        }
    }

    /// What is visible does not depend on the order in which records come, nor on how often, nor on what a get or a sweep
    /// frees between them.
    #[test]
    fn the_newest_is_visible_in_every_order(
        writes in prop::collection::btree_map(0..100_u64, kind(), 1..=5),
        wait in 0..60_u64,
    ) {
        let records: Vec<Record> = writes.iter().map(|(ms, kind)| record(*ms, *kind)).collect();
        let newest = records.last().cloned();
        let now = NOW + 100 + wait;
        let visible = newest.map(|newest| match newest {
            Record::Entry(entry) if entry.is_expired(now) => (entry.version, None),
            Record::Entry(entry) => (entry.version, Some(entry)),
            Record::Tombstone(tombstone) => (tombstone.version, None),
        });
        for order in orders(records.len()) {
            let (plain, disturbed) = (store(1 << 20), store(1 << 20));
            for (turn, index) in order.iter().chain(&order).enumerate() {
                let at_ms = NOW + 100;
                plain.put_if_newer(&key(1), records[*index].clone(), at_ms).unwrap();
                disturbed.put_if_newer(&key(1), records[*index].clone(), at_ms).unwrap();
                if turn % 2 == 0 {
                    disturbed.sweep(at_ms, 10);
                } else {
                    disturbed.get(&key(1), at_ms);
                }
            }
            disturbed.get(&key(1), now);
            for store in [plain, disturbed] {
                let version = store.peek(&key(1), now).map(|record| record.version());
                prop_assert_eq!(version.map(|version| (version, peek(&store, 1, now))), visible.clone());
                let listed = store.versions_in(store.shard_of(key(1).slot()), |_| true, now);
                prop_assert_eq!(listed.first().map(|(_, version)| *version), version);
                prop_assert_eq!(store.len() + store.tombstones(), 1);
            }
        }
    }

    /// With so little room that entries are evicted and tombstones lost, against a list of the newest of each key. What is
    /// given up may come back in an older version; all else is as the list says.
    #[test]
    fn bytes_stay_within_the_bound_and_nothing_older_follows_what_was_not_given_up(
        memory_bytes_max in 40_000..120_000_usize,
        steps in prop::collection::vec((0..40_usize, 0..100_u64, kind(), 0..8_u8), 1..400),
    ) {
        let store = store(memory_bytes_max);
        let mut newest = HashMap::<usize, Version>::new();
        let (mut now, mut given_up) = (NOW + 100, false);
        for (number, ms, kind, call) in steps {
            let mut evicted = Evicted::default();
            match call {
                0 => evicted = store.sweep(now, 5).evicted,
                1 => now += ms / 10,
                2 => if let Lookup::Expired { evicted: lost } = store.get(&key(number), now) {
                    evicted = lost;
                },
                3 => {
                    let stamp = |current: Option<Current>| {
                        let held = current.map_or(Version::new(0, 0), |current| current.version);
                        Ok::<_, ()>(at(now).max(held.next(2)))
                    };
                    let written = store.write(&key(number), record(ms, kind), now, stamp).unwrap().unwrap();
                    evicted = written.evicted;
                    let before = newest.insert(number, written.version);
                    prop_assert!(given_up || before < Some(written.version));
                }
                _ => {
                    let new = record(ms, kind);
                    let version = new.version();
                    let put = store.put_if_newer(&key(number), new, now).unwrap();
                    let before = newest.entry(number).or_insert(version);
                    match put {
                        Put::Stored { evicted: lost, .. } => {
                            evicted = lost;
                            prop_assert!(given_up || *before <= version);
                            *before = version;
                        }
                        Put::Stale { held } => prop_assert!(held >= version && held == *before),
                    }
                }
            }
            given_up |= evicted != Evicted::default();
            prop_assert!(store.bytes() <= memory_bytes_max, "{} bytes", store.bytes());
            for (number, version) in &newest {
                let there = store.peek(&key(*number), now).map(|record| record.version());
                prop_assert!(there == Some(*version) || given_up && there.is_none());
            }
        }
        let listed = store.versions_in(0, |_| true, now).into_iter().collect::<HashMap<_, _>>();
        for number in 0..40 {
            let there = store.peek(&key(number), now).map(|record| record.version());
            prop_assert_eq!(there, listed.get(&key(number)).copied());
        }
    }

    /// With so little room that nearly everything is evicted, and few floors: of a slot that was watched all the time nothing
    /// older than the newest ever is visible, nor accepted.
    #[test]
    fn no_older_version_follows_in_a_watched_slot_whatever_is_evicted(
        steps in prop::collection::vec((0..40_usize, 0..100_u64, kind(), 0..8_u8), 1..400),
    ) {
        let store = store(40_000);
        let watched = slots(0..20);
        store.watch(&watched);
        let mut newest = HashMap::<usize, Version>::new();
        let now = NOW + 100;
        for (number, ms, kind, call) in steps {
            match call {
                0 => drop(store.sweep(now, 5)),
                1 => drop(store.get(&key(number), now)),
                _ => {
                    let new = record(ms, kind);
                    let version = new.version();
                    let put = store.put_if_newer(&key(number), new, now).unwrap();
                    let before = newest.entry(number).or_insert(version);
                    if watched.contains(key(number).slot()) && matches!(put, Put::Stored { .. }) {
                        prop_assert!(*before <= version, "{version} over {before}");
                    }
                    *before = version.max(*before);
                }
            }
            for (number, version) in newest.iter().filter(|(number, _)| watched.contains(key(**number).slot())) {
                let there = store.peek(&key(*number), now).map(|record| record.version());
                prop_assert!(there.is_some_and(|there| there >= *version));
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Value,
    Deleted,
    /// With an end, in milliseconds from the start; it may be over when it comes.
    Until(u64),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Value), Just(Kind::Deleted), (0..200_u64).prop_map(Kind::Until)]
}

/// What was written `ms` after the start; of varying size, so that budgets are met.
fn record(ms: u64, kind: Kind) -> Record {
    let entry = Entry { version: at(NOW + ms), ..entry(ms, 40 * ms as usize) };
    match kind {
        Kind::Value => Record::Entry(entry),
        Kind::Deleted => tombstone(entry.version),
        Kind::Until(end) => Record::Entry(until(NOW + end, entry)),
    }
}

/// Every order of so many things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![Vec::new()] };
    let with_last = |order: Vec<usize>| {
        (0..count).map(move |place| {
            let mut order = order.clone();
            order.insert(place, last);
            order
        })
    };
    orders(last).into_iter().flat_map(with_last).collect()
}
