//! Goodbyes: what tells a member that left from one that died.
//!
//! SWIM knows only "down". A node that leaves, or is forgotten by command, is named in a notice that travels with the
//! gossip. Bounded: the latest [`REMEMBERED`] notices are kept.

use std::num::NonZeroUsize;
use std::sync::Arc;

use foca::{BroadcastHandler, Invalidates};
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::codec::{CodecError, decode_item, encode_item};
use super::identity::Identity;
use crate::model::NodeId;

const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// This process of this node will not be back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Farewell {
    pub(super) node_id: NodeId,
    pub(super) boot: u64,
}

impl Farewell {
    pub(super) fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode_item(self)
    }
}

impl Invalidates for Farewell {
    fn invalidates(&self, other: &Farewell) -> bool {
        self.node_id == other.node_id
    }
}

/// The goodbyes heard so far. Clones share them: one is inside foca, one answers the view's questions.
#[derive(Clone)]
pub(super) struct Farewells(Arc<Mutex<LruCache<NodeId, u64>>>);

impl Farewells {
    pub(super) fn new() -> Farewells {
        Farewells(Arc::new(Mutex::new(LruCache::new(REMEMBERED))))
    }

    /// Whether this process, or a later one of the same node, said goodbye.
    pub(super) fn has_left(&self, node_id: &NodeId, boot: u64) -> bool {
        self.0.lock().peek(node_id).is_some_and(|left| *left >= boot)
    }
}

impl BroadcastHandler<Identity> for Farewells {
    type Key = Farewell;
    type Error = CodecError;

    fn receive_item(
        &mut self,
        data: &[u8],
        _from: Option<&Identity>,
    ) -> Result<Option<Farewell>, CodecError> {
        let farewell: Farewell = decode_item(data)?;
        let mut heard = self.0.lock();
        if heard.peek(&farewell.node_id).is_some_and(|left| *left >= farewell.boot) {
            return Ok(None);
        }
        heard.put(farewell.node_id.clone(), farewell.boot);
        Ok(Some(farewell))
    }
}
