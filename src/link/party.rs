//! The parties of a link: the node that asks, the node that is called, and the node that answers.
//!
//! Their names and addresses travel in headers and are bound into the proofs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;

use crate::model::NodeId;
use crate::security::Hash;

/// One process of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The address that it tells the others.
    pub address: SocketAddr,
    /// The node's name.
    pub node_id: NodeId,
    /// Which of the node's processes it is.
    pub boot: u64,
}

impl Party {
    pub(super) fn parse(text: &str) -> Option<Party> {
        let mut words = text.split(' ');
        let (address, node_id, boot) = (words.next()?, words.next()?, words.next()?);
        let party = Party {
            address: address.parse().ok()?,
            node_id: NodeId::parse(node_id).ok()?,
            boot: u64::from_str_radix(boot, 16).ok()?,
        };
        words.next().is_none().then_some(party)
    }

    /// Whether it is the node that is called. A call without a name is for whichever node answers: an address to join by may
    /// differ from the one that the node advertises.
    pub(super) fn is_called(&self, called: Called<'_>) -> bool {
        called
            .node_id
            .is_none_or(|node_id| self.node_id == *node_id && is_same_place(self.address, called.address))
    }
}

impl fmt::Display for Party {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {:016x}", self.address, self.node_id, self.boot)
    }
}

/// The node that a link, or a request over it, is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Called<'a> {
    /// Its address.
    pub address: SocketAddr,
    /// The member expected at the address; none if any node may answer.
    pub node_id: Option<&'a NodeId>,
}

impl From<SocketAddr> for Called<'_> {
    fn from(address: SocketAddr) -> Self {
        Called { address, node_id: None }
    }
}

impl<'a> From<(&'a NodeId, SocketAddr)> for Called<'a> {
    fn from((node_id, address): (&'a NodeId, SocketAddr)) -> Self {
        Called { address, node_id: Some(node_id) }
    }
}

impl fmt::Display for Called<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node_id {
            None => write!(out, "{}", self.address),
            Some(node_id) => write!(out, "{} {node_id}", self.address),
        }
    }
}

/// Whether `text`, as [`Called`] writes it, calls this process, as far as it says.
pub(super) fn calls(text: &str, me: &Party) -> Option<bool> {
    let (address, node_id) = match text.split_once(' ') {
        None => (text, None),
        Some((address, node_id)) => (address, Some(NodeId::parse(node_id).ok()?)),
    };
    let called = Called { address: address.parse().ok()?, node_id: node_id.as_ref() };
    Some(me.is_called(called))
}

fn is_same_place(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip().to_canonical(), one.port()) == (other.ip().to_canonical(), other.port())
}

/// The nonces of the links that this node is asking for, by which it knows its own requests when they reach it.
#[derive(Debug, Default)]
pub struct Nonces(Mutex<BTreeMap<Hash, bool>>);

impl Nonces {
    /// Whether a request with this nonce is one of this node's own; then its sender learns of it.
    pub(super) fn meet(&self, nonce: &Hash) -> bool {
        self.0.lock().get_mut(nonce).map(|came_back| *came_back = true).is_some()
    }
}

/// A new nonce, which counts as this node's own for as long as this is kept.
pub(super) struct OwnNonce {
    all: Arc<Nonces>,
    nonce: Hash,
}

impl OwnNonce {
    pub(super) fn new(all: &Arc<Nonces>) -> OwnNonce {
        let nonce = nonce();
        all.0.lock().insert(nonce, false);
        OwnNonce { all: all.clone(), nonce }
    }

    pub(super) fn as_hash(&self) -> &Hash {
        &self.nonce
    }

    /// Whether it has reached this node itself.
    pub(super) fn came_back(&self) -> bool {
        self.all.0.lock().get(&self.nonce).is_some_and(|came_back| *came_back)
    }
}

impl Drop for OwnNonce {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.nonce);
    }
}

/// A nonce has to be new for each connection, and nothing more.
pub(super) fn nonce() -> Hash {
    let mut nonce = Hash::default();
    rand::rng().fill_bytes(&mut nonce);
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(address: &str, node_id: &str) -> Party {
        Party { address: address.parse().unwrap(), node_id: NodeId::parse(node_id).unwrap(), boot: 7 }
    }

    #[test]
    fn a_party_is_read_as_it_was_written() {
        for party in [party("127.0.0.1:8001", "n1"), party("[fe80::1%3]:1", "a.b_c-d")] {
            assert_eq!(Party::parse(&party.to_string()), Some(party));
        }
        for text in
            ["", "127.0.0.1:1", "127.0.0.1:1 n1", "127.0.0.1:1 n1 7 8", "n1 127.0.0.1:1 7", "127.0.0.1:1  7"]
        {
            assert_eq!(Party::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_member_is_called_by_name_and_address_and_anybody_by_any_address() {
        let me = party("10.0.0.1:8001", "n1");
        for (text, calls_me) in [
            ("10.0.0.1:8001 n1", Some(true)),
            ("[::ffff:10.0.0.1]:8001 n1", Some(true)),
            ("10.0.0.1:8001 n2", Some(false)),
            ("10.0.0.1:8002 n1", Some(false)),
            ("10.0.0.2:8001 n1", Some(false)),
            ("10.0.0.2:9", Some(true)),
            ("10.0.0.1", None),
            ("10.0.0.1:8001 n1 n1", None),
            ("", None),
        ] {
            assert_eq!(calls(text, &me), calls_me, "{text:?}");
        }
        let called = Called::from((&me.node_id, me.address));
        assert_eq!(calls(&called.to_string(), &me), Some(true));
    }

    #[test]
    fn a_nonce_is_known_as_ones_own_while_its_link_is_being_asked_for() {
        let all = Arc::<Nonces>::default();
        let own = OwnNonce::new(&all);
        let nonce = *own.as_hash();
        assert!(!all.meet(&[0; 32]) && !own.came_back());
        assert!(all.meet(&nonce) && own.came_back());
        drop(own);
        assert!(!all.meet(&nonce));
    }
}
