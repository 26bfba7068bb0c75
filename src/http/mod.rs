//! The HTTP edge: turns requests into calls on [`Node`], and answers into bytes.
//!
//! Routes and handlers are axum's. Connections are accepted by a loop of our own over hyper (`connection`), which bounds what a
//! client can make long, many or slow; who may ask for what is decided by path, first of all (`auth`). Requests about keys go to `cache` before the router, which boxes a future and
//! a body for each: the plainest handler behind it cost 8.2 us of CPU where hyper alone cost 6.9 (measured for the design).

mod accept;
mod admin;
mod auth;
mod batch;
mod bodies;
mod cache;
mod condition;
mod connection;
mod error;
mod events;
mod fields;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod host;
mod internal;
mod limits;
mod reply;
mod request;
mod watched;

use std::convert::Infallible;
use std::mem::Discriminant;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use self::auth::{Gate, Pass};
pub(crate) use self::batch::OPERATIONS_MAX as BATCH_OPERATIONS_MAX;
use self::bodies::Bodies;
use self::cache::Reach;
use self::error::ApiError;
use self::host::Hosts;
pub use self::limits::Limits;
use self::limits::{Arrivals, Door, Gauge, Held};
use self::watched::Watch;
use crate::link::{LinkConfig, Refused, Unproved};
use crate::net::TcpListener;
use crate::node::{Node, rfc3339};
use crate::security::{self, Security, Session, Tls, TlsFailure};
use crate::telemetry::{Limit, Seldom};

/// Where clients find keys.
const PREFIX: &str = "/api/v1/cache/";
/// Where this node's own store is found.
const INTERNAL_PREFIX: &str = "/internal/cache/";

/// What the edge has to be told.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The longest value, in bytes.
    pub value_bytes_max: usize,
    /// Whether each request about a key is logged.
    pub access_log: bool,
    /// The names that the node goes by. Where no credential is asked for, requests to other names are refused; addresses and
    /// `localhost` need no entry.
    pub hosts: Vec<String>,
    /// What strangers may do at most.
    pub limits: Limits,
}

/// The longest body of any request.
#[must_use]
pub fn body_bytes_max(value_bytes_max: usize) -> usize {
    request::json_bytes_max(value_bytes_max).max(batch::BODY_BYTES_MAX)
}

/// What the memory for bodies must do for, or a request could never be served: a body, what is in it, and an answer that is
/// longer by its escapes.
#[must_use]
pub fn body_memory_least(value_bytes_max: usize) -> usize {
    3 * body_bytes_max(value_bytes_max)
}

/// What every handler needs.
#[derive(Clone)]
struct Edge(Arc<Inner>);

struct Inner {
    node: Node,
    config: HttpConfig,
    /// For connections that become links.
    link: LinkConfig,
    tls: Option<Arc<Tls>>,
    gate: Gate,
    requests: Gauge,
    event_streams: Arc<Gauge>,
    /// Heads and short bodies that are not whole.
    arrivals: Arrivals,
    /// Of requests.
    bodies: Bodies,
    /// Apart, so that who sends slowly keeps no answers back.
    answers: Bodies,
    complaints: Seldom<Complaint>,
    stopping: CancellationToken,
}

impl std::ops::Deref for Edge {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Edge {
    /// Returns once the certificate that the caller showed is of no authority that is accepted.
    async fn until_disowned(&self, caller: &Caller) {
        match self.tls.as_ref().zip(caller.session.as_ref()) {
            Some((tls, session)) => tls.until_disowned(session).await,
            None => std::future::pending().await,
        }
    }

    fn count_failure(&self, status: StatusCode) {
        let metrics = self.node.metrics();
        match status {
            // A node that joins or stops answers 503 as well, and is not overloaded.
            StatusCode::SERVICE_UNAVAILABLE if !self.node.is_admitted() || self.node.is_leaving() => {}
            StatusCode::SERVICE_UNAVAILABLE => metrics.overloaded.inc(),
            StatusCode::UNAUTHORIZED => metrics.refuse(Limit::Unauthorized),
            StatusCode::FORBIDDEN => metrics.refuse(Limit::Forbidden),
            // The client's doing.
            StatusCode::NOT_IMPLEMENTED => {}
            _ if status.is_server_error() => metrics.errors.inc(),
            _ => {}
        }
    }

    /// One more request under way. For whatever waits, as soon as its body is here: a slow one takes nobody's place. What is
    /// answered at once is not counted, so that members get in and those who watch get answers also when there is too much.
    fn begin(&self) -> Result<Held<&Gauge>, ApiError> {
        Held::new(&self.requests, 1, self.config.limits.requests).ok_or_else(|| {
            self.node.metrics().refuse(Limit::Requests);
            ApiError::overloaded("too many requests are under way")
        })
    }
}

/// Serves HTTP on `listener` until `stopping`, then lets open requests finish for a moment.
pub async fn serve(
    listener: TcpListener,
    node: Node,
    config: HttpConfig,
    link: LinkConfig,
    security: Arc<Security>,
    stopping: CancellationToken,
) {
    let (timeout, bytes_max) = (config.limits.body_timeout, config.limits.body_memory_bytes);
    let arrivals = Arrivals::new(config.limits.arrival_bytes());
    let bodies = || Bodies::new(timeout, bytes_max, arrivals.clone(), node.metrics().clone());
    let edge = Edge(Arc::new(Inner {
        gate: Gate::new(&security, &link.cluster, node.id(), Hosts::new(config.hosts.clone())),
        tls: security.tls(),
        bodies: bodies(),
        answers: bodies(),
        arrivals,
        node,
        config,
        link,
        requests: Gauge::default(),
        event_streams: Arc::default(),
        complaints: Seldom::default(),
        stopping,
    }));
    let router = router(edge.clone());
    connection::accept(listener, edge, router).await;
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
            let message = format!("{} takes no {}", request.uri().path(), request.method());
            ApiError::method_not_allowed(message, None)
        })
        .with_state(edge)
}

/// What strangers may bring about often, and is logged seldom.
#[derive(PartialEq, Eq, Hash)]
enum Complaint {
    /// A link was refused, for a reason of this kind.
    Refused(Discriminant<Refused>),
    /// A link was asked for by another protocol.
    Protocol,
    /// A link's proof was missing or wrong, in this way.
    Unproved(Discriminant<Unproved>),
    /// A handshake of TLS failed, for a reason of this kind.
    Tls(TlsFailure),
    /// The system gave no connection.
    Accept,
    /// A connection ended when it was to become a link.
    Upgrade,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
struct Caller {
    address: SocketAddr,
    /// Of TLS, if that is spoken.
    session: Option<Arc<Session>>,
    #[expect(dead_code, reason = "counts the connection for as long as anybody has it")]
    door: Arc<Door>,
}

type Answer = Response<Either<Full<Bytes>, Body>>;

/// Sees who asks, and gives the request to who answers it. What is rare is in a box of its own: hyper moves this future several
/// times for each request, so it had better be short.
async fn answer(
    edge: &Edge,
    router: &Router,
    caller: &Caller,
    watch: &Watch,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    watch.begin();
    // Who sends both lengths hopes that somebody in between reads the other one: nothing may follow.
    let is_last = request.headers().contains_key(TRANSFER_ENCODING);
    let admitted = fields::check(&request)
        .and_then(|host| edge.gate.admit(&request, host, caller.address.ip(), &edge.node));
    let mut response = match admitted {
        Ok(pass) if request.uri().path().starts_with(PREFIX) => {
            cache::serve(edge, Reach::Cluster, &pass, request).await.map(Either::Left)
        }
        Ok(Pass::Proved(expected)) => Box::pin(take_proved(edge, router, caller, request, expected)).await?,
        Ok(pass) => Box::pin(route(edge, router, caller, pass, request)).await?,
        Err(error) => error.to_response().map(Either::Left),
    };
    edge.count_failure(response.status());
    reply::confine(response.headers_mut());
    if is_last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    watch.end();
    Ok(response)
}

/// What was proved is read as a whole before anything is done.
async fn take_proved(
    edge: &Edge,
    router: &Router,
    caller: &Caller,
    request: Request<Incoming>,
    expected: security::Hash,
) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let bytes_max = body_bytes_max(edge.config.value_bytes_max);
    match edge.bodies.read(&head.headers, body, bytes_max).await {
        Ok(body) if security::hash(&body) == expected => {
            let request = Request::from_parts(head, Full::new(body));
            route(edge, router, caller, Pass::Whole, request).await
        }
        Ok(_) => {
            let error = ApiError::unauthorized("the proof is not for this body");
            Ok(error.to_response().map(Either::Left))
        }
        Err(error) => Ok(error.to_response().map(Either::Left)),
    }
}

async fn route<B>(
    edge: &Edge,
    router: &Router,
    caller: &Caller,
    pass: Pass,
    mut request: Request<B>,
) -> Result<Answer, Infallible>
where
    B: hyper::body::Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>
        + Send
        + Unpin
        + 'static,
{
    if request.uri().path().starts_with(INTERNAL_PREFIX) {
        return Ok(cache::serve(edge, Reach::Here, &pass, request).await.map(Either::Left));
    }
    if let Err(error) = fields::check_unconditional(request.headers()) {
        return Ok(error.to_response().map(Either::Left));
    }
    request.extensions_mut().insert(pass);
    request.extensions_mut().insert(caller.clone());
    Ok(router.clone().call(request).await?.map(Either::Right))
}

/// The node's own health: 200 while it serves, 503 before it is admitted, with the reason, and while it stops.
fn health(node: &Node, more: Value) -> Response<Full<Bytes>> {
    let why_not = node.why_not_admitted();
    let (code, status) = match (node.is_leaving(), &why_not) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        (false, Some(_)) => (StatusCode::SERVICE_UNAVAILABLE, "joining"),
        (false, None) => (StatusCode::OK, "healthy"),
    };
    let mut body = json!({"status": status, "node_id": node.id(), "timestamp": rfc3339(node.wall_ms())});
    if let Some(reason) = why_not {
        body["reason"] = reason.into();
    }
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    let mut response = reply::json(code, body.to_string().into_bytes()).map(Full::new);
    if code == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
