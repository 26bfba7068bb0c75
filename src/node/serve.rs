//! The requests of peers: served here or refused, never sent on.

use bytes::Bytes;
use tokio::time::Instant;

use super::gather::peeked_to_wire;
use super::operation::{check_lengths, outcome_to_wire, parse};
use super::{Node, Operation, Outcome, Stop, digests, handoff, join, offer};
use crate::link::{
    self, Answer, BATCH_BYTES_MAX, Claim, Load, Records, Refusal, Reply, Request, Room, Weight,
};
use crate::model::{Fingerprint, Observed, Version};

pub(super) fn call(node: &Node, request: Request, mut value: Bytes, deadline: Instant) -> Answer {
    let node = node.clone();
    match request {
        Request::One { operation, claim } => match Operation::from_wire(operation, &mut value) {
            Ok(Operation::Get(key)) => {
                let (reply, values) = one(&node, node.read(&key, claim));
                Answer::Now(reply, values)
            }
            Ok(write) if node.keeps_alone(&write) => {
                let (reply, values) = one(&node, node.write_alone(&write, claim));
                Answer::Now(reply, values)
            }
            Ok(write) => {
                Answer::Later(Box::pin(async move { one(&node, node.serve(&write, claim, deadline).await) }))
            }
            Err(refusal) => {
                node.count_refused(&refusal);
                refused(refusal)
            }
        },
        Request::Many { operations, claim } => {
            Answer::Later(Box::pin(many(node, operations, claim, value, deadline)))
        }
        Request::Copy(theirs, records) => copies(&node, Some(theirs), records, value),
        Request::Sync(records) => copies(&node, None, records, value),
        Request::Peek { key, ring, mark } => match parse(key) {
            Ok(key) => {
                let (reply, values) = peeked_to_wire(&key, node.peek_here(&key, ring, mark));
                Answer::Now(reply, values)
            }
            Err(refusal) => refused(refusal),
        },
        Request::Lease { sender, question, answer, at_once } => {
            node.see_sender(&sender);
            if let Some(answer) = answer {
                node.hear_told(&sender, &answer, &value);
            }
            if at_once {
                let (reply, values) = node.answer_now(&sender, question);
                return Answer::Now(reply, values);
            }
            node.answer_later(&sender, question);
            Answer::Never
        }
        Request::Digests(theirs) => {
            Answer::Now(Reply::Differ(digests::differing(&node, &theirs)), Vec::new())
        }
        Request::Versions(theirs) => {
            Answer::Now(Reply::Wanted(offer::wanted(&node, theirs, false)), Vec::new())
        }
        Request::Older(theirs) => Answer::Now(Reply::Wanted(offer::wanted(&node, theirs, true)), Vec::new()),
        Request::Forget(versions) => {
            let keys = versions.into_iter().filter_map(|(key, version)| Some((parse(key).ok()?, version)));
            keys.for_each(|(key, version)| node.forget_older(&key, version));
            copied(&node, Vec::new())
        }
        Request::Promise { node_id, slot, ring: Some(ring), at_ms } => {
            Answer::Now(Reply::Promised(node.promise(&node_id, slot, ring, at_ms)), Vec::new())
        }
        Request::Promise { node_id, slot, ring: None, at_ms } => {
            node.0.fences.release(slot, &node_id, at_ms);
            Answer::Now(Reply::Promised(false), Vec::new())
        }
        Request::Witness { record, sent_at_ms, holder, ring } => {
            match node.keep_witnessed((record, value), sent_at_ms, holder, ring) {
                Ok(is_kept) => Answer::Now(Reply::Kept(is_kept), Vec::new()),
                Err(refusal) => refused(refusal),
            }
        }
        Request::Witnessed { key } => match parse(key) {
            Ok(key) => {
                let (reply, values) = node.testify(&key);
                Answer::Now(reply, values)
            }
            Err(refusal) => refused(refusal),
        },
        Request::Relay { how, request } => {
            let address = node.0.placement.load().addresses.get(&how.to).copied();
            let Some(address) = address else {
                return Answer::Now(Reply::NotRelayed { may_be_done: false }, Vec::new());
            };
            Answer::Later(Box::pin(async move {
                node.0.links.relay((&how.to, address), &request, value, deadline).await
            }))
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
        // It hears of nobody any more.
        Request::Members if node.is_leaving() => Answer::Now(Reply::Leaving, Vec::new()),
        Request::Members => {
            let gossip = node.0.gossip.clone();
            Answer::Later(Box::pin(async move { (Reply::Members, vec![Bytes::from(gossip.list().await)]) }))
        }
        Request::CallBack { node_id, address } => {
            Answer::Later(Box::pin(
                async move { (join::call_back(&node, &node_id, address).await, Vec::new()) },
            ))
        }
        Request::Heard { address } => Answer::Later(Box::pin(async move {
            let bytes = node.0.gossip.heard(address).await.try_into().unwrap_or(u32::MAX);
            (Reply::Heard { bytes, now_ms: node.wall_ms() }, Vec::new())
        })),
        Request::Goodbye { node_id, boot } => {
            node.note_goodbye(node_id, handoff::Goodbye { boot, has_ended: false });
            Answer::Now(Reply::Noted, Vec::new())
        }
        Request::GiveUp(given_up) => {
            node.give_up(given_up);
            copied(&node, Vec::new())
        }
        Request::Owe { node_id } => {
            Answer::Later(Box::pin(async move { (node.take_over(node_id, &value).await, Vec::new()) }))
        }
        Request::Farewell { node_id, boot } => {
            node.note_goodbye(node_id, handoff::Goodbye { boot, has_ended: true });
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
        if self.0.versions.observe(time, self.wall_ms()) == Observed::Clamped {
            self.0.metrics.clamped_versions.inc();
        }
    }
}

fn one(node: &Node, outcome: Result<Outcome, Refusal>) -> (Reply, Vec<Bytes>) {
    let (head, value) = outcome_to_wire(outcome, || node.uptime_ms());
    (Reply::One(head), if value.is_empty() { Vec::new() } else { vec![value] })
}

fn refused(refusal: Refusal) -> Answer {
    Answer::Now(Reply::Refused(refusal), Vec::new())
}

fn copies(node: &Node, theirs: Option<Fingerprint>, records: Records, values: Bytes) -> Answer {
    match node.keep_copies(theirs, records, values) {
        Ok(met) => copied(node, met),
        Err(refusal) => refused(refusal),
    }
}

fn copied(node: &Node, met: Vec<(u32, Version)>) -> Answer {
    Answer::Now(Reply::Copied { ring: node.ring().fingerprint(), bound: node.is_bound(), met }, Vec::new())
}

async fn many(
    node: Node,
    heads: Vec<link::Operation>,
    claim: Claim,
    mut values: Bytes,
    deadline: Instant,
) -> (Reply, Vec<Bytes>) {
    if let Err(refusal) = check_lengths(heads.iter().map(link::Operation::value_bytes), &values) {
        return (Reply::Refused(refusal), Vec::new());
    }
    // One that is refused does not hinder the others.
    let mut usable = Vec::with_capacity(heads.len());
    let read = |head| match Operation::from_wire(head, &mut values) {
        Ok(operation) => {
            usable.push(operation);
            None
        }
        Err(refusal) => {
            node.count_refused(&refusal);
            Some(refusal)
        }
    };
    let refused: Vec<Option<Refusal>> = heads.into_iter().map(read).collect();
    let mut done = node.serve_all(&usable, claim, deadline).await.into_iter();
    let outcomes = refused
        .into_iter()
        .map(|refusal| refusal.map_or_else(|| done.next().unwrap_or(Err(Refusal::NotSynced)), Err));
    answers(outcomes, || node.uptime_ms())
}

/// The answers to many operations, as many as fit one frame.
pub(super) fn answers(
    outcomes: impl ExactSizeIterator<Item = Result<Outcome, Refusal>>,
    now_ms: impl Fn() -> u64,
) -> (Reply, Vec<Bytes>) {
    let mut load = Load::new(Room { items: usize::MAX, value_bytes: BATCH_BYTES_MAX });
    let (mut heads, mut found) = (Vec::with_capacity(outcomes.len()), Vec::new());
    for outcome in outcomes {
        let (mut head, value) = outcome_to_wire(outcome, &now_ms);
        if !load.take(Weight::of(&head, value.len())) {
            let reason = format!("the answers of a batch are longer than {BATCH_BYTES_MAX} bytes together");
            head = link::Outcome::Refused(Refusal::TooLarge(reason));
        } else if !value.is_empty() {
            found.push(value);
        }
        heads.push(head);
    }
    (Reply::Many(heads), found)
}
