//! An open loop of GETs and PUTs whose every answer is checked.
//!
//! Requests are sent at their scheduled times, whether earlier ones were answered or not, and latency is counted from
//! there: a stall is seen by all requests that fall into it. A key is written by one worker only, one write at a time, and
//! values count up, so that a GET must return at least what was acknowledged before it began.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::{Instant, sleep_until, timeout};

use super::common::{Figures, Result};
use super::http::Connection;

/// Requests that may be under way at once.
const WORKERS: usize = 256;
/// One PUT in so many requests.
const PUT_EVERY: usize = 5;
const VALUE_BYTES: usize = 100;
/// Longer than a node's own deadline.
const PATIENCE: Duration = Duration::from_secs(5);

/// The newest acknowledged value of every key.
pub(crate) struct Keys(Vec<AtomicU32>);

impl Keys {
    pub(crate) fn new(count: usize) -> Arc<Keys> {
        Arc::new(Keys((0..count).map(|_| AtomicU32::new(0)).collect()))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn acknowledged(&self, key: usize) -> u32 {
        self.0[key].load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledge(&self, key: usize, value: u32) {
        self.0[key].store(value, Ordering::SeqCst);
    }
}

/// A key's name.
pub(crate) fn name(key: usize) -> String {
    format!("key:{key:08}")
}

/// A value: its number, padded.
pub(crate) fn value(number: u32) -> String {
    format!("{number:0>VALUE_BYTES$}")
}

/// The number in the JSON answer to a GET.
pub(crate) fn number_in(body: &[u8]) -> Option<u32> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    answer["value"].as_str()?.parse().ok()
}

/// What a load has seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// When a request was due, since the start, and how long it took from then.
    pub(crate) answers: Vec<(Duration, Duration)>,
    pub(crate) failures: Vec<String>,
}

impl Seen {
    /// Milliseconds of the requests that were due in, or out of, a span.
    pub(crate) fn latencies(&self, wanted: impl Fn(Duration) -> bool) -> Figures {
        let due = self.answers.iter().filter(|(due, _)| wanted(*due));
        due.map(|(_, took)| took.as_secs_f64() * 1e3).collect()
    }
}

/// A load under way, on a thread of its own.
pub(crate) struct Load {
    shared: Arc<Shared>,
    started: Instant,
    thread: JoinHandle<()>,
}

struct Shared {
    keys: Arc<Keys>,
    targets: RwLock<Vec<SocketAddr>>,
    stop: AtomicBool,
    seen: Mutex<Seen>,
    per_second: f64,
    reads_only: bool,
}

impl Load {
    /// Begins to send `per_second` requests to the targets in turn.
    pub(crate) fn start(
        keys: &Arc<Keys>,
        targets: Vec<SocketAddr>,
        per_second: f64,
        reads_only: bool,
    ) -> Result<Load> {
        let shared = Arc::new(Shared {
            keys: keys.clone(),
            targets: RwLock::new(targets),
            stop: AtomicBool::new(false),
            seen: Mutex::default(),
            per_second,
            reads_only,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (started, running) = (Instant::now(), shared.clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let workers = (0..WORKERS).map(|worker| tokio::spawn(work(running.clone(), worker, started)));
                futures_util::future::join_all(workers).await;
            });
        });
        Ok(Load { shared, started, thread })
    }

    /// Since the start.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Where requests go from now on.
    pub(crate) fn aim(&self, targets: Vec<SocketAddr>) {
        *self.shared.targets.write() = targets;
    }

    pub(crate) fn stop(self) -> Result<Seen> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| "the load broke down")?;
        Ok(std::mem::take(&mut self.shared.seen.lock()))
    }
}

async fn work(shared: Arc<Shared>, worker: usize, started: Instant) {
    let mut connections: HashMap<SocketAddr, Connection> = HashMap::new();
    let mut answers = Vec::new();
    for turn in 0.. {
        let number = turn * WORKERS + worker;
        let due = Duration::from_secs_f64(number as f64 / shared.per_second);
        sleep_until(started + due).await;
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        // Spread by a multiplication; written keys belong to one worker.
        let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let target = {
            let targets = shared.targets.read();
            // A node that stops, or has been started again, has closed them.
            connections.retain(|target, _| targets.contains(target));
            targets[spread as usize % targets.len()]
        };
        let mut key = spread as usize % shared.keys.count();
        let writes = !shared.reads_only && turn % PUT_EVERY == 0;
        if writes {
            key = (key / WORKERS * WORKERS + worker) % shared.keys.count();
        }
        let asked = timeout(PATIENCE, ask(&shared, &mut connections, target, key, writes)).await;
        let failure = match asked {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some("no answer".to_string()),
        };
        if let Some(failure) = failure {
            connections.remove(&target);
            let what = if writes { "PUT" } else { "GET" };
            let failure = format!("{:.3} s: {what} {} at {target}: {failure}", due.as_secs_f64(), name(key));
            shared.seen.lock().failures.push(failure);
        }
        answers.push((due, started.elapsed().saturating_sub(due)));
    }
    shared.seen.lock().answers.append(&mut answers);
}

async fn ask(
    shared: &Shared,
    connections: &mut HashMap<SocketAddr, Connection>,
    target: SocketAddr,
    key: usize,
    writes: bool,
) -> std::result::Result<(), String> {
    let connection = match connections.entry(target) {
        Entry::Occupied(open) => open.into_mut(),
        Entry::Vacant(none) => {
            none.insert(Connection::open(target).await.map_err(|error| error.to_string())?)
        }
    };
    let path = format!("/api/v1/cache/{}", name(key));
    let before = shared.keys.acknowledged(key);
    let (method, body) = match writes {
        true => ("PUT", format!("{{\"value\":\"{}\"}}", value(before + 1))),
        false => ("GET", String::new()),
    };
    let (status, answer) =
        connection.request(method, &path, &body).await.map_err(|error| error.to_string())?;
    if status != 200 {
        return Err(format!("{status} {}", String::from_utf8_lossy(&answer)));
    }
    if writes {
        shared.keys.acknowledge(key, before + 1);
        return Ok(());
    }
    match number_in(&answer) {
        Some(number) if number >= before => Ok(()),
        found => Err(format!("{found:?} although {before} was acknowledged")),
    }
}
