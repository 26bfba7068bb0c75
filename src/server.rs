//! Assembles a node out of its parts, starts it, stops it.
//!
//! Builds no runtime or thread of its own, and takes clock and random numbers from outside, so that whole nodes run in one
//! process on a simulated network.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::RngExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{Config, default_id};
use crate::gossip::{self, Identity, Sealing};
use crate::http;
use crate::link::{LinkConfig, Party, Pool};
use crate::model::NodeId;
use crate::net::{NodeClock, TcpListener, UdpSocket, WallClock, endless, spawn_vital};
use crate::node::{Node, Stop};
use crate::security::{FileError, Security};
use crate::telemetry::Metrics;

/// Ports that are tried when the system may choose one: TCP and UDP must both be free.
const PORT_ATTEMPTS: usize = 32;

/// Sockets that are bound, before anything runs on them.
pub struct Bound {
    tcp: TcpListener,
    udp: UdpSocket,
    address: SocketAddr,
}

impl Bound {
    /// Where the sockets are.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has the port.
    #[error("port {port} is in use ({protocol} {address}); choose another one with --listen", port = address.port())]
    PortInUse {
        /// The address that was wanted.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: &'static str,
    },
    /// The system refused.
    #[error("cannot listen on {address} ({protocol}): {source}")]
    Listen {
        /// The address that was wanted.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Binds TCP and UDP to one address; with port 0, to a port that is free for both.
///
/// # Errors
/// When the port is taken, or the address is not this machine's.
pub async fn bind(listen: SocketAddr) -> Result<Bound, StartError> {
    let mut attempts = if listen.port() == 0 { PORT_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        let tcp = TcpListener::bind(listen).await.map_err(|error| start_error(listen, "TCP", error))?;
        let address = tcp.local_addr().map_err(|error| start_error(listen, "TCP", error))?;
        match UdpSocket::bind(address).await {
            Ok(udp) => return Ok(Bound { tcp, udp, address }),
            Err(error) if attempts == 0 => return Err(start_error(address, "UDP", error)),
            Err(_) => {}
        }
    }
}

fn start_error(address: SocketAddr, protocol: &'static str, source: io::Error) -> StartError {
    if source.kind() == io::ErrorKind::AddrInUse {
        StartError::PortInUse { address, protocol }
    } else {
        StartError::Listen { address, protocol, source }
    }
}

/// A running node.
pub struct Server {
    node: Node,
    address: SocketAddr,
    security: Arc<Security>,
    stopping: CancellationToken,
    edge: tokio::task::JoinHandle<()>,
    tasks: JoinSet<()>,
    drain_timeout: std::time::Duration,
}

/// The name that `config` gives a node on `bound`.
#[must_use]
pub fn node_id(config: &Config, bound: &Bound) -> NodeId {
    config.id.clone().unwrap_or_else(|| default_id(bound.address.port()))
}

/// Starts a node on bound sockets.
pub fn start(
    config: Config,
    security: Arc<Security>,
    bound: Bound,
    wall: WallClock,
    random: &mut impl rand::Rng,
) -> Server {
    let node_id = node_id(&config, &bound);
    let mut advertised = config.advertise.unwrap_or(bound.address);
    if advertised.port() == 0 {
        advertised.set_port(bound.address.port());
    }
    let metrics = Metrics::new(&node_id);
    let clock = NodeClock::start(wall);
    let identity = Identity::new(node_id, advertised, clock.wall_ms(), random.random());
    info!(id = %identity.node_id, address = %advertised, "the node starts");
    let me = Party { address: advertised, node_id: identity.node_id.clone(), boot: identity.boot };
    let mut tasks = JoinSet::new();
    let link = LinkConfig {
        cluster: config.gossip.cluster.clone(),
        me,
        keyring: security.keyring(),
        nonces: Arc::default(),
        tls: security.tls(),
        value_bytes_max: config.http.value_bytes_max,
        seed: config.gossip.seed,
    };
    let links = Arc::new(Pool::new(link.clone(), Arc::clone(&metrics)));
    let sealing = Sealing { keyring: security.keyring(), nonce_seed: random.random() };
    let (gossip, gossip_task) = gossip::start(
        bound.udp,
        &config.gossip,
        identity,
        sealing,
        Node::witness(&links),
        clock.clone(),
        metrics.clone(),
    );
    tasks.spawn(endless("gossip", async move {
        // An error would be a panic, which has ended the process.
        let _ = gossip_task.await;
    }));
    let node = Node::start(config.node, gossip, links, clock, metrics, &mut tasks);
    let stopping = CancellationToken::new();
    let serving = http::serve(bound.tcp, node.clone(), config.http, link, security.clone(), stopping.clone());
    let edge = spawn_vital("http", serving);
    let drain_timeout = config.drain_timeout;
    Server { node, address: bound.address, security, stopping, edge, tasks, drain_timeout }
}

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The node itself.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Takes secrets, certificates and keys from where they are kept once more.
    ///
    /// # Errors
    /// When one of them is unusable; then all are as they were.
    pub fn reload(&self) -> Result<(), FileError> {
        self.security.reload()
    }

    /// Waits until the node itself asks to be stopped.
    pub async fn stop_wanted(&self) -> Stop {
        self.node.stop_wanted().await
    }

    /// Leaves the cluster, hands over the entries, finishes open requests, stops.
    pub async fn shutdown(mut self) {
        info!("leaving the cluster");
        self.node.leave(self.drain_timeout).await;
        self.stopping.cancel();
        // An error would be a panic of the edge, which has been reported.
        let _ = self.edge.await;
        self.tasks.shutdown().await;
        info!("stopped");
    }

    /// Ends at once, without leaving. Its tasks log nothing from then on, so that the reason of the end is the last line.
    pub async fn abandon(mut self) {
        self.edge.abort();
        self.tasks.shutdown().await;
    }
}
