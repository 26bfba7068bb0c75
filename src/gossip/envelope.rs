//! What stands around every datagram: a version and the cluster's name.
//!
//! A datagram of another protocol, version or cluster is told apart before anything of it is decoded. It is a label, not
//! a lock: anybody who can send to the port can write it.

/// First byte of every shoal datagram; no common UDP protocol starts with it.
const MAGIC: u8 = 0xB5;
/// Grows when the datagrams of one release can no longer be read by the other.
const VERSION: u8 = 1;
/// Bytes that the envelope adds.
pub(super) const OVERHEAD_BYTES: usize = 6;

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
}

/// Seals and opens the datagrams of one cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    label: [u8; OVERHEAD_BYTES],
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
        out.extend_from_slice(payload);
    }

    /// The payload inside.
    pub(super) fn open<'a>(&self, datagram: &'a [u8]) -> Result<&'a [u8], Rejected> {
        let (label, payload) = datagram.split_at_checked(OVERHEAD_BYTES).ok_or(Rejected::Foreign)?;
        match label {
            [MAGIC, VERSION, ..] if label == self.label => Ok(payload),
            [MAGIC, VERSION, ..] => Err(Rejected::Cluster),
            [MAGIC, other, ..] => Err(Rejected::Version(*other)),
            _ => Err(Rejected::Foreign),
        }
    }
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
        datagram[1] = 9;
        assert_eq!(ours.open(&datagram), Err(Rejected::Version(9)));
        assert_eq!(ours.open(b"GET / HTTP/1.1"), Err(Rejected::Foreign));
        assert_eq!(ours.open(b""), Err(Rejected::Foreign));
    }
}
