//! What stands around every datagram: a version, the cluster's name, and a checksum.
//!
//! A datagram of another protocol, version or cluster, and one that was damaged on its way, is told apart before anything
//! of it is decoded: UDP's own 16 bits let one in 65536 damaged ones pass, and a flipped bit in an address would be a
//! member that does not exist. It is a label, not a lock: anybody who can send to the port can write it.

use crate::model::mix;

/// First byte of every shoal datagram; no common UDP protocol starts with it.
const MAGIC: u8 = 0xB5;
/// Grows when the datagrams of one release can no longer be read by the other.
const VERSION: u8 = 2;
/// Bytes that the envelope adds.
pub(super) const OVERHEAD_BYTES: usize = LABEL_BYTES + CHECKSUM_BYTES;
const LABEL_BYTES: usize = 6;
const CHECKSUM_BYTES: usize = 8;

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not a shoal datagram.
    #[error("not a shoal datagram")]
    Foreign,
    /// Another protocol version.
    #[error("gossip protocol version {0}, this node speaks {VERSION}")]
    Version(u8),
    /// Another cluster's name.
    #[error("from a cluster of another name")]
    Cluster,
    /// Not what was sent.
    #[error("damaged on its way")]
    Damaged,
}

/// Seals and opens the datagrams of one cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    label: [u8; LABEL_BYTES],
}

impl Envelope {
    pub(super) fn new(cluster: &str) -> Envelope {
        // A CRC rather than a keyed hash: it only has to tell names apart, and the label stays the same across releases.
        let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(cluster.as_bytes());
        let [a, b, c, d] = crc.to_le_bytes();
        Envelope { label: [MAGIC, VERSION, a, b, c, d] }
    }

    /// Writes the whole datagram into `out`.
    pub(super) fn seal(&self, payload: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.label);
        out.extend_from_slice(&checksum(payload));
        out.extend_from_slice(payload);
    }

    /// The payload inside.
    pub(super) fn open<'a>(&self, datagram: &'a [u8]) -> Result<&'a [u8], Rejected> {
        let (label, rest) = datagram.split_at_checked(LABEL_BYTES).ok_or(Rejected::Foreign)?;
        match label {
            [MAGIC, VERSION, ..] if label == self.label => match rest.split_at_checked(CHECKSUM_BYTES) {
                Some((sum, payload)) if sum == checksum(payload) => Ok(payload),
                _ => Err(Rejected::Damaged),
            },
            [MAGIC, VERSION, ..] => Err(Rejected::Cluster),
            [MAGIC, other, ..] => Err(Rejected::Version(*other)),
            _ => Err(Rejected::Foreign),
        }
    }
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    mix::hash(0, payload).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_opens_only_in_its_own_cluster_and_version() {
        let (ours, theirs) = (Envelope::new("shoal"), Envelope::new("herring"));
        let mut datagram = Vec::new();
        ours.seal(b"hello", &mut datagram);
        assert_eq!(ours.open(&datagram), Ok(&b"hello"[..]));
        assert_eq!(theirs.open(&datagram), Err(Rejected::Cluster));
        for byte in LABEL_BYTES..datagram.len() {
            let mut damaged = datagram.clone();
            damaged[byte] ^= 1;
            assert_eq!(ours.open(&damaged), Err(Rejected::Damaged), "byte {byte}");
        }
        assert_eq!(ours.open(&datagram[..datagram.len() - 1]), Err(Rejected::Damaged));
        datagram[1] = 9;
        assert_eq!(ours.open(&datagram), Err(Rejected::Version(9)));
        assert_eq!(ours.open(b"GET / HTTP/1.1"), Err(Rejected::Foreign));
        assert_eq!(ours.open(b""), Err(Rejected::Foreign));
    }
}
