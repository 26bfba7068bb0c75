//! The outside world: the one place that names the network, the wall clock and the start of a task.
//!
//! Everything else takes its sockets from here, its time from a [`WallClock`] that it was handed, and starts its tasks
//! through [`spawn`] or [`task`], so that a whole node runs unchanged on a simulated network and clock, and can be stopped
//! there like a process (feature `sim`).

#[cfg(feature = "sim")]
mod simulated;

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use tokio::time::timeout;

#[cfg(not(feature = "sim"))]
use tokio::net::lookup_host;
#[cfg(not(feature = "sim"))]
pub use tokio::net::{TcpListener, TcpStream, UdpSocket};

#[cfg(feature = "sim")]
use self::simulated::lookup_host;
#[cfg(feature = "sim")]
pub use self::simulated::{
    DatagramFaults, Process, Task, TcpListener, TcpStream, UdpSocket, first_byte, task,
};

/// How long a name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

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
/// panics, the process ends, and says so if it can.
pub async fn vital<F: Future>(what: &'static str, future: F) -> F::Output {
    let ended = AssertUnwindSafe(future).catch_unwind().await;
    ended.unwrap_or_else(|panic| end(&format!("critical task {what:?} panicked; exiting"), Some(panic)))
}

/// A [`vital`] task that never ends by itself, only with the node: the process ends if it does.
pub async fn endless(what: &'static str, future: impl Future<Output = ()>) {
    vital(what, future).await;
    end(&format!("critical task {what:?} has ended; exiting"), None)
}

#[cfg(not(feature = "sim"))]
fn end(reason: &str, _: Option<Box<dyn Any + Send>>) -> ! {
    // The process ends whatever becomes of its last words.
    let _ = std::panic::catch_unwind(|| crate::telemetry::last_words(reason));
    std::process::exit(PANICKED)
}

/// Here many nodes share the process, which notices panics itself.
#[cfg(feature = "sim")]
fn end(reason: &str, panic: Option<Box<dyn Any + Send>>) -> ! {
    match panic {
        Some(panic) => std::panic::resume_unwind(panic),
        None => panic!("{reason}"),
    }
}

/// The first byte that arrives, which stays to be read; none if the other side closes instead.
///
/// # Errors
/// When the connection breaks.
#[cfg(not(feature = "sim"))]
pub async fn first_byte(stream: &mut TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    Ok((stream.peek(&mut first).await? == 1).then_some(first[0]))
}

/// The addresses of `host:port`. A resolver that is silent, or a thread that the system does not give, would otherwise keep the
/// caller for ever.
///
/// # Errors
/// When the name stands for no address, or nothing says so within five seconds.
pub async fn resolve(name: &str) -> io::Result<Vec<SocketAddr>> {
    let looked_up = timeout(RESOLVE_TIMEOUT, lookup_host(name)).await;
    let late = || {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", RESOLVE_TIMEOUT.as_secs()))
    };
    Ok(looked_up.map_err(|_| late())??.collect())
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

/// Says what time it is, in unix milliseconds, by a clock that can be set: for versions, and for what people read. How long
/// something lasts is counted by [`NodeClock::uptime`].
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

/// The two clocks of a node.
#[derive(Clone, Debug)]
pub struct NodeClock {
    wall: WallClock,
    started: Moment,
}

/// A moment on a clock that only runs forward. Time in which the machine is suspended counts where the system has such a clock.
#[cfg(all(target_os = "linux", not(any(test, feature = "sim"))))]
#[derive(Clone, Copy, Debug)]
struct Moment(Duration);

#[cfg(all(target_os = "linux", not(any(test, feature = "sim"))))]
impl Moment {
    fn now() -> Moment {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Neither is ever negative.
        Moment(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
    }

    fn elapsed(self) -> Duration {
        Moment::now().0.saturating_sub(self.0)
    }
}

/// Tests pause this one, and the simulation has its own.
#[cfg(any(not(target_os = "linux"), test, feature = "sim"))]
#[derive(Clone, Copy, Debug)]
struct Moment(tokio::time::Instant);

#[cfg(any(not(target_os = "linux"), test, feature = "sim"))]
impl Moment {
    fn now() -> Moment {
        Moment(tokio::time::Instant::now())
    }

    fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

impl NodeClock {
    /// The clocks of a node that starts now.
    #[must_use]
    pub fn start(wall: WallClock) -> NodeClock {
        NodeClock { wall, started: Moment::now() }
    }

    /// Unix milliseconds, by a clock that can be set.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        self.wall.now_ms()
    }

    /// How long the node has been running, and its machine has been suspended meanwhile. Nothing sets it back, nor forward.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The same in milliseconds.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.uptime().as_millis() as u64
    }
}

#[cfg(all(test, not(feature = "sim")))]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    const CHILD: &str = "SHOAL_TEST_ENDS";

    async fn panics() {
        panic!("out of order")
    }

    /// A node's process that is nothing but its vital task.
    fn run_child(how: &str) {
        let logs = crate::telemetry::Logs::start().expect("a thread");
        let id = crate::model::NodeId::parse("n1").expect("a name");
        logs.begin(Some(crate::telemetry::LogFormat::Json), "off", &id).expect("a filter");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            match how {
                "panics" => drop(spawn_vital("gossip", panics())),
                "panics, endless" => drop(spawn(endless("gossip", panics()))),
                _ => drop(spawn(endless("gossip", async {}))),
            }
            std::future::pending::<()>().await;
        });
    }

    /// Runs the test of this name in a process of its own, which is to end.
    fn child(test: &str, how: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.args(["--exact", &format!("net::tests::{test}"), "--nocapture"]).env(CHILD, how);
        command
    }

    #[test]
    fn a_vital_task_that_ends_takes_the_process_with_it_and_says_so_in_the_log() {
        if let Ok(how) = std::env::var(CHILD) {
            return run_child(&how);
        }
        let name = "a_vital_task_that_ends_takes_the_process_with_it_and_says_so_in_the_log";
        for (how, said) in [
            ("panics", "panicked: out of order"),
            ("panics, endless", "panicked; exiting"),
            ("returns", "has ended; exiting"),
        ] {
            let child = child(name, how).output().unwrap();
            assert_eq!(child.status.code(), Some(PANICKED), "{how}");
            let log = String::from_utf8(child.stderr).unwrap();
            let lines: Vec<serde_json::Value> =
                log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
            assert!(lines.iter().any(|line| line["message"].as_str().unwrap().contains(said)), "{log}");
        }
    }

    #[test]
    fn a_vital_task_ends_the_process_also_when_nothing_can_be_said() {
        if let Ok(how) = std::env::var(CHILD) {
            return run_child(&how);
        }
        let name = "a_vital_task_ends_the_process_also_when_nothing_can_be_said";
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        for how in ["panics", "returns"] {
            let (reader, writer) = io::pipe().unwrap();
            drop(reader);
            let (stalled, mut stuck) = io::pipe().unwrap();
            let other = stuck.try_clone().unwrap();
            std::thread::spawn(move || while stuck.write_all(&[b'\n'; 4096]).is_ok() {});
            for log in [Stdio::from(full()), writer.into(), other.into()] {
                let mut child = child(name, how).stdout(Stdio::null()).stderr(log).spawn().unwrap();
                let status = (0..500).find_map(|_| {
                    std::thread::sleep(Duration::from_millis(20));
                    child.try_wait().unwrap()
                });
                // Fails when it has ended, as it should.
                let _ = child.kill();
                assert_eq!(status.and_then(|status| status.code()), Some(PANICKED), "{how}");
            }
            drop(stalled);
        }
    }
}
