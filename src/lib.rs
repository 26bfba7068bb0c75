//! shoal: a gossip-based peer-to-peer cache.
//!
//! A handful of equal nodes, started with the address of any peer, find each other by SWIM over UDP, place keys on a ring of
//! 16384 slots, and serve an HTTP interface from any node.
//!
//! # The floors
//!
//! Imports point downwards only; siblings on floors 1 and 3 do not know each other.
//!
//! | floor | modules | what it is |
//! | --- | --- | --- |
//! | 4 | [`cli`], [`config`], [`server`] | assembly: parse, wire together, start, stop |
//! | 3 | [`http`] | the edge: turns a protocol into calls on [`node::Node`] |
//! | 2 | [`node`] | what the cluster does with a key: route, replicate, repair |
//! | 1 | [`gossip`], [`link`], [`client`], [`telemetry`], [`security`] | I/O; all above [`model`] may use the last two |
//! | 0 | [`model`] | pure: no sockets, no clock, no global randomness |
//!
//! [`net`] is the one place that names the network and the wall clock.
//!
//! # The life of a GET
//!
//! `http` accepts the connection and parses the path into a [`model::Key`], which knows its slot. [`node::Node::perform`]
//! looks the slot up in the ring (one index). If this node is an owner with authority over the slot, it reads its
//! [`model::Store`]. Otherwise it sends one frame over its `link` to the primary, whose answer comes back as one frame. `http`
//! writes the value into one buffer and answers. Before a miss is a 404 the other owners are asked, too; where no owner is sure,
//! because the table has just changed or an owner fell silent, the node settles the request: it gathers what everybody has.
//!
//! Authority is a matter of leases: each member tells every other, again and again, what that one may lack
//! ([`model::Ledger`]); an owner answers alone for as long as it has been told that it lacks nothing.

pub mod cli;
pub mod client;
pub mod config;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gossip;
pub mod http;
pub mod link;
pub mod model;
pub mod net;
pub mod node;
pub mod security;
pub mod server;
pub mod telemetry;
