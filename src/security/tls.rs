//! TLS by rustls: certificates from files, and both ends of the handshake.
//!
//! One certificate serves clients and peers, and is shown to peers that ask for one. Invariant: a connection to a peer is
//! made only to who proves to be one by a certificate of the peers' authority. What becomes of a connection whose authority is
//! removed is decided by who has it; a [`Session`] is what to ask about.

use std::io;
use std::mem::{Discriminant, discriminant};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls};

use super::files::{self, Access, FileError};
use super::session::Session;
use super::stream::Stream;
use crate::net::TcpStream;

/// First byte of every TLS connection: a handshake record.
pub const FIRST_BYTE: u8 = 0x16;

/// Where a node's certificates are.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The node's certificate and those between it and its authority, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of the peers' certificates, PEM.
    pub ca: PathBuf,
    /// Authorities of the clients' certificates, if those are asked for.
    pub client_ca: Option<PathBuf>,
    /// The name that every peer's certificate has, if it is not the peer's address.
    pub server_name: Option<ServerName<'static>>,
}

/// Of what kind a failed handshake is. There are few kinds, whatever the other side sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TlsFailure {
    kind: Option<Discriminant<rustls::Error>>,
    /// What is wrong with the other side's certificate, if that is it.
    certificate: Option<Discriminant<CertificateError>>,
}

impl TlsFailure {
    /// The kind of an error of [`Tls::accept`].
    #[must_use]
    pub fn of(error: &io::Error) -> TlsFailure {
        let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        let certificate = match error {
            Some(rustls::Error::InvalidCertificate(reason)) => Some(discriminant(reason)),
            _ => None,
        };
        TlsFailure { kind: error.map(discriminant), certificate }
    }
}

/// Both ends of a node's TLS.
pub struct Tls {
    config: TlsConfig,
    ends: ArcSwap<Ends>,
    /// Tells of new ends, which are there by then.
    reloads: watch::Sender<()>,
}

struct Ends {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    /// What is shown to the other side.
    chain: Arc<[CertificateDer<'static>]>,
    peers: Arc<WebPkiServerVerifier>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Tls {
    /// # Errors
    /// When a file is unusable.
    pub fn load(config: TlsConfig) -> Result<Tls, FileError> {
        let ends = ArcSwap::from_pointee(Ends::load(&config)?);
        Ok(Tls { config, ends, reloads: watch::Sender::new(()) })
    }

    /// Takes the certificates from their files again. Gives what to do once all else is well.
    ///
    /// # Errors
    /// When a file is unusable; then nothing has changed.
    pub fn reload(&self) -> Result<impl FnOnce() + '_, FileError> {
        let ends = Ends::load(&self.config)?;
        Ok(move || {
            self.ends.store(Arc::new(ends));
            self.reloads.send_replace(());
        })
    }

    /// The answering end of the handshake.
    ///
    /// # Errors
    /// When the other side does not speak TLS, or shows no certificate where one is wanted.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(Stream, Session)> {
        let ends = self.ends.load_full();
        let stream = ends.acceptor.accept(stream).await?;
        let session = Session::new(stream.get_ref().1, &ends.chain, None)?;
        Ok((Stream::Tls(Box::new(stream.into())), session))
    }

    /// The asking end of the handshake, with the peer at `address`.
    ///
    /// # Errors
    /// When it is no peer, or does not speak TLS.
    pub async fn connect(&self, stream: TcpStream, address: SocketAddr) -> io::Result<(Stream, Session)> {
        let ends = self.ends.load_full();
        let name = self.config.server_name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
        let stream = ends.connector.connect(name.clone(), stream).await?;
        let session = Session::new(stream.get_ref().1, &ends.chain, Some(name))?;
        Ok((Stream::Tls(Box::new(stream.into())), session))
    }

    /// Whether the certificate that the other end showed, if it did, is still of an authority that is accepted.
    #[must_use]
    pub fn accepts(&self, session: &Session) -> bool {
        let ends = self.ends.load();
        let Some(shown) = &session.shown else { return true };
        let Some((certificate, between)) = shown.chain.split_first() else { return false };
        // As of then: a certificate that has run out since is not what is asked about.
        match (&shown.name, &ends.clients) {
            (Some(name), _) => {
                ends.peers.verify_server_cert(certificate, between, name, &[], shown.at).is_ok()
            }
            (None, Some(clients)) => clients.verify_client_cert(certificate, between, shown.at).is_ok(),
            (None, None) => true,
        }
    }

    /// Whether a connection that is made now would rest on the same certificate of this end, and the other end's is accepted.
    #[must_use]
    pub fn is_current(&self, session: &Session) -> bool {
        session.own == self.ends.load().chain && self.accepts(session)
    }

    /// Changes whenever certificates and authorities have been read again.
    #[must_use]
    pub fn reloads(&self) -> watch::Receiver<()> {
        self.reloads.subscribe()
    }

    /// Returns once the certificate that the other end showed is of no authority that is accepted.
    pub async fn until_disowned(&self, session: &Session) {
        if session.shown.is_none() {
            return std::future::pending().await;
        }
        let mut reloads = self.reloads();
        while self.accepts(session) {
            // An error means that the node stops.
            if reloads.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

impl Ends {
    fn load(config: &TlsConfig) -> Result<Ends, FileError> {
        let chain = certificates(&config.cert)?;
        let key = private_key(&config.key)?;
        let unusable = |error| FileError::contents(&config.cert, error);
        let server = ServerConfig::builder_with_provider(provider());
        let server = server.with_safe_default_protocol_versions().map_err(unusable)?;
        let clients = config.client_ca.as_deref().map(clients_of).transpose()?;
        let server = match &clients {
            None => server.with_no_client_auth(),
            Some(clients) => server.with_client_cert_verifier(clients.clone()),
        };
        let mut server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(unusable)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let peers = peers_of(&config.ca)?;
        let client = client(peers.clone(), Some((chain.clone(), key))).map_err(unusable)?;
        Ok(Ends {
            acceptor: Arc::new(server).into(),
            connector: Arc::new(client).into(),
            chain: chain.into(),
            peers,
            clients,
        })
    }
}

/// The TLS of a client that is no node.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Trusts the authorities in `ca`; `own` are the client's certificate and key, where nodes ask for one. `server_name` is
    /// the name that nodes' certificates have, if not the address that they are called at.
    ///
    /// # Errors
    /// When a file is unusable.
    pub fn load(
        ca: &Path,
        own: Option<(&Path, &Path)>,
        server_name: Option<ServerName<'static>>,
    ) -> Result<ClientTls, FileError> {
        let own = own.map(|(cert, key)| Ok::<_, FileError>((certificates(cert)?, private_key(key)?)));
        let config = client(peers_of(ca)?, own.transpose()?);
        let config = config.map_err(|error| FileError::contents(ca, error))?;
        Ok(ClientTls { connector: Arc::new(config).into(), server_name })
    }

    /// The asking end of the handshake, with the node that is called by `host`.
    ///
    /// # Errors
    /// When it is no such node, or does not speak TLS.
    pub async fn connect(&self, stream: TcpStream, host: &str) -> io::Result<Stream> {
        let named = || ServerName::try_from(host.to_string()).map_err(io::Error::other);
        let name = self.server_name.clone().map_or_else(named, Ok)?;
        Ok(Stream::Tls(Box::new(self.connector.connect(name, stream).await?.into())))
    }
}

fn client(
    peers: Arc<WebPkiServerVerifier>,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let config = config.with_webpki_verifier(peers);
    Ok(match own {
        Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
        None => config.with_no_client_auth(),
    })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = files::read(path, Access::Public)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(FileError::contents(path, "no certificate in it; it must be PEM")),
        Err(error) => Err(FileError::contents(path, error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let text = files::read(path, Access::Private)?;
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| FileError::contents(path, format!("no private key: {error}")))
}

/// Accepts nodes whose certificates are of the authorities in this file.
fn peers_of(path: &Path) -> Result<Arc<WebPkiServerVerifier>, FileError> {
    let roots = Arc::new(authorities(path)?);
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
    verifier.map_err(|error| FileError::contents(path, error))
}

/// The same of clients.
fn clients_of(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, FileError> {
    let roots = Arc::new(authorities(path)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
    verifier.map_err(|error| FileError::contents(path, error))
}

fn authorities(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| FileError::contents(path, error))?;
    }
    Ok(roots)
}
