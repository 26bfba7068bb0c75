//! Conditional writes that an owner lacks, kept by members that own nothing of them, for whoever decides next.
//!
//! They are no copies: nobody reads them, sync does not bring them, and an owner takes one up only where the node that had it
//! written cannot be asked itself. So an older value never comes back by them while that node answers. Invariant: bounded in bytes
//! and in time; what does not fit is not promised to be kept.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Node;
use super::copies::Item;
use super::operation::{record_from_wire, record_to_wire};
use super::placement::Placement;
use crate::link::{Refusal, Reply, Request};
use crate::model::{Fingerprint, Key, NodeId, Record, Tombstone};

/// What this node keeps for others, in bytes of keys and values.
const BYTES_MAX: usize = 8 << 20;
/// What one takes besides, roughly.
const OVERHEAD_BYTES: usize = 256;
/// How long one is kept: as long as a delete is remembered.
const LIFE_MS: u64 = Tombstone::LIFE_MS;

/// A write that was seen, and the owner that has it.
#[derive(Clone, Debug)]
pub(super) struct Witnessed {
    pub(super) holder: NodeId,
    pub(super) record: Record,
}

/// The writes that this node has seen.
#[derive(Debug, Default)]
pub(super) struct Witnesses(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_key: HashMap<Key, (Witnessed, u64)>,
    bytes: usize,
}

impl Witnesses {
    /// Keeps a write, if there is room. True if it, or a newer one of the key, is kept.
    fn keep(&self, key: &Key, new: Witnessed, now_ms: u64) -> bool {
        let mut kept = self.0.lock();
        if let Some((held, _)) = kept.by_key.get(key)
            && held.record.version() >= new.record.version()
        {
            return true;
        }
        let wanted = cost(key, &new.record);
        let replaced = kept.by_key.get(key).map_or(0, |(held, _)| cost(key, &held.record));
        if kept.bytes - replaced + wanted > BYTES_MAX {
            kept.by_key.retain(|_, (_, until_ms)| now_ms < *until_ms);
            kept.bytes = kept.by_key.iter().map(|(key, (held, _))| cost(key, &held.record)).sum();
        }
        let replaced = kept.by_key.get(key).map_or(0, |(held, _)| cost(key, &held.record));
        if kept.bytes - replaced + wanted > BYTES_MAX {
            return false;
        }
        kept.bytes = kept.bytes - replaced + wanted;
        kept.by_key.insert(key.clone(), (new, now_ms + LIFE_MS));
        true
    }

    fn of(&self, key: &Key, now_ms: u64) -> Option<Witnessed> {
        let kept = self.0.lock();
        kept.by_key.get(key).filter(|(_, until_ms)| now_ms < *until_ms).map(|(held, _)| held.clone())
    }
}

fn cost(key: &Key, record: &Record) -> usize {
    let value_bytes = if let Record::Entry(entry) = record { entry.value.len() } else { 0 };
    OVERHEAD_BYTES + key.as_str().len() + value_bytes
}

/// What the members of a table have seen of a key.
pub(super) struct Testimony {
    /// How many have answered, this node among them.
    pub(super) answered: usize,
    pub(super) writes: Vec<Witnessed>,
}

impl Node {
    /// Keeps a write of `holder`, for a node that goes by the table `theirs`.
    pub(super) fn keep_witnessed(
        &self,
        (head, mut value): Item,
        sent_at_ms: Option<u64>,
        holder: NodeId,
        theirs: Fingerprint,
    ) -> Result<bool, Refusal> {
        let (key, record) = record_from_wire(head, &mut value, self.left_at_ms(sent_at_ms))?;
        self.see_clock(record.version().time());
        let is_same = theirs == self.ring().fingerprint();
        Ok(is_same && self.0.witnesses.keep(&key, Witnessed { holder, record }, self.uptime_ms()))
    }

    /// What this node has seen of a key, as it travels.
    pub(super) fn testify(&self, key: &Key) -> (Reply, Vec<Bytes>) {
        let Some(Witnessed { holder, record }) = self.0.witnesses.of(key, self.uptime_ms()) else {
            return (Reply::Witnessed(None), Vec::new());
        };
        let (head, value) = record_to_wire(key, record, self.uptime_ms());
        (Reply::Witnessed(Some((head, holder))), if value.is_empty() { Vec::new() } else { vec![value] })
    }

    /// Has a member that does not own a write keep it all the same. True if it does.
    pub(super) async fn show(
        &self,
        placement: &Placement,
        member: &NodeId,
        (key, record): (&Key, &Record),
        deadline: Instant,
    ) -> bool {
        let now = self.sent_now(member);
        let (record, value) = record_to_wire(key, record.clone(), now.here_ms);
        let values = if value.is_empty() { &[][..] } else { &[value][..] };
        let (holder, ring) = (self.id().clone(), placement.ring.fingerprint());
        let request = Request::Witness { record, sent_at_ms: now.there_ms, holder, ring };
        let answer = self.call(member, &request, values, deadline).await;
        matches!(answer, Ok((Reply::Kept(true), _)))
    }

    /// Asks all members what they have seen of a key.
    pub(super) async fn hear_witnesses(
        &self,
        placement: &Placement,
        key: &Key,
        deadline: Instant,
    ) -> Testimony {
        let request = Request::Witnessed { key: key.as_str().into() };
        let answers =
            join_all(placement.other_members().map(|member| self.call(member, &request, &[], deadline)))
                .await;
        let mut testimony = Testimony { answered: 1, writes: Vec::new() };
        testimony.writes.extend(self.0.witnesses.of(key, self.uptime_ms()));
        for (reply, mut values) in answers.into_iter().flatten() {
            let Reply::Witnessed(seen) = reply else { continue };
            let Some((head, holder)) = seen else {
                testimony.answered += 1;
                continue;
            };
            if let Ok((_, record)) = record_from_wire(head, &mut values, self.uptime_ms()) {
                testimony.answered += 1;
                testimony.writes.push(Witnessed { holder, record });
            }
        }
        testimony
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entry, Version};

    fn write(time: u64, bytes: usize) -> Witnessed {
        let value = vec![b'x'; bytes].into();
        let entry = Entry { value, content_type: None, version: Version::new(time, 1), expiry: None };
        Witnessed { holder: NodeId::parse("n1").unwrap(), record: Record::Entry(entry) }
    }

    #[test]
    fn the_newest_write_of_a_key_is_kept_for_ten_minutes() {
        let (witnesses, key) = (Witnesses::default(), Key::parse("lock").unwrap());
        assert!(witnesses.keep(&key, write(2, 10), 0) && witnesses.keep(&key, write(1, 10), 5));
        let version = |now_ms| witnesses.of(&key, now_ms).map(|seen| seen.record.version().time());
        assert_eq!((version(0), version(LIFE_MS - 1), version(LIFE_MS)), (Some(2), Some(2), None));
    }

    #[test]
    fn what_does_not_fit_is_refused_until_others_are_over() {
        let (witnesses, key) =
            (Witnesses::default(), |number: usize| Key::parse(format!("k{number}")).unwrap());
        let fits = (0..100).take_while(|number| witnesses.keep(&key(*number), write(1, 1 << 20), 0)).count();
        assert_eq!(fits, 7, "of 1 MiB and a bit each, in 8 MiB");
        assert!(witnesses.keep(&key(0), write(2, 1 << 20), 0), "in place of its former one");
        assert!(witnesses.keep(&key(99), write(1, 1 << 20), LIFE_MS));
    }
}
