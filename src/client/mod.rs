//! The Rust SDK: a small client of the HTTP interface.
//!
//! Its types are its own; it imports nothing of the node but the network and TLS. One kept connection, opened again
//! when it is lost; every wait is bounded.

mod answer;
mod events;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

use self::answer::Answer;
pub use self::answer::{ClientError, Cluster, ClusterStatus, Health, Hit, Member, PutOptions};
pub use self::events::{Event, EventStream};
use crate::net::TcpStream;
pub use crate::security::ClientTls;
use crate::security::Stream;

/// Everything but the unreserved characters of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const OCTETS: &str = "application/octet-stream";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
/// The longest body that the client takes: a value, or an answer about the cluster.
const BODY_BYTES_MAX: usize = 1 << 30;

/// What a client shows, and whom it trusts. By default nothing, and plain TCP.
#[derive(Clone, Default)]
pub struct Access {
    /// The client's API key, or the admin token.
    pub token: Option<String>,
    /// For nodes that speak TLS.
    pub tls: Option<ClientTls>,
}

/// A client of one node.
pub struct Client {
    address: String,
    access: Access,
    timeout: Duration,
    kept: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    /// A client of the node at `address`, `host:port`. Connects when first used; each call may take 5 s.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Client {
        Client::with_access(address, Access::default())
    }

    /// The same, of a node that lets in only those who show something.
    #[must_use]
    pub fn with_access(address: impl Into<String>, access: Access) -> Client {
        Client { address: address.into(), access, timeout: Duration::from_secs(5), kept: Mutex::new(None) }
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
        self.call(Method::GET, &key_path(key), (ACCEPT, OCTETS), Bytes::new()).await?.hit()
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
        self.call(Method::PUT, &path, (CONTENT_TYPE, content_type), value.into()).await?.success()?;
        Ok(())
    }

    /// Removes a key. True if it was there; false also when it was this call that removed it, but a kept
    /// connection broke before the node could say so and the call was made again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, key: &str) -> Result<bool> {
        #[derive(Deserialize)]
        struct Deleted {
            found: bool,
        }
        let answer = self.call(Method::DELETE, &key_path(key), (ACCEPT, JSON), Bytes::new()).await?;
        answer.json::<Deleted>().map(|deleted| deleted.found)
    }

    /// The cluster as the node sees it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cluster(&self) -> Result<Cluster> {
        self.call(Method::GET, "/admin/cluster", (ACCEPT, JSON), Bytes::new()).await?.json()
    }

    /// How the node is. That it is stopping is an answer, not an error.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn health(&self) -> Result<Health> {
        self.call(Method::GET, "/api/v1/health", (ACCEPT, JSON), Bytes::new()).await?.health()
    }

    /// What happens in the cluster from now on, beginning with a snapshot. Takes a connection of its own.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self) -> Result<EventStream> {
        self.in_time(async {
            let request = self.request(Method::GET, "/admin/events", (ACCEPT, EVENTS), Bytes::new())?;
            let mut sender = self.connect().await?;
            let response = sender.send_request(request).await.map_err(|error| self.unreachable(&error))?;
            if !response.status().is_success() {
                return Err(read(response).await?.refusal());
            }
            let content_type = response.headers().get(CONTENT_TYPE);
            if !content_type.is_some_and(|value| value.as_bytes().starts_with(EVENTS.as_bytes())) {
                return Err(ClientError::Protocol("/admin/events is not a stream of events".into()));
            }
            Ok(EventStream::new(self.address.clone(), sender, response.into_body()))
        })
        .await
    }

    /// One request and its whole answer, whatever its status.
    async fn call(
        &self,
        method: Method,
        path: &str,
        header: (HeaderName, &str),
        body: Bytes,
    ) -> Result<Answer> {
        let request = || self.request(method.clone(), path, header.clone(), body.clone());
        self.in_time(async {
            let mut kept = self.kept.lock().await;
            // A node may close an idle connection at any moment, also while a request is on its way: then
            // again on a new one. Every call may be made twice.
            if let Some(mut sender) = kept.take()
                && let Ok(answer) = self.exchange(&mut sender, request()?).await
            {
                *kept = Some(sender);
                return Ok(answer);
            }
            let mut sender = self.connect().await?;
            let answer = self.exchange(&mut sender, request()?).await?;
            *kept = Some(sender);
            Ok(answer)
        })
        .await
    }

    async fn exchange(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer> {
        // Just after an answer the connection is not ready for a moment; it need not be closed for that.
        sender.ready().await.map_err(|error| self.unreachable(&error))?;
        let response = sender.send_request(request).await.map_err(|error| self.unreachable(&error))?;
        read(response).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        header: (HeaderName, &str),
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>> {
        let request = Request::builder().method(method).uri(path);
        let mut request = request.header(HOST, &self.address).header(header.0, header.1);
        if let Some(token) = &self.access.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(Full::new(body)).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address.as_str());
        let stream = stream.await.map_err(|error| self.unreachable(&error))?;
        // Fails on a connection that is already gone, which the handshake then says.
        let _ = stream.set_nodelay(true);
        let stream = match &self.access.tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                tls.connect(stream, host).await.map_err(|error| self.unreachable(&error))?
            }
        };
        let connected = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = connected.map_err(|error| self.unreachable(&error))?;
        tokio::spawn(async move {
            // An error shows at the request that it interrupts.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> ClientError {
        // Hyper hides the system's reason one level down.
        let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        ClientError::Unreachable { address: self.address.clone(), reason }
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        timeout(self.timeout, call).await.unwrap_or_else(|_| {
            Err(ClientError::Timeout { address: self.address.clone(), timeout: self.timeout })
        })
    }
}

fn key_path(key: &str) -> String {
    format!("/api/v1/cache/{}", utf8_percent_encode(key, ESCAPED))
}

async fn read(response: Response<Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body =
        body.map_err(|error| ClientError::Protocol(format!("the answer did not arrive whole: {error}")))?;
    Ok(Answer { head, body: body.to_bytes() })
}

#[cfg(test)]
mod tests;
