//! TLS by rustls: certificates from files, and connections that are plain or not.
//!
//! One certificate serves clients and peers, and is shown to peers that ask for one. Invariant: a connection to a peer is
//! made only to who proves to be one by a certificate of the peers' authority.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream, rustls};

use super::files::{self, Access, FileError};
use super::proof::Hash;
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

/// Both ends of a node's TLS.
pub struct Tls {
    config: TlsConfig,
    ends: ArcSwap<Ends>,
}

struct Ends {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    /// # Errors
    /// When a file is unusable.
    pub fn load(config: TlsConfig) -> Result<Tls, FileError> {
        let ends = ArcSwap::from_pointee(Ends::load(&config)?);
        Ok(Tls { config, ends })
    }

    /// Takes the certificates from their files again, for connections from now on. Gives what to do once all else is well.
    ///
    /// # Errors
    /// When a file is unusable; then nothing has changed.
    pub fn reload(&self) -> Result<impl FnOnce() + '_, FileError> {
        let ends = Ends::load(&self.config)?;
        Ok(move || self.ends.store(Arc::new(ends)))
    }

    /// The answering end of the handshake.
    ///
    /// # Errors
    /// When the other side does not speak TLS, or shows no certificate where one is wanted.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(Stream, Session)> {
        let acceptor = self.ends.load().acceptor.clone();
        let stream = acceptor.accept(stream).await?;
        let session = Session::new(stream.get_ref().1)?;
        Ok((Stream::Tls(Box::new(stream.into())), session))
    }

    /// The asking end of the handshake, with the peer at `address`.
    ///
    /// # Errors
    /// When it is no peer, or does not speak TLS.
    pub async fn connect(&self, stream: TcpStream, address: SocketAddr) -> io::Result<(Stream, Session)> {
        let connector = self.ends.load().connector.clone();
        let name = self.config.server_name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
        let stream = connector.connect(name, stream).await?;
        let session = Session::new(stream.get_ref().1)?;
        Ok((Stream::Tls(Box::new(stream.into())), session))
    }
}

/// What is known of one TLS connection.
#[derive(Debug)]
pub struct Session {
    channel: Hash,
}

impl Session {
    fn new<D>(connection: &rustls::ConnectionCommon<D>) -> io::Result<Session> {
        // RFC 9266, section 2.
        let channel =
            connection.export_keying_material(Hash::default(), b"EXPORTER-Channel-Binding", Some(b""));
        Ok(Session { channel: channel.map_err(io::Error::other)? })
    }

    /// What only the two ends of this connection know, so that a proof made of it is for this connection alone.
    #[must_use]
    pub fn channel(&self) -> &Hash {
        &self.channel
    }
}

impl Ends {
    fn load(config: &TlsConfig) -> Result<Ends, FileError> {
        let chain = certificates(&config.cert)?;
        let key = private_key(&config.key)?;
        let unusable = |error| FileError::contents(&config.cert, error);
        let server = ServerConfig::builder_with_provider(provider());
        let server = server.with_safe_default_protocol_versions().map_err(unusable)?;
        let server = match &config.client_ca {
            None => server.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
                server.with_client_cert_verifier(verifier.map_err(|error| FileError::contents(path, error))?)
            }
        };
        let mut server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(unusable)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = client(authorities(&config.ca)?, Some((chain, key))).map_err(unusable)?;
        Ok(Ends { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
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
        let config = client(authorities(ca)?, own.transpose()?);
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
    roots: RootCertStore,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots);
    Ok(match own {
        Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
        None => config.with_no_client_auth(),
    })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = files::read(path, Access::OwnerWrites)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(FileError::contents(path, "no certificate in it; it must be PEM")),
        Err(error) => Err(FileError::contents(path, error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let text = files::read(path, Access::Owner)?;
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| FileError::contents(path, format!("no private key: {error}")))
}

fn authorities(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| FileError::contents(path, error))?;
    }
    Ok(roots)
}

/// A connection, plain or not.
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Under TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! of_either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Stream::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        of_either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        of_either!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        of_either!(self, stream => stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_either!(self, stream => stream.poll_shutdown(cx))
    }
}
