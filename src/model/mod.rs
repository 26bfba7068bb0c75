//! Floor 0: what a key, an entry, a version, a placement are, and the rules they follow.
//!
//! Owns no I/O, no clock and no randomness: time and seeds are arguments, and what happened is returned for
//! the caller to count. Invariant: the same calls give the same results.

mod condition;
mod content_type;
mod entry;
mod fence;
mod key;
mod ledger;
mod members;
pub(crate) mod mix;
mod recent;
mod ring;
mod slots;
mod store;
mod version;

pub use condition::Condition;
pub use content_type::{ContentType, ContentTypeError};
pub use entry::{Entry, Expiry, Record, TimeLeft, Tombstone};
pub use fence::{Fence, Promises};
pub use key::{Key, KeyError, NodeId, NodeIdError, Slot, SlotError};
pub use ledger::Ledger;
pub use members::{Absence, Change, Counts, Member, Members, Seen, Status};
pub use recent::{Done, Recent};
pub use ring::{Fingerprint, FingerprintError, Ring};
pub use slots::SlotSet;
pub use store::{Current, Evicted, Lookup, Put, Store, StoreConfig, StoreError, Swept, Written};
pub use version::{Clock, Observed, Version, VersionError};
