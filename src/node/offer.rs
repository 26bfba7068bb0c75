//! Offers of records to a member: it names those that it lacks, and gets them in acknowledged batches.
//!
//! Does not know why the member should have them. Invariant: what is in a batch never keeps another record back. A batch that
//! the member cannot take is halved and sent again, down to the record that is the cause, which is left out; a member that
//! is away is not taken for one that refuses.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::copies::{Copied, Item};
use super::late::SentAt;
use super::operation::{parse, record_to_wire, unexpected};
use super::{Node, NodeError};
use crate::link::{Batch, LinkError, RecordHead, Reply, Request, Room, Weight, cut};
use crate::model::{Key, NodeId, Record, Slot, SlotSet, Version};

/// What one batch may hold.
pub(super) const ROOM: Room = Room { items: 512, value_bytes: 1 << 20 };
/// Bytes of values that one member is sent in a second, at most.
const BYTES_PER_SECOND: f64 = (64 << 20) as f64;
/// How long a member may take to acknowledge a batch, and how much longer for a long value.
pub(super) const BATCH_TIMEOUT: Duration = Duration::from_secs(5);
const BYTES_PER_SECOND_LEAST: f64 = (4 << 20) as f64;

pub(super) type Heads = Vec<(Key, Version)>;

/// What became of an offer to a member that answers.
pub(super) struct Offered {
    /// Slots of which it did not acknowledge everything, so that they have to be offered again.
    pub(super) postponed: SlotSet,
    /// What it cannot take.
    pub(super) left_out: HashSet<Key>,
    /// How many records it has taken.
    pub(super) brought: usize,
}

/// Why a question of sync got no answer.
pub(super) enum Unanswered {
    /// The member cannot be reached; so it would be with the next question.
    Away(NodeError),
    /// Only this question was not answered.
    Late(NodeError),
}

impl From<LinkError> for Unanswered {
    fn from(error: LinkError) -> Unanswered {
        match error {
            LinkError::Late(_) | LinkError::Overloaded(_) | LinkError::TooLong => {
                Unanswered::Late(error.into())
            }
            _ => Unanswered::Away(error.into()),
        }
    }
}

impl Node {
    /// Asks a member a question of sync.
    pub(super) async fn inquire(&self, member: &NodeId, request: &Request) -> Result<Reply, Unanswered> {
        let Some(address) = self.0.placement.load().addresses.get(member).copied() else {
            return Err(Unanswered::Away(NodeError::NodeNotFound(format!("{member} is not a member"))));
        };
        let deadline = Instant::now() + BATCH_TIMEOUT;
        Ok(self.0.links.call((member, address), request, &[], deadline).await?.0)
    }

    /// Has a member take, of these records, what it has not in this or a newer version.
    ///
    /// # Errors
    /// When the member cannot be reached. It may have taken some of them.
    pub(super) async fn offer(
        &self,
        member: &NodeId,
        heads: &[(Key, Version)],
    ) -> Result<Offered, NodeError> {
        self.offer_by(Request::Versions, member, heads).await
    }

    /// Has a member take, of these records, what it has in an older version.
    ///
    /// # Errors
    /// When the member cannot be reached. It may have taken some of them.
    pub(super) async fn offer_newer(
        &self,
        member: &NodeId,
        heads: &[(Key, Version)],
    ) -> Result<Offered, NodeError> {
        self.offer_by(Request::Older, member, heads).await
    }

    async fn offer_by(
        &self,
        question: Question,
        member: &NodeId,
        heads: &[(Key, Version)],
    ) -> Result<Offered, NodeError> {
        let done = Offered { postponed: SlotSet::empty(), left_out: HashSet::new(), brought: 0 };
        let mut offer = Offer { node: self, member, question, left_at: self.sent_now(member), done };
        for heads in questions(heads) {
            offer.present(&heads).await?;
        }
        Ok(offer.done)
    }
}

/// As many as go into one question, and so on.
pub(super) fn questions(heads: &[(Key, Version)]) -> Vec<Vec<&(Key, Version)>> {
    cut(heads, ROOM, |(key, version)| Weight::of(&(key.as_str(), version), 0))
}

/// Which of these a member wants.
type Question = fn(Vec<(Box<str>, Version)>) -> Request;

/// The question about these, as it travels.
pub(super) fn ask(question: Question, heads: &[&(Key, Version)]) -> Request {
    question(heads.iter().map(|(key, version)| (key.as_str().into(), *version)).collect())
}

/// An offer that is being made.
struct Offer<'a> {
    node: &'a Node,
    member: &'a NodeId,
    question: Question,
    /// When the times of the records that are on their way were left.
    left_at: SentAt,
    done: Offered,
}

impl Offer<'_> {
    /// Offers as many as go into one question.
    async fn present(&mut self, heads: &[&(Key, Version)]) -> Result<(), NodeError> {
        let wanted = match self.node.inquire(self.member, &ask(self.question, heads)).await {
            Ok(Reply::Wanted(wanted)) => wanted,
            Ok(other) => return Err(unexpected(self.member, &other)),
            Err(Unanswered::Away(error)) => return Err(error),
            Err(Unanswered::Late(error)) => {
                self.postpone(heads.iter().map(|(key, _)| key.slot()), &error);
                return Ok(());
            }
        };
        self.left_at = self.node.sent_now(self.member);
        let mut batch = Batch::new(ROOM);
        for index in wanted {
            let Some((key, _)) = heads.get(index as usize) else { continue };
            // Gone by now if it was evicted or is over; then there is nothing to lack.
            let Some(record) = self.node.0.store.peek(key, self.node.uptime_ms()) else { continue };
            let item = record_to_wire(key, record, self.left_at.here_ms);
            let weight = Weight::of(&item.0, item.1.len());
            if let Some(full) = batch.push(item, weight) {
                self.deliver(full).await?;
            }
        }
        match batch.take() {
            Some(rest) => self.deliver(rest).await,
            None => Ok(()),
        }
    }

    /// Sends a batch, in smaller and smaller parts if that has to be.
    async fn deliver(&mut self, batch: Vec<Item>) -> Result<(), NodeError> {
        let mut parts = Parts(vec![batch]);
        while let Some(part) = parts.0.pop() {
            match self.send(&part).await {
                Copied::Held { .. } => self.done.brought += part.len(),
                Copied::Late => {
                    let slots = part.iter().map(|(head, _)| Slot::of(head.key.as_bytes()));
                    self.postpone(slots, &"not acknowledged in time");
                }
                Copied::Rejected(reason) => {
                    if let Some((head, _)) = parts.halve(part) {
                        self.leave_out(head, &reason).await;
                    }
                }
                Copied::Failed => {
                    return Err(NodeError::ForwardFailed(format!("{} took no copies", self.member)));
                }
            }
        }
        Ok(())
    }

    /// Sends a batch and pauses, so that requests find the link and the processors free for as long again.
    async fn send(&self, batch: &[Item]) -> Copied {
        let (started, records) = (Instant::now(), batch.len());
        let bytes: usize = batch.iter().map(|(_, value)| value.len()).sum();
        let patience = BATCH_TIMEOUT + Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND_LEAST);
        let (batch, deadline) = (batch.to_vec(), started + patience);
        let sync = |_, records| Request::Sync(records);
        let copied = self.node.copy_batch(self.member, sync, batch, self.left_at, deadline).await;
        if matches!(copied, Copied::Held { .. }) {
            self.node.0.metrics.sync_keys.inc_by(records as u64);
            self.node.0.metrics.sync_bytes.inc_by(bytes as u64);
        }
        sleep(started.elapsed().max(Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND))).await;
        copied
    }

    fn postpone(&mut self, slots: impl Iterator<Item = Slot>, error: &dyn std::fmt::Display) {
        debug!(member = %self.member, %error, "some slots have to be offered again");
        self.done.postponed.add(&slots.collect());
    }

    /// The member cannot take a record, not even alone.
    async fn leave_out(&mut self, RecordHead { key, version, .. }: RecordHead, reason: &str) {
        self.node.0.metrics.sync_left_out.inc();
        if self.node.0.complaints.is_due("left out") {
            let (member, shown): (_, String) = (self.member, key.chars().take(100).collect());
            warn!(
                %member, key = shown, %version, reason,
                "left out an entry that a member cannot take; more like it are counted, not logged, for a minute"
            );
        }
        // Whatever it has of the key is older, and would be taken for the newest. Best effort.
        let _ = self.node.inquire(self.member, &Request::Forget(vec![(key.clone(), version)])).await;
        self.done.left_out.extend(Key::parse(key));
    }
}

/// What is still to be sent, the next at the end.
struct Parts<T>(Vec<Vec<T>>);

impl<T> Parts<T> {
    /// Puts both halves of a part back. One thing alone comes back instead.
    fn halve(&mut self, mut part: Vec<T>) -> Option<T> {
        if part.len() <= 1 {
            return part.pop();
        }
        let second = part.split_off(part.len() / 2);
        self.0.extend([second, part]);
        None
    }
}

/// The records, by index, of which this node has no such or newer version. One that it cannot take it does not want.
/// If `only_older`, only of which it has an older one.
pub(super) fn wanted(node: &Node, theirs: Vec<(Box<str>, Version)>, only_older: bool) -> Vec<u32> {
    let mut wanted = Vec::new();
    for (index, (key, version)) in theirs.into_iter().enumerate() {
        let key = match parse(key) {
            Ok(key) => key,
            Err(reason) => {
                node.turn_away(None, version, &reason);
                continue;
            }
        };
        let held = node.0.store.peek(&key, node.uptime_ms());
        let is_older = |held: Record| held.version() < version || cfg!(feature = "fault-no-versions");
        if held.map_or(!only_older, is_older) {
            wanted.push(index as u32);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_good_is_delivered_and_only_what_is_bad_left_out(
            count in 0_usize..600,
            bad in prop::collection::btree_set(0_usize..600, 0..20),
        ) {
            let all: BTreeSet<usize> = (0..count).collect();
            let bad: BTreeSet<usize> = bad.intersection(&all).copied().collect();
            let (mut delivered, mut left_out, mut sent) = (BTreeSet::new(), BTreeSet::new(), 0);
            let mut parts = Parts(vec![all.iter().copied().collect::<Vec<_>>()]);
            while let Some(part) = parts.0.pop() {
                sent += 1;
                if part.iter().any(|item| bad.contains(item)) {
                    left_out.extend(parts.halve(part));
                } else {
                    delivered.extend(part);
                }
            }
            prop_assert_eq!(&left_out, &bad);
            prop_assert_eq!(delivered, &all - &bad);
            // Each bad one costs two tries for each time that the batch can be halved: ten of 600.
            prop_assert!(sent <= 1 + 20 * bad.len(), "{} tries", sent);
        }
    }
}
