//! Foca's messages and member lists as bytes: bincode, bounded.
//!
//! The only place of the gossip layer that names bincode.

use bincode::config::{Configuration, Limit, LittleEndian, Varint, standard};
use bytes::{Buf, BufMut};
use foca::{Header, Member};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::identity::Identity;

/// A datagram is at most 1350 bytes, so nothing in it is longer than this.
const ITEM_BYTES_MAX: usize = 2048;
/// A full member list: 10 000 members of about 100 bytes.
const LIST_BYTES_MAX: usize = 1 << 20;
/// Bincode counts what it decodes: up to eight bytes for each one that it reads.
const LIST_DECODED_MAX: usize = 8 * LIST_BYTES_MAX;

const ITEM: Configuration<LittleEndian, Varint, Limit<ITEM_BYTES_MAX>> =
    standard().with_limit::<ITEM_BYTES_MAX>();
const LIST: Configuration<LittleEndian, Varint, Limit<LIST_DECODED_MAX>> =
    standard().with_limit::<LIST_DECODED_MAX>();

/// Why bytes are not a message, or a message did not fit.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not what they should be.
    #[error("undecodable: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// The value could not be written.
    #[error("unencodable: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// A member list that is longer than any.
    #[error("a member list of {0} bytes, at most {LIST_BYTES_MAX} are accepted")]
    TooLong(usize),
    /// The datagram has no room left; nothing was written.
    #[error("{bytes} bytes do not fit in the {room} that are left")]
    NoRoom {
        /// How long the item is.
        bytes: usize,
        /// How much room there was.
        room: usize,
    },
}

/// Foca's codec. Keeps a scratch buffer, so that an item that does not fit leaves the datagram as it was.
#[derive(Debug, Default)]
pub(super) struct BincodeCodec {
    scratch: Vec<u8>,
}

impl BincodeCodec {
    fn put(&mut self, item: &impl Serialize, mut buf: impl BufMut) -> Result<(), CodecError> {
        self.scratch.clear();
        bincode::serde::encode_into_std_write(item, &mut self.scratch, ITEM)?;
        let (bytes, room) = (self.scratch.len(), buf.remaining_mut());
        if bytes > room {
            return Err(CodecError::NoRoom { bytes, room });
        }
        buf.put_slice(&self.scratch);
        Ok(())
    }
}

fn take<T: DeserializeOwned>(buf: impl Buf) -> Result<T, CodecError> {
    Ok(bincode::serde::decode_from_std_read(&mut buf.reader(), ITEM)?)
}

impl foca::Codec<Identity> for BincodeCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<(), CodecError> {
        self.put(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, CodecError> {
        take(buf)
    }

    fn encode_member(&mut self, member: &Member<Identity>, buf: impl BufMut) -> Result<(), CodecError> {
        self.put(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>, CodecError> {
        take(buf)
    }
}

/// Encodes a small item that travels inside a datagram.
pub(super) fn encode_item(item: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    Ok(bincode::serde::encode_to_vec(item, ITEM)?)
}

/// Decodes what [`encode_item`] wrote.
pub(super) fn decode_item<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    take(bytes)
}

/// Encodes a member list for the link: as many from the front as a peer takes. Gossip brings the rest.
pub(super) fn encode_list(members: &[Member<Identity>]) -> Result<Vec<u8>, CodecError> {
    // Of which the number of members takes some.
    let mut left = LIST_BYTES_MAX - size_of::<u64>() - 1;
    let fits = |member: &&Member<Identity>| {
        let bytes = bincode::serde::encode_into_std_write(member, &mut std::io::sink(), LIST);
        bytes.is_ok_and(|bytes| left.checked_sub(bytes).map(|less| left = less).is_some())
    };
    let count = members.iter().take_while(fits).count();
    Ok(bincode::serde::encode_to_vec(&members[..count], LIST)?)
}

/// Decodes what [`encode_list`] wrote.
pub(super) fn decode_list(bytes: &[u8]) -> Result<Vec<Member<Identity>>, CodecError> {
    if bytes.len() > LIST_BYTES_MAX {
        return Err(CodecError::TooLong(bytes.len()));
    }
    Ok(bincode::serde::decode_from_slice(bytes, LIST)?.0)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use foca::{Codec, Message, State};
    use proptest::prelude::*;

    use super::*;
    use crate::model::NodeId;

    fn identity(name: &str, epoch: u64) -> Identity {
        Identity::new(NodeId::parse(name).unwrap(), SocketAddr::from(([10, 0, 0, 1], 8001)), epoch, 3)
    }

    #[test]
    fn a_header_and_members_come_back_as_they_were() {
        let header = Header {
            src: identity("a", 1),
            src_incarnation: 3,
            dst: identity("b", 2),
            message: Message::PingReq { target: identity("c", 3), probe_number: 9 },
        };
        let member = Member::new(identity("d", 4), 5, State::Suspect);
        let (mut codec, mut bytes) = (BincodeCodec::default(), Vec::new());
        codec.encode_header(&header, &mut bytes).unwrap();
        codec.encode_member(&member, &mut bytes).unwrap();
        let mut rest = &bytes[..];
        assert_eq!(codec.decode_header(&mut rest).unwrap(), header);
        assert_eq!(codec.decode_member(&mut rest).unwrap(), member);
        assert!(rest.is_empty());
    }

    #[test]
    fn an_item_that_does_not_fit_leaves_the_buffer_clean() {
        let mut buf = Vec::new().limit(10);
        let full = BincodeCodec::default().encode_member(&Member::alive(identity("a", 1)), &mut buf);
        assert!(matches!(full, Err(CodecError::NoRoom { .. })));
        assert!(buf.into_inner().is_empty());
    }

    #[test]
    fn the_longest_identities_fit_a_datagram_three_times() {
        let longest = identity(&"n".repeat(64), u64::MAX - 1);
        let message = Message::PingReq { target: longest.clone(), probe_number: u8::MAX };
        let header = Header { src: longest.clone(), src_incarnation: u16::MAX, dst: longest, message };
        let mut bytes = Vec::new();
        BincodeCodec::default().encode_header(&header, &mut bytes).unwrap();
        assert!(bytes.len() < 400, "{}", bytes.len());
    }

    #[test]
    fn a_list_of_too_many_members_is_cut_and_can_be_read() {
        for (name, count) in [("n", 100), (&*"n".repeat(64), 100), ("n", 60_000), (&*"n".repeat(64), 20_000)]
        {
            // Small numbers, of which bincode counts more than they take, and the largest.
            for (epoch, incarnation) in [(1, 0), (u64::MAX - 1, u16::MAX)] {
                let member = Member::new(identity(name, epoch), incarnation, State::Alive);
                let list = encode_list(&vec![member; count]).unwrap();
                let read = decode_list(&list).unwrap();
                assert!(read.len() == count || count > 100 && read.len() > 8000, "{} of {count}", read.len());
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let mut codec = BincodeCodec::default();
            let _ = codec.decode_header(&bytes[..]);
            let _ = codec.decode_member(&bytes[..]);
            let _ = decode_list(&bytes);
        }
    }
}
