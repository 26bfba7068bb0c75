//! The simulated side: turmoil's sockets, processes that can be stopped and killed, datagrams that go astray.
//!
//! turmoil simulates hosts, links and clocks. It does not know processes: here every task of a node belongs to a
//! [`Process`], which hands itself on to the tasks that it starts. Cuts, latency and time are the test's affair. Invariant:
//! a task of a process that does not run is not polled.

mod tcp;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
pub(super) use turmoil::net::lookup_host;

pub use self::tcp::{TcpListener, TcpStream, first_byte};

tokio::task_local! {
    /// The process whose task is being polled.
    static CURRENT: Process;
}

/// One simulated process. Clones share it.
#[derive(Clone)]
pub struct Process(Arc<Mutex<State>>);

struct State {
    run: Run,
    /// Of every task that is neither done nor dropped.
    wakers: BTreeMap<u64, Waker>,
    tasks_started: u64,
    datagrams: DatagramFaults,
    /// The hosts that reset whatever this process calls at their port.
    refusing: BTreeSet<IpAddr>,
    random: StdRng,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Running,
    Stopped,
    Killed,
}

/// What may happen to a datagram that a process sends; each a probability.
#[derive(Clone, Debug, Default)]
pub struct DatagramFaults {
    /// It vanishes.
    pub loss: f64,
    /// It arrives twice.
    pub duplication: f64,
    /// One of its bytes is changed.
    pub corruption: f64,
    /// Where nothing arrives at all.
    pub unreachable: BTreeSet<IpAddr>,
}

impl Process {
    /// A process that runs and has no task yet. `seed` decides which datagrams go astray.
    #[must_use]
    pub fn new(seed: u64) -> Process {
        Process(Arc::new(Mutex::new(State {
            run: Run::Running,
            wakers: BTreeMap::new(),
            tasks_started: 0,
            datagrams: DatagramFaults::default(),
            refusing: BTreeSet::new(),
            random: StdRng::seed_from_u64(seed),
        })))
    }

    /// `future` as a task of this process.
    pub fn run<F: Future>(&self, future: F) -> Task<F> {
        let mut state = self.0.lock();
        state.tasks_started += 1;
        let membership = Membership { process: self.clone(), id: state.tasks_started };
        Task { membership: Some(membership), future: Some(Box::pin(future)) }
    }

    /// Stops it, as SIGSTOP does: its clock goes on, its sockets fill.
    pub fn stop(&self) {
        self.turn(Run::Stopped);
    }

    /// Lets it go on after [`Process::stop`].
    pub fn resume(&self) {
        self.turn(Run::Running);
    }

    /// Kills it: its tasks vanish where they are, which closes its sockets. Takes effect when its host next runs.
    pub fn kill(&self) {
        self.turn(Run::Killed);
    }

    /// What happens to its datagrams from now on.
    pub fn set_datagram_faults(&self, faults: DatagramFaults) {
        self.0.lock().datagrams = faults;
    }

    /// From now on these hosts answer what this process sends to a port of theirs with a reset, as a firewall's rule may do in
    /// the name of a process that runs.
    pub fn set_refusing(&self, refusing: BTreeSet<IpAddr>) {
        // Waking all tasks for nothing would change the order in which they run, and with it what a seed does.
        if self.0.lock().refusing != refusing {
            self.change(|state| state.refusing = refusing);
        }
    }

    fn turn(&self, run: Run) {
        self.change(|state| {
            if state.run != Run::Killed {
                state.run = run;
            }
        });
    }

    /// Changes what its tasks may do, and has all of them look.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let wakers: Vec<Waker> = {
            let mut state = self.0.lock();
            change(&mut state);
            state.wakers.values().cloned().collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn is_refused_by(&self, host: IpAddr) -> bool {
        self.0.lock().refusing.contains(&host)
    }

    /// How the process is, and who is to be told when that changes.
    fn check(&self, task: u64, waker: &Waker) -> Run {
        let mut state = self.0.lock();
        let known = state.wakers.get(&task).is_some_and(|known| known.will_wake(waker));
        if !known {
            state.wakers.insert(task, waker.clone());
        }
        state.run
    }

    /// The datagrams that leave in place of this one.
    fn mishandle(&self, datagram: &[u8], to: IpAddr) -> Vec<Vec<u8>> {
        let mut state = self.0.lock();
        let DatagramFaults { loss, duplication, corruption, .. } = state.datagrams;
        if state.datagrams.unreachable.contains(&to) || state.random.random_bool(loss) {
            return Vec::new();
        }
        let mut sent = datagram.to_vec();
        if state.random.random_bool(corruption) && !sent.is_empty() {
            let at = state.random.random_range(0..sent.len());
            sent[at] ^= state.random.random_range(1..=255_u8);
        }
        let copies = if state.random.random_bool(duplication) { 2 } else { 1 };
        vec![sent; copies]
    }
}

/// A place in a process, given up when dropped.
struct Membership {
    process: Process,
    id: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.process.0.lock().wakers.remove(&self.id);
    }
}

/// A future that is polled only while its process runs; once that is killed it never ends.
pub struct Task<F> {
    membership: Option<Membership>,
    future: Option<Pin<Box<F>>>,
}

/// What a set of tasks is to be given instead of `future` itself: it belongs to the process that starts it.
pub fn task<F: Future>(future: F) -> Task<F> {
    match CURRENT.try_with(Process::clone) {
        Ok(process) => process.run(future),
        Err(_) => Task { membership: None, future: Some(Box::pin(future)) },
    }
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let Some(future) = &mut this.future else { return Poll::Pending };
        let Some(Membership { process, id }) = &this.membership else {
            return future.as_mut().poll(context);
        };
        match process.check(*id, context.waker()) {
            Run::Running => CURRENT.sync_scope(process.clone(), || future.as_mut().poll(context)),
            Run::Stopped => Poll::Pending,
            Run::Killed => {
                this.future = None;
                Poll::Pending
            }
        }
    }
}

/// A socket whose datagrams meet with the faults of its process.
pub struct UdpSocket(turmoil::net::UdpSocket);

impl UdpSocket {
    /// Binds a socket of the current host.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
        turmoil::net::UdpSocket::bind(address).await.map(UdpSocket)
    }

    /// Waits for a datagram.
    ///
    /// # Errors
    /// None, in a simulation.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// Takes a datagram that has arrived.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.try_recv_from(buffer)
    }

    /// Sends a datagram, which may be lost, doubled or damaged on the way.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn try_send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        let sent = CURRENT
            .try_with(|process| process.mishandle(datagram, to.ip()))
            .unwrap_or_else(|_| vec![datagram.to_vec()]);
        for one in sent {
            self.0.try_send_to(&one, to)?;
        }
        Ok(datagram.len())
    }
}
