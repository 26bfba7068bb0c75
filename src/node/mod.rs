//! What the cluster does with a key: route, move, repair. The only door for the edges.
//!
//! Owns the store, the ring and the links to peers, and follows the membership view that gossip publishes. Speaks no
//! protocol towards clients. Invariant: every copy in the store got there through `put_if_newer`.

mod command;
mod events;
mod join;
mod membership;
mod operation;
mod replicate;
mod route;
mod serve;
mod sync;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, SetOnce, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

pub use self::command::{Location, Stop};
pub use self::events::{Event, rfc3339};
pub use self::operation::{Done, NewValue, NodeError, Operation, Outcome};
pub use self::sync::SyncReport;
use crate::gossip::Gossip;
use crate::link::{Answer, Pool, Request, Service};
use crate::model::{Clock, Key, Lookup, Members, NodeId, Ring, Store, StoreConfig};
use crate::net::{WallClock, task};
use crate::telemetry::Metrics;

/// What a node has to be told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Copies of each entry; the length of the owner lists.
    pub copies: NonZeroU8,
    /// The store's bounds.
    pub store: StoreConfig,
    /// How long one request may take in all.
    pub request_timeout: Duration,
    /// For choices that only have to differ between nodes.
    pub seed: u64,
    /// Addresses to join by: `host:port`, resolved again and again until joined.
    pub seeds: Vec<String>,
}

/// A handle to the node; clones share it.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    config: NodeConfig,
    id: NodeId,
    boot: u64,
    address: SocketAddr,
    started: Instant,
    wall: WallClock,
    versions: Clock,
    store: Store,
    placement: ArcSwap<Placement>,
    /// Tables that were in force shortly before, the latest first.
    former: ArcSwap<Vec<FormerPlacement>>,
    view: watch::Receiver<Arc<Members>>,
    contacts: Mutex<HashMap<NodeId, Contact>>,
    gossip: Gossip,
    links: Pool,
    metrics: Arc<Metrics>,
    events: events::EventLog,
    moves: Mutex<MoveStats>,
    /// Wakes the sync task: there may be entries that belong elsewhere.
    misplaced: Notify,
    full_sync: mpsc::Sender<oneshot::Sender<SyncReport>>,
    /// Set once the first attempt to join is over, whatever came of it.
    ready: SetOnce<()>,
    leaving: AtomicBool,
    /// Says that the process should stop: gracefully, or with an error that people must see.
    stop: watch::Sender<Option<Stop>>,
}

/// A table and where its members were. A member that has left is in no view any more, but may still hold entries.
#[derive(Clone)]
struct Placement {
    ring: Arc<Ring>,
    addresses: Arc<HashMap<NodeId, SocketAddr>>,
}

#[derive(Clone)]
struct FormerPlacement {
    placement: Placement,
    until: Instant,
}

/// The last contact with a member over the link.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contact {
    /// When, in unix milliseconds.
    pub seen_ms: u64,
    /// How long the last round trip took.
    pub round_trip: Option<Duration>,
}

/// What moving entries has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct MoveStats {
    /// Entries that their new owners acknowledged.
    pub keys: u64,
    /// How long the last move took.
    pub last_duration: Duration,
    /// When the last move ended, in unix milliseconds.
    pub last_at_ms: Option<u64>,
}

impl Node {
    /// Starts a node's tasks on the current runtime; they end when `tasks` is dropped.
    pub fn start(
        config: NodeConfig,
        gossip: Gossip,
        links: Pool,
        wall: WallClock,
        metrics: Arc<Metrics>,
        tasks: &mut JoinSet<()>,
    ) -> Node {
        let identity = gossip.identity().clone();
        let (full_sync, sync_requests) = mpsc::channel(16);
        let node = Node(Arc::new(Inner {
            versions: Clock::new(&identity.node_id),
            store: Store::new(config.store),
            placement: ArcSwap::from_pointee(Placement {
                ring: Arc::new(Ring::build([identity.node_id.clone()], config.copies)),
                addresses: Arc::new([(identity.node_id.clone(), identity.address)].into()),
            }),
            former: ArcSwap::default(),
            view: gossip.view(),
            contacts: Mutex::default(),
            events: events::EventLog::new(),
            moves: Mutex::default(),
            misplaced: Notify::new(),
            ready: SetOnce::new(),
            leaving: AtomicBool::new(false),
            stop: watch::channel(None).0,
            id: identity.node_id,
            boot: identity.boot,
            address: identity.address,
            started: Instant::now(),
            config,
            wall,
            gossip,
            links,
            metrics,
            full_sync,
        }));
        tasks.spawn(task(membership::follow_view(node.clone())));
        tasks.spawn(task(membership::follow_events(node.clone(), node.0.gossip.events())));
        tasks.spawn(task(membership::keep_contact(node.clone())));
        tasks.spawn(task(join::run(node.clone())));
        tasks.spawn(task(sync::run(node.clone(), sync_requests)));
        tasks.spawn(task(sync::sweep(node.clone())));
        node
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        &self.0.id
    }

    /// How long the process has been running.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Unix milliseconds by the node's clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.0.wall.now_ms()
    }

    /// Its metrics, for the edges to count in.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Whether it has tried to join. Before that it does not know what others hold.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.ready.initialized()
    }

    /// A node that has just started waits for its first attempt to join, rather than miss what the cluster has.
    async fn wait_until_ready(&self, deadline: Instant) {
        if !self.is_ready() {
            // Too late for this request: then it is answered by what this node knows.
            let _ = timeout_at(deadline, self.0.ready.wait()).await;
        }
    }

    /// Whether it is on its way out.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::Acquire)
    }

    /// The membership view.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        self.0.view.borrow().clone()
    }

    /// The last contact with a member.
    #[must_use]
    pub fn contact(&self, node_id: &NodeId) -> Option<Contact> {
        self.0.contacts.lock().get(node_id).copied()
    }

    /// The table in force.
    #[must_use]
    pub fn ring(&self) -> Arc<Ring> {
        self.0.placement.load().ring.clone()
    }

    /// The store, for figures about it.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// What moving entries has done so far.
    #[must_use]
    pub fn moves(&self) -> MoveStats {
        *self.0.moves.lock()
    }

    /// Does one operation on this node's own store, whoever owns the key.
    ///
    /// # Errors
    /// Only [`NodeError::TooLarge`]; nothing has changed then.
    pub fn apply_here(&self, operation: &Operation) -> Result<Outcome, NodeError> {
        self.apply(operation)
    }

    /// A snapshot event and everything that happens after it.
    #[must_use]
    pub fn events(&self) -> (Event, broadcast::Receiver<Event>) {
        let receiver = self.0.events.subscribe();
        let members: Vec<_> =
            self.members().iter().map(|member| membership::describe(self, member)).collect();
        let state = json!({"node_id": self.id(), "ring": self.ring().fingerprint(), "members": members});
        (self.0.events.snapshot(self.now_ms(), state), receiver)
    }

    /// One member as the interface shows it.
    #[must_use]
    pub fn describe(&self, member: &crate::model::Member) -> serde_json::Value {
        membership::describe(self, member)
    }

    /// Moves everything that is not where it belongs, now, and says what that was.
    ///
    /// # Errors
    /// When the node is stopping.
    pub async fn rebalance(&self) -> Result<SyncReport, NodeError> {
        let (answer, report) = oneshot::channel();
        let stopping = || NodeError::Overloaded("the node is stopping".into());
        self.0.full_sync.send(answer).await.map_err(|_| stopping())?;
        report.await.map_err(|_| stopping())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.0.config.request_timeout
    }

    fn lookup(&self, key: &Key) -> Outcome {
        match self.0.store.get(key, self.now_ms()) {
            Lookup::Hit(entry) => {
                self.0.metrics.hits.inc();
                return Outcome::Hit(entry);
            }
            Lookup::Expired => self.0.metrics.expirations.inc(),
            Lookup::Miss => {}
        }
        self.0.metrics.misses.inc();
        Outcome::Miss
    }
}

impl Service for Node {
    fn call(&self, request: Request, value: bytes::Bytes) -> Answer {
        serve::call(self, request, value)
    }
}
