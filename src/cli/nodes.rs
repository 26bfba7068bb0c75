//! `shoal nodes`: the members of the cluster, as a table.

use super::{Failure, Target, output};
use crate::client::{Cluster, Member};

pub(super) async fn run(target: &Target) -> Result<(), Failure> {
    output::write(render(&target.client()?.cluster().await?)).await
}

fn render(cluster: &Cluster) -> String {
    let head = ["NODE", "ADDRESS", "STATUS", "SLOTS", "RTT", "LAST SEEN"].map(str::to_string);
    let rows: Vec<_> = std::iter::once(head).chain(cluster.cluster_status.nodes.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text.push_str(&format!("ring {}, as {} sees it\n", cluster.ring, cluster.current_node));
    text
}

fn row(member: &Member) -> [String; 6] {
    let rtt =
        if member.rtt_us == 0 { "-".into() } else { format!("{:.2} ms", member.rtt_us as f64 / 1000.0) };
    let seen = member.last_seen.clone().unwrap_or_else(|| "-".into());
    [
        member.node_id.clone(),
        member.address.clone(),
        member.status.clone(),
        member.slots.to_string(),
        rtt,
        seen,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_are_aligned() {
        let cluster = serde_json::json!({"current_node": "a", "ring": "00ff", "cluster_status": {
        "total_nodes": 2, "healthy_nodes": 1, "nodes": [
            {"node_id": "a", "address": "127.0.0.1:1", "status": "healthy", "last_seen": "now",
             "slots": 16384},
            {"node_id": "node-b", "address": "127.0.0.1:22", "status": "unhealthy", "rtt_us": 1234},
        ]}});
        let table = render(&serde_json::from_value(cluster).unwrap());
        assert_eq!(
            table,
            "NODE    ADDRESS       STATUS     SLOTS  RTT      LAST SEEN\n\
             a       127.0.0.1:1   healthy    16384  -        now\n\
             node-b  127.0.0.1:22  unhealthy  0      1.23 ms  -\n\
             ring 00ff, as a sees it\n"
        );
    }
}
