//! Many operations at once: those for one primary travel in one frame.
//!
//! What a primary does not settle takes the path of a single operation; see [`super::route`]. Invariant: operations on one key
//! are done one after the other, in the order in which they were given. Values that were read count against what one batch may
//! bring, for a few short operations may name long ones many times.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::operation::{check_lengths, outcome_from_wire, unexpected};
use super::route::{Failure, Performed};
use super::{Done, Node, NodeError, Operation, Outcome};
use crate::link::{self, BATCH_BYTES_MAX, Claim, Reply, Request, Room, Weight, cut};
use crate::model::{Key, NodeId};
use crate::net::task;
use crate::telemetry::Route;

/// Operations of one batch that are settled one by one at a time.
const SETTLING_MAX: usize = 64;
/// Of those, reads.
const READING_MAX: usize = 16;

/// What one frame may hold of a batch.
const ROOM: Room = Room { items: usize::MAX, value_bytes: BATCH_BYTES_MAX };

/// An operation as it travels.
pub(super) type Wired = (link::Operation, Bytes);

/// What a batch may read.
struct ReadBudget {
    /// Bytes of values by now.
    bytes: AtomicUsize,
    /// What is on its way is not counted yet, so it had better be little.
    under_way: Semaphore,
}

impl ReadBudget {
    fn new() -> ReadBudget {
        ReadBudget { bytes: AtomicUsize::new(0), under_way: Semaphore::new(READING_MAX) }
    }

    /// Does an operation, unless it is a read and there is no room for more.
    async fn bounded<F>(&self, operation: &Operation, perform: F) -> Result<Done, NodeError>
    where
        F: Future<Output = Performed>,
    {
        let too_long = || {
            NodeError::TooLarge(format!(
                "the values of a batch are longer than {BATCH_BYTES_MAX} bytes together"
            ))
        };
        let Operation::Get(_) = operation else { return perform.await.map(|(done, _)| done) };
        // Fails when it is closed, which nobody does.
        let _permit = self.under_way.acquire().await;
        if self.bytes.load(Ordering::Relaxed) > BATCH_BYTES_MAX {
            return Err(too_long());
        }
        let (done, _) = perform.await?;
        if let Outcome::Hit(entry) = &done.outcome
            && self.bytes.fetch_add(entry.value.len(), Ordering::Relaxed) + entry.value.len()
                > BATCH_BYTES_MAX
        {
            return Err(too_long());
        }
        Ok(done)
    }
}

impl Node {
    /// Does many operations; those for one owner travel together, but those on one key go one after the other. Results in
    /// the order of the operations.
    ///
    /// # Errors
    /// [`NodeError::Joining`]; nothing was done then.
    pub async fn perform_all(
        &self,
        operations: Vec<Operation>,
    ) -> Result<Vec<Result<Done, NodeError>>, NodeError> {
        let deadline = self.deadline();
        self.check_admitted(deadline).await?;
        let ring = self.ring();
        let claim = self.claim(ring.fingerprint(), operations.iter().any(Operation::is_write));
        let mut by_key: HashMap<&Key, Vec<usize>> = HashMap::with_capacity(operations.len());
        for (index, operation) in operations.iter().enumerate() {
            by_key.entry(operation.key()).or_default().push(index);
        }
        let mut groups: BTreeMap<&NodeId, Vec<usize>> = BTreeMap::new();
        let mut chains: Vec<Vec<usize>> = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            match by_key.remove(operation.key()) {
                Some(one) if one.len() == 1 => {
                    let primary = ring.primary(operation.key().slot());
                    primary.into_iter().for_each(|primary| groups.entry(primary).or_default().push(index));
                }
                Some(several) => chains.push(several),
                // Further on in a chain.
                None => {}
            }
        }
        let mut results: Vec<Option<Result<Done, NodeError>>> = vec![None; operations.len()];
        let (operations, read) = (Arc::new(operations), Arc::new(ReadBudget::new()));
        let mut under_way = tokio::task::JoinSet::new();
        for (primary, indexes) in groups {
            let (node, operations, primary) = (self.clone(), operations.clone(), primary.clone());
            let read = read.clone();
            under_way.spawn(task(async move {
                let done = node.perform_group(&primary, &operations, &indexes, &read, claim, deadline).await;
                indexes.into_iter().zip(done).collect::<Vec<_>>()
            }));
        }
        for chain in chains {
            let (node, operations, read) = (self.clone(), operations.clone(), read.clone());
            under_way.spawn(task(async move {
                let mut done = Vec::with_capacity(chain.len());
                for index in chain {
                    let operation = &operations[index];
                    done.push((index, read.bounded(operation, node.perform_by(operation, deadline)).await));
                }
                done
            }));
        }
        while let Some(group) = under_way.join_next().await {
            for (index, done) in group.into_iter().flatten() {
                results[index] = Some(done);
            }
        }
        // Without a result is only what panicked, which was reported.
        let failed =
            || Err(NodeError::ForwardFailed("this node failed at the operation; see its log".into()));
        Ok(results.into_iter().map(|result| result.unwrap_or_else(failed)).collect())
    }

    /// Has a primary do its operations together. What it does not settle takes the path of a single operation.
    async fn perform_group(
        &self,
        primary: &NodeId,
        operations: &[Operation],
        indexes: &[usize],
        read: &ReadBudget,
        claim: Claim,
        deadline: Instant,
    ) -> Vec<Result<Done, NodeError>> {
        let outcomes = if primary == self.id() {
            let own: Vec<Operation> = indexes.iter().map(|&index| operations[index].clone()).collect();
            let served = self.serve_all(&own, claim, deadline).await;
            served.into_iter().map(|outcome| outcome.map_err(Failure::from)).collect()
        } else {
            self.forward_group(primary, operations, indexes, claim, deadline).await
        };
        let mut each = Vec::with_capacity(indexes.len());
        for (outcome, &index) in outcomes.into_iter().zip(indexes) {
            let operation = &operations[index];
            let completed = self.complete(operation, outcome, primary, Route::Forwarded, claim, deadline);
            each.push(read.bounded(operation, completed));
        }
        stream::iter(each).buffered(SETTLING_MAX).collect().await
    }

    async fn forward_group(
        &self,
        primary: &NodeId,
        operations: &[Operation],
        indexes: &[usize],
        claim: Claim,
        deadline: Instant,
    ) -> Vec<Result<Outcome, Failure>> {
        let frames = frames(operations, indexes).into_iter();
        let asking = frames.map(|frame| self.forward_frame(primary, frame, claim, deadline));
        let mut done: BTreeMap<usize, Result<Outcome, Failure>> =
            join_all(asking).await.into_iter().flatten().collect();
        let lost = || Err(Failure::Doubtful(NodeError::ForwardFailed("the operation got no answer".into())));
        indexes.iter().map(|index| done.remove(index).unwrap_or_else(lost)).collect()
    }

    /// Has a primary do what fits one frame; each with its index.
    async fn forward_frame(
        &self,
        primary: &NodeId,
        frame: Vec<(usize, Wired)>,
        claim: Claim,
        deadline: Instant,
    ) -> Vec<(usize, Result<Outcome, Failure>)> {
        let (indexes, wired): (Vec<usize>, Vec<Wired>) = frame.into_iter().unzip();
        let (heads, values): (Vec<_>, Vec<_>) = wired.into_iter().unzip();
        let sent_at_ms = self.sent_at_ms(primary, values.iter().map(Bytes::len).sum());
        let request = Request::Many { operations: heads, claim: Claim { sent_at_ms, ..claim } };
        let failure = match self.call(primary, &request, &values, deadline).await {
            Ok((Reply::Many(outcomes), mut values)) if outcomes.len() == indexes.len() => {
                match check_lengths(outcomes.iter().map(link::Outcome::value_bytes), &values) {
                    Ok(()) => {
                        let now_ms = || self.uptime_ms();
                        let read = |outcome| Ok(outcome_from_wire(outcome, &mut values, now_ms)?);
                        return indexes.into_iter().zip(outcomes.into_iter().map(read)).collect();
                    }
                    Err(refusal) => refusal.into(),
                }
            }
            Ok((Reply::Refused(refusal), _)) => refusal.into(),
            Ok((other, _)) => Failure::Final(unexpected(primary, &other)),
            Err(failure) => failure,
        };
        indexes.into_iter().map(|index| (index, Err(failure.clone()))).collect()
    }
}

/// Operations as they travel, each with its index, in frames. Reads and writes apart: a long answer may have to be asked for
/// twice, and a write must not be done twice.
pub(super) fn frames(operations: &[Operation], indexes: &[usize]) -> Vec<Vec<(usize, Wired)>> {
    let is_read = |index: &usize| matches!(operations[*index], Operation::Get(_));
    let (reads, writes): (Vec<usize>, Vec<usize>) = indexes.iter().partition(|index| is_read(index));
    let wired = |index: usize| (index, operations[index].to_wire());
    let weigh = |(_, (head, value)): &(usize, Wired)| Weight::of(head, value.len());
    [reads, writes].into_iter().flat_map(|some| cut(some.into_iter().map(wired), ROOM, weigh)).collect()
}
