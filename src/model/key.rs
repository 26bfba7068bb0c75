//! Owns what names a thing: the key of an entry, the slot it falls into, the id of a node.
//!
//! Does not know which node holds a slot (`ring` does). Invariant: a value of these types is valid, so
//! nothing further in checks a key or an id again, and a key's slot is the one Redis Cluster computes.

use std::{fmt, str::FromStr, sync::Arc};

use crc::{CRC_16_XMODEM, Crc, Table};
use serde::{Deserialize, Serialize};

/// Sixteen bytes a step (8 KiB of table); a 16-byte key takes one.
static CRC: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_XMODEM);

/// One of the 16384 parts the key space is cut into; placement and repair think in slots, not in keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Slot(u16);

impl Slot {
    /// How many slots there are; a power of two.
    pub const COUNT: u16 = 16384;

    /// The slot of a key: CRC-16/XMODEM of it, or of its first non-empty `{tag}`, modulo 16384.
    ///
    /// Source: the hash tag rule of the Redis Cluster specification, to the letter, so that a Redis Cluster
    /// client can find a key's owner by itself.
    ///
    /// ```
    /// use shoal::model::Slot;
    ///
    /// assert_eq!(Slot::of(b"123456789").index(), 0x31C3);
    /// assert_eq!(Slot::of(b"{user1000}.following"), Slot::of(b"user1000"));
    /// ```
    pub fn of(key: &[u8]) -> Slot {
        Slot(CRC.checksum(hash_tag(key)) % Slot::COUNT)
    }

    /// The slot of that number, if there is one.
    pub fn new(number: u16) -> Option<Slot> {
        (number < Slot::COUNT).then_some(Slot(number))
    }

    /// The number of the slot, to index a table of [`Slot::COUNT`] rows.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Every slot, in order.
    pub fn all() -> impl ExactSizeIterator<Item = Slot> {
        (0..Slot::COUNT).map(Slot)
    }
}

/// What of the key is hashed: from the first `{` to the next `}` if something stands between them.
fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    let inside = &key[open + 1..];
    match inside.iter().position(|byte| *byte == b'}') {
        Some(close) if close > 0 => &inside[..close],
        _ => key,
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Slot> for u16 {
    fn from(slot: Slot) -> u16 {
        slot.0
    }
}

impl TryFrom<u16> for Slot {
    type Error = SlotError;

    fn try_from(number: u16) -> Result<Slot, SlotError> {
        Slot::new(number).ok_or(SlotError { number })
    }
}

/// A number that names no slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no slot {number}: slots are 0 to 16383")]
pub struct SlotError {
    number: u16,
}

/// The name of an entry: 1 to 1024 bytes of UTF-8, with its slot worked out once.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    text: Box<str>,
    slot: Slot,
}

impl Key {
    /// The longest key, in bytes.
    pub const BYTES_MAX: usize = 1024;

    /// Checks the length.
    ///
    /// # Errors
    /// [`KeyError::Empty`] and [`KeyError::TooLong`].
    pub fn parse(text: impl Into<Box<str>>) -> Result<Key, KeyError> {
        let text = text.into();
        check_length(text.len())?;
        let slot = Slot::of(text.as_bytes());
        Ok(Key { text, slot })
    }

    /// Checks bytes that came from outside, the length first.
    ///
    /// # Errors
    /// As [`Key::parse`], and [`KeyError::NotUtf8`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Key, KeyError> {
        check_length(bytes.len())?;
        Key::parse(str::from_utf8(bytes).map_err(|_| KeyError::NotUtf8)?)
    }

    /// The key itself.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where it belongs.
    pub fn slot(&self) -> Slot {
        self.slot
    }
}

fn check_length(bytes: usize) -> Result<(), KeyError> {
    match bytes {
        0 => Err(KeyError::Empty),
        1..=Key::BYTES_MAX => Ok(()),
        bytes => Err(KeyError::TooLong { bytes }),
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Key, KeyError> {
        Key::parse(text)
    }
}

/// Why something is not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing at all.
    #[error("the key is empty: a key is 1 to 1024 bytes of UTF-8")]
    Empty,
    /// More than [`Key::BYTES_MAX`].
    #[error("the key has {bytes} bytes: a key is 1 to 1024 bytes of UTF-8")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Bytes that are no text.
    #[error("the key is not UTF-8: a key is 1 to 1024 bytes of UTF-8")]
    NotUtf8,
}

/// The name of a node, unique in its cluster: 1 to 64 of letters, digits, `.`, `_`, `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The longest id, in bytes, so that identities fit many to a datagram.
    pub const BYTES_MAX: usize = 64;

    /// Checks length and letters.
    ///
    /// # Errors
    /// [`NodeIdError`] with what was given.
    pub fn parse(text: &str) -> Result<NodeId, NodeIdError> {
        let length_fits = (1..=NodeId::BYTES_MAX).contains(&text.len());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if length_fits && text.bytes().all(allowed) {
            Ok(NodeId(text.into()))
        } else {
            Err(NodeIdError { text: text.into() })
        }
    }

    /// The id itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<NodeId, NodeIdError> {
        NodeId::parse(text)
    }
}

impl TryFrom<String> for NodeId {
    type Error = NodeIdError;

    fn try_from(text: String) -> Result<NodeId, NodeIdError> {
        NodeId::parse(&text)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> String {
        id.as_str().to_owned()
    }
}

/// A text that is no node id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no node id: 1 to 64 of letters, digits, '.', '_', '-'")]
pub struct NodeIdError {
    text: Box<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_redis_cluster_specification() {
        assert_eq!(CRC.checksum(b"123456789"), 0x31c3);
        assert_eq!(Slot::of(b"foo").index(), 12182);
        assert_eq!(Slot::of(b"bar").index(), 5061);
    }

    #[test]
    fn a_tag_decides_alone() {
        assert_eq!(Slot::of(b"{user1000}.following"), Slot::of(b"{user1000}.followers"));
        assert_eq!(hash_tag(b"{user1000}.following"), b"user1000");
        assert_eq!(hash_tag(b"foo{bar}{zap}"), b"bar");
        assert_eq!(hash_tag(b"foo{{bar}}zap"), b"{bar");
    }

    #[test]
    fn an_empty_or_open_tag_is_none() {
        for key in ["foo{}{bar}", "foo{bar", "foo}bar{", "{}", "plain"] {
            assert_eq!(hash_tag(key.as_bytes()), key.as_bytes());
        }
    }

    #[test]
    fn a_key_has_1_to_1024_bytes() {
        assert_eq!(Key::parse(""), Err(KeyError::Empty));
        assert!(Key::parse("k".repeat(1024)).is_ok());
        assert_eq!(Key::parse("k".repeat(1025)), Err(KeyError::TooLong { bytes: 1025 }));
        assert_eq!(Key::from_bytes(&[0xff]), Err(KeyError::NotUtf8));
        assert_eq!(Key::from_bytes("schön".as_bytes()), Key::parse("schön"));
    }

    #[test]
    fn there_are_16384_slots() {
        assert_eq!(Slot::new(16383).map(Slot::index), Some(16383));
        assert_eq!(Slot::new(16384), None);
        assert!(serde_json::from_str::<Slot>("16384").is_err());
        assert_eq!(Slot::all().count(), 16384);
    }

    #[test]
    fn a_node_id_is_a_short_plain_word() {
        for good in ["node1", "a", "cache-7.example_x", &"n".repeat(64)] {
            assert_eq!(NodeId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "two words", "ä", "a:1", &"n".repeat(65)] {
            assert!(NodeId::parse(bad).is_err(), "{bad:?}");
            assert!(serde_json::from_value::<NodeId>(bad.into()).is_err(), "{bad:?}");
        }
    }
}
