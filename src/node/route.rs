//! The path of an operation to an owner of its key, and on to the next one if that does not answer.
//!
//! A read is served here if this node owns the key and has authority (see [`super::placement`]); everything else goes to the
//! primary. If that owner is gone, silent, or may lack something, the asker *settles* the matter: it gathers what all
//! owners have, hands the newest to the first that answers, and has that one act. Bounded: every step by the request's
//! deadline, every try by the silence of the node that was asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::{Instant, sleep};

use super::gather::Gathered;
use super::operation::outcome_from_wire;
use super::{Done, Node, NodeError, Operation, Outcome};
use crate::link::{Claim, LinkError, Refusal, Reply, Request};
use crate::model::{Fingerprint, Key, NodeId, Record};
use crate::net::task;
use crate::telemetry::Route;

/// How soon to look again when nobody could act, because a table is about to change, or a word to run out; then twice as
/// long each time up to the second, so that requests which wait together do not become a load of their own.
const PAUSE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(100)];
/// How long before its deadline a read is answered by the best that was found, if nobody could say that it is the newest.
const LAST_WORD: Duration = Duration::from_millis(400);
/// Operations of one batch that are settled one by one at a time.
const SETTLING_MAX: usize = 64;

/// Why an owner did not do an operation.
#[derive(Clone)]
pub(super) enum Failure {
    /// Another one may, or the same one later.
    Elsewhere(NodeError),
    /// The same, and this one may have done it or do it yet.
    Doubtful(NodeError),
    /// That is the answer.
    Final(NodeError),
}

type Performed = Result<(Done, Route), NodeError>;

impl Node {
    /// Does one operation, wherever its key lives, and says by which route it went.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn perform(&self, operation: &Operation) -> Performed {
        let deadline = self.deadline();
        self.wait_until_ready(deadline).await;
        self.perform_by(operation, deadline).await
    }

    async fn perform_by(&self, operation: &Operation, deadline: Instant) -> Performed {
        let placement = self.0.placement.load_full();
        let slot = operation.key().slot();
        let primary = placement.ring.primary(slot).ok_or_else(nobody)?;
        let claim = self.claim(placement.ring.fingerprint(), None);
        let may_be_read_here =
            matches!(operation, Operation::Get(_)) && placement.has_authority(slot, self.uptime_ms());
        let (outcome, holder, route) = if may_be_read_here || primary == self.id() {
            let outcome = self.serve(operation, claim, deadline).await.map_err(Failure::from);
            (outcome, self.id(), Route::Local)
        } else {
            (self.forward(primary, operation, claim, deadline).await, primary, Route::Forwarded)
        };
        self.complete(operation, outcome, holder, route, claim.clock, deadline).await
    }

    /// Goes on where an owner has not settled the matter by its answer.
    async fn complete(
        &self,
        operation: &Operation,
        outcome: Result<Outcome, Failure>,
        holder: &NodeId,
        route: Route,
        began: u64,
        deadline: Instant,
    ) -> Performed {
        match outcome {
            Ok(Outcome::Miss) => {
                // It may have evicted what another owner still has.
                let found = self.gather_besides(operation.key(), holder, deadline).await;
                let done = self.found(operation, &found, holder, deadline).await;
                Ok((done, route))
            }
            Ok(outcome) => Ok((Done { outcome: outcome.for_clients(), node_id: holder.clone() }, route)),
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::Elsewhere(_)) => self.settle(operation, None, deadline).await,
            Err(Failure::Doubtful(_)) => self.settle(operation, Some(began), deadline).await,
        }
    }

    /// Does an operation with all owners that can be reached, whichever those are. `doubtful`: an owner that was asked before
    /// may have done it, under a version after this time.
    async fn settle(&self, operation: &Operation, mut doubtful: Option<u64>, deadline: Instant) -> Performed {
        let began = self.0.versions.latest();
        self.0.metrics.failovers.inc();
        let mut pause = PAUSE[0];
        loop {
            let found = self.gather(operation.key(), deadline).await;
            let failure = match (operation, found.first()) {
                // Better late than old: somebody silent may have acted while this node, or an owner, did not run.
                (Operation::Get(_), Some(first))
                    if found.is_conclusive() || Instant::now() + LAST_WORD >= deadline =>
                {
                    let done = self.found(operation, &found, first, deadline).await;
                    return Ok((done, Route::Forwarded));
                }
                (Operation::Get(_), Some(_)) => found.failure(),
                (_, Some(_)) => match self.act(operation, &found, deadline).await {
                    Ok(done) => return Ok((done, Route::Forwarded)),
                    Err(Failure::Final(error @ NodeError::PreconditionFailed(_))) => {
                        return Err(self.explain(error, operation.key(), doubtful, deadline).await);
                    }
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Elsewhere(error)) => error,
                    Err(Failure::Doubtful(error)) => {
                        doubtful = doubtful.or(Some(began));
                        error
                    }
                },
                // Even if all are gone: the table is about to name others.
                (_, None) => found.failure(),
            };
            if Instant::now() + pause >= deadline {
                return Err(failure);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
    }

    /// What a condition that does not hold means for a write that may have been done before: what stands in its way may be
    /// this very write, unless it is older.
    async fn explain(
        &self,
        refused: NodeError,
        key: &Key,
        doubtful: Option<u64>,
        deadline: Instant,
    ) -> NodeError {
        let Some(began) = doubtful else { return refused };
        // Gathered anew: it may have arrived only after the last time.
        if !self.gather(key, deadline).await.is_newer_than(began) {
            return refused;
        }
        NodeError::ForwardFailed(format!(
            "the write may have been done before its owner fell silent; now {refused}"
        ))
    }

    fn claim(&self, ring: Fingerprint, settled_at_ms: Option<u64>) -> Claim {
        Claim { ring, settled_at_ms, clock: self.0.versions.latest() }
    }

    /// Answers a read by what was gathered, and gives it to the owners that lack it.
    async fn found(
        &self,
        operation: &Operation,
        found: &Gathered,
        first: &NodeId,
        deadline: Instant,
    ) -> Done {
        match found.newest() {
            Some((holder, Record::Entry(entry))) => {
                self.write_through(operation.key(), found, deadline).await;
                Done { outcome: Outcome::Hit(entry.clone()), node_id: holder.clone() }
            }
            _ => Done { outcome: Outcome::Miss, node_id: first.clone() },
        }
    }

    /// Has the first owner that is able to do a write, after giving it the newest of what was gathered.
    async fn act(&self, operation: &Operation, found: &Gathered, deadline: Instant) -> Result<Done, Failure> {
        let mut failure = Failure::Elsewhere(found.failure());
        for (owner, at_ms) in found.actors() {
            if !self.bring_up_to_date(operation.key(), found, owner, deadline).await {
                failure = Failure::Elsewhere(NodeError::ForwardFailed(format!("{owner} took no copy")));
                continue;
            }
            let claim = self.claim(self.ring().fingerprint(), Some(at_ms));
            let outcome = if owner == self.id() {
                self.serve(operation, claim, deadline).await.map_err(Failure::from)
            } else {
                self.forward(owner, operation, claim, deadline).await
            };
            match outcome {
                Ok(outcome) => return Ok(Done { outcome, node_id: owner.clone() }),
                Err(Failure::Elsewhere(error)) => failure = Failure::Elsewhere(error),
                Err(other) => return Err(other),
            }
        }
        Err(failure)
    }

    async fn forward(
        &self,
        owner: &NodeId,
        operation: &Operation,
        claim: Claim,
        deadline: Instant,
    ) -> Result<Outcome, Failure> {
        let (operation, value) = operation.to_wire();
        let values = if value.is_empty() { &[][..] } else { &[value][..] };
        let request = Request::One { operation, claim };
        match self.call(owner, &request, values, deadline).await? {
            (Reply::One(outcome), mut values) => Ok(outcome_from_wire(outcome, &mut values)?),
            (Reply::Refused(refusal), _) => Err(refusal.into()),
            (other, _) => Err(Failure::Final(unexpected(owner, &other))),
        }
    }

    pub(super) async fn call(
        &self,
        node_id: &NodeId,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<(Reply, Bytes), Failure> {
        let address = self.0.placement.load().addresses.get(node_id).copied();
        let unknown = || Failure::Elsewhere(NodeError::NodeNotFound(format!("{node_id} is not a member")));
        Ok(self.0.links.call(address.ok_or_else(unknown)?, request, values, deadline).await?)
    }

    /// Does many operations; those for one owner travel together, but those on one key go one after the other. Results in
    /// the order of the operations.
    pub async fn perform_all(&self, operations: Vec<Operation>) -> Vec<Result<Done, NodeError>> {
        let deadline = self.deadline();
        self.wait_until_ready(deadline).await;
        let ring = self.ring();
        let claim = self.claim(ring.fingerprint(), None);
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
        let operations = Arc::new(operations);
        let mut under_way = tokio::task::JoinSet::new();
        for (primary, indexes) in groups {
            let (node, operations, primary) = (self.clone(), operations.clone(), primary.clone());
            under_way.spawn(task(async move {
                let done = node.perform_group(&primary, &operations, &indexes, claim, deadline).await;
                indexes.into_iter().zip(done).collect::<Vec<_>>()
            }));
        }
        for chain in chains {
            let (node, operations) = (self.clone(), operations.clone());
            under_way.spawn(task(async move {
                let mut done = Vec::with_capacity(chain.len());
                for index in chain {
                    let performed = node.perform_by(&operations[index], deadline).await;
                    done.push((index, performed.map(|(done, _)| done)));
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
        results.into_iter().map(|result| result.unwrap_or_else(failed)).collect()
    }

    /// Has a primary do its operations together. What it does not settle takes the path of a single operation.
    async fn perform_group(
        &self,
        primary: &NodeId,
        operations: &[Operation],
        indexes: &[usize],
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
            each.push(self.complete(
                &operations[index],
                outcome,
                primary,
                Route::Forwarded,
                claim.clock,
                deadline,
            ));
        }
        let performed: Vec<Performed> = stream::iter(each).buffered(SETTLING_MAX).collect().await;
        performed.into_iter().map(|performed| performed.map(|(done, _)| done)).collect()
    }

    async fn forward_group(
        &self,
        primary: &NodeId,
        operations: &[Operation],
        indexes: &[usize],
        claim: Claim,
        deadline: Instant,
    ) -> Vec<Result<Outcome, Failure>> {
        let (heads, values): (Vec<_>, Vec<_>) =
            indexes.iter().map(|&index| operations[index].to_wire()).unzip();
        let each = |failure: Failure| indexes.iter().map(|_| Err(failure.clone())).collect();
        match self.call(primary, &Request::Many { operations: heads, claim }, &values, deadline).await {
            Ok((Reply::Many(outcomes), mut values)) if outcomes.len() == indexes.len() => {
                outcomes.into_iter().map(|outcome| Ok(outcome_from_wire(outcome, &mut values)?)).collect()
            }
            Ok((Reply::Refused(refusal), _)) => each(refusal.into()),
            Ok((other, _)) => each(Failure::Final(unexpected(primary, &other))),
            Err(failure) => each(failure),
        }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Failure {
        match error {
            LinkError::Overloaded(_) | LinkError::TooLong | LinkError::Late(_) => {
                Failure::Final(error.into())
            }
            LinkError::Unreachable { .. } | LinkError::Refused(_) => Failure::Elsewhere(error.into()),
            LinkError::Broken(_) | LinkError::Silent(_) => Failure::Doubtful(error.into()),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        match refusal {
            Refusal::NotOwner | Refusal::NotSynced => Failure::Elsewhere(refusal.into()),
            Refusal::Unconfirmed => Failure::Doubtful(refusal.into()),
            other => Failure::Final(other.into()),
        }
    }
}

impl From<Failure> for NodeError {
    fn from(failure: Failure) -> NodeError {
        match failure {
            Failure::Elsewhere(error) | Failure::Doubtful(error) | Failure::Final(error) => error,
        }
    }
}

fn nobody() -> NodeError {
    NodeError::NodeNotFound("no member owns the key".into())
}

pub(super) fn unexpected(node_id: &NodeId, reply: &Reply) -> NodeError {
    NodeError::DecodeFailed(format!("{node_id} gave an answer that does not fit the question: {reply:?}"))
}
