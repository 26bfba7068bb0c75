//! Who a node is to the gossip layer.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::NodeId;

/// One life of a node at one address.
///
/// `epoch` grows with every renewal and wins conflicts over the same address; `boot` names the process, so that a renewal
/// (same memory) can be told from a restart (empty memory). The ring knows neither: it is keyed by `node_id` alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The advertised address, for UDP and TCP.
    pub address: SocketAddr,
    /// The node's name.
    pub node_id: NodeId,
    /// Unix milliseconds at start, plus one for each renewal.
    pub epoch: u64,
    /// Unix milliseconds at start in the upper 48 bits, a random number in the lower 16.
    pub boot: u64,
}

impl Identity {
    /// The identity of a process that starts at `now_ms`.
    #[must_use]
    pub fn new(node_id: NodeId, address: SocketAddr, now_ms: u64, random: u16) -> Identity {
        Identity { address, node_id, epoch: now_ms, boot: (now_ms << 16) | u64::from(random) }
    }

    /// The same process under an identity that wins against one with epoch `other`.
    #[must_use]
    pub fn outliving(&self, other: u64) -> Identity {
        Identity { epoch: self.epoch.max(other) + 1, ..self.clone() }
    }
}

impl foca::Identity for Identity {
    type Addr = SocketAddr;

    /// The next epoch. No clock is asked: one more is enough to win, and a restart, whose epoch is its start time, still
    /// wins over a process that renewed less than once a millisecond.
    fn renew(&self) -> Option<Identity> {
        Some(self.outliving(self.epoch))
    }

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn win_addr_conflict(&self, adversary: &Identity) -> bool {
        (self.epoch, self.boot) > (adversary.epoch, adversary.boot)
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::*;

    fn started_at(now_ms: u64) -> Identity {
        Identity::new(NodeId::parse("a").unwrap(), SocketAddr::from(([127, 0, 0, 1], 1)), now_ms, 7)
    }

    #[test]
    fn a_renewal_wins_and_keeps_the_process() {
        let old = started_at(1000);
        let new = old.renew().unwrap();
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new));
        assert_eq!(new.boot, old.boot);
    }

    #[test]
    fn a_restart_wins_over_a_life_that_renewed_often() {
        let mut old = started_at(1000);
        for _ in 0..50 {
            old = old.renew().unwrap();
        }
        let restarted = started_at(1100);
        assert!(restarted.win_addr_conflict(&old));
        assert_ne!(restarted.boot, old.boot);
    }

    #[test]
    fn a_restart_with_a_clock_set_back_can_still_outlive_its_former_self() {
        let former = started_at(5000);
        let restarted = started_at(1000).outliving(former.epoch);
        assert!(restarted.win_addr_conflict(&former));
    }
}
