//! Connections that claim to be a peer's and are not.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::cluster::Cluster;
use crate::http;
use crate::node::Node;
use crate::process::PATIENCE;

/// A connection that the node takes for a peer's link.
fn upgraded(node: &Node) -> TcpStream {
    let mut stream = http::connect(node.address).expect("a connection");
    let request = "GET /internal/link HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
        upgrade: shoal-link/3\r\nshoal-cluster: shoal\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("the request goes out");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Sends the bytes, and waits until the node has closed the connection for this reason.
#[track_caller]
fn expect_closed(cluster: &Cluster, bytes: &[u8], reason: &str) {
    let mut stream = upgraded(&cluster[1]);
    // The node may close before it has taken everything.
    let _ = stream.write_all(bytes);
    let mut rest = Vec::new();
    let closed = stream.read_to_end(&mut rest);
    let timed_out = closed.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "the link is still open; {} bytes came back", rest.len());
    let logged = || {
        let closed = cluster[1].log().with_message("closed a link");
        closed.iter().any(|line| line["reason"].as_str().is_some_and(|text| text.contains(reason)))
    };
    cluster.wait_until(&format!("the log says {reason:?}"), PATIENCE, logged);
    cluster[1].put("key", "value");
    assert_eq!(cluster[2].value("key").as_deref(), Some("value"));
}

/// A frame's header: length, id, deadline in milliseconds, length of the head.
fn header(bytes: u32, head: u32) -> Vec<u8> {
    [bytes, 1, 1000, head].iter().flat_map(|field| field.to_le_bytes()).collect()
}

#[test]
fn a_frame_of_four_gigabytes_closes_the_link() {
    let cluster = Cluster::start(2);
    expect_closed(&cluster, &header(u32::MAX, 10), "a frame of 4294967295 bytes");
}

#[test]
fn a_head_longer_than_its_frame_closes_the_link() {
    let cluster = Cluster::start(2);
    expect_closed(&cluster, &header(10, 11), "a head of 11 bytes in a frame of 10");
}

#[test]
fn a_head_that_makes_no_sense_closes_the_link() {
    let cluster = Cluster::start(2);
    expect_closed(&cluster, &[header(4, 4), vec![0xfa; 4]].concat(), "an unreadable head");
}

/// An entry of one byte, as it travels in a list of records; bincode's numbers below 251 are one byte.
fn record(key: &str, version: u64, content_type: &str) -> Vec<u8> {
    let time = [&[253], &version.to_le_bytes()[..]].concat();
    let length = [&[251], &(content_type.len() as u16).to_le_bytes()[..]].concat();
    let key = [&[key.len() as u8], key.as_bytes()].concat();
    let (node, mark) = (vec![7], vec![0]);
    [key, time, node, mark, vec![0, 0, 1], length, content_type.into(), vec![1]].concat()
}

/// Has the node keep these records, and waits until it says that it does.
fn sync(stream: &mut TcpStream, records: &[Vec<u8>]) {
    // Nobody knows what the node's clock shows.
    let sent_at = 0;
    let head = [vec![3, sent_at, records.len() as u8], records.concat()].concat();
    let values = vec![b'v'; records.len()];
    let frame = [header((head.len() + values.len()) as u32, head.len() as u32), head, values].concat();
    stream.write_all(&frame).expect("it is sent");
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).expect("an answer");
    let mut body = vec![0; u32::from_le_bytes([answer[0], answer[1], answer[2], answer[3]]) as usize];
    stream.read_exact(&mut body).expect("the rest");
    // That they are held, none in a newer version.
    assert_eq!((body.first(), body.last()), (Some(&2), Some(&0)), "{body:?}");
}

#[test]
fn a_record_of_a_peer_that_is_over_a_bound_is_refused_alone() {
    let cluster = Cluster::start(1);
    let mut stream = upgraded(&cluster[1]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let version = (now.as_millis() as u64) << 16;
    let (short, long) = ("a/b", "x".repeat(60_000));
    sync(&mut stream, &[record("first", version, short), record("changed", version, short)]);
    let newer = version + 1;
    sync(
        &mut stream,
        &[record("second", newer, short), record("changed", newer, &long), record("third", newer, short)],
    );
    let at = |key: &str| cluster[1].get(&format!("/internal/cache/{key}"));
    for key in ["first", "second", "third"] {
        assert_eq!(at(key).expect(200)["value"], "v", "{key}");
    }
    // It is not kept, and what was there before is not the newest any more.
    assert_eq!(at("changed").status, 404);
    let text = cluster[1].get("/metrics").text();
    assert!(text.contains("\nshoal_link_refused_total{node=\"n1\"} 1\n"), "{text}");
    let message = "refused what a peer sent; more like it are counted, not logged, for a minute";
    let told = || cluster[1].log().with_message(message);
    cluster.wait_until("it is told", PATIENCE, || !told().is_empty());
    assert_eq!(told()[0]["reason"], "the Content-Type has 60000 bytes: at most 256 are accepted");
}

#[test]
fn random_bytes_close_the_link_and_the_node_goes_on() {
    let cluster = Cluster::start(2);
    // Lehmer's generator with the factor of Park and Miller, so that a failure can be repeated.
    let mut state: u64 = 20_261_123;
    for _ in 0..20 {
        let noise = std::iter::repeat_with(|| {
            state = state * 48_271 % 0x7fff_ffff;
            (state >> 8) as u8
        });
        let noise: Vec<u8> = noise.take(4096).collect();
        let mut stream = upgraded(&cluster[1]);
        let _ = stream.write_all(&noise);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let closed = stream.read_to_end(&mut Vec::new());
        assert!(
            !closed.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
            "it is still open"
        );
    }
    cluster[1].put("key", "value");
    assert_eq!(cluster[2].value("key").as_deref(), Some("value"));
}

#[test]
fn the_link_of_another_cluster_is_forbidden_and_what_is_no_upgrade_is_invalid() {
    let cluster = Cluster::start(1);
    let upgrade = [("connection", "upgrade"), ("upgrade", "shoal-link/3"), ("shoal-cluster", "other")];
    let refused = |headers| cluster[1].request("GET", "/internal/link", headers, b"");
    assert!(refused(&upgrade).expect_error(403, "forbidden").contains("other"));
    refused(&upgrade[..2]).expect_error(403, "forbidden");
    refused(&[]).expect_error(400, "invalid_request");
    refused(&[("connection", "upgrade"), ("upgrade", "websocket")]).expect_error(400, "invalid_request");
    // Of another version both are told.
    let former =
        refused(&[("connection", "upgrade"), ("upgrade", "shoal-link/1"), ("shoal-cluster", "shoal")]);
    let message = former.expect_error(400, "invalid_request");
    assert!(message.contains("shoal-link/3") && message.contains("shoal-link/1"), "{message}");
    assert!(cluster[1].log().says("shoal-link/1"), "{}", cluster[1].log().tail(3));
}
