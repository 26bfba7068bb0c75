//! The answers that existing clients know, field by field, and the pages that people ask.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http::is_time;
use crate::node::Node;
use crate::process::PATIENCE;

/// Checks that an object has at least these fields, each of its kind: text, count, time, list or object.
#[track_caller]
fn check(value: &Value, fields: &[(&str, &str)]) {
    for (name, kind) in fields {
        let field = &value[name];
        let fits = match *kind {
            "text" => field.is_string(),
            "count" => field.is_u64(),
            "time" => is_time(field),
            "list" => field.is_array(),
            "object" => field.is_object(),
            other => panic!("what is {other}?"),
        };
        assert!(fits, "{name} is not a {kind} in {value}");
    }
}

#[track_caller]
fn check_node(value: &Value) {
    check(
        value,
        &[
            ("node_id", "text"),
            ("address", "text"),
            ("status", "text"),
            ("last_seen", "time"),
            ("response_time", "count"),
            ("rtt_us", "count"),
        ],
    );
}

const CLUSTER_STATS: &[(&str, &str)] = &[
    ("total_nodes", "count"),
    ("healthy_nodes", "count"),
    ("unhealthy_nodes", "count"),
    ("nodes", "list"),
    ("last_update", "time"),
];
const CACHE_STATS: &[(&str, &str)] =
    &[("total_Hits", "count"), ("total_Misses", "count"), ("total_Size", "count")];

/// Three nodes, one of which is dead, with some hits and misses behind them.
fn used_cluster() -> Cluster {
    let mut cluster = Cluster::start(3);
    cluster[1].put("key", "value");
    cluster[1].read("key").expect(200);
    cluster[1].read("absent").expect(404);
    cluster.kill(3);
    cluster.wait_until("the death is known", PATIENCE, || {
        cluster.agrees_on(&[("n1", "healthy"), ("n2", "healthy"), ("n3", "unhealthy")])
    });
    cluster
}

#[test]
fn the_status_pages_have_every_field_that_clients_know() {
    let cluster = used_cluster();
    let get = |path: &str| cluster[1].get(path).expect(200);

    let health = get("/api/v1/health");
    check(&health, &[("status", "text"), ("node_id", "text"), ("timestamp", "time"), ("uptime", "count")]);
    assert_eq!([&health["status"], &health["node_id"]], ["healthy", "n1"]);

    let stats = get("/api/v1/stats");
    check(&stats, &[("node_id", "text"), ("timestamp", "time")]);
    check(&stats["cache_stats"], CACHE_STATS);
    check(&stats["cluster_stats"], CLUSTER_STATS);
    stats["cluster_stats"]["nodes"].as_array().expect("nodes").iter().for_each(check_node);

    let page = get("/admin/cluster");
    check(&page, &[("current_node", "text"), ("ring", "text"), ("timestamp", "time")]);
    check(&page["cluster_status"], CLUSTER_STATS);
    let status = &page["cluster_status"];
    let counts = ["total_nodes", "healthy_nodes", "unhealthy_nodes"].map(|name| status[name].as_u64());
    assert_eq!(counts, [Some(3), Some(2), Some(1)]);

    let nodes = get("/admin/nodes");
    check(&nodes, &[("nodes", "object"), ("count", "count"), ("timestamp", "time")]);
    assert_eq!(nodes["count"], 3);
    for number in 1..=3 {
        let node = &nodes["nodes"][format!("n{number}")];
        check_node(node);
        assert_eq!(node["address"], cluster[number].address.to_string());
        assert_eq!(node["status"], if number == 3 { "unhealthy" } else { "healthy" });
    }

    let metrics = get("/admin/metrics");
    check(&metrics, &[("node_id", "text"), ("timestamp", "time")]);
    check(&metrics["cache_stats"], CACHE_STATS);
    check(&metrics["migration_stats"], &[("MigratedKeys", "count"), ("Duration", "text")]);
    assert!(metrics["migration_stats"]["Duration"].as_str().is_some_and(|text| text.ends_with("ms")));
    assert!(metrics["migration_stats"].get("LastMigration").is_some());
    check(&metrics["cluster_stats"], &CLUSTER_STATS[..3]);

    let internal = get("/internal/cluster/health");
    check(&internal, &[("status", "text"), ("node_id", "text"), ("ring", "text"), ("timestamp", "time")]);
    check(&internal, &CLUSTER_STATS[..3]);
    assert_eq!(internal["ring"], page["ring"]);
}

#[test]
fn hits_and_misses_are_counted_where_the_key_is_held() {
    let cluster = Cluster::start(1);
    cluster[1].put("key", "value");
    for _ in 0..3 {
        cluster[1].read("key").expect(200);
    }
    cluster[1].read("absent").expect(404);
    let stats = cluster[1].get("/api/v1/stats").expect(200)["cache_stats"].clone();
    let counts = ["total_Hits", "total_Misses", "total_Size"].map(|name| stats[name].as_u64());
    assert_eq!(counts, [Some(3), Some(1), Some(1)]);
    let text = cluster[1].get("/metrics").text();
    for line in ["cache_hits_total{node=\"n1\"} 3", "cache_misses_total{node=\"n1\"} 1"] {
        assert!(text.lines().any(|one| one == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn the_internal_cache_is_this_nodes_own_store_only() {
    let cluster = Cluster::start_with(2, &["--copies", "1"]);
    let key = cluster.key_owned_by(2);
    cluster[1].put(&key, "value");
    let path = format!("/internal/cache/{key}");
    let miss = cluster[1].get(&path).expect(404);
    assert_eq!([&miss["found"], &miss["node_id"]], [&json!(false), &json!("n1")]);
    let hit = cluster[2].get(&path).expect(200);
    assert_eq!([&hit["value"], &hit["node_id"]], ["value", "n2"]);
    assert_eq!(cluster[1].request("DELETE", &path, &[], b"").expect(200)["found"], false);
    assert_eq!(cluster[1].value(&key).as_deref(), Some("value"));
    assert_eq!(cluster[2].request("DELETE", &path, &[], b"").expect(200)["found"], true);
    assert_eq!(cluster[1].value(&key), None);
    let json = [("content-type", "application/json")];
    cluster[2].request("PUT", &path, &json, br#"{"value": "direct"}"#).expect(200);
    assert_eq!(cluster[1].value(&key).as_deref(), Some("direct"));
}

#[test]
fn locate_tells_slot_owners_and_holders() {
    let cluster = Cluster::start(3);
    let key = cluster.key_owned_by(2);
    let locate = |node: &Node| node.get(&format!("/admin/locate/{key}")).expect(200);
    assert_eq!(locate(&cluster[1])["owners"][0], json!({"node_id": "n2", "holds": false}));
    cluster[3].put(&key, "value");
    let seen = [1, 2, 3].map(|number| locate(&cluster[number]));
    for located in &seen {
        check(located, &[("key", "text"), ("slot", "count"), ("owners", "list")]);
        assert_eq!(located["owners"][0], json!({"node_id": "n2", "holds": true}));
        assert_eq!(located["owners"], seen[0]["owners"]);
        assert_eq!(located["owners"].as_array().map(Vec::len), Some(2), "two copies are the default");
    }
    cluster[1].get("/admin/locate/%FF").expect_error(400, "invalid_request");
    assert_eq!(cluster[1].get("/admin/locate//admin/locate/a").expect(200)["key"], "/admin/locate/a");
}

#[test]
fn a_node_can_be_joined_by_command() {
    let mut cluster = Cluster::start(2);
    let lonely = cluster.admit(Node::start("lonely", &[]));
    let join = json!({"node_id": "lonely", "address": cluster[lonely].address});
    let joined = cluster[1].post("/internal/cluster/join", &join).expect(200);
    assert_eq!(joined["node_id"], "lonely");
    cluster.wait_until("it is a member everywhere", PATIENCE, || cluster.is_whole());
}

#[test]
fn a_live_node_can_be_told_to_leave_by_another_and_by_itself() {
    for told in [1, 2] {
        let mut cluster = Cluster::start(3);
        cluster[1].put("key", "value");
        cluster[told].post("/internal/cluster/leave", &json!({"node_id": "n2"})).expect(200);
        assert!(cluster.wait_for_end(2).success());
        cluster.wait_until("it is gone", PATIENCE, || cluster.is_whole());
        assert_eq!(cluster[3].value("key").as_deref(), Some("value"));
    }
}

#[test]
fn a_dead_node_can_be_forgotten_at_once() {
    let cluster = used_cluster();
    cluster[2].post("/internal/cluster/leave", &json!({"node_id": "n3"})).expect(200);
    cluster.wait_until("nobody shows it any more", PATIENCE, || cluster.is_whole());
}

#[test]
fn a_log_line_has_its_fields_and_the_access_log_those_of_a_request() {
    let mut cluster = Cluster::default();
    cluster.add(&["--access-log"]);
    cluster[1].put("key", "value");
    cluster[1].read("key").expect(200);
    cluster[1].read("absent").expect(404);
    cluster[1].request("DELETE", "/api/v1/cache/key", &[], b"").expect(200);
    cluster.wait_until("the requests are logged", PATIENCE, || {
        cluster[1].log().with_message("request").len() == 4
    });
    let lines = cluster[1].log().with_message("request");
    let told: Vec<_> = lines.iter().map(|line| [&line["operation"], &line["key"], &line["status"]]).collect();
    assert_eq!(
        told,
        [
            ["PUT", "key", "stored"],
            ["GET", "key", "hit"],
            ["GET", "absent", "miss"],
            ["DELETE", "key", "deleted"]
        ]
    );
    for line in &lines {
        check(line, &[("timestamp", "time"), ("level", "text"), ("duration", "text")]);
        assert_eq!(line["node_id"], "n1");
        assert!(line["duration"].as_str().is_some_and(|text| text.ends_with("ms")), "{line}");
    }
}
