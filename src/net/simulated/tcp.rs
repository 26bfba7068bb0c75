//! turmoil's TCP, with hosts that refuse: connections to them break.
//!
//! Invariant: only the end that called is refused; what a refusing host calls itself goes on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{CURRENT, Process};

/// The first byte that arrives; see the real one.
///
/// # Errors
/// When the connection breaks.
pub async fn first_byte(stream: &mut TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    Ok((stream.half.peek(&mut first).await? == 1).then_some(first[0]))
}

/// Listens on a port of the current host.
pub struct TcpListener(turmoil::net::TcpListener);

impl TcpListener {
    /// Takes a port of the current host.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        turmoil::net::TcpListener::bind(address).await.map(TcpListener)
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// None, in a simulation.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (half, from) = self.0.accept().await?;
        Ok((TcpStream { half, called: Called(None) }, from))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// None, in a simulation.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Both directions of a connection, or one of them, which break when the host that was called begins to refuse.
pub struct Refusable<T> {
    half: T,
    called: Called,
}

/// A connection.
pub type TcpStream = Refusable<turmoil::net::TcpStream>;

/// Who called, and which host; nothing at the end that was called.
#[derive(Clone)]
struct Called(Option<(Process, IpAddr)>);

impl Called {
    fn check(&self, kind: io::ErrorKind) -> io::Result<()> {
        match &self.0 {
            Some((process, host)) if process.is_refused_by(*host) => Err(kind.into()),
            _ => Ok(()),
        }
    }
}

impl TcpStream {
    /// Connects to a listener.
    ///
    /// # Errors
    /// When nobody listens there, or the host refuses.
    pub async fn connect(address: impl turmoil::ToSocketAddrs) -> io::Result<TcpStream> {
        let half = turmoil::net::TcpStream::connect(address).await?;
        let host = half.peer_addr()?.ip();
        let called = Called(CURRENT.try_with(|process| (process.clone(), host)).ok());
        called.check(io::ErrorKind::ConnectionRefused)?;
        Ok(TcpStream { half, called })
    }

    /// Has no effect.
    ///
    /// # Errors
    /// None, in a simulation.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.half.set_nodelay(nodelay)
    }

    /// Its two directions.
    #[must_use]
    pub fn into_split(self) -> (Refusable<OwnedReadHalf>, Refusable<OwnedWriteHalf>) {
        let (reading, writing) = self.half.into_split();
        let called = self.called.clone();
        (Refusable { half: reading, called }, Refusable { half: writing, called: self.called })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Refusable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.called.check(io::ErrorKind::ConnectionReset)?;
        Pin::new(&mut self.half).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Refusable<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.called.check(io::ErrorKind::ConnectionReset)?;
        Pin::new(&mut self.half).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.called.check(io::ErrorKind::ConnectionReset)?;
        Pin::new(&mut self.half).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(context)
    }
}
