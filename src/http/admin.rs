//! What people and dashboards ask: the cluster, its nodes, figures, and where a key lives.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use hyper::header::CONTENT_TYPE;
use hyper::{Response, Uri};
use serde_json::{Map, Value, json};

use super::auth::Pass;
use super::error::ApiError;
use super::{Edge, request};
use crate::node::{Node, rfc3339};
use crate::security::Right;

/// `GET /api/v1/health`
pub(super) async fn health(State(edge): State<Edge>) -> Response<Body> {
    super::health(&edge.node, json!({"uptime": edge.node.uptime().as_secs()})).map(Body::new)
}

/// `GET /api/v1/stats`
pub(super) async fn stats(
    State(edge): State<Edge>,
    Extension(pass): Extension<Pass>,
) -> Result<Json<Value>, ApiError> {
    pass.check_any(Right::Read)?;
    let node = &edge.node;
    Ok(Json(json!({
        "node_id": node.id(),
        "cache_stats": cache_stats(node),
        "cluster_stats": cluster_stats(node),
        "timestamp": now(node),
    })))
}

/// `GET /admin/cluster`
pub(super) async fn cluster(State(edge): State<Edge>) -> Json<Value> {
    let node = &edge.node;
    Json(json!({
        "cluster_status": cluster_stats(node),
        "current_node": node.id(),
        "ring": node.ring().fingerprint(),
        "timestamp": now(node),
    }))
}

/// `GET /admin/nodes`
pub(super) async fn nodes(State(edge): State<Edge>) -> Json<Value> {
    let node = &edge.node;
    let members = node.members();
    let nodes: Map<String, Value> =
        members.iter().map(|member| (member.node_id.to_string(), node.describe(member))).collect();
    Json(json!({"count": nodes.len(), "nodes": nodes, "timestamp": now(node)}))
}

/// `GET /admin/metrics`
pub(super) async fn metrics(State(edge): State<Edge>) -> Json<Value> {
    let node = &edge.node;
    let (moves, counts) = (node.moves(), node.members().counts());
    Json(json!({
        "node_id": node.id(),
        "cache_stats": cache_stats(node),
        "migration_stats": {
            "MigratedKeys": node.metrics().sync_keys.get(),
            "Duration": format!("{}ms", moves.last_duration.as_millis()),
            "LastMigration": moves.last_at_ms.map(|at_ms| rfc3339(node.wall_at_ms(at_ms))),
            "under_replicated_slots": node.under_replicated_slots(),
            "bytes": node.metrics().sync_bytes.get(),
            "failures": node.metrics().sync_failures.get(),
        },
        "cluster_stats": {
            "total_nodes": counts.total(),
            "healthy_nodes": counts.healthy,
            "unhealthy_nodes": counts.total() - counts.healthy,
        },
        "timestamp": now(node),
    }))
}

/// `GET /metrics`
pub(super) async fn prometheus(
    State(edge): State<Edge>,
) -> ([(hyper::header::HeaderName, &'static str); 1], Vec<u8>) {
    let (store, metrics) = (edge.node.store(), edge.node.metrics());
    metrics.set_under_replicated(edge.node.under_replicated_slots());
    let members = edge.node.members();
    let offset = |member| Some((member, edge.node.clock_offset_ms(member)?));
    metrics.set_clock_offsets(members.iter().filter_map(|member| offset(&member.node_id)));
    metrics.set_store("entries", store.len());
    metrics.set_store("bytes", store.bytes());
    metrics.set_store("bytes_max", store.bytes_max());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}

/// `POST /admin/cluster/rebalance`
pub(super) async fn rebalance(State(edge): State<Edge>) -> Result<Json<Value>, ApiError> {
    let _under_way = edge.begin()?;
    let report = edge.node.rebalance().await?;
    Ok(Json(json!({
        "message": "rebalance completed",
        "node_id": edge.node.id(),
        "moved": report,
        "timestamp": now(&edge.node),
    })))
}

/// `GET /admin/locate/{key}`
pub(super) async fn locate(State(edge): State<Edge>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let key = request::key(uri.path().strip_prefix("/admin/locate/").unwrap_or_default())?;
    let _under_way = edge.begin()?;
    let location = edge.node.locate(&key).await;
    let owners: Vec<_> =
        location.owners.iter().map(|(node_id, holds)| json!({"node_id": node_id, "holds": holds})).collect();
    Ok(Json(json!({
        "key": key.as_str(),
        "slot": location.slot,
        "owners": owners,
        "node_id": edge.node.id(),
        "timestamp": now(&edge.node),
    })))
}

fn cache_stats(node: &Node) -> Value {
    let (store, metrics) = (node.store(), node.metrics());
    json!({
        "total_Hits": metrics.hits.get(),
        "total_Misses": metrics.misses.get(),
        "total_Size": store.len(),
        "total_bytes": store.bytes(),
        "max_bytes": store.bytes_max(),
        "evictions": metrics.evictions.get(),
        "expirations": metrics.expirations.get(),
    })
}

fn cluster_stats(node: &Node) -> Value {
    let members = node.members();
    let counts = members.counts();
    let last_update = members.iter().map(|member| member.since_ms).max().unwrap_or_default();
    json!({
        "total_nodes": counts.total(),
        "healthy_nodes": counts.healthy,
        "unhealthy_nodes": counts.total() - counts.healthy,
        "nodes": members.iter().map(|member| node.describe(member)).collect::<Vec<_>>(),
        "last_update": rfc3339(node.wall_at_ms(last_update)),
    })
}

fn now(node: &Node) -> String {
    rfc3339(node.wall_ms())
}
