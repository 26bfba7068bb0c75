//! What shoal knows without doing any I/O: keys, placement, versions, the store, the membership view.
//!
//! Owns no clock and no randomness: time and seeds are arguments, and what happened is returned for the caller to count.
//! Invariant: the same calls give the same results.

mod entry;
mod key;
mod members;
mod mix;
mod ring;
mod store;
mod version;

pub use self::entry::Entry;
pub use self::key::{Key, KeyError, NodeId, NodeIdError, Slot, SlotError};
pub use self::members::{Change, Counts, Member, Members, Seen, Status};
pub use self::ring::{Fingerprint, FingerprintError, Ring};
pub use self::store::{Evicted, Lookup, Put, Store, StoreConfig, StoreError};
pub use self::version::{Clock, Observed, Version, VersionError};
