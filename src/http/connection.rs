//! Connections, from the listener to their end: counted, under TLS if that is spoken, under watch, then hyper's.
//!
//! Sets TCP_NODELAY, and turns away what is too much with an answer. Does not know what is asked.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::error::ApiError;
use super::limits::{Door, Doors, Gauge, Held, Limits};
use super::watched::{Watch, Watched};
use super::{Caller, Complaint, Edge};
use crate::net::{TcpListener, TcpStream, first_byte, task};
use crate::security::{self, Session, Stream, TlsFailure};
use crate::telemetry::Limit;

/// How long open connections may finish what they began when the node stops, or no longer accepts who has them.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one that is turned away may take to read why, and how many may at a time.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
const FAREWELLS_MAX: usize = 256;
/// As many headers as hyper keeps on the stack; asking for just these would cost an allocation each.
const HEADERS_ON_STACK: usize = 100;

/// Accepts connections until the node stops, then lets open requests finish for a moment.
pub(super) async fn accept(listener: TcpListener, edge: Edge, router: axum::Router) {
    let connections = TaskTracker::new();
    let metrics = edge.node.metrics().clone();
    let doors = Doors::new(&edge.config.limits, metrics.clone());
    let farewells: Arc<Gauge> = Arc::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = edge.stopping.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                metrics.http_connections.inc();
                match doors.enter(from.ip(), edge.node.is_member(from.ip().to_canonical())) {
                    Ok(door) => {
                        connections.spawn(task(serve(stream, from, door, edge.clone(), router.clone())));
                    }
                    Err(limit) => {
                        metrics.refuse(limit);
                        // Before TLS nobody would understand why.
                        let held = Held::new(farewells.clone(), 1, FAREWELLS_MAX);
                        if let Some(held) = held.filter(|_| edge.tls.is_none()) {
                            connections.spawn(task(async move {
                                turn_away(stream, &too_many(limit)).await;
                                drop(held);
                            }));
                        }
                    }
                }
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to be closed.
                if edge.complaints.is_due(Complaint::Accept) {
                    warn!(%error, "could not accept a connection; more of these are not logged for a minute");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(STOP_TIMEOUT, connections.wait()).await.is_err() {
        debug!("closed connections with requests under way");
    }
}

fn too_many(limit: Limit) -> ApiError {
    ApiError::overloaded(match limit {
        Limit::ConnectionsPerAddress => "too many connections are open from this address",
        _ => "too many connections are open",
    })
}

/// Says why, and closes once that was read; closing earlier would take the answer away with it.
async fn turn_away(mut stream: TcpStream, error: &ApiError) {
    let farewell = async {
        stream.write_all(&error.to_bytes()).await?;
        stream.shutdown().await?;
        let mut unread = [0; 1024];
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether anybody reads it is not this node's affair.
    let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
}

async fn serve(stream: TcpStream, from: SocketAddr, door: Door, edge: Edge, router: axum::Router) {
    // Fails on a connection that is already gone, which the first read then says.
    let _ = stream.set_nodelay(true);
    let Some((stream, session)) = secured(stream, from, &edge).await else { return };
    let caller = Caller { address: from, session: session.map(Arc::new), door: Arc::new(door) };
    let limits = &edge.config.limits;
    let watch = Watch::new(edge.node.metrics().clone());
    let service = service_fn(|request| super::answer(&edge, &router, &caller, &watch, request));
    let io = TokioIo::new(Watched::new(stream, watch.clone(), edge.arrivals.clone()));
    let connection = parser(limits).serve_connection(io, service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // Looked at four times in the shortest time that there is for anything.
    let pause = limits.head_timeout.min(limits.body_timeout).min(limits.idle_timeout) / 4;
    let mut seen = watch.see();
    let mut disowned = std::pin::pin!(edge.until_disowned(&caller));
    let served = loop {
        tokio::select! {
            biased;
            served = connection.as_mut() => break served,
            () = edge.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
            () = disowned.as_mut() => {
                // It may finish what it has begun, but a stream of events would never be finished.
                connection.as_mut().graceful_shutdown();
                match timeout(STOP_TIMEOUT, connection.as_mut()).await {
                    Ok(served) => break served,
                    Err(_) => return debug!(peer = %from, "closed a connection: the authority of its certificate was removed"),
                }
            }
            () = sleep(pause) => watch.look(&mut seen, limits),
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
}

fn parser(limits: &Limits) -> http1::Builder {
    let mut parser = http1::Builder::new();
    parser
        .max_buf_size(limits.head_bytes)
        // A client may close its side as soon as it has asked, as `nc -N` does; it is answered all the same.
        .half_close(true);
    if limits.headers != HEADERS_ON_STACK {
        parser.max_headers(limits.headers);
    }
    parser
}

/// The connection under TLS, if that is spoken here.
async fn secured(mut stream: TcpStream, from: SocketAddr, edge: &Edge) -> Option<(Stream, Option<Session>)> {
    let Some(tls) = &edge.tls else { return Some((Stream::Plain(stream), None)) };
    let patience = edge.config.limits.head_timeout;
    match timeout(patience, first_byte(&mut stream)).await {
        Ok(Ok(Some(security::FIRST_BYTE))) => {}
        Ok(Ok(Some(_))) => {
            edge.node.metrics().refuse(Limit::NotTls);
            let error = ApiError::invalid("this port speaks TLS: use https://");
            turn_away(stream, &error).await;
            return None;
        }
        _ => return None,
    }
    match timeout(patience, tls.accept(stream)).await {
        Ok(Ok((stream, session))) => Some((stream, Some(session))),
        Ok(Err(error)) => {
            edge.node.metrics().refuse(Limit::NotTls);
            if edge.complaints.is_due(Complaint::Tls(TlsFailure::of(&error))) {
                warn!(peer = %from, %error, "a TLS handshake failed; more like it are counted, not logged, for a minute");
            }
            None
        }
        Err(_) => {
            edge.node.metrics().refuse(Limit::HeadTime);
            None
        }
    }
}
