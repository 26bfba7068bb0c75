//! What a node answers, as values: hits, the cluster, and the reasons why a call failed. No I/O.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName};
use hyper::http::response::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A value that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The bytes.
    pub value: Bytes,
    /// The media type it was stored with.
    pub content_type: Option<String>,
    /// Its version.
    pub etag: Option<String>,
    /// How long it will live yet, in whole seconds; none is for ever.
    pub ttl: Option<Duration>,
}

/// How a value is stored.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// Time to live; none is for ever.
    pub ttl: Option<Duration>,
    /// Media type; none is `application/octet-stream`.
    pub content_type: Option<String>,
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Cluster {
    /// The node that answered.
    pub current_node: String,
    /// The fingerprint of its table.
    pub ring: String,
    /// Its members.
    pub cluster_status: ClusterStatus,
}

/// Members and their number.
#[derive(Clone, Debug, Deserialize)]
pub struct ClusterStatus {
    /// All visible members.
    pub total_nodes: usize,
    /// Those that answer.
    pub healthy_nodes: usize,
    /// Each of them.
    pub nodes: Vec<Member>,
}

/// One member.
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    /// Its name.
    pub node_id: String,
    /// Where it is.
    pub address: String,
    /// `healthy`, `suspect` or `unhealthy`.
    pub status: String,
    /// When it was last seen, if ever.
    pub last_seen: Option<String>,
    /// The last round trip to it in microseconds.
    #[serde(default)]
    pub rtt_us: u64,
    /// How many slots it is the primary of.
    #[serde(default)]
    pub slots: usize,
}

/// How one node is.
#[derive(Clone, Debug, Deserialize)]
pub struct Health {
    /// `healthy`, or what it is busy with instead of serving.
    pub status: String,
    /// The node that answered.
    pub node_id: String,
    /// Whole seconds since its process started.
    pub uptime: u64,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There was no connection to the node, or it broke. The call may have been done.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// The node.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The node did not answer in time. The call may have been done.
    #[error("{address} did not answer within {} s", timeout.as_secs())]
    Timeout {
        /// The node.
        address: String,
        /// How long it had.
        timeout: Duration,
    },
    /// The node refused; it says why.
    #[error("{error}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error's name.
        error: String,
        /// The error in words.
        message: String,
    },
    /// What came back is not what a node answers.
    #[error("{0}")]
    Protocol(String),
}

/// A whole answer, whatever its status.
pub(super) struct Answer {
    pub(super) head: Parts,
    pub(super) body: Bytes,
}

impl Answer {
    /// Itself, unless the node refused.
    pub(super) fn success(self) -> Result<Answer, ClientError> {
        if self.head.status.is_success() { Ok(self) } else { Err(self.refusal()) }
    }

    /// Its body, unless the node refused.
    pub(super) fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let body = self.success()?.body;
        serde_json::from_slice(&body)
            .map_err(|error| ClientError::Protocol(format!("an answer that makes no sense: {error}")))
    }

    /// A node that is stopping tells how it is with an error's status.
    pub(super) fn health(self) -> Result<Health, ClientError> {
        serde_json::from_slice(&self.body).or_else(|_| self.json())
    }

    /// The value, or none if the answer is about a missing key, and not about a missing path.
    pub(super) fn hit(self) -> Result<Option<Hit>, ClientError> {
        #[derive(Deserialize)]
        struct Miss {
            found: bool,
        }
        let status = self.head.status;
        if status == StatusCode::NOT_FOUND
            && serde_json::from_slice::<Miss>(&self.body).is_ok_and(|miss| !miss.found)
        {
            return Ok(None);
        }
        let Answer { head, body } = self.success()?;
        let text = |name: HeaderName| head.headers.get(name)?.to_str().ok().map(str::to_string);
        let ttl = text(CACHE_CONTROL).and_then(|directives| {
            let age =
                directives.split(',').find_map(|directive| directive.trim().strip_prefix("max-age="))?;
            age.parse().ok().map(Duration::from_secs)
        });
        Ok(Some(Hit { content_type: text(CONTENT_TYPE), etag: text(ETAG), ttl, value: body }))
    }

    pub(super) fn refusal(&self) -> ClientError {
        #[derive(Deserialize)]
        struct Refused {
            error: String,
            message: String,
        }
        let status = self.head.status;
        match serde_json::from_slice::<Refused>(&self.body) {
            Ok(Refused { error, message }) => {
                ClientError::Refused { status: status.as_u16(), error, message }
            }
            Err(_) => {
                ClientError::Protocol(format!("an answer with status {status} that no shoal node gives"))
            }
        }
    }
}
