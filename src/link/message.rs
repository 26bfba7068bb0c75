//! What nodes say to each other.
//!
//! Heads only: the bytes of values travel raw behind the head, in order, each as long as its `value_bytes` says.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Condition, NodeId, Version};

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

/// What became of one operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The key is there.
    Hit {
        /// Its version.
        version: Version,
        /// Absolute expiry in unix milliseconds.
        expires_at_ms: Option<u64>,
        /// None: a JSON string.
        content_type: Option<Arc<str>>,
        /// Length of the value.
        value_bytes: u32,
    },
    /// The key is not there.
    Miss,
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

/// Why an operation was not done. Nothing was changed.
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
    /// By this node's table another one is the primary; the asker's table, or this one's, is about to change.
    #[error("the node is not the key's primary")]
    NotPrimary,
    /// Too much is under way.
    #[error("the node has too much to do")]
    Overloaded,
}

/// The head of an entry that is copied from node to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryHead {
    /// The key.
    pub key: Box<str>,
    /// The version under which every copy is kept.
    pub version: Version,
    /// Absolute expiry in unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// None: a JSON string.
    pub content_type: Option<Arc<str>>,
    /// Length of the value.
    pub value_bytes: u32,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// One operation, as the primary.
    One(Operation),
    /// Several operations, as the primary of all their keys.
    Many(Vec<Operation>),
    /// Keep copies of these entries, unless newer ones are there.
    Copy(Vec<EntryHead>),
    /// What this node's own store has under the key, whoever owns it.
    Peek {
        /// The key.
        key: Box<str>,
    },
    /// Remove the key from this node's own store, whoever owns it.
    Discard {
        /// The key.
        key: Box<str>,
    },
    /// Who are you, and what is your clock?
    Ping {
        /// The sender's latest version time.
        clock: u64,
    },
    /// The membership list, as the raw value of the reply.
    Members,
    /// Leave the cluster gracefully.
    Leave,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::One`], [`Request::Peek`] and [`Request::Discard`].
    One(Outcome),
    /// To [`Request::Many`], in the same order.
    Many(Vec<Outcome>),
    /// To [`Request::Copy`]: all of them are held, in this or a newer version.
    Copied,
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
    /// To [`Request::Leave`]: it will.
    Leaving,
    /// The answer is long; ask again on the bulk connection.
    AskBulk,
    /// Not done, nothing changed.
    Refused(Refusal),
}
