//! Proofs of holding the secret for one HTTP call, and the hashes that all proofs are made of.
//!
//! They are HMAC-SHA256 (RFC 2104), compared in constant time. A call's proof covers node, method, path, body and time, and is
//! good for once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::replay::{Replays, Stale};
use super::secret::{KeyId, Keyring, Keys};
use crate::model::NodeId;

/// The header of a proved call.
pub const PROOF_HEADER: &str = "shoal-proof";
/// The form of the header's value; others may come.
const FORM: &str = "v1";
const HASH_BYTES: usize = 32;

/// A hash as this module uses it.
pub type Hash = [u8; HASH_BYTES];

/// One call of `/internal`, as it is proved.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The cluster that is meant.
    pub cluster: &'a str,
    /// The node of it that is meant; another one would take an overheard proof for new.
    pub node: &'a NodeId,
    /// The method.
    pub method: &'a str,
    /// Path and query as they are sent.
    pub target: &'a str,
}

/// Why a call is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// There is no header, or none of this form.
    #[error("this takes a proof of the cluster secret in the {PROOF_HEADER} header; `shoal proof` makes one")]
    Missing,
    /// Another secret than any of this node's.
    #[error("proved with the secret {0}, which this node does not have")]
    UnknownKey(KeyId),
    /// Not for this call.
    #[error("the proof is not for this node, cluster, method, path and body")]
    Wrong,
    /// Too old, or used before.
    #[error("{0}")]
    Stale(#[from] Stale),
}

impl Call<'_> {
    /// The header's value that proves this call with `body`, made at `now_ms`.
    #[must_use]
    pub fn prove(self, keyring: &Keyring, body: &[u8], now_ms: u64, nonce: u128) -> String {
        let keys = keyring.first();
        let body = hash(body);
        let mac = self.mac(keys, &body, now_ms, nonce).finalize().into_bytes();
        format!("{FORM} {} {now_ms} {nonce:032x} {} {}", keys.id, text(&body), text(&mac.into()))
    }

    /// Checks a header's value before the body is read. Gives the hash that the body must have.
    ///
    /// # Errors
    /// See [`ProofError`].
    pub fn check(
        self,
        keyring: &Keyring,
        header: Option<&str>,
        replays: &mut Replays,
        now_ms: u64,
    ) -> Result<Hash, ProofError> {
        let parsed = header.and_then(parse).ok_or(ProofError::Missing)?;
        let keys = keyring.get(parsed.key).ok_or(ProofError::UnknownKey(parsed.key))?;
        let mac = self.mac(keys, &parsed.body, parsed.at_ms, parsed.nonce);
        mac.verify_slice(&parsed.mac).map_err(|_| ProofError::Wrong)?;
        replays.admit(parsed.at_ms, parsed.nonce, now_ms)?;
        Ok(parsed.body)
    }

    fn mac(self, keys: &Keys, body: &Hash, at_ms: u64, nonce: u128) -> Hmac<Sha256> {
        let mut mac = keyed(&keys.calls);
        for text in [self.cluster, self.node.as_str(), self.method, self.target] {
            // With their lengths, so that no two calls read the same.
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text.as_bytes());
        }
        mac.update(body);
        mac.update(&at_ms.to_be_bytes());
        mac.update(&nonce.to_be_bytes());
        mac
    }
}

struct Parsed {
    key: KeyId,
    at_ms: u64,
    nonce: u128,
    body: Hash,
    mac: Hash,
}

fn parse(header: &str) -> Option<Parsed> {
    let mut words = header.strip_prefix(FORM)?.strip_prefix(' ')?.split(' ');
    let parsed = Parsed {
        key: KeyId::parse(words.next()?)?,
        at_ms: words.next()?.parse().ok()?,
        nonce: u128::from_str_radix(words.next()?, 16).ok()?,
        body: bytes(words.next()?)?,
        mac: bytes(words.next()?)?,
    };
    words.next().is_none().then_some(parsed)
}

/// What a body has to have as its hash; see [`Call::check`].
#[must_use]
pub fn hash(body: &[u8]) -> Hash {
    Sha256::digest(body).into()
}

/// As nonces and proofs travel in headers.
#[must_use]
pub fn text(bytes: &Hash) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads what [`text`] wrote.
#[must_use]
pub fn bytes(text: &str) -> Option<Hash> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// Whether two hashes are the same, in a time that does not depend on where they differ.
pub(super) fn is_same(one: &Hash, other: &Hash) -> bool {
    keyed(b"shoal compare")
        .chain_update(one)
        .verify_slice(&keyed(b"shoal compare").chain_update(other).finalize().into_bytes())
        .is_ok()
}

/// HMAC-SHA256 under this key.
pub(super) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::secret::Secret;
    use super::*;

    const NOW: u64 = 1_000_000;
    static NODE: LazyLock<NodeId> = LazyLock::new(|| NodeId::parse("node1").unwrap());
    static CALL: LazyLock<Call<'static>> =
        LazyLock::new(|| Call { cluster: "shoal", node: &NODE, method: "PUT", target: "/internal/cache/a" });

    fn keyring(seed: u64) -> Keyring {
        Keyring::parse(&Secret::generate(&mut StdRng::seed_from_u64(seed)).to_text()).unwrap()
    }

    fn check(call: Call<'_>, header: &str) -> Result<Hash, ProofError> {
        call.check(&keyring(1), Some(header), &mut Replays::default(), NOW)
    }

    #[test]
    fn a_proof_is_good_for_its_call_alone_and_once() {
        let header = CALL.prove(&keyring(1), b"value", NOW, 7);
        let mut replays = Replays::default();
        assert_eq!(CALL.check(&keyring(1), Some(&header), &mut replays, NOW), Ok(hash(b"value")));
        assert_eq!(
            CALL.check(&keyring(1), Some(&header), &mut replays, NOW),
            Err(ProofError::Stale(Stale::Replayed))
        );
        for other in [
            Call { method: "DELETE", ..*CALL },
            Call { target: "/internal/cache/b", ..*CALL },
            Call { target: "/internal/cache/a?ttl=1", ..*CALL },
            Call { cluster: "herring", ..*CALL },
            Call { node: &NodeId::parse("node2").unwrap(), ..*CALL },
            Call { cluster: "shoalnode1", ..*CALL },
        ] {
            assert_eq!(check(other, &header), Err(ProofError::Wrong), "{other:?}");
        }
        let late = NOW + 30_001;
        assert_eq!(
            CALL.check(&keyring(1), Some(&header), &mut Replays::default(), late),
            Err(ProofError::Stale(Stale::OutOfTime(30_001)))
        );
        assert_eq!(
            CALL.check(&keyring(2), Some(&header), &mut Replays::default(), NOW),
            Err(ProofError::UnknownKey(keyring(1).first().id))
        );
    }

    #[test]
    fn no_word_of_a_proof_can_be_changed() {
        let header = CALL.prove(&keyring(1), b"value", NOW, 7);
        assert!(check(*CALL, &header).is_ok());
        for index in 0..header.len() {
            let mut changed = header.clone().into_bytes();
            changed[index] = if changed[index] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(check(*CALL, &changed).is_err(), "{changed}");
        }
        for other in ["", "v1", "v2 x", &header[..header.len() - 1], &format!("{header} x")] {
            assert_eq!(check(*CALL, other), Err(ProofError::Missing), "{other}");
        }
    }
}
