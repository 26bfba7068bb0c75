//! Owns how an entry lies in memory: an item is key and entry in as few bytes as can be.
//!
//! Does not know the table it stands in. Invariant: an item is hashed and compared by its key alone.
//!
//! An item of ordinary size is one allocation: version (12 bytes), key length and flags (2), expiry (12, if
//! any), Content-Type (a length byte and the text, if any), key, value. The list node and the table slot
//! point to it by 16 bytes.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
};

use bytes::Bytes;

use super::cost;
use crate::model::{ContentType, Entry, Expiry, Key, Version, entry::is_over};

/// Values up to this are copied out, longer ones shared: a reader holds the shard's lock for the length of a
/// small memcpy at most.
const SMALL_VALUE_BYTES_MAX: usize = 4096;

/// A key with its entry.
pub(super) enum Item {
    Small(Box<[u8]>),
    Large(Box<Large>),
}

const _: () = assert!(size_of::<Item>() == 16, "the tag of an item must fit into its pointer's niche");

/// What does not fit the packed form. The value has its own exact allocation and is handed out by reference.
pub(super) struct Large {
    key: Box<[u8]>,
    entry: Entry,
}

// The packed header. Ten bits hold a key length less one: 1 to 1024.
const TIME: usize = 0;
const NODE: usize = 8;
const TAG: usize = 12;
const HEADER: usize = 14;
const KEY_LENGTH: u16 = 0x03ff;
/// The moment (8 bytes) and for how long the key is remembered (4).
const EXPIRY: usize = 12;
const HAS_EXPIRY: u16 = 0x0400;
const HAS_CONTENT_TYPE: u16 = 0x0800;

const _: () = assert!(Key::BYTES_MAX - 1 == KEY_LENGTH as usize);

impl Item {
    /// Copies both, so that no network buffer is kept alive by a slice of it.
    pub(super) fn new(key: &Key, entry: &Entry) -> Item {
        let key = key.as_str().as_bytes();
        let content_type_length = match &entry.content_type {
            None => Some(0),
            Some(content_type) => u8::try_from(content_type.as_str().len()).ok(),
        };
        match content_type_length {
            Some(length) if entry.value.len() <= SMALL_VALUE_BYTES_MAX => {
                Item::Small(pack(key, entry, length))
            }
            _ => Item::Large(Box::new(Large {
                key: key.into(),
                entry: Entry { value: Bytes::copy_from_slice(&entry.value), ..entry.clone() },
            })),
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        match self {
            Item::Small(packed) => Packed(packed).key(),
            Item::Large(large) => &large.key,
        }
    }

    pub(super) fn version(&self) -> Version {
        match self {
            Item::Small(packed) => Packed(packed).version(),
            Item::Large(large) => large.entry.version,
        }
    }

    /// Stamps an item that was made before its version was known.
    pub(super) fn set_version(&mut self, version: Version) {
        match self {
            Item::Small(packed) => {
                packed[TIME..NODE].copy_from_slice(&version.time().to_le_bytes());
                packed[NODE..TAG].copy_from_slice(&version.node().to_le_bytes());
            }
            Item::Large(large) => large.entry.version = version,
        }
    }

    pub(super) fn expiry(&self) -> Option<Expiry> {
        match self {
            Item::Small(packed) => Packed(packed).expiry(),
            Item::Large(large) => large.entry.expiry,
        }
    }

    /// The expiry, if it is over.
    pub(super) fn expired(&self, now_ms: u64) -> Option<Expiry> {
        self.expiry().filter(|expiry| is_over(Some(expiry.at_ms), now_ms))
    }

    pub(super) fn to_entry(&self) -> Entry {
        match self {
            Item::Small(packed) => Packed(packed).to_entry(),
            Item::Large(large) => large.entry.clone(),
        }
    }

    /// Bytes this item takes in its shard, but for its bucket in the table.
    pub(super) fn cost(&self) -> usize {
        let own = match self {
            Item::Small(packed) => cost::allocated(packed.len()),
            Item::Large(large) => large.cost(),
        };
        let expiry = match self.expiry() {
            Some(_) => cost::EXPIRY + cost::allocated(self.key().len()),
            None => 0,
        };
        own + expiry + LIST_NODE
    }
}

/// The LRU's node: an item and two pointers.
const LIST_NODE: usize = cost::allocated(size_of::<Item>() + 2 * size_of::<usize>());

impl Large {
    fn cost(&self) -> usize {
        // A value that is shared has a reference count of its own, a Content-Type has two.
        let value = cost::allocated(self.entry.value.len()) + cost::allocated(3 * size_of::<usize>());
        let content_type = self
            .entry
            .content_type
            .as_ref()
            .map_or(0, |text| cost::allocated(text.as_str().len() + 2 * size_of::<usize>()));
        cost::allocated(size_of::<Large>()) + cost::allocated(self.key.len()) + value + content_type
    }
}

fn pack(key: &[u8], entry: &Entry, content_type_length: u8) -> Box<[u8]> {
    let content_type = entry.content_type.as_ref().map(ContentType::as_str);
    let mut tag = (key.len() - 1) as u16;
    let mut length = HEADER + key.len() + entry.value.len();
    if entry.expiry.is_some() {
        tag |= HAS_EXPIRY;
        length += EXPIRY;
    }
    if let Some(text) = content_type {
        tag |= HAS_CONTENT_TYPE;
        length += 1 + text.len();
    }
    let mut packed = Vec::with_capacity(length);
    packed.extend_from_slice(&entry.version.time().to_le_bytes());
    packed.extend_from_slice(&entry.version.node().to_le_bytes());
    packed.extend_from_slice(&tag.to_le_bytes());
    if let Some(expiry) = entry.expiry {
        packed.extend_from_slice(&expiry.at_ms.to_le_bytes());
        packed.extend_from_slice(&expiry.remembered_ms.to_le_bytes());
    }
    if let Some(text) = content_type {
        packed.push(content_type_length);
        packed.extend_from_slice(text.as_bytes());
    }
    packed.extend_from_slice(key);
    packed.extend_from_slice(&entry.value);
    debug_assert_eq!(packed.len(), length);
    // Exactly full, so this does not move it.
    packed.into_boxed_slice()
}

/// Reads the packed form.
#[derive(Clone, Copy)]
struct Packed<'a>(&'a [u8]);

impl<'a> Packed<'a> {
    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.0[at..at + N]);
        array
    }

    fn tag(self) -> u16 {
        u16::from_le_bytes(self.array(TAG))
    }

    fn version(self) -> Version {
        Version::new(u64::from_le_bytes(self.array(TIME)), u32::from_le_bytes(self.array(NODE)))
    }

    fn expiry(self) -> Option<Expiry> {
        (self.tag() & HAS_EXPIRY != 0).then(|| Expiry {
            at_ms: u64::from_le_bytes(self.array(HEADER)),
            remembered_ms: u32::from_le_bytes(self.array(HEADER + 8)),
        })
    }

    /// The Content-Type, if any, and what follows it: key and value.
    fn content_type_and_rest(self) -> (Option<&'a [u8]>, &'a [u8]) {
        let tag = self.tag();
        let rest = &self.0[if tag & HAS_EXPIRY != 0 { HEADER + EXPIRY } else { HEADER }..];
        if tag & HAS_CONTENT_TYPE == 0 {
            return (None, rest);
        }
        let (text, rest) = rest[1..].split_at(usize::from(rest[0]));
        (Some(text), rest)
    }

    fn key_and_value(self) -> (&'a [u8], &'a [u8]) {
        self.content_type_and_rest().1.split_at(usize::from(self.tag() & KEY_LENGTH) + 1)
    }

    fn key(self) -> &'a [u8] {
        self.key_and_value().0
    }

    fn to_entry(self) -> Entry {
        Entry {
            value: Bytes::copy_from_slice(self.key_and_value().1),
            content_type: self.content_type_and_rest().0.map(ContentType::of_stored),
            version: self.version(),
            expiry: self.expiry(),
        }
    }
}

impl Borrow<[u8]> for Item {
    fn borrow(&self) -> &[u8] {
        self.key()
    }
}

impl Hash for Item {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Item) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Item {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_of_16_bytes_and_a_value_of_64_fit_into_96() {
        let entry = Entry {
            value: vec![0; 64].into(),
            content_type: None,
            version: Version::new(1, 1),
            expiry: None,
        };
        let item = Item::new(&Key::parse("0123456789abcdef").unwrap(), &entry);
        assert_eq!(item.cost(), 96 + 32);
    }

    proptest! {
        #[test]
        fn an_item_gives_back_what_it_was_made_of(
            key in "\\PC{1,255}",
            value in prop::collection::vec(any::<u8>(), 0..6000),
            content_type in prop::option::of("[ -~]{0,256}"),
            version: (u64, u32),
            expiry: Option<(u64, u32)>,
        ) {
            let key = Key::parse(key).unwrap();
            let expiry = expiry.map(|(at_ms, remembered_ms)| Expiry { at_ms, remembered_ms });
            let entry = Entry {
                value: value.into(),
                content_type: content_type.map(|text| ContentType::parse(text).unwrap()),
                version: Version::new(version.0, version.1),
                expiry,
            };
            let mut item = Item::new(&key, &Entry { version: Version::new(0, 0), ..entry.clone() });
            item.set_version(entry.version);
            prop_assert_eq!(item.key(), key.as_str().as_bytes());
            prop_assert_eq!(item.version(), entry.version);
            prop_assert_eq!(item.expiry(), expiry);
            prop_assert!(item.cost() > key.as_str().len() + entry.value.len());
            prop_assert_eq!(item.to_entry(), entry);
        }
    }
}
