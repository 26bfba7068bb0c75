//! The requests of peers: served here or refused, never sent on.

use bytes::Bytes;
use tokio::time::Instant;

use super::gather::peeked_to_wire;
use super::operation::{outcome_to_wire, parse};
use super::{Node, Operation, Outcome, Stop, join, sync};
use crate::link::{self, Answer, BATCH_BYTES_MAX, Claim, RecordHead, Refusal, Reply, Request};
use crate::model::Observed;

pub(super) fn call(node: &Node, request: Request, mut value: Bytes, deadline: Instant) -> Answer {
    let node = node.clone();
    match request {
        Request::One { operation, claim } => match Operation::from_wire(operation, &mut value) {
            Ok(Operation::Get(key)) => {
                let (reply, values) = one(node.read(&key, claim));
                Answer::Now(reply, values)
            }
            Ok(write) if node.keeps_alone() => {
                let (reply, values) = one(node.write_alone(&write, claim));
                Answer::Now(reply, values)
            }
            Ok(write) => {
                Answer::Later(Box::pin(async move { one(node.serve(&write, claim, deadline).await) }))
            }
            Err(refusal) => refused(refusal),
        },
        Request::Many { operations, claim } => {
            Answer::Later(Box::pin(many(node, operations, claim, value, deadline)))
        }
        Request::Copy(heads) | Request::Sync(heads) => copies(&node, heads, value),
        Request::Peek { key, ring } => match parse(key) {
            Ok(key) => {
                let (reply, values) = peeked_to_wire(&key, node.peek_here(&key, ring));
                Answer::Now(reply, values)
            }
            Err(refusal) => refused(refusal),
        },
        Request::Lease { node_id, boot, ring, clock } => {
            node.see_clock(clock);
            let (reply, values) = node.grant_lease(&node_id, boot, ring);
            Answer::Now(reply, values)
        }
        Request::Digests(theirs) => Answer::Now(Reply::Differ(sync::differing(&node, &theirs)), Vec::new()),
        Request::Versions(theirs) => match sync::wanted(&node, theirs) {
            Ok(wanted) => Answer::Now(Reply::Wanted(wanted), Vec::new()),
            Err(refusal) => refused(refusal),
        },
        Request::Ping { clock } => {
            node.see_clock(clock);
            let reply = Reply::Pong {
                node_id: node.0.id.clone(),
                boot: node.0.boot,
                clock: node.0.versions.latest(),
            };
            Answer::Now(reply, Vec::new())
        }
        // It hears of nobody any more.
        Request::Members if node.is_leaving() => Answer::Now(Reply::Leaving, Vec::new()),
        Request::Members => {
            let gossip = node.0.gossip.clone();
            Answer::Later(Box::pin(async move { (Reply::Members, vec![Bytes::from(gossip.list().await)]) }))
        }
        Request::CallBack { node_id, address } => Answer::Later(Box::pin(async move {
            let failed = join::call_back(&node, &node_id, address).await.err();
            (Reply::CalledBack(failed), Vec::new())
        })),
        Request::Goodbye { node_id, boot } => {
            node.0.goodbyes.lock().insert(node_id, boot);
            Answer::Now(Reply::Noted, Vec::new())
        }
        Request::Leave => {
            node.0.stop.send_replace(Some(Stop::Leave));
            Answer::Now(Reply::Leaving, Vec::new())
        }
    }
}

impl Node {
    /// Learns the time of another node's versions, so that this node's next ones are later.
    pub(super) fn see_clock(&self, time: u64) {
        if self.0.versions.observe(time, self.now_ms()) == Observed::Clamped {
            self.0.metrics.clamped_versions.inc();
        }
    }
}

fn one(outcome: Result<Outcome, Refusal>) -> (Reply, Vec<Bytes>) {
    let (head, value) = outcome_to_wire(outcome);
    (Reply::One(head), if value.is_empty() { Vec::new() } else { vec![value] })
}

fn refused(refusal: Refusal) -> Answer {
    Answer::Now(Reply::Refused(refusal), Vec::new())
}

fn copies(node: &Node, heads: Vec<RecordHead>, values: Bytes) -> Answer {
    match node.keep_copies(heads, values) {
        Ok(stale) => {
            let ring = node.ring().fingerprint();
            Answer::Now(Reply::Copied { ring, stale }, Vec::new())
        }
        Err(refusal) => refused(refusal),
    }
}

async fn many(
    node: Node,
    heads: Vec<link::Operation>,
    claim: Claim,
    mut values: Bytes,
    deadline: Instant,
) -> (Reply, Vec<Bytes>) {
    let operations: Result<Vec<_>, _> =
        heads.into_iter().map(|head| Operation::from_wire(head, &mut values)).collect();
    let outcomes = match operations {
        Ok(operations) => node.serve_all(&operations, claim, deadline).await,
        Err(refusal) => return (Reply::Refused(refusal), Vec::new()),
    };
    let (mut heads, mut found, mut found_bytes) = (Vec::with_capacity(outcomes.len()), Vec::new(), 0);
    for outcome in outcomes {
        let (mut head, value) = outcome_to_wire(outcome);
        if found_bytes + value.len() > BATCH_BYTES_MAX {
            let reason = format!("the answers of a batch are longer than {BATCH_BYTES_MAX} bytes together");
            head = link::Outcome::Refused(Refusal::TooLarge(reason));
        } else if !value.is_empty() {
            found_bytes += value.len();
            found.push(value);
        }
        heads.push(head);
    }
    (Reply::Many(heads), found)
}
