//! Every error that the interface documents, in its one shape.

use std::time::Instant;

use serde_json::json;

use crate::cluster::Cluster;
use crate::http::exchange;
use crate::node::key_path;
use crate::proxy::bind_both;

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn what_is_not_the_expected_json_is_an_invalid_request() {
    let cluster = Cluster::start(1);
    for body in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"value": 1}"#,
        r#"{"value": null}"#,
        r#"{"value": "v", "encoding": "hex"}"#,
        r#"{"value": "?", "encoding": "base64"}"#,
        "\u{feff}{}",
        "{\"value\": \"v\"} x",
    ] {
        cluster[1]
            .request("PUT", &key_path("key"), &[JSON], body.as_bytes())
            .expect_error(400, "invalid_request");
    }
    cluster[1]
        .request("PUT", &key_path("key"), &[JSON], b"{\"value\": \"\xff\"}")
        .expect_error(400, "invalid_request");
    for path in ["/api/v1/batch", "/internal/cluster/join", "/internal/cluster/leave"] {
        for body in ["", "{", "[]", "{}"] {
            cluster[1].request("POST", path, &[JSON], body.as_bytes()).expect_error(400, "invalid_request");
        }
    }
    assert_eq!(cluster[1].value("key"), None);
}

#[test]
fn a_ttl_is_a_number_above_zero() {
    let cluster = Cluster::start(1);
    for ttl in ["0", "-1", "\"60\"", "\"soon\"", "true", "[1]", "-0.0", "1e300"] {
        let body = format!(r#"{{"value": "v", "ttl": {ttl}}}"#);
        let put = cluster[1].request("PUT", &key_path("key"), &[JSON], body.as_bytes());
        assert!(put.expect_error(400, "invalid_request").contains("ttl"), "{ttl}");
    }
    cluster[1]
        .request("PUT", &key_path("key"), &[JSON], br#"{"value":"v","ttl":NaN}"#)
        .expect_error(400, "invalid_request");
    for ttl in ["0", "-1", "NaN", "nan", "inf", "soon", ""] {
        let put = cluster[1].request("PUT", &format!("{}?ttl={ttl}", key_path("key")), &[], b"v");
        assert!(put.expect_error(400, "invalid_request").contains("ttl"), "{ttl}");
    }
    assert_eq!(cluster[1].value("key"), None);
}

#[test]
fn the_form_type_that_curl_sends_by_itself_is_refused_with_the_header_that_was_forgotten() {
    let cluster = Cluster::start(1);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let put = cluster[1].request("PUT", &key_path("key"), &form, b"value");
    assert!(put.expect_error(400, "invalid_request").contains("Content-Type: application/json"));
}

#[test]
fn unknown_paths_and_wrong_methods_are_errors_in_the_same_shape() {
    let cluster = Cluster::start(1);
    for path in ["/", "/api/v2/cache/key", "/api/v1", "/admin", "/api/v1/cache", "/%ff"] {
        cluster[1].get(path).expect_error(404, "not_found");
    }
    for (method, path) in [
        ("POST", "/api/v1/cache/key"),
        ("PATCH", "/internal/cache/key"),
        ("DELETE", "/api/v1/health"),
        ("PUT", "/api/v1/stats"),
        ("GET", "/api/v1/batch"),
        ("GET", "/internal/cluster/join"),
        ("GET", "/admin/cluster/rebalance"),
        ("POST", "/metrics"),
    ] {
        cluster[1].request(method, path, &[], b"").expect_error(405, "method_not_allowed");
    }
}

#[test]
fn bodies_without_end_are_refused_before_they_are_read() {
    let cluster = Cluster::start(1);
    for path in ["/api/v1/cache/key", "/api/v1/batch", "/internal/cluster/join"] {
        let method = if path.contains("cache") { "PUT" } else { "POST" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
            content-length: 99999999999\r\n\r\nstart"
        );
        exchange(cluster[1].address, head.as_bytes()).expect("an answer").expect_error(413, "too_large");
    }
}

#[test]
fn an_address_where_nobody_is_cannot_be_joined() {
    let cluster = Cluster::start(1);
    let (_, _, nowhere) = bind_both();
    let started = Instant::now();
    let join = json!({"node_id": "ghost", "address": nowhere});
    let message = cluster[1].post("/internal/cluster/join", &join).expect_error(500, "add_node_error");
    assert!(message.contains("ghost") && message.contains(&nowhere.to_string()), "{message}");
    assert!(started.elapsed().as_secs() < 10, "it took {:?}", started.elapsed());
    for join in [json!({"node_id": "a b", "address": nowhere}), json!({"node_id": "n2", "address": "8001"})] {
        cluster[1].post("/internal/cluster/join", &join).expect_error(400, "invalid_request");
    }
}

#[test]
fn who_is_not_a_member_cannot_leave() {
    let cluster = Cluster::start(2);
    let leave = cluster[1].post("/internal/cluster/leave", &json!({"node_id": "n9"}));
    assert!(leave.expect_error(500, "remove_node_error").contains("n9"));
    assert!(cluster.is_whole());
}

#[test]
fn what_is_not_http_is_answered_or_cut_off_and_the_node_goes_on() {
    let cluster = Cluster::start(1);
    let address = cluster[1].address;
    for bytes in [&b"\0\0\0\0\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[0xff; 100_000]] {
        if let Ok(answer) = exchange(address, bytes) {
            assert!((400..500).contains(&answer.status), "{answer:?}");
        }
    }
    let long =
        format!("GET /{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "x".repeat(200_000));
    if let Ok(answer) = exchange(address, long.as_bytes()) {
        assert!([414, 431].contains(&answer.status), "{}", answer.status);
    }
    cluster[1].put("key", "value");
}
