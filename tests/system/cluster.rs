//! The harness: several nodes, and what happens to them.
//!
//! Nodes are numbered from 1, as they are named: the first is `n1`. A node that was killed or has left keeps
//! its place, so numbers do not shift.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::http;
use crate::node::Node;
use crate::process::{PATIENCE, Signal, poll};

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

    /// Puts a node that was started by itself in the place of one that has ended.
    pub(crate) fn replace(&mut self, number: usize, node: Node) {
        self.nodes[number - 1] = node;
    }

    pub(crate) fn node(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    /// A key whose primary is this node, as the first node places it.
    pub(crate) fn key_owned_by(&self, number: usize) -> String {
        let is_owner = |key: &String| self.owners_of(key)[0] == self[number].id;
        (0..1000).map(|index| format!("key-{index}")).find(is_owner).expect("it owns some of a thousand keys")
    }

    /// The names of the key's owners, the primary first, as the first node places it.
    pub(crate) fn owners_of(&self, key: &str) -> Vec<String> {
        let located = self[1].get(&format!("/admin/locate/{}", http::encode(key))).expect(200);
        let owners = located["owners"].as_array().expect("owners").iter();
        owners.map(|owner| owner["node_id"].as_str().expect("a name").to_owned()).collect()
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, number: usize) {
        let node = self.node(number);
        node.process().kill();
        node.set_running(false);
    }

    /// Freezes it as it is.
    pub(crate) fn stop(&mut self, number: usize) {
        self.node(number).signal(Signal::STOP);
        self.node(number).set_running(false);
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self, number: usize) {
        self.node(number).signal(Signal::CONT);
        self.node(number).set_running(true);
    }

    /// Asks it to leave.
    pub(crate) fn ask_to_leave(&mut self, number: usize) {
        self.node(number).signal(Signal::TERM);
    }

    /// Asks it to leave, and waits for its end.
    pub(crate) fn terminate(&mut self, number: usize) -> ExitStatus {
        self.ask_to_leave(number);
        self.wait_for_end(number)
    }

    /// Waits for the end of a node that is about to end by itself.
    pub(crate) fn wait_for_end(&mut self, number: usize) -> ExitStatus {
        let node = self.node(number);
        node.set_running(false);
        node.process().wait(PATIENCE)
    }

    /// Starts it anew as it was.
    pub(crate) fn restart(&mut self, number: usize) {
        self.node(number).restart();
    }

    /// Whether every running node serves and sees exactly the running ones, all healthy, in one ring.
    pub(crate) fn is_whole(&self) -> bool {
        let expected: Vec<(&str, &str)> = self.running().map(|node| (&*node.id, "healthy")).collect();
        self.agrees_on(&expected)
    }

    /// Whether every running node serves and sees these members with these statuses, in the one ring that follows.
    pub(crate) fn agrees_on(&self, members: &[(&str, &str)]) -> bool {
        let mut expected = members.to_vec();
        expected.sort_unstable();
        let mut rings = Vec::new();
        for node in self.running() {
            let Some(view) = node.view() else { return false };
            if view.statuses() != expected || !view.is_settled() || !node.is_healthy() {
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
            let view = if node.is_running() { format!("{:?}", node.view()) } else { "not running".into() };
            format!("{} at {}: {view}\n{}\n", node.id, node.address, node.log().tail(8))
        };
        self.nodes.iter().map(describe).collect()
    }
}
