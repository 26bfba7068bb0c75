//! What people and peers tell a node to do about the cluster: greet, leave, forget, say where a key lives.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::{Node, NodeError};
use crate::link::Request;
use crate::model::{Key, Members, NodeId, Record, Status};

/// How long `join` waits for the other node to be a member.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a node asks to be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was told to leave.
    Leave,
    /// It cannot go on; the sentence says why.
    Fatal(String),
}

/// Where a key lives.
#[derive(Clone, Debug)]
pub struct Location {
    /// Its slot.
    pub slot: u16,
    /// The owners in order, and whether each has it; `None` if it did not say.
    pub owners: Vec<(NodeId, Option<bool>)>,
}

impl Node {
    /// Greets the node at `address` and waits until it is a member under the name `node_id`.
    ///
    /// # Errors
    /// When it is not a member within a few seconds.
    pub async fn greet(&self, node_id: &NodeId, address: SocketAddr) -> Result<(), NodeError> {
        let is_member = |members: &Members| {
            members.live().any(|member| member.node_id == *node_id && member.address == address)
        };
        let mut view = self.0.view.clone();
        let joined = timeout(GREETING_TIMEOUT, async {
            while !is_member(&view.borrow_and_update().clone()) {
                self.0.gossip.announce(vec![address]).await;
                let _ = timeout(Duration::from_millis(250), view.changed()).await;
            }
        });
        joined.await.map_err(|_| {
            let waited = GREETING_TIMEOUT.as_secs();
            NodeError::NodeNotFound(format!(
                "{node_id} at {address} did not become a member within {waited} s"
            ))
        })
    }

    /// Makes a member leave: this node or a live other gracefully, a dead one is forgotten.
    ///
    /// # Errors
    /// When there is no such member, or it could not be told.
    pub async fn remove(&self, node_id: &NodeId) -> Result<(), NodeError> {
        if node_id == self.id() {
            self.0.stop.send_replace(Some(Stop::Leave));
            return Ok(());
        }
        let unknown = || NodeError::NodeNotFound(format!("{node_id} is not a member"));
        let member = self.members().get(node_id).cloned().ok_or_else(unknown)?;
        if member.status == Status::Unhealthy {
            return if self.0.gossip.forget(node_id.clone()).await { Ok(()) } else { Err(unknown()) };
        }
        self.0.links.call((node_id, member.address), &Request::Leave, &[], self.deadline()).await?;
        Ok(())
    }

    /// Where a key lives, and which of its owners have it.
    pub async fn locate(&self, key: &Key) -> Location {
        let (placement, deadline) = (self.0.placement.load_full(), self.deadline());
        let mut owners = Vec::new();
        for owner in placement.ring.owners(key.slot()) {
            let peeked = self.peek_at(&placement, owner, key, 0, deadline).await;
            let holds = peeked.map(|peeked| matches!(peeked.record, Some(Record::Entry(_))));
            owners.push((owner.clone(), holds.ok()));
        }
        Location { slot: key.slot().index() as u16, owners }
    }

    /// Waits until the node asks to be stopped.
    pub async fn stop_wanted(&self) -> Stop {
        let mut stop = self.0.stop.subscribe();
        loop {
            if let Some(stop) = stop.borrow_and_update().clone() {
                return stop;
            }
            if stop.changed().await.is_err() {
                return Stop::Leave;
            }
        }
    }
}
