//! The asking end of links: a pool with two connections per peer, opened when first needed and again when lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, timeout_at};

use super::connection::{Connection, Replied};
use super::life::Life;
use super::line::Line;
use super::message::{Reply, Request};
use super::party::Called;
use super::relay::Detours;
use super::{BULK_BYTES, LATENESS, Lane, LinkConfig, LinkError, SILENCE};
use crate::model::NodeId;
use crate::net::spawn;
use crate::telemetry::Metrics;

/// The links of one node to all of its peers.
pub struct Pool {
    config: Arc<LinkConfig>,
    pub(super) metrics: Arc<Metrics>,
    peers: RwLock<BTreeMap<SocketAddr, Arc<Peer>>>,
    pub(super) detours: ArcSwap<Detours>,
}

impl Pool {
    /// A pool without connections.
    #[must_use]
    pub fn new(config: LinkConfig, metrics: Arc<Metrics>) -> Pool {
        Pool { config: Arc::new(config), metrics, peers: RwLock::default(), detours: ArcSwap::default() }
    }

    /// Asks the node that is called, a member or whoever is at an address, and waits for its reply until `deadline`; a request
    /// about keys fails as soon as the node is found silent. Takes a detour if there is one.
    ///
    /// # Errors
    /// See [`LinkError`]: each says whether the request may have been done.
    pub fn call<'a>(
        &self,
        called: impl Into<Called<'a>>,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> impl Future<Output = Result<Replied, LinkError>> + Send {
        let called = called.into();
        let detour = self.detours.load().get(&called.address).filter(|_| called.node_id.is_some()).cloned();
        self.call_by(detour, called, request, values, deadline)
    }

    /// The same without a detour.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn call_directly<'a>(
        &self,
        called: impl Into<Called<'a>>,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> impl Future<Output = Result<Replied, LinkError>> + Send {
        self.call_by(None, called.into(), request, values, deadline)
    }

    async fn call_by(
        &self,
        detour: Option<(NodeId, SocketAddr)>,
        called: Called<'_>,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<Replied, LinkError> {
        if let Some(relay) = detour {
            // Boxed, because it calls directly in turn, and hardly ever happens.
            return Box::pin(self.call_through(&relay, called, request, values, deadline)).await;
        }
        let peer = self.peer(called.address);
        let long = values.iter().map(Bytes::len).sum::<usize>() > BULK_BYTES;
        if !long && !is_bulk(request) {
            match self.ask(&peer, called, Lane::Requests, request, values, deadline).await {
                Ok((Reply::AskBulk, _)) | Err(LinkError::TooLong) => {}
                replied => return replied,
            }
        }
        self.ask(&peer, called, Lane::Bulk, request, values, deadline).await
    }

    /// Sends what no reply comes to, over the connection that is open.
    ///
    /// # Errors
    /// When there is none, or it takes no more. Nothing was sent.
    pub fn tell<'a>(
        &self,
        called: impl Into<Called<'a>>,
        request: &Request,
        values: &[Bytes],
    ) -> Result<(), LinkError> {
        let called = called.into();
        let open = self.peer(called.address).lines[Lane::Requests as usize].open();
        let connection = open.filter(|connection| connection.leads_to(called));
        let connection = connection.ok_or(LinkError::Broken(called.address))?;
        connection.tell(request, values)
    }

    /// Notes that the node at `address` has shown, on whichever connection, that requests reach it.
    pub fn hear(&self, address: SocketAddr) {
        self.peer(address).life.hear();
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

    /// Moves all links to the secret that is the first in the keyring, and to the certificates in force, whenever those change.
    pub async fn follow_security(&self) {
        tokio::join!(self.follow_keyring(), self.follow_tls());
    }

    async fn follow_keyring(&self) {
        let Some(keyring) = self.config.keyring.clone() else { return std::future::pending().await };
        let first = |connection: &Connection| connection.key() == Some(keyring.borrow().first().id);
        self.retire_at(keyring.clone(), |connection| !first(connection)).await;
    }

    /// A link rests on the certificates of both ends. Where this end's was renewed the link moves, too, so that nobody has to
    /// cut it when the authority of the former one goes.
    async fn follow_tls(&self) {
        let Some(tls) = &self.config.tls else { return std::future::pending().await };
        self.retire_at(tls.reloads(), |connection| !connection.is_current(tls)).await;
    }

    /// Retires what is outdated whenever something changes. A connection that is being opened looks for itself.
    async fn retire_at<T>(&self, mut changes: watch::Receiver<T>, is_outdated: impl Fn(&Connection) -> bool) {
        // An error means that the node stops.
        while changes.changed().await.is_ok() {
            self.retire(&is_outdated);
        }
    }

    fn retire(&self, is_outdated: impl Fn(&Connection) -> bool) {
        let peers: Vec<_> = self.peers.read().values().cloned().collect();
        for line in peers.iter().flat_map(|peer| &peer.lines) {
            line.retire_if(&is_outdated);
        }
    }

    /// Forgets that the node at `address` could not be reached: there is news that it is up.
    pub fn forgive(&self, address: SocketAddr) {
        let Some(peer) = self.peers.read().get(&address).cloned() else { return };
        peer.lines.iter().for_each(|line| line.forgive());
    }

    /// Notes that it has answered by a detour.
    pub(super) fn hear_through(&self, address: SocketAddr) {
        self.peer(address).life.hear_through();
    }

    /// Whether anything has arrived from the node at `address` within that time, by whichever way. One that was not asked before
    /// counts as heard just now.
    pub fn has_heard(&self, address: SocketAddr, within: Duration) -> bool {
        self.peer(address).life.heard_by_any_way_at().elapsed() < within
    }

    /// For how long nothing has arrived directly from the node at `address`, or since it was first asked.
    pub fn silent_for(&self, address: SocketAddr) -> Duration {
        self.peer(address).life.heard_at().elapsed()
    }

    /// Whether a connection to the node at `address` is open, on which something arrived within that time.
    pub fn is_linked(&self, address: SocketAddr, within: Duration) -> bool {
        let Some(peer) = self.peers.read().get(&address).cloned() else { return false };
        peer.lines[Lane::Requests as usize].open().is_some() && peer.life.heard_at().elapsed() < within
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
pub(super) fn is_bulk(request: &Request) -> bool {
    if let Request::Relay { how, .. } = request {
        return how.is_bulk;
    }
    matches!(
        request,
        Request::Sync(_)
            | Request::Digests(_)
            | Request::Versions(_)
            | Request::Forget(_)
            | Request::Older(_)
            | Request::GiveUp(_)
            | Request::Owe { .. }
    )
}

/// Asks for news of the peer itself, so that it must not be answered by what was noticed before; or nobody is kept waiting by
/// it.
pub(super) fn is_patient(request: &Request) -> bool {
    if let Request::Relay { how, .. } = request {
        return how.is_patient;
    }
    let is_news = matches!(
        request,
        Request::Lease { .. }
            | Request::Ping { .. }
            | Request::Members
            | Request::CallBack { .. }
            | Request::Heard { .. }
            | Request::Leave
            | Request::Goodbye { .. }
            | Request::Farewell { .. }
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
        self.lines.iter().for_each(|line| line.close());
    }
}
