//! The harness: several nodes, what happens to them, and what each of them believes.
//!
//! Nodes are numbered from 1, as they are named: the first is `n1`. A node that was killed or has left stays in its
//! place, so numbers do not shift.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{self, Answer};
use crate::process::{Process, Signal};

/// For steps that the tests have to wait for but say nothing about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const SLOTS: u64 = 16384;

/// Whether `condition` came true in time. Asked often, so that a deadline means what it says.
pub(crate) fn poll(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One member of a test's cluster.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    flags: Vec<String>,
    process: Process,
    running: bool,
}

/// What a node says of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) ring: String,
    /// Status and slots by node id.
    pub(crate) members: BTreeMap<String, (String, u64)>,
}

impl Node {
    /// Starts a node on a port of its choice.
    pub(crate) fn start(id: &str, flags: &[&str]) -> Node {
        Node::start_at(id, ([127, 0, 0, 1], 0).into(), flags)
    }

    /// Starts a node and waits until it can be talked to.
    pub(crate) fn start_at(id: &str, listen: SocketAddr, flags: &[&str]) -> Node {
        let mut node = Node::launch(id, listen, flags);
        node.wait_for_port();
        node
    }

    /// Starts a node that may not get far.
    pub(crate) fn launch(id: &str, listen: SocketAddr, flags: &[&str]) -> Node {
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let process = spawn(id, listen, &flags);
        Node { id: id.into(), address: listen, flags, process, running: true }
    }

    fn wait_for_port(&mut self) {
        let log = self.process.log().clone();
        let started = poll(PATIENCE, || {
            if self.address.port() == 0 {
                self.address = log.address().unwrap_or(self.address);
            }
            self.address.port() != 0 && http::connect(self.address).is_ok() || self.has_ended()
        });
        assert!(started && !self.has_ended(), "{} does not start; its log ends\n{}", self.id, log.tail(20));
    }

    fn has_ended(&mut self) -> bool {
        self.process.exit_status().is_some()
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(crate) fn log(&self) -> &crate::process::Log {
        self.process.log()
    }

    /// A request that must be answered, with whatever status.
    #[track_caller]
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        http::request(self.address, method, path, headers, body).unwrap_or_else(|error| {
            panic!("{method} {path} at {}: {error}\n{}", self.id, self.log().tail(20))
        })
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.request("POST", path, &json, body.to_string().as_bytes())
    }

    #[track_caller]
    pub(crate) fn put_json(&self, key: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.request("PUT", &key_path(key), &json, body.to_string().as_bytes())
    }

    /// Stores a string.
    #[track_caller]
    pub(crate) fn put(&self, key: &str, value: &str) {
        self.put_json(key, &json!({"value": value})).expect(200);
    }

    #[track_caller]
    pub(crate) fn read(&self, key: &str) -> Answer {
        self.get(&key_path(key))
    }

    /// The string that a hit gives, or `None` for a miss; anything else fails the test.
    #[track_caller]
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let answer = self.read(key);
        match answer.status {
            200 => Some(answer.json()["value"].as_str().expect("a value").to_string()),
            404 if answer.json()["found"] == false => None,
            _ => panic!(
                "GET {key} at {}: {} {}\n{}",
                self.id,
                answer.status,
                answer.text(),
                self.log().tail(20)
            ),
        }
    }

    /// What it believes; `None` if it does not answer.
    pub(crate) fn view(&self) -> Option<View> {
        let body = http::request(self.address, "GET", "/admin/cluster", &[], b"").ok()?.json();
        let member = |node: &Value| {
            let text = |name: &str| node[name].as_str().unwrap_or_default().to_string();
            (text("node_id"), (text("status"), node["slots"].as_u64().unwrap_or(u64::MAX)))
        };
        let members = body["cluster_status"]["nodes"].as_array()?.iter().map(member).collect();
        Some(View { ring: body["ring"].as_str()?.to_string(), members })
    }
}

fn spawn(id: &str, listen: SocketAddr, flags: &[String]) -> Process {
    let fixed = ["node", "--listen", &listen.to_string(), "--id", id, "--log-format", "json"];
    Process::spawn(fixed.iter().map(ToString::to_string).chain(flags.iter().cloned()))
}

pub(crate) fn key_path(key: &str) -> String {
    format!("/api/v1/cache/{}", http::encode(key))
}

/// Nodes that were started to be together.
#[derive(Default)]
pub(crate) struct Cluster {
    nodes: Vec<Node>,
}

impl std::ops::Index<usize> for Cluster {
    type Output = Node;

    fn index(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }
}

impl Cluster {
    /// This many nodes, of which all know all.
    pub(crate) fn start(nodes: usize) -> Cluster {
        Cluster::start_with(nodes, &[])
    }

    /// The same, each with these flags.
    pub(crate) fn start_with(nodes: usize, flags: &[&str]) -> Cluster {
        let mut cluster = Cluster::default();
        for _ in 0..nodes {
            cluster.add(flags);
        }
        cluster.wait_until("all know all", PATIENCE, || cluster.is_whole());
        cluster
    }

    /// Starts one more node, which joins through the first, and gives its number.
    pub(crate) fn add(&mut self, flags: &[&str]) -> usize {
        let seed = self.nodes.first().map(|first| first.address.to_string());
        let mut flags = flags.to_vec();
        if let Some(seed) = &seed {
            flags.extend(["--join", seed]);
        }
        let id = format!("n{}", self.nodes.len() + 1);
        self.admit(Node::start(&id, &flags))
    }

    /// Takes over a node that was started by itself.
    pub(crate) fn admit(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len()
    }

    pub(crate) fn node(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.running)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, number: usize) {
        let node = self.node(number);
        node.process.kill();
        node.running = false;
    }

    /// Freezes it as it is.
    pub(crate) fn stop(&mut self, number: usize) {
        self.node(number).process.signal(Signal::STOP);
        self.node(number).running = false;
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self, number: usize) {
        self.node(number).process.signal(Signal::CONT);
        self.node(number).running = true;
    }

    /// Asks it to leave, and waits for its end.
    pub(crate) fn terminate(&mut self, number: usize) -> ExitStatus {
        let node = self.node(number);
        node.process.signal(Signal::TERM);
        node.running = false;
        node.process.wait(PATIENCE)
    }

    /// Starts it anew with the address, name and flags it had.
    pub(crate) fn restart(&mut self, number: usize) {
        let node = self.node(number);
        node.process = spawn(&node.id, node.address, &node.flags);
        node.wait_for_port();
        node.running = true;
    }

    /// Whether every running node sees exactly the running ones, all healthy, in one ring.
    pub(crate) fn is_whole(&self) -> bool {
        let expected: Vec<(&str, &str)> = self.running().map(|node| (&*node.id, "healthy")).collect();
        self.agrees_on(&expected)
    }

    /// Whether every running node sees these members with these statuses, and all have the one ring that follows.
    pub(crate) fn agrees_on(&self, members: &[(&str, &str)]) -> bool {
        let mut expected = members.to_vec();
        expected.sort_unstable();
        let mut rings = Vec::new();
        for node in self.running() {
            let Some(view) = node.view() else { return false };
            if view.statuses() != expected || !view.is_settled() {
                return false;
            }
            rings.push(view.ring);
        }
        rings.windows(2).all(|two| two[0] == two[1])
    }

    /// Waits for `condition`; `sentence` says what did not come true in time, with what each node believes.
    #[track_caller]
    pub(crate) fn wait_until(
        &self,
        sentence: &str,
        patience: Duration,
        condition: impl FnMut() -> bool,
    ) -> Duration {
        let started = Instant::now();
        if !poll(patience, condition) {
            panic!("not within {patience:?}: {sentence}\n{}", self.describe());
        }
        started.elapsed()
    }

    fn describe(&self) -> String {
        let describe = |node: &Node| {
            let view = if node.running { format!("{:?}", node.view()) } else { "not running".into() };
            format!("{} at {}: {view}\n{}\n", node.id, node.address, node.log().tail(8))
        };
        self.nodes.iter().map(describe).collect()
    }
}

impl View {
    pub(crate) fn statuses(&self) -> Vec<(&str, &str)> {
        self.members.iter().map(|(id, (status, _))| (&**id, &**status)).collect()
    }

    /// Whether the ring is the one of the members that are not dead: it follows the view a moment later.
    fn is_settled(&self) -> bool {
        let fits = |(status, slots): &(String, u64)| (status == "unhealthy") == (*slots == 0);
        self.members.values().all(fits) && self.members.values().map(|(_, slots)| slots).sum::<u64>() == SLOTS
    }
}
