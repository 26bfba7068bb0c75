//! One lane to one peer: opened when first needed and again when lost, by one caller at a time.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::time::{Duration, Instant, timeout};

use super::connection::{Bounds, Connection};
use super::life::Life;
use super::party::Called;
use super::upgrade::upgrade;
use super::{BULK_BYTES, CONNECT_TIMEOUT, Lane, LinkConfig, LinkError};
use crate::model::{NodeId, mix};
use crate::net::spawn;
use crate::telemetry::Metrics;

/// The first wait after a failed connection; doubles up to the second, each shortened at random by up to half.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// One lane to one peer: the open connection, or the memory of failing to open one.
#[derive(Debug, Default)]
pub(super) struct Line {
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
    pub(super) fn open(&self) -> Option<Arc<Connection>> {
        self.current.load_full().filter(|connection| !connection.is_closed())
    }

    /// Takes the connection out of use if it is outdated: the next request opens another one, those under way finish on this
    /// one.
    pub(super) fn retire_if(&self, is_outdated: impl Fn(&Connection) -> bool) {
        if let Some(connection) = self.open().filter(|connection| is_outdated(connection)) {
            // Only this one: if another has taken its place, nobody would close the other.
            self.current.compare_and_swap(&connection, None);
            spawn(connection.retire());
        }
    }

    /// Forgets that none could be opened.
    pub(super) fn forgive(&self) {
        // Held by an attempt that is under way: that one sees for itself.
        if let Ok(mut failing) = self.failing.try_lock() {
            *failing = None;
        }
    }

    pub(super) fn close(&self) {
        if let Some(connection) = self.current.swap(None) {
            connection.close();
        }
    }

    /// The connection to the one that is called, after as much of a pause as former failures ask for.
    pub(super) async fn connect(
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
        let has_changed = config.watch_security();
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
                let sent = if lane == Lane::Requests { BULK_BYTES } else { upgraded.taken };
                let bounds = Bounds { taken: config.frame_bytes_max(), sent };
                let connection = Connection::start(address, upgraded, life, bounds, &metrics);
                if let Some(other) = self.current.swap(Some(connection.clone())) {
                    // It has closed, or leads to another node than the one that is at this address now.
                    other.close();
                }
                // The pool retires only connections that it knows, and it did not know this one when the change came.
                if has_changed() {
                    self.retire_if(|open| std::ptr::eq(open, &*connection));
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

/// A connection may still be under way when its line is closed. Nobody else would know it then: it would stay open, also on a
/// certificate or a secret that is removed.
impl Drop for Line {
    fn drop(&mut self) {
        self.close();
    }
}
