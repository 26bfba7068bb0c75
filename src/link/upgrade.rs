//! How the asking end comes by a link: a connection, under TLS if that is spoken, an HTTP request, and the handshake.
//!
//! Follows nothing: an answer other than the upgrade is a refusal, which is quoted.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::handshake::{Asked, Proved};
use super::party::Called;
use super::{CLUSTER_HEADER, FRAME_HEADER, Lane, LinkConfig, LinkError, PATH, PROTOCOL};
use crate::net::TcpStream;
use crate::security::{Session, Stream};

/// The longest answer to an upgrade request.
const RESPONSE_BYTES_MAX: usize = 8 << 10;

/// An upgraded connection.
pub(super) struct Upgraded {
    pub(super) stream: Stream,
    /// What arrived on it already.
    pub(super) early: BytesMut,
    /// The TLS connection below.
    pub(super) session: Option<Session>,
    /// What the other end has proved, if there is a secret.
    pub(super) proved: Option<Proved>,
    /// The longest frame that the other end takes.
    pub(super) taken: usize,
}

/// Connects and asks for the link.
pub(super) async fn upgrade(
    called: Called<'_>,
    lane: Lane,
    config: &LinkConfig,
) -> Result<Upgraded, LinkError> {
    let address = called.address;
    let failed = |error: io::Error| LinkError::unreachable(address, error.to_string());
    let stream = TcpStream::connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => LinkError::Refused(address),
        _ => failed(error),
    })?;
    stream.set_nodelay(true).map_err(failed)?;
    let (mut stream, session) = match &config.tls {
        None => (Stream::Plain(stream), None),
        Some(tls) => tls
            .connect(stream, address)
            .await
            .map(|(stream, session)| (stream, Some(session)))
            .map_err(|error| LinkError::rejected(address, format!("its TLS: {error}")))?,
    };
    let asked = Asked::new(config, called);
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: {PROTOCOL}\r\n\
         {CLUSTER_HEADER}: {}\r\n{FRAME_HEADER}: {}\r\n{}: {}\r\n{}\r\n",
        config.cluster,
        config.frame_bytes_max(),
        Lane::HEADER,
        lane.as_str(),
        asked.as_ref().map(|asked| asked.headers(config)).unwrap_or_default(),
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut response = BytesMut::with_capacity(1 << 10);
    let head_bytes = loop {
        if let Some(end) = response.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if response.len() > RESPONSE_BYTES_MAX {
            return Err(LinkError::rejected(address, "its answer to the upgrade is not HTTP"));
        }
        if stream.read_buf(&mut response).await.map_err(failed)? == 0 {
            return Err(LinkError::unreachable(address, "it closed the connection instead of upgrading it"));
        }
    };
    let head = response.split_to(head_bytes);
    let head = String::from_utf8_lossy(&head);
    if !head.starts_with("HTTP/1.1 101 ") {
        if asked.as_ref().is_some_and(Asked::came_back) {
            return Err(LinkError::Itself(address));
        }
        let status = head.lines().next().unwrap_or_default();
        let reason = read_reason(&mut stream, response, &head).await;
        return Err(LinkError::rejected(
            address,
            format!("it refused the link: {}", reason.as_deref().unwrap_or(status)),
        ));
    }
    let channel = session.as_ref().map(Session::channel);
    let proved = asked.map(|asked| asked.check(config, lane, channel, |name| header(&head, name)));
    let proved = proved.transpose().map_err(|reason| LinkError::rejected(address, reason))?;
    if let Some(proved) = &proved {
        stream.write_all(&proved.shown).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
    }
    let taken = config.frame_bytes_taken(header(&head, FRAME_HEADER));
    Ok(Upgraded { stream, early: response, session, proved, taken })
}

/// What the answer's body says, if it is an error in the interface's shape.
async fn read_reason(stream: &mut Stream, mut body: BytesMut, head: &str) -> Option<String> {
    let bytes: usize = header(head, "content-length")?.parse().ok()?;
    while body.len() < bytes.min(RESPONSE_BYTES_MAX) {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    let error: serde_json::Value = serde_json::from_slice(&body).ok()?;
    Some(error.get("message")?.as_str()?.to_string())
}

pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}
