//! How long a cluster takes to know of a death: from `kill -9` of one node until every other one has told it.
//!
//! Real processes on loopback. Every survivor's event stream is listened to; the dead node is started again and the view
//! is whole before the next trial. Flags: `--trials N`, `--nodes N` for one size only, `--detection PROFILE`.

#[path = "common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Figures, Node, PATIENCE, Result, SHOAL, are_whole, flag, wait_until};

const SIZES: [usize; 2] = [5, 20];

fn main() -> Result<()> {
    let (trials, profile) = (flag("--trials", 20)?, flag("--detection", "lan".to_string())?);
    let one_size = flag("--nodes", 0)?;
    let sizes = if one_size == 0 { SIZES.to_vec() } else { vec![one_size] };
    println!("kill -9 until every survivor tells member_down, in seconds; profile {profile}");
    println!("{:>6}{:>8}{:>8}{:>8}{:>8}{:>16}", "nodes", "trials", "p50", "p99", "max", "first knows p50");
    for size in sizes {
        let mut cluster = start(size, &profile)?;
        let (mut all, mut first) = (Figures::default(), Figures::default());
        for trial in 0..trials {
            let (first_knew, all_knew) = kill_one(&mut cluster, trial % size, trial)?;
            first.add(first_knew.as_secs_f64());
            all.add(all_knew.as_secs_f64());
            restart(&mut cluster, trial % size, &profile)?;
        }
        println!(
            "{size:>6}{trials:>8}{:>8.2}{:>8.2}{:>8.2}{:>16.2}",
            all.median(),
            all.quantile(0.99),
            all.max(),
            first.median()
        );
    }
    Ok(())
}

fn start(size: usize, profile: &str) -> Result<Vec<Node>> {
    let mut nodes = vec![Node::start(SHOAL, "n0", "127.0.0.1:0", &["--detection", profile])?];
    let seed = nodes[0].address.to_string();
    for number in 1..size {
        let flags = ["--detection", profile, "--join", &seed];
        nodes.push(Node::start(SHOAL, &format!("n{number}"), "127.0.0.1:0", &flags)?);
    }
    wait_whole(&nodes)?;
    Ok(nodes)
}

fn wait_whole(nodes: &[Node]) -> Result<()> {
    wait_until("every node sees all the others", || are_whole(nodes))
}

/// How long until the first and until the last survivor told of the death.
fn kill_one(cluster: &mut [Node], victim: usize, trial: usize) -> Result<(Duration, Duration)> {
    let (told, tells) = mpsc::channel();
    let id = cluster[victim].id.clone();
    for node in cluster.iter().filter(|node| node.id != id) {
        let stream = listen(node.address)?;
        let (told, id) = (told.clone(), id.clone());
        thread::spawn(move || {
            if wait_for_death(stream, &id).is_some() {
                // Fails when nobody waits any more.
                let _ = told.send(Instant::now());
            }
        });
    }
    // Kills fall on different moments of the probe period, whose lengths are 100 to 500 ms.
    thread::sleep(Duration::from_millis(200 + trial as u64 * 37 % 500));
    let killed = Instant::now();
    cluster[victim].process.kill();
    let mut after = Vec::new();
    for _ in 1..cluster.len() {
        let told = tells.recv_timeout(PATIENCE).map_err(|_| format!("somebody never told that {id} died"))?;
        after.push(told - killed);
    }
    let range = after.iter().min().copied().zip(after.iter().max().copied());
    range.ok_or_else(|| "a cluster of one has no survivors".into())
}

/// Opens a node's event stream; returns once the node has begun to send.
fn listen(address: SocketAddr) -> Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /admin/events HTTP/1.1\r\nhost: {address}\r\n\r\n")?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("event: snapshot") {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Err(format!("{address} ended its event stream").into());
        }
    }
    Ok(lines)
}

fn wait_for_death(stream: BufReader<TcpStream>, id: &str) -> Option<()> {
    let named = format!("\"node_id\":\"{id}\"");
    let mut is_death = false;
    for line in stream.lines() {
        let line = line.ok()?;
        if let Some(kind) = line.strip_prefix("event: ") {
            is_death = kind == "member_down";
        } else if is_death && line.starts_with("data: ") && line.contains(&named) {
            return Some(());
        }
    }
    None
}

fn restart(cluster: &mut [Node], victim: usize, profile: &str) -> Result<()> {
    let seed = cluster[(victim + 1) % cluster.len()].address.to_string();
    let (id, listen) = (cluster[victim].id.clone(), cluster[victim].address.to_string());
    cluster[victim] = Node::start(SHOAL, &id, &listen, &["--detection", profile, "--join", &seed])?;
    wait_whole(cluster)
}
