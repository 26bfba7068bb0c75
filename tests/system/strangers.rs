//! What a stranger can send over HTTP that is broken or ambiguous, and what of a request goes further.

use std::io::{Read, Write};

use serde_json::json;

use crate::cluster::Cluster;
use crate::http::{self, exchange};
use crate::node::{Node, key_path};
use crate::process::PATIENCE;
use crate::proxy::{Proxy, bind_both};

/// How often the node turned something away for this reason.
pub(crate) fn refused(node: &Node, reason: &str) -> u64 {
    let text = node.get("/metrics").text();
    let name = format!("shoal_http_refused_total{{reason=\"{reason}\",node=\"{}\"}} ", node.id);
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Everything that comes back for these bytes, until the node closes.
fn all_answers(node: &Node, bytes: &str) -> String {
    let mut stream = http::connect(node.address).expect("a connection");
    stream.write_all(bytes.as_bytes()).expect("it is sent");
    stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    let mut answers = Vec::new();
    let _ = stream.read_to_end(&mut answers);
    String::from_utf8_lossy(&answers).into_owned()
}

#[test]
fn what_is_not_well_formed_http_is_refused_in_the_shape_of_all_errors() {
    let cluster = Cluster::start(1);
    for request in [
        "GET\r\n\r\n",
        "\u{16}\u{3}\u{1}\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "PUT /api/v1/cache/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        "PUT /api/v1/cache/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1, 2\r\n\r\nxx",
        "PUT /api/v1/cache/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: +1\r\n\r\nx",
        "PUT /api/v1/cache/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\nx",
        "PUT /api/v1/cache/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "PUT /api/v1/cache/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "PUT /api/v1/cache/a HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /api/v1/cache/a HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET /api/v1/cache/a HTTP/1.1\r\nhost: localhost\r\n folded: y\r\n\r\n",
        "GET /api/v1/cache/a HTTP/1.1\r\nx: a\0b\r\n\r\n",
        "GET /api/v1/cache/a b HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ] {
        let answer = exchange(cluster[1].address, request.as_bytes());
        let answer = answer.unwrap_or_else(|error| panic!("{request:?}: {error}"));
        answer.expect_error(400, "invalid_request");
    }
    assert!(refused(&cluster[1], "malformed") >= 10);
    assert_eq!(cluster[1].value("a"), None);
}

#[test]
fn a_request_of_two_lengths_is_the_last_of_its_connection() {
    let cluster = Cluster::start(1);
    let smuggled = "PUT /api/v1/cache/smuggled HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx";
    let chunked = "0\r\n\r\n";
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 4\r\nTransfer-Encoding:\tchunked",
    ] {
        let outer =
            format!("PUT /api/v1/cache/outer HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n\r\n{chunked}");
        let answers = all_answers(&cluster[1], &format!("{outer}{smuggled}"));
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    }
    assert_eq!(cluster[1].value("smuggled"), None);
    // What is not ambiguous may follow.
    let answers = all_answers(&cluster[1], &smuggled.repeat(2));
    assert_eq!(answers.matches("HTTP/1.1 204").count(), 2, "{answers}");
}

#[test]
fn line_ends_and_zeros_in_a_key_are_part_of_the_key() {
    let cluster = Cluster::start(2);
    for key in
        ["a\r\nx-evil: 1\r\n\r\nHTTP/1.1 200 OK", "a\0b", "\0", "../../admin/cluster", "a//b?c#d", "\u{7f}\t"]
    {
        assert_eq!(cluster[1].request("PUT", &key_path(key), &[], key.as_bytes()).status, 204);
        let answer = cluster[2].read(key);
        assert_eq!((&answer.expect(200)["value"], answer.header("x-evil")), (&json!(key), None));
        let message = cluster[1].read(&format!("{key}-absent")).expect(404);
        assert_eq!(message["key"], format!("{key}-absent"));
    }
    // Raw, the parser of HTTP has to see to it.
    for bytes in [
        "GET /api/v1/cache/a\0b HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET /api/v1/cache/a\rb HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ] {
        exchange(cluster[1].address, bytes.as_bytes())
            .expect("an answer")
            .expect_error(400, "invalid_request");
    }
    // A content type comes back as a header.
    let types = [("content-type", "text/plain; x=\u{e9}")];
    cluster[1].request("PUT", &key_path("typed"), &types, b"v").expect_error(400, "invalid_request");
}

#[test]
fn nothing_of_a_request_reaches_a_peer_but_what_the_operation_is() {
    let listen = bind_both().2;
    let proxy = Proxy::start(listen);
    let mut cluster = Cluster::start(1);
    let (seed, advertised) = (cluster[1].address.to_string(), proxy.address.to_string());
    cluster.admit(Node::start_at("n2", listen, &["--join", &seed, "--advertise", &advertised]));
    cluster.wait_until("the pair is formed", PATIENCE, || cluster.is_whole());
    let headers = [
        ("content-type", "text/x-visible"),
        ("x-needle", "hidden-needle"),
        ("cookie", "hidden-needle"),
        ("authorization", "Bearer hidden-needle"),
        ("x-forwarded-for", "hidden-needle"),
        ("user-agent", "hidden-needle"),
    ];
    for number in 0..20 {
        let path = format!("/api/v1/cache/visible-{number}?ttl=60");
        assert_eq!(cluster[1].request("PUT", &path, &headers, b"visible-value").status, 204);
        let path = path.trim_end_matches("?ttl=60");
        assert_eq!(cluster[1].request("GET", path, &headers, b"").status, 200);
    }
    let passed = proxy.passed();
    let has = |text: &str| passed.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(has("visible-7") && has("visible-value") && has("text/x-visible"), "it went this way");
    assert!(!has("hidden-needle") && !has("ttl=60") && !has("/api/v1/"));
}
