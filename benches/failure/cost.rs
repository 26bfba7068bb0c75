//! What sync and second copies cost.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, metric};
use super::common::{Figures, Result, cpu_seconds};
use super::http::Connection;
use super::load::{Load, name, value};
use super::{Promises, three};

const ROUNDS: usize = 5;
const CALM: Duration = Duration::from_secs(3);
/// CPU of a PUT with two copies over one with one.
const COPIES_COST_MAX: f64 = 2.2;

/// Latency of requests at two nodes while a third, empty one is filled, beside the same without.
pub(super) fn sync() -> Result<Vec<String>> {
    const KEYS: usize = 200_000;
    let (mut cluster, keys) = three(KEYS, 2)?;
    let mut promises = Promises::default();
    let load = Load::start(&keys, cluster.addresses_without(2), 2000.0, false)?;
    let (mut calm, mut syncing, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        cluster.signal(2, "KILL")?;
        let node = cluster.nodes.remove(2);
        cluster.wait_until_replicated()?;
        sleep(Duration::from_secs(1));
        let from = load.now();
        sleep(CALM);
        calm.push(from..load.now());
        let before = moved(&cluster);
        let from = load.now();
        cluster.add(&node.address.to_string(), Some(&node.id))?;
        cluster.wait_until_replicated()?;
        syncing.push(from..load.now());
        bytes += moved(&cluster) - before;
    }
    let seen = load.stop()?;
    let within = |spans: &[std::ops::Range<Duration>]| {
        seen.latencies(|due| spans.iter().any(|span| span.contains(&due)))
    };
    let (without, with) = (within(&calm), within(&syncing));
    let seconds: f64 = syncing.iter().map(|span| (span.end - span.start).as_secs_f64()).sum();
    println!(
        "  p99 {:.2} ms without sync, {:.2} ms with ({:.2} times), p50 {:.2} and {:.2} ms",
        without.quantile(0.99),
        with.quantile(0.99),
        with.quantile(0.99) / without.quantile(0.99),
        without.median(),
        with.median(),
    );
    println!("  {ROUNDS} syncs took {seconds:.1} s and moved {} MB in all", bytes / 1_000_000);
    promises.keep(seen.failures.is_empty(), "no request fails");
    seen.failures.iter().take(5).for_each(|failure| println!("  {failure}"));
    Ok(promises.0)
}

fn moved(cluster: &Cluster) -> u64 {
    cluster.addresses().into_iter().filter_map(|node| metric(node, "shoal_sync_bytes_total")).sum()
}

/// CPU of a PUT, over all nodes, with one copy and with two.
pub(super) fn copies() -> Result<Vec<String>> {
    let (one, two) = (Cluster::start(3, 1)?, Cluster::start(3, 2)?);
    let (mut of_one, mut of_two) = (Figures::default(), Figures::default());
    for _ in 0..ROUNDS {
        of_one.add(put_cost(&one)?);
        of_two.add(put_cost(&two)?);
    }
    let ratio = of_two.over(&of_one);
    println!(
        "  a PUT takes {:.1} us with one copy, {:.1} us with two; ratio {:.2} ({:.2} to {:.2})",
        of_one.median(),
        of_two.median(),
        ratio.median(),
        ratio.min(),
        ratio.max()
    );
    let mut promises = Promises::default();
    promises.keep(ratio.median() <= COPIES_COST_MAX, "a second copy costs at most 2.2 times");
    Ok(promises.0)
}

/// Microseconds of the nodes' processors.
fn put_cost(cluster: &Cluster) -> Result<f64> {
    let pids: Vec<u32> = cluster.nodes.iter().map(|node| node.process.0.id()).collect();
    let before = cpu_seconds(&pids)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let clients = (0..64).map(|client| put_again(cluster.addresses()[client % 3], client));
    let done = runtime.block_on(futures_util::future::join_all(clients));
    let puts: usize = done.into_iter().collect::<Result<Vec<_>>>()?.into_iter().sum();
    Ok((cpu_seconds(&pids)? - before) * 1e6 / puts as f64)
}

async fn put_again(node: SocketAddr, client: usize) -> Result<usize> {
    let mut connection = Connection::open(node).await?;
    let (until, body) = (Instant::now() + CALM, format!("{{\"value\":\"{}\"}}", value(7)));
    let mut puts = 0;
    while Instant::now() < until {
        let path = format!("/api/v1/cache/{}", name(client * 1000 + puts % 1000));
        let (status, answer) = connection.request("PUT", &path, &body).await?;
        if status != 200 {
            return Err(String::from_utf8_lossy(&answer).into());
        }
        puts += 1;
    }
    Ok(puts)
}
