//! The asking end of links: a pool with two connections per peer, opened when first needed and again when lost.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::connection::{Connection, Replied};
use super::message::{Reply, Request};
use super::{BULK_BYTES, CLUSTER_HEADER, CONNECT_TIMEOUT, Lane, LinkConfig, LinkError, PATH, PROTOCOL};
use crate::model::mix;
use crate::net::{TcpStream, spawn};
use crate::telemetry::Metrics;

/// The first wait after a failed connection; doubles up to the second, each shortened at random by up to half.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// The longest answer to an upgrade request.
const RESPONSE_BYTES_MAX: usize = 8 << 10;

/// The links of one node to all of its peers.
#[derive(Debug)]
pub struct Pool {
    config: Arc<LinkConfig>,
    metrics: Arc<Metrics>,
    peers: RwLock<HashMap<SocketAddr, Arc<Peer>>>,
}

impl Pool {
    /// A pool without connections.
    #[must_use]
    pub fn new(config: LinkConfig, metrics: Arc<Metrics>) -> Pool {
        Pool { config: Arc::new(config), metrics, peers: RwLock::default() }
    }

    /// Asks the node at `address` and waits for its reply until `deadline`.
    ///
    /// # Errors
    /// See [`LinkError`]: each says whether the request may have been done.
    pub async fn call(
        &self,
        address: SocketAddr,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<Replied, LinkError> {
        let peer = self.peer(address);
        let long = values.iter().map(Bytes::len).sum::<usize>() > BULK_BYTES;
        if !long && !matches!(request, Request::Copy(_)) {
            let (reply, value) = self.ask(&peer, Lane::Requests, request, values, deadline).await?;
            if reply != Reply::AskBulk {
                return Ok((reply, value));
            }
        }
        self.ask(&peer, Lane::Bulk, request, values, deadline).await
    }

    /// Drops the connections to all but these peers.
    pub fn retain(&self, wanted: impl Fn(&SocketAddr) -> bool) {
        self.peers.write().retain(|address, peer| {
            let keep = wanted(address);
            if !keep {
                peer.close();
            }
            keep
        });
    }

    /// Forgets that the node at `address` could not be reached: there is news that it is up.
    pub fn forgive(&self, address: SocketAddr) {
        let Some(peer) = self.peers.read().get(&address).cloned() else { return };
        for line in &peer.lines {
            // Held by an attempt that is under way: that one sees for itself.
            if let Ok(mut failing) = line.failing.try_lock() {
                *failing = None;
            }
        }
    }

    fn peer(&self, address: SocketAddr) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().get(&address) {
            return peer.clone();
        }
        self.peers.write().entry(address).or_insert_with(|| Arc::new(Peer::new(address))).clone()
    }

    async fn ask(
        &self,
        peer: &Peer,
        lane: Lane,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<Replied, LinkError> {
        let silent = LinkError::Silent(peer.address);
        let line = &peer.lines[lane as usize];
        let connection = match line.open() {
            Some(connection) => connection,
            None => {
                let connecting =
                    line.clone().connect(peer.address, lane, self.config.clone(), self.metrics.clone());
                // On a task of its own: a caller that gives up must not take the connection from those behind it.
                match timeout_at(deadline, spawn(connecting)).await {
                    Ok(Ok(connected)) => connected?,
                    Ok(Err(_)) => return Err(LinkError::Broken(peer.address)),
                    Err(_) => return Err(silent),
                }
            }
        };
        connection.ask(request, values, deadline).await
    }
}

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    lines: [Arc<Line>; 2],
}

impl Peer {
    fn new(address: SocketAddr) -> Peer {
        Peer { address, lines: Default::default() }
    }

    fn close(&self) {
        for line in &self.lines {
            if let Some(connection) = line.current.swap(None) {
                connection.close();
            }
        }
    }
}

/// One lane to one peer: the open connection, or the memory of failing to open one.
#[derive(Debug, Default)]
struct Line {
    current: ArcSwapOption<Connection>,
    failing: tokio::sync::Mutex<Option<Failing>>,
}

#[derive(Debug)]
struct Failing {
    until: Instant,
    pause: Duration,
    reason: String,
}

impl Line {
    fn open(&self) -> Option<Arc<Connection>> {
        self.current.load_full().filter(|connection| !connection.is_closed())
    }

    async fn connect(
        self: Arc<Self>,
        address: SocketAddr,
        lane: Lane,
        config: Arc<LinkConfig>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Connection>, LinkError> {
        let mut failing = self.failing.lock().await;
        if let Some(connection) = self.open() {
            return Ok(connection);
        }
        if let Some(failed) = failing.as_ref().filter(|failed| Instant::now() < failed.until) {
            return Err(LinkError::Unreachable { address, reason: failed.reason.clone() });
        }
        let upgraded = match timeout(CONNECT_TIMEOUT, upgrade(address, lane, &config)).await {
            Ok(upgraded) => upgraded,
            Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
        };
        match upgraded {
            Ok((stream, early)) => {
                metrics.link_connects.inc();
                let connection = Connection::start(address, stream, early, &config, &metrics);
                self.current.store(Some(connection.clone()));
                *failing = None;
                Ok(connection)
            }
            Err(reason) => {
                let pause = failing.as_ref().map_or(BACKOFF[0], |failed| (failed.pause * 2).min(BACKOFF[1]));
                let shortened = mix::mix(config.seed ^ u64::from(address.port()) ^ pause.as_millis() as u64);
                let until = Instant::now() + pause.mul_f64(0.5 + (shortened % 512) as f64 / 1024.0);
                *failing = Some(Failing { until, pause, reason: reason.clone() });
                Err(LinkError::Unreachable { address, reason })
            }
        }
    }
}

/// Connects and asks for the link. The error is a reason for people.
async fn upgrade(
    address: SocketAddr,
    lane: Lane,
    config: &LinkConfig,
) -> Result<(TcpStream, BytesMut), String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: {PROTOCOL}\r\n\
         {CLUSTER_HEADER}: {}\r\n{}: {}\r\n\r\n",
        config.cluster,
        Lane::HEADER,
        lane.as_str(),
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut response = BytesMut::with_capacity(1 << 10);
    let head_bytes = loop {
        if let Some(end) = response.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if response.len() > RESPONSE_BYTES_MAX {
            return Err("its answer to the upgrade is not HTTP".into());
        }
        if stream.read_buf(&mut response).await.map_err(|error| error.to_string())? == 0 {
            return Err("it closed the connection instead of upgrading it".into());
        }
    };
    if response.starts_with(b"HTTP/1.1 101 ") {
        response.advance(head_bytes);
        return Ok((stream, response));
    }
    let text = String::from_utf8_lossy(&response);
    Err(format!("it refused the link: {}", text.lines().next().unwrap_or_default()))
}
