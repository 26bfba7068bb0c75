//! What nodes say to each other in the lease exchange: who asks, what is asked, what is answered.
//!
//! What a lease means is in `model::Ledger`. Invariant: an answer names the one question, of one process, that it answers.

use serde::{Deserialize, Serialize};

use super::message::Admission;
use crate::model::{Fingerprint, NodeId};

/// What a node says of itself in each frame of the lease exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// Its name.
    pub node_id: NodeId,
    /// Its process.
    pub boot: u64,
    /// Its latest version time.
    pub clock: u64,
    /// Its wall clock, in unix milliseconds.
    pub wall_ms: u64,
    /// Whether it is a member itself.
    pub admission: Admission,
    /// The members that it does not reach, or has not reached for long enough, over connections of its own.
    pub unreached: Vec<Unreached>,
}

/// A member that another one does not reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreached {
    /// Its name.
    pub node_id: NodeId,
    /// It has lasted for a while, or is over only since a while.
    pub is_accused: bool,
}

/// A question for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseQuestion {
    /// The table that the asker goes by.
    pub ring: Fingerprint,
    /// When it asked, in microseconds since its process started: later than all that the process asked before.
    pub asked_us: u64,
    /// It comes with the answer to a question of the receiver, because the receiver cannot be called.
    pub is_back: bool,
}

/// The answer to one question for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// The process that asked.
    pub boot: u64,
    /// The question's time, as the process gave it.
    pub asked_us: u64,
    /// How long the question lay at the answering node, in microseconds.
    pub waited_us: u64,
    /// The table that the answer holds under.
    pub ring: Fingerprint,
    /// False: not yet.
    pub granted: bool,
    /// As in the question.
    pub is_back: bool,
    /// Whether the answering node counts the asker as a member.
    pub is_member: bool,
}
