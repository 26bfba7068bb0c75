//! Conditional requests, at owners, through a forward and in batches.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http::Answer;
use crate::node::{Node, key_path};

const JSON: (&str, &str) = ("content-type", "application/json");

fn put_if(node: &Node, key: &str, value: &str, condition: (&str, &str)) -> Answer {
    let body = json!({"value": value}).to_string();
    node.request("PUT", &key_path(key), &[JSON, condition], body.as_bytes())
}

fn etag(response: &Answer) -> String {
    response.header("etag").expect("an ETag").to_string()
}

#[test]
fn only_one_of_many_creates_a_key_and_only_the_given_version_is_overwritten() {
    let _alone = crate::measured();
    let cluster = Cluster::start(3);
    for number in 0..6 {
        let key = format!("conditional {number}");
        for (node, expected) in [(1, 200), (2, 412), (3, 412)] {
            let answer = put_if(&cluster[node], &key, "first", ("if-none-match", "*"));
            assert_eq!(answer.status, expected, "{answer:?}");
        }
        let refused = put_if(&cluster[2], &key, "other", ("if-none-match", "*"));
        assert_eq!(refused.json()["error"], "precondition_failed");
        let found = cluster[3].get(&key_path(&key));
        let version = etag(&found);
        assert_eq!(found.expect(200)["value"], "first");
        let second = put_if(&cluster[1], &key, "second", ("if-match", &version));
        assert_eq!(second.status, 200);
        assert_ne!(etag(&second), version);
        assert_eq!(put_if(&cluster[2], &key, "third", ("if-match", &version)).status, 412);
        let delete = |tag: &str| cluster[3].request("DELETE", &key_path(&key), &[("if-match", tag)], b"");
        assert_eq!(delete(&version).status, 412);
        for node in cluster.running() {
            assert_eq!(node.get(&key_path(&key)).expect(200)["value"], "second", "at {}", node.id);
        }
        assert_eq!(delete(&etag(&second)).status, 200);
        assert_eq!(put_if(&cluster[1], &key, "fourth", ("if-match", "*")).status, 412);
        assert_eq!(put_if(&cluster[1], &key, "fifth", ("if-none-match", "*")).status, 200);
    }
}

#[test]
fn what_a_client_has_already_is_not_sent_again() {
    let cluster = Cluster::start(2);
    cluster[1].put("cached", "value");
    let version = etag(&cluster[2].get(&key_path("cached")));
    for node in cluster.running() {
        let read = |name: &str, tag: &str| node.request("GET", &key_path("cached"), &[(name, tag)], b"");
        let unchanged = read("if-none-match", &version);
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
        assert_eq!(etag(&unchanged), version);
        assert_eq!(read("if-none-match", "\"other\"").status, 200);
        assert_eq!(read("if-match", &version).status, 200);
        assert_eq!(read("if-match", "\"other\"").status, 412);
        assert_eq!(read("if-none-match", "unquoted").status, 400);
    }
}

#[test]
fn counters_that_clients_at_all_nodes_increment_lose_no_step() {
    // An owner that is starved for 100 ms leaves a conditional write in doubt, which is an error here.
    let _alone = crate::measured();
    const CLIENTS: usize = 5;
    const STEPS: usize = 50;
    let cluster = Cluster::start(3);
    cluster[1].put("counter", "0");
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let node = &cluster[1 + client % 3];
            scope.spawn(move || {
                for _ in 0..STEPS {
                    loop {
                        let read = node.get(&key_path("counter"));
                        let version = etag(&read);
                        let count: usize = read.expect(200)["value"].as_str().unwrap().parse().unwrap();
                        let written =
                            put_if(node, "counter", &(count + 1).to_string(), ("if-match", &version));
                        match written.status {
                            200 => break,
                            412 => {}
                            other => panic!("{other}: {written:?}"),
                        }
                    }
                }
            });
        }
    });
    let count = cluster[2].get(&key_path("counter")).expect(200)["value"].clone();
    assert_eq!(count, (CLIENTS * STEPS).to_string());
}

#[test]
fn conditions_in_a_batch_are_decided_one_by_one() {
    let cluster = Cluster::start(3);
    let batch = |operations: Value| -> Vec<Value> {
        let answer = cluster[1].post("/api/v1/batch", &json!({"operations": operations})).expect(200);
        answer["results"].as_array().expect("results").clone()
    };
    let keys: Vec<String> = (0..9).map(|number| format!("batched {number}")).collect();
    let create: Vec<_> =
        keys.iter().map(|key| json!({"op": "put", "key": key, "value": "1", "if_none_match": "*"})).collect();
    let created = batch(json!(create));
    assert!(created.iter().all(|result| result["status"] == 200), "{created:?}");
    for result in batch(json!(create)) {
        assert_eq!([&result["status"], &result["error"]], [&json!(412), &json!("precondition_failed")]);
    }
    let update: Vec<_> = keys
        .iter()
        .zip(&created)
        .enumerate()
        .map(|(index, (key, result))| {
            let wanted = if index % 2 == 0 { result["etag"].clone() } else { json!("0") };
            json!({"op": "put", "key": key, "value": "2", "if_match": wanted})
        })
        .collect();
    for (index, result) in batch(json!(update)).iter().enumerate() {
        assert_eq!(result["status"], if index % 2 == 0 { 200 } else { 412 }, "{result}");
    }
    let gets: Vec<_> = keys.iter().map(|key| json!({"op": "get", "key": key})).collect();
    for (index, result) in batch(json!(gets)).iter().enumerate() {
        assert_eq!(result["value"], if index % 2 == 0 { "2" } else { "1" }, "{result}");
    }
    let bad =
        batch(json!([{"op": "get", "key": "a", "if_match": "*"}, {"op": "put", "key": "a", "value": "",
        "if_none_match": "x"}]));
    assert!(bad.iter().all(|result| result["status"] == 400), "{bad:?}");
}
