//! A cluster of whole nodes on a simulated network, and the hands that break it.
//!
//! Each node is a process on a host of its own; all clients share one more host, which nothing cuts off from a node that
//! runs. Invariant: everything random comes from the seed.

mod access;
mod network;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use clap::Parser;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal::config::{Config, NodeArgs};
use shoal::net::{DatagramFaults, Process, WallClock};
use shoal::node::Stop;
use shoal::security::{SecretSource, Security, SecurityConfig};
use shoal::server;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

pub(crate) use self::access::{Access, TOKEN};
pub(crate) use self::network::Cuts;

const PORT: u16 = 8001;
/// The name of every simulated cluster.
pub(crate) const CLUSTER: &str = "simulated";
/// When every simulation begins, in unix milliseconds: 2026-01-01.
const EPOCH_MS: u64 = 1_767_225_600_000;
/// How finely time passes; also the least a message takes.
const TICK: Duration = Duration::from_millis(1);
const LATENCY: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(3)];
/// Segments or datagrams that may wait at a socket.
const SOCKET_CAPACITY: usize = 4096;

/// Simulated hosts, links and clocks, with a cluster on them.
pub(crate) struct World {
    sim: Sim<'static>,
    seed: u64,
    copies: u8,
    security: SecurityConfig,
    hosts: Vec<Host>,
    /// Those that nodes have moved away from.
    former_hosts: Vec<Host>,
    clients: IpAddr,
    memory: &'static str,
    drain: &'static str,
    cuts: Cuts,
    datagrams: DatagramFaults,
    /// Reasons why nodes gave up, which none should.
    complaints: Rc<RefCell<Vec<String>>>,
}

struct Host {
    address: SocketAddr,
    launches: mpsc::UnboundedSender<Launch>,
    launched: u64,
    skew_ms: Arc<AtomicI64>,
    process: Option<Running>,
    killed_at_ms: Option<u64>,
}

struct Running {
    process: Process,
    leave: CancellationToken,
}

/// The clients' wall clock, in unix milliseconds.
pub(crate) fn clock_ms() -> u64 {
    EPOCH_MS + turmoil::sim_elapsed().unwrap_or_default().as_millis() as u64
}

/// What a host needs to run a node.
struct Launch {
    process: Process,
    config: Config,
    security: Arc<Security>,
    wall: WallClock,
    seed: u64,
    leave: CancellationToken,
    complaints: Rc<RefCell<Vec<String>>>,
    /// The one before was killed at the same time.
    follows_at_once: bool,
}

impl World {
    /// Hosts without any node on them yet.
    pub(crate) fn new(seed: u64, nodes: usize, copies: u8) -> World {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(LATENCY[0])
            .max_message_latency(LATENCY[1])
            .tcp_capacity(SOCKET_CAPACITY)
            .udp_capacity(SOCKET_CAPACITY)
            .enable_random_order();
        let mut sim = builder.build();
        let hosts = (1..=nodes).map(|number| Host::new(&mut sim, &format!("node{number}"))).collect();
        let clients = sim.lookup("clients");
        World {
            sim,
            seed,
            copies,
            security: SecurityConfig::default(),
            hosts,
            former_hosts: Vec::new(),
            clients,
            memory: "16MiB",
            drain: "4s",
            cuts: Cuts::default(),
            datagrams: DatagramFaults::default(),
            complaints: Rc::default(),
        }
    }

    /// Makes a cluster of those that start from now on which only holders of a secret, and of the token, can talk to.
    pub(crate) fn close(&mut self, access: &Access) {
        self.security = SecurityConfig {
            secret: access.keyring.clone().map(SecretSource::Environment),
            admin_token: Some(access.token_file.clone()),
            ..SecurityConfig::default()
        };
    }

    /// Gives those that start from now on little time to leave.
    pub(crate) fn hurry(&mut self) {
        self.drain = "1s";
    }

    /// Gives those that start from now on little room.
    pub(crate) fn shrink(&mut self) {
        self.memory = "1MiB";
    }

    /// Adds the host of the clients, and what runs there.
    pub(crate) fn run_clients(&mut self, clients: impl Future<Output = turmoil::Result> + 'static) {
        self.sim.client(self.clients, clients);
    }

    /// Lets a millisecond pass. True when the clients have ended.
    pub(crate) fn step(&mut self) -> Result<bool, String> {
        self.let_through();
        let ended = self.sim.step().map_err(|error| error.to_string())?;
        self.complaints.borrow_mut().pop().map_or(Ok(ended), Err)
    }

    /// Milliseconds since the simulation began.
    pub(crate) fn now_ms(&self) -> u64 {
        self.sim.elapsed().as_millis() as u64
    }

    /// Where the nodes are, or would be.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| host.address).collect()
    }

    /// Starts a node with an empty memory; `seeds` are the hosts it joins by.
    pub(crate) fn start(&mut self, node: usize, seeds: usize) {
        let join: Vec<String> = self.addresses()[..seeds].iter().map(ToString::to_string).collect();
        let now_ms = self.now_ms();
        let host = &mut self.hosts[node];
        host.launched += 1;
        let mut random = StdRng::seed_from_u64(self.seed ^ ((node as u64 + 1) << 48) ^ (host.launched << 32));
        let (process, skew_ms) = (Process::new(random.random()), host.skew_ms.clone());
        let running = Running { process: process.clone(), leave: CancellationToken::new() };
        let launch = Launch {
            process,
            config: config(node, host.address, &join, (self.copies, self.memory, self.drain), &mut random),
            security: Arc::new(Security::load(self.security.clone()).expect("its files are right")),
            wall: WallClock::new(move || clock_ms().saturating_add_signed(skew_ms.load(Ordering::Relaxed))),
            seed: random.random(),
            leave: running.leave.clone(),
            complaints: self.complaints.clone(),
            follows_at_once: host.killed_at_ms == Some(now_ms),
        };
        host.process = Some(running);
        // Fails when the host is gone, with the whole simulation.
        let _ = host.launches.send(launch);
        self.tell_processes();
    }

    /// Kills a node, if there is one.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(running) = self.hosts[node].process.take() {
            running.process.kill();
            self.hosts[node].killed_at_ms = Some(self.now_ms());
        }
    }

    /// Gives a node that does not run another host, with another address.
    pub(crate) fn relocate(&mut self, node: usize) {
        let name = format!("node{}.{}", node + 1, self.former_hosts.len() + 1);
        let host = Host::new(&mut self.sim, &name);
        let former = std::mem::replace(&mut self.hosts[node], host);
        self.hosts[node].skew_ms.store(former.skew_ms.load(Ordering::Relaxed), Ordering::Relaxed);
        self.hosts[node].launched = former.launched;
        self.former_hosts.push(former);
        // None of the new host's links is cut yet.
        self.cuts.forget(node);
    }

    /// Stops a node like SIGSTOP, or lets it go on.
    pub(crate) fn pause(&mut self, node: usize, paused: bool) {
        match &self.hosts[node].process {
            Some(running) if paused => running.process.stop(),
            Some(running) => running.process.resume(),
            None => {}
        }
    }

    /// Tells a node to leave the cluster.
    pub(crate) fn leave(&mut self, node: usize) {
        if let Some(running) = &self.hosts[node].process {
            running.leave.cancel();
        }
    }

    /// Sets how far a node's clock is off.
    pub(crate) fn set_skew(&mut self, node: usize, ms: i64) {
        self.hosts[node].skew_ms.store(ms, Ordering::Relaxed);
    }

    /// Sets what happens to all datagrams.
    pub(crate) fn set_datagram_faults(&mut self, faults: DatagramFaults) {
        self.datagrams = faults;
        self.tell_processes();
    }
}

impl Host {
    fn new(sim: &mut Sim<'static>, name: &str) -> Host {
        let address = SocketAddr::new(sim.lookup(name), PORT);
        let (launches, inbox) = mpsc::unbounded_channel();
        // The simulation could start the host again; this one never has it crash.
        let inbox = RefCell::new(Some(inbox));
        sim.host(name, move || supervise(inbox.borrow_mut().take()));
        Host { address, launches, launched: 0, skew_ms: Arc::default(), process: None, killed_at_ms: None }
    }
}

/// The host's software: runs one node after another.
async fn supervise(launches: Option<mpsc::UnboundedReceiver<Launch>>) -> turmoil::Result {
    let mut launches = launches.ok_or("a host runs once")?;
    let mut former: Option<JoinHandle<_>> = None;
    while let Some(launch) = launches.recv().await {
        // What was killed in this very moment has its port until its tasks have run once more.
        if launch.follows_at_once && former.is_some_and(|former| !former.is_finished()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let process = launch.process.clone();
        former = Some(tokio::task::spawn_local(process.run(run(launch))));
    }
    Ok(())
}

async fn run(launch: Launch) {
    let Launch { config, security, wall, seed, leave, complaints, .. } = launch;
    let complain = |reason: String| complaints.borrow_mut().push(reason);
    let bound = match server::bind(config.listen).await {
        Ok(bound) => bound,
        Err(error) => return complain(error.to_string()),
    };
    let server = server::start(config, security, bound, wall, &mut StdRng::seed_from_u64(seed));
    tokio::select! {
        biased;
        () = leave.cancelled() => {}
        stop = server.stop_wanted() => {
            if let Stop::Fatal(reason) = stop {
                return complain(reason);
            }
        }
    }
    server.shutdown().await;
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    node: NodeArgs,
}

fn config(
    node: usize,
    address: SocketAddr,
    join: &[String],
    (copies, memory, drain): (u8, &str, &str),
    random: &mut StdRng,
) -> Config {
    let (listen, advertise) = (format!("0.0.0.0:{PORT}"), address.to_string());
    let (id, copies) = (format!("node{}", node + 1), copies.to_string());
    let mut flags = vec!["node", "--insecure", "--listen", &listen, "--advertise", &advertise, "--id", &id];
    flags.extend(["--cluster", CLUSTER, "--copies", &copies, "--drain-timeout", drain]);
    flags.extend(["--max-memory", memory, "--max-value-size", "64KiB"]);
    let join = join.join(",");
    if !join.is_empty() {
        flags.extend(["--join", &join]);
    }
    let args = Flags::parse_from(flags).node;
    let mut config = Config::try_from(&args).expect("the flags are right");
    // Those of the flags come from the system.
    config.node.seed = random.random();
    config.node.store.hash_seed = random.random();
    config.gossip.seed = random.random();
    config
}

#[cfg(test)]
mod tests;
