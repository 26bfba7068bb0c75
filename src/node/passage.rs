//! Whether datagrams pass between this node and one that wants to join, and if not, why not.
//!
//! Asked by a member that is called by the joiner over TCP; the joiner says over TCP what it heard. Invariant: a reason names
//! the protocol, and the direction in which it fails.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::Node;
use crate::gossip::{DATAGRAM_BYTES_MAX, PAYLOAD_BYTES_MAX, Passage};
use crate::link::{Reply, Request};
use crate::model::NodeId;
use crate::security::WINDOW_MS;

/// What is known of datagrams that did not all pass.
struct Failed {
    here: SocketAddr,
    there: SocketAddr,
    /// What came back.
    passage: Passage,
    /// The longest payload that arrived there, and how far the clocks are apart; none if the node there did not say.
    heard: Option<(usize, u64)>,
    is_sealed: bool,
}

/// Tries the path to the node at `address` and back, with datagrams as long as any.
pub(super) async fn check(
    node: &Node,
    node_id: &NodeId,
    address: SocketAddr,
    deadline: Instant,
) -> Result<(), String> {
    let passage = node.0.gossip.try_path(address).await;
    if passage == Passage::Open {
        return Ok(());
    }
    let request = Request::Heard { address: node.0.address };
    let heard = match node.0.links.call((node_id, address), &request, &[], deadline).await {
        Ok((Reply::Heard { bytes, now_ms }, _)) => Some((bytes as usize, now_ms.abs_diff(node.wall_ms()))),
        _ => None,
    };
    let is_sealed = node.0.gossip.is_sealed();
    Err(Failed { here: node.0.address, there: address, passage, heard, is_sealed }.reason())
}

impl Failed {
    fn reason(&self) -> String {
        let Failed { here, there, .. } = self;
        let Some((heard, apart_ms)) = self.heard else {
            return format!("TCP works, UDP from {here} to {there} gets no answer: a firewall?");
        };
        if self.is_sealed && apart_ms > WINDOW_MS {
            let (apart, window) = ((apart_ms + 500) / 1000, WINDOW_MS / 1000);
            return format!(
                "the clocks of {here} and {there} are {apart} s apart; sealed datagrams are accepted within {window} s"
            );
        }
        let (arrives, answered) = (heard >= PAYLOAD_BYTES_MAX, self.passage == Passage::Narrow);
        let (from, to) = if heard > 0 && (arrives || !answered) { (there, here) } else { (here, there) };
        if answered {
            format!(
                "UDP datagrams of {DATAGRAM_BYTES_MAX} bytes from {from} to {to} do not arrive, short ones do: the MTU of a VPN?"
            )
        } else {
            format!("TCP works, UDP from {from} to {to} does not arrive: a firewall?")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(passage: Passage, heard: Option<(usize, u64)>) -> String {
        let [here, there] = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 8001)));
        Failed { here, there, passage, heard, is_sealed: true }.reason()
    }

    #[test]
    fn a_reason_names_the_protocol_and_the_direction() {
        let long = PAYLOAD_BYTES_MAX;
        for (passage, heard, expected) in [
            (
                Passage::Closed,
                Some((0, 0)),
                "UDP from 10.0.0.1:8001 to 10.0.0.2:8001 does not arrive: a firewall",
            ),
            (Passage::Closed, Some((long, 0)), "UDP from 10.0.0.2:8001 to 10.0.0.1:8001 does not arrive"),
            (Passage::Closed, Some((20, 0)), "UDP from 10.0.0.2:8001 to 10.0.0.1:8001 does not arrive"),
            (Passage::Narrow, Some((20, 0)), "bytes from 10.0.0.1:8001 to 10.0.0.2:8001 do not arrive"),
            (Passage::Narrow, Some((long, 0)), "bytes from 10.0.0.2:8001 to 10.0.0.1:8001 do not arrive"),
            (Passage::Closed, Some((0, 40_100)), "are 40 s apart; sealed datagrams are accepted within 30 s"),
            (Passage::Closed, None, "UDP from 10.0.0.1:8001 to 10.0.0.2:8001 gets no answer"),
        ] {
            let said = reason(passage, heard);
            assert!(said.contains(expected), "{said}");
        }
    }
}
