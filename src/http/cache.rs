//! GET, HEAD, PUT and DELETE of one key, for clients and for this node's own store.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};

use super::error::ApiError;
use super::{Edge, reply, request};
use crate::model::Key;
use crate::node::{Done, NodeError, Operation, Outcome};
use crate::telemetry::{self, Route};

/// Where clients find keys.
pub(super) const PREFIX: &str = "/api/v1/cache/";
/// Where this node's own store is found.
pub(super) const INTERNAL_PREFIX: &str = "/internal/cache/";

/// How far an operation may go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// To the node that owns the key.
    Cluster,
    /// This node's own store.
    Here,
}

/// Serves a request whose path starts with the prefix of `reach`.
pub(super) async fn serve(edge: &Edge, reach: Reach, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let started = Instant::now();
    let prefix = if reach == Reach::Cluster { PREFIX } else { INTERNAL_PREFIX };
    let answered = match request::key(&request.uri().path()[prefix.len()..]) {
        Ok(key) => answer(edge, reach, key, request, started).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|error| error.to_response())
}

async fn answer(
    edge: &Edge,
    reach: Reach,
    key: Key,
    request: Request<Incoming>,
    started: Instant,
) -> Result<Response<Full<Bytes>>, ApiError> {
    let (head, body) = request.into_parts();
    let operation = match head.method {
        Method::GET | Method::HEAD => Operation::Get(key),
        Method::DELETE => Operation::Delete(key),
        Method::PUT => {
            let new = request::new_value(&head.headers, head.uri.query(), body, edge.config.value_bytes_max)
                .await?;
            Operation::Put(key, new)
        }
        other => {
            return Err(ApiError::method_not_allowed(format!(
                "{other}; a key takes GET, HEAD, PUT and DELETE"
            )));
        }
    };
    let result = match reach {
        Reach::Cluster => edge.node.perform(&operation).await,
        Reach::Here => edge
            .node
            .apply_here(&operation)
            .map(|outcome| (Done { outcome, node_id: edge.node.id().clone() }, Route::Local)),
    };
    note(edge, &operation, &result, started.elapsed());
    let (done, _) = result?;
    let now_ms = edge.node.now_ms();
    Ok(match (&operation, &done.outcome) {
        (Operation::Get(_), Outcome::Hit(entry))
            if request::wants_raw(&head.headers, entry.content_type.as_deref()) =>
        {
            reply::raw(entry, now_ms)
        }
        (Operation::Put(..), Outcome::Stored(version)) if !is_json(&head.headers) => {
            reply::stored_raw(*version)
        }
        _ => reply::to_response(&operation, &done, now_ms),
    })
}

fn is_json(headers: &hyper::HeaderMap) -> bool {
    matches!(request::content_type(headers), Ok(Some("application/json")))
}

/// Counts the operation and, if wanted, logs it.
fn note(edge: &Edge, operation: &Operation, result: &Result<(Done, Route), NodeError>, took: Duration) {
    let (kind, name) = match operation {
        Operation::Get(_) => (telemetry::Operation::Get, "GET"),
        Operation::Put(..) => (telemetry::Operation::Put, "PUT"),
        Operation::Delete(_) => (telemetry::Operation::Delete, "DELETE"),
    };
    let route = result.as_ref().map_or(Route::Local, |(_, route)| *route);
    edge.node.metrics().request(kind, route, took);
    if edge.config.access_log {
        let status = match result.as_ref().map(|(done, _)| &done.outcome) {
            Ok(Outcome::Hit(_)) => "hit",
            Ok(Outcome::Miss) => "miss",
            Ok(Outcome::Stored(_)) => "stored",
            Ok(Outcome::Deleted(_)) => "deleted",
            Err(_) => "error",
        };
        let duration = format!("{}ms", took.as_millis());
        tracing::info!(operation = name, key = operation.key().as_str(), duration, status, "request");
    }
}
