//! What the two ends of a link show to each other, and the keys that they seal with afterwards.
//!
//! Everything is derived with HKDF-SHA256 (RFC 5869) from the secret, a nonce of either end, and whatever both have to agree
//! on: who asks, who is called where, who answers, and the TLS connection below, if there is one. So a handshake that
//! is passed on to another node, or over another connection, proves nothing there.

use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::proof::{Hash, keyed};
use super::seal::{Opener, Sealer};
use super::secret::Keys;

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that asked for it.
    Asking,
    /// The one that answered.
    Answering,
}

impl End {
    fn other(self) -> End {
        match self {
            End::Asking => End::Answering,
            End::Answering => End::Asking,
        }
    }
}

/// What both ends have to agree on.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The cluster of both.
    pub cluster: &'a str,
    /// The protocol, and what the link is for.
    pub purpose: &'a str,
    /// Who asks.
    pub asking: &'a str,
    /// Who is called, and where.
    pub called: &'a str,
    /// Who answers.
    pub answering: &'a str,
    /// The nonces of the asking and of the answering end.
    pub nonces: [&'a Hash; 2],
    /// The TLS connection that the link goes over: its exporter (RFC 9266).
    pub channel: Option<&'a Hash>,
}

/// The handshake of one link, as one end sees it.
pub struct Handshake {
    proof: Hash,
    asking: Hash,
    answering: Hash,
}

impl Handshake {
    /// By these terms, between holders of this secret.
    #[must_use]
    pub fn new(keys: &Keys, terms: Terms<'_>) -> Handshake {
        let [asking, answering] = terms.nonces;
        let hkdf = Hkdf::<Sha256>::new(Some(&[&asking[..], &answering[..]].concat()), &keys.links);
        let mut info = Vec::new();
        let channel = terms.channel.map_or(&[][..], |channel| &channel[..]);
        let texts = [terms.cluster, terms.purpose, terms.asking, terms.called, terms.answering];
        for field in texts.map(str::as_bytes).into_iter().chain([channel]) {
            // With their lengths, so that no two terms read the same.
            info.extend_from_slice(&(field.len() as u64).to_be_bytes());
            info.extend_from_slice(field);
        }
        let derive = |purpose: &str| {
            let mut key = Hash::default();
            let info = [info.as_slice(), purpose.as_bytes()].concat();
            hkdf.expand(&info, &mut key).expect("32 bytes are within what HKDF gives");
            key
        };
        Handshake { proof: derive("proof"), asking: derive("asking"), answering: derive("answering") }
    }

    /// What this end shows.
    #[must_use]
    pub fn proof(&self, end: End) -> Hash {
        self.mac(end).finalize().into_bytes().into()
    }

    /// Whether the other end showed what only a holder of the secret can, by these very terms.
    #[must_use]
    pub fn is_proved(&self, end: End, shown: &[u8]) -> bool {
        self.mac(end).verify_slice(shown).is_ok()
    }

    /// What this end seals with, and what opens what the other one sends.
    #[must_use]
    pub fn seals(&self, end: End) -> (Sealer, Opener) {
        (Sealer::new(*self.secret(end)), Opener::new(*self.secret(end.other())))
    }

    fn secret(&self, end: End) -> &Hash {
        match end {
            End::Asking => &self.asking,
            End::Answering => &self.answering,
        }
    }

    fn mac(&self, end: End) -> Hmac<Sha256> {
        // Each end has its own word, so that neither can be answered with what it showed.
        keyed(&self.proof).chain_update(match end {
            End::Asking => "asking",
            End::Answering => "answering",
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::secret::{Keyring, Secret};
    use super::*;

    const TERMS: Terms<'static> = Terms {
        cluster: "shoal",
        purpose: "link bulk",
        asking: "n1 127.0.0.1:1 7",
        called: "127.0.0.1:2 n2",
        answering: "n2 127.0.0.1:2 8",
        nonces: [&[1; 32], &[2; 32]],
        channel: Some(&[3; 32]),
    };

    fn handshake(seed: u64, terms: Terms<'_>) -> Handshake {
        let text = Secret::generate(&mut StdRng::seed_from_u64(seed)).to_text();
        Handshake::new(Keyring::parse(&text).unwrap().first(), terms)
    }

    /// Each differs from [`TERMS`] in one thing.
    fn others() -> Vec<Handshake> {
        let others = [
            Terms { cluster: "herring", ..TERMS },
            Terms { purpose: "link requests", ..TERMS },
            Terms { asking: "n3 127.0.0.1:1 7", ..TERMS },
            Terms { asking: "n1 127.0.0.1:9 7", ..TERMS },
            Terms { called: "127.0.0.1:3 n2", ..TERMS },
            Terms { called: "127.0.0.1:2 n3", ..TERMS },
            Terms { called: "127.0.0.1:2", ..TERMS },
            Terms { answering: "n3 127.0.0.1:2 8", ..TERMS },
            Terms { answering: "n2 127.0.0.1:3 8", ..TERMS },
            Terms { asking: "n1 127.0.0.1:1 712", called: "7.0.0.1:2 n2", ..TERMS },
            Terms { nonces: [&[1; 32], &[3; 32]], ..TERMS },
            Terms { nonces: [&[3; 32], &[2; 32]], ..TERMS },
            Terms { nonces: [&[2; 32], &[1; 32]], ..TERMS },
            Terms { channel: Some(&[4; 32]), ..TERMS },
            Terms { channel: None, ..TERMS },
        ];
        let others = others.into_iter().map(|terms| handshake(1, terms));
        others.chain([handshake(2, TERMS)]).collect()
    }

    #[test]
    fn the_ends_of_a_link_prove_themselves_to_each_other_by_the_same_terms_only() {
        let ours = handshake(1, TERMS);
        let proof = handshake(1, TERMS).proof(End::Asking);
        assert!(ours.is_proved(End::Asking, &proof));
        assert!(!ours.is_proved(End::Answering, &proof), "shown back to who showed it");
        assert!(!ours.is_proved(End::Asking, &proof[..31]));
        for (index, other) in others().iter().enumerate() {
            for end in [End::Asking, End::Answering] {
                assert!(!ours.is_proved(end, &other.proof(end)), "{index}");
            }
        }
    }

    #[test]
    fn what_is_sealed_opens_at_the_other_end_of_this_link_only() {
        let seal = |handshake: &Handshake, end| {
            let mut record = b"frame".to_vec();
            let tag = handshake.seals(end).0.seal([5, 0, 0, 0], &mut record).unwrap();
            [&record[..], &tag].concat()
        };
        let opens = |handshake: &Handshake, end, record: &[u8]| {
            handshake.seals(end).1.open([5, 0, 0, 0], &mut record.to_vec()).is_ok()
        };
        let ours = handshake(1, TERMS);
        for (end, other) in [(End::Asking, End::Answering), (End::Answering, End::Asking)] {
            let record = seal(&ours, end);
            assert!(opens(&ours, other, &record));
            assert!(!opens(&ours, end, &record), "sent back to who sealed it");
            assert!(others().iter().all(|handshake| !opens(handshake, other, &record)));
        }
    }
}
