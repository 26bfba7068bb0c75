//! A network of a test's own: a bridge, and for each node a namespace with one address on it.
//!
//! The test itself runs in a namespace apart, which has the bridge, so that a client reaches every node whatever is lost between
//! the nodes. Invariant: namespaces and processes are gone with the test, however it ends, for the kernel takes them.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::cluster::Cluster;
use crate::namespace::is_inside_of;
use crate::node::Node;
use crate::process::{PATIENCE, run};

/// The port of every node, for TCP and UDP.
pub(crate) const PORT: &str = "8001";
/// Folder of the test's own, in a file system that goes with it; `ip` keeps the namespaces' names in another.
const FOLDER: &str = "/run/shoal";
const TOKEN: &str = "token-of-the-network-tests";
const SET_UP: &str =
    "mount -t tmpfs tmpfs /run && mkdir -m 700 /run/shoal && ip link set lo up && exec \"$@\"";

/// Whether the test named `name` has a network of its own. If not, it has been run in one, and passed.
#[track_caller]
pub(crate) fn is_apart(name: &str) -> bool {
    let kinds = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    assert!(rustix::process::geteuid().is_root(), "network namespaces need root: make test-net");
    is_inside_of(name, &kinds, SET_UP)
}

/// What else a node is started with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Extras {
    /// The node whose wall clock can be set.
    pub(crate) clock: Option<usize>,
    /// The node whose queue of connections to accept is this short.
    pub(crate) queue: Option<(usize, usize)>,
    /// There is no secret.
    pub(crate) is_open: bool,
    /// For all.
    pub(crate) flags: &'static [&'static str],
}

/// Nodes on one bridge, which all know all.
pub(crate) struct Net {
    number: u8,
    nodes: usize,
    pub(crate) cluster: Cluster,
}

impl Net {
    pub(crate) fn start(nodes: usize, extras: Extras) -> Net {
        static NUMBER: AtomicU8 = AtomicU8::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut net = Net { number, nodes, cluster: Cluster::default() };
        net.build();
        let (secret, token) = (net.file("secret"), net.file("token"));
        write_privately(&secret, run(&["secret"]).output.trim());
        write_privately(&token, TOKEN);
        let secret = if extras.is_open { &["--insecure"][..] } else { &["--cluster-secret-file", &*secret] };
        let flags = [secret, &["--admin-token-file", &token], extras.flags].concat();
        for node in net.numbers() {
            net.add(node, &flags, extras);
        }
        net.cluster.wait_until("all know all", PATIENCE, || net.cluster.is_whole());
        net
    }

    /// Bridge, namespaces and the wires between them.
    fn build(&self) {
        let bridge = format!("br{}", self.number);
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["addr", "add", &format!("{}/24", self.host(254)), "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        for node in self.numbers() {
            let (space, wire) = (self.space(node), format!("wire{}-{node}", self.number));
            ip(&["netns", "add", &space]);
            ip(&["link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", &space]);
            ip(&["link", "set", &wire, "master", &bridge, "up"]);
            ip(&["-n", &space, "addr", "add", &format!("{}/24", self.host(node)), "dev", "eth0"]);
            ip(&["-n", &space, "link", "set", "eth0", "up"]);
            ip(&["-n", &space, "link", "set", "lo", "up"]);
        }
    }

    fn add(&mut self, number: usize, flags: &[&str], extras: Extras) {
        let space = self.space(number);
        let mut front = vec!["ip", "netns", "exec", &space];
        let clock = (extras.clock == Some(number)).then(|| self.clock_variables());
        if let Some(variables) = &clock {
            front.push("env");
            front.extend(variables.iter().map(String::as_str));
        }
        if let Some((_, length)) = extras.queue.filter(|(node, _)| *node == number) {
            self.inside(number, &["sysctl", "-q", "-w", &format!("net.core.somaxconn={length}")]);
        }
        let seeds: Vec<String> = (1..number).map(|other| self.address(other).to_string()).collect();
        let join = seeds.join(",");
        let join: &[&str] = if seeds.is_empty() { &[] } else { &["--join", &join] };
        let id = format!("n{number}");
        let node = Node::start_behind(&front, TOKEN, &id, self.address(number), &[flags, join].concat());
        self.cluster.admit(node);
    }

    /// Those by which a process asks a file for its wall clock, once a second.
    fn clock_variables(&self) -> Vec<String> {
        let library = Command::new("faketime").args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"]).output();
        let library = library.expect("faketime is installed (Debian's faketime)").stdout;
        self.set_clock(0);
        vec![
            format!("LD_PRELOAD={}", String::from_utf8_lossy(&library).trim()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file("clock")),
            "FAKETIME_CACHE_DURATION=1".into(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
        ]
    }

    /// The wall clock of the node that has one of its own is so many seconds ahead, within a second from now.
    pub(crate) fn set_clock(&self, ahead: i32) {
        write_privately(&self.file("clock"), &format!("{ahead:+}\n"));
    }

    /// A chain of rules in the node's namespace gets one more.
    pub(crate) fn add_rule(&self, node: usize, rule: &[&str]) {
        self.inside(node, &[&["iptables", "-w", "-A"], rule].concat());
    }

    /// No rule is left at any node.
    pub(crate) fn drop_rules(&self) {
        for node in self.numbers() {
            self.inside(node, &["iptables", "-w", "-F"]);
        }
    }

    /// How many the rules have caught so far.
    pub(crate) fn packets_of_rules(&self) -> u64 {
        let listed = self.numbers().map(|node| self.inside(node, &["iptables", "-w", "-nvxL"]));
        let text: String = listed.collect();
        let rules = text.lines().filter(|line| line.contains("DROP") || line.contains("REJECT"));
        rules.filter_map(|rule| rule.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }

    fn inside(&self, node: usize, words: &[&str]) -> String {
        ip(&[&["netns", "exec", &self.space(node)], words].concat())
    }

    pub(crate) fn numbers(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.nodes
    }

    pub(crate) fn address(&self, node: usize) -> SocketAddr {
        format!("{}:{PORT}", self.host(node)).parse().expect("an address")
    }

    pub(crate) fn host(&self, node: usize) -> String {
        format!("10.77.{}.{node}", self.number)
    }

    fn space(&self, node: usize) -> String {
        format!("net{}-n{node}", self.number)
    }

    fn file(&self, name: &str) -> String {
        format!("{FOLDER}/{name}{}", self.number)
    }
}

fn write_privately(path: &str, text: &str) {
    let draft = format!("{path}.draft");
    fs::write(&draft, text).expect("a file can be written");
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
    fs::rename(&draft, path).expect("a file can be renamed");
}

/// What it prints.
fn ip(arguments: &[&str]) -> String {
    let ran = Command::new("ip").args(arguments).output().expect("ip runs (Debian's iproute2)");
    assert!(ran.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).into_owned()
}
