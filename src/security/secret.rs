//! The cluster's secrets, and the keys that are made of them.
//!
//! A secret is 32 random bytes as text. It is used for nothing itself: each purpose has a key of its own, derived with
//! HKDF-SHA256 (RFC 5869). Invariant: neither a secret nor a key is ever shown, in `Debug` or otherwise; a [`KeyId`] may be.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hkdf::Hkdf;
use rand::CryptoRng;
use sha2::Sha256;

const SECRET_BYTES: usize = 32;
/// Begins every secret, so that people, and scanners of repositories, know one when they see it.
const PREFIX: &str = "shoal-secret-";
const SALT: &[u8] = b"shoal cluster secret 1";
/// Of old secrets, one is enough; each more is one more that may have leaked.
const SECRETS_MAX: usize = 8;

/// One cluster secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

/// Why a text holds no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// A line that is no secret. Its text is not repeated: it may be most of one.
    #[error("line {0} is not a secret; one is made by `shoal secret`")]
    NotASecret(usize),
    /// No line but blank ones and comments.
    #[error("there is no secret in it; one is made by `shoal secret`")]
    Empty,
    /// More lines than a rotation needs.
    #[error("there are more than {SECRETS_MAX} secrets in it")]
    TooMany,
}

impl Secret {
    /// A new one.
    pub fn generate(random: &mut impl CryptoRng) -> Secret {
        let mut bytes = [0; SECRET_BYTES];
        random.fill_bytes(&mut bytes);
        Secret(bytes)
    }

    /// As people keep it.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }

    fn parse(text: &str) -> Option<Secret> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        bytes.try_into().ok().map(Secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(…)")
    }
}

/// Tells secrets apart without telling anything of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 4]);

impl KeyId {
    /// Reads what `Display` wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<KeyId> {
        let is_plain = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u32::from_str_radix(text, 16).ok().filter(|_| is_plain)?;
        Some(KeyId(number.to_be_bytes()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// What is made of one secret.
pub struct Keys {
    /// Which secret it was.
    pub id: KeyId,
    /// Seals datagrams.
    pub gossip: XChaCha20Poly1305,
    /// Proves calls of `/internal`.
    pub(super) calls: [u8; 32],
    /// Proves the two ends of a link to each other.
    pub(super) links: [u8; 32],
}

impl Keys {
    fn of(secret: &Secret) -> Keys {
        let hkdf = Hkdf::<Sha256>::new(Some(SALT), &secret.0);
        let derive = |purpose: &str| {
            let mut key = [0; 32];
            hkdf.expand(purpose.as_bytes(), &mut key).expect("32 bytes are within what HKDF gives");
            key
        };
        let [a, b, c, d, ..] = derive("key id");
        Keys {
            id: KeyId([a, b, c, d]),
            gossip: XChaCha20Poly1305::new(&derive("gossip").into()),
            calls: derive("internal calls"),
            links: derive("links"),
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Keys({})", self.id)
    }
}

/// The secrets in use: the first seals and proves, all open and verify. Never empty.
#[derive(Debug)]
pub struct Keyring(Vec<Keys>);

impl Keyring {
    /// The secrets in `text`, one a line; blank lines and those that begin with `#` are skipped.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn parse(text: &str) -> Result<Keyring, SecretError> {
        let lines = text.lines().map(str::trim).enumerate();
        let secrets = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<Keys> = secrets
            .map(|(index, line)| Secret::parse(line).ok_or(SecretError::NotASecret(index + 1)))
            .map(|secret| secret.map(|secret| Keys::of(&secret)))
            .collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err(SecretError::Empty),
            1..=SECRETS_MAX => Ok(Keyring(keys)),
            _ => Err(SecretError::TooMany),
        }
    }

    /// Of the secret that seals and proves.
    #[must_use]
    pub fn first(&self) -> &Keys {
        &self.0[0]
    }

    /// Of any secret in use.
    #[must_use]
    pub fn get(&self, id: KeyId) -> Option<&Keys> {
        self.0.iter().find(|keys| keys.id == id)
    }

    /// Which secrets are in use, the first one first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|keys| keys.id)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn secret(seed: u64) -> Secret {
        Secret::generate(&mut StdRng::seed_from_u64(seed))
    }

    #[test]
    fn a_keyring_is_the_secrets_of_its_lines_in_order() {
        let (old, new) = (secret(1), secret(2));
        let text = format!("# since May\n{}\n\n  {}  \n", new.to_text(), old.to_text());
        let keyring = Keyring::parse(&text).unwrap();
        assert_eq!(keyring.first().id, Keys::of(&new).id);
        assert_eq!(keyring.ids().collect::<Vec<_>>(), [Keys::of(&new).id, Keys::of(&old).id]);
        assert!(keyring.get(Keys::of(&old).id).is_some());
        assert!(keyring.get(Keys::of(&secret(3)).id).is_none());
    }

    #[test]
    fn what_is_no_secret_is_refused_by_its_line_and_not_repeated() {
        let good = secret(1).to_text();
        let cut = &good[..good.len() - 1];
        for (text, error) in [
            (format!("{good}\n{cut}"), SecretError::NotASecret(2)),
            ("hunter2".into(), SecretError::NotASecret(1)),
            (String::new(), SecretError::Empty),
            ("# nothing\n".into(), SecretError::Empty),
            (format!("{good}\n").repeat(9), SecretError::TooMany),
        ] {
            let refused = Keyring::parse(&text).unwrap_err();
            assert_eq!(refused, error);
            assert!(!refused.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn nothing_of_a_secret_is_shown() {
        let secret = secret(1);
        let text = secret.to_text();
        let keyring = Keyring::parse(&text).unwrap();
        let shown = format!("{secret:?} {keyring:?}");
        assert_eq!(shown, format!("Secret(…) Keyring([Keys({})])", keyring.first().id));
    }

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let id = KeyId([0, 1, 0xab, 0xff]);
        assert_eq!(id.to_string(), "0001abff");
        assert_eq!(KeyId::parse("0001abff"), Some(id));
        for other in ["", "1abff", "0001abfg", "+001abff", "0001abff0"] {
            assert_eq!(KeyId::parse(other), None, "{other}");
        }
    }
}
