//! `shoal demo`: several node processes on this machine, with lines to try.

use std::fs::{DirBuilder, File};
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Failure, node, output, watch};
use crate::client::{Access, Client, Cluster};

/// How long the nodes may take to find each other.
const FORMING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a node may take to stop before it is killed.
const STOPPING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the word that the nodes are stopped may take to be read.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// How many nodes, 1-50
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    nodes: u16,
    /// Port of the first one; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 8001)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=65000))]
    port: u16,
    /// Show the nodes' logs here instead of keeping them in files
    #[arg(long)]
    logs: bool,
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
    let logs = if args.logs { Logs::Shown } else { Logs::Kept(log_folder()?) };
    let mut nodes = Vec::new();
    let ended = tokio::select! {
        // First, so that no node is started before a signal would stop it.
        biased;
        () = stop_wanted() => Ok(()),
        ended = play(args, &mut nodes, &logs) => ended,
    };
    // The terminal may be gone, or stuck, and the nodes are to stop all the same.
    let _ = timeout(FAREWELL_TIMEOUT, output::line("\nstopping the nodes")).await;
    stop(&mut nodes).await;
    ended
}

/// Where the nodes' logs go.
enum Logs {
    Shown,
    Kept(PathBuf),
}

impl Logs {
    fn of(&self, name: &str) -> io::Result<Stdio> {
        match self {
            Logs::Shown => Ok(Stdio::inherit()),
            Logs::Kept(folder) => Ok(File::create(folder.join(format!("{name}.log")))?.into()),
        }
    }

    /// Ends a sentence about something that went wrong.
    fn hint(&self) -> String {
        match self {
            Logs::Shown => "see above".into(),
            Logs::Kept(folder) => format!("see the logs in {}", folder.display()),
        }
    }
}

struct Node {
    name: String,
    process: Child,
    ended: bool,
}

async fn play(args: &DemoArgs, nodes: &mut Vec<Node>, logs: &Logs) -> Result<(), Failure> {
    for index in 0..args.nodes {
        nodes.push(start(args, index, logs)?);
    }
    wait_until_formed(args, nodes, logs).await?;
    output::write(introduction(args, nodes, logs)).await?;
    tokio::select! {
        failure = follow(args) => Err(failure),
        failure = report_deaths(nodes) => Err(failure),
    }
}

/// Shows the events for as long as somebody reads them, also when every node was gone for a while.
async fn follow(args: &DemoArgs) -> Failure {
    for index in (0..args.nodes).cycle() {
        if let Err(Failure::NobodyReads) = watch::run(&args.address(index), &Access::default()).await {
            break;
        }
        sleep(Duration::from_secs(1)).await;
    }
    Failure::NobodyReads
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

/// A new folder that is nobody else's: all may write to the temporary one, and a known name could wait there.
fn log_folder() -> Result<PathBuf, Failure> {
    let folder = std::env::temp_dir().join(format!("shoal-demo-{:08x}", rand::random::<u32>()));
    let made = DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(|error| Failure::Usage(format!("cannot make {} for the logs: {error}", folder.display())))?;
    Ok(folder)
}

fn start(args: &DemoArgs, index: u16, logs: &Logs) -> Result<Node, Failure> {
    let name = format!("node{}", index + 1);
    let start = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args.arguments(index)).args(["--log-format", "text"]);
        // These would be the same for every node, or lead it into another cluster.
        command.env_remove("SHOAL_ADVERTISE").env_remove("SHOAL_JOIN");
        // A group of its own, so that Ctrl-C reaches only the demo, which then stops the nodes itself.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(logs.of(&name)?)
            .kill_on_drop(true)
            .spawn()
    };
    let process =
        start().map_err(|error: io::Error| Failure::Usage(format!("cannot start {name}: {error}")))?;
    Ok(Node { name, process, ended: false })
}

/// Until every node sees all of them, by one table that has slots for each.
async fn wait_until_formed(args: &DemoArgs, nodes: &mut [Node], logs: &Logs) -> Result<(), Failure> {
    let deadline = Instant::now() + FORMING_TIMEOUT;
    for index in 0..args.nodes {
        let client = Client::new(args.address(index));
        while !is_up(&client, nodes.len()).await {
            let ended = nodes.iter_mut().find_map(|node| Some((node.process.try_wait().ok()??, &node.name)));
            if let Some((status, name)) = ended {
                return Err(Failure::Refused(format!("{name} ended with {status}; {}", logs.hint())));
            }
            if Instant::now() > deadline {
                return Err(Failure::Unreachable(format!(
                    "the nodes did not find each other; {}",
                    logs.hint()
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// Whether the node serves, and sees as many.
async fn is_up(client: &Client, count: usize) -> bool {
    client.cluster().await.is_ok_and(|cluster| is_whole(&cluster, count))
        && client.health().await.is_ok_and(|health| health.status == "healthy")
}

fn is_whole(cluster: &Cluster, count: usize) -> bool {
    let nodes = &cluster.cluster_status.nodes;
    nodes.len() == count && nodes.iter().all(|node| node.status == "healthy" && node.slots > 0)
}

fn introduction(args: &DemoArgs, nodes: &[Node], logs: &Logs) -> String {
    let pid = |node: &Node| node.process.id().map_or_else(|| "?".into(), |pid| pid.to_string());
    let greeting = match nodes.len() {
        1 => "1 node is up:".to_string(),
        count => format!("{count} nodes are up and see each other:"),
    };
    let mut text = format!("{greeting}\n\n");
    for (index, node) in (0..).zip(nodes) {
        text.push_str(&format!("  {:7} http://{}   pid {}\n", node.name, args.address(index), pid(node)));
    }
    if let Logs::Kept(folder) = logs {
        text.push_str(&format!("\nTheir logs are in {}.\n", folder.display()));
    }
    let last = args.nodes - 1;
    let [first, second, third] = [0, 1, 2].map(|index: u16| args.address(index.min(last)));
    let Node { name, .. } = &nodes[usize::from(last)];
    let (pid, program, arguments) =
        (pid(&nodes[usize::from(last)]), program(), args.arguments(last).join(" "));
    text.push_str(&format!(
        r#"
Try, in another terminal:

  curl -X PUT http://{first}/api/v1/cache/greeting -H 'Content-Type: application/json' \
       -d '{{"value":"hello"}}'
  curl http://{second}/api/v1/cache/greeting
  curl http://{third}/api/v1/cache/greeting
  curl -X DELETE http://{second}/api/v1/cache/greeting
  {program} nodes --node {first}

  kill -9 {pid}        # {name} dies; see it below within two seconds
  {program} {arguments}        # and is taken back; yours to stop

What happens, as `shoal watch` shows it (Ctrl-C stops the nodes):

"#
    ));
    text
}

/// How this program was called, for lines that can be pasted.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "shoal".into())
}

/// Says of each node that ends how it did, for as long as somebody reads it.
async fn report_deaths(nodes: &mut [Node]) -> Failure {
    loop {
        for node in nodes.iter_mut().filter(|node| !node.ended) {
            if let Ok(Some(status)) = node.process.try_wait() {
                node.ended = true;
                let line = format!("              the process of {} ended: {status}", node.name);
                if let Err(failure) = output::line(&line).await {
                    return failure;
                }
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Ctrl-C, SIGTERM, or the terminal is closed, which would not reach the nodes' own process groups.
async fn stop_wanted() {
    // Fails only for signals that may not be caught.
    let mut hangup = signal(SignalKind::hangup()).expect("SIGHUP can be caught");
    tokio::select! {
        () = node::signalled() => {}
        _ = hangup.recv() => {}
    }
}

/// Asks all at once: one after another, each would hand its entries to the next that goes.
async fn stop(nodes: &mut [Node]) {
    let deadline = Instant::now() + STOPPING_TIMEOUT;
    for node in nodes.iter() {
        // Without a number for one that has ended and was waited for.
        if let Some(pid) = node.process.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            // Fails if it has just ended, which is as well.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    for node in nodes {
        if timeout_at(deadline, node.process.wait()).await.is_err() {
            let _ = node.process.kill().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_joins_all_others_so_that_any_may_be_started_again() {
        let args = DemoArgs { nodes: 3, port: 8001, logs: false };
        assert_eq!(
            args.arguments(1).join(" "),
            "node --listen 127.0.0.1:8002 --id node2 --join 127.0.0.1:8001,127.0.0.1:8003"
        );
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let Err(Failure::Usage(reason)) = check_ports(&DemoArgs { nodes: 1, port, logs: false }) else {
            panic!("port {port} is taken");
        };
        assert_eq!(reason, format!("port {port} is in use; choose others with --port"));
    }
}
