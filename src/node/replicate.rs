//! Copies: how an entry gets into this node's store, and into another's.
//!
//! One copy of each entry is kept so far, the primary's. Copies travel when slots move, and when a read finds an entry at a
//! former owner.

use bytes::Bytes;
use tokio::time::Instant;

use super::operation::cut;
use super::route::unexpected;
use super::{NewValue, Node, NodeError, Outcome};
use crate::link::{EntryHead, Refusal, Reply, Request};
use crate::model::{Entry, Key, NodeId, Put};

impl Node {
    /// Stamps a new value and keeps it: what the primary does with a PUT.
    pub(super) fn store_new(&self, key: &Key, new: &NewValue) -> Result<Outcome, NodeError> {
        let now_ms = self.now_ms();
        let version = self.0.versions.stamp(now_ms);
        let entry = Entry {
            value: new.value.clone(),
            content_type: new.content_type.clone(),
            version,
            expires_at_ms: new
                .ttl
                .map(|ttl| now_ms.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))),
        };
        self.keep(key, entry)?;
        Ok(Outcome::Stored { version, degraded: false })
    }

    /// The one way into the store.
    pub(super) fn keep(&self, key: &Key, entry: Entry) -> Result<(), NodeError> {
        if let Put::Stored { evicted, .. } = self.0.store.put_if_newer(key, entry, self.now_ms())? {
            self.0.metrics.evictions.inc_by(evicted.entries as u64);
            self.0.metrics.evicted_bytes.inc_by(evicted.bytes as u64);
        }
        Ok(())
    }

    /// Best effort: the next read finds it at the primary. If it fails, the move brings it.
    pub(super) async fn write_through(&self, primary: &NodeId, key: &Key, entry: &Entry, deadline: Instant) {
        if primary == self.id() {
            let _ = self.keep(key, entry.clone());
        } else {
            let _ = self.copy_to(primary, &[(key.clone(), entry.clone())], deadline).await;
        }
    }

    /// Has a node keep copies of entries.
    pub(super) async fn copy_to(
        &self,
        node_id: &NodeId,
        entries: &[(Key, Entry)],
        deadline: Instant,
    ) -> Result<(), NodeError> {
        let heads = entries.iter().map(|(key, entry)| EntryHead {
            key: key.as_str().into(),
            version: entry.version,
            expires_at_ms: entry.expires_at_ms,
            content_type: entry.content_type.clone(),
            value_bytes: entry.value.len() as u32,
        });
        let values: Vec<Bytes> = entries.iter().map(|(_, entry)| entry.value.clone()).collect();
        match self.call(node_id, &Request::Copy(heads.collect()), &values, deadline).await? {
            (Reply::Copied, _) => Ok(()),
            (Reply::Refused(refusal), _) => Err(refusal.into()),
            (other, _) => Err(unexpected(node_id, &other)),
        }
    }

    /// The inverse of [`Node::copy_to`], at the receiving end.
    pub(super) fn keep_copies(&self, heads: Vec<EntryHead>, mut values: Bytes) -> Result<(), Refusal> {
        let ring = self.ring();
        for head in heads {
            let key = Key::parse(head.key).map_err(|error| Refusal::Invalid(error.to_string()))?;
            let value = cut(&mut values, head.value_bytes)?;
            self.see_clock(head.version.time());
            let entry = Entry {
                value,
                content_type: head.content_type,
                version: head.version,
                expires_at_ms: head.expires_at_ms,
            };
            self.keep(&key, entry).map_err(|error| Refusal::TooLarge(error.to_string()))?;
            // Sent by a table that is no longer in force.
            if ring.primary(key.slot()) != Some(&self.0.id) {
                self.0.misplaced.notify_one();
            }
        }
        Ok(())
    }
}
