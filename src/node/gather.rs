//! What the owners of a key have, all asked at once: the way out when one of them cannot answer alone.
//!
//! Does not decide who acts; see [`super::route`]. Invariant: unless an owner knows that nobody has anything newer, every member
//! is asked, and so is every one that has left and is still there. Only what nobody can reach is done without: members of
//! which neither the asker nor anybody who answered has heard for a while.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::copies::Copied;
use super::operation::{record_from_wire, record_to_wire, unexpected};
use super::placement::Placement;
use super::{Node, NodeError};
use crate::link::{LinkError, PeekReply, Reply, Request, Standing};
use crate::model::{Done, Fingerprint, Key, NodeId, Record, Version};

/// What a node's own store has.
pub(super) struct Peeked {
    pub(super) record: Option<Record>,
    standing: Standing,
    unheard: Vec<NodeId>,
    calling: Vec<NodeId>,
    at_ms: u64,
    done: Option<Done>,
    unseen: Option<Version>,
}

type Answer = (NodeId, Result<Peeked, LinkError>);

/// The answers, those of the owners first and in their order.
pub(super) struct Gathered {
    owners: usize,
    is_everybody: bool,
    answers: Vec<Answer>,
}

impl Gathered {
    /// Whether nothing newer can be anywhere.
    pub(super) fn is_conclusive(&self) -> bool {
        self.has(&[Standing::Authority]) || self.is_heard()
    }

    /// The same without the word of one owner that has authority: another one may have acted a moment ago.
    pub(super) fn is_heard(&self) -> bool {
        let is_settled = |(member, answer): &Answer| {
            matches!(answer, Ok(_) | Err(LinkError::Refused(_))) || self.is_unheard(member)
        };
        // One that calls others acts, and may have what an owner lacks that is not synced.
        let is_calling = |member: &NodeId| self.peeked().any(|(_, peeked)| peeked.calling.contains(member));
        let is_out = |answer: &Answer| is_settled(answer) && (answer.1.is_ok() || !is_calling(&answer.0));
        self.has(&[Standing::Synced, Standing::Authority]) && self.owners().iter().all(is_settled)
            || self.is_everybody && self.answers.iter().all(is_out)
    }

    fn has(&self, standings: &[Standing]) -> bool {
        self.peeked().any(|(_, peeked)| standings.contains(&peeked.standing))
    }

    fn add_others(&mut self, others: Gathered) {
        self.answers.extend(others.answers);
        self.is_everybody = true;
    }

    /// Whether a majority of these members has answered.
    pub(super) fn is_of_majority(&self, members: &[NodeId]) -> bool {
        let answered = self.peeked().filter(|(member, _)| members.binary_search(member).is_ok());
        2 * answered.count() > members.len()
    }

    /// The versions that were found.
    pub(super) fn versions(&self) -> impl Iterator<Item = Version> {
        self.peeked().filter_map(|(_, peeked)| peeked.record.as_ref().map(Record::version))
    }

    /// The version under which the write that was asked for has been done already.
    pub(super) fn done(&self) -> Option<Version> {
        self.peeked().filter_map(|(_, peeked)| peeked.done).map(|done| done.version).max()
    }

    /// The record of that version, if somebody holds it, and nobody who has nothing newer says that something newer than `on` gave
    /// way unseen.
    pub(super) fn clear(&self, version: Version, on: Option<Version>) -> Option<&Record> {
        let mut clear = None;
        for (_, peeked) in self.peeked() {
            let held = peeked.record.as_ref().filter(|record| record.version() == version);
            let may_have_given_way = held.is_some() || peeked.record.is_none();
            if may_have_given_way && peeked.unseen > on && !cfg!(feature = "fault-finish-unseen") {
                return None;
            }
            // Of what was evicted a tombstone may be left.
            clear = held.filter(|held| matches!(held, Record::Entry(_))).or(clear).or(held);
        }
        clear
    }

    /// What the write that was asked for replaced when it was done under that version, if somebody knows.
    pub(super) fn replaced(&self, version: Version) -> Option<Version> {
        let done = self.peeked().filter_map(|(_, peeked)| peeked.done);
        done.filter(|done| done.version == version).filter_map(|done| done.on).max()
    }

    /// Whether a member has answered.
    pub(super) fn has_answered(&self, member: &NodeId) -> bool {
        self.peeked().any(|(answered, _)| answered == member)
    }

    /// Whether nobody hears from a member.
    fn is_unheard(&self, member: &NodeId) -> bool {
        self.is_everybody && self.peeked().all(|(_, peeked)| peeked.unheard.contains(member))
    }

    fn owners(&self) -> &[Answer] {
        &self.answers[..self.owners]
    }

    /// Those that answered.
    fn peeked(&self) -> impl Iterator<Item = (&NodeId, &Peeked)> {
        peeked(&self.answers)
    }

    /// The first owner that answered; without one, whoever has something.
    pub(super) fn first(&self) -> Option<&NodeId> {
        let owner = self.actors().next().map(|(owner, _)| owner);
        owner.or_else(|| self.newest().map(|(holder, _)| holder))
    }

    /// The owners that may act, and the time of each when it answered.
    pub(super) fn actors(&self) -> impl Iterator<Item = (&NodeId, u64)> {
        peeked(self.owners()).map(|(owner, peeked)| (owner, peeked.at_ms))
    }

    /// The newest record, and who has it.
    pub(super) fn newest(&self) -> Option<(&NodeId, &Record)> {
        let records = self.peeked().filter_map(|(holder, peeked)| Some((holder, peeked.record.as_ref()?)));
        // Of equals the first, which is the owner that comes first.
        records.reduce(|best, next| if next.1.version() > best.1.version() { next } else { best })
    }

    /// Whether `member` has answered, and nobody has anything that may have been written after that time.
    pub(super) fn rules_out(&self, member: &NodeId, time: u64) -> bool {
        self.has_answered(member) && self.newest().is_none_or(|(_, record)| record.version().time() <= time)
    }

    /// The error of a request that these answers do not settle.
    pub(super) fn failure(&self) -> NodeError {
        let has_actor = self.actors().next().is_some();
        let silent = if has_actor { &self.answers } else { self.owners() };
        let reasons: Vec<String> =
            silent.iter().filter_map(|(_, answer)| Some(answer.as_ref().err()?.to_string())).collect();
        let what = if has_actor {
            "a member that may hold the key does not answer"
        } else {
            "no owner of the key could be reached"
        };
        NodeError::ForwardFailed(format!("{what}: {}", reasons.join("; ")))
    }

    /// Owners that answered and lack the newest.
    fn behind(&self) -> impl Iterator<Item = &NodeId> {
        let newest = self.newest().map(|(_, record)| record.version());
        let lacks = move |peeked: &Peeked| peeked.record.as_ref().map(Record::version) < newest;
        peeked(self.owners()).filter(move |(_, peeked)| lacks(peeked)).map(|(owner, _)| owner)
    }
}

fn peeked(answers: &[Answer]) -> impl Iterator<Item = (&NodeId, &Peeked)> {
    answers.iter().filter_map(|(member, answer)| Some((member, answer.as_ref().ok()?)))
}

impl Node {
    /// Asks all owners, and if that settles nothing everybody.
    pub(super) async fn gather(&self, key: &Key, mark: u64, deadline: Instant) -> Gathered {
        let placement = self.0.placement.load_full();
        let owners: Vec<NodeId> = placement.ring.owners(key.slot()).cloned().collect();
        let mut found = self.peek_at_all(&placement, owners, key, mark, deadline).await;
        if !found.is_conclusive() {
            let others = self.not_owners(&placement, key);
            found.add_others(self.peek_at_all(&placement, others, key, mark, deadline).await);
        }
        found
    }

    /// Asks everybody.
    pub(super) async fn gather_all(
        &self,
        placement: &Placement,
        key: &Key,
        mark: u64,
        deadline: Instant,
    ) -> Gathered {
        let owners: Vec<NodeId> = placement.ring.owners(key.slot()).cloned().collect();
        let (mut found, others) = tokio::join!(
            self.peek_at_all(placement, owners, key, mark, deadline),
            self.peek_at_all(placement, self.not_owners(placement, key), key, mark, deadline)
        );
        found.add_others(others);
        found
    }

    /// Whoever may hold something of the key and does not own it.
    fn not_owners(&self, placement: &Placement, key: &Key) -> Vec<NodeId> {
        // Itself, too: one that leaves is in nobody's table and still holds what it has not handed over.
        let members: BTreeSet<_> = placement.addresses.keys().chain([self.id()]).collect();
        members.into_iter().filter(|member| !placement.ring.owns(member, key.slot())).cloned().collect()
    }

    /// Asks the owners besides one that has authority, and nothing.
    pub(super) async fn gather_besides(&self, key: &Key, one: &NodeId, deadline: Instant) -> Gathered {
        let placement = self.0.placement.load_full();
        let owners: Vec<NodeId> = placement.ring.owners(key.slot()).cloned().collect();
        let others = owners.into_iter().filter(|owner| owner != one).collect();
        let mut found = self.peek_at_all(&placement, others, key, 0, deadline).await;
        let (standing, unheard, calling) = (Standing::Authority, Vec::new(), Vec::new());
        let nothing = Peeked { record: None, standing, unheard, calling, at_ms: 0, done: None, unseen: None };
        found.answers.insert(0, (one.clone(), Ok(nothing)));
        found.owners += 1;
        found
    }

    async fn peek_at_all(
        &self,
        placement: &Placement,
        members: Vec<NodeId>,
        key: &Key,
        mark: u64,
        deadline: Instant,
    ) -> Gathered {
        let asking = members.iter().map(|member| self.peek_at(placement, member, key, mark, deadline));
        let answers = join_all(asking).await;
        let (owners, answers) = (members.len(), members.into_iter().zip(answers).collect());
        Gathered { owners, is_everybody: false, answers }
    }

    /// What this node's own store has.
    pub(super) fn peek_here(&self, key: &Key, theirs: Fingerprint, mark: u64) -> Peeked {
        let placement = self.0.placement.load();
        let (slot, now_ms) = (key.slot(), self.uptime_ms());
        let is_sure = self.is_admitted() && placement.owns(slot) && theirs == placement.ring.fingerprint();
        let standing = if is_sure && self.has_authority(&placement, slot) {
            Standing::Authority
        } else if is_sure && self.is_current(&placement, now_ms) && placement.is_synced(slot) {
            Standing::Synced
        } else {
            Standing::None
        };
        // Before the record, so that it is not older than what is said to be done.
        let done = self.0.recent.done(mark, now_ms);
        let record = self.0.store.peek(key, now_ms);
        // After the record: what it replaced was noted before it could be found.
        let unseen = self.0.recent.unseen(key, now_ms);
        let unheard = self.unheard(&placement);
        let calling =
            unheard.iter().filter(|member| self.0.reach.is_calling(member, now_ms)).cloned().collect();
        Peeked { record, standing, unheard, calling, at_ms: now_ms, done, unseen }
    }

    /// What a node's own store has.
    pub(super) async fn peek_at(
        &self,
        placement: &Placement,
        member: &NodeId,
        key: &Key,
        mark: u64,
        deadline: Instant,
    ) -> Result<Peeked, LinkError> {
        let ring = placement.ring.fingerprint();
        if member == self.id() {
            return Ok(self.peek_here(key, ring, mark));
        }
        let Some(address) = placement.addresses.get(member).copied() else {
            return Err(LinkError::Refused(self.0.address));
        };
        let request = Request::Peek { key: key.as_str().into(), ring, mark };
        let asked_ms = self.uptime_ms();
        let reply = self.0.links.call((member, address), &request, &[], deadline).await;
        match reply.map_err(|error| self.doubt_refusal(member, error))? {
            (Reply::Peeked(peeked), mut values) => {
                let PeekReply { record, standing, unheard, calling, at_ms, done, unseen } = *peeked;
                let left_at_ms = self.answered_at_ms(member, at_ms, asked_ms);
                let record = record.map(|head| record_from_wire(head, &mut values, left_at_ms)).transpose();
                // A record that cannot be read is as good as no answer.
                let record = record.map_err(|_| LinkError::Broken(address))?;
                let record = record.map(|(_, record)| record);
                Ok(Peeked { record, standing, unheard, calling, at_ms, done, unseen })
            }
            (other, _) => {
                if self.0.complaints.is_due("peek") {
                    tracing::warn!(
                        error = %unexpected(member, &other),
                        "a peek was not answered; more like it are not logged for a minute"
                    );
                }
                Err(LinkError::Broken(address))
            }
        }
    }

    /// Gives the newest to all owners that lack it. Best effort: it is where it was found, and sync brings it.
    pub(super) async fn write_through(&self, key: &Key, found: &Gathered, deadline: Instant) {
        let behind: Vec<_> = found.behind().collect();
        join_all(behind.into_iter().map(|owner| self.bring_up_to_date(key, found, owner, deadline))).await;
    }

    /// Gives the newest to an owner, if it lacks it. False if it could not be.
    pub(super) async fn bring_up_to_date(
        &self,
        key: &Key,
        found: &Gathered,
        owner: &NodeId,
        deadline: Instant,
    ) -> bool {
        let Some((_, newest)) = found.newest().filter(|_| found.behind().any(|behind| behind == owner))
        else {
            return true;
        };
        if owner == self.id() {
            self.keep_found(key, newest.clone());
            return true;
        }
        let copied =
            self.copy_to(owner, Request::Copy, [(key, newest.clone(), 0)].into_iter(), deadline).await;
        matches!(copied, Copied::Held { .. })
    }
}

/// As it travels.
pub(super) fn peeked_to_wire(key: &Key, peeked: Peeked) -> (Reply, Vec<Bytes>) {
    let Peeked { record, standing, unheard, calling, at_ms, done, unseen } = peeked;
    let (record, value) = match record.map(|record| record_to_wire(key, record, at_ms)) {
        Some((head, value)) => (Some(head), value),
        None => (None, Bytes::new()),
    };
    let values = if value.is_empty() { Vec::new() } else { vec![value] };
    let peeked = PeekReply { record, standing, unheard, calling, at_ms, done, unseen };
    (Reply::Peeked(Box::new(peeked)), values)
}
