//! What nodes, and people who debug, ask of one node: joining, leaving, health, and the link.

use std::mem::discriminant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::{StatusCode, Version};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tracing::warn;

use super::error::ApiError;
use super::watched::Watched;
use super::{Caller, Complaint, Edge, request};
use crate::link::{self, Answered, Lane, Refused};
use crate::model::NodeId;
use crate::net::{resolve, spawn_vital};

/// A member as `/admin/nodes` shows it may be sent as it is; what else it says of itself is for people.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    node_id: String,
    address: String,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
    #[serde(rename = "last_seen")]
    _last_seen: Option<IgnoredAny>,
    #[serde(rename = "response_time")]
    _response_time: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Leave {
    node_id: String,
    #[serde(rename = "address")]
    _address: Option<IgnoredAny>,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
    #[serde(rename = "last_seen")]
    _last_seen: Option<IgnoredAny>,
    #[serde(rename = "response_time")]
    _response_time: Option<IgnoredAny>,
}

/// `POST /internal/cluster/join`
pub(super) async fn join(
    State(edge): State<Edge>,
    request: axum::extract::Request,
) -> Result<Json<Value>, ApiError> {
    let Join { node_id, address, .. } = small_json(&edge, request, "{\"node_id\", \"address\"}").await?;
    let _under_way = edge.begin()?;
    let node_id = parse_node_id(&node_id)?;
    let resolved = resolve(&address).await.ok().and_then(|addresses| addresses.into_iter().next());
    let resolved = resolved
        .ok_or_else(|| ApiError::invalid(format!("\"address\" is {address:?}; it must be host:port")))?;
    edge.node
        .greet(&node_id, resolved)
        .await
        .map_err(|error| ApiError::internal("add_node_error", error.to_string()))?;
    Ok(Json(json!({"message": "joined", "node_id": node_id, "address": resolved, "timestamp": now()})))
}

/// `POST /internal/cluster/leave`
pub(super) async fn leave(
    State(edge): State<Edge>,
    request: axum::extract::Request,
) -> Result<Json<Value>, ApiError> {
    let Leave { node_id, .. } = small_json(&edge, request, "{\"node_id\"}").await?;
    let _under_way = edge.begin()?;
    let node_id = parse_node_id(&node_id)?;
    edge.node
        .remove(&node_id)
        .await
        .map_err(|error| ApiError::internal("remove_node_error", error.to_string()))?;
    Ok(Json(json!({"message": "leaving", "node_id": node_id, "timestamp": now()})))
}

/// `GET /internal/cluster/health`
pub(super) async fn health(State(edge): State<Edge>) -> Response {
    let counts = edge.node.members().counts();
    let more = json!({
        "total_nodes": counts.total(),
        "healthy_nodes": counts.healthy,
        "unhealthy_nodes": counts.total() - counts.healthy,
        "ring": edge.node.ring().fingerprint(),
    });
    super::health(&edge.node, more).map(Body::new)
}

/// `GET /internal/link`: from here on the connection belongs to the link.
pub(super) async fn upgrade(
    State(edge): State<Edge>,
    Extension(caller): Extension<Caller>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let protocol = header(headers, UPGRADE.as_str());
    if protocol != Some(link::PROTOCOL) || request.version() != Version::HTTP_11 {
        let mut reason = format!("this path takes only an upgrade to {}", link::PROTOCOL);
        if let Some(other) = protocol.filter(|protocol| protocol.starts_with(link::PROTOCOL_FAMILY)) {
            reason = format!(
                "this node speaks {}, not {other}: nodes of one cluster must run versions that link by the same protocol",
                link::PROTOCOL
            );
            complain(&edge, &caller, Complaint::Protocol, &reason);
        }
        return Err(ApiError::invalid(reason));
    }
    let lane =
        if header(headers, Lane::HEADER) == Some(Lane::Bulk.as_str()) { Lane::Bulk } else { Lane::Requests };
    let taken = edge.link.frame_bytes_taken(header(headers, link::FRAME_HEADER));
    let channel = caller.session.as_ref().map(|session| session.channel());
    let answered =
        link::answer(&edge.link, lane, channel, |name| header(headers, name)).map_err(|refused| {
            complain(&edge, &caller, Complaint::Refused(discriminant(&refused)), &refused);
            match refused {
                Refused::NoSecret | Refused::UnknownSecret(_) => ApiError::unauthorized(refused.to_string()),
                Refused::Unnamed => ApiError::invalid(refused.to_string()),
                Refused::Cluster { .. }
                | Refused::SecretNotWanted
                | Refused::NotCalled { .. }
                | Refused::Itself => ApiError::forbidden(refused.to_string()),
            }
        })?;
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(link::PROTOCOL));
    response.headers_mut().insert(link::FRAME_HEADER, HeaderValue::from(edge.link.frame_bytes_max()));
    for (name, value) in &answered.headers {
        let value = HeaderValue::from_str(value).map_err(|error| ApiError::invalid(error.to_string()))?;
        response.headers_mut().insert(*name, value);
    }
    spawn_vital("link", run_link(edge, caller, hyper::upgrade::on(request), (lane, taken), answered));
    Ok(response)
}

/// Of somebody who is not let in, as anybody may try again and again.
fn complain(edge: &Edge, caller: &Caller, kind: Complaint, reason: &impl std::fmt::Display) {
    edge.node.metrics().link_rejected.inc();
    if edge.complaints.is_due(kind) {
        warn!(peer = %caller.address, %reason, "refused a link; more like this are counted, not logged, for a minute");
    }
}

async fn run_link(
    edge: Edge,
    caller: Caller,
    upgrade: hyper::upgrade::OnUpgrade,
    lane: (Lane, usize),
    answered: Answered,
) {
    // The stream itself, without the layers that it wore as an HTTP connection.
    let parts = match upgrade.await.map(hyper::upgrade::Upgraded::downcast::<TokioIo<Watched>>) {
        Ok(Ok(parts)) => parts,
        Ok(Err(_)) => return warn!("an upgraded connection is not one of this edge"),
        Err(error) => return complain(&edge, &caller, Complaint::Upgrade, &error),
    };
    let mut stream = parts.io.into_inner().into_inner();
    let mut early = BytesMut::from(&parts.read_buf[..]);
    let seals = match answered.admit(&mut stream, &mut early).await {
        Ok(seals) => seals,
        Err(reason) => {
            return complain(&edge, &caller, Complaint::Unproved(discriminant(&reason)), &reason);
        }
    };
    let close = |reason: String| {
        edge.node.metrics().link_rejected.inc();
        warn!(peer = %caller.address, reason, "closed a link");
    };
    let service = std::sync::Arc::new(edge.node.clone());
    let serving = link::serve(stream, &early, lane, service, seals, &edge.link, edge.node.metrics());
    tokio::select! {
        biased;
        () = edge.stopping.cancelled() => {}
        () = link::until_revoked(&edge.link, answered.key) => close("its secret was removed".into()),
        () = edge.until_disowned(&caller) => close("the authority of its certificate was removed".into()),
        served = serving => if let Err(reason) = served {
            close(reason);
        },
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn parse_node_id(text: &str) -> Result<NodeId, ApiError> {
    NodeId::parse(text).map_err(|error| ApiError::invalid(error.to_string()))
}

async fn small_json<T: serde::de::DeserializeOwned>(
    edge: &Edge,
    request: axum::extract::Request,
    expected: &str,
) -> Result<T, ApiError> {
    let (head, body) = request.into_parts();
    request::check_is_json(&head.headers)?;
    let body = edge.bodies.read(&head.headers, body, 16 << 10).await?;
    request::parse_json(&body, expected)
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}
