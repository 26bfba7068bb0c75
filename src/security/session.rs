//! One TLS connection, as it is remembered: what it is told apart by, and which certificates it rests on.

use std::io;
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::proof::Hash;

/// What is known of one TLS connection.
#[derive(Debug)]
pub struct Session {
    channel: Hash,
    /// This end's certificate.
    pub(super) own: Arc<[CertificateDer<'static>]>,
    pub(super) shown: Option<Shown>,
}

/// A certificate, as the other end of a connection showed it.
#[derive(Debug)]
pub(super) struct Shown {
    /// With those between it and its authority.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The name that it was accepted for; none: it is the end that connected.
    pub(super) name: Option<ServerName<'static>>,
    pub(super) at: UnixTime,
}

impl Session {
    pub(super) fn new<D>(
        connection: &rustls::ConnectionCommon<D>,
        own: &Arc<[CertificateDer<'static>]>,
        name: Option<ServerName<'static>>,
    ) -> io::Result<Session> {
        // RFC 9266, section 2.
        let channel =
            connection.export_keying_material(Hash::default(), b"EXPORTER-Channel-Binding", Some(b""));
        let shown = connection.peer_certificates().map(|chain| Shown {
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            name,
            at: UnixTime::now(),
        });
        Ok(Session { channel: channel.map_err(io::Error::other)?, own: own.clone(), shown })
    }

    /// What only the two ends of this connection know, so that a proof made of it is for this connection alone.
    #[must_use]
    pub fn channel(&self) -> &Hash {
        &self.channel
    }
}
