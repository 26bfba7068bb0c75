//! What may be a key, what may be a value, and how both come back, from the owner and from everybody else.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::node::{Node, key_path};

const MIB: usize = 1 << 20;
/// The default of `--max-value-size`.
const VALUE_BYTES_MAX: usize = 8 * MIB;
const OCTETS: &[(&str, &str)] = &[("accept", "application/octet-stream")];

/// A pair of nodes, a key that only n1 owns and one that only n2 owns; both are used through n1.
fn local_and_forwarded() -> (Cluster, [String; 2]) {
    let cluster = Cluster::start_with(2, &["--copies", "1"]);
    let keys = [1, 2].map(|number| cluster.key_owned_by(number));
    (cluster, keys)
}

fn put_raw(node: &Node, key: &str, query: &str, headers: &[(&str, &str)], value: &[u8]) {
    let answer = node.request("PUT", &format!("{}{query}", key_path(key)), headers, value);
    assert_eq!((answer.status, answer.text().as_str()), (204, ""));
    assert!(
        answer.header("etag").is_some_and(|tag| tag.starts_with('"') && tag.ends_with('"')),
        "{answer:?}"
    );
}

#[test]
fn what_one_node_stores_every_other_reads_and_deletes() {
    let cluster = Cluster::start(3);
    for writer in 1..=3 {
        for reader in 1..=3 {
            let (key, value) = (format!("from n{writer} to n{reader}"), format!("value {writer}{reader}"));
            let stored = cluster[writer].put_json(&key, &json!({"value": value})).expect(200);
            let expected = json!({"key": key, "value": value, "found": true, "node_id": stored["node_id"],
                "message": "success"});
            assert_eq!(stored, expected);
            let hit = cluster[reader].read(&key);
            assert!(hit.header("etag").is_some());
            let read = hit.expect(200);
            assert_eq!([&read["key"], &read["value"]], [&json!(key), &json!(value)]);
            assert_eq!(read["found"], true);
            assert!(read["node_id"].as_str().is_some_and(|id| id.starts_with('n')), "{read}");
            let head = cluster[reader].request("HEAD", &key_path(&key), &[], b"");
            assert_eq!((head.status, head.body.len()), (200, 0));
            assert_eq!(head.header("etag"), hit.header("etag"));
            let delete = |found: bool| {
                let deleted = cluster[reader].request("DELETE", &key_path(&key), &[], b"").expect(200);
                let told = [&deleted["message"], &deleted["key"], &deleted["found"]];
                assert_eq!(told, [&json!("deleted"), &json!(key), &json!(found)]);
                assert!(deleted["node_id"].is_string());
            };
            delete(true);
            delete(false);
            let miss = cluster[writer].read(&key).expect(404);
            assert_eq!([&miss["key"], &miss["message"]], [&json!(key), &json!("key not found")]);
            assert_eq!(miss["found"], false);
            assert!(miss["node_id"].is_string());
            assert_eq!(cluster[writer].request("HEAD", &key_path(&key), &[], b"").status, 404);
        }
    }
}

#[test]
fn a_batch_answers_in_order_whoever_owns_the_keys() {
    let cluster = Cluster::start(3);
    let keys: Vec<String> = (0..30).map(|index| format!("batched {index}")).collect();
    let mut operations: Vec<Value> =
        keys.iter().map(|key| json!({"op": "put", "key": key, "value": key, "ttl": 60})).collect();
    operations.insert(7, json!({"op": "get", "key": "absent"}));
    operations.insert(19, json!({"op": "shout", "key": "what"}));
    operations.push(json!({"op": "get", "key": keys[3]}));
    operations.push(json!({"op": "delete", "key": keys[4]}));
    let answer = cluster[2].post("/api/v1/batch", &json!({"operations": operations})).expect(200);
    assert_eq!(answer["node_id"], "n2");
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), operations.len());
    let mut primaries = std::collections::BTreeSet::new();
    for (operation, result) in operations.iter().zip(results) {
        if operation["op"] == "shout" {
            assert_eq!([&result["error"], &result["status"]], [&json!("invalid_request"), &json!(400)]);
            continue;
        }
        assert_eq!(result["key"], operation["key"]);
        let status = if operation["key"] == "absent" { 404 } else { 200 };
        assert_eq!(result["status"], status, "{result}");
        // Any of them: in the first moments of a table the primary may not be sure yet that it has everything.
        let owners = cluster.owners_of(operation["key"].as_str().expect("a key"));
        assert!(owners.iter().any(|owner| result["node_id"] == *owner), "{owners:?} own the key of {result}");
        primaries.extend(owners.into_iter().next());
    }
    assert_eq!(primaries.len(), 3, "thirty keys have {primaries:?} as primaries");
    assert_eq!(results[32]["value"], keys[3]);
    assert_eq!([&results[33]["message"], &results[33]["found"]], [&json!("deleted"), &json!(true)]);
}

#[test]
fn a_batch_takes_a_thousand_operations_and_not_one_more() {
    let cluster = Cluster::start(2);
    let gets = |count: usize| -> Value {
        let gets: Vec<_> = (0..count).map(|index| json!({"op": "get", "key": index.to_string()})).collect();
        json!({ "operations": gets })
    };
    let answer = cluster[1].post("/api/v1/batch", &gets(1000)).expect(200);
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(1000));
    cluster[1].post("/api/v1/batch", &gets(1001)).expect_error(413, "too_large");
    assert_eq!(cluster[1].post("/api/v1/batch", &gets(0)).expect(200)["results"], json!([]));
}

#[test]
fn values_from_nothing_to_the_longest_come_back_as_they_were() {
    let (cluster, keys) = local_and_forwarded();
    for key in &keys {
        for bytes in [0, 1, 65 << 10, MIB, VALUE_BYTES_MAX] {
            let value: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
            put_raw(&cluster[1], key, "", &[], &value);
            for node in cluster.running() {
                let read = node.request("GET", &key_path(key), OCTETS, b"");
                assert_eq!((read.status, read.body.len()), (200, bytes), "at {}", node.id);
                assert!(read.body == value, "{bytes} bytes came back changed at {}", node.id);
            }
            let text = "x".repeat(bytes);
            assert_eq!(cluster[1].put_json(key, &json!({"value": text})).expect(200)["value"], text);
            for node in cluster.running() {
                assert!(node.value(key).as_ref() == Some(&text), "{bytes} bytes of text at {}", node.id);
            }
        }
    }
}

#[test]
fn a_value_one_byte_too_long_is_refused_and_changes_nothing() {
    let (cluster, keys) = local_and_forwarded();
    for key in &keys {
        cluster[1].put(key, "kept");
        let long = vec![b'x'; VALUE_BYTES_MAX + 1];
        let raw = cluster[1].request("PUT", &key_path(key), &[], &long);
        assert!(raw.expect_error(413, "too_large").contains("8388608"));
        let text = String::from_utf8(long).expect("ASCII");
        cluster[1].put_json(key, &json!({"value": text})).expect_error(413, "too_large");
        assert_eq!(cluster[2].value(key).as_deref(), Some("kept"));
    }
}

#[test]
fn the_longest_value_is_what_the_flag_says() {
    let mut cluster = Cluster::default();
    cluster.add(&["--max-value-size", "1KiB"]);
    put_raw(&cluster[1], "key", "", &[], &[7; 1024]);
    cluster[1].request("PUT", &key_path("key"), &[], &[7; 1025]).expect_error(413, "too_large");
}

#[test]
fn bytes_that_are_not_text_are_base64_in_json() {
    let (cluster, keys) = local_and_forwarded();
    for key in &keys {
        put_raw(&cluster[1], key, "", &[], &[0xff, 0x00, 0xfe]);
        let read = cluster[1].read(key).expect(200);
        assert_eq!([&read["value"], &read["encoding"]], [&json!("/wD+"), &json!("base64")]);
        cluster[1].put_json(key, &json!({"value": "AAECgA==", "encoding": "base64"})).expect(200);
        assert_eq!(cluster[2].request("GET", &key_path(key), OCTETS, b"").body, [0, 1, 2, 0x80]);
    }
}

#[test]
fn content_types_come_back_and_accept_chooses_between_json_and_bytes() {
    let (cluster, keys) = local_and_forwarded();
    let png = ("content-type", "image/png; note=\"a b\"");
    for key in &keys {
        put_raw(&cluster[1], key, "", &[png], b"pixels");
        for (accept, raw) in [
            ("application/octet-stream", true),
            ("image/png", true),
            ("text/html, image/png;q=0.5", true),
            ("application/json", false),
            ("*/*", false),
            ("image/png;q=0", false),
        ] {
            let read = cluster[1].request("GET", &key_path(key), &[("accept", accept)], b"");
            assert_eq!(read.status, 200);
            if raw {
                assert_eq!((read.header("content-type"), &read.body[..]), (Some(png.1), &b"pixels"[..]));
            } else {
                assert_eq!(read.header("content-type"), Some("application/json"), "{accept}");
                assert_eq!(read.json()["value"], "pixels");
            }
        }
        // A JSON string is text, and no Content-Type at all means octets.
        cluster[1].put(key, "text");
        let read = cluster[1].request("GET", &key_path(key), &[("accept", "text/plain")], b"");
        assert_eq!((read.header("content-type"), &*read.text()), (Some("text/plain; charset=utf-8"), "text"));
        put_raw(&cluster[1], key, "", &[], b"octets");
        let read = cluster[1].request("GET", &key_path(key), OCTETS, b"");
        assert_eq!(read.header("content-type"), Some("application/octet-stream"));
    }
}

#[test]
fn a_ttl_is_told_and_ends_the_entry() {
    let (cluster, keys) = local_and_forwarded();
    for key in &keys {
        cluster[1].put_json(key, &json!({"value": "brief", "ttl": 90})).expect(200);
        let read = cluster[1].read(key);
        let left = read.expect(200)["ttl"].as_f64().expect("a ttl");
        assert!(left > 80.0 && left <= 90.0, "{left}");
        let age = read.header("cache-control").and_then(|text| text.strip_prefix("max-age="));
        assert!(age.and_then(|text| text.parse().ok()).is_some_and(|age: u32| (80..=90).contains(&age)));
        put_raw(&cluster[1], key, "?ttl=0.4", &[], b"briefer");
        assert_eq!(cluster[2].value(key).as_deref(), Some("briefer"));
        cluster.wait_until("it has expired", Duration::from_secs(2), || cluster[1].value(key).is_none());
        cluster[1].put(key, "for ever");
        let read = cluster[1].read(key);
        assert!(read.expect(200)["ttl"].is_null());
        assert_eq!(read.header("cache-control"), None);
    }
}

#[test]
fn keys_may_be_any_text_of_1_to_1024_bytes() {
    let cluster = Cluster::start(2);
    let longest = "k".repeat(1024);
    let fish = "🐟".repeat(256);
    let keys = ["a b", "a/b/c", "{user:7}.name", "{}", "🐟", "+&?=#%", "..", "\u{0}\n\"\\", &longest, &fish];
    for (index, key) in keys.into_iter().enumerate() {
        cluster[1].put(key, &index.to_string());
        let read = cluster[2].read(key).expect(200);
        assert_eq!([&read["key"], &read["value"]], [&json!(key), &json!(index.to_string())]);
    }
    // A slash means the same with and without its escape, and a plus is a plus.
    assert_eq!(cluster[1].get("/api/v1/cache/a/b/c").expect(200)["key"], "a/b/c");
    assert_eq!(cluster[1].get("/api/v1/cache/+%26?x").status, 404);
    let slot = |key: &str| {
        let path = format!("/admin/locate/{}", crate::http::encode(key));
        cluster[1].get(&path).expect(200)["slot"].as_u64()
    };
    assert_eq!(slot("{user:7}.name"), slot("{user:7}.age"));
    // By hand, from the specification of Redis Cluster: the CRC16 of "123456789" is 0x31C3.
    assert_eq!(slot("123456789"), Some(0x31C3));
}

#[test]
fn what_is_no_key_is_refused() {
    let cluster = Cluster::start(1);
    for path in [String::new(), "k".repeat(1025), "%FF".into(), "a%C3".into(), "🐟".repeat(257)] {
        let path = format!("/api/v1/cache/{path}");
        for method in ["GET", "PUT", "DELETE"] {
            cluster[1].request(method, &path, &[], b"").expect_error(400, "invalid_request");
        }
    }
    // Not percent-encodings, so they stand for themselves.
    for path in ["100%", "%zz"] {
        assert_eq!(cluster[1].get(&format!("/api/v1/cache/{path}")).expect(404)["key"], path);
    }
}
