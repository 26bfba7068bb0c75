//! What happens in the cluster, told to whoever listens.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

/// Listeners that fall behind this far lose the oldest events.
const EVENTS_KEPT: usize = 1024;

/// One event: a kind, and JSON data that holds its time and id.
#[derive(Clone, Debug)]
pub struct Event {
    /// Grows by one with each event of this process.
    pub id: u64,
    /// `member_up`, `ring_changed` …
    pub kind: &'static str,
    /// The data, a JSON object.
    pub data: Value,
}

/// The stream of events of one node.
#[derive(Debug)]
pub(super) struct EventLog {
    last_id: AtomicU64,
    sender: broadcast::Sender<Event>,
}

impl EventLog {
    pub(super) fn new() -> EventLog {
        EventLog { last_id: AtomicU64::new(0), sender: broadcast::channel(EVENTS_KEPT).0 }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    pub(super) fn publish(&self, kind: &'static str, now_ms: u64, data: Value) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        // Fails when nobody listens, which is fine.
        let _ = self.sender.send(Event { id, kind, data: stamped(id, now_ms, data) });
    }

    /// An event for one listener only: the state at the moment it began to listen, under the id of the last event.
    pub(super) fn snapshot(&self, now_ms: u64, data: Value) -> Event {
        let id = self.last_id.load(Ordering::Relaxed);
        Event { id, kind: "snapshot", data: stamped(id, now_ms, data) }
    }
}

fn stamped(id: u64, now_ms: u64, data: Value) -> Value {
    let mut fields =
        Map::from_iter([("time".to_string(), json!(rfc3339(now_ms))), ("id".to_string(), json!(id))]);
    if let Value::Object(more) = data {
        fields.extend(more);
    }
    Value::Object(fields)
}

/// Unix milliseconds as the interface writes times.
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms as i64).unwrap_or(jiff::Timestamp::MAX).to_string()
}
