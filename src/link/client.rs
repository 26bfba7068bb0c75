//! The asking end of links: a pool with two connections per peer, opened when first needed and again when lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::time::{Duration, Instant, sleep, timeout, timeout_at};

use super::connection::{Connection, Replied};
use super::life::Life;
use super::message::{Reply, Request};
use super::party::Called;
use super::upgrade::upgrade;
use super::{BULK_BYTES, CONNECT_TIMEOUT, LATENESS, Lane, LinkConfig, LinkError, SILENCE};
use crate::model::{NodeId, mix};
use crate::net::spawn;
use crate::security::KeyId;
use crate::telemetry::Metrics;

/// The first wait after a failed connection; doubles up to the second, each shortened at random by up to half.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// The links of one node to all of its peers.
pub struct Pool {
    config: Arc<LinkConfig>,
    metrics: Arc<Metrics>,
    peers: RwLock<BTreeMap<SocketAddr, Arc<Peer>>>,
}

impl Pool {
    /// A pool without connections.
    #[must_use]
    pub fn new(config: LinkConfig, metrics: Arc<Metrics>) -> Pool {
        Pool { config: Arc::new(config), metrics, peers: RwLock::default() }
    }

    /// Asks the node that is called, a member or whoever is at an address, and waits for its reply until `deadline`; a request
    /// about keys fails as soon as the node is found silent.
    ///
    /// # Errors
    /// See [`LinkError`]: each says whether the request may have been done.
    pub async fn call<'a>(
        &self,
        called: impl Into<Called<'a>>,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<Replied, LinkError> {
        let called = called.into();
        let peer = self.peer(called.address);
        let long = values.iter().map(Bytes::len).sum::<usize>() > BULK_BYTES;
        if !long && !is_bulk(request) {
            let (reply, value) = self.ask(&peer, called, Lane::Requests, request, values, deadline).await?;
            if reply != Reply::AskBulk {
                return Ok((reply, value));
            }
        }
        self.ask(&peer, called, Lane::Bulk, request, values, deadline).await
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

    /// Moves all links to the secret that is the first in the keyring, whenever that changes.
    pub async fn follow_keyring(&self) {
        let Some(mut keyring) = self.config.keyring.clone() else { return std::future::pending().await };
        // An error means that the node stops.
        while keyring.changed().await.is_ok() {
            self.retire_all_but(keyring.borrow_and_update().first().id);
            // Once more for those that were being opened: that takes no longer.
            sleep(2 * CONNECT_TIMEOUT).await;
            self.retire_all_but(keyring.borrow().first().id);
        }
    }

    fn retire_all_but(&self, key: KeyId) {
        let peers: Vec<_> = self.peers.read().values().cloned().collect();
        for line in peers.iter().flat_map(|peer| &peer.lines) {
            let outdated = line.open().filter(|connection| connection.key() != Some(key));
            if let Some(connection) = outdated {
                // The next request opens another one; those under way finish on this one.
                line.current.store(None);
                spawn(connection.retire());
            }
        }
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

    /// Whether anything has arrived from the node at `address` within that time. One that was not asked before counts as heard
    /// just now.
    pub fn has_heard(&self, address: SocketAddr, within: Duration) -> bool {
        self.peer(address).life.heard_at().elapsed() < within
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
        called: Called<'_>,
        lane: Lane,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<Replied, LinkError> {
        let patient = is_patient(request);
        if !patient && peer.life.is_silent() {
            return Err(LinkError::unreachable(peer.address, "it was silent a moment ago"));
        }
        let connection = match peer.lines[lane as usize].open() {
            Some(connection) if connection.leads_to(called) => connection,
            _ => {
                // On a task of its own: a caller that gives up must not take the connection from those behind it.
                let connecting = spawn(self.connect(peer, called, lane));
                let connected = peer.attend(connecting, patient, deadline).await?;
                connected.map_err(|_| LinkError::Broken(peer.address))??
            }
        };
        let outstanding = connection.send(request, values, deadline)?;
        peer.attend(outstanding.reply(), patient, deadline).await?
    }

    fn connect(
        &self,
        peer: &Peer,
        called: Called<'_>,
        lane: Lane,
    ) -> impl Future<Output = Result<Arc<Connection>, LinkError>> + Send + use<> {
        let (line, life) = (peer.lines[lane as usize].clone(), peer.life.clone());
        let (node_id, config, metrics) = (called.node_id.cloned(), self.config.clone(), self.metrics.clone());
        line.connect(called.address, node_id, lane, life, config, metrics)
    }
}

/// Does not belong in front of requests that somebody waits for.
fn is_bulk(request: &Request) -> bool {
    matches!(request, Request::Sync(_) | Request::Digests(_) | Request::Versions(_))
}

/// Asks for news of the peer itself, so that it must not be answered by what was noticed before; or nobody is kept waiting by
/// it.
fn is_patient(request: &Request) -> bool {
    let is_news = matches!(
        request,
        Request::Lease { .. }
            | Request::Ping { .. }
            | Request::Members
            | Request::CallBack { .. }
            | Request::Leave
    );
    is_news || is_bulk(request)
}

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    life: Arc<Life>,
    lines: [Arc<Line>; 2],
}

impl Peer {
    fn new(address: SocketAddr) -> Peer {
        Peer { address, life: Arc::default(), lines: Default::default() }
    }

    /// Waits for an answer until the deadline, and unless `patient` only for as long as there are signs of life. Asks for
    /// one when there are none: the peer may be busy with just this request.
    async fn attend<F: Future>(
        &self,
        answer: F,
        patient: bool,
        deadline: Instant,
    ) -> Result<F::Output, LinkError> {
        let mut answer = pin!(answer);
        let mut alive_at = Instant::now();
        loop {
            let until = if patient { deadline } else { deadline.min(Instant::now() + SILENCE / 2) };
            if let Ok(answered) = timeout_at(until, &mut answer).await {
                return Ok(answered);
            }
            let now = Instant::now();
            alive_at = if now > until + LATENESS { now } else { alive_at.max(self.life.heard_at()) };
            let is_silent = now.duration_since(alive_at) >= SILENCE;
            if is_silent {
                self.life.fall_silent(now);
            }
            if now >= deadline {
                return Err(LinkError::Late(self.address));
            }
            if is_silent {
                return Err(LinkError::Silent(self.address));
            }
            if let Some(connection) = self.lines[Lane::Requests as usize].open() {
                connection.probe();
            }
        }
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
    error: LinkError,
}

impl Line {
    fn open(&self) -> Option<Arc<Connection>> {
        self.current.load_full().filter(|connection| !connection.is_closed())
    }

    async fn connect(
        self: Arc<Self>,
        address: SocketAddr,
        node_id: Option<NodeId>,
        lane: Lane,
        life: Arc<Life>,
        config: Arc<LinkConfig>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Connection>, LinkError> {
        let called = Called { address, node_id: node_id.as_ref() };
        let mut failing = self.failing.lock().await;
        if let Some(connection) = self.open().filter(|connection| connection.leads_to(called)) {
            return Ok(connection);
        }
        if let Some(failed) = failing.as_ref().filter(|failed| Instant::now() < failed.until) {
            return Err(failed.error.clone());
        }
        let upgraded = match timeout(CONNECT_TIMEOUT, upgrade(called, lane, &config)).await {
            Ok(upgraded) => upgraded,
            Err(_) => Err(LinkError::unreachable(
                address,
                format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            )),
        };
        match upgraded {
            Ok(upgraded) => {
                metrics.link_connects.inc();
                let connection = Connection::start(address, upgraded, life, &config, &metrics);
                if let Some(other) = self.current.swap(Some(connection.clone())) {
                    // It has closed, or leads to another node than the one that is at this address now.
                    other.close();
                }
                *failing = None;
                Ok(connection)
            }
            Err(error) => {
                let pause = failing.as_ref().map_or(BACKOFF[0], |failed| (failed.pause * 2).min(BACKOFF[1]));
                let shortened = mix::mix(config.seed ^ u64::from(address.port()) ^ pause.as_millis() as u64);
                let until = Instant::now() + pause.mul_f64(0.5 + (shortened % 512) as f64 / 1024.0);
                *failing = Some(Failing { until, pause, error: error.clone() });
                Err(error)
            }
        }
    }
}
