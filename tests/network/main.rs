//! Partial failures of a real network: each node in a namespace of its own, all on one bridge, and faults that single nodes,
//! directions or protocols have.
//!
//! [`net`] builds the network, [`fault`] has the faults as data, [`load`] asks all nodes all the time and keeps what came of it,
//! [`table`] puts the two together. [`schedules`] are the schedules by which the protocol was seen to break a promise. Needs
//! root: `make test-net`.

mod clocks;
mod fault;
mod load;
mod net;
mod schedules;
mod table;

/// What there is already to run and ask nodes.
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../system/cluster.rs"]
mod cluster;
#[path = "../../benches/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../../benches/failure/http.rs"]
mod connection;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../system/http.rs"]
mod http;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../system/namespace.rs"]
mod namespace;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../system/node.rs"]
mod node;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../system/process.rs"]
mod process;
