//! What stands around every datagram: a version, and what shows that it comes from a member of this cluster.
//!
//! With a cluster secret that is a seal, by XChaCha20-Poly1305 with a random nonce; the cluster's name is part of what it
//! binds, and inside stands the time, so that a captured datagram is good for nothing when it comes again. Without one it is
//! the cluster's name and a checksum: a label, not a lock. Either way nothing is decoded before this is right: UDP's own 16
//! bits let one in 65536 damaged datagrams pass, and a flipped bit in an address would be a member that does not exist.

use std::sync::Arc;

use chacha20poly1305::aead::{AeadInOut, Tag};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::model::mix;
use crate::security::{KeyId, Keyring, Replays, SharedKeyring, Stale};

/// First byte of every shoal datagram; no common UDP protocol starts with it.
const MAGIC: u8 = 0xB5;
/// Grow when the datagrams of one release can no longer be read by the other.
const VERSION: u8 = 2;
const SEALED_VERSION: u8 = 3;
/// Magic, version, and the cluster's name or the key's id.
const LABEL_BYTES: usize = 6;
const CHECKSUM_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const TIME_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
/// The most bytes that the envelope adds.
pub(super) const OVERHEAD_BYTES: usize = LABEL_BYTES + NONCE_BYTES + TIME_BYTES + TAG_BYTES;

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not a shoal datagram.
    #[error("not a shoal datagram")]
    Foreign,
    /// Another protocol version.
    #[error("gossip protocol version {0}, this node speaks {VERSION} and {SEALED_VERSION}")]
    Version(u8),
    /// Another cluster's name.
    #[error("from a cluster of another name")]
    Cluster,
    /// Not what was sent.
    #[error("damaged on its way")]
    Damaged,
    /// This node has a secret and the sender has none.
    #[error("not sealed; this cluster has a secret")]
    Unsealed,
    /// The sender has a secret and this node has none.
    #[error("sealed with a cluster secret; this node has none")]
    Sealed,
    /// Another secret than any of this node's.
    #[error("sealed with the secret {0}, which this node does not have")]
    UnknownKey(KeyId),
    /// Not sealed by a holder of the secret in this cluster.
    #[error("forged, damaged, or from a cluster of another name")]
    Forged,
    /// Sealed at another time, or here before.
    #[error("{0}")]
    Stale(#[from] Stale),
    /// The sender sends more than any member does.
    #[error("too many datagrams from one address")]
    TooMany,
}

impl Rejected {
    /// All that [`Rejected::kind`] gives.
    pub const KINDS: [&str; 12] = [
        "foreign",
        "version",
        "cluster",
        "damaged",
        "unsealed",
        "sealed",
        "unknown_key",
        "forged",
        "out_of_time",
        "replayed",
        "forgotten",
        "too_many",
    ];

    /// The reason without its details, as metrics and logs tell kinds apart.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Rejected::Foreign => "foreign",
            Rejected::Version(_) => "version",
            Rejected::Cluster => "cluster",
            Rejected::Damaged => "damaged",
            Rejected::Unsealed => "unsealed",
            Rejected::Sealed => "sealed",
            Rejected::UnknownKey(_) => "unknown_key",
            Rejected::Forged => "forged",
            Rejected::Stale(Stale::OutOfTime(_)) => "out_of_time",
            Rejected::Stale(Stale::Replayed) => "replayed",
            Rejected::Stale(Stale::Forgotten) => "forgotten",
            Rejected::TooMany => "too_many",
        }
    }
}

/// Seals and opens the datagrams of one cluster.
#[derive(Debug)]
pub(super) struct Envelope {
    cluster: String,
    label: [u8; LABEL_BYTES],
    keyring: SharedKeyring,
    nonces: StdRng,
    replays: Replays,
}

impl Envelope {
    /// `seed` is for nonces: two envelopes of one secret must never have the same one.
    pub(super) fn new(cluster: &str, keyring: SharedKeyring, seed: [u8; 32]) -> Envelope {
        // A CRC rather than a keyed hash: it only has to tell names apart, and the label stays the same across releases.
        let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(cluster.as_bytes());
        Envelope {
            cluster: cluster.into(),
            label: label(VERSION, crc.to_le_bytes()),
            keyring,
            nonces: StdRng::from_seed(seed),
            replays: Replays::default(),
        }
    }

    /// Writes the whole datagram, sent at `now_ms`, into `out`.
    pub(super) fn seal(&mut self, payload: &[u8], now_ms: u64, out: &mut Vec<u8>) {
        out.clear();
        let Some(keyring) = self.keyring() else {
            out.extend_from_slice(&self.label);
            out.extend_from_slice(&checksum(payload));
            out.extend_from_slice(payload);
            return;
        };
        let (keys, mut nonce) = (keyring.first(), [0; NONCE_BYTES]);
        self.nonces.fill_bytes(&mut nonce);
        let label = label(SEALED_VERSION, keys.id.0);
        out.extend_from_slice(&label);
        out.extend_from_slice(&nonce);
        let sealed_from = out.len();
        out.extend_from_slice(&now_ms.to_be_bytes());
        out.extend_from_slice(payload);
        let bound = self.bound(label);
        let tag = keys.gossip.encrypt_inout_detached(
            &XNonce::from(nonce),
            &bound,
            (&mut out[sealed_from..]).into(),
        );
        let tag = tag.expect("a datagram is far shorter than what the cipher takes");
        out.extend_from_slice(&tag);
    }

    /// Writes the payload of a datagram that arrived at `now_ms` into `out`.
    ///
    /// # Errors
    /// See [`Rejected`]; `out` then holds nothing of use.
    pub(super) fn open(&mut self, datagram: &[u8], now_ms: u64, out: &mut Vec<u8>) -> Result<(), Rejected> {
        out.clear();
        let (label, rest) = datagram.split_first_chunk::<LABEL_BYTES>().ok_or(Rejected::Foreign)?;
        let keyring = self.keyring();
        match (label, keyring) {
            ([MAGIC, VERSION, ..], Some(_)) => Err(Rejected::Unsealed),
            ([MAGIC, SEALED_VERSION, ..], None) => Err(Rejected::Sealed),
            ([MAGIC, SEALED_VERSION, id @ ..], Some(keyring)) => {
                self.open_sealed(&keyring, KeyId(*id), *label, rest, now_ms, out)
            }
            ([MAGIC, VERSION, ..], None) if *label == self.label => {
                match rest.split_first_chunk::<CHECKSUM_BYTES>() {
                    Some((sum, payload)) if *sum == checksum(payload) => {
                        out.extend_from_slice(payload);
                        Ok(())
                    }
                    _ => Err(Rejected::Damaged),
                }
            }
            ([MAGIC, VERSION, ..], None) => Err(Rejected::Cluster),
            ([MAGIC, other, ..], _) => Err(Rejected::Version(*other)),
            _ => Err(Rejected::Foreign),
        }
    }

    fn open_sealed(
        &mut self,
        keyring: &Keyring,
        id: KeyId,
        label: [u8; LABEL_BYTES],
        rest: &[u8],
        now_ms: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Rejected> {
        let keys = keyring.get(id).ok_or(Rejected::UnknownKey(id))?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(Rejected::Forged)?;
        let (sealed, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(Rejected::Forged)?;
        out.extend_from_slice(sealed);
        let tag = Tag::<XChaCha20Poly1305>::from(*tag);
        let opened = keys.gossip.decrypt_inout_detached(
            &XNonce::from(*nonce),
            &self.bound(label),
            out.as_mut_slice().into(),
            &tag,
        );
        opened.map_err(|_| Rejected::Forged)?;
        let sealed_at = out.first_chunk::<TIME_BYTES>().ok_or(Rejected::Forged)?;
        let sealed_at_ms = u64::from_be_bytes(*sealed_at);
        out.drain(..TIME_BYTES);
        let (first, _) = nonce.split_first_chunk::<16>().ok_or(Rejected::Forged)?;
        Ok(self.replays.admit(sealed_at_ms, u128::from_be_bytes(*first), now_ms)?)
    }

    fn keyring(&self) -> Option<Arc<Keyring>> {
        self.keyring.as_ref().map(|keyring| keyring.borrow().clone())
    }

    /// What a seal binds besides the payload.
    fn bound(&self, label: [u8; LABEL_BYTES]) -> Vec<u8> {
        [&label[..], self.cluster.as_bytes()].concat()
    }
}

fn label(version: u8, [a, b, c, d]: [u8; 4]) -> [u8; LABEL_BYTES] {
    [MAGIC, version, a, b, c, d]
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    mix::hash(0, payload).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::security::Secret;

    const NOW: u64 = 1_000_000;

    fn plain(cluster: &str) -> Envelope {
        Envelope::new(cluster, None, [0; 32])
    }

    fn secret(seed: u64) -> String {
        Secret::generate(&mut StdRng::seed_from_u64(seed)).to_text()
    }

    /// Of a node that has these secrets.
    fn sealing(cluster: &str, secrets: &[u64], seed: u8) -> (Envelope, watch::Sender<Arc<Keyring>>) {
        let text: Vec<String> = secrets.iter().map(|seed| secret(*seed)).collect();
        let (sender, keyring) = watch::channel(Arc::new(Keyring::parse(&text.join("\n")).unwrap()));
        (Envelope::new(cluster, Some(keyring), [seed; 32]), sender)
    }

    fn seal(envelope: &mut Envelope, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        envelope.seal(payload, NOW, &mut datagram);
        datagram
    }

    fn open(envelope: &mut Envelope, datagram: &[u8]) -> Result<Vec<u8>, Rejected> {
        open_at(envelope, datagram, NOW)
    }

    fn open_at(envelope: &mut Envelope, datagram: &[u8], now_ms: u64) -> Result<Vec<u8>, Rejected> {
        let mut payload = Vec::new();
        envelope.open(datagram, now_ms, &mut payload).map(|()| payload)
    }

    #[test]
    fn a_datagram_opens_only_in_its_own_cluster_and_version() {
        let (mut ours, mut theirs) = (plain("shoal"), plain("herring"));
        let mut datagram = seal(&mut ours, b"hello");
        assert_eq!(open(&mut ours, &datagram), Ok(b"hello".to_vec()));
        assert_eq!(open(&mut theirs, &datagram), Err(Rejected::Cluster));
        for byte in LABEL_BYTES..datagram.len() {
            let mut damaged = datagram.clone();
            damaged[byte] ^= 1;
            assert_eq!(open(&mut ours, &damaged), Err(Rejected::Damaged), "byte {byte}");
        }
        assert_eq!(open(&mut ours, &datagram[..datagram.len() - 1]), Err(Rejected::Damaged));
        datagram[1] = 9;
        assert_eq!(open(&mut ours, &datagram), Err(Rejected::Version(9)));
        assert_eq!(open(&mut ours, b"GET / HTTP/1.1"), Err(Rejected::Foreign));
        assert_eq!(open(&mut ours, b""), Err(Rejected::Foreign));
    }

    #[test]
    fn a_sealed_datagram_opens_once_and_only_as_it_was_sealed() {
        let ((mut sender, _a), (mut receiver, _b)) = (sealing("shoal", &[1], 1), sealing("shoal", &[1], 2));
        let datagram = seal(&mut sender, b"hello");
        assert_eq!(datagram.len(), b"hello".len() + OVERHEAD_BYTES);
        assert!(!datagram.windows(5).any(|five| five == b"hello"));
        for byte in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[byte] ^= 1;
            assert!(open(&mut receiver, &changed).is_err(), "byte {byte}");
            assert!(open(&mut receiver, &datagram[..byte]).is_err(), "{byte} bytes");
        }
        assert_eq!(open(&mut receiver, &datagram), Ok(b"hello".to_vec()));
        assert_eq!(open(&mut receiver, &datagram), Err(Stale::Replayed.into()));
        let late = seal(&mut sender, b"hello");
        assert_eq!(open_at(&mut receiver, &late, NOW + 30_001), Err(Stale::OutOfTime(30_001).into()));
    }

    #[test]
    fn a_seal_binds_the_cluster_and_the_secret() {
        let (mut sender, _a) = sealing("shoal", &[1], 1);
        let (mut other_cluster, _b) = sealing("herring", &[1], 2);
        let (mut other_secret, _c) = sealing("shoal", &[2], 3);
        let datagram = seal(&mut sender, b"hello");
        assert_eq!(open(&mut other_cluster, &datagram), Err(Rejected::Forged));
        assert!(matches!(open(&mut other_secret, &datagram), Err(Rejected::UnknownKey(_))));
        assert_eq!(open(&mut plain("shoal"), &datagram), Err(Rejected::Sealed));
        assert_eq!(open(&mut sender, &seal(&mut plain("shoal"), b"hello")), Err(Rejected::Unsealed));
    }

    #[test]
    fn a_secret_is_rotated_while_datagrams_pass() {
        let ((mut one, one_keys), (mut other, other_keys)) =
            (sealing("shoal", &[1], 1), sealing("shoal", &[1], 2));
        let ring = |secrets: &[u64]| {
            let text: Vec<String> = secrets.iter().map(|seed| secret(*seed)).collect();
            Arc::new(Keyring::parse(&text.join("\n")).unwrap())
        };
        let mut check = |step: &str| {
            let (there, back) = (seal(&mut one, b"there"), seal(&mut other, b"back"));
            assert!(open(&mut other, &there).is_ok(), "{step}");
            assert!(open(&mut one, &back).is_ok(), "{step}");
        };
        for secrets in [[1, 2], [2, 1]] {
            one_keys.send_replace(ring(&secrets));
            check("one of them is ahead");
            other_keys.send_replace(ring(&secrets));
            check("both have it");
        }
        one_keys.send_replace(ring(&[2]));
        check("one has let the old secret go");
        other_keys.send_replace(ring(&[2]));
        check("both have");
    }
}
