//! What a cluster costs at rest: the share of a core that each node takes while no client asks for anything.
//!
//! Real processes on loopback, whose user and system time is counted, so that other work on the machine matters little.
//! Flags: `--nodes N` for one size only, `--rounds N`, `--seconds N` of rest a round, `--base BINARY` for another build of the
//! node, which is measured in turn with this one.

#[path = "common/mod.rs"]
mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{Figures, Node, Result, SHOAL, are_whole, cpu_seconds, flag, wait_until};

const SIZES: [usize; 3] = [3, 10, 40];
/// What follows from the start of a cluster is over by then.
const SETTLING: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let (rounds, seconds) = (flag("--rounds", 3)?, flag("--seconds", 20)?);
    let base = flag("--base", String::new())?;
    let one_size = flag("--nodes", 0)?;
    let sizes = if one_size == 0 { SIZES.to_vec() } else { vec![one_size] };
    let builds: Vec<(&str, &str)> =
        [("this", SHOAL), ("base", &base)].into_iter().filter(|(_, binary)| !binary.is_empty()).collect();
    println!("CPU of a node at rest, in % of a core; {rounds} rounds of {seconds} s");
    println!("{:>6}{:>8}{:>8}{:>8}{:>8}", "nodes", "build", "median", "min", "max");
    for size in sizes {
        let mut figures = vec![Figures::default(); builds.len()];
        for _ in 0..rounds {
            for ((_, binary), figures) in builds.iter().zip(&mut figures) {
                figures.add(rest(binary, size, Duration::from_secs(seconds))?);
            }
        }
        for ((build, _), figures) in builds.iter().zip(&figures) {
            println!(
                "{size:>6}{build:>8}{:>8.2}{:>8.2}{:>8.2}",
                figures.median(),
                figures.min(),
                figures.max()
            );
        }
    }
    Ok(())
}

/// The mean share of a core that the nodes of a new cluster take, in percent.
fn rest(binary: &str, size: usize, time: Duration) -> Result<f64> {
    let mut nodes = vec![Node::start(binary, "n0", "127.0.0.1:0", &[])?];
    let seed = nodes[0].address.to_string();
    for number in 1..size {
        nodes.push(Node::start(binary, &format!("n{number}"), "127.0.0.1:0", &["--join", &seed])?);
    }
    wait_until("every node sees all the others", || are_whole(&nodes))?;
    thread::sleep(SETTLING);
    let pids: Vec<u32> = nodes.iter().map(|node| node.process.0.id()).collect();
    let (began, before) = (Instant::now(), cpu_seconds(&pids)?);
    thread::sleep(time);
    let (rested, after) = (began.elapsed(), cpu_seconds(&pids)?);
    Ok((after - before) / rested.as_secs_f64() / size as f64 * 100.0)
}
