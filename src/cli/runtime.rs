//! The runtime, and the threads that it takes.
//!
//! Where the system gives no thread, tokio panics, or lets what needs one wait for ever. So the threads are tried for first,
//! and one for names to be resolved on is kept from the start.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::UNUSABLE;
use crate::telemetry::last_words;

/// For as long as any process runs.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);
/// How long a thread that the system gave may take to do something.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How long threads that have ended may count against the system's limit.
const GONE_WITHIN: Duration = Duration::from_millis(100);

/// A node's runtime.
pub(super) struct NodeRuntime {
    pub(super) runtime: Runtime,
    /// For people, if it has fewer threads than it should.
    pub(super) shortage: Option<String>,
}

/// The runtime of a node: a worker for each processor, or as many as the system permits.
pub(super) fn of_node() -> Result<NodeRuntime, String> {
    let wanted = workers_wanted();
    // One more, to resolve names.
    let (permitted, error) = permitted(wanted + 1);
    let workers = permitted.saturating_sub(1);
    let mut builder = Builder::new_multi_thread();
    let shortage = match error {
        Some(error) if workers == 0 => return Err(too_few(&error)),
        Some(error) => {
            builder.worker_threads(workers);
            Some(format!("{workers} of {wanted} worker threads: {error}; {REMEDY}"))
        }
        None => None,
    };
    Ok(NodeRuntime { runtime: build(builder)?, shortage })
}

/// The runtime of the other commands.
pub(super) fn of_command() -> Result<Runtime, String> {
    match permitted(1).1 {
        Some(error) => Err(too_few(&error)),
        None => build(Builder::new_current_thread()),
    }
}

const REMEDY: &str = "the limit is that of processes and threads (ulimit -u, or pids.max of the cgroup)";

/// For people: a process lacks threads that it cannot do without.
pub(super) fn too_few(error: &io::Error) -> String {
    format!("the system does not let this process start the threads that it needs: {error}; {REMEDY}")
}

fn build(mut builder: Builder) -> Result<Runtime, String> {
    // The system may change its mind after the trial: then tokio panics, and its own clean-up could wait for ever.
    std::panic::set_hook(Box::new(|_| {
        last_words(&too_few(&io::ErrorKind::WouldBlock.into()));
        std::process::exit(UNUSABLE.into());
    }));
    let runtime = builder.enable_all().thread_keep_alive(FOR_EVER).build();
    let runtime = runtime.map_err(|error| format!("the system gives this process no runtime: {error}"))?;
    let started = runtime
        .block_on(async { timeout(START_TIMEOUT, tokio::task::spawn_blocking(|| ())).await })
        .map_err(|late| too_few(&late.into()));
    drop(std::panic::take_hook());
    match started {
        Ok(_) => Ok(runtime),
        Err(reason) => {
            // Its drop would wait for that thread.
            runtime.shutdown_background();
            Err(reason)
        }
    }
}

/// As tokio counts them.
fn workers_wanted() -> usize {
    let set = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|text| text.parse().ok());
    set.or(thread::available_parallelism().ok().map(usize::from)).unwrap_or(1)
}

/// How many of `wanted` threads the system permits besides those that there are, and why no more.
fn permitted(wanted: usize) -> (usize, Option<io::Error>) {
    let before = threads();
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let mut started = Vec::new();
    let mut refusal = None;
    while started.len() < wanted && refusal.is_none() {
        let gate = gate.clone();
        match thread::Builder::new().spawn(move || drop(gate.lock())) {
            Ok(thread) => started.push(thread),
            Err(error) => refusal = Some(error),
        }
    }
    drop(closed);
    let count = started.len();
    // They cannot panic.
    started.into_iter().for_each(|thread| drop(thread.join()));
    // A thread counts until the system has put it away, a moment after it has ended.
    let patience = (0..GONE_WITHIN.as_millis()).take_while(|_| threads() > before);
    patience.for_each(|_| thread::sleep(Duration::from_millis(1)));
    (count, refusal)
}

/// The threads of this process; none where the system does not tell.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
