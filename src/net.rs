//! The outside world: the one place that names the network, the wall clock and the start of a task.
//!
//! Everything else takes its sockets from here, its time from a [`WallClock`] that it was handed, and starts its tasks
//! through [`spawn`] or [`task`], so that a whole node runs unchanged on a simulated network and clock, and can be stopped
//! there like a process (feature `sim`).

#[cfg(feature = "sim")]
mod simulated;

use std::any::Any;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;

#[cfg(not(feature = "sim"))]
pub use tokio::net::{TcpListener, TcpStream, UdpSocket, lookup_host};

#[cfg(feature = "sim")]
pub use self::simulated::{
    DatagramFaults, Process, Task, TcpListener, TcpStream, UdpSocket, first_byte, lookup_host, task,
};

/// Exit code of a process that a panic ended; also Rust's own.
#[cfg(not(feature = "sim"))]
const PANICKED: i32 = 101;

/// Starts a task of this node.
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task(future))
}

/// Starts a [`vital`] task.
pub fn spawn_vital<F>(what: &'static str, future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    spawn(vital(what, future))
}

/// A task without which this node would be half alive: members would take it for well, and it would not do its part. If it
/// panics, the process says so and ends.
pub async fn vital<F: Future>(what: &'static str, future: F) -> F::Output {
    AssertUnwindSafe(future).catch_unwind().await.unwrap_or_else(|panic| {
        tracing::error!(task = what, "a task that this node cannot be without has panicked: the node stops");
        end(panic)
    })
}

#[cfg(not(feature = "sim"))]
fn end(_: Box<dyn Any + Send>) -> ! {
    std::process::exit(PANICKED)
}

/// Here many nodes share the process, which notices panics itself.
#[cfg(feature = "sim")]
fn end(panic: Box<dyn Any + Send>) -> ! {
    std::panic::resume_unwind(panic)
}

/// The first byte that arrives, which stays to be read; none if the other side closes instead.
///
/// # Errors
/// When the connection breaks.
#[cfg(not(feature = "sim"))]
pub async fn first_byte(stream: &mut TcpStream) -> std::io::Result<Option<u8>> {
    let mut first = [0];
    Ok((stream.peek(&mut first).await? == 1).then_some(first[0]))
}

/// Addresses that count as one where somebody is to have no more than a share: of IPv6 a whole /64, which is what one customer
/// has.
#[must_use]
pub fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        other => other,
    }
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

#[cfg(all(test, not(feature = "sim")))]
mod tests {
    use std::process::Command;

    use super::*;

    const CHILD: &str = "SHOAL_TEST_PANICS";
    const NAME: &str = "net::tests::a_panic_in_a_vital_task_ends_the_process";

    /// Runs this very test in a process of its own, which is to end.
    #[test]
    fn a_panic_in_a_vital_task_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                spawn_vital("gossip", async { panic!("out of order") });
                std::future::pending::<()>().await;
            });
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(PANICKED));
        let said = String::from_utf8_lossy(&child.stderr).into_owned();
        assert!(said.contains("out of order"), "{said}");
    }
}
