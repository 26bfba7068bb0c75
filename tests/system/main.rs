//! Whole clusters as their users meet them: real processes, real sockets on loopback, real signals.
//!
//! [`cluster`] starts, kills, freezes and watches nodes; [`http`] talks to them without forgiving anything.
//! Every wait has a deadline, and a sleep stands only where the scenario is a duration.

mod access;
mod admission;
mod authorities;
mod cluster;
mod command_line;
mod conditional;
mod datagrams;
mod environment;
mod events;
mod failures;
mod fields;
mod files;
mod firewall;
mod formation;
mod http;
mod interface;
mod keys_and_values;
mod limits;
mod link_abuse;
mod logs;
mod machine;
mod moving;
mod namespace;
mod node;
mod partial;
mod poison;
mod process;
mod proxy;
mod refusals;
mod relay;
mod replication;
mod secret;
mod split;
mod stopping;
mod strangers;
mod tls;

use parking_lot::{Mutex, MutexGuard};

/// Held by tests that measure time or start many processes, so that they do not disturb each other.
fn measured() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock()
}
