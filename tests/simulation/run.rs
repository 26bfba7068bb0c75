//! One simulation from its seed to its verdict: form a cluster, load it while it breaks, heal it, look at what is left.

mod aftermath;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal::net::DatagramFaults;
use tokio::time::{Duration, sleep};

use crate::client::Client;
use crate::operation::{Action, Outcome};
use crate::record::{History, Violation};
use crate::schedule::{Event, Fault, Schedule, Traffic};
use crate::world::{Access, Cuts, World};

/// What the phases take, in simulated milliseconds.
pub(crate) const FORM_MS: u64 = 4_000;
const LOAD_MS: u64 = 22_000;
const QUIET_MS: u64 = 20_000;
/// What one simulation may take in real time; one takes about a second.
const REAL_TIME_MAX: Duration = Duration::from_secs(60);
const CLIENTS: usize = 6;
/// Half of all operations are on the first few keys, so that they meet; the others are left alone for seconds, so that what
/// a fault did to them is seen before it is written over.
const KEYS: usize = 40;
/// The same where there is room for few of them.
const KEYS_SMALL: usize = 120;
/// The same where what happens in a moment shows only seconds later.
const KEYS_HASTY: usize = 400;
const HOT_KEYS: usize = 4;
/// Pauses of a client between two operations.
const THINK_MS: std::ops::Range<u64> = 5..60;
/// The same where a moment is aimed at.
const HASTY_MS: std::ops::Range<u64> = 3..25;
/// Share of the PUTs that carry a condition.
const CONDITIONAL: f64 = 0.3;
/// Share of the operations that are on the key that is aimed at, if there is one, and of its PUTs that carry a condition.
const AIMED: f64 = 0.6;
const CONDITIONAL_AIMED: f64 = 0.8;
/// Share of the others that have a time to live.
const LENT: f64 = 0.2;

/// What came of one simulation.
pub(crate) struct Verdict {
    pub(crate) schedule: Schedule,
    pub(crate) history: History,
    /// In order of importance; empty if all is well.
    pub(crate) failures: Vec<String>,
}

/// Runs one simulation.
pub(crate) fn run(seed: u64) -> Verdict {
    run_schedule(seed, Schedule::generate(seed, LOAD_MS))
}

fn run_schedule(seed: u64, schedule: Schedule) -> Verdict {
    let mut world = World::new(seed, schedule.nodes_ever(), schedule.copies);
    if schedule.is_hasty {
        world.hurry();
    }
    if schedule.is_small {
        world.shrink();
    }
    // Every other one; what is sealed at another time is refused, so that clocks may not be far apart then.
    let mut access = Access::new(seed, seed % 2 == 1 && !schedule.has_skew());
    access.pads = schedule.is_small;
    world.close(&access);
    let load = Rc::new(Load {
        nodes: RefCell::new(world.addresses()),
        access,
        schedule: schedule.clone(),
        history: RefCell::default(),
        failures: RefCell::default(),
    });
    world.run_clients(load.clone().everything(seed));
    let mut schedule = schedule;
    let ended = drive(&mut world, &load, &mut schedule);
    drop(world);
    let history = load.history.take();
    let mut failures: Vec<String> = ended.err().into_iter().collect();
    for Violation { key, what } in history.check(&schedule) {
        failures.push(format!("{what}\nAll of k{key}:\n{}", history.of_key(key)));
    }
    failures.extend(load.failures.take());
    Verdict { schedule, history, failures }
}

/// Lets time pass and faults happen until the clients have ended.
fn drive(world: &mut World, load: &Load, schedule: &mut Schedule) -> Result<(), String> {
    for node in 0..schedule.nodes {
        world.start(node, schedule.nodes);
    }
    let (mut felt, started) = (vec![false; schedule.events.len()], Instant::now());
    loop {
        if started.elapsed() > REAL_TIME_MAX {
            return Err(format!("busy without end: {} s were simulated so far", world.now_ms() / 1000));
        }
        let now_ms = world.now_ms().checked_sub(FORM_MS);
        if let (Some(now_ms), Some(key)) = (now_ms, schedule.aim) {
            schedule.wait_for_aim(now_ms, |nodes| load.history.borrow().is_forwarded(key, nodes, now_ms));
        }
        for (number, event) in schedule.events.iter().enumerate() {
            let is_felt = now_ms.is_some_and(|now| (event.start_ms..event.end_ms).contains(&now));
            if is_felt != felt[number] {
                felt[number] = is_felt;
                strike(world, schedule, event, is_felt);
                load.nodes.replace(world.addresses());
                let active = schedule.events.iter().zip(&felt).filter(|(_, felt)| **felt);
                set_network(world, schedule, active.map(|(event, _)| &event.fault));
            }
        }
        if world.step()? {
            return Ok(());
        }
    }
}

/// Begins or ends what a fault does to one node.
fn strike(world: &mut World, schedule: &Schedule, event: &Event, begins: bool) {
    match &event.fault {
        Fault::Crash { node } | Fault::Move { node } | Fault::PowerCut { node } if begins => {
            world.kill(*node);
        }
        Fault::Crash { node } | Fault::PowerCut { node } => world.start(*node, schedule.nodes),
        Fault::Move { node } => {
            world.relocate(*node);
            world.start(*node, schedule.nodes);
        }
        Fault::Pause { node } => world.pause(*node, begins),
        Fault::Skew { node, ms } => world.set_skew(*node, if begins { *ms } else { 0 }),
        Fault::Join { node } if begins => world.start(*node, schedule.nodes),
        Fault::Leave { node } if begins => world.leave(*node),
        Fault::Leave { node } => {
            world.kill(*node);
            world.start(*node, schedule.nodes);
        }
        _ => {}
    }
}

/// Makes the network what all faults together make of it.
fn set_network<'a>(world: &mut World, schedule: &Schedule, active: impl Iterator<Item = &'a Fault>) {
    let (mut cuts, mut datagrams) = (Cuts::default(), DatagramFaults::default());
    for fault in active {
        cuts.pairs.extend(fault.cuts(schedule.nodes_ever()));
        match (fault, fault.filters(schedule.nodes_ever())) {
            (Fault::PowerCut { node }, _) => drop(cuts.silent.insert(*node)),
            (Fault::Unreachable { node }, _) => drop(cuts.unreachable.insert(*node)),
            (Fault::Refuse { node }, _) => drop(cuts.refusing.insert(*node)),
            (_, Some((Traffic::Tcp, ways))) => cuts.tcp.extend(ways),
            (_, Some((Traffic::Udp, ways))) => cuts.udp.extend(ways),
            (Fault::Datagrams { loss, duplication, corruption }, _) => {
                datagrams.loss = datagrams.loss.max(*loss);
                datagrams.duplication = datagrams.duplication.max(*duplication);
                datagrams.corruption = datagrams.corruption.max(*corruption);
            }
            _ => {}
        }
    }
    world.set_cuts(cuts);
    world.set_datagram_faults(datagrams);
}

/// The clients, and what they find.
struct Load {
    /// Where the nodes are now.
    nodes: RefCell<Vec<SocketAddr>>,
    access: Access,
    schedule: Schedule,
    history: RefCell<History>,
    failures: RefCell<Vec<String>>,
}

/// Milliseconds since the load began, on the clients' host.
fn now_ms() -> u64 {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default().as_millis() as u64;
    elapsed.saturating_sub(FORM_MS)
}

impl Load {
    async fn everything(self: Rc<Load>, seed: u64) -> turmoil::Result {
        sleep(Duration::from_millis(FORM_MS)).await;
        if let Err(reason) = self.check_agreement(self.schedule.nodes).await {
            self.fail(format!("the cluster did not form: {reason}"));
            return Ok(());
        }
        let clients = (0..CLIENTS).map(|client| {
            let random = StdRng::seed_from_u64(seed ^ ((client as u64 + 1) << 40));
            tokio::task::spawn_local(self.clone().client(client, random))
        });
        for client in clients.collect::<Vec<_>>() {
            client.await?;
        }
        sleep(Duration::from_millis((LOAD_MS + QUIET_MS).saturating_sub(now_ms()))).await;
        if let Err(reason) = self.check_agreement(self.schedule.nodes_ever()).await {
            self.fail(format!("no agreement after the quiet: {reason}"));
        }
        let mut client = Client::new(self.access.clone());
        for key in 0..self.keys() {
            if let Err(reason) = self.check_copies(&mut client, key).await {
                let history = self.history.borrow().of_key(key);
                self.fail(format!("{reason}\nAll of k{key}:\n{history}"));
            }
        }
        Ok(())
    }

    fn keys(&self) -> usize {
        match &self.schedule {
            Schedule { is_small: true, .. } => KEYS_SMALL,
            Schedule { is_hasty: true, .. } => KEYS_HASTY,
            _ => KEYS,
        }
    }

    fn fail(&self, what: String) {
        self.failures.borrow_mut().push(what);
    }

    /// Reads and writes until the load ends.
    async fn client(self: Rc<Load>, number: usize, mut random: StdRng) {
        let mut client = Client::new(self.access.clone());
        let mut versions = BTreeMap::new();
        for sequence in 0.. {
            if now_ms() >= LOAD_MS {
                return;
            }
            let node = random.random_range(0..self.schedule.nodes_ever());
            let keys = if random.random() { HOT_KEYS } else { self.keys() };
            let key = random.random_range(0..keys);
            let key = match self.schedule.aim {
                Some(aim) if random.random_bool(AIMED) => aim,
                _ => key,
            };
            let conditional = if self.schedule.aim == Some(key) { CONDITIONAL_AIMED } else { CONDITIONAL };
            let value = format!("{number}-{sequence}");
            let action = match random.random_range(0..100) {
                0..55 => Action::Get,
                55..82 if random.random_bool(conditional) => match versions.get(&key) {
                    Some(version) if random.random() => Action::Replace(value, String::clone(version)),
                    _ => Action::Create(value),
                },
                55..82 if random.random_bool(LENT) => Action::Lend(value, random.random_range(1..4)),
                55..82 => Action::Put(value),
                _ => Action::Delete,
            };
            // A node that has not been started yet is nobody's.
            if self.is_started(node) {
                let outcome = self.perform(&mut client, number, node, key, action).await;
                if let Outcome::Found { version, .. } | Outcome::Stored { version } = outcome {
                    versions.insert(key, version);
                }
            }
            let think_ms = if self.schedule.aims_at_writes() { HASTY_MS } else { THINK_MS };
            sleep(Duration::from_millis(random.random_range(think_ms))).await;
        }
    }

    fn address(&self, node: usize) -> SocketAddr {
        self.nodes.borrow()[node]
    }

    fn is_started(&self, node: usize) -> bool {
        let later = |event: &Event| event.fault == Fault::Join { node } && now_ms() < event.start_ms;
        !self.schedule.events.iter().any(later)
    }

    async fn perform(
        &self,
        client: &mut Client,
        number: usize,
        node: usize,
        key: usize,
        action: Action,
    ) -> Outcome {
        let operation = self.history.borrow_mut().begin(now_ms(), number, node, key, action.clone());
        let outcome = client.perform(self.address(node), key, &action).await;
        self.history.borrow_mut().end(operation, now_ms(), outcome.clone());
        outcome
    }
}
