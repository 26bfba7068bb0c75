//! Nodes with a machine each: a network namespace with one address, all on one bridge with the test.
//!
//! A rule of a machine's own firewall tells its peers apart, which all are one host on loopback. The test has to be inside a
//! namespace already, see [`crate::namespace`].

use std::net::SocketAddr;
use std::process::Command;

use crate::cluster::Cluster;
use crate::files::Folder;
use crate::node::Node;
use crate::process::PATIENCE;

/// Waits for its device, then becomes the node.
const SET_UP: &str = "until ip link show eth0 > /dev/null 2>&1; do sleep 0.01; done && \
     ip addr add \"$1/24\" dev eth0 && ip link set eth0 up && ip link set lo up && \
     shift && exec \"$@\"";

/// Shown to these nodes: what runs the cluster comes from another machine.
const TOKEN: &str = "the-token-of-whoever-runs-the-test";

/// Nodes on machines of their own, `n1` at 10.1.0.1 and so on, of which all know all.
pub(crate) fn start(nodes: u8, flags: &[&str]) -> Cluster {
    // With an address of its own: else the bridge takes that of a port, and another one when that port goes with its node; the
    // others would send to the former for as long as they remember it.
    run(&["ip", "link", "add", "bridge0", "address", "02:00:00:00:00:01", "type", "bridge"]);
    run(&["ip", "addr", "add", "10.1.0.254/24", "dev", "bridge0"]);
    run(&["ip", "link", "set", "bridge0", "up"]);
    let mut cluster = Cluster::default();
    let seed = address(1).to_string();
    let folder = Folder::new();
    let token = folder.write("token", TOKEN);
    let common = ["--insecure", "--admin-token-file", &token];
    for number in 1..=nodes {
        let join = if number == 1 { &[][..] } else { &["--join", &seed][..] };
        cluster.admit(start_node(number, &[&common, join, flags].concat()));
    }
    cluster.wait_until("all know all", PATIENCE, || cluster.is_whole());
    cluster
}

fn start_node(number: u8, flags: &[&str]) -> Node {
    let ip = address(number).ip().to_string();
    let mut machine = Command::new("unshare");
    machine.args(["--net", "sh", "-c", SET_UP, "sh", &ip]);
    let plug_in = |process: u32| {
        let (plug, process) = (format!("plug{number}"), process.to_string());
        // Until the namespace is there, its name is still that of the test's own.
        let own = namespace_of("self");
        while namespace_of(&process) == own {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        run(&["ip", "link", "add", &plug, "type", "veth", "peer", "name", "eth0", "netns", &process]);
        run(&["ip", "link", "set", &plug, "master", "bridge0", "up"]);
    };
    Node::start_through(machine, plug_in, TOKEN, &format!("n{number}"), address(number), flags)
}

fn namespace_of(process: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

pub(crate) fn address(number: u8) -> SocketAddr {
    ([10, 1, 0, number], 8001).into()
}

/// The node's port answers another node with a reset, though its process lives; its own connections pass.
pub(crate) fn refuse_connections_from(cluster: &mut Cluster, number: usize, other: u8) {
    let ip = address(other).ip().to_string();
    let rule = ["-p", "tcp", "-s", &ip, "--dport", "8001", "-j", "REJECT", "--reject-with", "tcp-reset"];
    add_rule(cluster, number, "INPUT", &rule);
}

/// No TCP passes between two nodes; datagrams do.
pub(crate) fn drop_connections_between(cluster: &mut Cluster, number: usize, other: u8) {
    let ip = address(other).ip().to_string();
    add_rule(cluster, number, "INPUT", &["-p", "tcp", "-s", &ip, "-j", "DROP"]);
    add_rule(cluster, number, "OUTPUT", &["-p", "tcp", "-d", &ip, "-j", "DROP"]);
}

/// Everything passes again.
pub(crate) fn mend(cluster: &mut Cluster, number: usize) {
    run_at(cluster, number, &["iptables", "-F"]);
}

fn add_rule(cluster: &mut Cluster, number: usize, chain: &str, rule: &[&str]) {
    run_at(cluster, number, &[&["iptables", "-A", chain], rule].concat());
}

fn run_at(cluster: &mut Cluster, number: usize, command: &[&str]) {
    let target = format!("--target={}", cluster.node(number).process().id());
    run(&[&["nsenter", &target, "--net"], command].concat());
}

#[track_caller]
fn run(command: &[&str]) {
    let status =
        Command::new(command[0]).args(&command[1..]).status().expect("iproute2 and iptables are there");
    assert!(status.success(), "{command:?}: {status}");
}
