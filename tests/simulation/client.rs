//! HTTP over the simulated network: one connection per node, opened when first needed and again when lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HOST, HeaderName, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use shoal::model::NodeId;
use shoal::security::{Call, PROOF_HEADER};
use tokio::time::{Duration, timeout};
use turmoil::net::TcpStream;

use crate::operation::{Action, Outcome};
use crate::world::{Access, CLUSTER, TOKEN, clock_ms};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A status, the `ETag` without its quotes, and a body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) etag: String,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    NotSent,
    Unknown(String),
}

/// One client with its connections.
pub(crate) struct Client {
    access: Access,
    proofs: u128,
    connections: BTreeMap<SocketAddr, SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Without any connection yet.
    pub(crate) fn new(access: Access) -> Client {
        // The clients' nonces must differ, and be the same in every run of a seed.
        static CLIENTS: AtomicU64 = AtomicU64::new(0);
        let proofs = u128::from(CLIENTS.fetch_add(1, Ordering::Relaxed)) << 64;
        Client { access, proofs, connections: BTreeMap::new() }
    }

    /// Does one operation on a key at one node.
    pub(crate) async fn perform(&mut self, node: SocketAddr, key: usize, action: &Action) -> Outcome {
        let path = format!("/api/v1/cache/k{key}");
        let octets = (CONTENT_TYPE, "application/octet-stream".to_string());
        let asked = match action {
            Action::Get => self.get(node, &path).await,
            Action::Put(value) => {
                self.ask(node, Method::PUT, &path, &[octets], &self.access.pad(value)).await
            }
            Action::Lend(value, ttl) => {
                self.ask(node, Method::PUT, &format!("{path}?ttl={ttl}"), &[octets], &self.access.pad(value))
                    .await
            }
            Action::Create(value) => {
                self.ask(
                    node,
                    Method::PUT,
                    &path,
                    &[octets, (IF_NONE_MATCH, "*".into())],
                    &self.access.pad(value),
                )
                .await
            }
            Action::Replace(value, version) => {
                let condition = (IF_MATCH, format!("\"{version}\""));
                self.ask(node, Method::PUT, &path, &[octets, condition], &self.access.pad(value)).await
            }
            Action::Delete => self.ask(node, Method::DELETE, &path, &[], "").await,
        };
        match asked {
            Ok(answer) => to_outcome(action, answer, &self.access),
            Err(Failure::NotSent) => Outcome::NotSent,
            Err(Failure::Unknown(reason)) => Outcome::Unknown(reason),
        }
    }

    /// Gets a path; values as they are.
    pub(crate) async fn get(&mut self, node: SocketAddr, path: &str) -> Result<Answer, Failure> {
        self.ask(node, Method::GET, path, &[(ACCEPT, "application/octet-stream".into())], "").await
    }

    async fn ask(
        &mut self,
        node: SocketAddr,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
        body: &str,
    ) -> Result<Answer, Failure> {
        // Taken out, so that a connection whose answer never came is not used again.
        let connection = self.connections.remove(&node).filter(|connection| !connection.is_closed());
        let exchange = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => connect(node).await?,
            };
            let mut request = Request::builder().method(&method).uri(path).header(HOST, node.to_string());
            if path.starts_with("/admin") {
                request = request.header(AUTHORIZATION, format!("Bearer {TOKEN}"));
            }
            if let Some(keyring) = self.access.keyring.as_ref().filter(|_| path.starts_with("/internal")) {
                self.proofs += 1;
                // A node is called as its host is, up to the first dot.
                let name = turmoil::reverse_lookup(node.ip()).unwrap_or_default();
                let id = NodeId::parse(name.split('.').next().unwrap_or_default()).map_err(unknown)?;
                let call = Call { cluster: CLUSTER, node: &id, method: method.as_str(), target: path };
                request = request
                    .header(PROOF_HEADER, call.prove(keyring, body.as_bytes(), clock_ms(), self.proofs));
            }
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let request = request.body(Full::from(body.to_string())).map_err(unknown)?;
            let response = connection.send_request(request).await.map_err(unknown)?;
            let status = response.status().as_u16();
            let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default();
            let etag = etag.trim_matches('"').to_string();
            let body = response.into_body().collect().await.map_err(unknown)?.to_bytes();
            Ok((connection, Answer { status, etag, body }))
        };
        let late = |_| Failure::Unknown(format!("no answer within {} s", PATIENCE.as_secs()));
        let (connection, answer) = timeout(PATIENCE, exchange).await.map_err(late)??;
        self.connections.insert(node, connection);
        Ok(answer)
    }
}

async fn connect(node: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let stream = TcpStream::connect(node).await.map_err(|_| Failure::NotSent)?;
    let (connection, task) = handshake(TokioIo::new(stream)).await.map_err(unknown)?;
    tokio::spawn(async move {
        // How it ended is seen by the request that was under way.
        let _ = task.await;
    });
    Ok(connection)
}

fn unknown(error: impl std::fmt::Display) -> Failure {
    Failure::Unknown(error.to_string())
}

fn to_outcome(action: &Action, answer: Answer, access: &Access) -> Outcome {
    let text = || access.unpad(&answer.body);
    match (action, answer.status) {
        (Action::Get, 200) => Outcome::Found { value: text(), version: answer.etag },
        (Action::Get, 404) => Outcome::Missing,
        (Action::Put(_) | Action::Lend(..) | Action::Create(_) | Action::Replace(..), 200 | 204) => {
            Outcome::Stored { version: answer.etag }
        }
        (Action::Delete, 200) => Outcome::Deleted,
        (_, 412) => Outcome::Refused,
        (_, status) => {
            // Without its timestamp, which is the machine's.
            let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            if error["error"] == "joining" {
                return Outcome::NotAdmitted;
            }
            Outcome::Unknown(format!("{status} {} {}", error["error"], error["message"]))
        }
    }
}
