//! How the two ends of a link prove to each other that they hold the cluster's secret, and who they are.
//!
//! The asking end names the secret, itself and whom it calls, and sends a nonce with the upgrade request; the answering end
//! names itself, and sends a nonce of its own and its proof with the answer; the asking end's proof is the first that it sends
//! over the upgraded connection. So it costs no round trip. Frames are sealed from then on, unless TLS does that. Invariant:
//! nothing of a peer is decoded before it has proved itself to be who is called, or who asks.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::party::{self, Called, OwnNonce, Party};
use super::{CLUSTER_HEADER, Lane, LinkConfig, PROTOCOL};
use crate::security::{End, Handshake, Hash, KeyId, Keys, Opener, Sealer, Terms, bytes, text};

/// Names the secret; a header of the request.
const KEY_HEADER: &str = "shoal-key";
/// Names the one that sends it; a header of both.
const FROM_HEADER: &str = "shoal-from";
/// Names whom the request is meant for.
const TO_HEADER: &str = "shoal-to";
/// A header of both.
const NONCE_HEADER: &str = "shoal-nonce";
/// A header of the answer.
const PROOF_HEADER: &str = "shoal-proof";
const PROOF_BYTES: usize = size_of::<Hash>();
/// How long the proof may take that comes right behind the answer.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// What a link's frames are sealed and opened with; none if they are not.
pub type Seals = Option<(Sealer, Opener)>;

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
    #[error("the node that asked for the link has a cluster secret, and this node has none")]
    SecretNotWanted,
    /// The request does not name the asking and the called node.
    #[error("the request for a link must say who asks and who is called, in {FROM_HEADER} and {TO_HEADER}")]
    Unnamed,
    /// It is meant for another member, or for another address of this one.
    #[error("the link was asked for with the member {called}, and this node is {me}")]
    NotCalled {
        /// Who answers.
        me: String,
        /// Who was called.
        called: String,
    },
    /// The request is this node's own.
    #[error("this node asked for the link itself")]
    Itself,
}

/// The asking end's part, from request to answer.
pub(super) struct Asked<'a> {
    key: KeyId,
    nonce: OwnNonce,
    called: Called<'a>,
}

/// A link on which the other end has proved itself.
pub(super) struct Proved {
    /// The secret that the link rests on.
    pub(super) key: KeyId,
    /// Who is at the other end.
    pub(super) peer: Party,
    /// What the frames are sealed with.
    pub(super) seals: Seals,
    /// What this end has to show in its turn.
    pub(super) shown: Hash,
}

impl<'a> Asked<'a> {
    /// The first part, if there is a secret.
    pub(super) fn new(config: &LinkConfig, called: Called<'a>) -> Option<Asked<'a>> {
        let key = config.keyring.as_ref()?.borrow().first().id;
        Some(Asked { key, nonce: OwnNonce::new(&config.nonces), called })
    }

    /// The request's headers.
    pub(super) fn headers(&self, config: &LinkConfig) -> String {
        let Asked { key, nonce, called } = self;
        format!(
            "{KEY_HEADER}: {key}\r\n{FROM_HEADER}: {}\r\n{TO_HEADER}: {called}\r\n{NONCE_HEADER}: {}\r\n",
            config.me,
            text(nonce.as_hash())
        )
    }

    /// Whether the request reached this node itself.
    pub(super) fn came_back(&self) -> bool {
        self.nonce.came_back()
    }

    /// The link, if the other end has proved by its answer to be the one that is called. `channel` is the TLS connection
    /// below.
    ///
    /// # Errors
    /// A sentence saying what is missing or wrong.
    pub(super) fn check<'h>(
        &self,
        config: &LinkConfig,
        lane: Lane,
        channel: Option<&Hash>,
        header: impl Fn(&str) -> Option<&'h str>,
    ) -> Result<Proved, String> {
        let field = |name| header(name).and_then(bytes);
        let (theirs, proof) = field(NONCE_HEADER)
            .zip(field(PROOF_HEADER))
            .ok_or("it did not prove that it holds the cluster secret")?;
        let answering = header(FROM_HEADER).unwrap_or_default();
        let keyring = config.keyring.as_ref().map(|keyring| keyring.borrow().clone());
        let keys = keyring.as_deref().and_then(|keyring| keyring.get(self.key));
        let keys = keys.ok_or("the secret was removed meanwhile")?;
        let terms = Terms {
            cluster: &config.cluster,
            purpose: &purpose(lane),
            asking: &config.me.to_string(),
            called: &self.called.to_string(),
            answering,
            nonces: [self.nonce.as_hash(), &theirs],
            channel,
        };
        let handshake = Handshake::new(keys, terms);
        if !handshake.is_proved(End::Answering, &proof) {
            return Err("its proof of the cluster secret is wrong".into());
        }
        let peer = Party::parse(answering).ok_or("it did not say who it is")?;
        if peer == config.me || theirs == *self.nonce.as_hash() {
            return Err("it is this node itself".into());
        }
        if !peer.is_called(self.called) {
            return Err(format!(
                "the node that answers is {peer}, and not the one that is called: {}",
                self.called
            ));
        }
        let seals = channel.is_none().then(|| handshake.seals(End::Asking));
        Ok(Proved { key: self.key, peer, seals, shown: handshake.proof(End::Asking) })
    }
}

/// The answering end's part: what to answer with, and what the asking end has to show next.
pub struct Answered {
    /// The answer's headers.
    pub headers: Vec<(&'static str, String)>,
    /// The secret that the link rests on, if there is one.
    pub key: Option<KeyId>,
    handshake: Option<Handshake>,
    is_sealed: bool,
}

/// Answers a request for a link with these headers, over this TLS connection if that is spoken.
///
/// # Errors
/// See [`Refused`].
pub fn answer<'a>(
    config: &LinkConfig,
    lane: Lane,
    channel: Option<&Hash>,
    header: impl Fn(&str) -> Option<&'a str>,
) -> Result<Answered, Refused> {
    let theirs = header(CLUSTER_HEADER).unwrap_or_default();
    if theirs != config.cluster {
        return Err(Refused::Cluster { ours: config.cluster.clone(), theirs: theirs.into() });
    }
    let asked = header(KEY_HEADER).and_then(KeyId::parse).zip(header(NONCE_HEADER).and_then(bytes));
    let keyring = config.keyring.as_ref().map(|keyring| keyring.borrow().clone());
    let (keyring, key, asking_nonce) = match (keyring, asked) {
        (None, None) => {
            return Ok(Answered { headers: Vec::new(), key: None, handshake: None, is_sealed: false });
        }
        (None, Some(_)) => return Err(Refused::SecretNotWanted),
        (Some(_), None) => return Err(Refused::NoSecret),
        (Some(keyring), Some((key, nonce))) => (keyring, key, nonce),
    };
    let keys = keyring.get(key).ok_or(Refused::UnknownSecret(key))?;
    let (from, to) = header(FROM_HEADER).zip(header(TO_HEADER)).ok_or(Refused::Unnamed)?;
    let asking = Party::parse(from).ok_or(Refused::Unnamed)?;
    let calls_me = party::calls(to, &config.me).ok_or(Refused::Unnamed)?;
    if config.nonces.meet(&asking_nonce) || asking == config.me {
        return Err(Refused::Itself);
    }
    if !calls_me {
        return Err(Refused::NotCalled { me: config.me.to_string(), called: to.into() });
    }
    let nonces = [&asking_nonce, &party::nonce()];
    let terms = Terms {
        cluster: &config.cluster,
        purpose: &purpose(lane),
        asking: from,
        called: to,
        answering: &config.me.to_string(),
        nonces,
        channel,
    };
    Ok(prove(keys, terms))
}

fn prove(keys: &Keys, terms: Terms<'_>) -> Answered {
    let handshake = Handshake::new(keys, terms);
    let headers = vec![
        (FROM_HEADER, terms.answering.to_string()),
        (NONCE_HEADER, text(terms.nonces[1])),
        (PROOF_HEADER, text(&handshake.proof(End::Answering))),
    ];
    let is_sealed = terms.channel.is_none();
    Answered { headers, key: Some(keys.id), handshake: Some(handshake), is_sealed }
}

/// Links of two protocols, or of two lanes, have nothing in common.
fn purpose(lane: Lane) -> String {
    format!("{PROTOCOL} {}", lane.as_str())
}

impl Answered {
    /// Takes the asking end's proof off the front of the connection, and gives what its frames are sealed with; `early` is
    /// what has arrived already.
    ///
    /// # Errors
    /// If there is none in time, or a wrong one.
    pub async fn admit(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        early: &mut BytesMut,
    ) -> Result<Seals, Unproved> {
        let Some(handshake) = &self.handshake else { return Ok(None) };
        let arrives = async {
            while early.len() < PROOF_BYTES {
                if stream.read_buf(early).await.map_err(Unproved::Broken)? == 0 {
                    return Err(Unproved::Closed);
                }
            }
            Ok(())
        };
        timeout(PROOF_TIMEOUT, arrives).await.unwrap_or(Err(Unproved::Late))?;
        if !handshake.is_proved(End::Asking, &early[..PROOF_BYTES]) {
            return Err(Unproved::Wrong);
        }
        early.advance(PROOF_BYTES);
        Ok(self.is_sealed.then(|| handshake.seals(End::Answering)))
    }
}

/// Why who asked for a link did not get it in the end.
#[derive(Debug, thiserror::Error)]
pub enum Unproved {
    /// It went away.
    #[error("it closed the connection before it proved itself")]
    Closed,
    /// The connection failed.
    #[error("the connection failed before it proved itself: {0}")]
    Broken(io::Error),
    /// Nothing came.
    #[error("it did not prove in time that it holds the cluster secret")]
    Late,
    /// The proof is not right.
    #[error("its proof of the cluster secret is wrong")]
    Wrong,
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
