//! A steady open loop of requests at every node, each checked against what was acknowledged before it began.
//!
//! Requests are sent at their times, whether earlier ones were answered or not, and latency counts from there. Values of a key
//! count up, one write at a time, so that a read is stale if it finds less than the last write that had been acknowledged when
//! the read began. A write without an acknowledgement may be done or not, also later: it explains what it wrote, and a refused
//! condition on its key.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::common::Figures;
use crate::connection::{Answer, Connection};
use crate::net::Net;
use crate::node::{Node, key_path};

const KEYS: usize = 300;
/// At each node.
const PER_SECOND: f64 = 40.0;
/// Longer than a node's own deadline.
const PATIENCE: Duration = Duration::from_secs(4);

#[derive(Clone, Copy)]
enum Kind {
    Get,
    Put,
    /// A PUT with `If-Match`.
    Replace,
}

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Fine,
    Degraded,
    Failed(String),
    /// Less than was acknowledged, or a refusal that only less could explain.
    Stale(String),
}

/// A request, with the time when it was due since the load began.
pub(crate) struct Sample {
    pub(crate) node: usize,
    pub(crate) due: Duration,
    pub(crate) took: Duration,
    pub(crate) outcome: Outcome,
}

/// Milliseconds that these took.
pub(crate) fn latencies<'a>(samples: impl Iterator<Item = &'a Sample>) -> Figures {
    samples.map(|sample| sample.took.as_secs_f64() * 1e3).collect()
}

/// A load under way, on a thread of its own.
pub(crate) struct Load {
    shared: Arc<Shared>,
    started: Instant,
    thread: JoinHandle<()>,
}

/// The keys after a load, all of whose requests have been answered or given up.
pub(crate) struct Keys(Vec<Key>);

impl Keys {
    /// How many of them a node does not have as new as was acknowledged.
    pub(crate) fn old_at(&self, node: &Node) -> usize {
        let is_old = |key: &&Key| {
            let octets = [("accept", "application/octet-stream")];
            let read = node.ask("GET", &key_path(&key.name), &octets, b"");
            !key.explains(read.ok().and_then(|answer| answer.text().parse().ok()), key.acknowledged)
        };
        self.0.iter().filter(is_old).count()
    }
}

struct Shared {
    /// The key that was acknowledged last.
    newest: AtomicUsize,
    keys: Mutex<Vec<Key>>,
    idle: Mutex<HashMap<SocketAddr, Vec<Connection>>>,
    isolated: Mutex<HashSet<SocketAddr>>,
    samples: Mutex<Vec<Sample>>,
    stop: AtomicBool,
}

/// What is known of a key.
#[derive(Default)]
struct Key {
    name: String,
    /// The newest value that was acknowledged, and its version.
    acknowledged: u32,
    etag: String,
    /// The newest that was sent.
    sent: u32,
    is_being_written: bool,
    /// What was sent and not acknowledged, or by an isolated node.
    in_doubt: Vec<u32>,
}

impl Key {
    /// Whether a read may find this, if it began when `least` was acknowledged.
    fn explains(&self, found: Option<u32>, least: u32) -> bool {
        found.is_some_and(|found| found >= least || self.in_doubt.contains(&found))
    }
}

impl Load {
    /// Stores every key once, then begins.
    pub(crate) fn start(net: &Net) -> Load {
        let keys = (0..KEYS).map(|number| Key { name: format!("counted-{number}"), ..Key::default() });
        let shared = Arc::new(Shared {
            newest: AtomicUsize::new(0),
            keys: Mutex::new(keys.collect()),
            idle: Mutex::default(),
            isolated: Mutex::default(),
            samples: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let nodes: Vec<_> = net.numbers().map(|node| (node, net.address(node))).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(shared.fill(nodes[0].1));
        let (started, running) = (Instant::now(), shared.clone());
        let thread = std::thread::spawn(move || runtime.block_on(running.run(&nodes, started)));
        Load { shared, started, thread }
    }

    /// From now on nobody has to see what these nodes alone acknowledge.
    pub(crate) fn isolate(&self, nodes: impl Iterator<Item = SocketAddr>) {
        self.shared.isolated.lock().extend(nodes);
    }

    /// Since it began.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Every request, after the last was answered or given up.
    pub(crate) fn stop(self) -> (Vec<Sample>, Keys) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load goes on until it is told");
        let keys = std::mem::take(&mut *self.shared.keys.lock());
        (std::mem::take(&mut self.shared.samples.lock()), Keys(keys))
    }
}

impl Shared {
    async fn fill(&self, node: SocketAddr) {
        for key in 0..KEYS {
            self.keys.lock()[key].is_being_written = true;
            let outcome = self.write(node, key, Kind::Put).await;
            assert!(matches!(outcome, Outcome::Fine), "{outcome:?} while nothing is wrong");
        }
    }

    async fn run(self: Arc<Shared>, nodes: &[(usize, SocketAddr)], started: Instant) {
        let mut requests = JoinSet::new();
        for turn in 0.. {
            let due = Duration::from_secs_f64(f64::from(turn) / (PER_SECOND * nodes.len() as f64));
            sleep_until(started + due).await;
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let turn = turn as usize;
            let (node, address) = nodes[turn % nodes.len()];
            let kind = match turn / nodes.len() % 10 {
                2 | 7 => Kind::Put,
                4 => Kind::Replace,
                _ => Kind::Get,
            };
            let shared = self.clone();
            requests.spawn(async move {
                let outcome = shared.ask(address, turn, kind).await;
                let took = started.elapsed().saturating_sub(due);
                shared.samples.lock().push(Sample { node, due, took, outcome });
            });
            while requests.try_join_next().is_some() {}
        }
        requests.join_all().await;
    }

    async fn ask(&self, node: SocketAddr, turn: usize, kind: Kind) -> Outcome {
        // Spread by a multiplication.
        let first = ((turn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        if let Kind::Get = kind {
            // Every other one looks for what has just been written.
            let newest = self.newest.load(Ordering::Relaxed);
            return self.read(node, if first & 1 == 0 { newest } else { first / 2 % KEYS }).await;
        }
        let free = {
            let mut keys = self.keys.lock();
            let mut candidates = (first..first + KEYS).map(|key| key % KEYS);
            candidates.find(|key| !std::mem::replace(&mut keys[*key].is_being_written, true))
        };
        // Every one stuck would be a failure of this request, too.
        let Some(key) = free else { return Outcome::Failed("all keys are being written".into()) };
        self.write(node, key, kind).await
    }

    async fn read(&self, node: SocketAddr, key: usize) -> Outcome {
        let (name, before) = {
            let key = &self.keys.lock()[key];
            (key.name.clone(), key.acknowledged)
        };
        let octets = "accept: application/octet-stream\r\n";
        let answer = match self.exchange(node, "GET", &name, octets, "").await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Failed(format!("GET {name}: {error}")),
        };
        let found = std::str::from_utf8(&answer.body).ok().and_then(|text| text.parse::<u32>().ok());
        match (answer.status, found) {
            (200, found) if self.keys.lock()[key].explains(found, before) => Outcome::Fine,
            (200, found) => Outcome::Stale(format!("GET {name}: {found:?} after {before}")),
            (404, _) => Outcome::Stale(format!("GET {name}: nothing after {before}")),
            (status, _) => Outcome::Failed(format!("GET {name}: {status} {}", text(&answer))),
        }
    }

    /// Writes a key that is marked as being written.
    async fn write(&self, node: SocketAddr, key: usize, kind: Kind) -> Outcome {
        let (name, value, condition) = {
            let key = &mut self.keys.lock()[key];
            key.sent += 1;
            let condition = match kind {
                Kind::Replace => format!("if-match: {}\r\n", key.etag),
                Kind::Get | Kind::Put => String::new(),
            };
            (key.name.clone(), key.sent, condition)
        };
        let answer = self.exchange(node, "PUT", &name, &condition, &value.to_string()).await;
        let number = key;
        let key = &mut self.keys.lock()[number];
        key.is_being_written = false;
        let what = if condition.is_empty() { "PUT" } else { "PUT if-match" };
        let failure = match answer {
            Ok(answer) if answer.status == 204 => {
                if self.isolated.lock().contains(&node) {
                    key.in_doubt.push(value);
                } else {
                    key.acknowledged = value;
                    key.etag = answer.header("etag").unwrap_or_default().to_string();
                    self.newest.store(number, Ordering::Relaxed);
                }
                let degraded = answer.header("shoal-degraded").is_some();
                return if degraded { Outcome::Degraded } else { Outcome::Fine };
            }
            Ok(answer) if answer.status == 412 && !key.in_doubt.is_empty() => return Outcome::Fine,
            Ok(answer) if answer.status == 412 => {
                let told = (key.etag.clone(), text(&answer));
                return Outcome::Stale(format!("{what} {name}: 412 for {}: {}", told.0, told.1));
            }
            Ok(answer) => format!("{what} {name}: {} {}", answer.status, text(&answer)),
            Err(error) => format!("{what} {name}: {error}"),
        };
        key.in_doubt.push(value);
        Outcome::Failed(failure)
    }

    async fn exchange(
        &self,
        node: SocketAddr,
        method: &str,
        key: &str,
        lines: &str,
        body: &str,
    ) -> std::io::Result<Answer> {
        let idle = self.idle.lock().entry(node).or_default().pop();
        let whole = async {
            let mut connection = match idle {
                Some(connection) => connection,
                None => Connection::open(node).await?,
            };
            let answer = connection.exchange(method, &key_path(key), lines, body).await?;
            self.idle.lock().entry(node).or_default().push(connection);
            Ok(answer)
        };
        timeout(PATIENCE, whole).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).chars().take(160).collect()
}
