//! A cluster of real processes, and what can be asked of it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::common::{Node, Result, SHOAL, are_whole, http, wait_until};
use super::load::{Keys, name, number_in, value};

/// Keys of one batch.
const BATCH: usize = 500;

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    copies: String,
}

impl Cluster {
    pub(crate) fn start(size: usize, copies: usize) -> Result<Cluster> {
        let mut cluster = Cluster { nodes: Vec::new(), copies: copies.to_string() };
        for _ in 0..size {
            cluster.add("127.0.0.1:0", None)?;
        }
        cluster.wait_until_replicated()?;
        Ok(cluster)
    }

    /// Starts one more node; its place among the nodes.
    pub(crate) fn add(&mut self, listen: &str, id: Option<&str>) -> Result<usize> {
        let id = id.map_or(format!("n{}", self.nodes.len() + 1), str::to_string);
        let seeds = self.nodes.iter().map(|node| node.address.to_string()).collect::<Vec<_>>().join(",");
        let mut flags = vec!["--copies", &self.copies];
        if !seeds.is_empty() {
            flags.extend(["--join", &seeds]);
        }
        self.nodes.push(Node::start(SHOAL, &id, listen, &flags)?);
        Ok(self.nodes.len() - 1)
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// Those of all nodes but one.
    pub(crate) fn addresses_without(&self, one: usize) -> Vec<SocketAddr> {
        let others = self.nodes.iter().enumerate().filter(|(index, _)| *index != one);
        others.map(|(_, node)| node.address).collect()
    }

    pub(crate) fn signal(&self, node: usize, signal: &str) -> Result<()> {
        let pid = self.nodes[node].process.0.id().to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status()?;
        if sent.success() { Ok(()) } else { Err(format!("kill -{signal} {pid} failed").into()) }
    }

    /// Whether all nodes see each other, go by one table, and nobody lacks anything.
    pub(crate) fn is_replicated(&self) -> bool {
        are_whole(&self.nodes) && self.nodes.iter().all(|node| under_replicated(node.address) == Some(0))
    }

    pub(crate) fn wait_until_replicated(&self) -> Result<Duration> {
        let started = Instant::now();
        wait_until("all nodes have all copies", || self.is_replicated())?;
        Ok(started.elapsed())
    }

    /// Stores every key once.
    pub(crate) fn fill(&self, keys: &Keys) -> Result<()> {
        let numbers: Vec<usize> = (0..keys.count()).collect();
        for (index, chunk) in numbers.chunks(BATCH).enumerate() {
            let puts = chunk.iter().map(|key| json!({"op": "put", "key": name(*key), "value": value(1)}));
            let results = batch(self.nodes[index % self.nodes.len()].address, &puts.collect::<Vec<_>>())?;
            for (key, result) in chunk.iter().zip(results) {
                if result["status"] != 200 || result["degraded"] == true {
                    return Err(format!("{}: {result}", name(*key)).into());
                }
                keys.acknowledge(*key, 1);
            }
        }
        Ok(())
    }

    /// The keys that a node does not find, or only in an older version than was acknowledged.
    pub(crate) fn lost(&self, at: usize, keys: &Keys) -> Result<Vec<usize>> {
        let numbers: Vec<usize> = (0..keys.count()).collect();
        let mut lost = Vec::new();
        for chunk in numbers.chunks(BATCH) {
            let gets = chunk.iter().map(|key| json!({"op": "get", "key": name(*key)}));
            let results = batch(self.nodes[at].address, &gets.collect::<Vec<_>>())?;
            for (key, result) in chunk.iter().zip(results) {
                let found = number_in(result.to_string().as_bytes());
                if found.is_none_or(|found| found < keys.acknowledged(*key)) {
                    lost.push(*key);
                }
            }
        }
        Ok(lost)
    }

    /// The owners of a key that hold it, in order.
    pub(crate) fn holders(&self, at: usize, key: usize) -> Result<Vec<String>> {
        let (_, body) = http(self.nodes[at].address, "GET", &format!("/admin/locate/{}", name(key)), "")?;
        let answer: Value = serde_json::from_str(&body)?;
        let owners = answer["owners"].as_array().ok_or("no owners")?;
        let holding = owners.iter().filter(|owner| owner["holds"] == true);
        Ok(holding.filter_map(|owner| Some(owner["node_id"].as_str()?.to_string())).collect())
    }

    /// How many of every `step`th key do not have `copies` copies.
    pub(crate) fn short_of_copies(&self, keys: &Keys, step: usize, copies: usize) -> Result<usize> {
        let mut short = 0;
        for key in (0..keys.count()).step_by(step) {
            short += usize::from(self.holders(0, key)?.len() != copies);
        }
        Ok(short)
    }
}

/// The results of a batch.
fn batch(to: SocketAddr, operations: &[Value]) -> Result<Vec<Value>> {
    let (status, body) = http(to, "POST", "/api/v1/batch", &json!({"operations": operations}).to_string())?;
    let mut answer: Value = serde_json::from_str(&body)?;
    match answer["results"].take() {
        Value::Array(results) if status == 200 => Ok(results),
        _ => Err(format!("{status}: {body}").into()),
    }
}

/// A node's own figure, if it answers.
pub(crate) fn metric(node: SocketAddr, metric: &str) -> Option<u64> {
    let (_, text) = http(node, "GET", "/metrics", "").ok()?;
    let line = text.lines().find(|line| line.starts_with(metric))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn under_replicated(node: SocketAddr) -> Option<u64> {
    metric(node, "shoal_under_replicated_slots")
}
