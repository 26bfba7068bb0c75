//! Moving entries to where they belong.
//!
//! After a change of the table every entry whose primary is another node is copied there in acknowledged batches, and
//! dropped here a grace later if the table is still the same. Invariant: an entry is dropped only in the version that its
//! owner acknowledged. Rate: one batch is under way at a time, on the bulk connection, so requests are not held up.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep};
use tracing::{info, warn};

use super::{Node, NodeError};
use crate::model::{Entry, Fingerprint, Key, NodeId, Ring, Version};
use crate::net::spawn;

/// Entries and value bytes of one batch.
const BATCH_ENTRIES: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// How long an owner may take to acknowledge a batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a moved entry stays, for readers that still go by the former table.
const GRACE: Duration = Duration::from_secs(1);
/// Pause before entries whose owner did not acknowledge them are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often, and how many at a time, expired entries are freed.
const SWEEP_PERIOD: Duration = Duration::from_millis(250);
const SWEEP_ENTRIES: usize = 10_000;

/// What one run moved.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct SyncReport {
    /// Entries that their owners acknowledged.
    pub keys: usize,
    /// Their values' bytes.
    pub bytes: usize,
    /// Entries that could not be moved; they are still here.
    pub failed: usize,
    /// How long it took.
    pub duration_ms: u64,
}

/// Runs whenever entries may be misplaced, and on request.
pub(super) async fn run(node: Node, mut requests: mpsc::Receiver<oneshot::Sender<SyncReport>>) {
    loop {
        let mut asker = None;
        tokio::select! {
            biased;
            asked = requests.recv() => match asked {
                Some(asked) => asker = Some(asked),
                None => return,
            },
            () = node.0.misplaced.notified() => {}
        }
        let ring = node.ring();
        let (report, acknowledged) = move_misplaced(&node, &ring).await;
        if let Some(asker) = asker {
            // Fails when the asker stopped waiting; the work is done all the same.
            let _ = asker.send(report);
        }
        if !acknowledged.is_empty() {
            drop_later(node.clone(), ring.fingerprint(), acknowledged);
        }
        if report.failed > 0 {
            let node = node.clone();
            spawn(async move {
                sleep(RETRY_PAUSE).await;
                node.0.misplaced.notify_one();
            });
        }
    }
}

/// Frees expired entries, a bounded number at a time.
pub(super) async fn sweep(node: Node) {
    let mut ticks = interval(SWEEP_PERIOD);
    loop {
        ticks.tick().await;
        let swept = node.0.store.sweep(node.now_ms(), SWEEP_ENTRIES);
        node.0.metrics.expirations.inc_by(swept as u64);
    }
}

type Acknowledged = Vec<(Key, Version)>;

async fn move_misplaced(node: &Node, ring: &Ring) -> (SyncReport, Acknowledged) {
    let started = Instant::now();
    let (mut report, mut acknowledged) = (SyncReport::default(), Vec::new());
    let mut told = false;
    for shard in 0..node.0.store.shards() {
        for (owner, keys) in misplaced(node, ring, shard) {
            if !std::mem::replace(&mut told, true) {
                node.0.events.publish("sync_started", node.now_ms(), json!({"ring": ring.fingerprint()}));
            }
            push(node, &owner, &keys, &mut report, &mut acknowledged).await;
        }
    }
    report.duration_ms = started.elapsed().as_millis() as u64;
    if told {
        tell(node, &report);
    }
    (report, acknowledged)
}

fn misplaced(node: &Node, ring: &Ring, shard: usize) -> HashMap<NodeId, Vec<Key>> {
    let elsewhere = |slot| ring.primary(slot).is_some_and(|primary| *primary != node.0.id);
    let mut by_owner: HashMap<NodeId, Vec<Key>> = HashMap::new();
    for key in node.0.store.keys_in(shard, elsewhere, usize::MAX) {
        if let Some(owner) = ring.primary(key.slot()) {
            by_owner.entry(owner.clone()).or_default().push(key);
        }
    }
    by_owner
}

async fn push(
    node: &Node,
    owner: &NodeId,
    keys: &[Key],
    report: &mut SyncReport,
    acknowledged: &mut Acknowledged,
) {
    let mut rest = keys;
    while !rest.is_empty() {
        let (batch, taken) = next_batch(node, rest);
        rest = &rest[taken..];
        let bytes = batch.iter().map(|(_, entry)| entry.value.len()).sum::<usize>();
        match node.copy_to(owner, &batch, Instant::now() + BATCH_TIMEOUT).await {
            Ok(()) => {
                report.keys += batch.len();
                report.bytes += bytes;
                node.0.metrics.sync_keys.inc_by(batch.len() as u64);
                node.0.metrics.sync_bytes.inc_by(bytes as u64);
                acknowledged.extend(batch.into_iter().map(|(key, entry)| (key, entry.version)));
            }
            Err(error) => {
                // The owner may be dead; whoever owns the slots next is tried in the next run.
                report.failed += batch.len() + rest.len();
                node.0.metrics.sync_failures.inc();
                return log_failure(owner, &error);
            }
        }
    }
}

/// The first entries of `keys`, and how many keys they took; some may be gone by now.
fn next_batch(node: &Node, keys: &[Key]) -> (Vec<(Key, Entry)>, usize) {
    let (mut batch, mut bytes, mut taken) = (Vec::new(), 0, 0);
    for key in keys {
        if batch.len() == BATCH_ENTRIES || bytes > BATCH_BYTES {
            break;
        }
        taken += 1;
        if let Some(entry) = node.0.store.peek(key, node.now_ms()) {
            bytes += entry.value.len();
            batch.push((key.clone(), entry));
        }
    }
    (batch, taken)
}

/// Drops what was moved by the table `ring`, if that is still the one in force after the grace.
fn drop_later(node: Node, ring: Fingerprint, acknowledged: Acknowledged) {
    spawn(async move {
        sleep(GRACE).await;
        // Under another table the entry may belong here again; the next run decides.
        if node.ring().fingerprint() != ring {
            return node.0.misplaced.notify_one();
        }
        for (key, version) in acknowledged {
            node.0.store.remove_version(&key, version);
        }
    });
}

fn tell(node: &Node, report: &SyncReport) {
    let now_ms = node.now_ms();
    let mut moves = node.0.moves.lock();
    moves.keys += report.keys as u64;
    moves.last_duration = Duration::from_millis(report.duration_ms);
    moves.last_at_ms = Some(now_ms);
    drop(moves);
    let SyncReport { keys, bytes, failed, duration_ms } = *report;
    info!(keys, bytes, failed, duration_ms, "moved entries to their owners");
    node.0.events.publish("sync_done", now_ms, json!(report));
}

fn log_failure(owner: &NodeId, error: &NodeError) {
    warn!(%owner, %error, "could not move entries to their owner; trying again");
}
