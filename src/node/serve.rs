//! The requests of peers: served here or refused, never sent on.

use bytes::Bytes;

use super::operation::outcome_to_wire;
use super::{Node, Operation, Outcome, Stop};
use crate::link::{self, Answer, BATCH_BYTES_MAX, Refusal, Reply, Request};
use crate::model::{Key, Observed};

pub(super) fn call(node: &Node, request: Request, mut value: Bytes) -> Answer {
    match request {
        Request::One(operation) => one(apply_as_primary(node, operation, &mut value)),
        Request::Many(operations) => many(node, operations, value),
        Request::Peek { key } => one(with_key(key, |key| {
            node.0.store.peek(key, node.now_ms()).map_or(Outcome::Miss, Outcome::Hit)
        })),
        Request::Discard { key } => one(with_key(key, |key| Outcome::Deleted {
            found: node.0.store.remove(key, node.now_ms()),
            degraded: false,
        })),
        Request::Copy(heads) => {
            let reply = node.keep_copies(heads, value).map_or_else(Reply::Refused, |()| Reply::Copied);
            Answer::Now(reply, Vec::new())
        }
        Request::Ping { clock } => {
            node.see_clock(clock);
            let reply = Reply::Pong {
                node_id: node.0.id.clone(),
                boot: node.0.boot,
                clock: node.0.versions.latest(),
            };
            Answer::Now(reply, Vec::new())
        }
        Request::Members => {
            let gossip = node.0.gossip.clone();
            Answer::Later(Box::pin(async move { (Reply::Members, vec![Bytes::from(gossip.list().await)]) }))
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

fn apply_as_primary(node: &Node, head: link::Operation, values: &mut Bytes) -> Result<Outcome, Refusal> {
    let operation = Operation::from_wire(head, values)?;
    // The asker's table or this node's is about to change; serving by the wrong one would miss what is there.
    if node.0.placement.load().ring.primary(operation.key().slot()) != Some(&node.0.id) {
        return Err(Refusal::NotPrimary);
    }
    node.apply(&operation).map_err(|error| Refusal::TooLarge(error.to_string()))
}

fn with_key(key: Box<str>, act: impl FnOnce(&Key) -> Outcome) -> Result<Outcome, Refusal> {
    Key::parse(key).map(|key| act(&key)).map_err(|error| Refusal::Invalid(error.to_string()))
}

fn one(outcome: Result<Outcome, Refusal>) -> Answer {
    let (head, value) = outcome_to_wire(outcome);
    Answer::Now(Reply::One(head), if value.is_empty() { Vec::new() } else { vec![value] })
}

fn many(node: &Node, operations: Vec<link::Operation>, mut values: Bytes) -> Answer {
    let (mut heads, mut found, mut found_bytes) = (Vec::with_capacity(operations.len()), Vec::new(), 0);
    for operation in operations {
        let (mut head, value) = outcome_to_wire(apply_as_primary(node, operation, &mut values));
        if found_bytes + value.len() > BATCH_BYTES_MAX {
            let reason = format!("the answers of a batch are longer than {BATCH_BYTES_MAX} bytes together");
            head = link::Outcome::Refused(Refusal::TooLarge(reason));
        } else if !value.is_empty() {
            found_bytes += value.len();
            found.push(value);
        }
        heads.push(head);
    }
    Answer::Now(Reply::Many(heads), found)
}
