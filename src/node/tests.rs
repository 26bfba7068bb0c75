//! Whatever the edge admits gets from node to node: each frame that is cut is one which the receiver takes.
//!
//! What is cut here is cut by the functions that the node uses; it is encoded and decoded with the bounds that the two ends
//! of a link go by.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::batch::frames;
use super::copies::{self, Item};
use super::offer::{self, ask, questions};
use super::operation::{check_lengths, outcome_from_wire, outcome_to_wire, record_from_wire, record_to_wire};
use super::serve::answers;
use super::{NewValue, Operation, Outcome};
use crate::http::BATCH_OPERATIONS_MAX;
use crate::link::{
    self, BATCH_BYTES_MAX, Batch, Claim, FRAME_BYTES_LEAST, LinkConfig, Party, Refusal, Reply, Request,
    Settled, Weight, carried, cut,
};
use crate::model::{Condition, ContentType, Entry, Expiry, Key, NodeId, Record, Slot, Tombstone, Version};

fn frame_bytes_max(value_bytes_max: usize) -> usize {
    let me = Party { address: ([127, 0, 0, 1], 1).into(), node_id: NodeId::parse("n1").unwrap(), boot: 1 };
    let config = LinkConfig {
        cluster: "test".into(),
        me,
        keyring: None,
        nonces: Arc::default(),
        tls: None,
        value_bytes_max,
        seed: 1,
    };
    config.frame_bytes_max()
}

fn claim() -> Claim {
    let settled = Some(Settled { at_ms: u64::MAX, done: None, unsure_ms: None });
    Claim { settled, ..Claim::new("ffffffffffffffff".parse().unwrap(), u64::MAX, 1) }
}

/// Some of these many bytes, which are never copied until they are encoded.
fn value(bytes: usize) -> Bytes {
    Bytes::from(vec![7; bytes])
}

fn key(number: usize, bytes: usize) -> Key {
    let name = format!("{number}:");
    Key::parse(format!("{name}{}", "k".repeat(bytes.saturating_sub(name.len())))).unwrap()
}

fn entry(version: Version, type_bytes: Option<usize>, value: Bytes) -> Record {
    let content_type = type_bytes.map(|bytes| ContentType::parse("t".repeat(bytes)).unwrap());
    let expiry = Some(Expiry { at_ms: u64::MAX, remembered_ms: u32::MAX });
    Record::Entry(Entry { value, content_type, version, expiry })
}

/// Short, long, and as long as can be.
fn lengths(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..=most.min(40), 1 => 0..=most, 2 => Just(most)]
}

/// The longest value, and records of which none is longer.
fn records() -> impl Strategy<Value = (usize, Vec<(Key, Record)>)> {
    let longest = prop_oneof![Just(1), Just(1000), Just(70_000), Just(3 << 20)];
    longest.prop_flat_map(|value_bytes_max| {
        let version = prop_oneof![Just(Version::new(u64::MAX, u32::MAX)), Just(Version::new(0, 0))];
        let most = if value_bytes_max > 100_000 { 40 } else { 1500 };
        let one = (
            lengths(Key::BYTES_MAX),
            prop::option::weighted(0.8, lengths(ContentType::BYTES_MAX)),
            prop_oneof![3 => Just(0), 3 => lengths(value_bytes_max)],
            version,
            prop::bool::weighted(0.1),
        );
        let source = value(value_bytes_max);
        prop::collection::vec(one, 1..most).prop_map(move |all| {
            let record = |(type_bytes, value_bytes, version, is_deleted)| match is_deleted {
                true => Record::Tombstone(Tombstone { version, expires_at_ms: u64::MAX }),
                false => entry(version, type_bytes, source.slice(..value_bytes)),
            };
            let all = all.into_iter().enumerate();
            let all = all.map(|(number, (key_bytes, type_bytes, value_bytes, version, is_deleted))| {
                (key(number, key_bytes), record((type_bytes, value_bytes, version, is_deleted)))
            });
            (value_bytes_max, all.collect())
        })
    })
}

fn records_of(heads: Vec<link::RecordHead>) -> link::Records {
    link::Records { sent_at_ms: Some(u64::MAX), heads }
}

/// Sends records to a peer and gives what arrives there.
fn arrive(
    batches: Vec<Vec<Item>>,
    request: impl Fn(Vec<link::RecordHead>) -> Request,
    taken: usize,
) -> Vec<(Key, Record)> {
    let mut arrived = Vec::new();
    for batch in batches {
        let (heads, values): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let (request, mut values) = carried(&request(heads), &values, taken).expect("it is sent");
        let (Request::Copy(_, records) | Request::Sync(records)) = request else { panic!("{request:?}") };
        check_lengths(records.heads.iter().map(link::RecordHead::value_bytes), &values).unwrap();
        arrived.extend(records.heads.into_iter().map(|head| record_from_wire(head, &mut values, 0).unwrap()));
    }
    arrived
}

fn synced(records: &[(Key, Record)], taken: usize) -> Vec<(Key, Record)> {
    let heads: Vec<_> = records.iter().map(|(key, record)| (key.clone(), record.version())).collect();
    let mut asked = 0;
    for some in questions(&heads) {
        let (request, _) = carried(&ask(Request::Versions, &some), &[], taken).expect("it is asked");
        let Request::Versions(versions) = request else { panic!("{request:?}") };
        let all = Reply::Wanted((0..versions.len() as u32).collect());
        assert!(carried(&all, &[], taken).is_some(), "it is answered");
        asked += versions.len();
    }
    assert_eq!(asked, records.len());
    let mut batch = Batch::new(offer::ROOM);
    let mut batches = Vec::new();
    for (key, record) in records {
        let item = record_to_wire(key, record.clone(), 0);
        let weight = Weight::of(&item.0, item.1.len());
        batches.extend(batch.push(item, weight));
    }
    batches.extend(batch.take());
    arrive(batches, |heads| Request::Sync(records_of(heads)), taken)
}

fn copied(records: &[(Key, Record)], taken: usize) -> Vec<(Key, Record)> {
    let items = records.iter().map(|(key, record)| record_to_wire(key, record.clone(), 0));
    let batches = cut(items, copies::ROOM, |(head, value)| Weight::of(head, value.len()));
    arrive(batches, |heads| Request::Copy(claim().ring, records_of(heads)), taken)
}

/// What a batch of reads gives, each by itself.
fn read_in_batches(records: &[(Key, Record)], taken: usize) -> Vec<Result<Outcome, Refusal>> {
    let mut read = Vec::new();
    for records in records.chunks(BATCH_OPERATIONS_MAX) {
        let gets: Vec<_> = records.iter().map(|(key, _)| Operation::Get(key.clone())).collect();
        let indexes: Vec<usize> = (0..gets.len()).collect();
        for frame in frames(&gets, &indexes) {
            let (indexes, wired): (Vec<usize>, Vec<_>) = frame.into_iter().unzip();
            let (operations, values): (Vec<_>, Vec<_>) = wired.into_iter().unzip();
            let request = Request::Many { operations, claim: claim() };
            assert!(carried(&request, &values, taken).is_some(), "it is asked");
            let outcomes = indexes.iter().map(|index| match &records[*index].1 {
                Record::Entry(entry) => Ok(Outcome::Hit(entry.clone())),
                Record::Tombstone(_) => Ok(Outcome::Gone),
            });
            let (reply, values) = answers(outcomes, || 0);
            let (reply, mut values) = carried(&reply, &values, taken).expect("it is answered");
            let Reply::Many(heads) = reply else { panic!("{reply:?}") };
            check_lengths(heads.iter().map(link::Outcome::value_bytes), &values).unwrap();
            read.extend(heads.into_iter().map(|head| outcome_from_wire(head, &mut values, || 0)));
        }
    }
    read
}

/// Writes a batch and gives what arrives at the owner.
fn written_in_batches(records: &[(Key, Record)], taken: usize) -> Vec<Operation> {
    let mut written = Vec::new();
    let operation = |(key, record): &(Key, Record)| match record.clone() {
        Record::Entry(Entry { value, content_type, .. }) => Operation::Put(
            key.clone(),
            NewValue { value, content_type, ttl: None },
            Condition::Versions(vec![record.version()]),
        ),
        Record::Tombstone(_) => Operation::Delete(key.clone(), Condition::Always),
    };
    for records in records.chunks(BATCH_OPERATIONS_MAX) {
        let operations: Vec<_> = records.iter().map(operation).collect();
        let indexes: Vec<usize> = (0..operations.len()).collect();
        for frame in frames(&operations, &indexes) {
            let (heads, values): (Vec<_>, Vec<_>) = frame.into_iter().map(|(_, wired)| wired).unzip();
            let request = Request::Many { operations: heads, claim: claim() };
            let (request, mut values) = carried(&request, &values, taken).expect("it is asked");
            let Request::Many { operations, .. } = request else { panic!("{request:?}") };
            check_lengths(operations.iter().map(link::Operation::value_bytes), &values).unwrap();
            written.extend(operations.into_iter().map(|one| Operation::from_wire(one, &mut values).unwrap()));
        }
    }
    written
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_the_edge_admits_is_synced_copied_and_read_in_batches((value_bytes_max, records) in records()) {
        let taken = frame_bytes_max(value_bytes_max);
        prop_assert!(synced(&records, taken) == records, "sync");
        prop_assert!(copied(&records, taken) == records, "copies");
        let read = read_in_batches(&records, taken);
        prop_assert_eq!(read.len(), records.len());
        for ((_, record), outcome) in records.iter().zip(read) {
            match (record, outcome) {
                (Record::Entry(entry), Ok(Outcome::Hit(read))) => prop_assert_eq!(entry, &read),
                (Record::Tombstone(_), Ok(Outcome::Gone)) => {}
                // Over what one batch may bring.
                (Record::Entry(_), Err(Refusal::TooLarge(_))) => {
                    let all: usize = records.iter().map(|(_, record)| match record {
                        Record::Entry(entry) => entry.value.len(),
                        Record::Tombstone(_) => 0,
                    }).sum();
                    prop_assert!(all > BATCH_BYTES_MAX);
                }
                (_, outcome) => prop_assert!(false, "{:?}", outcome),
            }
        }
        prop_assert_eq!(written_in_batches(&records, taken).len(), records.len());
    }

    #[test]
    fn a_peer_with_shorter_values_takes_all_batches_of_those_that_it_can_keep((_, records) in records()) {
        // The sender's own bound does not matter: whatever is cut from several goes to every node.
        let small = |record: &Record| matches!(record, Record::Entry(entry) if entry.value.len() <= 1 << 20);
        let records: Vec<_> = records.into_iter().filter(|(_, record)| small(record)).collect();
        prop_assert!(synced(&records, FRAME_BYTES_LEAST) == records, "sync");
    }
}

#[test]
fn the_most_of_the_longest_of_everything_fits() {
    let taken = frame_bytes_max(1);
    let longest = |number| {
        let version = Version::new(u64::MAX, u32::MAX);
        (key(number, Key::BYTES_MAX), entry(version, Some(ContentType::BYTES_MAX), value(1)))
    };
    let records: Vec<_> = (0..10_000).map(longest).collect();
    assert!(synced(&records, taken) == records);
    assert!(copied(&records, taken) == records);
    assert!(read_in_batches(&records, taken).iter().all(Result::is_ok));
    assert_eq!(written_in_batches(&records, taken).len(), records.len());
    let slots: Vec<Slot> = Slot::all().collect();
    let digests = slots.iter().map(|slot| (*slot, u64::MAX)).collect();
    assert!(carried(&Request::Digests(digests), &[], taken).is_some());
    assert!(carried(&Reply::Differ(slots), &[], taken).is_some());
    let ring = claim().ring;
    let held = Version::new(u64::MAX, u32::MAX);
    let met = (0..10_000).map(|index| (index, held)).collect();
    assert!(carried(&Reply::Copied { ring, bound: true, met }, &[], taken).is_some());
    // As many tags as the longest headers hold that a node can be told to take.
    let tags = vec![Version::new(u64::MAX, u32::MAX); (1 << 20) / 28];
    let value = NewValue { value: value(1), content_type: None, ttl: None };
    let put = Operation::Put(key(1, Key::BYTES_MAX), value, Condition::Versions(tags));
    let (operation, value) = put.to_wire();
    assert!(carried(&Request::One { operation, claim: claim() }, &[value], taken).is_some());
    // All refused, with the longest reasons.
    let refused = Refusal::PreconditionFailed("x".repeat(200));
    let refused = std::iter::repeat_n(Err(refused), BATCH_OPERATIONS_MAX).collect::<Vec<_>>();
    assert!(carried(&answers(refused.into_iter(), || 0).0, &[], taken).is_some());
}

#[test]
fn what_the_receiver_would_not_take_is_not_sent() {
    let taken = frame_bytes_max(1);
    let (head, long) = record_to_wire(&key(1, 1), entry(Version::new(1, 1), None, value(taken)), 0);
    assert!(carried(&Request::Sync(records_of(vec![head])), &[long], taken).is_none());
    // Small numbers, of which the receiver counts more bytes than they take.
    assert!(carried(&Reply::Wanted(vec![0; 1 << 20]), &[], taken).is_none());
    let (hit, _) = outcome_to_wire(
        Ok(Outcome::Hit(Entry {
            value: Bytes::new(),
            content_type: None,
            version: Version::new(1, 1),
            expiry: None,
        })),
        || 0,
    );
    assert!(carried(&Reply::Many(vec![hit; 1 << 18]), &[], taken).is_none());
    let content_type: Option<Arc<str>> = Some("t".repeat(60_000).into());
    let poisoned = link::RecordHead {
        key: "k".into(),
        version: Version::new(1, 1),
        mark: 0,
        kind: link::RecordKind::Entry { left: None, content_type, value_bytes: 0 },
    };
    assert!(carried(&Request::Sync(records_of(vec![poisoned.clone(); 100])), &[], taken).is_none());
    let batches = cut(vec![poisoned; 100], offer::ROOM, |head| Weight::of(head, 0));
    assert!(
        batches.into_iter().all(|batch| carried(&Request::Sync(records_of(batch)), &[], taken).is_some())
    );
}
