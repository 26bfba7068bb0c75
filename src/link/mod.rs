//! The link between nodes: one framed, multiplexed, coalescing connection per peer and purpose.
//!
//! Starts as an HTTP upgrade on the peer's one port, then carries frames both ways. Knows how to ask and answer, not
//! what is asked: requests are given to a [`Service`]. Invariant: a request that came over a link is served or refused by
//! this node, never sent on.

mod client;
mod connection;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod handshake;
mod lease;
mod life;
mod line;
mod load;
mod message;
mod party;
mod record;
mod relay;
mod server;
#[cfg(test)]
mod tests;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use self::client::Pool;
pub use self::handshake::{Answered, Refused, Seals, Unproved, answer, until_revoked};
pub use self::lease::{LeaseAnswer, LeaseQuestion, Sender, Unreached};
pub use self::load::{Batch, Load, Room, Weight, cut};
pub use self::message::{
    Admission, Claim, GivenUp, LeaseReply, Operation, Outcome, PeekReply, RecordHead, RecordKind, Records,
    Refusal, Reply, Request, Settled, Standing,
};
pub use self::party::{Called, Nonces, Party};
pub use self::server::{Answer, Service, serve};

use crate::security::{SharedKeyring, Tls};

/// The protocol's name in the `Upgrade` header; the number grows when frames change incompatibly.
pub const PROTOCOL: &str = "shoal-link/3";
/// How the names of all its versions begin.
pub const PROTOCOL_FAMILY: &str = "shoal-link/";
/// Where the upgrade is asked for.
pub const PATH: &str = "/internal/link";
/// The header that names the cluster, so that nodes of two clusters never link.
pub const CLUSTER_HEADER: &str = "shoal-cluster";

/// The header of both ends that says the longest frame which that end takes.
pub const FRAME_HEADER: &str = "shoal-frame";

/// What a link has to be told.
#[derive(Clone)]
pub struct LinkConfig {
    /// Peers of another cluster refuse the link.
    pub cluster: String,
    /// This process, as it names itself to peers that have the secret.
    pub me: Party,
    /// Peers without one of these secrets refuse the link, and are refused.
    pub keyring: SharedKeyring,
    /// Of the links that are being asked for.
    pub nonces: Arc<Nonces>,
    /// Over which links go, if not over plain TCP.
    pub tls: Option<Arc<Tls>>,
    /// The longest value that may travel, in bytes.
    pub value_bytes_max: usize,
    /// For pauses that only have to differ between nodes.
    pub seed: u64,
}

impl LinkConfig {
    /// The longest frame taken from a peer. Room for the longest value, and for a full batch.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        self.value_bytes_max + FRAME_BYTES_LEAST
    }

    /// The longest frame that a peer takes, which said so in [`FRAME_HEADER`]: its values may be bounded otherwise than this
    /// node's. One that said nothing is taken to be like this node.
    #[must_use]
    pub fn frame_bytes_taken(&self, said: Option<&str>) -> usize {
        let said = said.and_then(|text| text.parse().ok());
        said.map_or(self.frame_bytes_max(), |bytes: usize| bytes.max(FRAME_BYTES_LEAST))
    }

    /// Tells, when asked, whether secrets or certificates have changed since this was called.
    fn watch_security(&self) -> impl Fn() -> bool + use<> {
        let keyring = self.keyring.clone().map(|mut keyring| {
            keyring.mark_unchanged();
            keyring
        });
        let reloads = self.tls.as_ref().map(|tls| tls.reloads());
        // An error means that the node stops.
        move || {
            keyring.as_ref().is_some_and(|keyring| keyring.has_changed().is_ok_and(|changed| changed))
                || reloads.as_ref().is_some_and(|reloads| reloads.has_changed().is_ok_and(|changed| changed))
        }
    }
}

/// What every node takes, however short its values: a full batch with its heads.
pub(crate) const FRAME_BYTES_LEAST: usize = BATCH_BYTES_MAX + (1 << 20);

/// Values of one batch, together, in either direction.
pub const BATCH_BYTES_MAX: usize = 32 << 20;
/// Longer frames take the bulk connection, so that they never stand in front of a small one.
pub const BULK_BYTES: usize = 64 << 10;
/// Requests that may be under way on one connection.
const OUTSTANDING_MAX: usize = 8192;
/// Bytes that may wait to be written before further requests are refused.
const QUEUED_BYTES_MAX: usize = 64 << 20;
/// A peer that has been asked and from which nothing at all arrives for this long is taken for stopped or cut off.
pub const SILENCE: Duration = Duration::from_millis(100);
/// How long a peer found silent is not asked again, unless something arrives from it first. It always is asked for a
/// lease meanwhile.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// A wait that ends this much late means that this process itself did not run: then the peer is not judged.
const LATENESS: Duration = Duration::from_millis(30);
/// How long a peer may take to accept a connection and the upgrade.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Which of the two connections to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Requests and short values.
    Requests,
    /// Long values, and what is moved from node to node.
    Bulk,
}

impl Lane {
    /// The header that tells the answering end which lane a connection is.
    pub const HEADER: &str = "shoal-lane";

    /// The header's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Requests => "requests",
            Lane::Bulk => "bulk",
        }
    }
}

/// Why a peer did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection could be made. Nothing was sent.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// The peer.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// The port refuses connections: the process is gone, or a rule on the way says so of one that lives. Nothing was sent.
    #[error("nothing listens at {0}")]
    Refused(SocketAddr),
    /// A node is there and gives this one no link. Nothing was sent.
    #[error("{address} cannot be reached: {reason}")]
    Rejected {
        /// The peer.
        address: SocketAddr,
        /// What it said.
        reason: String,
    },
    /// This node itself answers there. Nothing was sent.
    #[error("{0} is an address of this node itself")]
    Itself(SocketAddr),
    /// The connection broke while the request was under way: it may have been done.
    #[error("the link to {0} broke")]
    Broken(SocketAddr),
    /// Nothing arrives from the peer although it was asked: it may have been done.
    #[error("{0} is silent")]
    Silent(SocketAddr),
    /// The deadline passed while the peer was alive: it may have been done.
    #[error("the time was up before {0} was done")]
    Late(SocketAddr),
    /// Too much is under way to this peer. Nothing was sent.
    #[error("too many requests are under way to {0}")]
    Overloaded(SocketAddr),
    /// The request does not fit a frame. Nothing was sent.
    #[error("the request is longer than a frame that the peer takes")]
    TooLong,
}

/// A frame's head and values, as they arrive at a peer that takes frames of `bytes_max`; none if they cannot be sent to it.
#[cfg(test)]
pub(crate) fn carried<T>(head: &T, values: &[bytes::Bytes], bytes_max: usize) -> Option<(T, bytes::Bytes)>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut wire = bytes::BytesMut::new();
    frame::encode(&mut wire, 1, 0, head, values, bytes_max).then(|| {
        let frame = frame::decode(&mut wire, bytes_max).expect("a frame").expect("a whole one");
        (frame.head, frame.value)
    })
}

impl LinkError {
    fn unreachable(address: SocketAddr, reason: impl Into<String>) -> LinkError {
        LinkError::Unreachable { address, reason: reason.into() }
    }

    fn rejected(address: SocketAddr, reason: impl Into<String>) -> LinkError {
        LinkError::Rejected { address, reason: reason.into() }
    }
}
