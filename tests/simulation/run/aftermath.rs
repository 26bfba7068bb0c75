//! What must be true of a cluster that was left alone: all nodes agree, and owners hold the same.
//!
//! Invariant: what was evicted is a miss and never an older value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{CLIENTS, Load, now_ms};
use crate::client::{Answer, Client};
use crate::operation::{Action, Outcome};

impl Load {
    /// All of the first `nodes` see as many healthy nodes and have the same table.
    pub(super) async fn check_agreement(&self, nodes: usize) -> Result<(), String> {
        let mut client = Client::new(self.access.clone());
        let mut tables = Vec::new();
        for node in 0..nodes {
            let cluster = self.json(&mut client, node, "/admin/cluster").await?;
            tables.push(cluster["ring"].to_string());
            let healthy = cluster["cluster_status"]["healthy_nodes"].as_u64();
            if healthy != Some(nodes as u64) {
                return Err(format!("node{} sees {healthy:?} of {nodes} healthy nodes: {cluster}", node + 1));
            }
        }
        if tables.iter().any(|table| *table != tables[0]) {
            return Err(format!("the nodes have different tables: {tables:?}"));
        }
        Ok(())
    }

    /// The owners of a key, and nobody else, hold the same; every node answers with that.
    pub(super) async fn check_copies(&self, client: &mut Client, key: usize) -> Result<(), String> {
        let located = self.json(client, 0, &format!("/admin/locate/k{key}")).await?;
        let owners = located["owners"].as_array().cloned().unwrap_or_default();
        let owners: BTreeSet<&str> = owners.iter().filter_map(|owner| owner["node_id"].as_str()).collect();
        let mut held = BTreeMap::new();
        let mut answers = BTreeSet::new();
        for node in 0..self.schedule.nodes_ever() {
            let name = format!("node{}", node + 1);
            let copy = self.get(client, node, &format!("/internal/cache/k{key}")).await?;
            let value = self.access.unpad(&copy.body);
            held.insert(name, (copy.status == 200).then_some((copy.etag, value)));
            match self.perform(client, CLIENTS, node, key, Action::Get).await {
                Outcome::Found { value, version } => drop(answers.insert(Some((version, value)))),
                Outcome::Missing => drop(answers.insert(None)),
                other => {
                    return Err(format!("an error after the quiet: k{key} at node{}: {other:?}", node + 1));
                }
            }
        }
        if self.schedule.is_small {
            // What is not there was evicted.
            answers.retain(Option::is_some);
            held.retain(|_, copy| copy.is_some());
            answers.extend(answers.is_empty().then_some(None));
        }
        if answers.len() != 1 {
            return Err(format!(
                "nodes answer differently after the quiet: k{key}: {answers:?}; held: {held:?}"
            ));
        }
        let answer = answers.pop_first().flatten();
        if self.schedule.is_small && answer.is_none() {
            return Ok(());
        }
        for (name, copy) in &held {
            let wanted = if owners.contains(name.as_str()) { &answer } else { &None };
            if copy != wanted {
                let what = if wanted.is_none() { "a copy too many" } else { "a copy missing or old" };
                return Err(format!("{what} after the quiet: k{key} at {name}, owners {owners:?}: {held:?}"));
            }
        }
        let history = self.history.borrow();
        match (&answer, history.newest_version(key, now_ms(), &self.schedule)) {
            (Some((version, _)), Some(newest)) if version.as_str() < newest => Err(format!(
                "an acknowledged version is gone after the quiet: k{key}: {newest}, {version} is left"
            )),
            _ => Ok(()),
        }
    }

    async fn json(&self, client: &mut Client, node: usize, path: &str) -> Result<Value, String> {
        let answer = self.get(client, node, path).await?;
        serde_json::from_slice(&answer.body).map_err(|error| format!("node{} at {path}: {error}", node + 1))
    }

    async fn get(&self, client: &mut Client, node: usize, path: &str) -> Result<Answer, String> {
        let asked = client.get(self.address(node), path).await;
        asked.map_err(|failure| format!("node{} at {path}: {failure:?}", node + 1))
    }
}
