//! What the cluster does with a key: route, replicate, repair. The only door for the edges.
//!
//! Owns the store, the ring and the links to peers, and follows the membership view that gossip publishes. Speaks no
//! protocol towards clients. Invariant: a record gets into the store by being stamped there, by an owner or at the word of
//! people who debug ([`Node::apply_here`]), or through `put_over`.

mod admission;
mod apply;
mod batch;
mod beat;
mod command;
mod copies;
mod debts;
mod decide;
mod digests;
mod events;
mod fence;
mod forgetting;
mod gather;
mod handoff;
mod join;
mod late;
mod lease;
mod membership;
mod offer;
mod offset;
mod operation;
mod owed;
mod passage;
mod placement;
mod promise;
mod reach;
mod replicate;
mod route;
mod scrub;
mod serve;
mod sync;
#[cfg(test)]
mod tests;
mod tidy;
mod witness;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::command::{Location, Stop};
pub use self::events::{Event, rfc3339};
use self::offset::Offset;
pub use self::operation::{Done, NewValue, NodeError, Operation, Outcome};
use self::placement::Placement;
pub use self::sync::SyncReport;
use crate::gossip::Gossip;
use crate::link::{Admission, Answer, Pool, Request, Service};
use crate::model::{
    Clock, Condition, Key, Ledger, Lookup, Members, NodeId, Recent, Record, Ring, Store, StoreConfig, mix,
};
use crate::net::{NodeClock, endless, task, vital};
use crate::telemetry::{Metrics, Seldom};

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
    clock: NodeClock,
    versions: Clock,
    store: Store,
    /// Changed under the lock of `ledger`.
    placement: ArcSwap<Placement>,
    table_changed: Notify,
    pulse: lease::Pulse,
    questions: lease::Questions,
    reach: reach::Reach,
    ledger: Mutex<Ledger>,
    fences: fence::Fences,
    recent: Recent,
    clocks: late::Clocks,
    /// The number of the next request that writes.
    request: AtomicU64,
    witnesses: witness::Witnesses,
    /// Something was marked in the ledger.
    owing: Notify,
    /// There may be records of slots that others own.
    foreign: Notify,
    /// Whether nothing is dirty.
    clean: watch::Sender<bool>,
    view: watch::Receiver<Arc<Members>>,
    contacts: Mutex<BTreeMap<NodeId, Contact>>,
    /// Members that said goodbye over the link, by the process that did.
    goodbyes: Mutex<BTreeMap<NodeId, handoff::Goodbye>>,
    gossip: Gossip,
    links: Arc<Pool>,
    metrics: Arc<Metrics>,
    events: events::EventLog,
    moves: Mutex<MoveStats>,
    /// What peers can bring about again and again, by kind.
    complaints: Seldom<&'static str>,
    admission: admission::Progress,
    leaving: AtomicBool,
    /// Says that the process should stop: gracefully, or with an error that people must see.
    stop: watch::Sender<Option<Stop>>,
}

/// The last contact with a member over the link.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contact {
    /// When, by [`Node::uptime_ms`]; none if there was none yet.
    pub seen_ms: Option<u64>,
    /// How long the last round trip took.
    pub round_trip: Option<Duration>,
    /// How far its clock is ahead; none before it has answered.
    offset: Option<Offset>,
    /// Whether it said that it is admitted to the cluster; none before it has answered.
    pub admission: Option<Admission>,
}

/// What moving entries has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct MoveStats {
    /// How long the last move took.
    pub last_duration: Duration,
    /// When the last move ended, by [`Node::uptime_ms`].
    pub last_at_ms: Option<u64>,
}

impl Node {
    /// Starts a node's tasks on the current runtime; they end when `tasks` is dropped.
    pub fn start(
        config: NodeConfig,
        gossip: Gossip,
        links: Arc<Pool>,
        clock: NodeClock,
        metrics: Arc<Metrics>,
        tasks: &mut JoinSet<()>,
    ) -> Node {
        let identity = gossip.identity().clone();
        let alone = [(identity.node_id.clone(), identity.address)].into();
        let placement = Placement::new(&identity.node_id, &alone, &BTreeMap::new(), config.copies, 0);
        placement.reconsider(true, |_, _| false);
        let node = Node(Arc::new(Inner {
            versions: Clock::new(&identity.node_id),
            store: Store::new(config.store),
            placement: ArcSwap::from_pointee(placement),
            table_changed: Notify::new(),
            pulse: lease::Pulse::default(),
            questions: lease::Questions::default(),
            reach: reach::Reach::default(),
            ledger: Mutex::default(),
            fences: fence::Fences::default(),
            recent: Recent::default(),
            clocks: late::Clocks::default(),
            // Far from those of all other processes.
            request: AtomicU64::new(mix::hash(identity.boot, identity.node_id.as_str().as_bytes())),
            witnesses: witness::Witnesses::default(),
            owing: Notify::new(),
            foreign: Notify::new(),
            clean: watch::channel(true).0,
            view: gossip.view(),
            contacts: Mutex::default(),
            goodbyes: Mutex::default(),
            events: events::EventLog::new(),
            moves: Mutex::default(),
            complaints: Seldom::default(),
            admission: admission::Progress::default(),
            leaving: AtomicBool::new(false),
            stop: watch::channel(None).0,
            id: identity.node_id,
            boot: identity.boot,
            address: identity.address,
            config,
            clock,
            gossip,
            links,
            metrics,
        }));
        let (view, events) = (node.clone(), node.0.gossip.events());
        tasks.spawn(task(endless("membership", membership::follow_view(view))));
        tasks.spawn(task(endless("membership", membership::follow_events(node.clone(), events))));
        // It ends when the keyring's owner goes first.
        let links = node.clone();
        tasks.spawn(task(vital("links", async move { links.0.links.follow_security().await })));
        tasks.spawn(task(endless("leases", beat::run(node.clone()))));
        tasks.spawn(task(endless("pulse", lease::keep_pulse(node.clone()))));
        tasks.spawn(task(endless("joining", join::run(node.clone()))));
        tasks.spawn(task(endless("sync", sync::run(node.clone()))));
        tasks.spawn(task(endless("scrubbing", scrub::run(node.clone()))));
        tasks.spawn(task(endless("tidying", tidy::run(node.clone()))));
        tasks.spawn(task(endless("sweeping", tidy::sweep(node.clone()))));
        node
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        &self.0.id
    }

    /// Milliseconds since the process started: the clock of leases and times to live, which nothing sets.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.0.clock.uptime_ms()
    }

    /// The same clock in microseconds.
    fn uptime_us(&self) -> u64 {
        self.0.clock.uptime().as_micros() as u64
    }

    /// The moment at which [`Node::uptime_ms`] is this.
    fn instant_at(&self, uptime_ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(uptime_ms).saturating_sub(self.uptime())
    }

    /// How long the process has been running.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.0.clock.uptime()
    }

    /// Unix milliseconds by the machine's clock, which can be set: for versions, and for what people read.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        self.0.clock.wall_ms()
    }

    /// What [`Node::wall_ms`] would have been then, were the clock as it is now.
    #[must_use]
    pub fn wall_at_ms(&self, uptime_ms: u64) -> u64 {
        self.wall_ms().saturating_sub(self.uptime_ms().saturating_sub(uptime_ms))
    }

    /// Its metrics, for the edges to count in.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
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

    /// Whether a member lives at this address.
    #[must_use]
    pub fn is_member(&self, address: IpAddr) -> bool {
        self.0.view.borrow().peers().any(|peer| peer.address.ip() == address)
    }

    /// The last contact with a member.
    #[must_use]
    pub fn contact(&self, node_id: &NodeId) -> Option<Contact> {
        self.0.contacts.lock().get(node_id).copied()
    }

    /// How many milliseconds the clock of a member is ahead of this node's; none if it has not answered yet.
    #[must_use]
    pub fn clock_offset_ms(&self, node_id: &NodeId) -> Option<i64> {
        if node_id == self.id() {
            return Some(0);
        }
        self.contact(node_id).and_then(|contact| contact.offset).map(|offset| offset.ahead_ms)
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

    /// Does one operation on this node's own store, whoever owns the key. An owner's DELETE is one for the whole cluster;
    /// another node only drops what it has.
    ///
    /// # Errors
    /// [`NodeError::TooLarge`], [`NodeError::PreconditionFailed`] and [`NodeError::Joining`]; nothing has changed then.
    pub fn apply_here(&self, operation: &Operation) -> Result<Outcome, NodeError> {
        self.check_admitted_now()?;
        if let Operation::Delete(key, Condition::Always) = operation
            && !self.0.placement.load().owns(key.slot())
        {
            // A tombstone here would be the newest of all.
            let held = self.0.store.peek(key, self.uptime_ms());
            let removed =
                held.as_ref().is_some_and(|record| self.0.store.remove_version(key, record.version()));
            let found = removed && matches!(held, Some(Record::Entry(_)));
            return Ok(Outcome::Deleted { found, degraded: false });
        }
        let (outcome, applied) = self.apply(operation, self.uptime_ms())?;
        if applied.is_some() && !self.0.placement.load().owns(operation.key().slot()) {
            self.pass_on(operation.key().slot());
        }
        Ok(outcome.for_clients())
    }

    /// A snapshot event and everything that happens after it.
    #[must_use]
    pub fn events(&self) -> (Event, broadcast::Receiver<Event>) {
        let receiver = self.0.events.subscribe();
        let members: Vec<_> =
            self.members().iter().map(|member| membership::describe(self, member)).collect();
        let state = json!({"node_id": self.id(), "ring": self.ring().fingerprint(), "members": members});
        (self.0.events.snapshot(self.wall_ms(), state), receiver)
    }

    /// One member as the interface shows it.
    #[must_use]
    pub fn describe(&self, member: &crate::model::Member) -> serde_json::Value {
        membership::describe(self, member)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.0.config.request_timeout
    }

    /// How long ago a request with that deadline was asked for, in milliseconds.
    fn asked_for_ms(&self, deadline: Instant) -> u32 {
        let left = deadline.saturating_duration_since(Instant::now());
        self.0.config.request_timeout.saturating_sub(left).as_millis() as u32
    }

    fn lookup(&self, key: &Key) -> Outcome {
        let outcome = match self.0.store.get(key, self.uptime_ms()) {
            Lookup::Hit(entry) => {
                self.0.metrics.hits.inc();
                return Outcome::Hit(entry);
            }
            Lookup::Expired { .. } => {
                self.0.metrics.expirations.inc();
                Outcome::Gone
            }
            Lookup::Deleted(_) => Outcome::Gone,
            Lookup::Miss => Outcome::Miss,
        };
        self.0.metrics.misses.inc();
        outcome
    }
}

/// Reads everything that a request from a link has in it.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_request(request: Request, mut value: bytes::Bytes) {
    match request {
        Request::One { operation, .. } => drop(Operation::from_wire(operation, &mut value)),
        Request::Many { operations, .. } => {
            operations.into_iter().for_each(|one| drop(Operation::from_wire(one, &mut value)));
        }
        Request::Copy(_, records) | Request::Sync(records) => {
            records.heads.into_iter().for_each(|head| drop(operation::record_from_wire(head, &mut value, 0)));
        }
        Request::Peek { key, .. } => drop(operation::parse(key)),
        _ => {}
    }
}

impl Service for Node {
    fn call(&self, request: Request, value: bytes::Bytes, deadline: Instant) -> Answer {
        serve::call(self, request, value, deadline)
    }
}
