//! The path of an operation to an owner of its key, and on to the next one if that does not answer.
//!
//! A read is served here if this node owns the key and has authority (see [`super::placement`]); everything else goes to the
//! primary. If that owner is gone, silent, or may lack something, the asker *settles* the matter: it gathers what all
//! owners have, hands the newest to the first that answers, and has that one act. Bounded: every step by the request's
//! deadline, every try by the silence of the node that was asked.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::gather::Gathered;
use super::operation::{outcome_from_wire, unexpected};
use super::{Done, Node, NodeError, Operation, Outcome};
use crate::link::{Claim, LinkError, Refusal, Reply, Request, Settled};
use crate::model::{Fingerprint, Key, NodeId, Recent, Record, Version};
use crate::telemetry::Route;

/// How soon to look again when nobody could act, because a table is about to change, or a lease to run out; then twice as
/// long each time up to the second, so that requests which wait together do not become a load of their own.
const PAUSE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(100)];
/// How long before its deadline a read is answered by the newest that was found, if nobody could say that there is nothing newer.
const LAST_WORD: Duration = Duration::from_millis(400);

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

/// Owners that may have done the operation, under versions after the time at which it began.
struct Doubt {
    owners: Vec<NodeId>,
    began: u64,
}

impl Doubt {
    /// Whether a conditional write may have been done, and the key was written since it began. What its condition names was
    /// there before, even if this node's clock has not heard of it.
    fn is_overtaken(&self, operation: &Operation, found: &Gathered) -> bool {
        let named = operation.condition().oldest();
        let is_newer = |version: Version| version.time() > self.began && Some(version) > named;
        operation.is_conditional() && !self.owners.is_empty() && found.versions().any(is_newer)
    }
}

pub(super) type Performed = Result<(Done, Route), NodeError>;

impl Node {
    /// Does one operation, wherever its key lives, and says by which route it went.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn perform(&self, operation: &Operation) -> Performed {
        let deadline = self.deadline();
        self.check_admitted(deadline).await?;
        self.perform_by(operation, deadline).await
    }

    pub(super) async fn perform_by(&self, operation: &Operation, deadline: Instant) -> Performed {
        let placement = self.0.placement.load_full();
        let slot = operation.key().slot();
        let primary = placement.ring.primary(slot).ok_or_else(nobody)?;
        let claim = self.claim(placement.ring.fingerprint(), operation.is_write());
        let may_be_read_here = matches!(operation, Operation::Get(_)) && self.has_authority(&placement, slot);
        let (outcome, holder, route) = if may_be_read_here || primary == self.id() {
            let outcome = self.serve(operation, claim, deadline).await.map_err(Failure::from);
            (outcome, self.id(), Route::Local)
        } else {
            (self.forward(primary, operation, claim, deadline).await, primary, Route::Forwarded)
        };
        self.complete(operation, outcome, holder, route, claim, deadline).await
    }

    /// Goes on where an owner has not settled the matter by its answer.
    pub(super) async fn complete(
        &self,
        operation: &Operation,
        outcome: Result<Outcome, Failure>,
        holder: &NodeId,
        route: Route,
        claim: Claim,
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
            Err(failure) => {
                let is_doubtful = matches!(failure, Failure::Doubtful(_));
                let owners = if is_doubtful { vec![holder.clone()] } else { Vec::new() };
                self.settle(operation, claim, Doubt { owners, began: claim.clock }, deadline).await
            }
        }
    }

    /// Does an operation with all owners that can be reached, whichever those are.
    async fn settle(
        &self,
        operation: &Operation,
        claim: Claim,
        mut doubt: Doubt,
        deadline: Instant,
    ) -> Performed {
        let mark = match operation {
            Operation::Get(_) => 0,
            write => Recent::mark(claim.request, write.key()),
        };
        self.0.metrics.failovers.inc();
        let mut pause = PAUSE[0];
        loop {
            let found = self.gather(operation.key(), mark, deadline).await;
            let failure = match (operation, found.first()) {
                // Better late than old: a silent member may have acted while this node, or an owner, did not run. And better an
                // error than a miss: the silent member may hold the only copy.
                (Operation::Get(_), Some(first))
                    if found.is_conclusive()
                        || found.newest().is_some() && Instant::now() + LAST_WORD >= deadline =>
                {
                    let done = self.found(operation, &found, first, deadline).await;
                    return Ok((done, Route::Forwarded));
                }
                (Operation::Get(_), Some(_)) => found.failure(),
                // An owner may have done it already; doing it again would undo what came after it.
                (_, Some(_)) if found.done().is_none() && doubt.is_overtaken(operation, &found) => {
                    return Err(in_doubt("and the key has changed since"));
                }
                (_, Some(_)) => match self.act(operation, &found, claim, &mut doubt, deadline).await {
                    Ok(done) => return Ok((done, Route::Forwarded)),
                    Err(Failure::Final(error @ NodeError::PreconditionFailed(_))) => {
                        return Err(self.explain(error, operation.key(), doubt, deadline).await);
                    }
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Elsewhere(error) | Failure::Doubtful(error)) => error,
                },
                // Even if all are gone: the table is about to name others.
                (_, None) => found.failure(),
            };
            if Instant::now() + pause >= deadline {
                let is_doubtful = operation.is_write() && !doubt.owners.is_empty();
                return Err(if is_doubtful { in_doubt(&failure.to_string()) } else { failure });
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
    }

    /// What a condition that does not hold means for a write that may have been done before: what stands in its way may be
    /// this very write, unless it is older. Only the owner that may have done it can rule that out.
    async fn explain(&self, refused: NodeError, key: &Key, doubt: Doubt, deadline: Instant) -> NodeError {
        if doubt.owners.is_empty() {
            return refused;
        }
        // Gathered anew: it may have arrived only after the last time.
        let found = self.gather(key, 0, deadline).await;
        if doubt.owners.iter().all(|owner| found.rules_out(owner, doubt.began)) {
            return refused;
        }
        in_doubt(&format!("now {refused}"))
    }

    /// The claim of an asker that has settled nothing.
    pub(super) fn claim(&self, ring: Fingerprint, is_write: bool) -> Claim {
        // All threads share the counter: a read, which needs no number, does not write there.
        let request = if is_write { self.0.request.fetch_add(1, Ordering::Relaxed) } else { 0 };
        Claim::new(ring, self.0.versions.latest(), request)
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
    async fn act(
        &self,
        operation: &Operation,
        found: &Gathered,
        claim: Claim,
        doubt: &mut Doubt,
        deadline: Instant,
    ) -> Result<Done, Failure> {
        let mut failure = Failure::Elsewhere(found.failure());
        // Who sees to a decision of another owner has to know what everybody held before.
        let is_decided = operation.is_conditional() && found.done().is_some();
        for (owner, at_ms) in found.actors() {
            if !is_decided && !self.bring_up_to_date(operation.key(), found, owner, deadline).await {
                failure = Failure::Elsewhere(NodeError::ForwardFailed(format!("{owner} took no copy")));
                continue;
            }
            let ring = self.ring().fingerprint();
            let clock = self.0.versions.latest();
            let unsure_ms = (!doubt.owners.is_empty()).then(|| self.asked_for_ms(deadline));
            let settled = Some(Settled { at_ms, done: found.done(), unsure_ms });
            let claim = Claim { ring, settled, clock, ..claim };
            let outcome = if owner == self.id() {
                self.serve(operation, claim, deadline).await.map_err(Failure::from)
            } else {
                self.forward(owner, operation, claim, deadline).await
            };
            match outcome {
                Ok(outcome) => return Ok(Done { outcome, node_id: owner.clone() }),
                // An owner that answered gives a better reason than one that could not be reached.
                Err(Failure::Elsewhere(error)) => match failure {
                    Failure::Elsewhere(NodeError::Undecided(_)) => {}
                    _ => failure = Failure::Elsewhere(error),
                },
                Err(Failure::Doubtful(error)) => {
                    doubt.owners.push(owner.clone());
                    return Err(Failure::Doubtful(error));
                }
                Err(last) => return Err(last),
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
        let sent_at_ms =
            if operation.is_write() { self.sent_at_ms(owner, operation.value_bytes()) } else { None };
        let claim = Claim { sent_at_ms, ..claim };
        let (operation, value) = operation.to_wire();
        let values = if value.is_empty() { &[][..] } else { &[value][..] };
        let request = Request::One { operation, claim };
        match self.call(owner, &request, values, deadline).await? {
            (Reply::One(outcome), mut values) => {
                Ok(outcome_from_wire(outcome, &mut values, || self.uptime_ms())?)
            }
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
        Ok(self.0.links.call((node_id, address.ok_or_else(unknown)?), request, values, deadline).await?)
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Failure {
        match error {
            LinkError::Overloaded(_) | LinkError::TooLong | LinkError::Late(_) => {
                Failure::Final(error.into())
            }
            LinkError::Unreachable { .. }
            | LinkError::Rejected { .. }
            | LinkError::Refused(_)
            | LinkError::Itself(_) => Failure::Elsewhere(error.into()),
            LinkError::Broken(_) | LinkError::Silent(_) => Failure::Doubtful(error.into()),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        match refusal {
            Refusal::NotOwner | Refusal::NotSynced | Refusal::Undecided => Failure::Elsewhere(refusal.into()),
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

/// The error of a write that was perhaps done, by an owner that does not answer any more.
pub(super) fn in_doubt(reason: &str) -> NodeError {
    NodeError::ForwardFailed(format!("the write may have been done before its owner fell silent; {reason}"))
}

fn nobody() -> NodeError {
    NodeError::NodeNotFound("no member owns the key".into())
}
