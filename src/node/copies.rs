//! Copies on their way to another owner, and their arrival there.
//!
//! Both the copies that a write waits for and those that sync brings. Invariant: a copy is kept under the version that it was
//! stamped with, and never over a newer one.

use bytes::Bytes;
use tokio::time::Instant;

use super::Node;
use super::operation::{record_from_wire, record_to_wire, unexpected};
use crate::link::{LinkError, RecordHead, Refusal, Reply, Request};
use crate::model::{Evicted, Fingerprint, Key, NodeId, Put, Record, StoreError};

/// What a copy request came to.
pub(super) enum Copied {
    /// All are held; of these, by index, a newer version. The member goes by this table.
    Held { ring: Fingerprint, stale: Vec<u32> },
    /// The process is gone, and with it whatever it could have answered.
    Gone,
    /// It may be alive, without the copies.
    Failed,
}

impl Node {
    /// Has a member keep records.
    pub(super) async fn copy_to<'a>(
        &self,
        member: &NodeId,
        request: fn(Vec<RecordHead>) -> Request,
        records: impl Iterator<Item = (&'a Key, Record)>,
        deadline: Instant,
    ) -> Copied {
        let (heads, values): (Vec<_>, Vec<_>) =
            records.map(|(key, record)| record_to_wire(key, record)).unzip();
        let values: Vec<Bytes> = values.into_iter().filter(|value| !value.is_empty()).collect();
        let Some(address) = self.0.placement.load().addresses.get(member).copied() else {
            return Copied::Failed;
        };
        let request = request(heads);
        let mut reply = self.0.links.call((member, address), &request, &values, deadline).await;
        if matches!(reply, Err(LinkError::Broken(_))) {
            // The process ended, or only the connection; a new one tells. Copies may come twice.
            reply = self.0.links.call((member, address), &request, &values, deadline).await;
        }
        match reply {
            Ok((Reply::Copied { ring, stale }, _)) => Copied::Held { ring, stale },
            Err(LinkError::Refused(_)) => Copied::Gone,
            Ok((other, _)) => {
                tracing::warn!(%member, error = %unexpected(member, &other), "a copy was refused");
                Copied::Failed
            }
            Err(error) => {
                tracing::debug!(%member, %error, "a copy was not written");
                Copied::Failed
            }
        }
    }

    /// The inverse of [`Node::copy_to`], at the receiving end. Says, by index, of which a newer version is held.
    pub(super) fn keep_copies(&self, heads: Vec<RecordHead>, mut values: Bytes) -> Result<Vec<u32>, Refusal> {
        let mut stale = Vec::new();
        for (index, head) in heads.into_iter().enumerate() {
            let (key, record) = record_from_wire(head, &mut values)?;
            self.see_clock(record.version().time());
            if cfg!(feature = "fault-no-versions")
                && let Some(held) = self.0.store.peek(&key, self.now_ms())
            {
                self.0.store.remove_version(&key, held.version());
            }
            if self.keep(&key, record) {
                stale.push(index as u32);
            }
            let placement = self.0.placement.load();
            if !placement.owns(key.slot()) {
                self.pass_on(key.slot());
            }
        }
        Ok(stale)
    }

    /// The one way into the store for what has a version. True if a newer one is there.
    pub(super) fn keep(&self, key: &Key, record: Record) -> bool {
        let version = record.version();
        match self.0.store.put_if_newer(key, record, self.now_ms()) {
            Ok(Put::Stored { evicted, .. }) => {
                self.count_evicted(evicted);
                false
            }
            Ok(Put::Stale { held }) => held > version,
            Err(StoreError::TooLarge { .. }) => {
                // This node's store is smaller than the sender's. An older version must not stay in its place.
                if let Some(held) = self.0.store.peek(key, self.now_ms())
                    && held.version() < version
                {
                    self.0.store.remove_version(key, held.version());
                }
                false
            }
        }
    }

    pub(super) fn count_evicted(&self, evicted: Evicted) {
        self.0.metrics.evictions.inc_by(evicted.entries as u64);
        self.0.metrics.evicted_bytes.inc_by(evicted.bytes as u64);
    }
}
