//! Owns looking at an item without touching its recency.
//!
//! The LRU hands out the key part of an entry, where our items are, only together with moving it to the
//! front; without moving it, it merely compares. So this is a key that reads the item it is found equal to.
//! Invariant: it is equal to exactly the items of its key.

use std::{
    borrow::Borrow,
    cell::Cell,
    hash::{BuildHasher, Hash, Hasher},
};

use lru::LruCache;

use super::item::Item;

/// What `read` makes of the item of that key, if there is one.
pub(super) fn peek<R>(
    lru: &LruCache<Item, (), impl BuildHasher>,
    key: &[u8],
    read: impl Fn(&Item) -> R,
) -> Option<R> {
    let reader = Reader { key, read, result: Cell::new(None) };
    lru.contains::<dyn Probe + '_>(&reader);
    reader.result.into_inner()
}

trait Probe {
    fn key(&self) -> &[u8];

    /// Tells a reader what it is equal to.
    fn found(&self, _equal: &dyn Probe) {}

    fn item(&self) -> Option<&Item> {
        None
    }
}

struct Reader<'a, R, F> {
    key: &'a [u8],
    read: F,
    result: Cell<Option<R>>,
}

impl<R, F: Fn(&Item) -> R> Probe for Reader<'_, R, F> {
    fn key(&self) -> &[u8] {
        self.key
    }

    fn found(&self, equal: &dyn Probe) {
        self.result.set(equal.item().map(&self.read));
    }
}

impl Probe for Item {
    fn key(&self) -> &[u8] {
        Item::key(self)
    }

    fn item(&self) -> Option<&Item> {
        Some(self)
    }
}

impl<'a> Borrow<dyn Probe + 'a> for Item {
    fn borrow(&self) -> &(dyn Probe + 'a) {
        self
    }
}

impl Hash for dyn Probe + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialEq for dyn Probe + '_ {
    fn eq(&self, stored: &Self) -> bool {
        let equal = self.key() == stored.key();
        if equal {
            self.found(stored);
        }
        equal
    }
}

impl Eq for dyn Probe + '_ {}
