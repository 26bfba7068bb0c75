//! Metrics, and in `logs` the logs.
//!
//! [`Metrics`] is one node's registry, made at start and shared by handle, so that two nodes in one process (as in tests)
//! count apart. Handles are resolved once: counting on the request path is one atomic addition.

mod logs;
mod seldom;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{AtomicU64, GenericCounter};
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use self::logs::{ACCESS_LOG, LogFormat, Logs, last_words};
pub use self::seldom::Seldom;
use crate::model::NodeId;

/// A count that only grows.
pub type Counter = GenericCounter<AtomicU64>;

/// What a request asked for; a label of the request metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operation {
    Get,
    Put,
    Delete,
    Batch,
}

/// Where a request was served; a label of the request metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By this node, which owns the key.
    Local,
    /// By another node, over the link.
    Forwarded,
}

/// Why a request or a connection was turned away; a label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Limit {
    HeadSize,
    HeadTime,
    HeadMemory,
    Malformed,
    BodySize,
    BodyTime,
    BodyMemory,
    AnswerTime,
    BatchSize,
    Idle,
    Connections,
    ConnectionsPerAddress,
    Requests,
    EventStreams,
    Unauthorized,
    Forbidden,
    NotTls,
}

/// In the order of [`Limit`].
const LIMITS: [&str; 17] = [
    "head_size",
    "head_time",
    "head_memory",
    "malformed",
    "body_size",
    "body_time",
    "body_memory",
    "answer_time",
    "batch_size",
    "idle",
    "connections",
    "connections_per_address",
    "requests",
    "event_streams",
    "unauthorized",
    "forbidden",
    "not_tls",
];

const OPERATIONS: [&str; 4] = ["get", "put", "delete", "batch"];
const ROUTES: [&str; 2] = ["local", "forwarded"];

/// One node's metrics.
#[expect(missing_docs, reason = "each is described by the help text it is registered with")]
pub struct Metrics {
    registry: Registry,
    requests: [[Histogram; 2]; 4],
    pub hits: Counter,
    pub misses: Counter,
    pub evictions: Counter,
    pub evicted_bytes: Counter,
    pub expirations: Counter,
    pub errors: Counter,
    pub overloaded: Counter,
    pub clamped_versions: Counter,
    pub gossip_sent: Counter,
    pub gossip_sent_bytes: Counter,
    pub gossip_received: Counter,
    pub gossip_received_bytes: Counter,
    gossip_rejected: IntCounterVec,
    pub link_sent_bytes: Counter,
    pub link_received_bytes: Counter,
    pub link_connects: Counter,
    pub link_rejected: Counter,
    pub link_refused: Counter,
    pub http_connections: Counter,
    refused: [GenericCounter<AtomicU64>; LIMITS.len()],
    connections: IntGauge,
    pub degraded_writes: Counter,
    pub failovers: Counter,
    pub sync_keys: Counter,
    pub sync_bytes: Counter,
    pub sync_failures: Counter,
    pub sync_left_out: Counter,
    pub link_relayed: Counter,
    under_replicated_slots: IntGauge,
    pub unreached_members: IntGauge,
    members: IntGaugeVec,
    clock_offsets: GaugeVec,
    gauges: IntGaugeVec,
}

impl Metrics {
    /// A registry whose every metric carries `node="<node_id>"`.
    ///
    /// # Panics
    /// Never: the names below are distinct and valid, which the tests of this module show.
    #[must_use]
    pub fn new(node_id: &NodeId) -> Arc<Metrics> {
        let labels = [("node".to_string(), node_id.to_string())].into();
        let registry = Registry::new_custom(None, Some(labels)).expect("a valid label");
        let counter = |name: &str, help: &str| {
            let counter = Counter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("a distinct name");
            counter
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a valid name");
            registry.register(Box::new(gauge.clone())).expect("a distinct name");
            gauge
        };
        let family = |name: &str, help: &str, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid name");
            registry.register(Box::new(family.clone())).expect("a distinct name");
            family
        };
        let help = "Datagrams that were not this cluster's, by reason.";
        let rejections = IntCounterVec::new(Opts::new("shoal_gossip_rejected_total", help), &["reason"])
            .expect("a valid name");
        registry.register(Box::new(rejections.clone())).expect("a distinct name");
        registry.register(Box::new(logs::dropped().clone())).expect("a distinct name");
        let help = "By how much the clock of a member is ahead of this node's.";
        let clock_offsets =
            GaugeVec::new(Opts::new("shoal_clock_offset_seconds", help), &["member"]).expect("a valid name");
        registry.register(Box::new(clock_offsets.clone())).expect("a distinct name");
        Arc::new(Metrics {
            requests: request_histograms(&registry),
            hits: counter("cache_hits_total", "Reads that found their key on this node."),
            misses: counter("cache_misses_total", "Reads that did not find their key on this node."),
            evictions: counter("shoal_evictions_total", "Entries dropped to stay within the memory bound."),
            evicted_bytes: counter("shoal_evicted_bytes_total", "Bytes of the evicted entries."),
            expirations: counter("shoal_expirations_total", "Entries dropped because their TTL ran out."),
            errors: counter("shoal_errors_total", "Requests answered with a status of 500 or more."),
            overloaded: counter(
                "shoal_overloaded_total",
                "Requests refused because a bounded queue was full.",
            ),
            clamped_versions: counter(
                "shoal_clamped_versions_total",
                "Versions seen from over 60 s in the future.",
            ),
            gossip_sent: counter("shoal_gossip_sent_total", "Datagrams sent."),
            gossip_sent_bytes: counter("shoal_gossip_sent_bytes_total", "Bytes of the datagrams sent."),
            gossip_received: counter("shoal_gossip_received_total", "Datagrams received."),
            gossip_received_bytes: counter(
                "shoal_gossip_received_bytes_total",
                "Bytes of the datagrams received.",
            ),
            gossip_rejected: rejections,
            link_sent_bytes: counter("shoal_link_sent_bytes_total", "Bytes sent to peers over links."),
            link_received_bytes: counter(
                "shoal_link_received_bytes_total",
                "Bytes received from peers over links.",
            ),
            link_connects: counter("shoal_link_connects_total", "Link connections opened to peers."),
            link_rejected: counter(
                "shoal_link_rejected_total",
                "Link connections closed for a violation of the protocol.",
            ),
            link_refused: counter(
                "shoal_link_refused_total",
                "Entries and operations of peers that are over a bound of this node, each refused alone.",
            ),
            http_connections: counter("shoal_http_connections_total", "Connections accepted."),
            refused: refusal_counters(&registry),
            connections: gauge(
                "shoal_http_connections",
                "Connections that are open, those of peers among them.",
            ),
            degraded_writes: counter(
                "shoal_degraded_writes_total",
                "Writes acknowledged before all owners had them.",
            ),
            failovers: counter(
                "shoal_failovers_total",
                "Requests that the primary of their key could not answer alone.",
            ),
            sync_keys: counter("shoal_sync_keys_total", "Entries brought to members that lacked them."),
            sync_bytes: counter("shoal_sync_bytes_total", "Bytes of the entries moved."),
            sync_failures: counter(
                "shoal_sync_failures_total",
                "Attempts to bring a member up to date that it did not acknowledge.",
            ),
            sync_left_out: counter(
                "shoal_sync_left_out_total",
                "Entries that a member cannot take, not even one by one: it goes without them.",
            ),
            link_relayed: counter(
                "shoal_link_relayed_total",
                "Requests that took a detour through another member.",
            ),
            unreached_members: gauge(
                "shoal_unreached_members",
                "Members that this node does not reach over connections of its own, or only since a short while.",
            ),
            under_replicated_slots: gauge(
                "shoal_under_replicated_slots",
                "Slots of which some owner may lack something that this node holds.",
            ),
            members: family("shoal_members", "Visible members by status, this node included.", &["status"]),
            clock_offsets,
            gauges: family("shoal_store", "The store: entries, bytes, and the bound on bytes.", &["what"]),
            registry,
        })
    }

    /// Counts one request and how long it took.
    pub fn request(&self, operation: Operation, route: Route, took: Duration) {
        self.requests[operation as usize][route as usize].observe(took.as_secs_f64());
    }

    /// Sets the number of members with a status.
    pub fn set_members(&self, status: &str, count: usize) {
        self.members.with_label_values(&[status]).set(count as i64);
    }

    /// Sets how many milliseconds the clocks of the members are ahead. Those of others are forgotten.
    pub fn set_clock_offsets<'a>(&self, ahead_ms: impl Iterator<Item = (&'a NodeId, i64)>) {
        self.clock_offsets.reset();
        for (member, ahead_ms) in ahead_ms {
            self.clock_offsets.with_label_values(&[member.as_str()]).set(ahead_ms as f64 / 1000.0);
        }
    }

    /// Sets how many slots wait for sync.
    pub fn set_under_replicated(&self, slots: usize) {
        self.under_replicated_slots.set(slots as i64);
    }

    /// Counts something that was turned away.
    pub fn refuse(&self, limit: Limit) {
        self.refused[limit as usize].inc();
    }

    /// Has these reasons shown from the start: a rate cannot be told from a first count.
    pub fn show_rejections(&self, reasons: &[&str]) {
        reasons.iter().for_each(|reason| drop(self.gossip_rejected.with_label_values(&[reason])));
    }

    /// Counts a datagram that was dropped. There must be few reasons.
    pub fn reject_datagram(&self, reason: &str) {
        self.gossip_rejected.with_label_values(&[reason]).inc();
    }

    /// How many connections are open.
    pub fn set_connections(&self, open: usize) {
        self.connections.set(open as i64);
    }

    /// Sets one of the store's gauges.
    pub fn set_store(&self, what: &str, value: usize) {
        self.gauges.with_label_values(&[what]).set(value as i64);
    }

    /// Everything, in the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "could not render the metrics");
        }
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Metrics")
    }
}

fn refusal_counters(registry: &Registry) -> [Counter; LIMITS.len()] {
    let options = Opts::new("shoal_http_refused_total", "Requests and connections turned away, by reason.");
    let family = IntCounterVec::new(options, &["reason"]).expect("a valid name");
    registry.register(Box::new(family.clone())).expect("a distinct name");
    LIMITS.map(|reason| family.with_label_values(&[reason]))
}

fn request_histograms(registry: &Registry) -> [[Histogram; 2]; 4] {
    // From a local hit (tens of microseconds under load) to the longest deadline.
    let bounds =
        vec![50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 2.5];
    let options = HistogramOpts::new("shoal_request_duration_seconds", "Requests, by operation and route.");
    let family = HistogramVec::new(options.buckets(bounds), &["operation", "route"])
        .expect("a valid name and buckets");
    registry.register(Box::new(family.clone())).expect("a distinct name");
    OPERATIONS.map(|operation| ROUTES.map(|route| family.with_label_values(&[operation, route])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_rendered_under_the_name_that_dashboards_use() {
        let metrics = Metrics::new(&NodeId::parse("node1").unwrap());
        metrics.hits.inc();
        metrics.request(Operation::Get, Route::Local, Duration::from_millis(2));
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains("cache_hits_total{node=\"node1\"} 1\n"), "{text}");
        assert!(text.contains("cache_misses_total{node=\"node1\"} 0\n"), "{text}");
        let count = r#"shoal_request_duration_seconds_count{operation="get",route="local",node="node1"} 1"#;
        assert!(text.contains(count), "{text}");
    }

    #[test]
    fn two_nodes_in_one_process_count_apart() {
        let [a, b] = ["a", "b"].map(|name| Metrics::new(&NodeId::parse(name).unwrap()));
        a.hits.inc_by(3);
        assert_eq!((a.hits.get(), b.hits.get()), (3, 0));
    }
}
