//! What clients notice when nodes die, stop, leave, restart or join: real processes, under a load whose answers are checked.
//!
//! `cargo bench --bench failure` runs all scenarios, `cargo bench --bench failure -- kill split` only these. Ends with an error
//! if a promise was broken. `split` needs root, for network namespaces.

#[path = "../common/mod.rs"]
mod common;

mod cluster;
mod cost;
mod http;
mod load;
mod split;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cluster::Cluster;
use common::{Result, serves, wait_until};
use load::{Keys, Load};

const KEYS: usize = 100_000;
const PER_SECOND: f64 = 5000.0;
/// Before and after a fault.
const CALM: Duration = Duration::from_secs(4);
/// In which latency is reported apart.
const SHOCK: Duration = Duration::from_secs(2);
/// The promises.
const REPLICATED_WITHIN: Duration = Duration::from_secs(10);
const P99_MS_MAX: f64 = 50.0;
const DAWDLED_P99_MS_MAX: f64 = 20.0;

type Scenario = (&'static str, fn() -> Result<Vec<String>>);

const SCENARIOS: [Scenario; 10] = [
    ("kill", || one_fault(Blow::Kill)),
    ("term", || one_fault(Blow::Term)),
    ("stop", || one_fault(Blow::Stop)),
    ("rolling", rolling),
    ("two", two),
    ("join", join),
    ("split", split::run),
    ("slowloris", slowloris),
    ("sync-cost", cost::sync),
    ("copies-cost", cost::copies),
];

fn main() -> Result<()> {
    let chosen: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut broken = 0;
    for (name, run) in SCENARIOS {
        if !chosen.is_empty() && !chosen.iter().any(|chosen| chosen == name) {
            continue;
        }
        println!("{name}");
        for promise in run()? {
            println!("  BROKEN: {promise}");
            broken += 1;
        }
    }
    if broken > 0 { Err(format!("{broken} promises were broken").into()) } else { Ok(()) }
}

/// Collects what was promised and not kept.
#[derive(Default)]
struct Promises(Vec<String>);

impl Promises {
    fn keep(&mut self, kept: bool, promise: impl Into<String>) {
        if !kept {
            self.0.push(promise.into());
        }
    }

    /// Reports a load around a fault at `fault`.
    fn keep_under_load(&mut self, seen: &load::Seen, faults: &[Duration]) {
        let is_shock = |due: Duration| {
            faults.iter().any(|fault| (*fault..*fault + SHOCK).contains(&(due + Duration::from_millis(100))))
        };
        let (calm, shock) = (seen.latencies(|due| !is_shock(due)), seen.latencies(is_shock));
        println!("  {} requests, {} failed", seen.answers.len(), seen.failures.len());
        println!(
            "  latency p50 {:.1} ms, p99 {:.1} ms; within 2 s of a fault p99 {:.1} ms, slowest {:.0} ms",
            calm.median(),
            calm.quantile(0.99),
            shock.quantile(0.99),
            shock.max(),
        );
        seen.failures.iter().take(5).for_each(|failure| println!("  {failure}"));
        self.keep(seen.failures.is_empty(), "no request fails");
        self.keep(calm.quantile(0.99) <= P99_MS_MAX, format!("p99 is at most {P99_MS_MAX} ms"));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Blow {
    Kill,
    Term,
    Stop,
}

/// One of five nodes is killed, told to stop, or stopped for ten seconds.
fn one_fault(blow: Blow) -> Result<Vec<String>> {
    let (mut cluster, keys) = (Cluster::start(5, 2)?, Keys::new(KEYS));
    let mut promises = Promises::default();
    cluster.fill(&keys)?;
    let victim = 2;
    let load = Load::start(&keys, cluster.addresses_without(victim), PER_SECOND, false)?;
    sleep(CALM);
    let (mut faults, struck) = (vec![load.now()], Instant::now());
    if blow == Blow::Stop {
        cluster.signal(victim, "STOP")?;
        sleep(Duration::from_secs(10));
        faults.push(load.now());
        cluster.signal(victim, "CONT")?;
        // At once, from the node that was stopped: nothing that it missed.
        let reads = Load::start(&keys, vec![cluster.nodes[victim].address], 500.0, true)?;
        sleep(CALM);
        let reads = reads.stop()?;
        println!("  {} reads at the resumed node, {} wrong", reads.answers.len(), reads.failures.len());
        reads.failures.iter().take(5).for_each(|failure| println!("  {failure}"));
        promises.keep(reads.failures.is_empty(), "the resumed node answers nothing old");
        cluster.wait_until_replicated()?;
    } else {
        cluster.signal(victim, if blow == Blow::Kill { "KILL" } else { "TERM" })?;
        let mut node = cluster.nodes.remove(victim);
        if blow == Blow::Term {
            wait_until("the node has stopped", || matches!(node.process.0.try_wait(), Ok(Some(_))))?;
            println!("  exited after {:.2} s", struck.elapsed().as_secs_f64());
        }
        cluster.wait_until_replicated()?;
        let took = struck.elapsed();
        println!("  two copies of everything again after {:.2} s", took.as_secs_f64());
        promises.keep(took <= REPLICATED_WITHIN, "two copies again within 10 s");
        sleep(CALM);
    }
    promises.keep_under_load(&load.stop()?, &faults);
    check_keys(&cluster, &keys, &mut promises)?;
    Ok(promises.0)
}

/// All are there, in the newest version, in two copies.
fn check_keys(cluster: &Cluster, keys: &Keys, promises: &mut Promises) -> Result<()> {
    let lost = cluster.lost(0, keys)?.len();
    let short = cluster.short_of_copies(keys, 50, 2)?;
    println!("  {lost} of {} keys lost; {short} of {} without two copies", keys.count(), keys.count() / 50);
    promises.keep(lost == 0, "no key is lost");
    promises.keep(short == 0, "every key has two copies");
    Ok(())
}

/// All five nodes are restarted, empty, one after the other.
fn rolling() -> Result<Vec<String>> {
    let (mut cluster, keys) = (Cluster::start(5, 2)?, Keys::new(KEYS));
    let mut promises = Promises::default();
    cluster.fill(&keys)?;
    let load = Load::start(&keys, cluster.addresses(), PER_SECOND, false)?;
    sleep(CALM);
    let mut faults = Vec::new();
    let started = Instant::now();
    for _ in 0..cluster.nodes.len() {
        load.aim(cluster.addresses_without(0));
        // What was sent to it is answered.
        sleep(Duration::from_millis(200));
        faults.push(load.now());
        cluster.signal(0, "TERM")?;
        let mut node = cluster.nodes.remove(0);
        wait_until("the node has stopped", || matches!(node.process.0.try_wait(), Ok(Some(_))))?;
        faults.push(load.now());
        cluster.add(&node.address.to_string(), Some(&node.id))?;
        cluster.wait_until_replicated()?;
        load.aim(cluster.addresses());
    }
    println!("  five restarts took {:.1} s", started.elapsed().as_secs_f64());
    sleep(CALM);
    promises.keep_under_load(&load.stop()?, &faults);
    check_keys(&cluster, &keys, &mut promises)?;
    Ok(promises.0)
}

/// Two nodes die at the same instant: what had its two copies there is lost, and nothing else.
fn two() -> Result<Vec<String>> {
    let (mut cluster, keys) = (Cluster::start(5, 2)?, Keys::new(KEYS / 10));
    let mut promises = Promises::default();
    cluster.fill(&keys)?;
    let victims: BTreeSet<String> = [1, 3].map(|node: usize| cluster.nodes[node].id.clone()).into();
    let mut doomed = Vec::new();
    for key in 0..keys.count() {
        if cluster.holders(0, key)?.into_iter().collect::<BTreeSet<_>>() == victims {
            doomed.push(key);
        }
    }
    for node in [3, 1] {
        cluster.signal(node, "KILL")?;
    }
    cluster.nodes.retain(|node| !victims.contains(&node.id));
    cluster.wait_until_replicated()?;
    let lost = cluster.lost(0, &keys)?;
    println!("  {} of {} keys lost; {} had both copies at the two", lost.len(), keys.count(), doomed.len());
    promises.keep(lost == doomed, "exactly the keys are lost that had both copies there");
    Ok(promises.0)
}

/// A sixth node joins.
fn join() -> Result<Vec<String>> {
    const STEP: usize = 25;
    let (mut cluster, keys) = (Cluster::start(5, 2)?, Keys::new(KEYS));
    let mut promises = Promises::default();
    cluster.fill(&keys)?;
    let owners = |cluster: &Cluster| -> Result<Vec<BTreeSet<String>>> {
        let keys = (0..keys.count()).step_by(STEP);
        keys.map(|key| Ok(cluster.holders(0, key)?.into_iter().collect())).collect()
    };
    let before = owners(&cluster)?;
    let load = Load::start(&keys, cluster.addresses(), PER_SECOND, false)?;
    sleep(CALM);
    let (fault, started) = (load.now(), Instant::now());
    let newcomer = cluster.add("127.0.0.1:0", None)?;
    // A load balancer would wait for its health, too.
    wait_until("the newcomer serves", || serves(cluster.nodes[newcomer].address))?;
    load.aim(cluster.addresses());
    cluster.wait_until_replicated()?;
    println!("  joined and filled within {:.2} s", started.elapsed().as_secs_f64());
    sleep(CALM);
    promises.keep_under_load(&load.stop()?, &[fault]);
    let after = owners(&cluster)?;
    let moved: usize =
        after.iter().zip(&before).map(|(after, before)| after.difference(before).count()).sum();
    let newcomers = &cluster.nodes[newcomer].id;
    let at_the_newcomer = after.iter().filter(|owners| owners.contains(newcomers)).count();
    let unavoidable = (2 * before.len()) as f64 / 6.0;
    println!(
        "  of {} copies {moved} moved, {at_the_newcomer} of them to the newcomer; a sixth is {unavoidable:.0}: {:.3}",
        2 * before.len(),
        moved as f64 / unavoidable
    );
    promises.keep(moved as f64 <= 1.10 * unavoidable, "no more than 1.10 of what must moves");
    check_keys(&cluster, &keys, &mut promises)?;
    Ok(promises.0)
}

/// Five hundred connections send their headers a byte at a time, while everybody else goes on.
fn slowloris() -> Result<Vec<String>> {
    let (cluster, keys) = three(KEYS / 10, 2)?;
    let mut promises = Promises::default();
    let load = Load::start(&keys, cluster.addresses(), 2000.0, false)?;
    sleep(CALM);
    let began = load.now();
    let (opened, closed) = dawdle(cluster.nodes[0].address, Duration::from_secs(15))?;
    let ended = load.now();
    sleep(CALM);
    let seen = load.stop()?;
    let during = seen.latencies(|due| (began..ended).contains(&due));
    let before = seen.latencies(|due| due < began);
    println!(
        "  {opened} connections dawdled, {closed} of them were closed; {} requests failed",
        seen.failures.len()
    );
    println!(
        "  latency p50 {:.1} ms, p99 {:.1} ms; before p50 {:.1} ms, p99 {:.1} ms",
        during.median(),
        during.quantile(0.99),
        before.median(),
        before.quantile(0.99),
    );
    promises.keep(seen.failures.is_empty(), "no request fails");
    promises.keep(opened == 500 && closed == 500, "all that dawdle are closed");
    promises.keep(during.quantile(0.99) <= DAWDLED_P99_MS_MAX, "p99 is at most 20 ms meanwhile");
    Ok(promises.0)
}

/// How many connections sent headers a byte every half second, and how many of them were closed within that time.
#[tokio::main(flavor = "current_thread")]
async fn dawdle(node: std::net::SocketAddr, time: Duration) -> Result<(usize, usize)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut streams = Vec::new();
    for _ in 0..500 {
        let mut stream = tokio::net::TcpStream::connect(node).await?;
        stream.write_all(b"GET /api/v1/health HTTP/1.1\r\nx: ").await?;
        streams.push(stream);
    }
    let (opened, started, mut closed) = (streams.len(), Instant::now(), 0);
    while started.elapsed() < time {
        let mut open = Vec::new();
        for mut stream in streams {
            let mut answer = [0; 64];
            let read = tokio::time::timeout(Duration::ZERO, stream.read(&mut answer)).await;
            // Whatever arrives is the end of it.
            if read.is_ok() || stream.write_all(b"y").await.is_err() {
                closed += 1;
            } else {
                open.push(stream);
            }
        }
        streams = open;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok((opened, closed))
}

/// Shared by the scenarios that need a filled cluster of three.
fn three(keys: usize, copies: usize) -> Result<(Cluster, Arc<Keys>)> {
    let (cluster, keys) = (Cluster::start(3, copies)?, Keys::new(keys));
    cluster.fill(&keys)?;
    Ok((cluster, keys))
}
