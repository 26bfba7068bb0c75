//! Seals what one end of a link sends, and opens what it gets: AES-256-GCM (NIST SP 800-38D), a key for each direction.
//!
//! Nonces are counters that both ends keep and neither sends. Invariant: what opens was sealed by the other end, on this link,
//! for this direction, right behind what opened before.

use hkdf::Hkdf;
use ring::aead::{
    AES_256_GCM, Aad, BoundKey, NONCE_LEN, Nonce, NonceSequence, OpeningKey, SealingKey, UnboundKey,
};
use ring::error::Unspecified;
use sha2::Sha256;

use super::proof::Hash;

/// What a seal adds to what it seals.
pub const TAG_BYTES: usize = 16;
/// What one key may seal. RFC 8446, section 5.5, allows AES-GCM 2^24.5 records of 16 KiB; this is a quarter of that.
const KEY_BYTES_MAX: u64 = 1 << 36;
/// What a record counts for besides its bytes: its last block may be short, and one block makes the tag.
const RECORD_EXTRA_BYTES: u64 = 32;

/// Something was altered, left out, put in, repeated, moved, or not sealed at all. The link cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record that does not open: it is not the next one that the peer sealed")]
pub struct NotSealed;

/// Seals what one end sends.
pub struct Sealer(Direction<SealingKey<Counter>>);

/// Opens what the other end has sealed.
pub struct Opener(Direction<OpeningKey<Counter>>);

impl Sealer {
    pub(super) fn new(secret: Hash) -> Sealer {
        Sealer(Direction::new(secret, KEY_BYTES_MAX))
    }

    /// Seals `record` where it is, and gives its tag. `length` is what goes ahead of it and is bound, too.
    ///
    /// # Errors
    /// Never before 2^64 records.
    pub fn seal(&mut self, length: [u8; 4], record: &mut [u8]) -> Result<[u8; TAG_BYTES], NotSealed> {
        let key = self.0.key_for(record.len());
        let tag = key.seal_in_place_separate_tag(Aad::from(length), record).map_err(|_| NotSealed)?;
        tag.as_ref().try_into().map_err(|_| NotSealed)
    }
}

impl Opener {
    pub(super) fn new(secret: Hash) -> Opener {
        Opener(Direction::new(secret, KEY_BYTES_MAX))
    }

    /// Opens `record`, with the tag behind it, where it is.
    ///
    /// # Errors
    /// [`NotSealed`]; then nothing that follows opens either.
    pub fn open(&mut self, length: [u8; 4], record: &mut [u8]) -> Result<(), NotSealed> {
        let key = self.0.key_for(record.len().saturating_sub(TAG_BYTES));
        key.open_in_place(Aad::from(length), record).map(|_| ()).map_err(|_| NotSealed)
    }
}

/// The keys of one direction, one after the other: both ends count alike, so that neither has to tell when the next one begins.
struct Direction<K> {
    secret: Hash,
    key: K,
    used_bytes: u64,
    key_bytes_max: u64,
}

impl<K: BoundKey<Counter>> Direction<K> {
    fn new(secret: Hash, key_bytes_max: u64) -> Direction<K> {
        let (key, secret) = step(&secret);
        Direction { secret, key, used_bytes: 0, key_bytes_max }
    }

    /// For a record of so many bytes.
    fn key_for(&mut self, bytes: usize) -> &mut K {
        if self.used_bytes >= self.key_bytes_max {
            (self.key, self.secret) = step(&self.secret);
            self.used_bytes = 0;
        }
        self.used_bytes += bytes as u64 + RECORD_EXTRA_BYTES;
        &mut self.key
    }
}

/// A key, and the secret of the one after it.
fn step<K: BoundKey<Counter>>(secret: &Hash) -> (K, Hash) {
    let hkdf = Hkdf::<Sha256>::from_prk(secret).expect("a secret is as long as a hash");
    let expand = |purpose: &[u8]| {
        let mut bytes = Hash::default();
        hkdf.expand(purpose, &mut bytes).expect("32 bytes are within what HKDF gives");
        bytes
    };
    let key = UnboundKey::new(&AES_256_GCM, &expand(b"key")).expect("a hash is as long as a key of AES-256");
    (K::new(key, Counter(0)), expand(b"next"))
}

/// The nonces of one key.
struct Counter(u64);

impl NonceSequence for Counter {
    fn advance(&mut self) -> Result<Nonce, Unspecified> {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.0.to_be_bytes());
        self.0 = self.0.checked_add(1).ok_or(Unspecified)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: [u8; 4] = [5, 0, 0, 0];

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut record = text.to_vec();
        let tag = sealer.seal(LENGTH, &mut record).unwrap();
        record.extend(tag);
        record
    }

    fn opened(opener: &mut Opener, record: &[u8]) -> Result<Vec<u8>, NotSealed> {
        let mut record = record.to_vec();
        opener.open(LENGTH, &mut record)?;
        record.truncate(record.len() - TAG_BYTES);
        Ok(record)
    }

    fn records() -> [Vec<u8>; 3] {
        let mut sealer = Sealer::new([1; 32]);
        [b"first", b"other", b"third"].map(|text| sealed(&mut sealer, text))
    }

    #[test]
    fn records_open_in_the_order_in_which_they_were_sealed() {
        let mut opener = Opener::new([1; 32]);
        let texts = records().map(|record| opened(&mut opener, &record).unwrap());
        assert_eq!(texts, [b"first", b"other", b"third"]);
    }

    #[test]
    fn a_record_opens_only_as_it_was_sealed() {
        let [first, ..] = records();
        for byte in 0..first.len() {
            for bit in 0..8 {
                let mut changed = first.clone();
                changed[byte] ^= 1 << bit;
                assert_eq!(opened(&mut Opener::new([1; 32]), &changed), Err(NotSealed), "byte {byte}");
            }
            assert_eq!(opened(&mut Opener::new([1; 32]), &first[..byte]), Err(NotSealed), "{byte} bytes");
        }
        let mut opener = Opener::new([1; 32]);
        assert_eq!(opener.open([6, 0, 0, 0], &mut first.clone()), Err(NotSealed), "another length");
        assert_eq!(opened(&mut Opener::new([2; 32]), &first), Err(NotSealed), "another key");
    }

    #[test]
    fn a_record_that_is_repeated_moved_or_left_out_does_not_open() {
        let [first, other, third] = records();
        for order in [vec![&first, &first], vec![&other], vec![&first, &third], vec![&first, &third, &other]]
        {
            let mut opener = Opener::new([1; 32]);
            let opened: Vec<_> =
                order.into_iter().map(|record| opened(&mut opener, record).is_ok()).collect();
            assert!(!opened.last().unwrap(), "{opened:?}");
        }
    }

    #[test]
    fn keys_change_after_as_many_bytes_as_one_may_seal_and_both_ends_change_together() {
        let mut sealer = Sealer(Direction::new([1; 32], 100));
        let mut opener = Opener(Direction::new([1; 32], 100));
        let mut keeping = Opener::new([1; 32]);
        let mut kept = 0;
        for _ in 0..20 {
            let record = sealed(&mut sealer, b"value");
            assert_eq!(opened(&mut opener, &record).unwrap(), b"value");
            kept += usize::from(opened(&mut keeping, &record).is_ok());
        }
        // Three of 37 bytes pass a hundred.
        assert_eq!(kept, 3);
    }

    #[test]
    fn a_nonce_is_not_used_twice() {
        let mut counter = Counter(u64::MAX - 1);
        assert!(counter.advance().is_ok());
        assert!(counter.advance().is_err());
        assert!(counter.advance().is_err());
    }
}
