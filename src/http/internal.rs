//! What nodes, and people who debug, ask of one node: joining, leaving, health, and the link.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use super::error::ApiError;
use super::{Edge, health_status, request};
use crate::link::{self, Lane};
use crate::model::NodeId;
use crate::net::{TcpStream, lookup_host, spawn};

#[derive(Deserialize)]
struct Join {
    node_id: String,
    address: String,
}

#[derive(Deserialize)]
struct Leave {
    node_id: String,
}

/// `POST /internal/cluster/join`
pub(super) async fn join(
    State(edge): State<Edge>,
    request: axum::extract::Request,
) -> Result<Json<Value>, ApiError> {
    let Join { node_id, address } = small_json(request, "{\"node_id\", \"address\"}").await?;
    let node_id = parse_node_id(&node_id)?;
    let resolved = lookup_host(address.as_str()).await.ok().and_then(|mut addresses| addresses.next());
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
    let Leave { node_id } = small_json(request, "{\"node_id\"}").await?;
    let node_id = parse_node_id(&node_id)?;
    edge.node
        .remove(&node_id)
        .await
        .map_err(|error| ApiError::internal("remove_node_error", error.to_string()))?;
    Ok(Json(json!({"message": "leaving", "node_id": node_id, "timestamp": now()})))
}

/// `GET /internal/cluster/health`
pub(super) async fn health(State(edge): State<Edge>) -> (StatusCode, Json<Value>) {
    let (code, status) = health_status(&edge.node);
    let counts = edge.node.members().counts();
    let body = json!({
        "status": status,
        "node_id": edge.node.id(),
        "total_nodes": counts.total(),
        "healthy_nodes": counts.healthy,
        "unhealthy_nodes": counts.total() - counts.healthy,
        "ring": edge.node.ring().fingerprint(),
        "timestamp": now(),
    });
    (code, Json(body))
}

/// `GET /internal/link`: from here on the connection belongs to the link.
pub(super) async fn upgrade(
    State(edge): State<Edge>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    if header(headers, UPGRADE.as_str()) != Some(link::PROTOCOL) {
        return Err(ApiError::invalid(format!("this path takes only an upgrade to {}", link::PROTOCOL)));
    }
    let cluster = header(headers, link::CLUSTER_HEADER).unwrap_or_default().to_string();
    if cluster != edge.config.link.cluster {
        warn!(
            theirs = cluster,
            ours = edge.config.link.cluster,
            "refused the link of a node of another cluster"
        );
        let message = format!("this node belongs to cluster {:?}, not {cluster:?}", edge.config.link.cluster);
        return Err(ApiError { status: StatusCode::FORBIDDEN, code: "forbidden", message });
    }
    let bulk = header(headers, Lane::HEADER) == Some(Lane::Bulk.as_str());
    spawn(run_link(edge, hyper::upgrade::on(request), bulk));
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(link::PROTOCOL));
    Ok(response)
}

async fn run_link(edge: Edge, upgrade: hyper::upgrade::OnUpgrade, bulk: bool) {
    // The stream itself, without the layers that it wore as an HTTP connection.
    let parts = match upgrade.await.map(hyper::upgrade::Upgraded::downcast::<TokioIo<TcpStream>>) {
        Ok(Ok(parts)) => parts,
        Ok(Err(_)) => return warn!("an upgraded connection is not a TCP stream"),
        Err(error) => return warn!(%error, "a link was not upgraded"),
    };
    let stream = parts.io.into_inner();
    let peer = stream.peer_addr();
    let service = std::sync::Arc::new(edge.node.clone());
    let serving = link::serve(stream, &parts.read_buf, bulk, service, &edge.config.link, edge.node.metrics());
    tokio::select! {
        biased;
        () = edge.stopping.cancelled() => {}
        served = serving => if let Err(reason) = served {
            edge.node.metrics().link_rejected.inc();
            warn!(peer = ?peer.ok(), reason, "closed a link");
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
    request: axum::extract::Request,
    expected: &str,
) -> Result<T, ApiError> {
    let (head, body) = request.into_parts();
    let body = request::read(&head.headers, body, 16 << 10).await?;
    request::parse_json(&body, expected)
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}
