//! Whole clusters as their users meet them: real processes, real sockets on loopback, real signals.
//!
//! [`cluster`] starts, kills, freezes and watches nodes; [`http`] talks to them without forgiving anything. Every wait
//! has a deadline, and a sleep stands only where the scenario is a duration.

mod cluster;
mod failures;
mod formation;
mod http;
mod moving;
mod process;
mod proxy;
mod split;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by tests that measure time or start many processes, so that they do not disturb each other.
fn measured() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}
