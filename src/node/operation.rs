//! What is asked of a node and what comes of it, and how both travel.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::route::in_doubt;
use crate::link::{self, LinkError, RecordHead, RecordKind, Refusal, Reply};
use crate::model::{Condition, ContentType, Entry, Key, NodeId, Record, StoreError, Tombstone, Version};

/// One operation on one key.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Read.
    Get(Key),
    /// Store.
    Put(Key, NewValue, Condition),
    /// Remove.
    Delete(Key, Condition),
}

/// A value before it has a version.
#[derive(Clone, Debug, PartialEq)]
pub struct NewValue {
    /// The bytes.
    pub value: Bytes,
    /// None: a JSON string.
    pub content_type: Option<ContentType>,
    /// Time to live from the moment of stamping.
    pub ttl: Option<Duration>,
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A read found this.
    Hit(Entry),
    /// A read found nothing.
    Miss,
    /// A read found that the key was deleted, or its time is over: whatever another node has is older.
    Gone,
    /// Stored.
    Stored {
        /// Under this version.
        version: Version,
        /// Fewer copies than wanted are there; the rest follows.
        degraded: bool,
    },
    /// Removed.
    Deleted {
        /// Whether there was something.
        found: bool,
        /// Not all owners know of it yet.
        degraded: bool,
    },
}

impl Outcome {
    /// Of a write: whether fewer copies than wanted are there.
    pub(super) fn set_degraded(&mut self, now_degraded: bool) {
        if let Outcome::Stored { degraded, .. } | Outcome::Deleted { degraded, .. } = self {
            *degraded = now_degraded;
        }
    }

    /// Clients need not know why there is nothing.
    pub(super) fn for_clients(self) -> Outcome {
        if self == Outcome::Gone { Outcome::Miss } else { self }
    }
}

/// An outcome, and the node that held the key.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// What became of it.
    pub outcome: Outcome,
    /// Where.
    pub node_id: NodeId,
}

/// Why an operation could not be done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NodeError {
    /// The value can never be stored. Nothing changed.
    #[error("{0}")]
    TooLarge(String),
    /// The condition of the write does not hold. Nothing changed.
    #[error("{0}")]
    PreconditionFailed(String),
    /// This node has not been admitted to the cluster. Nothing changed.
    #[error("{0}")]
    Joining(String),
    /// A bounded queue is full. Nothing changed.
    #[error("{0}")]
    Overloaded(String),
    /// Whether the condition of the write holds cannot be known now. Nothing changed.
    #[error("{0}")]
    Undecided(String),
    /// No member owns the key, or the named node is not a member. Nothing changed.
    #[error("{0}")]
    NodeNotFound(String),
    /// The owner could not be reached in time. A write may have been done.
    #[error("{0}")]
    ForwardFailed(String),
    /// The owner's answer made no sense. A write may have been done.
    #[error("{0}")]
    DecodeFailed(String),
}

impl From<StoreError> for NodeError {
    fn from(error: StoreError) -> NodeError {
        NodeError::TooLarge(error.to_string())
    }
}

impl From<LinkError> for NodeError {
    fn from(error: LinkError) -> NodeError {
        match error {
            LinkError::Overloaded(_) => NodeError::Overloaded(error.to_string()),
            LinkError::TooLong => NodeError::TooLarge(error.to_string()),
            _ => NodeError::ForwardFailed(error.to_string()),
        }
    }
}

impl From<Refusal> for NodeError {
    fn from(refusal: Refusal) -> NodeError {
        match refusal {
            Refusal::TooLarge(reason) => NodeError::TooLarge(reason),
            Refusal::PreconditionFailed(reason) => NodeError::PreconditionFailed(reason),
            Refusal::Overloaded => NodeError::Overloaded(refusal.to_string()),
            Refusal::Undecided => NodeError::Undecided(refusal.to_string()),
            Refusal::NotOwner | Refusal::NotSynced => {
                NodeError::ForwardFailed("the members do not agree yet about who has the key".into())
            }
            Refusal::Unconfirmed => NodeError::ForwardFailed(refusal.to_string()),
            Refusal::DecidedBefore => in_doubt(&refusal.to_string()),
            Refusal::Invalid(reason) => NodeError::DecodeFailed(reason),
        }
    }
}

impl Operation {
    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Operation::Get(key) | Operation::Put(key, ..) | Operation::Delete(key, _) => key,
        }
    }

    /// Whether it changes something.
    pub(super) fn is_write(&self) -> bool {
        !matches!(self, Operation::Get(_))
    }

    /// Length of its value.
    pub(super) fn value_bytes(&self) -> usize {
        if let Operation::Put(_, new, _) = self { new.value.len() } else { 0 }
    }

    /// Whether what it does depends on what is there.
    #[must_use]
    pub(super) fn is_conditional(&self) -> bool {
        *self.condition() != Condition::Always
    }

    /// What has to hold.
    pub(super) fn condition(&self) -> &Condition {
        match self {
            Operation::Get(_) => &Condition::Always,
            Operation::Put(.., condition) | Operation::Delete(_, condition) => condition,
        }
    }

    /// As it travels: the head, and the value behind it.
    pub(super) fn to_wire(&self) -> (link::Operation, Bytes) {
        let key = self.key().as_str().into();
        match self {
            Operation::Get(_) => (link::Operation::Get { key }, Bytes::new()),
            Operation::Delete(_, condition) => {
                (link::Operation::Delete { key, condition: condition.clone() }, Bytes::new())
            }
            Operation::Put(_, new, condition) => {
                let head = link::Operation::Put {
                    key,
                    condition: condition.clone(),
                    ttl_ms: new.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
                    content_type: new.content_type.clone().map(Arc::from),
                    value_bytes: new.value.len() as u32,
                };
                (head, new.value.clone())
            }
        }
    }

    /// Out of a head and the raw values, of which it takes its own.
    pub(super) fn from_wire(head: link::Operation, values: &mut Bytes) -> Result<Operation, Refusal> {
        Ok(match head {
            link::Operation::Get { key } => Operation::Get(parse(key)?),
            link::Operation::Delete { key, condition } => Operation::Delete(parse(key)?, condition),
            link::Operation::Put { key, condition, ttl_ms, content_type, value_bytes } => {
                let value = cut(values, value_bytes)?;
                let content_type = parse_type(content_type)?;
                let ttl = ttl_ms.map(Duration::from_millis);
                Operation::Put(parse(key)?, NewValue { value, content_type, ttl }, condition)
            }
        })
    }
}

/// As it travels now: the head, and the value behind it. Only a time to live asks the clock.
pub(super) fn outcome_to_wire(
    outcome: Result<Outcome, Refusal>,
    now_ms: impl Fn() -> u64,
) -> (link::Outcome, Bytes) {
    let head = match outcome {
        Ok(Outcome::Hit(entry)) => {
            let head = link::Outcome::Hit {
                version: entry.version,
                left: entry.expiry.map(|expiry| expiry.left(now_ms())),
                content_type: entry.content_type.map(Arc::from),
                value_bytes: entry.value.len() as u32,
            };
            return (head, entry.value);
        }
        Ok(Outcome::Miss) => link::Outcome::Miss,
        Ok(Outcome::Gone) => link::Outcome::Gone,
        Ok(Outcome::Stored { version, degraded }) => link::Outcome::Stored { version, degraded },
        Ok(Outcome::Deleted { found, degraded }) => link::Outcome::Deleted { found, degraded },
        Err(refusal) => link::Outcome::Refused(refusal),
    };
    (head, Bytes::new())
}

/// Out of a head that has just come, and the raw values, of which it takes its own. Only a time to live asks the clock.
pub(super) fn outcome_from_wire(
    head: link::Outcome,
    values: &mut Bytes,
    now_ms: impl Fn() -> u64,
) -> Result<Outcome, Refusal> {
    Ok(match head {
        link::Outcome::Hit { version, left, content_type, value_bytes } => {
            let (value, content_type) = (cut(values, value_bytes)?, parse_type(content_type)?);
            let expiry = left.map(|left| left.since(now_ms()));
            Outcome::Hit(Entry { value, content_type, version, expiry })
        }
        link::Outcome::Miss => Outcome::Miss,
        link::Outcome::Gone => Outcome::Gone,
        link::Outcome::Stored { version, degraded } => Outcome::Stored { version, degraded },
        link::Outcome::Deleted { found, degraded } => Outcome::Deleted { found, degraded },
        link::Outcome::Refused(refusal) => return Err(refusal),
    })
}

/// As it travels, with the times that are left at `now_ms`: the head, and the value behind it.
pub(super) fn record_to_wire(key: &Key, record: Record, now_ms: u64) -> (RecordHead, Bytes) {
    let version = record.version();
    let (kind, value) = match record {
        Record::Entry(entry) => {
            let kind = RecordKind::Entry {
                left: entry.expiry.map(|expiry| expiry.left(now_ms)),
                content_type: entry.content_type.map(Arc::from),
                value_bytes: entry.value.len() as u32,
            };
            (kind, entry.value)
        }
        Record::Tombstone(tombstone) => {
            (RecordKind::Tombstone { left_ms: tombstone.expires_at_ms.saturating_sub(now_ms) }, Bytes::new())
        }
    };
    (RecordHead { key: key.as_str().into(), version, mark: 0, kind }, value)
}

/// Out of a head, whose times were left at `then_ms`, and the raw values, of which it takes its own.
pub(super) fn record_from_wire(
    head: RecordHead,
    values: &mut Bytes,
    then_ms: u64,
) -> Result<(Key, Record), Refusal> {
    let RecordHead { key, version, kind, .. } = head;
    let record = kind_from_wire(version, kind, values, then_ms);
    Ok((parse(key)?, record?))
}

/// What a record is, whose times were left at `then_ms`. Takes its value in any case, unless that is longer than those that
/// came.
pub(super) fn kind_from_wire(
    version: Version,
    kind: RecordKind,
    values: &mut Bytes,
    then_ms: u64,
) -> Result<Record, Refusal> {
    Ok(match kind {
        RecordKind::Entry { left, content_type, value_bytes } => {
            let (value, content_type) = (cut(values, value_bytes)?, parse_type(content_type)?);
            let expiry = left.map(|left| left.since(then_ms));
            Record::Entry(Entry { value, content_type, version, expiry })
        }
        RecordKind::Tombstone { left_ms } => {
            Record::Tombstone(Tombstone { version, expires_at_ms: then_ms.saturating_add(left_ms) })
        }
    })
}

/// A key that a peer has sent.
pub(super) fn parse(key: Box<str>) -> Result<Key, Refusal> {
    Key::parse(key).map_err(|error| Refusal::Invalid(error.to_string()))
}

fn parse_type(text: Option<Arc<str>>) -> Result<Option<ContentType>, Refusal> {
    text.map(ContentType::parse).transpose().map_err(|error| Refusal::Invalid(error.to_string()))
}

/// Whether the values are as long together as their heads say. Then one that cannot be used leaves the others whole.
pub(super) fn check_lengths(announced: impl Iterator<Item = u32>, values: &Bytes) -> Result<(), Refusal> {
    let announced: u64 = announced.map(u64::from).sum();
    if announced == values.len() as u64 {
        return Ok(());
    }
    Err(Refusal::Invalid(format!("values of {announced} bytes were announced, {} came", values.len())))
}

/// Takes the next value off the raw values.
fn cut(values: &mut Bytes, value_bytes: u32) -> Result<Bytes, Refusal> {
    let bytes = value_bytes as usize;
    if bytes > values.len() {
        return Err(Refusal::Invalid(format!(
            "a value of {bytes} bytes was announced, {} came",
            values.len()
        )));
    }
    Ok(values.split_to(bytes))
}

/// The peer sent a reply of the wrong kind. It may be a long one.
pub(super) fn unexpected(node_id: &NodeId, reply: &Reply) -> NodeError {
    let shown: String = format!("{reply:?}").chars().take(200).collect();
    NodeError::DecodeFailed(format!("{node_id} gave an answer that does not fit the question: {shown}"))
}
