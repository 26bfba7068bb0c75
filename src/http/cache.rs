//! GET, HEAD, PUT and DELETE of one key, for clients and for this node's own store.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::{Method, Request, Response};

use super::accept::{self, Choice};
use super::auth::Pass;
use super::condition::{self, ReadConditions, Verdict};
use super::error::ApiError;
use super::limits::counted;
use super::request::Format;
use super::{Edge, INTERNAL_PREFIX, PREFIX, reply, request};
use crate::model::{ContentType, Entry, Key};
use crate::node::{Done, NodeError, Operation, Outcome};
use crate::security::Right;
use crate::telemetry::{self, Route};

/// How far an operation may go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// To the node that owns the key.
    Cluster,
    /// This node's own store.
    Here,
}

/// Serves a request whose path starts with the prefix of `reach`.
pub(super) async fn serve<B>(
    edge: &Edge,
    reach: Reach,
    pass: &Pass,
    request: Request<B>,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let started = Instant::now();
    let prefix = if reach == Reach::Cluster { PREFIX } else { INTERNAL_PREFIX };
    let answered = match request::key(&request.uri().path()[prefix.len()..]) {
        Ok(key) => match pass.check(right(request.method()), &key) {
            Ok(()) => answer(edge, reach, key, request, started).await,
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    answered.map_or_else(|error| error.to_response(), |response| response.map(Full::new))
}

fn right(method: &Method) -> Right {
    if matches!(*method, Method::GET | Method::HEAD) { Right::Read } else { Right::Write }
}

async fn answer<B>(
    edge: &Edge,
    reach: Reach,
    key: Key,
    request: Request<B>,
    started: Instant,
) -> Result<Response<Bytes>, ApiError>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let (operation, form, conditions) = read(edge, key, request).await?;
    let _under_way = edge.begin()?;
    // What is written is part of the answer: room for that is found before, for afterwards it would be too late to refuse.
    let echo_bytes = match (&operation, &form) {
        (Operation::Put(_, new, _), Form::Json) => new.value.len(),
        _ => 0,
    };
    let echo = edge.answers.hold(echo_bytes)?;
    let result = match reach {
        Reach::Cluster => edge.node.perform(&operation).await,
        Reach::Here => edge
            .node
            .apply_here(&operation)
            .map(|outcome| (Done { outcome, node_id: edge.node.id().clone() }, Route::Local)),
    };
    note(edge, &operation, &result, started.elapsed());
    let (done, _) = result?;
    let now_ms = edge.node.uptime_ms();
    if let (Outcome::Hit(entry), Some(conditions)) = (&done.outcome, conditions) {
        match conditions.judge(entry.version) {
            Verdict::Send => {}
            Verdict::NotModified => return Ok(reply::not_modified(entry, now_ms)),
            Verdict::Failed => {
                let reason = format!("the key has the version \"{}\"", entry.version);
                return Err(NodeError::PreconditionFailed(reason).into());
            }
        }
    }
    let response = match (&done.outcome, form) {
        (Outcome::Hit(entry), Form::Accepted(accepted)) => {
            match accept::choose(&accepted, entry.content_type.as_ref().map(ContentType::as_str)) {
                Choice::Json => reply::to_response(&operation, &done, now_ms),
                Choice::Raw => reply::raw(entry, now_ms),
                Choice::Neither => return Err(not_acceptable(entry)),
            }
        }
        (Outcome::Stored { version, degraded }, Form::Raw) => reply::stored_raw(*version, *degraded),
        _ => reply::to_response(&operation, &done, now_ms),
    };
    let (head, body) = response.into_parts();
    let body = match (echo, &operation) {
        (Some(held), _) => counted(body, held),
        (None, Operation::Get(_)) => edge.answers.keep(body)?,
        (None, _) => body,
    };
    Ok(Response::from_parts(head, body))
}

fn not_acceptable(entry: &Entry) -> ApiError {
    ApiError::not_acceptable(format!(
        "Accept refuses what there is: application/json, and the bytes as {} or {}",
        entry.content_type.as_ref().map_or(reply::TEXT, ContentType::as_str),
        ContentType::OCTETS
    ))
}

/// What the answer is to look like.
enum Form {
    /// JSON.
    Json,
    /// No body: raw bytes were stored.
    Raw,
    /// JSON or the bytes, as the `Accept` header says of what is found.
    Accepted(Box<str>),
}

/// Takes what it needs out of a request and lets go of the rest: a request that is kept keeps the connection's read buffer
/// with it, and the connection then allocates another one.
async fn read<B>(
    edge: &Edge,
    key: Key,
    request: Request<B>,
) -> Result<(Operation, Form, Option<Box<ReadConditions>>), ApiError>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let (head, body) = request.into_parts();
    match head.method {
        Method::GET | Method::HEAD => {
            check_query(head.uri.query())?;
            let form = accept::wish(&head.headers)?.map_or(Form::Json, Form::Accepted);
            Ok((Operation::Get(key), form, ReadConditions::of(&head.headers)?))
        }
        Method::DELETE => {
            check_query(head.uri.query())?;
            Ok((Operation::Delete(key, condition::of_delete(&head.headers)?), Form::Json, None))
        }
        Method::PUT => {
            let is_json = request::format(&head.headers)? == Format::Json;
            let (bytes_max, bodies) = (edge.config.value_bytes_max, &edge.bodies);
            // In a box, so that reads do not carry what it needs.
            let new =
                Box::pin(request::new_value(&key, &head.headers, head.uri.query(), body, bytes_max, bodies))
                    .await?;
            let condition = condition::of_put(&head.headers)?;
            Ok((Operation::Put(key, new, condition), if is_json { Form::Json } else { Form::Raw }, None))
        }
        other => Err(ApiError::method_not_allowed(
            format!("{other}; a key takes GET, HEAD, PUT and DELETE"),
            Some("GET, HEAD, PUT, DELETE"),
        )),
    }
}

/// Only a PUT has parameters. Others may stand there, as some clients add one against caches; but who sends a TTL means it.
fn check_query(query: Option<&str>) -> Result<(), ApiError> {
    let is_ttl = |parameter: &str| parameter.split('=').next() == Some("ttl");
    if query.is_some_and(|query| query.split('&').any(is_ttl)) {
        return Err(ApiError::invalid(
            "ttl is for PUT: neither reading nor deleting a key changes how long it lives",
        ));
    }
    Ok(())
}

/// Counts the operation and, if wanted, logs it.
fn note(edge: &Edge, operation: &Operation, result: &Result<(Done, Route), NodeError>, took: Duration) {
    let (kind, name) = match operation {
        Operation::Get(_) => (telemetry::Operation::Get, "GET"),
        Operation::Put(..) => (telemetry::Operation::Put, "PUT"),
        Operation::Delete(..) => (telemetry::Operation::Delete, "DELETE"),
    };
    let route = result.as_ref().map_or(Route::Local, |(_, route)| *route);
    edge.node.metrics().request(kind, route, took);
    if edge.config.access_log {
        let status = match result.as_ref().map(|(done, _)| &done.outcome) {
            Ok(Outcome::Hit(_)) => "hit",
            Ok(Outcome::Miss | Outcome::Gone) => "miss",
            Ok(Outcome::Stored { .. }) => "stored",
            Ok(Outcome::Deleted { .. }) => "deleted",
            Err(_) => "error",
        };
        let duration = format!("{}ms", took.as_millis());
        tracing::info!(target: telemetry::ACCESS_LOG, operation = name, key = operation.key().as_str(), duration, status, "request");
    }
}
