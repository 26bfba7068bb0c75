//! What one client stores, however long its parts, costs the others nothing.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http;
use crate::node::{Node, key_path};
use crate::process::PATIENCE;

/// The longest Content-Type that is stored. With one of 60 KB, which a header may have, entries were lost.
const TYPE_BYTES: usize = 256;

/// Stores values of one byte under keys of one slot, each with the longest type.
fn poison(node: &Node, count: usize) {
    let content_type = format!("a/{}", "x".repeat(TYPE_BYTES - 2));
    for key in poisoned(count) {
        let answer = node.request("PUT", &key_path(&key), &[("content-type", &content_type)], b"1");
        assert_eq!(answer.status, 204, "{}", answer.text());
    }
}

fn poisoned(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|index| format!("{{x}}{index}"))
}

fn ordinary(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("ordinary:{index}")).collect()
}

fn batch(to: SocketAddr, operations: &[Value]) -> Vec<Value> {
    let body = json!({"operations": operations}).to_string();
    let json = [("content-type", "application/json")];
    let answer = http::request(to, "POST", "/api/v1/batch", &json, body.as_bytes()).expect("an answer");
    answer.expect(200)["results"].as_array().expect("results").clone()
}

fn write_all(node: &Node, keys: &[String]) {
    for chunk in keys.chunks(1000) {
        let puts: Vec<_> = chunk.iter().map(|key| json!({"op": "put", "key": key, "value": "v"})).collect();
        let results = batch(node.address, &puts);
        assert!(results.iter().all(|result| result["status"] == 200), "{:?}", results.first());
    }
}

/// How many of the keys are not found, or not read.
fn lost(node: &Node, keys: &[String]) -> usize {
    let gets =
        |chunk: &[String]| -> Vec<_> { chunk.iter().map(|key| json!({"op": "get", "key": key})).collect() };
    let results = keys.chunks(1000).flat_map(|chunk| batch(node.address, &gets(chunk)));
    results.filter(|result| result["status"] != 200).count()
}

fn is_replicated(cluster: &Cluster) -> bool {
    cluster.is_whole() && cluster.running().all(|node| node.metric("shoal_under_replicated_slots") == 0)
}

/// After a death: the others agree on who is left, and have made the second copies again.
fn wait_for_copies_without(cluster: &Cluster, dead: &[&str]) {
    let live = cluster.running().map(|node| (node.id.clone(), "healthy"));
    let members: Vec<_> = live.chain(dead.iter().map(|id| ((*id).to_string(), "unhealthy"))).collect();
    let members: Vec<_> = members.iter().map(|(id, status)| (&**id, *status)).collect();
    cluster.wait_until("the copies are made again", PATIENCE, || {
        cluster.agrees_on(&members)
            && cluster.running().all(|node| node.metric("shoal_under_replicated_slots") == 0)
    });
}

#[test]
fn the_longest_types_of_one_tag_cost_no_ordinary_key_when_two_nodes_die_in_turn() {
    let _alone = crate::measured();
    let flags = ["--max-memory", "128MiB"];
    let mut cluster = Cluster::start_with(2, &flags);
    let keys = ordinary(3000);
    poison(&cluster[1], 300);
    write_all(&cluster[1], &keys);
    let third = cluster.add(&flags);
    cluster.wait_until("the third is up to date", PATIENCE, || is_replicated(&cluster));
    cluster.kill(1);
    wait_for_copies_without(&cluster, &["n1"]);
    cluster.kill(2);
    wait_for_copies_without(&cluster, &["n1", "n2"]);
    assert_eq!(lost(&cluster[third], &keys), 0);
    assert_eq!(lost(&cluster[third], &poisoned(300).collect::<Vec<_>>()), 0);
    assert_eq!(cluster[third].metric("shoal_link_rejected_total"), 0);
}

#[test]
fn a_node_that_leaves_hands_over_the_longest_types_and_all_else() {
    let _alone = crate::measured();
    let flags = ["--max-memory", "128MiB", "--copies", "1"];
    let mut cluster = Cluster::start_with(2, &flags);
    let keys = ordinary(2000);
    let holder = if cluster.owners_of("{x}0")[0] == "n1" { 1 } else { 2 };
    let other = 3 - holder;
    poison(&cluster[1], 300);
    write_all(&cluster[1], &keys);
    assert!(cluster.terminate(holder).success(), "{}", cluster[holder].log().tail(8));
    assert_eq!(lost(&cluster[other], &keys), 0);
    assert_eq!(lost(&cluster[other], &poisoned(300).collect::<Vec<_>>()), 0);
}

#[test]
fn a_content_type_of_more_than_256_bytes_is_refused_at_every_entrance() {
    let cluster = Cluster::start(1);
    for path in [key_path("key"), "/internal/cache/key".into()] {
        for bytes in [257, 60_000] {
            let long = format!("a/{}", "x".repeat(bytes - 2));
            let answer = cluster[1].request("PUT", &path, &[("content-type", &long)], b"1");
            let message = answer.expect_error(400, "invalid_request");
            assert_eq!(message, format!("the Content-Type has {bytes} bytes: at most 256 are accepted"));
        }
        let longest = format!("a/{}", "x".repeat(TYPE_BYTES - 2));
        assert_eq!(cluster[1].request("PUT", &path, &[("content-type", &longest)], b"1").status, 204);
        let read = cluster[1].request("GET", &path, &[("accept", &longest)], b"");
        assert_eq!((read.header("content-type"), &read.body[..]), (Some(&*longest), &b"1"[..]));
    }
}

#[test]
fn a_batch_with_a_long_answer_does_its_writes_once() {
    let cluster = Cluster::start_with(2, &["--copies", "1"]);
    let long = cluster.key_owned_by(2);
    assert_eq!(cluster[2].request("PUT", &key_path(&long), &[], &[b'x'; 100 << 10]).status, 204);
    // The first may find its owner without leases yet, and take another way.
    for index in 0..20 {
        let lock = format!("{{{long}}}lock-{index}");
        let operations = [
            json!({"op": "put", "key": lock, "value": "mine", "if_none_match": "*"}),
            json!({"op": "get", "key": long}),
        ];
        let results = batch(cluster[1].address, &operations);
        let statuses: Vec<_> = results.iter().map(|result| &result["status"]).collect();
        assert_eq!(statuses, [200, 200], "{}", results[0]);
    }
}

#[test]
fn a_value_that_a_node_of_other_bounds_cannot_take_hinders_no_other() {
    let _alone = crate::measured();
    let mut cluster = Cluster::default();
    cluster.add(&["--max-value-size", "64MiB", "--max-memory", "512MiB"]);
    let keys = ordinary(500);
    write_all(&cluster[1], &keys);
    // Longer than any frame that the second takes.
    let long = vec![b'x'; 40 << 20];
    assert_eq!(cluster[1].request("PUT", &key_path("long"), &[], &long).status, 204);
    cluster.add(&["--max-value-size", "1MiB"]);
    cluster.wait_until("the second is up to date", PATIENCE, || is_replicated(&cluster));
    let there = |key: &str| cluster[2].get(&format!("/internal/cache/{}", http::encode(key))).status;
    assert!(keys.iter().all(|key| there(key) == 200));
    assert!(cluster[1].metric("shoal_sync_left_out_total") > 0);
    let told =
        "left out an entry that a member cannot take; more like it are counted, not logged, for a minute";
    cluster.wait_until("it is told", PATIENCE, || !cluster[1].log().with_message(told).is_empty());

    // What it has of such a key is not shown for the newest.
    let key = cluster.key_owned_by(1);
    cluster[1].put(&key, "old");
    cluster.wait_until("both have it", PATIENCE, || there(&key) == 200);
    assert_eq!(cluster[1].request("PUT", &key_path(&key), &[], &long).status, 204);
    cluster.wait_until("the second is up to date", PATIENCE, || is_replicated(&cluster));
    assert_eq!(there(&key), 404);
    assert_ne!(cluster[2].read(&key).status, 200);
    let figures = |name| [1, 2].map(|number| cluster[number].metric(name));
    let before = figures("shoal_link_connects_total");
    for _ in 0..5 {
        assert_ne!(cluster[2].read(&key).status, 200);
    }
    assert_eq!(figures("shoal_link_connects_total"), before);
    assert_eq!(figures("shoal_link_rejected_total"), [0, 0]);
    assert_eq!(cluster[1].log().with_message(told).len(), 1);
}

#[test]
fn a_batch_answers_no_more_than_it_may_however_long_the_escapes_are() {
    let cluster = Cluster::start(1);
    // Each of these bytes takes six in JSON.
    let value = vec![1; 6 << 20];
    assert_eq!(cluster[1].request("PUT", &key_path("escaped"), &[], &value).status, 204);
    cluster[1].put("short", "value");
    let keys = ["short", "escaped", "short"].map(|key| json!({"op": "get", "key": key}));
    let statuses: Vec<_> =
        batch(cluster[1].address, &keys).iter().map(|result| result["status"].clone()).collect();
    assert_eq!(statuses, [200, 413, 200]);
}

#[test]
fn a_batch_that_reads_the_longest_types_opens_no_new_links() {
    let _alone = crate::measured();
    let flags = ["--max-memory", "128MiB", "--copies", "1"];
    let cluster = Cluster::start_with(2, &flags);
    let asker = if cluster.owners_of("{x}0")[0] == "n1" { 2 } else { 1 };
    poison(&cluster[1], 300);
    let keys: Vec<String> = poisoned(300).collect();
    // Both connections are opened when first needed.
    assert_eq!(lost(&cluster[asker], &keys), 0);
    let opened = |name| [1, 2].map(|number| cluster[number].metric(name));
    let (before, received) = (opened("shoal_link_connects_total"), opened("shoal_link_received_bytes_total"));
    for _ in 0..10 {
        assert_eq!(lost(&cluster[asker], &keys), 0);
    }
    assert_eq!(opened("shoal_link_connects_total"), before);
    let moved = opened("shoal_link_received_bytes_total")[asker - 1] - received[asker - 1];
    assert!(moved < 10 * 300 * 1024, "{moved} bytes for ten answers");
    assert_eq!(opened("shoal_link_rejected_total"), [0, 0]);
}
