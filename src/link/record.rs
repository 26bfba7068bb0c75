//! Records: whole frames as they go over a connection, sealed together where a link has seals, bare where it has none.
//!
//! A sealed record: the length of what is sealed (u32, little-endian), that, and a tag. Whatever gathers until it is written is
//! one record, so that small frames share the cost of a seal; a record ends with the frame by which it reaches
//! [`RECORD_BYTES`]. Frames are written, sealed, opened and read in place. Invariant: a frame lies in one record, and nothing
//! of a record is decoded before all of it has opened.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{self, Frame, FrameError, HEADER_BYTES};
use crate::security::{NotSealed, Opener, Sealer, TAG_BYTES};

/// The length ahead of what is sealed.
const LENGTH_BYTES: usize = 4;
/// A record that is as long takes no further frame: what has arrived of one is kept until the rest is there.
const RECORD_BYTES: usize = 64 << 10;

/// Frames that are to be written.
#[derive(Debug)]
pub(super) struct Outbox {
    bytes: BytesMut,
    is_sealed: bool,
    /// Where the record begins that takes further frames.
    record: Option<usize>,
}

impl Outbox {
    pub(super) fn new(is_sealed: bool) -> Outbox {
        Outbox { bytes: BytesMut::new(), is_sealed, record: None }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends a frame; see [`frame::encode`]. False, and nothing appended, if it cannot be encoded.
    pub(super) fn push<T: Serialize + DeserializeOwned>(
        &mut self,
        id: u32,
        deadline_ms: u32,
        head: &T,
        values: &[Bytes],
        bytes_max: usize,
    ) -> bool {
        let start = self.bytes.len();
        if self.is_sealed && self.record.is_none() {
            self.record = Some(start);
            self.bytes.put_bytes(0, LENGTH_BYTES);
        }
        let is_encoded = frame::encode(&mut self.bytes, id, deadline_ms, head, values, bytes_max);
        let record_bytes = self.bytes.len() - self.record.unwrap_or(start);
        if !is_encoded || u32::try_from(record_bytes).is_err() {
            self.bytes.truncate(start);
            self.record = self.record.filter(|record| *record < start);
            return false;
        }
        if record_bytes >= RECORD_BYTES {
            self.end_record();
        }
        true
    }

    /// Notes its length, and makes room for the tag.
    fn end_record(&mut self) {
        if let Some(start) = self.record.take() {
            let length = (self.bytes.len() - start - LENGTH_BYTES) as u32;
            self.bytes[start..][..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
            self.bytes.put_bytes(0, TAG_BYTES);
        }
    }

    /// All bytes, as they are to be written. To be called once; then come [`Outbox::clear`] and further frames.
    pub(super) fn seal(&mut self, sealer: Option<&mut Sealer>) -> Result<&[u8], NotSealed> {
        self.end_record();
        if let Some(sealer) = sealer {
            let mut rest = &mut self.bytes[..];
            while let Some((length, behind)) = rest.split_first_chunk_mut::<LENGTH_BYTES>() {
                let (record, behind) = behind.split_at_mut(u32::from_le_bytes(*length) as usize);
                let (tag, behind) = behind.split_at_mut(TAG_BYTES);
                tag.copy_from_slice(&sealer.seal(*length, record)?);
                rest = behind;
            }
        }
        Ok(&self.bytes)
    }

    /// Drops what was there; of its memory it keeps no more than is often needed.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.record = None;
        if self.bytes.capacity() > 1 << 20 {
            self.bytes = BytesMut::with_capacity(16 << 10);
        }
    }
}

/// Takes frames off what has arrived.
pub(super) struct Inbox {
    opener: Option<Opener>,
    /// What is left to read of the record at the front, which is open.
    open_bytes: usize,
    bytes_max: usize,
}

impl Inbox {
    /// `bytes_max` is the bound of a frame.
    pub(super) fn new(opener: Option<Opener>, bytes_max: usize) -> Inbox {
        Inbox { opener, open_bytes: 0, bytes_max }
    }

    /// The first whole frame in `buffer`; `None` if more bytes have to arrive first, and then makes some room for them.
    pub(super) fn next<T: DeserializeOwned>(
        &mut self,
        buffer: &mut BytesMut,
    ) -> Result<Option<Frame<T>>, FrameError> {
        if self.opener.is_none() {
            return frame::decode(buffer, self.bytes_max);
        }
        if self.open_bytes == 0 && !self.open(buffer)? {
            return Ok(None);
        }
        let (frame, used) =
            frame::read(&buffer[..self.open_bytes], self.bytes_max)?.ok_or(FrameError::CutOff)?;
        buffer.advance(used);
        self.open_bytes -= used;
        if self.open_bytes == 0 {
            buffer.advance(TAG_BYTES);
        }
        Ok(Some(frame))
    }

    /// Opens the record at the front and takes its length off; false if it is not there as a whole.
    fn open(&mut self, buffer: &mut BytesMut) -> Result<bool, FrameError> {
        let (Some(opener), Some(length)) = (&mut self.opener, buffer.first_chunk().copied()) else {
            return Ok(false);
        };
        let (bytes, max) =
            (u32::from_le_bytes(length) as usize, RECORD_BYTES + HEADER_BYTES + self.bytes_max);
        if bytes > max {
            return Err(FrameError::TooLong { bytes, max });
        }
        let record = LENGTH_BYTES..LENGTH_BYTES + bytes + TAG_BYTES;
        if buffer.len() < record.end {
            frame::make_room(buffer, record.end);
            return Ok(false);
        }
        opener.open(length, &mut buffer[record])?;
        buffer.advance(LENGTH_BYTES);
        self.open_bytes = bytes;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{End, Handshake, Keyring, Secret, Terms};

    const HEAD: &str = "head";
    /// Of a frame.
    const BYTES_MAX: usize = 1 << 20;

    /// The seals of both ends of one link.
    fn seals() -> [(Sealer, Opener); 2] {
        use rand::SeedableRng;
        let secret = Secret::generate(&mut rand::rngs::StdRng::seed_from_u64(1)).to_text();
        let terms = Terms {
            cluster: "test",
            purpose: "bulk",
            asking: "n1",
            called: "n2",
            answering: "n2",
            nonces: [&[1; 32], &[2; 32]],
            channel: None,
        };
        let handshake = Handshake::new(Keyring::parse(&secret).unwrap().first(), terms);
        [End::Asking, End::Answering].map(|end| handshake.seals(end))
    }

    fn inbox(end: usize) -> Inbox {
        Inbox::new(Some(seals().into_iter().nth(end).unwrap().1), BYTES_MAX)
    }

    /// Frames of these values, in as many sealed records as writes.
    fn sealed(writes: &[&[&[u8]]]) -> Vec<Vec<u8>> {
        let [(mut sealer, _), _] = seals();
        let mut outbox = Outbox::new(true);
        let write = |values: &&[&[u8]]| {
            outbox.clear();
            for (id, value) in values.iter().enumerate() {
                assert!(outbox.push(
                    id as u32,
                    0,
                    &HEAD.to_string(),
                    &[Bytes::copy_from_slice(value)],
                    BYTES_MAX
                ));
            }
            outbox.seal(Some(&mut sealer)).unwrap().to_vec()
        };
        writes.iter().map(write).collect()
    }

    /// The values of the frames, up to the first that does not open.
    fn opened(inbox: &mut Inbox, bytes: &[u8]) -> (Vec<Bytes>, Option<String>) {
        let (mut buffer, mut values) = (BytesMut::from(bytes), Vec::new());
        loop {
            match inbox.next::<String>(&mut buffer) {
                Ok(Some(frame)) => values.push(frame.value),
                Ok(None) => return (values, None),
                Err(error) => return (values, Some(error.to_string())),
            }
        }
    }

    #[test]
    fn frames_come_back_whole_however_the_bytes_arrive() {
        let long = vec![7; 3 * RECORD_BYTES];
        let sent = sealed(&[&[b"a", b"", b"b"], &[&long, b"c", &long], &[b"d"]]).concat();
        let expected: [&[u8]; 7] = [b"a", b"", b"b", &long, b"c", &long, b"d"];
        for step in [1, 3, 1000, sent.len()] {
            let (mut inbox, mut buffer, mut values) = (inbox(1), BytesMut::new(), Vec::new());
            for bytes in sent.chunks(step) {
                buffer.extend_from_slice(bytes);
                while let Some(frame) = inbox.next::<String>(&mut buffer).unwrap() {
                    values.push(frame.value);
                }
            }
            assert!(values == expected && buffer.is_empty(), "{step} bytes at a time");
        }
    }

    #[test]
    fn what_gathers_is_one_record_until_it_is_long() {
        let frame_bytes = HEADER_BYTES + 5;
        let [small, long] =
            [&[&b""[..]; 10][..], &[&[7; RECORD_BYTES][..]; 3]].map(|values| sealed(&[values])[0].len());
        assert_eq!(small, 10 * frame_bytes + LENGTH_BYTES + TAG_BYTES);
        assert_eq!(long, 3 * (RECORD_BYTES + frame_bytes + LENGTH_BYTES + TAG_BYTES));
    }

    #[test]
    fn no_bit_of_a_record_can_be_changed() {
        let [record] = &sealed(&[&[b"value", b"other"]])[..] else { panic!() };
        for byte in 0..record.len() {
            for bit in 0..8 {
                let mut changed = record.clone();
                changed[byte] ^= 1 << bit;
                let (values, error) = opened(&mut inbox(1), &changed);
                // A length may have become one for which more has to arrive, and then it does not open.
                let (more, late) = opened(&mut inbox(1), &[changed, vec![0; 2 << 20]].concat());
                assert!(values.is_empty() && more.is_empty(), "byte {byte}");
                assert!(late.is_some() && (error.is_some() || byte < LENGTH_BYTES), "byte {byte}");
            }
        }
    }

    #[test]
    fn records_open_once_in_order_and_in_their_direction() {
        let records = sealed(&[&[b"a"], &[b"b"], &[b"c"]]);
        for (order, good) in [(&[0, 1, 2][..], 3), (&[0, 0], 1), (&[1], 0), (&[0, 2], 1), (&[1, 0, 2], 0)] {
            let bytes: Vec<u8> = order.iter().flat_map(|index| records[*index].clone()).collect();
            let (values, error) = opened(&mut inbox(1), &bytes);
            assert_eq!((values.len(), error.is_none()), (good, good == order.len()), "{order:?}");
        }
        let (values, error) = opened(&mut inbox(0), &records[0]);
        assert!(values.is_empty() && error.is_some(), "sent back to who sealed it");
    }

    #[test]
    fn bare_frames_do_not_open_and_a_length_over_the_bound_is_refused_from_itself_alone() {
        let mut bare = Outbox::new(false);
        assert!(bare.push(1, 0, &HEAD.to_string(), &[], BYTES_MAX));
        let bare = [bare.seal(None).unwrap(), &[0; 100]].concat();
        assert!(opened(&mut inbox(1), &bare).1.is_some());
        let max = RECORD_BYTES + HEADER_BYTES + (1 << 20);
        let (_, error) = opened(&mut inbox(1), &(max as u32 + 1).to_le_bytes());
        assert!(error.unwrap().contains("are accepted"));
        let mut buffer = BytesMut::from(&(max as u32).to_le_bytes()[..]);
        assert!(inbox(1).next::<String>(&mut buffer).unwrap().is_none());
        assert!(buffer.capacity() < 2 << 20);
    }

    #[test]
    fn a_frame_that_cannot_be_encoded_leaves_nothing_behind() {
        let unfit = [Bytes::from(vec![7; BYTES_MAX])];
        let [(mut sealer, _), _] = seals();
        let mut outbox = Outbox::new(true);
        assert!(!outbox.push(0, 0, &HEAD.to_string(), &unfit, BYTES_MAX) && outbox.is_empty());
        let long = Bytes::from(vec![7; RECORD_BYTES]);
        assert!(outbox.push(1, 0, &HEAD.to_string(), &[long], BYTES_MAX));
        assert!(!outbox.push(2, 0, &HEAD.to_string(), &unfit, BYTES_MAX));
        assert!(outbox.push(3, 0, &HEAD.to_string(), &[], BYTES_MAX));
        assert!(!outbox.push(4, 0, &HEAD.to_string(), &unfit, BYTES_MAX));
        let (values, error) = opened(&mut inbox(1), outbox.seal(Some(&mut sealer)).unwrap());
        assert_eq!((values.len(), error), (2, None));
    }
}
