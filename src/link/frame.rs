//! Frames: a fixed header, a bincode head, raw value bytes.
//!
//! The only place of the link that names bincode. The header, little-endian: length of what follows it (u32), id (u32),
//! milliseconds until the deadline (u32), length of the head (u32). Invariant: a length is checked against the bound
//! before anything is allocated for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::security::NotSealed;

/// Length of the fixed header.
pub(super) const HEADER_BYTES: usize = 16;
/// The longest head: a batch of 1000 operations with the longest keys, and then some. Counted as bincode counts it, which is
/// by what it decodes: up to eight bytes for each one that it reads.
const HEAD_BYTES_MAX: usize = 4 << 20;
/// A head that is no longer than this is taken, whatever it holds.
pub(super) const HEAD_BYTES_ALWAYS: usize = HEAD_BYTES_MAX / 8;
const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<HEAD_BYTES_MAX>,
> = bincode::config::standard().with_limit::<HEAD_BYTES_MAX>();

/// Why bytes are not a frame. The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {bytes} bytes, at most {max} are accepted")]
    TooLong { bytes: usize, max: usize },
    #[error("a head of {head} bytes in a frame of {bytes}")]
    HeadLongerThanFrame { head: usize, bytes: usize },
    #[error("an unreadable head: {0}")]
    Head(#[from] bincode::error::DecodeError),
    #[error("a head with {0} bytes too many")]
    Trailing(usize),
    #[error("a frame that does not end within its record")]
    CutOff,
    #[error("{0}")]
    NotSealed(#[from] NotSealed),
}

/// A decoded frame.
#[derive(Debug)]
pub(super) struct Frame<T> {
    pub(super) id: u32,
    pub(super) deadline_ms: u32,
    pub(super) head: T,
    pub(super) value: Bytes,
}

/// How long a head, or a part of one, is when it is encoded. One that cannot be encoded is as good as too long.
pub(super) fn head_bytes(head: &impl Serialize) -> usize {
    bincode::serde::encode_into_std_write(head, &mut std::io::sink(), CONFIG).unwrap_or(usize::MAX)
}

/// Appends a frame to `out`. False, and `out` as it was, if that is none which [`decode`] takes from the other end by the
/// bound `bytes_max`.
pub(super) fn encode<T: Serialize + DeserializeOwned>(
    out: &mut BytesMut,
    id: u32,
    deadline_ms: u32,
    head: &T,
    values: &[Bytes],
    bytes_max: usize,
) -> bool {
    let value_bytes: usize = values.iter().map(Bytes::len).sum();
    if value_bytes > bytes_max {
        return false;
    }
    let start = out.len();
    out.put_bytes(0, HEADER_BYTES);
    let written = bincode::serde::encode_into_std_write(head, &mut (&mut *out).writer(), CONFIG);
    let fits = |head_bytes: &usize| {
        let is_taken = || decode_head::<T>(&out[start + HEADER_BYTES..]).is_ok();
        head_bytes + value_bytes <= bytes_max.min(u32::MAX as usize)
            && (*head_bytes <= HEAD_BYTES_ALWAYS || is_taken())
    };
    let Some(head_bytes) = written.ok().filter(fits) else {
        out.truncate(start);
        return false;
    };
    for value in values {
        out.put_slice(value);
    }
    let mut header = &mut out[start..start + HEADER_BYTES];
    header.put_u32_le((head_bytes + value_bytes) as u32);
    header.put_u32_le(id);
    header.put_u32_le(deadline_ms);
    header.put_u32_le(head_bytes as u32);
    true
}

/// Takes the first whole frame off `buffer`; `None` if more bytes have to arrive first, and then makes some room for them.
pub(super) fn decode<T: DeserializeOwned>(
    buffer: &mut BytesMut,
    bytes_max: usize,
) -> Result<Option<Frame<T>>, FrameError> {
    if let Some((frame, used)) = read(buffer, bytes_max)? {
        buffer.advance(used);
        return Ok(Some(frame));
    }
    if let Some(mut header) = buffer.get(..HEADER_BYTES) {
        let bytes = header.get_u32_le() as usize;
        make_room(buffer, HEADER_BYTES + bytes);
    }
    Ok(None)
}

/// Room for so many bytes in all, in steps, so that a lying length costs its sender the bytes, not us the memory.
pub(super) fn make_room(buffer: &mut BytesMut, bytes: usize) {
    buffer.reserve((bytes - buffer.len()).min(1 << 20));
}

/// The frame at the beginning of `bytes`, and its length; `None` if it does not end there.
pub(super) fn read<T: DeserializeOwned>(
    bytes: &[u8],
    bytes_max: usize,
) -> Result<Option<(Frame<T>, usize)>, FrameError> {
    let Some((mut header, behind)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(None) };
    let bytes = header.get_u32_le() as usize;
    let id = header.get_u32_le();
    let deadline_ms = header.get_u32_le();
    let head_bytes = header.get_u32_le() as usize;
    if bytes > bytes_max {
        return Err(FrameError::TooLong { bytes, max: bytes_max });
    }
    if head_bytes > bytes {
        return Err(FrameError::HeadLongerThanFrame { head: head_bytes, bytes });
    }
    let Some(frame) = behind.get(..bytes) else { return Ok(None) };
    let (head, value) = frame.split_at(head_bytes);
    let decoded = decode_head(head)?;
    // Copied, so that a value does not pin the read buffer it arrived in.
    let value = Bytes::copy_from_slice(value);
    Ok(Some((Frame { id, deadline_ms, head: decoded, value }, HEADER_BYTES + bytes)))
}

/// A head alone; none if it is too long.
pub(super) fn encode_head(head: &impl Serialize) -> Option<Vec<u8>> {
    bincode::serde::encode_to_vec(head, CONFIG).ok()
}

/// The inverse of [`encode_head`].
pub(super) fn decode_head<T: DeserializeOwned>(head: &[u8]) -> Result<T, FrameError> {
    let (decoded, used) = bincode::serde::decode_from_slice(head, CONFIG)?;
    if used == head.len() { Ok(decoded) } else { Err(FrameError::Trailing(head.len() - used)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::{Claim, Operation, Request};
    use super::*;

    fn claim() -> Claim {
        Claim::new("0000000000000000".parse().unwrap(), 0, 0)
    }

    fn get(key: &str) -> Request {
        Request::Many { operations: vec![Operation::Get { key: key.into() }], claim: claim() }
    }

    #[test]
    fn frames_come_back_whole_however_the_bytes_arrive() {
        let mut sent = BytesMut::new();
        assert!(encode(&mut sent, 7, 2000, &get("a"), &[], 1000));
        assert!(encode(
            &mut sent,
            8,
            50,
            &get("b"),
            &[Bytes::from_static(b"val"), Bytes::from_static(b"ue")],
            1000
        ));
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for byte in sent {
            buffer.put_u8(byte);
            while let Some(frame) = decode::<Request>(&mut buffer, 1000).unwrap() {
                frames.push((frame.id, frame.deadline_ms, frame.head, frame.value));
            }
        }
        assert_eq!(
            frames,
            [(7, 2000, get("a"), Bytes::new()), (8, 50, get("b"), Bytes::from_static(b"value"))]
        );
    }

    #[test]
    fn a_length_over_the_bound_is_refused_from_the_header_alone() {
        let mut buffer = BytesMut::new();
        buffer.put_u32_le(1001);
        buffer.put_bytes(0, 12);
        let error = decode::<Request>(&mut buffer, 1000).unwrap_err();
        assert_eq!(error.to_string(), "a frame of 1001 bytes, at most 1000 are accepted");
    }

    #[test]
    fn a_promised_gigabyte_does_not_allocate_it() {
        let mut buffer = BytesMut::new();
        buffer.put_u32_le(1 << 30);
        buffer.put_bytes(0, 12);
        assert!(decode::<Request>(&mut buffer, usize::MAX).unwrap().is_none());
        assert!(buffer.capacity() < 4 << 20);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode::<Request>(&mut buffer, 1 << 16) {}
        }
    }
}
