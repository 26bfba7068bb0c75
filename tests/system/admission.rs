//! A node that was told whom to join answers for nobody until it is a member, or may begin a cluster of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::http;
use crate::node::{Node, key_path};
use crate::process::{PATIENCE, poll};
use crate::proxy::{Proxy, bind_both, free_addresses};

/// After so long without an answer from any address that it was given, a node begins a cluster of its own.
const BEGINS_ALONE_AFTER: Duration = Duration::from_secs(5);

/// Asks for a lock: 200 if it is granted.
fn lock(address: SocketAddr, key: &str) -> u16 {
    let headers = [("if-none-match", "*"), ("content-type", "application/json")];
    let body = json!({"value": "second"}).to_string();
    http::request(address, "PUT", &key_path(key), &headers, body.as_bytes()).expect("an answer").status
}

/// Kills the second node and starts it at once under its name at another address. Gives what its first answers were to
/// requests for locks that are taken, and to reads of them.
fn replace_at_once(cluster: &mut Cluster, locks: &[String]) -> Vec<(u16, u16)> {
    let seeds = [cluster[1].address.to_string(), cluster[3].address.to_string()].join(",");
    cluster.kill(2);
    let replacement = Node::start("n2", &["--join", &seeds]);
    let answers = locks
        .iter()
        .map(|key| {
            let answered = (lock(replacement.address, key), replacement.read(key).status);
            std::thread::sleep(Duration::from_millis(20));
            answered
        })
        .collect();
    cluster.replace(2, replacement);
    answers
}

#[test]
fn a_node_whose_name_is_still_taken_grants_no_lock_that_is_held() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(3);
    for round in 0..20 {
        let locks: Vec<_> = (0..30).map(|index| format!("lock-{round}-{index}")).collect();
        locks.iter().for_each(|key| assert_eq!(lock(cluster[1].address, key), 200));
        let answers = replace_at_once(&mut cluster, &locks);
        for (number, (locked, read)) in answers.iter().enumerate() {
            assert!([412, 503].contains(locked), "round {round}, lock {number}: {answers:?}");
            assert!([200, 503].contains(read), "round {round}, read {number}: {answers:?}");
        }
        cluster.wait_until("it takes its predecessor's place", PATIENCE, || cluster.is_whole());
        locks.iter().for_each(|key| assert_eq!(lock(cluster[2].address, key), 412, "{key}"));
    }
}

#[test]
fn a_node_that_cannot_reach_its_namesake_stays_outside_and_says_why() {
    let mut cluster = Cluster::default();
    cluster.add(&[]);
    let listen = bind_both().2;
    let proxy = Proxy::start(listen);
    let (seed, advertised) = (cluster[1].address.to_string(), proxy.address.to_string());
    cluster.admit(Node::start_at("n2", listen, &["--join", &seed, "--advertise", &advertised]));
    cluster.wait_until("the two are one ring", PATIENCE, || cluster.is_whole());
    cluster[1].put("key", "kept");
    // Its gossip still passes, so that the first node goes on to take it for alive.
    proxy.deafen();
    let double = Node::start("n2", &["--join", &seed]);
    let told =
        || double.get("/api/v1/health").json()["reason"].as_str().is_some_and(|why| why.contains("name"));
    assert!(poll(PATIENCE, told), "{}", double.get("/api/v1/health").text());
    let until = Instant::now() + BEGINS_ALONE_AFTER + Duration::from_secs(2);
    while Instant::now() < until {
        let health = double.get("/api/v1/health");
        assert_eq!((health.status, &health.json()["status"]), (503, &json!("joining")), "{}", health.text());
        assert_eq!((double.read("key").status, lock(double.address, "key")), (503, 503));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_node_that_is_joining_answers_at_once_that_it_is() {
    let nobody = bind_both().2.to_string();
    let node = Node::start("n1", &["--join", &nobody]);
    let has_asked =
        || node.get("/api/v1/health").json()["reason"].as_str().is_some_and(|why| why.contains(&nobody));
    assert!(poll(PATIENCE, has_asked), "{}", node.get("/api/v1/health").text());
    let asked = Instant::now();
    let batch = json!({"operations": [{"op": "get", "key": "a"}]});
    for answer in [
        node.read("key"),
        node.put_json("key", &json!({"value": "early"})),
        node.request("DELETE", &key_path("key"), &[], b""),
        node.post("/api/v1/batch", &batch),
        node.get("/internal/cache/key"),
    ] {
        let message = answer.expect_error(503, "joining");
        assert!(message.contains(&nobody) && message.contains("5 s"), "{message}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let health = node.get("/api/v1/health");
    assert_eq!((health.status, health.header("retry-after")), (503, Some("1")));
    assert_eq!(node.metric("shoal_overloaded_total"), 0);
}

#[test]
fn a_node_that_nobody_answers_says_that_it_begins_a_cluster_of_its_own() {
    let _alone = crate::measured();
    // Nothing listens at one address, the other swallows all, and the name is nobody's.
    let (refuses, swallows) = (bind_both().2.to_string(), bind_both());
    let join = [refuses, swallows.2.to_string(), "nobody.invalid:8001".into()].join(",");
    let started = Instant::now();
    let node = Node::start("n1", &["--join", &join]);
    assert!(poll(PATIENCE, || node.is_healthy()), "{}", node.log().tail(8));
    assert!(started.elapsed() >= BEGINS_ALONE_AFTER, "{:?}", started.elapsed());
    assert_eq!(node.log().with_message("no member answered: this node begins a cluster").len(), 1);
    node.put("key", "value");
}

#[test]
fn nodes_that_were_all_given_each_other_begin_together_at_once() {
    let _alone = crate::measured();
    for _ in 0..10 {
        let listen = free_addresses::<5>();
        let join = listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut cluster = Cluster::default();
        for (index, address) in listen.iter().enumerate() {
            cluster.admit(Node::start_at(&format!("n{}", index + 1), *address, &["--join", &join]));
        }
        cluster.wait_until("all five serve", Duration::from_secs(3), || cluster.is_whole());
    }
}
