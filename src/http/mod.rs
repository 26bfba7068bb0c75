//! The HTTP edge: turns requests into calls on [`Node`], and answers into bytes.
//!
//! Routes and handlers are axum's. Connections are accepted by a loop of our own over hyper, which sets TCP_NODELAY and
//! bounds what a client can make long or slow. Requests about keys go to `cache` before the router, which boxes a future and
//! a body for each: the plainest handler behind it cost 8.2 us of CPU where hyper alone cost 6.9 (measured for the design).

mod admin;
mod batch;
mod cache;
mod condition;
mod error;
mod events;
mod internal;
mod reply;
mod request;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;
use tracing::{debug, warn};

use self::cache::Reach;
use self::error::ApiError;
use crate::link::LinkConfig;
use crate::net::{TcpListener, TcpStream, task};
use crate::node::Node;

/// A request's head must be there within this long, and fit this much memory.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long open connections may finish what they began when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the edge has to be told.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The longest value, in bytes.
    pub value_bytes_max: usize,
    /// Whether each request about a key is logged.
    pub access_log: bool,
    /// For connections that become links.
    pub link: LinkConfig,
}

/// What every handler needs.
#[derive(Clone)]
struct Edge {
    node: Node,
    config: Arc<HttpConfig>,
    stopping: CancellationToken,
}

impl Edge {
    fn count_failure(&self, status: StatusCode) {
        if status == StatusCode::SERVICE_UNAVAILABLE {
            self.node.metrics().overloaded.inc();
        } else if status.is_server_error() {
            self.node.metrics().errors.inc();
        }
    }
}

/// Serves HTTP on `listener` until `stopping`, then lets open requests finish for a moment.
pub async fn serve(listener: TcpListener, node: Node, config: HttpConfig, stopping: CancellationToken) {
    let edge = Edge { node, config: Arc::new(config), stopping: stopping.clone() };
    let router = router(edge.clone());
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                edge.node.metrics().http_connections.inc();
                connections.spawn(task(connection(stream, edge.clone(), router.clone())));
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to be closed.
                warn!(%error, "could not accept a connection");
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

fn router(edge: Edge) -> Router {
    Router::new()
        .route("/api/v1/health", get(admin::health))
        .route("/api/v1/stats", get(admin::stats))
        .route("/api/v1/batch", post(batch::serve))
        .route("/internal/cluster/join", post(internal::join))
        .route("/internal/cluster/leave", post(internal::leave))
        .route("/internal/cluster/health", get(internal::health))
        .route(crate::link::PATH, get(internal::upgrade))
        .route("/admin/cluster", get(admin::cluster))
        .route("/admin/cluster/rebalance", post(admin::rebalance))
        .route("/admin/nodes", get(admin::nodes))
        .route("/admin/metrics", get(admin::metrics))
        .route("/admin/locate/{*key}", get(admin::locate))
        .route("/admin/events", get(events::serve))
        .route("/metrics", get(admin::prometheus))
        .fallback(async |request: axum::extract::Request| ApiError::not_found(request.uri().path()))
        .method_not_allowed_fallback(async |request: axum::extract::Request| {
            ApiError::method_not_allowed(format!("{} takes no {}", request.uri().path(), request.method()))
        })
        .with_state(edge)
}

async fn connection(stream: TcpStream, edge: Edge, router: Router) {
    // Fails on a connection that is already gone, which the first read then says.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(&edge, &router, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .pipeline_flush(true)
        // A client may close its side as soon as it has asked, as `nc -N` does; it is answered all the same.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = edge.stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
}

async fn answer(
    edge: &Edge,
    router: &Router,
    request: Request<Incoming>,
) -> Result<Response<Either<Full<Bytes>, Body>>, Infallible> {
    let path = request.uri().path();
    let reach = if path.starts_with(cache::PREFIX) {
        Reach::Cluster
    } else if path.starts_with(cache::INTERNAL_PREFIX) {
        Reach::Here
    } else {
        let response = router.clone().call(request).await?;
        edge.count_failure(response.status());
        return Ok(response.map(Either::Right));
    };
    let response = cache::serve(edge, reach, request).await;
    edge.count_failure(response.status());
    Ok(response.map(Either::Left))
}

/// The node's own health: 200 while it serves, 503 before it has tried to join and while it stops.
fn health_status(node: &Node) -> (StatusCode, &'static str) {
    match (node.is_ready(), node.is_leaving()) {
        (_, true) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "joining"),
        _ => (StatusCode::OK, "healthy"),
    }
}
