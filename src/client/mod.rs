//! The Rust SDK: a small client of the HTTP interface.
//!
//! Its types are its own; it imports nothing of the node but the network. One kept connection, opened again when it is
//! lost; every wait is bounded.

mod events;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, CONTENT_TYPE, ETAG, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

pub use self::events::{Event, EventStream};
use crate::net::TcpStream;

/// Everything but the unreserved characters of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const OCTETS: &str = "application/octet-stream";
/// The longest body that the client takes: a value, or an answer about the cluster.
const BODY_BYTES_MAX: usize = 1 << 30;

/// A client of one node.
#[derive(Debug)]
pub struct Client {
    address: String,
    timeout: Duration,
    kept: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

/// A value that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The bytes.
    pub value: Bytes,
    /// The media type it was stored with.
    pub content_type: Option<String>,
    /// Its version.
    pub etag: Option<String>,
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

type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    /// A client of the node at `address`, `host:port`. Connects when first used; each call may take 5 s.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Client {
        Client { address: address.into(), timeout: Duration::from_secs(5), kept: Mutex::new(None) }
    }

    /// The node it talks to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Reads a key.
    ///
    /// # Errors
    /// See [`ClientError`]; a missing key is not one.
    pub async fn get(&self, key: &str) -> Result<Option<Hit>> {
        let (head, value) = self.call(Method::GET, &key_path(key), &[(ACCEPT, OCTETS)], Bytes::new()).await?;
        if head.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
        Ok(Some(Hit { content_type: text(CONTENT_TYPE), etag: text(ETAG), value }))
    }

    /// Stores a value.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put(&self, key: &str, value: impl Into<Bytes>, options: &PutOptions) -> Result<()> {
        let mut path = key_path(key);
        if let Some(ttl) = options.ttl {
            path.push_str(&format!("?ttl={}", ttl.as_secs_f64()));
        }
        let content_type = options.content_type.as_deref().unwrap_or(OCTETS);
        self.call(Method::PUT, &path, &[(CONTENT_TYPE, content_type)], value.into()).await?;
        Ok(())
    }

    /// Removes a key. True if it was there.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, key: &str) -> Result<bool> {
        #[derive(Deserialize)]
        struct Deleted {
            found: bool,
        }
        let (_, body) = self.call(Method::DELETE, &key_path(key), &[], Bytes::new()).await?;
        parse::<Deleted>(&body).map(|deleted| deleted.found)
    }

    /// The cluster as the node sees it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cluster(&self) -> Result<Cluster> {
        let (_, body) = self.call(Method::GET, "/admin/cluster", &[], Bytes::new()).await?;
        parse(&body)
    }

    /// What happens in the cluster from now on, beginning with a snapshot.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self) -> Result<EventStream> {
        let mut sender = self.connect().await?;
        let request = self.request(Method::GET, "/admin/events", &[], Bytes::new())?;
        let response = self.in_time(sender.send_request(request)).await?;
        Ok(EventStream::new(self.address.clone(), sender, response.into_body()))
    }

    /// One request and its whole answer. A 404 about a key comes back as it is; every other error is one.
    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(hyper::header::HeaderName, &str)],
        body: Bytes,
    ) -> Result<(hyper::http::response::Parts, Bytes)> {
        let request = self.request(method, path, headers, body)?;
        let mut kept = self.kept.lock().await;
        let mut sender = match kept.take().filter(SendRequest::is_ready) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let response = self.in_time(sender.send_request(request)).await?;
        let (head, body) = self.in_time_any(read(response)).await?;
        *kept = Some(sender);
        if head.status.is_success() || is_miss(head.status, &body) {
            return Ok((head, body));
        }
        Err(refusal(head.status, &body))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(hyper::header::HeaderName, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.address);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.body(Full::new(body)).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = self.in_time(TcpStream::connect(self.address.as_str())).await?;
        // Fails on a connection that is already gone, which the handshake then says.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = self.in_time(http1::handshake(TokioIo::new(stream))).await?;
        tokio::spawn(async move {
            // An error shows at the request that it interrupts.
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn in_time<T, E: std::error::Error>(
        &self,
        step: impl Future<Output = std::result::Result<T, E>>,
    ) -> Result<T> {
        let unreachable = |error: E| {
            // Hyper hides the system's reason one level down.
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            ClientError::Unreachable { address: self.address.clone(), reason }
        };
        self.in_time_any(async { step.await.map_err(unreachable) }).await
    }

    async fn in_time_any<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        timeout(self.timeout, step).await.unwrap_or_else(|_| {
            Err(ClientError::Timeout { address: self.address.clone(), timeout: self.timeout })
        })
    }
}

fn key_path(key: &str) -> String {
    format!("/api/v1/cache/{}", utf8_percent_encode(key, ESCAPED))
}

async fn read(response: Response<Incoming>) -> Result<(hyper::http::response::Parts, Bytes)> {
    let (head, body) = response.into_parts();
    let body = http_body_util::Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body =
        body.map_err(|error| ClientError::Protocol(format!("the answer did not arrive whole: {error}")))?;
    Ok((head, body.to_bytes()))
}

/// A 404 that is about the key and not about the path.
fn is_miss(status: StatusCode, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Miss {
        found: bool,
    }
    status == StatusCode::NOT_FOUND && serde_json::from_slice::<Miss>(body).is_ok_and(|miss| !miss.found)
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
        message: String,
    }
    match serde_json::from_slice::<Refused>(body) {
        Ok(Refused { error, message }) => ClientError::Refused { status: status.as_u16(), error, message },
        Err(_) => ClientError::Protocol(format!("an answer with status {status} that no shoal node gives")),
    }
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| ClientError::Protocol(format!("an answer that makes no sense: {error}")))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::net::TcpListener;

    /// A server that gives one literal answer to one request, and the request it got.
    async fn canned(answer: &'static str) -> (Client, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(listener.local_addr().unwrap().to_string());
        let got = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let bytes = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..bytes]).into_owned()
        });
        (client, got)
    }

    #[tokio::test]
    async fn a_hit_brings_the_bytes_and_their_type() {
        let (client, got) = canned(
            "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\netag: \"7\"\r\ncontent-length: 3\r\n\r\nabc",
        )
        .await;
        let hit = client.get("a/b ü").await.unwrap().unwrap();
        assert_eq!((&hit.value[..], hit.content_type.as_deref()), (&b"abc"[..], Some("image/png")));
        assert!(got.await.unwrap().starts_with("GET /api/v1/cache/a%2Fb%20%C3%BC HTTP/1.1\r\n"));
    }

    #[tokio::test]
    async fn a_missing_key_is_no_error_and_a_missing_path_is() {
        let (client, _) =
            canned("HTTP/1.1 404 Not Found\r\ncontent-length: 25\r\n\r\n{\"key\":\"a\",\"found\":false}")
                .await;
        assert_eq!(client.get("a").await.unwrap(), None);
        let (client, _) =
            canned("HTTP/1.1 404 Not Found\r\ncontent-length: 36\r\n\r\n{\"error\":\"not_found\",\"message\":\"no\"}  ").await;
        assert!(matches!(client.get("a").await, Err(ClientError::Refused { status: 404, .. })));
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_says_why() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = Client::new(address.to_string()).get("a").await.unwrap_err();
        assert!(error.to_string().contains("cannot be reached: "), "{error}");
    }
}
