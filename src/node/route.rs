//! The path of an operation: here or, once, to the key's primary.
//!
//! While slots move, a read that finds nothing at the primary asks the owners under the former tables, and writes through
//! what it finds. Bounded: one forward, one question to each former owner, all within the request's deadline.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::operation::outcome_from_wire;
use super::{Done, Node, NodeError, Operation, Outcome, Placement};
use crate::link::{self, Refusal, Reply, Request};
use crate::model::{Entry, Key, NodeId, Ring, Slot, Status};
use crate::net::task;
use crate::telemetry::Route;

/// How soon to look at the table again when another node says that it is not the primary.
const TABLE_PAUSE: Duration = Duration::from_millis(20);

impl Node {
    /// Does one operation, wherever its key lives, and says by which route it went.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn perform(&self, operation: &Operation) -> Result<(Done, Route), NodeError> {
        let slot = operation.key().slot();
        let deadline = self.deadline();
        self.wait_until_ready(deadline).await;
        loop {
            let ring = self.ring();
            let owners = self.write_owners(&ring, slot)?;
            let primary = owners[0];
            let (outcome, route) = if primary == self.id() {
                (Ok(self.apply(operation)?), Route::Local)
            } else {
                (self.forward(primary, operation, deadline).await, Route::Forwarded)
            };
            match outcome {
                Ok(outcome) => {
                    let (outcome, node_id) = self.look_back(operation, outcome, primary, deadline).await;
                    return Ok((Done { outcome, node_id }, route));
                }
                Err(ForwardError::NotPrimary) if Instant::now() + TABLE_PAUSE < deadline => {
                    sleep(TABLE_PAUSE).await;
                }
                Err(ForwardError::NotPrimary) => return Err(Refusal::NotPrimary.into()),
                // The owner may have died or left; if the table already says so, the new owner is asked.
                Err(ForwardError::Failed(NodeError::ForwardFailed(_) | NodeError::NodeNotFound(_)))
                    if Instant::now() < deadline && self.ring().fingerprint() != ring.fingerprint() => {}
                Err(ForwardError::Failed(error)) => return Err(error),
            }
        }
    }

    /// Does many operations; those for one owner travel together. Results in the order of the operations.
    pub async fn perform_all(&self, operations: Vec<Operation>) -> Vec<Result<Done, NodeError>> {
        self.wait_until_ready(self.deadline()).await;
        let ring = self.ring();
        let mut groups: HashMap<Option<NodeId>, Vec<usize>> = HashMap::new();
        for (index, operation) in operations.iter().enumerate() {
            let primary = ring.primary(operation.key().slot()).filter(|primary| *primary != self.id());
            groups.entry(primary.cloned()).or_default().push(index);
        }
        let mut results: Vec<Option<Result<Done, NodeError>>> = vec![None; operations.len()];
        let operations = Arc::new(operations);
        let mut under_way = tokio::task::JoinSet::new();
        for (primary, indexes) in groups {
            let (node, operations) = (self.clone(), operations.clone());
            under_way.spawn(task(async move {
                let done = match primary {
                    Some(primary) => node.forward_group(&primary, &operations, &indexes).await,
                    None => node.perform_each(&operations, &indexes).await,
                };
                indexes.into_iter().zip(done).collect::<Vec<_>>()
            }));
        }
        while let Some(group) = under_way.join_next().await {
            for (index, done) in group.into_iter().flatten() {
                results[index] = Some(done);
            }
        }
        let lost = || Err(NodeError::DecodeFailed("an operation got no answer".into()));
        results.into_iter().map(|result| result.unwrap_or_else(lost)).collect()
    }

    /// Does the operation on this node's own store.
    pub(super) fn apply(&self, operation: &Operation) -> Result<Outcome, NodeError> {
        match operation {
            Operation::Get(key) => Ok(self.lookup(key)),
            Operation::Put(key, new, _) => self.store_new(key, new),
            Operation::Delete(key, _) => {
                Ok(Outcome::Deleted { found: self.0.store.remove(key, self.now_ms()), degraded: false })
            }
        }
    }

    /// The members that are to hold a key, the primary first. One copy is stored so far: the first.
    fn write_owners<'a>(&self, ring: &'a Ring, slot: Slot) -> Result<Vec<&'a NodeId>, NodeError> {
        let owners: Vec<_> = ring.owners(slot).collect();
        if owners.is_empty() {
            return Err(NodeError::NodeNotFound("no member owns the key".into()));
        }
        Ok(owners)
    }

    async fn forward(
        &self,
        primary: &NodeId,
        operation: &Operation,
        deadline: Instant,
    ) -> Result<Outcome, ForwardError> {
        let (head, value) = operation.to_wire();
        let values = if value.is_empty() { &[][..] } else { &[value][..] };
        match self.call(primary, &Request::One(head), values, deadline).await? {
            (Reply::One(outcome), mut values) => Ok(outcome_from_wire(outcome, &mut values)?),
            (Reply::Refused(refusal), _) => Err(refusal.into()),
            (other, _) => Err(ForwardError::Failed(unexpected(primary, &other))),
        }
    }

    async fn perform_each(
        &self,
        operations: &[Operation],
        indexes: &[usize],
    ) -> Vec<Result<Done, NodeError>> {
        let mut done = Vec::with_capacity(indexes.len());
        for &index in indexes {
            done.push(self.perform(&operations[index]).await.map(|(done, _)| done));
        }
        done
    }

    /// Sends one group to its primary. What the primary does not own any more takes the path of a single operation.
    async fn forward_group(
        &self,
        primary: &NodeId,
        operations: &[Operation],
        indexes: &[usize],
    ) -> Vec<Result<Done, NodeError>> {
        let Some(slot) = indexes.first().map(|&first| operations[first].key().slot()) else {
            return Vec::new();
        };
        let (heads, values): (Vec<_>, Vec<_>) =
            indexes.iter().map(|&index| operations[index].to_wire()).unzip();
        let reply = self.call(primary, &Request::Many(heads), &values, self.deadline()).await;
        let (outcomes, mut values) = match reply {
            Ok((Reply::Many(outcomes), values)) if outcomes.len() == indexes.len() => (outcomes, values),
            Ok((Reply::Refused(refusal), _)) => return vec![Err(refusal.into()); indexes.len()],
            Ok((other, _)) => return vec![Err(unexpected(primary, &other)); indexes.len()],
            // As in `perform`: if the table has changed meanwhile, the new owners are asked.
            Err(NodeError::ForwardFailed(_) | NodeError::NodeNotFound(_))
                if self.ring().primary(slot) != Some(primary) =>
            {
                return self.perform_each(operations, indexes).await;
            }
            Err(error) => return vec![Err(error); indexes.len()],
        };
        let mut done = Vec::with_capacity(indexes.len());
        for (outcome, &index) in outcomes.into_iter().zip(indexes) {
            done.push(match outcome_from_wire(outcome, &mut values) {
                Ok(outcome) => {
                    let deadline = self.deadline();
                    let (outcome, node_id) =
                        self.look_back(&operations[index], outcome, primary, deadline).await;
                    Ok(Done { outcome, node_id })
                }
                Err(Refusal::NotPrimary) => self.perform(&operations[index]).await.map(|(done, _)| done),
                Err(refusal) => Err(refusal.into()),
            });
        }
        done
    }

    /// Whether nothing is to be looked for under former tables.
    fn is_settled(&self, operation: &Operation, outcome: &Outcome) -> bool {
        match operation {
            Operation::Get(_) => *outcome != Outcome::Miss || !self.is_moving(),
            Operation::Put(..) => true,
            Operation::Delete(..) => !self.is_moving(),
        }
    }

    fn is_moving(&self) -> bool {
        let now = Instant::now();
        self.0.former.load().iter().any(|former| former.until > now)
    }

    /// While slots move: a miss asks the former owners, a delete is done there too.
    async fn look_back(
        &self,
        operation: &Operation,
        outcome: Outcome,
        primary: &NodeId,
        deadline: Instant,
    ) -> (Outcome, NodeId) {
        if self.is_settled(operation, &outcome) {
            return (outcome, primary.clone());
        }
        let key = operation.key();
        let mut holder = primary.clone();
        let mut outcome = outcome;
        for (former, address) in self.former_owners(key.slot(), primary) {
            if let Operation::Delete(..) = operation {
                let discarded = self.discard_at(&former, address, key, deadline).await;
                let found = discarded || matches!(outcome, Outcome::Deleted { found: true, .. });
                outcome = Outcome::Deleted { found, degraded: false };
            } else if let Ok(Some(entry)) = self.peek_at(&former, address, key).await {
                self.write_through(primary, key, &entry, deadline).await;
                (outcome, holder) = (Outcome::Hit(entry), former);
                break;
            }
        }
        (outcome, holder)
    }

    /// The members that owned a slot shortly before and are not known to be dead, without the present primary.
    fn former_owners(&self, slot: Slot, primary: &NodeId) -> Vec<(NodeId, SocketAddr)> {
        let (members, now) = (self.members(), Instant::now());
        let mut owners: Vec<(NodeId, SocketAddr)> = Vec::new();
        for former in self.0.former.load().iter().filter(|former| former.until > now) {
            let Placement { ring, addresses } = &former.placement;
            let Some((owner, address)) = ring.primary(slot).and_then(|owner| addresses.get_key_value(owner))
            else {
                continue;
            };
            // One that has left is in no view, and answers while it hands over its entries.
            let is_dead = members.get(owner).is_some_and(|member| member.status == Status::Unhealthy);
            if !is_dead && owner != primary && !owners.iter().any(|(known, _)| known == owner) {
                owners.push((owner.clone(), *address));
            }
        }
        owners
    }

    /// What a node's own store has.
    pub(super) async fn peek_at(
        &self,
        node_id: &NodeId,
        address: SocketAddr,
        key: &Key,
    ) -> Result<Option<Entry>, NodeError> {
        if node_id == self.id() {
            return Ok(self.0.store.peek(key, self.now_ms()));
        }
        let request = Request::Peek { key: key.as_str().into() };
        match self.0.links.call(address, &request, &[], self.deadline()).await? {
            (Reply::One(outcome), mut values) => match outcome_from_wire(outcome, &mut values)? {
                Outcome::Hit(entry) => Ok(Some(entry)),
                _ => Ok(None),
            },
            (other, _) => Err(unexpected(node_id, &other)),
        }
    }

    async fn discard_at(&self, node_id: &NodeId, address: SocketAddr, key: &Key, deadline: Instant) -> bool {
        if node_id == self.id() {
            return self.0.store.remove(key, self.now_ms());
        }
        let request = Request::Discard { key: key.as_str().into() };
        let reply = self.0.links.call(address, &request, &[], deadline).await;
        matches!(reply, Ok((Reply::One(link::Outcome::Deleted { found: true, .. }), _)))
    }

    pub(super) async fn call(
        &self,
        node_id: &NodeId,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<(Reply, Bytes), NodeError> {
        // By the table in force, not by the view: a member that has just left answers until the table has changed.
        let address = self.0.placement.load().addresses.get(node_id).copied();
        let address = address.ok_or_else(|| NodeError::NodeNotFound(format!("{node_id} is not a member")))?;
        Ok(self.0.links.call(address, request, values, deadline).await?)
    }
}

enum ForwardError {
    NotPrimary,
    Failed(NodeError),
}

impl From<NodeError> for ForwardError {
    fn from(error: NodeError) -> ForwardError {
        ForwardError::Failed(error)
    }
}

impl From<Refusal> for ForwardError {
    fn from(refusal: Refusal) -> ForwardError {
        match refusal {
            Refusal::NotPrimary => ForwardError::NotPrimary,
            other => ForwardError::Failed(other.into()),
        }
    }
}

pub(super) fn unexpected(node_id: &NodeId, reply: &Reply) -> NodeError {
    NodeError::DecodeFailed(format!("{node_id} gave an answer that does not fit the question: {reply:?}"))
}
