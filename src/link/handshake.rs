//! How the two ends of a link prove to each other that they hold the cluster's secret.
//!
//! The asking end names the secret and sends a nonce with the upgrade request; the answering end sends a nonce of its own
//! and its proof with the answer; the asking end's proof is the first that it sends over the upgraded connection. So it
//! costs no round trip. Invariant: nothing of a peer is decoded before it has proved itself.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::{CLUSTER_HEADER, Lane, LinkConfig};
use crate::security::{End, Handshake, Hash, KeyId, Keyring, bytes, text};

/// Names the secret; a header of the request.
const KEY_HEADER: &str = "shoal-key";
/// A header of both.
const NONCE_HEADER: &str = "shoal-nonce";
/// A header of the answer.
const PROOF_HEADER: &str = "shoal-proof";
const PROOF_BYTES: usize = size_of::<Hash>();
/// How long the proof may take that comes right behind the answer.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a link is refused, for the log of either side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is meant for another cluster.
    #[error("this node belongs to cluster {ours:?}, not {theirs:?}")]
    Cluster {
        /// The asked node's.
        ours: String,
        /// The asking node's.
        theirs: String,
    },
    /// The asking node has no secret.
    #[error("this cluster has a secret, and the node that asked for the link has none")]
    NoSecret,
    /// The asking node has a secret that this one has not.
    #[error("this node does not have the secret {0}, by which the link was asked for")]
    UnknownSecret(KeyId),
    /// The asking node has a secret, and this one none.
    #[error("this node has no cluster secret, and the one that asked for the link has")]
    SecretNotWanted,
}

/// The asking end's part, from request to answer.
pub(super) struct Asked {
    key: KeyId,
    nonce: Hash,
}

impl Asked {
    /// The first part, if there is a secret.
    pub(super) fn new(config: &LinkConfig) -> Option<Asked> {
        let key = config.keyring.as_ref()?.borrow().first().id;
        Some(Asked { key, nonce: nonce() })
    }

    pub(super) fn key(&self) -> KeyId {
        self.key
    }

    /// The request's headers.
    pub(super) fn headers(&self) -> String {
        format!("{KEY_HEADER}: {}\r\n{NONCE_HEADER}: {}\r\n", self.key, text(&self.nonce))
    }

    /// What to show to the other end, if it has proved itself by its answer.
    pub(super) fn check<'a>(
        &self,
        config: &LinkConfig,
        lane: Lane,
        header: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Hash, String> {
        let field = |name| header(name).and_then(bytes);
        let (theirs, proof) = field(NONCE_HEADER)
            .zip(field(PROOF_HEADER))
            .ok_or("it did not prove that it holds the cluster secret")?;
        let keyring = config.keyring.as_ref().map(|keyring| keyring.borrow().clone());
        let keys = keyring.as_deref().and_then(|keyring| keyring.get(self.key));
        let keys = keys.ok_or("the secret was removed meanwhile")?;
        let handshake = Handshake::new(keys, &config.cluster, lane.as_str(), &self.nonce, &theirs);
        if !handshake.is_proved(End::Answering, &proof) {
            return Err("its proof of the cluster secret is wrong".into());
        }
        Ok(handshake.proof(End::Asking))
    }
}

/// The answering end's part: what to answer with, and what the asking end has to show next.
pub struct Answered {
    /// The answer's headers.
    pub headers: Vec<(&'static str, String)>,
    /// The secret that the link rests on, if there is one.
    pub key: Option<KeyId>,
    handshake: Option<Handshake>,
}

/// Answers a request for a link with these headers.
///
/// # Errors
/// See [`Refused`].
pub fn answer<'a>(
    config: &LinkConfig,
    lane: Lane,
    header: impl Fn(&str) -> Option<&'a str>,
) -> Result<Answered, Refused> {
    let theirs = header(CLUSTER_HEADER).unwrap_or_default();
    if theirs != config.cluster {
        return Err(Refused::Cluster { ours: config.cluster.clone(), theirs: theirs.into() });
    }
    let asked = header(KEY_HEADER).and_then(KeyId::parse).zip(header(NONCE_HEADER).and_then(bytes));
    let keyring = config.keyring.as_ref().map(|keyring| keyring.borrow().clone());
    match (keyring, asked) {
        (None, None) => Ok(Answered { headers: Vec::new(), key: None, handshake: None }),
        (None, Some(_)) => Err(Refused::SecretNotWanted),
        (Some(_), None) => Err(Refused::NoSecret),
        (Some(keyring), Some((key, asking))) => prove(&keyring, config, lane, key, &asking),
    }
}

fn prove(
    keyring: &Keyring,
    config: &LinkConfig,
    lane: Lane,
    key: KeyId,
    asking: &Hash,
) -> Result<Answered, Refused> {
    let keys = keyring.get(key).ok_or(Refused::UnknownSecret(key))?;
    let nonce = nonce();
    let handshake = Handshake::new(keys, &config.cluster, lane.as_str(), asking, &nonce);
    let headers = vec![(NONCE_HEADER, text(&nonce)), (PROOF_HEADER, text(&handshake.proof(End::Answering)))];
    Ok(Answered { headers, key: Some(key), handshake: Some(handshake) })
}

impl Answered {
    /// Takes the asking end's proof off the front of the connection; `early` is what has arrived already.
    ///
    /// # Errors
    /// A sentence, if there is none in time or a wrong one.
    pub async fn admit(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        early: &mut BytesMut,
    ) -> Result<(), String> {
        let Some(handshake) = &self.handshake else { return Ok(()) };
        let arrives = async {
            while early.len() < PROOF_BYTES {
                match stream.read_buf(early).await {
                    Ok(0) => return Err("it closed the connection before it proved itself".to_string()),
                    Ok(_) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(())
        };
        let arrived = timeout(PROOF_TIMEOUT, arrives).await;
        arrived.map_err(|_| "it did not prove in time that it holds the cluster secret")??;
        if !handshake.is_proved(End::Asking, &early[..PROOF_BYTES]) {
            return Err("its proof of the cluster secret is wrong".into());
        }
        early.advance(PROOF_BYTES);
        Ok(())
    }
}

/// Returns once the secret `key`, on which a link rests, is no longer one of the cluster's.
pub async fn until_revoked(config: &LinkConfig, key: Option<KeyId>) {
    let (Some(mut keyring), Some(key)) = (config.keyring.clone(), key) else {
        return std::future::pending().await;
    };
    // An error means that the node stops, which ends the link as well.
    let revoked = keyring.wait_for(|keyring| keyring.get(key).is_none()).await.is_ok();
    if !revoked {
        std::future::pending::<()>().await;
    }
}

/// Only has to be new, on each connection.
fn nonce() -> Hash {
    let mut nonce = Hash::default();
    rand::rng().fill_bytes(&mut nonce);
    nonce
}
