//! Floor 0: what a key, an entry, a version, a placement are, and the rules they follow.
//!
//! Owns no I/O, no clock and no randomness: time and seeds are arguments, and what happened is returned for
//! the caller to count. Invariant: the same calls give the same results.

mod condition;
mod entry;
mod key;
mod members;
pub(crate) mod mix;
mod ring;
mod store;
mod version;

pub use condition::Condition;
pub use entry::Entry;
pub use key::{Key, KeyError, NodeId, NodeIdError, Slot, SlotError};
pub use members::{Change, Counts, Member, Members, Seen, Status};
pub use ring::{Fingerprint, FingerprintError, Ring};
pub use store::{Evicted, Lookup, Put, Store, StoreConfig, StoreError};
pub use version::{Clock, Observed, Version, VersionError};
