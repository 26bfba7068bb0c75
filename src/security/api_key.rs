//! The keys of clients: who may read and write which keys of the cache.
//!
//! A client's key is its name and 32 random bytes. The file holds, for each name, a salt and the HMAC-SHA256 of those bytes
//! under it: with 256 random bits nothing is gained by a slow hash, and each request has to be checked. Invariant: neither
//! the file nor this module's types hold what a client has to show.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use rand::CryptoRng;
use sha2::Sha256;

use super::proof::keyed;
use crate::model::NodeId;

const FORM: &str = "hmac-sha256";
const SECRET_BYTES: usize = 32;

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// GET and HEAD.
    Read,
    /// PUT and DELETE.
    Write,
}

impl fmt::Display for Right {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Right::Read => "read",
            Right::Write => "write",
        })
    }
}

/// Which rights, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The client.
    pub name: String,
    /// Whether it may read.
    pub read: bool,
    /// Whether it may write.
    pub write: bool,
    /// Only keys of the cache that begin like this.
    pub prefix: String,
}

impl Grant {
    /// Whether this is granted for that key of the cache.
    #[must_use]
    pub fn allows(&self, right: Right, key: &str) -> bool {
        self.has(right) && key.starts_with(&self.prefix)
    }

    /// Whether this is granted for any key.
    #[must_use]
    pub fn has(&self, right: Right) -> bool {
        match right {
            Right::Read => self.read,
            Right::Write => self.write,
        }
    }

    /// A new key for this client: what it has to show, and the line of the file.
    ///
    /// # Errors
    /// When the name or the prefix cannot stand in the file.
    pub fn issue(&self, random: &mut impl CryptoRng) -> Result<(String, String), String> {
        check_name(&self.name)?;
        if self.prefix.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("the prefix {:?} must be without spaces", self.prefix));
        }
        let (mut secret, mut salt) = ([0; SECRET_BYTES], [0; SECRET_BYTES / 2]);
        random.fill_bytes(&mut secret);
        random.fill_bytes(&mut salt);
        let hash = mac(&salt, &secret).finalize().into_bytes();
        let shown = format!("{}.{}", self.name, URL_SAFE_NO_PAD.encode(secret));
        let [salt, hash] = [&salt[..], &hash[..]].map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        let rights: Vec<&str> = [(self.read, "read"), (self.write, "write")]
            .iter()
            .filter(|one| one.0)
            .map(|one| one.1)
            .collect();
        let line = format!("{} {FORM}${salt}${hash} {} {}", self.name, rights.join(","), self.prefix);
        Ok((shown, line.trim_end().to_string()))
    }
}

/// All clients' keys.
#[derive(Debug, Default)]
pub struct ApiKeys(BTreeMap<String, ApiKey>);

struct ApiKey {
    grant: Arc<Grant>,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.grant.fmt(out)
    }
}

impl ApiKeys {
    /// Reads the file's text: a client a line, `NAME HASH RIGHTS [PREFIX]`.
    ///
    /// # Errors
    /// A sentence about the first line that is none.
    pub fn parse(text: &str) -> Result<ApiKeys, String> {
        let mut keys = BTreeMap::new();
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = index + 1;
            let key = parse_line(line).map_err(|reason| format!("line {number}: {reason}"))?;
            let name = key.grant.name.clone();
            if keys.insert(name.clone(), key).is_some() {
                return Err(format!("line {number}: {name} is there twice"));
            }
        }
        Ok(ApiKeys(keys))
    }

    /// What the client that shows this may do; none if nobody was given it.
    #[must_use]
    pub fn grant(&self, shown: &str) -> Option<Arc<Grant>> {
        let (name, secret) = shown.rsplit_once('.')?;
        let key = self.0.get(name)?;
        let secret = URL_SAFE_NO_PAD.decode(secret).ok().filter(|secret| secret.len() == SECRET_BYTES)?;
        mac(&key.salt, &secret).verify_slice(&key.hash).ok()?;
        Some(key.grant.clone())
    }
}

fn parse_line(line: &str) -> Result<ApiKey, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (&[name, hash, rights], prefix) = words
        .split_first_chunk::<3>()
        .filter(|(_, rest)| rest.len() <= 1)
        .ok_or("it must be NAME HASH RIGHTS [PREFIX], as `shoal key NAME` prints it")?;
    check_name(name)?;
    let mut parts = hash.split('$');
    let decode = |text: Option<&str>| text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let (form, salt, hash) = (parts.next(), decode(parts.next()), decode(parts.next()));
    let (Some(FORM), Some(salt), Some(hash), None) = (form, salt, hash, parts.next()) else {
        return Err(format!("the hash must be {FORM}$SALT$HASH, as `shoal key NAME` prints it"));
    };
    if hash.len() != 32 || salt.is_empty() {
        return Err(format!("the hash must be {FORM}$SALT$HASH, as `shoal key NAME` prints it"));
    }
    let mut grant = Grant {
        name: name.into(),
        read: false,
        write: false,
        prefix: prefix.first().copied().unwrap_or_default().into(),
    };
    for right in rights.split(',') {
        match right {
            "read" => grant.read = true,
            "write" => grant.write = true,
            other => return Err(format!("{other:?} is no right; the rights are read and write")),
        }
    }
    Ok(ApiKey { grant: Arc::new(grant), salt, hash })
}

fn check_name(name: &str) -> Result<(), String> {
    // The same form as a node's name, for one rule to remember.
    NodeId::parse(name)
        .map(|_| ())
        .map_err(|_| format!("the name {name:?} must be 1-64 of letters, digits, '.', '_' and '-'"))
}

fn mac(salt: &[u8], secret: &[u8]) -> Hmac<Sha256> {
    keyed(salt).chain_update(secret)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn grant(name: &str, prefix: &str) -> Grant {
        Grant { name: name.into(), read: true, write: false, prefix: prefix.into() }
    }

    #[test]
    fn a_client_is_known_by_what_it_was_issued_and_by_nothing_else() {
        let mut random = StdRng::seed_from_u64(1);
        let (shown, line) = grant("web.1", "page/").issue(&mut random).unwrap();
        let (others, second) = grant("batch", "").issue(&mut random).unwrap();
        let keys = ApiKeys::parse(&format!("# clients\n{line}\n\n{second}\n")).unwrap();
        assert_eq!(keys.grant(&shown), Some(Arc::new(grant("web.1", "page/"))));
        assert_eq!(keys.grant(&others), Some(Arc::new(grant("batch", ""))));
        let swapped = format!("web.1.{}", others.rsplit_once('.').unwrap().1);
        for wrong in ["", ".", "web.1", "web.1.", &swapped, &shown[1..], &format!("{shown}A"), &line] {
            assert_eq!(keys.grant(wrong), None, "{wrong}");
        }
        let secret = shown.rsplit_once('.').unwrap().1;
        assert!(!format!("{line} {keys:?}").contains(secret));
    }

    #[test]
    fn rights_hold_for_keys_that_begin_with_the_prefix() {
        let read = grant("web", "page/");
        assert!(read.allows(Right::Read, "page/1"));
        assert!(!read.allows(Right::Read, "pages"));
        assert!(!read.allows(Right::Write, "page/1"));
    }

    #[test]
    fn a_line_that_is_none_is_named_with_what_is_accepted() {
        let (_, line) = grant("web", "").issue(&mut StdRng::seed_from_u64(1)).unwrap();
        for (text, error) in [
            ("web".to_string(), "line 1: it must be NAME HASH RIGHTS"),
            (format!("{line} a b"), "line 1: it must be NAME HASH RIGHTS"),
            (format!("#\n{line},admin"), "line 2: \"admin\" is no right"),
            (line.replace("hmac", "md5"), "line 1: the hash must be"),
            (line.replace("web", "w/b"), "line 1: the name \"w/b\""),
            (format!("{line}\n{line}"), "line 2: web is there twice"),
        ] {
            let refused = ApiKeys::parse(&text).unwrap_err();
            assert!(refused.starts_with(error), "{refused}");
        }
        assert!(grant("a b", "").issue(&mut StdRng::seed_from_u64(1)).is_err());
        assert!(grant("ab", "p q").issue(&mut StdRng::seed_from_u64(1)).is_err());
    }
}
