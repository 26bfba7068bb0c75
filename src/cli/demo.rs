//! `shoal demo`: several node processes on this machine, with lines to try.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::{Failure, node, watch};
use crate::client::{Client, Cluster};

/// How long the nodes may take to find each other.
const FORMING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a node may take to stop before it is killed.
const STOPPING_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// How many nodes, 1-50
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    nodes: u16,
    /// Port of the first one; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 8001, value_parser = clap::value_parser!(u16).range(1..=65000))]
    port: u16,
}

impl DemoArgs {
    fn address(&self, index: u16) -> String {
        format!("127.0.0.1:{}", self.port + index)
    }

    /// The arguments of one node: it joins any of the others, so that each can be killed and started again.
    fn arguments(&self, index: u16) -> Vec<String> {
        let others = (0..self.nodes).filter(|other| *other != index).map(|other| self.address(other));
        let mut arguments: Vec<String> =
            ["node", "--listen", &self.address(index), "--id", &format!("node{}", index + 1)]
                .map(String::from)
                .into();
        let join = others.collect::<Vec<_>>().join(",");
        if !join.is_empty() {
            arguments.extend(["--join".to_string(), join]);
        }
        arguments
    }
}

pub(super) async fn run(args: &DemoArgs) -> Result<(), Failure> {
    check_ports(args)?;
    let logs = log_folder(args)?;
    let mut nodes = Vec::new();
    for index in 0..args.nodes {
        nodes.push(start(args, index, &logs)?);
    }
    let ended = tokio::select! {
        ended = play(args, &mut nodes, &logs) => ended,
        () = node::signalled() => Ok(()),
    };
    println!("\nstopping the nodes");
    for node in &mut nodes {
        stop(node).await;
    }
    ended
}

struct Node {
    name: String,
    process: Child,
    ended: bool,
}

async fn play(args: &DemoArgs, nodes: &mut [Node], logs: &Path) -> Result<(), Failure> {
    wait_until_formed(args, nodes, logs).await?;
    introduce(args, nodes, logs);
    let mut watched = args.address(0);
    loop {
        let watching = watch::run(&watched);
        tokio::select! {
            // Every node is gone: wait for one to be started again.
            _ = watching => sleep(Duration::from_secs(1)).await,
            () = report_deaths(nodes) => {}
        }
        watched = args.address(0);
    }
}

fn check_ports(args: &DemoArgs) -> Result<(), Failure> {
    for index in 0..args.nodes {
        let address = args.address(index);
        if TcpListener::bind(&address).is_err() || UdpSocket::bind(&address).is_err() {
            let port = args.port + index;
            return Err(Failure::Usage(format!("port {port} is in use; choose others with --port")));
        }
    }
    Ok(())
}

fn log_folder(args: &DemoArgs) -> Result<PathBuf, Failure> {
    let folder = std::env::temp_dir().join(format!("shoal-demo-{}", args.port));
    std::fs::create_dir_all(&folder)
        .map_err(|error| Failure::Usage(format!("cannot make {} for the logs: {error}", folder.display())))?;
    Ok(folder)
}

fn start(args: &DemoArgs, index: u16, logs: &Path) -> Result<Node, Failure> {
    let name = format!("node{}", index + 1);
    let start = || {
        let log = File::create(logs.join(format!("{name}.log")))?;
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.args(args.arguments(index)).args(["--log-format", "text"]);
        // A group of its own, so that Ctrl-C reaches only the demo, which then stops the nodes in order.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
    };
    let process =
        start().map_err(|error: std::io::Error| Failure::Usage(format!("cannot start {name}: {error}")))?;
    Ok(Node { name, process, ended: false })
}

/// Until every node sees all of them, by one table that has slots for each.
async fn wait_until_formed(args: &DemoArgs, nodes: &mut [Node], logs: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + FORMING_TIMEOUT;
    for index in 0..args.nodes {
        let client = Client::new(args.address(index));
        while !client.cluster().await.is_ok_and(|cluster| is_whole(&cluster, nodes.len())) {
            let ended = nodes.iter_mut().find_map(|node| Some((node.process.try_wait().ok()??, &node.name)));
            if let Some((status, name)) = ended {
                let log = logs.join(format!("{name}.log"));
                return Err(Failure::Refused(format!("{name} ended with {status}; see {}", log.display())));
            }
            if Instant::now() > deadline {
                return Err(Failure::Unreachable(format!(
                    "the nodes did not find each other; see {}",
                    logs.display()
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

fn is_whole(cluster: &Cluster, count: usize) -> bool {
    let nodes = &cluster.cluster_status.nodes;
    nodes.len() == count && nodes.iter().all(|node| node.status == "healthy" && node.slots > 0)
}

fn introduce(args: &DemoArgs, nodes: &[Node], logs: &Path) {
    println!("{} nodes are up and see each other:\n", nodes.len());
    for (index, node) in (0..).zip(nodes) {
        let pid = node.process.id().map_or_else(|| "?".into(), |pid| pid.to_string());
        println!("  {:7} http://{}   pid {pid}", node.name, args.address(index));
    }
    println!("\nTheir logs are in {}. Try, in another terminal:\n", logs.display());
    let at = |index: u16| args.address(index.min(args.nodes - 1));
    let last = nodes.len() - 1;
    let pid = nodes[last].process.id().unwrap_or_default();
    println!("  curl -X PUT http://{}/api/v1/cache/greeting -H 'Content-Type: application/json' \\", at(0));
    println!("       -d '{{\"value\":\"hello\"}}'");
    println!("  curl http://{}/api/v1/cache/greeting", at(1));
    println!("  curl http://{}/api/v1/cache/greeting", at(2));
    println!("  curl -X DELETE http://{}/api/v1/cache/greeting", at(1));
    println!("  {} nodes --node {}", program(), at(0));
    println!("  kill -9 {pid}        # {} dies; see it below within two seconds", nodes[last].name);
    let arguments = args.arguments(last as u16).join(" ");
    println!("  {} {arguments}        # and is taken back\n", program());
    println!("What happens, as `shoal watch` shows it (Ctrl-C stops the nodes):\n");
}

/// How this program was called, for lines that can be pasted.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "shoal".into())
}

/// Waits for a node to end, and says how it did.
async fn report_deaths(nodes: &mut [Node]) {
    loop {
        for node in nodes.iter_mut().filter(|node| !node.ended) {
            if let Ok(Some(status)) = node.process.try_wait() {
                node.ended = true;
                println!("              the process of {} ended: {status}", node.name);
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn stop(node: &mut Node) {
    let pid = node.process.id().and_then(|pid| Pid::from_raw(pid as i32));
    let Some(pid) = pid.filter(|_| !node.ended) else { return };
    let asked = kill_process(pid, Signal::TERM);
    let ended = asked.is_ok() && timeout(STOPPING_TIMEOUT, node.process.wait()).await.is_ok();
    if !ended {
        // It may have ended in this moment, which is as well.
        let _ = node.process.kill().await;
    }
}
