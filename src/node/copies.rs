//! Copies on their way to another owner, and their arrival there.
//!
//! Both the copies that a write waits for and those that sync brings. Invariant: a copy is kept under the version that it was
//! stamped with, and never over a newer one.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Node;
use super::late::SentAt;
use super::operation::{check_lengths, kind_from_wire, parse, record_to_wire, unexpected};
use crate::link::{
    BATCH_BYTES_MAX, LinkError, RecordHead, Records, Refusal, Reply, Request, Room, Weight, cut,
};
use crate::model::{
    Done, Evicted, Fingerprint, Key, Ledger, NodeId, Put, Recent, Record, StoreError, Version,
};
use crate::security::WINDOW_MS;

/// What a copy request came to.
pub(super) enum Copied {
    /// All are held, or newer ones; by index, which versions were met, see [`Reply::Copied`]. The member goes by this table; if it
    /// is `bound`, another member may still rely on a lease that it gave under a former one.
    Held { ring: Fingerprint, bound: bool, met: Vec<(u32, Version)> },
    /// The member is there and cannot take what is among the records.
    Rejected(String),
    /// The member is there and was not done in time.
    Late,
    /// It may be alive, without the copies.
    Failed,
}

/// A record as it travels.
pub(super) type Item = (RecordHead, Bytes);

/// What one request may hold of the copies that a write waits for.
pub(super) const ROOM: Room = Room { items: usize::MAX, value_bytes: BATCH_BYTES_MAX };
/// How long a member may take to show that it is there.
const SIGN_TIMEOUT: Duration = Duration::from_secs(1);
/// How much later an owner may stamp a write that is unaware of another owner's, which could not be copied to it: until the copy
/// is given up, then until the lease is over, and as much as the clocks of two members may be apart in a cluster with a secret.
const UNSEEN_MS: u64 = 5_000 + WINDOW_MS;

impl Node {
    /// Has a member keep records, each with the mark of its write. All that is not [`Copied::Held`] holds of some of them.
    pub(super) async fn copy_to<'a>(
        &self,
        member: &NodeId,
        request: fn(Fingerprint, Records) -> Request,
        records: impl Iterator<Item = (&'a Key, Record, u64)>,
        deadline: Instant,
    ) -> Copied {
        let (here, now) = (self.ring().fingerprint(), self.sent_now(member));
        let (mut member_ring, mut is_bound, mut all_met, mut sent) = (here, false, Vec::new(), 0);
        let items = records.map(|(key, record, mark)| {
            let (head, value) = record_to_wire(key, record, now.here_ms);
            (RecordHead { mark, ..head }, value)
        });
        for batch in cut(items, ROOM, |(head, value)| Weight::of(head, value.len())) {
            let count = batch.len() as u32;
            match self.copy_batch(member, request, batch, now, deadline).await {
                Copied::Held { ring, bound, met } => {
                    is_bound |= bound;
                    // One that goes by another table for some of them does so for all.
                    member_ring = if ring == here { member_ring } else { ring };
                    all_met.extend(met.into_iter().map(|(index, version)| (sent + index, version)));
                    sent += count;
                }
                failed => return failed,
            }
        }
        Copied::Held { ring: member_ring, bound: is_bound, met: all_met }
    }

    /// Has a member keep records that fit one frame, and whose times were left at `left_at`.
    pub(super) async fn copy_batch(
        &self,
        member: &NodeId,
        request: fn(Fingerprint, Records) -> Request,
        batch: Vec<Item>,
        left_at: SentAt,
        deadline: Instant,
    ) -> Copied {
        let Some(address) = self.0.placement.load().addresses.get(member).copied() else {
            return Copied::Failed;
        };
        let (heads, values): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let values: Vec<Bytes> = values.into_iter().filter(|value| !value.is_empty()).collect();
        let records = Records { sent_at_ms: left_at.there_ms, heads };
        let request = request(self.ring().fingerprint(), records);
        let mut reply = self.0.links.call((member, address), &request, &values, deadline).await;
        if matches!(reply, Err(LinkError::Broken(_))) {
            // The process ended, or only the connection; a new one tells. Copies may come twice.
            reply = self.0.links.call((member, address), &request, &values, deadline).await;
        }
        match reply {
            Err(LinkError::Refused(_)) if cfg!(feature = "fault-refused-is-gone") => {
                Copied::Held { ring: self.ring().fingerprint(), bound: false, met: Vec::new() }
            }
            Ok((Reply::Copied { ring, bound, met }, _)) => Copied::Held { ring, bound, met },
            Ok((Reply::Refused(refusal @ (Refusal::Invalid(_) | Refusal::TooLarge(_))), _)) => {
                Copied::Rejected(refusal.to_string())
            }
            Err(LinkError::TooLong) => Copied::Rejected(LinkError::TooLong.to_string()),
            Err(error @ LinkError::Broken(_)) if self.answers((member, address), deadline).await => {
                Copied::Rejected(format!("{error} twice, and not otherwise"))
            }
            Ok((Reply::Refused(Refusal::Overloaded), _))
            | Err(LinkError::Late(_) | LinkError::Overloaded(_)) => Copied::Late,
            Ok((other, _)) => {
                if self.0.complaints.is_due("copy") {
                    warn!(%member, error = %unexpected(member, &other), "a copy was refused; more like it are not logged for a minute");
                }
                Copied::Failed
            }
            Err(error) => {
                debug!(%member, %error, "a copy was not written");
                Copied::Failed
            }
        }
    }

    /// Whether the member still answers something, whatever became of a request.
    async fn answers(&self, member: (&NodeId, SocketAddr), deadline: Instant) -> bool {
        let deadline = deadline.min(Instant::now() + SIGN_TIMEOUT);
        let ping = Request::Ping { clock: self.0.versions.latest() };
        matches!(self.0.links.call(member, &ping, &[], deadline).await, Ok((Reply::Pong { .. }, _)))
    }

    /// The inverse of [`Node::copy_to`], at the receiving end. Says which versions were met, see [`Reply::Copied`]. A record
    /// that this node cannot keep does not hinder the others.
    ///
    /// `theirs` is the table of one that waits. It does not know the owners by another one, who may answer by that: before it
    /// can acknowledge what it wrote, they are owed it here.
    pub(super) fn keep_copies(
        &self,
        theirs: Option<Fingerprint>,
        Records { sent_at_ms, heads }: Records,
        mut values: Bytes,
    ) -> Result<Vec<(u32, Version)>, Refusal> {
        check_lengths(heads.iter().map(RecordHead::value_bytes), &values)?;
        let (left_at_ms, mut met) = (self.left_at_ms(sent_at_ms), Vec::new());
        for (index, RecordHead { key, version, mark, kind }) in heads.into_iter().enumerate() {
            let (key, record) = match (parse(key), kind_from_wire(version, kind, &mut values, left_at_ms)) {
                (Ok(key), Ok(record)) => (key, record),
                (key, record) => {
                    let reason = key.as_ref().err().or(record.as_ref().err());
                    reason.into_iter().for_each(|reason| self.turn_away(key.as_ref().ok(), version, reason));
                    continue;
                }
            };
            self.see_clock(record.version().time());
            if cfg!(feature = "fault-no-versions")
                && let Some(held) = self.0.store.peek(&key, self.uptime_ms())
            {
                self.0.store.remove_version(&key, held.version());
            }
            // The owner that waits for this copy must learn of an older version that its decision may have missed.
            let is_waiting = theirs.is_some() && mark != 0;
            let other = if is_waiting { self.keep(&key, record) } else { self.keep_found(&key, record) };
            let is_told = |met: &Version| *met > version || is_waiting && is_overtaken(*met, version);
            met.extend(other.filter(is_told).map(|other| (index as u32, other)));
            self.0.recent.note(mark, Done { version, on: None }, self.uptime_ms());
            let placement = self.0.placement.load();
            let is_foreign = theirs.is_some_and(|theirs| theirs != placement.ring.fingerprint());
            if is_foreign || !placement.owns(key.slot()) {
                self.pass_on(key.slot());
            }
        }
        Ok(met)
    }

    /// Does not keep a record that is over a bound of this node; the sender's may be another.
    pub(super) fn turn_away(&self, key: Option<&Key>, version: Version, reason: &Refusal) {
        self.count_refused(reason);
        if let Some(key) = key {
            self.forget_older(key, version);
        }
    }

    /// Counts something of a peer that is over a bound of this node.
    pub(super) fn count_refused(&self, reason: &Refusal) {
        self.0.metrics.link_refused.inc();
        if self.0.complaints.is_due("over a bound") {
            warn!(%reason, "refused what a peer sent; more like it are counted, not logged, for a minute");
        }
    }

    /// The one way into the store for what has a version. Gives another one that was there, which stays if it is newer.
    pub(super) fn keep(&self, key: &Key, record: Record) -> Option<Version> {
        self.keep_and_note(key, record, Recent::note_unseen)
    }

    /// Keeps a record that another node than its writer brings, so that the writer never learns which older version was here.
    pub(super) fn keep_found(&self, key: &Key, record: Record) -> Option<Version> {
        self.keep_and_note(key, record, Recent::note_hidden)
    }

    /// `note` is for a version that gives way without having been in view of the new one's writer, perhaps.
    fn keep_and_note(
        &self,
        key: &Key,
        record: Record,
        note: fn(&Recent, &Key, Version, u64),
    ) -> Option<Version> {
        let (version, uptime_ms) = (record.version(), self.uptime_ms());
        let gives_way = |older| {
            if is_overtaken(older, version) {
                note(&self.0.recent, key, older, uptime_ms);
            }
        };
        match self.0.store.put_over(key, record, uptime_ms, gives_way) {
            Ok(Put::Stored { evicted, older, .. }) => {
                self.count_evicted(evicted);
                older
            }
            Ok(Put::Stale { held }) => {
                if is_overtaken(version, held) {
                    self.0.recent.note_unseen(key, version, uptime_ms);
                }
                Some(held).filter(|held| *held != version)
            }
            Err(StoreError::TooLarge { .. }) => {
                // This node's store is smaller than the sender's.
                self.forget_older(key, version);
                None
            }
        }
    }

    /// Whether a lease that this node granted under another table than its present one may still run.
    pub(super) fn is_bound(&self) -> bool {
        let (placement, now_ms) = (self.0.placement.load(), self.uptime_ms());
        // Under this table all were granted since it is in force. Each copy gets here.
        now_ms <= placement.since_ms() + Ledger::LEASE_MS
            && self.0.ledger.lock().is_bound_elsewhere(None, placement.ring.fingerprint(), now_ms)
    }

    /// Whether this node has that version of a key, or a newer one.
    pub(super) fn holds_since(&self, key: &Key, version: Version) -> bool {
        self.0.store.peek(key, self.uptime_ms()).is_some_and(|held| held.version() >= version)
    }

    /// There is a newer version that this node cannot have: an older one must not stay in its place.
    pub(super) fn forget_older(&self, key: &Key, version: Version) {
        if let Some(held) = self.0.store.peek(key, self.uptime_ms())
            && held.version() < version
        {
            self.0.store.remove_version(key, held.version());
        }
    }

    pub(super) fn count_evicted(&self, evicted: Evicted) {
        self.0.metrics.evictions.inc_by(evicted.entries as u64);
        self.0.metrics.evicted_bytes.inc_by(evicted.bytes as u64);
    }
}

/// Whether a version that was stamped shortly after one of another node may not have had it in view.
fn is_overtaken(older: Version, by: Version) -> bool {
    older < by && older.node() != by.node() && by.millis().saturating_sub(older.millis()) <= UNSEEN_MS
}
