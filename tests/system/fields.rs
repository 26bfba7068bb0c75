//! What a request states in its head, its query or its JSON: each row of `docs/http.md` that can be asked from outside.
//!
//! A row is a request as it goes over the wire and what has to come back. Whatever is refused changes nothing.

use std::fs;

use serde_json::json;

use crate::cluster::Cluster;
use crate::http::{Answer, exchange};
use crate::node::{Node, key_path};

const JSON: &str = "content-type: application/json";
const BODY: &str = r#"{"value":"v"}"#;

/// Sends a request of this line, these header lines and this body; `Host` and the length are added.
#[track_caller]
fn send(node: &Node, line: &str, fields: &str, body: &str) -> Answer {
    let mut head = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    fields.split('|').filter(|field| !field.is_empty()).for_each(|field| head += &format!("{field}\r\n"));
    if !body.is_empty() && !fields.to_ascii_lowercase().contains("transfer-encoding") {
        head += &format!("content-length: {}\r\n", body.len());
    }
    exchange(node.address, format!("{head}\r\n{body}").as_bytes())
        .unwrap_or_else(|error| panic!("{line} {fields}: {error}"))
}

/// The code that goes with a status.
fn code(status: u16) -> &'static str {
    match status {
        400 => "invalid_request",
        403 => "forbidden",
        405 => "method_not_allowed",
        406 => "not_acceptable",
        412 => "precondition_failed",
        415 => "unsupported_media_type",
        417 => "expectation_failed",
        501 => "not_implemented",
        other => panic!("no code for {other}"),
    }
}

#[test]
fn what_a_client_states_is_honoured_or_refused_with_the_right_status() {
    let cluster = Cluster::start(1);
    let node = &cluster[1];
    let stored = node.request("PUT", &key_path("png"), &[("content-type", "image/png")], b"pixels");
    assert_eq!(stored.status, 204);
    let (put, get, delete) = ("PUT /api/v1/cache/a", "GET /api/v1/cache/png", "DELETE /api/v1/cache/gone");
    let batch = "POST /api/v1/batch";
    let gets = r#"{"operations":[{"op":"get","key":"png"}]}"#;
    let chunked = "1\r\nv\r\n0\r\n\r\n";
    for (line, fields, body, status) in [
        // Codings of the message and of its content.
        (put, "transfer-encoding: chunked", chunked, 204),
        (put, "Transfer-Encoding: CHUNKED", chunked, 204),
        (put, "transfer-encoding: chunked|trailer: x", "1\r\nv\r\n0\r\nx: y\r\n\r\n", 204),
        (put, "transfer-encoding: chunked", "1;extension=x\r\nv\r\n0\r\n\r\n", 204),
        (put, "transfer-encoding: gzip, chunked", chunked, 501),
        (put, "transfer-encoding: gzip|transfer-encoding: chunked", chunked, 501),
        (put, "transfer-encoding: identity, chunked", chunked, 501),
        (put, "transfer-encoding: chunked, chunked", chunked, 400),
        (put, "transfer-encoding: chunked|transfer-encoding: chunked", chunked, 400),
        (put, "content-encoding: gzip", "v", 415),
        (put, "Content-Encoding: identity, br", "v", 415),
        (put, "content-encoding: identity|content-encoding: gzip", "v", 415),
        (put, "content-encoding: identity", "v", 204),
        (put, "content-encoding:", "v", 204),
        (put, "content-type: application/json|content-encoding: gzip", BODY, 415),
        (batch, "content-type: application/json|content-encoding: deflate", gets, 415),
        ("POST /internal/cluster/leave", "content-encoding: gzip", r#"{"node_id":"nobody"}"#, 415),
        // What describes the content.
        (put, "content-language: de", "v", 415),
        (put, "content-location: /elsewhere", "v", 204),
        (put, "content-range: bytes 0-0/2", "v", 400),
        (put, "content-type: text/plain|content-type: text/html", "v", 400),
        (put, "content-type: multipart/form-data; boundary=x", "v", 204),
        (put, "Content-Type: Application/X-WWW-Form-UrlEncoded", "v", 400),
        (put, "content-type: application/json; charset=utf-8", BODY, 200),
        (put, "content-type: application/json;Charset=\"UTF-8\"", BODY, 200),
        (put, "content-type: application/json; charset=iso-8859-1", BODY, 415),
        (put, "content-type: application/json; charset=utf-16", BODY, 415),
        (batch, "content-type: application/xml", gets, 415),
        (batch, "content-type: APPLICATION/JSON", gets, 200),
        (batch, "content-type: application/x-www-form-urlencoded", gets, 200),
        (batch, "content-type: text/plain;charset=UTF-8", gets, 200),
        (batch, "", gets, 200),
        // What the client accepts.
        (get, "accept: image/png", "", 200),
        (get, "accept: image/png;q=0.0", "", 200),
        (get, "accept: text/html", "", 200),
        (get, "accept: */*;q=0", "", 406),
        (get, "accept: application/json;q=0", "", 406),
        (get, "accept: application/json; q=0.000|accept: text/html", "", 406),
        (get, "accept: application/json;q=0|accept: image/*", "", 200),
        (get, "accept: *; q=.2, */*; q=.2", "", 200),
        (get, "accept-encoding: gzip, deflate, br", "", 200),
        (get, "accept-encoding:", "", 200),
        (get, "accept-encoding: gzip, identity;q=0", "", 406),
        (get, "accept-encoding: gzip|accept-encoding: *;q=0.0", "", 406),
        (get, "accept-encoding: *;q=0, identity;q=0.1", "", 200),
        ("GET /api/v1/stats", "accept-encoding: identity;q=0", "", 406),
        (get, "accept-charset: utf-16;q=1, *;q=0|accept-language: tlh", "", 200),
        // Expectations and preconditions.
        (put, "expect: 100-continue", "v", 204),
        (put, "Expect: 100-Continue", "v", 204),
        (put, "expect: a-miracle", "v", 417),
        (put, "expect: 100-continue, a-miracle", "v", 417),
        (get, "expect: a-miracle", "", 417),
        (get, "if-match: \"other\"", "", 412),
        (get, "if-match: *", "", 200),
        (get, "if-match: *|if-match: unquoted", "", 400),
        (get, "if-none-match: *", "", 304),
        (get, "if-none-match: \"other\", W/\"x\"", "", 200),
        (put, "if-none-match: \"x\"", "v", 400),
        (put, "if-match: W/\"x\"", "v", 412),
        (delete, "if-none-match: *", "", 400),
        (batch, "if-match: *", gets, 400),
        ("GET /admin/nodes", "if-none-match: \"x\"", "", 400),
        ("POST /internal/cluster/leave", "if-none-match: *", r#"{"node_id":"nobody"}"#, 400),
        // No date of a change is kept, so that these are to be ignored, and a range may be.
        (get, "if-modified-since: Wed, 25 Nov 2026 00:00:00 GMT", "", 200),
        (get, "if-unmodified-since: Wed, 25 Nov 2020 00:00:00 GMT", "", 200),
        (get, "range: bytes=0-1|if-range: \"x\"", "", 200),
        (get, "range: bytes=100-", "", 200),
        // For caches, proxies, people: no origin server has anything to do for these.
        (get, "cache-control: no-store, only-if-cached, max-age=0|pragma: no-cache", "", 200),
        (
            get,
            "te: trailers, gzip;q=0.5|via: 1.1 x|max-forwards: 0|from: a@b.example|warning: 199 x y",
            "",
            200,
        ),
        (get, "referer: http://x.example/|user-agent: x/1|date: Wed, 25 Nov 2026 00:00:00 GMT", "", 200),
        (get, "prefer: return=minimal, respond-async|upgrade: h2c, websocket|connection: upgrade", "", 200),
        (get, "etag: \"x\"|expires: 0|last-modified: x|location: /x|vary: *|age: 1|allow: PUT", "", 200),
        (put, "expires: Wed, 25 Nov 2026 00:00:00 GMT|cache-control: max-age=1", "v", 204),
        (get, "authorization: Basic YTpi", "", 200),
        (get, "authorization: Bearer a|authorization: Bearer b", "", 400),
        (get, "x-api-key: a|x-api-key: b", "", 400),
        // Methods.
        ("TRACE /api/v1/cache/a", "", "", 405),
        ("OPTIONS /api/v1/cache/a", "origin: http://localhost|access-control-request-method: PUT", "", 405),
        ("OPTIONS *", "", "", 405),
        ("CONNECT localhost:80", "", "", 405),
        ("PATCH /api/v1/cache/a", "", "v", 405),
        ("BREW /api/v1/cache/a", "", "", 405),
        ("TRACE /admin/nodes", "", "", 405),
        // Targets and queries.
        ("GET http://localhost/api/v1/cache/png", "", "", 200),
        ("GET https://127.0.0.1:1/api/v1/cache/png", "", "", 200),
        ("GET ftp://localhost/api/v1/cache/png", "", "", 400),
        ("GET http://user@localhost/api/v1/cache/png", "", "", 400),
        ("GET *", "", "", 400),
        ("PUT /api/v1/cache/a?ttl=60", "", "v", 204),
        ("PUT /api/v1/cache/a?tll=60", "", "v", 400),
        ("PUT /api/v1/cache/a?ttl=60&ttl=60", "", "v", 400),
        ("PUT /api/v1/cache/a?ttl=60&x=1", "", "v", 400),
        ("PUT /api/v1/cache/a?TTL=60", "", "v", 400),
        ("PUT /api/v1/cache/a?ttl=60", JSON, BODY, 200),
        ("PUT /api/v1/cache/a?tll=60", JSON, BODY, 400),
        ("PUT /api/v1/cache/a?ttl=60", JSON, r#"{"value":"v","ttl":60}"#, 400),
        ("GET /api/v1/cache/png?_=1700000000", "", "", 200),
        ("GET /api/v1/cache/png?ttl=60", "", "", 400),
        ("DELETE /api/v1/cache/gone?ttl=60", "", "", 400),
        // JSON.
        (put, JSON, r#"{"value":"v","TTL":60}"#, 400),
        (put, JSON, r#"{"value":"v","expires":60}"#, 400),
        (put, JSON, r#"{"Value":"v"}"#, 400),
        (put, JSON, r#"{"value":"v","value":"w"}"#, 400),
        (put, JSON, r#"{"value":"v","ttl":60,"ttl":1}"#, 400),
        (put, JSON, r#"{"value":"v","ttl":"60"}"#, 400),
        (put, JSON, r#"{"value":"v","ttl":{"seconds":60}}"#, 400),
        (put, JSON, r#"{"value":"v","ttl":null,"encoding":null}"#, 200),
        (put, JSON, r#"{"value":"v","encoding":64}"#, 400),
        (put, JSON, r#"{"value":"v","key":"b"}"#, 400),
        (put, JSON, r#"{"value":"v","key":"a","found":true,"node_id":"n1","message":"success"}"#, 200),
        (batch, JSON, r#"{"operations":[],"atomic":true}"#, 400),
        ("POST /internal/cluster/leave", JSON, r#"{"node_id":"nobody","force":true}"#, 400),
        ("POST /internal/cluster/join", JSON, r#"{"node_id":"nobody","adress":"x:1"}"#, 400),
    ] {
        let answer = send(node, line, fields, body);
        assert_eq!(answer.status, status, "{line} | {fields} | {body}: {}", answer.text());
        if status >= 400 {
            answer.expect_error(status, code(status));
            assert_eq!(node.value("a"), None, "{line} | {fields} | {body} was done");
        }
        assert_eq!(answer.header("allow").is_some(), status == 405, "{line}: {answer:?}");
        node.request("DELETE", &key_path("a"), &[], b"").expect(200);
    }
    assert_eq!(node.value("png").as_deref(), Some("pixels"));
}

#[test]
fn a_refusal_names_what_is_accepted() {
    let cluster = Cluster::start(1);
    let node = &cluster[1];
    let put = "PUT /api/v1/cache/a";
    for (line, fields, body, named) in [
        (put, "content-encoding: gzip", "v", "only identity is taken"),
        (put, "transfer-encoding: gzip, chunked", "0\r\n\r\n", "only chunked is implemented"),
        (put, "expect: x", "v", "only 100-continue"),
        (put, "content-type: application/json; charset=latin1", BODY, "UTF-8 only"),
        (
            put,
            JSON,
            r#"{"value":"v","TTL":60}"#,
            "unknown field `TTL`, expected one of `value`, `ttl`, `encoding`",
        ),
        ("PUT /api/v1/cache/a?tll=60", JSON, BODY, "only ttl=SECONDS"),
        ("POST /api/v1/batch", "content-type: application/xml", "<x/>", "is to be application/json"),
        ("BREW /api/v1/cache/a", "", "", "GET, HEAD, PUT and DELETE"),
    ] {
        let message =
            send(node, line, fields, body).json()["message"].as_str().unwrap_or_default().to_string();
        assert!(message.contains(named), "{line} | {fields}: {message}");
    }
    let gzip = send(node, put, "content-encoding: gzip", "v");
    assert_eq!(gzip.header("accept-encoding"), Some("identity"));
    // A name as long as the body is not told back.
    let long = format!(r#"{{"value":"v","{}":1}}"#, "x".repeat(100_000));
    assert!(send(node, put, JSON, &long).body.len() < 2_000);
}

#[test]
fn json_is_json_however_its_type_is_written() {
    let cluster = Cluster::start(1);
    for kind in ["Application/JSON", "APPLICATION/JSON; Charset=UTF-8", "application/json ;x=y"] {
        let body = br#"{"value":"v","ttl":90}"#;
        let put = cluster[1].request("PUT", &key_path("a"), &[("content-type", kind)], body);
        assert_eq!(put.expect(200)["value"], "v", "{kind}");
        let read = cluster[1].read("a").expect(200);
        assert_eq!((&read["value"], read["ttl"].is_number()), (&json!("v"), true), "{kind}");
        cluster[1].request("DELETE", &key_path("a"), &[], b"").expect(200);
    }
    let put = cluster[1].request(
        "PUT",
        "/api/v1/cache/a?ttl=90",
        &[("content-type", "application/json")],
        BODY.as_bytes(),
    );
    put.expect(200);
    assert!(cluster[1].read("a").expect(200)["ttl"].is_number(), "the TTL of the query is kept");
}

#[test]
fn an_operation_of_a_batch_says_nothing_that_is_dropped() {
    let cluster = Cluster::start(1);
    let operations = json!({"operations": [
        {"op": "put", "key": "a", "value": "v"},
        {"op": "put", "key": "b", "value": "v", "TTL": 60},
        {"op": "get", "key": "a", "ttl": 60},
        {"op": "delete", "key": "a", "value": "v"},
        {"op": "get", "key": "a", "more": [1, 2]},
    ]});
    let answer = cluster[1].post("/api/v1/batch", &operations).expect(200);
    let results = answer["results"].as_array().expect("results");
    let statuses: Vec<_> = results.iter().map(|one| &one["status"]).collect();
    assert_eq!(statuses, [200, 400, 400, 400, 400], "{answer}");
    assert!(results[1]["message"].as_str().is_some_and(|message| message.contains("\"TTL\"")), "{answer}");
    assert_eq!((cluster[1].value("a").as_deref(), cluster[1].value("b")), (Some("v"), None));
}

#[test]
fn every_request_has_one_host_that_is_well_formed() {
    let cluster = Cluster::start(1);
    let ask = |version: &str, hosts: &str| {
        let request = format!("GET /api/v1/health HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
        exchange(cluster[1].address, request.as_bytes()).expect("an answer").status
    };
    for (version, hosts, status) in [
        ("1.1", "host: localhost\r\n", 200),
        ("1.1", "Host: [::1]:8001\r\n", 200),
        ("1.1", "", 400),
        ("1.1", "host: localhost\r\nhost: localhost\r\n", 400),
        ("1.1", "host: a b\r\n", 400),
        ("1.1", "host: a/b\r\n", 400),
        ("1.1", "host: user@a\r\n", 400),
        ("1.1", "host: a:b\r\n", 400),
        ("1.1", "host: ::1\r\n", 400),
        ("1.0", "", 200),
        ("1.0", "host: localhost\r\n", 200),
        ("1.0", "host: a b\r\n", 400),
    ] {
        assert_eq!(ask(version, hosts), status, "HTTP/{version} {hosts:?}");
    }
}

#[test]
fn answers_are_no_pages_of_the_nodes_origin() {
    let cluster = Cluster::start(1);
    let node = &cluster[1];
    let html = [("content-type", "text/html"), ("accept", "text/html")];
    let path = key_path("page");
    let json = [("content-type", "application/json")];
    let page = b"<script>1</script>";
    let answers = [
        node.request("PUT", &path, &html, page),
        node.request("GET", &path, &html, b""),
        node.request("HEAD", &path, &html, b""),
        node.request("GET", &path, &[], b""),
        node.request("GET", &path, &[("if-none-match", "*")], b""),
        node.request("GET", &path, &[("if-match", "\"x\"")], b""),
        node.request("GET", &format!("/internal/cache/{}", "page"), &html, b""),
        node.request("PUT", &path, &json, BODY.as_bytes()),
        node.request("PUT", &path, &json, b"{"),
        node.request("POST", "/api/v1/batch", &json, br#"{"operations":[{"op":"get","key":"page"}]}"#),
        node.request("DELETE", &path, &[], b""),
        node.request("GET", &path, &[], b""),
        node.request("GET", "/admin/locate/%3Cscript%3E", &[], b""),
        node.request("GET", "/%3Cscript%3E", &[], b""),
        node.request("PATCH", "/api/v1/stats", &[], b""),
        node.request("GET", "/metrics", &[], b""),
        exchange(node.address, b"GET\r\n\r\n").expect("an answer"),
    ];
    for answer in &answers {
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.contains("default-src 'none'") && policy.contains("sandbox"), "{answer:?}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"), "{answer:?}");
    }
    assert_eq!((answers[1].header("content-type"), &answers[1].body[..]), (Some("text/html"), &page[..]));
}

#[test]
fn what_may_be_cached_says_on_what_it_depends() {
    let cluster = Cluster::start(1);
    cluster[1].put_json("a", &json!({"value": "v", "ttl": 60})).expect(200);
    for headers in [&[][..], &[("accept", "text/plain")], &[("if-none-match", "*")]] {
        let answer = cluster[1].request("GET", &key_path("a"), headers, b"");
        assert!(
            answer.header("cache-control").is_some_and(|text| text.starts_with("max-age=")),
            "{answer:?}"
        );
        assert_eq!(answer.header("vary"), Some("accept"), "{answer:?}");
    }
}

#[test]
fn every_row_of_the_documented_list_is_complete() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/http.md")).expect("the page");
    for field in [
        "Accept",
        "Accept-Charset",
        "Accept-Encoding",
        "Accept-Language",
        "Age",
        "Allow",
        "Authorization",
        "Cache-Control",
        "Connection",
        "Content-Encoding",
        "Content-Language",
        "Content-Length",
        "Content-Location",
        "Content-Range",
        "Content-Type",
        "Date",
        "ETag",
        "Expect",
        "Expires",
        "From",
        "Host",
        "If-Match",
        "If-Modified-Since",
        "If-None-Match",
        "If-Range",
        "If-Unmodified-Since",
        "Last-Modified",
        "Location",
        "Max-Forwards",
        "Pragma",
        "Prefer",
        "Range",
        "Referer",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "User-Agent",
        "Vary",
        "Via",
        "Warning",
    ] {
        assert!(page.contains(&format!("`{field}`")), "{field} is not in the list");
    }
}
