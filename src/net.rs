//! The outside world: the one place that names the network, the wall clock and the start of a task.
//!
//! Everything else takes its sockets from here, its time from a [`WallClock`] that it was handed, and starts its tasks
//! through [`spawn`] or [`task`], so that a whole node runs unchanged on a simulated network and clock, and can be stopped
//! there like a process (feature `sim`).

#[cfg(feature = "sim")]
mod simulated;

use std::future::Future;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(not(feature = "sim"))]
pub use tokio::net::{TcpListener, TcpStream, UdpSocket, lookup_host};

#[cfg(feature = "sim")]
pub use self::simulated::{
    DatagramFaults, Process, Task, TcpListener, TcpStream, UdpSocket, lookup_host, task,
};

/// Starts a task of this node.
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task(future))
}

/// What a set of tasks is to be given instead of `future` itself.
#[cfg(not(feature = "sim"))]
pub fn task<F: Future>(future: F) -> F {
    future
}

/// Says what time it is, in unix milliseconds.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl WallClock {
    /// A clock that asks `now_ms`.
    pub fn new(now_ms: impl Fn() -> u64 + Send + Sync + 'static) -> WallClock {
        WallClock(Arc::new(now_ms))
    }

    /// The machine's clock.
    #[must_use]
    pub fn system() -> WallClock {
        WallClock::new(|| {
            // A clock before 1970 reads as 0: versions then come from the logical part alone.
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
        })
    }

    /// Unix milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

impl std::fmt::Debug for WallClock {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "WallClock({})", self.now_ms())
    }
}
