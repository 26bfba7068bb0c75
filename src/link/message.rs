//! What nodes say to each other.
//!
//! Heads only: the bytes of values travel raw behind the head, in order, each as long as its `value_bytes` says.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lease::{LeaseAnswer, LeaseQuestion, Sender};
use crate::model::{Condition, Done, Fingerprint, NodeId, Slot, TimeLeft, Version};

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Read it.
    Get {
        /// The key.
        key: Box<str>,
    },
    /// Store a value.
    Put {
        /// The key.
        key: Box<str>,
        /// What must hold of it.
        condition: Condition,
        /// Time to live from the moment of stamping.
        ttl_ms: Option<u64>,
        /// None: a JSON string.
        content_type: Option<Arc<str>>,
        /// Length of the value.
        value_bytes: u32,
    },
    /// Remove it.
    Delete {
        /// The key.
        key: Box<str>,
        /// What must hold of it.
        condition: Condition,
    },
}

impl Operation {
    /// Length of its value.
    #[must_use]
    pub fn value_bytes(&self) -> u32 {
        if let Operation::Put { value_bytes, .. } = self { *value_bytes } else { 0 }
    }
}

/// What became of one operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The key is there.
    Hit {
        /// Its version.
        version: Version,
        /// Of its time to live.
        left: Option<TimeLeft>,
        /// None: a JSON string.
        content_type: Option<Arc<str>>,
        /// Length of the value.
        value_bytes: u32,
    },
    /// The key is not there.
    Miss,
    /// The key is not there any more: whatever another node has is older.
    Gone,
    /// The value is stored.
    Stored {
        /// Under this version.
        version: Version,
        /// Not by all owners yet.
        degraded: bool,
    },
    /// The key is gone.
    Deleted {
        /// Whether it was there.
        found: bool,
        /// Not at all owners yet.
        degraded: bool,
    },
    /// Not done.
    Refused(Refusal),
}

impl Outcome {
    /// Length of its value.
    #[must_use]
    pub fn value_bytes(&self) -> u32 {
        if let Outcome::Hit { value_bytes, .. } = self { *value_bytes } else { 0 }
    }
}

/// Why an operation was not done. Nothing was changed, unless it says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The key, value or request is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// The value is too large for the node that was to hold it.
    #[error("{0}")]
    TooLarge(String),
    /// The condition of a write does not hold.
    #[error("{0}")]
    PreconditionFailed(String),
    /// By this node's table others own the key; the asker's table, or this one's, is about to change.
    #[error("the node does not own the key")]
    NotOwner,
    /// The node owns the key, but others may have newer writes of it: ask all of them first.
    #[error("the node may lack the newest write of the key")]
    NotSynced,
    /// It was done here, but others may have acted meanwhile and not know of it.
    #[error("the write was done at one owner of the key, but the others did not confirm it; it may be lost")]
    Unconfirmed,
    /// Too much is under way.
    #[error("the node has too much to do")]
    Overloaded,
    /// The owner cannot decide the condition of a write now: another owner may decide it too, and this one reaches too few
    /// members to rule that out.
    #[error(
        "the condition cannot be decided now: the owner of the key reaches too few members of the cluster"
    )]
    Undecided,
    /// The condition was decided before, by an owner that fell silent, and the decision may not stand: another owner may have
    /// acted without it in view.
    #[error("its condition was decided, and others may have acted, too")]
    DecidedBefore,
}

/// How far a node may answer for a slot, by the asker's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It does not own the slot, or may lack something.
    None,
    /// It has whatever was acknowledged, but for what the other owners may have done meanwhile.
    Synced,
    /// Nobody has anything newer.
    Authority,
}

/// The head of an entry, or a tombstone, that goes from node to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordHead {
    /// The key.
    pub key: Box<str>,
    /// The version under which every copy is kept.
    pub version: Version,
    /// Of a copy that a write waits for: the write's mark, see `model::Recent`. Otherwise zero.
    pub mark: u64,
    /// What is kept.
    pub kind: RecordKind,
}

impl RecordHead {
    /// Length of its value.
    #[must_use]
    pub fn value_bytes(&self) -> u32 {
        if let RecordKind::Entry { value_bytes, .. } = self.kind { value_bytes } else { 0 }
    }
}

/// What a record is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordKind {
    /// A value.
    Entry {
        /// Of its time to live.
        left: Option<TimeLeft>,
        /// None: a JSON string.
        content_type: Option<Arc<str>>,
        /// Length of the value.
        value_bytes: u32,
    },
    /// The key was deleted.
    Tombstone {
        /// Milliseconds until it is forgotten.
        left_ms: u64,
    },
}

/// Records on their way to a node that is to keep them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// What the uptime of the node that they are sent to, in milliseconds, was at least when their times were left; none if
    /// that is not known.
    pub sent_at_ms: Option<u64>,
    /// What they are.
    pub heads: Vec<RecordHead>,
}

/// How far a node is from being one of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// It looks for those it was told to join.
    Joining,
    /// It has found none of them, and would begin a cluster.
    Bootstrapping,
    /// It is a member, and answers for the cluster.
    Admitted,
}

/// How a request is to be sent on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relayed {
    /// The member that it is for.
    pub to: NodeId,
    /// It does not belong in front of requests that somebody waits for.
    pub(super) is_bulk: bool,
    /// It waits for its answer until the deadline.
    pub(super) is_patient: bool,
    /// It may be asked twice.
    pub(super) is_repeatable: bool,
}

/// Why a node is to act as an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// By this table it owns the key.
    pub ring: Fingerprint,
    /// All owners that can be reached have been asked, and this one was given the newest they had.
    pub settled: Option<Settled>,
    /// The asker's latest version time: what is written now is newer than all that it knew.
    pub clock: u64,
    /// What the asked node's own time, in milliseconds, was at least when a write was sent to it; none if that is not known, or
    /// if the write is so long that it takes its time.
    pub sent_at_ms: Option<u64>,
    /// The number of the request that brought about a write; see `model::Recent`.
    pub request: u64,
}

/// What an asker knows that has asked all owners which can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The time of the node that is to act, in milliseconds, as it said when it was asked.
    pub at_ms: u64,
    /// The version under which the write has been done already, at another node.
    pub done: Option<Version>,
    /// How long ago a write was asked for, in milliseconds, if an owner that fell silent may have done it since.
    pub unsure_ms: Option<u32>,
}

impl Claim {
    /// A claim of an asker that has settled nothing and does not know the owner's clock. `request` is zero for reads.
    #[must_use]
    pub fn new(ring: Fingerprint, clock: u64, request: u64) -> Claim {
        Claim { ring, settled: None, clock, sent_at_ms: None, request }
    }
}

/// What a node has given up of a slot while others lacked it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The slot.
    pub slot: Slot,
    /// Nothing newer was given up.
    pub version: Version,
    /// Hashes of the keys that it has.
    pub held: Vec<u64>,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// One operation, as an owner of the key.
    One {
        /// The operation.
        operation: Operation,
        /// Why this node is to act.
        claim: Claim,
    },
    /// Several operations, as an owner of all their keys.
    Many {
        /// The operations.
        operations: Vec<Operation>,
        /// Why this node is to act.
        claim: Claim,
    },
    /// Keep these records, unless newer ones are there; the sender goes by this table. On the connection for requests: somebody
    /// waits for it.
    Copy(Fingerprint, Records),
    /// Keep these records, unless newer ones are there. On the bulk connection.
    Sync(Records),
    /// What this node's own store has under the key, whoever owns it.
    Peek {
        /// The key.
        key: Box<str>,
        /// The table that the asker goes by.
        ring: Fingerprint,
        /// The mark of the write that is to be done, see `model::Recent`; zero for a read.
        mark: u64,
    },
    /// Which slots may the sender lack something of? Asked again and again; see `model::Ledger`. Behind it as the raw value are
    /// the slots of `answer`, see `model::SlotSet`.
    Lease {
        /// Who asks, and how far it is.
        sender: Sender,
        /// The question.
        question: LeaseQuestion,
        /// What the receiver asked the sender last, answered.
        answer: Option<LeaseAnswer>,
        /// Whether a reply is sent. If not, the answer comes with the receiver's next question.
        at_once: bool,
    },
    /// Which of these slots hold something else than these digests say?
    Digests(Vec<(Slot, u64)>),
    /// Which of these records are wanted, by index: those of which this node has no such or newer version.
    Versions(Vec<(Box<str>, Version)>),
    /// Who are you, and what is your clock?
    Ping {
        /// The sender's latest version time.
        clock: u64,
    },
    /// The membership list, as the raw value of the reply.
    Members,
    /// Can you reach me, the node of this name, at this address?
    CallBack {
        /// The sender.
        node_id: NodeId,
        /// Where it says it is.
        address: SocketAddr,
    },
    /// Leave the cluster gracefully.
    Leave,
    /// The sender leaves: it takes nothing any more, and hands over what it holds.
    Goodbye {
        /// The sender.
        node_id: NodeId,
        /// Its process.
        boot: u64,
    },
    /// Drop what is older than these versions: the newer ones cannot be brought.
    Forget(Vec<(Box<str>, Version)>),
    /// Let the sender alone decide conditional writes in this slot for a while; see `model::Fence`.
    Promise {
        /// The sender.
        node_id: NodeId,
        /// The slot.
        slot: Slot,
        /// The table that the sender goes by; none gives the promise back.
        ring: Option<Fingerprint>,
        /// The sending process's own time, in milliseconds.
        at_ms: u64,
    },
    /// Keep this conditional write, which an owner lacks, for whoever decides next about its key.
    Witness {
        /// The write.
        record: RecordHead,
        /// See [`Records::sent_at_ms`].
        sent_at_ms: Option<u64>,
        /// The owner that has it: the sender.
        holder: NodeId,
        /// The table that the sender goes by.
        ring: Fingerprint,
    },
    /// Which write of this key was this node to keep?
    Witnessed {
        /// The key.
        key: Box<str>,
    },
    /// Send this on to a member that the sender cannot call. Its values are those of the request inside.
    Relay {
        /// To whom, and how.
        how: Relayed,
        /// The request's head as it travels. Not decoded with this one, so that none holds another without end.
        request: Vec<u8>,
    },
    /// Which of these records are held in an older version, by index.
    Older(Vec<(Box<str>, Version)>),
    /// The sender has given up, for want of memory, records of these slots that this node may lack: what this node has of them
    /// up to these versions, and the sender has not, may be older than what was given up. It must go.
    GiveUp(Vec<GivenUp>),
    /// The sender, which has just brought what it holds, owes some slots to this member, too; the slots as the raw value, see
    /// `model::SlotSet`.
    Owe {
        /// Who may lack something of them.
        node_id: NodeId,
    },
    /// The sender has left, and ends: it does nothing any more, and holds nothing that others need.
    Farewell {
        /// The sender.
        node_id: NodeId,
        /// Its process.
        boot: u64,
    },
    /// What has lately arrived of the datagrams by which the node at this address, the sender, tried the path?
    Heard {
        /// Where the sender says it is.
        address: SocketAddr,
    },
}

impl Request {
    /// Whether it may be asked twice, for an answer that is too long for the connection on which it was asked first: done
    /// twice, it changes nothing more.
    pub(super) fn is_repeatable(&self) -> bool {
        let is_read = |operation: &Operation| matches!(operation, Operation::Get { .. });
        match self {
            Request::One { operation, .. } => is_read(operation),
            Request::Many { operations, .. } => operations.iter().all(is_read),
            Request::Relay { how, .. } => how.is_repeatable,
            _ => true,
        }
    }
}

/// What a node's own store has, in reply to [`Request::Peek`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeekReply {
    /// The record, if there is a live one.
    pub record: Option<RecordHead>,
    /// What the record, or having none, says of all others.
    pub standing: Standing,
    /// Members from which this node hears nothing when it calls them.
    pub unheard: Vec<NodeId>,
    /// Those of them that call this node.
    pub calling: Vec<NodeId>,
    /// The answering process's own time, in milliseconds.
    pub at_ms: u64,
    /// What became of the marked write, if it has been done already.
    pub done: Option<Done>,
    /// The newest version that gave way here lately, unseen perhaps by the writer of what took its place; see `model::Recent`.
    pub unseen: Option<Version>,
}

/// The reply to a [`Request::Lease`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// Who answers, and how far it is.
    pub sender: Sender,
    /// The answer.
    pub answer: LeaseAnswer,
    /// What the answering node asks the other one, which it cannot call.
    pub question: Option<LeaseQuestion>,
}

/// A reply. What is large and rare is boxed: each reply moves through several futures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::One`].
    One(Outcome),
    /// To [`Request::Many`], in the same order.
    Many(Vec<Outcome>),
    /// To [`Request::Copy`] and [`Request::Sync`]: all of them are held, in this or a newer version.
    Copied {
        /// The table that this node goes by.
        ring: Fingerprint,
        /// A lease that it granted under another table still runs.
        bound: bool,
        /// Versions that were met, by index: a newer one, which stays; to [`Request::Copy`] also an older one of another node that
        /// is so recent that the sender may not have known it.
        met: Vec<(u32, Version)>,
    },
    /// To [`Request::Peek`].
    Peeked(Box<PeekReply>),
    /// To [`Request::Lease`] that is to be answered at once; the slots as the raw value.
    Leased(Box<LeaseReply>),
    /// To [`Request::Digests`]: the slots that differ.
    Differ(Vec<Slot>),
    /// To [`Request::Versions`] and [`Request::Older`].
    Wanted(Vec<u32>),
    /// To [`Request::Ping`].
    Pong {
        /// Who answers.
        node_id: NodeId,
        /// Its process.
        boot: u64,
        /// Its latest version time.
        clock: u64,
    },
    /// To [`Request::Members`].
    Members,
    /// To [`Request::CallBack`]: why no connection can be had, if none can.
    CalledBack(Option<String>),
    /// To [`Request::Goodbye`], [`Request::Farewell`] and [`Request::Owe`].
    Noted,
    /// To [`Request::Witness`]: whether it is kept.
    Kept(bool),
    /// To [`Request::Witnessed`]: the write, and who has it.
    Witnessed(Option<(RecordHead, NodeId)>),
    /// To [`Request::Promise`]: whether it is given.
    Promised(bool),
    /// To [`Request::Relay`], if the member did not answer it.
    NotRelayed {
        /// It may have arrived all the same.
        may_be_done: bool,
    },
    /// To [`Request::Leave`]: it will. To [`Request::Members`]: it is about to, and does not know who is there.
    Leaving,
    /// The answer is long; ask again on the bulk connection.
    AskBulk,
    /// Not done, nothing changed.
    Refused(Refusal),
    /// To [`Request::Heard`].
    Heard {
        /// How long the longest payload was; zero if none arrived.
        bytes: u32,
        /// The answering node's clock, in unix milliseconds.
        now_ms: u64,
    },
    /// To [`Request::CallBack`]: connections work, and why this node does not take the sender in all the same.
    TurnedAway(String),
}
